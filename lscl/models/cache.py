"""Prefix activations on disk: everything before the adapted block is computed once per image, then memory-mapped.

LSCL_CACHE_GB bounds the size of all activations together (10^9 bytes); those used least recently are removed first. A
run holds a shared lock on the activations that it uses, so that no other process removes them.
"""

import atexit
import hashlib
import json
import math
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from filelock import ReadWriteLock, Timeout

from lscl import paths
from lscl.data.store import (
    ImageSet,
    allocated_memmap,
    builder_lock,
    bytes_below,
    cannot_write,
    found_or_built,
    new_folder,
    only_builder,
)
from lscl.errors import LsclError
from lscl.machine import hardware
from lscl.models.precision import without_autocast
from lscl.models.tokens import ABOUT, DATA, PartDigests, StoredTokens
from lscl.models.transfer import send
from lscl.models.vit import FrozenViT

STORED = {"fp32": np.dtype(np.float32), "bf16": np.dtype(np.int16)}  # NumPy has no bfloat16, so its bits are stored
CHUNK = 16  # images per pass on a CPU; chunks always start at image 0, so values do not depend on what is asked for
LARGEST_CHUNK = 512  # images per pass on a GPU
LIVE = 16  # numbers that a pass holds at once for each number of its tokens


def prefix_cache(
    foundation: FrozenViT,
    images: ImageSet,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
    numbers: str = "fp32",
) -> StoredTokens:
    """Compute the frozen ViT's tokens before the adapted block once; later calls read the file.

    The file's name is a digest of the model, the block, the normalisation, the images and everything that affects
    rounding. If several processes want the same tokens, one computes them and the others wait.
    Damage is noticed. A small file is checked when it is opened, and computed again at once. A large file is checked
    part by part when a part is first read; damage then ends the run with one line, and the next call computes the file
    again.

    Args:
        foundation: the frozen ViT, with N tokens of width d.
        images: n images.
        device: where to compute.
        progress: called with the number of finished images and n.
        numbers: "fp32", or "bf16", which is stored as its bits (int16) and takes half of the disk.

    Returns:
        (n, N, d), read by indexing; `tokens_as_float` makes numbers of them.

    Raises:
        LsclError: the disk is full, the cache folder cannot be written, LSCL_CACHE_GB leaves no room, or tokens are
            not finite.
    """
    chunk = chunk_size(foundation, device)
    folder, stored = paths.cache() / "prefix" / _key(foundation, images, numbers, device, chunk), STORED[numbers]
    shape = (len(images), foundation.tokens, foundation.width)

    def build() -> StoredTokens:
        with new_folder(folder) as new:
            with only_builder(folder.with_name("room")):  # nobody else counts until the space is taken
                make_room(folder, stored.itemsize * math.prod(shape))
                writer = TokenWriter(new, stored, shape)
            _write_tokens(writer, foundation, images, device, progress)
            writer.save()
        return StoredTokens(folder)

    hold(folder)
    return found_or_built(folder, lambda: _found(folder, stored, shape), build)


def _write_tokens(
    writer: "TokenWriter",
    foundation: FrozenViT,
    images: ImageSet,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Compute the tokens of all images; one thread writes some of them while the next are computed."""
    foundation.to(device)
    chunk, writing = chunk_size(foundation, device), None
    with ThreadPoolExecutor(1, "lscl-cache") as thread:
        for start in range(0, len(images), chunk):
            pixels = send(torch.from_numpy(np.array(images.images[start : start + chunk])), device)
            tokens = foundation.prefix(pixels)
            _finish(writing, len(images), progress)
            writing = thread.submit(writer.add, tokens)
        _finish(writing, len(images), progress)


def _finish(writing: Future | None, total: int, progress: Callable[[int, int], None] | None) -> None:
    """Wait until tokens are written, and tell how many there are by now."""
    if writing is not None:
        done = writing.result()
        if progress is not None:
            progress(done, total)


class TokenWriter:
    """Writes tokens to a folder in their order, and a digest for each part.

    Args:
        folder: where `tokens.npy` and its digests are written.
        stored: type of the stored numbers, a value of `STORED`.
        shape: (n, N, d), all of them.
    """

    def __init__(self, folder: Path, stored: np.dtype, shape: tuple[int, ...]):
        self.folder, self.done = folder, 0
        self.out, self.digests = allocated_memmap(folder / DATA, stored, shape), PartDigests(shape, stored)

    def add(self, tokens: torch.Tensor) -> int:
        """Write the tokens of the next images.

        Args:
            tokens: (b, N, d), on any device.

        Returns:
            How many images have been written so far.

        Raises:
            LsclError: they are not finite.
        """
        tokens, end = tokens.cpu(), self.done + len(tokens)
        if not tokens.isfinite().all():
            some = f"some of the images {self.done + 1} to {end}"
            raise LsclError(f"the frozen ViT gives numbers that are not finite for {some}")
        if self.out.dtype == STORED["bf16"]:
            tokens = tokens.bfloat16().view(torch.int16)  # (b, N, d), the bits
        self.out[self.done : end] = tokens.numpy()
        self.digests.add(tokens.numpy())
        self.done = end
        return end

    def save(self) -> None:
        """Write the rest to the disk, and the digests last, which show that the tokens are complete."""
        self.out.flush()
        del self.out  # Windows does not rename a folder with an open file
        self.digests.save(self.folder)


@torch.no_grad()
def compute_tokens(
    foundation: FrozenViT, images: np.ndarray, device: torch.device, numbers: str = "fp32"
) -> np.ndarray:
    """The frozen ViT's tokens of a few images, as `prefix_cache` would store them; nothing is written.

    Args:
        foundation: the frozen ViT, with N tokens of width d.
        images: (n, H, W, 3) uint8.
        device: where to compute.
        numbers: as in `prefix_cache`.

    Returns:
        (n, N, d) float32, or for bf16 its bits in int16.
    """
    foundation.to(device)
    chunk = chunk_size(foundation, device)
    parts = [
        foundation.prefix(send(torch.from_numpy(images[start : start + chunk]), device)).cpu()
        for start in range(0, len(images), chunk)
    ]
    tokens = torch.cat(parts)  # (n, N, d)
    return (tokens.bfloat16().view(torch.int16) if numbers == "bf16" else tokens).numpy()  # (n, N, d)


def chunk_size(foundation: FrozenViT, device: torch.device) -> int:
    """How many images go through the frozen part at once.

    The last bits of the numbers depend on it, so it must be the same at every start. On a CPU it is a constant; on a
    GPU it follows from the size of the memory, not from how much of it is free.

    Args:
        foundation: the frozen ViT.
        device: where it computes.

    Returns:
        A power of 2.
    """
    if device.type != "cuda":
        return CHUNK
    tokens = foundation.vit.patch_embed.num_patches + foundation.vit.num_prefix_tokens
    room = torch.cuda.get_device_properties(device).total_memory / 4
    return min(LARGEST_CHUNK, 2 ** int(math.log2(max(CHUNK, room / (4 * LIVE * tokens * foundation.width)))))


def embedded_tokens(foundation: FrozenViT, numbers: str, pixels: torch.Tensor) -> torch.Tensor:
    """The tokens before block 0, as they would be read if they were stored; see `FrozenViT.embeds_at_once`.

    Args:
        foundation: the frozen ViT, cut before block 0.
        numbers: as in `prefix_cache`.
        pixels: (b, H, W, 3) uint8.

    Returns:
        (b, N, d) float32.
    """
    with without_autocast(pixels.device):
        tokens = foundation.prefix(pixels)
    return tokens.bfloat16().float() if numbers == "bf16" else tokens


def tokens_as_float(tokens: torch.Tensor) -> torch.Tensor:
    """Turn stored tokens into numbers: (b, N, d) float32, or the bits of bf16 in int16 -> (b, N, d) float32."""
    if tokens.dtype == torch.int16:
        return tokens.view(torch.bfloat16).float()  # (b, N, d)
    return tokens


_held: dict[Path, ReadWriteLock] = {}  # until `release`


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
        lock = ReadWriteLock(path, is_singleton=False)
        lock.acquire_read()
    except (OSError, sqlite3.Error) as error:
        raise cannot_write(path, error) from error
    _held[path] = lock


def release() -> None:
    """Let other processes remove the folders that this one has held; open arrays stay readable."""
    for lock in _held.values():
        lock.close()
    _held.clear()


atexit.register(release)


def make_room(folder: Path, needed: int) -> None:
    """Remove activations, least recently used first, until new ones fit into LSCL_CACHE_GB.

    Activations that a process holds are never removed, and those that one is computing count, too.

    Args:
        folder: the folder of the new activations.
        needed: their bytes.

    Raises:
        LsclError: LSCL_CACHE_GB is not a number, or too small for the new activations and those in use.
    """
    limit = limit_bytes()
    if limit is None:
        return
    found = [path.parent for path in folder.parent.glob(f"[!.]*/{ABOUT}") if path.parent != folder]
    sizes = {one: bytes_below(one) for one in found}
    total = sum(sizes.values()) + _unfinished(folder)
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


def _unfinished(folder: Path) -> int:
    """Bytes of activations that other processes are computing; those that a killed process has left are removed."""
    total = 0
    for path in folder.parent.glob(".*.new-*"):
        target = folder.with_name(path.name[1:].rsplit(".new-", 1)[0])
        if target == folder:
            continue
        try:
            with builder_lock(target).acquire(timeout=0):
                shutil.rmtree(path, ignore_errors=True)
        except Timeout:
            total += bytes_below(path)
    return total


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
    lock = ReadWriteLock(path, is_singleton=False)
    try:
        with lock.write_lock(blocking=False):
            shutil.rmtree(folder, ignore_errors=True)
            return not folder.exists()
    except Timeout:
        return False
    finally:
        lock.close()


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _last_use(folder: Path) -> float:
    try:
        return (folder / ABOUT).stat().st_mtime
    except OSError:
        return 0.0  # another process has just removed it


def _key(foundation: FrozenViT, images: ImageSet, numbers: str, device: torch.device, chunk: int) -> str:
    about = [
        foundation.digest,
        foundation.block,
        foundation.mean,
        foundation.std,
        images.digest,
        chunk,
        numbers,
        "parts",
        # the digest tells the size by the positions
        *([] if foundation.vit.pos_embed is not None else foundation.vit.patch_embed.img_size),
        *rounding(device),
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:20]


def rounding(device: torch.device) -> list[str | int | bool]:
    """Everything that decides how numbers are rounded on a device.

    For a GPU: the version of torch, the card, whether it uses TF32, and its kinds of attention. For a CPU: the version
    of torch, the processor and the number of threads.
    """
    if device.type == "cuda":
        backends = torch.backends
        return [
            torch.__version__,
            torch.cuda.get_device_name(device),
            backends.cuda.matmul.allow_tf32,
            backends.cudnn.allow_tf32,
            torch.are_deterministic_algorithms_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
        ]
    return [torch.__version__, hardware()["cpu"], torch.get_num_threads()]


def _found(folder: Path, stored: np.dtype, shape: tuple[int, ...]) -> StoredTokens | None:
    """The activations in a folder; None if they are absent or damaged in any way."""
    try:
        found = StoredTokens(folder)
    except Exception:
        return None
    return found if (found.dtype, found.shape) == (stored, shape) else None


def damaged_activations() -> Iterator[tuple[Path, bool]]:
    """Read all activations in the cache as a whole, except those of earlier versions, which no run reads any more.

    Yields:
        Each folder, and whether it is damaged.
    """
    for path in sorted((paths.cache() / "prefix").glob(f"[!.]*/{DATA}")):
        try:
            if "sha256" not in json.loads((path.parent / ABOUT).read_text(encoding="utf-8")):
                yield path.parent, bool(StoredTokens(path.parent).damaged())
        except Exception:
            yield path.parent, True
