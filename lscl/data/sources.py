"""Data sets by name, in one canonical order, so that every source of the same images gives the same digest."""

import sys
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR100

from lscl import paths
from lscl.config import Experiment
from lscl.data.duplicates import without_duplicates
from lscl.data.folder import class_files, folders_in, image_folder, same_classes, split_folders
from lscl.data.glyphs import glyphs
from lscl.data.imagenet_r import imagenet_r
from lscl.data.store import Dataset, ImageSet, cached, canonical
from lscl.errors import LsclError, shown


def load(config: Experiment) -> Dataset:
    """The data set of `config`, reduced to its images per class; what its reader noted is printed on stderr.

    Raises:
        LsclError: missing or empty folder, corrupt image, no download possible, or fewer images per class than asked for.
    """
    train, test = _splits(config)
    for split, images in (("train", train), ("test", test)):
        for note in images.notes:
            print(f"{shown(str(config.data_dir / split))}: {note}", file=sys.stderr)
    if config.duplicates == "drop":
        train = without_duplicates(train, test)
    return Dataset(
        config.dataset,
        per_class(train, config.images_per_class, f"{config.dataset} train"),
        per_class(test, config.test_images_per_class, f"{config.dataset} test"),
    )


def surrogate(config: Experiment) -> ImageSet:
    """Images for a server that needs some: `mgp_surrogate_per_class` of every class, from the official test split.

    Nobody is tested on them: with eval_split = holdout they are the first of each class, else those behind test_images_per_class.

    Raises:
        LsclError: all images of the official test split are tested on, or a class has fewer than that.
    """
    _, test = _splits(config)
    tested, count = 0 if config.eval_split == "holdout" else config.test_images_per_class, config.mgp_surrogate_per_class
    if tested is None:
        raise LsclError(
            f"{config.method} needs {count} images per class on the server that nobody is tested on: "
            "set eval_split = holdout, or test_images_per_class so that some are left"
        )
    have = np.bincount(test.labels, minlength=len(test.classes))
    if have.min() < tested + count:
        lower = "mgp_surrogate_per_class" if tested == 0 else "test_images_per_class or mgp_surrogate_per_class, or set eval_split = holdout"
        raise LsclError(
            f"{config.dataset} test: class {test.classes[int(have.argmin())]!r} has {have.min()} images, {config.method} needs {tested} per class "
            f"to test on and {count} on the server: lower {lower}"
        )
    return _of_each_class(test, tested, count)


def per_class(images: ImageSet, count: int | None, what: str) -> ImageSet:
    """The first `count` images of every class (all of them for None).

    Raises:
        LsclError: a class has fewer.
    """
    if count is None:
        return images
    have = np.bincount(images.labels, minlength=len(images.classes))
    if have.min() < count:
        raise LsclError(f"{what}: class {images.classes[int(have.argmin())]!r} has {have.min()} images, {count} per class were asked for")
    return _of_each_class(images, 0, count)


def _of_each_class(images: ImageSet, first: int, count: int) -> ImageSet:
    order = np.argsort(images.labels, kind="stable")
    starts = np.searchsorted(images.labels[order], np.arange(len(images.classes))) + first
    return images.subset(np.concatenate([order[start : start + count] for start in starts]))


def _splits(config: Experiment) -> tuple[ImageSet, ImageSet]:
    if config.dataset == "glyphs":
        return glyphs()
    if config.dataset == "cifar100":
        return _cifar100(config)
    if config.dataset == "imagenet_r":
        return imagenet_r(config.data_dir, config.image_size)
    if config.data_dir is None:
        raise LsclError("dataset folder needs data_dir: a folder with train/<class>/<image> and test/<class>/<image>")
    return _folder_pair(config.data_dir, config.image_size)


def _cifar100(config: Experiment) -> tuple[ImageSet, ImageSet]:
    folder = config.data_dir
    if folder is not None and not folder.is_dir():
        raise LsclError(f"no data folder {folder}: give a folder with train/ and test/, or with torchvision's cifar-100-python")
    if folder is not None and (folder / "train").is_dir():
        train, test = _folder_pair(folder, 32)
        if (len(train.classes), len(test.classes)) != (100, 100):
            raise LsclError(f"{folder} has {len(train.classes)} training and {len(test.classes)} test classes, CIFAR-100 has 100")
        return train, test
    if folder is not None and not (folder / CIFAR100.base_folder).is_dir():
        raise LsclError(
            f"CIFAR-100 not found in {folder}: expected the folders train and test, or torchvision's {CIFAR100.base_folder}, "
            f"found {folders_in(folder)}; give --data-dir another folder, or leave it out to download"
        )
    return _torchvision_cifar100(folder)


def _torchvision_cifar100(folder: Path | None) -> tuple[ImageSet, ImageSet]:
    home = folder or paths.cache() / "downloads"

    def decode(train: bool) -> ImageSet:
        try:
            source = CIFAR100(str(home), train=train, download=folder is None)
        except Exception as error:  # torchvision raises RuntimeError, URLError and others
            raise LsclError(
                f"CIFAR-100 not found in {home} nor downloaded ({error}); give --data-dir a folder with torchvision's files or train/, test/ trees"
            ) from error
        return canonical(ImageSet(source.data, np.array(source.targets, np.int64), tuple(source.classes)))

    return cached("cifar100-train", lambda: decode(True)), cached("cifar100-test", lambda: decode(False))


def _folder_pair(folder: Path, size: int) -> tuple[ImageSet, ImageSet]:
    places = split_folders(folder)
    same_classes(folder, *(class_files(place)[0] for place in places))  # before anything is decoded
    train, test = (image_folder(place, size) for place in places)
    return train, test
