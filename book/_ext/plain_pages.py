"""A small Sphinx extension: numbers inside sentences; what the theme puts into every page and this book does not want; a name that it leaves out."""

import json
import subprocess
from pathlib import Path


def setup(app):
    app.connect("config-inited", take_numbers, priority=100)  # before MyST looks
    app.connect("html-page-context", tidy)
    app.connect("html-page-context", name_the_toggles, priority=900)  # behind the theme, whose function it wraps
    return {"env_version": 3, "parallel_read_safe": True, "parallel_write_safe": True}


def tidy(app, pagename, templatename, context, doctree):
    """No script of thebe, which is not used and would name a foreign host; a bibliography without the list role that its entries contradict."""
    foreign = lambda script: "thebe" in f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', {}).get('body', '')}".lower()
    context["script_files"] = [script for script in context["script_files"] if not foreign(script)]
    context["css_files"] = [sheet for sheet in context["css_files"] if "thebe" not in str(getattr(sheet, "filename", sheet))]
    if "body" in context:
        context["body"] = context["body"].replace('<div role="list" class="citation-list">', '<div class="citation-list">')


def name_the_toggles(app, pagename, templatename, context, doctree):
    """A name, for those who do not see it, on the arrow in the list of pages that opens the pages below one."""
    made = context["generate_toctree_html"]
    context["generate_toctree_html"] = lambda *words, **more: str(made(*words, **more)).replace("<summary>", '<summary aria-label="pages below">')


def take_numbers(app, config):
    """The numbers that `lscl pages` wrote, for the names in double braces, and the commit that the pages are built from."""
    made = json.loads((Path(app.confdir) / "results" / "tables" / "numbers.json").read_text())
    config.myst_substitutions = {**config.myst_substitutions, **made, "built_from": commit(app.confdir)}


def commit(folder):
    """The commit of the repository around a folder, or that there is none."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "a copy without its history"
    return f"commit `{found.stdout.strip()[:10]}`"
