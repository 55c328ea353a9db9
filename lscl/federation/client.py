"""One client: its model, its private stream of tasks, its private state, and what it does when the server asks."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lscl.data.partition import Partition, Task
from lscl.data.store import ImageSet
from lscl.models.cache import read_tokens
from lscl.seeding import torch_generator


@dataclass
class Inputs:
    """The images of one split as the networks take them.

    prefix: the frozen ViT's tokens in front of its cut, (n, N, d), or None; last: its CLS token behind the last block,
    nothing adapted, (n, 1, d), or None; both as `prefix_cache` stores them. side: pixels a side for the CNN, None = as decoded.
    """

    images: ImageSet
    prefix: np.ndarray | None
    device: torch.device
    last_token: np.ndarray | None = None
    side: int | None = None

    def batch(self, index: Tensor) -> "Batch":
        """The images at the positions `index` (b,)."""
        return Batch(self, index)


@dataclass
class Batch:
    """A few images: `index` (b,) positions in their split. The tensors are read when they are asked for."""

    inputs: Inputs
    index: Tensor

    @cached_property
    def labels(self) -> Tensor:
        """(b,) int64."""
        return torch.from_numpy(self.inputs.images.labels[self.index.numpy()]).to(self.inputs.device)

    @cached_property
    def images(self) -> Tensor:
        """(b, 3, H, W) float32 in about -2 to 2, for the CNN."""
        pixels = to_cnn_input(torch.from_numpy(self.inputs.images.images[self.index.numpy()]).to(self.inputs.device))
        return resize(pixels, self.inputs.side or pixels.shape[-1])

    @cached_property
    def prefix(self) -> Tensor:
        """(b, N, d): the tokens in front of the adapted block."""
        return read_tokens(self.inputs.prefix, self.index, self.inputs.device)

    @cached_property
    def last_token(self) -> Tensor:
        """(b, 1, d): the frozen CLS token behind the last block, nothing adapted."""
        return read_tokens(self.inputs.last_token, self.index, self.inputs.device)


def to_cnn_input(pixels: Tensor) -> Tensor:
    """(b, H, W, 3) uint8 -> (b, 3, H, W) float32 in -2 to 2, as the CNNs take it."""
    return (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def resize(images: Tensor, side: int) -> Tensor:
    """(n, 3, H, W) -> (n, 3, side, side), bilinear; as they are if they have that size."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=images.shape[-1] > side)


@dataclass
class Client:
    """A client as the hooks see it. `task` is the last one it began, -1 = none; `state` holds everything private that must outlive
    a round, by name, as tensors; `scratch` holds what a method needs within one exchange only."""

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

    @property
    def current(self) -> Task:
        """The task at hand."""
        return self.partition.tasks[self.id][self.task]

    @property
    def classes(self) -> Tensor:
        """(classes_per_task,) labels of the task at hand."""
        return torch.tensor(self.current.classes)

    @property
    def device(self) -> torch.device:
        return self.train.device

    def test_index(self, task: int) -> Tensor:
        """Positions of the test images of one of the client's tasks."""
        return torch.tensor(self.partition.tasks[self.id][task].test)

    @property
    def train_index(self) -> Tensor:
        """Positions of the training images of the task at hand."""
        return torch.tensor(self.current.train)

    def rng(self, purpose: str) -> torch.Generator:
        """The generator of one named purpose in this client's round."""
        return torch_generator(self.seed, purpose, self.id, self.task, self.round)

    def private_state(self) -> dict[str, Tensor]:
        """Model and state as one flat dictionary, for saving."""
        model = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        return {**model, **{f"state.{name}": value for name, value in self.state.items()}}

    def load_private_state(self, saved: dict[str, Tensor]) -> None:
        """Undo `private_state`."""
        self.model.load_state_dict(
            {name.removeprefix("model."): value for name, value in saved.items() if name.startswith("model.")}
        )
        self.state = {name.removeprefix("state."): value for name, value in saved.items() if name.startswith("state.")}
