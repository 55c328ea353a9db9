"""Batches that are read ahead by threads."""

import threading
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from lscl.data.store import ImageSet
from lscl.federation.client import Inputs
from lscl.federation.pipeline import AHEAD, batches, place_on_device

CPU = torch.device("cpu")


class Watched(Inputs):
    """Inputs that note who reads what: [(name, first position, name of the thread)]."""

    broken = None  # the position whose reading fails

    def read(self, name, index):
        self.__dict__.setdefault("reads", []).append((name, *index[:1].tolist(), threading.current_thread().name))
        if self.broken in index.tolist():
            raise OSError("the disk is gone")
        return super().read(name, index)


@pytest.fixture
def inputs():
    """40 images of 4 x 4 pixels with tokens of two kinds."""
    draw = np.random.default_rng(0)
    images = ImageSet(draw.integers(0, 256, (40, 4, 4, 3), np.uint8), draw.integers(0, 3, 40), ("a", "b", "c"))
    return Watched(images, draw.random((40, 5, 8), np.float32), CPU, draw.integers(0, 9, (40, 1, 8)).astype(np.int16))


def parts(size=4):
    return torch.randperm(40, generator=torch.Generator().manual_seed(1)).split(size)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("lscl-batches")]


def test_batches_are_equal_to_those_that_are_read_when_they_are_used(inputs):
    for index, batch in zip(parts(), batches(inputs, parts()), strict=True):
        plain = inputs.batch(index)
        assert torch.equal(batch.index, index)
        for name in ("labels", "images", "prefix", "last_token"):
            one, other = getattr(batch, name), getattr(plain, name)
            assert one.dtype == other.dtype and torch.equal(one, other)


def test_what_an_earlier_batch_used_is_read_ahead_and_nothing_else(inputs):
    with closing(batches(inputs, parts())) as found:
        next(found).prefix  # noqa: B018
        second = next(found)
        end = time.monotonic() + 30
        while len(inputs.reads) < 2 + AHEAD and time.monotonic() < end:
            time.sleep(0.01)
        assert {name for name, _, _ in inputs.reads} == {"prefix"}
        assert [first for _, first, _ in inputs.reads[1:]] and len(inputs.reads) == 2 + AHEAD
        own = threading.current_thread().name
        assert inputs.reads[0][2] == own and all(thread != own for _, _, thread in inputs.reads[1:])
        second.prefix  # noqa: B018
        assert len(inputs.reads) == 2 + AHEAD  # it was there
        second.labels  # noqa: B018
        assert inputs.reads[-1][::2] == ("labels", own)


def test_an_error_of_reading_is_raised_when_the_turn_of_its_batch_comes(inputs):
    inputs.broken = int(parts()[3][0])
    seen = []
    with pytest.raises(OSError, match="the disk is gone"), closing(batches(inputs, parts())) as found:
        for batch in found:
            batch.labels  # noqa: B018
            seen.append(batch.index.tolist())
    assert seen == [part.tolist() for part in parts()[:3]]
    assert threads() == []


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_no_thread_outlives_the_loop_however_it_ends(inputs, steps):
    def stop_after(count):
        with closing(batches(inputs, parts())) as found:
            for number, batch in enumerate(found, 1):
                batch.prefix  # noqa: B018
                if number == count:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_after(steps)
    assert threads() == []
    for batch in batches(inputs, parts()):
        batch.prefix  # noqa: B018
    assert threads() == []


@pytest.mark.parametrize("size", [1, 39, 40, 50])
def test_few_batches_come_as_they_are(inputs, size):
    assert [len(batch.labels) for batch in batches(inputs, parts(size))] == [len(part) for part in parts(size)]
    assert list(batches(inputs, [])) == []


def test_arrays_that_fit_lie_on_the_device_and_are_not_read_again(inputs):
    sizes = {name: array.nbytes for name, array in inputs.stored.items()}
    assert sorted(sizes, key=sizes.get) == ["labels", "last_token", "pixels", "prefix"]
    for share, expected in ((0, []), (2, ["labels"]), (12, ["labels", "last_token", "pixels"]), (40, [*sizes])):
        one = replace(inputs, placed={})
        assert sorted(place_on_device(one, lambda share=share: share * sizes["labels"])) == sorted(expected)
    plain = inputs.batch(parts()[0])
    one.reads = []
    for batch in batches(one, parts()):
        assert batch.images.shape == (4, 3, 4, 4)
        if torch.equal(batch.index, plain.index):
            assert all(torch.equal(getattr(batch, name), getattr(plain, name)) for name in ("prefix", "last_token"))
    assert one.reads == []


def test_what_fits_hangs_on_what_is_free_after_the_array_before(inputs):
    """Memory is asked for again for each array: together they may not take more than there is."""
    sizes = {name: array.nbytes for name, array in inputs.stored.items()}
    free = [2 * sizes["labels"], 2 * sizes["last_token"] - 1, 0, 0]
    assert place_on_device(inputs, lambda: free.pop(0)) == ["labels"]
