"""Prefix activations on disk: everything in front of the adapted block is computed once per image, then memory-mapped.

LSCL_CACHE_GB bounds the size of all activations together (10^9 bytes); those used least recently are removed first. A
run holds a shared lock on the activations that it uses, so that no other process removes them.
"""

import atexit
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from lscl import paths
from lscl.data.store import ImageSet, allocated_memmap, new_folder
from lscl.errors import LsclError
from lscl.files import check_regular
from lscl.machine import hardware
from lscl.models.vit import FrozenViT

STORED = {"fp32": np.dtype(np.float32), "bf16": np.dtype(np.int16)}  # NumPy has no bfloat16, so its bits are stored
CHUNK = 16  # images per forward pass; chunks always start at image 0, so values do not depend on what is asked for


def prefix_cache(
    foundation: FrozenViT,
    images: ImageSet,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
    numbers: str = "fp32",
) -> np.ndarray:
    """Compute the frozen ViT's tokens in front of the adapted block once; later calls read the file.

    The file's name is a digest of the model, the block, the normalisation, the images and whatever rounds the numbers.
    A damaged file is noticed and computed again.

    Args:
        foundation: the frozen ViT, with N tokens of width d.
        images: n images.
        device: where to compute.
        progress: called with the number of finished images and n.
        numbers: "fp32", or "bf16", which is stored as its bits (int16) and takes half of the disk.

    Returns:
        (n, N, d), memory-mapped and read-only; `tokens_as_float` makes numbers of them.

    Raises:
        LsclError: the disk is full, the cache folder cannot be written, LSCL_CACHE_GB leaves no room, or tokens are
            not finite.
    """
    folder, stored = paths.cache() / "prefix" / _key(foundation, images, numbers, device), STORED[numbers]
    shape = (len(images), foundation.tokens, foundation.width)
    hold(folder)
    found = _found(folder, stored, shape)
    if found is not None:
        return found
    make_room(folder, stored.itemsize * math.prod(shape))
    foundation.to(device)
    with new_folder(folder) as new:
        out = allocated_memmap(new / "tokens.npy", stored, shape)
        for start in range(0, len(images), CHUNK):
            pixels = torch.from_numpy(np.array(images.images[start : start + CHUNK])).to(device)
            tokens = foundation.prefix(pixels).cpu()
            if not tokens.isfinite().all():
                some = f"some of the images {start + 1} to {start + len(pixels)}"
                raise LsclError(f"the frozen ViT gives numbers that are not finite for {some}")
            if numbers == "bf16":
                tokens = tokens.bfloat16().view(torch.int16)  # (b, N, d), the bits
            out[start : start + CHUNK] = tokens.numpy()
            if progress is not None:
                progress(min(start + CHUNK, len(images)), len(images))
        out.flush()
        (new / "about.json").write_text(
            json.dumps({"sha256": _file_digest(new / "tokens.npy"), "shape": shape}), encoding="utf-8"
        )
    return _open(folder, stored, shape)


def tokens_as_float(tokens: torch.Tensor) -> torch.Tensor:
    """Turn stored tokens into numbers: (b, N, d) float32, or the bits of bf16 in int16 -> (b, N, d) float32."""
    if tokens.dtype == torch.int16:
        return tokens.view(torch.bfloat16).float()  # (b, N, d)
    return tokens


_held: dict[Path, BinaryIO] = {}  # open lock files, until `release`


def hold(folder: Path) -> None:
    """Keep every process from removing `folder` until `release` or the end of this process.

    Raises:
        LsclError: the cache folder cannot be written.
    """
    path = _lock_file(folder)
    if path in _held:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _held[path] = open(path, "ab")  # noqa: SIM115, `release` closes it
        fcntl.flock(_held[path], fcntl.LOCK_SH)
    except OSError as error:
        raise LsclError(
            f"cannot write {path}: {error.strerror or error}; free some space or set LSCL_CACHE to another folder"
        ) from error


def release() -> None:
    """Let other processes remove the folders that this one has held; open arrays stay readable."""
    for lock in _held.values():
        lock.close()
    _held.clear()


atexit.register(release)


def make_room(folder: Path, needed: int) -> None:
    """Remove activations, least recently used first, until new ones fit into LSCL_CACHE_GB.

    Activations that a process holds are never removed.

    Args:
        folder: the folder of the new activations.
        needed: their bytes.

    Raises:
        LsclError: LSCL_CACHE_GB is not a number, or too small for the new activations and those in use.
    """
    limit = limit_bytes()
    if limit is None:
        return
    found = [path.parent for path in folder.parent.glob("[!.]*/about.json") if path.parent != folder]
    sizes = {one: _size(one) for one in found}
    total = sum(sizes.values())
    for one in sorted(found, key=_last_use):
        if total + needed <= limit:
            return
        if _remove(one):
            total -= sizes[one]
    if total + needed > limit:
        raise LsclError(
            f"LSCL_CACHE_GB = {limit / 1e9:g}: {needed / 1e9:.3g} GB of activations are needed in addition to "
            f"{total / 1e9:.3g} GB in use; raise it"
        )


def limit_bytes() -> float | None:
    """LSCL_CACHE_GB in bytes; None if it is not set.

    Raises:
        LsclError: it is not a positive number.
    """
    text = os.environ.get("LSCL_CACHE_GB")
    if not text:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise LsclError(f"LSCL_CACHE_GB = {text!r}: give a number of gigabytes greater than 0")
    return limit * 1e9


def _remove(folder: Path) -> bool:
    """Remove a folder unless a process, this one included, holds it."""
    path = _lock_file(folder)
    if path in _held:
        return False
    with open(path, "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _last_use(folder: Path) -> float:
    try:
        return (folder / "about.json").stat().st_mtime
    except OSError:
        return 0.0  # another process has just removed it


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.exists())


def _key(foundation: FrozenViT, images: ImageSet, numbers: str, device: torch.device) -> str:
    about = [
        foundation.digest,
        foundation.block,
        foundation.mean,
        foundation.std,
        images.digest,
        CHUNK,
        numbers,
        *rounding(device),
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:20]


def rounding(device: torch.device) -> list[str | int | bool]:
    """Whatever decides how numbers are rounded on a device.

    That is the version of torch, and either the GPU and its use of TF32 or the processor and the number of threads.
    """
    if device.type == "cuda":
        backends = torch.backends
        return [
            torch.__version__,
            torch.cuda.get_device_name(device),
            backends.cuda.matmul.allow_tf32,
            backends.cudnn.allow_tf32,
        ]
    return [torch.__version__, hardware()["cpu"], torch.get_num_threads()]


def _found(folder: Path, stored: np.dtype, shape: tuple[int, ...]) -> np.ndarray | None:
    """The activations in a folder; None if they are absent or damaged in any way."""
    try:
        return _open(folder, stored, shape)
    except Exception:
        return None


def _open(folder: Path, stored: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    about, tokens = folder / "about.json", folder / "tokens.npy"
    for path in (about, tokens):
        check_regular(path)
    if _file_digest(tokens) != json.loads(about.read_text(encoding="utf-8"))["sha256"]:
        raise ValueError("digest")
    found = np.load(tokens, mmap_mode="r")
    if (found.dtype, found.shape) != (stored, shape):
        raise ValueError("other tokens")
    os.utime(about)  # the time of its last use
    return found


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
