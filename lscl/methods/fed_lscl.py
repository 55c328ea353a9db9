"""Fed-LSCL, read beside section 4 of the paper (arXiv 2508.09489).

4.2 collaboration:    `update` and `logits`   a small CNN looks at an image and writes a low-rank update for the frozen ViT
4.3 fine-tuning:      `consistency`, `end_task`   CNN and generator stay close to what they were on a few kept images
4.4 distillation:     `upload`, `aggregate`   the server fuses the generators, one personalised generator per client
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lscl.config import Experiment
from lscl.federation.client import Batch, Client
from lscl.federation.payload import Payload, Shapes
from lscl.methods.base import Method, Phase, Stage
from lscl.methods.parts.buffer import lowest_loss
from lscl.methods.parts.masked import masked_cross_entropy
from lscl.methods.parts.o2d import o2d_exact, o2d_sgd, pack, second_moments, unpack
from lscl.models.foundation import LowRank
from lscl.models.generator import Generator
from lscl.models.small import small_cnn
from lscl.seeding import seeded

EVAL_BATCH = 200  # images per forward pass without gradients


class FedLSCL(Method):
    """A CNN on each client writes a LoRA for the frozen ViT, per image; the server distils the writers into each other.

    Trained: CNN theta_k, generator phi_k (P x (m + 1), P = 4 r d), head h_k. Up: phi_k and either the features f of the kept
    images (n x m floats) or their Gram matrix ((m + 1)(m + 2) / 2 doubles). Down: phi_k, personalised. CNN, head and images stay.

    Choices where the paper is silent, beside those in the config table:
    1. an upload in task t also has the lowest-loss images of task t so far: otherwise nothing could be distilled in task 1.
    2. Eq. 4 compares with the CNN and generator at the end of the previous task, after the last server step.
    3. teachers are the generators as uploaded, not the already distilled ones, so the order of clients does not matter.
    """

    @staticmethod
    def cut(config: Experiment) -> int | None:
        return config.block

    def build(self, client: int) -> nn.Module:
        config, width = self.config, self.foundation.width
        generator = Generator(config.features, width, config.rank, config.lora_alpha / config.rank)  # first: the same on all clients
        with seeded(config.seed, "model", client):
            cnn, head = small_cnn(config, client), nn.Linear(width, self.num_classes)
            auxiliary = nn.Linear(config.features, self.num_classes)  # only used if config.auxiliary > 0
        return nn.ModuleDict({"cnn": cnn, "generator": generator, "head": head, "auxiliary": auxiliary})

    # ---- 4.2 large-small collaborative training

    def update(self, client: Client, f: Tensor) -> LowRank:
        """Eq. 2: f (b, m) -> A: (b, r, d), B: (b, 3d, r)."""
        generator = client.model["generator"]
        return generator.split(generator(F.dropout(f, self.config.generator_dropout, client.model.training)))

    def collaborate(self, client: Client, batch: Batch) -> tuple[Tensor, Tensor]:
        """f = theta(x): (b, m) and the logits h(F_omega(x)): (b, C)."""
        f = client.model["cnn"](batch.images)
        return f, client.model["head"](self.foundation.suffix(batch.prefix, self.update(client, f)))

    def logits(self, client: Client, batch: Batch) -> Tensor:
        return self.collaborate(client, batch)[1]

    def phases(self, client: Client, stage: Stage) -> list[Phase]:
        config, model = self.config, client.model
        groups = [
            {"params": [*model["cnn"].parameters(), *model["auxiliary"].parameters()], "lr": config.lr_cnn},
            {"params": [model["generator"].weight], "lr": config.lr_generator},
            {"params": [model["generator"].bias], "lr": config.lr_generator_bias},
            {"params": model["head"].parameters(), "lr": config.lr},
        ]
        return [Phase(groups, self.loss, config.epochs, config.batch)]

    def loss(self, client: Client, batch: Batch) -> Tensor:
        """Eq. 3 plus, from the second task on, Eq. 4."""
        f, logits = self.collaborate(client, batch)
        losses = masked_cross_entropy(logits, batch.labels, client.classes, reduction="none")
        client.scratch["losses"][batch.index] = losses.detach().cpu()
        total = losses.mean()
        if self.config.auxiliary > 0:
            total = total + self.config.auxiliary * masked_cross_entropy(client.model["auxiliary"](f), batch.labels, client.classes)
        if "previous.features" in client.state:
            total = total + self.consistency(client, len(batch.index))
        return total

    # ---- 4.3 small-model continual fine-tuning

    def consistency(self, client: Client, size: int) -> Tensor:
        """Eq. 4 on `size` images drawn from the buffer.

        The previous CNN's features of the kept images never change, so they are stored instead of the previous CNN.
        """
        state, model = client.state, client.model
        chosen = torch.randint(len(state["buffer"]), (min(size, len(state["buffer"])),), generator=client.scratch["replay"])
        f = model["cnn"](client.train.batch(state["buffer"][chosen]).images)
        before = state["previous.features"][chosen].to(f.device)
        omega = model["generator"](f)
        omega_before = F.linear(before, state["previous.weight"].to(f.device), state["previous.bias"].to(f.device))
        config = self.config
        return config.alpha * self.distance(f, before) + config.beta * self.distance(omega, omega_before)

    def distance(self, ours: Tensor, teacher: Tensor) -> Tensor:
        """Mean over the rows of ||ours - teacher||^2, divided by ||teacher||^2 (relative), by the length (mean), or not (sum)."""
        gap = (ours - teacher).square().sum(1)
        if self.config.consistency == "relative":
            gap = gap / (teacher.square().sum(1) + 1e-8)
        elif self.config.consistency == "mean":
            gap = gap / ours.shape[1]
        return gap.mean()

    def end_task(self, client: Client) -> None:
        """Keep the lowest-loss images of the task, then remember what CNN and generator do on everything kept."""
        index = client.train_index
        with torch.no_grad():
            for part in index.split(EVAL_BATCH):
                batch = client.train.batch(part)
                losses = masked_cross_entropy(self.logits(client, batch), batch.labels, client.classes, reduction="none")
                client.scratch["losses"][part] = losses.cpu()
        client.state["buffer"] = self.kept(client)
        if len(client.state["buffer"]) > 0:
            client.state["previous.features"] = self.features(client, client.state["buffer"])
            for name, value in client.model["generator"].state_dict().items():
                client.state[f"previous.{name}"] = value.detach().cpu().clone()

    def kept(self, client: Client) -> Tensor:
        """Positions of the buffer's images and, behind them, of the lowest-loss images of the task at hand."""
        index = client.train_index
        labels = torch.from_numpy(client.train.images.labels[index.numpy()])
        new = lowest_loss(index, labels, client.scratch["losses"][index], self.config.buffer_per_class)
        return torch.cat([client.state.get("buffer", new[:0]), new])

    def features(self, client: Client, index: Tensor) -> Tensor:
        """f of the images at `index`, CNN in evaluation mode: (n, m) on the CPU."""
        cnn = client.model["cnn"].eval()
        with torch.no_grad():
            parts = [cnn(client.train.batch(part).images).cpu() for part in index.split(EVAL_BATCH)]
        return torch.cat(parts) if parts else torch.empty(0, self.config.features)

    # ---- 4.4 One-by-One Distillation

    def shared(self, model: nn.Module) -> dict[str, Tensor]:
        return dict(model["generator"].state_dict())

    def initial_server(self) -> dict[str, Tensor]:
        common = super().initial_server()
        return {f"{k}.{name}": value.clone() for k in range(self.config.clients) for name, value in common.items()}

    def broadcast(self, client: int, stage: Stage) -> Payload:
        return {name: self.server[f"{client}.{name}"] for name in ("weight", "bias")}

    def receive(self, client: Client, payload: Payload, stage: Stage) -> None:
        client.model["generator"].load_state_dict(payload)
        client.scratch["replay"] = client.rng("replay")
        client.scratch["losses"] = torch.zeros(len(client.train.images))  # by position; filled while training

    def expected(self, client: int, stage: Stage) -> Shapes:
        q = self.config.features + 1
        shapes = {name: tuple(self.server[f"{client}.{name}"].shape) for name in ("weight", "bias")}
        if self.config.o2d_upload == "gram":
            return {**shapes, "gram": (q * (q + 1) // 2,)}
        return {**shapes, "features": (None, self.config.features)}

    def upload(self, client: Client, stage: Stage) -> Payload:
        f = self.features(client, self.kept(client))
        extra = {"gram": pack(second_moments(f))} if self.config.o2d_upload == "gram" else {"features": f}
        return {**self.shared(client.model), **extra}

    def aggregate(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        """Eq. 5 for every client."""
        weights = [torch.cat([payload["weight"], payload["bias"][:, None]], dim=1) for payload in uploads.values()]
        moments = [unpack(p["gram"]) if "gram" in p else second_moments(p["features"]) for p in uploads.values()]
        config = self.config
        if config.o2d == "exact":
            merged = o2d_exact(weights, moments, config.o2d_lambda)
        else:
            merged = o2d_sgd(weights, moments, config.o2d_lambda, config.o2d_lr, config.o2d_epochs)
        for k, weight in zip(uploads, merged):
            self.server[f"{k}.weight"], self.server[f"{k}.bias"] = weight[:, :-1].contiguous(), weight[:, -1].contiguous()
