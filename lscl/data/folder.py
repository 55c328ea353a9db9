"""Any image-folder tree: FOLDER/train/<class>/<image> and FOLDER/test/<class>/<image>, or FOLDER/<class>/<image>."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from lscl.data.store import ImageSet, cached, canonical
from lscl.errors import LsclError


def image_folder(folder: Path, size: int) -> ImageSet:
    """Decode FOLDER/<class>/<image> at `size` pixels a side (shorter side resized, centre cropped); cached.

    Classes and files are taken in alphabetical order, so labels do not depend on the file system.

    Raises:
        LsclError: the folder is missing or holds no images, or an image is corrupt (it is named).
    """
    files = list_images(folder)
    return cached(f"folder-{stamp(folder, files, size)}", lambda: _decode(folder, files, size))


def stamp(folder: Path, files: Iterable[Path], *more: object) -> str:
    """What names a decoded source in the cache: its place, its files' names, sizes and times, and whatever `more` decides; 16 hex digits."""
    total = hashlib.sha256(" ".join(map(str, (folder.resolve(), *more))).encode() + b"\n")  # train/ and test/ may agree in all files
    for path in files:
        about = path.stat()
        total.update(f"{path.relative_to(folder)} {about.st_size} {about.st_mtime_ns}\n".encode())
    return total.hexdigest()[:16]


def list_images(folder: Path) -> list[Path]:
    """Every image file in the class folders of `folder`, sorted.

    Raises:
        LsclError: the folder is missing, or there is no class folder with images in it.
    """
    if not folder.is_dir():
        raise LsclError(f"no data folder {folder}: give an existing folder of <class>/<image> files")
    files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in IMG_EXTENSIONS)
    if not files:
        raise LsclError(f"no images in {folder}: expected <class>/<image> files ending in {' '.join(IMG_EXTENSIONS)}")
    return files


def _decode(folder: Path, files: list[Path], size: int) -> ImageSet:
    classes = sorted({path.parent.name for path in files})
    number = {name: i for i, name in enumerate(classes)}
    images = np.empty((len(files), size, size, 3), np.uint8)
    for i, path in enumerate(files):
        images[i] = square(path, size, str(path))
    labels = np.array([number[path.parent.name] for path in files], np.int64)
    return canonical(ImageSet(images, labels, tuple(classes)))


def square(file: Path | BinaryIO, size: int, name: str) -> np.ndarray:
    """One image file, its shorter side resized and the centre cropped: (size, size, 3) uint8.

    Raises:
        LsclError: it is corrupt; the line says `name`.
    """
    try:
        with Image.open(file) as picture:
            picture = picture.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise LsclError(f"corrupt image {name}: {error}") from error
    width, height = picture.size
    if (width, height) != (size, size):
        scale = size / min(width, height)
        picture = picture.resize((max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BICUBIC)
        left, top = (picture.width - size) // 2, (picture.height - size) // 2
        picture = picture.crop((left, top, left + size, top + size))
    return np.asarray(picture)
