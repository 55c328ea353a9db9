"""Decoded images as memory-mapped uint8 arrays with a digest: decoded once, checked at every opening."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lscl import paths
from lscl.errors import LsclError

ZEROS = 2**24  # bytes written at once


@dataclass(frozen=True)
class ImageSet:
    """Images with labels.

    images: (n, H, W, 3) uint8; labels: (n,) int64 into `classes`; digest: SHA-256 over pixels, labels and class names.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        return digest_of(self.images, self.labels, json.dumps(self.classes).encode())

    def subset(self, index: np.ndarray) -> "ImageSet":
        """The images at `index`, in that order, copied into memory."""
        return ImageSet(np.ascontiguousarray(self.images[index]), self.labels[index], self.classes)


@dataclass(frozen=True)
class Dataset:
    """A named data set with its training and its test images (same classes, same image size)."""

    name: str
    train: ImageSet
    test: ImageSet

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def digest(self) -> str:
        """SHA-256 over both splits, 16 hex digits."""
        return hashlib.sha256((self.train.digest + self.test.digest).encode()).hexdigest()[:16]


def canonical(images: ImageSet) -> ImageSet:
    """The same images ordered by label, then by the SHA-256 of their pixels: the order does not depend on the source."""
    keys = np.array([digest_of(image) for image in images.images])
    return images.subset(np.lexsort((keys, images.labels)))


def digest_of(*parts: np.ndarray | bytes) -> str:
    """SHA-256 of arrays (shape, type and bytes) and byte strings, as 64 hex digits."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            total.update(f"{part.dtype}{part.shape}".encode())
            part = memoryview(np.ascontiguousarray(part)).cast("B")
        total.update(part)
    return total.hexdigest()


def allocated_memmap(path: Path, dtype: np.dtype | type, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file of zeros, memory-mapped for writing, with all of its space taken on the disk already.

    A file with holes would end the process (Bus error) as soon as the disk is full; here a full disk is an ordinary error.

    Raises:
        OSError: the disk has no room for it.
    """
    mapped = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(1, path.stat().st_size))
        except (AttributeError, OSError) as error:  # macOS and Windows have no such call, some file systems refuse it
            if getattr(error, "errno", errno.ENOSYS) not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            file.seek(mapped.offset)
            for start in range(0, mapped.nbytes, ZEROS):
                file.write(bytes(min(ZEROS, mapped.nbytes - start)))
    return mapped


@contextmanager
def new_folder(target: Path):
    """A temporary folder beside `target` that takes its name only when the block ends well (atomic rename).

    Raises:
        LsclError: the disk is full or the folder cannot be written.
    """
    made = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        yield made
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    except OSError as error:
        raise LsclError(f"cannot write {target}: {error.strerror or error}; free some space or set LSCL_CACHE to another folder") from error
    finally:
        if made is not None and made.exists():
            shutil.rmtree(made, ignore_errors=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file under a temporary name, then rename it: readers see the old file or the new one.

    Raises:
        LsclError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise LsclError(f"cannot write {path}: {error.strerror or error}") from error


def cached(name: str, decode: Callable[[], ImageSet]) -> ImageSet:
    """The image set kept under `name` in the cache folder; decoded first if it is absent or damaged.

    The stored digest is compared with the bytes on disk at every opening, so a damaged cache is rebuilt, never used.
    """
    folder = paths.cache() / "images" / name
    try:
        return _open(folder)
    except (OSError, EOFError, ValueError, KeyError):
        pass  # absent or damaged: decode (again)
    made = decode()
    with new_folder(folder) as new:
        np.save(new / "images.npy", made.images)
        np.save(new / "labels.npy", made.labels)
        (new / "about.json").write_text(json.dumps({"classes": made.classes, "digest": made.digest}))
    return _open(folder)


def cached_splits(
    name: str,
    keys: Sequence[str],
    labels: np.ndarray,
    classes: tuple[str, ...],
    test: np.ndarray,
    size: int,
    decode: Callable[[], Iterable[tuple[str, np.ndarray]]],
) -> tuple[ImageSet, ImageSet]:
    """Training and test images kept under `name`, as `cached`, but decoded one by one into the files: they need not fit the memory.

    keys: (n,) names, in the order in which the images are to stand; test: (n,) bool; decode: yields (key, (size, size, 3) uint8) in
    any order.

    Raises:
        LsclError: `decode` did not yield every key once, or the disk is full.
    """
    folder = paths.cache() / "images" / name
    parts = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
    try:
        return tuple(_open(folder / part) for part in parts)
    except (OSError, EOFError, ValueError, KeyError):
        pass  # absent or damaged: decode (again)
    with new_folder(folder) as new:
        place = {}
        for part, index in parts.items():
            (new / part).mkdir()
            pixels = np.lib.format.open_memmap(new / part / "images.npy", "w+", np.uint8, (len(index), size, size, 3))
            place |= {keys[i]: (pixels, row) for row, i in enumerate(index)}
            np.save(new / part / "labels.npy", labels[index])
        for key, picture in decode():
            pixels, row = place.pop(key)
            pixels[row] = picture
        if place:
            raise LsclError(f"{name}: {len(place)} images did not come, the first is {next(iter(place))}")
        for part, index in parts.items():
            made = ImageSet(np.load(new / part / "images.npy", mmap_mode="r"), labels[index], classes)
            (new / part / "about.json").write_text(json.dumps({"classes": classes, "digest": made.digest}))
    return tuple(_open(folder / part) for part in parts)


def _open(folder: Path) -> ImageSet:
    about = json.loads((folder / "about.json").read_text())
    images = np.load(folder / "images.npy", mmap_mode="r")
    found = ImageSet(images, np.load(folder / "labels.npy"), tuple(about["classes"]))
    if found.digest != about["digest"]:
        raise ValueError("digest")
    return found
