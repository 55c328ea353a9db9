"""Membership in the training of a model that goes up, by shadow clients (Shokri et al. 2017, arXiv 1610.05820).

The attacker knows the code, so it plays clients of its own on public images: they start from what the client under
attack got, train as the system trains, and send up a model of which the attacker knows the training images. On these
models it measures how sure they are of the right class of images inside and outside, and fits a normal distribution to
either (Carlini et al. 2022, arXiv 2112.03570, with one pair of distributions for all images). The score of an image is
the logarithm of the ratio of the two.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lscl.data.partition import Census, Partition, Task
from lscl.data.store import Dataset, ImageSet
from lscl.experiments.privacy.observed import Observed, as_unit_images
from lscl.experiments.privacy.scores import Finding, membership_rates
from lscl.experiments.run import read_inputs
from lscl.federation.client import Client, Inputs
from lscl.federation.masking import mask_logits
from lscl.federation.passes import map_batches
from lscl.federation.payload import Payload
from lscl.federation.training import answer

SHADOWS = 2
Confidence = Callable[[Payload, Inputs, Tensor], Tensor]  # a payload's, of all images among the classes: (n,)


@dataclass(frozen=True)
class Shadow:
    """A client that the attacker plays.

    Args:
        up: what it sent.
        inputs: its images and as many others.
        inside: which of them it trained on, (n,) bool.
        classes: of its task, (k,).
    """

    up: Payload
    inputs: Inputs
    inside: Tensor
    classes: Tensor


def travels_whole(observed: Observed) -> bool:
    """Whether all that a client trains goes up, so that the server has the model."""
    method = observed.method
    state = observed.client.model.state_dict()
    return method.trains and len(state) > 0 and set(state) <= set(method.shared(observed.client.model))


def play_shadow(observed: Observed, number: int) -> Shadow:
    """Play one shadow client: as many classes and nearly as many images as the client has, all public.

    Args:
        observed: the client under attack.
        number: of the shadow.

    Returns:
        What it sent, and on what it trained.
    """
    method, public, draw = observed.method, observed.public, observed.rng("shadow", number)
    taken = set(observed.gallery.classes.tolist())
    free = [label for label in range(method.num_classes) if label not in taken]
    classes = sorted(draw.choice(free, min(len(taken), len(free)), replace=False).tolist())
    source = draw.choice(len(public.classes), len(classes), replace=False)
    index = np.concatenate([np.flatnonzero(public.labels == label) for label in source])
    labels = np.repeat(classes, [int((public.labels == label).sum()) for label in source])
    names = tuple(map(str, range(method.num_classes)))
    images = ImageSet(np.ascontiguousarray(public.images[index]), labels.astype(np.int64), names)
    inside = np.zeros(len(images), bool)
    for label in classes:
        places = draw.permutation(np.flatnonzero(labels == label))
        inside[places[: max(1, len(places) // 2)]] = True
    task = Task(tuple(classes), tuple(np.flatnonzero(inside).tolist()), tuple(np.flatnonzero(~inside).tolist()))
    k, stage, device = observed.client.id, observed.stage, observed.client.train.device
    inputs = read_inputs(type(method), method.foundation, images, device, side=method.config.cnn_size)
    parts = Partition(tuple((task,) * (stage.task + 1) for _ in range(k + 1)), (), False)
    client = Client(k, method.new_model(k).to(device), parts, inputs, inputs, observed.config.seed + 1 + number)
    known = method.census
    method.census = Census.count(parts, Dataset("public", images, images))
    try:
        up = answer(method, client, stage, observed.down)
    finally:
        method.census = known
    return Shadow(
        {name: value.detach().cpu().clone() for name, value in up.items()},
        inputs,
        torch.from_numpy(inside),
        torch.tensor(classes),
    )


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """log(p / (1 - p)) of the right class: (n, C) logits, with -inf for classes that do not compete, -> (n,).

    Args:
        logits: (n, C).
        labels: (n,).

    Returns:
        (n,), at most 50 in size.
    """
    right = logits.gather(1, labels[:, None]).squeeze(1)
    rest = logits.scatter(1, labels[:, None], -math.inf).logsumexp(1)
    return (right - rest).clamp(-50, 50)


def model_confidence(observed: Observed) -> Confidence:
    """How sure the model in a payload is of the right class of images.

    Args:
        observed: the client under attack, whose download completes the payload.

    Returns:
        (payload, n images, classes that compete) -> (n,) log odds.
    """
    method, k = observed.method, observed.client.id
    device = observed.client.train.device

    def confidence(up: Payload, inputs: Inputs, classes: Tensor) -> Tensor:
        client = Client(k, method.new_model(k).to(device), observed.client.partition, inputs, inputs, 0)
        client.task, client.round = observed.stage.task, observed.stage.round
        client.model.load_state_dict(observed.client.model.state_dict())
        method.receive(client, {**observed.down, **up}, observed.stage)
        client.model.eval()
        scores = map_batches(
            inputs, torch.arange(len(inputs.images)), lambda batch: mask_logits(method.logits(client, batch), classes)
        ).cpu()
        return log_odds(scores.double(), torch.from_numpy(inputs.images.labels))

    return confidence


def image_confidence(up: Payload, inputs: Inputs, classes: Tensor) -> Tensor:
    """The control: the payload is the images themselves, and an image is sure to be in it if it is one of them.

    Args:
        up: {"images": (n, 3, H, W) in 0 to 1}.
        inputs: m images.
        classes: those that compete; not read.

    Returns:
        (m,).
    """
    pixels = as_unit_images(inputs.images.images).flatten(1)  # (m, 3 H W)
    return -torch.cdist(pixels, up["images"].flatten(1)).min(1).values.double()  # (m,)


def likelihood_ratio(found: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """log N(x; inside) - log N(x; outside), each normal distribution fitted to the shadows.

    Args:
        found: values of images, (n,).
        inside: of images that shadows trained on, (a,).
        outside: of images that they did not, (b,).

    Returns:
        (n,).
    """

    def log_density(part: Tensor) -> Tensor:
        spread = part.std().clamp(min=1e-6)
        return -((found - part.mean()) / spread).square() / 2 - spread.log()

    return log_density(inside) - log_density(outside)


def _scores(observed: Observed, shadows: list[Shadow], sent: list[Payload], up: Payload, of: Confidence) -> Tensor:
    values = [of(payload, shadow.inputs, shadow.classes) for payload, shadow in zip(sent, shadows)]
    inside, outside = (
        torch.cat([value[shadow.inside == which] for value, shadow in zip(values, shadows)]) for which in (True, False)
    )
    return likelihood_ratio(of(up, observed.gallery.inputs, observed.gallery.classes), inside, outside)


def infer_membership(observed: Observed, count: int = SHADOWS) -> list[Finding]:
    """Attack a model that goes up as a whole.

    Args:
        observed: the client under attack.
        count: shadow clients.

    Returns:
        The findings; nothing if a part of what is trained stays with the client.
    """
    if not travels_whole(observed):
        return []
    gallery = observed.gallery
    shadows = [play_shadow(observed, number) for number in range(count)]
    scores = _scores(observed, shadows, [one.up for one in shadows], observed.up, model_confidence(observed))
    images = [{"images": as_unit_images(one.inputs.images.images)[one.inside]} for one in shadows]
    design = _scores(observed, shadows, images, {"images": gallery.pixels[gallery.held]}, image_confidence)
    others = (~gallery.held).nonzero().squeeze(1)
    halves = others[observed.rng("halves").permutation(len(others))].tensor_split(2)  # (o / 2,) each
    found, known = (membership_rates(one[gallery.held], one[others]) for one in (scores, design))
    absent = membership_rates(*(scores[half] for half in halves))
    where = f"{count} shadow clients on public images"
    return [
        Finding("membership", "whole model", where, name, found[name], absent[name], known[name], chance, len(scores))
        for name, chance in {"auc": 0.5, "tpr": 0.01}.items()
    ]
