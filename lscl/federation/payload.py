"""What crosses the border between client and server: named tensors and numbers, copied, checked and counted in bytes."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lscl.errors import LsclError
from lscl.federation.limits import Check, largest_magnitude

Payload = dict[str, Tensor]
Shapes = Mapping[str, tuple[int | None, ...]]  # None: any length


def seal(
    payload: Payload,
    sender: str,
    expected: Shapes | None = None,
    dtype: Callable[[str], torch.dtype] | None = None,
    limit: int | None = None,
    checks: Mapping[str, Check] | None = None,
) -> Payload:
    """A checked copy of `payload` on the CPU that shares no memory with the sender.

    dtype: the type that the tensor of a name must have; limit: bytes of the largest payload allowed; checks: of the numbers, by name.

    Raises:
        LsclError: not a tensor, not finite, too large, names, shapes and types other than expected, or numbers that cannot be.
    """
    if not isinstance(payload, Mapping):
        raise LsclError(f"payload of {sender}: is a {type(payload).__name__}, not tensors by name")
    if expected is not None and set(payload) != set(expected):
        odd = brief(", ".join(sorted(map(str, set(payload) ^ set(expected)))))
        raise LsclError(f"payload of {sender}: {odd} missing or not allowed (allowed: {', '.join(sorted(expected))})")
    sealed = {}
    for name, value in payload.items():
        if not isinstance(value, Tensor):
            raise LsclError(f"payload of {sender}: {name} is a {type(value).__name__}, only tensors may travel")
        if value.layout != torch.strided or value.is_nested or value.is_meta or value.is_quantized:
            raise LsclError(
                f"payload of {sender}: {name} is no plain tensor (sparse, nested, quantised or without numbers)"
            )
        if expected is not None and not _fits(value, expected[name]):
            allowed = tuple("any" if size is None else size for size in expected[name])
            raise LsclError(f"payload of {sender}: {name} has shape {tuple(value.shape)}, allowed is {allowed}")
        if dtype is not None and value.dtype != dtype(name):
            raise LsclError(f"payload of {sender}: {name} has type {value.dtype}, allowed is {dtype(name)}")
        if not is_finite(value):
            raise LsclError(f"payload of {sender}: {name} holds NaN or infinite numbers")
        sealed[name] = value.detach().to("cpu", copy=True).contiguous()
        check_size(num_bytes(sealed), sender, limit)
    for name, check in (checks or {}).items():
        if wrong := check(sealed[name]):
            raise LsclError(f"payload of {sender}: {name} {wrong}")
    return sealed


def is_finite(value: Tensor) -> bool:
    """Whether there is neither NaN nor an infinite number in it."""
    return not (value.is_floating_point() or value.is_complex()) or bool(torch.isfinite(value).all())


def brief(text: object) -> str:
    """What others wrote, or an error, as one line of at most 500 printable characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)[:2000]).split())
    return line if len(line) <= 500 else f"{line[:500]} ..."


def payload_magnitude(*payloads: Payload) -> float:
    """The largest absolute value of all floating-point numbers, 0 of none."""
    return max(
        (largest_magnitude(value) for payload in payloads for value in payload.values() if value.is_floating_point()),
        default=0.0,
    )


def check_size(size: int, sender: str, limit: int | None) -> None:
    """Raises LsclError if a payload of `size` bytes is over the limit."""
    if limit is not None and size > limit:
        raise LsclError(f"payload of {sender}: {size} bytes or more, allowed are {limit}")


def _fits(value: Tensor, shape: tuple[int | None, ...]) -> bool:
    return value.ndim == len(shape) and all(want in (None, have) for have, want in zip(value.shape, shape))


def num_bytes(payload: Payload) -> int:
    """Bytes of all tensors as they travel, without framing."""
    return sum(value.numel() * value.element_size() for value in payload.values())
