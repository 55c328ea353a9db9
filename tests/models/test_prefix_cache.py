"""Prefix activations on disk."""

import os

import numpy as np
import pytest
import torch

from lscl.errors import LsclError
from lscl.models.foundation import foundation
from lscl.models.prefix_cache import CHUNK, prefix_cache

CPU = torch.device("cpu")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prefix"


@pytest.fixture
def images(toy):
    return toy().train  # 84 images


def computed(*arguments):
    """The tokens, and how many images went through the ViT for them."""
    calls = []
    return prefix_cache(*arguments, CPU, lambda done, total: calls.append((done, total))), calls


def test_tokens_are_the_prefix_of_every_image(cache, images):
    frozen = foundation("tiny", 1)
    tokens, calls = computed(frozen, images)
    assert tokens.shape == (84, 17, 32) and tokens.dtype == np.float32
    starts = range(0, 84, CHUNK)
    assert calls == [(min(start + CHUNK, 84), 84) for start in starts]
    for part in (slice(start, start + CHUNK) for start in starts):
        assert np.array_equal(tokens[part], frozen.prefix(torch.from_numpy(images.images[part])).numpy())


def test_tokens_are_computed_once_then_mapped_from_disk(cache, images):
    first, _ = computed(foundation("tiny", 1), images)
    second, calls = computed(foundation("tiny", 1), images)
    assert calls == [] and np.array_equal(first, second)
    assert isinstance(second, np.memmap) and not second.flags.writeable


def test_model_block_normalisation_and_images_each_have_their_own_file(cache, images):
    other = foundation("tiny", 1)
    other.vit.cls_token += 1e-3
    variants = [
        (foundation("tiny", 1), images),
        (foundation("tiny", 2), images),
        (foundation("tiny", None), images),
        (foundation("tiny", 1, normalize=False), images),
        (other, images),
        (foundation("tiny", 1), images.subset(np.arange(84)[::-1])),
    ]
    assert all(computed(*variant)[1] for variant in variants)
    assert len(list(cache.iterdir())) == len(variants)


@pytest.mark.parametrize("damage", ["flipped", "cut off", "empty", "no description", "half a description"])
def test_damaged_tokens_are_computed_again(cache, images, damage):
    frozen = foundation("tiny", 1)
    expected = np.array(prefix_cache(frozen, images, CPU))
    (folder,) = cache.iterdir()
    if damage == "flipped":
        data = bytearray((folder / "tokens.npy").read_bytes())
        data[-1000] ^= 1
        (folder / "tokens.npy").write_bytes(data)
    elif damage == "no description":
        (folder / "about.json").unlink()
    else:
        name, size = {"cut off": ("tokens.npy", 5000), "empty": ("tokens.npy", 0), "half a description": ("about.json", 9)}[damage]
        os.truncate(folder / name, size)
    found, calls = computed(frozen, images)
    assert calls and np.array_equal(found, expected)
    assert computed(frozen, images)[1] == []


def test_a_stopped_computation_leaves_nothing_behind(cache, images):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prefix_cache(foundation("tiny", 1), images, CPU, stop)
    assert list(cache.iterdir()) == []
    assert computed(foundation("tiny", 1), images)[1][-1] == (84, 84)


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch, tmp_path, images, one_line):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "file"))
    with pytest.raises(LsclError) as caught:
        prefix_cache(foundation("tiny", 1), images, CPU)
    one_line(caught, "cannot write", tmp_path / "file", "set LSCL_CACHE")


def test_a_full_disk_is_one_line(cache, images, small_files, one_line):
    with small_files(10_000), pytest.raises(LsclError) as caught:
        prefix_cache(foundation("tiny", 1), images, CPU)
    one_line(caught, "cannot write", "free some space")
    assert list(cache.iterdir()) == []
