"""PILoRA."""

import copy

import pytest
import torch

from lscl.config import PROFILES, experiment
from lscl.federation.masking import masked_cross_entropy
from lscl.federation.method import IMAGES, Stage
from lscl.federation.payload import num_bytes
from lscl.federation.training import answer
from lscl.methods.parts.prototypes import class_means, merge_weights
from lscl.methods.pilora import PILoRA, query_value_update

D, R, C, Y = 32, 4, 14, 3  # width, rank, classes, classes of a task in the smoke profile


@pytest.fixture
def in_task_1(played, smoke):
    """Method and clients at the start of the second task, with one earlier LoRA that is not zero."""

    def make(**values):
        method, clients, _ = played(smoke(method="pilora", **{"pilora_lr_lora": 1e-2, **values}), 2)
        for client in clients:
            client.task, client.round = 1, 0
            method.receive(client, method.broadcast(client.id, Stage(1, 0)), Stage(1, 0))
        return method, clients

    return make


def upload(classes, prototype, mean, images=10, factor=1.0):
    """An upload by hand; `prototype` and `mean` by class."""
    rows = [
        torch.full((len(classes), D), 1.0) * torch.tensor([float(value[label]) for label in classes])[:, None]
        for value in (prototype, mean)
    ]
    lora = {"A": torch.full((2, R, D), factor), "B": torch.full((2, D, R), -factor)}
    return {
        IMAGES: torch.tensor(images),
        **lora,
        "classes": torch.tensor(classes),
        "prototypes": rows[0],
        "means": rows[1],
    }


# ---- what travels


def test_bytes_equal_the_formula_of_the_docstring(played, smoke):
    _, clients, log = played(smoke(method="pilora"))
    known = set()
    for stage, downloads, uploads in log:
        for k in range(3):
            assert num_bytes(downloads[k]) == 4 * (4 * R * D + len(known) * D) + 8 * len(known)
            if stage.name == "train":
                assert num_bytes(uploads[k]) == 4 * (4 * R * D + 2 * Y * D) + 8 * Y + 8
        if stage.name == "train":
            known |= {label for client in clients for label in client.partition.tasks[client.id][stage.task].classes}
    assert 9 <= len(known) <= C


def test_nothing_that_travels_has_the_shape_of_an_image(played, smoke):
    _, _, log = played(smoke(method="pilora", tasks=1))
    for _, downloads, uploads in log[:2]:
        for payload in (*downloads.values(), *uploads.values()):
            assert all(value.ndim < 3 or value.shape[-2:] in {(R, D), (D, R)} for value in payload.values())


def test_with_one_client_and_one_round_the_server_has_the_upload(played, smoke):
    method, clients, log = played(smoke(method="pilora", clients=1, rounds=1, tasks=1))
    _, downloads, uploads = log[0]
    sent, back = uploads[0], log[1][1][0]
    assert all(
        torch.equal(back[name], sent[name]) and not torch.equal(back[name], downloads[0][name]) for name in ("A", "B")
    )
    assert back["classes"].tolist() == sorted(sent["classes"].tolist())
    for label, row in zip(sent["classes"], sent["prototypes"]):
        assert torch.equal(method.server["prototypes"][label], row) and torch.equal(
            clients[0].model["head"].weight[label], row
        )


def test_uploaded_means_are_those_of_the_local_features(federation, smoke):
    method, clients = federation(smoke(method="pilora"))
    client = clients[1]
    sent = answer(method, client, Stage(0, 0), method.broadcast(1, Stage(0, 0)))
    batch = client.train.batch(client.train_index)
    with torch.no_grad():
        expected = class_means(method.features(client, batch), batch.labels, client.classes)
    assert torch.allclose(sent["means"], expected, atol=1e-5) and torch.equal(sent["classes"], client.classes)


# ---- the model


def test_the_forward_is_the_vit_with_the_sum_of_all_updates_in_block_0(in_task_1):
    method, clients = in_task_1()
    client = clients[0]
    answer(method, client, Stage(1, 0), method.broadcast(0, Stage(1, 0)))
    old, new = client.state, client.model["lora"]
    assert old["lora.B"].abs().max() > 0 and new.B.abs().max() > 0
    vit = copy.deepcopy(method.foundation.vit)
    batch = client.train.batch(torch.arange(6))
    with torch.no_grad():
        for part, rows in enumerate((slice(0, D), slice(2 * D, 3 * D))):
            update = old["lora.B"][part] @ old["lora.A"][part] + new.B[part] @ new.A[part]
            vit.blocks[0].attn.qkv.weight[rows] += update
        expected = vit.norm(vit.blocks(batch.prefix))[:, 0]
        assert torch.allclose(method.features(client, batch), expected, atol=1e-5)
        assert (expected - method.foundation.suffix(batch.prefix)).abs().max() > 1e-3


def test_keys_get_no_update():
    A, B = torch.randn(2, R, D), torch.randn(2, D, R)
    low = query_value_update(A, B)
    update = low.scale * low.B @ low.A
    assert torch.allclose(update[:D], B[0] @ A[0], atol=1e-5) and torch.allclose(
        update[2 * D :], B[1] @ A[1], atol=1e-5
    )
    assert update[D : 2 * D].abs().max() == 0


def test_a_task_starts_with_a_new_lora_that_changes_nothing_on_all_clients(in_task_1):
    method, clients = in_task_1()
    first = method.new_lora(0)["A"]
    for client in clients:
        lora = client.model["lora"]
        assert torch.equal(lora.A, method.server["A"]) and not torch.equal(lora.A, first) and lora.B.abs().max() == 0
        assert torch.equal(client.state["lora.A"], clients[0].state["lora.A"]) and client.state["lora.A"].shape == (
            2,
            R,
            D,
        )


def test_the_earlier_lora_is_the_averaged_one_and_stays(played, smoke):
    method, clients, log = played(smoke(method="pilora"))
    finishes = [downloads for stage, downloads, _ in log if stage.name == "finish"]
    for client in clients:
        for task, sent in enumerate(finishes):
            assert torch.equal(client.state["lora.A"][:, R * task : R * (task + 1)], sent[client.id]["A"])
            assert torch.equal(client.state["lora.B"][:, :, R * task : R * (task + 1)], sent[client.id]["B"])


def test_scores_are_negative_distances_to_the_prototypes(in_task_1):
    method, clients = in_task_1(pilora_temperature=2.0)
    batch = clients[0].train.batch(torch.arange(5))
    with torch.no_grad():
        phi, prototypes = method.features(clients[0], batch), clients[0].model["head"].weight
        expected = -((phi[:, None] - prototypes).square().sum(2) / D).sqrt() / 2
        assert torch.allclose(method.logits(clients[0], batch), expected, atol=1e-4)


# ---- the loss


def test_the_loss_equals_its_terms_by_hand(in_task_1):
    method, clients = in_task_1(pilora_temperature=0.5, pilora_pull=0.3, pilora_orthogonal=0.7, pilora_sparse=0.2)
    client = clients[2]
    batch = client.train.batch(client.train_index[:5])
    A, old = client.model["lora"].A, client.state["lora.A"]
    with torch.no_grad():
        gaps = (method.features(client, batch)[:, None] - client.model["head"].weight).square().mean(2).sqrt()
        overlap = sum(abs(float(old[part, i] @ A[part, j])) for part in (0, 1) for i in range(R) for j in range(R))
        own = torch.stack([row[label] for row, label in zip(gaps, batch.labels)]).mean()
        expected = (
            masked_cross_entropy(-gaps / 0.5, batch.labels, client.classes)
            + 0.3 * own
            + 0.7 * overlap
            + 0.2 * A.abs().sum()
        )
        assert float(method.loss(client, batch)) == pytest.approx(float(expected), rel=1e-4)
        assert method.overlap(client).item() == pytest.approx(overlap, rel=1e-4) and overlap > 0.1


def test_the_overlap_moves_the_new_lora_only(in_task_1):
    method, clients = in_task_1()
    client = clients[0]
    A, old, parameters = client.model["lora"].A, client.state["lora.A"], list(client.model.parameters())
    gradients = torch.autograd.grad(method.overlap(client), parameters, allow_unused=True)
    expected = (old @ A.detach().transpose(1, 2)).sign().transpose(1, 2) @ old
    for parameter, gradient in zip(parameters, gradients):
        assert torch.allclose(gradient, expected, atol=1e-5) if parameter is A else gradient is None
    assert not old.requires_grad
    before = {name: value.clone() for name, value in client.state.items()}
    answer(method, client, Stage(1, 0), method.broadcast(0, Stage(1, 0)))
    assert all(torch.equal(value, before[name]) for name, value in client.state.items())


def test_without_earlier_tasks_there_is_no_overlap(federation, smoke):
    method, clients = federation(smoke(method="pilora"))
    assert method.overlap(clients[0]).item() == 0


def test_the_orthogonality_term_turns_the_new_lora_away_from_the_earlier_one(in_task_1):
    left = {}
    for weight in (0.0, 0.5):
        method, clients = in_task_1(pilora_orthogonal=weight, pilora_sparse=0.0, epochs=5)
        before = method.overlap(clients[0]).item()
        answer(method, clients[0], Stage(1, 0), method.broadcast(0, Stage(1, 0)))
        left[weight] = method.overlap(clients[0]).item() / before
    assert left[0.5] < 0.7 < 0.8 < left[0.0]


@pytest.mark.parametrize("train", [True, False])
def test_loss_and_scores_do_not_depend_on_the_order_of_a_batch(in_task_1, train):
    method, clients = in_task_1()
    client = clients[0]
    client.model.train(train)
    order = torch.tensor([3, 1, 4, 0, 2])
    with torch.no_grad():
        one, other = client.train.batch(client.train_index[:5]), client.train.batch(client.train_index[:5][order])
        assert float(method.loss(client, one)) == pytest.approx(float(method.loss(client, other)), rel=1e-5)
        assert torch.allclose(method.logits(client, one)[order], method.logits(client, other), atol=1e-5)


def test_lora_and_prototypes_have_their_own_learning_rates(federation, smoke):
    method, clients = federation(smoke(method="pilora", lr=0.5, pilora_lr_lora=0.25))
    (phase,) = method.phases(clients[0], Stage(0, 0))
    assert [(len(group["params"]), group["lr"]) for group in phase.groups] == [(2, 0.25), (1, 0.5)]


def test_prototypes_of_other_classes_are_left_where_they_are_in_a_later_task(in_task_1):
    method, clients = in_task_1()
    client = clients[1]
    before = client.model["head"].weight.detach().clone()
    answer(method, client, Stage(1, 0), method.broadcast(1, Stage(1, 0)))
    moved = (client.model["head"].weight != before).any(1).nonzero()[:, 0].tolist()
    assert moved == sorted(client.classes.tolist())


def test_training_lowers_the_loss(federation, smoke):
    method, clients = federation(smoke(method="pilora", epochs=15, lr=3e-2, pilora_lr_lora=1e-3))
    client, stage = clients[0], Stage(0, 0)
    client.task = 0
    method.receive(client, method.broadcast(0, stage), stage)
    batch = client.train.batch(client.train_index)
    with torch.no_grad():
        before = float(masked_cross_entropy(method.logits(client, batch), batch.labels, client.classes))
        with torch.enable_grad():
            answer(method, client, stage, method.broadcast(0, stage))
        assert float(masked_cross_entropy(method.logits(client, batch), batch.labels, client.classes)) < 0.9 * before


@pytest.mark.parametrize(("rate", "size"), [(1e-3, 0.1), (PILoRA.official["pilora_lr_lora"], 0.01)])
@pytest.mark.parametrize("task", [1, 2])
def test_the_lora_lives(played, smoke, task, rate, size):
    """After a task of real steps the LoRA changes what the ViT says, in a later task beside the orthogonality, too.

    At the rate of colab and paper, a tenth of the other one, its product is smaller in proportion.
    """
    method, clients, _ = played(smoke(method="pilora", epochs=5, rounds=5, pilora_lr_lora=rate), 5 * task)
    client, start = clients[0], method.new_lora(task - 1)["A"]
    A, B = (client.state[f"lora.{name}"].split(R, axis)[task - 1] for name, axis in (("A", 1), ("B", 2)))
    assert A.norm() > 0.7 * start.norm()
    assert (B @ A).norm() > size
    batch = client.train.batch(client.train_index)
    with torch.no_grad():
        frozen = method.foundation.suffix(batch.prefix)
        adapted = method.foundation.suffix(batch.prefix, query_value_update(A, B))
    assert (adapted - frozen).norm() > 0.2 * size * frozen.norm()


@pytest.mark.parametrize("profile", PROFILES)
def test_there_is_no_l1_term_in_any_profile(profile):
    assert experiment(profile=profile, method="pilora").pilora_sparse == 0


def test_an_l1_term_would_kill_the_lora(played, smoke):
    """Why there is none: at its official weight nothing is left of A."""
    dead, alive = (
        played(smoke(method="pilora", epochs=5, rounds=5, pilora_lr_lora=1e-2, pilora_sparse=weight), 5)[1][0]
        for weight in (0.01, 0.0)
    )
    assert dead.state["lora.A"].abs().mean() < 0.2 * alive.state["lora.A"].abs().mean()


# ---- the server


def test_prototypes_are_weighed_by_their_distance_to_the_means_of_the_holders(federation, smoke):
    """Class 5 on clients 0 and 1; class 2 on client 2 alone; client 2's copy of class 5 is what the server sent."""
    uploads = {
        0: upload([5, 1, 0], {5: 1.0, 1: 0.0, 0: 0.0}, {5: 2.0, 1: 0.0, 0: 0.0}),
        1: upload([3, 5, 4], {5: 4.0, 3: 0.0, 4: 0.0}, {5: 3.0, 3: 0.0, 4: 0.0}),
        2: upload([2, 6, 7], {2: 7.0, 6: 0.0, 7: 0.0}, {2: 6.0, 6: 0.0, 7: 0.0}),
    }
    for merge in ("plain", "holders"):
        method, _ = federation(smoke(method="pilora", head_merge=merge))
        sent = {name: value.clone() for name, value in method.server.items()}
        method.aggregate(uploads, Stage(0, 0))
        copies, means = torch.tensor([1.0, 4.0])[:, None].expand(2, D), torch.tensor([2.0, 3.0])[:, None].expand(2, D)
        if merge == "plain":
            copies = torch.cat([copies, sent["prototypes"][5:6]])
        weights = merge_weights(copies, means, 0.2).float()
        assert torch.allclose(method.server["prototypes"][5], weights @ copies, atol=1e-5)
        if merge == "holders":  # copies 1 and 4 are equally far from 2 and 3; a single copy is taken as it is
            assert torch.allclose(method.server["prototypes"][5], torch.full((D,), 2.5), atol=1e-5)
            assert torch.equal(method.server["prototypes"][2], torch.full((D,), 7.0))
        assert method.server["known"].nonzero()[:, 0].tolist() == list(range(8))
        assert torch.equal(method.server["prototypes"][8:], sent["prototypes"][8:])


def test_the_lora_is_averaged_by_the_number_of_images(federation, smoke):
    method, _ = federation(smoke(method="pilora", clients=2))
    zeros = dict.fromkeys(range(C), 0.0)
    method.aggregate(
        {0: upload([0, 1, 2], zeros, zeros, 30, 1.0), 1: upload([3, 4, 5], zeros, zeros, 10, 5.0)}, Stage(0, 0)
    )
    assert (method.server["A"] == 2).all() and (method.server["B"] == -2).all()


def test_a_class_known_to_the_server_goes_on_from_its_prototype(played, smoke):
    """A public class may be new for a client when others have trained it."""
    method, clients, _ = played(smoke(method="pilora", private_classes=1), 2)
    stage, met = Stage(1, 0), 0
    for client in clients:
        client.task = 1
        method.receive(client, method.broadcast(client.id, stage), stage)
        known = set(method.broadcast(client.id, stage)["classes"].tolist()) & set(client.classes.tolist())
        met += len(known)
        start = method.new_model(client.id)["head"].weight
        for label in known:
            assert torch.equal(client.model["head"].weight[label], method.server["prototypes"][label])
            assert not torch.equal(client.model["head"].weight[label], start[label])
    assert met > 0


# ---- as a whole


def test_a_run_stopped_after_every_round_ends_the_same(in_pieces, smoke):
    in_pieces(smoke(method="pilora"), 4)
