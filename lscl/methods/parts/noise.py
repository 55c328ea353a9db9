"""Differential privacy of the upload: clip to a length, add Gaussian noise, and only then send.

The server is the one to be protected from, so every client adds its noise itself (local model; Dwork and Roth 2014,
chapter 3; for whole clients as McMahan et al. 2018, arXiv 1710.06963). dp_noise is the noise multiplier: the standard
deviation in units of the sensitivity, that is of the largest distance between two uploads of neighbouring clients.
What follows on the noisy numbers costs no privacy, so they are brought back to where the server's checks want them.
`lscl.experiments.privacy.account` adds up what all exchanges together give away.

The draws are those of the run's seed, so that a run repeats; a client that means it draws from a source of its own.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lscl.config import SCALE
from lscl.federation.client import Client
from lscl.federation.payload import Payload
from lscl.methods.parts.o2d import pack_triangle, unpack_triangle
from lscl.registry import Parameters

Unit = Literal["client", "image"]  # whose presence the noise hides: all images of a client, or one image


class Noise(Parameters):
    """For systems whose clients can add noise to what they send."""

    dp_noise: float = Field(
        0.0, ge=0, le=1e6, description="Gaussian noise on the upload, in units of its sensitivity; 0 = none"
    )
    dp_clip: float = Field(
        1.0,
        **SCALE,
        description="length to which the upload, or a feature in it, is clipped; only with dp_noise > 0",
    )
    dp_delta: float = Field(
        1e-5, ge=1e-12, lt=1, description="delta of the (epsilon, delta) account; only with dp_noise > 0"
    )


def clip_length(value: Tensor, length: float) -> Tensor:
    """Shorten vectors to a length: (..., d) -> (..., d).

    Args:
        value: vectors, the last axis theirs.
        length: the longest allowed.

    Returns:
        The vectors; shorter ones stay as they are.
    """
    return value * (length / value.norm(dim=-1, keepdim=True).clamp(min=length))


def add_noise(value: Tensor, deviation: float, draw: torch.Generator) -> Tensor:
    """Add Gaussian noise.

    Args:
        value: any shape.
        deviation: standard deviation.
        draw: of the noise.

    Returns:
        The noisy numbers, in the type of `value`.
    """
    return value + deviation * torch.randn(value.shape, generator=draw, dtype=torch.float64).to(value.dtype)


def noisy_block(parts: Mapping[str, Tensor], clip: float, noise: float, draw: torch.Generator) -> Payload:
    """Clip some tensors, taken as one vector, and add noise to them.

    Any two clipped vectors are at most 2 clip apart, whatever images they are made of: the unit is the whole client.

    Args:
        parts: {name: tensor}.
        clip: the longest allowed vector.
        noise: multiplier.
        draw: of the noise.

    Returns:
        {name: noisy tensor}.
    """
    length = math.sqrt(sum(float(value.double().square().sum()) for value in parts.values()))
    factor = min(1.0, clip / length) if length > 0 else 1.0
    return {name: add_noise(value * factor, 2 * clip * noise, draw) for name, value in parts.items()}


def nearest_gram(packed: Tensor) -> Tensor:
    """The nearest matrix without negative eigenvalues: noise makes a Gram matrix one that is none.

    Args:
        packed: upper triangle, (q (q + 1) / 2,).

    Returns:
        Of the same shape.
    """
    values, vectors = torch.linalg.eigh(unpack_triangle(packed.double()))
    return pack_triangle((vectors * values.clamp(min=0)) @ vectors.T).to(packed.dtype)


def noisy_upload(client: Client, sent: Payload, start: Payload, clip: float, noise: float, reach: float) -> Payload:
    """An uploaded generator and the tensors with it, each clipped and noisy.

    Of the trained tensors the change is clipped, and no number leaves the reach of the training. A Gram matrix stays
    one.

    Args:
        client: whose draws are used.
        sent: the upload.
        start: the trained tensors as the client got them.
        clip: the longest allowed vector.
        noise: multiplier.
        reach: how far a trained number may move, see `lscl.federation.limits.reach_check`.

    Returns:
        The noisy upload.
    """
    change = {name: sent[name] - start[name] for name in start}
    noisy = noisy_block(change, clip, noise, client.rng("noise-trained"))
    out = {name: start[name] + value.clamp(-reach, reach) for name, value in noisy.items()}
    for name in sent.keys() - start.keys():
        if not sent[name].is_floating_point():
            out[name] = sent[name]
            continue
        (value,) = noisy_block({name: sent[name]}, clip, noise, client.rng(f"noise-{name}")).values()
        out[name] = nearest_gram(value) if name == "gram" else value
    return {name: out[name] for name in sent}


def noisy_sums(sums: Tensor, counts: Tensor, clip: float, noise: float, draw: torch.Generator) -> Tensor:
    """Sums of clipped features by class, with noise, and then no longer than so many features can make them.

    Another image in the place of one moves the sum of one class by at most 2 clip, or those of two by clip each.

    Args:
        sums: of clipped features, (k, d).
        counts: images of each class, (k,).
        clip: length of a feature.
        noise: multiplier.
        draw: of the noise.

    Returns:
        (k, d).
    """
    noisy, longest = add_noise(sums, 2 * clip * noise, draw), clip * counts[:, None].to(sums.dtype)
    return noisy * (longest / noisy.norm(dim=1, keepdim=True).clamp(min=torch.finfo(sums.dtype).tiny)).clamp(max=1)


def noisy_joint_moments(moments: Tensor, counts: Tensor, clip: float, noise: float, draw: torch.Generator) -> Tensor:
    """Sums of [h; y][h; y]^T of clipped features and labels, with noise; the numbers of images are no secret.

    Another image in the place of one moves the block of h h^T by at most sqrt(2) clip^2 and that of h y^T by 2 clip.

    Args:
        moments: (D + k, D + k) float64.
        counts: images of each class, (k,), the block of the labels.
        clip: length of a feature.
        noise: multiplier.
        draw: of the noise.

    Returns:
        The noisy sums: a Gram matrix with the same numbers of images, no larger than so many features can make it.
    """
    k = len(counts)
    sensitivity = math.sqrt(2 * clip**4 + 4 * clip**2)
    noisy = unpack_triangle(add_noise(pack_triangle(moments), sensitivity * noise, draw))
    products = noisy[:-k, -k:] * (counts > 0)
    explained = (products / counts.clamp(min=1)) @ products.T
    rest = unpack_triangle(nearest_gram(pack_triangle(noisy[:-k, :-k] - explained)))
    squares = explained + rest
    most = clip**2 * float(counts.sum())
    shrink = math.sqrt(most / max(most, float(squares.trace()))) if most > 0 else 0.0  # of every feature
    top = torch.cat([shrink**2 * squares, shrink * products], 1)
    return torch.cat([top, torch.cat([shrink * products.T, torch.diag(counts.to(moments.dtype))], 1)])
