"""Prompts: learnable tokens for a frozen ViT, and their selection by keys."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lscl.config import SCALE, Experiment
from lscl.errors import LsclError
from lscl.models.vit import FrozenViT
from lscl.registry import Parameters


class PromptClip(Parameters):
    """For systems that train prompts."""

    prompt_clip: float = Field(1.0, **SCALE, description="largest norm of the gradient in a step of a prompt method")


class PromptVote(PromptClip):
    """For systems whose prompts the official codes choose by a vote of the batch."""

    prompt_batchwise: bool = Field(
        False, description="prompts chosen by a vote of the whole batch, as the official codes do"
    )


def cosine_to_keys(query: Tensor, keys: Tensor) -> Tensor:
    """Cosine of every query with every key. (b, d), (M, d) -> (b, M)."""
    return F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).T


def most_similar(scores: Tensor, count: int, batchwise: bool) -> Tensor:
    """The keys chosen for each sample: its `count` largest scores, or (batchwise) those chosen most often in the batch.

    scores: (b, M) -> (b, count) indices. Per sample, the choice never depends on what else is in the batch.
    """
    chosen = scores.topk(count, dim=1).indices
    if batchwise:
        votes = torch.bincount(chosen.flatten(), minlength=scores.shape[1])
        chosen = votes.topk(count).indices.expand(len(scores), count)
    return chosen


def check_class_token(config: Experiment, foundation: FrozenViT) -> None:
    """For methods whose prompts stand beside the class token and are read as it is.

    Raises:
        LsclError: the ViT reads no class token.
    """
    if foundation.tokens_read is None:
        raise LsclError(
            f"foundation = {config.foundation!r}: pools all tokens ({foundation.vit.global_pool}), and the prompts of {config.method} are read "
            "like a class token; take a ViT that reads its class token"
        )


def with_prompts(foundation: FrozenViT, z: Tensor, prompts: Tensor) -> Tensor:
    """Prompts between CLS and the patches, all at the position of CLS.

    z: (b, N, d) tokens in front of block 0; prompts: (l, d), or (b, l, d) for other ones per sample -> (b, 1 + l + N - 1, d).
    """
    table = foundation.vit.pos_embed
    position = table[:, :1] if table is not None and table.shape[1] == z.shape[1] else 0
    prompts = (prompts + position).expand(len(z), *prompts.shape[-2:])
    return torch.cat([z[:, :1], prompts, z[:, 1:]], dim=1)
