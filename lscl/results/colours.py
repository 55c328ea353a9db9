"""The colours of the book: one palette for its figures, its drawn pictures and its animations.

The eight hues keep a contrast of at least 3 to 1 on a white and on a nearly black page, so a figure needs no second
version for dark mode. They also differ for readers who see no red, no green or no blue; tests measure both. Text
needs more contrast than a mark, so `readable` darkens or lightens a hue for the page that the text stands on.
"""

import numpy as np

HUES = ("#1F5FD6", "#D97706", "#0AA665", "#C274B0", "#736124", "#6A569E", "#F5495B", "#0F6D72")
NEUTRAL = "#858585"  # data that is not what a figure is about
INK, SOFT, GROUND, GRID, PANEL = "#212223", "#8A8B8C", "#FCFCFA", "#DDDEDF", "#EEF1F4"
# Text, axes, ground, grid and boxes: their colours on a light and on a dark page.
PAGE = {
    INK: ("#212223", "#ced6dd"),
    SOFT: ("#6b6f73", "#9ca4af"),
    GROUND: ("#ffffff", "#121212"),
    GRID: ("#dddedf", "#353b44"),
    PANEL: ("#eef1f4", "#232830"),
}
# The paper's system, baselines without training, the best of the other systems, our variant, and all others.
ROLES = {"own": HUES[0], "control": HUES[1], "best": HUES[2], "variant": HUES[3], "other": NEUTRAL}
# The controls, in the order of the tables: a system has one colour in every figure.
CONTROLS = (HUES[5], HUES[7], HUES[4], ROLES["control"], HUES[6])
CLIENTS = HUES[:6]


def contrast(one: str, other: str) -> float:
    """The contrast of two colours as WCAG 2 defines it: from 1 (equal) to 21 (black on white).

    Args:
        one: a colour, #RRGGBB.
        other: a colour, #RRGGBB.

    Returns:
        (L1 + 0.05) / (L2 + 0.05), with the luminance L1 of the lighter one and L2 of the other.
    """
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def readable(hue: str, ground: str, least: float = 4.5) -> str:
    """A hue, mixed with as little black or white as text in it needs on a ground.

    Args:
        hue: a colour, #RRGGBB.
        ground: the colour behind the text, #RRGGBB.
        least: the contrast that text needs, at most 4.5 so that every ground allows it.

    Returns:
        a colour, #RRGGBB.
    """
    end = max(("#000000", "#ffffff"), key=lambda far: contrast(far, ground))
    mixed = (_mix(hue, end, share) for share in np.linspace(0, 1, 51))
    return next(colour for colour in mixed if contrast(colour, ground) >= least)


def _parts(colour: str) -> np.ndarray:
    """Red, green and blue between 0 and 1, (3,)."""
    return np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255


def _luminance(colour: str) -> float:
    """Relative luminance by WCAG 2, from 0 (black) to 1 (white)."""
    parts = _parts(colour)
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _mix(one: str, other: str, share: float) -> str:
    """A colour between two others; share: of the second one."""
    mixed = (1 - share) * _parts(one) + share * _parts(other)
    return "#" + "".join(f"{round(255 * part):02x}" for part in mixed)
