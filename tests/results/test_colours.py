"""The palette: visible on light and dark pages, and told apart by readers who see fewer colours."""

import re

import numpy as np
import pytest
from tests_root import ROOT

from lscl.results import colours

PAGES = colours.PAGE[colours.GROUND]  # the grounds of a light and of a dark page
# What readers without one kind of cone see, as matrices on linear RGB (Machado, Oliveira and Fernandes 2009).
SEEN = {
    "all colours": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour, matrix):
    """CIE L*a*b* of a colour as a reader sees it, (3,); a difference of 2.3 is just noticeable."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.asarray(matrix) @ linear, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(palette, matrix):
    """The smallest difference of two colours."""
    places = [lab(colour, matrix) for colour in palette]
    return min(np.linalg.norm(a - b) for i, a in enumerate(places) for b in places[:i])


def test_contrast_is_that_of_the_web_guidelines():
    assert colours.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert (
        colours.contrast("#777777", "#ffffff") == colours.contrast("#ffffff", "#777777") == pytest.approx(4.478, 0.001)
    )


@pytest.mark.parametrize("colour", [*colours.HUES, colours.NEUTRAL])
def test_every_hue_is_visible_on_light_and_dark_pages_and_as_text_readable(colour):
    assert min(colours.contrast(colour, page) for page in PAGES) >= 3
    for page in (*PAGES, *colours.PAGE[colours.PANEL]):
        assert colours.contrast(colours.readable(colour, page), page) >= 4.5
    assert colours.readable(colour, PAGES[0], 3.0) == colour.lower()


@pytest.mark.parametrize("who", SEEN)
def test_readers_who_see_fewer_colours_can_tell_them_apart(who):
    assert nearest(colours.HUES, SEEN[who]) >= 14
    assert nearest(list(colours.ROLES.values()), SEEN[who]) >= 14


def test_text_and_axes_have_contrast_on_both_pages_and_text_in_boxes_too():
    for name, ground, least in (
        (colours.INK, colours.GROUND, 7),
        (colours.INK, colours.PANEL, 7),
        (colours.SOFT, colours.GROUND, 4.5),
    ):
        assert min(colours.contrast(*pair) for pair in zip(colours.PAGE[name], colours.PAGE[ground])) >= least


@pytest.mark.parametrize("name", ["figures/method.svg", "_static/favicon.svg"])
def test_drawings_have_the_colours_of_the_palette_and_no_ground_of_their_own(name):
    text = (ROOT / "book" / name).read_text(encoding="utf-8")
    known = {colour.lower() for colour in [*colours.HUES, colours.NEUTRAL, *sum(colours.PAGE.values(), ())]}
    assert {one.lower() for one in re.findall(r"#[0-9A-Fa-f]{3,6}\b", text)} <= known
    if "text" in text:
        dark = text.split("@media (prefers-color-scheme: dark)")[1]
        assert f"text {{ fill: {colours.PAGE[colours.INK][1]} }}" in dark


def test_no_other_module_has_colours_of_its_own():
    """Black and white aside, which stand on cells of a heat map."""
    for path in (ROOT / "lscl").rglob("*.py"):
        if path.stem != "colours":
            found = set(re.findall(r"[\"' :(]#[0-9A-Fa-f]{6}\b", path.read_text(encoding="utf-8")))
            assert {one[1:].lower() for one in found} <= {"#000000", "#ffffff"}, path
