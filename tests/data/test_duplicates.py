"""Equal pixels are counted truly and left out of the training images on request."""

import shutil

import numpy as np
import pytest

from lscl.data.duplicates import drop_duplicates, find_duplicates
from lscl.data.sources import load
from lscl.data.store import ImageSet


def images(*pairs):
    """Images of one colour each, from (colour, label)."""
    colours, labels = zip(*pairs)
    pixels = np.repeat(np.array(colours, np.uint8), 4 * 4 * 3).reshape(-1, 4, 4, 3)
    return ImageSet(pixels, np.array(labels, np.int64), ("a", "b", "c"))


TEST = images((1, 0), (2, 1), (50, 2), (51, 0), (51, 0), (52, 0), (52, 1))
TRAIN = images(
    *((1, 0), (1, 0), (2, 2)),  # as in test: under the same class, twice, and under another
    *((10, 0), (11, 1)),  # alone
    *((20, 0), (20, 1), (21, 2), (21, 2), (21, 1)),  # under several classes
    *((30, 1), (30, 1), (30, 1)),  # repeated
)


def test_groups_are_counted_within_and_across_splits_and_classes():
    found = find_duplicates(TRAIN, TEST)
    assert len(found.group) == 20 and (found.size > 1).sum() == 7
    assert str(found) == (
        "equal pixels: 7 groups of 17 images; "
        "4 within train, 2 within test, 2 across train and test, 4 with different classes"
    )
    assert str(find_duplicates(images((1, 0)), images((2, 0)))) == "equal pixels: none"
    one = find_duplicates(images((1, 0), (1, 0)), images((2, 0)))
    assert str(one) == (
        "equal pixels: 1 group of 2 images; "
        "1 within train, 0 within test, 0 across train and test, 0 with different classes"
    )


def test_every_image_has_the_group_of_its_pixels():
    found, both = find_duplicates(TRAIN, TEST), np.concatenate([TRAIN.images, TEST.images])[:, 0, 0, 0]
    assert np.array_equal(found.group[:, None] == found.group, both[:, None] == both)


def test_what_is_left_out_is_counted(capsys):
    kept = drop_duplicates(TRAIN, TEST)
    assert kept.images[:, 0, 0, 0].tolist() == [10, 11, 30] and kept.labels.tolist() == [0, 1, 1]
    said = capsys.readouterr().err
    assert said == (
        "duplicates = drop: 10 training images left out, "
        "3 of them equal to a test image, 5 under several classes, 2 repeated\n"
    )


def test_images_without_equals_all_stay():
    train = images((1, 0), (2, 1))
    assert drop_duplicates(train, images((3, 0))) is train


@pytest.fixture
def doubled(tree, tmp_path):
    """The tree with one training image that is a test image, too."""
    shutil.copytree(tree, tmp_path / "tree")
    shutil.copy(
        tmp_path / "tree" / "test" / "class03" / "006.png", tmp_path / "tree" / "train" / "class03" / "more.png"
    )
    return tmp_path / "tree"


def test_a_run_leaves_them_out_on_request_and_its_data_digest_says_so(smoke, doubled, capsys):
    everything = {"data_dir": doubled, "images_per_class": None}
    keep, drop = (load(smoke(duplicates=choice, **everything)) for choice in ("keep", "drop"))
    assert (
        (len(keep.train), len(drop.train)) == (85, 84)
        and keep.test.digest == drop.test.digest
        and keep.digest != drop.digest
    )
    assert "1 training images left out, 1 of them equal" in capsys.readouterr().err
    assert drop.train.digest == load(smoke(images_per_class=None)).train.digest


def test_the_choice_is_in_the_digest_only_when_it_is_not_the_default(smoke):
    assert smoke(duplicates="keep").digest == smoke().digest != smoke(duplicates="drop").digest
    assert "duplicates=drop" in smoke(duplicates="drop").name
