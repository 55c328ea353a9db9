"""Images out of gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lscl.experiments.privacy.gradient_matching import (
    cosine_gap,
    linear_control,
    match_gradient,
    match_gradients,
    total_variation,
)


def test_total_variation_and_cosine_of_known_tensors():
    flat = torch.zeros(1, 3, 4, 4)
    assert total_variation(flat) == 0 and total_variation(flat + torch.arange(4.0)) == 1
    one = [torch.tensor([1.0, 0.0]), torch.tensor([0.0])]
    assert cosine_gap(one, [torch.tensor([0.0, 2.0]), torch.tensor([0.0])]) == 1
    assert cosine_gap(one, [2 * part for part in one]) == pytest.approx(0)


def test_the_gradient_of_a_linear_layer_is_the_image():
    draw = torch.Generator().manual_seed(0)
    layer, image, label = (
        nn.Sequential(nn.Flatten(), nn.Linear(48, 4)),
        torch.rand(1, 3, 4, 4, generator=draw),
        torch.tensor([2]),
    )
    parameters = list(layer.parameters())
    target = list(torch.autograd.grad(F.cross_entropy(layer(image), label), parameters))
    found = match_gradient(layer, parameters, target, label, (3, 4, 4), draw, 200)
    assert F.cosine_similarity(found.flatten(), image.flatten(), dim=0) > 0.98


def test_the_control_finds_the_image_among_its_class(attacked):
    observed = attacked("fedavg")
    assert linear_control(observed, observed.gallery.held.nonzero().squeeze(1)[:2], 100) == 1.0


def test_changes_of_a_cnn_and_gradients_are_attacked_and_nothing_else(attacked):
    attacks = {one.attack: one for one in match_gradients(attacked("glfc"), 40, 2)}
    assert set(attacks) == {"gradient search", "gradient matching"}
    assert attacks["gradient search"].chance == 0.5 and attacks["gradient search"].count == 3
    assert match_gradients(attacked(), 2) == [] and match_gradients(attacked("fedavg_vit"), 2) == []
