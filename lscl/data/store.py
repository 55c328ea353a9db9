"""Decoded images as memory-mapped uint8 arrays with a digest: decoded once, checked at every opening."""

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np

from lscl import paths
from lscl.errors import LsclError

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
ZEROS = 2**24  # bytes written at once


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with labels; two of them are equal only if they are the same object.

    images: (n, H, W, 3) uint8; labels: (n,) int64 into `classes`; digest: SHA-256 over pixels, labels and class names.
    notes: what whoever uses them should know about their files, one line each.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

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


def sort_canonically(images: ImageSet) -> ImageSet:
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


def cannot_write(path: Path, error: OSError) -> LsclError:
    """The one line for a file or folder that could not be written, with what helps there."""
    if path.is_relative_to(paths.cache()):
        return LsclError(
            f"cannot write {path}: {error.strerror or error}; free some space or set LSCL_CACHE to another folder"
        )
    return LsclError(f"cannot write {path}: {error.strerror or error}; once that is mended, the same command goes on")


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
        raise cannot_write(target, error) from error
    finally:
        if made is not None and made.exists():
            shutil.rmtree(made, ignore_errors=True)


def private_folder(path: Path) -> Path:
    """A folder that only its owner can enter, with files that only its owner can read: made, with what is missing above it, or tightened."""
    if not path.parent.exists():
        private_folder(path.parent)
    path.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    path.chmod(PRIVATE_FOLDER)
    for file in path.iterdir():
        if file.is_file() and not file.is_symlink():
            with suppress(FileNotFoundError):  # another process has renamed it
                file.chmod(PRIVATE_FILE)
    return path


def write_atomic(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a whole file under a temporary name, then rename it: readers see the old file or the new one.

    mode: who may read and write it, as far as the umask allows.

    Raises:
        LsclError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb", opener=partial(os.open, mode=mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise cannot_write(path, error) from error


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a file, never waited for.

    Raises:
        OSError: it cannot be read, is no regular file (a folder, a pipe), or has more than `limit` bytes.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError("it is not a regular file")
    if about.st_size > limit:
        raise OSError(f"it has {about.st_size} bytes, at most {limit} are read")
    return path.read_bytes()


def cache_images(name: str, decode: Callable[[], ImageSet]) -> ImageSet:
    """The image set kept under `name` in the cache folder; decoded first if it is absent or damaged.

    The stored digest is compared with the bytes on disk when they are first opened and after every change of the files, so a damaged
    cache is rebuilt, never used.
    """
    folder = paths.cache() / "images" / name
    found = _found(folder)
    if found is not None:
        return found
    made = decode()
    with new_folder(folder) as new:
        np.save(new / "images.npy", made.images)
        _describe(new, made)
    return _open(folder)


def cache_piecewise(name: str, write: Callable[[Path], ImageSet]) -> ImageSet:
    """As `cache_images`, for what need not fit the memory: `write` makes images.npy in the folder that it is given."""
    folder = paths.cache() / "images" / name
    found = _found(folder)
    if found is not None:
        return found
    with new_folder(folder) as new:
        _describe(new, write(new))
    return _open(folder)


def cache_splits(
    name: str,
    keys: Sequence[str],
    labels: np.ndarray,
    classes: tuple[str, ...],
    test: np.ndarray,
    size: int,
    decode: Callable[[], Iterable[tuple[str, np.ndarray]]],
) -> tuple[ImageSet, ImageSet]:
    """Training and test images kept under `name`, as `cache_images`, but decoded one by one into the files: they need not fit the memory.

    keys: (n,) names, in the order in which the images are to stand; test: (n,) bool; decode: yields (key, (size, size, 3) uint8) in
    any order.

    Raises:
        LsclError: `decode` did not yield every key once, or the disk is full.
    """
    folder = paths.cache() / "images" / name
    parts = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
    found = [_found(folder / part) for part in parts]
    if None not in found:
        return tuple(found)
    with new_folder(folder) as new:
        place = {}
        for part, index in parts.items():
            (new / part).mkdir()
            pixels = allocated_memmap(new / part / "images.npy", np.uint8, (len(index), size, size, 3))
            place |= {keys[i]: (pixels, row) for row, i in enumerate(index)}
        for key, picture in decode():
            pixels, row = place.pop(key)
            pixels[row] = picture
        if place:
            raise LsclError(f"{name}: {len(place)} images did not come, the first is {next(iter(place))}")
        for part, index in parts.items():
            _describe(new / part, ImageSet(np.load(new / part / "images.npy", mmap_mode="r"), labels[index], classes))
    return tuple(_open(folder / part) for part in parts)


def _describe(folder: Path, made: ImageSet) -> None:
    """Write what belongs to images.npy: the labels, and the description that says that all is there."""
    np.save(folder / "labels.npy", made.labels)
    about = {"classes": made.classes, "digest": made.digest, "notes": made.notes}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _found(folder: Path) -> ImageSet | None:
    """What is kept in `folder`; None if it is absent or damaged, in whatever way, so that it is to be decoded (again)."""
    try:
        return _open(folder)
    except Exception:
        return None


def _open(folder: Path) -> ImageSet:
    """The image set in a folder of the cache; while its files do not change, they are read and compared with their digest only once."""
    files = [folder / name for name in ("about.json", "images.npy", "labels.npy")]
    if not all(path.is_file() for path in files):
        raise FileNotFoundError(f"{folder}: not all of its files are there")
    return _checked(
        folder, tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in (path.stat() for path in files))
    )


@lru_cache(maxsize=4)
def _checked(folder: Path, stamps: tuple) -> ImageSet:
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    images, labels = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")
    found = ImageSet(images, labels, tuple(about["classes"]), tuple(map(str, about.get("notes", ()))))
    if found.digest != about["digest"]:
        raise ValueError(f"{folder}: other digest")
    return found
