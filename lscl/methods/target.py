"""TARGET: the server turns the global model into synthetic images, on which clients distil the old classes."""

import copy
import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lscl.config import RATE, SCALE, WEIGHT, Experiment
from lscl.federation.client import Batch, Client, to_cnn_input
from lscl.federation.costs import Costs, OwnWork, Planned
from lscl.federation.method import Stage
from lscl.federation.payload import Payload
from lscl.federation.search_space import LogRange
from lscl.methods.parts.continual import distillation
from lscl.methods.parts.old_model import OldModel
from lscl.methods.parts.synthesis import (
    ImageGenerator,
    Statistics,
    as_pixels,
    batchnorm_layers,
    generator_flops,
    jitter,
    mix_moments,
    norm_gap,
)
from lscl.registry import register
from lscl.seeding import seeded, torch_generator

TEMPERATURE = 2.0  # of the clients' distillation
CARRIED = 0.9  # share of the earlier rounds in the batch statistics
SHOWN = 64  # images on a sheet
STUDENT_LR, STUDENT_MOMENTUM = 0.2, 0.9


class TARGETCosts(Costs):
    """Synthetic images beside those of a batch; generator and student on the server."""

    def cnn_images(self) -> float:
        return 2

    def own_work(self, run: Planned) -> OwnWork:
        config, f = self.config, run.cnn.flops
        made = generator_flops(config.target_latent, config, config.target_width)
        turns = math.ceil(config.target_images / config.target_batch)
        taught = max(0, turns - max(1, config.target_warmup))
        drawn = config.target_steps * config.target_batch  # images that the generator makes in a turn
        synthesis = turns * drawn * (3 * made + 2 * f) + taught * drawn * 2 * f
        student = taught * config.target_student_steps * config.target_batch * 4 * f
        steps = run.ends * (turns * config.target_steps + taught * config.target_student_steps)
        return OwnWork(run.trained * run.later * 4 * f, run.ends * (synthesis + student), steps)


@register
class TARGET(OldModel):
    """Clients learn new classes from their own images and imitate the old global model on synthetic ones.
    The server makes these at the end of a task: a generator learns, without data, images that the global model is sure
    about and whose BatchNorm statistics are those of the training.

    Zhang et al. 2023 (arXiv 2303.06937). Trained, uploaded, averaged: CNN and head (P, L, m as in FedAvg). A client
    keeps the old model, `known` and n synthetic images of S pixels a side for the task; the server keeps the images of
    the newest task.
    Payload: M = 4 (P + m C + C) + 8 L bytes are the model; up M + 8, in round 0 of a task M + 8 + C (the classes of the
    client's task); down M, in round 0 of every task but the first M + C + 3 n S^2; with head_merge = holders C more in
    every later upload.

    Differences from the official code:
    1. classes are sets: old = classes of earlier tasks of any client that are not in the client's task
       (there: column ranges). The server knows them from the flags that come up in round 0 of a task.
    2. so many rounds of synthesis are made as n images need (there 10 x 256 = 2560 of the 8000 asked for), so that the
       adversarial term, which starts after 20 rounds, is reached at all; the student is trained before a round that
       uses it, not behind.
    3. the synthetic batch of a step is drawn at random (there images are read in the order of file names, and the
       shorter of the two loaders ends an epoch).
    4. averages are weighted by the number of images, BatchNorm statistics included; Adam at `lr` with a fresh state
       each round (there SGD).
    5. the old model is what round 0 of a task brings anyway and is not sent a second time.
    6. the small CNN of this experiment at its image size; training images are not augmented, synthetic ones only while
       they are made.
    """

    name, label, paper_name, citation = "target", "TARGET", "TARGET", "2303.06937"
    place, turn = 7, 4
    sizes = {
        "smoke": {  # seconds
            "target_images": 20, "target_batch": 8, "target_steps": 3, "target_latent": 8, "target_width": 4,
            "target_warmup": 1, "target_student_steps": 2,
        },
        # minutes on two cores: a narrow generator, a twentieth of the images, which is more than a client has in a task
        **{
            profile: {
                "target_images": 400, "target_batch": 50, "target_width": 16, "target_warmup": 4,
                "target_student_steps": 20,
            }
            for profile in ("demo", "mini")
        },
    }  # fmt: skip
    tuned = {"lr": 3e-4}
    search_space = {"lr": LogRange(1e-5, 1e-1), "target_lr": LogRange(1e-4, 1e-1), "target_kd": LogRange(0.25, 250)}
    costs = TARGETCosts

    class Parameters(OldModel.Parameters):
        """See `lscl.registry.Parameters`."""

        target_images: int = Field(
            8000, ge=2, le=10**7, description="synthetic images, made by as many rounds as they need (official: 8000)"
        )
        target_batch: int = Field(
            256, ge=2, le=2**16, description="images made in one round of the synthesis (official: 256)"
        )
        target_steps: int = Field(
            10,
            ge=1,
            le=10**5,
            description="steps of the fast generator in a round, the best images are kept (official: 10)",
        )
        target_latent: int = Field(256, ge=1, le=2**16, description="length of the generator's input z (official: 256)")
        target_width: int = Field(
            64, ge=1, le=4096, description="channels of the generator's last block (official: 64)"
        )
        target_lr: float = Field(2e-3, **RATE, description="Adam learning rate of the generator (official: 0.002)")
        target_lr_z: float = Field(0.01, **RATE, description="Adam learning rate of z (official: 0.01)")
        target_bn: float = Field(10.0, **WEIGHT, description="weight of the BatchNorm statistics (official: 10)")
        target_onehot: float = Field(
            0.5, **WEIGHT, description="weight of the cross-entropy with random labels (official: 0.5)"
        )
        target_adversarial: float = Field(
            1.0, **WEIGHT, description="weight of the disagreement of teacher and student (official: 1)"
        )
        target_warmup: int = Field(
            20, ge=0, le=10**6, description="rounds before the student and the adversarial term begin (official: 20)"
        )
        target_student_steps: int = Field(
            400, ge=0, le=10**6, description="training steps of the student in a round (official: 400)"
        )
        target_temperature: float = Field(
            20.0, **SCALE, description="temperature of the student's training (official: 20)"
        )
        target_meta: Literal["maml", "reptile", "plain"] = Field(
            "maml", description="update of the generator by its fast copy; plain = no copy"
        )
        target_kd: float = Field(
            25.0, **WEIGHT, description="weight of the distillation on synthetic images (official: 25)"
        )

    def build(self, client: int) -> nn.Module:
        model = super().build(client)
        batchnorm_layers(model, self.config.method, self.config.cnn)
        return model

    # ---- client

    def loss(self, client: Client, batch: Batch) -> Tensor:
        """CE over the classes of the task, and from the second task on 25 times the distillation of the old columns."""
        total = super().loss(client, batch)
        if "old" not in client.scratch:
            return total
        return total + self.config.target_kd * self.distillation(client, len(batch.index))

    def distillation(self, client: Client, size: int) -> Tensor:
        """The distillation on synthetic images drawn with replacement, over the old columns only.

        Args:
            client: with its old model.
            size: how many images.

        Returns:
            (); zero without old columns.
        """
        images, columns = client.state["synthetic"], self.old_columns(client).to(client.device)
        chosen = torch.randint(len(images), (size,), generator=client.scratch["replay"])
        u = to_cnn_input(images[chosen].to(client.device))
        self.optimised += size
        with torch.no_grad():
            teacher = model_logits(client.scratch["old"], u)
        return distillation(model_logits(client.model, u), teacher, columns, TEMPERATURE)

    # ---- server

    def once_per_task(self, stage: Stage) -> Payload:
        """With the synthetic images."""
        return {**super().once_per_task(stage), "synthetic": self.server["synthetic"]}

    def server_end_task(self, task: int) -> None:
        """Make the images for the next task, of all classes known by now."""
        if task + 1 < self.config.tasks:
            with seeded(self.config.seed, "synthesis", task):
                student = self.build(0).to(self.device)
                draw = torch_generator(self.config.seed, "synthesis", task)
                synthesis = Synthesis(self.config, self.teacher(), student, self.known_classes(), draw, self.device)
                self.server["synthetic"] = synthesis.make_images()
                self.optimised += synthesis.optimised

    def sheet(self, task: int) -> np.ndarray | None:
        made = "synthetic" in self.server and task + 1 < self.config.tasks
        return self.server["synthetic"][:SHOWN].numpy() if made else None


def model_logits(model: nn.Module, images: Tensor) -> Tensor:
    """The logits of images.

    Args:
        model: with `cnn` and `head`.
        images: (b, 3, H, W).

    Returns:
        (b, C).
    """
    return model["head"](model["cnn"](images))


def disagreement(student: Tensor, teacher: Tensor) -> Tensor:
    """L_adv: minus KL(teacher || student) on the images whose best class is the same for both.

    Args:
        student: logits, (b, K).
        teacher: logits, (b, K).

    Returns:
        ().
    """
    kl = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").sum(1)
    return -(kl * (student.argmax(1) == teacher.argmax(1))).mean()


class Synthesis:
    """One data-free inversion of a network, by rounds of a fast copy of a generator.

    Args:
        config: with the parameters of the synthesis.
        teacher: the network.
        student: an untrained one that is to disagree with it.
        classes: those that the images are to be of, (K,).
        draw: CPU generator of noise, labels and shifts; the generator network's weights come from torch's global one.
        device: where it computes.
    """

    def __init__(
        self,
        config: Experiment,
        teacher: nn.Module,
        student: nn.Module,
        classes: Tensor,
        draw: torch.Generator,
        device: torch.device,
    ):
        self.config, self.teacher, self.student, self.classes = config, teacher, student, classes
        self.draw, self.device = draw, device
        generator = ImageGenerator(config.target_latent, config.side, config.target_width, nn.Sigmoid())
        self.generator = generator.to(device).train()
        rate = config.target_lr * config.target_steps
        self.meta = torch.optim.Adam(self.generator.parameters(), rate, betas=(0.5, 0.999))
        self.teaching = torch.optim.SGD(student.parameters(), lr=STUDENT_LR, momentum=STUDENT_MOMENTUM)
        self.statistics, self.carried = Statistics(batchnorm_layers(teacher, config.method, config.cnn)), None
        self.optimised = 0  # images that generator and student have been trained on

    def make_images(self) -> Tensor:
        """Rounds until there are enough images: (n, S, S, 3) uint8."""
        config, made = self.config, []
        for number in range(math.ceil(config.target_images / config.target_batch)):
            adversarial = number >= config.target_warmup and len(made) > 0
            if adversarial:
                self.teach_student(torch.cat(made))
            made.append(as_pixels(self.make_batch(adversarial)))
        return torch.cat(made)[: config.target_images]

    def make_batch(self, adversarial: bool) -> Tensor:
        """A round: steps on a fast copy and its z, then the meta update; -> the images of lowest loss, (b, 3, S, S)."""
        config = self.config
        fast = self.generator if config.target_meta == "plain" else copy.deepcopy(self.generator)
        z = torch.randn(config.target_batch, config.target_latent, generator=self.draw).to(self.device).requires_grad_()
        labels = torch.randint(len(self.classes), (config.target_batch,), generator=self.draw).to(self.device)
        groups = [{"params": fast.parameters(), "lr": config.target_lr}, {"params": [z], "lr": config.target_lr_z}]
        optimiser = torch.optim.Adam(groups, betas=(0.5, 0.999))
        summed = [torch.zeros_like(p) for p in fast.parameters()]
        lowest, best = math.inf, None
        for _ in range(config.target_steps):
            images = (fast(z) - 0.5) / 0.25
            loss = self.loss(images, labels, adversarial)
            if best is None or loss.item() < lowest:
                lowest, best = loss.item(), images.detach()
            optimiser.zero_grad()
            loss.backward()
            for total, p in zip(summed, fast.parameters()):
                total += p.grad
            optimiser.step()
            self.optimised += len(images)
        self.carried = [(mean.detach(), variance.detach()) for mean, variance in self.mixed]
        self.update_generator(fast, summed)
        return best

    def loss(self, images: Tensor, labels: Tensor, adversarial: bool) -> Tensor:
        """L_syn.

        Args:
            images: (b, 3, S, S).
            labels: places of their target labels in `classes`, (b,).
            adversarial: whether the student counts.

        Returns:
            ().
        """
        config = self.config
        with self.statistics:
            shifted = jitter(images, self.draw)
            teacher = model_logits(self.teacher, shifted)[:, self.classes]
        self.mixed = mix_moments(self.carried, self.statistics.batch(), CARRIED)
        total = config.target_bn * norm_gap(self.mixed, self.statistics.running())
        total = total + config.target_onehot * F.cross_entropy(teacher, labels)
        if adversarial:
            student = model_logits(self.student.eval(), shifted)[:, self.classes]
            total = total + config.target_adversarial * disagreement(student, teacher)
        return total

    def update_generator(self, fast: nn.Module, summed: list[Tensor]) -> None:
        """Move the generator by its fast copy: along the sum of its gradients (maml), or towards it (reptile).

        Args:
            fast: the copy; with plain there is none.
            summed: its gradients over the steps, in the order of its parameters.
        """
        if self.config.target_meta == "plain":
            return
        for p, quick, total in zip(self.generator.parameters(), fast.parameters(), summed):
            p.grad = total if self.config.target_meta == "maml" else p.detach() - quick.detach()
        self.meta.step()

    def teach_student(self, images: Tensor) -> None:
        """Train the student to say what the teacher says on the images made so far, (n, S, S, 3) uint8."""
        config = self.config
        self.student.train()
        for _ in range(config.target_student_steps):
            chosen = torch.randint(len(images), (config.target_batch,), generator=self.draw)
            u = to_cnn_input(images[chosen].to(self.device))
            with torch.no_grad():
                teacher = model_logits(self.teacher, u)[:, self.classes] / config.target_temperature
            student = model_logits(self.student, u)[:, self.classes] / config.target_temperature
            loss = (
                F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")
                * config.target_temperature**2
            )
            self.teaching.zero_grad()
            loss.backward()
            self.teaching.step()
            self.optimised += len(u)
