"""Fed-LSCL, read beside section 4 of the paper (arXiv 2508.09489).

4.2 collaboration:   `FedLSCL.update`   a small CNN looks at an image and writes a low-rank update for the frozen ViT
4.3 fine-tuning:     `Consistency`      CNN and generator stay close to what they were on the images of a buffer
4.4 distillation:    `OneByOne`         the server fuses the generators, one personalised generator per client

What can take the place of each of them is in `parts.collaboration`, `parts.small_continual` and `parts.fusion`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lscl.config import RATE, SCALE, WEIGHT, Experiment
from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs, OwnWork, Planned
from lscl.federation.limits import LIMIT, SLACK, STEP, Check, gram_check
from lscl.federation.masking import masked_cross_entropy
from lscl.federation.method import Method, Phase, Stage
from lscl.federation.passes import map_batches
from lscl.federation.payload import Payload, Shapes
from lscl.federation.sketch import CLASS, FROZEN_VIT, HEAD, IMAGE, Part, Sketch
from lscl.methods.parts.buffer import lowest_loss, sample_buffer
from lscl.methods.parts.collaboration import REPLACED_MODELS
from lscl.methods.parts.fed_lscl_studies import SEARCH_SPACE, STUDIES
from lscl.methods.parts.fusion import GENERATOR_PARTS, Averaging, Fusion
from lscl.methods.parts.lora import OneBlock, check_adapted_block
from lscl.methods.parts.noise import Noise, noisy_upload
from lscl.methods.parts.o2d import o2d_exact, o2d_sgd, o2d_shared, pack_triangle, second_moments, unpack_triangle
from lscl.methods.parts.small_continual import EWC, LwF, Replay, SmallContinual
from lscl.models.cnn import Start
from lscl.models.cnn_weights import started_cnn
from lscl.models.generator import Generator, scale_features
from lscl.models.precision import in_float32
from lscl.models.transfer import send
from lscl.models.vit import LowRank
from lscl.registry import register
from lscl.seeding import seeded


class FedLSCLCosts(Costs):
    """The written update in every step, images of the buffer beside those of a batch, O2D on the server."""

    def trains_on_buffer(self) -> bool:
        """Whether images of the buffer go through the CNN beside those of a batch."""
        return self.config.continual in ("consistency", "replay") and self.config.buffer_per_class > 0

    def cnn_images(self) -> float:
        return 2 if self.trains_on_buffer() else 1

    def vit_images(self) -> float:
        """Replay trains the whole system on as many images of the buffer."""
        return 2 if self.trains_on_buffer() and self.config.continual == "replay" else 1

    def passes(self) -> float:
        """One for the losses that choose the buffer; LwF looks at the images of a later task before it."""
        ends = 1 + (self.config.tasks_run - 1) / self.config.tasks_run * (self.config.continual == "lwf")
        return ends / self.config.rounds

    def generator_shape(self, width: int) -> tuple[int, int]:
        """Rows and columns of the generator's weights, bias included; no rows without one."""
        rows = 4 * self.config.rank * width if self.config.collaboration != "cnn" else 0
        return rows, 1 + (self.config.features if self.config.collaboration == "written" else 0)

    def step_flops(self, width: int) -> float:
        """The generator: forward, back to the features, and the gradient of its weights."""
        numbers, columns = self.generator_shape(width)
        return 6.0 * numbers * columns if columns > 1 else 0.0

    def parameters(self, run: Planned) -> float:
        numbers, columns = self.generator_shape(run.width)
        auxiliary = run.classes * self.config.features if columns > 1 else 0
        return numbers * columns + auxiliary

    def own_work(self, run: Planned) -> OwnWork:
        config, f = self.config, run.cnn.flops
        numbers, q = self.generator_shape(run.width)
        again = run.later if self.trains_on_buffer() else 0.0
        suffix = (self.vit_images() - 1) * float(run.blocks.step().sum())
        clients = run.trained * (self.step_flops(run.width) * (1 + again) + (self.cnn_passes() * f + suffix) * again)
        kept = (
            config.clients
            * config.buffer_per_class
            * config.classes_per_task
            * config.tasks_run
            * (config.tasks_run + 1)
            / 2
            * config.rounds
        )
        steps, rows = config.o2d_epochs * (config.clients - 1), config.clients * q
        server = {
            "exact": 4.0 * numbers * q * q + q**3 / 3,
            "shared": 2.0 * numbers * q * q + q**3 / 3,
            "sgd": 2.0 * steps * rows * q * q + 2.0 * config.clients * numbers * q * q,
        }
        fused = server.get(config.o2d, 0.0) if numbers else 0.0
        return OwnWork(clients + kept * f, run.rounds * config.clients * fused)


@register
class FedLSCL(Method):
    r"""A small CNN on each client looks at an image and writes a low-rank update (a LoRA) for the frozen ViT. The
    updated ViT classifies that image, and its loss trains the CNN and the generator that writes the update. The
    server makes each generator write what the others write on the others' features, and each client gets its own
    generator back.

    With $g = f/m$, where $f = \theta_k(x)$ are the layer-normalised CNN features, client $k$ writes and applies (Eq.
    2)

    $$[A, B] = W_k\,[g;\,1], \qquad \mathrm{qkv}(z) = W_{\mathrm{qkv}}\,z + s\,B A z.$$

    Eq. 3 is the cross-entropy of the updated ViT. From the second task on, Eq. 4 keeps features and products $BA$ of
    the buffer's images close to those of the previous task:

    $$L_{\mathrm{cl}} = \frac{1}{|M_k|}\sum_{x \in M_k} \alpha\,D(f, f') + \beta\,D(BA, B'A'), \qquad
    D(u, v) = \frac{\lVert u - v\rVert^2}{\lVert v\rVert^2}.$$

    The server solves one ridge regression for each client (Eq. 5). The teachers are the other clients' generators:

    $$W_k^{*} = \arg\min_W \frac{1}{K-1}\sum_{j \neq k}\frac{1}{n_j}\sum_{g \in G_j}\lVert (W - W_j)[g;\,1]\rVert^2
    + \lambda\,\bar c\,\lVert W - W_k\rVert_F^2.$$

    The unit $\bar c$ of $\lambda$ is the mean eigenvalue of the teachers' second moments of $[g;\,1]$. It is $1/m$ for
    every CNN, because $\lVert g\rVert^2 = 1/m$.

    - Source: Fed-LSCL (arXiv 2508.09489).
    - Trained: the CNN $\theta_k$; the generator $\phi_k$ with weights $W_k$ of shape $P \times (m+1)$, $P = 4rd$; the
      head $h_k$.
    - Up: $\phi_k$, and either the features of the $n$ kept images or their Gram matrix.
    - Down: the client's own distilled $\phi_k$.
    - Stays on the client: the CNN, the head and all images.
    - Payload: up $4P(m+1) + 4nm$ bytes with features, or $4P(m+1) + 4(m+1)(m+2)$ bytes with `o2d_upload = gram`; down
      $4P(m+1)$ bytes.

    The numbers of trained parameters include a second head on the CNN's features ($mC + C$ numbers). It gets a gradient
    only if `auxiliary` is above 0, and the default is 0.

    With `dp_noise` above 0 each client clips the change of $\phi_k$ and the features it uploads, and adds noise to
    both (`lscl.methods.parts.noise`). The number of bytes stays the same.

    Each component can be replaced, as the paper promises:
    - `collaboration`: `written` (the paper); `static` (one LoRA for all images, that is, a generator of $m = 0$
      features); `cnn` (no ViT, nothing travels).
    - `continual`: `consistency` (Eq. 4), `ewc`, `lwf`, `replay` or `none`.
    - `o2d`: `exact`; `sgd`; `shared` (one generator for all clients, by Eq. 5 over all uploads); `average` (FedAvg of
      the generators, up $4P(m+1) + 8$ bytes); `none` (nothing travels).

    Choices where the paper is silent, in addition to the parameters below:
    1. The upload in task $t$ includes the lowest-loss images of task $t$ so far. Without them the server would have
       nothing to distil in task 1.
    2. Eq. 4 compares with the CNN and generator at the end of the previous task, after the last server step.
    3. The teachers are the uploaded generators, not the distilled ones, so the order of the clients does not matter.
    4. The generator reads $g = f/m$, and its weights start at zero. So one learning rate serves its bias and its
       weights at every $m$, and the first steps change the frozen ViT in proportion. Eq. 5 and the upload use these
       features.
    5. Eq. 4 compares the products $BA$ and $B'A'$, not the numbers in the factors. $A$ holds nearly all of the norm
       of an update from the start, so $B$ could grow without a penalty. With `consistency_compares = matrices` $A$
       and $B$ are compared separately, each on its own scale; the ablations include both.
    6. Every CNN starts from its own random weights. With `cnn_start = pretrained` it starts from trained weights, the
       same on all clients with this CNN, and gets the input those weights were trained with
       (`lscl.models.cnn_weights`). The head, the projection to $m$ and the generator start as before. The paper does
       not say which start it used.
    7. There is no augmentation, because the frozen ViT's output below the adapted block is computed once per image.
       The CNN sees the same pixels. The published code of the paper's authors crops and mirrors.
    """

    name, label, paper_name, citation, role = "fed_lscl", "Fed-LSCL", "Fed-LSCL", "2508.09489", "own"
    place, turn, quick = 0, 8, ("demo", "colab")
    rows = ({}, {"o2d": "sgd"})  # O2D as we solve it, and by gradient steps as in the paper
    tuned = {
        "lr": 0.0027,
        "lr_cnn": 0.00034,
        "lr_generator": 1.4e-5,
        "rank": 8,
        "o2d_lambda": 0.17,
        "alpha": 3.3,
        "beta": 1.3,
    }
    search_space = SEARCH_SPACE
    notes = {
        "o2d": {
            "exact": "O2D exact",
            "sgd": "O2D gradient",
            "shared": "one generator by O2D",
            "average": "generators averaged",
            "none": "nothing fused",
        }
    }
    studies = STUDIES
    costs = FedLSCLCosts
    sketch = Sketch(
        row=(IMAGE, FROZEN_VIT, HEAD, CLASS),
        helpers=(Part("small CNN", "trained", "right", fed=True), Part("generator writes A and B", "trained")),
        up="the generator, and features of the kept images",
        server="make each generator write as the others do (Eq. 5)",
        down="the client's own distilled generator",
        stays="the kept images of each class, and what CNN and generator gave for them (Eq. 4)",
    )
    defences: ClassVar = {
        "Gram matrix": {"o2d_upload": "gram"},
        "5 kept images": {"buffer_per_class": 5},
        "1 kept image": {"buffer_per_class": 1},
        **{f"noise {noise:g}": {"dp_noise": noise} for noise in (1e-4, 1e-3, 1e-2, 1.0)},
    }

    cnn = True  # beside the ViT
    check_foundation = staticmethod(check_adapted_block)

    class Parameters(OneBlock, Noise):
        """See `lscl.registry.Parameters`."""

        profile_values: ClassVar = {
            "smoke": {"buffer_per_class": 2},
        }
        lr_cnn: float = Field(1e-3, **RATE, description="Adam learning rate of the CNN")
        lr_generator: float = Field(1e-3, **RATE, description="Adam learning rate of the generator, weights and bias")
        generator_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on f before the generator, in training")
        auxiliary: float = Field(
            0.0, **WEIGHT, description="weight of the CNN's own cross-entropy (0 = the paper's loss)"
        )
        cnn_start: Literal["drawn", "pretrained"] = Field(
            "drawn",
            description="weights that the clients' CNNs start from: drawn, or pretrained (small: shipped; else from "
            "torchvision or timm)",
        )
        collaboration: Literal["written", "static", "cnn"] = Field(
            "written", description="a LoRA written per image (paper), one static LoRA, or the CNN alone without the ViT"
        )
        continual: Literal["consistency", "ewc", "lwf", "replay", "none"] = Field(
            "consistency",
            description="protection of CNN and generator from forgetting: Eq. 4 (paper), or another method",
        )
        ewc_weight: float = Field(100.0, **WEIGHT, description="weight of the penalty; only with continual = ewc")
        lwf_weight: float = Field(1.0, **WEIGHT, description="weight of the distillation; only with continual = lwf")
        replay_weight: float = Field(
            1.0, **WEIGHT, description="weight of the kept images' cross-entropy; only with continual = replay"
        )
        alpha: float = Field(1.0, **WEIGHT, description="weight of the feature term of Eq. 4")
        beta: float = Field(1.0, **WEIGHT, description="weight of the generator term of Eq. 4")
        consistency: Literal["relative", "mean", "sum"] = Field(
            "relative", description="scale of Eq. 4: relative, mean- or sum-squared error"
        )
        consistency_compares: Literal["product", "matrices"] = Field(
            "product", description="what the generator term of Eq. 4 compares: the product B A, or A and B separately"
        )
        buffer_per_class: int = Field(20, ge=0, le=10**6, description="lowest-loss images kept per class (paper: 20)")
        o2d: Literal["exact", "sgd", "shared", "average", "none"] = Field(
            "exact",
            description="One-by-One Distillation: closed form (ours), gradient steps (paper); or one generator for all "
            "clients, by Eq. 5 over all of them (shared) or by FedAvg; or nothing",
        )
        o2d_lambda: float = Field(
            1.0,
            **SCALE,
            description="pull to the client's own generator, in mean eigenvalues of the teachers' second moments",
        )
        o2d_epochs: int = Field(100, ge=1, le=10**4, description="passes over the teachers; only with o2d = sgd")
        o2d_lr: float = Field(
            1.0,
            **RATE | {"le": 1},
            description="step size, in units of the largest one that cannot overshoot; only with o2d = sgd",
        )
        o2d_upload: Literal["features", "gram"] = Field(
            "features",
            description="what a client uploads with its generator: the features f of the buffer, or their Gram matrix",
        )

    @classmethod
    def uses_vit(cls, config: Experiment) -> bool:
        return config.collaboration != "cnn"

    @classmethod
    def trains_cnn(cls, config: Experiment) -> bool:
        return config.collaboration != "static"

    @classmethod
    def start_of_cnn(cls, config: Experiment) -> Start:
        return config.cnn_start

    @staticmethod
    def cut(config: Experiment) -> int | None:
        return config.block

    @property
    def m(self) -> int:
        """Features that the generator reads."""
        return 0 if self.config.collaboration == "static" else self.config.features

    @property
    def continual(self) -> SmallContinual:
        """What keeps CNN and generator from forgetting: Eq. 4, or what stands in for it."""
        return CONTINUAL[self.config.continual](self)

    @property
    def fusion(self) -> Fusion:
        """What the server does with the generators: O2D, or what stands in for it."""
        return FUSIONS[self.config.o2d](self)

    # ---- 4.2 large-small collaborative training

    def build(self, client: int) -> nn.Module:
        config = self.config
        if config.collaboration in REPLACED_MODELS:
            return REPLACED_MODELS[config.collaboration](self, client)
        width = self.foundation.width
        # The generator comes first: it is the same on all clients.
        generator = Generator(self.m, width, config.rank, config.lora_alpha / config.rank)
        with seeded(config.seed, "model", client):
            cnn, head = started_cnn(config, client, config.cnn_start), nn.Linear(width, self.num_classes)
            auxiliary = nn.Linear(config.features, self.num_classes)  # only used if config.auxiliary > 0
        return nn.ModuleDict({"cnn": cnn, "generator": generator, "head": head, "auxiliary": auxiliary})

    def cnn_features(self, client: Client, batch: Batch) -> Tensor:
        """f = theta(x).

        Args:
            client: the one whose CNN looks.
            batch: b images.

        Returns:
            (b, m); with a static LoRA m = 0, and no CNN looks.
        """
        if "cnn" not in client.model:
            return torch.empty(len(batch.index), 0, device=client.device)
        return client.model["cnn"](batch.images)

    def update(self, client: Client, f: Tensor) -> LowRank:
        """Eq. 2, the update omega = phi(f) of every image.

        Args:
            client: the one whose generator writes.
            f: features, (b, m).

        Returns:
            A (b, r, d) and B (b, 3d, r).
        """
        generator = client.model["generator"]
        g = scale_features(F.dropout(f, self.config.generator_dropout, client.model.training))  # (b, m)
        omega = generator(g)  # (b, P)
        return generator.split(omega)  # A (b, r, d), B (b, 3d, r)

    def adapted_features(self, client: Client, batch: Batch, f: Tensor) -> Tensor:
        """F_omega(x): the frozen ViT's feature, with the update written from f.

        Args:
            client: the one whose generator writes.
            batch: b images.
            f: their features, (b, m).

        Returns:
            (b, d); with the CNN alone f itself, (b, m).
        """
        if "generator" not in client.model:
            return f
        return self.foundation.suffix(batch.prefix, self.update(client, f))

    def features_of(self, client: Client, batch: Batch) -> Tensor:
        return self.adapted_features(client, batch, self.cnn_features(client, batch))

    def head_logits(self, client: Client, features: Tensor) -> Tensor:
        """h(F_omega(x)); with the CNN alone h(f)."""
        return self.trained_logits(client, features)

    def trained_logits(self, client: Client, features: Tensor) -> Tensor:
        """The scores that the losses compare, whatever head is tested.

        Args:
            client: the one whose head is trained.
            features: what `features_of` made, (b, d).

        Returns:
            (b, C).
        """
        return client.model["head"](features)

    def phases(self, client: Client, stage: Stage) -> list[Phase]:
        config, model = self.config, client.model
        groups = [{"params": model["head"].parameters(), "lr": config.lr}]
        if "cnn" in model:
            parts = [model[name] for name in ("cnn", "auxiliary") if name in model]
            groups.append({"params": [p for part in parts for p in part.parameters()], "lr": config.lr_cnn})
        if "generator" in model:
            groups.append({"params": model["generator"].parameters(), "lr": config.lr_generator})
        return [Phase(groups, self.loss, config.epochs, config.batch)]

    def loss(self, client: Client, batch: Batch) -> Tensor:
        """Eq. 3 plus, from the second task on, Eq. 4 or what stands in for it."""
        f = self.cnn_features(client, batch)
        logits = self.trained_logits(client, self.adapted_features(client, batch, f))
        losses = masked_cross_entropy(logits, batch.labels, client.classes, reduction="none")
        client.scratch["losses"][batch.place] = losses.detach()
        total = losses.mean()
        if self.config.auxiliary > 0 and "auxiliary" in client.model:
            own = masked_cross_entropy(client.model["auxiliary"](f), batch.labels, client.classes)
            total = total + self.config.auxiliary * own
        if client.task > 0:
            total = total + self.continual.loss(client, batch, logits)
        return total

    # ---- 4.3 small-model continual fine-tuning

    def start_task(self, client: Client) -> None:
        self.continual.start_task(client)

    def end_task(self, client: Client) -> None:
        """Keep the lowest-loss images of the task, then what the term against forgetting needs of CNN and generator."""
        loss = lambda batch: masked_cross_entropy(
            self.trained_logits(client, self.features_of(client, batch)), batch.labels, client.classes, reduction="none"
        )
        index = send(client.train_index, client.device)
        client.scratch["losses"][index] = map_batches(client.train, client.train_index, loss)
        client.state["buffer"] = self.update_buffer(client)
        self.continual.end_task(client)

    def update_buffer(self, client: Client) -> Tensor:
        """Positions of the buffer's images and, behind them, of the lowest-loss images of the task at hand."""
        index = client.train_index
        labels, losses = client.train.batch(index).known_labels, client.scratch["losses"].cpu()[index]
        new = lowest_loss(index, labels, losses, self.config.buffer_per_class)
        return torch.cat([client.state.get("buffer", new[:0]), new])

    def features(self, client: Client, index: Tensor) -> Tensor:
        """f of many images, with the CNN in evaluation mode.

        Args:
            client: the one whose CNN looks.
            index: positions of n training images, (n,).

        Returns:
            (n, m), on the CPU.
        """
        client.model.eval()
        return map_batches(client.train, index, lambda batch: self.cnn_features(client, batch)).cpu()

    # ---- 4.4 One-by-One Distillation

    @property
    def shares_generator(self) -> bool:
        """Whether there is a generator to share and a fusion that shares it."""
        return self.config.collaboration != "cnn" and self.fusion.shares

    def shared(self, model: nn.Module) -> dict[str, Tensor]:
        return dict(model["generator"].state_dict()) if self.shares_generator else {}

    def initial_server(self) -> dict[str, Tensor]:
        common = super().initial_server()
        return {f"{k}.{name}": value.clone() for k in range(self.config.clients) for name, value in common.items()}

    def broadcast(self, client: int, stage: Stage) -> Payload:
        return {name: self.server[f"{client}.{name}"] for name in GENERATOR_PARTS} if self.shares_generator else {}

    def receive(self, client: Client, payload: Payload, stage: Stage) -> None:
        if payload:
            client.model["generator"].load_state_dict(payload)
            client.scratch["received"] = payload
        client.scratch["replay"] = client.rng("replay")
        # by position; filled while training
        client.scratch["losses"] = torch.zeros(len(client.train.images), device=client.device)

    def upload_shapes(self, client: int, stage: Stage) -> Shapes:
        if not self.shares_generator:
            return {}
        generator = {name: tuple(value.shape) for name, value in self.broadcast(client, stage).items()}
        return self.fusion.upload_shapes(client, stage, generator)

    def checks(self, client: int, stage: Stage) -> dict[str, Check]:
        found = super().checks(client, stage)
        return {**found, "gram": gram_check(unpack_triangle, LIMIT**2)} if "gram" in found else found

    def rate(self, name: str) -> float:
        return self.config.lr_generator

    def dtype(self, name: str) -> torch.dtype:
        return torch.float64 if name == "gram" else super().dtype(name)

    def summed_names(self, stage: Stage) -> Collection[str]:
        """All of averaged generators. O2D multiplies each teacher with its own second moments: it needs single ones."""
        return set(self.upload_shapes(0, stage)) if self.config.o2d == "average" else set()

    def upload(self, client: Client, stage: Stage) -> Payload:
        if not self.shares_generator:
            return {}
        sent = self.fusion.upload(client, self.shared(client.model))
        if self.config.dp_noise == 0:
            return sent
        sent = {name: value.detach().cpu() for name, value in sent.items()}
        reach = (1 - SLACK) * STEP * self.config.lr_generator * self.steps(client.id, client.task)
        config, start = self.config, client.scratch["received"]
        return noisy_upload(client, sent, start, config.dp_clip, config.dp_noise, reach)

    def shown_images(self, client: Client) -> Tensor:
        """The images whose features, or their Gram matrix, go up."""
        return self.update_buffer(client)

    def releases(self) -> tuple[str, int]:
        """In every exchange the generator goes up, and with O2D what it is distilled on."""
        if not self.shares_generator:
            return "client", 0
        beside = 0 if self.config.o2d == "average" else 1
        return "client", (1 + beside) * sum(len(self.stages(task)) for task in range(self.config.tasks_run))

    def aggregate(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        """Eq. 5 for every client, or what stands in for it."""
        if self.shares_generator:
            self.server.update(self.fusion.aggregate(uploads))


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """BatchNorm and dropout as in a test for a while, and then as they were; gradients flow."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


Gap = tuple[Tensor, Tensor, int]  # squared distances (b,), squared norms of what they are measured from (b,), numbers


def product_gap(ours: LowRank, teacher: LowRank) -> list[Gap]:
    """How far two written updates are apart in what they do, without forming a (3d, d) matrix.

    B A - B' A' = [B - B', B'] [A; A - A'] = L R and ||L R||_F^2 = tr((L^T L) (R R^T)), where nothing large cancels.

    Args:
        ours: A (b, r, d) and B (b, 3d, r).
        teacher: A' and B', of the same shapes.

    Returns:
        One gap: ||B A - B' A'||_F^2 and ||B' A'||_F^2, (b,) each, of 3d x d numbers.
    """
    left = torch.cat([ours.B - teacher.B, teacher.B], dim=2)  # (b, 3d, 2r)
    right = torch.cat([ours.A, ours.A - teacher.A], dim=1)  # (b, 2r, d)
    numbers = teacher.B.shape[1] * teacher.A.shape[2]
    return [(squared_norms(left, right), squared_norms(teacher.B, teacher.A), numbers)]


def matrices_gap(ours: LowRank, teacher: LowRank) -> list[Gap]:
    """How far the matrices of two written updates are apart, each on its own.

    Args:
        ours: A (b, r, d) and B (b, 3d, r).
        teacher: A' and B', of the same shapes.

    Returns:
        Two gaps: ||A - A'||_F^2 and ||A'||_F^2 of r x d numbers, ||B - B'||_F^2 and ||B'||_F^2 of 3d x r.
    """
    pairs = ((ours.A, teacher.A), (ours.B, teacher.B))
    return [((x - y).square().sum((1, 2)), y.square().sum((1, 2)), y[0].numel()) for x, y in pairs]


@in_float32
def squared_norms(left: Tensor, right: Tensor) -> Tensor:
    """||L R||_F^2 of every image.

    Args:
        left: L, (b, o, r).
        right: R, (b, r, d).

    Returns:
        (b,).
    """
    return ((left.transpose(1, 2) @ left) * (right @ right.transpose(1, 2))).sum((1, 2))  # (b,)


class Consistency(SmallContinual):
    """Eq. 4: on images of the buffer, CNN and generator stay close to what they were at the end of the previous task.

        alpha ||f - f'||^2 + beta ||B A - B' A'||^2,    f = theta(x), (A, B) = phi(f)

    (or beta / 2 (||A - A'||^2 + ||B - B'||^2), with consistency_compares = matrices)

    with f', A' and B' of the previous CNN and generator; both sides with BatchNorm in evaluation mode, so that the sum
    is zero as long as nothing changes. Its features of the buffer never change, so they are stored instead of the
    previous CNN. Client state: `previous.features` (n, m) of the n images of the buffer, and the previous generator,
    `previous.weight` (P, m) and `previous.bias` (P,).
    """

    method: FedLSCL

    def loss(self, client: Client, batch: Batch, logits: Tensor) -> Tensor:
        """Eq. 4 on as many images as the batch has, drawn from the buffer."""
        state, model = client.state, client.model
        if "previous.features" not in state:
            return super().loss(client, batch, logits)
        chosen = sample_buffer(client, len(batch.index))
        self.method.optimised += len(chosen)
        with evaluation_mode(model):
            f = self.method.cnn_features(client, client.train.batch(state["buffer"][chosen]))
        before = client.on_device("previous.features")[send(chosen, client.device)]  # (b, m)
        return self.distance(client, f, before)

    @in_float32
    def distance(self, client: Client, f: Tensor, before: Tensor) -> Tensor:
        """Eq. 4 of images whose features are known.

        Args:
            client: with its generator and the previous one.
            f: features, (b, m).
            before: what they were at the end of the previous task, (b, m).

        Returns:
            ().
        """
        config, model = self.method.config, client.model
        gap, size = (f - before).square().sum(1), before.square().sum(1)  # (b,)
        term = config.alpha * self.scaled(gap, size, f.shape[1])
        if "generator" in model:
            weight, bias = (client.on_device(f"previous.{name}") for name in GENERATOR_PARTS)
            generator = model["generator"]
            teacher = generator.split(F.linear(scale_features(before), weight, bias))  # A' (b, r, d), B' (b, 3d, r)
            ours = generator.split(generator(scale_features(f)))  # A (b, r, d), B (b, 3d, r)
            gaps = COMPARED[config.consistency_compares](ours, teacher)
            term = term + config.beta * sum(self.scaled(*gap) for gap in gaps) / len(gaps)
        return term

    @in_float32
    def scaled(self, gap: Tensor, size: Tensor, numbers: int) -> Tensor:
        """A squared distance on the scale that the parameter `consistency` names.

        Args:
            gap: squared distances of images, (b,).
            size: squared norms of what they are measured from, (b,).
            numbers: how many numbers were compared.

        Returns:
            The mean over images, (). With relative each is divided by its size, with mean by `numbers`, with sum by
            nothing.
        """
        if self.method.config.consistency == "relative":
            return (gap / (size + 1e-8)).mean()
        return gap.mean() / max(1, numbers) if self.method.config.consistency == "mean" else gap.mean()

    def end_task(self, client: Client) -> None:
        if len(client.state["buffer"]) == 0:
            return
        client.state["previous.features"] = self.method.features(client, client.state["buffer"])
        for name, value in client.model["generator"].state_dict().items() if "generator" in client.model else ():
            client.state[f"previous.{name}"] = value.detach().cpu().clone()


class OneByOne(Fusion):
    """One-by-One Distillation (Eq. 5) by gradient steps, as in the paper: each generator learns from the others.

    Up, beside the generator: the features f of the buffer and of the task's images that would be kept by now, (n, m),
    or, with o2d_upload = gram, the upper triangle of their second moments, ((m + 1)(m + 2) / 2,).
    """

    method: FedLSCL
    shares = True

    def upload_shapes(self, client: int, stage: Stage, generator: Shapes) -> Shapes:
        config, q = self.method.config, self.method.m + 1
        if config.o2d_upload == "gram":
            return {**generator, "gram": (q * (q + 1) // 2,)}
        kept = np.minimum(self.method.census.train[client, : stage.task + 1], config.buffer_per_class).sum()
        return {**generator, "features": (int(kept), self.method.m)}

    def upload(self, client: Client, generator: Payload) -> Payload:
        g = scale_features(self.method.features(client, self.method.update_buffer(client)))  # (n, m)
        if self.method.config.o2d_upload == "gram":
            return {**generator, "gram": pack_triangle(second_moments(g))}
        return {**generator, "features": g}

    def aggregate(self, uploads: Mapping[int, Payload]) -> dict[str, Tensor]:
        weights = [torch.cat([sent["weight"], sent["bias"][:, None]], dim=1) for sent in uploads.values()]  # (P, m + 1)
        moments = [
            unpack_triangle(sent["gram"]) if "gram" in sent else second_moments(sent["features"])
            for sent in uploads.values()
        ]  # (m + 1, m + 1)
        distilled = {}
        for k, weight in zip(uploads, self.distil(weights, moments)):
            distilled[f"{k}.weight"], distilled[f"{k}.bias"] = weight[:, :-1].contiguous(), weight[:, -1].contiguous()
        return distilled

    def distil(self, weights: Sequence[Tensor], moments: Sequence[Tensor]) -> list[Tensor]:
        """Eq. 5 for every client.

        Args:
            weights: the uploaded generators with the bias as last column, (P, m + 1) each.
            moments: the second moments of the uploaded features, (m + 1, m + 1) each.

        Returns:
            The distilled generators, (P, m + 1) each, in the same order.
        """
        config = self.method.config
        return o2d_sgd(weights, moments, config.o2d_lambda, config.o2d_lr, config.o2d_epochs)


class OneByOneExact(OneByOne):
    """One-by-One Distillation solved exactly: Eq. 5 is quadratic, and its minimum has a closed form (ours)."""

    def distil(self, weights: Sequence[Tensor], moments: Sequence[Tensor]) -> list[Tensor]:
        """The minimum of Eq. 5 for every client.

        Args:
            weights: the uploaded generators with the bias as last column, (P, m + 1) each.
            moments: the second moments of the uploaded features, (m + 1, m + 1) each.

        Returns:
            The distilled generators, (P, m + 1) each, in the same order.
        """
        return o2d_exact(weights, moments, self.method.config.o2d_lambda)


class OneForAll(OneByOne):
    """Eq. 5 over all uploads, without a student of its own: one generator for all clients, in closed form (ours)."""

    def distil(self, weights: Sequence[Tensor], moments: Sequence[Tensor]) -> list[Tensor]:
        """The generator whose outputs are nearest to those of all, each on its own client's features.

        Args:
            weights: the uploaded generators with the bias as last column, (P, m + 1) each.
            moments: the second moments of the uploaded features, (m + 1, m + 1) each.

        Returns:
            The same one for every client, (P, m + 1) each.
        """
        return [o2d_shared(weights, moments, self.method.config.o2d_lambda)] * len(weights)


# By the values of the parameters `consistency_compares`, `continual` and `o2d`.
COMPARED: dict[str, Callable[[LowRank, LowRank], list[Gap]]] = {"product": product_gap, "matrices": matrices_gap}
CONTINUAL: dict[str, type[SmallContinual]] = {
    "consistency": Consistency,
    "ewc": EWC,
    "lwf": LwF,
    "replay": Replay,
    "none": SmallContinual,
}
FUSIONS: dict[str, type[Fusion]] = {
    "exact": OneByOneExact,
    "sgd": OneByOne,
    "shared": OneForAll,
    "average": Averaging,
    "none": Fusion,
}
