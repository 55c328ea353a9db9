"""TARGET: synthetic images at the end of a task, distillation of the old columns in the next."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lscl.config import experiment
from lscl.experiments import cost_model, records
from lscl.experiments.run import run, save_sheet, tile_images
from lscl.federation.loop import InProcess, federate
from lscl.federation.masking import masked_cross_entropy
from lscl.federation.method import Stage
from lscl.federation.metrics import average_so_far
from lscl.methods import target
from lscl.methods.parts.synthesis import Statistics, batchnorm_layers, norm_gap
from lscl.methods.target import TEMPERATURE, Synthesis, augmented_input, disagreement, model_logits, new_student
from lscl.models.cnn import to_cnn_input


@pytest.fixture
def second_task(second_task):
    """second_task(**values): method and first client in round 0 of the second task, in evaluation mode."""
    return partial(second_task, "target")


@pytest.fixture
def synthesis(played, smoke):
    """synthesis(**values): the inversion of a global model after its first task."""

    def make(**values):
        method, *_ = played(smoke(method="target", epochs=4, **values), 2)
        torch.manual_seed(0)
        draw = torch.Generator().manual_seed(0)
        return Synthesis(method.config, method.teacher(), method.known_classes(), draw, method.device)

    return make


# ---- client


def test_the_loss_is_ce_plus_25_times_the_distillation(second_task):
    method, client = second_task(target_kd=25.0)
    with torch.no_grad():
        client.model["head"].weight += 0.3 * torch.randn(
            client.model["head"].weight.shape, generator=torch.Generator().manual_seed(0)
        )
    batch = client.train.batch(client.train_index[:6])
    total = method.loss(client, batch).item()
    drawn = torch.randint(20, (23,), generator=client.rng("replay"))  # 6 x 500 / 128
    u = to_cnn_input(client.state["synthetic"][drawn])
    known = set(np.flatnonzero(client.state["known"].numpy()))
    columns = sorted(known - set(client.current.classes))
    assert columns
    z = model_logits(client.model, u).detach().double().numpy()[:, columns] / TEMPERATURE
    z_old = model_logits(client.scratch["old"], u).double().numpy()[:, columns] / TEMPERATURE
    softmax = lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)
    by_hand = -(softmax(z_old) * np.log(softmax(z))).sum(1).mean()
    task = masked_cross_entropy(method.logits(client, batch), batch.labels, client.classes).item()
    assert total == pytest.approx(task + 25 * by_hand, rel=1e-5)


def test_distillation_moves_old_columns_only_and_the_task_new_ones_only(second_task):
    method, client = second_task()
    head, old = client.model["head"], method.old_columns(client)
    inside = torch.zeros(14, dtype=torch.bool).index_fill_(0, old, True)
    with torch.no_grad():
        head.weight += 0.1 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad(method.distillation(client, 8), [head.weight])
    assert (slope[~inside] == 0).all() and (slope[inside] != 0).any(1).all()
    batch = client.train.batch(client.train_index[:6])
    (slope,) = torch.autograd.grad(
        masked_cross_entropy(method.logits(client, batch), batch.labels, client.classes), [head.weight]
    )
    assert (slope[inside] == 0).all()


def test_a_class_that_others_had_before_is_learnt_not_distilled(second_task):
    method, client = second_task()
    client.state["known"] = torch.ones(14, dtype=torch.bool)
    assert not set(method.old_columns(client).tolist()) & set(client.current.classes)
    client.state["known"] = method.holds(client)  # nothing old at all
    assert method.distillation(client, 4).item() == 0


def test_a_weight_of_zero_is_fedavg_up_to_batchnorm(played, smoke):
    """The synthetic images still pass through the CNN, so only its BatchNorm statistics may differ."""
    config = {"rounds": 1, "head_merge": "plain"}
    without, plain = (
        played(smoke(method=name, **config, **more), 2)[0]
        for name, more in (("target", {"target_kd": 0.0}), ("fedavg", {}))
    )
    for key, value in plain.server.items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(value, without.server[key])
    with_it = played(smoke(method="target", **config), 2)[0]
    assert any(
        not torch.equal(value, with_it.server[key]) for key, value in plain.server.items() if key.endswith("weight")
    )


# ---- server


def test_images_are_made_between_tasks_only_and_travel_once(federation, smoke):
    config = smoke(method="target", tasks=3, classes_per_task=2)
    method, clients = federation(config)
    for report in federate(method, InProcess(method, clients)):
        stage = Stage(report.task, report.round)
        made = "synthetic" in method.server
        assert made == (report.task > 0 or report.round == 1)
        assert "synthetic" not in method.broadcast(0, stage) or (stage.round == 0 and stage.task > 0)
        assert (method.sheet(report.task) is None) == (report.task == 2 or not made)
        if report.task > 0:
            assert all(client.state["synthetic"].shape == (20, 16, 16, 3) for client in clients)
    assert method.server["synthetic"].dtype == torch.uint8


@pytest.mark.parametrize("count", [5, 8, 20])
def test_as_many_images_as_asked_for(synthesis, count):
    assert synthesis(target_images=count).make_images().shape == (count, 16, 16, 3)


@pytest.mark.parametrize("meta", ["maml", "reptile", "plain"])
def test_every_way_to_update_the_generator_learns(synthesis, meta):
    one = synthesis(target_meta=meta, target_batch=32, target_latent=16, target_warmup=99, target_steps=5)
    before = {key: value.clone() for key, value in one.generator.named_parameters()}
    lowest = []
    for _ in range(12):
        images = one.make_batch(False)
        lowest.append(float(one.loss(images, torch.zeros(32, dtype=torch.int64), False)))
    assert all(
        not torch.equal(value, before[key]) for key, value in one.generator.named_parameters() if key.endswith("weight")
    )
    assert np.mean(lowest[-3:]) < 0.8 * lowest[0]


def test_the_batchnorm_term_falls_during_the_synthesis(synthesis):
    one = synthesis(target_batch=32, target_latent=16, target_steps=30, target_onehot=0.0, target_warmup=99)

    def gap(images):
        with Statistics(batchnorm_layers(one.teacher, "target", "tiny")) as statistics:
            model_logits(one.teacher, images)
        return float(norm_gap(statistics.batch(), statistics.running()))

    with torch.no_grad():
        start = (one.generator(torch.randn(32, 16)) - 0.5) / 0.25
    assert gap(one.make_batch(False)) < 0.6 * gap(start)


def test_the_wanted_classes_are_seen_more_clearly_step_by_step(synthesis, monkeypatch):
    one = synthesis(
        target_batch=32, target_latent=16, target_steps=60, target_bn=0.0, target_onehot=1.0, target_warmup=99
    )
    losses, loss = [], one.loss
    monkeypatch.setattr(one, "loss", lambda *given: (found := loss(*given), losses.append(found.item()))[0])
    one.make_batch(False)
    assert len(losses) == 60 and np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_the_images_of_the_step_with_the_lowest_loss_are_kept(synthesis, monkeypatch):
    one = synthesis(target_steps=4)
    seen, values = [], iter([3.0, 1.0, 2.0, 5.0])

    def loss(images, labels, adversarial):
        seen.append(images.detach().clone())
        one.mixed = []
        return images.mean() - images.mean().detach() + next(values)

    monkeypatch.setattr(one, "loss", loss)
    assert torch.equal(one.make_batch(False), seen[1]) and not torch.equal(seen[1], seen[3])


def test_statistics_are_carried_from_round_to_round(synthesis):
    one = synthesis()
    one.make_batch(False)
    first = one.carried
    one.make_batch(False)
    batch = one.statistics.batch()
    for (mean, variance), (mean_1, variance_1), (mean_2, variance_2) in zip(one.carried, first, batch):
        assert torch.allclose(mean, 0.9 * mean_1 + 0.1 * mean_2, atol=1e-6)
        assert torch.allclose(variance, 0.9 * variance_1 + 0.1 * variance_2, atol=1e-6)


def test_the_adversarial_term_counts_only_where_both_agree():
    teacher = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    p, q = teacher[0].softmax(0), student[0].softmax(0)
    assert disagreement(student, teacher).item() == pytest.approx(-float((p * (p / q).log()).sum()) / 2, rel=1e-5)
    assert disagreement(teacher, teacher).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(("warmup", "opposed", "taught"), [(0, range(1, 6), range(1, 5)), (3, range(3, 6), [4])])
def test_the_adversarial_rounds_begin_at_the_warmup_and_the_students_training_behind_the_next(
    synthesis, monkeypatch, warmup, opposed, taught
):
    """As in the official code: its first adversarial rounds have a student that was never trained."""
    one = synthesis(target_images=40, target_batch=8, target_warmup=warmup)
    calls, teach, one_round = [], one.teach_student, one.make_batch
    monkeypatch.setattr(one, "teach_student", lambda images: (calls.append(("teach", len(images))), teach(images)))
    monkeypatch.setattr(
        one, "make_batch", lambda adversarial: (calls.append(("round", adversarial)), one_round(adversarial))[1]
    )
    one.make_images()
    expected = []
    for number in range(1, 6):
        expected += [("round", number in opposed)] + ([("teach", 8 * number)] if number in taught else [])
    assert calls == expected


def test_the_student_is_the_teacher_with_weights_drawn_anew(synthesis):
    one = synthesis()
    teacher, student = one.teacher.state_dict(), one.student.state_dict()
    for name, value in student.items():
        assert torch.equal(value, teacher[name]) == ("running" in name or "num_batches" in name), name
    norm = one.student["cnn"].cnn.layers[4]
    assert norm.bias.abs().max() == 0 and 0 < (norm.weight - 1).std() < 0.05
    wide = new_student(nn.Sequential(nn.Conv2d(64, 64, 3), nn.Linear(100, 100)))
    assert wide[0].weight.std().item() == pytest.approx((2 / (2 * 9 * 64)) ** 0.5, rel=0.05)
    assert wide[1].weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert wide[1].bias.std().item() == pytest.approx(1, rel=0.3)
    assert all(p.requires_grad for p in one.student.parameters())


def test_the_student_has_the_official_schedule(synthesis):
    one = synthesis(target_student_steps=1)
    group = one.teaching.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.2, 0.9, 1e-4)
    rates = []
    for _ in range(3):
        one.teach_student(torch.zeros(4, 16, 16, 3, dtype=torch.uint8))
        rates.append(group["lr"])
    cosine = [2e-4 + (0.2 - 2e-4) * (1 + math.cos(math.pi * k / 200)) / 2 for k in (1, 2, 3)]
    assert rates == pytest.approx(cosine, rel=1e-6)


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
def test_the_teacher_never_sees_a_border_that_real_images_do_not_have(synthesis, monkeypatch, augment):
    """White images: what is not white came in at the border, black as in crops of real ones, or nothing at all."""
    one = synthesis(augment=augment)
    seen, forward = [], target.model_logits
    monkeypatch.setattr(target, "model_logits", lambda model, images: (seen.append(images), forward(model, images))[1])
    one.loss(torch.full((8, 3, 16, 16), 2.0), torch.zeros(8, dtype=torch.int64), False)
    assert set(seen[0].unique().tolist()) == ({2.0} if augment == "none" else {-2.0, 2.0})


@pytest.mark.parametrize(("augment", "same"), [("none", True), ("crop_flip", False)])
def test_synthetic_images_are_augmented_in_training_as_real_ones_are(augment, same):
    pixels = torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = augmented_input(pixels, augment, torch.Generator().manual_seed(0))
    assert found.shape == (6, 3, 16, 16) and torch.equal(found, to_cnn_input(pixels)) == same


@pytest.mark.parametrize(("ratio", "size"), [(500 / 128, 31), (1.0, 8), (0.01, 1)])
def test_the_official_number_of_synthetic_images_stands_beside_the_real_ones(second_task, monkeypatch, ratio, size):
    method, client = second_task(target_replay=ratio)
    sizes, plain = [], method.distillation
    monkeypatch.setattr(method, "distillation", lambda client, size: (sizes.append(size), plain(client, size))[1])
    method.loss(client, client.train.batch(client.train_index[:8]))
    assert sizes == [size]


@pytest.mark.parametrize("profile", ["mini", "full", "paper"])
def test_a_client_has_four_synthetic_images_for_each_real_one_of_a_task(profile):
    config = experiment(method="target", profile=profile, dataset="cifar100")
    real = cost_model.Counts.of(config).epoch / config.clients / config.tasks
    assert config.target_images / real == pytest.approx(4, rel=0.5)
    rounds = config.target_images / config.target_batch
    assert config.target_warmup / rounds == pytest.approx(20 / 32, abs=0.05)


def test_the_student_learns_from_the_teacher(synthesis):
    one = synthesis(target_student_steps=40, target_batch=16)
    pixels = torch.randint(0, 256, (32, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    teacher = model_logits(one.teacher, to_cnn_input(pixels))[:, one.classes]
    apart = lambda: (
        (model_logits(one.student.eval(), to_cnn_input(pixels))[:, one.classes] - teacher).square().mean().item()
    )
    before = apart()
    one.teach_student(pixels)
    assert apart() < 0.8 * before


def test_only_classes_that_somebody_has_had_are_synthesised(played, smoke):
    method, clients, _ = played(smoke(method="target"), 2)
    seen = {label for client in clients for label in client.partition.seen_classes(client.id, 0)}
    assert set(method.known_classes().tolist()) == seen != set(range(14))


def test_the_teacher_is_left_as_it_was(synthesis):
    one = synthesis(target_warmup=0)
    before = {key: value.clone() for key, value in one.teacher.state_dict().items()}
    one.make_images()
    assert all(torch.equal(value, before[key]) for key, value in one.teacher.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in one.teacher.modules() if isinstance(layer, nn.BatchNorm2d))


# ---- sheets


def test_a_sheet_has_every_image_in_rows_of_a_square():
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(4, 1).repeat(4, 2).repeat(3, 3) + 1
    found = tile_images(images)
    assert found.shape == (2 * 5 - 1, 3 * 5 - 1, 3)
    assert [found[5 * (i // 3) + 1, 5 * (i % 3) + 1, 0] for i in range(6)] == [1, 2, 3, 4, 5, 0]
    assert (found[4] == 0).all() and (found[:, 4] == 0).all()


def test_a_run_leaves_a_sheet_of_its_images_with_the_accuracy_of_the_model_behind_them(smoke, places, capsys):
    config = smoke(method="target")
    record = run(config)
    (path,) = (places / "results" / "runs" / "smoke" / "sheets").iterdir()
    assert path.name == f"{config.name}--task1.png"
    assert np.asarray(Image.open(path)).shape == (4 * 17 - 1, 5 * 17 - 1, 3)
    own, seen = (average_so_far(records.accuracy(record, mask))[0] for mask in ("task", "seen"))
    told = json.loads(Image.open(path).text["accuracy"])
    assert (told["task"], told["seen"]) == pytest.approx((own, seen), abs=0.01)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if path.name in line]
    assert f"from a model of accuracy {own:.1f} % (class-incremental {seen:.1f} %)" in line


def test_a_method_without_images_leaves_no_sheet(federation, smoke, places):
    config = smoke(method="fedavg")
    assert save_sheet(config, federation(config)[0], 0) is None and not places.exists()
