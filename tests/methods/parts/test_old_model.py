"""What GLFC, TARGET and MFCL promise alike: bytes, averages, an old model for the task, runs that repeat and resume."""

import pytest
import torch
from tests_root import Recorder, compared, uploads_in_training
from torch import nn

from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.progress import Progress
from lscl.experiments.run import run
from lscl.federation.checkpoint import load_state, read_state, save_state
from lscl.federation.loop import InProcess, federate
from lscl.federation.method import Stage
from lscl.federation.training import answer
from lscl.methods import fedavg
from lscl.methods.parts.old_model import model_part

NAMES = ("glfc", "target", "mfcl")
P = 216 + 1152 + 4 * (8 + 16)  # weights and BatchNorm's weights, biases, means, variances
MODEL = 4 * (P + 16 * 14 + 14) + 8 * 2
OPENING = {  # bytes beside the model in round 0 of a task: up, and from the second task on down
    "glfc": (14 + 4 * 3 * (8136 + 769 * 14), MODEL + 14),
    "target": (14, 14 + 3 * 20 * 16 * 16),
    "mfcl": (14, 14 + 4 * (2 * 4 * 4**2 * (8 + 1) + 54 * 4**2 + 50 * 4 + 9) + 32),
}


def play(federation, config, rounds=None):
    """Method, clients, uploads and reports after `rounds` rounds (all for None)."""
    method, clients = federation(config)
    transport, reports = Recorder(method, clients), []
    for report in federate(method, transport):
        reports.append(report)
        if len(reports) == rounds:
            break
    return method, clients, uploads_in_training(transport), reports


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("merge", ["plain", "holders"])
def test_every_round_has_the_bytes_of_the_docstring(federation, smoke, name, merge):
    _, _, _, reports = play(federation, smoke(method=name, head_merge=merge))
    later = 14 if merge == "holders" else 0
    up, down = OPENING[name]
    expected_up = [MODEL + 8 + up, MODEL + 8 + later] * 2
    expected_down = [
        MODEL,
        2 * MODEL,
        MODEL + down,
        2 * MODEL,
    ]  # with the model that is evaluated after the last round of a task
    assert [report.bytes_up for report in reports] == [[size] * 3 for size in expected_up]
    assert [report.bytes_down for report in reports] == [[size] * 3 for size in expected_down]


@pytest.mark.parametrize("name", NAMES)
def test_one_client_gets_its_upload_back(federation, smoke, name):
    method, _, uploads, _ = play(federation, smoke(method=name, clients=1), 1)
    for key, value in model_part(method.server).items():
        assert torch.equal(value, uploads[0][0][key])


@pytest.mark.parametrize("name", NAMES)
def test_batchnorm_statistics_are_averaged(federation, smoke, name):
    method, _, uploads, _ = play(federation, smoke(method=name), 1)
    shares = torch.tensor([float(payload["images"]) for payload in uploads[0].values()])
    for key in ("cnn.cnn.layers.1.running_mean", "cnn.cnn.layers.4.running_var"):
        sent = torch.stack([payload[key] for payload in uploads[0].values()])
        assert torch.allclose(method.server[key], (shares / shares.sum()) @ sent, atol=1e-6)
        assert (sent[0] - sent[1]).abs().max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_shape_of_images_goes_up(federation, smoke, name):
    _, clients, uploads, _ = play(federation, smoke(method=name))
    kernels = {tuple(value.shape) for value in clients[0].model.state_dict().values()}
    for sent in uploads:
        for payload in sent.values():
            for value in payload.values():
                assert value.dtype != torch.uint8 and (value.ndim < 3 or tuple(value.shape) in kernels)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_loss_does_not_depend_on_the_order_of_a_batch(federation, smoke, name, mode):
    method, clients, _, _ = play(federation, smoke(method=name), 3)
    client = clients[0]
    client.model.train(mode == "train")
    index, losses = method.phases(client, Stage(1, 0))[0].index, []
    index = (client.train_index if index is None else index)[:8]
    for order in (torch.arange(8), torch.tensor([3, 1, 7, 0, 6, 2, 5, 4])):
        client.scratch["replay"] = client.rng("replay")
        losses.append(method.loss(client, client.train.batch(index[order])).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("name", ["target", "mfcl"])
def test_the_old_model_is_the_global_model_of_the_end_of_the_task_before(federation, smoke, name):
    ended = model_part(play(federation, smoke(method=name), 2)[0].server)
    method, clients, _, _ = play(federation, smoke(method=name), 4)
    for client in clients:
        assert all(torch.equal(client.state[f"old.{key}"], value) for key, value in ended.items())
        assert all(torch.equal(client.scratch["old"].state_dict()[key], value) for key, value in ended.items())
        assert not any(p.requires_grad for p in client.scratch["old"].parameters())
    assert any(not torch.equal(method.server[key], value) for key, value in ended.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_server_knows_the_classes_that_clients_have_told_it_of(federation, smoke, name):
    method, clients, _, _ = play(federation, smoke(method=name), 1)
    seen = {label for client in clients for label in client.partition.seen_classes(client.id, 0)}
    assert set(method.known_classes().tolist()) == seen and len(seen) < 14
    method, clients, _, _ = play(federation, smoke(method=name), 3)
    for client in clients:
        assert set(client.state["known"].nonzero().flatten().tolist()) == seen
        assert set(method.old_columns(client).tolist()) == seen - set(client.current.classes)
    assert len(method.known_classes()) == 14


@pytest.mark.parametrize("name", NAMES)
def test_a_round_from_a_saved_state_gives_the_same_server_and_clients(federation, smoke, tmp_path, name):
    config = smoke(method=name)
    whole, whole_clients, _, whole_reports = play(federation, config)
    for rounds in (1, 2, 3):
        method, clients, _, reports = play(federation, config, rounds)
        save_state(tmp_path / str(rounds), reports, method, clients, {})
        method, clients = federation(config)
        reports = load_state(read_state(tmp_path / str(rounds)), method, clients)
        torch.manual_seed(rounds)
        reports += list(federate(method, InProcess(method, clients), done=rounds))
        assert set(method.server) == set(whole.server)
        assert all(torch.equal(value, whole.server[key]) for key, value in method.server.items())
        for one, other in zip(clients, whole_clients):
            one, other = one.private_state(), other.private_state()
            assert set(one) == set(other) and all(torch.equal(value, other[key]) for key, value in one.items())
        assert [report.bytes_down for report in reports] == [report.bytes_down for report in whole_reports]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_stopped_after_each_round_ends_with_the_same_record_and_sheets(smoke, monkeypatch, tmp_path, name):
    config, sheets = (
        smoke(method=name),
        lambda: {path.name: path.read_bytes() for path in records.folder("smoke").glob("sheets/*")},
    )
    whole, drawn = run(config, quiet=True), sheets()
    assert set(drawn) == {f"{config.name}--task{t}.png" for t in ((1, 2) if name == "glfc" else (1,))}
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "stopped"))

    def stop(self, report):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "round", stop)
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                run(config, quiet=True)
    assert compared(run(config, quiet=True)) == compared(whole)
    assert sheets() == drawn


@pytest.mark.parametrize("name", ["target", "mfcl"])
def test_a_cnn_without_batchnorm_is_one_line(smoke, monkeypatch, name, one_line):
    monkeypatch.setattr(
        fedavg, "small_cnn", lambda config, client, norm: nn.Sequential(nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1))
    )
    with pytest.raises(LsclError) as caught:
        run(smoke(method=name), quiet=True)
    one_line(caught, "cnn = 'tiny'", name, "no BatchNorm layer")


@pytest.mark.parametrize("name", NAMES)
def test_one_round_per_task_goes_through(federation, smoke, name):
    _, clients, _, reports = play(federation, smoke(method=name, rounds=1))
    assert reports[1].bytes_down == [MODEL + OPENING[name][1] + MODEL] * 3
    assert all("old.head.weight" in client.state for client in clients)


@pytest.mark.parametrize("name", NAMES)
def test_a_client_without_images_of_a_class_goes_through(federation, smoke, name):
    """A partition gives clients images of each of their classes; without one, nothing is kept, uploaded or learnt."""
    method, clients = federation(smoke(method=name))
    part = clients[0].current if clients[0].task >= 0 else clients[0].partition.tasks[0][0]
    left = tuple(i for i in part.train if clients[0].train.images.labels[i] != part.classes[0])
    object.__setattr__(part, "train", left)
    method.census.train[0, 0, part.classes[0]] = 0
    assert len(list(federate(method, InProcess(method, clients)))) == 4


@pytest.mark.parametrize("name", NAMES)
def test_the_first_task_sends_and_keeps_nothing_old(federation, smoke, name):
    method, clients = federation(smoke(method=name))
    for number in range(2):
        payload = method.broadcast(0, Stage(0, number))
        assert set(payload) == set(model_part(payload))
        answer(method, clients[0], Stage(0, number), payload)
        assert clients[0].state == {} and "old" not in clients[0].scratch
