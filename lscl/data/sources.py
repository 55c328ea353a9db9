"""Load data sets by name, in a canonical order: every source of the same images gives the same digest."""

import sys
from dataclasses import replace
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR100

from lscl import paths
from lscl.config import Experiment
from lscl.data.duplicates import drop_duplicates
from lscl.data.folder import check_same_classes, class_files, image_folder, list_folders, split_folders, stamp
from lscl.data.glyphs import PER_CLASS, glyphs
from lscl.data.imagenet_r import CLASSES, SIZE, imagenet_r
from lscl.data.store import Dataset, ImageSet, cache_images, sort_canonically
from lscl.errors import LsclError, make_printable, shorten
from lscl.registry import DATASETS, register_dataset

CIFAR100_DIGESTS = (  # of all training and all test images in canonical order
    "e99a3ffc39c3636f9e386d2889633c17e86840863ae63967e2df0e33d91e36b4",
    "fae39000ede653013428e0d150927cbbf0223cfb8e26715b8428086ddcef4e2e",
)


def load(config: Experiment) -> Dataset:
    """Load the data set of a config with as many images per class as it asks for.

    What the reader has noticed about the files is printed on stderr.

    Raises:
        LsclError: the folder is missing or empty, an image is corrupt, the download fails, a class has too few images,
            the images are not those of `folder_digest`, or a registered function returns no two sets of images of the
            config's size with the same classes.
    """
    train, test = _splits(config)
    for split, images in (("train", train), ("test", test)):
        for note in images.notes:
            print(f"{make_printable(str(config.data_dir / split))}: {note}", file=sys.stderr)
    if config.duplicates == "drop":
        train = drop_duplicates(train, test)
    return Dataset(
        config.dataset,
        first_per_class(train, config.images_per_class, f"{config.dataset} train"),
        first_per_class(test, config.test_images_per_class, f"{config.dataset} test"),
    )


def folder_digest(config: Experiment) -> str:
    """Digest of all images in a folder, whatever the images per class: 16 hex digits.

    Raises:
        LsclError: as `load`.
    """
    return Dataset(config.dataset, *_splits(config)).digest


def surrogate(config: Experiment, option: str) -> ImageSet:
    """Images of the official test split for a server that needs some; no client is tested on them.

    With eval_split = holdout these are the first images of each class; otherwise those after the first
    test_images_per_class, which clients are tested on.

    Args:
        config: the experiment.
        option: config field that says how many images per class the server needs.

    Returns:
        As many images of every class.

    Raises:
        LsclError: clients are tested on all images of the official test split, or a class has too few.
    """
    _, test = _splits(config)
    tested, count = 0 if config.eval_split == "holdout" else config.test_images_per_class, getattr(config, option)
    if tested is None:
        raise LsclError(
            f"{config.method} needs {count} images per class on the server that nobody is tested on: "
            "set eval_split = holdout, or test_images_per_class so that some are left"
        )
    have = np.bincount(test.labels, minlength=len(test.classes))
    if have.min() < tested + count:
        lower = option if tested == 0 else f"test_images_per_class or {option}, or set eval_split = holdout"
        raise LsclError(
            f"{config.dataset} test: class {test.classes[int(have.argmin())]!r} has {have.min()} images, "
            f"{config.method} needs {tested} per class to test on and {count} on the server: lower {lower}"
        )
    return _of_each_class(test, tested, count)


def first_per_class(images: ImageSet, count: int | None, what: str) -> ImageSet:
    """The first images of every class.

    Args:
        images: the images.
        count: images per class; None = all.
        what: name of the images in messages.

    Returns:
        `count` images of each class, class by class; with None `images` itself.

    Raises:
        LsclError: a class has fewer.
    """
    if count is None:
        return images
    have = np.bincount(images.labels, minlength=len(images.classes))
    if have.min() < count:
        fewest = f"class {images.classes[int(have.argmin())]!r} has {have.min()} images"
        raise LsclError(f"{what}: {fewest}, {count} per class were asked for")
    return _of_each_class(images, 0, count)


@lru_cache(maxsize=4)  # so that the images of one run are copied and hashed once
def _of_each_class(images: ImageSet, first: int, count: int) -> ImageSet:
    order = np.argsort(images.labels, kind="stable")
    starts = np.searchsorted(images.labels[order], np.arange(len(images.classes))) + first
    return images.subset(np.concatenate([order[start : start + count] for start in starts]))


def _splits(config: Experiment) -> tuple[ImageSet, ImageSet]:
    """Training and test images of a config's data set, checked: another package's function may return anything."""
    what, found = f"data set {config.dataset!r}", DATASETS[config.dataset].load(config)
    if not isinstance(found, tuple | list) or [isinstance(one, ImageSet) for one in found] != [True, True]:
        wanted = "wanted are two lscl.data.store.ImageSet, training and test images"
        raise LsclError(f"{what}: its function returns something else ({type(found).__name__}), {wanted}")
    splits = zip(("training", "test"), found)
    train, test = (_checked(f"{what}, {split} images", images, config.image_size) for split, images in splits)
    if train.classes != test.classes:
        first = next(i for i, pair in enumerate(zip_longest(train.classes, test.classes)) if len(set(pair)) == 2)
        raise LsclError(
            f"{what}: training and test images have other classes from number {first} on, wanted are the same in the "
            "same order"
        )
    return train, test


def _checked(what: str, found: ImageSet, size: int) -> ImageSet:
    """The set itself if all is well; with labels of int64 if they are integers of another type, as on Windows."""
    pixels, labels, classes = found.images, found.labels, found.classes
    if not isinstance(classes, tuple) or not classes or not all(isinstance(name, str) for name in classes):
        raise LsclError(f"{what}: classes = {shorten(repr(classes), 100)}: wanted is a tuple of names")
    square = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (size, size, 3)
    if not square or len(pixels) == 0:
        wanted = f"({size}, {size}, 3) numbers of uint8 for each image (image_size = {size})"
        raise LsclError(f"{what}: they are {_kind_of(pixels)}, wanted are {wanted}")
    whole = isinstance(labels, np.ndarray) and np.issubdtype(labels.dtype, np.integer)
    if not whole or labels.shape != pixels.shape[:1]:
        raise LsclError(f"{what}: their labels are {_kind_of(labels)}, wanted are ({len(pixels)},) numbers of int64")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise LsclError(
            f"{what}: their labels go from {labels.min()} to {labels.max()}, allowed are 0 to {len(classes) - 1}, "
            "positions in classes"
        )
    return found if labels.dtype == np.int64 else replace(found, labels=labels.astype(np.int64))


def _kind_of(value: object) -> str:
    return f"{value.shape} numbers of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _glyphs(config: Experiment) -> tuple[ImageSet, ImageSet]:
    return glyphs()


def _imagenet_r(config: Experiment) -> tuple[ImageSet, ImageSet]:
    return imagenet_r(config.data_dir, config.image_size)


def _folder(config: Experiment) -> tuple[ImageSet, ImageSet]:
    if config.data_dir is None:
        raise LsclError("dataset folder needs data_dir: a folder with train/<class>/<image> and test/<class>/<image>")
    train, test = _folder_pair(config.data_dir, config.image_size)
    found = Dataset(config.dataset, train, test).digest
    if config.folder_digest not in (None, found):
        raise LsclError(
            f"{config.data_dir} holds other images (digest {found}) than those asked for "
            f"(folder_digest = {config.folder_digest})"
        )
    return train, test


def _folder_identity(config: Experiment) -> dict[str, str]:
    """The digest of the folder, if one is given: two folders are two data sets."""
    return {} if config.data_dir is None else {"folder_digest": folder_digest(config)}


def _cifar100(config: Experiment) -> tuple[ImageSet, ImageSet]:
    folder = config.data_dir
    if folder is not None and not folder.is_dir():
        raise LsclError(
            f"no data folder {folder}: give a folder with train/ and test/, or with torchvision's cifar-100-python"
        )
    if folder is not None and (folder / "train").is_dir():
        train, test = _folder_pair(folder, 32)
        if (len(train.classes), len(test.classes)) != (100, 100):
            raise LsclError(
                f"{folder} has {len(train.classes)} training and {len(test.classes)} test classes, CIFAR-100 has 100"
            )
        if (train.digest, test.digest) != CIFAR100_DIGESTS:
            raise LsclError(
                f"{folder} does not hold the pixels of CIFAR-100, all 60,000 images: "
                "give --dataset folder for images of your own"
            )
        return train, test
    if folder is not None and not (folder / CIFAR100.base_folder).is_dir():
        raise LsclError(
            f"CIFAR-100 not found in {folder}: expected the folders train and test, or torchvision's "
            f"{CIFAR100.base_folder}, found {list_folders(folder)}; give --data-dir another folder, "
            "or leave it out to download"
        )
    return _torchvision_cifar100(folder)


def _torchvision_cifar100(folder: Path | None) -> tuple[ImageSet, ImageSet]:
    home = folder or paths.cache() / "downloads"

    def decode(train: bool) -> ImageSet:
        try:
            source = CIFAR100(str(home), train=train, download=folder is None)
        except Exception as error:  # torchvision raises RuntimeError, URLError and others
            raise LsclError(
                f"CIFAR-100 not found in {home} nor downloaded ({error}); "
                "give --data-dir a folder with torchvision's files or train/, test/ trees"
            ) from error
        return sort_canonically(ImageSet(source.data, np.array(source.targets, np.int64), tuple(source.classes)))

    if folder is None:
        return cache_images("cifar100-train", lambda: decode(True)), cache_images(
            "cifar100-test", lambda: decode(False)
        )
    files = sorted((folder / CIFAR100.base_folder).glob("*"))
    key = f"cifar100-{stamp(folder, files)}"  # another folder may hold other images
    return cache_images(f"{key}-train", lambda: decode(True)), cache_images(f"{key}-test", lambda: decode(False))


def _folder_pair(folder: Path, size: int) -> tuple[ImageSet, ImageSet]:
    places = split_folders(folder)
    listed = [class_files(place) for place in places]
    check_same_classes(folder, *(classes for classes, _ in listed))  # before anything is decoded
    train, test = (image_folder(place, size, files) for place, files in zip(places, listed))
    return train, test


# Our data sets in the order of the tables, with the values that they set in a profile. ImageNet-R's images are a mean.
_LITTLE_R = {
    "private_classes": 40,
    "images_per_class": 40,
    "test_images_per_class": 5,
}  # the smallest class has about 50 images
_FEW_GLYPHS = {
    "private_classes": 40,
    "images_per_class": 24,
    "test_images_per_class": 7,
}  # 24 and 8 are drawn; the eighth test image is for a server
register_dataset(
    "cifar100", _cifar100, label="CIFAR-100", images=(500, 100), classes=100, download=169_001_437, pixels=32,
    fixed=True, values={"paper": {"cnn_size": 224}},  # stored at 32 pixels, enlarged for the CNN
)  # fmt: skip
register_dataset(
    "glyphs", _glyphs, label="Glyphs", images=(PER_CLASS, 8), classes=200, pixels=32, fixed=True,
    values={
        "smoke": {"private_classes": 6}, "demo": {"private_classes": 40}, "mini": _FEW_GLYPHS, "full": _FEW_GLYPHS,
        "colab": _FEW_GLYPHS, "paper": {"private_classes": 40},
    },
)  # fmt: skip
register_dataset(
    "imagenet_r", _imagenet_r, label="ImageNet-R", images=(120, 30), classes=CLASSES, download=SIZE, fixed=True,
    values={  # there are no public classes
        "demo": {**_LITTLE_R, "images_per_class": 10}, "mini": {**_LITTLE_R, "image_size": 64},
        "full": {"private_classes": 40, "image_size": 64, "test_images_per_class": 5},
        "colab": {**_LITTLE_R, "image_size": 224}, "paper": {"private_classes": 40, "image_size": 224},
    },
)  # fmt: skip
register_dataset("folder", _folder, label="own images", identity=_folder_identity)
