"""What a server sees of one client, together with the truth that an attack is scored against.

The server is honest and curious: it keeps every payload, knows the code, the config and the frozen model, and has
public images of classes that the client does not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from lscl.config import Experiment
from lscl.data.glyphs import glyphs
from lscl.data.sources import first_per_class, load
from lscl.data.store import ImageSet
from lscl.errors import LsclError
from lscl.experiments.privacy.scores import CANDIDATES
from lscl.experiments.run import read_inputs
from lscl.federation.client import Client, Inputs
from lscl.federation.loop import InProcess
from lscl.federation.method import Method, Stage
from lscl.federation.payload import Payload, seal
from lscl.seeding import numpy_generator

PUBLIC_PER_CLASS = 24  # images of a public class


@dataclass
class Exchange:
    """The last training exchange of a run.

    Args:
        stage: the exchange.
        downloads: {client: payload}.
        uploads: {client: payload}.
        server: the server's tensors before it aggregated.
        states: {client: its private state after its training}; no server sees this.
        images: {client: positions of the training images that its upload is made from}; no server sees this, too.
        earlier: {client: tensors of other names, as they went up last before this exchange}.
        starts: {client: what the client had got under the names in `earlier`, when these went up}.
    """

    stage: Stage
    downloads: Mapping[int, Payload]
    uploads: Mapping[int, Payload]
    server: Payload
    states: Mapping[int, Payload]
    images: Mapping[int, Tensor]
    earlier: Mapping[int, Payload]
    starts: Mapping[int, Payload]


@dataclass
class Witness(InProcess):
    """A transport that remembers the last training exchange."""

    last: Exchange | None = field(default=None, init=False)
    seen: dict[int, Payload] = field(default_factory=dict, init=False)  # {client: all that went up, the newest}
    before: dict[int, Payload] = field(default_factory=dict, init=False)  # {client: what it had got then}

    def ask(self, stage: Stage, downloads: Mapping[int, Payload]) -> dict[int, Payload]:
        """As `InProcess.ask`.

        Args:
            stage: the exchange.
            downloads: {client: payload}.

        Returns:
            {client: its answer}.
        """
        server = dict(self.method.server)
        answers = super().ask(stage, downloads)
        if stage.name != "finish":
            copied = {k: seal(one, f"client {k}") for k, one in answers.items()}
            states = {
                client.id: {name: value.clone() for name, value in client.private_state().items()}
                for client in self.clients
            }
            images = self.last.images if self.last is not None else {}
            if not images or any({"features", "weight", "sums"} & set(sent) for sent in copied.values()):
                images = {client.id: self.method.shown_images(client).clone() for client in self.clients}
            for k, payload in copied.items():
                got = {name: value for name, value in downloads[k].items() if name in payload}
                self.seen[k] = {**self.seen.get(k, {}), **payload}
                self.before[k] = {**self.before.get(k, {}), **got}
            earlier, starts = (
                {k: {name: value for name, value in known[k].items() if name not in copied[k]} for k in copied}
                for known in (self.seen, self.before)
            )
            self.last = Exchange(stage, dict(downloads), copied, server, states, images, earlier, starts)
        return answers


@dataclass
class Gallery:
    """Images of the client's classes: those that it has, and others of the same classes that it never had.

    Args:
        inputs: (k c) images, c of each of k classes, class by class.
        held: which of them the client has trained on in the task, (k c,) bool.
        classes: (k,) labels.
    """

    inputs: Inputs
    held: Tensor
    classes: Tensor

    @property
    def per_class(self) -> int:
        """c, the candidates of a class."""
        return len(self.held) // len(self.classes)

    @cached_property
    def pixels(self) -> Tensor:
        """(k c, 3, H, W) in 0 to 1."""
        return as_unit_images(self.inputs.images.images)

    def candidates(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The images of the same class as each of some images.

        Args:
            rows: positions in the gallery, (n,).

        Returns:
            Positions (n, c) of the candidates, and which of them is the image itself, (n,).
        """
        first = rows - rows % self.per_class
        return first[:, None] + torch.arange(self.per_class), rows % self.per_class

    def others(self, rows: Tensor, draw: np.random.Generator) -> Tensor:
        """For each of some images one of its class that the client never had.

        Args:
            rows: positions in the gallery, (n,).
            draw: which one.

        Returns:
            Their positions, (n,).
        """
        places, _ = self.candidates(rows)
        return torch.stack([one[~self.held[one]][draw.integers(int((~self.held[one]).sum()))] for one in places])

    def held_rate(self, found: Tensor, codes: Tensor, labels: Tensor, draw: np.random.Generator) -> tuple[float, float]:
        """How often what an attack made is nearer to an image of the client than to one that it never had.

        Of each class as many images stand on both sides, so chance is one half. The control divides images that the
        client never had into two sides.

        Args:
            found: (n, d).
            codes: of the gallery's images, (k c, d).
            labels: which class of the gallery each belongs to, 0 to k - 1, (n,).
            draw: which images stand there.

        Returns:
            The rate, and that of the control, which should be one half.
        """
        rates: tuple[list[bool], list[bool]] = ([], [])
        for one, label in zip(found, labels.tolist()):
            places = label * self.per_class + torch.from_numpy(draw.permutation(self.per_class))
            mine, never = places[self.held[places]], places[~self.held[places]]
            sides = ((mine, never), never.tensor_split(2))  # of the attack, of the control
            for rate, (first, second) in zip(rates, sides):
                size = min(len(first), len(second))
                if size:
                    both = torch.cat([first[:size], second[:size]])
                    rate.append(int((codes[both] - one).square().sum(1).argmin()) < size)
        return tuple(sum(rate) / max(1, len(rate)) for rate in rates)


@dataclass
class Observed:
    """One client of a run under attack.

    Args:
        config: the run.
        method: the system, at the server's side.
        stage: the exchange.
        down: what the client got.
        up: what it sent, and tensors of other names that it sent before.
        kept: which images of the gallery stand behind the rows of `features`, or behind their sums, (n,).
        client: the client itself, with its state after the training: truth, for scores and upper bounds only.
        gallery: images to be found, or not.
        public: images that the attacker has.
        others: uploads of the other clients in the same exchange.
    """

    config: Experiment
    method: Method
    stage: Stage
    down: Payload
    up: Payload
    kept: Tensor
    client: Client
    gallery: Gallery
    public: ImageSet
    others: Mapping[int, Payload]

    @property
    def sends_label_sums(self) -> bool:
        """Whether `gram` is that of features and labels together, and not that of what a generator reads."""
        if "gram" not in self.up:
            return False
        q = self.up["weight"].shape[-1] + 1 if "weight" in self.up and self.up["weight"].ndim else 0
        return self.up["gram"].numel() != q * (q + 1) // 2

    def part(self, name: str) -> nn.Module | None:
        """The part of the client's model with this name; None if it has none, as one that is a single layer."""
        return dict(self.client.model.named_children()).get(name)

    @property
    def cnn_features(self) -> Tensor | None:
        """The payload `features`, (n, m): those of the kept images by the client's CNN; None if they are not sent."""
        sent = self.up.get("features")
        if sent is None or self.part("cnn") is None or sent.shape != (len(self.kept), self.config.features):
            return None
        return sent

    @property
    def sends_classifier(self) -> bool:
        """Whether the payload has the client's CNN and the head that reads its features."""
        head, width = self.part("head"), self.config.features
        sent = "head.weight" in self.up and any(name.startswith("cnn.") for name in self.up)
        return sent and None not in (head, self.part("cnn")) and getattr(head, "in_features", width) == width

    @property
    def true_cnn(self) -> str:
        """What an attacker with the client's CNN is called: it is a public one if it never leaves its start."""
        made = self.method.new_model(self.client.id)["cnn"].state_dict()
        own = self.client.model["cnn"].state_dict()
        is_public = all(torch.equal(value.cpu(), own[name].cpu()) for name, value in made.items())
        return "the public CNN" if is_public else "true CNN (upper bound)"

    def rng(self, *names: object) -> np.random.Generator:
        """A generator of the attacker for one purpose."""
        return numpy_generator(self.config.seed, "attack", *names)


def as_unit_images(pixels: np.ndarray) -> Tensor:
    """(n, H, W, 3) uint8 -> (n, 3, H, W) in 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255  # (n, 3, H, W)


def observe(
    method: Method, clients: list[Client], exchange: Exchange, number: int, count: int = CANDIDATES
) -> Observed:
    """What the server sees of one client in an exchange, together with the truth.

    Args:
        method: the system after the run.
        clients: of the run; the one under attack gets its state of the exchange back.
        exchange: the last one of the training.
        number: of the client.
        count: candidates of a class.

    Returns:
        The client under attack.
    """
    config, client = method.config, clients[number]
    client.load_private_state(exchange.states[number])
    client.task, client.round = exchange.stage.task, exchange.stage.round
    client.model.eval()
    others = {k: payload for k, payload in exchange.uploads.items() if k != number}
    gallery = make_gallery(method, client, count)
    return Observed(
        config,
        method,
        exchange.stage,
        {**exchange.downloads[number], **exchange.starts[number]},
        {**exchange.earlier[number], **exchange.uploads[number]},
        places_of(exchange.images[number], client, gallery),
        client,
        gallery,
        public_images(config, client.partition.seen_classes(number, exchange.stage.task)),
        others,
    )


def training_images(config: Experiment, count: int) -> ImageSet:
    """At least `count` training images of every class; the first ones are those of the run.

    Args:
        config: the run.
        count: of a class.

    Returns:
        The images; as many as there are, where there are fewer.
    """
    if config.dataset == "glyphs":  # drawn, as many as are wanted
        return first_per_class(glyphs(max(count, PUBLIC_PER_CLASS))[0], count, "glyphs train")
    every = load(config.model_copy(update={"images_per_class": None})).train
    least = int(np.bincount(every.labels, minlength=len(every.classes)).min())
    return first_per_class(every, min(count, least), config.dataset)


def make_gallery(method: Method, client: Client, count: int = CANDIDATES) -> Gallery:
    """The images among which those of a client are to be found.

    Args:
        method: the system, whose frozen model reads the images.
        client: in the task under attack.
        count: images of a class.

    Returns:
        The gallery.

    Raises:
        LsclError: of a class the client has every image that there is, so that none is left for the controls.
    """
    train, every = client.train.images, training_images(method.config, count)
    classes = torch.tensor(sorted(client.current.classes))
    of_class = {int(label): np.flatnonzero(every.labels == label) for label in classes}
    rank = _ranks(train.labels)
    had = {(int(train.labels[i]), int(rank[i])) for i in client.current.train}
    held = [(label, place) in had for label, places in of_class.items() for place in range(len(places))]
    by_class = np.array(held).reshape(len(classes), -1)  # (k, c)
    if by_class.all(1).any():
        label = every.classes[int(classes[by_class.all(1).argmax()])]
        raise LsclError(
            f"images_per_class = {method.config.images_per_class}: client {client.id} has all {by_class.shape[1]} "
            f"images of class {label!r} among which its own are to be found: use fewer, or a larger data set"
        )
    images = every.subset(np.concatenate(list(of_class.values())))
    inputs = read_inputs(type(method), method.foundation, images, client.train.device, side=method.config.cnn_size)
    return Gallery(inputs, torch.tensor(held), classes)


def places_of(index: Tensor, client: Client, gallery: Gallery) -> Tensor:
    """Where training images of a client stand in the gallery.

    Args:
        index: positions in the training images, all of classes in the gallery, (n,).
        client: whose images.
        gallery: of its classes.

    Returns:
        (n,) positions in the gallery.
    """
    labels, rank = client.train.images.labels[index.numpy()], _ranks(client.train.images.labels)[index.numpy()]
    of_class = torch.searchsorted(gallery.classes, torch.from_numpy(labels))
    return of_class * gallery.per_class + torch.from_numpy(rank)


def _ranks(labels: np.ndarray) -> np.ndarray:
    """How many earlier images of its class each image has, (n,)."""
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rank[labels == label] = np.arange(int((labels == label).sum()))
    return rank


def public_images(config: Experiment, private: tuple[int, ...]) -> ImageSet:
    """What the attacker has: glyphs, or where these are attacked, half of their classes, none of them the client's.

    Args:
        config: the run.
        private: the classes of the client.

    Returns:
        PUBLIC_PER_CLASS images of each class, labelled from 0, of the run's size.
    """
    images = glyphs()[0]
    allowed = np.arange(len(images.classes))
    if config.dataset == "glyphs":
        allowed = np.setdiff1d(allowed, private)
        allowed = np.sort(numpy_generator(config.seed, "public").permutation(allowed)[: len(images.classes) // 2])
    chosen = images.subset(np.flatnonzero(np.isin(images.labels, allowed)))
    pixels = chosen.images
    if config.image_size != pixels.shape[1]:
        scaled = torch.nn.functional.interpolate(as_unit_images(pixels), (config.image_size,) * 2, mode="area")
        pixels = (scaled * 255).round().byte().permute(0, 2, 3, 1).numpy()  # (n, H, W, 3)
    names = tuple(chosen.classes[label] for label in allowed)
    return ImageSet(np.ascontiguousarray(pixels), np.searchsorted(allowed, chosen.labels), names)
