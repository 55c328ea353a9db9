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
from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs, OwnWork, Planned
from lscl.federation.method import Stage
from lscl.federation.payload import Payload
from lscl.federation.search_space import LogRange
from lscl.federation.sketch import CLASS, CNN, HEAD, IMAGE, Part, Sketch
from lscl.methods.parts.augmentation import AUGMENTED, BRIGHTNESS, augmentation, crop_and_flip
from lscl.methods.parts.continual import distillation
from lscl.methods.parts.old_model import OldModel
from lscl.methods.parts.synthesis import (
    ImageGenerator,
    Statistics,
    as_pixels,
    batchnorm_layers,
    generator_flops,
    mix_moments,
    norm_gap,
)
from lscl.models.cnn import from_unit_range, to_cnn_input
from lscl.models.transfer import send
from lscl.registry import register
from lscl.seeding import seeded, torch_generator

TEMPERATURE = 2.0  # of the clients' distillation
CARRIED = 0.9  # share of the earlier rounds in the batch statistics
SHOWN = 64  # images on a sheet
STUDENT_LR, STUDENT_MOMENTUM, STUDENT_DECAY = 0.2, 0.9, 1e-4
STUDENT_PERIOD, STUDENT_LEAST = 200, 2e-4  # rounds until the cosine has brought the student's rate down, and to what


class TARGETCosts(Costs):
    """Synthetic images beside those of a batch; generator and student on the server."""

    def cnn_images(self) -> float:
        return 1 + self.config.target_replay

    def own_work(self, run: Planned) -> OwnWork:
        config, f = self.config, run.cnn.flops
        made = generator_flops(config.target_latent, config, config.target_width)
        turns = math.ceil(config.target_images / config.target_batch)
        opposed = turns - max(0, config.target_warmup - 1)  # with the adversarial term
        taught = turns - 1 - config.target_warmup
        drawn = config.target_steps * config.target_batch  # images that the generator makes in a turn
        synthesis = turns * drawn * (3 * made + 2 * f) + max(0, opposed) * drawn * 2 * f
        student = max(0, taught) * config.target_student_steps * config.target_batch * 4 * f
        steps = run.ends * (turns * config.target_steps + max(0, taught) * config.target_student_steps)
        replayed = run.trained * run.later * config.target_replay
        return OwnWork(replayed * 4 * f, run.ends * (synthesis + student), steps)


@register
class TARGET(OldModel):
    r"""At the end of a task the server turns the global model into synthetic images, without seeing any real one. In
    the next task each client learns its new classes from its own images. On the synthetic images it imitates the
    old global model, which protects the old classes.

    From the second task on a client minimises, with synthetic images $u$ and the old columns $O$,

    $$L = \mathrm{CE}(\text{real images})
    - \lambda_{\mathrm{kd}}\,\operatorname{mean}_u \sum_{c \in O} p_c^{\mathrm{old}}(u)\,\log p_c(u),$$

    with $\lambda_{\mathrm{kd}} = 25$ in the official code.

    On the server a generator is trained so that the global model (the teacher) is sure about its images, so that
    their BatchNorm statistics are those of training, and so that a student still differs from the teacher on images
    for which both name the same class:

    $$L_{\mathrm{syn}} = \lambda_1 L_{\mathrm{BN}} + \lambda_2\,\mathrm{CE}\big(\text{teacher}(u), y\big)
    - \lambda_3\,\mathrm{KL}\big(\text{teacher}(u)\,\Vert\,\text{student}(u)\big).$$

    - Source: Zhang et al. 2023 (arXiv 2303.06937).
    - Trained, averaged: the CNN and the head ($|\theta|$, $L$ and $m$ as in FedAvg).
    - Up: the model. In round 0 of a task also the classes of the client's task.
    - Down: the model. In round 0 of every task but the first also the known classes and the synthetic images.
    - Stays on the client: for the task the old model, the known classes and $n$ synthetic images of $S$ pixels a
      side.
    - Stays on the server: the images of the newest task.
    - Payload: the model has $M = 4(|\theta| + mC + C) + 8L$ bytes. Up $M + 8$; in round 0 of a task $M + 8 + C$. Down
      $M$; in round 0 of every task but the first $M + C + 3nS^2$. With `head_merge = holders` another $C$ bytes go up
      in every later upload.

    Differences from the official code:
    1. Classes are sets. Old classes are those of earlier tasks of any client that are not in the client's task
       (official:
       column ranges). The server learns them from the flags in round 0 of a task.
    2. There are as many rounds of synthesis as $n$ images need (official: 10 x 256 = 2560 of the 8000 asked for). So
       the adversarial term, which starts in round 20, is reached. The student is not trained after the last round,
       because nobody uses it any more.
    3. The synthetic images of a step are drawn at random. The official code walks through shuffled passes over the
       first images by file name, and the shorter of the two loaders ends an epoch. Officially there are 500 of them
       for 128 real images, and the ratio is the same here for every batch size.
    4. Averages are weighted by the number of images and include the BatchNorm statistics. Adam runs at `lr` with a
       fresh state in each round (official: SGD at 0.01 with momentum 0.9 and weight decay 5e-4).
    5. The old model is the model of round 0, so the server does not send it twice.
    6. The CNN is the small CNN of this experiment at its image size (official: ResNet-32).
    7. Crops move by an eighth of the side, which is the official 4 of 32 pixels. During synthesis the CNN sees the
       images cropped and mirrored as it saw the real ones. If real images are not augmented, the border of a crop is
       filled with the reflected image (official: always black).
    8. `demo` and `mini` are smaller: 1,000 synthetic images (official: 8,000), four for each real image of a client
       in a task as in the official code; 20 rounds of 50 images (32 rounds of 256, of which the code reaches 10); the
       adversarial term from round 12 on (20); 50 student steps per round (400); a generator of 16 channels (64); 5
       rounds of at most 2 local epochs (100 of 5). In `full` a client has 2,000 real images in a task, as in the
       official code, and there are the official 8,000 synthetic images, 32 rounds of 256 and the adversarial term
       from round 20 on. With 50 student steps per round the student sees its images 18 times in all, as in `mini`,
       and the generator keeps the 16 channels that suit the small CNN. The teacher rarely recognises the class that
       the generator was asked for. The weights of the two terms, 10 and 0.5, and the 10 steps are the official ones.
    """

    name, label, paper_name, citation = "target", "TARGET", "TARGET", "2303.06937"
    place, turn = 7, 4
    sizes = {
        "smoke": {  # seconds
            "target_images": 20, "target_batch": 8, "target_steps": 3, "target_latent": 8, "target_width": 4,
            "target_warmup": 1, "target_student_steps": 2,
        },
        **{  # minutes on two cores, in proportion: see difference 8
            profile: {
                "target_images": 1000, "target_batch": 50, "target_width": 16, "target_warmup": 12,
                "target_student_steps": 50,
            }
            for profile in ("demo", "mini")
        },
        "full": {"target_width": 16, "target_student_steps": 50},
        **AUGMENTED,
    }  # fmt: skip
    tuned = {"lr": 1.8e-4, "target_lr": 7.9e-3, "target_kd": 13.0}
    search_space = {"lr": LogRange(1e-5, 1e-1), "target_lr": LogRange(1e-4, 1e-1), "target_kd": LogRange(0.25, 250)}
    costs = TARGETCosts
    sketch = Sketch(
        row=(IMAGE, CNN, HEAD, CLASS),
        helpers=(Part("synthetic old images", "kept"), None, Part("old model's answers", "frozen")),
        up="CNN and head",
        server="average; after each task turn the model into synthetic images",
        down="the average; once per task the synthetic images",
    )

    brightness = BRIGHTNESS

    class Parameters(OldModel.Parameters):
        """See `lscl.registry.Parameters`."""

        target_replay: float = Field(
            500 / 128, **SCALE, description="synthetic images for each real one in a step (official: 500 : 128)"
        )
        target_images: int = Field(
            8000, ge=2, le=10**7, description="synthetic images; as many rounds as they need (official: 8000)"
        )
        target_batch: int = Field(
            256, ge=2, le=2**16, description="images made in one round of the synthesis (official: 256)"
        )
        target_steps: int = Field(
            10,
            ge=1,
            le=10**5,
            description="steps of the fast generator in a round; the best images are kept (official: 10)",
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
            20,
            ge=0,
            le=10**6,
            description="round in which the adversarial term starts; then the student trains (official: 20)",
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
        """CE over the classes of the task, and from the second task on target_kd times the distillation."""
        total = super().loss(client, batch)
        if "old" not in client.scratch:
            return total
        size = max(1, round(self.config.target_replay * len(batch.index)))
        return total + self.config.target_kd * self.distillation(client, size)

    def distillation(self, client: Client, size: int) -> Tensor:
        """The distillation on synthetic images drawn with replacement, over the old columns only.

        Args:
            client: with its old model.
            size: how many images.

        Returns:
            (); zero without old columns.
        """
        images, columns = client.on_device("synthetic"), self.old_columns(client)
        chosen = torch.randint(len(images), (size,), generator=client.scratch["replay"])
        u = augmented_input(images[send(chosen, client.device)], self.config.augment, client.scratch["replay"])
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
                draw, teacher = torch_generator(self.config.seed, "synthesis", task), self.teacher()
                synthesis = Synthesis(self.config, teacher, self.known_classes(), draw, self.device)
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


def augmented_input(pixels: Tensor, augment: str, generator: torch.Generator) -> Tensor:
    """Synthetic images as a CNN sees them in training: cropped and mirrored like real ones, their brightness unchanged.

    Args:
        pixels: (b, H, W, 3) uint8.
        augment: the parameter of this name.
        generator: of the draws.

    Returns:
        (b, 3, H, W).
    """
    images, change = to_cnn_input(pixels), augmentation(augment, generator)
    return images if change is None else change(images)


def new_student(teacher: nn.Module) -> nn.Module:
    """A copy of the teacher whose weights are drawn anew, from torch's global generator; running statistics stay.

    Weights of convolutions and linear layers come from Xavier's normal distribution, their biases from N(0, 1), those
    of BatchNorm from N(1, 0.02^2) with biases of zero.
    """
    student = copy.deepcopy(teacher).requires_grad_(True)
    for layer in student.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.normal_(layer.bias)
    return student


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


def better_of(loss: Tensor, images: Tensor, lowest: Tensor | None, best: Tensor | None) -> tuple[Tensor, Tensor]:
    """The lower of two losses and its images, chosen where they are computed: nobody waits for a number.

    Args:
        loss: (), the newest.
        images: its images, (b, 3, S, S).
        lowest: (), the lowest so far; None = there is none.
        best: its images, likewise.

    Returns:
        The loss and the images that are the best by now.
    """
    if lowest is None:
        return loss, images
    better = loss < lowest
    return torch.where(better, loss, lowest), torch.where(better, images, best)


class Synthesis:
    """One data-free inversion of a network, by rounds of a fast copy of a generator.

    Args:
        config: with the parameters of the synthesis.
        teacher: the network; an untrained one of its kind is to disagree with it.
        classes: those that the images are to be of, (K,).
        draw: CPU generator of noise, labels and shifts; the weights of the generator network and of the student come
            from torch's global one.
        device: where it computes.
    """

    def __init__(
        self,
        config: Experiment,
        teacher: nn.Module,
        classes: Tensor,
        draw: torch.Generator,
        device: torch.device,
    ):
        self.config, self.teacher, self.classes = config, teacher, classes.to(device)
        self.draw, self.device, self.student = draw, device, new_student(teacher)
        generator = ImageGenerator(config.target_latent, config.side, config.target_width, nn.Sigmoid())
        self.generator = generator.to(device).train()
        rate = config.target_lr * config.target_steps
        self.meta = torch.optim.Adam(self.generator.parameters(), rate, betas=(0.5, 0.999))
        self.teaching = torch.optim.SGD(
            self.student.parameters(), lr=STUDENT_LR, momentum=STUDENT_MOMENTUM, weight_decay=STUDENT_DECAY
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.teaching, STUDENT_PERIOD, STUDENT_LEAST)
        self.statistics, self.carried = Statistics(batchnorm_layers(teacher, config.method, config.cnn)), None
        self.optimised = 0  # images that generator and student have been trained on

    def make_images(self) -> Tensor:
        """Rounds until there are enough images: (n, S, S, 3) uint8."""
        config, made = self.config, []
        rounds = math.ceil(config.target_images / config.target_batch)
        for number in range(1, rounds + 1):
            made.append(as_pixels(self.make_batch(number >= config.target_warmup)))
            if config.target_warmup < number < rounds:
                self.teach_student(torch.cat(made))
        return torch.cat(made)[: config.target_images]

    def make_batch(self, adversarial: bool) -> Tensor:
        """A round: steps on a fast copy and its z, then the meta update; -> the images of lowest loss, (b, 3, S, S)."""
        config = self.config
        fast = self.generator if config.target_meta == "plain" else copy.deepcopy(self.generator)
        z = torch.randn(config.target_batch, config.target_latent, generator=self.draw)
        z = send(z, self.device).requires_grad_()
        labels = send(torch.randint(len(self.classes), (config.target_batch,), generator=self.draw), self.device)
        groups = [{"params": fast.parameters(), "lr": config.target_lr}, {"params": [z], "lr": config.target_lr_z}]
        optimiser = torch.optim.Adam(groups, betas=(0.5, 0.999))
        summed = [torch.zeros_like(p) for p in fast.parameters()]
        lowest, best = None, None
        for _ in range(config.target_steps):
            images = from_unit_range(fast(z))
            loss = self.loss(images, labels, adversarial)
            lowest, best = better_of(loss.detach(), images.detach(), lowest, best)
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
            shifted = crop_and_flip(
                images, self.draw, flip=config.augment == "crop_flip", reflect=config.augment == "none"
            )
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
        config, images = self.config, send(images, self.device)
        self.student.train()
        for _ in range(config.target_student_steps):
            chosen = torch.randint(len(images), (config.target_batch,), generator=self.draw)
            u = augmented_input(images[send(chosen, self.device)], config.augment, self.draw)
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
        self.schedule.step()
