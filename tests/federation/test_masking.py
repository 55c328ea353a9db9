"""Losses and scores restricted to a set of classes."""

import pytest
import torch
import torch.nn.functional as F

from lscl.federation.masking import mask_logits, masked_cross_entropy

CLASSES = torch.tensor([4, 1, 2])


@pytest.fixture
def logits():
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def test_only_the_columns_of_the_classes_are_left(logits):
    masked = mask_logits(logits, CLASSES)
    assert torch.equal(masked[:, [1, 2, 4]], logits[:, [1, 2, 4]]) and (masked[:, [0, 3, 5]] == float("-inf")).all()
    assert logits.isfinite().all()


def test_an_answer_outside_the_classes_is_impossible(logits):
    logits[:, 3] = 100
    assert set(mask_logits(logits, CLASSES).argmax(1).tolist()) <= {1, 2, 4}


def test_the_loss_is_the_cross_entropy_among_the_classes_alone(logits):
    labels = torch.tensor([4, 1, 2, 1, 4])
    small = F.cross_entropy(logits[:, [1, 2, 4]], torch.tensor([2, 0, 1, 0, 2]), reduction="none")
    assert torch.allclose(masked_cross_entropy(logits, labels, CLASSES, "none"), small)
    assert torch.allclose(masked_cross_entropy(logits, labels, CLASSES), small.mean())


def test_no_gradient_reaches_another_class(logits):
    logits.requires_grad_()
    masked_cross_entropy(logits, torch.tensor([4, 1, 2, 1, 4]), CLASSES).backward()
    assert logits.grad[:, [0, 3, 5]].abs().max() == 0 and (logits.grad[:, [1, 2, 4]].abs() > 0).all()


def test_all_classes_allowed_is_the_plain_loss(logits):
    labels = torch.tensor([0, 1, 5, 3, 4])
    assert torch.equal(masked_cross_entropy(logits, labels, torch.arange(6)), F.cross_entropy(logits, labels))
