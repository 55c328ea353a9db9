"""Decoded images on disk: decoded once, checked at every opening, rebuilt when damaged, whole or not there at all."""

import errno
import io
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from lscl.data.store import (
    ImageSet,
    allocated_memmap,
    bytes_below,
    cache_images,
    cache_splits,
    damaged_packs,
    digest_of,
    new_folder,
    sort_canonically,
    write_atomic,
)
from lscl.errors import LsclError


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def left(cache):
    """What lies in the cache, the empty files that processes lock left out."""
    return [path.name for path in cache.iterdir() if path.suffix != ".building"]


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
    assert (
        len(
            {
                digest_of(numbers),
                digest_of(numbers.reshape(2, 3)),
                digest_of(numbers.view(np.uint32)),
                digest_of(numbers[::-1]),
            }
        )
        == 4
    )
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
    ordered = sort_canonically(images)
    shuffled = sort_canonically(images.subset(np.random.default_rng(1).permutation(len(images))))
    assert shuffled.digest == ordered.digest
    assert (np.diff(ordered.labels) >= 0).all()
    assert sorted(map(digest_of, ordered.images)) == sorted(map(digest_of, images.images))


def test_images_are_decoded_once_and_memory_mapped(cache, images):
    calls = []

    def decode():
        calls.append(1)
        return images

    first, second = cache_images("toy", decode), cache_images("toy", decode)
    assert len(calls) == 1
    for found in (first, second):
        assert isinstance(found.images, np.memmap) and not found.images.flags.writeable
        assert found.digest == images.digest and found.classes == images.classes


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def huge():
    """The header of an array of 10^15 numbers, without them."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (10**15,)})
    return file.getvalue()


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
    "another description": lambda folder: (folder / "about.json").write_text("{}"),
    **{
        f"description {text[:20]}": lambda folder, text=text: (folder / "about.json").write_text(text)
        for text in (
            "[]",
            "null",
            "7",
            '"classes"',
            '{"classes": 3, "digest": "x"}',
            "[" * 100_000,
            '{"classes": [], "digest": []}',
            "",
        )
    },
    "a description that is no text": lambda folder: (folder / "about.json").write_bytes(b"\xff\xfe\x00"),
    "notes that are none": lambda folder: (folder / "about.json").write_text(
        json.dumps({**json.loads((folder / "about.json").read_text()), "notes": 3})
    ),
    "labels of a huge shape": lambda folder: (folder / "labels.npy").write_bytes(huge()),
    "images of a huge shape": lambda folder: (folder / "images.npy").write_bytes(huge()),
    "an archive": lambda folder: (
        np.savez(folder / "a.npz", a=np.zeros(3)) or (folder / "a.npz").replace(folder / "images.npy")
    ),
    "objects": lambda folder: np.save(folder / "labels.npy", np.array([{}, []], object)),
    "a folder": lambda folder: (folder / "about.json").unlink() or (folder / "about.json").mkdir(),
    "a FIFO": lambda folder: (folder / "about.json").unlink() or os.mkfifo(folder / "about.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_rebuilt(cache, images, damage):
    cache_images("toy", lambda: images)
    DAMAGE[damage](cache / "toy")
    calls = []
    found = cache_images("toy", lambda: calls.append(1) or images)
    assert calls == [1] and found.digest == images.digest
    assert cache_images("toy", None).digest == images.digest


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_of_two_splits_is_rebuilt(cache, images, damage):
    keys, calls = [str(i) for i in range(len(images))], []

    def read():
        calls.append(1)
        return zip(keys, images.images)

    def both():
        return cache_splits("two", keys, images.labels, images.classes, np.arange(len(images)) % 2 == 0, 16, read)

    digests = [part.digest for part in both()]
    DAMAGE[damage](cache / "two" / "test")
    assert [part.digest for part in both()] == digests and len(calls) == 2
    assert [part.digest for part in both()] == digests and len(calls) == 2


def test_a_stopped_decoder_leaves_nothing_behind(cache, images):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_images("toy", stopped)
    assert left(cache) == []
    assert cache_images("toy", lambda: images).digest == images.digest


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch, tmp_path, images, one_line):
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "file"))
    with pytest.raises(LsclError) as caught:
        cache_images("toy", lambda: images)
    one_line(caught, "cannot write", tmp_path / "file" / "images" / "toy", "set LSCL_CACHE")


def test_a_full_disk_is_one_line_and_leaves_nothing(cache, images, small_files, one_line):
    with small_files(1000), pytest.raises(LsclError) as caught:
        cache_images("toy", lambda: images)
    one_line(caught, "cannot write", cache / "toy", "free some space")
    assert left(cache) == []


def test_only_a_full_cache_disk_advises_another_cache(cache, tmp_path, small_files, one_line):
    """The state of a run and its record lie with the results; moving the cache does not help them."""
    with small_files(1000), pytest.raises(LsclError) as caught, new_folder(tmp_path / "results" / "round-00001") as new:
        (new / "client0").write_bytes(bytes(5000))
    one_line(caught, "cannot write", tmp_path / "results" / "round-00001", "the same command goes on")
    assert "LSCL_CACHE" not in str(caught.value)
    with small_files(1000), pytest.raises(LsclError) as caught:
        write_atomic(tmp_path / "results" / "record.json", bytes(5000))
    one_line(caught, "cannot write", "the same command goes on")
    assert "LSCL_CACHE" not in str(caught.value)


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


@pytest.fixture
def vanishing(monkeypatch):
    """vanishing(*paths): a walk lists them, and they go before it looks at them."""
    walk = os.walk

    def make(*gone):
        def walked(folder):
            for here, *found in walk(folder):
                for path in gone if Path(here) == gone[0].parent else ():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                yield here, *found

        monkeypatch.setattr(os, "walk", walked)

    return make


def test_what_goes_while_a_folder_is_measured_does_not_count(tmp_path, vanishing):
    for name, size in (("kept/a", 5), ("kept/b", 7), ("file", 11), ("folder/c", 13), ("empty", 0)):
        (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / name).write_bytes(bytes(size))
    assert bytes_below(tmp_path / "cache") == 36 and bytes_below(tmp_path / "none") == 0
    vanishing(tmp_path / "cache" / "file", tmp_path / "cache" / "folder")
    assert bytes_below(tmp_path / "cache") == 12
    assert not (tmp_path / "cache" / "file").exists() and not (tmp_path / "cache" / "folder").exists()


def test_a_new_folder_that_gets_its_name_meanwhile_does_not_stop_the_check_of_all_image_sets(cache, images, vanishing):
    cache_images("fine", lambda: images)
    (folder,) = [path for path in cache.iterdir() if path.is_dir()]
    shutil.copytree(folder, cache / ".other.new-1")
    vanishing(cache / ".other.new-1")
    assert list(damaged_packs()) == [(folder, False)] and not (cache / ".other.new-1").exists()


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
    assert cache_images("toy", lambda: named).classes == named.classes
    assert json.loads((cache / "toy" / "about.json").read_text())["digest"] == named.digest


# ---- files that are written through a memory map


def refused(code):
    """A posix_fallocate that always fails with `code`."""

    def call(*_):
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", [None, errno.EOPNOTSUPP, errno.EINVAL], ids=str)
def test_a_mapped_file_takes_all_of_its_space_at_once(tmp_path, monkeypatch, code):
    """So that a full disk is noticed by the allocation and not by a Bus error in the middle of writing."""
    if code is not None:  # what a file system without such a call answers
        monkeypatch.setattr(os, "posix_fallocate", refused(code))
    mapped = allocated_memmap(tmp_path / "x.npy", np.int16, (1000, 300))
    assert (tmp_path / "x.npy").stat().st_blocks * 512 >= mapped.nbytes == 600_000 and not mapped.any()
    mapped[...] = 7
    mapped.flush()
    assert np.array_equal(np.load(tmp_path / "x.npy"), np.full((1000, 300), 7, np.int16))


def test_a_mapped_file_needs_no_posix(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    assert not allocated_memmap(tmp_path / "x.npy", np.float32, (5000,)).any()
    assert (tmp_path / "x.npy").stat().st_blocks * 512 >= 20_000


def test_a_disk_that_is_full_in_the_middle_is_one_line(cache, images, monkeypatch, one_line):
    monkeypatch.setattr(os, "posix_fallocate", refused(errno.ENOSPC))
    keys = [str(i) for i in range(len(images))]
    with pytest.raises(LsclError) as caught:
        cache_splits(
            "toy", keys, images.labels, images.classes, images.labels == 0, 16, lambda: zip(keys, images.images)
        )
    one_line(caught, "cannot write", cache / "toy", os.strerror(errno.ENOSPC), "free some space")
    assert left(cache) == []


# ---- several processes at once

DECODE = """
import os, sys, time
import numpy as np
from lscl.data.store import ImageSet, cache_images, cache_splits

def came():
    with open(sys.argv[1], "a") as calls:
        calls.write(f"{os.getpid()}\\n")
    time.sleep(float(sys.argv[2]))

pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)

def decode():
    came()
    return ImageSet(pixels, np.arange(6), tuple("abcdef"))

def pictures():
    came()
    yield from zip("abcdef", pixels)

if sys.argv[3] == "one":
    print(cache_images("toy", decode).digest)
else:
    both = cache_splits("toy", "abcdef", np.arange(6), tuple("abcdef"), np.arange(6) > 3, 4, pictures)
    print(*(one.digest for one in both))
"""


@pytest.fixture
def decoders(forked, tmp_path):
    """decoders(count, kind, seconds): processes that want the same images, whose decoding takes a while.

    Each writes its number when it begins.
    """
    return lambda count, kind, seconds=0.5: [forked(DECODE, tmp_path / "calls", seconds, kind) for _ in range(count)]


@pytest.mark.parametrize("kind", ["one", "splits"])
def test_of_several_processes_one_decodes_and_all_read_the_same(cache, decoders, tmp_path, kind):
    started = decoders(4, kind)
    said = [process.communicate(timeout=100) for process in started]
    assert [process.returncode for process in started] == [0] * 4, said
    assert len({digests for digests, _ in said}) == 1 and said[0][0]
    assert len((tmp_path / "calls").read_text(encoding="utf-8").split()) == 1


def test_a_killed_decoder_blocks_nobody(cache, decoders, tmp_path):
    """It is killed after it has made its temporary folder, which the next one removes."""
    (killed,) = decoders(1, "splits", seconds=100)
    while not (tmp_path / "calls").exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    assert list(cache.glob(".toy.new-*"))
    (waiting,) = decoders(1, "splits", seconds=0)
    killed.kill()
    killed.communicate()
    said = waiting.communicate(timeout=100)
    assert waiting.returncode == 0, said
    assert [path.name for path in cache.iterdir() if path.is_dir()] == ["toy"]
    assert len((tmp_path / "calls").read_text(encoding="utf-8").split()) == 2
