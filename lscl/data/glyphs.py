"""The embedded data set: 200 Unicode symbols from matplotlib's fonts, each drawn in twelve renditions.

It has the structure of ImageNet-R (200 classes, many renditions) and needs no download. Images are drawn at three times
their size and averaged down. Each image has its own random generator, so asking for more images of a class does not
change the earlier ones.
"""

import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from lscl.data.store import ImageSet, cache_images
from lscl.errors import LsclError
from lscl.seeding import numpy_generator

PER_CLASS = 24  # training images of a class; the test split has 8
VERSION = 2  # part of the cache name: raise it with any change to the table or to a drawing
SIZE = 32  # pixels a side of an image
CANVAS = 3 * SIZE  # pixels a side while drawing
STENCIL = 128  # pixels a side of a symbol's clean drawing
SYMBOL = 96  # longer side of the symbol in its clean drawing

# Chosen once, greedily and then by eye: neither too narrow nor too detailed for 32 px, and no two alike, not even
# turned slightly or in outline. Right-to-left letters are escaped: editors would reorder the line.
SYMBOLS = {
    "DejaVuSans.ttf": (
        "♔♖♗♙♈♉♊♋♌♍♎♏♐♑♒♓♠♥♫♯♭♪☿♀♂♃♄♅♇"  # chess, zodiac, cards, music, planets
        "☂☢☣☮☯☺☀☤☥☦☪☫☬☭♨♻⚀⚅⚐⚒⚓⚔⚕⚖⚗⚘⚙⚠⚡"  # miscellaneous symbols
        "✂✆✈✉✍✏✓✗✠✡✰✻✿❉❡❢❦➘➥😈😱🐭🐮🐱"  # dingbats, faces
        "→↙↔↯↰↲↶↺⇄⇅⇑⇚⇞⇤∀∂∃∇∈∋∏∑√∝∞∠∩∫≈⊕⌂⌘⌫⌬⎇▤▲▷◇◎◔◕◢"  # arrows, mathematics, technical and geometric shapes
        "ΓΞΨΩβδζБДЖЛԱԳԹԶϢϥÆßƔⴳⴼⴶᐂᐋກຂຄ"  # Greek, Cyrillic, Armenian, Coptic, Latin, Tifinagh, Canadian syllabics, Lao
        "\u05d0\u05d2\u05d8\u0639\u062c\u0633\u0637\u07d0"  # Hebrew, Arabic, N'Ko
        "€£¥₩₪₫§¶&#%?䷁"  # currency, punctuation, a hexagram
    ),
    "DejaVuSerif.ttf": "აბდეზGKRaeg",
    "DejaVuSansMono.ttf": "2345╬",
    "STIXGeneral.ttf": "𝔄𝔅𝔎𝔉𝒜𝒥𝒢⧉⫘⧞",
}


def glyphs(train_per_class: int = PER_CLASS, test_per_class: int = 8) -> tuple[ImageSet, ImageSet]:
    """Draw the training and test images, 32 x 32 pixels, once; later calls read the cache.

    Images are ordered by number, then class, so a set with fewer images per class is a prefix of one with more.

    Args:
        train_per_class: training images per class, at least 1.
        test_per_class: test images per class, at least 1.

    Returns:
        Training and test images.

    Raises:
        LsclError: a count below 1, or a font of matplotlib that cannot be read.
    """
    counts = {"train": train_per_class, "test": test_per_class}
    for split, count in counts.items():
        if count < 1:
            raise LsclError(f"{split}_per_class is {count}: glyphs needs at least 1 image per class")
    train, test = (
        cache_images(f"glyphs-v{VERSION}-{split}-{count}", lambda s=split, n=count: _draw_all(s, n))
        for split, count in counts.items()
    )
    return train, test


def symbols() -> list[tuple[str, str]]:
    """(font file, character) of each class, in label order."""
    return [(font, character) for font, characters in SYMBOLS.items() for character in characters]


def class_name(character: str) -> str:
    """A readable class name, such as "U+2654 white chess king"."""
    return f"U+{ord(character):04X} {unicodedata.name(character).lower()}"


def rendition_of(label: int, number: int) -> str:
    """The rendition of an image; each class goes through all of them in turn, from its own starting point.

    Args:
        label: class of the image.
        number: number of the image in its class, from 0.

    Returns:
        A name in RENDITIONS.
    """
    names = list(RENDITIONS)
    return names[(label + number) % len(names)]


def font_path(font: str) -> Path:
    """Where matplotlib keeps the file `font`."""
    import matplotlib  # here: its import takes a while, and only the first use of the data set needs it

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font


@cache
def stencil(font: str, character: str) -> Image.Image:
    """Draw a symbol white on black, centred, its longer side 96 pixels.

    Args:
        font: file name of one of matplotlib's fonts.
        character: the symbol.

    Returns:
        A grey image, 128 x 128 pixels.

    Raises:
        LsclError: the font file is missing or damaged.
    """
    try:
        left, top, right, bottom = _font(font, STENCIL).getbbox(character)
        scaled = _font(font, round(STENCIL * SYMBOL / max(right - left, bottom - top)))
    except OSError as error:
        raise LsclError(f"cannot read the font {font_path(font)}: {error}; install matplotlib again") from error
    left, top, right, bottom = scaled.getbbox(character)
    picture = Image.new("L", (STENCIL, STENCIL))
    ImageDraw.Draw(picture).text(((STENCIL - left - right) / 2, (STENCIL - top - bottom) / 2), character, 255, scaled)
    return picture


def _font(font: str, size: int) -> ImageFont.FreeTypeFont:
    # the basic layout does not depend on whether Pillow was built with raqm
    return ImageFont.truetype(str(font_path(font)), size, layout_engine=ImageFont.Layout.BASIC)


def _draw_all(split: str, per_class: int) -> ImageSet:
    table = symbols()
    classes = tuple(class_name(character) for _, character in table)
    images = np.empty((per_class, len(table), SIZE, SIZE, 3), np.uint8)
    for label, (font, character) in enumerate(table):
        for number in range(per_class):
            rendition = rendition_of(label, number)
            draw = numpy_generator(0, "glyphs", classes[label], rendition, split, number)
            images[number, label] = _reduced(RENDITIONS[rendition](stencil(font, character), draw))
    return ImageSet(
        images.reshape(-1, SIZE, SIZE, 3), np.tile(np.arange(len(table), dtype=np.int64), per_class), classes
    )


def _reduced(picture: np.ndarray) -> np.ndarray:
    """(96, 96, 3) floats in 0..1, averaged over blocks of 3 x 3 to (32, 32, 3) uint8."""
    small = picture.reshape(SIZE, 3, SIZE, 3, 3).mean((1, 3))
    return (small * 255).round().clip(0, 255).astype(np.uint8)


# --- parts of a drawing: masks are (96, 96) grey images, colours floats in 0..1


def _placed(shape: Image.Image, draw: np.random.Generator, turn: float = 12, shear: float = 0.15) -> Image.Image:
    """The symbol on the canvas: turned by up to `turn` degrees, sheared, scaled and shifted at random, never cut."""
    angle = np.radians(draw.uniform(-turn, turn))
    forward = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [
        [1, draw.uniform(-shear, shear)],
        [0, 1],
    ]
    left, top, right, bottom = shape.getbbox()
    reach = np.abs(forward) @ [(right - left) / 2, (bottom - top) / 2]
    inverse = np.linalg.inv(forward * draw.uniform(30, 42) / reach.max())
    offset = STENCIL / 2 - inverse @ (CANVAS / 2 + draw.uniform(-6, 6, 2))
    matrix = (*inverse[0], offset[0], *inverse[1], offset[1])
    return shape.transform((CANVAS, CANVAS), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def _colours(draw: np.random.Generator, inks: int = 1, grounds: int = 1) -> list[np.ndarray]:
    """`inks`, then `grounds` random colours: one kind is dark (luminance up to 0.35), the other bright (from 0.65)."""
    found = []
    for _ in range(inks + grounds):
        colour = draw.uniform(0, 1, 3)
        found.append(colour * min(1, draw.uniform(0, 0.35) / (colour @ [0.299, 0.587, 0.114])))
    if draw.random() < 0.5:
        return found[:inks] + [1 - colour for colour in found[inks:]]
    return [1 - colour for colour in found[:inks]] + found[inks:]


def _mix(ground: np.ndarray, ink: np.ndarray, mask: Image.Image | np.ndarray) -> np.ndarray:
    """(96, 96, 3): `ink` where the mask is white (or 1), `ground` where it is black (or 0)."""
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask, np.float32) / 255
    return ground + (ink - ground) * mask[..., None]


def _ramp(draw: np.random.Generator) -> np.ndarray:
    """(96, 96): distance in pixels along a random direction, 0 at the centre."""
    angle = draw.uniform(0, 2 * np.pi)
    step = np.arange(CANVAS) - (CANVAS - 1) / 2
    return step * np.cos(angle) + step[:, None] * np.sin(angle)


def _clouds(draw: np.random.Generator) -> np.ndarray:
    """(96, 96) in 0..1: smooth random spots of a random size."""
    cells = int(draw.integers(8, 20))
    spots = Image.fromarray(draw.integers(0, 256, (cells, cells), np.uint8))
    return np.asarray(spots.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC), np.float32) / 255


def _grown(mask: Image.Image, times: int) -> Image.Image:
    for _ in range(times):
        mask = mask.filter(ImageFilter.MaxFilter(3))
    return mask


def _worn(mask: Image.Image) -> Image.Image:
    """Broad strokes worn down by two pixels on each side; strokes too narrow for that stay as they are."""
    core = ImageChops.invert(_grown(ImageChops.invert(mask), 3))
    narrow = ImageChops.subtract(mask, _grown(core, 3))
    return ImageChops.add(_grown(core, 1), narrow)


# --- renditions: (128, 128) clean drawing and generator -> (96, 96, 3) floats in 0..1


def _outline(shape: Image.Image, draw: np.random.Generator) -> np.ndarray:
    ink, ground = _colours(draw)
    mask = _placed(shape, draw)
    return _mix(ground, ink, ImageChops.subtract(_grown(mask, 3), mask))


def _inverted(shape: Image.Image, draw: np.random.Generator) -> np.ndarray:
    """The symbol cut out of a plate."""
    ink, ground = _colours(draw)
    plate = Image.new("L", (CANVAS, CANVAS))
    margin = draw.uniform(0, 4, 4)
    ImageDraw.Draw(plate).rounded_rectangle((*margin[:2], *(CANVAS - 1 - margin[2:])), draw.uniform(4, 28), 255)
    return _mix(ground, ink, ImageChops.subtract(plate, _placed(shape, draw)))


def _gradient(shape: Image.Image, draw: np.random.Generator) -> np.ndarray:
    ink, other_ink, ground, other_ground = _colours(draw, 2, 2)
    first, second = ((_ramp(draw) / CANVAS + 0.5).clip(0, 1) for _ in range(2))
    return _mix(_mix(ground, other_ground, first), _mix(ink, other_ink, second), _placed(shape, draw))


def _texture(shape: Image.Image, draw: np.random.Generator) -> np.ndarray:
    ink, other_ink, ground, other_ground = _colours(draw, 2, 2)
    return _mix(_mix(ground, other_ground, _clouds(draw)), _mix(ink, other_ink, _clouds(draw)), _placed(shape, draw))


def _noise(shape: Image.Image, draw: np.random.Generator) -> np.ndarray:
    ink, ground = _colours(draw)
    # one draw for each pixel of the reduced image: finer noise would average away
    grain = draw.normal(0, draw.uniform(0.15, 0.3), (SIZE, SIZE, 3)).repeat(3, 0).repeat(3, 1)
    return (_mix(ground, ink, _placed(shape, draw)) + grain).clip(0, 1)


def _slanted(shape: Image.Image, draw: np.random.Generator) -> np.ndarray:
    ink, ground = _colours(draw)
    return _mix(ground, ink, _placed(shape, draw, turn=25, shear=0.5))


def _pixelated(shape: Image.Image, draw: np.random.Generator) -> np.ndarray:
    ink, ground = _colours(draw)
    cells = int(draw.integers(16, 21))
    mask = _placed(shape, draw).resize((cells, cells), Image.Resampling.BOX)
    return _mix(ground, ink, mask.resize((CANVAS, CANVAS), Image.Resampling.NEAREST))


def _shadow(shape: Image.Image, draw: np.random.Generator) -> np.ndarray:
    ink, ground = _colours(draw)
    mask = _placed(shape, draw)
    x, y = draw.integers(4, 9, 2) * draw.choice([-1, 1], 2)
    cast = ImageChops.offset(mask, int(x), int(y)).filter(ImageFilter.GaussianBlur(draw.uniform(0.5, 2.5)))
    return _mix(_mix(ground, 0.55 * ground + 0.45 * ink, cast), ink, mask)


def _hatch(shape: Image.Image, draw: np.random.Generator) -> np.ndarray:
    """The symbol filled with stripes."""
    ink, ground = _colours(draw)
    stripes = (_ramp(draw) / draw.uniform(8, 12)) % 1 < 0.6
    mask = np.asarray(_grown(_placed(shape, draw), 1), np.float32) / 255
    return _mix(ground, ink, mask * np.where(stripes, 1, 0.35))


def _two_colour(shape: Image.Image, draw: np.random.Generator) -> np.ndarray:
    """Ink and ground change places along a line through the symbol."""
    ink, ground = _colours(draw)
    side = _ramp(draw) > draw.uniform(-16, 16)
    mask = np.asarray(_placed(shape, draw), np.float32) / 255
    return _mix(ground, ink, np.where(side, mask, 1 - mask))


def _thick(shape: Image.Image, draw: np.random.Generator) -> np.ndarray:
    """The gaps are worn down, not the strokes: small holes stay open."""
    ink, ground = _colours(draw)
    return _mix(ground, ink, ImageChops.invert(_worn(ImageChops.invert(_placed(shape, draw)))))


def _thin(shape: Image.Image, draw: np.random.Generator) -> np.ndarray:
    ink, ground = _colours(draw)
    return _mix(ground, ink, _worn(_placed(shape, draw)))


RENDITIONS: dict[str, Callable[[Image.Image, np.random.Generator], np.ndarray]] = {
    "outline": _outline,
    "inverted": _inverted,
    "gradient": _gradient,
    "texture": _texture,
    "noise": _noise,
    "slanted": _slanted,
    "pixelated": _pixelated,
    "shadow": _shadow,
    "hatch": _hatch,
    "two-colour": _two_colour,
    "thick": _thick,
    "thin": _thin,
}
