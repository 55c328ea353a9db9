"""FedMGP: a global prompt that the server fuses by distillation, and local prompts of each class that never travel."""

from collections.abc import Collection, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lscl.config import RATE, WEIGHT, Experiment
from lscl.errors import LsclError
from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs, OwnWork, Planned
from lscl.federation.masking import mask_logits, masked_cross_entropy
from lscl.federation.method import Method, Phase, Stage
from lscl.federation.passes import map_batches
from lscl.federation.payload import Payload, Shapes
from lscl.federation.search_space import LogRange
from lscl.federation.sketch import CLASS, FROZEN_VIT, HEAD, IMAGE, Part, Sketch
from lscl.methods.parts.heads import HeadShape, classifier
from lscl.methods.parts.prompts import (
    OFFICIAL_LR,
    PromptClip,
    check_class_token,
    choose_keys,
    cosine_to_keys,
    insert_prompts,
)
from lscl.models.precision import in_float32
from lscl.models.transfer import send
from lscl.models.vit import Adapter
from lscl.registry import register
from lscl.seeding import torch_generator

cosines = in_float32(F.cosine_similarity)


class GlobalPrompt(nn.Module):
    """Tokens (l, d) for the ViT's input, and their key (d,)."""

    def __init__(self, length: int, width: int):
        super().__init__()
        self.prompt = nn.Parameter(torch.empty(length, width).uniform_(-1, 1))
        self.key = nn.Parameter(torch.empty(width).uniform_(-1, 1))


class LocalPrompts(nn.Module):
    """A slot for each class: keys and values before those of a few blocks (C, blocks, 2, l, d), and its key (C, d)."""

    def __init__(self, slots: int, first: int, blocks: int, length: int, width: int):
        super().__init__()
        self.prompts = nn.Parameter(torch.empty(slots, blocks, 2, length, width).uniform_(-1, 1))
        self.keys = nn.Parameter(torch.empty(slots, width).uniform_(-1, 1))
        self.first = first

    def forward(self, slots: Tensor) -> dict[int, Adapter]:
        """The adapters of the slots (b,) chosen for each sample."""
        chosen = self.prompts[slots].unbind(1)
        return {self.first + number: Adapter(keys=pair[:, 0], values=pair[:, 1]) for number, pair in enumerate(chosen)}


class FedMGPCosts(Costs):
    """Prompts beside the tokens; a second pass to find the slot; the fusion on the server."""

    evaluations = 2

    def tokens(self) -> int:
        return self.config.mgp_length

    def in_front(self) -> tuple[int, int]:
        return self.config.mgp_blocks, self.config.mgp_local_length

    def passes(self) -> float:
        return 1

    def parameters(self, run: Planned) -> float:
        local = run.classes * (2 * self.config.mgp_blocks * self.config.mgp_local_length + 1)
        return run.width * (self.config.mgp_length + local) + run.classes * run.width  # the head is there twice

    def own_work(self, run: Planned) -> OwnWork:
        config, blocks = self.config, run.blocks
        images = config.mgp_surrogate_per_class * run.classes
        passes = (config.clients - 1) * blocks.forward(False) + config.mgp_surrogate_epochs * blocks.step(False)
        return OwnWork(
            0.0, run.rounds * images * passes.sum(), run.rounds * config.mgp_surrogate_epochs * images / config.batch
        )


@register
class FedMGP(Method):
    r"""Each client trains two kinds of prompts for the frozen ViT, one after the other. A global prompt is shared: the
    server fuses the clients' prompts into one that makes the ViT respond as they do. Local prompts, one for each
    class, stay on the client, and an image takes the one whose key is nearest.

    Let $F(x; p)$ be the output tokens of the frozen ViT for image $x$ with prompt $p$, and $q(x)$ the mean of the
    prompt's output tokens. Phase 1 trains the global prompt, its key $\kappa$ and the global head. Phase 2 freezes
    the global prompt and trains the local prompts, their keys $\kappa_c$ and the local head:

    $$L_1 = \mathrm{CE} - \lambda \operatorname{mean}_x \cos\big(\phi(x), \kappa\big), \qquad
    L_2 = \mathrm{CE} - \lambda \operatorname{mean}_x \cos\big(q(x), \kappa_{y}\big).$$

    In training the label picks the local prompt, at test time the nearest key does. The server starts from client 0's
    prompt $p_0$ and distils the others into it, on public images $x$:

    $$p = \arg\min_p \sum_{j > 0}\sum_x \lVert F(x; p) - F(x; p_j)\rVert^2.$$

    - Source: Yu et al. 2024 (arXiv 2407.00113).
    - Trained in phase 1: the global prompt $(l, d)$, its key $(d)$ and the global head.
    - Trained in phase 2: the local prompts $(C, \text{blocks}, 2, l', d)$, their keys $(C, d)$ and the local head.
    - Up and down: the global prompt and its key.
    - Stays on the client: everything else.
    - Stays on the server: `mgp_surrogate_per_class` public images of each class from the official test split, on
      which no client is tested.
    - Payload: up $4(ld + d)$ bytes, down $4(ld + d)$ bytes.

    Differences from the official code:
    1. The server really distils: its student prompt is the tensor that the optimiser holds. The released code trains
       a copy, so its "global" prompt is always client 0's upload.
    2. The global head does not travel, as in the paper. The released server fuses it and never sends it, which costs
       $4(dC + C)$ bytes for nothing. Without it the public images need no labels.
    3. The local head is linear, with a row for each class. The classes of a client's tasks are disjoint and the
       cross-entropy runs over those of the task, so this equals the official fresh head per task. The mask of the
       evaluation decides which rows compete (official: always those of the test task). Official heads have 512 hidden
       units (option `head = mlp`, global head only).
    4. Each image takes the slot of its own nearest key, among the classes that the client has met. The official code
       takes one majority vote for the whole batch over all slots, trained or not. That reveals the task of a batch
       from one task.
    5. Keys and values are picked for each image. The official reshape without a permutation mixes them across the
       batch.
    6. The optimiser of a phase has only its own parameters and no weight decay. In the official code it has all of
       them and a decay of 1e-3, so decay moves frozen prompts. The server's fusion has no weight decay either
       (official: 1e-3). Every client has its own copy of heads and prompts; in the official code
       client $k$ starts from the trained head of client $k - 1$.
    7. No client is tested on the public images (official: they are part of the test set).
    8. The server fuses the prompts of all clients. The selection by a threshold is commented out in the released
       code.
    9. There is no augmentation, neither of the clients' images nor of the public ones (official: random crops and
       mirroring of both). The input of the first block is computed once.
    10. The server distils on public images of all classes of the data set. The official code takes only the classes
        that some client trains in the task at hand, 30 to 35 of the 100 of CIFAR-100. So with equal images per class
        a pass has about 3 times as many steps as the official one on CIFAR-100, and 5 times as many on the glyphs.
        Our server also sees classes that no client has met yet.
    11. The key of the fused prompt is the mean of the clients' keys (official: client 0's key). No prediction
        depends on it, because there is only one global prompt.
    12. `demo`, `mini` and `full` are smaller: at most 2 local epochs in a phase (official: 5). `demo` and `mini` have
        one public image of each class (20), and 1 or 2 passes over them in each fusion (5). In `full` there are the
        official 20 and one pass; on the glyphs there is one image. The rate of the fusion is 0.056 in all three,
        chosen by trials in `mini` (official: 0.001875). Under Adam the number
        of steps times the rate shows how far a number of the prompt can move. On CIFAR-100 that is 0.2 in `demo` (4
        steps), 0.4 in `mini` (8) and 3.5 in `full` (63). In the official code it is 0.4 (about 200 steps of 16
        images), and 1.2 in `paper` (625 steps, because of difference 10).

    Phase 2 keeps the global prompt in the input and reads its output tokens, like phase 1 and as in the official code.
    """

    name, label, paper_name, citation = "fedmgp", "FedMGP", "FedMGP", "2407.00113"
    place, turn = 9, 13
    # The server goes through the whole ViT in every round: with 20 images per class and 5 epochs it would cost more
    # than all clients together.
    sizes = {
        "smoke": {  # seconds; the tiny ViT has three blocks
            "mgp_length": 3, "mgp_local_length": 2, "mgp_block": 1, "mgp_blocks": 2,
            "mgp_surrogate_per_class": 1, "mgp_surrogate_epochs": 2,
        },
        # see difference 12
        "demo": {"mgp_surrogate_per_class": 1, "mgp_surrogate_epochs": 1},
        "mini": {"mgp_surrogate_per_class": 1, "mgp_surrogate_epochs": 2},
        "full": {"mgp_surrogate_epochs": 1},
        ("full", "glyphs"): {"mgp_surrogate_per_class": 1},
        "colab": {"test_images_per_class": 80},
    }  # fmt: skip
    tuned = {"lr": 0.072, "mgp_surrogate_lr": 0.056, "mgp_key": 0.22}
    official = {"lr": OFFICIAL_LR, "head": "mlp"}
    search_space = {
        "lr": LogRange(1e-4, 1),
        "mgp_surrogate_lr": LogRange(1e-4, 1e-1),
        "mgp_key": LogRange(1e-2, 1),
    }
    costs = FedMGPCosts
    sketch = Sketch(
        row=(IMAGE, FROZEN_VIT, HEAD, CLASS),
        helpers=(
            Part("key picks the local prompt", "trained", arrow="right", fed=True),
            Part("global and local prompt", "trained"),
        ),
        up="the global prompt and its key",
        server="distil the clients' global prompts into one, on public images",
        down="the fused global prompt, the same for all",
        stays="local prompts, one for each class, and both heads",
    )

    class Parameters(PromptClip, HeadShape):
        """See `lscl.registry.Parameters`."""

        profile_values: ClassVar = {  # about 50 images of the smallest class of ImageNet-R, of which 10 are for testing
            ("paper", "imagenet_r"): {"mgp_surrogate_per_class": 10},
            **{(name, "imagenet_r"): {"mgp_surrogate_per_class": 1} for name in ("demo", "mini", "full", "colab")},
        }
        mgp_length: int = Field(15, ge=1, le=1000, description="tokens of FedMGP's global prompt (official: 15)")
        mgp_local_length: int = Field(
            15,
            ge=1,
            le=1000,
            description="keys and values of FedMGP's local prompts in each of their blocks (official: 15)",
        )
        mgp_block: int = Field(
            2, ge=0, le=1000, description="first block with FedMGP's local prompts, 0-based (official: 2)"
        )
        mgp_blocks: int = Field(
            3, ge=1, le=1000, description="number of blocks with FedMGP's local prompts (official: 3)"
        )
        mgp_key: float = Field(
            0.1, **WEIGHT, description="weight of FedMGP's pull of the keys to their queries (official: 0.1)"
        )
        mgp_surrogate_per_class: int = Field(
            20, ge=1, le=10**6, description="images per class on FedMGP's server, never used for tests (official: 20)"
        )
        mgp_surrogate_epochs: int = Field(
            5, ge=1, le=10**4, description="passes of FedMGP's prompt fusion over the server's images (official: 5)"
        )
        mgp_surrogate_lr: float = Field(
            0.001875, **RATE, description="Adam learning rate of FedMGP's prompt fusion (official: 0.001875)"
        )

    query = True
    passes = 2  # one for each phase
    surrogate = "mgp_surrogate_per_class"
    check_foundation = staticmethod(check_class_token)

    @staticmethod
    def cut(config: Experiment) -> int | None:
        return 0

    def build(self, client: int) -> nn.Module:
        config, width, depth = self.config, self.foundation.width, self.foundation.depth
        if config.mgp_block + config.mgp_blocks > depth:
            raise LsclError(
                f"mgp_block = {config.mgp_block}, mgp_blocks = {config.mgp_blocks}: {config.foundation} has {depth} "
                f"blocks, so their sum can be at most {depth}"
            )
        return nn.ModuleDict(
            {
                "coarse": GlobalPrompt(config.mgp_length, width),
                "head": classifier(config, width, self.num_classes),
                "fine": LocalPrompts(
                    self.num_classes, config.mgp_block, config.mgp_blocks, config.mgp_local_length, width
                ),
                "local_head": nn.Linear(width, self.num_classes),
            }
        )

    # -- client
    def tokens(
        self, batch: Batch, prompt: Tensor, adapters: Mapping[int, Adapter] | None = None, keep: int | None = None
    ) -> Tensor:
        """The ViT's output tokens with the global prompt behind CLS.

        Args:
            batch: b images.
            prompt: (l, d).
            adapters: local prompts by block; None = none.
            keep: how many tokens, from the first on; None = all.

        Returns:
            (b, keep, d).
        """
        return self.foundation.suffix(insert_prompts(self.foundation, batch.prefix, prompt), adapters, keep)

    def readout(self, batch: Batch, prompt: Tensor, adapters: Mapping[int, Adapter] | None = None) -> Tensor:
        """Mean of the global prompt's output tokens.

        Args:
            batch: b images.
            prompt: (l, d).
            adapters: local prompts by block; None = none.

        Returns:
            (b, d).
        """
        return self.tokens(batch, prompt, adapters, 1 + len(prompt))[:, 1:].mean(1)

    def phases(self, client: Client, stage: Stage) -> list[Phase]:
        config, model = self.config, client.model
        coarse, fine = (
            [{"params": [p for name in names for p in model[name].parameters()], "lr": config.lr}]
            for names in (("coarse", "head"), ("fine", "local_head"))
        )
        return [
            Phase(coarse, self.coarse_loss, config.epochs, config.batch, clip=config.prompt_clip),
            Phase(fine, self.fine_loss, config.epochs, config.batch, clip=config.prompt_clip),
        ]

    def coarse_loss(self, client: Client, batch: Batch) -> Tensor:
        """Phase 1: CE(h_g(readout)) - mgp_key * mean cos(phi(x), key), phi(x) the frozen CLS feature.

        Args:
            client: the one that trains.
            batch: its images.

        Returns:
            ().
        """
        coarse = client.model["coarse"]
        logits = client.model["head"](self.readout(batch, coarse.prompt))
        pull = cosines(self.foundation.feature(batch.last_token), coarse.key[None]).mean()
        return masked_cross_entropy(logits, batch.labels, client.classes) - self.config.mgp_key * pull

    def fine_loss(self, client: Client, batch: Batch) -> Tensor:
        """Phase 2: CE(h_l(readout with the true class's local prompt)) - mgp_key * mean cos(q(x), key_y).

        The global prompt is frozen.

        Args:
            client: the one that trains.
            batch: its images.

        Returns:
            ().
        """
        prompt, fine = client.model["coarse"].prompt.detach(), client.model["fine"]
        logits = client.model["local_head"](self.readout(batch, prompt, fine(batch.labels)))
        pull = cosines(self.queries(client, batch), fine.keys[batch.labels]).mean()
        return masked_cross_entropy(logits, batch.labels, client.classes) - self.config.mgp_key * pull

    def queries(self, client: Client, batch: Batch) -> Tensor:
        """q(x), the readout without local prompts: fixed while phase 2 lasts, so it is computed once.

        Args:
            client: the one that trains.
            batch: b of its training images.

        Returns:
            (b, d).
        """
        if "queries" not in client.scratch:
            prompt = client.model["coarse"].prompt
            client.scratch["queries"] = map_batches(
                client.train, client.train_index, lambda batch: self.readout(batch, prompt)
            )
        rows = torch.searchsorted(client.train_index, batch.index)
        return client.scratch["queries"][send(rows, client.device)]

    def choose_slots(self, client: Client, query: Tensor) -> Tensor:
        """For each query the class with the nearest key, among those the client has met.

        Args:
            client: the one whose keys are compared.
            query: (b, d).

        Returns:
            (b,).
        """
        seen = torch.tensor(client.partition.seen_classes(client.id, client.task), dtype=torch.int64)
        scores = mask_logits(cosine_to_keys(query, client.model["fine"].keys), seen)
        return choose_keys(scores, 1, batchwise=False)[:, 0]

    def features_of(self, client: Client, batch: Batch) -> Tensor:
        """The readout with the local prompts of the nearest key."""
        prompt = client.model["coarse"].prompt
        slots = self.choose_slots(client, self.readout(batch, prompt))
        return self.readout(batch, prompt, client.model["fine"](slots))

    def head_logits(self, client: Client, features: Tensor) -> Tensor:
        return client.model["local_head"](features)

    def receive(self, client: Client, payload: Payload, stage: Stage) -> None:
        client.model["coarse"].load_state_dict(payload)
        client.scratch.pop("queries", None)

    def shared(self, model: nn.Module) -> dict[str, Tensor]:
        return dict(model["coarse"].state_dict())

    def upload(self, client: Client, stage: Stage) -> Payload:
        return self.shared(client.model)

    # -- server
    def upload_shapes(self, client: int, stage: Stage) -> Shapes:
        return {name: tuple(value.shape) for name, value in self.server.items()}

    def summed_names(self, stage: Stage) -> Collection[str]:
        """The key; each prompt has to pass through the frozen model by itself."""
        return {"key"}

    def aggregate(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        """Distil the clients' prompts into one; the key is the mean of theirs."""
        prompts = [payload["prompt"] for payload in uploads.values()]
        draw = torch_generator(self.config.seed, "surrogate", stage.task, stage.round)
        self.server["prompt"] = self.distil_prompts(prompts, draw)
        self.server["key"] = torch.stack([payload["key"] for payload in uploads.values()]).mean(0)

    def distil_prompts(self, prompts: list[Tensor], draw: torch.Generator) -> Tensor:
        """min_p sum_{j > 0} sum_x ||F(x; p) - F(x; p_j)||^2 over all output tokens, by Adam from client 0's prompt.

        The sum over the J teachers is J ||F(x; p) - mean_j F(x; p_j)||^2 and a constant, so the teachers run once, not
        in every epoch. One client alone has no teacher and keeps its prompt.

        Args:
            prompts: p_j of the clients, (l, d) each.
            draw: of the order of the server's images.

        Returns:
            p, (l, d).
        """
        config, images, teachers = self.config, self.server_images, len(prompts) - 1
        if teachers == 0:
            return prompts[0].clone()
        first, *others = (prompt.to(images.device) for prompt in prompts)
        every = torch.arange(len(images.images))
        target = sum(map_batches(images, every, lambda batch, p=p: self.tokens(batch, p)) for p in others) / teachers
        student = nn.Parameter(first.clone())
        optimiser = torch.optim.Adam([student], lr=config.mgp_surrogate_lr)
        for _ in range(config.mgp_surrogate_epochs):
            for index in torch.randperm(len(every), generator=draw).split(config.batch):  # (b,) each
                batch = images.batch(index)
                loss = teachers * (self.tokens(batch, student) - target[batch.place]).square().sum()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                self.optimised += len(index)
        return student.detach().cpu()
