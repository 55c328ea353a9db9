"""Who gets which images when: the class streams and the image lists of every client and task.

Protocol of the paper (section 5.1) with the choices of its authors' other code bases: private classes for each client,
public classes for all, each client shuffles its own classes and cuts them into tasks; the images of a public class are
shared out by one Dirichlet draw. Index lists, not ranges: the same class may come at different times on different clients.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lscl.config import Experiment
from lscl.data.store import Dataset, digest_of, write_atomic
from lscl.errors import LsclError
from lscl.seeding import numpy_generator

MAX_DRAWS = 100_000  # of the shares of one public class, until everybody has min_share


@dataclass(frozen=True)
class Task:
    """One task of one client: `classes` (labels), `train` and `test` (positions in the data set's arrays).

    With `eval_split="holdout"` the positions in `test` point into the training images, else into the test images.
    """

    classes: tuple[int, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]


@dataclass(frozen=True)
class Partition:
    """tasks[k][t] is task t of client k."""

    tasks: tuple[tuple[Task, ...], ...]
    public: tuple[int, ...]
    holdout: bool

    @property
    def digest(self) -> str:
        """SHA-256 of all index lists, 16 hex digits."""
        return digest_of(json.dumps(asdict(self), sort_keys=True).encode())[:16]

    def seen_classes(self, client: int, task: int) -> tuple[int, ...]:
        """Every class that `client` has met up to and including `task`, in order of arrival."""
        return tuple(label for part in self.tasks[client][: task + 1] for label in part.classes)

    def counts(self, labels: np.ndarray, classes: int, split: str = "train") -> np.ndarray:
        """Training (or with split = test, test) images by (client, task, class), int64. labels: of the images that the positions point to."""
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
    """What the server knows of the clients' images: `parts`, and how many are for training and for testing, by (client, task, class)."""

    parts: Partition
    train: np.ndarray
    test: np.ndarray

    @classmethod
    def count(cls, parts: Partition, data: Dataset) -> "Census":
        tested = data.train if parts.holdout else data.test
        train, test = (
            parts.counts(data.train.labels, len(data.classes)),
            parts.counts(tested.labels, len(data.classes), "test"),
        )
        return cls(parts, train, test)

    def images(self, client: int, task: int) -> int:
        """Training images of a task."""
        return int(self.train[client, task].sum())

    def images_so_far(self, client: int, task: int) -> int:
        """Training images of all tasks up to this one."""
        return int(self.train[client, : task + 1].sum())

    def test_images_so_far(self, client: int, task: int) -> np.ndarray:
        """Test images of every class met so far, in order of arrival: (classes,) int64."""
        return self.test[client, : task + 1].sum(0)[list(self.parts.seen_classes(client, task))]


def partition(config: Experiment, data: Dataset) -> Partition:
    """Deal the classes and images of `data` to the clients and tasks of `config`.

    Raises:
        LsclError: more classes are asked for than the data has, or a class would leave a client without an image.
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
    """The images of one class for each client that holds it; a public class by one Dirichlet draw, nothing left over."""
    images = numpy_generator(config.seed, "images", label).permutation(np.flatnonzero(data.train.labels == label))
    if not is_public:
        holder = next(client for client, stream in enumerate(streams) if label in stream)
        return {holder: images}
    least = 2 if config.eval_split == "holdout" else 1  # each holder keeps a class to train on (and one to test on)
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
            f"min_share = {config.min_share}: no draw of {MAX_DRAWS} gave each of {config.clients} clients that share; lower it or raise dirichlet"
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
    """No image on two clients or in two tasks, none in train and test, and every client has all its classes once.

    Raises:
        LsclError: one of these does not hold.
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
