"""What the change of a linear generator in a round reveals: who was in the training, and which classes.

Each step adds to the weights a sum of outer products delta g^T over the images of a batch, so the change of a round
points where the features g of these images point. The attack weighs the direction of an image's features by the
change. It needs a CNN that gives features: the client's own (upper bound) or the attacker's stand-in.

The classes: the generator's bias is one low-rank update for all images. With it the frozen model is asked how much
farther apart it puts the images of a class from those of others than without; a client makes the classes apart that it
has. For this the attacker needs some images of every class that the client may have, here the official test images.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lscl.experiments.privacy.class_guess import guess_score
from lscl.experiments.privacy.decoder import encoder_of, train_stand_in
from lscl.experiments.privacy.observed import Observed
from lscl.experiments.privacy.scores import Finding, membership_rates
from lscl.federation.passes import map_batches
from lscl.models.generator import Generator, scale_features

REFERENCE = 5  # test images of each class that the attacker has


def energy(features: Tensor, change: Tensor) -> Tensor:
    """||D g||^2 / ||g||^2: how much of a change lies where the features of images point.

    Args:
        features: g, centred, (n, m).
        change: D, (p, m).

    Returns:
        (n,).
    """
    return (features @ change.T).square().sum(1) / features.square().sum(1).clamp(min=1e-12)


def _design(observed: Observed) -> dict[str, float]:
    """The control: a change made of one step on few images, whose features are their pixels."""
    gallery = observed.gallery
    pixels = gallery.pixels.flatten(1)  # (k c, 3 H W)
    pixels = F.normalize(pixels - pixels.mean(0), dim=1)
    chosen = gallery.held.nonzero().squeeze(1)[:: max(1, int(gallery.held.sum()) // 8)]
    values, vectors = torch.linalg.eigh(pixels[chosen] @ pixels[chosen].T)
    span = (vectors / values.clamp(min=1e-6).sqrt()).T @ pixels[chosen]  # an orthonormal basis, (8, 3 H W)
    scores = energy(pixels, span)
    return membership_rates(scores[chosen], scores[~gallery.held])


def read_generator(observed: Observed) -> list[Finding]:
    """Attack the payload `weight` and `bias` of a generator.

    Args:
        observed: the client under attack.

    Returns:
        The findings; nothing if no generator travels, or none whose input is a CNN's features.
    """
    travels = {"weight", "bias"} <= set(observed.up) & set(observed.down)
    if not travels or not isinstance(observed.part("generator"), Generator) or observed.part("cnn") is None:
        return []
    gallery, side, findings = observed.gallery, observed.config.side, []
    change = observed.up["weight"] - observed.down["weight"]
    others = (~gallery.held).nonzero().squeeze(1)
    halves = others[observed.rng("halves").permutation(len(others))].tensor_split(2)  # (o / 2,) each
    design = _design(observed)
    encoders = {
        "own CNN": train_stand_in(observed),
        observed.true_cnn: encoder_of(observed.part("cnn"), side),
    }
    for knows, encode in encoders.items() if change.shape[1] else ():
        g = scale_features(encode(gallery.pixels))
        scores = energy(g - g.mean(0), change)
        found = membership_rates(scores[gallery.held], scores[others])
        absent = membership_rates(*(scores[half] for half in halves))
        findings += [
            Finding("membership", "weight", knows, name, found[name], absent[name], design[name], level, len(scores))
            for name, level in {"auc": 0.5, "tpr": 0.01}.items()
        ]
    return [*findings, guess_score(observed, "bias", "test images of every class", _class_separation(observed))]


def _class_separation(observed: Observed) -> Tensor:
    """How much the uploaded bias moves the classes apart, (C,)."""
    client, method, classes = observed.client, observed.method, observed.method.num_classes
    labels = torch.from_numpy(client.test.images.labels)
    index = torch.cat([(labels == label).nonzero().squeeze(1)[:REFERENCE] for label in range(classes)])
    generator = observed.part("generator")
    update = generator.split(observed.up["bias"][None])  # A (1, r, d), B (1, 3d, r)

    def with_update(batch) -> Tensor:
        every = replace(
            update, A=update.A.expand(len(batch.index), -1, -1), B=update.B.expand(len(batch.index), -1, -1)
        )
        return method.foundation.suffix(batch.prefix, every)

    plain = map_batches(client.test, index, lambda batch: method.foundation.suffix(batch.prefix)).cpu()
    moved = map_batches(client.test, index, with_update).cpu()
    return separation(moved, labels[index], classes) - separation(plain, labels[index], classes)


def separation(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """For every class, in units of the spread inside classes, how far its mean is from the nearest other mean.

    Args:
        features: (n, d).
        labels: (n,).
        classes: C.

    Returns:
        (C,).
    """
    means = torch.stack([features[labels == label].mean(0) for label in range(classes)])  # (C, d)
    spread = torch.stack([(features[labels == label] - means[label]).norm(dim=1).mean() for label in range(classes)])
    gaps = torch.cdist(means, means) + torch.diag(torch.full((classes,), torch.inf))
    return gaps.min(1).values / spread.clamp(min=1e-9)
