"""Generators of images, and the gap to what BatchNorm layers remember."""

import numpy as np
import pytest
import torch
from torch import nn

from lscl.errors import LsclError
from lscl.methods.parts.synthesis import (
    ImageGenerator,
    Statistics,
    as_pixels,
    batchnorm_layers,
    kl_gap,
    mix_moments,
    norm_gap,
)
from lscl.models.cnn import to_cnn_input


def counted(network):
    """Parameters and BatchNorm statistics."""
    return sum(value.numel() for value in network.state_dict().values() if value.is_floating_point())


@pytest.mark.parametrize("size", [8, 9, 16, 30, 32, 33, 64, 65, 100])
def test_images_have_the_size_asked_for(size):
    generator = ImageGenerator(5, size, 2, nn.Sigmoid())
    images = generator(torch.randn(3, 5))
    assert images.shape == (3, 3, size, size) and images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize(("size", "official"), [(32, 8.42e6), (224, 3.33e6)])
def test_the_generator_has_the_official_size(size, official):
    generator = ImageGenerator(1000, size, 64, nn.Sequential(nn.Tanh(), nn.BatchNorm2d(3, affine=False)), eps=0.8)
    s = 8 if size == 32 else 7
    formula = (
        2 * 64 * s**2 * 1001 + 54 * 64**2 + 50 * 64 + 9 if size == 32 else 64 * s**2 * 1001 + 45 * 64**2 + 56 * 64 + 9
    )
    assert counted(generator) == formula == pytest.approx(official, rel=2e-3)


def test_statistics_are_those_of_the_last_forward_pass_and_the_hooks_go():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    first, second = torch.randn(2, 5, 3, 8, 8)
    with Statistics(batchnorm_layers(network, "m", "c")) as statistics:
        network(first)
        network(second)
        x = network[0](second)
        y = network[:3](second)
    for (mean, variance), entered in zip(statistics.batch(), (x, y)):
        entered = entered.detach().numpy()
        assert np.allclose(mean.detach(), entered.mean((0, 2, 3)), atol=1e-6)
        assert np.allclose(variance.detach(), entered.var((0, 2, 3)), atol=1e-6)
    assert not network[1]._forward_pre_hooks
    assert [len(one) for pair in statistics.running() for one in pair] == [4] * 4


def test_the_gaps_by_hand():
    batch = [(torch.tensor([1.0, 0.0]), torch.tensor([4.0, 1.0])), (torch.tensor([0.0]), torch.tensor([2.0]))]
    running = [(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])), (torch.tensor([3.0]), torch.tensor([2.0]))]
    assert norm_gap(batch, running).item() == pytest.approx(1 + 3 + 3 + 0)
    kl = lambda m, v, mb, vb: 0.5 * (np.log(vb / v) + (v + (m - mb) ** 2) / vb - 1)  # of N(m, v) from N(mb, vb)
    expected = ((kl(0, 1, 1, 4) + kl(0, 1, 0, 1)) / 2 + kl(3, 2, 0, 2)) / 2
    assert kl_gap(batch, running).item() == pytest.approx(expected, rel=1e-5)
    assert norm_gap(running, running) == 0 and kl_gap(running, running).abs() < 1e-7


def test_carried_statistics_are_mixed_in():
    batch, carried = [(torch.tensor([1.0]), torch.tensor([2.0]))], [(torch.tensor([11.0]), torch.tensor([4.0]))]
    ((mean, variance),) = mix_moments(carried, batch, 0.9)
    assert mean.item() == pytest.approx(10.0) and variance.item() == pytest.approx(3.8)
    assert mix_moments(None, batch, 0.9) == batch


def test_pixels_survive_the_way_to_the_network_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    assert torch.equal(as_pixels(to_cnn_input(pixels)), pixels)
    assert as_pixels(torch.tensor([-9.0, 9.0, 0.0]).view(1, 3, 1, 1)).flatten().tolist() == [0, 255, 128]


def test_a_network_without_batchnorm_is_one_line(one_line):
    with pytest.raises(LsclError) as caught:
        batchnorm_layers(nn.Conv2d(3, 3, 3), "target", "plain")
    one_line(caught, "cnn = 'plain'", "target")
