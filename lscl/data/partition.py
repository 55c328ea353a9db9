"""The partition: which classes and images every client gets in every task.

The protocol of the paper (section 5.1). Where the paper is silent, it follows other code of its authors: each client
has private classes, all clients share the public ones, and each client shuffles its classes and cuts them into tasks.
One Dirichlet draw divides the images of a public class. The same class may come at different times on different
clients, hence index lists, not ranges.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lscl.config import Experiment
from lscl.data.store import Dataset, digest_of, write_atomic
from lscl.errors import LsclError
from lscl.seeding import numpy_generator

MAX_DRAWS = 100_000  # of the shares of one public class, until every client has min_share


@dataclass(frozen=True)
class Task:
    """One task of one client.

    Args:
        classes: labels.
        train: positions of its training images in the data set's training images.
        test: positions of its test images in the test images, or, with eval_split = holdout, in the training images.
    """

    classes: tuple[int, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]


@dataclass(frozen=True)
class Partition:
    """The tasks of all clients.

    Args:
        tasks: tasks[k][t] is task t of client k.
        public: labels of the classes that all clients have.
        holdout: whether test images come from the training images (eval_split = holdout).
    """

    tasks: tuple[tuple[Task, ...], ...]
    public: tuple[int, ...]
    holdout: bool

    @property
    def digest(self) -> str:
        """SHA-256 of all index lists, 16 hex digits."""
        return digest_of(json.dumps(asdict(self), sort_keys=True).encode())[:16]

    def seen_classes(self, client: int, task: int) -> tuple[int, ...]:
        """The classes that a client has met.

        Args:
            client: number of the client.
            task: the last task that counts.

        Returns:
            Labels in order of arrival.
        """
        return tuple(label for part in self.tasks[client][: task + 1] for label in part.classes)

    def counts(self, labels: np.ndarray, classes: int, split: str = "train") -> np.ndarray:
        """Count the images of every client, task and class.

        Args:
            labels: (n,) labels of the images that the positions point to.
            classes: number of classes C of the data set.
            split: "train" or "test".

        Returns:
            (clients, tasks, C) int64.
        """
        return np.array(
            [
                [np.bincount(labels[list(getattr(part, split))], minlength=classes) for part in stream]
                for stream in self.tasks
            ]
        )

    def save(self, path: Path) -> None:
        """Write the index lists as JSON."""
        write_atomic(path, json.dumps({"digest": self.digest, **asdict(self)}, separators=(",", ":")).encode())


@dataclass(frozen=True)
class Census:
    """What the server knows of the clients' images: how many there are, but not the images.

    Args:
        parts: the partition.
        train: (clients, tasks, C) training images.
        test: (clients, tasks, C) test images.
    """

    parts: Partition
    train: np.ndarray
    test: np.ndarray

    @classmethod
    def count(cls, parts: Partition, data: Dataset) -> "Census":
        """Count the images of a partition.

        Args:
            parts: the partition.
            data: the data set that it divides.

        Returns:
            The census.
        """
        tested = data.train if parts.holdout else data.test
        train, test = (
            parts.counts(data.train.labels, len(data.classes)),
            parts.counts(tested.labels, len(data.classes), "test"),
        )
        return cls(parts, train, test)

    def images(self, client: int, task: int) -> int:
        """Training images of one task.

        Args:
            client: number of the client.
            task: number of the task.

        Returns:
            Their number.
        """
        return int(self.train[client, task].sum())

    def images_so_far(self, client: int, task: int) -> int:
        """Training images of all tasks up to this one.

        Args:
            client: number of the client.
            task: the last task that counts.

        Returns:
            Their number.
        """
        return int(self.train[client, : task + 1].sum())

    def test_images_so_far(self, client: int, task: int) -> np.ndarray:
        """Test images of every class that a client has met.

        Args:
            client: number of the client.
            task: the last task that counts.

        Returns:
            (classes met,) int64, in order of arrival.
        """
        return self.test[client, : task + 1].sum(0)[list(self.parts.seen_classes(client, task))]


def partition(config: Experiment, data: Dataset) -> Partition:
    """Divide classes and images over clients and tasks.

    Args:
        config: numbers of clients, tasks and classes, the Dirichlet concentration, and the seed of all draws.
        data: the data set.

    Returns:
        The checked partition.

    Raises:
        LsclError: the data set has too few classes, or a class would leave a client without an image.
    """
    per_client = config.tasks * config.classes_per_task
    private = min(config.private_classes, per_client)
    public_count = per_client - private
    needed = config.clients * private + public_count
    if needed > len(data.classes):
        raise LsclError(
            f"{config.clients} clients x {private} private + {public_count} public classes need {needed} classes, "
            f"but {data.name} has {len(data.classes)} (lower clients, tasks, classes_per_task or private_classes)"
        )
    order = numpy_generator(config.seed, "classes").permutation(len(data.classes))
    public = order[config.clients * private : needed]
    streams = []
    for client in range(config.clients):
        own = np.concatenate([order[client * private : (client + 1) * private], public])
        streams.append(numpy_generator(config.seed, "stream", client).permutation(own).reshape(config.tasks, -1))

    shares = {int(label): _deal(config, data, int(label), label in public, streams) for label in order[:needed]}
    tasks = tuple(
        tuple(_task(config, data, client, classes, shares) for classes in stream)
        for client, stream in enumerate(streams)
    )
    made = Partition(tasks, tuple(int(label) for label in public), config.eval_split == "holdout")
    check_partition(made, config)
    return made


def _deal(
    config: Experiment, data: Dataset, label: int, is_public: bool, streams: list[np.ndarray]
) -> dict[int, np.ndarray]:
    """The images of one class by client; one Dirichlet draw divides all images of a public class."""
    images = numpy_generator(config.seed, "images", label).permutation(np.flatnonzero(data.train.labels == label))
    if not is_public:
        holder = next(client for client, stream in enumerate(streams) if label in stream)
        return {holder: images}
    least = 2 if config.eval_split == "holdout" else 1  # each holder needs an image to train on (and one to test on)
    if len(images) < least * config.clients:
        raise LsclError(
            f"class {data.classes[label]!r} has {len(images)} training images, too few for {config.clients} clients"
        )
    draw = numpy_generator(config.seed, "dirichlet", label)
    for _ in range(MAX_DRAWS):
        share = draw.dirichlet(np.full(config.clients, config.dirichlet))
        if share.min() >= config.min_share:
            break
    else:
        raise LsclError(
            f"min_share = {config.min_share}: no draw of {MAX_DRAWS} gave each of {config.clients} clients that share; "
            "lower it or raise dirichlet"
        )
    spare = len(images) - least * config.clients
    counts = least + np.diff(np.floor(np.cumsum(share) * spare + 1e-9).astype(int), prepend=0)
    return dict(enumerate(np.split(images, np.cumsum(counts)[:-1])))


def _task(
    config: Experiment, data: Dataset, client: int, classes: np.ndarray, shares: dict[int, dict[int, np.ndarray]]
) -> Task:
    train, test = [], []
    for label in classes.tolist():
        images = shares[label][client]
        if config.eval_split == "holdout":  # 30 % of the client's own images, at least one
            cut = max(1, round(0.3 * len(images)))
            test.append(images[:cut])
            train.append(images[cut:])
        else:
            train.append(images)
            test.append(np.flatnonzero(data.test.labels == label))
        if len(train[-1]) == 0 or len(test[-1]) == 0:
            raise LsclError(f"class {data.classes[label]!r} leaves client {client} without training or test images")
    return Task(tuple(classes.tolist()), *(tuple(np.sort(np.concatenate(part)).tolist()) for part in (train, test)))


def check_partition(made: Partition, config: Experiment) -> None:
    """Check that every image is used once, and that every client has each of its classes once.

    Args:
        made: the partition.
        config: the config that it was made for.

    Raises:
        LsclError: an image is on two clients, in two tasks or in both splits, or a client's classes are not complete.
    """
    used = [image for stream in made.tasks for part in stream for image in part.train]
    if made.holdout:
        used += [image for stream in made.tasks for part in stream for image in part.test]
    if len(set(used)) != len(used):
        raise LsclError("partition: an image was dealt out twice")
    for client, stream in enumerate(made.tasks):
        classes = [label for part in stream for label in part.classes]
        if len(stream) != config.tasks or len(set(classes)) != config.tasks * config.classes_per_task:
            raise LsclError(f"partition: client {client} has {len(set(classes))} classes in {len(stream)} tasks")
