"""A device far away, played on the CPU: its tensors have numbers and say that they lie on another device.

Inside a `FarDevice` every operation is seen. It notes whatever a GPU would have to be waited for: a number that is
read, a shape that hangs on numbers, an index or a mask that still lies on the CPU; and every tensor that is copied.
"""

import traceback

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAR = torch.device("meta")
ASKS_FOR_NUMBERS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal", "is_nonzero"}


class Far(torch.Tensor):
    """A tensor on the far device; `near` has its numbers."""

    @staticmethod
    def __new__(cls, near):
        return torch.Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype, device=FAR
        )

    def __init__(self, near):
        self.near = near

    def __repr__(self):
        return f"Far({self.near})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        with FarDevice():
            return function(*args, **kwargs or {})


def near(value):
    return value.near if isinstance(value, Far) else torch.device("cpu") if value == FAR else value


def is_far(value):
    return isinstance(value, Far) or (isinstance(value, torch.device) and value == FAR)


class FarDevice(TorchDispatchMode):
    """Notes, while it is entered: `waits`, what the CPU waits for, and `copies`, what was sent."""

    def __init__(self):
        super().__init__()
        self.waits, self.copies = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = (args, kwargs or {})
        leaves = [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor | torch.device)]
        if not any(map(is_far, leaves)):
            return function(*args, **kwargs or {})
        self.note(function, given, leaves)
        args, kwargs = tree_map(near, given)
        found = function(*args, **kwargs)
        stays = function.overloadpacket.__name__ == "_to_copy" and given[1].get("device") == torch.device("cpu")
        return found if stays else tree_map(self.far_again(given, found), found)

    def far_again(self, given, found):
        """Results are far; one that is an argument, changed in place, is that argument."""
        known = {id(leaf.near): leaf for leaf in tree_leaves(given) if isinstance(leaf, Far)}
        return lambda value: known.get(id(value), Far(value)) if isinstance(value, torch.Tensor) else value

    def note(self, function, given, leaves):
        name, tensors = function.overloadpacket.__name__, [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        here = [tensor for tensor in tensors if not isinstance(tensor, Far)]
        far = [tensor for tensor in tensors if isinstance(tensor, Far)]
        if name in ("_to_copy", "copy_") and here and (name == "copy_" or given[1].get("device") == FAR):
            self.copies.append((bool(given[1].get("non_blocking")), here[-1].clone(), line()))
        elif name in ASKS_FOR_NUMBERS or (name == "_to_copy" and given[1].get("device") == torch.device("cpu")):
            self.waits.append((name, line()))
        elif any(tensor.ndim > 0 for tensor in here) and far:
            self.waits.append((f"{name} of a tensor on the CPU", line()))
        elif name.startswith("index") and any(tensor.dtype == torch.bool for tensor in far[1:]):
            self.waits.append((f"{name} by a mask", line()))


def line():
    """The line of the library that asked for it."""
    frames = [frame for frame in traceback.extract_stack() if "/lscl/" in frame.filename]
    frames = [frame for frame in frames if not frame.filename.endswith("transfer.py")]
    return f"{frames[-1].filename}:{frames[-1].lineno} {frames[-1].line}" if frames else "a test"


def to_far(module):
    """Move a module to the far device, in place."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = torch.nn.Parameter(Far(value.detach()), value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = Far(value)
    return module
