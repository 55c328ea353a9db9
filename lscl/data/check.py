"""The report of `lscl data check` on a folder of images, before anything is computed with it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lscl.data.duplicates import Duplicates, group_duplicates
from lscl.data.folder import SPLITS, check_same_classes, class_files, describe_ignored, is_hidden, split_folders
from lscl.data.picture import is_picture, read_picture
from lscl.data.store import digest_of
from lscl.errors import LsclError, make_printable, pluralize

NAMED = 5  # examples of a kind that the report names


@dataclass
class Split:
    """The images of one split.

    Args:
        folder: FOLDER/train or FOLDER/test.
        counts: {class: images}.
        keys: digest of each image's pixels; equal pixels have equal keys.
        paths: file of each image.
        labels: class name of each image.
        formats: {format: images}, as Pillow names it.
        modes: {mode: images}, as Pillow names it.
        sizes: {(width, height): images}.
        changes: {what decoding did to an image: images}.
        ignored: files that are no images.
        unreadable: one line for each damaged image.
    """

    folder: Path
    counts: dict[str, int] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    formats: Counter = field(default_factory=Counter)
    modes: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)
    changes: Counter = field(default_factory=Counter)
    ignored: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, size: int) -> "Split":
        """Read every file of a split, one after another.

        Args:
            folder: FOLDER/train or FOLDER/test.
            size: pixels a side at which images are compared.

        Returns:
            The split, with everything that the report says about it.
        """
        classes, loose = class_files(folder)
        found = cls(folder, counts=dict.fromkeys(classes, 0), ignored=loose)
        for name, files in classes.items():
            for path in files:
                if is_picture(path):
                    found._add(path, name, size)
                else:
                    found.ignored.append(path)
        return found

    def _add(self, path: Path, name: str, size: int) -> None:
        try:
            picture = read_picture(path, make_printable(str(path)))
            pixels = picture.square(size, make_printable(str(path)))
        except LsclError as error:
            self.unreadable.append(str(error))
            return
        self.counts[name] += 1
        self.keys.append(digest_of(pixels))
        self.paths.append(path)
        self.labels.append(name)
        self.formats[picture.format] += 1
        self.modes[picture.mode] += 1
        self.sizes[picture.size] += 1
        self.changes.update(picture.changes + (("first of several pictures",) if picture.frames > 1 else ()))

    def lines(self) -> Iterator[str]:
        """The lines of the report on this split."""
        order = sorted(self.counts, key=lambda name: (self.counts[name], name))
        least, most = (self.counts[order[i]] for i in (0, -1))
        each = f"{least}" if least == most else f"{least} to {most}"
        yield f"{self.folder.name}: {pluralize(len(self.keys), 'image')} of {len(order)} classes, {each} per class"
        if least != most:
            few, many = (
                ", ".join(f"{make_printable(name, 40)} {self.counts[name]}" for name in names[:NAMED])
                for names in (order, order[::-1])
            )
            yield f"  fewest: {few}; most: {many}"
        for what, counts in (("formats", self.formats), ("modes", self.modes), ("done to images", self.changes)):
            if counts:
                yield f"  {what}: {', '.join(f'{name} {count}' for name, count in counts.most_common())}"
        if self.sizes:
            small, large = (choose(self.sizes, key=lambda size: (size[0] * size[1], size)) for choose in (min, max))
            sizes = f"{small[0]} x {small[1]}" + (
                f" to {large[0]} x {large[1]}, {len(self.sizes)} different ones" if small != large else ""
            )
            yield f"  sizes in pixels: {sizes}"
        if self.ignored:
            yield f"  {describe_ignored(self.folder, self.ignored)}"
        if self.unreadable:
            yield f"  {pluralize(len(self.unreadable), 'image')} unreadable:"
            yield from _some(self.unreadable)

    def problems(self) -> Iterator[str]:
        """The reasons why this split cannot be used, one line each."""
        yield from self.unreadable
        yield from (
            f"no images in class folder {make_printable(str(self.folder / name))}"
            for name, count in self.counts.items()
            if count == 0
        )


def check_folder(folder: Path, size: int) -> Iterator[str]:
    """Report on FOLDER/train and FOLDER/test, line by line.

    Args:
        folder: the folder with both splits.
        size: pixels a side at which images are compared.

    Yields:
        Lines of the report; the last one says that `--dataset folder` can use the images.

    Raises:
        LsclError: at once, if a split or its classes are missing; at the end, if `--dataset folder` could not use it.
    """
    places = split_folders(folder)
    others = [
        make_printable(path.name, 40)
        for path in sorted(folder.iterdir())
        if path.name not in SPLITS and not is_hidden(path.name)
    ]
    aside = f"; not looked at: {', '.join(others[:NAMED])}{' and more' if others[NAMED:] else ''}" if others else ""
    yield f"{make_printable(str(folder))}: {' and '.join(SPLITS)} found{aside}"
    splits = []
    for place in places:
        splits.append(Split.read(place, size))
        yield from splits[-1].lines()
    problems = [line for split in splits for line in split.problems()]
    try:
        check_same_classes(folder, *(split.counts for split in splits))
    except LsclError as error:
        problems.append(str(error))
    train, test = splits
    if train.keys or test.keys:
        yield from _equal(folder, train, test, size)
    if problems:
        more = f" (and {pluralize(len(problems) - 1, 'more problem')})" if problems[1:] else ""
        raise LsclError(f"{folder} cannot be used: {problems[0].removeprefix(f'{folder}: ')}{more}")
    yield (
        f"usable: --dataset folder, --images-per-class up to {min(train.counts.values())}, "
        f"--test-images-per-class up to {min(test.counts.values())}, {len(train.counts)} classes"
    )


def _equal(folder: Path, train: Split, test: Split, size: int) -> Iterator[str]:
    names, labels = np.unique(train.labels + test.labels, return_inverse=True)
    paths = train.paths + test.paths
    found: Duplicates = group_duplicates(
        np.array(train.keys + test.keys), labels, np.arange(len(paths)) >= len(train.paths)
    )
    yield f"at {size} pixels a side, {found}"
    groups = [np.flatnonzero(found.group == one) for one in np.flatnonzero(found.size > 1)[:NAMED]]
    yield from (
        f"    {' = '.join(make_printable(str(paths[i].relative_to(folder))) for i in group[:NAMED])}"
        for group in groups
    )
    if found.in_train.any() or found.across_splits.any():
        yield "  --duplicates drop leaves the training images among them out"


def _some(lines: list[str]) -> Iterator[str]:
    yield from (f"    {make_printable(' '.join(line.split()))}" for line in lines[:NAMED])
    if lines[NAMED:]:
        yield f"    and {len(lines) - NAMED} more"
