"""One run from a config to a record: data, partition, frozen ViT, clients, the loop, saved after every round."""

import io
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lscl import files, paths
from lscl.config import Experiment
from lscl.data.partition import Census, Partition, partition
from lscl.data.sources import load, surrogate
from lscl.data.store import NO_LOCK, PRIVATE_FILE, Dataset, ImageSet, cannot_write, private_folder, write_atomic
from lscl.errors import LsclError, MissingFile, first_line
from lscl.experiments import cost_model, origin, records
from lscl.experiments.kept_models import ModelKeeper, is_kept, write_models
from lscl.experiments.prediction import check_models, load_model
from lscl.experiments.privacy.account import account_of, check_accountant
from lscl.experiments.progress import Progress
from lscl.experiments.rounding import accuracy_gaps
from lscl.federation.checkpoint import Checkpointed, SavedState, load_state, read_state, save_state
from lscl.federation.client import Client, Inputs
from lscl.federation.kept_payloads import PayloadKeeper, lacks_payloads
from lscl.federation.loop import InProcess, Round, Transport, exchanges, federate
from lscl.federation.method import Method
from lscl.federation.metrics import accuracies_so_far
from lscl.federation.pipeline import free_memory, place_on_device
from lscl.machine import keep_freed_memory, peak_memory
from lscl.models.cache import embedded_tokens, limit_bytes, prefix_cache, release
from lscl.models.cnn import check_cnns
from lscl.models.cnn_weights import get_weights
from lscl.models.precision import (
    device_of,
    one_line_if_unrepeatable,
    prepare_device,
    prepare_repetition,
    to_channels_last,
)
from lscl.models.vit import FrozenViT, foundation_of
from lscl.registry import METHODS

Observer = Callable[[Experiment, Sequence[Round]], None]
Played = tuple[Dataset, Partition, Method, list[Round], dict]  # what `make_record` takes


def prepare(config: Experiment, progress: Progress | None = None) -> tuple[Dataset, Partition, Method, list[Client]]:
    """Everything that the loop in one process needs: `build_experiment` with all clients.

    Args:
        config: the run.
        progress: shows how far the frozen part is.

    Returns:
        images, partition, method and clients.

    Raises:
        LsclError: as `build_experiment`.
    """
    data, parts, method, new_client = build_experiment(config, progress)
    return data, parts, method, [new_client(k) for k in range(config.clients)]


def build_experiment(
    config: Experiment, progress: Progress | None = None
) -> tuple[Dataset, Partition, Method, Callable[[int], Client]]:
    """What server and clients start from; prefix activations that are not on the disk yet are computed here.

    This changes settings of the whole process, and nothing sets them back:

    - torch computes with the threads of the config (`torch.set_num_threads`);
    - torch warns of operations that cannot repeat on a CPU, and refuses them on a GPU with `deterministic`
      (`torch.use_deterministic_algorithms`); new tensors are not filled (`fill_uninitialized_memory = False`);
    - a GPU uses TF32 only if the config says so, and with `deterministic` only attention that repeats; then cuBLAS gets
      its workspace by an environment variable, too;
    - on Linux with glibc freed memory stays with the process (`lscl.machine.keep_freed_memory`).

    Args:
        config: the run.
        progress: shows how far the frozen part is.

    Returns:
        images, partition, method, and a function that makes client k.

    Raises:
        LsclError: whatever is wrong with the data, the weights or the values.
    """
    check_accountant(config)
    torch.set_num_threads(config.cpu_threads)
    keep_freed_memory()
    device = device_of(config)
    prepare_device(config)
    prepare_repetition(config, device)
    kind = METHODS[config.method]
    if kind.trains_cnn(config):
        check_cnns(config, kind.start_of_cnn(config))
        get_weights(config, kind.start_of_cnn(config))
    data = load(config)
    parts = partition(config, data)
    spare = surrogate(config, kind.surrogate) if kind.surrogate else None
    frozen = None
    if kind.uses_vit(config):
        frozen = foundation_of(config, kind.cut(config)).to(device)
        kind.check_foundation(config, frozen)
        if config.compile:
            frozen.compile_blocks()
    watch = progress.prepare if progress else None
    read = partial(
        read_inputs, kind, frozen, device=device, watch=watch, numbers=config.activations, side=config.cnn_size
    )
    train = read(data.train)
    test = train if config.eval_split == "holdout" else read(data.test)
    if device.type == "cuda":
        for split, inputs in {"training": train, "test": test}.items():
            placed = place_on_device(inputs, partial(free_memory, device))
            if progress:
                progress.placed(split, placed, inputs.stored)
    method = kind(config, frozen, len(data.classes))
    method.census = Census.count(parts, data)
    if spare is not None:
        method.server_images = read(spare)
    method.device = device

    def new_client(k: int) -> Client:
        return Client(k, to_channels_last(method.new_model(k).to(device), config), parts, train, test, config.seed)

    return data, parts, method, new_client


def read_inputs(
    kind: type[Method],
    frozen: FrozenViT | None,
    images: ImageSet,
    device: torch.device,
    watch: Callable[[int, int], None] | None = None,
    numbers: str = "fp32",
    side: int | None = None,
) -> Inputs:
    """The images as a method takes them: the pixels, and what it needs of the frozen ViT.

    Args:
        kind: the system.
        frozen: the frozen ViT; None for a system without one.
        images: pixels and labels.
        device: where batches go.
        watch: called with how many of how many images went through the frozen part.
        numbers: how activations are stored, a key of `models.cache.STORED`.
        side: pixels of an image's side for the CNN; None = those of `images`.

    Returns:
        images with their prefix activations, which are read from the disk if they lie there; tokens before block 0
        that are one convolution of the pixels are not stored.
    """
    if frozen is None:
        return Inputs(images, None, device, side=side)
    last = prefix_cache(frozen.recut(frozen.depth), images, device, watch, numbers) if kind.query else None
    if frozen.embeds_at_once:
        return Inputs(images, None, device, last, side, partial(embedded_tokens, frozen.to(device), numbers))
    return Inputs(images, prefix_cache(frozen, images, device, watch, numbers), device, last, side)


LARGE_PROFILES = {"full", "colab", "paper"}  # profiles that may need more than a machine has


def check_affordable(configs: Collection[Experiment]) -> None:
    """Refuse early what this machine cannot hold.

    Only runs of the large profiles are checked, on data whose size is known before they are read.

    Raises:
        LsclError: a run needs more memory than the device has, or all together more disk.
    """
    for config in configs:
        prepare_repetition(config, device_of(config))  # before a GPU is asked for its memory
    large = [config for config in configs if config.profile in LARGE_PROFILES and cost_model.has_known_size(config)]
    if large:
        cost_model.check_costs(large, cost_model.this_machine(device_of(large[0])))


class RunBusy(LsclError):
    """Another process is computing this run."""


def run(
    config: Experiment,
    quiet: bool = False,
    wait: bool = True,
    keep_payloads: Path | str | None = None,
    keep_model: bool = False,
    on_round: Observer | None = None,
) -> records.Record:
    """The record of a run: read if it exists, else computed, resuming after the last finished round of an earlier call.

    One process at a time computes a run; a second one waits for the first and then reads its record.

    A run that is computed changes settings of the whole process, which stay as they are afterwards: `build_experiment`
    lists them.

    Args:
        config: the run.
        quiet: show no progress.
        wait: wait for another process that is computing this run.
        keep_payloads: write what travels to a folder here that has the run's name, see
            `lscl.federation.kept_payloads`; None = nothing is written.
        keep_model: keep what server and clients end with next to the record (`lscl.experiments.kept_models`). If there
            is a record without its models, the run is computed again for them; the record stays as it is.
        on_round: called with the config and the reports of all rounds so far whenever a round is finished and saved; a
            run that is read from its record calls nobody. `lscl.experiments.watch` has two ready ones.

    Returns:
        the record.

    Raises:
        RunBusy: another process is computing this run, and `wait` is False.
        LsclError: bad values, data or files, or a record or saved state of another origin; what was computed stays. Or
            rounds are computed already whose payloads were not kept, also by another process while this one waited; or
            the kept ones are of a run of another origin or of other code.
        KeyboardInterrupt: after saying how to go on; the last finished round is on disk.
    """
    limit_bytes()  # refuses a bound that is no number, before anything else
    code = records.source()
    keep = None if keep_payloads is None else Path(keep_payloads) / config.name
    existing = _finished(config, code, keep)
    if existing is not None and (not keep_model or is_kept(existing)):
        return existing
    state = state_folder(config)
    with claim(state, wait):
        try:
            keeper = ModelKeeper() if keep_model else None
            record = _finished(config, code, keep)
            if record is None:
                record = _compute(config, code, read_state(state), quiet, keep, keeper, on_round)
            if keep_model and not is_kept(record):
                _compute_models(config, code, record, quiet, on_round)
            return record
        finally:
            release()


def run_until(config: Experiment, task: int, quiet: bool = False, wait: bool = True) -> SavedState:
    """Run the first tasks, and leave the run as a stop right after that task does; `run` resumes it.

    Args:
        config: the whole run, which has more tasks.
        task: the last one to play, from 1.
        quiet: show no progress.
        wait: wait for another process that is computing this run.

    Returns:
        the saved state, with the reports of all rounds so far; its files may be those of a later round already.

    Raises:
        RunBusy: another process is computing this run, and `wait` is False.
        LsclError: as `run`; or the run has no task behind this one.
    """
    if not 0 < task < config.tasks_run:
        raise LsclError(f"task = {task}: a run of {config.tasks_run} tasks has its beginning after an earlier one")
    limit_bytes()
    state = state_folder(config)
    with claim(state, wait):
        try:
            saved = read_state(state)
            if tasks_done(saved) < task:
                _play(config, records.source(), saved, quiet, task)
                saved = read_state(state)
            return saved
        finally:
            release()


KEPT = "run.json"  # beside kept payloads: the run that they are of


class KeptRun(files.Shape):
    """The run that kept payloads are of."""

    name: str
    config: dict[str, Any]
    origin: dict[str, str | int | None]  # of its images, its weights and its code, see `_kept_origin`
    finished: bool


def _nothing_again(keep: Path, why: str, those_there: str = "") -> LsclError:
    return LsclError(
        f"keep_payloads = {keep.parent}: {why}, and its payloads are not in {keep}{those_there}; nothing is sent a "
        "second time: set LSCL_ROOT to an empty folder to play the run again"
    )


def _kept_origin(made: Mapping[str, Any], code_digest: str) -> dict[str, Any]:
    """What payloads are of, apart from the config: the origin of their run, and its code."""
    return {**made, "code_digest": code_digest}


def _write_kept(config: Experiment, keep: Path, made: dict[str, Any], finished: bool) -> None:
    """Write beside the payloads which run they are of."""
    kept = {"name": config.name, "config": config.values_read(), "origin": made, "finished": finished}
    try:
        private_folder(keep)
    except OSError as error:
        raise cannot_write(keep, error) from error
    write_atomic(keep / KEPT, (json.dumps(kept) + "\n").encode(), PRIVATE_FILE)


def _check_kept(keep: Path, wanted: Mapping[str, Any], why: str, finished: bool) -> None:
    """Refuse payloads of another run, or of one that is not finished if this one is."""
    try:
        kept = files.read_json(keep / KEPT, KeptRun)
    except MissingFile:
        raise _nothing_again(keep, why) from None
    for name, value in wanted.items():
        if kept["origin"].get(name) != value:
            said = f" (those there were made with {name} = {kept['origin'].get(name)}, not {value})"
            raise _nothing_again(keep, why, said)
    if finished and not kept["finished"]:
        raise _nothing_again(keep, why, " (those there are of a run that was stopped)")


def state_folder(config: Experiment) -> Path:
    """Where the state of a run is saved while it is not finished."""
    return records.folder(config.profile) / "state" / config.name


def tasks_done(saved: SavedState) -> int:
    """How many tasks a saved state has behind it."""
    return sum(bool(report["scores"]) for report in saved.rounds)


@contextmanager
def claim(state: Path, wait: bool):
    """Keep other processes off a run; the system frees the claim when the process ends, however it ends.

    Args:
        state: the folder of the run's saved state; the lock is next to it.
        wait: wait for another process that has the claim.

    Raises:
        RunBusy: another process has it, and `wait` is False.
        LsclError: the lock cannot be written.
    """
    lock = FileLock(f"{state}.lock", timeout=-1 if wait else 0)
    try:
        state.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RunBusy(f"{state.name}: another process is computing this run") from None
    except NO_LOCK as error:
        raise cannot_write(Path(lock.lock_file), error) from error
    try:
        yield
    finally:
        # A process that waits opens the file anew: filelock takes no lock on a file that has no name any more.
        with suppress(OSError):  # Windows keeps it until it is released
            Path(lock.lock_file).unlink()
        lock.release()


def _finished(config: Experiment, code: dict, keep: Path | None) -> records.Record | None:
    """The record, if there is one, of uncommitted code only if it is this very code; an error without its payloads."""
    found = records.find(config, code["dirty"], code["code_digest"] if code["dirty"] else None)
    if found is not None and keep is not None:
        wanted = _kept_origin(origin.origin_of_record(found), found["code_digest"])
        _check_kept(keep, wanted, "this run is finished", finished=True)
    return found


def settle_device(config: Experiment, saved: SavedState) -> Experiment:
    """Fill in device and threads where the config leaves them open: those of the saved state, if there is one.

    Args:
        config: the experiment.
        saved: the last finished round, if any.

    Returns:
        the config with a device and a number of threads.

    Raises:
        LsclError: there is no such device.
    """
    begun = saved.about.get("origin", {})
    if config.device == "auto" and begun.get("device") == "cpu":
        config = config.model_copy(update={"device": "cpu"})
    threads = config.threads or begun.get("threads", config.cpu_threads)
    return config.model_copy(update={"device": device_of(config).type, "threads": threads})


def _compute(
    config: Experiment,
    code: dict,
    saved: SavedState,
    quiet: bool,
    keep: Path | None = None,
    keeper: ModelKeeper | None = None,
    on_round: Observer | None = None,
) -> records.Record:
    """Make the record, starting after the last finished round; write what travels and the models, if wanted."""
    played = _play(config, code, saved, quiet, keep=keep, keeper=keeper, on_round=on_round)
    record = make_record(*played)
    if keep is not None:
        about = played[-1]
        _write_kept(config, keep, _kept_origin(about["origin"], about["code_digest"]), finished=True)
    record = records.read_record(records.save(record))  # as every later call will read it
    shutil.rmtree(saved.folder, ignore_errors=True)
    if keeper and keeper.tensors:  # a state that is after the last test has nothing to keep
        keep_models(record, record, played, keeper)
    return record


def _compute_models(
    config: Experiment, code: dict, record: records.Record, quiet: bool, on_round: Observer | None = None
) -> None:
    """Compute a finished run again, with a state of its own, to keep its models next to its record."""
    if not quiet:
        print(f"{record['name']}: its models were not kept, so it is computed again for them", file=sys.stderr)
    same = config.model_copy(update={"threads": record["config"]["threads"], "device": record["device"]})
    state, keeper = state_folder(same), ModelKeeper()
    saved = read_state(state.with_name(f"{state.name}--models"))
    if tasks_done(saved) == same.tasks_run:  # after the last test there is nothing to keep any more
        shutil.rmtree(saved.folder, ignore_errors=True)
        saved = SavedState(saved.folder, {}, [], [])
    with paths.scratch():  # the record and the pictures stay as they are
        played = _play(same, code, saved, quiet, keeper=keeper, on_round=on_round)
        made = make_record(*played)
    shutil.rmtree(saved.folder, ignore_errors=True)
    keep_models(record, made, played, keeper)
    if made["accuracy"] != record["accuracy"]:
        gaps = (f"{mask} {value:+.2f}" for mask, value in accuracy_gaps(made, record).items())
        why = "the models are of other code or of another processor than the record"
        print(
            f"{record['name']}: {why}; their accuracies are apart from its by {', '.join(gaps)} points", file=sys.stderr
        )


def keep_models(record: records.Record, made: records.Record, played: Played, keeper: ModelKeeper) -> Path:
    """Write the models of a run next to its record, and read them once to see that they answer as they did in its test.

    Args:
        record: the record.
        made: the record of the run that the models are from.
        played: that run.
        keeper: what it kept.

    Returns:
        the path of the safetensors file.

    Raises:
        LsclError: they do not, because the system needs more for its tests than is kept; nothing stays written.
    """
    data, parts, method, *_ = played
    path = write_models(record, made, method, data, parts, keeper.tensors)
    try:
        check_models(load_model(path, method.config.weights, method.device.type), keeper)
    except LsclError as error:
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
        raise LsclError(f"the models of {record['name']} cannot be kept, its record is there: {error}") from error
    return path


def _play(
    config: Experiment,
    code: dict,
    saved: SavedState,
    quiet: bool,
    until: int | None = None,
    keep: Path | None = None,
    keeper: ModelKeeper | None = None,
    on_round: Observer | None = None,
) -> Played:
    """Run all rounds after the last finished one, or those until the end of a task; -> what `make_record` takes."""
    config = settle_device(config, saved)
    with Progress(config, quiet) as progress:
        check_affordable([config])
        started = time.perf_counter()
        data, parts, method, clients = prepare(config, progress)
        about = {**code, "prepare": time.perf_counter() - started, "origin": origin.origin_of_run(data, parts, method)}
        told = partial(keeper.keep, method) if keeper else None
        transport: Transport = InProcess(method, clients, progress.client, told)
        if keep is not None:
            done = [stage for stage in exchanges(method) if stage.name != "finish"][: len(saved.rounds)]
            if done:
                why, begun = f"this run has {len(done)} finished rounds", saved.about
                _check_kept(keep, _kept_origin(begun["origin"], begun["code_digest"]), why, finished=False)
                if lacks_payloads(keep, done, config.clients):
                    raise _nothing_again(keep, why)
            else:
                _write_kept(config, keep, _kept_origin(about["origin"], about["code_digest"]), finished=False)
            transport = PayloadKeeper(transport, keep)
        with one_line_if_unrepeatable(config):
            reports, about = run_rounds(method, transport, clients, saved, about, progress, until, on_round)
    return data, parts, method, reports, about


def run_rounds(
    method: Method,
    transport: Transport,
    kept: Sequence[Checkpointed],
    saved: SavedState,
    about: dict,
    progress: Progress,
    until: int | None = None,
    on_round: Observer | None = None,
    **rules: int | None,
) -> tuple[list[Round], dict]:
    """Run all rounds that are not in the saved state yet, and save the state after each of them.

    Args:
        method: the system.
        transport: the way to the clients.
        kept: whose state is saved besides the server's: the clients, or the transport to them.
        saved: the last finished round, if any; the state of later rounds goes to its folder.
        about: the code that runs, its origin, and the seconds of its preparation.
        progress: shows the rounds.
        until: stop after this task, from 1; None = the last. The saved state must be of an earlier round.
        on_round: as for `run`.
        rules: `least` and `limit` of `federate`.

    Returns:
        the reports of all rounds, and `about` as the first call for this run had it.

    Raises:
        LsclError: the saved state is damaged or of another origin, or `on_round` fails.
    """
    config = method.config
    if saved.about:
        origin.check_origin(saved.about["origin"], about["origin"], "the saved state of this run", saved.folder)
    reports = load_state(saved, method, kept)
    code, about = about, saved.about or about
    begun_by_other_code = about["code_digest"] != code["code_digest"]
    about["dirty"] = about["dirty"] or code["dirty"] or begun_by_other_code
    progress.start(len(exchanges(method)), reports)
    try:
        for report in federate(method, transport, done=len(reports), **rules):
            reports.append(report)
            if report.scores:  # before the state: after a stop in between, the sheet is written again, never missing
                sheet = save_sheet(config, method, report.task, about["dirty"], report.scores)
                if sheet is not None:
                    progress.sheet(sheet, report)
            save_state(saved.folder, reports, method, kept, about)
            progress.round(report)
            if on_round is not None:
                _tell(on_round, config, reports)
            if report.scores and report.task + 1 == until:
                break
    except KeyboardInterrupt:
        print(f"\nstopped after round {len(reports)}; the same command resumes there", file=sys.stderr)
        raise
    finally:
        progress.close()
    return reports, about


def _tell(on_round: Observer, config: Experiment, reports: Sequence[Round]) -> None:
    """Call an observer; its errors are of any type."""
    try:
        on_round(config, tuple(reports))
    except LsclError:
        raise
    except Exception as error:
        raise LsclError(
            f"on_round: {type(error).__name__}: {first_line(error)}; the rounds so far are saved, the same call goes on"
        ) from error


def save_sheet(
    config: Experiment, method: Method, task: int, dirty: bool = False, scores: Mapping[int, dict] | None = None
) -> Path | None:
    """Write the images that the method's server made in a task as one picture next to the records.

    Args:
        config: the run.
        method: the system, after the task.
        task: its number, from 0.
        dirty: file it with the runs of uncommitted code.
        scores: the right answers of the clients after the task; the accuracy of the model that the images were made
            from becomes a text of the file ("accuracy": {mask: percent} in JSON).

    Returns:
        the path of the picture; None if the server made no images.

    Raises:
        LsclError: the disk is full or the folder cannot be written.
    """
    images = method.sheet(task)
    if images is None or len(images) == 0:
        return None
    path = records.folder(config.profile, dirty) / "sheets" / f"{config.name}--task{task + 1}.png"
    data, about = io.BytesIO(), PngInfo()
    if scores:
        now = accuracies_so_far(scores, config.classes_per_task)
        about.add_text("accuracy", json.dumps({mask: round(value, 2) for mask, value in now.items()}))
    Image.fromarray(tile_images(images)).save(data, "PNG", pnginfo=about)
    write_atomic(path, data.getvalue())
    return path


def tile_images(images: np.ndarray) -> np.ndarray:
    """Images row by row as one picture, as nearly square as possible, with black lines between them.

    Args:
        images: (n, H, W, 3) uint8.

    Returns:
        (rows * (H + 1) - 1, columns * (W + 1) - 1, 3) uint8.
    """
    columns = math.ceil(len(images) ** 0.5)
    rows = math.ceil(len(images) / columns)
    n, height, width, _ = images.shape
    cells = np.zeros((rows * columns, height + 1, width + 1, 3), np.uint8)
    cells[:n, :height, :width] = images
    cells = cells.reshape(rows, columns, height + 1, width + 1, 3).transpose(0, 2, 1, 3, 4)  # (rows, H, columns, W, 3)
    return cells.reshape(rows * (height + 1), columns * (width + 1), 3)[:-1, :-1]  # (pixels high, pixels wide, 3)


def make_record(data: Dataset, parts: Partition, method: Method, reports: list[Round], about: dict) -> records.Record:
    """The record of a finished run; it has "faults" only if there were any, and "privacy" only with added noise.

    Args:
        data: its images.
        parts: how they were dealt to the clients.
        method: the system after the last round.
        reports: all rounds.
        about: as `run_rounds` returns it.

    Returns:
        the record, not written yet.
    """
    config = method.config
    parts.save(
        paths.results() / "partitions" / f"{config.profile}--{config.source}--s{config.seed}--{parts.digest}.json"
    )
    ends = [
        {k: {name: value.tolist() for name, value in found.items()} for k, found in report.scores.items()}
        for report in reports
        if report.scores
    ]
    counts = [[end.get(k) for k in range(config.clients)] for end in ends]
    seen = [list(parts.seen_classes(k, config.tasks_run - 1)) for k in range(config.clients)]
    images = sum(
        len(stream[task].train)
        for stream in parts.tasks
        for task in range(config.tasks_run)
        if method.trains_in(config, task)
    )
    phases = {name: round(sum(report.seconds[name] for report in reports), 3) for name in reports[0].seconds}
    # The threads stand in the config, and our own systems have no digest.
    left_out = {("threads", config.cpu_threads), ("system_digest", None)}
    facts = {
        **{
            name: value
            for name, value in origin.origin_of_run(data, parts, method).items()
            if (name, value) not in left_out
        },
        "bytes_up": [report.bytes_up for report in reports],
        "bytes_down": [report.bytes_down for report in reports],
        "trained_parameters": [
            sum(p.numel() for p in method.new_model(k).parameters() if p.requires_grad) for k in range(config.clients)
        ],
        "trained_images": method.passes * config.epochs * config.rounds * images if images else 0,
        "optimised_images": sum(report.images for report in reports),
        "seconds": {"prepare": round(about["prepare"], 3), **phases},
        "cpu_seconds": round(sum(report.cpu_seconds for report in reports), 3),
        "peak_memory_mb": round(peak_memory() / 2**20),
        **{key: about[key] for key in ("commit", "dirty", "code_digest")},
        **({"privacy": account} if (account := account_of(method)) else {}),
        **({"faults": [report.faults for report in reports]} if any(report.faults for report in reports) else {}),
    }
    return records.assemble_record(config, counts, seen, facts)


def state_folders() -> list[Path]:
    """The folders with the saved states of runs that were stopped."""
    return sorted(path for path in (paths.results() / "runs").glob("*/state/*") if path.is_dir())
