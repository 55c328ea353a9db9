"""What a Gram matrix of features reveals: which images are in it, and what its leading directions look like.

The payload is C = (1/n) sum [g; 1][g; 1]^T over the n kept images, g their features. An image that is in the sum has a
leverage of at most one, z^T C^+ z <= n with z = [g; 1], and as long as n is below the size of C it lies in the range of
C, which no other image does. So the attack measures how far an image lies outside of it. It needs a CNN that gives the
features: the client's own (upper bound) or the attacker's stand-in. Fewer kept images leave a smaller range.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lscl.experiments.privacy.decoder import Encoder, encoder_of, train_stand_in
from lscl.experiments.privacy.observed import Gallery, Observed
from lscl.experiments.privacy.scores import Finding, membership_rates
from lscl.methods.parts.o2d import second_moments, unpack_triangle

KEPT = (1, 5, 20)  # kept images of a class, the first of each: what smaller buffers would have sent


def leverage(features: Tensor, moments: Tensor) -> Tensor:
    """How far images lie outside of those that a Gram matrix is made of: z^T (C + eps I)^-1 z with z = [g; 1].

    Args:
        features: g of images, (n, m).
        moments: C, (m + 1, m + 1) float64.

    Returns:
        (n,).
    """
    z = torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], 1)
    values, vectors = torch.linalg.eigh(moments)
    eps = 1e-9 * values[-1]
    return ((z @ vectors).square() / (values.clamp(min=0) + eps)).sum(1)


def leading_directions(moments: Tensor, count: int) -> Tensor:
    """The leading eigenvectors of the features' part of a Gram matrix, with the sign that points to their mean.

    Args:
        moments: C, (m + 1, m + 1).
        count: how many.

    Returns:
        (count, m), of length one.
    """
    vectors = torch.linalg.eigh(moments[:-1, :-1]).eigenvectors.flip(1)[:, :count].T  # (count, m)
    side = vectors @ moments[:-1, -1]
    return torch.where(side < 0, -1.0, 1.0)[:, None] * vectors


def first_of_class(rows: Tensor, gallery: Gallery, count: int) -> Tensor:
    """Which rows a smaller buffer would have: the first of each class.

    Args:
        rows: positions in the gallery, in the order of the buffer, (n,).
        gallery: whose classes.
        count: of a class.

    Returns:
        (n,) bool.
    """
    labels, chosen = rows // gallery.per_class, torch.zeros(len(rows), dtype=torch.bool)
    for label in labels.unique():
        chosen[(labels == label).nonzero().squeeze(1)[:count]] = True
    return chosen


def gram_matrices_sent(observed: Observed) -> list[tuple[Tensor, Tensor]]:
    """The Gram matrix in a payload, or those of the features in it: of all of them, and as smaller buffers have them.

    Args:
        observed: the client under attack.

    Returns:
        (n,) bool, which kept images it is made of, and C (m + 1, m + 1); empty if the payload has neither, or no CNN of
        the client's made the features.
    """
    up, rows, sent = observed.up, observed.kept, observed.cnn_features
    if observed.part("cnn") is None:
        return []
    if sent is not None:
        buffers = [first_of_class(rows, observed.gallery, count) for count in KEPT]
        different = {int(chosen.sum()): chosen for chosen in buffers}
        return [(chosen, second_moments(sent.float()[chosen])) for chosen in different.values()]
    if "gram" in up and not observed.sends_label_sums:  # beside a generator: of features that a CNN makes
        return [(torch.ones(len(rows), dtype=torch.bool), unpack_triangle(up["gram"]))]
    return []


def _of_pixels(gallery: Gallery, rows: Tensor) -> dict[str, float]:
    """The control: the Gram matrix of the images themselves, which are more numbers than images."""
    pixels = gallery.pixels.flatten(1)  # (k c, 3 H W)
    kernel = pixels.double() @ pixels.double().T  # the same leverage, by the products of images
    inside = kernel[rows][:, rows]
    solved = torch.linalg.solve(inside + 1e-9 * inside.trace() * torch.eye(len(rows)), kernel[rows])
    outside = kernel.diagonal() - (kernel[rows] * solved).sum(0)  # squared distance from the range
    others = outside[~gallery.held]
    return membership_rates(-outside[rows], -others)


def read_gram(observed: Observed) -> list[Finding]:
    """Attack the Gram matrix of the uploaded features, whether they travel themselves or only as this matrix.

    Args:
        observed: the client under attack.

    Returns:
        The findings; nothing if neither is sent.
    """
    matrices = gram_matrices_sent(observed)
    if not matrices:
        return []
    config, gallery, rows = observed.config, observed.gallery, observed.kept
    m = len(matrices[0][1]) - 1
    true, own = encoder_of(observed.part("cnn"), config.side), train_stand_in(observed)
    others, findings = (~gallery.held).nonzero().squeeze(1), []
    halves = others[observed.rng("halves").permutation(len(others))].tensor_split(2)  # (o / 2,) each
    for chosen, moments in matrices:
        design = _of_pixels(gallery, rows[chosen])
        for knows, encode in {"own CNN": own, observed.true_cnn: true}.items():
            scores = -leverage(encode(gallery.pixels) / m, moments)
            found = membership_rates(scores[rows[chosen]], scores[others])
            absent = membership_rates(*(scores[half] for half in halves))
            where = f"{knows}, {int(chosen.sum())} kept images, {m} features"
            findings += _findings("membership", where, found, absent, design, int(chosen.sum()))
        findings.append(_directions(observed, true, moments, rows[chosen], where))
    return findings


def _findings(
    attack: str, knows: str, found: dict[str, float], absent: dict[str, float], design: dict[str, float], count: int
) -> list[Finding]:
    chance = {"auc": 0.5, "tpr": 0.01}
    return [
        Finding(attack, "gram", knows, name, found[name], absent[name], design[name], level, count)
        for name, level in chance.items()
    ]


def _directions(observed: Observed, true: Encoder, moments: Tensor, rows: Tensor, where: str) -> Finding:
    """Is the image nearest to each of the leading directions one that was kept, or one that the client never had?"""
    gallery, count = observed.gallery, len(observed.gallery.classes)
    found = leading_directions(moments, count).float()
    others = (~gallery.held).nonzero().squeeze(1)
    others = others[torch.from_numpy(observed.rng("side").permutation(len(others)))]
    codes, pixels = F.normalize(true(gallery.pixels), dim=1), F.normalize(gallery.pixels.flatten(1), dim=1)
    kept = _share_of_first(found, codes, rows, others)
    absent = _share_of_first(found, codes, *others.tensor_split(2))  # two halves of those that it never had
    design = _share_of_first(pixels[rows[:count]], pixels, rows, others)
    return Finding("leading directions", "gram", where, "held", kept, absent, design, 0.5, count)


def _share_of_first(found: Tensor, codes: Tensor, first: Tensor, second: Tensor) -> float:
    """How often the nearest code is among the first; as many of both are there."""
    size = min(len(first), len(second))
    both = torch.cat([first[:size], second[:size]])
    return float(((found @ codes[both].T).argmax(1) < size).double().mean())
