"""FLOPs and bytes of the frozen ViT's blocks, of CNNs and of generators, counted on shapes without memory.

One FLOP is one addition or multiplication. A linear layer costs 2 x tokens x in x out forward and as much backward to its input;
frozen weights need no third product, trained ones do. Attention costs 4 N^2 d forward and twice that backward, at a rate of its own.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lscl.config import Experiment
from lscl.models.cnn import small_cnn
from lscl.models.vit import FrozenViT, architecture

FLOAT = 4  # bytes
# Of a linear layer's input and output by the narrow products of its low-rank update, which are bound by memory and not by FLOPs. Forward: the
# input is read, the output copied, read and written again; backward: the output's gradient is read, the input's is written, and read with
# another one to be added to it and written, and one of the two is read for the gradient of A or of B.
LOW_RANK_VISITS = 5.5


@dataclass(frozen=True)
class Blocks:
    """The last `count` blocks of a ViT, N tokens of width d, hidden width h. FLOPs are per image, in linear layers and in attention: (2,).

    pooled: behind the last block all tokens are read, not CLS alone.
    """

    count: int
    tokens: int
    width: int
    hidden: int
    pooled: bool = False

    def forward(self, cls_only: bool = True) -> np.ndarray:
        """All blocks; in the last one only what the CLS token needs."""
        short = self._shortened() if cls_only else 0
        return sum((self._block(index >= self.count - short) for index in range(self.count)), np.zeros(2))

    def step(self, cls_only: bool = True) -> np.ndarray:
        """Forward, and back to the activations."""
        return self.forward(cls_only) * (2, 3)

    def _shortened(self) -> int:
        """How many blocks compute only what the CLS token needs: the last one, unless all tokens are read."""
        return 0 if self.pooled else min(1, self.count)

    def _block(self, short: bool) -> np.ndarray:
        n, d, rows = self.tokens, self.width, 1 if short else self.tokens
        linear = 2 * (2 * n * d * d + 2 * rows * d * d + 2 * rows * d * self.hidden)
        return np.array([linear, 4.0 * rows * n * d])

    def saved(self, every_input: bool = False) -> float:
        """Bytes kept for the backward pass, per image: both norms' inputs, q, k, v, attention's output, the hidden layer; in the last block
        only what all tokens give, the first norm's input, k and v; with an update on every layer their inputs too, of all tokens."""
        whole, last = 6 * self.width + self.hidden, 3 * self.width
        if every_input:
            whole, last = whole + 2 * self.width + self.hidden, last + 2 * self.width
        return self._all(whole, last)

    def low_rank(self) -> float:
        """Bytes that an update of every linear layer moves in a step, per image; in the last block all tokens only pass qkv."""
        whole, last = 8 * self.width + 2 * self.hidden, 4 * self.width  # inputs and outputs
        return LOW_RANK_VISITS * self._all(whole, last)

    def _all(self, whole: int, last: int) -> float:
        """Bytes of all blocks, of which a whole one has so many numbers per token and a shortened last one so many."""
        short = self._shortened()
        return FLOAT * self.tokens * ((self.count - short) * whole + short * last)

    def passing(self) -> float:
        """Bytes that live at once in a forward pass without gradients, per image."""
        return FLOAT * self.tokens * (3 * self.width + 2 * self.hidden)


@dataclass(frozen=True)
class Network:
    """A CNN or generator on one image: FLOPs forward, bytes kept for the backward pass, bytes of its weights."""

    flops: float
    saved: float
    weights: float


NOTHING = Network(0, 0, 0)


@lru_cache
def vit_shape(name: str) -> tuple[VisionTransformer, float]:
    """The network without memory, and the FLOPs of its patch embedding per image."""
    with torch.device("meta"):
        vit = architecture(name)
        images = torch.empty(1, 3, *vit.patch_embed.img_size)
    return vit, _flops(vit.patch_embed, images)


def _flops(network: nn.Module, *inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return counter.get_total_flops()


def network(model: nn.Module, *inputs: torch.Tensor) -> Network:
    """Count a network (on the meta device) on a batch of images; -> per image of that batch."""
    sizes, count = [], len(inputs[0])
    watch = lambda _module, _inputs, output: sizes.append(output.numel())
    hooks = [
        part.register_forward_hook(watch) for part in model.modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d)
    ]
    flops = _flops(model, *inputs)
    for hook in hooks:
        hook.remove()
    return Network(flops / count, FLOAT * sum(sizes) / count, FLOAT * sum(p.numel() for p in model.parameters()))


@lru_cache
def count_cnn(config: Experiment, client: int = 0) -> Network:
    """The CNN of a client."""
    with torch.device("meta"):
        return network(small_cnn(config, client).train(), torch.empty(2, 3, config.side, config.side))


def uncut_vit(vit: VisionTransformer) -> FrozenViT:
    """The network with nothing in front of the cut."""
    return FrozenViT(vit, 0, (0.0,) * 3, (1.0,) * 3)
