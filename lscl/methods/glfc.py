"""GLFC: replay of kept images, balanced losses, and an old model that a proxy server picks on reconstructed images."""

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lscl.config import WEIGHT
from lscl.federation.client import Batch, Client, resize
from lscl.federation.costs import Costs, OwnWork, Planned
from lscl.federation.masking import mask_logits
from lscl.federation.method import Phase, Stage
from lscl.federation.passes import BATCH, map_batches
from lscl.federation.payload import Payload, Shapes
from lscl.federation.search_space import LogRange
from lscl.federation.sketch import CLASS, CNN, HEAD, IMAGE, Part, Sketch
from lscl.methods.parts.augmentation import AUGMENTED, BRIGHTNESS
from lscl.methods.parts.buffer import first_of_each_class, herding, random_per_class
from lscl.methods.parts.inversion import (
    SIDE,
    Encoder,
    build_encoder,
    parameter_gradient,
    reconstruct_images,
    recover_class,
)
from lscl.methods.parts.old_model import KNOWN, OLD, OldModel, is_first_exchange, model_part
from lscl.methods.parts.synthesis import as_pixels
from lscl.models.cnn import from_unit_range, to_cnn_input, to_unit_range
from lscl.models.counting import network
from lscl.models.precision import in_float32
from lscl.models.transfer import send
from lscl.registry import register
from lscl.seeding import torch_generator

BEST = "best."  # prefix on the server of the best model of the task at hand
L_BFGS_EVALUATIONS = 1.25  # of the closure, per iteration
PERTURB_LR, PERTURB_DECAY = 0.2, 1e-5  # of the gradient steps on a prototype image


@lru_cache
def encoder_flops(classes: int) -> float:
    """FLOPs of one image in the encoder of the gradients."""
    with torch.device("meta"):
        return network(Encoder(classes), torch.empty(1, 3, SIDE, SIDE)).flops


class GLFCCosts(Costs):
    """Exemplars and the old model in every step; images disguised on the clients and reconstructed on the server."""

    def own_work(self, run: Planned) -> OwnWork:
        config, f = self.config, run.cnn.flops
        # Half of the client's images have been seen, on average.
        kept = min(config.glfc_memory, run.epoch / config.clients / 2)
        exemplars = config.clients * kept * run.ends * config.rounds * config.epochs
        encoder = encoder_flops(run.classes)
        gradients = config.clients * config.classes_per_task * config.tasks_run if config.glfc_proxy else 0
        evaluations = gradients * config.glfc_steps * config.glfc_iterations * L_BFGS_EVALUATIONS
        disguise = gradients * config.glfc_perturb * 3 * f
        clients = exemplars * 4 * f + run.trained * run.later * f + disguise
        return OwnWork(clients, evaluations * 6 * encoder, exemplars / config.batch + evaluations / 4)


@register
class GLFC(OldModel):
    r"""Each client keeps a few images of its old classes and trains on them again together with the new images. It also
    imitates the best global model of the previous task, so that old classes keep their scores. A proxy server finds
    this best model without seeing an image: it tests on pictures that it reconstructs from gradients.

    Every class has its own binary cross-entropy $\mathrm{BCE}_c$. In the first task the loss is its mean. Later it
    has two terms (the official code weights both with $\tfrac12$):

    $$L = \lambda_{\mathrm{gc}}\,\underbrace{\operatorname{mean}_{i,c}\, w_i\,\mathrm{BCE}_c(z_i, y_i)}_{
    \text{gradient compensation}} + \lambda_{\mathrm{rd}}\,\underbrace{\operatorname{mean}_{i,c}\,
    \mathrm{BCE}_c(z_i, \tilde y_i)}_{\text{relation distillation}}.$$

    The weight $w_i = g_i / \bar g$ with $g_i = |\sigma(z_{i,y_i}) - 1|$ divides by the mean over the new, or over the
    old, images of the batch. So both groups count equally. The targets $\tilde y_i$ are the labels, except in the
    columns of old classes: there they are the old model's answers $\sigma(z^{\mathrm{old}}_i)$.

    At the start of a task each client picks the image nearest to the mean of each new class and disguises it by a few
    gradient steps on its pixels. It sends the gradient of a small encoder network for the disguised image. The proxy
    server searches for an image with the same gradient. The global model that classifies most of these images
    correctly becomes the old model of the next task.

    - Source: Dong et al. 2022 (arXiv 2203.11473).
    - Trained, averaged: the CNN and the head ($|\theta|$, $L$ and $m$ as in FedAvg).
    - Up: the model. In round 0 of a task also the classes of the client's task and one encoder gradient per class.
    - Down: the model. In round 0 of every task but the first also the best model of the previous task and the known
      classes.
    - Stays on the client: the positions of its exemplars, at most `glfc_memory` in all; for the task the old model
      and the known classes. A memory larger than the data keeps every image; one smaller than the number of classes
      keeps none. A class without images on a client has no exemplar and no gradient there.
    - Stays on the server: the reconstructed images of the current task, the best model so far and its score.
    - Payload: the model has $M = 4(|\theta| + mC + C) + 8L$ bytes. Up $M + 8$; in round 0 of a task $M + 8 + C + 4qE$
      with $q$ classes of the task and $E = 8136 + 769C$ numbers of an encoder gradient. Down $M$; in round 0 of every
      task but the first $2M + C$. Without the proxy neither the gradients nor the second $M$ travel. With
      `head_merge = holders` another $C$ bytes go up in every later upload.

    Differences from the official code:
    1. All parties know where a task begins. The official entropy signal (1.2 nats for 10 new classes that everybody
       gets) fires late or never with private streams of 8 classes. So every client has the best model of the previous
       task in every round, and the server sends it once per task (official: two old models in every round).
    2. Classes are sets. Distilled are the columns that the old model knows minus those of the client's task. The loss
       runs over the classes that the client has seen and those that the old model knows (`glfc_columns = local`: only
       the former). The server learns them from the flags in round 0 of a task.
    3. The score to beat is reset in each task. In the official code it never restarts: once it reaches 100 %, later
       tasks rarely get a new model.
    4. All reconstructed images of the task are scored. The official code scores batches of 64 and drops the rest, so
       with few images it scores none.
    5. Herding takes no image twice and picks with the averaged model at the end of the task (official: with
       replacement, before averaging).
    6. A client keeps 800 exemplars by default (official: 2000), that is, 20 for each of 40 classes.
    7. A prototype is disguised by steps on its pixels between 0 and 1, as in the official code, but the CNN sees it
       normalised like every image. The official code skips the normalisation in this step. The encoder and the search
       use the CNN's normalised input (official: pixels), so the search starts from noise of the images' own scale and
       is closer at first. The encoder sees 32 x 32 pixels for every image size. Reconstructions are kept with 8 bits
       and enlarged for scoring (official: augmented).
    8. Averages are weighted by the number of images and include the BatchNorm statistics. Adam runs at `lr` with a
       fresh state in each round (official: SGD at 2.0, divided by 5 three times in a task, weight decay 1e-5). The
       CNN is the small CNN of this experiment. The released ResNet-18 has an attention module that its code never
       applies.
    9. All 5 clients train in every round (official: 10 of 30 and more), and none computes anything while it waits.
    10. Crops move by an eighth of the side, which is the official 4 of 32 pixels. Glyphs are not mirrored.
    11. `demo` and `mini` are smaller: 30 steps of the search (official: 250), of which the last 5 images are kept
        (20), and 5 rounds of at most 2 local epochs (10 of 20). After 30 steps a reconstruction has a correlation of
        0.55 to 0.83 with the disguised image (four images of CIFAR-100; 0.25 to 0.52 after 5 steps, 0.74 to 0.99
        after 100). On CIFAR-100 `mini` has 60 images per class, for which 800 exemplars are many: in its second task
        a client replays everything it has had, in the fifth still 25 of 60 images of a private class. Officially
        there are 2000 exemplars for classes of up to 500 images. In `full` there are 20 of up to 500 images of each
        of 40 classes, as in the official code. There the search takes 100 steps, of which the last 20 images are
        kept, because 250 steps would double the time.
    """

    name, label, paper_name, citation = "glfc", "GLFC", "GLFC", "2203.11473"
    place, turn = 6, 6
    sizes = {
        "smoke": {  # seconds
            "glfc_memory": 12,
            "glfc_perturb": 2,
            "glfc_steps": 2,
            "glfc_iterations": 1,
            "glfc_images": 1,
        },
        "demo": {"glfc_steps": 30, "glfc_images": 5},  # minutes on two cores: see difference 11
        "mini": {"glfc_steps": 30, "glfc_images": 5},
        "full": {"glfc_steps": 100},
        **AUGMENTED,
    }
    tuned = {"lr": 0.0031, "glfc_gc": 0.18, "glfc_rd": 0.9}
    search_space = {"lr": LogRange(1e-4, 1e-1), "glfc_gc": LogRange(0.05, 5), "glfc_rd": LogRange(0.05, 5)}
    costs = GLFCCosts
    sketch = Sketch(
        row=(IMAGE, CNN, HEAD, CLASS),
        helpers=(Part("kept old images", "kept"), None, Part("old model's answers", "frozen")),
        up="CNN and head; once per task a gradient for one disguised image of each new class",
        server="average; reconstruct images from the gradients; find the best model on them",
        down="the average; once per task the best model of the task before",
        stays="the kept images",
    )
    brightness = BRIGHTNESS

    class Parameters(OldModel.Parameters):
        """See `lscl.registry.Parameters`."""

        glfc_memory: int = Field(
            800, ge=0, le=10**7, description="exemplars per client, shared equally among its classes (official: 2000)"
        )
        glfc_selection: Literal["herding", "random"] = Field("herding", description="how exemplars are selected")
        glfc_gc: float = Field(
            0.5, **WEIGHT, description="weight of the gradient-compensated loss from the second task on (official: 0.5)"
        )
        glfc_rd: float = Field(0.5, **WEIGHT, description="weight of the relation distillation (official: 0.5)")
        glfc_columns: Literal["global", "local"] = Field(
            "global",
            description="classes in the loss: seen by the client or known to the old model, or only the former",
        )
        glfc_proxy: bool = Field(
            True,
            description="old model = the best of the previous task on the proxy server's images; off: the last one",
        )
        glfc_perturb: int = Field(
            50, ge=0, le=10**5, description="gradient steps that disguise a prototype image (official: 50)"
        )
        glfc_steps: int = Field(
            250, ge=1, le=10**5, description="L-BFGS steps to reconstruct a prototype (official: 250)"
        )
        glfc_iterations: int = Field(20, ge=1, le=10**4, description="L-BFGS iterations in a step (official: 20)")
        glfc_images: int = Field(
            20,
            ge=1,
            le=10**4,
            description="images kept of each reconstruction, those after the last steps (official: 20)",
        )

    # ---- client

    def phases(self, client: Client, stage: Stage) -> list[Phase]:
        """One phase, on the images of the task and the exemplars."""
        (phase,) = super().phases(client, stage)
        kept = client.state.get("exemplars", client.train_index[:0])
        phase.index = torch.cat([client.train_index, kept])
        return [phase]

    def loss(self, client: Client, batch: Batch) -> Tensor:
        """The mean BCE in the first task, then glfc_gc * L_GC + glfc_rd * L_RD."""
        logits, columns = self.logits(client, batch), self.columns(client)
        onehot = F.one_hot(batch.labels, self.num_classes).to(logits.dtype)
        if "old" not in client.scratch:
            return binary_cross_entropy(logits, onehot, columns).mean()
        new = torch.isin(batch.known_labels, client.classes)
        weights = gradient_compensation(logits.detach(), batch.labels, new)[:, None]  # (b, 1)
        compensated = (weights * binary_cross_entropy(logits, onehot, columns)).mean()
        targets = self.soft_targets(client, batch, onehot)
        distilled = binary_cross_entropy(logits, targets, columns).mean()
        return self.config.glfc_gc * compensated + self.config.glfc_rd * distilled

    def columns(self, client: Client) -> Tensor:
        """Where the loss runs, (K,): the client's seen classes and, unless glfc_columns = local, the old model's."""
        return client.keep("columns", lambda: self.allowed_columns(client), client.task, client.state.get(KNOWN))

    def allowed_columns(self, client: Client) -> Tensor:
        """The same, on the CPU."""
        allowed = torch.zeros(self.num_classes, dtype=torch.bool)
        allowed[torch.tensor(client.partition.seen_classes(client.id, client.task))] = True
        if self.config.glfc_columns == "global" and KNOWN in client.state:
            allowed |= client.state[KNOWN]
        return allowed.nonzero().squeeze(1)

    @torch.no_grad()
    def soft_targets(self, client: Client, batch: Batch, onehot: Tensor) -> Tensor:
        """Targets of L_RD: sigma(z_old) in the old columns.

        Args:
            client: with its old model.
            batch: b images.
            onehot: their labels, (b, C).

        Returns:
            (b, C).
        """
        old, columns = client.scratch["old"], self.old_columns(client)
        targets = onehot.clone()
        targets[:, columns] = old["head"](old["cnn"](batch.images))[:, columns].sigmoid()
        return targets

    def end_task(self, client: Client) -> None:
        """Share the memory out equally among the seen classes: shorten the old lists, pick images of new classes."""
        config, index = self.config, client.train_index
        each = config.glfc_memory // len(client.partition.seen_classes(client.id, client.task))
        old = client.state.get("exemplars", index[:0])
        if config.glfc_selection == "random":
            new = random_per_class(index, labels_of(client, index), each, client.rng("exemplars"))
        else:
            new = herding(index, labels_of(client, index), self.features(client, index), each)
        client.state["exemplars"] = torch.cat([first_of_each_class(old, labels_of(client, old), each), new])

    def features(self, client: Client, index: Tensor) -> Tensor:
        """f of many images, with the CNN in evaluation mode.

        Args:
            client: the one whose CNN looks.
            index: positions of n training images, (n,).

        Returns:
            (n, m), on the CPU.
        """
        cnn = client.model["cnn"].eval()
        return map_batches(client.train, index, lambda batch: cnn(batch.images)).cpu()

    def prototype_gradients(self, client: Client) -> Tensor:
        """For every new class the encoder's gradient for the disguised image nearest to its mean, (classes, E)."""
        index = client.train_index
        batch = client.train.batch(herding(index, labels_of(client, index), self.features(client, index), 1))
        images = resize(self.disguise(client, batch), SIDE)
        network = build_encoder(self.num_classes, self.config.seed).to(client.device)
        pairs = zip(images.split(1), batch.labels.split(1))  # (1, 3, 32, 32) and (1,) each
        return torch.stack([parameter_gradient(network, *pair) for pair in pairs])

    def disguise(self, client: Client, batch: Batch) -> Tensor:
        """Images after some gradient steps, on their pixels between 0 and 1, that lower the model's loss.

        Args:
            client: with the model.
            batch: b images.

        Returns:
            (b, 3, H, W).
        """
        columns, onehot = self.columns(client), F.one_hot(batch.labels, self.num_classes).float()
        if self.config.glfc_perturb == 0:
            return batch.images
        pixels = to_unit_range(batch.images).requires_grad_()
        for _ in range(self.config.glfc_perturb):
            logits = client.model["head"](client.model["cnn"](from_unit_range(pixels)))
            (slope,) = torch.autograd.grad(binary_cross_entropy(logits, onehot, columns).mean(1).sum(), [pixels])
            with torch.no_grad():
                pixels -= PERTURB_LR * (slope + PERTURB_DECAY * pixels)
        return from_unit_range(pixels).detach()

    def upload(self, client: Client, stage: Stage) -> Payload:
        extra = (
            {"gradients": self.prototype_gradients(client)}
            if self.config.glfc_proxy and is_first_exchange(stage)
            else {}
        )
        return {**super().upload(client, stage), **extra}

    # ---- server

    def upload_shapes(self, client: int, stage: Stage) -> Shapes:
        if not (self.config.glfc_proxy and is_first_exchange(stage)):
            return super().upload_shapes(client, stage)
        classes = np.count_nonzero(self.census.train[client, stage.task])
        return {**super().upload_shapes(client, stage), "gradients": (classes, 8136 + 769 * self.num_classes)}

    def once_per_task(self, stage: Stage) -> Payload:
        """With the best model of the previous task, if a proxy server chooses it."""
        old = {name.replace(BEST, OLD, 1): value for name, value in self.server.items() if name.startswith(BEST)}
        return {**super().once_per_task(stage), **old}

    def summed_names(self, stage: Stage) -> Collection[str]:
        """Not the gradients: the proxy server makes an image of each."""
        return set(super().summed_names(stage)) - {"gradients"}

    def aggregate(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        """Average; the proxy server reconstructs what is new and keeps the model if none of the task was better."""
        super().aggregate(uploads, stage)
        if not self.config.glfc_proxy:
            return
        if is_first_exchange(stage):
            self.server |= self.reconstruct_prototypes(
                torch.cat([payload["gradients"] for payload in uploads.values()]), stage.task
            )
            self.server["score"] = torch.tensor(-1.0)
        score = self.score()
        if score >= self.server["score"]:
            self.server["score"] = score
            self.server |= {f"{BEST}{name}": value for name, value in model_part(self.server).items()}

    def reconstruct_prototypes(self, gradients: Tensor, task: int) -> Payload:
        """What the proxy server makes of the gradients: the last k iterates of each search.

        Args:
            gradients: of all clients, (n, E).
            task: the one that begins.

        Returns:
            `proxy.images` (n k, 32, 32, 3) uint8 and `proxy.labels` (n k,).
        """
        config, device = self.config, self.device
        network = build_encoder(self.num_classes, config.seed).to(device)
        draw = torch_generator(config.seed, "reconstruction", task)
        labels = torch.tensor([recover_class(one, self.num_classes) for one in gradients], dtype=torch.int64)
        if not len(labels):
            return {"proxy.images": torch.empty(0, SIDE, SIDE, 3, dtype=torch.uint8), "proxy.labels": labels}
        start = torch.cat([torch.randn(1, 3, SIDE, SIDE, generator=draw) for _ in labels])
        found = reconstruct_images(
            network, gradients.to(device), labels.to(device),
            config.glfc_steps, config.glfc_iterations, config.glfc_images, start.to(device),
        )  # fmt: skip
        return {
            "proxy.images": as_pixels(found.flatten(0, 1)),  # (n k, 3, 32, 32) -> (n k, 32, 32, 3)
            "proxy.labels": labels.repeat_interleave(found.shape[1]),
        }

    @torch.no_grad()
    def score(self) -> Tensor:
        """Share of the reconstructed images that the global model gets right among the known classes, (); 0 of none."""
        model, right = self.teacher(), torch.tensor(0.0)
        pixels_in_parts = self.server["proxy.images"].split(BATCH)  # (b, 32, 32, 3) each
        labels_in_parts = self.server["proxy.labels"].split(BATCH)  # (b,) each
        for pixels, labels in zip(pixels_in_parts, labels_in_parts):
            images = resize(to_cnn_input(pixels.to(self.device)), self.config.side)
            logits = mask_logits(model["head"](model["cnn"](images)), self.known_classes())
            right += (logits.argmax(1).cpu() == labels).sum()
        return right / max(1, len(self.server["proxy.labels"]))

    def sheet(self, task: int) -> np.ndarray | None:
        """The last reconstruction of every gradient: what the proxy server gets to see."""
        if "proxy.images" not in self.server:
            return None
        each = min(self.config.glfc_images, self.config.glfc_steps)
        return self.server["proxy.images"][each - 1 :: each].numpy()


def labels_of(client: Client, index: Tensor) -> Tensor:
    """The labels of a client's training images.

    Args:
        client: whose.
        index: positions, (n,).

    Returns:
        (n,), on the CPU.
    """
    return client.train.batch(index).known_labels


@in_float32
def binary_cross_entropy(logits: Tensor, targets: Tensor, columns: Tensor) -> Tensor:
    """BCE(sigma(z_bc), y_bc) of every class on its own.

    Args:
        logits: z, (b, C).
        targets: y, (b, C).
        columns: the classes that count, (K,).

    Returns:
        (b, K).
    """
    return F.binary_cross_entropy_with_logits(logits[:, columns], targets[:, columns], reduction="none")


@in_float32
def gradient_compensation(logits: Tensor, labels: Tensor, new: Tensor) -> Tensor:
    """Weights of images: g_b = |sigma(z_y) - 1| divided by its mean over the batch's new, or its old, images.

    Args:
        logits: z, (b, C).
        labels: y, (b,).
        new: whether the image is of the client's task, (b,) bool, on the CPU.

    Returns:
        (b,), with mean 1 in each group.
    """
    g = (logits.gather(1, labels[:, None]).squeeze(1).sigmoid() - 1).abs()
    weights = torch.ones_like(g)
    for group in (new, ~new):
        if group.any():
            rows = send(group.nonzero().squeeze(1), g.device)
            weights[rows] = g[rows] / g[rows].mean().clamp_min(1e-8)
    return weights
