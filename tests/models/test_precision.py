"""Other arithmetics: nothing changes by default, and what changes stays near."""

import pytest
import torch

from lscl.experiments.run import run
from lscl.federation.method import Stage
from lscl.federation.training import fit
from lscl.methods import METHODS
from lscl.models.precision import MixedPrecision, prepare_device, to_channels_last
from lscl.models.vit import FrozenViT

CPU = torch.device("cpu")


def one_step(precision, clip=None, start=1.0):
    """A parameter after a step of plain SGD on 0.5 w^2, and whether autocast was on."""
    w = torch.nn.Parameter(torch.full((4,), start))
    optimiser, arithmetic = torch.optim.SGD([w], lr=0.5), MixedPrecision(precision, CPU)
    with arithmetic.forward():
        on = torch.is_autocast_enabled("cpu")
        loss = 0.5 * w.square().sum()
    arithmetic.step(loss, optimiser, clip)
    return w.detach(), on


@pytest.mark.parametrize(("precision", "on"), [("fp32", False), ("bf16", True), ("fp16", True)])
def test_a_step_is_the_same_scaled_or_not(precision, on):
    w, was_on = one_step(precision)
    assert was_on == on and torch.equal(w, torch.full((4,), 0.5))
    w, _ = one_step(precision, clip=1.0)  # the gradient has norm 2, scaling must not be clipped away
    assert torch.allclose(w, torch.full((4,), 0.75))


def test_a_step_that_overflows_is_left_out():
    w = torch.nn.Parameter(torch.ones(1))
    optimiser, arithmetic = torch.optim.SGD([w], lr=0.5), MixedPrecision("fp16", CPU)
    arithmetic.step(w.sum() * torch.finfo(torch.float32).max, optimiser)
    assert w.item() == 1.0 and arithmetic.scaler.get_scale() < 2**16


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if kind.trains])
def test_training_in_bf16_stays_near_float32(name, federation, smoke):
    """After one round; both start at the same weights and see the same batches."""
    after = {}
    for precision in ("fp32", "bf16"):
        method, clients = federation(smoke(method=name, precision=precision))
        client, stage = clients[0], Stage(0, 0)
        client.task, client.round = 0, 0
        method.start_task(client)
        method.receive(client, method.broadcast(0, stage), stage)
        before = torch.cat([p.detach().flatten().clone() for p in client.model.parameters()])
        for phase in method.phases(client, stage):
            fit(client, phase, torch.Generator().manual_seed(0), precision)
        after[precision] = torch.cat([p.detach().flatten() for p in client.model.parameters()]) - before
        assert all(p.dtype == torch.float32 for p in client.model.parameters())
    moved, gap = after["fp32"].norm(), (after["fp32"] - after["bf16"]).norm()
    assert 0 < gap < moved


def test_a_run_in_bf16_is_another_run_that_is_as_good(smoke):
    records = [run(smoke(method="fed_lscl", precision=precision), quiet=True) for precision in ("fp32", "bf16")]
    assert len({one["config_digest"] for one in records}) == 2 and "precision=bf16" in records[1]["name"]
    assert records[0]["bytes_up"] == records[1]["bytes_up"]


def test_activations_in_bf16_and_compiled_blocks_are_other_runs_with_the_same_traffic(smoke, monkeypatch):
    compiled = []
    monkeypatch.setattr(FrozenViT, "compile_blocks", lambda frozen: compiled.append(frozen))
    plain, *others = (
        run(smoke(method="fed_lscl", **change), quiet=True)
        for change in ({}, {"activations": "bf16"}, {"compile": True})
    )
    assert len(compiled) == 1
    for one, name in zip(others, ("activations=bf16", "compile=True"), strict=True):
        assert one["config_digest"] != plain["config_digest"] and name in one["name"]
        assert one["bytes_up"] == plain["bytes_up"]


def test_channels_last_changes_the_layout_and_hardly_the_numbers(federation, smoke):
    method, clients = federation(smoke(method="fed_lscl"))
    client = clients[0]
    images = client.train.batch(torch.arange(4)).images
    plain = client.model["cnn"].eval()(images)
    to_channels_last(client.model, smoke(channels_last=True))
    weights = [layer.weight for layer in client.model.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert torch.allclose(client.model["cnn"](images), plain, rtol=1e-4, atol=1e-5)


def test_tf32_only_if_asked_for(smoke):
    for wanted in (True, False):
        prepare_device(smoke(tf32=wanted))
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == wanted
