"""LoRM: one LoRA factor per round, so that the merge that best keeps every client's layer outputs has a closed form."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from lscl.config import Experiment
from lscl.errors import LsclError
from lscl.federation.averaging import average, average_rows
from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs, Planned
from lscl.federation.limits import LIMIT, Check, gram_check, range_check
from lscl.federation.method import HOLDS, IMAGES, HeadMerge, Method, Phase, Stage
from lscl.federation.passes import map_batches
from lscl.federation.payload import Payload, Shapes
from lscl.federation.search_space import LogRange, OneOf, Range
from lscl.federation.sketch import CLASS, FROZEN_VIT, HEAD, IMAGE, Part, Sketch
from lscl.methods.parts.gram import (
    InputSquares,
    damp_off_diagonal,
    gram_matrix,
    merge_inner_factors,
    merge_layers,
    merge_outer_factors,
    merge_tasks,
)
from lscl.methods.parts.lora import StaticLoRA
from lscl.methods.parts.o2d import pack_triangle, unpack_triangle
from lscl.models.vit import Adapter, FrozenViT, LowRank, plain_mlps
from lscl.registry import register
from lscl.seeding import seeded

GRAM = "gram"  # name of the exchange after the last round of a task, and of the Gram matrices in a payload
LAYERS = ("qkv", "proj", "fc1", "fc2")  # the linear layers of a block


def factor_of(number: int) -> str:
    """The LoRA factor that moves in round `number` of a task: B, A, B, ..."""
    return "BA"[number % 2]


class LoRMCosts(Costs):
    """A LoRA on every linear layer; a pass for the Gram matrices of each round, and one more at the end of a task."""

    every_input = True

    def passes(self) -> float:
        return 1 + 1 / self.config.rounds

    def parameters(self, run: Planned) -> float:
        return run.depth * self.config.lorm_rank * (8 * run.width + 2 * 4 * run.width)


@register
class LoRM(Method):
    r"""Every linear layer of the ViT gets a LoRA, and in each round the clients train only one of its two factors. The
    server merges the trained factors so that each merged layer gives nearly the outputs that the clients' layers
    gave. That merge has a closed form, for which a client sends only sums of squares of its layer inputs, never the
    inputs.

    A layer with input $x$ computes $(W_0 + BA)\,x$. Rounds alternate: all clients share the fixed factor and train
    the other one. Let $X_k$ be the inputs of the layer on client $k$, one row per token. The merged layer minimises

    $$\min_W \sum_k \lVert (W - W_k)\,X_k^\top \rVert_F^2 \quad\Rightarrow\quad
    W = \Big(\sum_k W_k G_k\Big)\Big(\sum_k G_k\Big)^{+}, \qquad G_k = X_k^\top X_k .$$

    So a client counts for more in the directions where its inputs are large. In a round that trains $B$ this gives
    $B = (\sum_k B_k M_k)(\sum_k M_k)^{+}$ with $M_k = A\,G_k A^\top$, and in a round that trains $A$ it gives
    $A = (\sum_k A_k G_k)(\sum_k G_k)^{+}$. Of the $G_k$ of the layers only the diagonal is used.

    The same formula merges the tasks: after task $t$ a layer has the update
    $\big(\sum_{s \le t} B_s A_s G_s\big)\big(\sum_{s \le t} G_s\big)^{+}$, with the Gram matrices $G_s$ summed over
    clients.

    - Source: Salami et al. 2025 (arXiv 2410.17961).
    - Trained: one factor of each LoRA (rank $r$) and the head.
    - Up: both; the diagonal of the Gram matrix of each layer's inputs, over all tokens; the head's Gram matrix (upper
      triangle); the number of images. After the last round of a task the diagonals under the merged model.
    - Down: the factor merged last and the head. For the test the diagonals summed over the clients.
    - Stays on the client: the factors and the summed diagonals of each finished task.
    - Payload: with $L$ blocks, hidden width $h$, $n_{\mathrm{in}} = L(3d + h)$, $n_{\mathrm{out}} = L(5d + h)$,
      $H = dC + C$ numbers in the head and $n_{\mathrm{gram}} = n_{\mathrm{in}} + d(d+1)/2$, all in bytes:
      - up in a round that trains $B$: $4(r\,n_{\mathrm{out}} + H + n_{\mathrm{gram}}) + 8$
      - up in a round that trains $A$: $4(r\,n_{\mathrm{in}} + H + n_{\mathrm{gram}}) + 8$
      - up after the last round: $4\,n_{\mathrm{in}}$
      - down in round 0: $4H$; for the test: $4\,n_{\mathrm{in}}$
      - down in other rounds: $4(r\,n_{\mathrm{out}} + H)$ or $4(r\,n_{\mathrm{in}} + H)$, by the factor of the round
        before
      - with `head_merge = holders` another $C$ bytes go up in a round

    Differences from the official code:
    1. Diagonals and the upper triangle for the head travel, not whole Gram matrices and not the state of the whole
       ViT. The server damps the head's Gram matrix off its diagonal (`lorm_alpha`) where it uses it.
    2. The merge over tasks is not stored as matrices of the layers' size. The $G_s$ are diagonal, so every client
       forms the merge from the factors it has and the diagonals it receives (`lscl.methods.parts.gram.merge_tasks`).
    3. All Gram matrices are taken under $W_0 + BA$ of the task at hand, also after the first task: those of a round
       under the weights that the client trained, those at the end of a task under the merged ones. The official code
       takes both under $W_0$ plus the mean of the updates of all tasks so far, and with training augmentation.
    4. An input that was zero everywhere gets the plain mean of $A$, not the zero of the pseudo-inverse. It has no
       effect either way.
    5. Clients have their own classes, so perhaps only one client trains a head row. `head_merge = plain` (default)
       regresses over all clients, as in the official code; `holders` sums only over the clients whose task has the
       class.
    6. The frozen factor needs no gradient, and no weights are copied in a step (official: the whole ViT is).
    7. Scores are taken at the end of a task, where the merge applies. The official code reports scores within a task
       with the mean of the task updates; they are not needed here.
    8. There is no augmentation in training (official: random crops and mirroring). The input of the first block is
       computed once. Adam replaces AdamW, which is the same without weight decay.
    9. There are 5 clients (official: 10). `demo`, `mini` and `full` are smaller: 5 rounds of at most 2 local epochs (5
       of 5).
    """

    name, label, paper_name, citation = "lorm", "LoRM", "LoRM", "2410.17961"
    place, turn = 11, 10
    tuned = {"lr": 0.0053, "lorm_rank": 2, "lorm_alpha": 0.34}
    official = {"lr": 3e-3}
    search_space = {
        "lr": LogRange(3e-5, 3e-1),
        "lorm_rank": OneOf((1, 2, 4, 8, 16, 32)),
        "lorm_alpha": Range(0, 1),
    }
    costs = LoRMCosts
    sketch = Sketch(
        row=(IMAGE, FROZEN_VIT, HEAD, CLASS),
        helpers=(None, Part("LoRA on every layer", "trained")),
        up="one LoRA factor and the head, sums of squares of the layers' inputs",
        server="merge the factors by regression, so that layer outputs change least",
        down="the merged factor and head",
        stays="the merged LoRAs of earlier tasks",
    )

    class Parameters(HeadMerge):
        """See `lscl.registry.Parameters`."""

        lorm_rank: int = Field(
            1,
            ge=1,
            le=1024,
            description="rank of LoRM's LoRA in every linear layer (official: 1, 2, 16 or 32 by data set)",
        )
        lorm_alpha: float = Field(
            0.5, ge=0, le=1, description="factor off the diagonal of the head's Gram matrix in LoRM (official: 0.5)"
        )

    head_rows = ("head.weight", "head.bias")

    @staticmethod
    def cut(config: Experiment) -> int | None:
        return 0

    @staticmethod
    def check_foundation(config: Experiment, foundation: FrozenViT) -> None:
        if not plain_mlps(foundation.vit):
            kind = type(foundation.vit.blocks[0].mlp).__name__
            raise LsclError(
                f"foundation = {config.foundation!r}: its blocks have a {kind}, and lorm updates an MLP of two linear "
                "layers"
            )

    def build(self, client: int) -> nn.Module:
        loras = [nn.ModuleDict(self.new_loras(block)) for block in range(self.foundation.depth)]
        return nn.ModuleDict({"lora": nn.ModuleList(loras), "head": nn.Linear(self.foundation.width, self.num_classes)})

    def new_loras(self, block: int, task: int = 0) -> dict[str, StaticLoRA]:
        """The LoRAs of a block at the start of a task, the same everywhere: A drawn, B zero.

        Args:
            block: its number, 0-based.
            task: likewise.

        Returns:
            By the names of the layers.
        """
        with seeded(self.config.seed, "lorm", block, task):
            one = self.foundation.vit.blocks[block]
            layers = dict(zip(LAYERS, (one.attn.qkv, one.attn.proj, one.mlp.fc1, one.mlp.fc2), strict=True))
            return {
                name: StaticLoRA(layer.in_features, layer.out_features, self.config.lorm_rank, 1.0)
                for name, layer in layers.items()
            }

    def new_factors(self, task: int) -> dict[str, Tensor]:
        """All factors at the start of a task, by name."""
        loras = nn.ModuleList([nn.ModuleDict(self.new_loras(block, task)) for block in range(self.foundation.depth)])
        return {f"lora.{name}": value for name, value in loras.state_dict().items()}

    def layer_names(self) -> list[str]:
        """The names of the adapted layers: "block.layer"."""
        return [f"{block}.{name}" for block in range(self.foundation.depth) for name in LAYERS]

    def stages(self, task: int) -> list[Stage]:
        return [*super().stages(task), Stage(task, self.config.rounds, GRAM)]

    # -- client
    def start_task(self, client: Client) -> None:
        client.model.load_state_dict(self.new_factors(client.task), strict=False)

    def receive(self, client: Client, payload: Payload, stage: Stage) -> None:
        client.scratch.pop("merged", None)
        if stage.name == "finish":
            self.store_task(client, payload)
        else:
            client.model.load_state_dict(payload, strict=False)

    def prepare_test(self, client: Client) -> None:
        """Merge the tasks that are stored by now."""
        client.scratch["merged"] = self.merge_stored_tasks(client)

    def adapters(self, client: Client) -> dict[int, Adapter]:
        """W_0 + B A in every linear layer: a task starts from W_0."""
        return {
            block: Adapter(**{name: lora() for name, lora in loras.items()})
            for block, loras in enumerate(client.model["lora"])
        }

    def features_of(self, client: Client, batch: Batch) -> Tensor:
        """In a round under W_0 + B A, at the test after a task under W_0 + Q S^+."""
        adapters = client.scratch.get("merged") or self.adapters(client)
        return self.foundation.suffix(batch.prefix, adapters)

    def head_logits(self, client: Client, features: Tensor) -> Tensor:
        return client.model["head"](features)

    def phases(self, client: Client, stage: Stage) -> list[Phase]:
        """One factor and the head; the other factor gets no gradient."""
        if stage.name == GRAM:
            return []
        config, moving = self.config, factor_of(stage.round)
        for name, parameter in client.model["lora"].named_parameters():
            parameter.requires_grad_(name.endswith(moving))
        trained = [parameter for parameter in client.model.parameters() if parameter.requires_grad]
        return [Phase([{"params": trained, "lr": config.lr}], self.loss, config.epochs, config.batch)]

    def gram_matrices(self, client: Client) -> tuple[dict[str, Tensor], Tensor]:
        """The diagonal Gram (in,) of each layer's inputs and the Gram (d, d) of the head's, in float64."""
        sums = {}

        def recorded(block: int, adapter: Adapter) -> Adapter:
            parts = {}
            for name in LAYERS:
                addition = getattr(adapter, name)
                sums[f"{block}.{name}"] = torch.zeros(addition.A.shape[1], dtype=torch.float64, device=client.device)
                parts[name] = InputSquares(addition, sums[f"{block}.{name}"])
            return replace(adapter, **parts)

        adapters = {block: recorded(block, adapter) for block, adapter in self.adapters(client).items()}
        feature = lambda batch: self.foundation.pooled(self.foundation.suffix(batch.prefix, adapters, keep=None))
        features = map_batches(client.train, client.train_index, feature)
        return sums, gram_matrix(features)

    def upload(self, client: Client, stage: Stage) -> Payload:
        diagonals, moments = self.gram_matrices(client)
        diagonals = {f"{GRAM}.{name}": value.float() for name, value in diagonals.items()}
        if stage.name == GRAM:
            return diagonals
        allowed = {IMAGES, HOLDS, *self.sent_names(stage.round)}
        moved = {name: value for name, value in super().upload(client, stage).items() if name in allowed}
        return {**moved, **diagonals, f"{GRAM}.head": pack_triangle(moments).float()}

    def store_task(self, client: Client, payload: Payload) -> None:
        """Store the task that ends, after those before.

        Args:
            client: with the factors merged last.
            payload: the diagonals summed over the clients.
        """
        state = client.model.state_dict()
        new = {name: state[name] for name in state if name.startswith("lora.")} | payload
        for name, value in new.items():
            earlier = list(client.state.get(name, ()))[: client.task]
            client.state[name] = torch.stack([*earlier, value.cpu()])

    def merge_stored_tasks(self, client: Client) -> dict[int, Adapter]:
        """Q S^+ of every layer, from what is stored of the finished tasks."""
        made = {}
        for layer in self.layer_names():
            factors = (
                client.state[f"lora.{layer}.A"],
                client.state[f"lora.{layer}.B"],
                client.state[f"{GRAM}.{layer}"],
            )
            A, B = merge_tasks(*factors)
            made[layer] = LowRank(A.float().to(client.device), B.float().to(client.device), 1.0)
        return {
            block: Adapter(**{name: made[f"{block}.{name}"] for name in LAYERS})
            for block in range(self.foundation.depth)
        }

    # -- server
    def sent_names(self, number: int) -> list[str]:
        """The names of what moves in a round: one factor of every LoRA, and the head."""
        return [*(f"lora.{layer}.{factor_of(number)}" for layer in self.layer_names()), *self.head_rows]

    def broadcast(self, client: int, stage: Stage) -> Payload:
        if stage.name == "finish":
            names = [f"{GRAM}.{layer}" for layer in self.layer_names()]
        else:
            names = self.sent_names(stage.round - 1) if stage.round > 0 else list(self.head_rows)
        return {name: self.server[name] for name in names}

    def upload_shapes(self, client: int, stage: Stage) -> Shapes:
        diagonals = {f"{GRAM}.{layer}": (self.server[f"lora.{layer}.A"].shape[1],) for layer in self.layer_names()}
        if stage.name == GRAM:
            return diagonals
        d = self.foundation.width
        about = {IMAGES: (), HOLDS: (self.num_classes,)} if self.by_holders else {IMAGES: ()}
        moved = {name: tuple(self.server[name].shape) for name in self.sent_names(stage.round)}
        return {**about, **moved, **diagonals, f"{GRAM}.head": (d * (d + 1) // 2,)}

    def training_start(self, client: int, stage: Stage) -> Payload:
        return {name: self.server[name] for name in self.sent_names(stage.round)} if stage.name != GRAM else {}

    def checks(self, client: int, stage: Stage) -> dict[str, Check]:
        """Sums of squares are at most those of numbers at the limit, over all images and tokens."""
        images = self.census.images(client, stage.task)
        squares = range_check(0, images * self.foundation.tokens * LIMIT**2)
        found = {**super().checks(client, stage), **{f"{GRAM}.{layer}": squares for layer in self.layer_names()}}
        return (
            found if stage.name == GRAM else {**found, f"{GRAM}.head": gram_check(unpack_triangle, images * LIMIT**2)}
        )

    def summed_names(self, stage: Stage) -> Collection[str]:
        """The diagonals after the last round; before it, factors are multiplied with their own client's."""
        return set(self.upload_shapes(0, stage)) if stage.name == GRAM else {IMAGES, HOLDS, "head.bias"}

    def aggregate(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        """Merge the factor that moved and the head; after the last round, sum the diagonals."""
        for layer in self.layer_names():
            diagonals = [payload[f"{GRAM}.{layer}"].double() for payload in uploads.values()]
            if stage.name == GRAM:
                self.server[f"{GRAM}.{layer}"] = sum(diagonals).float()
                continue
            name = f"lora.{layer}.{factor_of(stage.round)}"
            factors = [payload[name] for payload in uploads.values()]
            if factor_of(stage.round) == "B":
                merged = merge_outer_factors(factors, self.server[f"lora.{layer}.A"], diagonals)
            else:
                merged = merge_inner_factors(factors, diagonals)
            self.server[name] = merged.float()
        if stage.name != GRAM:
            self.server.update(self.merge_head(uploads))

    def merge_head(self, uploads: Mapping[int, Payload]) -> dict[str, Tensor]:
        """The head: its weight by regression on the features, its bias averaged by the number of images.

        With head_merge = holders, rows with the same holders are merged together, over these clients only.
        """
        moments = {
            k: damp_off_diagonal(unpack_triangle(payload[f"{GRAM}.head"].double()), self.config.lorm_alpha)
            for k, payload in uploads.items()
        }
        weights, biases = ({k: payload[name] for k, payload in uploads.items()} for name in self.head_rows)
        images = {k: float(payload[IMAGES]) for k, payload in uploads.items()}
        if not self.by_holders:
            bias = average({k: {"bias": value} for k, value in biases.items()}, images)["bias"]
            return {
                "head.weight": merge_layers(list(weights.values()), list(moments.values())).float(),
                "head.bias": bias,
            }
        holds = {k: payload[HOLDS] for k, payload in uploads.items()}
        merged = self.server["head.weight"].clone()
        groups, group = torch.stack(list(holds.values())).unique(dim=1, return_inverse=True)
        for number, column in enumerate(groups.T):
            holders = [k for k, holding in zip(uploads, column, strict=True) if holding]
            rows = group == number
            if holders:
                merged[rows] = merge_layers([weights[k][rows] for k in holders], [moments[k] for k in holders]).float()
        return {"head.weight": merged, "head.bias": average_rows(self.server["head.bias"], biases, holds, images)}

    def server_end_task(self, task: int) -> None:
        """B = 0 and a new A, as on the clients."""
        self.server.update(self.new_factors(task + 1))
