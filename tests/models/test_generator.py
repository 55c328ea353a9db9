"""The parameter generator."""

import pytest
import torch

from lscl.models.generator import Generator, scale_features
from lscl.models.vit import foundation


def made(features=6, width=32, rank=3, scale=4.0):
    torch.manual_seed(0)
    return Generator(features, width, rank, scale)


def test_it_writes_4_r_d_numbers_split_into_a_and_b():
    generator = made()
    omega = generator(torch.randn(5, 6))
    assert omega.shape == (5, 4 * 3 * 32)
    update = generator.split(omega)
    assert update.A.shape == (5, 3, 32) and update.B.shape == (5, 96, 3) and update.scale == 4.0
    assert torch.equal(torch.cat([update.A.flatten(1), update.B.flatten(1)], dim=1), omega)


def test_it_starts_as_a_static_lora():
    generator = made()
    update = generator.split(generator(torch.randn(5, 6)))
    assert update.B.abs().max() == 0 and generator.weight.abs().max() == 0
    assert (update.A[:1] == update.A).all() and generator.bias[: 3 * 32].std() > 0.01
    assert generator.bias.abs().max() <= 32**-0.5


@pytest.mark.parametrize("m", [1, 6, 512])
def test_a_step_of_adam_moves_what_is_written_as_far_by_the_weights_as_by_the_bias_at_most(m):
    """The gradient of omega is the same for both, so that Adam moves every weight and bias by the learning rate."""
    torch.manual_seed(0)
    generator, f = Generator(m, 8, 2, 1.0), torch.nn.functional.layer_norm(torch.randn(1, m), (m,))
    before = generator(scale_features(f)).detach()
    optimiser = torch.optim.Adam(generator.parameters(), lr=1e-2, eps=1e-12)
    generator(scale_features(f)).sum().backward()
    optimiser.step()
    moved = (generator(scale_features(f)) - before).abs()
    assert (moved >= 1e-2 * 0.999).all() and (moved <= 2e-2 * 1.001).all()
    assert m == 1 or (moved > 1.5e-2).all()  # layer-normalised, one feature is always 0


def test_a_static_lora_has_no_features_to_scale():
    assert scale_features(torch.empty(3, 0)).shape == (3, 0)


def test_the_first_forward_equals_the_frozen_vit():
    frozen, generator = foundation("tiny", 1), made()
    z = frozen.prefix(torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8))
    update = generator.split(generator(torch.randn(4, 6)))
    assert torch.equal(frozen.suffix(z, update, keep=None), frozen.suffix(z, keep=None))


def test_both_a_and_b_learn_within_two_steps():
    frozen, generator = foundation("tiny", 1), made()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    z, f = frozen.prefix(torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)), torch.randn(4, 6)
    optimiser = torch.optim.SGD(generator.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        frozen.suffix(z, generator.split(generator(f))).square()[:, 0].sum().backward()
        optimiser.step()
    for name in ("weight", "bias"):
        change = (generator.state_dict()[name] - before[name]).abs()
        assert change[:96].max() > 0 and change[96:].max() > 0


def test_the_update_differs_from_image_to_image_only_through_the_weights():
    generator = made()
    torch.nn.init.normal_(generator.weight)
    assert not torch.equal(*generator(torch.randn(2, 6)))
    torch.nn.init.zeros_(generator.weight)
    assert torch.equal(*generator(torch.randn(2, 6)))
