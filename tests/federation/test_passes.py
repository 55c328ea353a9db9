"""Passes without gradients over many images."""

import numpy as np
import pytest
import torch

from lscl.data.store import ImageSet
from lscl.federation import passes
from lscl.federation.client import Inputs


@pytest.fixture
def inputs():
    """450 images of 2 x 2 pixels whose label is their position."""
    count = 450
    pixels = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), np.uint8)
    return Inputs(ImageSet(pixels, np.arange(count), tuple(map(str, range(count)))), None, torch.device("cpu"))


def test_the_outputs_stand_in_the_order_of_the_index(inputs):
    index = torch.randperm(450, generator=torch.Generator().manual_seed(0))
    found = passes.map_batches(inputs, index, lambda batch: torch.stack([batch.labels, 2 * batch.labels], 1))
    assert found.shape == (450, 2) and torch.equal(found, torch.stack([index, 2 * index], 1))


def test_the_batches_have_the_size_that_makes_a_run_repeat(inputs):
    sizes = []

    def output(batch):
        sizes.append(len(batch.labels))
        return batch.labels

    passes.map_batches(inputs, torch.arange(450), output)
    assert sizes == [200, 200, 50]


def test_nothing_is_kept_for_a_backward_pass(inputs):
    weight = torch.ones(12, requires_grad=True)
    found = passes.map_batches(inputs, torch.arange(5), lambda batch: batch.images.flatten(1) @ weight)
    assert not found.requires_grad and torch.is_grad_enabled()
