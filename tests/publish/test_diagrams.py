"""The diagrams of the systems."""

import xml.etree.ElementTree as ET

import pytest

from lscl.federation.sketch import CLASS, IMAGE, Part, Sketch
from lscl.methods import METHODS
from lscl.publish import diagrams

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("method", METHODS)
def test_every_text_lies_inside_the_drawing_and_inside_its_box(method):
    drawn = ET.fromstring(diagrams.diagram(METHODS[method].sketch, "Name"))
    width, height = map(float, drawn.get("viewBox").split()[2:])
    for text in drawn.iter(f"{SVG}text"):
        x, y, wide = float(text.get("x")), float(text.get("y")), 6.8 * len(text.text)  # a generous mean width at 13 px
        left = x - wide / 2 if text.get("text-anchor") == "middle" else x
        assert left >= 0 and left + wide <= width and 10 <= y <= height, text.text
    boxes = [[float(one.get(key)) for key in ("x", "y", "width", "height")] for one in drawn.iter(f"{SVG}rect")]
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)


def test_what_is_declared_is_drawn_and_said():
    sketch = Sketch(
        (IMAGE, Part("CNN <x>", "trained"), CLASS),
        (Part("old images", "kept"), Part("a helper", "frozen", fed=True)),
        up="sums",
        server="adds them",
        down="the total",
        stays="images",
    )
    text = diagrams.diagram(sketch, "Mine & yours")
    drawn = ET.fromstring(text)
    words = " ".join(one.text for one in drawn.iter(f"{SVG}text"))
    for part in ("image", "CNN <x>", "class", "old images", "a helper", "sums", "adds them", "the total", "Server"):
        assert part in words
    assert "stays here: images" in words and words.endswith("trained frozen kept from earlier")
    assert drawn.get("aria-label") == diagrams.described(sketch, "Mine & yours")
    assert "old images (kept from earlier) acts on image." in drawn.get("aria-label")
    assert len([one for one in drawn.iter(f"{SVG}path") if one.get("class") == "arrow"]) == 2 + 2 + 1 + 2


def test_without_a_server_nothing_travels():
    text = diagrams.diagram(Sketch((IMAGE, CLASS)), "Alone")
    assert "no server: nothing travels" in text and ">Server<" not in text
    assert text.count('class="arrow"') == 1 and "kept from earlier" not in text
