"""Fed-LSCL, tested beside section 4 of the paper."""

from typing import get_args

import numpy as np
import pytest
import torch
from tests_root import Recorder, uploads_in_training

from lscl.federation.loop import InProcess, federate
from lscl.federation.masking import masked_cross_entropy
from lscl.federation.method import Stage
from lscl.federation.payload import num_bytes
from lscl.federation.training import answer
from lscl.methods.fed_lscl import CONTINUAL, FUSIONS, FedLSCL, product_gap
from lscl.methods.parts.collaboration import REPLACED_MODELS
from lscl.methods.parts.fusion import Fusion
from lscl.methods.parts.o2d import o2d_exact, second_moments
from lscl.methods.parts.small_continual import SmallContinual, protected_parameters
from lscl.models.cnn_weights import SMALL_WEIGHTS
from lscl.models.generator import scale_features
from lscl.models.vit import LowRank, read_weights


def play(federation, config, rounds=None, data=None):
    """The federation after `rounds` rounds (all for None), with the uploads of each."""
    method, clients = federation(config, data)
    transport = Recorder(method, clients)
    for number, _ in enumerate(federate(method, transport), 1):
        if number == rounds:
            break
    return method, clients, uploads_in_training(transport)


@pytest.fixture
def after_task_0(federation, smoke):
    """Method and clients at the end of the first task, in evaluation mode."""

    def make(**values):
        method, clients, _ = play(federation, smoke(**values), 2)
        for client in clients:
            client.model.eval()
        return method, clients

    return make


# ---- start


def test_cnns_start_different_and_generators_equal(federation, smoke):
    _, clients = federation(smoke())
    first, second = clients[0].model, clients[1].model
    assert all(
        torch.equal(value, second["generator"].state_dict()[key])
        for key, value in first["generator"].state_dict().items()
    )
    for part in ("cnn", "head"):
        weights = [
            (value, second[part].state_dict()[key])
            for key, value in first[part].state_dict().items()
            if key.endswith("weight")
        ]
        assert weights and any(not torch.equal(*pair) for pair in weights)


@pytest.mark.parametrize("collaboration", ["written", "cnn"])
def test_pre_trained_cnns_start_equal_and_all_else_as_with_drawn_ones(federation, smoke, collaboration):
    values = {"cnn": "small", "features": 128, "collaboration": collaboration}
    models = {
        start: [client.model for client in federation(smoke(**values, cnn_start=start))[1][:2]]
        for start in ("drawn", "pretrained")
    }
    shipped = read_weights(SMALL_WEIGHTS)
    for drawn, pretrained in zip(*models.values(), strict=True):
        found, other = pretrained.state_dict(), drawn.state_dict()
        ours = {name: value for name, value in found.items() if not name.startswith("cnn.")}
        assert ours and all(torch.equal(value, other[name]) for name, value in ours.items())
        assert all(torch.equal(found[f"cnn.cnn.{name}"].float(), value.float()) for name, value in shipped.items())
        assert not torch.equal(other["cnn.cnn.layers.0.weight"], found["cnn.cnn.layers.0.weight"])


def test_a_run_with_pre_trained_cnns_goes_through_and_differs(federation, smoke):
    values = {"cnn": "small", "features": 16}
    states = []
    for start in ("drawn", "pretrained"):
        method, _, _ = play(federation, smoke(**values, cnn_start=start))
        states.append(method.server)
    assert all(value.isfinite().all() for value in states[1].values())
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_generators_start_equal_under_unlike_cnns(federation, smoke):
    _, clients = federation(smoke(cnn="tiny,small"))
    assert torch.equal(clients[0].model["generator"].weight, clients[1].model["generator"].weight)


def test_the_server_starts_with_every_clients_generator(federation, smoke):
    method, clients = federation(smoke())
    for k, client in enumerate(clients):
        payload = method.broadcast(k, Stage(0, 0))
        assert set(payload) == {"weight", "bias"}
        assert all(torch.equal(value, client.model["generator"].state_dict()[key]) for key, value in payload.items())


# ---- 4.2 collaboration


def test_the_first_forward_is_the_frozen_vit(federation, smoke):
    method, clients = federation(smoke())
    client = clients[0]
    client.model.eval()
    batch = client.train.batch(torch.arange(8))
    frozen = client.model["head"](method.foundation.suffix(batch.prefix))
    assert torch.allclose(method.logits(client, batch), frozen, atol=1e-6)


def test_the_update_of_an_image_is_written_from_that_image(after_task_0):
    method, clients = after_task_0()
    client = clients[0]
    batch = client.train.batch(torch.arange(8))
    together = method.logits(client, batch)
    frozen = client.model["head"](method.foundation.suffix(batch.prefix))
    assert (together - frozen).abs().max() > 1e-3
    alone = torch.cat([method.logits(client, client.train.batch(torch.tensor([i]))) for i in range(8)])
    assert torch.allclose(alone, together, atol=1e-5)
    update = method.update(client, client.model["cnn"](batch.images))
    assert update.A.shape == (8, 4, 32) and update.B.shape == (8, 96, 4) and update.scale == 4.0
    assert (update.A[0] - update.A[1]).abs().max() > 0


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_loss_does_not_depend_on_the_order_of_a_batch(federation, smoke, mode):
    method, clients, _ = play(federation, smoke(), 2)
    client = clients[0]
    client.task = 1
    client.model.train(mode == "train")
    index = client.train_index[:8]
    losses, start = [], {name: value.clone() for name, value in client.model.state_dict().items()}
    for order in (torch.arange(8), torch.tensor([3, 1, 7, 0, 6, 2, 5, 4])):
        client.model.load_state_dict(start)  # training changes the statistics of BatchNorm
        client.scratch["replay"] = client.rng("replay")
        losses.append(method.loss(client, client.train.batch(index[order])).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_each_part_has_its_own_learning_rate(federation, smoke):
    values = {"lr": 0.1, "lr_cnn": 0.2, "lr_generator": 0.3}
    method, clients = federation(smoke(**values))
    (phase,) = method.phases(clients[0], Stage(0, 0))
    rate = {id(p): group["lr"] for group in phase.groups for p in list(group["params"])}
    expected = {"cnn": 0.2, "auxiliary": 0.2, "generator": 0.3, "head": 0.1}
    for name, parameter in clients[0].model.named_parameters():
        assert rate[id(parameter)] == next(value for start, value in expected.items() if name.startswith(start))


def test_the_auxiliary_loss_is_the_cnns_own_cross_entropy(federation, smoke):
    losses = []
    for weight in (0.0, 2.0):
        method, clients, _ = play(federation, smoke(auxiliary=weight), 1)
        client = federation(smoke(auxiliary=weight))[1][0]
        client.task = 0
        method.receive(client, method.broadcast(0, Stage(0, 0)), Stage(0, 0))
        client.model.eval()
        batch = client.train.batch(client.train_index[:6])
        f = client.model["cnn"](batch.images)
        own = masked_cross_entropy(client.model["auxiliary"](f), batch.labels, client.classes)
        task = masked_cross_entropy(method.logits(client, batch), batch.labels, client.classes)
        losses.append((method.loss(client, batch) - task - weight * own).item())
    assert losses == pytest.approx([0, 0], abs=1e-5)


def test_the_auxiliary_head_is_trained_only_if_it_counts(federation, smoke):
    for weight, moved in ((0.0, False), (1.0, True)):
        start = federation(smoke(auxiliary=weight))[1][0].model["auxiliary"].weight
        _, clients, _ = play(federation, smoke(auxiliary=weight), 1)
        assert torch.equal(clients[0].model["auxiliary"].weight, start) != moved


def test_dropout_acts_in_training_only(after_task_0):
    method, clients = after_task_0(generator_dropout=0.5)
    client = clients[0]
    batch = client.train.batch(torch.arange(8))
    assert torch.equal(method.logits(client, batch), method.logits(client, batch))
    f = client.model["cnn"](batch.images)
    client.model.train()
    assert not torch.equal(method.update(client, f).A, method.update(client, f).A)


# ---- 4.3 small-model continual fine-tuning (SM-CF)


def written(state, f, generator):
    """B and A of one image in float64, from the features f (m,) of a generator with these weights."""
    omega = state["weight"] @ (f / len(f)) + state["bias"]
    cut, rank, width = generator.rank * generator.width, generator.rank, generator.width
    return omega[cut:].reshape(3 * width, rank), omega[:cut].reshape(rank, width)


@pytest.mark.parametrize("compares", ["product", "matrices"])
@pytest.mark.parametrize("form", ["relative", "mean", "sum"])
@pytest.mark.parametrize(("alpha", "beta"), [(0.7, 0.3), (1.0, 0.0), (0.0, 2.0)])
def test_eq_4_equals_a_computation_by_hand(after_task_0, form, alpha, beta, compares):
    method, clients = after_task_0(consistency=form, alpha=alpha, beta=beta, consistency_compares=compares)
    client = clients[0]
    old = {key: value.clone() for key, value in client.model["generator"].state_dict().items()}
    buffer = client.state["buffer"]
    with torch.no_grad():
        old_f = client.model["cnn"](client.train.batch(buffer).images).double().numpy()
        draw = torch.Generator().manual_seed(1)
        for parameter in client.model.parameters():  # a CNN and a generator that have moved on
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
        new_f = client.model["cnn"](client.train.batch(buffer).images).double().numpy()
        client.scratch["replay"] = client.rng("replay")
        batch = client.train.batch(client.train_index[:5])
        found = float(method.continual.loss(client, batch, torch.empty(5, 14)))

    drawn = torch.randint(len(buffer), (5,), generator=client.rng("replay")).tolist()
    new = {key: value.detach().double().numpy() for key, value in client.model["generator"].state_dict().items()}
    old = {key: value.double().numpy() for key, value in old.items()}
    total = 0.0
    for i in drawn:
        (B, A), (B_old, A_old) = (
            written(*one, client.model["generator"]) for one in ((new, new_f[i]), (old, old_f[i]))
        )
        pairs = {"product": [(B @ A, B_old @ A_old)], "matrices": [(A, A_old), (B, B_old)]}[compares]
        scaled = lambda x, y: np.sum((x - y) ** 2) / {"relative": np.sum(y**2), "mean": y.size, "sum": 1}[form]
        total += alpha * scaled(new_f[i], old_f[i]) + beta * np.mean([scaled(*pair) for pair in pairs])
    assert found == pytest.approx(total / 5, rel=1e-4)
    assert found > 0


def test_the_loss_is_eq_3_plus_eq_4(after_task_0):
    method, clients = after_task_0()
    client = clients[0]
    client.task = 1
    with torch.no_grad():
        client.model["cnn"].cnn.layers[0].weight += 0.1
        batch = client.train.batch(client.train_index[:6])
        client.scratch["replay"] = client.rng("replay")
        total = method.loss(client, batch)
        client.scratch["replay"] = client.rng("replay")
        logits = method.logits(client, batch)
        kept = method.continual.loss(client, batch, logits)
        task = masked_cross_entropy(logits, batch.labels, client.classes)
    assert kept > 1e-4 and torch.allclose(total, task + kept)


def test_nothing_is_kept_close_in_the_first_task(federation, smoke):
    method, clients, _ = play(federation, smoke(), 1)
    assert all(client.state == {} for client in clients)
    client = clients[0]
    client.model.eval()
    batch = client.train.batch(client.train_index[:6])
    expected = masked_cross_entropy(method.logits(client, batch), batch.labels, client.classes)
    assert torch.allclose(method.loss(client, batch), expected)


def test_eq_4_is_zero_right_after_a_task_has_ended_in_training_too(after_task_0):
    method, clients = after_task_0()
    for client in clients:
        client.scratch["replay"] = client.rng("replay")
        client.model.train()  # as `fit` does it before the first step
        batch = client.train.batch(client.train_index)
        before = {name: value.clone() for name, value in client.model.state_dict().items()}
        assert method.continual.loss(client, batch, torch.empty(len(batch.index), 14)).item() < 1e-10
        assert client.model["cnn"].training
        after = client.model.state_dict()  # and the buffer leaves no trace in the statistics of BatchNorm
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_eq_4_measures_what_an_update_does():
    """Other factors of the same product are no change; a doubled B is one, though A has most of omega."""
    draw = torch.Generator().manual_seed(0)
    A, B = torch.randn(5, 3, 8, generator=draw), 1e-3 * torch.randn(5, 24, 3, generator=draw)
    [(same, size, numbers)] = product_gap(LowRank(2 * A, B / 2, 1.0), LowRank(A, B, 1.0))
    assert numbers == 24 * 8
    assert torch.allclose(size, (B @ A).square().sum((1, 2))) and (same / size).max() < 1e-10
    [(doubled, size, _)] = product_gap(LowRank(A, 2 * B, 1.0), LowRank(A, B, 1.0))
    assert torch.allclose(doubled, size, rtol=1e-4)
    assert (product_gap(LowRank(A, B, 1.0), LowRank(A, B, 1.0))[0][0] == 0).all()


def test_the_teacher_is_the_personalised_generator_of_the_last_server_step(federation, smoke):
    method, clients, _ = play(federation, smoke(), 2)
    for k, client in enumerate(clients):
        assert torch.equal(client.state["previous.weight"], method.server[f"{k}.weight"])
        assert torch.equal(client.state["previous.bias"], method.server[f"{k}.bias"])


def test_the_buffer_keeps_the_lowest_losses_of_every_class(federation, smoke):
    method, clients, _ = play(federation, smoke(tasks=1, buffer_per_class=2, private_classes=1))
    for client in clients:
        client.model.eval()
        batch = client.train.batch(client.train_index)
        with torch.no_grad():
            losses = masked_cross_entropy(method.logits(client, batch), batch.labels, client.classes, "none")
        kept = torch.isin(client.train_index, client.state["buffer"])
        for label in client.current.classes:
            own = batch.labels == label
            assert (own & kept).sum() == min(2, own.sum())
            if (own & ~kept).any():
                assert losses[own & kept].max() <= losses[own & ~kept].min() + 1e-6


def test_the_buffer_grows_by_the_classes_of_each_task(federation, smoke):
    _, clients, _ = play(federation, smoke(buffer_per_class=3), 2)
    first = [client.state["buffer"].clone() for client in clients]
    _, clients, _ = play(federation, smoke(buffer_per_class=3))
    for before, client in zip(first, clients):
        buffer = client.state["buffer"]
        assert torch.equal(buffer[: len(before)], before) and len(buffer.unique()) == len(buffer)
        labels = client.train.images.labels[buffer.numpy()]
        assert set(labels) == set(client.partition.seen_classes(client.id, 1)) and np.bincount(labels).max() <= 3
        own = [image for task in client.partition.tasks[client.id] for image in task.train]
        assert set(buffer.tolist()) <= set(own)
        assert client.state["previous.features"].shape == (len(buffer), 16)


@pytest.mark.parametrize("off", [{"alpha": 0.0}, {"beta": 0.0}, {"alpha": 0.0, "beta": 0.0}])
def test_switching_alpha_or_beta_off_changes_a_run_from_the_second_task_on(federation, smoke, off):
    for rounds, same in ((2, True), (4, False)):
        plain, changed = (play(federation, smoke(lr_generator=1e-2, **values), rounds)[1] for values in ({}, off))
        for one, other in zip(plain, changed):
            equal = all(
                torch.equal(value, other.model.state_dict()[key]) for key, value in one.model.state_dict().items()
            )
            assert equal == same


def test_eq_4_holds_the_cnn_back(federation, smoke, toy):
    """How far the features of the buffer move in the second task, without and with the feature term."""
    moved = []
    for alpha in (0.0, 1.0):
        method, clients = federation(
            smoke(clients=1, alpha=alpha, beta=0.0, epochs=4, buffer_per_class=12), toy(train=12)
        )
        for number, _ in enumerate(federate(method, InProcess(method, clients)), 1):
            if number == 2:
                buffer, before = clients[0].state["buffer"], clients[0].state["previous.features"]
        moved.append(float((method.features(clients[0], buffer) - before).square().mean()))
    assert moved[1] < 0.75 * moved[0]


# ---- 4.4 One-by-One Distillation (O2D)


def test_the_server_step_is_eq_5_of_the_uploads(federation, smoke):
    method, _, uploads = play(federation, smoke(o2d_lambda=0.3), 1)
    weights = [torch.cat([uploads[0][k]["weight"], uploads[0][k]["bias"][:, None]], 1) for k in range(3)]
    for k, found in enumerate(o2d_exact(weights, [second_moments(uploads[0][k]["features"]) for k in range(3)], 0.3)):
        assert torch.equal(method.server[f"{k}.weight"], found[:, :16]) and torch.equal(
            method.server[f"{k}.bias"], found[:, 16]
        )
        assert not torch.equal(found, weights[k])


def test_each_client_gets_its_own_generator_back(federation, smoke):
    method, _, _ = play(federation, smoke(), 1)
    sent = [method.broadcast(k, Stage(0, 1)) for k in range(3)]
    assert not torch.equal(sent[0]["bias"], sent[1]["bias"]) and not torch.equal(sent[1]["bias"], sent[2]["bias"])


def test_the_order_of_the_uploads_does_not_matter(federation, smoke):
    method, _, uploads = play(federation, smoke(), 1)
    other, _ = federation(smoke())
    other.aggregate({k: uploads[0][k] for k in (2, 0, 1)}, Stage(0, 0))
    assert all(torch.allclose(value, other.server[key], rtol=1e-4, atol=1e-6) for key, value in method.server.items())


def test_the_gradient_version_takes_the_papers_steps(federation, smoke):
    exact, sgd = (play(federation, smoke(o2d=o2d), 1)[0].server for o2d in ("exact", "sgd"))
    assert all(not torch.equal(value, sgd[key]) for key, value in exact.items())
    near = play(federation, smoke(o2d="sgd", o2d_epochs=1000), 1)[0].server
    start = play(federation, smoke(o2d_lambda=1e6), 1)[0].server  # as uploaded
    for key, value in exact.items():
        assert (near[key] - value).norm() < 0.02 * (start[key] - value).norm()


def test_one_client_keeps_its_own_generator(federation, smoke):
    method, _, uploads = play(federation, smoke(clients=1), 1)
    assert all(torch.equal(method.server[f"0.{key}"], uploads[0][0][key]) for key in ("weight", "bias"))


def test_features_of_the_first_task_go_up_before_it_has_ended(federation, smoke):
    _, clients, uploads = play(federation, smoke(buffer_per_class=2), 1)
    for client in clients:
        counts = client.partition.counts(client.train.images.labels, 14)[client.id, 0]
        assert len(uploads[0][client.id]["features"]) == np.minimum(counts, 2).sum() > 0


def test_uploaded_features_are_those_of_the_kept_images(federation, smoke):
    method, clients, uploads = play(federation, smoke(tasks=1, rounds=1))
    for client in clients:
        found = scale_features(method.features(client, client.state["buffer"]))
        sent = uploads[0][client.id]["features"]
        assert sent.shape == found.shape
        every = scale_features(method.features(client, client.train_index))
        assert all((every - row).abs().max(1).values.min() < 1e-6 for row in sent)


def test_nothing_of_cnn_head_or_images_ever_goes_up(federation, smoke):
    for upload in ("features", "gram"):
        _, clients, uploads = play(federation, smoke(o2d_upload=upload))
        assert len(uploads) == 4
        for sent in uploads:
            for k, payload in sent.items():
                assert set(payload) == {"weight", "bias", upload}
                shapes = {name: tuple(value.shape) for name, value in payload.items()}
                assert shapes["weight"] == (512, 16) and shapes["bias"] == (512,)
                assert shapes[upload] == ((153,) if upload == "gram" else (len(payload[upload]), 16))
                private = [v for name, v in clients[k].model.state_dict().items() if not name.startswith("generator")]
                private.append(clients[k].train.batch(clients[k].train_index).images)
                sent_numbers = set(torch.cat([value.flatten().float() for value in payload.values()]).tolist())
                for value in private:
                    numbers = value.flatten().float().unique()
                    if len(numbers) > 20:
                        assert len(sent_numbers & set(numbers.tolist())) < len(numbers) / 20


def test_the_gram_matrix_gives_the_same_server_bit_for_bit_with_fewer_bytes(federation, smoke):
    played = {
        upload: play(federation, smoke(o2d_upload=upload, features=4, buffer_per_class=6))
        for upload in ("features", "gram")
    }
    rows, gram = played["features"], played["gram"]
    assert all(torch.equal(value, gram[0].server[key]) for key, value in rows[0].server.items())
    for one, other in zip(rows[1], gram[1]):
        assert all(torch.equal(value, other.model.state_dict()[key]) for key, value in one.model.state_dict().items())
    for many, few in zip(rows[2], gram[2]):
        assert sum(map(num_bytes, few.values())) < sum(map(num_bytes, many.values()))
        assert all(
            len(payload["gram"]) == 5 * 6 // 2 and payload["gram"].dtype == torch.float64 for payload in few.values()
        )


@pytest.mark.parametrize("values", [{}, {"o2d": "sgd"}, {"o2d_upload": "gram"}])
def test_without_a_buffer_a_run_goes_through_and_nothing_is_distilled(federation, smoke, values):
    method, clients, uploads = play(federation, smoke(buffer_per_class=0, **values))
    assert all(len(client.state["buffer"]) == 0 and "previous.features" not in client.state for client in clients)
    for k in range(3):
        assert torch.equal(method.server[f"{k}.weight"], uploads[-1][k]["weight"])
        assert torch.equal(method.server[f"{k}.bias"], uploads[-1][k]["bias"])


def test_unlike_cnns_learn_together(federation, smoke):
    method, clients, uploads = play(federation, smoke(cnn="tiny,small", features=12))
    assert [payload["features"].shape[1] for payload in uploads[-1].values()] == [12] * 3
    sizes = [sum(p.numel() for p in client.model["cnn"].parameters()) for client in clients]
    assert sizes[0] == sizes[2] != sizes[1]


def test_a_second_round_starts_from_the_distilled_generator(federation, smoke):
    method, clients, _ = play(federation, smoke(), 1)
    client, stage = clients[0], Stage(0, 1)
    cnn = {key: value.clone() for key, value in client.model["cnn"].state_dict().items()}
    method.receive(client, method.broadcast(0, stage), stage)
    assert torch.equal(client.model["generator"].weight, method.server["0.weight"])
    assert all(torch.equal(value, cnn[key]) for key, value in client.model["cnn"].state_dict().items())
    upload = answer(method, client, stage, method.broadcast(0, stage))
    assert not torch.equal(upload["weight"], method.server["0.weight"])


# ---- components replaced


def test_every_component_that_a_config_can_name_is_there():
    allowed = {name: set(get_args(FedLSCL.Parameters.model_fields[name].annotation)) for name in ("continual", "o2d")}
    assert allowed == {"continual": set(CONTINUAL), "o2d": set(FUSIONS)}
    collaborations = get_args(FedLSCL.Parameters.model_fields["collaboration"].annotation)
    assert set(collaborations) == {"written", *REPLACED_MODELS}


def test_a_component_of_ones_own_needs_a_class_and_a_place(federation, smoke, monkeypatch):
    called = []

    class Shrink(SmallContinual):
        def loss(self, client, batch, logits):
            called.append(client.task)
            return 0.1 * sum(p.square().sum() for p in protected_parameters(client).values())

    class First(Fusion):
        shares = True

        def aggregate(self, uploads):
            return {f"{k}.{name}": uploads[0][name] for k in uploads for name in uploads[0]}

    monkeypatch.setitem(CONTINUAL, "none", Shrink)
    monkeypatch.setitem(FUSIONS, "none", First)
    method, _, uploads = play(federation, smoke(continual="none", o2d="none"))
    assert called and set(called) == {1}
    assert all(torch.equal(method.server[f"{k}.bias"], uploads[-1][0]["bias"]) for k in range(3))


VARIANTS = [
    *({"continual": kind} for kind in ("ewc", "lwf", "replay", "none")),
    *({"o2d": kind} for kind in ("average", "none")),
    *({"collaboration": kind} for kind in ("static", "cnn")),
    {"collaboration": "static", "o2d": "average", "continual": "ewc"},
    {"collaboration": "cnn", "continual": "lwf", "auxiliary": 1.0},
]


@pytest.mark.parametrize("values", VARIANTS, ids=str)
def test_every_component_can_be_replaced_and_the_payload_has_the_size_of_the_formula(federation, smoke, values):
    config = smoke(**values)
    method, clients = federation(config)
    m = 0 if config.collaboration == "static" else 16
    generator = 4 * 512 * (m + 1) if config.collaboration != "cnn" and config.o2d != "none" else 0
    before = play(federation, smoke())[1]
    for report in federate(method, InProcess(method, clients)):
        for k, client in enumerate(clients):
            kept = int(
                np.minimum(client.partition.counts(client.train.images.labels, 14)[k, : report.task + 1], 2).sum()
            )
            extra = 8 if config.o2d == "average" else 4 * kept * m
            assert report.bytes_up[k] == (generator + extra if generator else 0)
            assert report.bytes_down[k] == generator * (2 if report.scores else 1)
    one, other = before[0].model["head"].weight, clients[0].model["head"].weight
    assert one.shape != other.shape or not torch.equal(one, other)


@pytest.mark.parametrize(
    ("kind", "weight"), [("ewc", "ewc_weight"), ("lwf", "lwf_weight"), ("replay", "replay_weight")]
)
def test_the_term_is_proportional_to_its_weight(after_task_0, kind, weight):
    terms = []
    for value in (0.0, 1.0, 3.0):
        method, clients = after_task_0(continual=kind, **{weight: value})
        client = clients[0]
        client.task = 1
        method.start_task(client)
        client.model.eval()
        client.scratch["replay"] = client.rng("replay")
        with torch.no_grad():
            client.model["generator"].bias += 0.1
            batch = client.train.batch(client.train_index[:4])
            logits = method.logits(client, batch)
            terms.append(float(method.continual.loss(client, batch, logits)))
            assert float(method.loss(client, batch)) > 0
    assert terms[0] == 0 and terms[1] > 0 and terms[2] == pytest.approx(3 * terms[1], rel=1e-4)


def test_with_no_term_the_loss_is_eq_3(after_task_0):
    method, clients = after_task_0(continual="none")
    client = clients[0]
    client.task = 1
    batch = client.train.batch(client.train_index[:4])
    expected = masked_cross_entropy(method.logits(client, batch), batch.labels, client.classes)
    assert torch.equal(method.loss(client, batch), expected)


def test_ewc_holds_cnn_and_generator_where_the_fisher_information_is_large(after_task_0):
    method, clients = after_task_0(continual="ewc", ewc_weight=2.0)
    client = clients[0]
    client.task = 1
    names = list(protected_parameters(client))
    assert {name.split(".")[0] for name in names} == {"cnn", "generator"}
    assert all(client.state[f"fisher.{name}"].min() >= 0 for name in names) and any(
        client.state[f"fisher.{name}"].max() > 0 for name in names
    )
    with torch.no_grad():
        for parameter in protected_parameters(client).values():
            parameter += 0.5
    expected = 2.0 * 0.5 * 0.25 * sum(float(client.state[f"fisher.{name}"].sum()) for name in names)
    batch = client.train.batch(client.train_index[:4])
    assert float(method.continual.loss(client, batch, method.logits(client, batch)).detach()) == pytest.approx(
        expected, rel=1e-4
    )


def test_lwf_compares_with_what_the_model_said_about_the_image_before_the_task(after_task_0):
    method, clients = after_task_0(continual="lwf")
    client = clients[0]
    client.task = 1
    method.start_task(client)
    client.model.eval()
    with torch.no_grad():
        batch = client.train.batch(client.train_index[[5, 1, 3]])
        logits = method.logits(client, batch)
        old = logits[:, list(client.partition.seen_classes(0, 0))] / 2
        entropy = (
            -(old.softmax(1) * old.log_softmax(1)).sum(1).mean()
        )  # nothing has moved yet: the teacher's own entropy
        assert method.continual.loss(client, batch, logits) == pytest.approx(float(entropy), rel=1e-4)


def test_the_static_writer_writes_the_same_for_every_image(after_task_0):
    method, clients = after_task_0(collaboration="static")
    client = clients[0]
    batch = client.train.batch(torch.arange(6))
    update = method.update(client, method.cnn_features(client, batch))
    assert torch.equal(update.A[0], update.A[5]) and torch.equal(update.B[0], update.B[5]) and update.B.abs().max() > 0
    assert "cnn" not in client.model and client.model["generator"].weight.shape == (512, 0)


def test_the_cnn_alone_does_not_see_the_vit(after_task_0):
    method, clients = after_task_0(collaboration="cnn")
    client = clients[0]
    batch = client.train.batch(torch.arange(6))
    assert torch.equal(method.logits(client, batch), client.model["head"](client.model["cnn"](batch.images)))
    assert "generator" not in client.model and method.server == {}


def test_averaging_gives_all_clients_the_weighted_mean(federation, smoke):
    method, clients, uploads = play(federation, smoke(o2d="average", private_classes=1), 1)
    counts = [len(client.partition.tasks[client.id][0].train) for client in clients]
    assert len(set(counts)) > 1
    for name in ("weight", "bias"):
        mean = sum(uploads[0][k][name].double() * counts[k] for k in range(3)) / sum(counts)
        assert all(torch.allclose(method.server[f"{k}.{name}"].double(), mean, atol=1e-7) for k in range(3))


def test_without_fusion_the_generator_stays_as_it_was_trained(federation, smoke):
    method, clients, uploads = play(federation, smoke(o2d="none"))
    assert uploads == [{0: {}, 1: {}, 2: {}}] * 4 and method.server == {}
    assert not torch.equal(clients[0].model["generator"].bias, clients[1].model["generator"].bias)
