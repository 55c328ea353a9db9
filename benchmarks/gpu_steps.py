"""Checks b of gpu.py: training steps of every system, against bare products, the plan, peft and the plain way.

A step is one of `lscl.federation.training.fit`, so it has the input pipeline and the optimiser of a real run. The ViT
has random weights; the images are random, 32 pixels a side, and the CNN sees them at the size of the profile `paper`.
"""

import gc
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import timm
import torch
from gpu_setting import Setting
from torch import nn
from torch.profiler import ProfilerActivity, profile
from training_step import Products, begin, cnn_step, federation, peft_step, plain_step

from lscl.config import experiment
from lscl.experiments import cost_model
from lscl.experiments.run import prepare
from lscl.federation.client import Client
from lscl.federation.method import Method, Phase
from lscl.federation.passes import map_batches
from lscl.federation.pipeline import place_on_device
from lscl.federation.training import fit
from lscl.methods import METHODS
from lscl.models.precision import DTYPES, prepare_device

MODES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "tf32": {"tf32": True},
    "bf16": {"precision": "bf16"},
    "compiled": {"precision": "bf16", "compile": True},
}
WITHIN = 1.25  # the plan may be off by this factor
STEPS = {16: 10, 64: 5}  # steps of a turn by batch


@dataclass(frozen=True)
class Case:
    """A system in one arithmetic at one batch size; `compared` also times the plain way and peft."""

    method: str
    mode: str
    batch: int
    compared: bool = False

    @property
    def name(self) -> str:
        return f"{self.method}-{self.mode}-{self.batch}"


def systems() -> list[str]:
    """The systems whose clients train, the paper's own first."""
    return sorted((name for name in METHODS if METHODS[name].trains), key=lambda name: METHODS[name].role != "own")


def own() -> str:
    """The paper's own system."""
    return METHODS.find_role("own")


def cases(part: str) -> list[Case]:
    """The cases of a part: b1 all systems, b2 all modes of the paper's own, b3 the rest."""
    first = [
        Case(name, mode, batch, name == own()) for mode, batch in (("fp32", 16), ("bf16", 64)) for name in systems()
    ]
    every = [Case(own(), mode, batch, mode != "compiled") for mode in MODES for batch in STEPS]
    rest = [Case(name, mode, batch) for mode, batch in (("tf32", 16), ("bf16", 16), ("fp32", 64)) for name in systems()]
    done = {one.name for one in first}
    second = [one for one in every if one.name not in done]
    done |= {one.name for one in second}
    return {"b1": first, "b2": second, "b3": [one for one in rest if one.name not in done]}[part]


@lru_cache(maxsize=1)
def random_vit(name: str, device: str) -> timm.models.VisionTransformer:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=0).to(device)


def measure_case(setting: Setting, case: Case) -> dict[str, Any]:
    """Time the steps of a case, and compare their memory with the plan.

    Args:
        setting: where to measure.
        case: what to measure.

    Returns:
        seconds of a step, images per second, ratio to the bare products, share of time that the GPU waits, memory; of a
        compared case also seconds with all images and activations on the GPU.
    """
    batch = min(case.batch, setting.largest_batch)
    values = {**setting.step_values, **MODES[case.mode]}
    steps = setting.steps or STEPS[case.batch]
    vit = random_vit(setting.vit, setting.device)
    resident = free_memory(setting)
    method, client = federation(
        case.method, vit, "vit_b", batch, setting.device, max(steps * batch, setting.tested), **values
    )
    prepare_device(method.config)
    if case.mode == "compiled" and method.foundation is not None:
        method.foundation.compile_blocks(setting.compiler)
    phase = first_phase(method, client)
    steps_of = lambda: train(method, client, phase, steps)
    train(method, client, phase, 3)  # warm
    seconds = timed(steps_of, setting) / steps
    busy = busy_seconds(lambda: train(method, client, phase, 3), setting)
    evaluate_once(method, client, setting.tested)
    memory = compare_memory(method, vit, setting, resident)
    found = {
        "method": case.method, "mode": case.mode, "batch": batch, "vit": setting.vit, "seconds": round(seconds, 6),
        "images_per_second": round(batch / seconds, 1),
        "waiting": None if busy is None else round(max(0.0, 1 - busy / 3 / seconds), 3), **memory,
    }  # fmt: skip
    bare = bare_work(method, client, batch, DTYPES[method.config.precision] or torch.float32)
    if bare is not None:
        found["bare_seconds"] = round(timed(bare, setting), 6)
        found["ratio_to_bare"] = round(seconds / found["bare_seconds"], 3)
    if case.compared:
        place_on_device(client.train, lambda: 2**40)
        found["placed_seconds"] = round(timed(steps_of, setting) / steps, 6)
        found |= compare_ways(setting, case, batch, values, seconds)
    return found


def first_phase(method: Method, client: Client) -> Phase:
    """The first phase of the first stage that trains."""
    stage = begin(method, client)
    return method.phases(client, stage)[0]


def train(method: Method, client: Client, phase: Phase, steps: int) -> None:
    """Take some steps of a phase, as a run does."""
    size = method.config.batch
    some = replace(phase, epochs=1, batch=size, index=client.train_index[: steps * size])
    fit(client, some, torch.Generator().manual_seed(0), method.config.precision)


@torch.no_grad()
def evaluate_once(method: Method, client: Client, images: int) -> None:
    """A pass as tests make it, which may need more memory than a step."""
    client.model.eval()
    map_batches(client.train, client.train_index[:images], lambda one: method.logits(client, one))


def timed(work: Callable[[], Any], setting: Setting) -> float:
    """Seconds of a piece of work, the median of some turns after one, the GPU's work included."""
    found = []
    for _ in range(setting.turns + 1):
        start = time.perf_counter()
        work()
        synchronize(setting)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def synchronize(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.synchronize()


def busy_seconds(work: Callable[[], Any], setting: Setting) -> float | None:
    """Seconds in which the GPU computes or copies during a piece of work, as the profiler saw it; None on a CPU."""
    if setting.device != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        work()
        torch.cuda.synchronize()
    spans = sorted(
        (one.time_range.start, one.time_range.end)
        for one in seen.events()
        if one.device_type == torch.autograd.DeviceType.CUDA and not is_annotation(one)
    )
    total, until = 0.0, 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 1e6


def is_annotation(event: Any) -> bool:
    """Whether the profiler only names a stretch of time, which may hold pauses."""
    return getattr(event, "is_user_annotation", False) or event.name.startswith(("Optimizer.", "ProfilerStep"))


def free_memory(setting: Setting) -> int:
    """Free what nobody uses, and start to watch for the largest memory; -> bytes that are in use."""
    gc.collect()
    if setting.device != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def compare_memory(method: Method, vit: nn.Module, setting: Setting, resident: int) -> dict[str, Any]:
    """The largest memory of a case against what `lscl plan` expects, the driver's own share left out of both.

    Args:
        method: the system.
        vit: the frozen ViT, which lies on the GPU in any case, and counts if the system has one.
        setting: where it was measured.
        resident: bytes that were in use before.

    Returns:
        megabytes, expected and measured, their ratio, and whether it is within WITHIN.
    """
    expected = float(cost_model.cost(method.config).memory) - cost_model.CUDA_CONTEXT
    found: dict[str, Any] = {"planned_mb": round(expected / 1e6)}
    if setting.device == "cuda":
        weights = sum(p.nbytes for p in vit.parameters()) if method.foundation is not None else 0
        peak, reserved = torch.cuda.max_memory_allocated() - resident + weights, torch.cuda.max_memory_reserved()
        ratio = expected / peak
        found |= {"peak_mb": round(peak / 1e6), "reserved_mb": round(reserved / 1e6), "plan_to_peak": round(ratio, 3)}
        found["plan_holds"] = 1 / WITHIN <= ratio <= WITHIN
    return found


def bare_work(method: Method, client: Client, batch: int, dtype: torch.dtype) -> Callable[[], None] | None:
    """The bare matrix products of a step, with the bare step of the CNN where there is one; None = it has neither."""
    config, parts = method.config, []
    frozen = method.foundation
    if frozen is not None and frozen.block < frozen.depth:
        tokens = frozen.tokens + METHODS[config.method].costs(config).tokens()
        parts.append(Products(frozen.vit, frozen.block, batch, tokens, dtype=dtype).run)
    if "cnn" in dict(client.model.named_children()) and METHODS[config.method].trains_cnn(config):
        few = replace_batch(client, batch)
        parts.append(in_arithmetic(cnn_step(few), client, dtype))
    return (lambda: [one() for one in parts]) if parts else None


def replace_batch(client: Client, batch: int) -> Client:
    """The client with so few images that they are one batch."""
    few = replace(client.partition.tasks[client.id][0], train=tuple(client.train_index[:batch].tolist()))
    parts = replace(client.partition, tasks=((few,),))
    return replace(client, partition=parts)


def in_arithmetic(work: Callable[[], None], client: Client, dtype: torch.dtype) -> Callable[[], None]:
    """Work under autocast, where the numbers are not float32."""

    def one() -> None:
        with torch.autocast(client.device.type, dtype, enabled=dtype != torch.float32):
            work()

    return one


def compare_ways(
    setting: Setting, case: Case, batch: int, values: dict[str, Any], seconds: float
) -> dict[str, float | None]:
    """Seconds of the plain way, of peft's LoRA and of peft's LoRA with the CNN, and how much faster a step is."""
    vit = random_vit(setting.vit, setting.device)
    method, client = federation(case.method, vit, "vit_b", batch, setting.device, batch, **values)
    begin(method, client)
    client.model.train()
    ways = {"plain": plain_step(method, client)}
    if importlib.util.find_spec("peft"):
        ways |= {"peft": peft_step(method, client, False), "peft_and_cnn": peft_step(method, client, True)}
    dtype = DTYPES[method.config.precision] or torch.float32
    found: dict[str, float | None] = {}
    for name, way in ways.items():
        taken = timed(in_arithmetic(way, client, dtype), setting)
        found |= {f"{name}_seconds": round(taken, 6), f"times_faster_than_{name}": round(taken / seconds, 3)}
    return found


# ---- several runs on one GPU


def concurrency(setting: Setting) -> dict[str, Any]:
    """Steps per second of one process, and of several at once, on runs of the mini ViT.

    Args:
        setting: where to measure.

    Returns:
        steps per second of all processes together, by their number.
    """
    counts = setting.processes
    context = setting.context
    barrier, answers = context.Barrier(counts[-1]), context.Queue()
    workers = [context.Process(target=pace, args=(k, counts, setting, barrier, answers)) for k in range(counts[-1])]
    for one in workers:
        one.start()
    found = [answers.get(timeout=240) for _ in range(sum(counts))]
    for one in workers:
        one.join()
    together = {str(n): round(sum(rate for number, rate in found if number == n), 1) for n in counts}
    return {"steps_per_second": together, "gain": round(together[str(counts[-1])] / together[str(counts[0])], 2)}


def pace(rank: int, counts: tuple[int, ...], setting: Setting, barrier: Any, answers: Any) -> None:
    """One process of `concurrency`: train while it is among the first n, for each number n."""
    values = {"profile": "smoke"} if setting.dry else {"profile": "mini"}
    config = experiment(method=own(), dataset="glyphs", device=setting.device, clients=1, tasks=1, **values)
    _, _, method, (client,) = prepare(config)
    phase = first_phase(method, client)
    once = max(1, min(5, len(client.train_index) // config.batch))
    train(method, client, phase, once)
    for number in counts:
        barrier.wait(240)
        if rank < number:
            start, steps = time.perf_counter(), 0
            while time.perf_counter() - start < setting.seconds_of_pace:
                train(method, client, phase, once)
                synchronize(setting)
                steps += once
            answers.put((number, steps / (time.perf_counter() - start)))
        barrier.wait(240)
