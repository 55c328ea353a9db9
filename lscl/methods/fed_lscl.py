"""Fed-LSCL, read beside section 4 of the paper (arXiv 2508.09489).

4.2 collaboration:    `update` and `logits`   a small CNN looks at an image and writes a low-rank update for the frozen ViT
4.3 fine-tuning:      `consistency`, `end_task`   CNN and generator stay close to what they were on a few kept images
4.4 distillation:     `upload`, `aggregate`   the server fuses the generators, one personalised generator per client
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lscl.config import Experiment
from lscl.federation.averaging import average
from lscl.federation.client import Batch, Client
from lscl.federation.limits import LIMIT, Check, gram
from lscl.federation.masking import masked_cross_entropy
from lscl.federation.method import IMAGES, Method, Phase, Stage
from lscl.federation.payload import Payload, Shapes
from lscl.methods.parts.buffer import index_sample, lowest_loss
from lscl.methods.parts.continual import diagonal_fisher, distillation, ewc_penalty, replay_cross_entropy
from lscl.methods.parts.o2d import o2d_exact, o2d_sgd, pack, second_moments, unpack
from lscl.methods.parts.passes import over
from lscl.models.cnn import small_cnn
from lscl.models.generator import Generator
from lscl.models.vit import LowRank
from lscl.seeding import seeded

FISHER_IMAGES = 64  # of a task, for EWC
LWF_TEMPERATURE = 2.0


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
                return nn.ModuleDict({"cnn": small_cnn(config, client), "head": nn.Linear(config.features, self.num_classes)})
        generator = Generator(self.m, width, config.rank, config.lora_alpha / config.rank)  # first: the same on all clients
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

    def look(self, client: Client, batch: Batch) -> Tensor:
        """f = theta(x): (b, m)."""
        return client.model["cnn"](batch.images) if "cnn" in client.model else torch.empty(len(batch.index), 0, device=client.device)

    def collaborate(self, client: Client, batch: Batch) -> tuple[Tensor, Tensor]:
        """f: (b, m) and the logits h(F_omega(x)): (b, C)."""
        f = self.look(client, batch)
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
            total = total + self.config.auxiliary * masked_cross_entropy(client.model["auxiliary"](f), batch.labels, client.classes)
        if client.task > 0:
            total = total + self.keep(client, batch, logits)
        return total

    # ---- 4.3 small-model continual fine-tuning

    def keep(self, client: Client, batch: Batch, logits: Tensor) -> Tensor:
        """The term against forgetting: Eq. 4 or the method that replaces it."""
        config, state, nothing = self.config, client.state, torch.zeros((), device=logits.device)
        if config.continual == "consistency":
            return self.consistency(client, len(batch.index)) if "previous.features" in state else nothing
        if config.continual == "ewc":
            fisher, before = ({name: state[f"{kind}.{name}"].to(logits.device) for name in self.small(client)} for kind in ("fisher", "before"))
            return config.ewc_weight * ewc_penalty(self.small(client), fisher, before)
        if config.continual == "lwf":
            rows = torch.searchsorted(client.train_index, batch.index)  # index lists are in ascending order
            old = torch.tensor(client.partition.seen(client.id, client.task - 1))
            return config.lwf_weight * distillation(logits, state["previous.logits"][rows].to(logits.device), old, LWF_TEMPERATURE)
        if config.continual == "replay" and len(state["buffer"]) > 0:
            kept = client.train.batch(state["buffer"][self.drawn(client, len(batch.index))])
            self.optimised += len(kept.index)
            seen = torch.tensor(client.partition.seen(client.id, client.task))
            return config.replay_weight * replay_cross_entropy(self.logits(client, kept), kept.labels, seen)
        return nothing

    def small(self, client: Client) -> dict[str, nn.Parameter]:
        """What SM-CF protects: the parameters of CNN and generator, by name."""
        return {name: p for name, p in client.model.named_parameters() if name.startswith(("cnn.", "generator."))}

    def start_task(self, client: Client) -> None:
        """For LwF, what the model at the end of the previous task says about the new images."""
        if self.config.continual == "lwf" and client.task > 0:
            client.model.eval()
            client.state["previous.logits"] = over(client.train, client.train_index, lambda batch: self.logits(client, batch)).cpu()

    def drawn(self, client: Client, size: int) -> Tensor:
        """Rows of the buffer, `size` of them drawn with replacement, or as many as it has."""
        kept = len(client.state["buffer"])
        return torch.randint(kept, (min(size, kept),), generator=client.scratch["replay"])

    def consistency(self, client: Client, size: int) -> Tensor:
        """Eq. 4 on `size` images drawn from the buffer.

        The previous CNN's features of the kept images never change, so they are stored instead of the previous CNN.
        """
        state, model = client.state, client.model
        chosen = self.drawn(client, size)
        self.optimised += len(chosen)
        f = self.look(client, client.train.batch(state["buffer"][chosen]))
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
        loss = lambda batch: masked_cross_entropy(self.logits(client, batch), batch.labels, client.classes, reduction="none")
        client.scratch["losses"][client.train_index] = over(client.train, client.train_index, loss).cpu()
        client.state["buffer"] = self.kept(client)
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

    def kept(self, client: Client) -> Tensor:
        """Positions of the buffer's images and, behind them, of the lowest-loss images of the task at hand."""
        index = client.train_index
        new = lowest_loss(index, client.train.batch(index).labels.cpu(), client.scratch["losses"][index], self.config.buffer_per_class)
        return torch.cat([client.state.get("buffer", new[:0]), new])

    def features(self, client: Client, index: Tensor) -> Tensor:
        """f of the images at `index`, CNN in evaluation mode: (n, m) on the CPU."""
        client.model.eval()
        return over(client.train, index, lambda batch: self.look(client, batch)).cpu()

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

    def expected(self, client: int, stage: Stage) -> Shapes:
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
        return {**found, "gram": gram(unpack, LIMIT**2)} if "gram" in found else found

    def rate(self, name: str) -> float:
        return {"weight": self.config.lr_generator, "bias": self.config.lr_generator_bias}[name]

    def dtype(self, name: str) -> torch.dtype:
        return torch.float64 if name == "gram" else super().dtype(name)

    def upload(self, client: Client, stage: Stage) -> Payload:
        if not self.travels:
            return {}
        if self.config.o2d == "average":
            return super().upload(client, stage)
        f = self.features(client, self.kept(client))
        extra = {"gram": pack(second_moments(f))} if self.config.o2d_upload == "gram" else {"features": f}
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
        moments = [unpack(p["gram"]) if "gram" in p else second_moments(p["features"]) for p in uploads.values()]
        config = self.config
        if config.o2d == "exact":
            merged = o2d_exact(weights, moments, config.o2d_lambda)
        else:
            merged = o2d_sgd(weights, moments, config.o2d_lambda, config.o2d_lr, config.o2d_epochs)
        for k, weight in zip(uploads, merged):
            self.server[f"{k}.weight"], self.server[f"{k}.bias"] = weight[:, :-1].contiguous(), weight[:, -1].contiguous()
