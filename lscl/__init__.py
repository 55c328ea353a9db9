"""Fed-LSCL: large-small model collaboration for federated continual learning, as a library behind a book."""

import os
from importlib import import_module
from typing import Any

# Torch's threads wait for each other by spinning, so that beside other work a run gets several times slower; asleep, they cost nothing.
# Read when torch is imported, hence here; results do not depend on it, and whoever has set it keeps that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

# The public face, by the module that each name comes from; a module is imported when one of its names is asked for.
_FACE = {
    "experiment": "lscl.config",
    "register": "lscl.registry",
    "register_dataset": "lscl.registry",
    "run": "lscl.experiments.run",
}


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_FACE])
