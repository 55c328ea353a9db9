"""The systems: one file each, on the hooks of `lscl.federation.method.Method`; what registers itself here is known."""

from importlib import import_module
from pkgutil import iter_modules

from lscl.registry import METHODS

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

__all__ = ["METHODS"]
