"""Which images a client keeps."""

import torch

from lscl.methods.parts.buffer import lowest_loss

INDEX = torch.tensor([10, 11, 12, 13, 14, 15, 16])
LABELS = torch.tensor([7, 2, 7, 7, 2, 7, 9])
LOSSES = torch.tensor([0.5, 0.1, 0.2, 0.9, 0.05, 0.2, 3.0])


def test_the_lowest_losses_of_every_class_are_kept_class_by_class():
    assert lowest_loss(INDEX, LABELS, LOSSES, 2).tolist() == [14, 11, 12, 15, 16]
    assert lowest_loss(INDEX, LABELS, LOSSES, 1).tolist() == [14, 12, 16]


def test_a_class_with_fewer_images_is_kept_whole():
    assert sorted(lowest_loss(INDEX, LABELS, LOSSES, 20).tolist()) == INDEX.tolist()


def test_equal_losses_are_taken_in_the_order_of_position():
    kept = lowest_loss(torch.arange(100), torch.zeros(100, dtype=torch.int64), torch.zeros(100), 7)
    assert kept.tolist() == list(range(7))


def test_no_place_and_no_images_keep_nothing():
    none = lowest_loss(INDEX, LABELS, LOSSES, 0)
    assert none.shape == (0,) and none.dtype == torch.int64
    assert lowest_loss(INDEX[:0], LABELS[:0], LOSSES[:0], 3).shape == (0,)
