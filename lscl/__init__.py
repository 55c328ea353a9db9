"""Fed-LSCL: large-small model collaboration for federated continual learning, as a library behind a book.

Names are loaded when they are first used, so that `import lscl` costs nothing.
"""

import gc
import os
import warnings
from importlib import import_module
from typing import Any

# Torch's threads wait for each other by spinning, which slows a run several times when the machine has other work.
# Sleeping threads cost nothing. Torch reads the variable at its import; results do not depend on it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Python looks for unused objects whenever a few hundred more exist. The import of torch and its libraries makes half a
# million, all in use, and the looking is a quarter of its time.
if 0 < gc.get_threshold()[0] < 10_000:
    gc.set_threshold(10_000)

# Libraries that come with torch warn in a notebook without ipywidgets that they can draw no progress bar.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"

# The public names: the module of each, and its name in that module (None = the module itself).
_FACE = {
    "experiment": ("lscl.config", "experiment"),
    "register": ("lscl.registry", "register"),
    "register_dataset": ("lscl.registry", "register_dataset"),
    "run": ("lscl.experiments.run", "run"),
    "load_model": ("lscl.experiments.prediction", "load_model"),
    "results": ("lscl.results", None),
    "LsclError": ("lscl.errors", "LsclError"),
}


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'lscl' has no attribute {name!r}")
    module, inside = _FACE[name]
    found = import_module(module)
    return getattr(found, inside) if inside else found


def __dir__() -> list[str]:
    return sorted([*globals(), *_FACE])
