"""Graphics cards to plan for: what their data sheets promise, and the steps that `benchmarks/gpu.py` timed on them.

What is read of results/benchmarks/gpu--<card>.json: `machine.gpu`, the card as torch names it, and of every row with
outcome = passed and a time:

    method, mode ("fp32", "tf32", "bf16", "compiled"), batch, vit (timm's name), seconds of a training step,
    images_per_second, ratio_to_bare (to the step's bare matrix products), waiting (share of the time in which the GPU
    does nothing), peak_mb and planned_mb (10^6 bytes)

All other keys and rows are passed over.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import PositiveFloat, PositiveInt

from lscl import files, paths
from lscl.config import Experiment


@dataclass(frozen=True)
class Sheet:
    """What a data sheet says of a card: dense rates in TFLOP/s, None = no unit for it.

    Args:
        title: the card.
        device: part of the name that torch gives it, in small letters.
        memory: GiB that programs can use.
        bandwidth: GB/s.
        fp32: rate of single precision.
        tf32: rate of products rounded to TF32.
        bf16: rate of products in bfloat16.
        fp16: rate of products in half precision, summed in single.
        source: who says so.
        dated: when that was published.
    """

    title: str
    device: str
    memory: float
    bandwidth: float
    fp32: float
    tf32: float | None
    bf16: float | None
    fp16: float | None
    source: str
    dated: str

    def peak(self, arithmetic: str) -> float:
        """TFLOP/s in an arithmetic (see `arithmetic_of`); without a unit for it, those of single precision."""
        rates = {"tf32": self.tf32, "bf16": self.bf16, "compiled": self.bf16, "fp16": self.fp16}
        return rates.get(arithmetic) or self.fp32


SHEETS = {
    "t4": Sheet(
        "NVIDIA T4", "t4", 15, 300, 8.1, None, None, 65,
        "NVIDIA T4 Tensor Core GPU, data sheet", "2019-03",
    ),
    "v100": Sheet(
        "NVIDIA V100 SXM2 16 GB", "v100", 16, 900, 15.7, None, None, 125,
        "NVIDIA V100 Tensor Core GPU, data sheet", "2020-01",
    ),
    "a100": Sheet(
        "NVIDIA A100 SXM4 40 GB", "a100", 40, 1555, 19.5, 156, 312, 312,
        "NVIDIA A100 Tensor Core GPU, data sheet", "2021-06",
    ),
    "rtx3090": Sheet(
        "NVIDIA GeForce RTX 3090", "rtx 3090", 24, 936, 35.6, 35.6, 71, 71,
        "NVIDIA Ampere GA102 GPU Architecture, whitepaper V2.0, appendix A", "2021-01",
    ),
    "h100": Sheet(
        "NVIDIA H100 SXM5 80 GB", "h100", 80, 3350, 67, 494.7, 989.4, 989.4,
        "NVIDIA H100 Tensor Core GPU, data sheet (with sparsity twice the tensor rates)", "2023-03",
    ),
    "h200": Sheet(
        "NVIDIA H200 SXM 141 GB", "h200", 139, 4800, 67, 494.7, 989.4, 989.4,
        "NVIDIA H200 Tensor Core GPU, data sheet (with sparsity twice the tensor rates)", "2024-11",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class MeasuredStep:
    """A training step that was timed on a card.

    Args:
        device: the card, as torch names it.
        method: the system.
        arithmetic: as `arithmetic_of` names it.
        batch: images in the step.
        vit: timm's name of the frozen ViT.
        seconds: of the step.
        images_per_second: of the batch.
        ratio_to_bare: seconds in those of the step's bare matrix products; None = it has none.
        waiting: share of the time in which the GPU does nothing; None = not measured.
        peak: largest memory in bytes, without the driver's; None = not measured.
        planned: what the cost model expects of that.
    """

    device: str
    method: str
    arithmetic: str
    batch: int
    vit: str
    seconds: float
    images_per_second: float
    ratio_to_bare: float | None
    waiting: float | None
    peak: float | None
    planned: float | None

    @property
    def plan_to_peak(self) -> float | None:
        """Planned memory divided by measured memory; None if one of them is unknown."""
        return self.planned / self.peak if self.planned and self.peak else None


class _Machine(files.Shape):
    gpu: str | None


class _Timed(files.Shape):
    outcome: str
    method: str
    mode: str
    batch: PositiveInt
    vit: str
    seconds: PositiveFloat
    images_per_second: float
    ratio_to_bare: float | None = None
    waiting: float | None = None
    peak_mb: float | None = None
    planned_mb: float | None = None


class _Other(files.Shape):
    vit: None = None  # a row with a ViT must be a timed step


class _MeasuredCard(files.Shape):
    """results/benchmarks/gpu--<card>.json, as far as this module reads it."""

    machine: _Machine
    rows: list[_Timed | _Other]


def measured_steps() -> list[MeasuredStep]:
    """All training steps that were timed on a card.

    Returns:
        the steps, file by file.

    Raises:
        LsclError: a file that cannot be read, or of another shape.
    """
    found = sorted((paths.results() / "benchmarks").glob("gpu--*.json"))
    return [step for path in found for step in _steps_in(path)]


def _steps_in(path: Path) -> list[MeasuredStep]:
    """The timed steps of a file; none if it was made without a GPU."""
    found = _MeasuredCard.model_validate(files.read_json(path, _MeasuredCard))
    card, timed = found.machine.gpu, [row for row in found.rows if isinstance(row, _Timed)]
    return [_step(card, row) for row in timed if card and row.outcome == "passed"]


def _step(card: str, row: _Timed) -> MeasuredStep:
    in_bytes = lambda megabytes: None if megabytes is None else 1e6 * megabytes
    return MeasuredStep(
        card, row.method, row.mode, row.batch, row.vit, row.seconds, row.images_per_second, row.ratio_to_bare,
        row.waiting, in_bytes(row.peak_mb), in_bytes(row.planned_mb),
    )  # fmt: skip


def steps_on(device: str) -> tuple[MeasuredStep, ...]:
    """The timed steps of one kind of card.

    Args:
        device: the whole name that torch gives it, or `Sheet.device`.

    Returns:
        the steps on cards whose name has it as a word; "NVIDIA H100 80GB HBM3" has "h100".
    """
    name = re.compile(rf"\b{re.escape(device)}\b", re.IGNORECASE)
    return tuple(one for one in measured_steps() if name.search(one.device))


def arithmetic_of(config: Experiment) -> str:
    """The arithmetic of a run's products: fp32, tf32, bf16, fp16, or compiled, which is bf16 through torch.compile."""
    if config.compile and config.precision == "bf16":
        return "compiled"
    return "tf32" if config.tf32 and config.precision == "fp32" else config.precision


def step_like(config: Experiment, steps: tuple[MeasuredStep, ...]) -> MeasuredStep | None:
    """The timed step that is most like those of a run.

    Args:
        config: the run.
        steps: to choose from.

    Returns:
        a step of its system on its ViT in its arithmetic, of the nearest batch; None if there is none, or if the ViT
        has another size than its own, at which nothing was timed.
    """
    if config.vit_size is not None:
        return None
    vit = config.foundation.removeprefix("random/").split(".")[0]
    alike = [
        one for one in steps if (one.method, one.vit, one.arithmetic) == (config.method, vit, arithmetic_of(config))
    ]
    return min(alike, key=lambda one: abs(one.batch - config.batch), default=None)


def seconds_like(config: Experiment, step: MeasuredStep) -> float:
    """Seconds of a run's step by a timed one: the same seconds for an image.

    Args:
        config: the run.
        step: what `step_like` found.

    Returns:
        seconds for a batch of the run.
    """
    return step.seconds * config.batch / step.batch
