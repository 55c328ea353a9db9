"""Arrays of tokens on disk with a digest for each part, which is checked when the part is first read.

A run can start at once however large the file is, and still notices damage before it uses a number.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lscl.errors import LsclError
from lscl.files import check_regular

PART = 2**26  # bytes of a part
SMALL = 2**28  # bytes up to which a file is read and compared as a whole when it is opened
DATA, ABOUT = "tokens.npy", "about.json"

_intact: dict[tuple, set[int]] = {}  # parts that this process has found to be intact, by the file's stamps


class PartDigests:
    """SHA-256 of each part of an array whose rows come in their order.

    Args:
        shape: of the array; a part has whole rows.
        dtype: type of its numbers.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype):
        self.rows = rows_of_part(shape, dtype)
        self.seen, self.parts = 0, []

    def add(self, block: np.ndarray) -> None:
        """Go on with the next rows."""
        while len(block):
            if self.seen % self.rows == 0:
                self.parts.append(hashlib.sha256())
            fitting = block[: self.rows - self.seen % self.rows]
            self.parts[-1].update(np.ascontiguousarray(fitting))
            self.seen, block = self.seen + len(fitting), block[len(fitting) :]

    def save(self, folder: Path) -> None:
        """Write the digests next to the array."""
        digests = [part.hexdigest() for part in self.parts]
        (folder / ABOUT).write_text(json.dumps({"parts": digests}), encoding="utf-8")


def rows_of_part(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """The number of rows that make a part.

    Args:
        shape: of the array.
        dtype: type of its numbers.

    Returns:
        At least 1.
    """
    return max(1, PART // (int(np.prod(shape[1:])) * dtype.itemsize))


class StoredTokens:
    """An array in a folder, memory-mapped and read-only, that is read by indexing its first axis.

    Args:
        folder: with the array and its digests.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not what it should be, or a small array is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        stamps = [check_regular(folder / name) for name in (ABOUT, DATA)][1]
        self.inode = stamps.st_ino
        self.array = np.load(folder / DATA, mmap_mode="r")
        self.parts = json.loads((folder / ABOUT).read_text(encoding="utf-8"))["parts"]
        self.rows, self.places = rows_of_part(self.shape, self.dtype), np.arange(len(self.array))
        if len(self.parts) != -(-len(self.array) // self.rows):
            raise ValueError("other parts")
        self.intact = _intact.setdefault((str(folder), stamps.st_ino, stamps.st_size, stamps.st_mtime_ns), set())
        if self.nbytes <= SMALL and self.damaged():
            raise ValueError("digest")
        os.utime(folder / ABOUT)  # the time of its last use

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, N, d)."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored numbers."""
        return self.array.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.array.nbytes

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read rows.

        Raises:
            LsclError: a part that is read for the first time is not as it was written. It will be computed again.
        """
        bad = self.damaged(np.unique(self.places[index] // self.rows))
        if bad:
            self._disown()
            raise LsclError(
                f"damaged activations {self.folder}: part {bad[0] + 1} of {len(self.parts)} is not as it was written; "
                "the same command computes them again"
            )
        return self.array[index]

    def _disown(self) -> None:
        """Let nobody take the damaged array for a finished one; one that another process has computed since stays."""
        with suppress(FileNotFoundError):
            if (self.folder / DATA).stat().st_ino == self.inode:
                (self.folder / ABOUT).unlink()

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype=dtype)

    def damaged(self, numbers: Iterable[int] | None = None) -> list[int]:
        """Compare parts with their digests, unless this process has done so before.

        Args:
            numbers: of the parts; None = all.

        Returns:
            The numbers of those that are not as they were written.
        """
        bad = []
        for number in map(int, range(len(self.parts)) if numbers is None else numbers):
            if number in self.intact:
                continue
            part = self.array[number * self.rows : (number + 1) * self.rows]
            if hashlib.sha256(np.ascontiguousarray(part)).hexdigest() == self.parts[number]:
                self.intact.add(number)
            else:
                bad.append(number)
        return bad
