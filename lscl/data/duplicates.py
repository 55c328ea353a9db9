"""Images with equal pixels: within a split, across training and test images, under different classes."""

import sys
from dataclasses import dataclass

import numpy as np

from lscl.data.store import ImageSet, digest_of
from lscl.errors import pluralize


@dataclass(frozen=True)
class Duplicates:
    """Groups of images with equal pixels, among n training and test images.

    Args:
        group: (n,) number of each image's group.
        size: (groups,) number of images in each group; most groups have one.
        in_train: (groups,) bool, whether several training images are in it.
        in_test: (groups,) bool, whether several test images are in it.
        across_splits: (groups,) bool, whether it has both training and test images.
        across_classes: (groups,) bool, whether its images belong to several classes.
    """

    group: np.ndarray
    size: np.ndarray
    in_train: np.ndarray
    in_test: np.ndarray
    across_splits: np.ndarray
    across_classes: np.ndarray

    def __str__(self) -> str:
        several = self.size > 1
        if not several.any():
            return "equal pixels: none"
        groups = pluralize(int(several.sum()), "group")
        return (
            f"equal pixels: {groups} of {self.size[several].sum()} images; "
            f"{self.in_train.sum()} within train, {self.in_test.sum()} within test, "
            f"{self.across_splits.sum()} across train and test, {self.across_classes.sum()} with different classes"
        )


def pixel_keys(images: np.ndarray) -> np.ndarray:
    """SHA-256 of the pixels of each image: (n, H, W, 3) uint8 -> (n,) text."""
    return np.array([digest_of(image) for image in images], dtype="S64")


def group_duplicates(keys: np.ndarray, labels: np.ndarray, test: np.ndarray) -> Duplicates:
    """Group images by their keys.

    Args:
        keys: (n,) digest of each image's pixels.
        labels: (n,) class of each image.
        test: (n,) bool, whether it is a test image.

    Returns:
        The groups of equal keys.
    """
    _, group, size = np.unique(keys, return_inverse=True, return_counts=True)
    train, tested = (np.bincount(group[part], minlength=len(size)) for part in (~test, test))
    pairs = np.unique(np.stack([group, labels]), axis=1)  # each class of a group once
    classes = np.bincount(pairs[0], minlength=len(size))
    return Duplicates(group, size, train > 1, tested > 1, (train > 0) & (tested > 0), classes > 1)


def find_duplicates(train: ImageSet, test: ImageSet) -> Duplicates:
    """Group the images of both splits by their pixels.

    Args:
        train: n training images.
        test: m test images of the same classes and size.

    Returns:
        The groups over all n + m images, training images first.
    """
    keys = np.concatenate([pixel_keys(train.images), pixel_keys(test.images)])
    return group_duplicates(keys, np.concatenate([train.labels, test.labels]), np.arange(len(keys)) >= len(train))


def drop_duplicates(train: ImageSet, test: ImageSet) -> ImageSet:
    """Remove training images that are also test images or stand in another class, and repetitions within a class.

    Two images are the same if their pixels are equal. A line on stderr says how many were removed.

    Args:
        train: training images.
        test: test images.

    Returns:
        The remaining training images in their order; of an image that a class repeats the first one stays.
    """
    found = find_duplicates(train, test)
    group = found.group[: len(train)]
    tested, torn = found.across_splits[group], found.across_classes[group] & ~found.across_splits[group]
    first = np.zeros(len(train), bool)
    first[np.unique(group, return_index=True)[1]] = True
    keep = ~tested & ~torn & first
    print(
        f"duplicates = drop: {(~keep).sum()} training images left out, {tested.sum()} of them equal to a test image, "
        f"{torn.sum()} under several classes, {(~(tested | torn | first)).sum()} repeated",
        file=sys.stderr,
    )
    return train if keep.all() else train.subset(np.flatnonzero(keep))
