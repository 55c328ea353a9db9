"""FedAvg + L2P: a pool of prompts, of which each image takes those whose keys are nearest to its frozen feature."""

import torch
from pydantic import Field
from torch import Tensor, nn

from lscl.config import WEIGHT
from lscl.errors import LsclError
from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs, Planned
from lscl.federation.method import Averaged
from lscl.federation.search_space import LogRange
from lscl.methods.parts.prompts import (
    OFFICIAL_LR,
    PromptedMethod,
    PromptVote,
    check_class_token,
    choose_keys,
    cosine_to_keys,
    insert_prompts,
)
from lscl.registry import register


class L2PCosts(Costs):
    """The chosen prompts beside the tokens; the pool with its keys."""

    def tokens(self) -> int:
        return self.config.l2p_top_k * self.config.l2p_length

    def parameters(self, run: Planned) -> float:
        return self.config.l2p_pool * (self.config.l2p_length + 1) * run.width


@register
class L2P(PromptedMethod):
    """Each image picks the k prompts whose keys are most similar to its frozen CLS feature; they join its tokens.

    Wang et al. 2022 (arXiv 2112.08654), averaged by FedAvg. Trained, uploaded, returned: prompts (M, l, d), keys (M, d)
    and the head W (C, d), b (C,). The frozen feature is computed once per image.
    Payload: up 4 (M l d + M d + d C + C) + 8 bytes, down 4 (M l d + M d + d C + C); with head_merge = holders C bytes
    more up.

    Differences from the PyTorch code that most people use (JH-LEE-KR/l2p-pytorch) and its descendants:
    1. prompts are chosen per sample; the official majority vote of a batch (option prompt_batchwise) tells the task
       when a test batch comes from one task.
    2. CLS and the prompts have the position of CLS, the patches keep theirs (in one descendant the tables do not line
       up).
    3. only prompts, keys and head travel, not the ViT.
    4. no prompt mask per task and no frequency term; neither is used for CIFAR-100 there.
    5. no augmentation (there, random resized crops and mirroring): the frozen feature and what the first block gets are
       computed once.
    6. a fresh optimiser in each round (there, in each task), and the profile's rounds and epochs (there, 5 epochs a
       task).
    """

    name, label, paper_name, citation = "l2p", "FedAvg + L2P", "FedAvg+L2P", "2112.08654"
    place, turn = 4, 11
    tuned = {"lr": 0.018, "l2p_pull": 0.02}
    official = {"lr": OFFICIAL_LR}
    search_space = {"lr": LogRange(1e-4, 1), "l2p_pull": LogRange(1e-2, 1)}
    costs = L2PCosts

    class Parameters(PromptVote, Averaged):
        """See `lscl.registry.Parameters`."""

        l2p_pool: int = Field(10, ge=1, le=10**4, description="prompts in L2P's pool")
        l2p_length: int = Field(5, ge=1, le=1000, description="tokens of a prompt of L2P")
        l2p_top_k: int = Field(5, ge=1, le=10**4, description="prompts that an image takes from the pool")
        l2p_pull: float = Field(
            0.1, **WEIGHT, description="weight of L2P's pull of the chosen keys to the frozen feature"
        )

    check_foundation = staticmethod(check_class_token)

    def build(self, client: int) -> nn.Module:
        config, width = self.config, self.foundation.width
        if config.l2p_top_k > config.l2p_pool:
            raise LsclError(f"l2p_top_k = {config.l2p_top_k}: the pool has l2p_pool = {config.l2p_pool} prompts")
        pool = {
            "prompt": nn.Parameter(torch.empty(config.l2p_pool, config.l2p_length, width).uniform_(-1, 1)),
            "key": nn.Parameter(torch.empty(config.l2p_pool, width).uniform_(-1, 1)),
        }
        return nn.ModuleDict({"pool": nn.ParameterDict(pool), "head": nn.Linear(width, self.num_classes)})

    def choose_prompts(self, client: Client, batch: Batch) -> tuple[Tensor, Tensor]:
        """The prompts whose keys are nearest to the frozen feature.

        Args:
            client: the one whose keys are compared.
            batch: b images.

        Returns:
            Cosines with all keys, (b, M), and the places of the chosen prompts, (b, k).
        """
        scores = cosine_to_keys(self.foundation.feature(batch.last_token), client.model["pool"]["key"])
        return scores, choose_keys(scores, self.config.l2p_top_k, self.config.prompt_batchwise)

    def prompted_features(self, client: Client, batch: Batch, chosen: Tensor) -> Tensor:
        """The mean of the prompts' output tokens.

        Args:
            client: the one whose prompts are taken.
            batch: b images.
            chosen: places of their prompts, (b, k).

        Returns:
            (b, d).
        """
        prompts = client.model["pool"]["prompt"][chosen].flatten(1, 2)  # (b, k l, d)
        tokens = self.foundation.suffix(
            insert_prompts(self.foundation, batch.prefix, prompts), keep=1 + prompts.shape[1]
        )
        return tokens[:, 1:].mean(1)

    def features_of(self, client: Client, batch: Batch) -> Tensor:
        return self.prompted_features(client, batch, self.choose_prompts(client, batch)[1])

    def head_logits(self, client: Client, features: Tensor) -> Tensor:
        return client.model["head"](features)

    def loss(self, client: Client, batch: Batch) -> Tensor:
        """Cross-entropy - lambda mean_b sum_{chosen} cos(phi(x_b), key): the only thing that moves the keys."""
        scores, chosen = self.choose_prompts(client, batch)
        pull = scores.gather(1, chosen).sum(1).mean()
        logits = self.head_logits(client, self.prompted_features(client, batch, chosen))
        return self.cross_entropy(client, batch, logits) - self.config.l2p_pull * pull
