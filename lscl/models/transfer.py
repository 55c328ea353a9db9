"""Copies from the CPU to the device of a network, while the CPU goes on working."""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device. A GPU copies from pinned memory, in the order of its work, while the CPU goes on.

    Args:
        tensor: on the CPU, or on the device already.
        device: where it is needed.

    Returns:
        The tensor on the device; the tensor itself if it is there.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Shipment:
    """Tensors on their way to a device. A GPU copies them in a stream of its own, while it computes.

    Args:
        tensors: on the CPU, by name.
        device: where they are needed.
    """

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device):
        self.tensors, self.device, self.sent = dict(tensors), device, None
        if device.type == "cuda":
            with torch.cuda.stream(_copying(device)):
                self.tensors = {name: send(tensor, device) for name, tensor in tensors.items()}
                self.sent = torch.cuda.current_stream(device).record_event()

    def take(self, name: str) -> Tensor:
        """One of the tensors on the device. Later computations on the device wait for it; the CPU does not."""
        if self.sent is None:
            return send(self.tensors[name], self.device)
        now = torch.cuda.current_stream(self.device)
        now.wait_event(self.sent)
        self.tensors[name].record_stream(now)
        return self.tensors[name]


@lru_cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
