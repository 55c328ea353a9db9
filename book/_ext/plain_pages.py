"""A small Sphinx extension: numbers inside sentences; figures that are more than an image; what the theme puts into every page and
this book does not want; a name that it leaves out."""

import json
import subprocess
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


def setup(app):
    app.add_directive("live-figure", LiveFigure)
    app.connect("config-inited", take_numbers, priority=100)  # before MyST looks
    app.connect("autodoc-process-docstring", as_restructured_text)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("html-page-context", tidy)
    app.connect("html-page-context", name_the_toggles, priority=900)  # behind the theme, whose function it wraps
    return {"env_version": 5, "parallel_read_safe": True, "parallel_write_safe": True}


class LiveFigure(SphinxDirective):
    """A figure with number and caption whose picture is a file of HTML: ```{live-figure} FILE ANCHOR, and the caption below."""

    required_arguments = 2
    has_content = True

    def run(self):
        relative, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(relative)
        text, _ = self.state.inline_text(" ".join(self.content), self.lineno)
        picture = nodes.raw("", Path(path).read_text(encoding="utf-8"), format="html")
        figure = nodes.figure("", picture, nodes.caption("", "", *text), names=[self.arguments[1]])
        self.state.document.note_explicit_target(figure)
        return [figure]


def tidy(app, pagename, templatename, context, doctree):
    """No script of thebe, which is not used and would name a foreign host; a bibliography without the list role that its entries contradict."""
    foreign = lambda script: (
        "thebe" in f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', {}).get('body', '')}".lower()
    )
    context["script_files"] = [script for script in context["script_files"] if not foreign(script)]
    context["css_files"] = [
        sheet for sheet in context["css_files"] if "thebe" not in str(getattr(sheet, "filename", sheet))
    ]
    if "body" in context:
        context["body"] = context["body"].replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )


def name_the_toggles(app, pagename, templatename, context, doctree):
    """A name, for those who do not see it, on the arrow in the list of pages that opens the pages below one."""
    made = context["generate_toctree_html"]
    context["generate_toctree_html"] = lambda *words, **more: str(made(*words, **more)).replace(
        "<summary>", '<summary aria-label="pages below">'
    )


def take_numbers(app, config):
    """The numbers that `lscl pages` wrote, for the names in double braces, and the commit that the pages are built from."""
    made = json.loads((Path(app.confdir) / "results" / "tables" / "numbers.json").read_text(encoding="utf-8"))
    config.myst_substitutions = {**config.myst_substitutions, **made, "built_from": commit(app.confdir)}


def commit(folder):
    """The commit of the repository around a folder, or that there is none."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, encoding="utf-8", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "a copy without its history"
    return f"commit `{found.stdout.strip()[:10]}`"


def as_restructured_text(app, what, name, found, options, lines):
    """Docstrings are plain text: a bar is a bar. What a system's class says stands on its page, so here is its first paragraph and the way there."""
    lines[:] = [line.replace("|", r"\|") for line in lines]
    if (
        what == "class"
        and name.startswith("lscl.methods.")
        and ".parts." not in name
        and found.__name__ not in ("Method", "Stage", "Phase")
    ):
        page = name.split(".")[2]
        end = lines.index("") if "" in lines else len(lines)
        lines[end:] = ["", f"Everything else: :doc:`/book/methods/{page}`.", ""]


def short_signature(app, what, name, found, options, signature, return_annotation):
    """The config has a hundred fields, which have a page; its signature is not the place for them."""
    return ("(**values)", return_annotation) if name == "lscl.config.Experiment" else None
