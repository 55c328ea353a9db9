"""What can replace Eq. 4, against a client made by hand; in whole runs it is tested with Fed-LSCL."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lscl.methods.parts.small_continual import EWC, LwF, Replay, SmallContinual, protected_parameters


class Images:
    """Images that are their own positions, with the labels position modulo 3."""

    def batch(self, index):
        return SimpleNamespace(index=index, labels=index % 3)


@pytest.fixture
def client():
    model = nn.ModuleDict({name: nn.Linear(1, 3) for name in ("cnn", "generator", "head")})
    seen = lambda k, task: list(range(task + 2))  # task 0 has the classes 0 and 1, task 1 the class 2
    state = {"buffer": torch.tensor([0, 4, 7])}
    return SimpleNamespace(
        id=0, task=1, model=model, state=state, train=Images(), classes=torch.arange(3),
        on_device=lambda name: state[name], keep=lambda name, make, *sources: make(),
        train_index=torch.tensor([2, 5, 8, 11]), partition=SimpleNamespace(seen_classes=seen),
        rng=lambda purpose: torch.Generator().manual_seed(1), scratch={"replay": torch.Generator().manual_seed(1)},
    )  # fmt: skip


@pytest.fixture
def system():
    """Its logits are those of CNN, generator and head together, on the position as the only input."""

    def logits(client, batch):
        x = batch.index[:, None].float() / 10
        return sum(part(x) for part in client.model.values())

    config = SimpleNamespace(ewc_weight=3.0, lwf_weight=5.0, replay_weight=7.0)
    whole = {"features_of": lambda client, batch: batch, "trained_logits": logits}  # a batch stands for its features
    return SimpleNamespace(config=config, logits=logits, optimised=0, **whole)


def test_the_interface_itself_does_nothing(client, system):
    part = SmallContinual(system)
    before = dict(client.state)
    part.start_task(client)
    part.end_task(client)
    term = part.loss(client, client.train.batch(client.train_index), torch.ones(4, 3))
    assert term.shape == () and term == 0 and client.state == before and system.optimised == 0


def test_cnn_and_generator_are_protected_and_nothing_else(client):
    names = [f"{part}.{name}" for part in ("cnn", "generator") for name in ("weight", "bias")]
    assert list(protected_parameters(client)) == names
    client.model["cnn"].requires_grad_(False)
    assert list(protected_parameters(client)) == names[2:]  # what is frozen needs no protection


def test_ewc_sums_the_fisher_information_and_keeps_the_last_weights(client, system):
    part, batch = EWC(system), client.train.batch(client.train_index)
    part.end_task(client)
    once = client.state["fisher.cnn.bias"].clone()
    assert part.loss(client, batch, system.logits(client, batch)) == 0  # the weights are where they were
    with torch.no_grad():
        client.model["cnn"].bias += 2
    pull = part.loss(client, batch, system.logits(client, batch))
    assert float(pull.detach()) == pytest.approx(3.0 * 0.5 * 4 * float(once.sum()), rel=1e-5)
    part.end_task(client)
    assert (client.state["fisher.cnn.bias"] >= once).all() and client.state["fisher.cnn.bias"].sum() > once.sum()
    assert torch.equal(client.state["before.cnn.bias"], client.model["cnn"].bias)


def test_lwf_compares_each_image_with_what_was_said_of_it(client, system):
    part = LwF(system)
    client.task = 0
    part.start_task(client)
    assert "previous.logits" not in client.state
    client.task = 1
    before = system.logits(client, client.train.batch(client.train_index)).detach()
    part.start_task(client)
    assert torch.equal(client.state["previous.logits"], before)
    batch = client.train.batch(torch.tensor([11, 2]))
    teacher = (before[[3, 0]][:, [0, 1]] / 2).softmax(1)  # those images, the classes of task 0
    expected = 5.0 * -(teacher * torch.tensor(0.5).log()).sum(1).mean()
    assert float(part.loss(client, batch, torch.zeros(2, 3))) == pytest.approx(float(expected), rel=1e-5)


def test_replay_trains_on_drawn_images_of_the_buffer(client, system):
    batch = client.train.batch(client.train_index[:2])
    drawn = client.state["buffer"][torch.randint(3, (2,), generator=torch.Generator().manual_seed(1))]
    kept = client.train.batch(drawn)
    expected = 7.0 * nn.functional.cross_entropy(system.logits(client, kept), kept.labels)
    assert torch.allclose(Replay(system).loss(client, batch, system.logits(client, batch)), expected)
    assert system.optimised == 2
    client.state["buffer"] = client.state["buffer"][:0]
    assert Replay(system).loss(client, batch, system.logits(client, batch)) == 0
