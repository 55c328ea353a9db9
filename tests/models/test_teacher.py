"""The frozen teacher: what is kept of it, and that a stopped call goes on."""

import builtins

import numpy as np
import pytest
import torch

from lscl.data.folder import image_folder
from lscl.errors import LsclError
from lscl.models import teacher
from lscl.models.mini import Stem


def test_the_kept_outputs_are_those_of_the_teacher_and_of_its_first_stages(tree, tmp_path):
    images = image_folder(tree / "test", 32).images[:3]
    maps, features = teacher.stem_maps(images, tmp_path / "work"), teacher.teacher_features(images, tmp_path / "work")
    network = teacher.teacher_network()
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(images))
        expected = network.forward_head(
            network.forward_features(teacher.enlarge(pixels, teacher.TEACHER_SIZE)), pre_logits=True
        )
        stem = Stem(network)(teacher.enlarge(pixels, 96))
    assert maps.shape == (3, 112, 6, 6) and features.shape == (3, 1280) and maps.dtype == features.dtype == np.float16
    assert np.allclose(features, expected, atol=0.02) and np.abs(features).max() > 0.5
    assert np.allclose(maps, stem, atol=0.02) and np.abs(maps).max() > 0.5


KINDS = {"stem": teacher.stem_maps, "teacher": teacher.teacher_features}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_call_is_taken_up_where_it_was(tree, tmp_path, monkeypatch, kind):
    images = image_folder(tree / "test", 32).images
    whole = np.array(KINDS[kind](images, tmp_path / "whole"))
    KINDS[kind](images[:16], tmp_path / "part")  # one chunk, as left by a stop
    stopped = np.zeros_like(whole)
    stopped[:16] = np.load(tmp_path / "part" / f"{kind}.npy")
    np.save(tmp_path / "part" / f"{kind}.npy", stopped)
    seen = []
    enlarge = teacher.enlarge
    monkeypatch.setattr(teacher, "enlarge", lambda pixels, size: seen.append(len(pixels)) or enlarge(pixels, size))
    assert np.array_equal(KINDS[kind](images, tmp_path / "part"), whole)
    assert seen == [12]  # only the second chunk


def test_a_finished_call_loads_no_network(tree, tmp_path, monkeypatch):
    images = image_folder(tree / "test", 32).images[:3]
    expected = np.array(teacher.teacher_features(images, tmp_path))
    monkeypatch.setattr(teacher, "teacher_network", None)
    assert np.array_equal(teacher.teacher_features(images, tmp_path), expected)


@pytest.mark.parametrize("damage", ["no number", "negative", "cut off", "other shape"])
def test_damaged_outputs_are_computed_again(tree, tmp_path, damage):
    images = image_folder(tree / "test", 32).images[:3]
    expected = np.array(teacher.teacher_features(images, tmp_path))
    if damage in ("no number", "negative"):
        (tmp_path / "teacher.done.txt").write_text({"no number": "[]", "negative": "-16"}[damage])
        np.save(tmp_path / "teacher.npy", np.zeros_like(expected))
    elif damage == "cut off":
        (tmp_path / "teacher.npy").write_bytes((tmp_path / "teacher.npy").read_bytes()[:200])
    else:
        np.save(tmp_path / "teacher.npy", np.zeros((2, 1280), np.float16))
    assert np.array_equal(teacher.teacher_features(images, tmp_path), expected)


def test_without_the_teachers_package_it_is_one_line(monkeypatch, one_line):
    real = builtins.__import__

    def missing(name, *arguments, **named):
        if name.startswith("efficientnet"):
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(LsclError) as caught:
        teacher.teacher_network()
    one_line(caught, "pip install 'fed-lscl[pretrain]'")
