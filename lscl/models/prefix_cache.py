"""Prefix activations on disk: everything in front of the adapted block is computed once per image, then memory-mapped."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lscl import paths
from lscl.data.store import ImageSet, new_folder
from lscl.models.foundation import FrozenViT

CHUNK = 16  # images per forward pass; always whole chunks from the start, so a value never depends on what was asked for


def prefix_cache(foundation: FrozenViT, images: ImageSet, device: torch.device, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
    """The tokens of all `images` in front of the adapted block: (n, N, d) float32, memory-mapped, read-only.

    Kept under a digest of the model, the block, the normalisation and the images. A damaged file is noticed and rebuilt.

    Raises:
        LsclError: the disk is full or the cache folder cannot be written.
    """
    folder = paths.cache() / "prefix" / _key(foundation, images)
    try:
        return _open(folder)
    except (OSError, ValueError, KeyError):
        pass  # absent or damaged: compute (again)
    foundation.to(device)
    shape = (len(images), foundation.tokens, foundation.width)
    with new_folder(folder) as new:
        out = np.lib.format.open_memmap(new / "tokens.npy", "w+", np.float32, shape)
        for start in range(0, len(images), CHUNK):
            pixels = torch.from_numpy(np.array(images.images[start : start + CHUNK])).to(device)
            out[start : start + CHUNK] = foundation.prefix(pixels).cpu().numpy()
            if progress is not None:
                progress(min(start + CHUNK, len(images)), len(images))
        out.flush()
        (new / "about.json").write_text(json.dumps({"sha256": _file_digest(new / "tokens.npy"), "shape": shape}))
    return _open(folder)


def _key(foundation: FrozenViT, images: ImageSet) -> str:
    about = [foundation.digest, foundation.block, foundation.mean, foundation.std, images.digest, CHUNK, torch.get_num_threads()]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:20]


def _open(folder: Path) -> np.ndarray:
    about = json.loads((folder / "about.json").read_text())
    if _file_digest(folder / "tokens.npy") != about["sha256"]:
        raise ValueError("digest")
    return np.load(folder / "tokens.npy", mmap_mode="r")


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
