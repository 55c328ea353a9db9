"""What crosses the border between client and server: named tensors and numbers, copied, checked and counted in bytes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lscl.errors import LsclError

Payload = dict[str, Tensor]
Shapes = Mapping[str, tuple[int | None, ...]]  # None: any length


def seal(payload: Payload, sender: str, expected: Shapes | None = None) -> Payload:
    """A checked copy of `payload` on the CPU that shares no memory with the sender.

    Raises:
        LsclError: not a tensor, not finite, or names and shapes other than `expected`.
    """
    if expected is not None and set(payload) != set(expected):
        odd = sorted(set(payload) ^ set(expected))
        raise LsclError(f"payload of {sender}: {', '.join(odd)} missing or not allowed (allowed: {', '.join(sorted(expected))})")
    sealed = {}
    for name, value in payload.items():
        if not isinstance(value, Tensor):
            raise LsclError(f"payload of {sender}: {name} is a {type(value).__name__}, only tensors may travel")
        if expected is not None and not _fits(value, expected[name]):
            allowed = tuple("any" if size is None else size for size in expected[name])
            raise LsclError(f"payload of {sender}: {name} has shape {tuple(value.shape)}, allowed is {allowed}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise LsclError(f"payload of {sender}: {name} holds NaN or infinite numbers")
        sealed[name] = value.detach().to("cpu", copy=True).contiguous()
    return sealed


def _fits(value: Tensor, shape: tuple[int | None, ...]) -> bool:
    return value.ndim == len(shape) and all(want in (None, have) for have, want in zip(value.shape, shape))


def num_bytes(payload: Payload) -> int:
    """Bytes of all tensors as they travel, without framing."""
    return sum(value.numel() * value.element_size() for value in payload.values())
