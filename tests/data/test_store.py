"""Decoded images on disk: decoded once, checked at every opening, rebuilt when damaged, whole or not there at all."""

import json
import os

import numpy as np
import pytest

from lscl.data.store import ImageSet, cached, canonical, digest_of, new_folder, write_atomic
from lscl.errors import LsclError


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def images(toy):
    return toy(classes=3).train


def test_the_digest_knows_pixels_labels_and_class_names(images):
    pixels, labels = images.images.copy(), images.labels.copy()
    pixels[7, 3, 2, 1] ^= 1
    labels[0] = 2
    changed = [
        ImageSet(pixels, images.labels, images.classes),
        ImageSet(images.images, labels, images.classes),
        ImageSet(images.images, images.labels, ("a", "b", "c")),
        images.subset(np.arange(len(images))[::-1]),
    ]
    assert len({images.digest, *(one.digest for one in changed)}) == 5
    assert ImageSet(images.images.copy(), images.labels.copy(), images.classes).digest == images.digest


def test_arrays_of_other_shape_or_type_have_another_digest():
    numbers = np.arange(6, dtype=np.int32)
    assert len({digest_of(numbers), digest_of(numbers.reshape(2, 3)), digest_of(numbers.view(np.uint32)), digest_of(numbers[::-1])}) == 4
    assert digest_of(numbers.reshape(2, 3).T) == digest_of(np.ascontiguousarray(numbers.reshape(2, 3).T))


def test_the_digest_of_a_data_set_knows_both_splits(toy):
    data, other = toy(classes=3), toy(classes=3, test=1)
    assert data.train.digest == other.train.digest and data.digest != other.digest
    assert len(data.digest) == 16


def test_a_subset_is_in_the_order_asked_for(images):
    part = images.subset(np.array([9, 0, 4]))
    assert part.labels.tolist() == [1, 0, 0] and part.classes == images.classes and len(part) == 3
    assert np.array_equal(part.images[0], images.images[9])


def test_the_canonical_order_does_not_depend_on_the_source(images):
    ordered = canonical(images)
    shuffled = canonical(images.subset(np.random.default_rng(1).permutation(len(images))))
    assert shuffled.digest == ordered.digest
    assert (np.diff(ordered.labels) >= 0).all()
    assert sorted(map(digest_of, ordered.images)) == sorted(map(digest_of, images.images))


def test_images_are_decoded_once_and_memory_mapped(cache, images):
    calls = []

    def decode():
        calls.append(1)
        return images

    first, second = cached("toy", decode), cached("toy", decode)
    assert len(calls) == 1
    for found in (first, second):
        assert isinstance(found.images, np.memmap) and not found.images.flags.writeable
        assert found.digest == images.digest and found.classes == images.classes


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a pixel": lambda folder: flip(folder / "images.npy", -100),
    "a label": lambda folder: flip(folder / "labels.npy", -8),
    "the header": lambda folder: flip(folder / "images.npy", 3),
    "cut off": lambda folder: os.truncate(folder / "images.npy", 500),
    "empty": lambda folder: os.truncate(folder / "images.npy", 0),
    "empty labels": lambda folder: os.truncate(folder / "labels.npy", 0),
    "no labels": lambda folder: (folder / "labels.npy").unlink(),
    "no description": lambda folder: (folder / "about.json").unlink(),
    "half a description": lambda folder: os.truncate(folder / "about.json", 10),
    "another description": lambda folder: (folder / "about.json").write_text("{}", encoding="utf-8"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_rebuilt(cache, images, damage):
    cached("toy", lambda: images)
    DAMAGE[damage](cache / "toy")
    calls = []
    found = cached("toy", lambda: calls.append(1) or images)
    assert calls == [1] and found.digest == images.digest
    assert cached("toy", None).digest == images.digest


def test_a_stopped_decoder_leaves_nothing_behind(cache, images):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("toy", stopped)
    assert not cache.exists() or not list(cache.iterdir())
    assert cached("toy", lambda: images).digest == images.digest


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch, tmp_path, images, one_line):
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "file"))
    with pytest.raises(LsclError) as caught:
        cached("toy", lambda: images)
    one_line(caught, "cannot write", tmp_path / "file" / "images" / "toy", "set LSCL_CACHE")


def test_a_full_disk_is_one_line_and_leaves_nothing(cache, images, small_files, one_line):
    with small_files(1000), pytest.raises(LsclError) as caught:
        cached("toy", lambda: images)
    one_line(caught, "cannot write", cache / "toy", "free some space")
    assert not list(cache.iterdir())


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "made"
    with new_folder(target) as new:
        (new / "a").write_text("1", encoding="utf-8")
        assert not target.exists()
    with pytest.raises(ZeroDivisionError), new_folder(target) as new:
        (new / "a").write_text("2", encoding="utf-8")
        1 / len(list(target.glob("b")))
    assert [path.name for path in tmp_path.iterdir()] == ["made"] and (target / "a").read_text(encoding="utf-8") == "1"
    with new_folder(target) as new:
        (new / "b").write_text("3", encoding="utf-8")
    assert [path.name for path in target.iterdir()] == ["b"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, small_files, one_line):
    path = tmp_path / "deep" / "record.json"
    write_atomic(path, b"old")
    with small_files(1000), pytest.raises(LsclError) as caught:
        write_atomic(path, bytes(5000))
    one_line(caught, "cannot write", path)
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["record.json"]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(path.parent) == ["record.json"]


def test_a_folder_in_the_way_of_a_file_is_one_line(tmp_path, one_line):
    (tmp_path / "record.json").mkdir()
    with pytest.raises(LsclError) as caught:
        write_atomic(tmp_path / "record.json", b"x")
    one_line(caught, "cannot write", tmp_path / "record.json")
    assert os.listdir(tmp_path / "record.json") == [] and os.listdir(tmp_path) == ["record.json"]


def test_class_names_survive_the_cache(cache, images):
    named = ImageSet(images.images, images.labels, ("U+2654 ♔", 'a "b"', "c\\d"))
    assert cached("toy", lambda: named).classes == named.classes
    assert json.loads((cache / "toy" / "about.json").read_text(encoding="utf-8"))["digest"] == named.digest
