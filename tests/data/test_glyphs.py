"""The embedded glyphs: a table of 200 distinct symbols that the fonts have, and reproducible drawings of them."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image, ImageFilter

from lscl.data import glyphs as module
from lscl.data.glyphs import RENDITIONS, class_name, font_path, glyphs, rendition_of, stencil, symbols
from lscl.errors import LsclError
from lscl.seeding import numpy_generator

TABLE_DIGEST = "a5ba346f32c9ab45"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """glyphs(3, 2) from a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSCL_CACHE", str(tmp_path_factory.mktemp("glyphs")))
        return glyphs(3, 2)


def normalised(pictures):
    """(n, 1024): slightly blurred drawings, each with mean 0 and norm 1 (a blank one stays 0)."""
    blurred = [
        picture.filter(ImageFilter.GaussianBlur(1.6)).resize((32, 32), Image.Resampling.BOX) for picture in pictures
    ]
    rows = np.stack([np.asarray(picture, np.float32).ravel() for picture in blurred])
    rows -= rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


@pytest.fixture(scope="module")
def clean():
    return normalised([stencil(*symbol) for symbol in symbols()])


def test_the_table_has_200_named_classes():
    names = [class_name(character) for _, character in symbols()]
    assert len(names) == len(set(names)) == 200
    assert names[0] == "U+2654 white chess king"
    assert hashlib.sha256(json.dumps([symbols(), names]).encode()).hexdigest()[:16] == TABLE_DIGEST


def test_every_symbol_is_in_its_font(clean):
    assert np.linalg.norm(clean, axis=1).min() > 0.99
    for font in {font for font, _ in symbols()}:
        known = TTFont(font_path(font)).getBestCmap()
        rows = [i for i, (name, _) in enumerate(symbols()) if name == font]
        assert all(ord(symbols()[i][1]) in known for i in rows), font
        assert 0x10FFFE not in known
        missing = normalised([stencil(font, "\U0010fffe")])[0]
        assert (clean[rows] @ missing).max() < 0.9, font


def test_no_two_classes_look_alike(clean):
    for angle in (-12, 0, 12):
        turned = normalised([stencil(*symbol).rotate(angle, Image.Resampling.BICUBIC) for symbol in symbols()])
        alike = clean @ turned.T
        np.fill_diagonal(alike, 0)
        assert alike.max() < 0.88, [class_name(symbols()[i][1]) for i in np.unravel_index(alike.argmax(), alike.shape)]


def test_sizes_and_class_balance(small):
    for part, count in zip(small, (3, 2), strict=True):
        assert part.images.shape == (200 * count, 32, 32, 3) and part.images.dtype == np.uint8
        assert part.labels.dtype == np.int64 and (np.bincount(part.labels) == count).all()
        assert part.classes == tuple(class_name(character) for _, character in symbols())


def test_every_class_gets_every_rendition_equally_often():
    assert len(RENDITIONS) >= 12
    for count in (24, 8):
        drawn = np.array(
            [
                [[rendition_of(label, n) for n in range(count)].count(name) for name in RENDITIONS]
                for label in range(200)
            ]
        )
        assert np.ptp(drawn, axis=1).max() <= 1 and drawn.sum(0).min() > 0


def test_images_are_drawn_by_the_rendition_of_their_number(small):
    for split, part in zip(("train", "test"), small, strict=True):
        seen = set()
        for at in range(200, 400, 15):
            label, number = at % 200, at // 200
            rendition = rendition_of(label, number)
            draw = numpy_generator(0, "glyphs", part.classes[label], rendition, split, number)
            picture = RENDITIONS[rendition](stencil(*symbols()[label]), draw)
            assert np.abs(picture.reshape(32, 3, 32, 3, 3).mean((1, 3)) * 255 - part.images[at]).max() <= 0.51
            seen.add(rendition)
        assert len(seen) >= 4


@pytest.mark.parametrize("rendition", RENDITIONS)
def test_symbols_stand_out_in_every_rendition(rendition):
    king = stencil(*symbols()[0])
    pictures = [RENDITIONS[rendition](king, np.random.default_rng(seed)) for seed in range(5)]
    for picture in pictures:
        assert picture.shape == (96, 96, 3) and picture.min() >= -1e-6 and picture.max() <= 1 + 1e-6
        light = picture @ [0.299, 0.587, 0.114]
        assert np.ptp(light.reshape(32, 3, 32, 3).mean((1, 3))) > 0.25
    assert len({picture.tobytes() for picture in pictures}) == 5


def test_ink_and_ground_always_contrast():
    for seed in range(200):
        *inks, first, second = (
            colour @ [0.299, 0.587, 0.114] for colour in module._colours(np.random.default_rng(seed), 2, 2)
        )
        assert max(inks) + 0.29 < min(first, second) or max(first, second) + 0.29 < min(inks)


def test_fewer_images_are_a_prefix_in_another_cache(small, tmp_path, monkeypatch):
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path))
    for part, whole in zip(glyphs(2, 1), small, strict=True):
        assert len(part) < len(whole)
        assert np.array_equal(part.images, whole.images[: len(part)]) and np.array_equal(
            part.labels, whole.labels[: len(part)]
        )


def test_another_process_draws_the_same(small, tmp_path):
    code = "from lscl.data.glyphs import glyphs; print(*(part.digest for part in glyphs(1, 1)))"
    environment = {**os.environ, "LSCL_CACHE": str(tmp_path), "PYTHONHASHSEED": "7"}
    made = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", check=True
    )
    assert made.stdout.split() == [part.subset(np.arange(200)).digest for part in small]


def test_no_image_is_in_both_splits(small):
    pixels = [image.tobytes() for part in small for image in part.images]
    assert len(set(pixels)) == len(pixels)


@pytest.mark.parametrize(("counts", "named"), [((0, 8), "train_per_class is 0"), ((24, -1), "test_per_class is -1")])
def test_bad_counts_are_refused(counts, named):
    with pytest.raises(LsclError, match=named) as caught:
        glyphs(*counts)
    assert "\n" not in str(caught.value)


def test_a_missing_font_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "font_path", lambda font: tmp_path / font)
    with pytest.raises(LsclError, match=r"cannot read the font .*none\.ttf"):
        stencil("none.ttf", "a")
