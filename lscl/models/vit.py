"""The frozen ViT, split at the first adapted block: nothing trained affects `prefix`; `suffix` takes the adapters.

It works for the mini ViT and for any timm VisionTransformer with standard blocks, however that pools its tokens. No
weight of it is ever trained. In shapes, b is the batch, N the number of tokens and d their width.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol
from zipfile import ZipFile

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from timm.layers import Attention, Mlp, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from lscl.config import Experiment
from lscl.data.store import digest_of
from lscl.errors import LsclError, first_line, unknown_name
from lscl.models.mini import MEAN, STD, mini_vit
from lscl.seeding import seeded

TOLERANCE = 1e-3  # relative difference that is allowed: TF32 rounds to about that
WEIGHTS = Path(__file__).parents[1] / "weights" / "mini_vit.safetensors"


@dataclass(frozen=True)
class LowRank:
    """A low-rank update of a linear layer d -> o: scale B A x is added to its output, as in Eq. 2.

    Args:
        A: (r, d), or (b, r, d) for an update per sample.
        B: (o, r), or (b, o, r) for an update per sample.
        scale: factor of the update.
    """

    A: Tensor
    B: Tensor
    scale: float

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """Add the update by two narrow products; the (o, d) matrix B A is never formed.

        Args:
            out: (b, N, o), the layer's output.
            x: (b, N, d), the layer's input.

        Returns:
            (b, N, o): out + scale B A x.
        """
        if self.A.ndim == 2:
            low = F.linear(x, self.A)  # (b, N, r)
            out_rows, low_rows = out.flatten(0, 1), low.flatten(0, 1)  # (b N, o), (b N, r)
            return torch.addmm(out_rows, low_rows, self.B.T, alpha=self.scale).view_as(out)
        low = torch.bmm(x, self.A.transpose(1, 2)) * self.scale  # (b, N, r)
        return torch.baddbmm(out, low, self.B.transpose(1, 2))  # (b, N, o)


class Addition(Protocol):
    """An addition to the output of a linear layer, for example a `LowRank`."""

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """Add to the output.

        Args:
            out: (b, N, o), the layer's output.
            x: (b, N, d), the layer's input.

        Returns:
            (b, N, o), the new output.
        """


@dataclass(frozen=True)
class Adapter:
    """The additions to one frozen block; None = nothing is added.

    Args:
        qkv: to the fused queries, keys and values, d -> 3d.
        proj: to the projection after attention, d -> d.
        fc1: to the first layer of the MLP.
        fc2: to the second layer of the MLP.
        keys: (l, d), or (b, l, d) per sample: put before the block's own keys (prefix tuning), passing no layer.
        values: of the same shape, put before the block's own values.
    """

    qkv: Addition | None = None
    proj: Addition | None = None
    fc1: Addition | None = None
    fc2: Addition | None = None
    keys: Tensor | None = None
    values: Tensor | None = None


PLAIN = Adapter()


class FrozenViT(nn.Module):
    """A frozen vision transformer F, cut before one of its blocks.

    Its feature phi(x) is what timm's own head would classify: the normalised CLS token, or the pooled tokens.

    Args:
        vit: the network; its weights are frozen.
        block: the first block of the suffix, from 0; the number of blocks = the prefix has them all.
        mean: mean of each colour of the network's inputs.
        std: standard deviation of each colour.

    Raises:
        LsclError: the block does not exist, or the ViT is not made of standard blocks.
    """

    def __init__(self, vit: VisionTransformer, block: int, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        if not 0 <= block <= len(vit.blocks):
            raise LsclError(f"block = {block}: the ViT has blocks 0 to {len(vit.blocks) - 1}")
        if reason := unfit(vit):
            raise LsclError(f"this network cannot be the frozen ViT: {reason}")
        self.vit = vit.eval().requires_grad_(False)
        self.block, self.mean, self.std = block, tuple(mean), tuple(std)
        self.block_forward = block_forward

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Let `suffix` run its blocks through torch.compile; `prefix` stays as it is.

        Raises:
            LsclError: this machine has no compiler, or a compiled block differs by more than TOLERANCE.
        """
        if self.block == self.depth:
            return
        compiled, weight = torch.compile(block_forward, backend=backend), self.vit.blocks[self.block].attn.qkv.weight
        with seeded(0, "compile"):
            z, A, B = (
                torch.randn(shape, device=weight.device)
                for shape in ((2, 5, self.width), (2, 1, self.width), (2, len(weight), 1))
            )
        found = {}
        for name, forward in (("plain", block_forward), ("compiled", compiled)):
            leaves = [one.clone().requires_grad_() for one in (z, A, B)]
            try:
                out = forward(self.vit.blocks[self.block], leaves[0], Adapter(qkv=LowRank(*leaves[1:], scale=0.1)), 1)
                found[name] = [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]
            except Exception as error:  # a missing compiler causes exceptions of many types
                raise LsclError(
                    f"compile = True: torch.compile does not work here, it needs a C++ compiler: {first_line(error)}"
                ) from error
        gap = max(float((a - b).norm() / a.norm()) for a, b in zip(found["plain"], found["compiled"], strict=True))
        if gap > TOLERANCE:
            raise LsclError(
                f"compile = True: a compiled block differs by {gap:.1e} of the plain one's norm, "
                f"allowed is {TOLERANCE:.0e}"
            )
        self.block_forward = compiled

    @property
    def width(self) -> int:
        """Width d of the tokens."""
        return self.vit.embed_dim

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        return len(self.vit.blocks)

    @cached_property
    def tokens_read(self) -> int | None:
        """Tokens after the last block that the feature needs: 1 = CLS, 2 = CLS and a distillation token, None = all."""
        by_token = {VisionTransformer: 1, VisionTransformerDistilled: 2}[type(self.vit)]
        return by_token if self.vit.global_pool == "token" else None

    @cached_property
    def largest_feature(self) -> float:
        """A bound of ||phi(x)|| for all images: sqrt(d) max |gamma| + ||beta|| of the last LayerNorm; inf without one.

        It holds for every token after that norm, and therefore for their mean.
        """
        layer = self.vit.norm if isinstance(self.vit.fc_norm, nn.Identity) else self.vit.fc_norm
        pooled_by_mean = layer is self.vit.fc_norm or self.vit.global_pool in ("token", "avg")
        if not isinstance(layer, nn.LayerNorm) or layer.weight is None or not pooled_by_mean:
            return math.inf
        shift = 0.0 if layer.bias is None else float(layer.bias.norm())
        return self.width**0.5 * float(layer.weight.abs().max()) + shift

    @cached_property
    def tokens(self) -> int:
        """Number of tokens N that `prefix` returns: all, or after the last block one (CLS or the pooled feature)."""
        return 1 if self.block == self.depth else self.vit.patch_embed.num_patches + self.vit.num_prefix_tokens

    @property
    def embeds_at_once(self) -> bool:
        """Whether what `prefix` returns is one convolution of the pixels: cheaper to compute again than to store."""
        return self.block == 0 and has_plain_embedding(self.vit)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all weights, 16 hex digits."""
        state = self.vit.state_dict()
        return digest_of(*(part for name, value in state.items() for part in (name.encode(), value.cpu().numpy())))[:16]

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize (bicubic) and normalise images for the ViT: (b, H, W, 3) uint8 -> (b, 3, S, S) float32."""
        return enlarge(images, self.vit.patch_embed.img_size[0], self.mean, self.std)

    def prefix(self, images: Tensor) -> Tensor:
        """Compute everything before the adapted block: (b, H, W, 3) uint8 -> (b, N, d)."""
        with torch.no_grad():
            z = self.vit.patch_embed(self.preprocess(images))
            z = self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(z)))
            for one in self.vit.blocks[: self.block]:
                z = one(z)
            if self.block < self.depth:
                return z
            return z[:, :1] if self.tokens_read == 1 else self.pooled(self.vit.norm(z))[:, None]

    def feature(self, last: Tensor) -> Tensor:
        """Turn what `prefix` returns after the last block into the feature phi(x): (b, 1, d) -> (b, d)."""
        return self.pooled(self.vit.norm(last)) if self.tokens_read == 1 else last[:, 0]

    def pooled(self, tokens: Tensor) -> Tensor:
        """Pool the tokens after the final norm to the feature phi(x): (b, N, d) -> (b, d)."""
        return self.vit.forward_head(tokens, pre_logits=True)

    def recut(self, block: int) -> "FrozenViT":
        """Cut the same network before another block; no weight is copied."""
        return FrozenViT(self.vit, block, self.mean, self.std)

    @torch.no_grad()
    def update_share(self, z: Tensor, update: LowRank) -> float:
        """Size of an update relative to the output it changes: ||s B A y|| / ||W y||, y the normed input of qkv.

        Args:
            z: (b, N, d), the tokens before the adapted block.
            update: of that block's fused qkv W.

        Returns:
            The ratio of the Frobenius norms over all tokens.
        """
        block = self.vit.blocks[self.block]
        y = block.norm1(z)  # (b, N, d)
        frozen = F.linear(y, block.attn.qkv.weight)  # (b, N, 3d)
        return float(update.add_to(torch.zeros_like(frozen), y).norm() / frozen.norm())

    def suffix(self, z: Tensor, update: LowRank | Mapping[int, Adapter] | None = None, keep: int | None = 1) -> Tensor:
        """Compute the blocks above the cut; the last one computes only what the result needs.

        Args:
            z: (b, N, d), the prefix; N is larger than `tokens` if prompts were put between CLS and the patches.
            update: a low-rank update of the first block's fused qkv, or {block: adapter}; None = nothing is added.
            keep: 1 = return the feature; more = return so many tokens; None = return all tokens.

        Returns:
            The feature phi(x), (b, d), for keep = 1; else the first tokens after the final norm, (b, keep, d).

        Raises:
            LsclError: an adapter for a block that is in the prefix or does not exist.
        """
        needed = self.tokens_read if keep == 1 else keep
        adapters = {self.block: Adapter(qkv=update)} if isinstance(update, LowRank) else update or {}
        if any(not self.block <= index < self.depth for index in adapters):
            raise LsclError(
                f"adapters for blocks {sorted(adapters)}: above the cut are blocks {self.block} to {self.depth - 1}"
            )
        for index in range(self.block, self.depth):
            kept = needed if index == self.depth - 1 else None
            z = self.block_forward(self.vit.blocks[index], z, adapters.get(index, PLAIN), kept)
        if self.block == self.depth and self.tokens_read != 1:  # the prefix has pooled already
            return z[:, 0] if keep == 1 else z
        z = self.vit.norm(z[:, :needed])
        return self.pooled(z) if keep == 1 else z


def unfit(vit: nn.Module) -> str | None:
    """The reason why a network cannot be cut and adapted as a `FrozenViT`; None if it can."""
    if type(vit) not in (VisionTransformer, VisionTransformerDistilled):
        return f"it is a {type(vit).__name__}, not a timm VisionTransformer"
    odd = {type(one).__name__ for one in vit.blocks if type(one) is not Block}
    odd |= {type(one.attn).__name__ for one in vit.blocks if type(one) is Block and type(one.attn) is not Attention}
    if odd:
        return f"its blocks are not timm's standard blocks (Block with Attention) but made of {', '.join(sorted(odd))}"
    if any(getattr(one.attn, "gate", None) is not None for one in vit.blocks):
        return "its attention has a gate"
    if not vit.global_pool:
        return "it does not pool its tokens to one feature"
    if vit.global_pool == "token" and not vit.has_class_token:
        return "it has no class token, and pools by none"
    return None


def has_plain_embedding(vit: VisionTransformer) -> bool:
    """Whether patches become tokens by one convolution, whose result does not depend on the other images of a batch."""
    return type(vit.patch_embed) is PatchEmbed


def plain_mlps(vit: VisionTransformer) -> bool:
    """Whether every block's MLP is fc1, activation, fc2, so that an adapter can act inside it."""
    return all(type(one.mlp) is Mlp for one in vit.blocks)


def block_forward(block: Block, z: Tensor, adapter: Adapter = PLAIN, keep: int | None = None) -> Tensor:
    """Run one frozen pre-norm block with the additions of an adapter.

    The operations and their order are those of timm's Block, so that the plain whole block is equal bit for bit.

    Args:
        block: the frozen block.
        z: (b, N, d), its input.
        adapter: what to add.
        keep: compute only the first tokens of the output; None = all.

    Returns:
        (b, N, d), or (b, keep, d).
    """
    x = block.norm1(z)
    if keep is not None and adapter.qkv is None:
        q, k, v = _first_qkv(block.attn, x, keep)
    else:
        qkv = _add(adapter.qkv, block.attn.qkv(x), x)  # (b, N, 3d)
        q, k, v = _heads(block.attn, qkv, 3).unbind(0)  # (b, heads, N, d/heads) each
        q = q[:, :, :keep]
    z = z[:, :keep]
    q, k = block.attn.q_norm(q), block.attn.k_norm(k)
    if adapter.keys is not None:
        k, v = _in_front(block.attn, adapter.keys, k), _in_front(block.attn, adapter.values, v)
    x = _attention(q, k, v)
    x = block.attn.norm(x.transpose(1, 2).reshape(z.shape))  # (b, keep, d)
    z = z + block.ls1(_add(adapter.proj, block.attn.proj(x), x))
    x = block.norm2(z)
    if adapter.fc1 is None and adapter.fc2 is None:
        return z + block.ls2(block.mlp(x))
    h = block.mlp.norm(block.mlp.act(_add(adapter.fc1, block.mlp.fc1(x), x)))
    return z + block.ls2(_add(adapter.fc2, block.mlp.fc2(h), h))


def _add(addition: Addition | None, out: Tensor, x: Tensor) -> Tensor:
    return out if addition is None else addition.add_to(out, x)


def _heads(attn: Attention, x: Tensor, parts: int) -> Tensor:
    """Split fused tokens into parts (q, k, v or fewer) and heads: (b, N, parts d) -> (parts, b, heads, N, d/heads)."""
    x = x.reshape(*x.shape[:2], parts, attn.num_heads, attn.head_dim)  # (b, N, parts, heads, d/heads)
    return x.permute(2, 0, 3, 1, 4)  # (parts, b, heads, N, d/heads)


def _in_front(attn: Attention, prefix: Tensor, x: Tensor) -> Tensor:
    """Put l keys or values, (l, d) or (b, l, d), before x (b, heads, N, d/heads) -> (b, heads, l + N, d/heads)."""
    prefix = prefix.expand(len(x), *prefix.shape[-2:])  # (b, l, d)
    return torch.cat([_heads(attn, prefix, 1)[0], x], dim=2)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention: queries (b, heads, n, d/heads), keys and values (b, heads, N, d/heads) -> as q."""
    # on the CPU the backward pass in half precision is several times slower than in float32
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v)


def _first_qkv(attn: Attention, x: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the first `keep` tokens, keys and values of all: (b, N, d) -> (b, heads, keep or N, d/heads) each."""
    d, weight, bias = attn.attn_dim, attn.qkv.weight, attn.qkv.bias
    q = F.linear(x[:, :keep], weight[:d], None if bias is None else bias[:d])
    k, v = _heads(attn, F.linear(x, weight[d:], None if bias is None else bias[d:]), 2).unbind(0)
    return _heads(attn, q, 1)[0], k, v


def enlarge(images: Tensor, size: int, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """Resize images (bicubic) and normalise them.

    Args:
        images: (b, H, W, 3) uint8.
        size: pixels a side of the result.
        mean: mean of each colour.
        std: standard deviation of each colour.

    Returns:
        (b, 3, size, size) float32.
    """
    images = images.permute(0, 3, 1, 2).float() / 255  # (b, 3, H, W)
    if images.shape[-1] != size:
        images = F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)
    return (images - _colours(tuple(mean), images.device)) / _colours(tuple(std), images.device)


@lru_cache
def _colours(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One number for each colour, (1, 3, 1, 1); copied to the device once, because every batch needs it."""
    return torch.tensor(values).view(1, 3, 1, 1).to(device)  # (1, 3, 1, 1)


RANDOM = "random/"  # before a timm name: the same architecture with random weights
HUB = "hf-hub:"  # before <owner>/<model>: architecture and weights from a repository of the Hugging Face Hub
OURS = ("mini", "tiny")


def foundation(
    name: str, block: int | None, normalize: bool = True, weights: Path | None = None, size: int | None = None
) -> FrozenViT:
    """Load a frozen ViT by its name.

    Args:
        name: mini, tiny, a timm name, hf-hub:<owner>/<model>, or random/<timm name> for random weights.
        block: the block before which it is cut; None = after the last.
        normalize: normalise inputs with the checkpoint's mean and standard deviation; False = only scale them to 0..1.
        weights: a local checkpoint; None = the one that belongs to the name.
        size: pixels a side of its inputs; its position embeddings are resampled. None = its own.

    Returns:
        The frozen ViT, tested on an image of noise unless it is ours.

    Raises:
        LsclError: an unknown name or block, a network that cannot be cut and adapted, a size that its patches do not
            divide, a weight file that is damaged or of another network, a failed download, or numbers that are not
            finite.
    """
    drawn = name.startswith(RANDOM)
    if weights is not None and drawn:
        raise LsclError(
            f"foundation = {name!r}: has drawn weights, so weights = {str(weights)!r} cannot be used with it"
        )
    if name == "mini" and weights is None:
        vit = set_vit_size(_mini(), size, name)
    elif weights is None and not drawn and name not in OURS:
        with torch.device("meta"):
            architecture(name, size)  # refuses an unfit network before its weights are downloaded
        vit = set_vit_size(_timm(name, pretrained=True), size, name)
    else:
        vit = architecture(name, size)
    if weights is not None:
        load_checkpoint(vit, weights, name)
    mean, std = (MEAN, STD) if name in OURS else (vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"])
    if not normalize:
        mean, std = (0.0,) * 3, (1.0,) * 3
    frozen = FrozenViT(vit, len(vit.blocks) if block is None else block, mean, std)
    if name not in OURS or weights is not None or size is not None:
        check_frozen_vit(frozen, name if weights is None else f"{name} with weights = {weights}")
    return frozen


def architecture(name: str, size: int | None = None) -> VisionTransformer:
    """Make the untrained network of a name.

    Args:
        name: as in `foundation`.
        size: pixels a side of its inputs; None = its own.

    Returns:
        The network.

    Raises:
        LsclError: an unknown name, a network that cannot be cut and adapted, or a size that its patches do not divide.
    """
    if name == "mini":
        return set_vit_size(mini_vit(), size, name)
    if name == "tiny":
        with seeded(0, "tiny-vit"):
            tiny = VisionTransformer(
                img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=0, mlp_ratio=2
            )
        return set_vit_size(tiny, size, name)
    of_timm = name.removeprefix(RANDOM)
    if not of_timm.startswith(HUB) and not timm.is_model(of_timm):
        raise unknown_name("foundation model", name, [*OURS, *timm.list_models("vit_*_patch16_224")])
    return set_vit_size(_timm(name, pretrained=False), size, name)


def set_vit_size(vit: VisionTransformer, size: int | None, name: str) -> VisionTransformer:
    """Let a ViT take inputs of another size: its position embeddings are resampled to the new grid of patches.

    Args:
        vit: the network, changed in place.
        size: pixels a side; None = it stays as it is.
        name: its name in messages.

    Returns:
        The network.

    Raises:
        LsclError: the size is not a multiple of the patches' side.
    """
    if size is None or vit.patch_embed.img_size == (size, size):
        return vit
    patch = vit.patch_embed.feat_ratio()
    if size % patch:
        raise LsclError(f"vit_size = {size}: the patches of {name} have {patch} pixels a side, allowed are multiples")
    try:
        vit.set_input_size(img_size=(size, size))
    except Exception as error:  # another library's networks fail in many ways
        raise LsclError(f"vit_size = {size}: {name} cannot have this size: {first_line(error)}") from error
    return vit


def check_frozen_vit(frozen: FrozenViT, name: str) -> None:
    """Pass an image of noise through prefix and suffix, and compare the feature with timm's.

    Args:
        frozen: the frozen ViT.
        name: its name in messages.

    Raises:
        LsclError: weights or the feature are not finite, or the feature is not the one that timm gives its own head.
    """
    bad = next((key for key, value in frozen.vit.state_dict().items() if not value.isfinite().all()), None)
    if bad is not None:
        raise LsclError(f"foundation = {name}: {bad} holds numbers that are not finite")
    size = frozen.vit.patch_embed.img_size[0]
    image = torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            theirs = frozen.vit.forward_head(frozen.vit.forward_features(frozen.preprocess(image)), pre_logits=True)
            ours = frozen.suffix(frozen.prefix(image))
    except Exception as error:  # another library's networks fail in many ways
        raise LsclError(
            f"foundation = {name}: cannot look at an image of {size} pixels: {first_line(error)}"
        ) from error
    if not theirs.isfinite().all():
        raise LsclError(f"foundation = {name}: its feature of an image is not finite")
    if ours.shape != (1, frozen.width) or (ours - theirs).norm() > TOLERANCE * theirs.norm():
        raise LsclError(f"foundation = {name}: cut in two it does not give the feature that it gives as a whole")


def check_block(config: Experiment, depth: int) -> None:
    """Check that the ViT has the block of the config.

    Args:
        config: the experiment.
        depth: number of blocks of its ViT.

    Raises:
        LsclError: the ViT does not have it.
    """
    if not 0 <= config.block < depth:
        raise LsclError(f"block = {config.block}: {config.foundation} has {depth} blocks, allowed are 0 to {depth - 1}")


def foundation_of(config: Experiment, block: int | None) -> FrozenViT:
    """Load the frozen ViT of a config.

    Args:
        config: the experiment.
        block: the block before which the ViT is cut; None = after the last.

    Returns:
        The frozen ViT.

    Raises:
        LsclError: as `foundation`; or the config has the digest of a local checkpoint, but not its place.
    """
    if config.weights_sha256 is not None and config.weights is None:
        raise LsclError(
            f"weights_sha256 = {config.weights_sha256}: this run uses a local checkpoint; "
            "say by weights where the file is"
        )
    return foundation(config.foundation, block, config.normalize, config.weights, config.vit_size)


def _timm(name: str, pretrained: bool) -> VisionTransformer:
    try:
        with seeded(0, name):
            vit = timm.create_model(name.removeprefix(RANDOM), pretrained=pretrained, num_classes=0)
    except Exception as error:  # hub errors come in many types
        if pretrained:
            raise LsclError(
                f"cannot get the weights of {name}: {first_line(error)}; give a local file by weights"
            ) from error
        if HUB in name:
            raise LsclError(
                f"cannot get the description of {name}: {first_line(error)}; give its timm name, and a local file by "
                "weights"
            ) from error
        raise LsclError(f"foundation = {name!r}: timm cannot make it: {first_line(error)}") from error
    if reason := unfit(vit):
        raise LsclError(f"foundation = {name!r}: cannot be the frozen ViT: {reason}")
    return vit


def load_checkpoint(vit: VisionTransformer, path: Path, name: str) -> None:
    """Load a local checkpoint into a ViT; a classifier in the file is ignored.

    Args:
        vit: the network to fill.
        path: a .safetensors file with timm's names, or an .npz file of the original release.
        name: the network's name in messages.

    Raises:
        LsclError: the file is missing, damaged, of another kind or of another network.
    """
    readers = {".safetensors": _from_safetensors, ".npz": _from_npz}
    if path.suffix not in readers:
        raise LsclError(
            f"weights = {str(path)!r}: allowed are .safetensors files and .npz files of the original release"
        )
    try:
        difference = readers[path.suffix](vit, path)
    except Exception as error:  # readers and converters fail in many ways
        raise LsclError(f"weights = {str(path)!r}: cannot be read as {name}: {first_line(error)}") from error
    if difference:
        raise LsclError(f"weights = {str(path)!r}: not a checkpoint of {name}: {difference}")


LEFT_OUT = ("head.", "head_dist.", "pre_logits.", "head/", "pre_logits/")  # classifiers


def _from_safetensors(vit: VisionTransformer, path: Path) -> str | None:
    """Fill a ViT; -> the reason why the file is of another network, None if it is not."""
    own = vit.state_dict()
    given = {
        key: value for key, value in checkpoint_filter_fn(load_file(path), vit).items() if not key.startswith(LEFT_OUT)
    }
    for key, value in own.items():
        if key not in given:
            return f"{key} is missing"
        if given[key].shape != value.shape:
            return f"{key} has the shape {tuple(given[key].shape)}, not {tuple(value.shape)}"
        if given[key].is_floating_point() != value.is_floating_point():
            return f"{key} holds {given[key].dtype}, not {value.dtype}"
    if odd := given.keys() - own.keys():
        return f"{min(odd)} does not belong to it"
    vit.load_state_dict(given)
    return None


def _from_npz(vit: VisionTransformer, path: Path) -> str | None:
    """Fill a ViT; -> as `_from_safetensors`. Only headers are read until the file is known to fit."""
    arrays = dict(_headers(path))
    root = next(
        (root for root in ("opt/target/", "params/", "params/img/", "") if f"{root}embedding/kernel" in arrays), None
    )
    if root is None:
        return "it has no embedding/kernel, so it is not of the original release"
    arrays = {name.removeprefix(root): about for name, about in arrays.items() if name.startswith(root)}
    own, found = sum(p.numel() for key, p in vit.named_parameters() if key != "pos_embed"), 0
    for name, (shape, dtype) in arrays.items():
        if name.startswith(LEFT_OUT):
            continue
        count = math.prod(shape)
        if dtype.kind != "f":
            return f"{name} holds {dtype}, not floating-point numbers"
        if name.endswith("pos_embedding"):  # may be of another image size
            if count > own:
                return f"{name} has the shape {shape}"
        else:
            found += count
    if found != own:
        return f"it holds {found} numbers, the network has {own}, positions left out"
    vit.load_pretrained(str(path))
    return None


def _headers(path: Path) -> Iterator[tuple[str, tuple[tuple[int, ...], np.dtype]]]:
    """Name, shape and type of each array in an .npz file."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                shape, _, dtype = read[np.lib.format.read_magic(file)](file)
            yield name.removesuffix(".npy"), (shape, dtype)


def _mini() -> VisionTransformer:
    vit = mini_vit()
    state = read_weights(WEIGHTS)
    vit.load_state_dict({key: value.float() for key, value in state.items()})
    return vit.to(memory_format=torch.channels_last)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file and compare its SHA-256 with the one in the .json file of the same name.

    Raises:
        LsclError: a file is missing or damaged, or the digests differ.
    """
    about = path.with_suffix(".json")
    try:
        data, wanted = path.read_bytes(), json.loads(about.read_text(encoding="utf-8"))["sha256"]
        if hashlib.sha256(data).hexdigest() != wanted:
            raise LsclError(f"damaged weight file {path}: its SHA-256 is not the one in {about.name}; install it again")
        return load(data)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise LsclError(
            f"cannot read the weights {path}: {error}; install the package again or run lscl pretrain"
        ) from error
