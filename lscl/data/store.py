"""Decoded images as memory-mapped uint8 arrays with a digest, decoded once and checked at every opening.

Also the writing of files and folders so that a stopped process leaves nothing half written.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock

from lscl import paths
from lscl.errors import LsclError, first_line
from lscl.files import check_regular

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
ZEROS = 2**24  # bytes written at once

NO_LOCK = (OSError, NotImplementedError)  # the second: the disk has no locks, as some mounted from elsewhere

Stored = TypeVar("Stored")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with labels; two sets are equal only if they are the same object.

    Args:
        images: (n, H, W, 3) uint8.
        labels: (n,) int64, positions in `classes`.
        classes: class names.
        notes: remarks on the files for the user, one line each.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pixels, labels and class names, 64 hex digits."""
        return digest_of(self.images, self.labels, json.dumps(self.classes).encode())

    def subset(self, index: np.ndarray) -> "ImageSet":
        """The images at `index`, in that order, copied into memory."""
        return ImageSet(np.ascontiguousarray(self.images[index]), self.labels[index], self.classes)


@dataclass(frozen=True)
class Dataset:
    """A named data set: training and test images with the same classes and the same image size."""

    name: str
    train: ImageSet
    test: ImageSet

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.train.classes

    @property
    def digest(self) -> str:
        """SHA-256 of both splits, 16 hex digits."""
        return hashlib.sha256((self.train.digest + self.test.digest).encode()).hexdigest()[:16]


def sort_canonically(images: ImageSet) -> ImageSet:
    """Order images by label, then by the SHA-256 of their pixels: the result does not depend on the source's order."""
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
    """Make a .npy file of zeros, memory-mapped for writing, whose space on the disk is taken at once.

    Writing to a file with holes would kill the process (Bus error) when the disk is full; here it is an ordinary error.

    Args:
        path: the new file.
        dtype: type of the numbers.
        shape: shape of the array.

    Returns:
        The array.

    Raises:
        OSError: the disk has too little room.
    """
    mapped = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(1, path.stat().st_size))
        except (AttributeError, OSError) as error:  # macOS and Windows lack the call, some file systems refuse it
            if getattr(error, "errno", errno.ENOSYS) not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            file.seek(mapped.offset)
            for start in range(0, mapped.nbytes, ZEROS):
                file.write(bytes(min(ZEROS, mapped.nbytes - start)))
    return mapped


def cannot_write(path: Path, error: Exception) -> LsclError:
    """Make the error for a file or folder that cannot be written.

    Args:
        path: the file or folder.
        error: what the system said, or that the disk has no locks.

    Returns:
        The error, with what helps: another cache folder, or the same command once more.
    """
    if path.is_relative_to(paths.cache()):
        helps = "free some space or set LSCL_CACHE to another folder"
    else:
        helps = "once that is mended, the same command goes on"
    said = getattr(error, "strerror", None) or first_line(error)
    return LsclError(f"cannot write {path}: {said}; {helps}")


@contextmanager
def new_folder(target: Path):
    """Make a folder inside a `with` block: a temporary one that becomes `target` when the block ends well.

    Raises:
        LsclError: the disk is full or the folder cannot be written.
    """
    made = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
        yield made
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        if made is not None and made.exists():
            shutil.rmtree(made, ignore_errors=True)


def builder_lock(target: Path) -> FileLock:
    """The lock that a process has while it builds a folder of the cache."""
    return FileLock(target.with_name(f".{target.name}.building"))


@contextmanager
def only_builder(target: Path) -> Iterator[None]:
    """Let one process at a time build a folder of the cache; the others wait here.

    A killed process blocks nobody: the system frees its lock, and what it had written is removed.

    Args:
        target: the folder.

    Raises:
        LsclError: the cache folder cannot be written.
    """
    lock = builder_lock(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except NO_LOCK as error:
        raise cannot_write(target, error) from error
    try:
        for left in target.parent.glob(f".{target.name}.new-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


def found_or_built(folder: Path, find: Callable[[], Stored | None], build: Callable[[], Stored]) -> Stored:
    """Read what a folder of the cache holds; only one of several processes builds what is absent.

    Args:
        folder: the folder.
        find: reads it; None = it is absent or damaged.
        build: makes the folder and reads it.

    Returns:
        What `find` or `build` returns.

    Raises:
        LsclError: the cache folder cannot be written.
    """
    found = find()
    if found is not None:
        return found
    with only_builder(folder):
        found = find()  # another process may have built it in the meantime
        return build() if found is None else found


def private_folder(path: Path) -> Path:
    """Make a folder private: only its owner can enter it and read its files; missing folders above it are made, too."""
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

    Args:
        path: the file; missing folders above it are made.
        data: its content.
        mode: its permissions, as far as the umask allows.

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
    """Read a file that may not be what it should be.

    Args:
        path: the file.
        limit: largest size in bytes.

    Returns:
        Its content.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger.
    """
    size = check_regular(path).st_size
    if size > limit:
        raise OSError(f"it has {size} bytes, at most {limit} are read")
    return path.read_bytes()


def cache_images(name: str, decode: Callable[[], ImageSet]) -> ImageSet:
    """Read an image set from the cache folder; decode it first if it is absent or damaged.

    The stored digest is compared with the bytes on disk at the first opening and after every change of the files,
    so a damaged cache is rebuilt and never used.

    Args:
        name: name in the cache.
        decode: makes the image set.

    Returns:
        The image set, memory-mapped.

    Raises:
        LsclError: the disk is full or the cache folder cannot be written.
    """
    folder = paths.cache() / "images" / name

    def build() -> ImageSet:
        made = decode()
        with new_folder(folder) as new:
            np.save(new / "images.npy", made.images)
            _describe(new, made)
        return _open(folder)

    return found_or_built(folder, lambda: _found(folder), build)


def cache_piecewise(name: str, write: Callable[[Path], ImageSet]) -> ImageSet:
    """The same as `cache_images`, for images that may not fit into memory: they are written piece by piece.

    Args:
        name: name in the cache.
        write: writes images.npy to the given folder and returns the image set.

    Returns:
        The image set, memory-mapped.

    Raises:
        LsclError: the disk is full or the cache folder cannot be written.
    """
    folder = paths.cache() / "images" / name

    def build() -> ImageSet:
        with new_folder(folder) as new:
            _describe(new, write(new))
        return _open(folder)

    return found_or_built(folder, lambda: _found(folder), build)


def cache_splits(
    name: str,
    keys: Sequence[str],
    labels: np.ndarray,
    classes: tuple[str, ...],
    test: np.ndarray,
    size: int,
    decode: Callable[[], Iterable[tuple[str, np.ndarray]]],
) -> tuple[ImageSet, ImageSet]:
    """The same as `cache_images` for both splits, image by image, as they may not fit into memory.

    Args:
        name: name in the cache.
        keys: (n,) names of the images, in the order of the result.
        labels: (n,) labels of the images.
        classes: class names.
        test: (n,) bool, whether an image is for testing.
        size: pixels a side.
        decode: yields (key, (size, size, 3) uint8) in any order.

    Returns:
        Training and test images, memory-mapped.

    Raises:
        LsclError: `decode` did not yield every key once, or the disk is full.
    """
    folder = paths.cache() / "images" / name
    parts = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}

    def find() -> tuple[ImageSet, ImageSet] | None:
        found = tuple(_found(folder / part) for part in parts)
        return None if None in found else found

    def build() -> tuple[ImageSet, ImageSet]:
        with new_folder(folder) as new:
            _decode_splits(new, name, keys, labels, classes, parts, size, decode())
        return tuple(_open(folder / part) for part in parts)

    return found_or_built(folder, find, build)


def _decode_splits(
    new: Path,
    name: str,
    keys: Sequence[str],
    labels: np.ndarray,
    classes: tuple[str, ...],
    parts: dict[str, np.ndarray],
    size: int,
    pictures: Iterable[tuple[str, np.ndarray]],
) -> None:
    """Write every picture to its place in the split that it belongs to."""
    place = {}
    for part, index in parts.items():
        (new / part).mkdir()
        pixels = allocated_memmap(new / part / "images.npy", np.uint8, (len(index), size, size, 3))
        place |= {keys[i]: (pixels, row) for row, i in enumerate(index)}
    for key, picture in pictures:
        pixels, row = place.pop(key)
        pixels[row] = picture
    if place:
        raise LsclError(f"{name}: {len(place)} images did not come, the first is {next(iter(place))}")
    for part, index in parts.items():
        _describe(new / part, ImageSet(np.load(new / part / "images.npy", mmap_mode="r"), labels[index], classes))


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder, without those that another process renames or removes meanwhile."""
    total = 0
    for here, _, names in os.walk(folder):  # it passes over folders that are gone
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(here, name).stat().st_size
    return total


def damaged_packs() -> Iterator[tuple[Path, bool]]:
    """Read all image sets of the cache as a whole.

    Yields:
        Each folder, and whether it is damaged.
    """
    top = paths.cache() / "images"
    found = [Path(here) for here, folders, files in os.walk(top) if "images.npy" in (*folders, *files)]
    for folder in sorted(found):
        if not any(part.startswith(".") for part in folder.relative_to(top).parts):
            yield folder, _found(folder) is None


def _describe(folder: Path, made: ImageSet) -> None:
    """Write the labels, and last the description, which shows that images.npy is complete."""
    np.save(folder / "labels.npy", made.labels)
    about = {"classes": made.classes, "digest": made.digest, "notes": made.notes}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _found(folder: Path) -> ImageSet | None:
    """The image set in a folder of the cache; None if it is absent or damaged in any way."""
    try:
        return _open(folder)
    except Exception:
        return None


def _open(folder: Path) -> ImageSet:
    """The image set in a folder of the cache; unchanged files are read and compared with their digest only once."""
    found = [check_regular(folder / name) for name in ("about.json", "images.npy", "labels.npy")]
    return _checked(folder, tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in found))


@lru_cache(maxsize=4)
def _checked(folder: Path, stamps: tuple) -> ImageSet:
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    images, labels = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")
    found = ImageSet(images, labels, tuple(about["classes"]), tuple(map(str, about.get("notes", ()))))
    if found.digest != about["digest"]:
        raise ValueError(f"{folder}: other digest")
    return found
