"""Images from a trained network alone, for TARGET and MFCL: a generator, and the gap to BatchNorm's statistics."""

import math
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lscl.config import Experiment
from lscl.errors import LsclError
from lscl.models.cnn import to_unit_range
from lscl.models.counting import Network, network

SMALL = 64  # pixels: up to here two upsamplings, above five, as in the released codes at 32 and at 224 pixels
Moments = list[tuple[Tensor, Tensor]]  # mean (c,) and variance (c,), one pair for each BatchNorm layer


class ImageGenerator(nn.Module):
    """A linear layer, then blocks of nearest-neighbour upsampling, convolution, BatchNorm and LeakyReLU.

    Channels: 2w, 2w, w up to 64 pixels, w everywhere above. Sizes that are no power of two start from the size divided
    by 4 (or 32), rounded up.

    Args:
        latent: length of the input z.
        size: pixels a side of an image.
        width: w.
        last: what follows the last convolution.
        eps: of the BatchNorm layers after convolutions.
    """

    def __init__(self, latent: int, size: int, width: int, last: nn.Module, eps: float = 1e-5):
        super().__init__()
        steps = 2 if size <= SMALL else 5
        widths = [2 * width, 2 * width, width] if size <= SMALL else [width] * 6
        self.sides = [math.ceil(size / 2**k) for k in range(steps, -1, -1)]
        self.first = nn.Linear(latent, widths[0] * self.sides[0] ** 2)
        self.start = nn.BatchNorm2d(widths[0])
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b, eps), nn.LeakyReLU(0.2))
            for a, b in pairwise(widths)
        )
        self.last = nn.Sequential(nn.Conv2d(widths[-1], 3, 3, padding=1), last)

    def forward(self, z: Tensor) -> Tensor:
        """Images: (n, latent) -> (n, 3, size, size)."""
        x = self.start(self.first(z).view(len(z), -1, self.sides[0], self.sides[0]))  # (n, 2w or w, s, s)
        for side, block in zip(self.sides[1:], self.blocks):
            x = block(F.interpolate(x, size=(side, side)))
        return self.last(x)


def generator_flops(latent: int, config: Experiment, width: int) -> float:
    """The work of making images.

    Args:
        latent: length of the generator's input z.
        config: with the size of the images.
        width: channels of its last block.

    Returns:
        FLOPs of one image.
    """
    return _generator(latent, config.side, width).flops


@lru_cache
def _generator(latent: int, side: int, width: int) -> Network:
    with torch.device("meta"):
        return network(ImageGenerator(latent, side, width, nn.Sigmoid()), torch.empty(2, latent))


def batchnorm_layers(network: nn.Module, method: str, cnn: str) -> list[nn.Module]:
    """The BatchNorm layers of a network.

    Args:
        network: a client's model.
        method: its system, for the message.
        cnn: the CNN's name, for the message.

    Returns:
        The layers, in the order of the modules.

    Raises:
        LsclError: there is none.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    if not layers:
        raise LsclError(
            f"cnn = {cnn!r}: {method} makes images from BatchNorm statistics, and this CNN has no BatchNorm layer"
        )
    return layers


class Statistics:
    """Mean and variance of the inputs of each BatchNorm layer in the last forward pass, measured in a `with` block."""

    def __init__(self, layers: list[nn.Module]):
        self.layers, self.last = layers, {}

    def __enter__(self) -> "Statistics":
        self.hooks = [layer.register_forward_pre_hook(self._measure) for layer in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _measure(self, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0]
        self.last[layer] = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)

    def batch(self) -> Moments:
        """Of the last batch, layer by layer; differentiable."""
        return [self.last[layer] for layer in self.layers]

    def running(self) -> Moments:
        """The statistics that the layers keep of their training."""
        return [(layer.running_mean, layer.running_var) for layer in self.layers]


def mix_moments(carried: Moments | None, batch: Moments, momentum: float) -> Moments:
    """momentum * carried + (1 - momentum) * batch, layer by layer.

    Args:
        carried: of earlier batches; None = there are none yet.
        batch: of this one.
        momentum: 0 to 1.

    Returns:
        The mixture; the batch alone if nothing is carried.
    """
    if carried is None:
        return batch
    return [tuple(momentum * old + (1 - momentum) * new for old, new in zip(*pair)) for pair in zip(carried, batch)]


def norm_gap(batch: Moments, running: Moments) -> Tensor:
    """TARGET's term: ||mean - running mean||_2 + ||variance - running variance||_2.

    Args:
        batch: of the images.
        running: what the layers remember.

    Returns:
        The sum over layers, ().
    """
    return sum((mean - mu).norm() + (variance - var).norm() for (mean, variance), (mu, var) in zip(batch, running))


def kl_gap(batch: Moments, running: Moments) -> Tensor:
    """MFCL's term: KL(N(running) || N(batch)).

    Args:
        batch: of the images.
        running: what the layers remember.

    Returns:
        The mean over channels, then over layers, ().
    """
    gaps = []
    for (mean, variance), (mu, var) in zip(batch, running):
        variance, var = variance + 1e-8, var + 1e-8
        gaps.append((0.5 * (variance / var).log() - 0.5 * (1 - (var + (mu - mean).square()) / variance)).mean())
    return torch.stack(gaps).mean()


def as_pixels(images: Tensor) -> Tensor:
    """Undo `lscl.models.cnn.to_cnn_input`: (n, 3, H, W) in about -2 to 2 -> (n, H, W, 3) uint8."""
    pixels = (to_unit_range(images.detach()) * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().contiguous()  # (n, H, W, 3)
