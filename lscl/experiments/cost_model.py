"""The resources of a set of runs, before anything runs: memory, disk, download, FLOPs and hours, by a cost model.

`lscl.models.counting` counts the networks, a system's `costs` say what it adds, and this module sums both up over runs.
`benchmarks/cost_model.py` compares the sums with measured steps. Where `benchmarks/gpu.py` has timed the steps of a
system on a card, the hours follow those (`lscl.experiments.cards`). The costs of a system without `costs` are unknown,
never 0.
"""

import math
import shutil
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lscl import paths
from lscl.config import Experiment
from lscl.data.store import bytes_below
from lscl.errors import LsclError, unknown_name
from lscl.experiments.cards import SHEETS, MeasuredStep, Sheet, arithmetic_of, seconds_like, step_like, steps_on
from lscl.federation.costs import Costs, Planned
from lscl.federation.passes import BATCH
from lscl.federation.pipeline import AHEAD
from lscl.machine import physical_memory
from lscl.models.cache import STORED, limit_bytes
from lscl.models.cnn import check_cnns
from lscl.models.cnn_weights import check_weights
from lscl.models.counting import FLOAT, HALF, NOTHING, Blocks, Network, count_cnn, uncut_vit, vit_shape
from lscl.models.precision import DTYPES
from lscl.models.vit import has_plain_embedding
from lscl.registry import DATASETS, METHODS

CUDA_CONTEXT = 6e8  # bytes that the driver and torch's kernels take, roughly
VISITS = 4  # of what is kept for the backward pass: written and read, and its gradient too


@dataclass(frozen=True)
class Machine:
    """A device to plan for.

    memory: bytes on the device; linear, attention, convolution: FLOP/s in fp32 that are reached; traffic: bytes/s of
    elementwise work; step: seconds that a step takes at least; sheet: of a card, its rates in other arithmetics; steps:
    those that were timed on this device.
    """

    name: str
    memory: float
    linear: float
    attention: float
    convolution: float
    traffic: float
    step: float
    sheet: Sheet | None = None
    steps: tuple[MeasuredStep, ...] = ()

    def speedup(self, config: Experiment) -> float:
        """The speed of products in a run's arithmetic relative to fp32; 1 where no data sheet gives it."""
        return self.sheet.peak(arithmetic_of(config)) / self.sheet.fp32 if self.sheet else 1.0

    def timed_step(self, config: Experiment) -> MeasuredStep | None:
        """The timed step that a run's hours follow; None = they are computed."""
        return step_like(config, self.steps)

    def basis(self, config: Experiment) -> str:
        """Where a run's hours come from: "measured on" a card, or "computed"."""
        step = self.timed_step(config)
        return f"measured on {step.device}" if step else "computed"


def _of_sheet(name: str, sheet: Sheet) -> Machine:
    """A card by its sheet: half of its rate is expected in linear layers, a third in attention and convolutions."""
    rates = (sheet.fp32 * 0.5e12, sheet.fp32 * 0.33e12, sheet.fp32 * 0.33e12, sheet.bandwidth * 0.7e9)
    return Machine(name, sheet.memory * 2**30, *rates, 0.02, sheet)


CARDS = {name: _of_sheet(name, sheet) for name, sheet in SHEETS.items()}  # computed; `find_card` has timed steps, too


@dataclass(frozen=True)
class Cost:
    """What one run needs; NaN where a system does not say.

    linear, attention, convolution, server: FLOPs by kind; traffic: bytes of elementwise work; steps: their number;
    memory, disk, download: bytes on the device, on the disk and over the network; trained: the clients' training steps,
    those of a system's own work not among them.
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
    trained: float

    @property
    def is_known(self) -> bool:
        """Whether the system declares its costs."""
        return not math.isnan(self.memory)

    @property
    def flops(self) -> float:
        """FLOPs of clients and server together."""
        return self.linear + self.attention + self.convolution + self.server

    def hours(self, machine: Machine) -> float:
        """Expected hours; all server work counts as convolutions (that of O2D is not, but it is small).

        If a step of the system was timed on the machine, its training steps take as long as that one, and the rest as
        computed: what lies below the cut, evaluation, and the system's own work.
        """
        work = (
            self.linear / machine.linear
            + self.attention / machine.attention
            + (self.convolution + self.server) / machine.convolution
        ) / machine.speedup(self.config)
        computed = work + self.traffic / machine.traffic + self.steps * machine.step
        timed = machine.timed_step(self.config) if self.is_known else None
        if timed is None:
            return computed / 3600
        rest = max(0.0, computed - self.trained * seconds_of(self.config, machine))
        return (rest + self.trained * seconds_like(self.config, timed)) / 3600


# ---- one step


def blocks_of(config: Experiment) -> Blocks:
    """The transformer blocks that a method computes in a training step, with the tokens that it adds."""
    kind, (vit, _) = METHODS[config.method], vit_shape(config.foundation, config.vit_size)
    cut = kind.cut(config)
    tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens + kind.costs(config).tokens()
    mlp = sum(layer.weight.numel() for layer in vit.blocks[0].mlp.modules() if isinstance(layer, nn.Linear))
    hidden = mlp // (2 * vit.embed_dim)  # of two layers that cost as much, where there are three
    count = len(vit.blocks) - cut if kind.uses_vit(config) and cut is not None else 0
    return Blocks(count, tokens, vit.embed_dim, hidden, uncut_vit(vit).tokens_read is None)


def seconds_of(config: Experiment, machine: Machine) -> float:
    """Seconds of one training step of the first task, computed.

    Args:
        config: the run.
        machine: rates to expect, as a card of CARDS or `measure_machine` gives them.

    Returns:
        seconds for one batch.
    """
    one = step_of(config)
    work = one.linear / machine.linear + one.attention / machine.attention + one.convolution / machine.convolution
    return config.batch * (work / machine.speedup(config) + one.traffic / machine.traffic) + machine.step


@dataclass(frozen=True)
class Step:
    """One image in a training step: FLOPs by kind, bytes kept for the backward pass, bytes of elementwise work."""

    linear: float
    attention: float
    convolution: float
    saved: float
    traffic: float


def step_of(config: Experiment, cnn_images: float = 1) -> Step:
    """What one image costs in a training step of the first task.

    Args:
        config: the run.
        cnn_images: how many images go through the CNN for each image of a batch.

    Returns:
        FLOPs and bytes of one image.
    """
    kind, blocks = METHODS[config.method], blocks_of(config)
    costs, cnn = kind.costs(config), NOTHING
    if kind.trains_cnn(config):
        cnn = count_cnn(config, start=kind.start_of_cnn(config))
    linear, attention = blocks.step()
    saved = blocks.saved(costs.every_input) + cnn.saved * cnn_images
    linear += costs.step_flops(blocks.width)
    return Step(
        linear,
        attention,
        costs.cnn_passes() * cnn.flops,
        saved,
        VISITS * saved + (blocks.low_rank() if costs.every_input else 0),
    )


# ---- memory on the device


@dataclass(frozen=True)
class Given:
    """What the networks are given, in bytes of one image.

    Args:
        pixels: the CNN's input.
        ahead: stored tokens of the batches that are read ahead.
        enlarged: the enlarged pixels while tokens are made of them.
    """

    pixels: float = 0
    ahead: float = 0
    enlarged: float = 0


def step_bytes(config: Experiment, costs: Costs, blocks: Blocks, cnn: Network, given: Given) -> float:
    """Bytes that a training step needs in addition to weights, gradients and moments.

    They are the largest at the beginning of the backward pass, first of the ViT and then of the CNN, when nothing of
    what was kept is free yet. In half precision the norms' inputs stay float32, and all frozen weights are there a
    second time. From the second task on more images than those of a batch may pass the CNN. Measured on an H200, see
    `pass_bytes`.

    Args:
        config: the run.
        costs: of its system.
        blocks: of the ViT, above the cut.
        cnn: of a client.
        given: their inputs.

    Returns:
        Bytes of a whole batch.
    """
    number = FLOAT if DTYPES[config.precision] is None else HALF
    several, length = costs.in_front()
    images, views = (costs.cnn_images(), costs.vit_images()) if config.tasks_run > 1 else (1, 1)
    vit = blocks.saved(costs.every_input, number) + blocks.turning(number) + several * blocks.fronted(length, number)
    share = number / FLOAT
    one = images * cnn.saved * share + max(views * vit, images * cnn.passing * share)
    return config.batch * (max(one, given.enlarged) + images * given.pixels + given.ahead) + blocks.copies(number)


def pass_bytes(costs: Costs, blocks: Blocks, cnn: Network, given: Given) -> float:
    """Bytes that a pass without gradients takes, in float32 and with BATCH images whatever the training does.

    With batches of 16 it needs more memory than a training step. Against the largest memory of 32 cases on an H200 at
    ViT-B/16 (results/benchmarks/gpu--NVIDIA-H200.json) the plan is 3 % below to 11 % above; but for LoRM in bf16 (36 %
    above: only its first round was measured, which keeps fewer inputs) and FedAvg + ViT (23 % below, not explained).
    Left out are the driver, for which CUDA_CONTEXT stands, memory that torch holds and does not use, and the frozen
    part, whose batches are as large as a card allows.

    Args:
        costs: of the system.
        blocks: of the ViT, above the cut.
        cnn: of a client.
        given: their inputs.

    Returns:
        Bytes of a whole batch.
    """
    vit = max(blocks.passing() + blocks.fronted(costs.in_front()[1]), given.enlarged)
    return BATCH * (max(vit + given.pixels, cnn.passing) + given.ahead)


# ---- one run


def has_known_size(config: Experiment) -> bool:
    """Whether the number of images of the data set is known before they are read."""
    source = DATASETS[config.dataset]
    return source.images is not None and source.classes is not None


@dataclass(frozen=True)
class Counts:
    """Numbers of images of all clients: in one epoch of all tasks, in all evaluations, in the two stored sets."""

    epoch: float
    evaluated: float
    train: float
    test: float

    @classmethod
    def of(cls, config: Experiment) -> "Counts":
        """Expected numbers, as the shares of public classes are drawn.

        Raises:
            LsclError: the size of the data set is not known before it is read.
        """
        source = DATASETS[config.dataset]
        if not has_known_size(config):
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
    """What one run needs when no image, activation or checkpoint is on the disk yet.

    Raises:
        LsclError: an unknown network, or a data set whose size is not known before it is read.
    """
    kind, source, counts = METHODS[config.method], DATASETS[config.dataset], Counts.of(config)
    if kind.costs is None:
        return Cost(config, *[math.nan] * 8, source.download, math.nan)
    costs, cnn, cnn_trained = kind.costs(config), NOTHING, kind.trains_cnn(config)
    if cnn_trained:
        start = kind.start_of_cnn(config)
        check_cnns(config, start)
        check_weights(config, start)
        cnn = count_cnn(config, start=start)
    share = sum(kind.trains_in(config, task) for task in range(config.tasks_run)) / config.tasks_run
    trained = kind.passes * config.rounds * config.epochs * counts.epoch * share
    dense, convolution = np.zeros(2), 0.0  # dense: in linear layers and in attention
    images = counts.train + counts.test
    disk = images * config.image_size**2 * 3
    memory, download, steps = CUDA_CONTEXT, source.download, trained / config.batch
    blocks, width, depth, given = Blocks(0, 0, 0, 0), 0, 0, Given()
    if kind.uses_vit(config):
        vit, stem = vit_shape(config.foundation, config.vit_size)
        whole = uncut_vit(vit)
        kind.check_foundation(config, whole)
        blocks, width, depth = blocks_of(config), vit.embed_dim, len(vit.blocks)
        every = replace(blocks, count=whole.depth, tokens=whole.tokens)
        surrogate = getattr(config, kind.surrogate) * source.classes if kind.surrogate else 0
        frozen = every.forward(cls_only=False) * (1 if kind.query else 1 - blocks.count / whole.depth)
        embeds = kind.cut(config) == 0 and has_plain_embedding(vit)
        # Stored tokens are read ahead; others are computed in every pass, from three copies of the enlarged pixels.
        stored = STORED[config.activations].itemsize * whole.tokens * whole.width if blocks.count else 0
        given = Given(enlarged=9 * FLOAT * vit.patch_embed.img_size[0] ** 2) if embeds else Given(ahead=AHEAD * stored)
        dense += (images + surrogate) * (frozen + np.array([0.0 if embeds and not kind.query else stem, 0.0]))
        tokens = 0 if embeds else whole.tokens if blocks.count else 1
        disk += (
            (images + surrogate)
            * STORED[config.activations].itemsize
            * whole.width
            * (tokens + (1 if kind.query else 0))
        )
        again = costs.passes() * counts.epoch * config.rounds_run
        dense += trained * blocks.step() + again * blocks.forward()
        tested = counts.evaluated + (counts.epoch if kind.has_features else 0)  # and the pass for the closed-form head
        dense += tested * blocks.forward() * costs.evaluations
        dense += np.array([(trained + again + tested) * stem if embeds else 0.0, 0.0])
        weights = FLOAT * sum(p.numel() for p in vit.parameters())
        memory += weights
        download += weights if config.weights is None and config.foundation not in ("mini", "tiny") else 0
    if cnn_trained:
        convolution += (
            costs.cnn_passes() * trained * cnn.flops
            + (counts.evaluated + counts.epoch * config.tasks_run / config.tasks) * cnn.flops
        )
    planned = Planned(config, cnn, blocks, width, depth, source.classes, counts.epoch, trained)
    own = costs.own_work(planned)
    convolution += own.clients
    steps += own.steps
    model = FLOAT * (source.classes * (width or config.features) + costs.parameters(planned) + cnn.weights / FLOAT)
    step = step_of(config, costs.cnn_images())
    if cnn_trained:
        given = replace(given, pixels=3 * FLOAT * config.side**2)
    # All clients' models and one that a client compares with; in training a gradient and two moments.
    memory += (config.clients + 1) * model
    training = 3 * model + step_bytes(config, costs, blocks, cnn, given) if trained else 0.0
    memory += max(training, pass_bytes(costs, blocks, cnn, given))
    disk += 3 * config.clients * model
    return Cost(
        config,
        *dense,
        convolution,
        own.server,
        trained * step.traffic,
        steps,
        memory,
        disk,
        download,
        trained / config.batch,
    )


# ---- a set of runs


def this_machine(device: torch.device) -> Machine:
    """This machine's memory, its rates not measured."""
    if device.type != "cuda":
        return Machine("this machine", physical_memory(), *[math.nan] * 4, 0.002)
    name, memory = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
    return Machine(name, memory, *[math.nan] * 4, 0.02, steps=steps_on(name))


@lru_cache
def measure_machine(device: torch.device) -> Machine:
    """`this_machine` with measured rates, the best of several trials each; takes about three seconds, once a process.

    They are those of a matrix product, of attention and a convolution in training, and of a GELU.
    """

    def rate(work: Callable[[], object], flops: float) -> float:
        best, begun = math.inf, time.perf_counter()
        while time.perf_counter() - begun < 0.7:
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        return flops / best

    # ViT-B's first MLP layer for 8 images.
    tokens, weight = torch.randn(1576, 768, device=device), torch.randn(768, 3072, device=device)
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
    return replace(this_machine(device), linear=linear, attention=attention, convolution=convolution, traffic=traffic)


def find_card(name: str) -> Machine:
    """A GPU by its name in CARDS, with the steps that were timed on it.

    Raises:
        LsclError: no such name, or a damaged file of timed steps.
    """
    if name not in CARDS:
        raise unknown_name("card", name, CARDS)
    return replace(CARDS[name], steps=steps_on(SHEETS[name].device))


def disk(costs: Collection[Cost]) -> float:
    """Bytes that all runs need together; those that cut the ViT at the same place share images and activations."""
    shared: dict[tuple, float] = {}
    for one in costs:
        if not one.is_known:
            continue
        kind = METHODS[one.config.method]
        cut = kind.cut(one.config) if kind.uses_vit(one.config) else "no ViT"
        key = (one.config.dataset, one.config.image_size, cut, kind.query)
        shared[key] = max(shared.get(key, 0.0), one.disk)
    return sum(shared.values())


def check_costs(configs: Collection[Experiment], machine: Machine) -> list[Cost]:
    """Check that a machine can hold all runs; systems without costs are named on stderr and passed over.

    Args:
        configs: the runs.
        machine: where they are to run.

    Returns:
        the cost of each run, in the order of `configs`.

    Raises:
        LsclError: one run needs more memory than the machine has, or all together more disk than is free.
    """
    costs = [cost(config) for config in configs]
    if systems_lacking_costs(costs):
        print(
            f"lscl: memory and disk are not checked for {systems_lacking_costs(costs)}: its class has no costs",
            file=sys.stderr,
        )
    for one in costs:
        if one.memory > machine.memory:
            raise LsclError(
                f"{one.config.name} needs about {one.memory / 2**30:.1f} GB of memory, "
                f"{machine.name} has {machine.memory / 2**30:.1f}: "
                f"lower batch (now {one.config.batch}) or take a smaller foundation model"
            )
    cache = paths.cache()
    free, limit, wanted = shutil.disk_usage(_existing(cache)).free, limit_bytes(), disk(costs)
    if limit is not None:
        wanted = min(wanted, max([limit, *(one.disk for one in costs if one.is_known)]))
    need = wanted - bytes_below(cache)
    if need > free:
        raise LsclError(
            f"these runs need up to {need / 1e9:.0f} GB more in {cache}, {free / 1e9:.0f} GB are free: "
            "set LSCL_CACHE to a larger disk"
        )
    return costs


def systems_lacking_costs(costs: Collection[Cost]) -> str:
    """The names of the systems without declared costs, with commas; empty if there are none."""
    return ", ".join(dict.fromkeys(one.config.method for one in costs if not one.is_known))


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def plan_table(costs: Collection[Cost], machine: Machine) -> str:
    """What a set of runs needs, as text: a line per system and data set, its seeds summed up, and one for all.

    Args:
        costs: as `check_costs` returns them.
        machine: what the hours are expected on.

    Returns:
        lines of equal columns; what a system does not say reads "unknown".
    """
    groups: dict[tuple[str, str, str], list[Cost]] = {}
    for one in costs:
        extra = ", ".join(f"{key}={value}" for key, value in one.config.overrides().items())
        groups.setdefault((one.config.dataset, one.config.method, extra), []).append(one)
    lines = [
        f"{'data':11} {'system':22} {'runs':>4} {'memory GB':>9} {'disk GB':>8} "
        f"{'PFLOP clients':>13} {'server':>8} {'hours':>7}  from"
    ]
    for (dataset, method, extra), group in groups.items():
        clients, server = (
            sum(values) / 1e15 for values in ([one.flops - one.server for one in group], [one.server for one in group])
        )
        hours = sum(one.hours(machine) for one in group)
        name = f"{method} {extra}".strip()
        memory, room = max(one.memory for one in group) / 2**30, max(one.disk for one in group) / 1e9
        first = f"{dataset:11} {name:22} {len(group):4} {_number(memory, 9, 1)} {_number(room, 8, 1)}"
        work = f"{_number(clients, 13, 2)} {_number(server, 8, 2)} {_number(hours, 7, 1)}"
        lines.append(f"{first} {work}  {machine.basis(group[0].config)}")
    download = sum({one.config.dataset: _images(one) for one in costs}.values())
    download += max((one.download - _images(one) for one in costs), default=0)
    total = sum(one.hours(machine) for one in costs if one.is_known)
    without = (
        f"; without {systems_lacking_costs(costs)}, whose class has no costs" if systems_lacking_costs(costs) else ""
    )
    lines.append(
        f"all on {machine.name}: {total:.1f} hours, {disk(costs) / 1e9:.0f} GB of disk, "
        f"{download / 1e9:.1f} GB to download, nothing cached before{without}"
    )
    return "\n".join(lines)


def cards_table(costs: Collection[Cost]) -> str:
    """The hours of a set of runs on every card, as text: a line per card.

    Args:
        costs: of the runs.

    Returns:
        lines of equal columns; systems without costs are left out of the hours, the last line names them.

    Raises:
        LsclError: a damaged file of timed steps.
    """
    known = [one for one in costs if one.is_known]
    lines = [f"{'card':9} {'memory GB':>9} {'all fit':>7} {'hours':>8}  from"]
    for name in CARDS:
        machine = find_card(name)
        fits = "yes" if all(one.memory <= machine.memory for one in known) else "no"
        hours = sum(one.hours(machine) for one in known)
        lines.append(f"{name:9} {machine.memory / 2**30:9.0f} {fits:>7} {hours:8.1f}  {basis_of(known, machine)}")
    lacking = systems_lacking_costs(costs)
    return "\n".join(lines + ([f"without {lacking}, whose class has no costs"] if lacking else []))


def basis_of(costs: Collection[Cost], machine: Machine) -> str:
    """Where the hours of a set of runs come from.

    Args:
        costs: of the runs.
        machine: what the hours are expected on.

    Returns:
        "computed", or "measured on" a card and, if not all runs follow timed steps, how many do.
    """
    found = [step.device for one in costs if (step := machine.timed_step(one.config))]
    if not found:
        return "computed"
    share = f" ({len(found)} of {len(costs)} runs, the rest computed)" if len(found) < len(costs) else ""
    return f"measured on {', '.join(dict.fromkeys(found))}{share}"


def _images(one: Cost) -> int:
    """Bytes of the data set to download."""
    return DATASETS[one.config.dataset].download


def _number(value: float, width: int, places: int) -> str:
    """A number of the table, or that it is unknown."""
    return f"{'unknown' if math.isnan(value) else f'{value:.{places}f}':>{width}}"
