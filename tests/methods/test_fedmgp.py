"""FedMGP."""

import pytest
import torch
import torch.nn.functional as F

from lscl.errors import LsclError
from lscl.experiments.run import prepare, run
from lscl.federation.masking import masked_cross_entropy
from lscl.federation.method import Stage
from lscl.federation.payload import num_bytes
from lscl.federation.training import answer
from lscl.methods.parts.prompts import insert_prompts
from lscl.models.vit import Adapter
from lscl.seeding import torch_generator

D, LENGTH, CLASSES = 32, 3, 14  # width, tokens of the global prompt, classes in the smoke profile


@pytest.fixture
def config(smoke):
    return lambda **values: smoke(method="fedmgp", **{"lr": 1e-2, **values})


@pytest.fixture
def started(federation, config):
    """Method and clients at the start of the first round."""

    def make(**values):
        method, clients = federation(config(**values))
        for client in clients:
            client.task = 0
            method.receive(client, method.broadcast(client.id, Stage(0, 0)), Stage(0, 0))
        return method, clients

    return make


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(model, before):
    """The names of the tensors that have changed."""
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


# ---- what travels


def test_bytes_equal_the_formula_of_the_docstring(played, config):
    _, _, log = played(config())
    for stage, downloads, uploads in log:
        for k in range(3):
            assert num_bytes(downloads[k]) == 4 * (LENGTH * D + D)
            assert stage.name == "finish" or num_bytes(uploads[k]) == 4 * (LENGTH * D + D)


def test_only_the_global_prompt_and_its_key_travel(played, config):
    _, clients, log = played(config())
    own = [
        value
        for client in clients
        for name, value in client.model.state_dict().items()
        if not name.startswith("coarse.")
    ]
    rows = lambda values: {tuple(row) for value in values for row in value.reshape(-1, value.shape[-1]).tolist()}
    for stage, downloads, uploads in log:
        for payload in (*downloads.values(), *(uploads.values() if stage.name == "train" else ())):
            assert {name: tuple(value.shape) for name, value in payload.items()} == {"prompt": (LENGTH, D), "key": (D,)}
            assert not rows(own) & rows(payload.values())


def test_with_one_client_and_one_round_the_server_has_the_upload(played, config):
    _, _, log = played(config(clients=1, rounds=1, tasks=1))
    (_, downloads, uploads), (_, back, _) = log
    assert all(
        torch.equal(back[0][name], value) and not torch.equal(downloads[0][name], value)
        for name, value in uploads[0].items()
    )


# ---- two phases


def test_each_phase_trains_its_own_parameters_and_nothing_else(started):
    method, clients = started()
    coarse, fine = method.phases(clients[0], Stage(0, 0))
    names = {id(parameter): name for name, parameter in clients[0].model.named_parameters()}
    trained = [
        {names[id(parameter)] for group in phase.groups for parameter in group["params"]} for phase in (coarse, fine)
    ]
    assert trained[0] == {"coarse.prompt", "coarse.key", "head.out.weight", "head.out.bias"}
    assert trained[1] == {"fine.prompts", "fine.keys", "local_head.weight", "local_head.bias"}
    assert [(phase.epochs, phase.batch, phase.clip) for phase in (coarse, fine)] == [(1, 8, 1.0)] * 2
    batch = clients[0].train.batch(clients[0].train_index[:6])
    for phase, expected in ((coarse, trained[0]), (fine, trained[1])):
        clients[0].model.zero_grad()
        phase.loss(clients[0], batch).backward()
        assert {
            name for name, parameter in clients[0].model.named_parameters() if parameter.grad is not None
        } == expected


def test_the_second_phase_does_not_move_the_global_prompt(started, monkeypatch):
    from lscl.federation import training

    method, clients = started()
    after, fit = [], training.fit

    def watched(client, phase, generator, *precision):
        before = snapshot(client.model)
        seen = fit(client, phase, generator, *precision)
        after.append(moved(client.model, before))
        return seen

    monkeypatch.setattr(training, "fit", watched)
    sent = answer(method, clients[0], Stage(0, 0), method.broadcast(0, Stage(0, 0)))
    assert after[0] == {"coarse.prompt", "coarse.key", "head.out.weight", "head.out.bias"}
    assert after[1] == {"fine.prompts", "fine.keys", "local_head.weight", "local_head.bias"}
    assert torch.equal(sent["prompt"], clients[0].model["coarse"].prompt)


def test_slots_and_rows_of_other_classes_are_left_where_they_are(started):
    method, clients = started()
    client = clients[1]
    before = snapshot(client.model)
    answer(method, client, Stage(0, 0), method.broadcast(1, Stage(0, 0)))
    for name in ("fine.prompts", "fine.keys", "local_head.weight", "head.out.weight"):
        rows = (client.model.state_dict()[name] != before[name]).flatten(1).any(1).nonzero()[:, 0].tolist()
        assert rows == sorted(client.classes.tolist()), name


def test_the_first_loss_equals_its_terms_by_hand(started):
    method, clients = started(mgp_key=0.3)
    client, vit = clients[0], method.foundation.vit
    batch, coarse = client.train.batch(client.train_index[:5]), client.model["coarse"]
    with torch.no_grad():
        z = torch.cat(
            [batch.prefix[:, :1], (coarse.prompt + vit.pos_embed[:, 0]).expand(5, -1, -1), batch.prefix[:, 1:]], 1
        )
        tokens = vit.norm(vit.blocks(z))[:, 1 : 1 + LENGTH].mean(1)
        cosine = torch.stack(
            [F.cosine_similarity(vit.norm(vit.blocks(one[None]))[0, 0], coarse.key, dim=0) for one in batch.prefix]
        )
        expected = (
            masked_cross_entropy(client.model["head"](tokens), batch.labels, client.classes) - 0.3 * cosine.mean()
        )
        assert method.coarse_loss(client, batch).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_second_loss_uses_the_true_classes_prompts_sample_by_sample(started):
    method, clients = started(mgp_key=0.3)
    client = clients[0]
    batch, coarse, fine = client.train.batch(client.train_index[:5]), client.model["coarse"], client.model["fine"]
    logits, cosines = [], []
    with torch.no_grad():
        for position, label in enumerate(batch.labels.tolist()):
            z = insert_prompts(method.foundation, batch.prefix[position : position + 1], coarse.prompt)
            query = method.foundation.suffix(z, keep=1 + LENGTH)[0, 1:].mean(0)
            pairs = fine.prompts[label]  # (blocks, 2, l, d)
            adapters = {1 + number: Adapter(keys=pairs[number, 0], values=pairs[number, 1]) for number in range(2)}
            logits.append(
                client.model["local_head"](method.foundation.suffix(z, adapters, keep=1 + LENGTH)[0, 1:].mean(0))
            )
            cosines.append(F.cosine_similarity(query, fine.keys[label], dim=0))
        expected = (
            masked_cross_entropy(torch.stack(logits), batch.labels, client.classes) - 0.3 * torch.stack(cosines).mean()
        )
        assert method.fine_loss(client, batch).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("train", [True, False])
def test_losses_and_scores_do_not_depend_on_the_order_of_a_batch(started, train):
    method, clients = started()
    client, order = clients[0], torch.tensor([3, 1, 4, 0, 2])
    client.model.train(train)
    one, other = client.train.batch(client.train_index[:5]), client.train.batch(client.train_index[:5][order])
    with torch.no_grad():
        for loss in (method.coarse_loss, method.fine_loss):
            assert loss(client, one).item() == pytest.approx(loss(client, other).item(), rel=1e-5)
        assert torch.allclose(method.logits(client, one)[order], method.logits(client, other), atol=1e-5)


def test_queries_are_computed_once_per_round_behind_the_first_phase(started, monkeypatch):
    method, clients = started(epochs=3)
    client, calls, readout = clients[0], [], method.readout

    def counted(batch, prompt, adapters=None):
        if not prompt.requires_grad or not torch.is_grad_enabled():
            calls.append((len(batch.index), adapters is None))
        return readout(batch, prompt, adapters)

    monkeypatch.setattr(method, "readout", counted)
    for number in range(2):
        calls.clear()
        stage = Stage(0, number)
        answer(method, client, stage, method.broadcast(0, stage))
        assert [size for size, query in calls if query] == [len(client.train_index)]
        with torch.no_grad():
            fresh = readout(client.train.batch(client.train_index), client.model["coarse"].prompt)
            assert torch.allclose(method.queries(client, client.train.batch(client.train_index)), fresh, atol=1e-5)
            assert torch.allclose(
                method.queries(client, client.train.batch(client.train_index[[4, 1]])), fresh[[4, 1]], atol=1e-5
            )


def test_training_lowers_both_losses(started):
    method, clients = started(epochs=25)
    client = clients[0]
    batch = client.train.batch(client.train_index)
    losses = []
    for _ in range(2):
        with torch.no_grad():
            losses.append([method.coarse_loss(client, batch).item(), method.fine_loss(client, batch).item()])
        answer(method, client, Stage(0, 0), method.broadcast(0, Stage(0, 0)))
    assert losses[1][0] < losses[0][0] - 0.05 and losses[1][1] < 0.8 * losses[0][1]


# ---- the test


def test_at_test_each_sample_gets_the_slot_with_the_nearest_key_among_the_classes_met(started):
    method, clients = started()
    client = clients[0]
    client.task = 1
    seen = client.partition.seen_classes(0, 1)
    unseen = next(label for label in range(CLASSES) if label not in seen)
    batch = client.test.batch(torch.arange(4))
    with torch.no_grad():
        query = method.readout(batch, client.model["coarse"].prompt)
        keys = client.model["fine"].keys
        keys.copy_(-query.mean(0))
        keys[unseen] = query[0]  # the best for sample 0, but nobody has trained it
        keys[seen[4]] = query[0] + 0.2 * torch.randn(D)
        keys[seen[2]] = -query[0]
        assert method.choose_slots(client, query[:1]).tolist() == [seen[4]]
        for position in range(4):
            keys[seen[position]] = 5 * query[position]
        found = method.choose_slots(client, query)
        alone = torch.cat([method.choose_slots(client, query[i : i + 1]) for i in range(4)])
        assert found.tolist() == alone.tolist() == list(seen[:4])
        expected = client.model["local_head"](
            method.readout(batch, client.model["coarse"].prompt, client.model["fine"](found))
        )
        assert torch.equal(method.logits(client, batch), expected)


def test_local_prompts_are_keys_and_values_of_their_blocks(started):
    method, clients = started()
    fine = clients[0].model["fine"]
    adapters = fine(torch.tensor([5, 2]))
    assert set(adapters) == {1, 2}
    for number, adapter in adapters.items():
        for sample, label in enumerate((5, 2)):
            assert torch.equal(adapter.keys[sample], fine.prompts[label, number - 1, 0])
            assert torch.equal(adapter.values[sample], fine.prompts[label, number - 1, 1])
    assert adapters[1].keys.shape == (2, 2, D)


# ---- the server


def distillation(method, prompt, prompts):
    """sum_{j > 0} sum_x ||F(x; p) - F(x; p_j)||^2, term by term."""
    images = method.server_images
    batch = images.batch(torch.arange(len(images.images)))
    return sum((method.tokens(batch, prompt) - method.tokens(batch, other)).square().sum() for other in prompts[1:])


def test_the_fused_prompt_moves_and_the_distillation_loss_falls(played, config):
    method, _, log = played(config(rounds=1, tasks=1))
    _, downloads, uploads = log[0]
    prompts = [payload["prompt"] for payload in uploads.values()]
    fused = method.server["prompt"]
    assert all(not torch.equal(fused, prompt) for prompt in (*prompts, downloads[0]["prompt"]))
    assert (fused - prompts[0]).abs().min() > 0 and torch.equal(log[1][1][2]["prompt"], fused)
    with torch.no_grad():
        assert distillation(method, fused, prompts) < distillation(method, prompts[0], prompts)
    assert torch.allclose(method.server["key"], sum(payload["key"] for payload in uploads.values()) / 3)


def test_more_steps_distil_further_than_the_average_starts(started):
    method, _ = started(mgp_surrogate_epochs=150, mgp_surrogate_lr=3e-2)
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.rand(LENGTH, D, generator=draw) * 2 - 1 for _ in range(3)]
    with torch.no_grad():
        before = distillation(method, prompts[0], prompts)
    fused = method.distil_prompts(prompts, torch_generator(0, "test"))
    with torch.no_grad():
        assert distillation(method, fused, prompts) < 0.6 * before
        assert distillation(method, fused, prompts) < distillation(method, sum(prompts) / 3, prompts)


def test_a_fusion_step_follows_the_gradient_of_the_whole_sum(started):
    """The mean of the teachers' tokens gives the gradient of the sum over them: Adam's first step."""
    method, _ = started(mgp_surrogate_epochs=1, batch=100)
    prompts = [torch.rand(LENGTH, D) * 2 - 1 for _ in range(3)]
    student = torch.nn.Parameter(prompts[0].clone())
    optimiser = torch.optim.Adam([student], lr=method.config.mgp_surrogate_lr)
    distillation(method, student, prompts).backward()
    optimiser.step()
    assert torch.allclose(method.distil_prompts(prompts, torch_generator(0, "test")), student.detach(), atol=1e-6)


def test_the_servers_images_are_tested_on_by_nobody(config, smoke):
    data, _, method, _ = prepare(config())
    images = method.server_images.images
    assert images.labels.tolist() == list(range(CLASSES)) and len(method.server_images.last_token) == CLASSES
    tested = {image.tobytes() for image in data.test.images}
    assert len(tested) == CLASSES and not tested & {image.tobytes() for image in images.images}
    assert prepare(smoke(method="fedavg_vit"))[2].server_images is None


@pytest.mark.parametrize(
    ("values", "words"), [({"mgp_blocks": 3}, "mgp_blocks = 3"), ({"mgp_block": 7}, "mgp_block = 7")]
)
def test_local_prompts_behind_the_last_block_are_one_line(config, values, words, one_line):
    with pytest.raises(LsclError) as caught:
        run(config(**values), quiet=True)
    one_line(caught, words, "tiny has 3 blocks", "at most 3")


@pytest.mark.parametrize(
    "values",
    [
        {"head": "mlp"},
        {"head_merge": "holders"},
        {"mgp_length": 1},
        {"mgp_blocks": 1, "mgp_block": 0},
        {"mgp_key": 0.0},
    ],
)
def test_a_run_goes_through_with_other_options(played, config, values):
    method, _, log = played(config(tasks=1, rounds=1, **values))
    assert [stage.name for stage, _, _ in log] == ["train", "finish"] and method.server["prompt"].isfinite().all()


# ---- as a whole


def test_a_run_stopped_after_every_round_ends_the_same(in_pieces, config):
    in_pieces(config(), 4)
