"""One client on a drawn ViT and few drawn images, and few real steps of its training."""

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from lscl.config import Experiment, experiment, readers
from lscl.data.partition import partition
from lscl.data.store import Dataset, ImageSet
from lscl.experiments.run import read_inputs
from lscl.federation.client import Batch, Client
from lscl.federation.method import Method, Phase
from lscl.federation.training import fit
from lscl.methods import METHODS
from lscl.models.vit import FrozenViT

MOST = {1: 0.1, 5: 0.5, 20: 1.0}  # of the norm of what is frozen, after so many steps
ONE_TASK = {"clients": 1, "tasks": 1, "classes_per_task": 2, "private_classes": 2, "threads": 1}
DATA = {  # whose images the CNN sees as they are, tested on images of their own
    "colab": {"dataset": "cifar100"},
    "paper": {"dataset": "imagenet_r", "eval_split": "official"},
}


def values_at(profile: str, method: str) -> Experiment:
    """The profile's values for a system with one client, one task, two classes and steps on two images; no download."""
    start = {"cnn_start": "drawn"} if method in readers("cnn_start") else {}
    return experiment(**{"profile": profile, "method": method, "batch": 2, **DATA[profile], **ONE_TASK, **start})


def drawn_images(count: int, side: int) -> ImageSet:
    """Noise of two classes."""
    draw = np.random.default_rng(0)
    return ImageSet(draw.integers(0, 256, (count, side, side, 3), np.uint8), np.arange(count) % 2, ("a", "b"))


@lru_cache
def frozen_at(vit: nn.Module, cut: int) -> FrozenViT:
    """The ViT cut before a block; systems share it, so its digest is computed once."""
    return FrozenViT(vit, cut, (0.5,) * 3, (0.5,) * 3)


def one_client(config: Experiment, vit: nn.Module, images: ImageSet) -> tuple[Method, Client]:
    """A system and its one client, which has received what the server sends in the first round."""
    kind, device = METHODS[config.method], torch.device("cpu")
    cut = len(vit.blocks) if kind.cut(config) is None else kind.cut(config)
    frozen = frozen_at(vit, cut) if kind.vit else None
    method, both = kind(config, frozen, len(images.classes)), read_inputs(kind, frozen, images, device)
    parts = partition(config, Dataset("drawn", images, images))
    client = Client(0, method.new_model(0), parts, both, both, config.seed, task=0)
    stage = method.stages(0)[0]
    method.start_task(client)
    method.receive(client, method.broadcast(0, stage), stage)
    return method, client


def listed(phase: Phase) -> Phase:
    """The phase with its parameters in lists, which can be read more than once."""
    return replace(phase, groups=[{**group, "params": list(group["params"])} for group in phase.groups])


def fit_watched(
    client: Client, phase: Phase, steps: Collection[int], watch: Callable[[], Any]
) -> tuple[list, dict[int, Any]]:
    """Train as a round does, on the client's first batch alone, in evaluation mode where it is watched.

    Args:
        client: the one that trains.
        phase: of the round.
        steps: behind which steps to measure; the last of them ends the training.
        watch: what is measured.

    Returns:
        the loss of each step, and {n: what was measured after n steps}.
    """
    losses, found = [], {}

    def look() -> None:
        if len(losses) in steps:
            client.model.eval()
            with torch.no_grad():
                found[len(losses)] = watch()
            client.model.train()

    def loss(client: Client, batch: Batch) -> torch.Tensor:
        look()
        total = phase.loss(client, batch)
        losses.append(total.detach())
        return total

    index = client.train_index[: phase.batch]
    fit(client, replace(phase, loss=loss, epochs=max(steps), index=index), torch.Generator().manual_seed(0))
    look()
    return losses, found


@torch.no_grad()
def update_share(method: Method, client: Client, batch: Batch) -> float:
    """Of Fed-LSCL: ||B A z|| / ||W z|| on a batch."""
    return method.foundation.update_share(batch.prefix, method.update(client, method.cnn_features(client, batch)))
