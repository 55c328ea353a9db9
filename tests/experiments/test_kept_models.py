"""What a run keeps of its models."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from toy_system import ToySystem

from lscl.config import experiment
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.kept_models import ModelKeeper, is_kept, model_path, read_card, read_tensors
from lscl.experiments.run import run, state_folders
from lscl.federation.loop import InProcess, federate
from lscl.registry import METHODS, register


def test_cnn_generator_head_state_and_server_are_kept(smoke):
    record = run(smoke(), quiet=True, keep_model=True)
    path = model_path(record)
    card = read_card(path)
    tensors = read_tensors(path, card)
    parts = {".".join(name.split(".")[:3]) for name in tensors}
    for k in range(3):
        assert {f"client{k}.model.cnn", f"client{k}.model.generator", f"client{k}.model.head"} <= parts
        assert f"client{k}.state.buffer" in parts
    assert any(name.startswith("server.") for name in tensors) and path.parent.name == "models"
    assert set(load_file(path)) == set(tensors) - set(card.same_as) and card.same_as  # nothing is stored twice
    assert card.config == record["config"] and card.finished == record["finished"]


def test_it_is_what_the_last_test_sees(smoke, federation):
    method, clients = federation(smoke(method="lorm"))
    keeper, transport = ModelKeeper(), InProcess(method, clients)
    transport.before_test = partial(keeper.keep, method)
    states = torch.random.get_rng_state()
    for number, _ in enumerate(federate(method, transport), 1):
        assert bool(keeper.tensors) == (number == 6)  # two tasks of two rounds and LoRM's own exchange
    assert len(keeper.tensors["client2.state.lora.0.qkv.A"]) == 2 and set(keeper.probes) == {0, 1, 2}
    images, seen = keeper.probes[1]
    assert (clients[1].test.images.images[clients[1].test_index(1)[:4]] == images).all() and seen.shape == (4, 14)
    assert torch.equal(states, torch.random.get_rng_state())


def test_the_server_is_copied_once(smoke, federation):
    method, clients = federation(smoke(method="fedavg", rounds=1))
    keeper, transport, seen = ModelKeeper(), InProcess(method, clients), []

    def keep(client):
        keeper.keep(method, client)
        seen.append([value for name, value in keeper.tensors.items() if name.startswith("server.")])

    transport.before_test = keep
    list(federate(method, transport))
    first, *others = seen[-len(clients) :]
    assert first and all(one is other for more in others for one, other in zip(first, more, strict=True))
    assert all(torch.equal(keeper.tensors[f"server.{name}"], value) for name, value in method.server.items())


class Forgetful(ToySystem):
    """A system that keeps to itself what its head needs."""

    name = "forgetful"

    def receive(self, client, payload, stage):
        super().receive(client, payload, stage)
        client.scratch["secret"] = 1.0

    def logits(self, client, batch):
        return super().logits(client, batch) * client.scratch["secret"]


class Mindful(Forgetful):
    """The same system, which makes it for every test."""

    name = "mindful"

    def prepare_test(self, client):
        client.scratch["secret"] = 1.0


def test_a_system_that_needs_more_than_is_kept_says_so(toys, one_line):
    for kind in (Forgetful, Mindful):
        register(kind)
    try:
        config = experiment(**{**toys, "method": "forgetful"})
        with pytest.raises(LsclError) as caught:
            run(config, quiet=True, keep_model=True)
        one_line(
            caught, "cannot be kept, its record is there", "Method.prepare_test is to make it", "KeyError: 'secret'"
        )
        assert records.find(config) is not None and not model_path(records.find(config)).exists()
        assert is_kept(run(experiment(**{**toys, "method": "mindful"}), quiet=True, keep_model=True))
    finally:
        METHODS.remove("forgetful"), METHODS.remove("mindful")


def test_nothing_is_kept_unless_wanted(recorded, places):
    assert list(places.rglob("*.safetensors")) == [] and not any(map(is_kept, recorded))


def test_models_that_are_damaged_or_of_an_older_record_are_made_again(smoke):
    config = smoke(method="local_head")
    record = run(config, quiet=True, keep_model=True)
    path = model_path(record)
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    assert not is_kept(record)
    run(config, quiet=True, keep_model=True)
    assert is_kept(record) and path.read_bytes() == good
    assert not is_kept({**record, "finished": "later"})


def stop_after(rounds):
    """An observer that stops a run, as Ctrl-C does, after so many rounds."""

    def stop(config, reports):
        if len(reports) == rounds:
            raise KeyboardInterrupt

    return stop


def test_the_models_of_a_finished_run_resume_after_a_stop(smoke, capsys, monkeypatch):
    config, asked, ask = smoke(method="fedavg"), [], InProcess.ask
    record = run(config, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        run(config, quiet=True, keep_model=True, on_round=stop_after(3))
    assert "stopped after round 3; the same command resumes there" in capsys.readouterr().err
    assert [path.name for path in state_folders()] == [f"{config.name}--models"]
    monkeypatch.setattr(InProcess, "ask", lambda self, stage, sent: asked.append(stage) or ask(self, stage, sent))
    assert run(config, quiet=True, keep_model=True) == record and is_kept(record)
    assert {(stage.task, stage.round) for stage in asked if stage.name == "train"} == {(1, 1)}
    assert state_folders() == [] and read_card(model_path(record)).equal_to_record


def test_a_stop_after_the_last_test_leaves_no_state_without_models(smoke):
    config = smoke(method="fedavg")
    record = run(config, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        run(config, quiet=True, keep_model=True, on_round=stop_after(4))
    run(config, quiet=True, keep_model=True)
    assert is_kept(record) and state_folders() == []


def test_models_that_are_too_large_lose_no_record(smoke, monkeypatch, one_line):
    config = smoke(method="fedavg")
    monkeypatch.setattr("lscl.experiments.kept_models.LARGEST_MODEL", 10)
    with pytest.raises(LsclError) as caught:
        run(config, quiet=True, keep_model=True)
    one_line(caught, "cannot keep the models")
    assert records.find(config) is not None
