"""Feature inversion: a decoder turns the features of kept images back into images.

The attacker trains a network on pairs (feature, image) of public images, as Dosovitskiy and Brox (2016, arXiv
1506.02753) do for a CNN that they know. Here nobody but the client knows its CNN, so there are three attackers:

- own CNN: one of the same architecture, trained on the public images, stands in for the client's;
- aligned CNN: the attacker also knows half of the kept images, as from a leak, and maps the client's features to its
  own by least squares; it is scored on the other half;
- true CNN: the upper bound, an attacker who has stolen the client's CNN.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lscl.data.store import digest_of
from lscl.experiments.privacy.observed import Gallery, Observed, as_unit_images
from lscl.experiments.privacy.scores import Finding, image_quality, top1_rate
from lscl.federation.client import resize
from lscl.models.cnn import from_unit_range, small_cnn
from lscl.seeding import seeded, torch_generator

STEPS, BATCH_SIZE, RATE_OF_DECODER = 400, 64, 2e-3
CNN_EPOCHS = 2
MOST_DECODERS = 12  # that a process keeps
_TRAINED: dict[str, nn.Module] = {}
Encoder = Callable[[Tensor], Tensor]  # images (n, 3, H, W) in 0 to 1 -> features (n, m)


class ImageDecoder(nn.Module):
    """A linear layer, then blocks of upsampling, convolution, BatchNorm and ReLU: (n, m) -> (n, 3, side, side)."""

    def __init__(self, features: int, side: int):
        super().__init__()
        widths = [max(16, 64 >> number) for number in range(max(1, math.ceil(math.log2(side / 4))))]
        self.side, self.width = side, widths[0]
        self.first = nn.Linear(features, widths[0] * 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in zip(widths, [*widths[1:], widths[-1]])
        )
        self.last = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Images in 0 to 1."""
        x = self.first(features).view(len(features), self.width, 4, 4)  # (n, w, 4, 4)
        for block in self.blocks:
            x = block(F.interpolate(x, scale_factor=2.0))
        return torch.sigmoid(self.last(F.interpolate(x, (self.side, self.side))))


def train_decoder(features: Tensor, images: Tensor, seed: int, name: str, steps: int = STEPS) -> ImageDecoder:
    """Train a decoder on pairs, by the mean squared error.

    Args:
        features: (n, m).
        images: (n, 3, H, W) in 0 to 1.
        seed: of all draws.
        name: of the draws.
        steps: of Adam.

    Returns:
        The decoder, in evaluation mode.
    """
    key = digest_of(features.numpy(), images.numpy(), f"{seed}/{name}/{steps}".encode())
    if key in _TRAINED:  # the attackers of other systems and defences train on the same pairs
        return _TRAINED[key]
    with seeded(seed, "decoder", name):
        decoder = ImageDecoder(features.shape[1], images.shape[-1])
    optimiser, draw = torch.optim.Adam(decoder.parameters(), RATE_OF_DECODER), torch_generator(seed, "pairs", name)
    for _ in range(steps):
        chosen = torch.randint(len(features), (BATCH_SIZE,), generator=draw)
        loss = F.mse_loss(decoder(features[chosen]), images[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if len(_TRAINED) >= MOST_DECODERS:
        del _TRAINED[next(iter(_TRAINED))]
    _TRAINED[key] = decoder.eval()
    return decoder


def encoder_of(cnn: nn.Module, side: int) -> Encoder:
    """A CNN in evaluation mode as a function of images in 0 to 1.

    Args:
        cnn: (n, 3, side, side) -> (n, m).
        side: pixels a side of its input.

    Returns:
        images (n, 3, H, W) -> (n, m).
    """

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        cnn.eval()
        parts = [cnn(resize(from_unit_range(part), side)) for part in images.split(200)]  # (b, m) each
        return torch.cat(parts)

    return encode


def train_stand_in(observed: Observed, epochs: int = CNN_EPOCHS) -> Encoder:
    """The attacker's own CNN, of the client's architecture, trained as a classifier of the public images.

    Args:
        observed: the client under attack.
        epochs: passes over the public images.

    Returns:
        images -> features.
    """
    config, public = observed.config, observed.public
    images, labels = as_unit_images(public.images), torch.from_numpy(public.labels)
    with seeded(config.seed, "stand-in"):
        cnn = small_cnn(config, observed.client.id)
        head = nn.Linear(config.features, len(public.classes))
    optimiser = torch.optim.Adam([*cnn.parameters(), *head.parameters()], 1e-3)
    draw = torch_generator(config.seed, "stand-in batches")
    for _ in range(epochs):
        for part in torch.randperm(len(images), generator=draw).split(BATCH_SIZE):  # (b,) each
            seen = resize(from_unit_range(images[part]), config.side)
            loss = F.cross_entropy(head(cnn(seen)), labels[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return encoder_of(cnn, config.side)


def align(received: Tensor, own: Tensor, known: Tensor) -> Tensor:
    """Map received features to the attacker's own by ridge-regularised least squares on the images that it knows.

    Args:
        received: (n, m).
        own: the attacker's features of the same images, (n, m); only the rows in `known` are read.
        known: (n,) bool.

    Returns:
        (n, m).
    """
    ones = torch.ones(len(received), 1, dtype=torch.float64)
    x = torch.cat([received.double(), ones], 1)
    gram = x[known].T @ x[known]
    pull = 1e-3 * gram.trace() / len(gram) * torch.eye(len(gram), dtype=torch.float64)
    return (x @ torch.linalg.solve(gram + pull, x[known].T @ own[known].double())).float()


def score_reconstructions(
    found: Tensor, rows: Tensor, gallery: Gallery, draw: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """PSNR, SSIM and re-identification of reconstructions, of the true images and of images that nobody had.

    Args:
        found: (n, 3, H, W).
        rows: the true images' positions in the gallery, (n,).
        gallery: the candidates.
        draw: picks the images that the client never had.

    Returns:
        {score: (value, the same for images that the client never had)}.
    """
    absent = gallery.others(rows, draw)
    places, right = gallery.candidates(rows)
    candidates = gallery.pixels[places].flatten(2)  # (n, c, 3 H W)
    wrong = absent % gallery.per_class
    quality = {name: (value,) for name, value in image_quality(found, gallery.pixels[rows]).items()}
    for name, value in image_quality(found, gallery.pixels[absent]).items():
        quality[name] += (value,)
    flat = found.flatten(1)  # (n, 3 H W)
    return {**quality, "top1": (top1_rate(flat, candidates, right), top1_rate(flat, candidates, wrong))}


@torch.no_grad()
def _design(observed: Observed, rows: Tensor, steps: int) -> dict[str, tuple[float, float]]:
    """The control: the same decoder for a payload that is the image itself, pixel by pixel."""
    pixels = as_unit_images(observed.public.images)
    with torch.enable_grad():
        decoder = train_decoder(
            pixels.flatten(1) - 0.5, pixels, observed.config.seed, "design", 2 * steps
        )  # (n, 3 H W)
    found = decoder(observed.gallery.pixels[rows].flatten(1) - 0.5)  # (n, 3 H W)
    return score_reconstructions(found, rows, observed.gallery, observed.rng("decoder"))


def invert_features(observed: Observed, steps: int = STEPS) -> tuple[list[Finding], dict[str, Tensor]]:
    """Attack the payload `features`.

    Args:
        observed: the client under attack.
        steps: of the training of a decoder.

    Returns:
        The findings, and images to look at by name, (n, 3, H, W) each; nothing if no features of a CNN travel.
    """
    sent = observed.cnn_features
    if sent is None:
        return [], {}
    config, gallery = observed.config, observed.gallery
    received = sent.float() * sent.shape[1]
    true, own = encoder_of(observed.part("cnn"), config.side), train_stand_in(observed)
    rows = observed.kept
    known = torch.arange(len(rows)) % 2 == 0
    public = as_unit_images(observed.public.images)
    of_own = train_decoder(own(public), public, config.seed, "own", steps)
    of_true = train_decoder(true(public), public, config.seed, "true", steps)
    aligned = align(received, own(gallery.pixels[rows]), known)
    attempts = {  # what the attacker compares and decodes, its encoder, its decoder, the rows that count
        "own CNN": (received, own, of_own, torch.ones_like(known)),
        "aligned CNN, half of the kept images": (aligned, own, of_own, ~known),
        observed.true_cnn: (received, true, of_true, torch.ones_like(known)),
    }
    design, findings, shown = _design(observed, rows, steps), [], {"true image": gallery.pixels[rows[~known]]}
    for knows, (features, encode, decoder, counted) in attempts.items():
        chosen, z = rows[counted], features[counted]
        with torch.no_grad():
            found = decoder(z)
        scores = score_reconstructions(found, chosen, gallery, observed.rng("decoder"))
        for name, (value, absent) in scores.items():
            chance = 1 / gallery.per_class if name == "top1" else None
            findings.append(
                Finding("reconstruction", "features", knows, name, value, absent, design[name][0], chance, len(z))
            )
        places, right = gallery.candidates(chosen)
        codes = encode(gallery.pixels)[places]  # (n, c, m)
        wrong = gallery.others(chosen, observed.rng("decoder")) % gallery.per_class
        direct = [top1_rate(z, codes, answer) for answer in (right, wrong)]
        exact = top1_rate(*_pixels_of(gallery, chosen))
        findings.append(Finding("matching", "features", knows, "top1", *direct, exact, 1 / gallery.per_class, len(z)))
        shown[knows] = found[: int((~known).sum())] if len(found) == int((~known).sum()) else found[~known]
    shown["never had"] = gallery.pixels[gallery.others(rows[~known], observed.rng("decoder"))]
    return findings, shown


def _pixels_of(gallery: Gallery, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The images themselves, their candidates, and which is right: what leaks by design."""
    places, right = gallery.candidates(rows)
    return gallery.pixels[rows].flatten(1), gallery.pixels[places].flatten(2), right  # (n, 3 H W), (n, c, 3 H W), (n,)
