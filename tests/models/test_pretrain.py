"""How the shipped networks are made, on a handful of images and with the real teacher."""

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lscl.data.folder import image_folder
from lscl.errors import LsclError
from lscl.models import pretrain
from lscl.models.cnn import new_cnn, to_cnn_input
from lscl.models.mini import Stem, mini_vit
from lscl.models.teacher import teacher_features, teacher_network
from lscl.models.vit import read_weights
from lscl.seeding import seeded, torch_generator


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """What the frozen networks give for the images, computed once for all tests here."""
    return tmp_path_factory.mktemp("pretrain")


@pytest.fixture
def distil(own_cache, tree, monkeypatch, tmp_path):
    """distil(name, **values): two epochs of three steps on 28 images; -> the weights' path."""

    def make(name, **values):
        monkeypatch.setenv("LSCL_CACHE", str(own_cache))
        out = tmp_path / f"{name}.safetensors"
        pretrain.pretrain(tree / "test", out, **{"epochs": 2, "batch": 8, "threads": 1, **values})
        return out

    return make


@pytest.fixture
def made(tree, tmp_path, monkeypatch):
    """made(**values): pre-train on the 28 test images of `tree` with a cache of its own; -> the weight file."""
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "cache"))

    def make(**values):
        out = tmp_path / "mini.safetensors"
        pretrain.pretrain(tree / "test", **{"out": out, "epochs": 1, "batch": 14, "threads": 1, **values})
        return out

    return make


def test_the_written_weights_are_a_whole_mini_vit_with_the_teachers_stem(distil, capsys):
    out = distil("whole")
    vit = mini_vit()
    vit.load_state_dict({name: value.float() for name, value in read_weights(out).items()})
    about = json.loads(out.with_suffix(".json").read_text())
    assert {key: about[key] for key in ("images", "epochs", "batch", "lr", "seed")} == {
        "images": 28,
        "epochs": 2,
        "batch": 8,
        "lr": 1e-3,
        "seed": 0,
    }
    assert about["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest() and 0 < about["loss"] < 2
    stem = Stem(teacher_network()).state_dict()
    assert all(
        torch.equal(value, stem[name].half().float()) for name, value in vit.patch_embed.backbone.state_dict().items()
    )
    assert f"wrote {out}" in capsys.readouterr().out


@pytest.mark.parametrize("network", pretrain.NETWORKS)
def test_more_epochs_lower_the_loss(distil, network):
    losses = [
        json.loads(distil(f"epochs{epochs}", epochs=epochs, network=network).with_suffix(".json").read_text())["loss"]
        for epochs in (1, 8)
    ]
    assert losses[1] < 0.95 * losses[0]


@pytest.mark.parametrize("network", pretrain.NETWORKS)
def test_a_stopped_training_goes_on_after_its_last_epoch_bit_for_bit(distil, own_cache, monkeypatch, network):
    whole = distil("one", seed=3, network=network).read_bytes()
    for state in own_cache.rglob(f"state-{network}-2-*-3.pt"):
        state.unlink()
    save, calls = torch.save, []

    def stop(*arguments):
        save(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        distil("two", seed=3, network=network)
    monkeypatch.setattr(torch, "save", save)
    assert distil("two", seed=3, network=network).read_bytes() == whole


def test_weights_are_written_in_half_precision_with_their_digest(tmp_path):
    pretrain.write_weights(tmp_path / "w.safetensors", {"a": torch.tensor([1 / 3, 2.0])}, {"images": 5})
    about = json.loads((tmp_path / "w.json").read_text())
    assert about == {"sha256": hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest(), "images": 5}
    found = read_weights(tmp_path / "w.safetensors")
    assert found["a"].dtype == torch.float16 and torch.equal(found["a"], torch.tensor([1 / 3, 2.0]).half())


def test_weights_are_those_of_the_mini_vit_and_a_finished_call_repeats(made, tmp_path):
    first = load_file(made())
    assert {name: value.shape for name, value in first.items()} == {
        name: value.shape for name, value in mini_vit().state_dict().items()
    }
    about = json.loads((tmp_path / "mini.json").read_text())
    assert about["images"] == 28 and 0 < about["loss"] < 2
    again = load_file(made())
    assert (
        all(torch.equal(first[name], again[name]) for name in first)
        and json.loads((tmp_path / "mini.json").read_text()) == about
    )


def test_the_mini_vit_starts_from_its_named_draws_and_sees_the_images_in_their_order(tree, tmp_path, monkeypatch):
    """The shipped file was made so: these draws must not change."""
    images = image_folder(tree / "test", 32).images
    student = pretrain.mini_vit_student(images, tmp_path, 5)
    stem = Stem(teacher_network())
    with seeded(5, "mini-vit"):
        vit, to_teacher = mini_vit(stem), torch.nn.Linear(192, 1280)
    expected = {f"vit.{name}": value for name, value in vit.state_dict().items() if "backbone" not in name}
    expected |= {f"to_teacher.{name}": value for name, value in to_teacher.state_dict().items()}
    found = student.modules.state_dict()
    assert list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in found)

    seen = []
    watched = replace(student, guess=lambda index, flips: seen.append(index.tolist()) or student.guess(index, flips))
    features = teacher_features(images, tmp_path)
    pretrain.distil(watched, features, tmp_path / "state.pt", epochs=2, batch=8, lr=1e-3, seed=5)
    orders = [torch.randperm(28, generator=torch_generator(5, "pretrain", epoch)).tolist() for epoch in (0, 1)]
    assert seen == [sorted(order[i : i + 8]) for order in orders for i in (0, 8, 16)]


def test_the_small_cnn_sees_what_it_sees_in_a_run_and_half_of_the_images_mirrored(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    student, index = pretrain.small_student(images, tmp_path, 5), np.arange(3, 39)
    student.modules.eval()
    with torch.no_grad():
        found = student.guess(index, torch_generator(5, "pretrain-flips", 0))
        x, extractor = to_cnn_input(torch.from_numpy(images[index])), student.modules["cnn"]
        plain, mirrored = (student.modules["to_teacher"](extractor(one)) for one in (x, x.flip(3)))
    drawn = torch.rand(36, generator=torch_generator(5, "pretrain-flips", 0)) < 0.5
    assert 5 < drawn.sum() < 31 and not torch.allclose(plain, mirrored, atol=1e-3)
    assert torch.allclose(found, torch.where(drawn[:, None], mirrored, plain), atol=1e-5)
    assert extractor.norm and extractor(x).shape == (36, 128)


def test_the_flips_of_every_epoch_are_drawn_anew_by_name(tree, tmp_path):
    images = image_folder(tree / "test", 32).images
    student, drawn = pretrain.small_student(images, tmp_path, 5), []
    keep = lambda index, flips: drawn.append(flips.get_state()) or student.guess(index, flips)
    features = np.random.default_rng(0).standard_normal((28, 1280)).astype(np.float16)
    pretrain.distil(replace(student, guess=keep), features, tmp_path / "s.pt", epochs=2, batch=14, lr=1e-3, seed=5)
    starts = [torch_generator(5, "pretrain-flips", epoch).get_state() for epoch in (0, 1)]
    assert torch.equal(drawn[0], starts[0]) and torch.equal(drawn[2], starts[1]) and not torch.equal(*starts)


def test_the_weights_of_the_small_cnn_are_the_cnn_alone_with_its_batchnorm_statistics(distil):
    out = distil("small", network="small")
    found, cnn = read_weights(out), new_cnn("small", 32, 128, norm=True).cnn
    cnn.load_state_dict(found)
    counts = {value.item() for name, value in found.items() if name.endswith("num_batches_tracked")}
    assert counts == {6} and out.stat().st_size < 10**6  # two epochs of three steps
    means = [value for name, value in found.items() if name.endswith("running_mean")]
    assert len(means) == 4 and all(value.dtype == torch.float16 and value.abs().sum() > 0 for value in means)
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["network"] == "small" and 0 < about["loss"] < 2


def test_an_unknown_network_is_one_line(made, one_line):
    with pytest.raises(LsclError) as caught:
        made(network="smal")
    one_line(caught, "unknown network 'smal'", "'small'", "mini_vit")


def test_the_name_of_the_file_follows_the_network(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(out=None, network="small")
    assert (tmp_path / "small_cnn.safetensors").exists() and (tmp_path / "small_cnn.json").exists()


def test_whole_numbers_are_written_as_they_are(tmp_path):
    pretrain.write_weights(tmp_path / "w.safetensors", {"steps": torch.tensor(70_000)}, {})
    assert read_weights(tmp_path / "w.safetensors")["steps"] == 70_000  # beyond what half precision can hold


def test_a_damaged_state_is_one_line(made, tmp_path, one_line):
    made()
    (state,) = (tmp_path / "cache" / "pretrain").glob("*/state-*.pt")
    state.write_bytes(b"[]")
    with pytest.raises(LsclError) as caught:
        made()
    one_line(caught, state, "remove it")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("lr", value) for value in (math.inf, -math.inf, math.nan, 0.0, -1.0, 1e38, 1e-320)],
        *[(name, value) for name in ("epochs", "batch", "threads") for value in (0, -1, 10**24)],
        ("seed", -1),
        ("seed", 2**31),
    ],
)
def test_a_value_out_of_range_is_one_line(made, name, value, one_line):
    with pytest.raises(LsclError) as caught:
        made(**{name: value})
    one_line(caught, f"{name} = {value}", "allowed are")


def test_a_batch_larger_than_the_images_and_another_kind_of_file_are_one_line(made, tmp_path, one_line):
    with pytest.raises(LsclError) as caught:
        made(batch=29)
    one_line(caught, "batch = 29", "holds 28 images")
    with pytest.raises(LsclError) as caught:
        made(out=tmp_path / "weights.json")
    one_line(caught, "weights.json", ".safetensors")


def test_a_loss_that_is_not_finite_ends_it_and_writes_nothing(made, tmp_path, monkeypatch, one_line):
    monkeypatch.setattr(pretrain.F, "cosine_similarity", lambda a, b, dim: a.sum(1) * math.nan)
    with pytest.raises(LsclError) as caught:
        made()
    one_line(caught, "the loss is not finite", "lower lr")
    assert not (tmp_path / "mini.safetensors").exists()
