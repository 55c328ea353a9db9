"""CIFAR-100 as a few sheets of tiles, for a machine without a network: read into the cache, checked pixel by pixel.

A pack has <split>_<number>.<webp, png or jxl> for train and test, lossless, 32 pixels a tile, row by row, with
<split>_labels.npy in the same order and classes.json. JPEG XL needs the package pillow-jxl-plugin.

    python benchmarks/image_pack.py FOLDER
"""

import importlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from lscl import paths
from lscl.cli import one_line
from lscl.data.sources import CIFAR100_DIGESTS
from lscl.data.store import ImageSet, cache_images, sort_canonically
from lscl.errors import LsclError

TILE = 32
SPLITS = ("train", "test")


def cached_cifar100() -> bool:
    """Whether all of CIFAR-100 lies in the cache, so that no folder and no download is needed."""
    return all((paths.cache() / "images" / f"cifar100-{split}" / "about.json").exists() for split in SPLITS)


def expand(folder: Path) -> None:
    """Read a pack into the cache, where `dataset = cifar100` finds it.

    Raises:
        LsclError: the pack is not all of CIFAR-100.
    """
    for split, digest in zip(SPLITS, CIFAR100_DIGESTS, strict=True):
        found = cache_images(f"cifar100-{split}", lambda split=split: read_split(folder, split)).digest
        if found != digest:
            raise LsclError(f"{folder}: the {split} images are not those of CIFAR-100 (digest {found})")


def read_split(folder: Path, split: str) -> ImageSet:
    """The images of a split in canonical order.

    Args:
        folder: the pack.
        split: train or test.

    Returns:
        images, labels and class names.

    Raises:
        LsclError: there are more or fewer tiles than labels.
    """
    labels = np.load(folder / f"{split}_labels.npy").astype(np.int64)
    sheets = sorted(path for path in folder.glob(f"{split}_*") if path.suffix in (".webp", ".png", ".jxl"))
    with ThreadPoolExecutor() as pool:
        tiles = list(pool.map(read_sheet, sheets))
    images = np.concatenate(tiles)[: len(labels)] if tiles else np.empty((0, TILE, TILE, 3), np.uint8)
    if len(images) != len(labels):
        raise LsclError(f"{folder}: {len(images)} {split} tiles for {len(labels)} labels")
    classes = tuple(json.loads((folder / "classes.json").read_text("utf-8")))
    return sort_canonically(ImageSet(images, labels, classes))


def read_sheet(path: Path) -> np.ndarray:
    """The tiles of a sheet, row by row: (n, 32, 32, 3) uint8."""
    if path.suffix == ".jxl":
        importlib.import_module("pillow_jxl")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    rows, columns = pixels.shape[0] // TILE, pixels.shape[1] // TILE
    return pixels.reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)  # (n, 32, 32, 3)


if __name__ == "__main__":
    with one_line():
        expand(Path(sys.argv[1]))
