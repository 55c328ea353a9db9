"""One low-rank update of a linear layer for all images."""

import math

import torch
import torch.nn.functional as F

from lscl.methods.parts.lora import StaticLoRA


def test_a_is_drawn_within_its_bound_and_b_is_zero():
    torch.manual_seed(0)
    lora = StaticLoRA(64, 192, 4, 2.0)
    assert lora.A.shape == (4, 64) and lora.B.shape == (192, 4)
    bound = 1 / math.sqrt(64)
    assert lora.A.abs().max() <= bound and lora.A.std() > 0.5 * bound and not lora.B.any()


def test_the_update_is_scale_times_b_times_a():
    torch.manual_seed(0)
    lora, x, out = StaticLoRA(8, 12, 3, 2.5), torch.randn(2, 5, 8), torch.randn(2, 5, 12)
    assert torch.equal(lora().add_to(out, x), out)  # nothing is added at the start
    with torch.no_grad():
        lora.B.normal_()
    assert torch.allclose(lora().add_to(out, x), out + F.linear(x, 2.5 * lora.B @ lora.A), atol=1e-5)


def test_the_first_step_moves_b_alone_and_the_second_moves_both():
    torch.manual_seed(0)
    lora, x = StaticLoRA(8, 12, 3, 1.0), torch.randn(6, 1, 8)
    optimiser = torch.optim.SGD(lora.parameters(), 0.1)
    for moved in ({"B"}, {"A", "B"}):
        before = {name: value.clone() for name, value in lora.named_parameters()}
        optimiser.zero_grad()
        (lora().add_to(torch.zeros(6, 1, 12), x) - 1).square().mean().backward()
        optimiser.step()
        assert {name for name, value in lora.named_parameters() if not torch.equal(value, before[name])} == moved
