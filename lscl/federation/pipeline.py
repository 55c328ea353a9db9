"""Batches that are read ahead: while a network computes, threads fetch the numbers of the next batches.

On a GPU the numbers go through locked memory and arrive during the computation. Whole arrays that fit its memory are
copied there once instead. Neither changes a number, nor the order of anything.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import torch
from torch import Tensor

from lscl.federation.client import Batch, Inputs
from lscl.models.transfer import Shipment, send

AHEAD, THREADS = 2, 2  # batches that are read ahead, and by how many threads
PIECE = 2**28  # bytes that are copied there at once
SHARE = 0.5  # of the free memory of a GPU: the largest array that is copied there


def batches(inputs: Inputs, parts: Iterable[Tensor]) -> Iterator[Batch]:
    """Make batches; whatever was used of the earlier ones is read ahead of the next.

    Close the iterator if it is not used up (`contextlib.closing`): that ends its threads.

    Args:
        inputs: the split.
        parts: (b,) positions of the images of each batch.

    Yields:
        The batches, in the order of `parts`. What goes wrong while one is read is raised when its turn comes.
    """
    parts, used = iter(parts), set()
    for part in islice(parts, 1):  # nobody knows yet what is used of a batch
        yield Batch(inputs, part, used=used)
    pool = ThreadPoolExecutor(THREADS, "lscl-batches")
    start = lambda part: (part, pool.submit(read_ahead, inputs, part, sorted(used)))
    try:
        waiting = deque(map(start, islice(parts, AHEAD)))
        while waiting:
            part, reading = waiting.popleft()
            waiting.extend(map(start, islice(parts, 1)))
            yield Batch(inputs, part, reading.result(), used)
    finally:
        pool.shutdown(cancel_futures=True)


def read_ahead(inputs: Inputs, index: Tensor, names: Iterable[str]) -> Shipment:
    """Read stored numbers of a batch, and send them off.

    Args:
        inputs: the split.
        index: (b,) positions of the images.
        names: what is read, see `Inputs.stored`; what lies on the device already is left out.

    Returns:
        What was read, on its way to the device.
    """
    return Shipment({name: inputs.read(name, index) for name in names if name not in inputs.placed}, inputs.device)


def place_on_device(inputs: Inputs, free: Callable[[], int]) -> list[str]:
    """Copy whole arrays to the device, small ones first, each if it takes at most half of the memory that is free.

    Args:
        inputs: the split.
        free: tells how many bytes are free now.

    Returns:
        The names of what lies there now, see `Inputs.stored`.
    """
    for name, array in sorted(inputs.stored.items(), key=lambda item: item[1].nbytes):
        if array.nbytes <= SHARE * free():
            inputs.placed[name] = _copy_whole(inputs, name)
    return list(inputs.placed)


def _copy_whole(inputs: Inputs, name: str) -> Tensor:
    """A whole array on the device, copied piece by piece: it may be larger than the memory of the CPU."""
    array = inputs.stored[name]
    rows = max(1, PIECE * len(array) // max(1, array.nbytes))
    copy = torch.empty(array.shape, dtype=inputs.read(name, torch.arange(0)).dtype, device=inputs.device)
    for start in range(0, len(array), rows):
        index = torch.arange(start, min(start + rows, len(array)))
        copy[start : start + rows] = send(inputs.read(name, index), inputs.device)
    return copy


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory that are free, or that torch holds and does not use."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
