"""Image folders: FOLDER/train/<class>/... and FOLDER/test/<class>/..., or FOLDER/<class>/..., at any depth in a class.

Hidden names (a leading dot, Thumbs.db, __MACOSX and the like) are skipped. Other files that are no images are reported.
"""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from lscl.data.picture import is_picture, read_picture
from lscl.data.store import ImageSet, allocated_memmap, cache_piecewise, digest_of
from lscl.errors import LsclError, make_printable, pluralize

DECODER = 2  # raise it when decoding changes, so that images decoded before are not used
HIDDEN = {
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "__macosx",
    "$recycle.bin",
    "@eadir",
}  # files of systems and viewers, in lower case
SPLITS = ("train", "test")


def image_folder(folder: Path, size: int, listed: tuple[dict[str, list[Path]], list[Path]] | None = None) -> ImageSet:
    """Decode FOLDER/<class>/... once; later calls read the cache.

    Classes are in alphabetical order, the images of a class in the order of their pixels' digests, so the result does
    not depend on the file system.

    Args:
        folder: the folder of class folders.
        size: pixels a side; the shorter side is resized, the centre cropped.
        listed: what `class_files` found in the folder; None = list it here.

    Returns:
        All images, memory-mapped.

    Raises:
        LsclError: the folder is missing or has no images, a class has none, or an image cannot be read.
    """
    classes, loose = listed or class_files(folder)
    name = f"folder-{stamp(folder, [*(path for files in classes.values() for path in files), *loose], size, DECODER)}"
    return cache_piecewise(name, lambda made: _decode(folder, classes, loose, size, made))


def stamp(folder: Path, files: Iterable[Path], *more: object) -> str:
    """The name of a decoded source in the cache: a digest of its place and of the names, sizes and times of its files.

    Args:
        folder: the place of the source.
        files: its files.
        more: whatever else decides the decoded pixels.

    Returns:
        16 hex digits.
    """
    place = " ".join(map(str, (folder.resolve(), *more)))  # train/ and test/ may agree in all files
    total = hashlib.sha256(os.fsencode(place + "\n"))
    top = f"{folder}{os.sep}"
    for path in map(os.fspath, files):
        try:
            about = os.stat(path)
        except OSError:  # of a broken link: its own size and time
            about = os.lstat(path)
        total.update(os.fsencode(f"{path.removeprefix(top)} {about.st_size} {about.st_mtime_ns}\n"))
    return total.hexdigest()[:16]


def class_files(folder: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """List the files of each class, images or not, without hidden ones.

    Returns:
        {class: its files, sorted}, and the files outside of all class folders.

    Raises:
        LsclError: the folder is missing or cannot be read, has no class folders, or has two whose names look the same.
    """
    if not folder.is_dir():
        raise LsclError(f"no data folder {folder}: give an existing folder of <class>/<image> files")
    here = sorted(path for path in _listed(folder) if not is_hidden(path.name))
    around = {_identity(path) for path in (folder, *folder.resolve().parents)}
    classes = {path.name: _files(path, around) for path in here if path.is_dir()}
    if not classes:
        raise LsclError(f"no images in {folder}: expected a folder for each class, <class>/<image>")
    looks = {}
    for name in classes:
        other = looks.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise LsclError(
                f"{folder}: two class folders look the same, {other!a} and {name!a}: join them or rename one"
            )
    return classes, [path for path in here if not path.is_dir()]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or a leftover of an operating system or image viewer, such as Thumbs.db."""
    return name.startswith(".") or name.lower() in HIDDEN


def _files(folder: Path, around: set[tuple[int, int]]) -> list[Path]:
    """All files below a class folder; links are followed, but no folder is read twice, and none `around` the class."""
    found, seen = [], {_identity(folder), *around}
    if _identity(folder) in around:
        raise LsclError(f"class folder {folder} is a link to a folder that it lies in")
    for here, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        inside = {name: _identity(Path(here, name)) for name in sorted(folders) if not is_hidden(name)}
        folders[:] = [name for name, one in inside.items() if one not in seen and not seen.add(one)]
        found += [Path(here, name) for name in names if not is_hidden(name)]
    return sorted(found)


def _identity(folder: Path) -> tuple[int, int]:
    about = folder.stat()
    return about.st_dev, about.st_ino


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> None:
    raise LsclError(f"cannot read {error.filename}: {error.strerror or error}") from error


def pictures_of(folder: Path, classes: dict[str, list[Path]]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Separate images from other files.

    Args:
        folder: the folder of class folders.
        classes: {class: its files}.

    Returns:
        {class: its image files}, and all other files.

    Raises:
        LsclError: a class has no image.
    """
    pictures, others = {}, []
    for name, files in classes.items():
        pictures[name] = [path for path in files if is_picture(path)]
        others += sorted(set(files) - set(pictures[name]))
        if not pictures[name]:
            what = describe_ignored(folder, files) or "it is empty"
            where = make_printable(str(folder / name))
            raise LsclError(f"no images in class folder {where}: {what}; remove the folder if it is no class")
    return pictures, others


def describe_ignored(folder: Path, files: Iterable[Path]) -> str:
    """Say which files were skipped.

    Args:
        folder: the folder of class folders; paths in the line start from it.
        files: the skipped files.

    Returns:
        One line with their number, kinds and first name; empty if there are none.
    """
    files = sorted(files)
    if not files:
        return ""
    kinds = Counter(make_printable(path.suffix.lower(), 12) or "without ending" for path in files)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0])))
    first = make_printable(str(files[0].relative_to(folder)))
    return f"{pluralize(len(files), 'file')} ignored: {counts}; the first is {first}"


def _decode(folder: Path, classes: dict[str, list[Path]], loose: list[Path], size: int, made: Path) -> ImageSet:
    """Write the images class by class into made/images.npy, in the order of `sort_canonically`."""
    pictures, others = pictures_of(folder, classes)
    counts = [len(files) for files in pictures.values()]
    images = allocated_memmap(made / "images.npy", np.uint8, (sum(counts), size, size, 3))
    several, start = 0, 0
    for files in pictures.values():
        for row, path in enumerate(files, start):
            picture = read_picture(path, make_printable(str(path)))
            images[row] = picture.square(size, make_printable(str(path)))
            several += picture.frames > 1
        own = slice(start, start + len(files))
        images[own] = images[own][np.argsort([digest_of(image) for image in images[own]], kind="stable")]
        start += len(files)
    images.flush()
    notes = [
        describe_ignored(folder, [*others, *loose]),
        f"{pluralize(several, 'file')} with several pictures, the first is used" if several else "",
    ]
    return ImageSet(
        images, np.repeat(np.arange(len(counts)), counts), tuple(pictures), tuple(note for note in notes if note)
    )


def split_folders(folder: Path) -> tuple[Path, Path]:
    """FOLDER/train and FOLDER/test.

    Raises:
        LsclError: one of them is missing; the line lists the folders that are there.
    """
    if not folder.is_dir():
        raise LsclError(f"no data folder {folder}: give an existing folder with {' and '.join(SPLITS)} in it")
    if not all((folder / split).is_dir() for split in SPLITS):
        raise LsclError(f"{folder}: expected the folders {' and '.join(SPLITS)}, found {list_folders(folder)}")
    return folder / SPLITS[0], folder / SPLITS[1]


def list_folders(folder: Path) -> str:
    """The names of the folders inside `folder`, as a list in a sentence."""
    found = sorted(path.name for path in _listed(folder) if path.is_dir() and not is_hidden(path.name))
    more = f" and {len(found) - 8} more" if found[8:] else ""
    return ", ".join(make_printable(name, 40) for name in found[:8]) + more or "no folder"


def check_same_classes(folder: Path, train: Collection[str], test: Collection[str]) -> None:
    """Check that both splits have the same class folders.

    Args:
        folder: the folder of both splits, for the message.
        train: class names of the training split.
        test: class names of the test split.

    Raises:
        LsclError: they differ; names that differ only in case or Unicode form are shown as a pair.
    """
    odd = sorted(set(train) ^ set(test))
    alike = {}
    for name in odd:
        other = alike.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if other != name:
            raise LsclError(
                f"{folder}: {other!a} and {name!a} differ only in case or Unicode form; "
                "a class has one name in train and test"
            )
    if odd:
        where = "train" if odd[0] in train else "test"
        raise LsclError(
            f"{folder}: train and test must have the same class folders; {odd[0]!r} is in only one of them, {where}"
        )
