"""Decode any image, a file or one of Pillow's, to upright RGB pixels of 8 bits; no other module decodes images.

- The content decides the format; the ending only helps with formats that have no signature.
- EXIF's orientation is followed. Of several pictures in a file (GIF, TIFF, MPO) the first is read.
- Grey of more than 8 bits is scaled by its depth: 65535, or 4095 with 12 bits, becomes 255. Floats go from 0 to 1.
  No convention says which 32-bit or signed integer is white, so such files are refused, and so are floats outside of 0
  to 1.
- Transparent pixels are put on white. Pillow's own rule turns CMYK, LAB and palettes into RGB; colour profiles (ICC)
  are ignored.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from lscl.errors import LsclError, first_line
from lscl.files import check_regular

# Formats of Pillow that are no pictures to train on: measurements, drawings for another program, films, documents.
REFUSED = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}
# Formats whose content is unmistakable, so that the name of the file does not matter. TIFF is not among them: camera
# raw files are TIFF inside, and Pillow would read their thumbnail.
SIGNED = ["JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM", "JPEG2000", "AVIF", "PSD", "QOI", "DDS"]
ORIENTATION = 0x0112  # in EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # in TIFF

logging.getLogger("PIL").addHandler(logging.NullHandler())  # the exception says what is wrong with a file


@dataclass(frozen=True)
class Picture:
    """A decoded image file.

    Args:
        rgb: upright RGB pixels.
        format: format of the file, as Pillow names it; empty for an image that was made in memory.
        mode: mode of the file, as Pillow names it.
        size: width and height in the file, in pixels.
        frames: number of pictures in the file.
        changes: what decoding did to the pixels, in words.
    """

    rgb: Image.Image
    format: str
    mode: str
    size: tuple[int, int]
    frames: int
    changes: tuple[str, ...]

    def square(self, size: int, name: str) -> np.ndarray:
        """Resize the shorter side and crop the centre.

        Args:
            size: pixels a side.
            name: the image's name in messages.

        Returns:
            (size, size, 3) uint8.

        Raises:
            LsclError: the image is so long and thin that its resized pixels would fill the memory.
        """
        picture = self.rgb
        width, height = picture.size
        if (width, height) != (size, size):
            scale = size / min(width, height)
            width, height = max(size, round(width * scale)), max(size, round(height * scale))
            if width * height > max_pixels():
                before = f"{picture.width} x {picture.height}"
                raise LsclError(f"too narrow image {name}: {before} pixels would become {width} x {height}")
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            left, top = (picture.width - size) // 2, (picture.height - size) // 2
            picture = picture.crop((left, top, left + size, top + size))
        return np.asarray(picture)


def square(file: Path | BinaryIO, size: int, name: str) -> np.ndarray:
    """Decode an image file, resize its shorter side and crop the centre.

    Args:
        file: path or open file.
        size: pixels a side.
        name: the image's name in messages.

    Returns:
        (size, size, 3) uint8.

    Raises:
        LsclError: as `read_picture` and `Picture.square`.
    """
    return read_picture(file, name).square(size, name)


def max_pixels() -> int:
    """Pillow's limit for the pixels of an image, which keeps a small file from filling the memory."""
    return 2 * Image.MAX_IMAGE_PIXELS


def read_picture(file: Path | BinaryIO, name: str) -> Picture:
    """Decode an image file.

    Args:
        file: path or open file.
        name: the image's name in messages.

    Returns:
        The picture, upright and in RGB.

    Raises:
        LsclError: the file is no regular file, is corrupt or too large, or no convention says which of its numbers is
            white.
    """
    try:
        if isinstance(file, Path):
            check_regular(file)
    except OSError as error:
        raise LsclError(f"cannot read {name}: {error.strerror or error}") from error
    with _one_line(name), warnings.catch_warnings(action="ignore"), Image.open(file, formats=_formats()) as picture:
        return _decoded(picture, name)


def decode_picture(picture: Image.Image, name: str) -> Picture:
    """Decode an image that Pillow has opened or made, by the same rules as a file; of several frames its current one.

    Args:
        picture: the image; it stays open.
        name: the image's name in messages.

    Returns:
        The picture, upright and in RGB.

    Raises:
        LsclError: the image has no pixels, is closed, corrupt or too large, or no convention says which of its numbers
            is white.
    """
    with _one_line(name), warnings.catch_warnings(action="ignore"):
        return _decoded(picture, name)


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn whatever goes wrong with an image into one line."""
    try:
        yield
    except LsclError:
        raise
    except MemoryError as error:
        raise LsclError(f"too large image {name}: not enough memory to decode it") from error
    except Image.DecompressionBombError as error:
        raise LsclError(f"too large image {name}: it has more than the allowed {max_pixels():,} pixels") from error
    except UnidentifiedImageError as error:
        raise LsclError(f"corrupt image {name}: no format that Pillow reads") from error
    except Exception as error:  # decoders raise all kinds of exceptions on damaged files
        raise LsclError(f"corrupt image {name}: {first_line(error)}") from error


def is_picture(path: Path) -> bool:
    """Whether the content or the name of a file is that of an image."""
    if path.suffix.lower() in endings():
        return True
    if not path.is_file():
        return False
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=SIGNED):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # whatever it is, it is no image that can be recognised
        return False


@cache
def endings() -> set[str]:
    """The endings of image files, in lower case, with their dots."""
    return {ending for ending, kind in Image.registered_extensions().items() if kind not in REFUSED}


def _formats() -> list[str]:
    Image.init()
    return [kind for kind in Image.ID if kind not in REFUSED]


def _decoded(picture: Image.Image, name: str) -> Picture:
    kind, mode, size = picture.format or "", picture.mode, picture.size
    if min(size) == 0:
        raise LsclError(f"empty image {name}: {size[0]} x {size[1]} pixels")
    picture.load()
    changes = []
    if mode in ("I", "F") or mode.startswith("I;"):
        rgb = Image.fromarray(_eight_bits(picture, name)).convert("RGB")
        changes.append("scaled to 8 bits")
    elif picture.has_transparency_data:
        clear = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
        changes.append("put on white")
    else:
        rgb = picture.convert("RGB")
    turn = _orientation(picture)
    if turn is not None:
        rgb = rgb.transpose(turn)
        changes.append("turned upright")
    return Picture(rgb, kind, mode, size, _frames(picture), tuple(changes))


def _eight_bits(picture: Image.Image, name: str) -> np.ndarray:
    """Grey values of more than 8 bits as (H, W) uint8; the depth, not the content, decides which value is white."""
    values, tags = np.array(picture), getattr(picture, "tag_v2", {})
    if picture.mode == "F":
        white, low, high = 1, values.min(), values.max()
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise LsclError(f"cannot use image {name}: its floats go from {low:g} to {high:g}, allowed is 0 to 1")
    elif picture.mode == "I" and picture.format not in ("PNG", "PPM"):  # these two have 16 bits
        raise LsclError(
            f"cannot use image {name}: no convention says which 32-bit or signed integer is white; "
            "save it with 8 or 16 bits"
        )
    else:
        white = 2 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1
    clear = picture.info.get("transparency")
    if clear is not None:
        values[values == clear] = white
    if tags.get(PHOTOMETRIC) == 0:  # "0 is white", which Pillow does not invert at this depth
        values = white - values
    return np.rint(values.astype(np.float32) * 255 / white).astype(np.uint8)


def _orientation(picture: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(picture.getexif().get(ORIENTATION))
    except Exception:  # a damaged block says nothing, and no viewer would turn such an image either
        return None


def _frames(picture: Image.Image) -> int:
    """Number of pictures in the file; 1 if those after the first are damaged, and for the layers of a PSD."""
    with suppress(Exception):
        return 1 if picture.format == "PSD" else getattr(picture, "n_frames", 1)
    return 1
