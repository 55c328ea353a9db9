"""What a set of runs will need before anything runs: memory, disk, download, FLOPs and hours, from an explicit cost model.

One FLOP is one addition or multiplication. A linear layer costs 2 x tokens x in x out forward and as much backward to its input;
frozen weights need no third product, trained ones do. Attention costs 4 N^2 d forward and twice that backward, at a rate of its own. CNNs, generators
and patch embeddings are counted by torch on tensors that have shapes and no memory. `benchmarks/cost_model.py` compares all of this with
measured steps.
"""

import math
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lscl import paths
from lscl.config import Experiment
from lscl.data import imagenet_r
from lscl.data.glyphs import PER_CLASS
from lscl.errors import LsclError, unknown
from lscl.machine import physical_memory
from lscl.methods import METHODS
from lscl.methods.parts.inversion import SIDE, Encoder
from lscl.methods.parts.passes import BATCH
from lscl.methods.parts.synthesis import ImageGenerator
from lscl.models.cache import STORED, limit_bytes
from lscl.models.cnn import check_cnns, small_cnn
from lscl.models.vit import FrozenViT, architecture, check_block

FLOAT = 4  # bytes
# Images of a class for training and for testing (ImageNet-R: the mean over its classes), and bytes to download.
IMAGES = {"cifar100": (500, 100), "imagenet_r": (120, 30), "glyphs": (24, PER_CLASS - 24)}
CLASSES = {"cifar100": 100, "imagenet_r": imagenet_r.CLASSES, "glyphs": 200}
DOWNLOADS = {"cifar100": 169_001_437, "imagenet_r": imagenet_r.SIZE, "glyphs": 0}
CUDA_CONTEXT = 6e8  # bytes that the driver and torch's kernels take, roughly
VISITS = 4  # of what is kept for the backward pass: written and read, and its gradient too
# Of a linear layer's input and output by the narrow products of its low-rank update, which are bound by memory and not by FLOPs. Forward: the
# input is read, the output copied, read and written again; backward: the output's gradient is read, the input's is written, and read with
# another one to be added to it and written, and one of the two is read for the gradient of A or of B.
LOW_RANK_VISITS = 5.5
L_BFGS_EVALUATIONS = 1.25  # of the closure, per iteration


@dataclass(frozen=True)
class Machine:
    """What to plan for. memory: bytes on the device; linear, attention, convolution: FLOP/s that are reached; traffic: bytes/s of elementwise
    work; step: seconds that a step costs at least."""

    name: str
    memory: float
    linear: float
    attention: float
    convolution: float
    traffic: float
    step: float


# From data sheets: GB, TFLOP/s in FP32, GB/s. Half of the rate for linear layers, a third for attention and convolutions are expected to be reached;
# nobody measured that here.
SHEETS = {"t4": (15, 8.1, 300), "v100": (16, 15.7, 900), "a100": (40, 19.5, 1555), "rtx3090": (24, 35.6, 936), "h100": (80, 67.0, 3350)}
CARDS = {
    name: Machine(name, memory * 2**30, peak * 0.5e12, peak * 0.33e12, peak * 0.33e12, bandwidth * 0.7e9, 0.02)
    for name, (memory, peak, bandwidth) in SHEETS.items()
}


@dataclass(frozen=True)
class Cost:
    """What one run needs. FLOPs by kind, bytes of elementwise work, steps; bytes on the device, on the disk and over the network."""

    config: Experiment
    linear: float
    attention: float
    convolution: float
    server: float
    traffic: float
    steps: float
    memory: float
    disk: float
    download: float

    @property
    def flops(self) -> float:
        """All of it, clients and server."""
        return self.linear + self.attention + self.convolution + self.server

    def hours(self, machine: Machine) -> float:
        """Expected hours; the server's work is made of convolutions, but for O2D, which is small."""
        work = self.linear / machine.linear + self.attention / machine.attention + (self.convolution + self.server) / machine.convolution
        return (work + self.traffic / machine.traffic + self.steps * machine.step) / 3600


# ---- parts of the model


@dataclass(frozen=True)
class Blocks:
    """The last `count` blocks of a ViT, N tokens of width d, hidden width h. FLOPs are per image, in linear layers and in attention: (2,).

    pooled: behind the last block all tokens are read, not CLS alone.
    """

    count: int
    tokens: int
    width: int
    hidden: int
    pooled: bool = False

    def forward(self, cls_only: bool = True) -> np.ndarray:
        """All blocks; in the last one only what the CLS token needs."""
        short = self._shortened() if cls_only else 0
        return sum((self._block(index >= self.count - short) for index in range(self.count)), np.zeros(2))

    def step(self, cls_only: bool = True) -> np.ndarray:
        """Forward, and back to the activations."""
        return self.forward(cls_only) * (2, 3)

    def _shortened(self) -> int:
        """How many blocks compute only what the CLS token needs: the last one, unless all tokens are read."""
        return 0 if self.pooled else min(1, self.count)

    def _block(self, short: bool) -> np.ndarray:
        n, d, rows = self.tokens, self.width, 1 if short else self.tokens
        linear = 2 * (2 * n * d * d + 2 * rows * d * d + 2 * rows * d * self.hidden)
        return np.array([linear, 4.0 * rows * n * d])

    def saved(self, every_input: bool = False) -> float:
        """Bytes kept for the backward pass, per image: both norms' inputs, q, k, v, attention's output, the hidden layer; in the last block
        only what all tokens give, the first norm's input, k and v; with an update on every layer their inputs too, of all tokens."""
        whole, last = 6 * self.width + self.hidden, 3 * self.width
        if every_input:
            whole, last = whole + 2 * self.width + self.hidden, last + 2 * self.width
        return self._all(whole, last)

    def low_rank(self) -> float:
        """Bytes that an update of every linear layer moves in a step, per image; in the last block all tokens only pass qkv."""
        whole, last = 8 * self.width + 2 * self.hidden, 4 * self.width  # inputs and outputs
        return LOW_RANK_VISITS * self._all(whole, last)

    def _all(self, whole: int, last: int) -> float:
        """Bytes of all blocks, of which a whole one has so many numbers per token and a shortened last one so many."""
        short = self._shortened()
        return FLOAT * self.tokens * ((self.count - short) * whole + short * last)

    def passing(self) -> float:
        """Bytes that live at once in a forward pass without gradients, per image."""
        return FLOAT * self.tokens * (3 * self.width + 2 * self.hidden)


@dataclass(frozen=True)
class Network:
    """A CNN or generator on one image: FLOPs forward, bytes kept for the backward pass, bytes of its weights."""

    flops: float
    saved: float
    weights: float


NOTHING = Network(0, 0, 0)


@lru_cache
def vit_shape(name: str) -> tuple[VisionTransformer, float]:
    """The network without memory, and the FLOPs of its patch embedding per image."""
    with torch.device("meta"):
        vit = architecture(name)
        images = torch.empty(1, 3, *vit.patch_embed.img_size)
    return vit, _flops(vit.patch_embed, images)


def _flops(network: nn.Module, *inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return counter.get_total_flops()


def network(model: nn.Module, *inputs: torch.Tensor) -> Network:
    """Count a network (on the meta device) on a batch of images; -> per image of that batch."""
    sizes, count = [], len(inputs[0])
    watch = lambda _module, _inputs, output: sizes.append(output.numel())
    hooks = [part.register_forward_hook(watch) for part in model.modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d)]
    flops = _flops(model, *inputs)
    for hook in hooks:
        hook.remove()
    return Network(flops / count, FLOAT * sum(sizes) / count, FLOAT * sum(p.numel() for p in model.parameters()))


@lru_cache
def cnn_of(config: Experiment, client: int = 0) -> Network:
    """The CNN of a client."""
    with torch.device("meta"):
        return network(small_cnn(config, client).train(), torch.empty(2, 3, config.side, config.side))


def blocks_of(config: Experiment) -> Blocks:
    """The blocks that a method computes in a training step, with the tokens it adds."""
    vit, _ = vit_shape(config.foundation)
    cut = METHODS[config.method].cut(config)
    extra = {"l2p": config.l2p_top_k * config.l2p_length, "fedmgp": config.mgp_length}.get(config.method, 0)
    tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens + extra
    mlp = sum(layer.weight.numel() for layer in vit.blocks[0].mlp.modules() if isinstance(layer, nn.Linear))
    hidden = mlp // (2 * vit.embed_dim)  # of two layers that cost as much, where there are three
    return Blocks(0 if cut is None else len(vit.blocks) - cut, tokens, vit.embed_dim, hidden, whole_of(vit).read is None)


def whole_of(vit: VisionTransformer) -> FrozenViT:
    """The network with nothing in front of the cut."""
    return FrozenViT(vit, 0, (0.0,) * 3, (1.0,) * 3)


def generator_flops(config: Experiment, width: int) -> float:
    """Fed-LSCL's generator on one image: forward, back to the features, and the gradient of its weights."""
    return 6.0 * 4 * config.rank * width * (config.features + 1) if config.method == "fed_lscl" and config.collaboration == "written" else 0.0


def seconds_of(config: Experiment, machine: Machine) -> float:
    """Seconds of one training step of the first task."""
    one = step_of(config)
    work = one.linear / machine.linear + one.attention / machine.attention + one.convolution / machine.convolution
    return config.batch * (work + one.traffic / machine.traffic) + machine.step


@dataclass(frozen=True)
class Step:
    """One image in a training step: FLOPs by kind, bytes kept for the backward pass, bytes of elementwise work."""

    linear: float
    attention: float
    convolution: float
    saved: float
    traffic: float


def step_of(config: Experiment, rows: float = 1) -> Step:
    """A step of the first task; `rows` images go through the CNN for one of a batch."""
    blocks, cnn, everywhere = blocks_of(config), cnn_of(config) if trains_cnn(config) else NOTHING, config.method == "lorm"
    linear, attention = blocks.step()
    saved = blocks.saved(everywhere) + cnn.saved * rows
    linear += generator_flops(config, blocks.width)
    return Step(linear, attention, 3 * cnn.flops, saved, VISITS * saved + (blocks.low_rank() if everywhere else 0))


def trains_cnn(config: Experiment) -> bool:
    """Whether clients train a small CNN."""
    return not METHODS[config.method].vit or (config.method == "fed_lscl" and config.collaboration != "static")


# ---- one run


@dataclass(frozen=True)
class Counts:
    """How many images of all clients there are: in one epoch of all tasks, in all evaluations, stored for training and for testing."""

    epoch: float
    evaluated: float
    train: float
    test: float

    @classmethod
    def of(cls, config: Experiment) -> "Counts":
        """Expected numbers; the shares of public classes are drawn."""
        if config.dataset not in IMAGES:
            raise LsclError(f"dataset = {config.dataset!r}: how many images it has is not known before it is read (known: {', '.join(IMAGES)})")
        train, test = IMAGES[config.dataset]
        train, test = min(train, config.images_per_class or train), min(test, config.test_images_per_class or test)
        per_client, tasks = config.tasks * config.classes_per_task, config.tasks_run
        private = min(config.private_classes, per_client)
        used = (config.clients * private + per_client - private) * train * tasks / config.tasks
        holdout = config.eval_split == "holdout"
        per_task = 0.3 * used / config.clients / tasks if holdout else config.classes_per_task * test
        evaluated = config.clients * per_task * tasks * (tasks + 1) / 2
        classes = CLASSES[config.dataset]
        return cls(0.7 * used if holdout else used, evaluated, classes * train, 0 if holdout else classes * test)


def cost(config: Experiment) -> Cost:
    """What one run needs, from nothing: no cached image or activation, no checkpoint.

    Raises:
        LsclError: an unknown network, or a data set whose size is not known before it is read.
    """
    kind, counts, method = METHODS[config.method], Counts.of(config), config.method
    has_cnn = trains_cnn(config)
    if has_cnn:
        check_cnns(config)
    cnn = cnn_of(config) if has_cnn else NOTHING
    later = (config.tasks_run - 1) / config.tasks_run  # share of the work from the second task on
    trained = kind.passes * config.rounds * config.epochs * counts.epoch
    dense, convolution, server = np.zeros(2), 0.0, 0.0  # dense: in linear layers and in attention
    images = counts.train + counts.test
    disk = images * config.image_size**2 * 3
    memory, download, steps = CUDA_CONTEXT, DOWNLOADS[config.dataset], trained / config.batch
    if kind.vit:
        vit, stem = vit_shape(config.foundation)
        whole = whole_of(vit)
        check_block(config, whole.depth)
        kind.check_foundation(config, whole)
        blocks = blocks_of(config)
        every = replace(blocks, count=whole.depth, tokens=whole.tokens)
        surrogate = config.mgp_surrogate_per_class * CLASSES[config.dataset] if kind.surrogate else 0
        frozen = every.forward(cls_only=False) * (1 if kind.query else 1 - blocks.count / whole.depth)
        dense += (images + surrogate) * (frozen + np.array([stem, 0.0]))
        tokens = whole.tokens if blocks.count else 1
        disk += (images + surrogate) * STORED[config.activations].itemsize * whole.width * (tokens + (1 if kind.query else 0))
        dense += trained * blocks.step() + _passes(config) * blocks.forward() * counts.epoch * config.rounds
        dense += counts.evaluated * blocks.forward() * (2 if method == "fedmgp" else 1)
        weights = FLOAT * sum(p.numel() for p in vit.parameters())
        memory += weights
        download += weights if config.weights is None and config.foundation not in ("mini", "tiny") else 0
    else:
        blocks = Blocks(0, 1, 1, 1)
    if has_cnn:
        convolution += 3 * trained * cnn.flops + (counts.evaluated + counts.epoch * config.tasks_run / config.tasks) * cnn.flops
    extra, extra_server, extra_steps = _own(config, cnn, blocks, counts, trained, later)
    server += extra_server
    convolution += extra
    steps += extra_steps
    model = FLOAT * _parameters(config, cnn)
    step = step_of(config, _rows(config))
    step_bytes = config.batch * (step.saved + blocks.passing())
    pass_bytes = BATCH * (blocks.passing() + cnn.saved / 4)
    memory += (config.clients + 4) * model + max(step_bytes, pass_bytes)  # all clients' models; one gradient, two moments, the server's copy
    disk += 3 * config.clients * model
    return Cost(config, *dense, convolution, server, trained * step.traffic, steps, memory, disk, download)


def _passes(config: Experiment) -> float:
    """How often a round goes through the task's images once more without gradients."""
    gram = 1 + 1 / config.rounds  # LoRM, with one exchange more per task
    return {"fed_lscl": 1 / config.rounds, "pilora": 1, "lorm": gram, "fedmgp": 1}.get(config.method, 0)


def _rows(config: Experiment) -> float:
    """Images that go through the CNN for one of a batch."""
    replay = 1 + config.mfcl_replay / config.batch
    return {"fed_lscl": 2 if config.continual in ("consistency", "replay") else 1, "target": 2, "mfcl": replay}.get(config.method, 1)


def _parameters(config: Experiment, cnn: Network) -> float:
    """Trained parameters of a client, all tasks' prompts included; a bound for what is not a matrix of the list."""
    width = vit_shape(config.foundation)[0].embed_dim if METHODS[config.method].vit else 0
    classes = CLASSES[config.dataset]
    head = classes * (width or config.features)
    depth, hidden = (len(vit_shape(config.foundation)[0].blocks), 4 * width) if width else (0, 0)
    slot = config.dual_task_blocks * config.dual_task_length
    own = {
        "fed_lscl": 4 * config.rank * width * (config.features + 1) + classes * config.features,
        "local_lora": 4 * config.rank * width,
        "pilora": 4 * config.rank * width,
        "lorm": depth * config.lorm_rank * (8 * width + 2 * hidden),
        "l2p": config.l2p_pool * (config.l2p_length + 1) * width,
        "dualprompt": 2 * width * (config.dual_general_blocks * config.dual_general_length + config.tasks * slot),
        "fedmgp": width * (config.mgp_length + classes * (2 * config.mgp_blocks * config.mgp_local_length + 1)) + head,
    }
    return head + own.get(config.method, 0) + cnn.weights / FLOAT


def _own(config: Experiment, cnn: Network, blocks: Blocks, counts: Counts, trained: float, later: float) -> tuple[float, float, float]:
    """What is particular to a method: FLOPs of the clients, FLOPs of the server, steps."""
    rounds, ends, f = config.tasks_run * config.rounds, config.tasks_run - 1, cnn.flops
    if config.method == "fed_lscl":
        numbers, q = 4 * config.rank * blocks.width, config.features + 1
        generator = generator_flops(config, blocks.width)
        again = later if config.continual in ("consistency", "replay") else 0.0
        clients = trained * (generator * (1 + again) + 3 * f * again)
        kept = config.clients * config.buffer_per_class * config.classes_per_task * config.tasks_run * (config.tasks_run + 1) / 2 * config.rounds
        visits = {"exact": 2, "sgd": config.o2d_epochs * (config.clients - 1)}.get(config.o2d, 0)
        solve = q**3 / 3 if config.o2d == "exact" else 0
        return clients + kept * f, rounds * config.clients * (visits * 2.0 * numbers * q * q + solve), 0.0
    if config.method == "fedmgp":
        images = config.mgp_surrogate_per_class * CLASSES[config.dataset]
        passes = (config.clients - 1) * blocks.forward(False) + config.mgp_surrogate_epochs * blocks.step(False)
        return 0.0, rounds * images * passes.sum(), rounds * config.mgp_surrogate_epochs * images / config.batch
    if config.method == "target":
        made = _generator(config.target_latent, config, config.target_width)
        turns = math.ceil(config.target_images / config.target_batch)
        taught = max(0, turns - max(1, config.target_warmup))
        drawn = config.target_steps * config.target_batch  # images that the generator makes in a turn
        synthesis = turns * drawn * (3 * made + 2 * f) + taught * drawn * 2 * f
        student = taught * config.target_student_steps * config.target_batch * 4 * f
        return trained * later * 4 * f, ends * (synthesis + student), ends * (turns * config.target_steps + taught * config.target_student_steps)
    if config.method == "mfcl":
        made, replay = _generator(config.mfcl_latent, config, config.mfcl_width), config.mfcl_replay / config.batch
        clients = trained * later * (replay * (made + 3 * f + f) + (1 + replay) * f)
        return clients, ends * config.mfcl_steps * config.mfcl_batch * (3 * made + 2 * f), ends * config.mfcl_steps
    if config.method == "glfc":
        kept = min(config.glfc_memory, counts.epoch / config.clients / 2)  # half of the client's images have been seen, on average
        exemplars = config.clients * kept * ends * config.rounds * config.epochs
        with torch.device("meta"):
            encoder = network(Encoder(CLASSES[config.dataset]), torch.empty(1, 3, SIDE, SIDE)).flops
        gradients = config.clients * config.classes_per_task * config.tasks_run if config.glfc_proxy else 0
        evaluations = gradients * config.glfc_steps * config.glfc_iterations * L_BFGS_EVALUATIONS
        disguise = gradients * config.glfc_perturb * 3 * f
        return exemplars * 4 * f + trained * later * f + disguise, evaluations * 6 * encoder, exemplars / config.batch + evaluations / 4
    return 0.0, 0.0, 0.0


def _generator(latent: int, config: Experiment, width: int) -> float:
    with torch.device("meta"):
        return network(ImageGenerator(latent, config.side, width, nn.Sigmoid()), torch.empty(2, latent)).flops


# ---- a set of runs


def here(device: torch.device) -> Machine:
    """This machine's memory, its rates not measured."""
    cuda = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else physical_memory()
    return Machine(torch.cuda.get_device_name(device) if cuda else "this machine", memory, *[math.nan] * 4, 0.02 if cuda else 0.002)


def measured(device: torch.device) -> Machine:
    """`here` with the rates of a matrix product, of attention and of a convolution in training, and of a GELU, the best of some; takes about
    three seconds."""

    def rate(work: Callable[[], object], flops: float) -> float:
        best, begun = math.inf, time.perf_counter()
        while time.perf_counter() - begun < 0.7:
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        return flops / best

    tokens, weight = torch.randn(1576, 768, device=device), torch.randn(768, 3072, device=device)  # ViT-B's first MLP layer, 8 images
    maps = torch.randn(8, 64, 56, 56, device=device, requires_grad=True)  # ResNet's first stage, 8 images
    layer = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()).to(device)
    q, k, v = torch.randn(3, 8, 12, 197, 64, device=device, requires_grad=True)  # its attention
    linear = rate(lambda: tokens @ weight, 2 * 1576 * 768 * 3072)
    attention = rate(lambda: nn.functional.scaled_dot_product_attention(q, k, v).sum().backward(), 3 * 4 * 8 * 197**2 * 768)
    convolution = rate(lambda: layer(maps).sum().backward(), 3 * 2 * maps.numel() * 64 * 9)
    hidden = torch.randn(1576, 3072, device=device)
    traffic = rate(lambda: nn.functional.gelu(hidden), 2.0 * FLOAT * hidden.numel())
    return replace(here(device), linear=linear, attention=attention, convolution=convolution, traffic=traffic)


def card(name: str) -> Machine:
    """A GPU by its name in CARDS."""
    if name not in CARDS:
        raise unknown("card", name, CARDS)
    return CARDS[name]


def disk(costs: Collection[Cost]) -> float:
    """Bytes that all runs together need: images and activations are shared by runs that cut the ViT at the same place."""
    shared = {}
    for one in costs:
        kind = METHODS[one.config.method]
        key = (one.config.dataset, one.config.image_size, kind.cut(one.config) if kind.vit else "no ViT", kind.query)
        shared[key] = max(shared.get(key, 0.0), one.disk)
    return sum(shared.values())


def check(configs: Collection[Experiment], machine: Machine) -> list[Cost]:
    """The costs of all runs.

    Raises:
        LsclError: one of them cannot have the memory it needs, or all together the disk.
    """
    costs = [cost(config) for config in configs]
    for one in costs:
        if one.memory > machine.memory:
            raise LsclError(
                f"{one.config.name} needs about {one.memory / 2**30:.1f} GB of memory, {machine.name} has {machine.memory / 2**30:.1f}: "
                f"lower batch (now {one.config.batch}) or take a smaller foundation model"
            )
    cache = paths.cache()
    free, there = shutil.disk_usage(_existing(cache)).free, sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    limit = limit_bytes()
    need = (disk(costs) if limit is None else min(disk(costs), max(limit, *(one.disk for one in costs)))) - there
    if need > free:
        raise LsclError(f"these runs need up to {need / 1e9:.0f} GB more in {cache}, {free / 1e9:.0f} GB are free: set LSCL_CACHE to a larger disk")
    return costs


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def table(costs: Collection[Cost], machine: Machine) -> str:
    """One line per system and data set with what it needs, seeds summed up, and a last line for all."""
    groups: dict[tuple[str, str, str], list[Cost]] = {}
    for one in costs:
        extra = ", ".join(f"{key}={value}" for key, value in one.config.overrides().items())
        groups.setdefault((one.config.dataset, one.config.method, extra), []).append(one)
    lines = [f"{'data':11} {'system':22} {'runs':>4} {'memory GB':>9} {'disk GB':>8} {'PFLOP clients':>13} {'server':>8} {'hours':>7}"]
    for (dataset, method, extra), group in groups.items():
        clients, server = (sum(values) / 1e15 for values in ([one.flops - one.server for one in group], [one.server for one in group]))
        hours = sum(one.hours(machine) for one in group)
        name = f"{method} {extra}".strip()
        first = f"{dataset:11} {name:22} {len(group):4} {max(one.memory for one in group) / 2**30:9.1f}"
        lines.append(f"{first} {max(one.disk for one in group) / 1e9:8.1f} {clients:13.2f} {server:8.2f} {hours:7.1f}")
    download = sum({one.config.dataset: DOWNLOADS[one.config.dataset] for one in costs}.values())
    download += max((one.download - DOWNLOADS[one.config.dataset] for one in costs), default=0)
    total = sum(one.hours(machine) for one in costs)
    lines.append(
        f"all on {machine.name}: {total:.1f} hours, {disk(costs) / 1e9:.0f} GB of disk, {download / 1e9:.1f} GB to download, nothing cached before"
    )
    return "\n".join(lines)
