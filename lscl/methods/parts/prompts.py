"""Prompts: learnable tokens for a frozen ViT, and their selection by keys."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lscl.config import SCALE, Experiment
from lscl.errors import LsclError
from lscl.federation.client import Client
from lscl.federation.method import Method, Phase, Stage
from lscl.models.precision import in_float32
from lscl.models.vit import FrozenViT
from lscl.registry import Parameters

# The learning rate of the official codes, by their rule, for our batches of 16.
OFFICIAL_LR = 0.03 * 16 / 256


class PromptClip(Parameters):
    """For systems that train prompts."""

    prompt_clip: float = Field(1.0, **SCALE, description="largest norm of the gradient in a step of a prompt method")


class PromptVote(PromptClip):
    """For systems whose prompts the official codes choose by a vote of the batch."""

    prompt_batchwise: bool = Field(
        False, description="choose prompts by a vote of the whole batch, as the official codes do"
    )


class PromptedMethod(Method):
    """What L2P and DualPrompt share: prompts for the whole ViT, chosen by its frozen feature, and an averaged head."""

    query = True
    head_rows = ("head.weight", "head.bias")

    @staticmethod
    def cut(config: Experiment) -> int | None:
        return 0

    def phases(self, client: Client, stage: Stage) -> list[Phase]:
        """One, with clipped gradients."""
        (phase,) = super().phases(client, stage)
        phase.clip = self.config.prompt_clip
        return [phase]


@in_float32
def cosine_to_keys(query: Tensor, keys: Tensor) -> Tensor:
    """Cosine of every query with every key.

    Args:
        query: (b, d).
        keys: (M, d).

    Returns:
        (b, M).
    """
    return F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).T


def choose_keys(scores: Tensor, count: int, batchwise: bool) -> Tensor:
    """The keys most similar to each sample, whatever else is in the batch, or (batchwise) those it chooses most often.

    Args:
        scores: similarity of samples and keys, (b, M).
        count: how many keys.
        batchwise: one vote for the whole batch.

    Returns:
        Their places, (b, count).
    """
    chosen = scores.topk(count, dim=1).indices
    if batchwise:
        votes = F.one_hot(chosen.flatten(), scores.shape[1]).sum(0)  # (M,)
        chosen = votes.topk(count).indices.expand(len(scores), count)  # (b, count)
    return chosen


def check_class_token(config: Experiment, foundation: FrozenViT) -> None:
    """For methods whose prompts join the class token and are read like it.

    Args:
        config: for the message.
        foundation: the frozen ViT.

    Raises:
        LsclError: the ViT reads no class token.
    """
    if foundation.tokens_read is None:
        raise LsclError(
            f"foundation = {config.foundation!r}: pools all tokens ({foundation.vit.global_pool}), and the prompts of "
            f"{config.method} are read like a class token; take a ViT that reads its class token"
        )


def insert_prompts(foundation: FrozenViT, z: Tensor, prompts: Tensor) -> Tensor:
    """Prompts between CLS and the patches, all at the position of CLS.

    Args:
        foundation: the frozen ViT.
        z: the tokens before its block 0, (b, N, d).
        prompts: (l, d), or (b, l, d) for other ones per sample.

    Returns:
        (b, 1 + l + N - 1, d).
    """
    table = foundation.vit.pos_embed
    position = table[:, :1] if table is not None and table.shape[1] == z.shape[1] else 0
    prompts = (prompts + position).expand(len(z), *prompts.shape[-2:])  # (b, l, d)
    return torch.cat([z[:, :1], prompts, z[:, 1:]], dim=1)
