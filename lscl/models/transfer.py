"""Copies from the CPU to where a network computes, for which the CPU does not wait."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; a GPU copies it from locked memory, in its turn, while the CPU goes on.

    Args:
        tensor: on the CPU, or on the device already.
        device: where it is needed.

    Returns:
        The tensor on the device; the tensor itself if it is there.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
