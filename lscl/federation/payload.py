"""Payloads: named tensors that cross between client and server, copied, checked and counted in bytes."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lscl.errors import RejectedPayload, shorten
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
    """Copy a payload to the CPU, sharing no memory with the sender, and check it.

    Args:
        payload: {name: tensor}.
        sender: who sent it, for messages.
        expected: {name: shape} of a valid payload; None = any.
        dtype: name -> type that the tensor must have; None = any.
        limit: largest size in bytes; None = any.
        checks: {name: check of its numbers}; None = none.

    Returns:
        The copy.

    Raises:
        RejectedPayload: a value is not a tensor or not finite, the payload is too large, a name, shape or type is not
            the expected one, or a check fails.
    """
    if not isinstance(payload, Mapping):
        raise RejectedPayload(f"payload of {sender}: is a {type(payload).__name__}, not tensors by name")
    if expected is not None and set(payload) != set(expected):
        odd = shorten(", ".join(sorted(map(str, set(payload) ^ set(expected)))))
        raise RejectedPayload(
            f"payload of {sender}: {odd} missing or not allowed (allowed: {', '.join(sorted(expected))})"
        )
    sealed = {}
    for name, value in payload.items():
        if not isinstance(value, Tensor):
            raise RejectedPayload(f"payload of {sender}: {name} is a {type(value).__name__}, only tensors may travel")
        if value.layout != torch.strided or value.is_nested or value.is_meta or value.is_quantized:
            raise RejectedPayload(
                f"payload of {sender}: {name} is no plain tensor (sparse, nested, quantised or without numbers)"
            )
        if expected is not None and not _fits(value, expected[name]):
            allowed = tuple("any" if size is None else size for size in expected[name])
            raise RejectedPayload(f"payload of {sender}: {name} has shape {tuple(value.shape)}, allowed is {allowed}")
        if dtype is not None and value.dtype != dtype(name):
            raise RejectedPayload(f"payload of {sender}: {name} has type {value.dtype}, allowed is {dtype(name)}")
        if not is_finite(value):
            raise RejectedPayload(f"payload of {sender}: {name} holds NaN or infinite numbers")
        sealed[name] = value.detach().to("cpu", copy=True).contiguous()
        check_size(num_bytes(sealed), sender, limit)
    for name, check in (checks or {}).items():
        if wrong := check(sealed[name]):
            raise RejectedPayload(f"payload of {sender}: {name} {wrong}")
    return sealed


def is_finite(value: Tensor) -> bool:
    """Whether a tensor is free of NaN and infinite numbers."""
    return not (value.is_floating_point() or value.is_complex()) or bool(torch.isfinite(value).all())


def payload_magnitude(*payloads: Payload) -> float:
    """The largest absolute value of all floating-point numbers; 0 if there are none."""
    return max(
        (largest_magnitude(value) for payload in payloads for value in payload.values() if value.is_floating_point()),
        default=0.0,
    )


def check_size(size: int, sender: str, limit: int | None) -> None:
    """Refuse a payload that is too large.

    Args:
        size: its bytes, or those received so far.
        sender: who sent it, for the message.
        limit: largest size in bytes; None = any.

    Raises:
        RejectedPayload: it is larger.
    """
    if limit is not None and size > limit:
        raise RejectedPayload(f"payload of {sender}: {size} bytes or more, allowed are {limit}")


def _fits(value: Tensor, shape: tuple[int | None, ...]) -> bool:
    return value.ndim == len(shape) and all(want in (None, have) for have, want in zip(value.shape, shape))


def num_bytes(payload: Payload) -> int:
    """Bytes of all tensors of a payload, without names and framing."""
    return sum(value.numel() * value.element_size() for value in payload.values())
