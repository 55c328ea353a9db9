"""Use kept models: read them, and let a client classify images."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lscl.config import Experiment, experiment
from lscl.data.partition import Census, Partition, Task
from lscl.data.picture import decode_picture, read_picture
from lscl.data.store import ImageSet
from lscl.errors import LsclError, explain, first_line, shorten
from lscl.experiments import records
from lscl.experiments.kept_models import ENDING, ModelCard, ModelKeeper, model_path, read_card, read_tensors
from lscl.federation.checkpoint import DAMAGES
from lscl.federation.client import Batch, Client, Inputs
from lscl.federation.loop import finish_of
from lscl.federation.masking import mask_logits
from lscl.federation.method import Method
from lscl.federation.metrics import MASKS
from lscl.federation.passes import BATCH
from lscl.models.cache import compute_tokens, embedded_tokens
from lscl.models.precision import device_of, prepare_device, prepare_repetition, to_channels_last
from lscl.models.vit import foundation_of
from lscl.registry import METHODS, code_of
from lscl.seeding import seeded

CLOSE = 1e-2  # relative difference of scores that is rounding: images go through the frozen ViT in other batches


@dataclass(frozen=True, eq=False)
class Prediction:
    """A client's predictions for n images.

    Args:
        images: what it looked at, (n, H, W, 3) uint8.
        logits: the system's scores of all C classes, (n, C); minus infinity for classes that do not compete.
        classes: names of the classes.
    """

    images: np.ndarray
    logits: np.ndarray
    classes: tuple[str, ...]

    @property
    def labels(self) -> np.ndarray:
        """The chosen classes, (n,) int64, positions in `classes`."""
        return self.logits.argmax(1)

    @property
    def names(self) -> list[str]:
        """The names of the chosen classes."""
        return [self.classes[label] for label in self.labels]

    @property
    def scores(self) -> np.ndarray:
        """The softmax of the logits, (n, C) between 0 and 1; 0 for classes that do not compete."""
        powers = np.exp(self.logits - self.logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    def best(self, image: int = 0, count: int = 5) -> list[tuple[str, float]]:
        """The classes with the highest scores.

        Args:
            image: number of the image.
            count: how many classes; fewer if fewer compete.

        Returns:
            (name, score), the highest first.

        Raises:
            LsclError: there is no such image.
        """
        if not 0 <= image < len(self.scores):
            raise LsclError(f"image = {image}: there are {len(self.scores)} images, give 0 to {len(self.scores) - 1}")
        scores = self.scores[image]
        order = [
            label for label in np.argsort(-scores, kind="stable")[:count] if np.isfinite(self.logits[image, label])
        ]
        return [(self.classes[label], float(scores[label])) for label in order]


class KeptModel:
    """The models of all clients of a finished run, as they were tested last.

    Args:
        card: what was kept.
        config: the run.
        method: the system.
        clients: its clients, each with its model.
    """

    def __init__(self, card: ModelCard, config: Experiment, method: Method, clients: Sequence[Client]):
        self.card, self.config, self.method, self.clients = card, config, method, list(clients)
        self.classes = tuple(card.classes)

    def __repr__(self) -> str:
        reached = ", ".join(f"{mask} {value:.1f} %" for mask, value in self.card.accuracy.items())
        return f"KeptModel({self.card.name}: {len(self.clients)} clients, {len(self.classes)} classes, {reached})"

    def known_classes(self, client: int, task: int | None = None) -> tuple[str, ...]:
        """The classes that a client has learned.

        Args:
            client: its number.
            task: only those of this task, from 0; None = of all.

        Returns:
            their names, in order of arrival.

        Raises:
            LsclError: no such client or task.
        """
        return tuple(self.classes[label] for label in self._labels(client, "seen" if task is None else "task", task))

    def predict(self, images: Any, client: int = 0, mask: str = "seen", task: int | None = None) -> Prediction:
        """Let a client classify images.

        Images are decoded, resized and cropped as those of a folder, wherever they come from. A system whose images
        vote in a batch (prompt_batchwise) gives every image of a call its part in the vote, 200 at a time.

        Args:
            images: (n, H, W, 3) or (H, W, 3) uint8; or the path of a picture, or a PIL image, or a list of these.
            client: whose models look, from 0.
            mask: the classes that compete, as in the tests: "seen" = all that the client has met, "all" = every class
                of the data set, "task" = those of one task.
            task: the task of mask = task, from 0; it may be given without the mask, but not with mask = all.

        Returns:
            the scores of every class.

        Raises:
            LsclError: no such client, mask or task, something that is no image, or models that give no numbers.
        """
        if task is not None and mask == "seen":
            mask = "task"
        labels, pixels = self._labels(client, mask, task), self._pixels(images)
        logits = self.compute_logits(pixels, client, labels)  # (n, C)
        if not np.isfinite(logits[:, labels]).all():
            raise LsclError(f"the models of {self.card.name} are damaged: client {client} sees NaN or infinite scores")
        return Prediction(pixels, logits, self.classes)

    def compute_logits(self, pixels: np.ndarray, client: int, labels: Sequence[int]) -> np.ndarray:
        """The system's scores, whatever they are.

        Args:
            pixels: (n, size, size, 3) uint8.
            client: its number.
            labels: the classes that compete.

        Returns:
            (n, C) float64; minus infinity for classes that do not compete.

        Raises:
            LsclError: the models cannot look at images.
        """
        one, allowed = self.clients[client], torch.tensor(labels)
        with torch.no_grad(), _threads(self.config.cpu_threads):
            found = []
            for start in range(0, len(pixels), BATCH):
                inputs = self._inputs(pixels[start : start + BATCH])
                batch = Batch(inputs, torch.arange(len(inputs.images)))
                found.append(mask_logits(self._logits(one, batch), allowed))
        return torch.cat(found).double().numpy()  # (n, C)

    def _logits(self, client: Client, batch: Batch) -> Tensor:
        try:
            return self.method.logits(client, batch).cpu()
        except DAMAGES as error:
            if explain(error) is not None:  # too little memory is no damage
                raise
            why = f"{type(error).__name__}: {first_line(error)[:200]}"
            raise LsclError(f"the models of {self.card.name} cannot look at images ({why})") from error

    def _labels(self, client: int, mask: str, task: int | None) -> list[int]:
        tasks = self.card.tasks
        if not _is_number(client, len(tasks)):
            raise LsclError(f"client = {shorten(repr(client), 50)}: there are the clients 0 to {len(tasks) - 1}")
        if mask not in MASKS:
            raise LsclError(f"mask = {shorten(repr(mask), 50)}: allowed are {', '.join(MASKS)}")
        if mask == "all" and task is not None:
            raise LsclError(f"task = {shorten(repr(task), 50)}: every class competes with mask = all, leave one out")
        if mask == "task" and not _is_number(task, len(tasks[client])):
            raise LsclError(
                f"task = {shorten(repr(task), 50)}: client {client} has the tasks 0 to {len(tasks[client]) - 1}"
            )
        if mask == "task":
            return tasks[client][task]
        return [label for one in tasks[client] for label in one] if mask == "seen" else list(range(len(self.classes)))

    def _pixels(self, images: Any) -> np.ndarray:
        """(n, size, size, 3) uint8."""
        size = self.config.image_size
        if isinstance(images, Tensor):
            images = images.numpy(force=True)
        if isinstance(images, np.ndarray):
            images = images[None] if images.ndim == 3 else images
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
                raise LsclError(
                    f"images of shape {images.shape} and type {images.dtype}: wanted are (n, H, W, 3) numbers of uint8"
                )
            if images.shape[1:3] == (size, size):
                return np.ascontiguousarray(images)
            images = [Image.fromarray(image) for image in images]
        if isinstance(images, str | Path | Image.Image):
            images = [images]
        if not isinstance(images, list | tuple) or not images:
            raise LsclError(
                f"images = {shorten(repr(images), 100)}: give an array, a picture, a path, or a list of these"
            )
        return np.stack([_square(image, size, number) for number, image in enumerate(images)])

    def _inputs(self, pixels: np.ndarray) -> Inputs:
        """The images as the networks take them; nothing is stored in the cache."""
        frozen, numbers, device = self.method.foundation, self.config.activations, self.method.device
        images = ImageSet(pixels, np.zeros(len(pixels), np.int64), self.classes)
        if frozen is None:
            return Inputs(images, None, device, side=self.config.cnn_size)
        last = None
        if self.method.query:
            last = compute_tokens(frozen.recut(frozen.depth), pixels, device, numbers)
        if frozen.embeds_at_once:
            return Inputs(images, None, device, last, self.config.cnn_size, partial(embedded_tokens, frozen, numbers))
        return Inputs(images, compute_tokens(frozen, pixels, device, numbers), device, last, self.config.cnn_size)


def _is_number(value: object, count: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value < count


def _square(image: Any, size: int, number: int) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
            raise LsclError(
                f"image {number} has shape {image.shape} and type {image.dtype}: wanted are (H, W, 3) numbers of uint8"
            )
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        return decode_picture(image, f"{number}").square(size, f"{number}")
    if not isinstance(image, str | Path):
        raise LsclError(f"image {number} is a {type(image).__name__}: give an array, a picture or a path")
    return read_picture(Path(image), shorten(image, 200)).square(size, shorten(image, 200))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with the threads of the run, on which the last bits hang."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_model(path: str | Path | Mapping[str, Any], weights: Path | None = None, device: str = "auto") -> KeptModel:
    """Read the models that a run has kept (`lscl run --keep-model`, `lscl.run(config, keep_model=True)`).

    This changes settings of the whole process, and nothing sets them back: which operations torch allows, whether new
    tensors are filled, and TF32 on a GPU (`lscl.models.precision`).

    Args:
        path: the safetensors file, its card, or the record next to which it lies, also as `lscl.run` returns it.
        weights: a local checkpoint of the frozen ViT, for runs that used one.
        device: where to compute: auto, cpu or cuda.

    Returns:
        the models, ready to predict.

    Raises:
        LsclError: no such file; damaged, too large, of another kind or of another run; a system, a data set or weights
            that are not there, or weights that the run did not use.
    """
    place = _find(path)
    card = read_card(place)
    if weights is not None and not card.config.get("weights_sha256"):
        raise LsclError(f"{place}: its run used no local checkpoint of the frozen ViT: leave weights out")
    config = _config_of(card, place, weights, device)
    tensors = read_tensors(place, card)
    if foreign := sorted(tensors.keys() - _known_names(tensors, config.clients)):
        raise LsclError(
            f"{place}: its tensors are not those of {config.method}: {shorten(foreign[0], 200)} is nobody's"
        )
    kind = METHODS[config.method]
    if card.system_digest != code_of(config.method):
        raise LsclError(
            f"{place}: {config.method} is another system here than the one that was trained: register that one"
        )
    where = device_of(config)
    prepare_device(config)
    prepare_repetition(config, where)
    try:
        frozen = foundation_of(config, kind.cut(config)).to(where) if kind.uses_vit(config) else None
    except LsclError as error:
        raise LsclError(f"{place}: {error}") from error
    found = frozen.digest if frozen else None
    if found != card.weights_digest:
        raise LsclError(
            f"{place}: its frozen ViT has the digest {card.weights_digest}, {config.foundation} has {found} here"
        )
    try:
        method = kind(config, frozen, len(card.classes))
        return KeptModel(card, config, method, _clients(card, config, method, where, tensors))
    except LsclError:
        raise
    except DAMAGES as error:
        raise LsclError(f"{place}: its tensors are not those of {config.method} ({shorten(error, 300)})") from error


def check_models(model: KeptModel, keeper: ModelKeeper) -> None:
    """Compare models from a file with the predictions of their clients in the run.

    Args:
        model: what was read.
        keeper: what the run kept.

    Raises:
        LsclError: a client sees something else, or cannot look at all.
    """
    needs = f"the tests of {model.config.method} need more than model and state: Method.prepare_test is to make it"
    for k, (images, seen) in keeper.probes.items():
        try:
            again = torch.from_numpy(model.compute_logits(images, k, range(len(model.classes))))
        except LsclError as error:
            raise LsclError(f"{needs} ({error})") from error
        if not torch.allclose(again, seen.double(), rtol=CLOSE, atol=CLOSE * float(seen.abs().max()), equal_nan=True):
            raise LsclError(f"{needs} (client {k} sees something else in an image)")


def _find(given: object) -> Path:
    """The safetensors file of a path or a record that a user gave."""
    if isinstance(given, Mapping):
        kinds = {"profile": str, "name": str, "dirty": bool}
        if all(isinstance(given.get(name), kind) for name, kind in kinds.items()):
            return model_path(given)
    if not isinstance(given, str | Path):
        raise LsclError(
            f"cannot read {shorten(repr(given), 100)} as kept models: give the {ENDING} file, its card or its record"
        )
    path = Path(given)
    if path.suffix == ENDING:
        found = path
    elif path.suffix == ".json":
        beside = path.parent / "models" / f"{path.stem}{ENDING}"
        found = beside if path.parent.name != "models" and beside.exists() else path.with_suffix(ENDING)
    else:
        raise LsclError(f"cannot read {path} as kept models: give the {ENDING} file, its card or its record (.json)")
    if not found.exists():
        kept = "there is no such file" if path.suffix == ENDING else f"there is no {found.name} to it"
        raise LsclError(f"cannot read the models {path}: {kept}; lscl run --keep-model makes it")
    return found


def _config_of(card: ModelCard, place: Path, weights: Path | None, device: str) -> Experiment:
    try:
        records.checked_config(card.config)
        local = weights if card.config.get("weights_sha256") else None
        config = experiment(**{**card.config, "data_dir": None, "weights": local, "device": device})
    except (ValueError, LsclError) as error:
        raise LsclError(f"cannot read the models {place}: {shorten(error)}") from error
    labels = [[label for task in stream for label in task] for stream in card.tasks]
    each = config.classes_per_task
    shapes = {(len(stream), *{len(task) for task in stream}) for stream in card.tasks}
    wrong = any(len(set(one)) != len(one) or max(one, default=0) >= len(card.classes) for one in labels)
    if len(card.tasks) != config.clients or shapes != {(config.tasks_run, each)} or wrong:
        raise LsclError(f"{place.with_suffix('.json')}: its tasks are not those of its config and its classes")
    return config


def _clients(
    card: ModelCard, config: Experiment, method: Method, device: torch.device, tensors: dict[str, Tensor]
) -> list[Client]:
    """The clients as they were tested last."""
    streams = tuple(tuple(Task(tuple(labels), (), ()) for labels in stream) for stream in card.tasks)
    parts = Partition(streams, (), config.eval_split == "holdout")
    none = np.zeros((config.clients, config.tasks_run, len(card.classes)), np.int64)
    size = config.image_size
    nothing = Inputs(
        ImageSet(np.zeros((0, size, size, 3), np.uint8), none[0, 0, :0], tuple(card.classes)), None, device
    )
    nothing.side = config.cnn_size
    method.census, method.device = Census(parts, none, none), device
    method.server = _part(tensors, "server")
    stage, clients = finish_of(method.stages(config.tasks_run - 1)), []
    for k in range(config.clients):
        model = to_channels_last(method.new_model(k).to(device), config)
        client = Client(k, model, parts, nothing, nothing, config.seed, stage.task, stage.round)
        client.load_private_state(_part(tensors, f"client{k}"))
        with seeded(client.seed, stage.name, k, stage.task, stage.round), torch.no_grad():
            method.prepare_test(client)
        client.model.eval()
        clients.append(client)
    return clients


def _known_names(tensors: Mapping[str, Tensor], clients: int) -> set[str]:
    """The names of tensors that belong to the server or to one of so many clients."""
    owners = ("server.", *(f"client{k}.{part}." for k in range(clients) for part in ("model", "state")))
    return {name for name in tensors if name.startswith(owners)}


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
