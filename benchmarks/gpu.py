"""Does what a GPU user does work on this GPU, and how fast? One command, a line and a file per check.

    python benchmarks/gpu.py --minutes 8 --out DIR [--data-dir FOLDER | --pack FOLDER] [--only a,b1] [--archive FILE]
    python benchmarks/gpu.py --dry

No download is needed. The checks, in order of worth; each is left out when the minutes left are too few for it:
a   every system in the profile smoke: accuracies near the CPU's, and the same record twice with deterministic kernels;
c   a run killed in its second task goes on to the same record; fp16; out of memory is one clear line;
d   papermill executes notebooks 01 to 04;
b1  a training step of every system on ViT-B/16, batch 16 in fp32 and 64 in bf16, against its bare matrix products, the
    plan of its memory, peft and the plain way; b4: several processes at once; b2: Fed-LSCL in all arithmetics; b3: all
    other systems in all of them;
e   with CIFAR-100 (--data-dir, --pack, or in the cache): records of the profile full, seed 42, Fed-LSCL and the best
    control first, then the cheapest.
a, c and d run side by side, b alone. DIR gets a JSON file per check as it ends, logs, executed notebooks, records under
results/, and gpu--<card>.json with all of it. The exit code is 1 if a check failed. --only takes beginnings of names.
--dry does all of it on the CPU at toy size.
"""

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import gpu_runs
import gpu_steps
import measure
import torch
from gpu_setting import CheckFailed, Setting
from image_pack import cached_cifar100, expand

from lscl.cli import one_line
from lscl.data.glyphs import glyphs
from lscl.data.store import write_atomic
from lscl.errors import LsclError, shorten
from lscl.experiments import cost_model, records
from lscl.methods import METHODS

CONTROLS = ("fed_ridge", "fed_ncm", "local_ridge", "local_head")  # of the records, before all others
DRY_PROCESSES = 2
STEP_SECONDS = 0.015  # a training step of the mini ViT while other processes use the GPU, expected
SECONDS_OF_CASE = {"fp32": 4, "tf32": 4, "bf16": 4, "compiled": 60}
LEFT_FOR_THE_END = 5  # seconds to stop processes and write the archive


@dataclass(frozen=True)
class Check:
    """A check: its name, the seconds that it is expected to take, and the work, which returns what it measured."""

    name: str
    seconds: float
    work: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """Jobs, each a process that does its checks one after another; `width` of them run side by side."""

    jobs: list[list[Check]]
    width: int


# ---- the list


def stages(setting: Setting, at_once: int) -> list[Stage]:
    """All checks in order of worth."""
    found = [Stage(runs(setting), os.cpu_count() or 1), *steps(setting), *wanted_records(setting, at_once)]
    if setting.dry:  # few processes, for each takes seconds to start
        every = [check for stage in found for job in stage.jobs for check in job]
        return [Stage([every[k::DRY_PROCESSES] for k in range(DRY_PROCESSES)], DRY_PROCESSES)]
    return found


def runs(setting: Setting) -> list[list[Check]]:
    """Checks a, c and d, a process each."""
    stops = [("resume", gpu_runs.resume), ("fp16", gpu_runs.half_precision), ("memory", gpu_runs.out_of_memory)]
    return [
        *([Check(f"a.{name}", 45, partial(gpu_runs.smoke, setting, name))] for name in METHODS),
        *([Check(f"c.{name}", 45, partial(work, setting))] for name, work in stops),
        *([Check(f"d.{name}", 60, partial(gpu_runs.notebook, setting, name))] for name in setting.notebooks),
    ]


def steps(setting: Setting) -> list[Stage]:
    """Checks b, one after another in a process that nothing else disturbs."""
    case = lambda part, one: Check(
        f"{part}.{one.name}", SECONDS_OF_CASE[one.mode], partial(gpu_steps.measure_case, setting, one)
    )
    b1, b2, b3 = ([case(part, one) for one in gpu_steps.cases(part)] for part in ("b1", "b2", "b3"))
    pace = Check("b4.concurrency", 45, partial(gpu_steps.concurrency, setting))
    return [Stage([one], 1) for one in (b1, [pace], b2, b3[:: setting.every])]


def wanted_records(setting: Setting, at_once: int) -> list[Stage]:
    """Checks e, several processes at once; none without the images."""
    if not setting.cifar100 and not setting.dry:
        return []
    cost = {name: seconds_of_run(setting, name) for name in METHODS}
    first = [gpu_steps.own(), *CONTROLS]
    order = [*first, *sorted((name for name in METHODS if name not in first), key=cost.__getitem__)]
    images = Check("e.images", 60, partial(gpu_runs.prepare_images, setting))
    every = [[Check(f"e.{name}", cost[name], partial(gpu_runs.record_run, setting, name))] for name in order]
    return [Stage([[images]], 1), Stage(every, at_once)]


def seconds_of_run(setting: Setting, method: str) -> float:
    """Seconds to expect of a run: those of its training steps, and some to begin with."""
    return 20 + STEP_SECONDS * float(cost_model.cost(gpu_runs.wanted_run(setting, method)).steps)


# ---- one process: the checks of a job


def work_through(checks: list[Check], setting: Setting, deadline: float) -> None:
    """Do checks one after another; an error of CUDA itself ends the process, and its parent goes on."""
    for check in checks:
        outcome = do(check, deadline, setting.patience)
        report(check.name, outcome, setting)
        if "CUDA error" in outcome.get("traceback", ""):
            return


def do(check: Check, deadline: float, patience: float = 1.0) -> dict[str, Any]:
    """What came of a check: passed, failed or not run, its reason, and what it measured."""
    left, wanted = deadline - time.time(), patience * check.seconds
    if wanted > left:
        return {"outcome": "not run", "reason": f"no time: {max(0, left):.0f} s left, {wanted:.0f} s expected"}
    start = time.perf_counter()
    try:
        found = {"outcome": "passed", **check.work()}
    except Exception as error:
        facts = error.facts if isinstance(error, CheckFailed) else {}
        reason = shorten(error if isinstance(error, LsclError) else f"{type(error).__name__}: {error}", 300)
        found = {"outcome": "failed", "reason": reason, "traceback": traceback.format_exc(), **facts}
    return {**found, "check_seconds": round(time.perf_counter() - start, 1)}


def report(name: str, outcome: dict[str, Any], setting: Setting) -> None:
    """Write the file of a check and print its line."""
    about = {"check": name, **outcome, **origin()}
    write_atomic(setting.out / f"{name}.json", (json.dumps(about, indent=1) + "\n").encode())
    print(line_of(name, outcome), flush=True)


@cache
def origin() -> dict[str, Any]:
    """Machine, versions and code of this process."""
    return {"machine": records.hardware(), "versions": records.versions(), **records.source()}


SHOWN = (
    "seconds", "images_per_second", "ratio_to_bare", "waiting", "plan_to_peak", "points_apart", "repeats", "accuracy",
    "steps_per_second", "gain", "gpu_seconds",
)  # fmt: skip


def line_of(name: str, outcome: dict[str, Any]) -> str:
    """A check as one line."""
    said = [outcome["reason"]] if "reason" in outcome else []
    said += [f"{key} {outcome[key]}" for key in SHOWN if outcome.get(key) not in (None, []) and not said]
    return f"{outcome['outcome']:7} {name:28} {outcome.get('check_seconds', 0):5} s  {', '.join(said)}"[:250]


# ---- the parent: processes side by side


@dataclass
class Job:
    """A process that does some checks."""

    checks: list[Check]
    process: subprocess.Popen
    log: Path


def run_stage(stage: Stage, arguments: list[str], setting: Setting, deadline: float) -> None:
    """Start the jobs of a stage, `width` at once, and wait for them; what a process left undone is started again."""
    waiting, busy = list(stage.jobs), []
    try:
        while waiting or busy:
            while waiting and len(busy) < stage.width:
                busy.append(start(waiting.pop(0), arguments, setting, deadline))
            time.sleep(0.1)
            if time.time() > deadline:
                stop(busy, setting, waiting)
                return
            for job in [one for one in busy if one.process.poll() is not None]:
                busy.remove(job)
                waiting = [*left_over(job, setting), *waiting]
    finally:
        for job in busy:
            end(job.process)


def start(checks: list[Check], arguments: list[str], setting: Setting, deadline: float) -> Job:
    """Start a process for some checks; what it prints on stderr goes to a log."""
    log = setting.out / "logs" / f"{checks[0].name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    names = ",".join(check.name for check in checks)
    command = [sys.executable, __file__, *arguments, "--job", names, "--until", str(deadline)]
    with open(log, "ab") as file:
        return Job(checks, subprocess.Popen(command, stderr=file, process_group=0), log)


def left_over(job: Job, setting: Setting) -> list[list[Check]]:
    """Of a process that has ended: the checks behind the one that it did not survive."""
    undone = [check for check in job.checks if not (setting.out / f"{check.name}.json").exists()]
    if undone and job.process.returncode != 0:
        last = job.log.read_text("utf-8", "replace").splitlines()[-15:]
        reason = f"the process ended with exit code {job.process.returncode}"
        report(undone[0].name, {"outcome": "failed", "reason": reason, "traceback": "\n".join(last)}, setting)
        undone = undone[1:]
    return [undone] if undone else []


def stop(busy: list[Job], setting: Setting, waiting: list[list[Check]]) -> None:
    """End all processes, and say of every check that has no outcome why."""
    for job in busy:
        end(job.process)
    for checks in [*(job.checks for job in busy), *waiting]:
        for check in checks:
            if not (setting.out / f"{check.name}.json").exists():
                report(check.name, {"outcome": "not run", "reason": "no time: the minutes were over"}, setting)


def end(process: subprocess.Popen) -> None:
    """Kill a process and those that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# ---- the outcome as a whole


MACHINE = ("machine", "versions", "commit", "dirty", "code_digest")  # of each check, as its file says


def summarise(setting: Setting) -> bool:
    """Write gpu--<card>.json with the outcomes of all checks in the folder; -> whether none failed."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted(setting.out.glob("[abcde]*.json"))]
    rows = [{key: value for key, value in one.items() if key not in MACHINE} for one in found]
    counts = {kind: sum(row["outcome"] == kind for row in rows) for kind in ("passed", "failed", "not run")}
    print(", ".join(f"{number} {kind}" for kind, number in counts.items()), flush=True)
    if found:
        made = {key: found[-1][key] for key in MACHINE}
        card = (made["machine"]["gpu"] or "none").replace(" ", "-")
        about = {"name": f"gpu--{card}", "ratio": counts["failed"], "goal": 0, "better": "lower", **counts, **made}
        write_atomic(setting.out / f"gpu--{card}.json", (json.dumps({**about, "rows": rows}, indent=1) + "\n").encode())
    return counts["failed"] == 0


def pack(folder: Path, archive: Path) -> None:
    """Write all but the states of unfinished runs into one compressed file, under a temporary name first."""
    part = archive.with_name(f".{archive.name}")
    with tarfile.open(part, "w:gz") as file:
        file.add(folder, arcname=folder.name, filter=lambda one: None if Path(one.name).name == "state" else one)
    part.replace(archive)


# ---- the command


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--minutes", type=minutes, default=8.0, help="time for all of it")
    found.add_argument("--out", type=Path, help="folder of the outcomes; none = a temporary one, with --dry only")
    found.add_argument("--archive", type=Path, help="also write that folder into this .tar.gz at the end")
    found.add_argument("--data-dir", type=Path, help="folder with CIFAR-100")
    found.add_argument("--pack", type=Path, help="folder with CIFAR-100 as sheets, see image_pack.py")
    found.add_argument("--at-once", type=measure.count, default=5, help="runs of e side by side, see b4")
    found.add_argument("--only", default="", help="beginnings of names of checks, with commas")
    found.add_argument("--summary", action="store_true", help="only write gpu--<card>.json of the files in --out")
    found.add_argument("--dry", action="store_true", help="toy sizes on the CPU")
    found.add_argument("--job", help=argparse.SUPPRESS)
    found.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return found


def minutes(text: str) -> float:
    """A number of minutes up to a day: a type of an argument."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1440:
        raise argparse.ArgumentTypeError(f"{text[:50]!r}: give minutes from above 0 to 1440")
    return value


def chosen(stage: Stage, only: str) -> Stage:
    """The stage with the checks whose names begin as asked for."""
    beginnings = tuple(part.strip() for part in only.split(",") if part.strip()) or ("",)
    jobs = [[check for check in job if check.name.startswith(beginnings)] for job in stage.jobs]
    return Stage([job for job in jobs if job], stage.width)


def setting_of(given: argparse.Namespace) -> Setting:
    """The setting of a call.

    Raises:
        LsclError: no GPU.
    """
    if not given.dry and not torch.cuda.is_available():
        raise LsclError("no CUDA GPU found; --dry does all of it on the CPU at toy size")
    there = given.data_dir is not None or cached_cifar100()
    return Setting(given.out.resolve(), given.dry, given.data_dir, there)


def main() -> int:
    given = parser().parse_args()
    if given.job:
        setting, names = setting_of(given), given.job.split(",")
        every = {check.name: check for stage in stages(setting, given.at_once) for job in stage.jobs for check in job}
        gc.freeze()  # what the imports made stays: looking through it would take every check a fifth of a second
        work_through([every[name] for name in names], setting, given.until)
        return 0
    if given.summary and given.out is not None:
        return 0 if summarise(Setting(given.out)) else 1
    if given.out is None and not given.dry:
        raise LsclError("--out: give a folder for the outcomes")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    deadline = time.time() + 60 * given.minutes - LEFT_FOR_THE_END
    with tempfile.TemporaryDirectory() as folder:
        given.out = given.out or Path(folder)
        if given.pack is not None:
            expand(given.pack)
        setting = setting_of(given)
        setting.out.mkdir(parents=True, exist_ok=True)
        return conduct(given, setting, deadline)


def conduct(given: argparse.Namespace, setting: Setting, deadline: float) -> int:
    """Do all stages; whatever ends them, write the summary and the archive; -> the exit code."""
    arguments = ["--out", str(setting.out)] + (["--dry"] if given.dry else [])
    arguments += ["--data-dir", str(setting.data_dir)] if setting.data_dir else []
    good = False
    try:
        glyphs()  # drawn once, before many processes want them
        for stage in (chosen(one, given.only) for one in stages(setting, given.at_once)):
            for job in stage.jobs:
                for check in job:
                    (setting.out / f"{check.name}.json").unlink(missing_ok=True)
            run_stage(stage, arguments, setting, deadline)
    finally:
        good = summarise(setting)
        if given.archive is not None:
            pack(setting.out, given.archive)
    return 0 if good else 1


if __name__ == "__main__":
    with one_line():
        sys.exit(main())
