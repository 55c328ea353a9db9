"""LoRM."""

import copy

import pytest
import torch
from tests_root import note_trained

from lscl.federation.method import HOLDS, Stage
from lscl.federation.payload import num_bytes
from lscl.federation.training import answer
from lscl.methods.parts.gram import gram_matrix
from lscl.methods.parts.o2d import unpack_triangle

L, D, H, C, R = 3, 32, 64, 14, 2  # blocks, width, hidden width, classes, rank
INPUTS, OUTPUTS, HEAD, PACKED = L * (3 * D + H), L * (5 * D + H), D * C + C, D * (D + 1) // 2


@pytest.fixture
def config(smoke):
    return lambda **values: smoke(method="lorm", **{"lorm_rank": R, "lr": 1e-2, **values})


def merged_vit(method, update):
    """A copy of the ViT with `update(layer)` (out, in) added to each of its linear layers."""
    vit = copy.deepcopy(method.foundation.vit)
    with torch.no_grad():
        for number, block in enumerate(vit.blocks):
            for name, layer in zip(
                ("qkv", "proj", "fc1", "fc2"), (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
            ):
                layer.weight += update(f"{number}.{name}")
    return vit


def received(log, task):
    """All that client 0 was sent in a task, the last of each name."""
    return {name: value for stage, downloads, _ in log if stage.task == task for name, value in downloads[0].items()}


# ---- what travels


@pytest.mark.parametrize("merge", ["plain", "holders"])
def test_bytes_equal_the_formula_of_the_docstring_in_every_stage(played, config, merge):
    _, _, log = played(config(rounds=3, head_merge=merge))
    flags = C if merge == "holders" else 0
    for stage, downloads, uploads in log:
        moved = [OUTPUTS, INPUTS, OUTPUTS]
        for k in range(3):
            if stage.name == "train":
                assert num_bytes(uploads[k]) == 4 * (R * moved[stage.round] + HEAD + INPUTS + PACKED) + 8 + flags
                assert num_bytes(downloads[k]) == 4 * ((R * moved[stage.round - 1] if stage.round else 0) + HEAD)
            elif stage.name == "gram":
                assert num_bytes(uploads[k]) == 4 * INPUTS and num_bytes(downloads[k]) == 4 * (R * OUTPUTS + HEAD)
            else:
                assert num_bytes(downloads[k]) == 4 * INPUTS
    names = ["train", "train", "train", "gram", "finish"] * 2
    assert [stage.name for stage, _, _ in log] == names


def test_nothing_that_travels_has_the_size_of_a_layer_or_the_shape_of_an_image(played, config):
    _, _, log = played(config(tasks=1))
    for stage, downloads, uploads in log:
        sent = [*downloads.values(), *(uploads.values() if stage.name != "finish" else [])]
        for payload in sent:
            assert all(value.ndim <= 2 for value in payload.values())
            assert all(min(value.shape) == R for name, value in payload.items() if name.startswith("lora."))


def test_with_one_client_and_one_round_the_server_has_the_upload(played, config):
    method, _, log = played(config(clients=1, rounds=1, tasks=1))
    (_, _, uploads), (_, back, _) = log[0], log[1]
    for name, value in back[0].items():
        assert torch.allclose(value, uploads[0][name], atol=1e-5)
        assert value.abs().max() > 1e-3
    assert {name for name in back[0] if name.endswith(".A")} == set() and len(back[0]) == 4 * L + 2


# ---- one factor per round


def test_one_factor_moves_per_round_and_every_task_starts_with_b(federation, config, monkeypatch):
    method, (client,) = federation(config(rounds=3, clients=1))
    trained = note_trained(monkeypatch)
    for task in range(2):
        for number, moving in enumerate("BAB"):
            stage = Stage(task, number)
            if number == 0:
                client.task = task
                method.start_task(client)
            method.receive(client, method.broadcast(0, stage), stage)
            before = {name: value.clone() for name, value in client.model.state_dict().items()}
            trained.clear()
            method.aggregate({0: answer(method, client, stage, method.broadcast(0, stage))}, stage)
            moved = {name for name, value in client.model.state_dict().items() if not torch.equal(value, before[name])}
            assert moved == {name for name in before if name.endswith(f".{moving}") or name.startswith("head.")}
            without = {name for name, parameter in client.model.named_parameters() if id(parameter) not in trained}
            assert without == {name for name in before if name.startswith("lora.") and not name.endswith(f".{moving}")}
        assert method.stages(task)[-1] == Stage(task, 3, "gram") and method.phases(client, Stage(task, 3, "gram")) == []
        method.server_end_task(task)


def test_the_frozen_layers_get_no_gradient(federation, config):
    method, clients = federation(config())
    answer(method, clients[0], Stage(0, 0), method.broadcast(0, Stage(0, 0)))
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in method.foundation.parameters())


def test_every_task_starts_from_a_new_a_and_no_b_the_same_everywhere(federation, config):
    method, clients = federation(config())
    seen = []
    for task in range(2):
        for client in clients:
            client.task = task
            method.start_task(client)
            for name, value in client.model.state_dict().items():
                if name.startswith("lora."):
                    assert torch.equal(value, method.server[name])
                    assert value.abs().max() == 0 if name.endswith(".B") else value.abs().max() > 0
        seen.append(method.server["lora.1.fc2.A"])
        method.server_end_task(task)
    assert not torch.equal(*seen) and not torch.equal(method.server["lora.0.fc2.A"], method.server["lora.1.fc2.A"])


def test_a_task_is_trained_from_the_frozen_weights(played, config):
    method, clients, _ = played(config(), 3)
    client = clients[0]
    client.task = 1
    method.start_task(client)
    method.receive(client, method.broadcast(0, Stage(1, 0)), Stage(1, 0))
    batch = client.train.batch(torch.arange(5))
    with torch.no_grad():
        frozen = client.model["head"](method.foundation.suffix(batch.prefix))
        assert torch.allclose(method.logits(client, batch), frozen, atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_loss_and_scores_do_not_depend_on_the_order_of_a_batch(played, config, train):
    method, clients, _ = played(config(), 2)
    client, order = clients[0], torch.tensor([3, 1, 4, 0, 2])
    client.model.train(train)
    with torch.no_grad():
        one, other = client.train.batch(client.train_index[:5]), client.train.batch(client.train_index[:5][order])
        assert method.loss(client, one).item() == pytest.approx(method.loss(client, other).item(), rel=1e-5)
        assert torch.allclose(method.logits(client, one)[order], method.logits(client, other), atol=1e-5)


# ---- Gram matrices and merges


def test_the_gram_matrices_are_those_of_the_merged_layers_inputs_over_all_tokens(played, config):
    method, clients, log = played(config(), 2)
    client = clients[1]
    client.task = 0
    state = client.model.state_dict()
    vit = merged_vit(method, lambda layer: state[f"lora.{layer}.B"] @ state[f"lora.{layer}.A"])
    found, hooks = {}, []
    for number, block in enumerate(vit.blocks):
        for name, layer in zip(
            ("qkv", "proj", "fc1", "fc2"), (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
        ):
            key = f"{number}.{name}"
            hooks.append(
                layer.register_forward_pre_hook(
                    lambda _, given, key=key: found.update({key: gram_matrix(given[0].flatten(0, 1))})
                )
            )
    batch = client.train.batch(client.train_index)
    with torch.no_grad():
        features = vit.norm(vit.blocks(batch.prefix))[:, 0]
    diagonals, moments = method.gram_matrices(client)
    assert set(diagonals) == set(found) == set(method.layer_names())
    assert all(torch.allclose(diagonals[key], found[key].diagonal(), rtol=1e-4) for key in found)
    assert torch.allclose(moments, gram_matrix(features), rtol=1e-4, atol=1e-4)


def test_the_uploaded_gram_is_the_heads_upper_triangle(federation, config):
    method, clients = federation(config())
    sent = answer(method, clients[0], Stage(0, 0), method.broadcast(0, Stage(0, 0)))
    assert torch.allclose(unpack_triangle(sent["gram.head"]).double(), method.gram_matrices(clients[0])[1], rtol=1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_equal_gram_matrices_give_the_average(played, federation, config, number):
    _, _, log = played(config(tasks=1))
    stage, downloads, uploads = log[number]
    same = {name: value for name, value in uploads[0].items() if name.startswith("gram.")}
    method, _ = federation(config(tasks=1))
    method.server.update(downloads[0])
    method.aggregate({k: {**payload, **same} for k, payload in uploads.items()}, stage)
    for name in [name for name in uploads[0] if name.startswith("lora.")] + ["head.weight"]:
        mean = sum(payload[name] for payload in uploads.values()) / 3
        assert torch.allclose(method.server[name], mean, atol=1e-5), name


@pytest.mark.parametrize("number", [0, 1])
def test_the_merged_layers_keep_the_clients_outputs_better_than_the_average(played, config, number):
    _, _, log = played(config(tasks=1, epochs=3))
    stage, downloads, uploads = log[number]
    method, clients, _ = played(config(tasks=1, epochs=3), number + 1)
    before = {**method.new_factors(0), **(downloads[0])}
    better = []
    for layer in method.layer_names():
        name, other = (f"lora.{layer}.{factor}" for factor in ("BA" if number == 0 else "AB"))

        def layer_of(factor, other=other):
            pair = (factor, before[other]) if number == 0 else (before[other], factor)
            return pair[0].double() @ pair[1].double()

        def cost(factor, layer=layer, name=name, layer_of=layer_of):
            gaps = [
                (layer_of(factor) - layer_of(sent[name])).square() @ sent[f"gram.{layer}"].double()
                for sent in uploads.values()
            ]
            return float(sum(gap.sum() for gap in gaps))

        mean = sum(sent[name] for sent in uploads.values()) / 3
        assert cost(method.server[name]) <= cost(mean) * (1 + 1e-6)
        better.append(cost(method.server[name]) < 0.999 * cost(mean))
    assert sum(better) > len(better) / 2


def test_head_rows_that_nobody_trained_stay(played, config):
    method, clients, log = played(config(tasks=1))
    start = method.new_model(0)["head"].weight
    trained = torch.zeros(C, dtype=torch.bool)
    for client in clients:
        trained[list(client.partition.tasks[client.id][0].classes)] = True
    assert torch.allclose(method.server["head.weight"][~trained], start[~trained], atol=1e-5)
    assert ((method.server["head.weight"] - start).abs().max(1).values > 1e-3)[trained].all() and (~trained).any()


def test_holders_regress_over_the_clients_that_trained_the_row(played, config):
    method, clients, log = played(config(tasks=1, rounds=1, head_merge="holders"))
    _, _, uploads = log[0]
    plain, _, _ = played(config(tasks=1, rounds=1))
    alone = 0
    for label in range(C):
        holders = [k for k, payload in uploads.items() if payload[HOLDS][label]]
        row = method.server["head.weight"][label]
        if len(holders) == 1:
            assert torch.allclose(row, uploads[holders[0]]["head.weight"][label], atol=1e-4)
            assert not torch.allclose(row, plain.server["head.weight"][label], atol=1e-4)
            alone += 1
        elif not holders:
            assert torch.equal(row, method.new_model(0)["head"].weight[label])
    assert alone > 0


# ---- tasks


def test_after_the_first_task_the_test_weights_are_those_of_the_last_round(played, config):
    method, clients, log = played(config(), 3)
    client = clients[0]
    batch = client.test.batch(torch.arange(6))
    with torch.no_grad():
        tested = method.logits(client, batch)
        expected = client.model["head"](method.foundation.suffix(batch.prefix, method.adapters(client)))
        assert torch.allclose(tested, expected, atol=1e-4)
        assert (tested - client.model["head"](method.foundation.suffix(batch.prefix))).abs().max() > 1e-3


def test_the_test_weights_are_the_regression_over_the_tasks(played, config):
    method, clients, log = played(config())
    tasks = [received(log, task) for task in range(2)]

    def regression(layer):
        Q = sum(
            one[f"lora.{layer}.B"].double() @ one[f"lora.{layer}.A"].double() * one[f"gram.{layer}"] for one in tasks
        )
        return (Q / sum(one[f"gram.{layer}"].double() for one in tasks)).float()

    vit = merged_vit(method, regression)
    for client in clients:
        batch = client.test.batch(torch.arange(6))
        with torch.no_grad():
            expected = client.model["head"](vit.norm(vit.blocks(batch.prefix))[:, 0])
            assert torch.allclose(method.logits(client, batch), expected, atol=1e-4)


def test_the_regression_keeps_each_tasks_outputs_better_than_the_mean_of_the_updates(played, config):
    method, clients, _ = played(config(epochs=3))
    state, better = clients[0].state, []
    for layer in method.layer_names():
        A, B, diagonals = (state[name].double() for name in (f"lora.{layer}.A", f"lora.{layer}.B", f"gram.{layer}"))
        updates = B @ A
        made = getattr(method.merge_stored_tasks(clients[0])[int(layer[0])], layer[2:])
        merged = made.B.double() @ made.A.double()

        def cost(update, updates=updates, diagonals=diagonals):
            return float(((update - updates).square() * diagonals[:, None]).sum())

        assert cost(merged) <= cost(updates.mean(0)) * (1 + 1e-5)
        better.append(cost(merged) < 0.999 * cost(updates.mean(0)))
    assert sum(better) > len(better) / 2


def test_diagonals_behind_a_task_are_taken_under_the_merged_model_on_every_client(played, config):
    method, clients, log = played(config(tasks=1))
    stage, _, uploads = log[2]
    assert stage.name == "gram"
    for name in (f"gram.{layer}" for layer in method.layer_names()):
        assert torch.allclose(clients[0].state[name][0], sum(payload[name] for payload in uploads.values()), rtol=1e-5)
    for client in clients:
        for name in uploads[0]:
            assert torch.allclose(
                uploads[client.id][name].double(),
                method.gram_matrices(client)[0][name.removeprefix("gram.")],
                rtol=1e-5,
            )


# ---- as a whole


def test_a_run_stopped_after_every_round_ends_the_same(in_pieces, config):
    in_pieces(config(), 6)
