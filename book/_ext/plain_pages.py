"""A small Sphinx extension for this book.

It puts numbers into sentences, adds figures that are HTML, describes pages to search engines, removes
parts of the theme that the book does not want, and names the toggles that the theme leaves without a name.
"""

import html
import json
import re
import subprocess
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from lscl.errors import shorten
from lscl.publish.first_screen import site_address


def setup(app):
    app.connect("build-finished", drop_icon_script)
    app.add_directive("live-figure", LiveFigure)
    app.connect("config-inited", take_numbers, priority=100)  # before MyST looks
    app.connect("autodoc-skip-member", skip_imported)
    app.connect("autodoc-process-docstring", untyped_returns, priority=400)  # before napoleon reads the sections
    app.connect("autodoc-process-docstring", as_restructured_text)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("html-page-context", tidy)
    app.connect("html-page-context", describe)
    app.connect("html-page-context", name_the_toggles, priority=900)  # behind the theme, whose function it wraps
    return {"env_version": 7, "parallel_read_safe": True, "parallel_write_safe": True}


class LiveFigure(SphinxDirective):
    """A numbered figure whose picture is an HTML file: ```{live-figure} FILE ANCHOR, with the caption as content."""

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


def skip_imported(app, what, name, obj, skip, options):
    """Leave out what a module only imports: Sphinx would parse the other package before it leaves it out, too."""
    home = getattr(obj, "__module__", None) or "lscl"
    return True if what == "module" and not home.startswith("lscl") else None


def tidy(app, pagename, templatename, context, doctree):
    """Remove scripts that a page does not need, and the bibliography's roles, contradicted or outdated.

    These are thebe's, which name a foreign host, and MathJax on a page without formulas.
    """
    unused = ["thebe"] if 'class="math' in context.get("body", "") else ["thebe", "mathjax"]
    needed = lambda script: (
        not any(
            name in f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', {}).get('body', '')}".lower()
            for name in unused
        )
    )
    context["script_files"] = list(filter(needed, context["script_files"]))
    context["css_files"] = [
        sheet for sheet in context["css_files"] if "thebe" not in str(getattr(sheet, "filename", sheet))
    ]
    if "body" in context:
        context["body"] = (
            context["body"]
            .replace('<div role="list" class="citation-list">', '<div class="citation-list">')
            .replace(' role="doc-biblioentry"', "")
        )


def describe(app, pagename, templatename, context, doctree):
    """Say what a page is about, for search engines, and show the book's image on social networks.

    The image needs an absolute address; without a known site it is left out.
    """
    if doctree is None:
        return
    said = summary(doctree)
    about = {"name": {"description": said}, "property": {"og:title": context.get("title", "")}}
    about["property"] |= {"og:type": "article", "og:site_name": app.config.html_title or app.config.project}
    about["property"]["og:description"] = said
    site = site_address(app.config.html_theme_options.get("repository_url", ""))
    if site:
        about["property"] |= {"og:url": f"{site}{pagename}.html", "og:image": f"{site}_static/social.png"}
        about["name"]["twitter:card"] = "summary_large_image"
    context["metatags"] = context.get("metatags", "") + "".join(
        f'\n<meta {kind}="{name}" content="{html.escape(text, quote=True)}">'
        for kind, entries in about.items()
        for name, text in entries.items()
        if text
    )


def summary(doctree):
    """A page in a few words: its first long paragraph; of a notebook, which begins with its needs, its first list."""
    first = next((node.astext() for node in doctree.findall(nodes.paragraph) if len(node.astext()) > 60), "")
    listed = next(doctree.findall(nodes.bullet_list), None)
    if first.startswith("Needs ") and listed is not None:
        first = " ".join(item.astext() for item in listed.children)
    return shorten(f"{first[:1].upper()}{first[1:]}".rstrip(","), 300)


def name_the_toggles(app, pagename, templatename, context, doctree):
    """Give screen readers a name for the arrows that open a page's subpages in the list of pages."""
    made = context["generate_toctree_html"]
    context["generate_toctree_html"] = lambda *words, **more: str(made(*words, **more)).replace(
        "<summary>", '<summary aria-label="pages below">'
    )


def take_numbers(app, config):
    """Make the numbers of `lscl pages`, and the commit of the build, available to names in double braces."""
    made = json.loads((Path(app.confdir) / "results" / "tables" / "numbers.json").read_text(encoding="utf-8"))
    config.myst_substitutions = {**config.myst_substitutions, **made, "built_from": commit(app.confdir)}


def commit(folder):
    """Name the commit of the repository around a folder, or say that there is none."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, encoding="utf-8", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "a copy without its history"
    return f"commit `{found.stdout.strip()[:10]}`"


def untyped_returns(app, what, name, found, options, lines):
    """Keep a description with a colon whole: napoleon takes what stands before the first colon for the type.

    A type is one word, such as pandas.DataFrame.
    """
    for place, line in enumerate(lines[1:], 1):
        if lines[place - 1].strip() in ("Returns:", "Yields:") and ":" in line and not re.match(r"\s*[\w.]+: ", line):
            lines[place] = re.sub(r"^(\s*)", r"\1: ", line)


def as_restructured_text(app, what, name, found, options, lines):
    """Escape bars in docstrings, which are plain text, and shorten a system's to its first paragraph and a link.

    The rest of a system's docstring is on the page of the system.
    """
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
    """Shorten the config's signature: its hundred fields have a page of their own."""
    return ("(**values)", return_annotation) if name == "lscl.config.Experiment" else None


def drop_icon_script(app, exception):
    """Empty Font Awesome's script, larger than the rest of a page together: the icons come from its fonts as well."""
    script = Path(app.outdir) / "_static" / "scripts" / "fontawesome.js"
    if exception is None and script.exists():
        script.write_text("// The icons of this book come from Font Awesome's fonts.\n", encoding="utf-8")
