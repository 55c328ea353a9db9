"""Prefix activations on disk."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from lscl.config import experiment
from lscl.errors import LsclError
from lscl.models.cache import CHUNK, _key, prefix_cache, release, tokens_as_float
from lscl.models.precision import prepare_device
from lscl.models.vit import foundation

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
    keys = lambda: [_key(frozen, images, "fp32", torch.device(kind)) for kind in ("cpu", "cuda")]
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


def test_what_a_process_uses_is_never_taken_away(cache, images, monkeypatch, one_line):
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
    with subprocess.Popen([sys.executable, "-c", command, str(folder)], stdout=subprocess.PIPE) as other:
        assert other.stdout.read(1) == b"1"
        with pytest.raises(LsclError):
            prefix_cache(foundation("tiny", 1), images, CPU)
        other.kill()
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
