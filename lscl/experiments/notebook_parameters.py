"""Check a notebook's parameters before it computes: papermill injects whatever it gets, misspelled names too."""

import ast
from typing import Any

from IPython import get_ipython

from lscl.config import experiment, fields
from lscl.errors import LsclError, unknown_name

INJECTED = "# Parameters\n"  # how papermill's own cell begins


def parameters(**known: Any) -> None:
    """Check the parameters of a notebook and that papermill injected no other ones.

    Args:
        known: the parameters by name, with their values.

    Raises:
        LsclError: an injected name that the notebook does not have, or an impossible value.
    """
    for name in injected_names():
        if name not in known:
            raise unknown_name("parameter", name, known)
    if not isinstance(known.get("compute", False), bool):
        raise LsclError(f"compute = {known['compute']!r}: allowed are True and False")
    experiment(**{name: value for name, value in known.items() if name in fields()})


def injected_names() -> list[str]:
    """The names that papermill's cells have set in this session, in their order; none outside of a notebook."""
    session = get_ipython()
    cells = session.user_ns.get("In", []) if session else []
    trees = [ast.parse(cell) for cell in cells if cell.startswith(INJECTED)]
    return [
        target.id for tree in trees for line in tree.body if isinstance(line, ast.Assign) for target in line.targets
    ]
