"""The hooks of a federated continual learning method. The defaults are FedAvg; a method overrides what it changes.

A system is one file: a subclass of `Method` that says of itself what `FACTS` lists, with its parameters, and `lscl.register`s itself.
Server state lives in `Method.server`, private client state in `Client.model` and `Client.state`; only payloads cross between them.
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
from lscl.federation.averaging import average, average_rows
from lscl.federation.client import Batch, Client, Inputs
from lscl.federation.costs import Costs
from lscl.federation.limits import LIMIT, STEP, Check, equality_check, range_check, reach_check
from lscl.federation.masking import masked_cross_entropy
from lscl.federation.payload import Payload, Shapes
from lscl.models.vit import FrozenViT
from lscl.registry import Parameters
from lscl.seeding import seeded

IMAGES = "images"  # name of the number of training images in an upload: () int64
HOLDS = "holds"  # name of the classes of the client's task in an upload, only with head_merge = holders: (C,) bool


@dataclass(frozen=True)
class Stage:
    """One exchange: broadcast, local work, upload, aggregate. `name` is "train", "finish", or a method's own."""

    task: int
    round: int
    name: str = "train"


@dataclass
class Phase:
    """One run of an optimiser over images: parameter groups with their learning rates, and a loss.

    index: positions of the training images, None = those of the task at hand; clip: largest norm of the gradient, None = any.
    """

    groups: list[dict]
    loss: Callable[[Client, Batch], Tensor]
    epochs: int
    batch: int
    index: Tensor | None = None
    clip: float | None = None


class HeadMerge(Parameters):
    """For systems that average a classifier whose rows belong to one class each."""

    head_merge: Literal["plain", "holders"] = Field(
        "plain", description="average a head row over all clients, or over those that trained it"
    )


# The points at which a system with one learning rate is tuned; six, as everybody has. This is the second grid: in the first, of the same
# size, some systems were best at an edge, so the learning rates were moved up by one step.
LEARNING_RATES = tuple({"lr": lr} for lr in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1))

# What a system says of itself, and what holds if it does not. None of it is inherited: a system built on another one has its own.
FACTS: dict[str, Any] = {
    "name": None, "label": "", "paper_name": None, "citation": None, "role": None, "place": 1000, "turn": 1000, "quick": (), "rows": ({},),
    "sizes": {}, "tuned": {}, "official": {}, "search_space": (), "notes": {}, "studies": {}, "costs": None,
}  # fmt: skip


class Method:
    """FedAvg's life cycle, and what a system says of itself."""

    name: ClassVar[str | None]  # in configs and file names
    label: ClassVar[str]  # in tables; empty = the name
    paper_name: ClassVar[str | None]  # in the tables of the Fed-LSCL paper; None = not there
    citation: ClassVar[str | None]  # arXiv number of its source
    role: ClassVar[str | None]  # "own" = the paper's system, "floor" = the one that all are compared with
    place: ClassVar[int]  # in tables, from 0; systems of others come behind ours
    turn: ClassVar[int]  # in sweeps, from 0: quick ones first
    quick: ClassVar[Collection[str]]  # profiles whose `lscl reproduce` runs it, of those that do not run all
    rows: ClassVar[Collection[dict[str, Any]]]  # its rows of the main table: what each changes of the profile
    sizes: ClassVar[Mapping[str, dict[str, Any]]]  # by profile: what is smaller so that a run fits
    tuned: ClassVar[dict[str, Any]]  # demo and mini: chosen on the tuning seed alone, from `search_space`
    official: ClassVar[dict[str, Any]]  # colab and paper: of the official code
    search_space: ClassVar[Collection[dict[str, Any]]]  # the points of `lscl sweep tune`; all set the same parameters
    notes: ClassVar[Mapping[str, Mapping[Any, str]]]  # parameters that its label always says: {name: {value: text}}
    studies: ClassVar[
        Mapping[str, Callable[[str], dict[str, dict[str, Any]]]]
    ]  # sets of runs: profile -> {label: what it changes}
    costs: ClassVar[type[Costs] | None]  # for `lscl plan`; None = unknown

    Parameters: ClassVar[type[Parameters]] = Parameters  # its own, and those it shares
    vit = True  # whether the frozen ViT is used at all
    cnn = False  # whether clients have a small CNN
    query = False  # whether the ViT's CLS feature with nothing adapted is needed beside the prefix
    passes = 1  # how often an epoch goes through the task's images
    surrogate: str | None = (
        None  # the parameter that says how many images per class the server needs; they are in `server_images`
    )
    server_images: Inputs | None = None  # images of the official test split that nobody is tested on
    census: Census  # who has which classes and how many images; lscl.experiments.run sets it
    head_rows: tuple[
        str, ...
    ] = ()  # names in `shared` whose rows belong to one class each, for `head_merge` (take `HeadMerge`)

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        for name, value in FACTS.items():
            if name not in vars(cls):
                setattr(cls, name, value)

    def __init__(self, config: Experiment, foundation: FrozenViT | None, num_classes: int):
        if foundation is not None:
            self.check_foundation(config, foundation)
        self.config, self.foundation, self.num_classes = config, foundation, num_classes
        self.device = torch.device("cpu")  # where the server computes; lscl.experiments.run sets it
        self.optimised = (
            0  # images that an optimiser has seen; `fit` counts those of a phase, a method those that it adds to them
        )
        self.server: dict[str, Tensor] = self.initial_server()

    @staticmethod
    def cut(config: Experiment) -> int | None:
        """The block in front of which the frozen ViT is cut; None = behind the last, for methods that use its features as they are."""
        return None

    @classmethod
    def trains_cnn(cls, config: Experiment) -> bool:
        """Whether clients train a small CNN under this config."""
        return cls.cnn

    @staticmethod
    def check_foundation(config: Experiment, foundation: FrozenViT) -> None:
        """Whether the method can work on this frozen ViT.

        Raises:
            LsclError: it cannot, and why.
        """

    # -- building blocks
    def build(self, client: int) -> nn.Module:
        """The modules of a client; called by `new_model`."""
        raise NotImplementedError

    def new_model(self, client: int) -> nn.Module:
        """An untrained model of a client; what all clients have in common starts from the same draw."""
        with seeded(self.config.seed, "model"):
            return self.build(client)

    def shared(self, model: nn.Module) -> dict[str, Tensor]:
        """What of the model travels, by name: all parameters and buffers."""
        return dict(model.state_dict())

    def initial_server(self) -> dict[str, Tensor]:
        """What the server holds before the first round."""
        return {name: value.detach().clone() for name, value in self.shared(self.new_model(0)).items()}

    # -- server
    @property
    def by_holders(self) -> bool:
        """Whether rows of the head are averaged only over the clients that trained them."""
        return len(self.head_rows) > 0 and self.config.head_merge == "holders"

    def stages(self, task: int) -> list[Stage]:
        """The exchanges of a task."""
        return [Stage(task, number) for number in range(self.config.rounds)]

    def broadcast(self, client: int, stage: Stage) -> Payload:
        """What the server sends to a client."""
        return self.server

    def upload_shapes(self, client: int, stage: Stage) -> Shapes:
        """Names and shapes of a valid upload."""
        about = {IMAGES: (), HOLDS: (self.num_classes,)} if self.by_holders else {IMAGES: ()}
        return {**about, **{name: tuple(value.shape) for name, value in self.broadcast(client, stage).items()}}

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor in a valid upload: that of the server's tensor of this name, else float32."""
        fixed = {IMAGES: torch.int64, HOLDS: torch.bool}
        return fixed.get(name) or (self.server[name].dtype if name in self.server else torch.float32)

    def checks(self, client: int, stage: Stage) -> dict[str, Check]:
        """What the numbers of a valid upload must be like, by name.

        Counts, classes and BatchNorm's statistics are known by their names; what `start` has was trained, anything else was measured.
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
        """What the training of a round starts from, by the names of the upload."""
        return self.broadcast(client, stage)

    def steps(self, client: int, task: int) -> int:
        """Steps of the optimiser in a round, at most; a method may train on kept images of earlier tasks, too."""
        return self.config.epochs * math.ceil(self.census.images_so_far(client, task) / self.config.batch)

    def rate(self, name: str) -> float:
        """The learning rate of what is uploaded under this name."""
        return self.config.lr

    def aggregate(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        """Fuse the uploads into `server`: the average weighted by the number of training images.

        Tensors in `server` are replaced, never written into: the loop goes back to those of before if this fails.
        """
        self.server.update(self.average_uploads(uploads))

    def average_uploads(self, uploads: Mapping[int, Payload]) -> dict[str, Tensor]:
        """What was uploaded under the names of `server`, averaged by the number of training images.

        With head_merge = holders, a row of the head is averaged only over the clients whose task has its class.
        """
        weights = {k: float(payload[IMAGES]) for k, payload in uploads.items()}
        states = {
            k: {name: value for name, value in payload.items() if name in self.server} for k, payload in uploads.items()
        }
        merged = average(states, weights)
        if self.by_holders:
            holders = {k: payload[HOLDS] for k, payload in uploads.items()}
            for name in self.head_rows:
                merged[name] = average_rows(
                    self.server[name], {k: payload[name] for k, payload in uploads.items()}, holders, weights
                )
        return merged

    def server_end_task(self, task: int) -> None:
        """After every client has ended the task."""

    def sheet(self, task: int) -> np.ndarray | None:
        """Images the server made in the task, to look at: (n, H, W, 3) uint8; None if it made none."""
        return None

    # -- client
    def start_task(self, client: Client) -> None:
        """Before the first round of a task."""

    def receive(self, client: Client, payload: Payload, stage: Stage) -> None:
        """Take in what the server sent."""
        client.model.load_state_dict(payload, strict=False)

    def phases(self, client: Client, stage: Stage) -> list[Phase]:
        """The optimiser runs of a round; every round starts with fresh optimisers."""
        return [
            Phase(
                [{"params": list(client.model.parameters()), "lr": self.config.lr}],
                self.loss,
                self.config.epochs,
                self.config.batch,
            )
        ]

    def loss(self, client: Client, batch: Batch) -> Tensor:
        """Cross-entropy over the classes of the client's task."""
        return self.cross_entropy(client, batch, self.logits(client, batch))

    def cross_entropy(self, client: Client, batch: Batch, logits: Tensor) -> Tensor:
        """Mean cross-entropy of (b, C) logits, all classes but those of the client's task left out."""
        return masked_cross_entropy(logits, batch.labels, client.classes)

    def upload(self, client: Client, stage: Stage) -> Payload:
        """What the client sends to the server."""
        about = {IMAGES: torch.tensor(len(client.current.train))}
        if self.by_holders:
            about[HOLDS] = self.holds(client)
        return {**about, **self.shared(client.model)}

    def holds(self, client: Client) -> Tensor:
        """Which classes are in the client's task: (C,) bool."""
        return self.flags(client.current.classes)

    def flags(self, classes: Sequence[int]) -> Tensor:
        """Some classes as flags: (C,) bool."""
        return torch.zeros(self.num_classes, dtype=torch.bool).index_fill_(0, torch.tensor(classes), True)

    def logits(self, client: Client, batch: Batch) -> Tensor:
        """Scores of all classes, (b, C); the evaluation masks them."""
        raise NotImplementedError

    def end_task(self, client: Client) -> None:
        """After the task's evaluation."""
