"""Other arithmetics: nothing changes by default, and what changes stays near."""

import os
from types import SimpleNamespace

import pytest
import torch
from tests_root import compared

from lscl.config import experiment
from lscl.errors import LsclError
from lscl.experiments.run import run
from lscl.federation.loop import InProcess, federate
from lscl.federation.masking import masked_cross_entropy
from lscl.federation.method import Phase, Stage
from lscl.federation.training import fit
from lscl.methods import METHODS
from lscl.methods.fed_lscl import Consistency, product_gap
from lscl.methods.fedmgp import cosines
from lscl.methods.glfc import binary_cross_entropy, gradient_compensation
from lscl.methods.mfcl import squared_outputs
from lscl.methods.parts.continual import distillation, replay_cross_entropy
from lscl.methods.parts.prompts import cosine_to_keys
from lscl.methods.parts.prototypes import prototype_distances
from lscl.methods.pilora import row_overlap
from lscl.models.precision import (
    WORKSPACE,
    MixedPrecision,
    in_float32,
    one_line_if_unrepeatable,
    prepare_device,
    prepare_repetition,
    to_channels_last,
)
from lscl.models.vit import FrozenViT, LowRank

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


def attention_backends():
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()


@pytest.fixture
def untouched(monkeypatch):
    """Put back what `prepare_repetition` sets."""
    monkeypatch.setenv(WORKSPACE, "nothing")  # so that it is put back
    monkeypatch.delenv(WORKSPACE)
    yield
    prepare_repetition(experiment(profile="smoke"), CPU)


def test_a_gpu_repeats_a_run_only_if_asked_for(smoke, untouched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    gpu = torch.device("cuda")
    for wanted in (False, True, False):
        monkeypatch.delenv(WORKSPACE, raising=False)
        prepare_repetition(smoke(deterministic=wanted), gpu)
        assert torch.are_deterministic_algorithms_enabled() == wanted
        assert torch.is_deterministic_algorithms_warn_only_enabled() != wanted
        assert attention_backends() == (True, True, not wanted, not wanted)
        assert os.environ.get(WORKSPACE) == (":4096:8" if wanted else None)


def test_on_a_cpu_the_option_changes_nothing_but_the_name_of_the_run(smoke, untouched):
    def settings():
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            attention_backends(),
            os.environ.get(WORKSPACE),
        )

    prepare_repetition(smoke(), CPU)
    plain = settings()
    prepare_repetition(smoke(deterministic=True), CPU)
    assert settings() == plain == (True, True, False, (True,) * 4, None)
    one, other = (run(smoke(method="fed_lscl", **more), quiet=True) for more in ({}, {"deterministic": True}))
    named = ("name", "config", "config_digest", "overrides")
    assert compared(one, *named) == compared(other, *named) and "deterministic" not in one["name"]
    assert "deterministic=True" in other["name"] and other["config"]["deterministic"] is True


def test_what_comes_too_late_or_cannot_repeat_is_one_line(smoke, untouched, monkeypatch, one_line):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(LsclError) as caught:
        prepare_repetition(smoke(deterministic=True), torch.device("cuda"))
    one_line(caught, "deterministic = True", "start a new one", WORKSPACE)
    monkeypatch.setenv(WORKSPACE, ":16:8")
    prepare_repetition(smoke(deterministic=True), torch.device("cuda"))
    said = "reflection_pad2d_backward_cuda does not have a deterministic implementation, but you set"
    with pytest.raises(LsclError) as caught, one_line_if_unrepeatable(smoke(method="target", deterministic=True)):
        raise RuntimeError(said)
    one_line(caught, said, "target")
    for config in (smoke(), smoke(deterministic=True)):
        with pytest.raises(RuntimeError, match="another"), one_line_if_unrepeatable(config):
            raise RuntimeError("another error")


# ---- the scale of fp16


def fit_fp16(client, factor):
    """Train a weight in fp16 on a loss of this size; -> the scale and the steps since, as the client keeps them."""
    weight = torch.nn.Parameter(torch.ones(1))
    phase = Phase([{"params": [weight], "lr": 0.1}], lambda *_: (weight * factor).sum(), 1, 8)
    fit(client, phase, torch.Generator().manual_seed(0), "fp16")
    return float(client.state["scaler.scale"]), int(client.state["scaler.growth"])


def test_the_scale_of_fp16_goes_on_in_the_next_fit_and_after_a_stop(federation, smoke):
    client = federation(smoke())[1][0]
    client.task = 0
    steps = -(-len(client.train_index) // 8)
    overflow = torch.finfo(torch.float32).max / 2**15
    assert fit_fp16(client, overflow) == (2**15, steps - 1)  # the first step was left out, and halved the scale
    assert fit_fp16(client, overflow) == (2**15, 2 * steps - 1)  # a new scale would have left one out again
    resumed = federation(smoke())[1][0]
    resumed.load_private_state(client.private_state())
    resumed.task = 0
    assert fit_fp16(resumed, 1.0) == (2**15, 3 * steps - 1)


def test_without_fp16_nothing_of_a_scale_is_kept(federation, smoke):
    for precision in ("fp32", "bf16"):
        assert MixedPrecision(precision, CPU, {"scaler.scale": torch.tensor(2.0)}).scaling() == {}
    method, clients = federation(smoke())
    list(federate(method, InProcess(method, clients)))
    assert not any(name.startswith("scaler") for client in clients for name in client.state)


def test_a_stopped_run_in_fp16_goes_on_as_one_without_a_stop(smoke, in_pieces):
    in_pieces(smoke(method="fed_lscl", precision="fp16"), 3)


# ---- losses in half precision

HALF = torch.float16


def drawn(*shape, size=1.0, seed=0):
    return (size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(HALF)


def updates(size):
    """A written update and a teacher that is near it, (4, 2, 8) and (4, 24, 2)."""
    A, B = drawn(4, 2, 8, size=size), drawn(4, 24, 2, size=size, seed=1)
    return LowRank(A, B, 1.0), LowRank(A * 1.25, B * 0.75, 1.0)


def eq_4(size):
    """The generator term of Eq. 4, relative to the teacher."""
    method = SimpleNamespace(config=SimpleNamespace(consistency="relative"))
    return lambda cast: Consistency(method).scaled(
        *product_gap(*(LowRank(cast(one.A), cast(one.B), 1.0) for one in updates(size)))[0]
    )


LABELS, FIRST = torch.tensor([0, 1, 2, 0]), torch.tensor([True, True, False, False])
LOSSES = {
    "Eq. 4, generator, large": eq_4(300.0),
    "Eq. 4, generator, small": eq_4(2e-3),
    "cross-entropy": lambda cast: masked_cross_entropy(cast(drawn(4, 5, size=2e4)), LABELS, torch.arange(3)),
    "replay": lambda cast: replay_cross_entropy(cast(drawn(4, 5, size=2e4)), LABELS, torch.arange(3)),
    "distillation": lambda cast: distillation(
        cast(drawn(4, 5, size=1e4)), cast(drawn(4, 5, size=1e4, seed=1)), torch.arange(3), 2.0
    ),
    "binary": lambda cast: binary_cross_entropy(
        cast(drawn(4, 5, size=2e4)), cast(torch.ones(4, 5)), torch.arange(3)
    ).mean(),
    "compensation": lambda cast: gradient_compensation(cast(drawn(4, 5).abs() + 8), LABELS, FIRST)[0],
    "prototypes, large": lambda cast: prototype_distances(cast(drawn(4, 8, size=400.0)), cast(drawn(3, 8))).mean(),
    "prototypes, near": lambda cast: prototype_distances(
        cast(drawn(4, 8)), cast(drawn(4, 8) + drawn(4, 8, size=0.01))
    ).mean(),
    "prototypes, the same": lambda cast: prototype_distances(cast(torch.zeros(2, 8)), cast(torch.zeros(3, 8))).mean(),
    "overlap": lambda cast: row_overlap(cast(drawn(2, 3, 8, size=200.0)), cast(drawn(2, 2, 8, size=200.0, seed=1))),
    "old head": lambda cast: squared_outputs(cast(drawn(4, 8, size=30.0)), cast(drawn(3, 8, seed=1))),
    "keys, large": lambda cast: cosine_to_keys(cast(drawn(4, 8, size=2e4)), cast(drawn(3, 8, seed=1))).mean(),
    "keys, small": lambda cast: cosine_to_keys(cast(drawn(4, 8, size=1e-5)), cast(drawn(3, 8, seed=1))).mean(),
    "cosines": lambda cast: cosines(cast(drawn(4, 8, size=2e4)), cast(drawn(4, 8, size=1e-5, seed=1))).mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_numbers_in_half_precision_are_those_of_float64(name):
    """Squares of these numbers overflow in fp16, or guards against a division by 0 vanish; so do the gradients."""
    leaves = []

    def leaf(numbers):
        leaves.append(numbers.to(HALF).requires_grad_())
        return leaves[-1]

    with torch.autocast("cpu", HALF):
        found = LOSSES[name](leaf)
    exact = LOSSES[name](lambda numbers: numbers.to(HALF).double())
    assert found.dtype == torch.float32 and found.isfinite()
    assert found.item() == pytest.approx(exact.item(), rel=1e-3)
    gradients = torch.autograd.grad(found, leaves, allow_unused=True)
    assert all(one.isfinite().all() for one in gradients if one is not None)


@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_what_computes_in_float32_leaves_wider_numbers_as_they_are(given):
    seen = []
    x = torch.ones(2, dtype=given)
    in_float32(lambda *values, **named: seen.append((*values, named)))(3, x, word=x)
    assert seen[0][1] is x and seen[0][0] == 3 and seen[0][2]["word"] is x


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if kind.trains])
def test_training_in_fp16_has_finite_losses_in_the_second_task(name, federation, smoke, monkeypatch):
    losses, step = [], MixedPrecision.step
    monkeypatch.setattr(
        MixedPrecision, "step", lambda self, loss, *rest: (losses.append(float(loss.detach())), step(self, loss, *rest))
    )
    method, clients = federation(smoke(method=name, precision="fp16"))
    for report in federate(method, InProcess(method, clients)):
        if report.task == 1:
            break
    assert losses and torch.tensor(losses).isfinite().all()
