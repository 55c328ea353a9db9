"""MFCL: the server trains a generator of images at the end of a task; clients draw their replay from it."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lscl.config import RATE, SCALE, WEIGHT
from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs, OwnWork, Planned
from lscl.federation.masking import mask_logits, masked_cross_entropy
from lscl.federation.method import Stage
from lscl.federation.payload import Payload
from lscl.federation.search_space import LogRange
from lscl.federation.sketch import CLASS, CNN, HEAD, IMAGE, Part, Sketch
from lscl.methods.parts.augmentation import AUGMENTED
from lscl.methods.parts.old_model import KNOWN, OldModel, labels_in
from lscl.methods.parts.synthesis import (
    ImageGenerator,
    Statistics,
    as_pixels,
    batchnorm_layers,
    generator_flops,
    kl_gap,
)
from lscl.models.precision import in_float32
from lscl.models.transfer import send
from lscl.registry import register
from lscl.seeding import seeded, torch_generator

GENERATOR = "generator."  # prefix of the generator's names in server, payload and client state
SHOWN = 64  # images on a sheet
BLUR, SIGMA = 5, math.sqrt(2)  # pixels of the window, and the width that the released code computes for its nominal 1


class MFCLCosts(Costs):
    """Generated images beside those of a batch; the generator's training on the server."""

    def cnn_images(self) -> float:
        return 1 + self.config.mfcl_replay / self.config.batch

    def own_work(self, run: Planned) -> OwnWork:
        config, f, replay = self.config, run.cnn.flops, self.config.mfcl_replay / self.config.batch
        made = generator_flops(config.mfcl_latent, config, config.mfcl_width)
        clients = run.trained * run.later * (replay * (made + 3 * f + f) + (1 + replay) * f)
        return OwnWork(
            clients, run.ends * config.mfcl_steps * config.mfcl_batch * (3 * made + 2 * f), run.ends * config.mfcl_steps
        )


@register
class MFCL(OldModel):
    r"""At the end of a task the server trains a generator that turns noise into images, with the global model as its
    only guide. In the next task the clients draw images from this generator and replay them in place of real images
    of old tasks. New classes train the whole CNN, all classes train the head on fixed features, and the old head's
    answers are preserved.

    From the second task on a client minimises, with replayed images $u$, features $f$, a stop-gradient
    $\operatorname{sg}$, and the head $W$,

    $$L = \mathrm{CE}(\text{new images})
    + w_{\mathrm{ft}}\,\mathrm{CE}\big(W \operatorname{sg}[f],\; \text{all classes}\big)
    + w_{\mathrm{kd}}\,\operatorname{mean}\,\lVert W_{\mathrm{old}}\,(f - f_{\mathrm{old}})\rVert^2.$$

    The second term trains only the head, the third only the CNN. The server trains the generator on the cross-entropy
    of the global model with its own answer, on the balance of the classes, on BatchNorm statistics, and on
    smoothness:

    $$L_{\mathrm{gen}} = w_1 L_{\mathrm{CE}}
    + w_2 L_{\mathrm{balance}} + w_3 L_{\mathrm{BN}} + w_4 L_{\mathrm{smooth}}.$$

    - Source: Babakniya et al. 2023 (arXiv 2311.07784).
    - Trained, averaged: the CNN and the head ($|\theta|$, $L$ and $m$ as in FedAvg).
    - Up: the model. In round 0 of a task also the classes of the client's task.
    - Down: the model. In round 0 of every task but the first also the known classes and the generator.
    - Stays on the client: the old model, the known classes and the generator, for the task.
    - Stays on the server: the generator, whose training continues from task to task.
    - Payload: the model has $M = 4(|\theta| + mC + C) + 8L$ bytes. Up $M + 8$; in round 0 of a task $M + 8 + C$. Down
      $M$; in round 0 of every task but the first $M + C + 4G + 32$. The generator has
      $G = 2ws^2(z+1) + 54w^2 + 50w + 9$ numbers for $z$ = `mfcl_latent`, $w$ = `mfcl_width` and images of $S$ pixels
      a side, with $s = \lceil S/4 \rceil$. Above 64 pixels it is $4G + 56$ with $G = ws^2(z+1) + 45w^2 + 56w + 9$ and
      $s = \lceil S/32 \rceil$. With `head_merge = holders` another $C$ bytes go up in every later upload.

    Differences from the official code:
    1. Classes are sets. Replay is labelled among the classes $U$ of earlier tasks of any client. The old head is
       compared on $U$ minus the client's task. "All classes" are $U$ and the client's task (official: column ranges).
       The server learns them from the flags in round 0 of a task.
    2. The old model is the model of round 0, so the server does not send it twice.
    3. The CNN runs once per step. The official code runs it twice, which counts every batch twice in the BatchNorm
       statistics. The measuring hooks are removed from the teacher after the generator's training; the official code
       leaves them in place, where they slow every step.
    4. There are no importance weights, because they are all one in the released code.
    5. Averages are weighted by the number of images and include the BatchNorm statistics. Adam runs at `lr` with a
       fresh state in each round (official: SGD, from 0.1 down to 0.01 within a task, weight decay 1e-5). The CNN is
       the small CNN of this experiment (official: ResNet-18).
    6. The blurred image is compared inside a border of 2 pixels (official: the border is reflected).
    7. Real images are cropped by an eighth of the side, which is the official 4 of 32 pixels. Glyphs are not
       mirrored. Generated images are not augmented, as in the official code.
    8. `demo`, `mini` and `full` are smaller: a generator of 16 channels (official: 64) that reads 100 numbers (1000).
       So its size relative to the small CNN is that of the official generator relative to ResNet-18. There are 5
       rounds of at most 2 local epochs on all 5 clients (100 rounds of 10 on 5 of 50). The official 128 generated
       images for 32 real ones in a step, 100 steps and batches of 128 of the generator's training are kept. In
       `colab` and `paper` the batch has 16 real images.
    """

    name, label, paper_name, citation = "mfcl", "MFCL", "MFCL", "2311.07784"
    place, turn = 8, 5
    sizes = {
        "smoke": {"mfcl_replay": 8, "mfcl_latent": 8, "mfcl_width": 4, "mfcl_steps": 5, "mfcl_batch": 8},  # seconds
        # minutes on two cores: see difference 8
        "demo": {"mfcl_latent": 100, "mfcl_width": 16},
        "mini": {"mfcl_latent": 100, "mfcl_width": 16},
        "full": {"mfcl_latent": 100, "mfcl_width": 16},  # as large beside the CNN, which is that of mini
        **AUGMENTED,
    }
    tuned = {"lr": 8e-4, "mfcl_lr": 5.2e-4, "mfcl_kd": 0.14, "mfcl_ft": 3.1}
    search_space = {
        "lr": LogRange(1e-4, 1e-1),
        "mfcl_lr": LogRange(1e-4, 1e-2),
        "mfcl_kd": LogRange(1e-2, 1),
        "mfcl_ft": LogRange(0.1, 10),
    }
    costs = MFCLCosts
    sketch = Sketch(
        row=(IMAGE, CNN, HEAD, CLASS),
        helpers=(Part("generator of old images", "frozen"), None, Part("old head's answers", "frozen")),
        up="CNN and head",
        server="average; after each task train the image generator on the model",
        down="the average; once per task the image generator",
    )

    class Parameters(OldModel.Parameters):
        """See `lscl.registry.Parameters`."""

        mfcl_ft: float = Field(
            1.0, **WEIGHT, description="weight of the head-only cross-entropy over all classes (official: 1)"
        )
        mfcl_kd: float = Field(
            0.1, **WEIGHT, description="weight of the distillation through the old head (official: 0.1)"
        )
        mfcl_replay: int = Field(128, ge=1, le=2**16, description="generated images per training step (official: 128)")
        mfcl_latent: int = Field(1000, ge=1, le=2**16, description="length of the generator's input z (official: 1000)")
        mfcl_width: int = Field(64, ge=1, le=4096, description="channels of the generator's last block (official: 64)")
        mfcl_steps: int = Field(
            100, ge=1, le=10**6, description="training steps of the generator per task (official: 100)"
        )
        mfcl_batch: int = Field(
            128, ge=2, le=2**16, description="images per step of the generator's training (official: 128)"
        )
        mfcl_lr: float = Field(1e-3, **RATE, description="Adam learning rate of the generator (official: 0.001)")
        mfcl_tau: float = Field(
            1000.0, **SCALE, description="temperature of the generator's class loss (official: 1000)"
        )
        mfcl_ce: float = Field(1.0, **WEIGHT, description="weight of the generator's class loss (official: 1)")
        mfcl_ie: float = Field(
            1.0, **WEIGHT, description="weight of the information entropy over classes (official: 1)"
        )
        mfcl_bn: float = Field(50.0, **WEIGHT, description="weight of the BatchNorm statistics (official: 50)")
        mfcl_tv: float = Field(1e-3, **WEIGHT, description="weight of the smoothness of the images (official: 0.001)")

    def build(self, client: int) -> nn.Module:
        model = super().build(client)
        batchnorm_layers(model, self.config.method, self.config.cnn)
        return model

    def new_generator(self) -> ImageGenerator:
        """An untrained generator; its images come out with mean 0 and variance 1, as the CNN takes them."""
        config = self.config
        last = nn.Sequential(nn.Tanh(), nn.BatchNorm2d(3, affine=False))
        with seeded(config.seed, "generator"):
            return ImageGenerator(config.mfcl_latent, config.side, config.mfcl_width, last, eps=0.8)

    def load_generator(self, state: Payload) -> ImageGenerator:
        """The generator among the tensors of server or client state."""
        generator = self.new_generator()
        generator.load_state_dict(
            {name.removeprefix(GENERATOR): value for name, value in state.items() if name.startswith(GENERATOR)}
        )
        return generator

    # ---- client

    def receive(self, client: Client, payload: Payload, stage: Stage) -> None:
        super().receive(client, payload, stage)
        if stage.task > 0 and stage.name == "train":
            client.scratch["generator"] = self.load_generator(client.state).to(client.device).eval()

    def loss(self, client: Client, batch: Batch) -> Tensor:
        """First task: CE. Later: CE of the new images + w_ft * `head_term` + w_kd * `old_head_term`; one body pass."""
        if "old" not in client.scratch:
            return super().loss(client, batch)
        config, model = self.config, client.model
        replay, guessed = self.sample_replay(client)
        self.optimised += len(replay)
        images, labels = torch.cat([batch.images, replay]), torch.cat([batch.labels, guessed])
        f = model["cnn"](images)
        new = masked_cross_entropy(model["head"](f[: len(batch.images)]), batch.labels, client.classes)
        return (
            new
            + config.mfcl_ft * self.head_term(client, f, labels)
            + config.mfcl_kd * self.old_head_term(client, f, images)
        )

    @torch.no_grad()
    def sample_replay(self, client: Client) -> tuple[Tensor, Tensor]:
        """Images from the generator, (b, 3, S, S), and what the old model takes them for among known classes, (b,)."""
        z = torch.randn(self.config.mfcl_replay, self.config.mfcl_latent, generator=client.scratch["replay"])
        images, old = client.scratch["generator"](send(z, client.device)), client.scratch["old"]
        known = labels_in(client.state[KNOWN])  # (K,)
        return images, mask_logits(old["head"](old["cnn"](images)), known).argmax(1)

    def head_term(self, client: Client, f: Tensor, labels: Tensor) -> Tensor:
        """CE of W sg[f] over all classes seen: trains the head, never the body.

        Args:
            client: the one that trains.
            f: features, (b, m).
            labels: (b,).

        Returns:
            ().
        """
        seen = labels_in(client.state[KNOWN] | self.holds(client))  # (K,)
        return masked_cross_entropy(client.model["head"](f.detach()), labels, seen)

    def old_head_term(self, client: Client, f: Tensor, images: Tensor) -> Tensor:
        """Mean over images and old columns of (W_old f - W_old f_old)^2: moves the body only.

        Args:
            client: with its old model.
            f: features, (b, m).
            images: they are of, (b, 3, S, S).

        Returns:
            (); 0 without old columns.
        """
        old, columns = client.scratch["old"], self.old_columns(client)
        with torch.no_grad():
            before = old["cnn"](images)
        weight = old["head"].weight[columns]
        return squared_outputs(f - before, weight) / max(1, len(f) * len(columns))

    # ---- server

    def initial_server(self) -> dict[str, Tensor]:
        return {**super().initial_server(), **self.generator_payload(self.new_generator())}

    def generator_payload(self, generator: ImageGenerator) -> Payload:
        """The generator by the names it has in the server: parameters, BatchNorm means, variances and counters."""
        return {f"{GENERATOR}{name}": value.detach().cpu().clone() for name, value in generator.state_dict().items()}

    def once_per_task(self, stage: Stage) -> Payload:
        """With the generator."""
        generator = {name: value for name, value in self.server.items() if name.startswith(GENERATOR)}
        return {**super().once_per_task(stage), **generator}

    def server_end_task(self, task: int) -> None:
        """Train the generator further, on the global model of the task's end."""
        if task + 1 == self.config.tasks:
            return
        config, teacher, classes = self.config, self.teacher(), self.known_classes().to(self.device)
        generator = self.load_generator(self.server).to(self.device).train()
        optimiser = torch.optim.Adam(generator.parameters(), lr=config.mfcl_lr)
        draw = torch_generator(config.seed, "synthesis", task)
        with Statistics(batchnorm_layers(teacher, config.method, config.cnn)) as statistics:
            for _ in range(config.mfcl_steps):
                z = torch.randn(config.mfcl_batch, config.mfcl_latent, generator=draw)
                images = generator(send(z, self.device))
                logits = teacher["head"](teacher["cnn"](images))[:, classes]
                loss = config.mfcl_ce * F.cross_entropy(logits / config.mfcl_tau, logits.argmax(1))
                loss = loss + config.mfcl_ie * imbalance(logits)
                loss = loss + config.mfcl_bn * kl_gap(statistics.batch(), statistics.running())
                loss = loss + config.mfcl_tv * roughness(images)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                self.optimised += len(images)
        self.server |= self.generator_payload(generator)

    @torch.no_grad()
    def sheet(self, task: int) -> np.ndarray | None:
        if task + 1 == self.config.tasks:
            return None
        z = torch.randn(SHOWN, self.config.mfcl_latent, generator=torch_generator(self.config.seed, "sheet", task))
        return as_pixels(self.load_generator(self.server).eval()(z)).numpy()


@in_float32
def squared_outputs(x: Tensor, weight: Tensor) -> Tensor:
    """||x W^T||_F^2.

    Args:
        x: (b, m).
        weight: W, (K, m).

    Returns:
        ().
    """
    return F.linear(x, weight).square().sum()


def imbalance(logits: Tensor) -> Tensor:
    """Information entropy term of logits (b, K): 1 + sum_c p_c log p_c / log K, (); p is the mean softmax of the batch.

    It is 0 if all classes are alike.
    """
    p = logits.softmax(1).mean(0).clamp_min(1e-12)
    return 1 + (p * p.log()).sum() / math.log(max(2, len(p)))


def roughness(images: Tensor) -> Tensor:
    """Mean squared difference to the blurred image (5 x 5 Gaussian), inside the border. (b, 3, H, W) -> ()."""
    edge = BLUR // 2
    place = torch.arange(BLUR, device=images.device) - edge
    line = torch.exp(-place.square() / (2 * SIGMA**2))
    window = torch.outer(line, line) / line.sum().square()
    blurred = F.conv2d(images, window.expand(3, 1, BLUR, BLUR), groups=3)  # (b, 3, H - 4, W - 4)
    return (images[:, :, edge:-edge, edge:-edge] - blurred).square().mean()
