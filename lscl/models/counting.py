"""FLOPs and bytes of the frozen ViT's blocks, of CNNs and of generators, counted from shapes alone.

One FLOP is one addition or multiplication. A linear layer costs 2 x tokens x in x out forward and as much backward to
its input. Trained weights need a third product, frozen ones do not. Attention costs 4 N^2 d forward and twice that
backward; hardware computes it at another rate, so it is counted apart.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lscl.config import Experiment
from lscl.models.cnn import Start, name_of, new_cnn
from lscl.models.vit import FrozenViT, architecture

FLOAT, HALF = 4, 2  # bytes
# How often the narrow products of a low-rank update read or write the layer's inputs and outputs, on average; memory
# and not FLOPs bounds them. Forward: the input is read, the output copied, read and written again. Backward: the
# output's gradient is read; the input's is written, then read with another one, added to it and written; and one of the
# two is read for the gradient of A or of B.
LOW_RANK_VISITS = 5.5


@dataclass(frozen=True)
class Blocks:
    """The last blocks of a ViT. FLOPs are per image, as (2,): in linear layers and in attention.

    Args:
        count: number of blocks.
        tokens: number of tokens N.
        width: width d of the tokens.
        hidden: width of the MLP's hidden layer.
        pooled: whether the feature needs all tokens after the last block, not CLS alone.
    """

    count: int
    tokens: int
    width: int
    hidden: int
    pooled: bool = False

    def forward(self, cls_only: bool = True) -> np.ndarray:
        """FLOPs of a forward pass, (2,); with `cls_only` the last block computes only what the CLS token needs."""
        short = self._shortened() if cls_only else 0
        return sum((self._block(index >= self.count - short) for index in range(self.count)), np.zeros(2))

    def step(self, cls_only: bool = True) -> np.ndarray:
        """FLOPs of a forward pass and of the backward pass to the activations, (2,)."""
        return self.forward(cls_only) * (2, 3)

    def _shortened(self) -> int:
        """Number of blocks that compute only what the CLS token needs: the last one, unless all tokens are read."""
        return 0 if self.pooled else min(1, self.count)

    def _block(self, short: bool) -> np.ndarray:
        n, d, rows = self.tokens, self.width, 1 if short else self.tokens
        linear = 2 * (2 * n * d * d + 2 * rows * d * d + 2 * rows * d * self.hidden)
        return np.array([linear, 4.0 * rows * n * d])

    def saved(self, every_input: bool = False, number: int = FLOAT) -> float:
        """Bytes kept for the backward pass, per image.

        A whole block keeps the inputs of both norms, q, k, v, attention's output and the hidden layer. The last one
        keeps only what all tokens give: the first norm's input, k and v. FlashAttention keeps no (N, N) matrix.

        Args:
            every_input: whether every layer has an update, so that the layers' inputs are kept, too.
            number: bytes of a number in products; what the norms read is float32 in any case.

        Returns:
            Bytes of one image.
        """
        whole, last = 4 * self.width + self.hidden, 2 * self.width
        if every_input:
            whole, last = whole + 2 * self.width + self.hidden, last + 2 * self.width
        return self._all(2 * self.width, self.width) + self._all(whole, last) * number / FLOAT

    def turning(self, number: int = FLOAT) -> float:
        """Bytes per image that a backward pass needs beyond what is kept: the gradients around an MLP's activation."""
        return self.tokens * (FLOAT * self.width + 2 * number * self.hidden) if self.count else 0

    def copies(self, number: int) -> float:
        """Bytes of the copies of frozen weights in half precision, which the backward pass reads."""
        return number * self.count * (4 * self.width**2 + 2 * self.width * self.hidden) if number < FLOAT else 0

    def fronted(self, length: int, number: int = FLOAT) -> float:
        """Bytes of the keys and values that prefix tuning puts in front of a block's own, per image.

        Args:
            length: how many there are.
            number: bytes of a number.

        Returns:
            Bytes of one image; 0 if there are none.
        """
        return 2 * number * (self.tokens + length) * self.width if length else 0

    def low_rank(self) -> float:
        """Bytes that updates of all linear layers move in a step, per image.

        In the last block only qkv sees all tokens.
        """
        whole, last = 8 * self.width + 2 * self.hidden, 4 * self.width  # inputs and outputs
        return LOW_RANK_VISITS * self._all(whole, last)

    def _all(self, whole: int, last: int) -> float:
        """Bytes of all blocks, from the numbers per token of a whole block and of a shortened last one."""
        short = self._shortened()
        return FLOAT * self.tokens * ((self.count - short) * whole + short * last)

    def passing(self) -> float:
        """Bytes that live at once in a forward pass without gradients, per image.

        These are, in an MLP: the prefix, the block's input, the tokens after attention, their norm, q, k, v, and the
        hidden layer before its activation and after it. Without blocks there is one token.
        """
        return FLOAT * self.tokens * (7 * self.width + 2 * self.hidden) if self.count else FLOAT * self.width


@dataclass(frozen=True)
class Network:
    """The costs of a CNN or generator.

    Args:
        flops: FLOPs of a forward pass, per image.
        saved: bytes kept for the backward pass, per image.
        weights: bytes of its weights.
        passing: bytes that live at once in a forward pass without gradients, its input included, per image.
    """

    flops: float
    saved: float
    weights: float
    passing: float = 0


NOTHING = Network(0, 0, 0)


@lru_cache
def vit_shape(name: str, size: int | None = None) -> tuple[VisionTransformer, float]:
    """A ViT on the meta device, which takes no memory, and the FLOPs of its patch embedding per image.

    Args:
        name: of the ViT.
        size: pixels a side of its inputs; None = its own.

    Returns:
        The network and the FLOPs.
    """
    with torch.device("meta"):
        vit = architecture(name, size)
        images = torch.empty(1, 3, *vit.patch_embed.img_size)
    return vit, _flops(vit.patch_embed, images)


def _flops(network: nn.Module, *inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return counter.get_total_flops()


def network(model: nn.Module, *inputs: torch.Tensor) -> Network:
    """Count the costs of a network on the meta device, from a batch of inputs; the result is per image."""
    sizes, count = [], len(inputs[0])
    watch = lambda _module, _inputs, output: sizes.append(output.numel())
    hooks = [
        part.register_forward_hook(watch) for part in model.modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d)
    ]
    flops = _flops(model, *inputs)
    for hook in hooks:
        hook.remove()
    weights = FLOAT * sum(p.numel() for p in model.parameters())
    return Network(flops / count, FLOAT * sum(sizes) / count, weights, live_bytes(model, *inputs) / count)


def live_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """The most bytes that inputs and results of a forward pass without gradients take at once.

    On the meta device nothing is computed.

    Args:
        model: a network, on the meta device or another.
        inputs: a batch of inputs.

    Returns:
        Bytes of the whole batch, without the network's weights.
    """
    with torch.no_grad(), Live([*model.parameters(), *model.buffers()]) as live:
        live.watch(inputs)
        model(*inputs)
    return live.most


class Live(TorchDispatchMode):
    """A `with` block that measures how many bytes of tensors exist at once: it notes when their storages come and go.

    Args:
        others: tensors that do not count; views of them do not count either.
    """

    def __init__(self, others: Iterable[Tensor]):
        super().__init__()
        self.others = [one.untyped_storage() for one in others]  # kept, so that no other storage gets their place
        self.known, self.now, self.most = {id(one) for one in self.others}, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.watch(tree_leaves(out))
        return out

    def watch(self, values: Iterable[Any]) -> None:
        """Count the storages of tensors that are new."""
        for storage in (value.untyped_storage() for value in values if isinstance(value, Tensor)):
            if id(storage) not in self.known:
                self.known.add(id(storage))
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._forget, id(storage), storage.nbytes())

    def _forget(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.now -= size


def count_cnn(config: Experiment, client: int = 0, start: Start = "drawn") -> Network:
    """Count the costs of a client's CNN.

    Args:
        config: the experiment.
        client: number of the client.
        start: what it starts from; only the form of the network matters, as a pre-trained ResNet-18 has other first
            layers.

    Returns:
        Its costs.
    """
    return _cnn(name_of(config, client), config.side, config.features, start)


@lru_cache
def _cnn(name: str, side: int, features: int, start: Start) -> Network:
    with torch.device("meta"):
        return network(new_cnn(name, side, features, True, start).train(), torch.empty(2, 3, side, side))


def uncut_vit(vit: VisionTransformer) -> FrozenViT:
    """Cut a ViT before its first block, so that the prefix is the patch embedding alone."""
    return FrozenViT(vit, 0, (0.0,) * 3, (1.0,) * 3)
