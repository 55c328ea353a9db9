"""How the mini foundation model is made, on a handful of images and with the real teacher."""

import builtins
import hashlib
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lscl.data.folder import image_folder
from lscl.errors import LsclError
from lscl.models import pretrain
from lscl.models.mini import Stem, mini_vit
from lscl.models.vit import read_weights


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


def test_the_frozen_outputs_are_those_of_the_teacher_and_of_its_first_stages(tree, tmp_path):
    images = image_folder(tree / "test", 32).images[:3]
    maps, features = pretrain.frozen_outputs(images, tmp_path / "work")
    teacher = pretrain.teacher_network()
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(images))
        expected = teacher.forward_head(
            teacher.forward_features(pretrain.enlarge(pixels, pretrain.TEACHER_SIZE)), pre_logits=True
        )
        stem = Stem(teacher)(pretrain.enlarge(pixels, 96))
    assert maps.shape == (3, 112, 6, 6) and features.shape == (3, 1280) and maps.dtype == features.dtype == np.float16
    assert np.allclose(features, expected, atol=0.02) and np.abs(features).max() > 0.5
    assert np.allclose(maps, stem, atol=0.02) and np.abs(maps).max() > 0.5


def test_frozen_outputs_go_on_where_a_stopped_call_was(tree, tmp_path, monkeypatch):
    images = image_folder(tree / "test", 32).images
    whole = [np.array(part) for part in pretrain.frozen_outputs(images, tmp_path / "whole")]
    pretrain.frozen_outputs(images[:16], tmp_path / "part")  # one chunk, as left by a stop
    for name, full in zip(("stem", "teacher"), whole):
        stopped = np.zeros_like(full)
        stopped[:16] = np.load(tmp_path / "part" / f"{name}.npy")
        np.save(tmp_path / "part" / f"{name}.npy", stopped)
    seen = []
    enlarge = pretrain.enlarge
    monkeypatch.setattr(pretrain, "enlarge", lambda pixels, size: seen.append(len(pixels)) or enlarge(pixels, size))
    found = pretrain.frozen_outputs(images, tmp_path / "part")
    assert seen == [12, 12]  # only the second chunk, for stem and teacher
    assert all(np.array_equal(one, other) for one, other in zip(whole, found))


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
    stem = Stem(pretrain.teacher_network()).state_dict()
    assert all(
        torch.equal(value, stem[name].half().float()) for name, value in vit.patch_embed.backbone.state_dict().items()
    )
    assert f"wrote {out}" in capsys.readouterr().out


def test_more_epochs_lower_the_loss(distil):
    losses = [
        json.loads(distil(f"epochs{epochs}", epochs=epochs).with_suffix(".json").read_text())["loss"]
        for epochs in (1, 8)
    ]
    assert losses[1] < 0.95 * losses[0]


def test_a_stopped_training_goes_on_after_its_last_epoch_bit_for_bit(distil, own_cache, monkeypatch):
    whole = distil("one", seed=3).read_bytes()
    for state in own_cache.rglob("state-2-*-3.pt"):
        state.unlink()
    save, calls = torch.save, []

    def stop(*arguments):
        save(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        distil("two", seed=3)
    monkeypatch.setattr(torch, "save", save)
    assert distil("two", seed=3).read_bytes() == whole


def test_without_the_teachers_package_it_is_one_line(monkeypatch, one_line):
    real = builtins.__import__

    def missing(name, *arguments, **named):
        if name.startswith("efficientnet"):
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(LsclError) as caught:
        pretrain.teacher_network()
    one_line(caught, "pip install 'lscl[pretrain]'")


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


@pytest.mark.parametrize("damage", ["no number", "negative", "cut off", "other shape"])
def test_damaged_outputs_of_the_frozen_networks_are_computed_again(made, tmp_path, damage):
    made()
    (folder,) = (tmp_path / "cache" / "pretrain").iterdir()
    expected = np.load(folder / "teacher.npy")
    if damage in ("no number", "negative"):
        (folder / "done.txt").write_text({"no number": "[]", "negative": "-16"}[damage])
    elif damage == "cut off":
        (folder / "teacher.npy").write_bytes((folder / "teacher.npy").read_bytes()[:200])
    else:
        np.save(folder / "teacher.npy", np.zeros((3, 1280), np.float16))
    made()
    assert np.array_equal(np.load(folder / "teacher.npy"), expected)


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
