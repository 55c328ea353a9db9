"""Prefix activations on disk."""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import ReadWriteLock
from tests_root import compared

from lscl.config import experiment
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.run import run
from lscl.models import tokens
from lscl.models.cache import (
    CHUNK,
    _key,
    _lock_file,
    _remove,
    chunk_size,
    damaged_activations,
    embedded_tokens,
    prefix_cache,
    release,
    tokens_as_float,
)
from lscl.models.precision import prepare_device
from lscl.models.vit import FrozenViT, architecture, foundation

CPU = torch.device("cpu")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prefix"


@pytest.fixture
def images(toy):
    return toy().train  # 84 images


def entries(cache):
    """What is kept, lock files left out."""
    return sorted(path for path in cache.iterdir() if path.is_dir())


def computed(*arguments):
    """The tokens, and how many images went through the ViT for them."""
    calls = []
    return prefix_cache(*arguments, CPU, lambda done, total: calls.append((done, total))), calls


def test_tokens_are_the_prefix_of_every_image(cache, images):
    frozen = foundation("tiny", 1)
    found, calls = computed(frozen, images)
    assert found.shape == (84, 17, 32) and found.dtype == np.float32
    starts = range(0, 84, CHUNK)
    assert calls == [(min(start + CHUNK, 84), 84) for start in starts]
    for part in (slice(start, start + CHUNK) for start in starts):
        assert np.array_equal(found[part], frozen.prefix(torch.from_numpy(images.images[part])).numpy())


def test_tokens_are_computed_once_then_mapped_from_disk(cache, images):
    first, _ = computed(foundation("tiny", 1), images)
    second, calls = computed(foundation("tiny", 1), images)
    assert calls == [] and np.array_equal(first, second)
    assert isinstance(second.array, np.memmap) and not second[:5].flags.writeable


def test_bf16_takes_half_of_the_disk_and_rounds_every_token_once(cache, images):
    exact, _ = computed(foundation("tiny", 1), images)
    rounded = prefix_cache(foundation("tiny", 1), images, CPU, numbers="bf16")
    assert rounded.nbytes == exact.nbytes / 2 and len(entries(cache)) == 2
    index = torch.tensor([83, 0, 5])
    found = tokens_as_float(torch.from_numpy(rounded[index.numpy()]))
    assert found.dtype == torch.float32 and torch.equal(
        found, torch.from_numpy(exact[index.numpy()]).bfloat16().float()
    )
    whole = torch.from_numpy(exact[index.numpy()])
    assert tokens_as_float(whole) is whole


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
    assert len(entries(cache)) == len(variants)


def test_device_tf32_threads_and_kind_of_processor_each_have_their_own_file(images, monkeypatch):
    """TF32 rounds on a GPU only, threads on a CPU only."""
    frozen, names = foundation("tiny", 1), {"card": "H100", "cpu": "one"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names["card"])
    monkeypatch.setattr("lscl.models.cache.hardware", lambda: {"cpu": names["cpu"]})
    keys = lambda: [_key(frozen, images, "fp32", torch.device(kind), CHUNK) for kind in ("cpu", "cuda")]
    prepare_device(experiment(profile="smoke"))
    start = keys()
    prepare_device(experiment(profile="smoke", tf32=True))
    with_tf32 = keys()
    prepare_device(experiment(profile="smoke"))
    torch.set_num_threads(2)
    with_threads = keys()
    torch.set_num_threads(1)
    names |= {"card": "T4", "cpu": "another"}
    elsewhere = keys()
    assert with_tf32[0] == start[0] and with_threads[1] == start[1]
    assert len({*start, *with_tf32, *with_threads, *elsewhere}) == 6


def test_the_space_of_all_tokens_is_taken_before_the_first_is_written(cache, images):
    def look(done, total):
        if done == CHUNK:
            (path,) = cache.glob(".*/tokens.npy")
            taken.append(path.stat().st_blocks * 512)

    taken = []
    prefix_cache(foundation("tiny", 1), images, CPU, look)
    assert taken[0] >= SIZE


def test_tokens_that_are_not_finite_are_one_line_and_are_not_kept(cache, images, one_line):
    frozen = foundation("tiny", 1)
    frozen.vit.cls_token.fill_(torch.nan)
    with pytest.raises(LsclError) as caught:
        prefix_cache(frozen, images, CPU)
    one_line(caught, "not finite", "images 1 to 16")
    assert entries(cache) == []


@pytest.mark.parametrize("text", ["[]", "null", "1", '"a"', "{}", '{"sha256": []}', "[" * 100_000, "\x00", "\udcff"])
def test_a_description_of_another_kind_is_rebuilt(cache, images, text):
    frozen = foundation("tiny", 1)
    expected = np.array(prefix_cache(frozen, images, CPU))
    (folder,) = entries(cache)
    (folder / "about.json").write_text(text, errors="surrogateescape")
    found, calls = computed(frozen, images)
    assert calls and np.array_equal(found, expected)


@pytest.mark.parametrize("name", ["about.json", "tokens.npy"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_pipe_or_folder_in_place_of_a_file_is_rebuilt(cache, images, name, kind):
    prefix_cache(foundation("tiny", 1), images, CPU)
    (folder,) = entries(cache)
    (folder / name).unlink()
    (os.mkfifo if kind == "pipe" else os.mkdir)(folder / name)
    assert computed(foundation("tiny", 1), images)[1] and computed(foundation("tiny", 1), images)[1] == []


def test_tokens_of_another_shape_are_rebuilt(cache, images):
    prefix_cache(foundation("tiny", 1), images, CPU)
    prefix_cache(foundation("tiny", None), images, CPU)
    one, other = entries(cache)
    for name in ("about.json", "tokens.npy"):
        (one / name).write_bytes((other / name).read_bytes())
    found = [prefix_cache(foundation("tiny", block), images, CPU).shape for block in (1, None)]
    assert found == [(84, 17, 32), (84, 1, 32)]


@pytest.mark.parametrize("damage", ["flipped", "cut off", "empty", "no description", "half a description"])
def test_damaged_tokens_are_computed_again(cache, images, damage):
    frozen = foundation("tiny", 1)
    expected = np.array(prefix_cache(frozen, images, CPU))
    (folder,) = entries(cache)
    if damage == "flipped":
        data = bytearray((folder / "tokens.npy").read_bytes())
        data[-1000] ^= 1
        (folder / "tokens.npy").write_bytes(data)
    elif damage == "no description":
        (folder / "about.json").unlink()
    else:
        name, size = {
            "cut off": ("tokens.npy", 5000),
            "empty": ("tokens.npy", 0),
            "half a description": ("about.json", 9),
        }[damage]
        os.truncate(folder / name, size)
    found, calls = computed(frozen, images)
    assert calls and np.array_equal(found, expected)
    assert computed(frozen, images)[1] == []


@pytest.fixture
def in_parts(monkeypatch):
    """Files of parts of ten images, none of which is read when it is opened."""
    monkeypatch.setattr(tokens, "PART", 10 * 17 * 32 * 4)
    monkeypatch.setattr(tokens, "SMALL", 0)


def flip(folder, image):
    """Damage the tokens of an image."""
    with open(folder / "tokens.npy", "r+b") as file:
        file.seek(128 + image * 17 * 32 * 4)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def test_each_part_of_a_large_file_is_compared_once_when_it_is_first_read(cache, images, in_parts, monkeypatch):
    frozen = foundation("tiny", 1)
    expected = np.array(prefix_cache(frozen, images, CPU))
    (folder,) = entries(cache)
    assert len(json.loads((folder / "about.json").read_text("utf-8"))["parts"]) == 9
    os.utime(folder / "tokens.npy")  # as a file that this process has not read yet
    seen = []
    watched = SimpleNamespace(sha256=lambda data: seen.append(len(data)) or hashlib.sha256(data))
    monkeypatch.setattr(tokens, "hashlib", watched)
    found, calls = computed(frozen, images)
    assert calls == [] and seen == []
    for index, parts in (([3, 25, 27], [10, 10]), ([3, 21, 83], [4]), (slice(18, 22), [10]), (83, [])):
        seen.clear()
        assert np.array_equal(found[index], expected[index]) and seen == parts
    again, calls = computed(frozen, images)
    assert calls == [] and np.array_equal(again[[3, 83]], expected[[3, 83]]) and seen == []


def test_a_damaged_part_of_a_large_file_is_one_line_and_then_computed_again(cache, images, in_parts, one_line):
    frozen = foundation("tiny", 1)
    expected = np.array(prefix_cache(frozen, images, CPU))
    (folder,) = entries(cache)
    flip(folder, 45)
    found, calls = computed(frozen, images)
    assert calls == [] and np.array_equal(found[[1, 83]], expected[[1, 83]])
    with pytest.raises(LsclError) as caught:
        found[[1, 41]]
    one_line(caught, f"damaged activations {folder}", "part 5 of 9", "computes them again")
    found, calls = computed(frozen, images)
    assert calls and np.array_equal(found, expected)


def test_who_reads_damage_leaves_what_another_has_computed_since(cache, images, in_parts):
    frozen = foundation("tiny", 1)
    expected = np.array(prefix_cache(frozen, images, CPU))
    (folder,) = entries(cache)
    flip(folder, 45)
    old, _ = computed(frozen, images)
    (folder / "about.json").unlink()  # as another reader does
    computed(frozen, images)
    with pytest.raises(LsclError):
        old[41]
    found, calls = computed(frozen, images)
    assert calls == [] and np.array_equal(found, expected)


def test_a_run_stops_at_damaged_activations_and_the_next_call_mends_them(cache, smoke, in_parts, one_line):
    whole = run(smoke(method="fed_lscl"), quiet=True)
    (records.folder("smoke") / f"{whole['name']}.json").unlink()
    for folder in entries(cache):
        for image in range(5):
            flip(folder, image)
    with pytest.raises(LsclError) as caught:
        run(smoke(method="fed_lscl"), quiet=True)
    one_line(caught, "damaged activations")
    with suppress(LsclError):  # training and test images lie in two files
        run(smoke(method="fed_lscl"), quiet=True)
    assert compared(run(smoke(method="fed_lscl"), quiet=True)) == compared(whole)


def test_all_activations_are_compared_on_demand(cache, images, in_parts):
    for block in (0, 1):
        prefix_cache(foundation("tiny", block), images, CPU)
    one, other = entries(cache)
    flip(other, 80)
    assert list(damaged_activations()) == [(one, False), (other, True)]
    (one / "about.json").unlink()
    assert list(damaged_activations()) == [(one, True), (other, True)]
    (other / "about.json").write_text('{"sha256": "of the whole file", "shape": [84, 17, 32]}')
    assert list(damaged_activations()) == [(one, True)]


def test_a_gpu_gets_chunks_that_hang_on_its_whole_memory_alone(monkeypatch):
    sizes = []
    for name, memory in (("tiny", 2**34), ("vit_base_patch16_224", 15 * 2**30), ("vit_base_patch16_224", 80 * 2**30)):
        card = SimpleNamespace(total_memory=memory)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
        with torch.device("meta"):
            vit = architecture(name)
        sizes.append(chunk_size(FrozenViT(vit, 1, (0.5,) * 3, (0.5,) * 3), torch.device("cuda")))
    assert sizes == [512, 256, 512] and chunk_size(foundation("tiny", 1), CPU) == CHUNK


def test_a_stopped_computation_leaves_nothing_behind(cache, images):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prefix_cache(foundation("tiny", 1), images, CPU, stop)
    assert entries(cache) == []
    assert computed(foundation("tiny", 1), images)[1][-1] == (84, 84)


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch, tmp_path, images, one_line):
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "file"))
    with pytest.raises(LsclError) as caught:
        prefix_cache(foundation("tiny", 1), images, CPU)
    one_line(caught, "cannot write", tmp_path / "file", "set LSCL_CACHE")


def test_a_full_disk_is_one_line(cache, images, small_files, one_line):
    with small_files(10_000), pytest.raises(LsclError) as caught:
        prefix_cache(foundation("tiny", 1), images, CPU)
    one_line(caught, "cannot write", "free some space")
    assert entries(cache) == []


# ---- LSCL_CACHE_GB

SIZE = 84 * 17 * 32 * 4 + 128  # bytes of the tokens of the 84 images, and of the file's head


def bounded(monkeypatch, entries_allowed):
    monkeypatch.setenv("LSCL_CACHE_GB", str(entries_allowed * (SIZE + 500) / 1e9))


def test_least_recently_used_activations_go_first(cache, images, monkeypatch):
    bounded(monkeypatch, 2)
    for block in (0, 1):
        prefix_cache(foundation("tiny", block), images, CPU)
        release()  # as when a process ends
    first, second = sorted(entries(cache), key=lambda folder: (folder / "about.json").stat().st_mtime)
    os.utime(second / "about.json", (1, 1))
    os.utime(first / "about.json", (2, 2))
    prefix_cache(foundation("tiny", 2), images, CPU)
    assert len(entries(cache)) == 2 and first.exists() and not second.exists()
    assert sum(path.stat().st_size for folder in entries(cache) for path in folder.iterdir()) <= 2 * (SIZE + 500)
    assert computed(foundation("tiny", 0), images)[1] == []  # still there


def test_using_activations_makes_them_recent(cache, images, monkeypatch):
    prefix_cache(foundation("tiny", 1), images, CPU)
    (folder,) = entries(cache)
    os.utime(folder / "about.json", (1, 1))
    prefix_cache(foundation("tiny", 1), images, CPU)
    assert (folder / "about.json").stat().st_mtime > 1e9
    release()


def test_what_a_process_uses_is_never_taken_away(cache, forked, images, monkeypatch, one_line):
    bounded(monkeypatch, 1)
    held = prefix_cache(foundation("tiny", 0), images, CPU)
    before = np.array(held)
    with pytest.raises(LsclError) as caught:
        prefix_cache(foundation("tiny", 1), images, CPU)
    one_line(caught, "LSCL_CACHE_GB", "in use", "raise it")
    (folder,) = entries(cache)
    assert np.array_equal(held, before)
    release()
    command = "import sys, time; from pathlib import Path; from lscl.models.cache import hold; hold(Path(sys.argv[1]))"
    command += "; print(1, flush=True); time.sleep(60)"
    other = forked(command, folder)
    while not other.written():
        assert not other.ended(0.01), other.communicate()
    with pytest.raises(LsclError):
        prefix_cache(foundation("tiny", 1), images, CPU)
    other.kill()
    other.communicate()
    release()
    assert computed(foundation("tiny", 1), images)[1]  # its end frees them
    assert len(entries(cache)) == 1 and not folder.exists()
    release()


def test_without_a_bound_nothing_is_removed(cache, images, monkeypatch):
    monkeypatch.delenv("LSCL_CACHE_GB", raising=False)
    for block in range(3):
        prefix_cache(foundation("tiny", block), images, CPU)
        release()
    assert len(entries(cache)) == 3


@pytest.mark.parametrize("text", ["0", "-1", "many", "nan"])
def test_a_bound_that_is_no_size_is_one_line(cache, images, monkeypatch, text, one_line):
    monkeypatch.setenv("LSCL_CACHE_GB", text)
    with pytest.raises(LsclError) as caught:
        prefix_cache(foundation("tiny", 1), images, CPU)
    one_line(caught, f"LSCL_CACHE_GB = {text!r}", "greater than 0")


def test_locks_are_closed_when_the_process_ends(tmp_path):
    """`python -X dev` warns of every file that is left open."""
    code = "import sys; from pathlib import Path; from lscl.models.cache import hold; hold(Path(sys.argv[1]))"
    words = [sys.executable, "-W", "error::ResourceWarning", "-c", code, str(tmp_path / "prefix" / "a")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "unclosed" not in done.stderr, done.stderr


# ---- what is computed again instead of stored


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["tiny", "random/vit_tiny_patch16_224"])
def test_tokens_that_are_one_convolution_are_those_that_would_be_stored_to_the_bit(cache, images, name, threads):
    torch.set_num_threads(threads)
    frozen, draw = foundation(name, 0), torch.Generator().manual_seed(0)
    assert frozen.embeds_at_once and not foundation(name, 1).embeds_at_once
    for numbers in ("fp32", "bf16"):
        stored = prefix_cache(frozen, images, CPU, numbers=numbers)
        for size in (1, 5, 16, 50, 84):
            index = torch.randperm(84, generator=draw)[:size]
            found = embedded_tokens(frozen, numbers, torch.from_numpy(images.images[index.numpy()]))
            assert torch.equal(found, tokens_as_float(torch.from_numpy(stored[index.numpy()])))
    torch.set_num_threads(1)


def test_tokens_of_a_stem_of_many_layers_are_stored():
    assert not foundation("mini", 0).embeds_at_once


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tokens_are_computed_in_float32_whatever_the_arithmetic_of_training(images, dtype):
    frozen, pixels = foundation("tiny", 0), torch.from_numpy(images.images[:4])
    with torch.autocast("cpu", dtype):
        found = embedded_tokens(frozen, "fp32", pixels)
    assert torch.equal(found, frozen.prefix(pixels))


@pytest.mark.parametrize("name", ["l2p", "pilora"])
def test_a_system_that_adapts_the_first_block_takes_its_tokens_from_the_pixels(federation, smoke, toy, name):
    client = federation(smoke(method=name))[1][0]
    index = torch.tensor([70, 3, 14])
    stored = prefix_cache(foundation("tiny", 0), toy().train, CPU)
    assert client.train.prefix is None and (client.train.last_token is None) == (name == "pilora")
    assert torch.equal(client.train.batch(index).prefix, torch.from_numpy(stored[index.numpy()]))


# ---- several processes at once

COMPUTE = """
import hashlib, os, sys, time
import numpy as np
import torch
from filelock import ReadWriteLock
from lscl.data.store import ImageSet
from lscl.models.cache import prefix_cache
from lscl.models.vit import foundation

def look(done, total):
    with open(sys.argv[1], "a") as calls:
        calls.write(f"{os.getpid()}\\n")
    time.sleep(float(sys.argv[2]))

pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
images = ImageSet(pixels, np.arange(20), tuple("abcdefghijklmnopqrst"))
found = prefix_cache(foundation("tiny", 1), images, torch.device("cpu"), look)
print(hashlib.sha256(np.array(found)).hexdigest())
"""


@pytest.fixture
def computers(forked, tmp_path):
    """computers(count, seconds): processes that want the same tokens.

    Each writes its number when it has some, and then waits.
    """
    return lambda count, seconds: [forked(COMPUTE, tmp_path / "calls", seconds) for _ in range(count)]


def computing(tmp_path):
    """The numbers of the processes that have computed something."""
    return set((tmp_path / "calls").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("bound", ["", "0.001"])
def test_of_several_processes_one_computes_and_all_read_the_same(cache, computers, tmp_path, monkeypatch, bound):
    monkeypatch.setenv("LSCL_CACHE_GB", bound)
    started = computers(4, 0.5)
    said = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0] * 4, said
    assert len({digest for digest, _ in said}) == 1 and said[0][0]
    assert len(computing(tmp_path)) == 1 and len(entries(cache)) == 1


def test_a_killed_computation_blocks_nobody_and_is_cleared_away(cache, computers, tmp_path):
    (killed,) = computers(1, 100)
    while not (tmp_path / "calls").exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    assert len(entries(cache)) == 1  # the temporary folder
    (waiting,) = computers(1, 0)
    killed.kill()
    killed.communicate()
    said = waiting.communicate(timeout=100)
    assert waiting.returncode == 0, said
    assert computing(tmp_path) == {str(killed.pid), str(waiting.pid)}
    (folder,) = entries(cache)
    assert (folder / "about.json").exists()


def test_what_another_process_is_computing_takes_room_until_it_is_killed(
    cache, computers, images, tmp_path, monkeypatch, one_line
):
    few, size = images.subset(np.arange(20)), 20 * 17 * 32 * 4
    monkeypatch.setenv("LSCL_CACHE_GB", str(1.5 * size / 1e9))
    (other,) = computers(1, 100)
    while not (tmp_path / "calls").exists():
        assert other.poll() is None, other.communicate()
        time.sleep(0.01)
    with pytest.raises(LsclError) as caught:
        prefix_cache(foundation("tiny", 0), few, CPU)
    one_line(caught, "LSCL_CACHE_GB", "in use", "raise it")
    assert len(entries(cache)) == 1  # what the other one has
    other.kill()
    other.communicate()
    assert len(prefix_cache(foundation("tiny", 0), few, CPU)) == 20
    (folder,) = entries(cache)
    assert (folder / "about.json").exists()
    release()


def test_a_folder_that_another_process_holds_is_not_removed_and_then_it_is(tmp_path):
    """Two readers at once; who removes needs the folder for itself."""
    folder, read = tmp_path / "prefix" / "a", []
    folder.mkdir(parents=True)
    for _ in range(2):
        read.append(ReadWriteLock(_lock_file(folder), is_singleton=False))
        read[-1].acquire_read()
    for lock in read:
        assert not _remove(folder) and folder.exists()
        lock.release()
    assert _remove(folder) and not folder.exists()


def test_a_cache_without_locks_is_one_line(cache, images, monkeypatch, one_line):
    def acquire_read(lock):
        raise sqlite3.OperationalError("locking protocol")

    monkeypatch.setattr(ReadWriteLock, "acquire_read", acquire_read)
    with pytest.raises(LsclError) as caught:
        prefix_cache(foundation("tiny", 1), images, CPU)
    one_line(caught, f"cannot write {cache}", "locking protocol", "LSCL_CACHE")
