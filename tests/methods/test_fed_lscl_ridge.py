"""Fed-LSCL with a closed-form head: one function of an image on all clients, and the exact head on it."""

from itertools import pairwise

import pytest
import torch

from lscl.config import PROFILES, experiment
from lscl.errors import LsclError
from lscl.experiments.run import run
from lscl.experiments.sweeps import runs_of, variant_run, variants
from lscl.federation.masking import masked_cross_entropy
from lscl.federation.method import Stage
from lscl.federation.payload import num_bytes
from lscl.federation.ridge import ridge_head, ridge_sums
from lscl.federation.training import answer
from lscl.methods.fed_lscl_ridge import SUMS

RIDGE = {"method": "fed_lscl_ridge", "ridge_features": 40, "ridge_lambda": 0.1}
EVERY = {"first": {}, "every": {"adapt": "every"}, "none": {"adapt": "none"}}
adapting = pytest.mark.parametrize("values", EVERY.values(), ids=EVERY)


def head_inputs(method, client, index):
    """What the head reads of some training images, (n, D) float64."""
    client.model.eval()
    with torch.no_grad():
        batch = client.train.batch(index)
        return method.head_inputs(method.features_of(client, batch)).double(), batch.known_labels


# ---- the head


@pytest.mark.parametrize("values", [{}, {"ridge_features": 40, "ridge_lambda": 0.1}], ids=["plain", "random features"])
def test_with_nothing_adapted_it_is_federated_ridge(played, smoke, values):
    ours, clients, _ = played(smoke(method="fed_lscl_ridge", adapt="none", **values))
    control, others, _ = played(smoke(method="fed_ridge", **values))
    for name, theirs in {"gram": "gram", "products": "products", "head": "weight"}.items():
        assert torch.allclose(ours.server[name], control.server[theirs], rtol=0, atol=1e-10)
    one, other = run(smoke(method="fed_lscl_ridge", adapt="none", **values), quiet=True), control
    same = run(smoke(method="fed_ridge", **values), quiet=True)
    assert all(one[key] == same[key] for key in ("accuracy", "per_class", "bytes_up", "bytes_down"))
    assert one["trained_images"] == one["optimised_images"] == 0 and one["trained_parameters"] == [0, 0, 0]
    assert set(dict(clients[0].model.named_children())) == {"ridge"} and other.server["weight"].any()


def test_behind_the_first_task_the_head_is_the_solution_on_all_clients_and_tasks(played, smoke):
    """The features do not change any more, so the sums of both tasks are those of the features at the end."""
    method, clients, _ = played(smoke(**RIDGE))
    every = [
        head_inputs(method, client, torch.tensor(task.train))
        for client in clients
        for task in client.partition.tasks[client.id]
    ]
    features, labels = (torch.cat(parts) for parts in zip(*every, strict=True))
    wanted = ridge_head(*ridge_sums(features, labels, 14), 0.1)
    assert torch.allclose(method.server["head"], wanted, rtol=0, atol=1e-6)  # of float32 features, batch by batch
    assert all(torch.equal(client.model["ridge"].weight, method.server["head"]) for client in clients)


def test_sums_of_a_generator_that_trains_on_go_stale(played, smoke):
    values = {**RIDGE, "lr_generator": 0.01}
    gaps = {}
    for adapt in ("first", "every"):
        method, clients, _ = played(smoke(**values, adapt=adapt))
        every = [
            head_inputs(method, client, torch.tensor(task.train))[0]
            for client in clients
            for task in client.partition.tasks[client.id]
        ]
        gram = sum(features.T @ features for features in every)
        gaps[adapt] = float((gram - method.server["gram"]).norm() / gram.norm())
    assert gaps["first"] < 1e-5 and gaps["every"] > 1e-3


def test_what_is_tested_is_the_head_of_the_server_and_not_the_trained_one(played, smoke):
    method, (client, *_), _ = played(smoke(**RIDGE))
    batch = client.test.batch(client.test_index(0))
    client.model.eval()
    with torch.no_grad():
        before = method.logits(client, batch)
        client.model["head"].weight.zero_()
        assert torch.equal(method.logits(client, batch), before)
        client.model["ridge"].weight.zero_()
        assert not method.logits(client, batch).any()


def test_the_trained_head_serves_the_training(federation, smoke):
    """Eq. 3 by the client's own head; nothing of the server's is in the loss."""
    method, (client, *_) = federation(smoke(**RIDGE, epochs=15, lr=1e-2))
    stage, batch = Stage(0, 0), client.train.batch(torch.tensor(client.partition.tasks[0][0].train))
    client.task = 0
    method.receive(client, method.broadcast(0, stage), stage)

    def loss():
        client.model.eval()
        with torch.no_grad():
            logits = client.model["head"](method.features_of(client, batch))
            assert torch.allclose(
                method.loss(client, batch), masked_cross_entropy(logits, batch.labels, client.classes)
            )
            return float(method.loss(client, batch))

    before = loss()
    answer(method, client, stage, method.broadcast(0, stage))
    assert loss() < 0.9 * before


# ---- one function on all clients


@pytest.mark.parametrize("values", [{}, {"cnn": "small", "cnn_start": "pretrained"}], ids=["drawn", "pretrained"])
def test_all_clients_make_the_same_feature_of_an_image(played, smoke, values):
    method, clients, _ = played(smoke(**RIDGE, **values, lr_generator=0.01))
    index = torch.arange(12)
    found = [head_inputs(method, client, index)[0] for client in clients]
    assert all(torch.equal(found[0], other) for other in found[1:])
    frozen = method.head_inputs(method.foundation.suffix(clients[0].train.batch(index).prefix)).double()
    assert float((found[0] - frozen).norm() / frozen.norm()) > 1e-4  # and it is an adapted one


def test_personalised_generators_or_own_cnns_make_other_features(played, smoke):
    for values in ({"o2d": "exact"}, {"freeze_cnn": False}):
        method, clients, _ = played(smoke(**RIDGE, **values, lr_generator=0.01))
        one, other = (head_inputs(method, client, torch.arange(12))[0] for client in clients[:2])
        assert not torch.allclose(one, other, atol=1e-6)


def test_the_cnn_is_frozen_with_its_statistics(federation, played, smoke):
    config = smoke(**RIDGE, adapt="every")
    start = federation(config)[1][0].model["cnn"].state_dict()
    start = {name: value.clone() for name, value in start.items()}
    _, clients, _ = played(config)
    for client in clients:
        assert all(torch.equal(value, start[name]) for name, value in client.model["cnn"].state_dict().items())
    moved = played(smoke(**RIDGE, freeze_cnn=False))[1][0].model["cnn"].state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in moved.items())


def test_features_in_training_are_those_of_the_test(federation, smoke):
    """BatchNorm reads its running statistics in both."""
    method, (client, *_) = federation(smoke(**RIDGE))
    batch = client.train.batch(torch.arange(8))
    found = [method.cnn_features(client, batch) for _ in (client.model.train(), client.model.eval())]
    assert torch.equal(client.model.train() and method.cnn_features(client, batch), found[0])
    assert torch.equal(*found) and not found[0].requires_grad and client.model["cnn"].training


@pytest.mark.parametrize("o2d", ["average", "shared"])
def test_one_generator_comes_back(played, smoke, o2d):
    method, _, log = played(smoke(**RIDGE, o2d=o2d))
    assert all(
        torch.equal(method.server[f"0.{part}"], method.server[f"{k}.{part}"])
        for k in (1, 2)
        for part in ("weight", "bias")
    )
    (_, _, uploads) = log[0]
    assert not torch.equal(uploads[0]["bias"], uploads[1]["bias"])


# ---- which tasks adapt


@adapting
def test_rounds_are_played_in_the_tasks_that_adapt_and_sums_sent_in_all(played, smoke, values):
    _, _, log = played(smoke(**RIDGE, **values))
    names = {task: [stage.name for stage, _, _ in log if stage.task == task] for task in (0, 1)}
    adapts = {"first": (True, False), "every": (True, True), "none": (False, False)}[values.get("adapt", "first")]
    assert names == {task: [*["train"] * 2 * adapts[task], SUMS, "finish"] for task in (0, 1)}


@adapting
def test_traffic_is_that_of_the_docstring(played, smoke, values):
    method, _, log = played(smoke(**RIDGE, **values))
    P, m, D, k, C = 4 * 4 * method.foundation.width, 16, 40, 3, 14
    generator = 4 * P * (m + 1)
    for stage, downloads, uploads in log:
        adapts = method.adapts(stage)
        up = {"train": generator + 8, SUMS: 4 * (D + k) * (D + k + 1)}.get(stage.name)
        down = 8 * C * D if stage.name == "finish" else generator if adapts else 0
        assert {num_bytes(sent) for sent in downloads.values()} == {down}
        assert up is None or {num_bytes(sent) for sent in uploads.values()} == {up}


def test_nothing_of_the_cnn_the_trained_head_or_an_image_is_sent(played, smoke):
    _, _, log = played(smoke(**RIDGE, adapt="every"))
    sent = {(stage.name, *sorted(upload)) for stage, _, uploads in log for upload in uploads.values()}
    assert {one for one in sent if one[0] != "finish"} == {("train", "bias", "images", "weight"), (SUMS, "gram")}


def test_trained_images_are_those_of_the_tasks_that_adapt(smoke):
    found = {adapt: run(smoke(**RIDGE, adapt=adapt, continual="none"), quiet=True) for adapt in ("first", "every")}
    assert all(one["trained_images"] == one["optimised_images"] > 0 for one in found.values())
    assert found["every"]["trained_images"] > 1.5 * found["first"]["trained_images"]
    width, rank, m = 32, 4, 16
    assert found["first"]["trained_parameters"] == [4 * rank * width * (m + 1) + 14 * (width + 1)] * 3


@pytest.mark.parametrize("continual", ["consistency", "ewc", "lwf", "replay"])
def test_what_keeps_the_generator_can_be_any_of_fed_lscl(played, smoke, continual):
    method, _, _ = played(smoke(**RIDGE, adapt="every", continual=continual))
    assert all(value.isfinite().all() for value in method.server.values())


def test_a_static_update_needs_no_cnn(played, smoke):
    method, clients, _ = played(smoke(**RIDGE, collaboration="static", lr_generator=0.01))
    assert "cnn" not in clients[0].model and method.server["0.bias"].any()
    one, other = (head_inputs(method, client, torch.arange(6))[0] for client in clients[:2])
    assert torch.equal(one, other)


@adapting
def test_a_run_goes_on_behind_a_stop(smoke, in_pieces, values):
    rounds = {"first": 4, "every": 6, "none": 2}[values.get("adapt", "first")]
    in_pieces(smoke(**RIDGE, **values), rounds)


# ---- what is refused


def test_sums_that_no_images_can_have_are_refused(federation, smoke):
    method, (client, *_) = federation(smoke(**RIDGE))
    stage, client.task = Stage(0, 2, SUMS), 0
    client.model.eval()
    sent = method.upload(client, stage)["gram"]
    check = method.checks(0, stage)["gram"]
    assert check(sent) is None and check(-sent) is not None and "images" in check(2 * sent)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"collaboration": "cnn"}, ("collaboration = 'cnn'", "written and static")),
        ({"cnn": "tiny,small"}, ("cnn = 'tiny,small'", "freeze_cnn = true", "one name")),
    ],
)
def test_what_has_no_common_feature_is_one_line(federation, smoke, one_line, values, words):
    with pytest.raises(LsclError) as caught:
        federation(smoke(**RIDGE, **values))
    one_line(caught, *words)
    if "cnn" in values:  # each client may have its own
        federation(smoke(**RIDGE, **values, freeze_cnn=False))


# ---- the way there


@pytest.mark.parametrize("profile", PROFILES)
def test_every_step_of_the_way_is_a_run(profile):
    found = variants("repaired", profile)
    runs = runs_of("repaired", {"profile": profile, "dataset": "cifar100"}, [7])
    assert len(runs) == len(found) >= 13  # no two steps are the same run
    assert [config.method for config in runs[:4]] == ["fed_lscl"] * 3 + ["fed_lscl_ridge"]
    assert all(config.cnn == "small" or config.side == 224 for config in runs if config.cnn_start == "pretrained")


@pytest.mark.parametrize("profile", ["demo", "mini", "full"])
def test_a_step_changes_one_thing(profile):
    """The rates move last, all at once; the first step with another system has another head, too."""
    found = {
        label: variant_run({"profile": profile, "dataset": "cifar100"}, change, 7).model_dump()
        for label, change in variants("repaired", profile).items()
    }
    labels = list(found)[: list(found).index("+ rates of its own") + 1]
    changed = {
        after: {name for name, value in found[after].items() if value != found[before][name]}
        for before, after in pairwise(labels)
    }
    assert changed["+ CNN pre-trained"] == {"cnn_start"} and changed["+ one generator for all"] == {"o2d"}
    assert changed["+ CNN frozen"] == {"freeze_cnn"} and changed["+ only the first task adapts"] == {"adapt"}
    assert changed["+ random features"] == {"ridge_features", "ridge_lambda"}
    assert changed["+ closed-form head"] <= {"method", "adapt", "freeze_cnn", "ridge_lambda", "o2d_lambda"}
    assert changed["+ rates of its own"] <= {"lr", "lr_cnn", "lr_generator", "rank", "alpha", "beta"}


def test_the_last_step_is_what_the_profile_has():
    last = variants("repaired", "mini")["+ rates of its own"]
    config = experiment(method="fed_lscl_ridge", profile="mini", dataset="cifar100")
    assert variant_run({"profile": "mini", "dataset": "cifar100"}, last, 42).digest == config.digest
