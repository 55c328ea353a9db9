"""Crops, mirroring and brightness of training images."""

import unicodedata

import pytest
import torch
from torch import nn

from lscl.config import PROFILES, experiment
from lscl.data.glyphs import symbols
from lscl.methods import METHODS
from lscl.methods.parts.augmentation import (
    BRIGHTNESS,
    Augmentation,
    augmentation,
    change_brightness,
    crop_and_flip,
)
from lscl.models.cnn import from_unit_range, to_cnn_input, to_unit_range

TRAIN_A_CNN = ("fedavg", "fedprox", "glfc", "target", "mfcl")


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("reflect", [True, False])
def test_each_image_is_shifted_and_mirrored_by_itself(flip, reflect):
    images = torch.arange(2 * 64 * 64.0).view(2, 1, 64, 64).expand(2, 3, 64, 64)[:, :, ::4, ::4] + 1
    images = images.repeat(20, 1, 1, 1).requires_grad_()
    moved = crop_and_flip(images, draw(), flip, reflect)
    assert moved.shape == images.shape
    kinds = set()
    for before, after in zip(images.detach(), moved.detach()):
        border = {"mode": "reflect"} if reflect else {"value": -2.0}
        padded = nn.functional.pad(before, (2, 2, 2, 2), **border)
        windows = {
            (dy, dx, mirrored): padded[:, dy : dy + 16, dx : dx + 16]
            for dy in range(5)
            for dx in range(5)
            for mirrored in (False, True)
        }
        found = [key for key, window in windows.items() if torch.equal(after, window.flip(2) if key[2] else window)]
        assert len(found) == 1
        kinds |= set(found)
    assert len(kinds) > 10 and {mirrored for _, _, mirrored in kinds} == ({False, True} if flip else {False})
    moved.sum().backward()
    if not reflect:
        assert set(images.grad.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(moved, crop_and_flip(images, draw(), flip, reflect))


def test_a_crop_lets_black_in_by_the_official_four_pixels_of_32():
    """Grey, the middle of the CNN's input, is a border that no crop of an image has."""
    black = to_cnn_input(torch.zeros(1, 1, 1, 3, dtype=torch.uint8)).unique()
    moved = crop_and_flip(torch.full((400, 3, 32, 32), 2.0), draw())
    assert torch.equal(moved.unique(), torch.cat([black, torch.tensor([2.0])]))
    rows = (moved[:, 0, :, 16] == black).sum(1)
    assert rows.max() == 4 and rows.min() == 0


def test_brightness_by_hand():
    images = from_unit_range(torch.rand(300, 3, 4, 4, generator=draw(1)))
    changed = to_unit_range(change_brightness(images, draw(), BRIGHTNESS))
    factors = 1 + 63 / 255 * (2 * torch.rand(300, 1, 1, 1, generator=draw()) - 1)
    assert torch.allclose(changed, (to_unit_range(images) * factors).clamp(max=1), atol=1e-6)
    assert 0.75 < factors.min() < 0.77 and 1.23 < factors.max() < 1.25
    assert changed.max() <= 1 + 1e-6


def test_what_the_parameter_means():
    images = torch.randn(8, 3, 16, 16, generator=draw(2))
    assert augmentation("none", draw(), 0.5) is None
    for how, flip in (("crop", False), ("crop_flip", True)):
        assert torch.equal(augmentation(how, draw())(images), crop_and_flip(images, draw(), flip))
    change = augmentation("crop", draw(), 0.5)
    assert not torch.equal(change(images), change(images))


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "smoke"])
@pytest.mark.parametrize("method", TRAIN_A_CNN)
def test_photos_are_cropped_and_mirrored_glyphs_only_cropped(profile, method):
    found = {
        dataset: experiment(profile=profile, method=method, dataset=dataset).augment
        for dataset in ("cifar100", "imagenet_r", "glyphs", "folder")
    }
    assert found == {"cifar100": "crop_flip", "imagenet_r": "crop_flip", "glyphs": "crop", "folder": "none"}


def test_a_mirrored_glyph_can_be_another_class():
    names = {unicodedata.name(character) for _, character in symbols()}
    assert {"ELEMENT OF", "CONTAINS AS MEMBER"} <= names


def test_systems_that_train_no_averaged_cnn_have_no_such_parameter():
    assert {name for name, kind in METHODS.items() if issubclass(kind.Parameters, Augmentation)} == set(TRAIN_A_CNN)
