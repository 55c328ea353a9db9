"""Checks a, c, d and e of gpu.py: whole runs on this GPU, stops and failures, notebooks, and records to keep."""

import math
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gpu_setting import ROOT, CheckFailed, Setting

from lscl import paths
from lscl.cli import one_line
from lscl.config import Experiment, experiment
from lscl.data.sources import CIFAR100_DIGESTS, load
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.progress import Progress
from lscl.experiments.run import prepare, run, run_until, state_folder, tasks_done
from lscl.federation.checkpoint import read_state
from lscl.federation.metrics import average_so_far
from lscl.models.precision import MixedPrecision

TOLERANCE = 15.0  # points between GPU and CPU: a smoke run tests 36 images, so that chance alone moves it by 8
SCORES = ("task", "seen")


def smoke_values(setting: Setting, **more: Any) -> dict[str, Any]:
    return {"profile": "smoke", "dataset": "glyphs", "device": setting.device, **setting.toy, **more}


def fresh_run(values: Mapping[str, Any]) -> records.Record:
    """The record of a run that is computed, never read."""
    with paths.scratch():
        return run(experiment(**values), quiet=True)


def final_scores(record: records.Record) -> dict[str, float]:
    """The accuracies at the end, by mask."""
    return {mask: round(float(average_so_far(records.accuracy(record, mask))[-1]), 2) for mask in SCORES}


# ---- a: every system


def smoke(setting: Setting, method: str) -> dict[str, Any]:
    """Run a system on the CPU and twice on the GPU.

    Args:
        setting: where to run.
        method: the system.

    Returns:
        accuracies of both, and seconds.

    Raises:
        CheckFailed: the GPU's accuracies are not near the CPU's, or its two records differ.
    """
    values = smoke_values(setting, method=method, **setting.shortest)
    one, unrepeatable = run_twice(values)  # before the CPU's, for its record asks for the name of the GPU
    reference = fresh_run({**values, "device": "cpu"})
    here, there = final_scores(one), final_scores(reference)
    gap = max(abs(here[mask] - there[mask]) for mask in SCORES)
    unequal = records.differing_entries(reference, one, {*records.MAY_DIFFER, *MOVED_BY_ROUNDING})
    facts = {
        "method": method, "gpu": here, "cpu": there, "points_apart": round(gap, 2), "tolerance": TOLERANCE,
        "repeats": unrepeatable is None, "gpu_seconds": total_seconds(one), "cpu_seconds": total_seconds(reference),
    }  # fmt: skip
    wrong = [f"{gap:.1f} points from the CPU, at most {TOLERANCE:g} are allowed"] if gap > TOLERANCE else []
    wrong += [f"other than on the CPU: {', '.join(unequal)}"] if unequal else []
    wrong += [unrepeatable] if unrepeatable else []
    if wrong:
        raise CheckFailed("; ".join(wrong), facts)
    return facts


def run_twice(values: Mapping[str, Any]) -> tuple[records.Record, str | None]:
    """Make a record twice with deterministic kernels.

    Args:
        values: the run.

    Returns:
        the record, and why it does not repeat; None = it does.
    """
    try:
        one, two = (fresh_run({**values, "deterministic": True}) for _ in range(2))
    except LsclError as error:
        return fresh_run(values), str(error)
    differs = records.differing_entries(one, two)
    return two, f"two equal runs differ in {', '.join(differs)}" if differs else None


MOVED_BY_ROUNDING = ("accuracy", "per_class", "ridge", "device", "config", "name", "config_digest", "overrides")


def total_seconds(record: records.Record) -> float:
    return round(sum(record["seconds"].values()), 2)


# ---- c: stops and failures


def resume(setting: Setting) -> dict[str, Any]:
    """Kill a run in the middle of its second task, go on, and compare with a run that was not stopped.

    Raises:
        CheckFailed: it did not stop there, or the two records differ.
    """
    values = smoke_values(setting, method="fed_lscl", deterministic=True)
    whole = fresh_run(values)
    with paths.scratch():
        victim = setting.context.Process(target=run_and_die, args=(values,))
        victim.start()
        victim.join()
        done = tasks_done(read_state(state_folder(experiment(**values))))
        again = run(experiment(**values), quiet=True)
    facts = {"exit_code": victim.exitcode, "tasks_before": done, "differs": records.differing_entries(whole, again)}
    if (victim.exitcode, done) != (-signal.SIGKILL, 1):
        raise CheckFailed(f"the run was to be killed behind task 1: exit code {victim.exitcode}, {done} tasks", facts)
    if facts["differs"]:
        raise CheckFailed(f"the resumed run differs in {', '.join(facts['differs'])}", facts)
    return facts


def run_and_die(values: Mapping[str, Any]) -> None:
    """Run, and kill this process when a client has trained in the second task."""

    class Last(Progress):
        def client(self, stage, client):
            if stage.task == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    import lscl.experiments.run as module

    module.Progress = Last
    run(experiment(**values), quiet=True)


def half_precision(setting: Setting) -> dict[str, Any]:
    """Run in fp16 with scaled gradients, and look at the losses and at what is saved.

    Raises:
        CheckFailed: a loss or an accuracy is not finite, or the scale of the gradients is not saved.
    """
    losses: list[torch.Tensor] = []
    step = MixedPrecision.step

    def watched(self: MixedPrecision, loss: torch.Tensor, *rest: Any, **more: Any) -> Any:
        losses.append(loss.detach())
        return step(self, loss, *rest, **more)

    values = {**smoke_values(setting, method="fed_lscl", precision="fp16"), **dict.fromkeys(setting.toy)}
    MixedPrecision.step = watched
    try:
        with paths.scratch():
            saved = run_until(experiment(**values), 1, quiet=True)
            scales = saved_scales(saved.step)
            record = run(experiment(**values), quiet=True)
    finally:
        MixedPrecision.step = step
    scores = final_scores(record)
    facts = {"steps": len(losses), "accuracy": scores, "scales": scales}
    if not all(bool(one.isfinite()) for one in losses) or not all(map(math.isfinite, scores.values())):
        raise CheckFailed("a loss or an accuracy is not finite", facts)
    if not scales:
        raise CheckFailed("the saved state has no scale of the gradients", facts)
    return facts


def saved_scales(step: Path) -> dict[str, Any]:
    """What a saved state says of the scale of gradients: {name: number}."""
    from safetensors.torch import load_file

    return {
        f"{path.stem} {name}": value.tolist()
        for path in sorted(step.glob("*.safetensors"))
        for name, value in load_file(path).items()
        if "scale" in name.lower() and value.numel() == 1
    }


def out_of_memory(setting: Setting) -> dict[str, Any]:
    """Run with too little memory, and read what the command says.

    Raises:
        CheckFailed: it says anything but one line that names what to lower.
    """
    values = smoke_values(setting, method="fed_lscl", foundation=f"random/{setting.vit}", batch=64, features=512)
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        process = setting.context.Process(target=run_in_little_memory, args=(values, said))
        process.start()
        process.join()
        lines = said.read_text("utf-8").splitlines()
    facts = {"exit_code": process.exitcode, "lines": lines[-5:]}
    ours = [line for line in lines if line.startswith("lscl:") or "Traceback" in line]  # others may warn
    good = len(ours) == 1 and ours[0].startswith("lscl: out of memory: lower batch")
    if process.exitcode != 2 or not good:
        raise CheckFailed(f"exit code {process.exitcode} and {len(ours)} lines in place of 2 and one line", facts)
    return facts


def run_in_little_memory(values: Mapping[str, Any], said: Path) -> None:
    """Run as the command line does, its messages sent to a file."""
    sys.stdout.flush()
    with open(said, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 2)
    if values["device"] == "cuda":
        torch.cuda.set_per_process_memory_fraction(2.0e9 / torch.cuda.get_device_properties(0).total_memory)
    else:
        allocate = torch.optim.Adam.step  # nothing on a CPU fails as reliably as an impossible tensor
        torch.optim.Adam.step = lambda self, *rest: (torch.empty(2**50), allocate(self, *rest))
    with one_line(), paths.scratch():
        run(experiment(**values), quiet=True)


# ---- d: notebooks


def notebook(setting: Setting, name: str) -> dict[str, Any]:
    """Execute a notebook through papermill, as `lscl reproduce` does, on the device that it finds.

    Args:
        setting: where to run.
        name: name of the file without its ending.

    Returns:
        the profile and the number of cells.
    """
    from lscl.files import read_notebook
    from lscl.publish.build import execute

    target = setting.out / "notebooks" / f"{name}.ipynb"
    source = ROOT / "notebooks" / f"{name}.ipynb"
    with paths.scratch():
        execute(source, target, setting.notebook_profile, {"data_dir": None, "weights": None})
    return {"profile": setting.notebook_profile, "cells": len(read_notebook(target).cells)}


# ---- e: records


def wanted_run(setting: Setting, method: str) -> Experiment:
    """The run of a system whose record is wanted."""
    return experiment(method=method, **setting.run_values)


def prepare_images(setting: Setting) -> dict[str, Any]:
    """Decode the images, look at their identity, and compute what the frozen ViT gives for them.

    Raises:
        CheckFailed: the images are not those of CIFAR-100.
    """
    config = wanted_run(setting, "fed_lscl")
    data = load(config)
    facts = {"data_digest": data.digest, "train": len(data.train), "test": len(data.test)}
    whole = config.images_per_class is None and config.test_images_per_class is None
    if config.dataset == "cifar100" and whole and (data.train.digest, data.test.digest) != CIFAR100_DIGESTS:
        raise CheckFailed("the images are not those of CIFAR-100", facts)
    for method in ("fed_lscl", "local_head"):
        prepare(wanted_run(setting, method))
    return facts


def record_run(setting: Setting, method: str) -> dict[str, Any]:
    """Make the record of a run as `lscl run` does, in the folder results of the outcomes.

    Args:
        setting: where to run.
        method: the system.

    Returns:
        accuracies, seconds and the record's name.
    """
    os.environ["LSCL_ROOT"] = str(setting.out)  # of this process alone
    record = run(wanted_run(setting, method))
    images, seconds = record["optimised_images"], record["seconds"]["train"]
    return {
        "method": method, "record": record["name"], "dirty": record["dirty"], "accuracy": final_scores(record),
        "run_seconds": record["seconds"], "images_per_second": round(images / seconds, 1) if seconds else None,
    }  # fmt: skip
