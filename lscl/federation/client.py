"""A client: its images as the networks take them, its model, its stream of tasks and its private state."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lscl.data.partition import Partition, Task
from lscl.data.store import ImageSet
from lscl.models.cache import tokens_as_float
from lscl.models.cnn import to_cnn_input
from lscl.models.transfer import Shipment, send
from lscl.seeding import torch_generator


@dataclass
class Inputs:
    """The n images of one split as the networks take them.

    Args:
        images: the decoded images.
        prefix: (n, N, d), the frozen ViT's tokens below its cut, as `prefix_cache` stores them; None = no ViT, or
            `embed` computes them.
        device: where batches are computed.
        last_token: (n, 1, d), its CLS token after the last block, nothing adapted, stored likewise; None = not needed.
        side: pixels a side of the CNN's input; None = as decoded.
        embed: (b, H, W, 3) uint8 -> (b, N, d), the tokens before block 0, if nobody stores them.
        placed: those arrays of `stored` that lie on the device as a whole.
    """

    images: ImageSet
    prefix: np.ndarray | None
    device: torch.device
    last_token: np.ndarray | None = None
    side: int | None = None
    embed: Callable[[Tensor], Tensor] | None = None
    placed: dict[str, Tensor] = field(default_factory=dict)

    def batch(self, index: Tensor) -> "Batch":
        """The images at some positions: (b,) -> a batch of b images."""
        return Batch(self, index)

    @property
    def stored(self) -> dict[str, np.ndarray]:
        """What is stored of every image, by name."""
        every = {
            "labels": self.images.labels,
            "pixels": self.images.images,
            "prefix": self.prefix,
            "last_token": self.last_token,
        }
        return {name: array for name, array in every.items() if array is not None}

    def read(self, name: str, index: Tensor) -> Tensor:
        """Read what is stored of some images.

        Args:
            name: as in `stored`.
            index: (b,) positions of the images.

        Returns:
            (b, ...), a copy on the CPU.
        """
        return torch.from_numpy(self.stored[name][index.numpy()])


@dataclass
class Batch:
    """A batch of b images; each tensor is read when it is first used, unless it was read ahead.

    Args:
        inputs: the split.
        index: (b,) positions in the split.
        ahead: what was read ahead; None = nothing.
        used: gets the names of what is used, see `Inputs.stored`.
    """

    inputs: Inputs
    index: Tensor
    ahead: Shipment | None = None
    used: set[str] = field(default_factory=set)

    def stored(self, name: str) -> Tensor:
        """What is stored of the images under a name of `Inputs.stored`, on the device: (b, ...)."""
        self.used.add(name)
        if name in self.inputs.placed:
            return self.inputs.placed[name][self.place]
        if self.ahead is not None and name in self.ahead.tensors:
            return self.ahead.take(name)
        return send(self.inputs.read(name, self.index), self.inputs.device)

    @cached_property
    def place(self) -> Tensor:
        """(b,) int64: the positions, on the device."""
        return send(self.index, self.inputs.device)

    @cached_property
    def known_labels(self) -> Tensor:
        """(b,) int64: the labels, on the CPU."""
        return torch.from_numpy(self.inputs.images.labels[self.index.numpy()])

    @cached_property
    def labels(self) -> Tensor:
        """(b,) int64: the labels, on the device."""
        return self.stored("labels")

    @cached_property
    def images(self) -> Tensor:
        """(b, 3, H, W) float32 in -2 to 2, for the CNN."""
        pixels = to_cnn_input(self.stored("pixels"))  # (b, 3, H, W)
        return resize(pixels, self.inputs.side or pixels.shape[-1])

    @cached_property
    def prefix(self) -> Tensor:
        """(b, N, d) float32: the tokens before the adapted block."""
        if self.inputs.embed is not None:
            return self.inputs.embed(self.stored("pixels"))
        return tokens_as_float(self.stored("prefix"))

    @cached_property
    def last_token(self) -> Tensor:
        """(b, 1, d) float32: the CLS token after the last block, nothing adapted."""
        return tokens_as_float(self.stored("last_token"))


def resize(images: Tensor, side: int) -> Tensor:
    """Resize square images bilinearly.

    Args:
        images: (n, 3, H, H).
        side: pixels a side of the result.

    Returns:
        (n, 3, side, side); `images` itself if it has that size.
    """
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=images.shape[-1] > side)


@dataclass
class Client:
    """A client as the hooks of a `Method` see it.

    Args:
        id: number of the client, from 0.
        model: its modules, as `Method.build` makes them.
        partition: the tasks of all clients; it reads its own.
        train: the data set's training images.
        test: the images that its test positions point to.
        seed: seed of all named draws.
        task: the task that it began last; -1 before the first.
        round: the round of that task.
        state: private tensors that must outlive a round, by name.
        scratch: whatever a method needs within one exchange only.
        kept: copies on the device of what does not change within an exchange, see `keep`.
    """

    id: int
    model: nn.Module
    partition: Partition
    train: Inputs
    test: Inputs
    seed: int
    task: int = -1
    round: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    scratch: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, tuple[tuple, Tensor]] = field(default_factory=dict)

    @property
    def current(self) -> Task:
        """The current task."""
        return self.partition.tasks[self.id][self.task]

    @property
    def classes(self) -> Tensor:
        """(classes_per_task,) int64: labels of the current task."""
        return torch.tensor(self.current.classes)

    @property
    def device(self) -> torch.device:
        """Where the client computes."""
        return self.train.device

    def keep(self, name: str, make: Callable[[], Tensor], *sources: object) -> Tensor:
        """A tensor where the client computes that is made only once per exchange, not in every step.

        Args:
            name: the client's own name for it.
            make: makes it, on any device.
            sources: what it is made from; if one of them is another object than before, it is made again.

        Returns:
            The tensor on the client's device.
        """
        found = self.kept.get(name)
        if found is None or any(one is not other for one, other in zip(found[0], sources, strict=True)):
            found = self.kept[name] = sources, send(make(), self.device)
        return found[1]

    def on_device(self, name: str) -> Tensor:
        """A tensor of `state` where the client computes, copied once per exchange."""
        return self.keep(f"state.{name}", lambda: self.state[name], self.state[name])

    def test_index(self, task: int) -> Tensor:
        """(n,) int64: positions of the test images of one of the client's tasks."""
        return torch.tensor(self.partition.tasks[self.id][task].test)

    @property
    def train_index(self) -> Tensor:
        """(n,) int64: positions of the training images of the current task."""
        return torch.tensor(self.current.train)

    def rng(self, purpose: str) -> torch.Generator:
        """The random generator of one purpose in the current round, such as "batches-train"."""
        return torch_generator(self.seed, purpose, self.id, self.task, self.round)

    def private_state(self) -> dict[str, Tensor]:
        """Model and private state in one dictionary, to be saved: "model.<name>" and "state.<name>"."""
        model = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        return {**model, **{f"state.{name}": value for name, value in self.state.items()}}

    def load_private_state(self, saved: dict[str, Tensor]) -> None:
        """Restore model and private state from what `private_state` returned."""
        self.model.load_state_dict(
            {name.removeprefix("model."): value for name, value in saved.items() if name.startswith("model.")}
        )
        self.state = {name.removeprefix("state."): value for name, value in saved.items() if name.startswith("state.")}
