"""What a set of runs will need before anything runs: memory, disk, download, FLOPs and hours, from an explicit cost model.

`lscl.models.counting` counts the networks, a system's `costs` say what it adds, and here they become runs. `benchmarks/cost_model.py`
compares all of this with measured steps. A system without `costs` is unknown: nothing of it is taken for 0.
"""

import math
import shutil
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lscl import paths
from lscl.config import Experiment
from lscl.errors import LsclError, unknown_name
from lscl.federation.costs import Planned
from lscl.federation.passes import BATCH
from lscl.machine import physical_memory
from lscl.models.cache import STORED, limit_bytes
from lscl.models.cnn import check_cnns
from lscl.models.counting import FLOAT, NOTHING, Blocks, count_cnn, uncut_vit, vit_shape
from lscl.registry import DATASETS, METHODS

CUDA_CONTEXT = 6e8  # bytes that the driver and torch's kernels take, roughly
VISITS = 4  # of what is kept for the backward pass: written and read, and its gradient too


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
SHEETS = {
    "t4": (15, 8.1, 300),
    "v100": (16, 15.7, 900),
    "a100": (40, 19.5, 1555),
    "rtx3090": (24, 35.6, 936),
    "h100": (80, 67.0, 3350),
}
CARDS = {
    name: Machine(name, memory * 2**30, peak * 0.5e12, peak * 0.33e12, peak * 0.33e12, bandwidth * 0.7e9, 0.02)
    for name, (memory, peak, bandwidth) in SHEETS.items()
}


@dataclass(frozen=True)
class Cost:
    """What one run needs. FLOPs by kind, bytes of elementwise work, steps; bytes on the device, on the disk and over the network.

    What is not known of a system is NaN.
    """

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
    def known(self) -> bool:
        """Whether the system says what it costs."""
        return not math.isnan(self.memory)

    @property
    def flops(self) -> float:
        """All of it, clients and server."""
        return self.linear + self.attention + self.convolution + self.server

    def hours(self, machine: Machine) -> float:
        """Expected hours; the server's work is made of convolutions, but for O2D, which is small."""
        work = (
            self.linear / machine.linear
            + self.attention / machine.attention
            + (self.convolution + self.server) / machine.convolution
        )
        return (work + self.traffic / machine.traffic + self.steps * machine.step) / 3600


# ---- one step


def blocks_of(config: Experiment) -> Blocks:
    """The blocks that a method computes in a training step, with the tokens it adds."""
    kind, (vit, _) = METHODS[config.method], vit_shape(config.foundation)
    cut = kind.cut(config)
    tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens + kind.costs(config).tokens()
    mlp = sum(layer.weight.numel() for layer in vit.blocks[0].mlp.modules() if isinstance(layer, nn.Linear))
    hidden = mlp // (2 * vit.embed_dim)  # of two layers that cost as much, where there are three
    return Blocks(
        0 if cut is None else len(vit.blocks) - cut, tokens, vit.embed_dim, hidden, uncut_vit(vit).tokens_read is None
    )


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


def step_of(config: Experiment, cnn_images: float = 1) -> Step:
    """A step of the first task; so many images go through the CNN for one of a batch."""
    kind, blocks = METHODS[config.method], blocks_of(config)
    costs, cnn = kind.costs(config), count_cnn(config) if kind.trains_cnn(config) else NOTHING
    linear, attention = blocks.step()
    saved = blocks.saved(costs.every_input) + cnn.saved * cnn_images
    linear += costs.step_flops(blocks.width)
    return Step(
        linear, attention, 3 * cnn.flops, saved, VISITS * saved + (blocks.low_rank() if costs.every_input else 0)
    )


# ---- one run


def sized(config: Experiment) -> bool:
    """Whether it is known how many images the data set has before it is read."""
    source = DATASETS[config.dataset]
    return source.images is not None and source.classes is not None


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
        source = DATASETS[config.dataset]
        if not sized(config):
            known = ", ".join(name for name, one in DATASETS.items() if one.images and one.classes)
            raise LsclError(
                f"dataset = {config.dataset!r}: how many images it has is not known before it is read (known: {known})"
            )
        train, test = source.images
        train, test = min(train, config.images_per_class or train), min(test, config.test_images_per_class or test)
        per_client, tasks = config.tasks * config.classes_per_task, config.tasks_run
        private = min(config.private_classes, per_client)
        used = (config.clients * private + per_client - private) * train * tasks / config.tasks
        holdout = config.eval_split == "holdout"
        per_task = 0.3 * used / config.clients / tasks if holdout else config.classes_per_task * test
        evaluated = config.clients * per_task * tasks * (tasks + 1) / 2
        classes = source.classes
        return cls(0.7 * used if holdout else used, evaluated, classes * train, 0 if holdout else classes * test)


def cost(config: Experiment) -> Cost:
    """What one run needs, from nothing: no cached image or activation, no checkpoint.

    Raises:
        LsclError: an unknown network, or a data set whose size is not known before it is read.
    """
    kind, source, counts = METHODS[config.method], DATASETS[config.dataset], Counts.of(config)
    if kind.costs is None:
        return Cost(config, *[math.nan] * 8, source.download)
    costs, cnn, cnn_trained = kind.costs(config), NOTHING, kind.trains_cnn(config)
    if cnn_trained:
        check_cnns(config)
        cnn = count_cnn(config)
    trained = kind.passes * config.rounds * config.epochs * counts.epoch if kind.trains else 0.0
    dense, convolution = np.zeros(2), 0.0  # dense: in linear layers and in attention
    images = counts.train + counts.test
    disk = images * config.image_size**2 * 3
    memory, download, steps = CUDA_CONTEXT, source.download, trained / config.batch
    blocks, width, depth = Blocks(0, 1, 1, 1), 0, 0
    if kind.vit:
        vit, stem = vit_shape(config.foundation)
        whole = uncut_vit(vit)
        kind.check_foundation(config, whole)
        blocks, width, depth = blocks_of(config), vit.embed_dim, len(vit.blocks)
        every = replace(blocks, count=whole.depth, tokens=whole.tokens)
        surrogate = getattr(config, kind.surrogate) * source.classes if kind.surrogate else 0
        frozen = every.forward(cls_only=False) * (1 if kind.query else 1 - blocks.count / whole.depth)
        dense += (images + surrogate) * (frozen + np.array([stem, 0.0]))
        tokens = whole.tokens if blocks.count else 1
        disk += (
            (images + surrogate)
            * STORED[config.activations].itemsize
            * whole.width
            * (tokens + (1 if kind.query else 0))
        )
        dense += trained * blocks.step() + costs.passes() * blocks.forward() * counts.epoch * config.rounds_run
        tested = counts.evaluated + (counts.epoch if kind.has_features else 0)  # and the pass for the closed-form head
        dense += tested * blocks.forward() * costs.evaluations
        weights = FLOAT * sum(p.numel() for p in vit.parameters())
        memory += weights
        download += weights if config.weights is None and config.foundation not in ("mini", "tiny") else 0
    if cnn_trained:
        convolution += (
            3 * trained * cnn.flops + (counts.evaluated + counts.epoch * config.tasks_run / config.tasks) * cnn.flops
        )
    planned = Planned(config, cnn, blocks, width, depth, source.classes, counts.epoch, trained)
    own = costs.own_work(planned)
    convolution += own.clients
    steps += own.steps
    model = FLOAT * (source.classes * (width or config.features) + costs.parameters(planned) + cnn.weights / FLOAT)
    step = step_of(config, costs.cnn_images())
    step_bytes = config.batch * (step.saved + blocks.passing())
    pass_bytes = BATCH * (blocks.passing() + cnn.saved / 4)
    memory += (config.clients + 4) * model + max(
        step_bytes, pass_bytes
    )  # all clients' models; one gradient, two moments, the server's copy
    disk += 3 * config.clients * model
    return Cost(config, *dense, convolution, own.server, trained * step.traffic, steps, memory, disk, download)


# ---- a set of runs


def here(device: torch.device) -> Machine:
    """This machine's memory, its rates not measured."""
    cuda = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else physical_memory()
    return Machine(
        torch.cuda.get_device_name(device) if cuda else "this machine", memory, *[math.nan] * 4, 0.02 if cuda else 0.002
    )


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

    tokens, weight = (
        torch.randn(1576, 768, device=device),
        torch.randn(768, 3072, device=device),
    )  # ViT-B's first MLP layer, 8 images
    maps = torch.randn(8, 64, 56, 56, device=device, requires_grad=True)  # ResNet's first stage, 8 images
    layer = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()).to(device)
    q, k, v = torch.randn(3, 8, 12, 197, 64, device=device, requires_grad=True)  # its attention
    linear = rate(lambda: tokens @ weight, 2 * 1576 * 768 * 3072)
    attention = rate(
        lambda: nn.functional.scaled_dot_product_attention(q, k, v).sum().backward(), 3 * 4 * 8 * 197**2 * 768
    )
    convolution = rate(lambda: layer(maps).sum().backward(), 3 * 2 * maps.numel() * 64 * 9)
    hidden = torch.randn(1576, 3072, device=device)
    traffic = rate(lambda: nn.functional.gelu(hidden), 2.0 * FLOAT * hidden.numel())
    return replace(here(device), linear=linear, attention=attention, convolution=convolution, traffic=traffic)


def card(name: str) -> Machine:
    """A GPU by its name in CARDS."""
    if name not in CARDS:
        raise unknown_name("card", name, CARDS)
    return CARDS[name]


def disk(costs: Collection[Cost]) -> float:
    """Bytes that all runs together need: images and activations are shared by runs that cut the ViT at the same place."""
    shared: dict[tuple, float] = {}
    for one in costs:
        if not one.known:
            continue
        kind = METHODS[one.config.method]
        key = (one.config.dataset, one.config.image_size, kind.cut(one.config) if kind.vit else "no ViT", kind.query)
        shared[key] = max(shared.get(key, 0.0), one.disk)
    return sum(shared.values())


def check_costs(configs: Collection[Experiment], machine: Machine) -> list[Cost]:
    """The costs of all runs. Systems that do not say what they cost are named on stderr and not checked.

    Raises:
        LsclError: one of the others cannot have the memory it needs, or all together the disk.
    """
    costs = [cost(config) for config in configs]
    if unsaid(costs):
        print(f"lscl: memory and disk are not checked for {unsaid(costs)}: its class has no costs", file=sys.stderr)
    for one in costs:
        if one.memory > machine.memory:
            raise LsclError(
                f"{one.config.name} needs about {one.memory / 2**30:.1f} GB of memory, {machine.name} has {machine.memory / 2**30:.1f}: "
                f"lower batch (now {one.config.batch}) or take a smaller foundation model"
            )
    cache = paths.cache()
    free, there = (
        shutil.disk_usage(_existing(cache)).free,
        sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()),
    )
    limit = limit_bytes()
    need = (
        disk(costs) if limit is None else min(disk(costs), max([limit, *(one.disk for one in costs if one.known)]))
    ) - there
    if need > free:
        raise LsclError(
            f"these runs need up to {need / 1e9:.0f} GB more in {cache}, {free / 1e9:.0f} GB are free: set LSCL_CACHE to a larger disk"
        )
    return costs


def unsaid(costs: Collection[Cost]) -> str:
    """The systems that do not say what they cost, as text; empty if all do."""
    return ", ".join(dict.fromkeys(one.config.method for one in costs if not one.known))


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def plan_table(costs: Collection[Cost], machine: Machine) -> str:
    """One line per system and data set with what it needs, seeds summed up, and a last line for all."""
    groups: dict[tuple[str, str, str], list[Cost]] = {}
    for one in costs:
        extra = ", ".join(f"{key}={value}" for key, value in one.config.overrides().items())
        groups.setdefault((one.config.dataset, one.config.method, extra), []).append(one)
    lines = [
        f"{'data':11} {'system':22} {'runs':>4} {'memory GB':>9} {'disk GB':>8} {'PFLOP clients':>13} {'server':>8} {'hours':>7}"
    ]
    for (dataset, method, extra), group in groups.items():
        clients, server = (
            sum(values) / 1e15 for values in ([one.flops - one.server for one in group], [one.server for one in group])
        )
        hours = sum(one.hours(machine) for one in group)
        name = f"{method} {extra}".strip()
        memory, room = max(one.memory for one in group) / 2**30, max(one.disk for one in group) / 1e9
        first = f"{dataset:11} {name:22} {len(group):4} {_number(memory, 9, 1)} {_number(room, 8, 1)}"
        lines.append(f"{first} {_number(clients, 13, 2)} {_number(server, 8, 2)} {_number(hours, 7, 1)}")
    download = sum({one.config.dataset: _images(one) for one in costs}.values())
    download += max((one.download - _images(one) for one in costs), default=0)
    total = sum(one.hours(machine) for one in costs if one.known)
    without = f"; without {unsaid(costs)}, whose class has no costs" if unsaid(costs) else ""
    lines.append(
        f"all on {machine.name}: {total:.1f} hours, {disk(costs) / 1e9:.0f} GB of disk, {download / 1e9:.1f} GB to download, "
        f"nothing cached before{without}"
    )
    return "\n".join(lines)


def _images(one: Cost) -> int:
    """Bytes of the data set to download."""
    return DATASETS[one.config.dataset].download


def _number(value: float, width: int, places: int) -> str:
    """A number of the table, or that it is unknown."""
    return f"{'unknown' if math.isnan(value) else f'{value:.{places}f}':>{width}}"
