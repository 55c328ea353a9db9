"""Prefix activations on disk: everything in front of the adapted block is computed once per image, then memory-mapped.

LSCL_CACHE_GB bounds what all of them together take (10^9 bytes): those used least recently go first. A run holds a shared lock on what
it uses, so that no other process takes it away.
"""

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
from lscl.machine import hardware
from lscl.models.vit import FrozenViT

STORED = {"fp32": np.dtype(np.float32), "bf16": np.dtype(np.int16)}  # NumPy has no bfloat16: its bits
CHUNK = (
    16  # images per forward pass; always whole chunks from the start, so a value never depends on what was asked for
)


def prefix_cache(
    foundation: FrozenViT,
    images: ImageSet,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
    numbers: str = "fp32",
) -> np.ndarray:
    """The tokens of all `images` in front of the adapted block: (n, N, d), memory-mapped, read-only; `read_tokens` reads them.

    numbers: fp32, or bf16, which is stored as its bits (int16) and takes half of the disk. Kept under a digest of the model, the
    block, the normalisation, the images and what rounds the numbers. A damaged file is noticed and rebuilt.

    Raises:
        LsclError: the disk is full, the cache folder cannot be written, LSCL_CACHE_GB leaves no room, or tokens are not finite.
    """
    folder, stored = paths.cache() / "prefix" / _key(foundation, images, numbers, device), STORED[numbers]
    shape = (len(images), foundation.tokens, foundation.width)
    hold(folder)
    kept = _found(folder, stored, shape)
    if kept is not None:
        return kept
    make_room(folder, stored.itemsize * math.prod(shape))
    foundation.to(device)
    with new_folder(folder) as new:
        out = allocated_memmap(new / "tokens.npy", stored, shape)
        for start in range(0, len(images), CHUNK):
            pixels = torch.from_numpy(np.array(images.images[start : start + CHUNK])).to(device)
            tokens = foundation.prefix(pixels).cpu()
            if not tokens.isfinite().all():
                raise LsclError(
                    f"the frozen ViT gives numbers that are not finite for some of the images {start + 1} to {start + len(pixels)}"
                )
            out[start : start + CHUNK] = (tokens if numbers == "fp32" else tokens.bfloat16().view(torch.int16)).numpy()
            if progress is not None:
                progress(min(start + CHUNK, len(images)), len(images))
        out.flush()
        (new / "about.json").write_text(
            json.dumps({"sha256": _file_digest(new / "tokens.npy"), "shape": shape}), encoding="utf-8"
        )
    return _open(folder, stored, shape)


def read_tokens(stored: np.ndarray, index: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tokens of the images at `index` (b,) of what `prefix_cache` gave: (b, N, d) float32 on `device`; what is moved is what is stored."""
    tokens = torch.from_numpy(stored[index.numpy()]).to(device)
    return tokens.view(torch.bfloat16).float() if stored.dtype == STORED["bf16"] else tokens


_held: dict[Path, BinaryIO] = {}  # open lock files, for as long as the process lasts


def hold(folder: Path) -> None:
    """Keep every process from removing `folder` until `release` or the end of this one.

    Raises:
        LsclError: the cache folder cannot be written.
    """
    path = _lock_file(folder)
    if path in _held:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _held[path] = open(path, "ab")  # noqa: SIM115, held until the process ends
        fcntl.flock(_held[path], fcntl.LOCK_SH)
    except OSError as error:
        raise LsclError(
            f"cannot write {path}: {error.strerror or error}; free some space or set LSCL_CACHE to another folder"
        ) from error


def release() -> None:
    """Let other processes remove what this one has used; arrays that are open stay readable."""
    for lock in _held.values():
        lock.close()
    _held.clear()


def make_room(folder: Path, needed: int) -> None:
    """Remove activations, least recently used first, until `needed` more bytes keep within LSCL_CACHE_GB; none that a process holds.

    Raises:
        LsclError: no number, or what is needed and what is in use do not fit.
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
            f"LSCL_CACHE_GB = {limit / 1e9:g}: {needed / 1e9:.3g} GB of activations are needed beside {total / 1e9:.3g} GB in use; raise it"
        )


def limit_bytes() -> float | None:
    """LSCL_CACHE_GB in bytes, None if it is not set.

    Raises:
        LsclError: it is no positive number.
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
    """Take a folder away unless a process, this one included, holds it."""
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
        return 0.0  # another process has just taken it away


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
    """What rounds numbers on `device`: the version of torch, and the kind of GPU and whether it uses TF32, or the kind of processor and the
    number of threads."""
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
    """What is kept in `folder`; None if it is absent or damaged, in whatever way, so that it is to be computed (again)."""
    try:
        return _open(folder, stored, shape)
    except Exception:
        return None


def _open(folder: Path, stored: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    about, tokens = folder / "about.json", folder / "tokens.npy"
    if not (about.is_file() and tokens.is_file()):  # reading a pipe would never end
        raise FileNotFoundError(folder)
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
