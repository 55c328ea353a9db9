"""Images that a classifier is sure of."""

import torch
from torch import nn

from lscl.experiments.privacy.model_inversion import PixelStatistics, invert_classifier, invert_model


def test_statistics_of_one_image_are_the_image():
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(3, 8, 8, generator=draw) * 2 - 1
    layer = PixelStatistics(image).eval()
    (found,) = invert_classifier(layer, layer, torch.zeros(1).long(), image.shape, draw, 200)
    assert (found - image).abs().mean() < 0.25 < (torch.randn(image.shape, generator=draw) - image).abs().mean()


def test_the_network_becomes_sure_of_the_class():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    found = invert_classifier(network, network, torch.arange(5), (3, 8, 8), torch.Generator().manual_seed(0), 60)
    assert torch.equal(network(found).argmax(1), torch.arange(5))


def test_the_control_leaks_and_other_payloads_are_passed_over(attacked):
    (found,) = invert_model(attacked("fedavg"), 150)
    assert found.by_design == 1.0 and found.chance == 0.5
    assert invert_model(attacked(), 2) == [] and invert_model(attacked("fedavg_vit"), 2) == []
