"""The hooks of a federated continual learning method: the defaults are FedAvg, and a method overrides what it changes.

A system is one file: a subclass of `Method` with its parameters and the facts that `FACTS` lists, registered by
`lscl.register`. The server's state is `Method.server`, a client's private state is `Client.model` and `Client.state`;
only payloads cross between them.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lscl.config import Experiment
from lscl.data.partition import Census
from lscl.federation.averaging import average, average_rows, clip_changes, coordinate_median
from lscl.federation.client import Batch, Client, Inputs
from lscl.federation.costs import Costs
from lscl.federation.limits import LIMIT, STEP, Check, equality_check, range_check, reach_check
from lscl.federation.masking import masked_cross_entropy
from lscl.federation.payload import Payload, Shapes
from lscl.federation.search_space import Axis
from lscl.federation.sketch import Sketch
from lscl.models.cnn import Start
from lscl.models.vit import FrozenViT
from lscl.registry import Parameters
from lscl.seeding import seeded

IMAGES = "images"  # name of the number of training images in an upload: () int64
HOLDS = "holds"  # name of the classes of the client's task in an upload, only with head_merge = holders: (C,) bool


@dataclass(frozen=True)
class Stage:
    """One exchange: broadcast, local work, upload, aggregation.

    Args:
        task: number of the task, from 0.
        round: number of the round in the task, from 0.
        name: "train", "finish" (the clients are tested and end the task), or a method's own.
    """

    task: int
    round: int
    name: str = "train"


@dataclass
class Phase:
    """One run of an optimiser over a client's images.

    Args:
        groups: parameter groups with their learning rates, as torch's optimisers take them.
        loss: client and batch -> scalar.
        epochs: passes over the images.
        batch: images per step.
        index: (n,) positions of the training images; None = those of the current task.
        clip: largest norm of the gradient; None = any.
        augment: what becomes of the CNN's images in a step, (b, 3, H, W) -> (b, 3, H, W); None = they stay as they are.
    """

    groups: list[dict]
    loss: Callable[[Client, Batch], Tensor]
    epochs: int
    batch: int
    index: Tensor | None = None
    clip: float | None = None
    augment: Callable[[Tensor], Tensor] | None = None


class HeadMerge(Parameters):
    """For systems that average a classifier whose rows belong to one class each."""

    head_merge: Literal["plain", "holders"] = Field(
        "plain", description="average a row of the head over all clients, or over those that trained it"
    )


class Averaged(HeadMerge):
    """For systems whose server makes one model of the uploads by `Method.average_uploads`."""

    averaging: Literal["mean", "clipped", "median"] = Field(
        "mean",
        description="the server's model: the mean of the uploads weighted by images, the same with changes longer than "
        "the median one shortened, or the median of every number",
    )


# The facts of a system and their defaults. They are not inherited: a system built on another one has its own.
FACTS: dict[str, Any] = {
    "name": None, "label": "", "paper_name": None, "citation": None, "role": None, "place": 1000, "turn": 1000,
    "quick": (), "rows": ({},), "row_notes": (), "sizes": {}, "tuned": {}, "official": {}, "search_space": {},
    "notes": {}, "studies": {}, "costs": None, "defences": {}, "sketch": None,
}  # fmt: skip


class Method:
    """A system: FedAvg's life cycle as hooks to override, and facts about the system.

    Args:
        config: the experiment.
        foundation: the frozen ViT, cut where `cut` says; None if the system has none.
        num_classes: classes C of the data set.

    Raises:
        LsclError: the system cannot use this ViT.
    """

    name: ClassVar[str | None]  # its name in configs and file names
    label: ClassVar[str]  # its name in tables; empty = `name`
    paper_name: ClassVar[str | None]  # its name in the tables of the Fed-LSCL paper; None = not there
    citation: ClassVar[str | None]  # arXiv number of its source
    role: ClassVar[str | None]  # "own" = the paper's system, "floor" = the reference for all others, "variant" = ours
    place: ClassVar[int]  # its place in tables, from 0; systems of other packages come last
    turn: ClassVar[int]  # its turn in sweeps, from 0: quick systems first
    quick: ClassVar[Collection[str]]  # profiles whose `lscl reproduce` runs it, of those that do not run all systems
    rows: ClassVar[Collection[dict[str, Any]]]  # its rows of the main table: {field: value} that each changes
    row_notes: ClassVar[Collection[str]]  # what a row's label says of its changes; none = the changes
    # {profile, or (profile, data set): {field: value}}: smaller values, so that a run fits, and those that only one
    # data set asks for, which come last
    sizes: ClassVar[Mapping[str | tuple[str, str], dict[str, Any]]]
    tuned: ClassVar[dict[str, Any]]  # values for demo, mini and full, chosen from `search_space` on the tuning seed
    official: ClassVar[dict[str, Any]]  # values for colab and paper: of the official code, or of a port for our rounds
    search_space: ClassVar[Mapping[str, Axis]]  # what `lscl sweep tune` varies: {field: axis}
    notes: ClassVar[Mapping[str, Mapping[Any, str]]]  # parameters that its label always shows: {name: {value: text}}
    studies: ClassVar[Mapping[str, Callable[[str], dict[str, dict[str, Any]]]]]  # profile -> {label: {field: value}}
    defences: ClassVar[Mapping[str, dict[str, Any]]]  # for `lscl privacy`: {label: {field: value}} that protect clients
    costs: ClassVar[type[Costs] | None]  # for `lscl plan`; None = unknown
    sketch: ClassVar[Sketch | None]  # for the diagram on its page of the book; None = no diagram

    Parameters: ClassVar[type[Parameters]] = Parameters  # its own parameters, and those that it shares
    trains = True  # whether clients train; without training a task has one round, and the options of training are idle
    has_features = False  # whether it defines `features_of`; found out by itself
    vit = True  # whether it uses the frozen ViT, see `uses_vit`
    cnn = False  # whether clients have a small CNN
    query = False  # whether it needs the ViT's CLS feature with nothing adapted, in addition to the prefix
    passes = 1  # passes of an epoch over the task's images
    surrogate: str | None = None  # the parameter that says how many images per class the server needs
    server_images: Inputs | None = None  # these images, from the official test split; no client is tested on them
    census: Census  # the classes and numbers of images of all clients; lscl.experiments.run sets it
    head_rows: tuple[str, ...] = ()  # names in `shared` whose rows belong to one class each (see `HeadMerge`)

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        for name, value in FACTS.items():
            if name not in vars(cls):
                setattr(cls, name, value)
        cls.has_features = cls.features_of is not Method.features_of

    def __init__(self, config: Experiment, foundation: FrozenViT | None, num_classes: int):
        if foundation is not None:
            self.check_foundation(config, foundation)
        self.config, self.foundation, self.num_classes = config, foundation, num_classes
        self.device = torch.device("cpu")  # where the server computes; lscl.experiments.run sets it
        self.optimised = 0  # images that optimisers have seen: those of phases, and those that a method adds to them
        self.server: dict[str, Tensor] = self.initial_server()

    @staticmethod
    def cut(config: Experiment) -> int | None:
        """The block before which the frozen ViT is cut; None = after the last, if the method adapts no block."""
        return None

    @classmethod
    def uses_vit(cls, config: Experiment) -> bool:
        """Whether images pass the frozen ViT under this config; without it `foundation` is None."""
        return cls.vit

    @classmethod
    def trains_cnn(cls, config: Experiment) -> bool:
        """Whether clients train a small CNN under this config."""
        return cls.cnn

    @classmethod
    def trains_in(cls, config: Experiment, task: int) -> bool:
        """Whether clients train anything in a task.

        Args:
            config: the experiment.
            task: number of the task, from 0.

        Returns:
            Whether they do; by default whether the system trains at all.
        """
        return cls.trains

    @classmethod
    def start_of_cnn(cls, config: Experiment) -> Start:
        """What the clients' CNNs start from: drawn or pretrained weights."""
        return "drawn"

    @staticmethod
    def check_foundation(config: Experiment, foundation: FrozenViT) -> None:
        """Check that the method can adapt this frozen ViT.

        Args:
            config: the experiment.
            foundation: the frozen ViT.

        Raises:
            LsclError: it cannot; the line says why.
        """

    # -- building blocks
    def build(self, client: int) -> nn.Module:
        """Make the modules of a client; `new_model` calls this.

        Raises:
            NotImplementedError: every method has its own modules.
        """
        raise NotImplementedError

    def new_model(self, client: int) -> nn.Module:
        """Make the untrained model of a client; modules that all clients have start from the same draw."""
        with seeded(self.config.seed, "model"):
            return self.build(client)

    def shared(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors of a model that travel, by name: all parameters and buffers."""
        return dict(model.state_dict())

    def initial_server(self) -> dict[str, Tensor]:
        """The server's tensors before the first round."""
        return {name: value.detach().clone() for name, value in self.shared(self.new_model(0)).items()}

    # -- server
    @property
    def by_holders(self) -> bool:
        """Whether each row of the head is averaged only over the clients that trained it (head_merge = holders)."""
        return len(self.head_rows) > 0 and self.config.head_merge == "holders"

    def stages(self, task: int) -> list[Stage]:
        """The exchanges of a task: one per round, and one in all if nothing is trained."""
        return [Stage(task, number) for number in range(self.config.rounds_run)]

    def broadcast(self, client: int, stage: Stage) -> Payload:
        """Make the server's payload for a client.

        Args:
            client: number of the client.
            stage: the exchange.

        Returns:
            {name: tensor}; by default all tensors of `server`.
        """
        return self.server

    def upload_shapes(self, client: int, stage: Stage) -> Shapes:
        """The names and shapes of a valid upload.

        Args:
            client: number of the client.
            stage: the exchange.

        Returns:
            {name: shape}; None in a shape = any length.
        """
        about = {IMAGES: (), HOLDS: (self.num_classes,)} if self.by_holders else {IMAGES: ()}
        return {**about, **{name: tuple(value.shape) for name, value in self.broadcast(client, stage).items()}}

    def summed_names(self, stage: Stage) -> Collection[str]:
        """The tensors of an upload of which the server needs only sums over the clients.

        A weighted mean is made of two sums, of the weighted tensors and of the weights. Secure aggregation can hide
        these tensors of single clients, and no others.

        Args:
            stage: the exchange.

        Returns:
            Names; by default all, if the server averages by `Method.aggregate`, and none if it does not.
        """
        plain = type(self).aggregate is Method.aggregate and getattr(self.config, "averaging", "mean") == "mean"
        return self._averaged_names(stage) if plain else set()

    def _averaged_names(self, stage: Stage) -> set[str]:
        """All names of an upload but those of counters, of which the largest is taken."""
        names = self.upload_shapes(0, stage)
        return {name for name in names if name in (IMAGES, HOLDS) or self.dtype(name).is_floating_point}

    def shown_images(self, client: Client) -> Tensor:
        """The images that an upload is made from, for measurements of what it reveals; asked right after `upload`.

        Args:
            client: who sent it.

        Returns:
            (n,) positions of training images, in the order of the rows that go up; by default all of the task.
        """
        return client.train_index

    def releases(self) -> tuple[str, int]:
        """The facts that an account of added noise needs (`lscl.methods.parts.noise`).

        Returns:
            Whose presence the noise hides, "client" or "image", and how many noisy tensors each of these is in, over
            all exchanges of a run; none by default.
        """
        return "client", 0

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor in a valid upload: that of the server's tensor of this name, else float32."""
        fixed = {IMAGES: torch.int64, HOLDS: torch.bool}
        return fixed.get(name) or (self.server[name].dtype if name in self.server else torch.float32)

    def checks(self, client: int, stage: Stage) -> dict[str, Check]:
        """The checks of the numbers in a valid upload.

        Counts, classes and BatchNorm's statistics are known by their names. A name in `training_start` was trained, any
        other number was measured.

        Args:
            client: number of the client.
            stage: the exchange.

        Returns:
            {name: check}.
        """
        classes = self.census.parts.tasks[client][stage.task].classes
        known = {IMAGES: torch.tensor(self.census.images(client, stage.task)), HOLDS: self.flags(classes)}
        start, steps = self.training_start(client, stage), self.steps(client, stage.task)
        found: dict[str, Check] = {}
        for name in self.upload_shapes(client, stage):
            if name in known:
                found[name] = equality_check(known[name])
            elif name.endswith("running_var"):
                found[name] = range_check(0, LIMIT**2)
            elif name.endswith("running_mean") or name not in start:
                found[name] = range_check(-LIMIT, LIMIT)
            elif start[name].is_floating_point():
                found[name] = reach_check(start[name], self.rate(name), steps)
            else:
                found[name] = range_check(start[name], start[name] + int(STEP) * steps)
        return found

    def training_start(self, client: int, stage: Stage) -> Payload:
        """The tensors that the training of a round starts from.

        Args:
            client: number of the client.
            stage: the exchange.

        Returns:
            {name in the upload: tensor}; by default the server's payload.
        """
        return self.broadcast(client, stage)

    def steps(self, client: int, task: int) -> int:
        """The most optimiser steps of a round; kept images of earlier tasks count, too.

        Args:
            client: number of the client.
            task: number of the task.

        Returns:
            A bound for the number of steps.
        """
        return self.config.epochs * math.ceil(self.census.images_so_far(client, task) / self.config.batch)

    def rate(self, name: str) -> float:
        """The learning rate of the tensor with this name in the upload."""
        return self.config.lr

    def aggregate(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        """Fuse the uploads into `server`; by default FedAvg, weighted by the numbers of training images.

        Replace tensors in `server`, never write into them: the loop restores the old ones if this fails.

        Args:
            uploads: {client: upload}.
            stage: the exchange.
        """
        self.server.update(self.average_uploads(uploads))

    def average_uploads(self, uploads: Mapping[int, Payload]) -> dict[str, Tensor]:
        """Average the uploaded tensors whose names are in `server`, weighted by the numbers of training images.

        With head_merge = holders, a row of the head is averaged only over the clients whose task has its class. With
        averaging = median every number is the median of the clients', rows of the head too.
        """
        weights = {k: float(payload[IMAGES]) for k, payload in uploads.items()}
        states = {
            k: {name: value for name, value in payload.items() if name in self.server} for k, payload in uploads.items()
        }
        averaging = getattr(self.config, "averaging", "mean")
        if averaging == "median":
            return coordinate_median(states)
        if averaging == "clipped":
            states = clip_changes(states, self.server)
        merged = average(states, weights)
        if self.by_holders:
            holders = {k: payload[HOLDS] for k, payload in uploads.items()}
            for name in self.head_rows:
                merged[name] = average_rows(
                    self.server[name], {k: state[name] for k, state in states.items()}, holders, weights
                )
        return merged

    def server_end_task(self, task: int) -> None:
        """Do the server's work after every client has ended the task."""

    def sheet(self, task: int) -> np.ndarray | None:
        """Images that the server made in the task, to be looked at: (n, H, W, 3) uint8; None if it made none."""
        return None

    # -- client
    def start_task(self, client: Client) -> None:
        """Prepare a client before the first round of a task."""

    def receive(self, client: Client, payload: Payload, stage: Stage) -> None:
        """Load the server's payload into a client.

        Args:
            client: the client.
            payload: what `broadcast` made.
            stage: the exchange.
        """
        client.model.load_state_dict(payload, strict=False)

    def phases(self, client: Client, stage: Stage) -> list[Phase]:
        """The optimiser runs of a round, in order.

        Args:
            client: the client.
            stage: the exchange.

        Returns:
            The phases; each starts with a fresh optimiser.
        """
        return [
            Phase(
                [{"params": list(client.model.parameters()), "lr": self.config.lr}],
                self.loss,
                self.config.epochs,
                self.config.batch,
            )
        ]

    def loss(self, client: Client, batch: Batch) -> Tensor:
        """The loss of a batch; by default cross-entropy over the classes of the client's task.

        Args:
            client: the client.
            batch: b images.

        Returns:
            A scalar.
        """
        return self.cross_entropy(client, batch, self.logits(client, batch))

    def cross_entropy(self, client: Client, batch: Batch, logits: Tensor) -> Tensor:
        """Cross-entropy over the classes of the client's task.

        Args:
            client: the client.
            batch: b images.
            logits: (b, C).

        Returns:
            A scalar, the mean over the batch.
        """
        return masked_cross_entropy(logits, batch.labels, client.classes)

    def upload(self, client: Client, stage: Stage) -> Payload:
        """Make the client's payload for the server.

        Args:
            client: the client.
            stage: the exchange.

        Returns:
            {name: tensor}; by default the tensors of `shared` and the number of training images.
        """
        about = {IMAGES: torch.tensor(len(client.current.train))}
        if self.by_holders:
            about[HOLDS] = self.holds(client)
        return {**about, **self.shared(client.model)}

    def holds(self, client: Client) -> Tensor:
        """The classes of the client's task as flags, (C,) bool."""
        return self.flags(client.current.classes)

    def flags(self, classes: Sequence[int]) -> Tensor:
        """Turn labels into flags, (C,) bool."""
        return torch.zeros(self.num_classes, dtype=torch.bool).index_fill_(0, torch.tensor(classes), True)

    def logits(self, client: Client, batch: Batch) -> Tensor:
        """The scores of all classes; losses and tests mask them.

        A system whose head reads one feature per image defines `features_of` and `head_logits` instead. Its tests then
        report a second score, that of a closed-form head on the same features (`lscl.federation.ridge`).

        Args:
            client: the client.
            batch: b images.

        Returns:
            (b, C).
        """
        return self.head_logits(client, self.features_of(client, batch))

    def features_of(self, client: Client, batch: Batch) -> Tensor:
        """What the system's head reads, as it is at the test: the system's own features.

        Args:
            client: the client.
            batch: b images.

        Returns:
            (b, d).

        Raises:
            NotImplementedError: the system has no such features; it defines `logits`.
        """
        raise NotImplementedError

    def head_logits(self, client: Client, features: Tensor) -> Tensor:
        """The system's head on its features.

        Args:
            client: the client.
            features: what `features_of` made, (b, d).

        Returns:
            (b, C).

        Raises:
            NotImplementedError: the system has no such features; it defines `logits`.
        """
        raise NotImplementedError

    def prepare_test(self, client: Client) -> None:
        """Make what the tests need besides the client's model and state, and put it into `client.scratch`.

        It is called before every test, and for a client whose model and state were read from a file.
        """

    def end_task(self, client: Client) -> None:
        """Do the client's work after it was tested at the end of the task."""
