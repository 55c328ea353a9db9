"""Model inversion: images of a class that a classifier is sure of, with BatchNorm's statistics as a prior.

Yin et al. 2020 (arXiv 1912.08795): start from noise and lower the cross-entropy of a class, the distance between the
batch's BatchNorm statistics and those that the network remembers, and the total variation. The network is the one that
a client sends up: its statistics are those of the client's own images. The question is whether the result resembles an
image of the client more than one that it never had. What a class looks like is common knowledge, so showing that much
is no leak.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lscl.experiments.privacy.gradient_matching import total_variation
from lscl.experiments.privacy.observed import Observed
from lscl.experiments.privacy.scores import Finding
from lscl.federation.client import resize
from lscl.methods.parts.synthesis import Statistics, norm_gap
from lscl.models.cnn import from_unit_range, to_unit_range
from lscl.seeding import torch_generator

INVERSION_STEPS = 150
STATISTICS, SMOOTH = 1.0, 0.05  # weights of BatchNorm's gap and of the total variation


def invert_classifier(
    network: nn.Module,
    logits,
    labels: Tensor,
    shape: tuple[int, ...],
    draw: torch.Generator,
    steps: int = INVERSION_STEPS,
) -> Tensor:
    """Images that a network puts into given classes and that have the statistics it remembers.

    Args:
        network: with BatchNorm layers, in evaluation mode.
        logits: images -> (n, C).
        labels: (n,).
        shape: of an image.
        draw: of the noise.
        steps: of Adam.

    Returns:
        (n, 3, H, W) in -2 to 2.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    images = torch.randn(len(labels), *shape, generator=draw).requires_grad_()
    optimiser = torch.optim.Adam([images], 0.1)
    with Statistics(layers) as statistics:
        for _ in range(steps):
            loss = F.cross_entropy(logits(images), labels) + SMOOTH * total_variation(images)
            loss = loss + STATISTICS * norm_gap(statistics.batch(), statistics.running())
            (images.grad,) = torch.autograd.grad(loss, [images])
            optimiser.step()
            with torch.no_grad():
                images.clamp_(-2, 2)
    return images.detach()


class PixelStatistics(nn.Module):
    """The control: a BatchNorm layer with a channel for each pixel, of a client with a single image of each class.

    What it remembers as mean is the image. Its logits are the same for all classes.
    """

    def __init__(self, image: Tensor):
        """image: (3, H, W)."""
        super().__init__()
        self.norm = nn.BatchNorm2d(image.numel(), affine=False)
        self.norm.running_mean.copy_(image.flatten())  # (3 H W,)
        self.norm.running_var.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, 2), zeros that depend on the images."""
        return 0 * self.norm(images.flatten(1)[:, :, None, None]).sum((1, 2, 3))[:, None].expand(-1, 2)  # (n, 2)


def invert_model(observed: Observed, steps: int = INVERSION_STEPS) -> list[Finding]:
    """Attack a CNN with BatchNorm that goes up with its classifier.

    Args:
        observed: the client under attack.
        steps: of each search.

    Returns:
        The findings; nothing if no such network travels.
    """
    if not any(name.endswith("running_mean") for name in observed.up) or not observed.sends_classifier:
        return []
    gallery, config = observed.gallery, observed.config
    model = observed.method.new_model(observed.client.id)
    model.load_state_dict(observed.up, strict=False)
    model.eval()
    draw, shape = torch_generator(config.seed, "inversion"), (3, config.side, config.side)
    found = invert_classifier(
        model, lambda images: model["head"](model["cnn"](images)), gallery.classes, shape, draw, steps
    )
    size = gallery.pixels.shape[-1]
    rate = lambda made: gallery.held_rate(
        to_unit_range(made).flatten(1),  # (k, 3 H W)
        gallery.pixels.flatten(1),  # (k c, 3 H W)
        torch.arange(len(gallery.classes)),
        observed.rng("side"),
    )
    value, absent = rate(resize(found, size))
    control = []
    for label in range(len(gallery.classes)):
        mine = gallery.held[label * gallery.per_class : (label + 1) * gallery.per_class].nonzero().squeeze(1)[0]
        image = from_unit_range(gallery.pixels[label * gallery.per_class + mine])
        layer = PixelStatistics(image).eval()
        control.append(invert_classifier(layer, layer, torch.zeros(1).long(), image.shape, draw, steps))
    known, _ = rate(torch.cat(control))
    count = len(gallery.classes)
    return [Finding("model inversion", "cnn", "nothing", "held", value, absent, known, 0.5, count)]
