"""The pages of the API reference: which modules are on which page. Sphinx takes the rest from the docstrings."""

import pkgutil

import lscl

# Flower's part needs an extra and has its own page, book/scaling_out.md; the options of the commands are those of the
# configuration; shapes are for the reader of files alone.
LEFT_OUT = ("lscl.flower", "lscl.cli", "lscl.results.file_shapes")
PAGES = {
    "basics": ("Basics", "Configuration, named random draws, places, files, the one exception."),
    "data": ("Data", "Images and their partition over clients and tasks."),
    "models": ("Models", "The frozen ViT, the small CNNs, the generator."),
    "federation": ("Federation", "The loop, the clients, and what may cross between clients and server."),
    "methods": (
        "Methods",
        "The hooks of a system, and the parts that several systems share. "
        "Each system has {doc}`its own page </book/systems>`.",
    ),
    "experiments": ("Experiments", "One run from a config to a record, sets of runs, and the resources they need."),
    "results": ("Results", "Statistics, tables and figures made from records."),
    "publish": ("Publishing", "Pages, sentences and notebooks of the book; nothing else imports these modules."),
}


def modules() -> dict[str, list[str]]:
    """The modules of the package by page, without those in LEFT_OUT."""
    found: dict[str, list[str]] = {name: [] for name in PAGES}
    for module in pkgutil.walk_packages(lscl.__path__, "lscl."):
        if not module.name.startswith(LEFT_OUT) and not module.ispkg:
            package = module.name.split(".")[1:-1]
            found[package[0] if package else "basics"].append(module.name)
    return found


def pages() -> dict[str, str]:
    """{name: markdown} of every page."""
    return {name: _text(name, found) for name, found in modules().items()}


def _text(name: str, found: list[str]) -> str:
    title, about = PAGES[name]
    parts = [f"% Made by `lscl pages` from the modules of the package.\n\n# {title}\n\n{about}"]
    for module in found:
        directive = f".. automodule:: {module}\n   :members:\n   :exclude-members: set, model_config"
        parts.append(f"## {module}\n\n```{{eval-rst}}\n{directive}\n```")
    return "\n\n".join(parts)
