"""Tuning: the same number of trials for every system, drawn from its search space, thinned while they run.

All trials of a system play the first task, the best of them go on, and the best of those play all tasks. A trial is
judged by its class-incremental accuracy over its tasks so far, on a seed that no table shows. It goes on from its saved
state, never from the start, and its scores stand in one file per profile and data set, which is all that a later call
needs: any process may be killed at any time, and several may work on one results folder.
"""

import json
import math
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from pydantic import Field, field_validator, model_validator

from lscl import files, paths
from lscl.config import Experiment, check_profile, experiment, fields, run_of_set, values_of
from lscl.data.store import write_atomic
from lscl.errors import LsclError, RejectedPayload, shorten
from lscl.experiments import origin, records
from lscl.experiments.run import RunBusy, claim, run, run_until, state_folder
from lscl.federation.metrics import MASKS, accuracy_tensor, average_so_far
from lscl.federation.search_space import Axis, OneOf, Range, Value, axis_from_json
from lscl.registry import DATASETS, METHODS
from lscl.seeding import numpy_generator

TUNING_SEED = 7  # never one of the reported seeds
TRIALS = 16  # of every system
RUNGS = ((1, TRIALS), (2, 5), (math.inf, 2))  # (task, how many trials play until its end); the last is the run's last
SCORES = ("seen", "task")  # the masks whose scores are kept, the deciding one first


class Trial(files.Shape):
    """A point of a search space and what it reached."""

    values: dict[str, Value]
    config_digest: str
    seen: list[float] = Field(max_length=1000)  # class-incremental accuracy in % after each task that it reached
    task: list[float] = Field(max_length=1000)  # the same with the task given
    seconds: float = 0.0  # of its rounds
    commit: str | None = None
    data_digest: str | None = None  # of its images; files of older versions lack it
    failed: str | None = None  # why it cannot go on: its training diverged

    @model_validator(mode="after")
    def _paired(self) -> "Trial":
        if len(self.seen) != len(self.task):
            raise ValueError("seen and task: one score of each after a task")
        return self


class TrialsOfSystem(files.Shape):
    """All trials of a system."""

    space: dict[str, dict[str, list[Value]]]
    trials: list[Trial] = Field(min_length=1)
    chosen: int | None  # the number of the best trial, once all are through

    @field_validator("space")
    @classmethod
    def _understood(cls, found: dict) -> dict:
        try:
            for axis in found.values():
                axis_from_json(axis)
        except LsclError as error:
            raise ValueError(str(error)) from None
        return found

    @model_validator(mode="after")
    def _agrees(self) -> "TrialsOfSystem":
        if any(set(trial.values) != set(self.space) for trial in self.trials):
            raise ValueError("trials: each has a value for every axis of the space, and no other")
        if self.chosen is not None and not 0 <= self.chosen < len(self.trials):
            raise ValueError(f"chosen: there is no trial {self.chosen}")
        return self


class TuningFile(files.Shape):
    """What results/tuning/ holds for a profile and a data set: the studies by system."""

    seed: int = TUNING_SEED
    studies: dict[str, TrialsOfSystem]


# ---- what is tried


def search_space(method: str) -> dict[str, Axis]:
    """The search space of a system, checked.

    Args:
        method: its name.

    Returns:
        {parameter: axis}; empty if it has nothing to tune.

    Raises:
        LsclError: it is no dictionary of axes, or an axis is of no parameter.
    """
    found, what = METHODS.find(method).search_space, f"method {method!r}: its search_space"
    if not isinstance(found, Mapping):
        raise LsclError(f"{what} must be a dictionary from parameters to axes, this is {found!r:.100}")
    for name, axis in found.items():
        if name not in fields() or name in ("method", "seed", "profile", *origin.IMAGES):
            raise LsclError(f"{what} has {name!r}, which is no parameter to tune")
        if not isinstance(axis, Range | OneOf):
            raise LsclError(f"{what} has {name} = {axis!r:.100}, allowed are Range, LogRange and OneOf")
    return dict(found)


def first_values(method: str, values: Mapping[str, Any]) -> dict[str, Value]:
    """The first trial: what the profile has without any tuning, and the values of the official code or its port.

    Args:
        method: the system.
        values: the config of the whole set.

    Returns:
        {parameter: value}, whatever the tuning chose before.

    Raises:
        LsclError: a value lies outside the search space.
    """
    kind, space = METHODS.find(method), search_space(method)
    profile, dataset = values.get("profile", "demo"), values.get("dataset", "glyphs")
    base = values_of(method, dataset, profile, chosen=kind.official)
    found = {name: base.get(name, fields()[name].default) for name in space}
    for name, value in found.items():
        if value not in space[name]:
            raise LsclError(f"method {method!r}: {name} = {value}, its first value, is not in {space[name]}")
    return found


def draw_trials(method: str, first: Mapping[str, Value]) -> list[dict[str, Value]]:
    """The trials of a system: a pure function of its name, its search space and the first trial.

    The first is given; the others are quasi-random, which covers each axis more evenly than chance does. If the space
    has no more points than that, all of them are tried.

    Args:
        method: the system.
        first: the first trial.

    Returns:
        {parameter: value} of each, no two alike; none if there is nothing to tune.

    Raises:
        LsclError: Optuna is not installed.
    """
    space = search_space(method)
    if not space:
        return []
    found, few = [dict(first)], all(isinstance(axis, OneOf) for axis in space.values())
    most = min(TRIALS, math.prod(len(axis.values) for axis in space.values())) if few else TRIALS
    for values in _points(space, first, int(numpy_generator(TUNING_SEED, "tuning", method).integers(2**31))):
        if values not in found:
            found.append(values)
        if len(found) == most:
            break
    return found


def _points(space: Mapping[str, Axis], first: Mapping[str, Value], seed: int) -> Iterator[dict[str, Value]]:
    """Points of Optuna's scrambled Halton sequence after the first trial; many, because values may repeat."""
    try:
        import optuna
    except ImportError:
        raise LsclError("no package optuna: tuning needs the extra tune, pip install 'fed-lscl[tune]'") from None
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the sampler is called experimental since 2021
            sampler = optuna.samplers.QMCSampler(qmc_type="halton", scramble=True, seed=seed)
        study = optuna.create_study(sampler=sampler)
        axes = {name: axis.distribution() for name, axis in space.items()}
        study.enqueue_trial({name: space[name].to_drawn(value) for name, value in first.items()})
        study.tell(study.ask(axes), 0.0)  # the first trial tells the sampler the axes
        for _ in range(16 * TRIALS):
            trial = study.ask(axes)
            study.tell(trial, 0.0)
            yield {name: space[name].from_drawn(drawn) for name, drawn in trial.params.items()}
    finally:
        optuna.logging.set_verbosity(before)


# ---- thinning


def rungs(tasks: int) -> list[tuple[int, int]]:
    """The tasks after which trials are compared, and how many play until there.

    Args:
        tasks: of a whole run.

    Returns:
        (task, from 1; number of trials), the last task last.
    """
    found: dict[int, int] = {}
    for task, count in RUNGS:
        found.setdefault(int(min(task, tasks)), count)
    return list(found.items())


@dataclass(frozen=True)
class Standing:
    """How far a study is.

    Args:
        task: the task until whose end trials play now.
        due: the numbers of the trials that are not there yet.
        alive: the trials that are still in the running.
        chosen: the best trial, once none is due; None before, or if all failed.
    """

    task: int
    due: list[int]
    alive: list[int]
    chosen: int | None


def standing(trials: Sequence[Mapping[str, Any]], tasks: int) -> Standing:
    """Which trials go on, by class-incremental accuracy after each rung, equal ones by their number.

    Args:
        trials: those of a study, as its file has them.
        tasks: of a whole run.

    Returns:
        how far the study is.
    """
    alive, before = list(range(len(trials))), 0
    for task, count in rungs(tasks):
        alive = _best(trials, alive, before)[:count]
        due = [number for number in alive if len(trials[number]["seen"]) < task and not trials[number].get("failed")]
        if due:
            return Standing(task, due, _not_failed(trials, alive), None)
        alive, before = _not_failed(trials, alive), task
    return Standing(before, [], sorted(alive), next(iter(_best(trials, alive, before)), None))


def _not_failed(trials: Sequence[Mapping[str, Any]], numbers: Collection[int]) -> list[int]:
    return [number for number in numbers if not trials[number].get("failed")]


def _best(trials: Sequence[Mapping[str, Any]], numbers: Collection[int], task: int) -> list[int]:
    if task == 0:
        return sorted(numbers)
    return sorted(numbers, key=lambda number: (-trials[number]["seen"][task - 1], number))


# ---- the file


def tuning_path(profile: str, dataset: str) -> Path:
    """The file with all trials of a profile on a data set.

    Args:
        profile: its name.
        dataset: name of the data set.

    Returns:
        where it is, or will be.
    """
    return paths.results() / "tuning" / f"{profile}--{dataset}.json"


def read_studies(path: Path) -> dict[str, dict[str, Any]]:
    """The studies in a file.

    Args:
        path: the file.

    Returns:
        {system: study, see `TrialsOfSystem`}; none if there is no such file.

    Raises:
        LsclError: a file that cannot be read, or of another shape.
    """
    return files.read_json(path, TuningFile)["studies"] if path.exists() else {}


def show_values(values: Mapping[str, Value]) -> str:
    """Values of parameters as text."""
    shown = {name: format(value, "g") if isinstance(value, float) else str(value) for name, value in values.items()}
    return ", ".join(f"{name} = {value}" for name, value in shown.items())


# ---- playing


class Tuner:
    """The studies of some systems in one file.

    Args:
        values: what the config of all runs has.
        methods: the systems; one that has nothing to tune is passed over.

    Raises:
        LsclError: an unknown system, a search space that is none, or trials in the file that were made with other
            values or images.
    """

    def __init__(self, values: Mapping[str, Any], methods: Collection[str]):
        self.values = dict(values)
        profile, dataset = self.values.get("profile", "demo"), self.values.get("dataset", "glyphs")
        check_profile(profile)
        DATASETS.find(dataset)
        self.path = tuning_path(profile, dataset)
        self.lock = FileLock(str(records.folder(profile) / "state" / f"tuning--{dataset}.lock"))
        saved, self.configs = read_studies(self.path), {}
        self.drawn: dict[str, list[dict[str, Value]]] = {}
        for method in methods:
            space = search_space(method)
            if given := sorted(set(space) & set(values)):
                raise LsclError(f"{given[0]} is tuned for {method}: leave it out")
            if space:
                self.drawn[method] = self._trials(method, space, saved.get(method))
                self.configs[method] = [self._config(method, trial) for trial in self.drawn[method]]
                self._check(method, saved.get(method))

    def _trials(self, method: str, space: Mapping[str, Axis], saved: Mapping | None) -> list[dict[str, Value]]:
        """Those in the file, so that another version of Optuna changes none; else drawn."""
        if saved is None:
            return draw_trials(method, first_values(method, self.values))
        if saved["space"] != _as_json(space):
            raise LsclError(f"{self.path}: {method} was tuned in another space; remove it there to tune it anew")
        return [trial["values"] for trial in saved["trials"]]

    def _config(self, method: str, trial: Mapping[str, Value]) -> Experiment:
        return run_of_set(self.values, {**trial, "method": method, "seed": TUNING_SEED})

    def _check(self, method: str, saved: Mapping | None) -> None:
        if saved and [one["config_digest"] for one in saved["trials"]] != [one.digest for one in self.configs[method]]:
            raise LsclError(f"{self.path}: {method} was tuned with other values; remove it there to tune it anew")
        if saved and any(trial.get("data_digest") for trial in saved["trials"]):
            self._check_images(method, saved["trials"], self._images(method))

    def _images(self, method: str) -> str | None:
        """The digest of the images that this call asks for; None if it leaves them open."""
        return origin.requested_origin(self.configs[method][0]).get("data_digest")

    def _check_images(self, method: str, trials: Collection[Mapping], digest: str | None) -> None:
        """Refuse images that are not those of the trials so far; without a digest anything goes."""
        for made in filter(None, (trial.get("data_digest") for trial in trials)):
            if digest not in (None, made):
                raise LsclError(
                    f"{self.path}: {method} was tuned on images with data_digest = {made}, these have {digest}: "
                    "give the images that it was tuned on, or remove it there to tune it anew"
                )

    def studies(self) -> dict[str, dict[str, Any]]:
        """The studies as they are in the file now, those that have not begun included."""
        saved = read_studies(self.path)
        return {method: saved.get(method) or self._begin(method) for method in self.configs}

    def _begin(self, method: str) -> dict[str, Any]:
        trials = [
            {"values": values, "config_digest": config.digest, "seen": [], "task": [], "seconds": 0.0}
            for values, config in zip(self.drawn[method], self.configs[method], strict=True)
        ]
        return {"space": _as_json(search_space(method)), "trials": trials, "chosen": None}

    def tasks(self, method: str) -> int:
        """How many tasks a whole run of a system has."""
        return self.configs[method][0].tasks_run

    def due(self) -> list[tuple[str, int, int]]:
        """(system, number of the trial, task until whose end it has to play) of all trials that can play now."""
        found = []
        for method, study in self.studies().items():
            now = standing(study["trials"], self.tasks(method))
            found += [(method, number, now.task) for number in now.due]
        return found

    def play(self, method: str, number: int, task: int) -> None:
        """Play a trial until the end of a task, write its scores, and remove the states of trials that are out.

        Args:
            method: the system.
            number: of the trial.
            task: the task, from 1.

        Raises:
            RunBusy: another process is playing it.
            LsclError: whatever a run raises, but for a training that diverged: then the trial is out. Or the images
                are not those of the trials so far.
        """
        try:
            reached = scores_after(self.configs[method][number], task)
        except RejectedPayload as error:
            why = f"on the way to the end of task {task}: {shorten(error, 200)}"
            reached = {"failed": why, "data_digest": self._images(method)}
        print(f"{method} {number} until task {task}: {reached.get('failed') or reached['seen'][-1]}", flush=True)
        self._write(method, number, reached)
        self._tidy(method)

    def _write(self, method: str, number: int, reached: Mapping[str, Any]) -> None:
        """Change a trial in the file, which other processes may be changing, too."""
        Path(self.lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            saved = read_studies(self.path)
            study = saved.get(method) or self._begin(method)
            self._check_images(method, study["trials"], reached.get("data_digest"))
            if "failed" in reached or len(reached["seen"]) > len(study["trials"][number]["seen"]):
                study["trials"][number].update(reached)
            study["chosen"] = standing(study["trials"], self.tasks(method)).chosen
            saved[method] = study
            studies = {name: saved[name] for name in sorted(saved)}
            text = json.dumps({"seed": TUNING_SEED, "studies": studies}, indent=1)
            write_atomic(self.path, f"{text}\n".encode())

    def _tidy(self, method: str) -> None:
        alive = set(standing(self.studies()[method]["trials"], self.tasks(method)).alive)
        for number, config in enumerate(self.configs[method]):
            if number not in alive and state_folder(config).exists():
                try:
                    with claim(state_folder(config), wait=False):
                        shutil.rmtree(state_folder(config), ignore_errors=True)
                except RunBusy:  # played in vain by a process that did not know; it tidies up itself
                    continue

    def tune(self) -> None:
        """Play everything that is due, until nothing is; other processes may do the same.

        Raises:
            LsclError: whatever a run raises; what was played stays.
        """
        busy: set[tuple[str, int]] = set()
        while due := self.due():
            free = [one for one in due if one[:2] not in busy]
            if not free:  # all of it is being played by others
                with claim(state_folder(self.configs[due[0][0]][due[0][1]]), wait=True):
                    busy.clear()
                continue
            try:
                self.play(*free[0])
            except RunBusy:
                busy.add(free[0][:2])

    def lines(self) -> Iterator[str]:
        """How far each trial is, one line for each."""
        for method, study in self.studies().items():
            now = standing(study["trials"], self.tasks(method))
            for number, trial in enumerate(study["trials"]):
                state = "out" if number not in now.alive else "due" if number in now.due else "there"
                if number == now.chosen:
                    state = "chosen"
                scores = " ".join(f"{score:.1f}" for score in trial["seen"])
                yield f"{state:7} {method} {number}: {show_values(trial['values'])}; {scores or 'not begun'}"

    def unused_choices(self) -> Iterator[str]:
        """What was chosen while the profile has other values, one line for each system."""
        which = {name: self.values[name] for name in ("profile", "dataset") if name in self.values}
        for method, study in self.studies().items():
            if study["chosen"] is not None:
                best, used = study["trials"][study["chosen"]]["values"], experiment(**which, method=method)
                if differs := {name: value for name, value in best.items() if getattr(used, name) != value}:
                    yield f"unused  {method}: the profile has other values than {show_values(differs)}"


def planned_runs(values: Mapping[str, Any], methods: Collection[str]) -> list[Experiment]:
    """The runs of a whole tuning as far as they play, as if the first trials were the best.

    Args:
        values: what the config of all runs has.
        methods: the systems.

    Returns:
        the runs, system by system.

    Raises:
        LsclError: as `Tuner`.
    """
    found, tuner = [], Tuner(values, methods)
    for configs in tuner.configs.values():
        for number, config in enumerate(configs):
            last = max(task for task, count in rungs(config.tasks_run) if number < count)
            found.append(config if last == config.tasks_run else config.model_copy(update={"stop_after": last}))
    return found


def scores_after(config: Experiment, task: int) -> dict[str, Any]:
    """Play a run until the end of a task, if it is not there yet, and read its scores.

    Args:
        config: the run.
        task: the task, from 1.

    Returns:
        the entries of `Trial` that this decides.

    Raises:
        RunBusy: another process is computing this run.
        LsclError: whatever a run raises.
    """
    record = records.find(config) if task < config.tasks_run else run(config, quiet=True, wait=False)
    if record is not None:
        acc = [records.accuracy(record, mask) for mask in SCORES]
        seconds, commit = sum(v for name, v in record["seconds"].items() if name != "prepare"), record["commit"]
        digest = record["data_digest"]
    else:
        saved = run_until(config, task, quiet=True, wait=False)
        ends = [report["scores"] for report in saved.rounds if report["scores"]]
        counts = [[end.get(str(k)) for k in range(config.clients)] for end in ends]
        every = accuracy_tensor(counts, config.classes_per_task)
        acc, commit = [every[MASKS.index(mask)] for mask in SCORES], saved.about["commit"]
        digest = saved.about["origin"]["data_digest"]
        seconds = sum(sum(report["seconds"].values()) for report in saved.rounds)
    scores = {
        mask: [round(float(one), 3) for one in np.nan_to_num(average_so_far(found)[:task])]
        for mask, found in zip(SCORES, acc, strict=True)
    }
    return {**scores, "seconds": round(seconds, 1), "commit": commit, "data_digest": digest}


def _as_json(space: Mapping[str, Axis]) -> dict[str, dict[str, list[Value]]]:
    return {name: axis.to_json() for name, axis in space.items()}
