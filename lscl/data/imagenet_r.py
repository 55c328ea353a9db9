"""ImageNet-R (Hendrycks et al. 2021, arXiv 2006.16241): 30,000 renditions of 200 ImageNet classes.

The images are split into 24,000 and 6,000. The official archive is downloaded, or found in a local folder, and read
without unpacking it, so no file name in it can write anywhere. Its size and SHA-256 are those that TensorFlow Datasets
publishes (url_checksums/imagenet_r.txt).
"""

import hashlib
import io
import json
import shutil
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from lscl import paths
from lscl.data.folder import DECODER, is_hidden, stamp
from lscl.data.picture import square
from lscl.data.store import ImageSet, cache_splits, digest_of, write_atomic
from lscl.errors import LsclError
from lscl.seeding import numpy_generator

URL = "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar"
SIZE = 2_191_079_936  # bytes
SHA256 = "18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52"
CLASSES, IMAGES = 200, 30_000
ARCHIVE, FOLDER = "imagenet-r.tar", "imagenet-r"
ENDINGS = (".jpg", ".jpeg", ".png")
CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class Source:
    """The archive, or a folder of <class>/<image>, which may be split into train/ and test/; these are joined."""

    path: Path

    def names(self) -> list[str]:
        """Every image as "class/file", sorted: the same list from every source.

        Raises:
            LsclError: a damaged archive, or not 200 classes and 30,000 images.
        """
        found = sorted(name for name, _ in self._files(read=False))
        classes = {name.split("/")[0] for name in found}
        if (len(classes), len(found), len(set(found))) != (CLASSES, IMAGES, IMAGES):
            raise LsclError(
                f"{self.path} has {len(found)} images of {len(classes)} classes, ImageNet-R has {IMAGES} of {CLASSES}"
            )
        return found

    def pictures(self, size: int) -> Iterator[tuple[str, np.ndarray]]:
        """Every image once, in the order of the source: its name and (size, size, 3) uint8.

        Raises:
            LsclError: an image is corrupt.
        """
        for name, file in self._files(read=True):
            yield name, square(file, size, f"{self.path}: {name}")

    def stamp(self) -> str:
        """Digest of place, sizes and times of the source's files, 16 hex digits."""
        return stamp(self.path.parent, self._paths() if self.path.is_dir() else [self.path])

    def _paths(self) -> list[Path]:
        found = sorted(path for pattern in ("*/*", "train/*/*", "test/*/*") for path in self.path.glob(pattern))
        return [file for file in found if file.is_file() and _image(file.name)]

    def _files(self, read: bool) -> Iterator[tuple[str, BinaryIO | None]]:
        if self.path.is_dir():
            for file in self._paths():
                yield "/".join(file.parts[-2:]), io.BytesIO(file.read_bytes()) if read else None
            return
        try:
            with tarfile.open(self.path) as archive:
                for member in archive:
                    parts = Path(member.name).parts
                    if member.isfile() and len(parts) >= 2 and _image(parts[-1]):
                        yield "/".join(parts[-2:]), archive.extractfile(member) if read else None
        except (tarfile.TarError, OSError, EOFError) as error:
            raise LsclError(f"damaged archive {self.path}: {error}; remove it to download it again") from error


def _image(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not is_hidden(name)


def imagenet_r(data_dir: Path | None, size: int) -> tuple[ImageSet, ImageSet]:
    """Decode the 24,000 training and 6,000 test images once; later calls read the cache.

    Images are ordered by class and file name, so the archive and a folder give the same digests.
    The split is written to results/splits/ as a list of positions in that order.

    Args:
        data_dir: folder with the archive or the class folders; None = download the archive.
        size: pixels a side; the shorter side is resized, the centre cropped.

    Returns:
        Training and test images, memory-mapped.

    Raises:
        LsclError: the folder is missing or does not hold ImageNet-R, a file is damaged, or the download fails.
    """
    source = Source(archive() if data_dir is None else _local(data_dir))
    names = source.names()
    labels, classes = _labels(names)
    test = split(labels)
    save_split(test)
    name = f"imagenet_r-{size}-{digest_of(json.dumps(names).encode(), test)[:12]}-v{DECODER}"
    if data_dir is not None:  # files of these names may hold other pictures than the archive
        name += f"-{source.stamp()}"
    return cache_splits(name, names, labels, classes, test, size, lambda: source.pictures(size))


def _labels(names: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    classes = tuple(sorted({name.split("/")[0] for name in names}))
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number[name.split("/")[0]] for name in names], np.int64), classes


def split(labels: np.ndarray) -> np.ndarray:
    """Draw the test images: a fifth of every class, and a fifth of all. (n,) labels -> (n,) bool.

    Where a fifth of a class is no whole number, the classes with the largest remainders get one more.
    Other works draw a split as well, but none of them publishes the list.
    """
    counts = np.bincount(labels)
    take = counts // 5
    take[np.argsort(-(counts % 5), kind="stable")[: len(labels) // 5 - take.sum()]] += 1
    test = np.zeros(len(labels), bool)
    for label, count in enumerate(take):
        own = np.flatnonzero(labels == label)
        test[numpy_generator(0, "imagenet-r split", label).permutation(own)[:count]] = True
    return test


def save_split(test: np.ndarray) -> Path:
    """Write the positions of the test images and the digest of that list to results/splits/; return the file."""
    positions = np.flatnonzero(test).tolist()
    digest = digest_of(json.dumps(positions).encode())[:16]
    path = paths.results() / "splits" / f"imagenet_r--{digest}.json"
    if not path.exists():
        write_atomic(
            path, json.dumps({"digest": digest, "images": len(test), "test": positions}, separators=(",", ":")).encode()
        )
    return path


def _local(folder: Path) -> Path:
    if not folder.is_dir():
        raise LsclError(f"no data folder {folder}: give a folder with {ARCHIVE} or {FOLDER}/<class>/<image>")
    for found in (folder / FOLDER, folder / ARCHIVE):
        if found.exists():
            return found
    return folder


def archive() -> Path:
    """The official archive in the cache; downloads what is missing, and resumes a stopped download.

    Raises:
        LsclError: no connection, a full disk, or another file than the official one.
    """
    target = paths.cache() / "downloads" / ARCHIVE
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):  # several processes of a sweep may want it at once
            return target if target.exists() else _fetched(target)  # it gets this name after its SHA-256 is checked
    except (OSError, HTTPException) as error:
        raise LsclError(
            f"ImageNet-R not downloaded ({error}); the same command goes on, or give --data-dir a folder with {ARCHIVE}"
        ) from error


def _fetched(target: Path) -> Path:
    part = target.with_name(f"{ARCHIVE}.part")
    have = part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(part.parent).free
    if free < SIZE - have:
        raise LsclError(
            f"ImageNet-R needs {(SIZE - have) / 1e9:.1f} GB more in {part.parent}, "
            f"{free / 1e9:.1f} GB are free: set LSCL_CACHE"
        )
    if have < SIZE:
        print(
            f"downloading {URL} to {target}, {(SIZE - have) / 1e9:.1f} GB; a stopped download goes on", file=sys.stderr
        )
        _download(part, have)
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if (part.stat().st_size, found) == (SIZE, SHA256):
        part.replace(target)
        return target
    if part.stat().st_size >= SIZE:
        part.unlink()
        raise LsclError(f"{URL}: not the official archive (SHA-256 {found}, expected {SHA256}); what came was deleted")
    raise LsclError(f"{URL}: the connection ended early; the same command goes on")


def _download(part: Path, have: int) -> None:
    request = urllib.request.Request(URL, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        going_on = have > 0 and answer.status == 206  # else the server sends all of it
        with open(part, "ab" if going_on else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
