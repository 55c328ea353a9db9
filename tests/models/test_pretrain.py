"""Making the mini foundation model, on a handful of images."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lscl.errors import LsclError
from lscl.models import pretrain as module
from lscl.models.mini import mini_vit
from lscl.models.pretrain import pretrain


@pytest.fixture
def made(tree, tmp_path, monkeypatch):
    """made(**values): pre-train on the 28 test images of `tree` with a cache of its own; -> the weight file."""
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "cache"))

    def make(**values):
        out = tmp_path / "mini.safetensors"
        pretrain(tree / "test", **{"out": out, "epochs": 1, "batch": 14, "threads": 1, **values})
        return out

    return make


def test_weights_are_those_of_the_mini_vit_and_a_finished_call_repeats(made, tmp_path):
    first = load_file(made())
    assert {name: value.shape for name, value in first.items()} == {name: value.shape for name, value in mini_vit().state_dict().items()}
    about = json.loads((tmp_path / "mini.json").read_text())
    assert about["images"] == 28 and 0 < about["loss"] < 2
    again = load_file(made())
    assert all(torch.equal(first[name], again[name]) for name in first) and json.loads((tmp_path / "mini.json").read_text()) == about


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
    monkeypatch.setattr(module.F, "cosine_similarity", lambda a, b, dim: a.sum(1) * math.nan)
    with pytest.raises(LsclError) as caught:
        made()
    one_line(caught, "the loss is not finite", "lower lr")
    assert not (tmp_path / "mini.safetensors").exists()
