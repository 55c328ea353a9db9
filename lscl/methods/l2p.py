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
from lscl.federation.sketch import CLASS, FROZEN_VIT, HEAD, IMAGE, Part, Sketch
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
    r"""Each image picks a few learned tokens, called prompts, from a pool, and the ViT reads them together with the
    image. Every prompt has a key, and an image picks the prompts whose keys are most similar to its frozen feature. The
    server averages the prompts, the keys and the head.

    The query $\phi(x)$ is the frozen CLS feature. Image $x$ takes the set $S(x)$ of the $k$ keys $\kappa_i$ with the
    highest cosine. The head reads the mean of the prompts' output tokens. The second term moves the keys:

    $$L = \mathrm{CE} - \lambda\,\frac1b\sum_x \sum_{i \in S(x)} \cos\big(\phi(x), \kappa_i\big).$$

    - Source: Wang et al. 2022 (arXiv 2112.08654), averaged by FedAvg.
    - Trained, up and down: $M$ prompts of $l$ tokens $(M, l, d)$, their keys $(M, d)$, and the head, weights $(C, d)$
      and bias $(C)$.
    - Payload: up $4(Mld + Md + dC + C) + 8$ bytes, down 8 bytes fewer. With `head_merge = holders` another $C$ bytes
      go up.

    Differences from the PyTorch code that most people use (JH-LEE-KR/l2p-pytorch) and its descendants:
    1. Each image chooses its own prompts. The official code takes a majority vote of the batch (option
       `prompt_batchwise`), which reveals the task when a test batch comes from one task.
    2. CLS and the prompts have the position of CLS, and the patches keep theirs. In one descendant the tables do not
       line up.
    3. Only prompts, keys and head travel, not the ViT.
    4. There is no prompt mask per task and no frequency term. The official code uses neither for CIFAR-100.
    5. There is no augmentation (official: random resized crops and mirroring). The frozen feature and the input of
       the first block are computed once.
    6. The optimiser is fresh in each round (official: in each task). Rounds and epochs are those of the profile
       (official:
       5 epochs per task).
    """

    name, label, paper_name, citation = "l2p", "FedAvg + L2P", "FedAvg+L2P", "2112.08654"
    place, turn = 4, 11
    tuned = {"lr": 0.018, "l2p_pull": 0.02}
    official = {"lr": OFFICIAL_LR}
    search_space = {"lr": LogRange(1e-4, 1), "l2p_pull": LogRange(1e-2, 1)}
    costs = L2PCosts
    sketch = Sketch(
        row=(IMAGE, FROZEN_VIT, HEAD, CLASS),
        helpers=(
            Part("keys nearest to the image", "trained", arrow="right", fed=True),
            Part("their prompts", "trained"),
        ),
        up="prompts, keys and head",
        server="average them, weighted by the number of images",
        down="the average",
    )

    class Parameters(PromptVote, Averaged):
        """See `lscl.registry.Parameters`."""

        l2p_pool: int = Field(10, ge=1, le=10**4, description="prompts in L2P's pool")
        l2p_length: int = Field(5, ge=1, le=1000, description="tokens of a prompt of L2P")
        l2p_top_k: int = Field(5, ge=1, le=10**4, description="prompts that each image takes from the pool")
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
