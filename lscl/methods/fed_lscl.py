"""Fed-LSCL, read beside section 4 of the paper (arXiv 2508.09489).

4.2 collaboration:    `update` and `logits`   a small CNN looks at an image and writes a low-rank update for the frozen ViT
4.3 fine-tuning:      `consistency`, `end_task`   CNN and generator stay close to what they were on a few kept images
4.4 distillation:     `upload`, `aggregate`   the server fuses the generators, one personalised generator per client
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lscl.config import RATE, SCALE, WEIGHT, Experiment
from lscl.federation.averaging import average
from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs, OwnWork, Planned
from lscl.federation.limits import LIMIT, Check, gram_check
from lscl.federation.masking import masked_cross_entropy
from lscl.federation.method import IMAGES, Method, Phase, Stage
from lscl.federation.passes import map_batches
from lscl.federation.payload import Payload, Shapes
from lscl.methods.parts.buffer import index_sample, lowest_loss
from lscl.methods.parts.continual import diagonal_fisher, distillation, ewc_penalty, replay_cross_entropy
from lscl.methods.parts.fed_lscl_studies import SEARCH_SPACE, STUDIES
from lscl.methods.parts.lora import OneBlock, check_adapted_block
from lscl.methods.parts.o2d import o2d_exact, o2d_sgd, pack_triangle, second_moments, unpack_triangle
from lscl.models.cnn import small_cnn
from lscl.models.generator import Generator
from lscl.models.vit import LowRank
from lscl.registry import register
from lscl.seeding import seeded

FISHER_IMAGES = 64  # of a task, for EWC
LWF_TEMPERATURE = 2.0


class FedLSCLCosts(Costs):
    """The written update in every step, kept images beside those of a batch, O2D on the server."""

    def again(self) -> bool:
        """Whether kept images go through the CNN beside those of a batch."""
        return self.config.continual in ("consistency", "replay")

    def cnn_images(self) -> float:
        return 2 if self.again() else 1

    def passes(self) -> float:
        return 1 / self.config.rounds

    def step_flops(self, width: int) -> float:
        """The generator: forward, back to the features, and the gradient of its weights."""
        return (
            6.0 * 4 * self.config.rank * width * (self.config.features + 1)
            if self.config.collaboration == "written"
            else 0.0
        )

    def parameters(self, run: Planned) -> float:
        return 4 * self.config.rank * run.width * (self.config.features + 1) + run.classes * self.config.features

    def own_work(self, run: Planned) -> OwnWork:
        config, f = self.config, run.cnn.flops
        numbers, q = 4 * config.rank * run.width, config.features + 1
        again = run.later if self.again() else 0.0
        clients = run.trained * (self.step_flops(run.width) * (1 + again) + 3 * f * again)
        kept = (
            config.clients
            * config.buffer_per_class
            * config.classes_per_task
            * config.tasks_run
            * (config.tasks_run + 1)
            / 2
            * config.rounds
        )
        visits = {"exact": 2, "sgd": config.o2d_epochs * (config.clients - 1)}.get(config.o2d, 0)
        solve = q**3 / 3 if config.o2d == "exact" else 0
        return OwnWork(clients + kept * f, run.rounds * config.clients * (visits * 2.0 * numbers * q * q + solve))


@register
class FedLSCL(Method):
    """A CNN on each client writes a LoRA for the frozen ViT, per image; the server distils the writers into each other.

    Trained: CNN theta_k, generator phi_k (P x (m + 1), P = 4 r d), head h_k. Up: phi_k and either the features f of the kept
    images (n x m floats) or their Gram matrix ((m + 1)(m + 2) / 2 doubles). Down: phi_k, personalised. CNN, head and images stay.

    Payload in bytes, n kept images: up 4 P (m + 1) + 4 n m, or 4 P (m + 1) + 4 (m + 1)(m + 2) with o2d_upload = gram;
    down 4 P (m + 1).

    Each component can be replaced, as the paper promises: collaboration = written (paper), static (one LoRA for all images, which
    is a generator of m = 0 features), cnn (no ViT, nothing travels); continual = consistency (Eq. 4), ewc, lwf, replay, none;
    o2d = exact, sgd, average (FedAvg of the generators, up 4 P (m + 1) + 8), none (nothing travels).

    Choices where the paper is silent, beside those in the config table:
    1. an upload in task t also has the lowest-loss images of task t so far: otherwise nothing could be distilled in task 1.
    2. Eq. 4 compares with the CNN and generator at the end of the previous task, after the last server step.
    3. teachers are the generators as uploaded, not the already distilled ones, so the order of clients does not matter.
    """

    name, label, paper_name, citation, role = "fed_lscl", "Fed-LSCL", "Fed-LSCL", "2508.09489", "own"
    place, turn, quick = 0, 8, ("demo", "colab")
    rows = ({}, {"o2d": "sgd"})  # O2D as we solve it, and by gradient steps as in the paper
    tuned = {"lr_generator_bias": 1e-4, "lr_generator": 1e-6, "o2d_lambda": 10.0, "auxiliary": 0.0}
    search_space = SEARCH_SPACE
    notes = {
        "o2d": {"exact": "O2D exact", "sgd": "O2D gradient", "average": "generators averaged", "none": "nothing fused"}
    }
    studies = STUDIES
    costs = FedLSCLCosts

    cnn = True  # beside the ViT
    check_foundation = staticmethod(check_adapted_block)

    class Parameters(OneBlock):
        """See `lscl.registry.Parameters`."""

        profile_values: ClassVar = {
            "smoke": {"buffer_per_class": 2},
            **{profile: {"lr_generator": 1e-5, "lr_generator_bias": 3e-3} for profile in ("demo", "mini")},
            **{profile: {"feature_norm": False} for profile in ("colab", "paper")},
        }
        feature_norm: bool = Field(True, description="layer-normalise f before the generator")
        lr_cnn: float = Field(1e-3, **RATE, description="Adam learning rate of the CNN")
        lr_generator: float = Field(
            1e-3, **RATE, description="Adam learning rate of the generator's weights, the per-image part"
        )
        lr_generator_bias: float = Field(
            1e-3, **RATE, description="Adam learning rate of the generator's bias, which is a static LoRA"
        )
        generator_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on f before the generator, in training")
        auxiliary: float = Field(
            0.0, **WEIGHT, description="weight of the CNN's own cross-entropy (0 = the paper's loss)"
        )
        collaboration: Literal["written", "static", "cnn"] = Field(
            "written", description="a LoRA written per image (paper), one static LoRA, or the CNN alone without the ViT"
        )
        continual: Literal["consistency", "ewc", "lwf", "replay", "none"] = Field(
            "consistency",
            description="what keeps CNN and generator from forgetting: Eq. 4 (paper), or a method in its place",
        )
        ewc_weight: float = Field(100.0, **WEIGHT, description="weight of the penalty, continual = ewc only")
        lwf_weight: float = Field(1.0, **WEIGHT, description="weight of the distillation, continual = lwf only")
        replay_weight: float = Field(
            1.0, **WEIGHT, description="weight of the kept images' cross-entropy, continual = replay only"
        )
        alpha: float = Field(1.0, **WEIGHT, description="weight of the feature term of Eq. 4")
        beta: float = Field(1.0, **WEIGHT, description="weight of the generator term of Eq. 4")
        consistency: Literal["relative", "mean", "sum"] = Field(
            "relative", description="scale of Eq. 4: relative, mean- or sum-squared error"
        )
        buffer_per_class: int = Field(20, ge=0, le=10**6, description="lowest-loss images kept per class (paper: 20)")
        o2d: Literal["exact", "sgd", "average", "none"] = Field(
            "exact",
            description="One-by-One Distillation: closed form (ours), gradient steps (paper); or FedAvg of the generators, or nothing",
        )
        o2d_lambda: float = Field(
            1.0, **SCALE, description="pull to the own generator, in mean eigenvalues of the teachers' second moments"
        )
        o2d_epochs: int = Field(5, ge=1, le=10**4, description="passes over the teachers, o2d = sgd only")
        o2d_lr: float = Field(1e-3, **RATE, description="Adam learning rate, o2d = sgd only")
        o2d_upload: Literal["features", "gram"] = Field(
            "features", description="what goes up beside the generator: f of the buffer, or its Gram matrix"
        )

    @classmethod
    def trains_cnn(cls, config: Experiment) -> bool:
        return config.collaboration != "static"

    @staticmethod
    def cut(config: Experiment) -> int | None:
        return config.block

    @property
    def m(self) -> int:
        """Features that the generator reads."""
        return 0 if self.config.collaboration == "static" else self.config.features

    @property
    def travels(self) -> bool:
        """Whether there is a generator to share and somebody to share it with."""
        return self.config.collaboration != "cnn" and self.config.o2d != "none"

    def build(self, client: int) -> nn.Module:
        config, width = self.config, self.foundation.width
        if config.collaboration == "cnn":
            with seeded(config.seed, "model", client):
                return nn.ModuleDict(
                    {"cnn": small_cnn(config, client), "head": nn.Linear(config.features, self.num_classes)}
                )
        generator = Generator(
            self.m, width, config.rank, config.lora_alpha / config.rank
        )  # first: the same on all clients
        with seeded(config.seed, "model", client):
            if config.collaboration == "static":
                return nn.ModuleDict({"generator": generator, "head": nn.Linear(width, self.num_classes)})
            cnn, head = small_cnn(config, client), nn.Linear(width, self.num_classes)
            auxiliary = nn.Linear(config.features, self.num_classes)  # only used if config.auxiliary > 0
        return nn.ModuleDict({"cnn": cnn, "generator": generator, "head": head, "auxiliary": auxiliary})

    # ---- 4.2 large-small collaborative training

    def update(self, client: Client, f: Tensor) -> LowRank:
        """Eq. 2: f (b, m) -> A: (b, r, d), B: (b, 3d, r)."""
        generator = client.model["generator"]
        return generator.split(generator(F.dropout(f, self.config.generator_dropout, client.model.training)))

    def cnn_features(self, client: Client, batch: Batch) -> Tensor:
        """f = theta(x): (b, m)."""
        return (
            client.model["cnn"](batch.images)
            if "cnn" in client.model
            else torch.empty(len(batch.index), 0, device=client.device)
        )

    def collaborate(self, client: Client, batch: Batch) -> tuple[Tensor, Tensor]:
        """f: (b, m) and the logits h(F_omega(x)): (b, C)."""
        f = self.cnn_features(client, batch)
        if "generator" not in client.model:
            return f, client.model["head"](f)
        return f, client.model["head"](self.foundation.suffix(batch.prefix, self.update(client, f)))

    def logits(self, client: Client, batch: Batch) -> Tensor:
        return self.collaborate(client, batch)[1]

    def phases(self, client: Client, stage: Stage) -> list[Phase]:
        config, model = self.config, client.model
        groups = [{"params": model["head"].parameters(), "lr": config.lr}]
        if "cnn" in model:
            parts = [model[name] for name in ("cnn", "auxiliary") if name in model]
            groups.append({"params": [p for part in parts for p in part.parameters()], "lr": config.lr_cnn})
        if "generator" in model:
            groups.append({"params": [model["generator"].weight], "lr": config.lr_generator})
            groups.append({"params": [model["generator"].bias], "lr": config.lr_generator_bias})
        return [Phase(groups, self.loss, config.epochs, config.batch)]

    def loss(self, client: Client, batch: Batch) -> Tensor:
        """Eq. 3 plus, from the second task on, Eq. 4 or what stands in for it."""
        f, logits = self.collaborate(client, batch)
        losses = masked_cross_entropy(logits, batch.labels, client.classes, reduction="none")
        client.scratch["losses"][batch.index] = losses.detach().cpu()
        total = losses.mean()
        if self.config.auxiliary > 0 and "auxiliary" in client.model:
            total = total + self.config.auxiliary * masked_cross_entropy(
                client.model["auxiliary"](f), batch.labels, client.classes
            )
        if client.task > 0:
            total = total + self.continual_loss(client, batch, logits)
        return total

    # ---- 4.3 small-model continual fine-tuning

    def continual_loss(self, client: Client, batch: Batch, logits: Tensor) -> Tensor:
        """The term against forgetting: Eq. 4 or the method that replaces it."""
        config, state, nothing = self.config, client.state, torch.zeros((), device=logits.device)
        if config.continual == "consistency":
            return self.consistency(client, len(batch.index)) if "previous.features" in state else nothing
        if config.continual == "ewc":
            fisher, before = (
                {name: state[f"{kind}.{name}"].to(logits.device) for name in self.small(client)}
                for kind in ("fisher", "before")
            )
            return config.ewc_weight * ewc_penalty(self.small(client), fisher, before)
        if config.continual == "lwf":
            rows = torch.searchsorted(client.train_index, batch.index)  # index lists are in ascending order
            old = torch.tensor(client.partition.seen_classes(client.id, client.task - 1))
            return config.lwf_weight * distillation(
                logits, state["previous.logits"][rows].to(logits.device), old, LWF_TEMPERATURE
            )
        if config.continual == "replay" and len(state["buffer"]) > 0:
            kept = client.train.batch(state["buffer"][self.sample_buffer(client, len(batch.index))])
            self.optimised += len(kept.index)
            seen = torch.tensor(client.partition.seen_classes(client.id, client.task))
            return config.replay_weight * replay_cross_entropy(self.logits(client, kept), kept.labels, seen)
        return nothing

    def small(self, client: Client) -> dict[str, nn.Parameter]:
        """What SM-CF protects: the parameters of CNN and generator, by name."""
        return {name: p for name, p in client.model.named_parameters() if name.startswith(("cnn.", "generator."))}

    def start_task(self, client: Client) -> None:
        """For LwF, what the model at the end of the previous task says about the new images."""
        if self.config.continual == "lwf" and client.task > 0:
            client.model.eval()
            client.state["previous.logits"] = map_batches(
                client.train, client.train_index, lambda batch: self.logits(client, batch)
            ).cpu()

    def sample_buffer(self, client: Client, size: int) -> Tensor:
        """Rows of the buffer, `size` of them drawn with replacement, or as many as it has."""
        kept = len(client.state["buffer"])
        return torch.randint(kept, (min(size, kept),), generator=client.scratch["replay"])

    def consistency(self, client: Client, size: int) -> Tensor:
        """Eq. 4 on `size` images drawn from the buffer.

        The previous CNN's features of the kept images never change, so they are stored instead of the previous CNN.
        """
        state, model = client.state, client.model
        chosen = self.sample_buffer(client, size)
        self.optimised += len(chosen)
        f = self.cnn_features(client, client.train.batch(state["buffer"][chosen]))
        before = state["previous.features"][chosen].to(f.device)
        term = self.config.alpha * self.distance(f, before)
        if "generator" in model:
            omega_before = F.linear(before, state["previous.weight"].to(f.device), state["previous.bias"].to(f.device))
            term = term + self.config.beta * self.distance(model["generator"](f), omega_before)
        return term

    def distance(self, ours: Tensor, teacher: Tensor) -> Tensor:
        """Mean over the rows of ||ours - teacher||^2, divided by ||teacher||^2 (relative), by the length (mean), or not (sum)."""
        gap = (ours - teacher).square().sum(1)
        if self.config.consistency == "relative":
            gap = gap / (teacher.square().sum(1) + 1e-8)
        elif self.config.consistency == "mean":
            gap = gap / max(1, ours.shape[1])
        return gap.mean()

    def end_task(self, client: Client) -> None:
        """Keep the lowest-loss images of the task, then remember what CNN and generator do, as the term against forgetting needs."""
        loss = lambda batch: masked_cross_entropy(
            self.logits(client, batch), batch.labels, client.classes, reduction="none"
        )
        client.scratch["losses"][client.train_index] = map_batches(client.train, client.train_index, loss).cpu()
        client.state["buffer"] = self.update_buffer(client)
        if self.config.continual == "consistency" and len(client.state["buffer"]) > 0:
            client.state["previous.features"] = self.features(client, client.state["buffer"])
            for name, value in client.model["generator"].state_dict().items() if "generator" in client.model else ():
                client.state[f"previous.{name}"] = value.detach().cpu().clone()
        if self.config.continual == "ewc":
            self.remember_weights(client)

    def remember_weights(self, client: Client) -> None:
        """Add the task's Fisher information to that of the tasks before, and keep the weights as they are."""
        chosen = index_sample(client.train_index, FISHER_IMAGES, client.rng("fisher"))
        parameters = self.small(client)

        def log_likelihood(i: int) -> Tensor:
            batch = client.train.batch(chosen[i : i + 1])
            return -masked_cross_entropy(self.logits(client, batch), batch.labels, client.classes)

        fisher = diagonal_fisher(parameters, log_likelihood, len(chosen))
        for name, value in parameters.items():
            client.state[f"fisher.{name}"] = client.state.get(f"fisher.{name}", 0) + fisher[name].cpu()
            client.state[f"before.{name}"] = value.detach().cpu().clone()

    def update_buffer(self, client: Client) -> Tensor:
        """Positions of the buffer's images and, behind them, of the lowest-loss images of the task at hand."""
        index = client.train_index
        new = lowest_loss(
            index, client.train.batch(index).labels.cpu(), client.scratch["losses"][index], self.config.buffer_per_class
        )
        return torch.cat([client.state.get("buffer", new[:0]), new])

    def features(self, client: Client, index: Tensor) -> Tensor:
        """f of the images at `index`, CNN in evaluation mode: (n, m) on the CPU."""
        client.model.eval()
        return map_batches(client.train, index, lambda batch: self.cnn_features(client, batch)).cpu()

    # ---- 4.4 One-by-One Distillation

    def shared(self, model: nn.Module) -> dict[str, Tensor]:
        return dict(model["generator"].state_dict()) if self.travels else {}

    def initial_server(self) -> dict[str, Tensor]:
        common = super().initial_server()
        return {f"{k}.{name}": value.clone() for k in range(self.config.clients) for name, value in common.items()}

    def broadcast(self, client: int, stage: Stage) -> Payload:
        return {name: self.server[f"{client}.{name}"] for name in ("weight", "bias")} if self.travels else {}

    def receive(self, client: Client, payload: Payload, stage: Stage) -> None:
        if payload:
            client.model["generator"].load_state_dict(payload)
        client.scratch["replay"] = client.rng("replay")
        client.scratch["losses"] = torch.zeros(len(client.train.images))  # by position; filled while training

    def upload_shapes(self, client: int, stage: Stage) -> Shapes:
        if not self.travels:
            return {}
        shapes, q = {name: tuple(value.shape) for name, value in self.broadcast(client, stage).items()}, self.m + 1
        if self.config.o2d == "average":
            return {IMAGES: (), **shapes}
        if self.config.o2d_upload == "gram":
            return {**shapes, "gram": (q * (q + 1) // 2,)}
        kept = np.minimum(self.census.train[client, : stage.task + 1], self.config.buffer_per_class).sum()
        return {**shapes, "features": (int(kept), self.m)}

    def checks(self, client: int, stage: Stage) -> dict[str, Check]:
        found = super().checks(client, stage)
        return {**found, "gram": gram_check(unpack_triangle, LIMIT**2)} if "gram" in found else found

    def rate(self, name: str) -> float:
        return {"weight": self.config.lr_generator, "bias": self.config.lr_generator_bias}[name]

    def dtype(self, name: str) -> torch.dtype:
        return torch.float64 if name == "gram" else super().dtype(name)

    def upload(self, client: Client, stage: Stage) -> Payload:
        if not self.travels:
            return {}
        if self.config.o2d == "average":
            return super().upload(client, stage)
        f = self.features(client, self.update_buffer(client))
        extra = {"gram": pack_triangle(second_moments(f))} if self.config.o2d_upload == "gram" else {"features": f}
        return {**self.shared(client.model), **extra}

    def aggregate(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        """Eq. 5 for every client, or what stands in for it."""
        if not self.travels:
            return
        if self.config.o2d == "average":
            states = {k: {name: payload[name] for name in ("weight", "bias")} for k, payload in uploads.items()}
            mean = average(states, {k: float(payload[IMAGES]) for k, payload in uploads.items()})
            self.server = {f"{k}.{name}": mean[name].clone() for k in range(self.config.clients) for name in mean}
            return
        weights = [torch.cat([payload["weight"], payload["bias"][:, None]], dim=1) for payload in uploads.values()]
        moments = [
            unpack_triangle(p["gram"]) if "gram" in p else second_moments(p["features"]) for p in uploads.values()
        ]
        config = self.config
        if config.o2d == "exact":
            merged = o2d_exact(weights, moments, config.o2d_lambda)
        else:
            merged = o2d_sgd(weights, moments, config.o2d_lambda, config.o2d_lr, config.o2d_epochs)
        for k, weight in zip(uploads, merged):
            self.server[f"{k}.weight"], self.server[f"{k}.bias"] = (
                weight[:, :-1].contiguous(),
                weight[:, -1].contiguous(),
            )
