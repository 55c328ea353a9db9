"""One run from a config to a record: data, partition, frozen ViT, clients, the loop, saved after every round."""

import io
import math
import resource
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image

from lscl import paths
from lscl.config import Experiment
from lscl.data.partition import Census, Partition, partition
from lscl.data.sources import load, surrogate
from lscl.data.store import Dataset, ImageSet, write_atomic
from lscl.errors import LsclError
from lscl.experiments import cost_model, origin, records
from lscl.experiments.progress import Progress
from lscl.federation.checkpoint import Checkpointed, SavedState, load_state, read_state, save_state
from lscl.federation.client import Client, Inputs
from lscl.federation.loop import InProcess, Round, Transport, exchanges, federate
from lscl.federation.method import Method
from lscl.models.cache import limit_bytes, prefix_cache, release
from lscl.models.cnn import check_cnns
from lscl.models.precision import prepare_device, to_channels_last
from lscl.models.vit import FrozenViT, foundation_of
from lscl.registry import METHODS


def device_of(config: Experiment) -> torch.device:
    """The device to compute on.

    Raises:
        LsclError: device = cuda without a GPU.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise LsclError("device = cuda: no CUDA GPU found (allowed here: auto, cpu)")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def prepare(config: Experiment, progress: Progress | None = None) -> tuple[Dataset, Partition, Method, list[Client]]:
    """Everything the loop needs, as `setting` makes it, with all clients."""
    data, parts, method, new_client = build_experiment(config, progress)
    return data, parts, method, [new_client(k) for k in range(config.clients)]


def build_experiment(
    config: Experiment, progress: Progress | None = None
) -> tuple[Dataset, Partition, Method, Callable[[int], Client]]:
    """What server and clients start from, and how client k is made; prefix activations are computed here unless they lie on disk already.

    Raises:
        LsclError: whatever is wrong with the data, the weights or the values.
    """
    torch.set_num_threads(config.cpu_threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # nothing here reads what it has not written; filling costs 5 %
    )
    prepare_device(config)
    device = device_of(config)
    kind = METHODS[config.method]
    if kind.trains_cnn(config):
        check_cnns(config)
    data = load(config)
    parts = partition(config, data)
    spare = surrogate(config, kind.surrogate) if kind.surrogate else None
    frozen = None
    if kind.vit:
        frozen = foundation_of(config, kind.cut(config)).to(device)
        kind.check_foundation(config, frozen)
        if config.compile:
            frozen.compile_blocks()
    watch = progress.prepare if progress else None
    read = partial(inputs, kind, frozen, device=device, watch=watch, numbers=config.activations, side=config.cnn_size)
    train = read(data.train)
    test = train if config.eval_split == "holdout" else read(data.test)
    method = kind(config, frozen, len(data.classes))
    method.census = Census.count(parts, data)
    if spare is not None:
        method.server_images = read(spare)
    method.device = device

    def new_client(k: int) -> Client:
        return Client(k, to_channels_last(method.new_model(k).to(device), config), parts, train, test, config.seed)

    return data, parts, method, new_client


def inputs(
    kind: type[Method],
    frozen: FrozenViT | None,
    images: ImageSet,
    device: torch.device,
    watch: Callable[[int, int], None] | None = None,
    numbers: str = "fp32",
    side: int | None = None,
) -> Inputs:
    """The images as a method takes them: beside the pixels, what it needs of the frozen ViT, from the disk if it lies there."""
    if frozen is None:
        return Inputs(images, None, device, side=side)
    last = prefix_cache(frozen.recut(frozen.depth), images, device, watch, numbers) if kind.query else None
    return Inputs(images, prefix_cache(frozen, images, device, watch, numbers), device, last, side)


LARGE = {"colab", "paper"}  # profiles that may need more than a machine has


def affordable(configs: Collection[Experiment]) -> None:
    """Refuse early what this machine cannot hold. Only runs of the large profiles are looked at, on data whose size is known before.

    Raises:
        LsclError: a run needs more memory than the device has, or all together more disk.
    """
    large = [config for config in configs if config.profile in LARGE and cost_model.sized(config)]
    if large:
        cost_model.check_costs(large, cost_model.here(device_of(large[0])))


class RunBusy(LsclError):
    """Another process is computing this run."""


def run(config: Experiment, quiet: bool = False, wait: bool = True) -> records.Record:
    """The record of `config`: read if it exists, else computed, resuming at the last finished round of an earlier call.

    A run is computed by one process at a time; a second one waits for the first and then reads what it made.

    Raises:
        Busy: another process is computing this run, and `wait` is False.
        LsclError: bad values, data or files, or a record or saved state of another origin; what was computed before is kept.
        KeyboardInterrupt: after saying how to go on; the last finished round is on disk.
    """
    limit_bytes()  # a bound that is no number is said before anything else
    code = records.source()
    existing = _finished(config, code)
    if existing is not None:
        return existing
    state = records.folder(config.profile) / "state" / config.name
    with claim(state, wait):
        try:
            return _finished(config, code) or _compute(config, code, read_state(state), quiet)
        finally:
            release()


@contextmanager
def claim(state: Path, wait: bool):
    """Keep other processes off a run; the system frees the claim when the process ends, however it ends."""
    lock = FileLock(f"{state}.lock", timeout=-1 if wait else 0)
    try:
        state.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RunBusy(f"{state.name}: another process is computing this run") from None
    except OSError as error:
        raise LsclError(f"cannot write {lock.lock_file}: {error.strerror or error}") from error
    try:
        yield
        Path(lock.lock_file).unlink(missing_ok=True)  # waiting processes re-read the record
    finally:
        lock.release()


def _finished(config: Experiment, code: dict) -> records.Record | None:
    """The record, if there is one; of uncommitted code only if it is this very code."""
    return records.find(config, code["dirty"], code["code_digest"] if code["dirty"] else None)


def settled(config: Experiment, saved: SavedState) -> Experiment:
    """Fill in device and threads where the config leaves them open: those of the saved state, if there is one.

    Args:
        config: the experiment.
        saved: the last finished round, if any.

    Returns:
        The config with a device and a number of threads.

    Raises:
        LsclError: there is no such device.
    """
    begun = saved.about.get("origin", {})
    if config.device == "auto" and begun.get("device") == "cpu":
        config = config.model_copy(update={"device": "cpu"})
    threads = config.threads or begun.get("threads", config.cpu_threads)
    return config.model_copy(update={"device": device_of(config).type, "threads": threads})


def _compute(config: Experiment, code: dict, saved: SavedState, quiet: bool) -> records.Record:
    """Make the record, starting after the last finished round."""
    config = settled(config, saved)
    progress = Progress(config, quiet)
    affordable([config])
    started = time.perf_counter()
    data, parts, method, clients = prepare(config, progress)
    about = {**code, "prepare": time.perf_counter() - started, "origin": origin.of_run(data, parts, method)}
    reports, about = run_rounds(method, InProcess(method, clients, progress.client), clients, saved, about, progress)
    record = make_record(data, parts, method, reports, about)
    record = records.read_record(records.save(record))  # as every later call will read it
    shutil.rmtree(saved.folder, ignore_errors=True)
    return record


def run_rounds(
    method: Method,
    transport: Transport,
    kept: Sequence[Checkpointed],
    saved: SavedState,
    about: dict,
    progress: Progress,
    **rules: int | None,
) -> tuple[list[Round], dict]:
    """Run the rounds that are missing and save the state after each of them.

    Args:
        method: the system.
        transport: the way to the clients.
        kept: whatever has tensors to save beside the server's.
        saved: the last finished round, if any; the state of later rounds goes to its folder.
        about: the code that runs, its origin, and the seconds of its preparation.
        progress: is told of every round.
        rules: `least` and `limit` of `federate`.

    Returns:
        The reports of all rounds, and `about` as the first call for this run had it.

    Raises:
        LsclError: the saved state is damaged or of another origin.
    """
    config = method.config
    if saved.about:
        origin.compare(saved.about["origin"], about["origin"], "the saved state of this run", saved.folder)
    reports = load_state(saved, method, kept)
    code, about = about, saved.about or about
    about["dirty"] = (
        about["dirty"] or code["dirty"] or about["code_digest"] != code["code_digest"]
    )  # begun by other code
    progress.start(len(exchanges(method)), reports)
    try:
        for report in federate(method, transport, done=len(reports), **rules):
            reports.append(report)
            if (
                report.scores
            ):  # before the state: a stop in between leaves a sheet that is written again, never one that is missing
                save_sheet(config, method, report.task, about["dirty"])
            save_state(saved.folder, reports, method, kept, about)
            progress.round(report)
    except KeyboardInterrupt:
        print(f"\nstopped after round {len(reports)}; the same command goes on from there", file=sys.stderr)
        raise
    finally:
        progress.close()
    return reports, about


def save_sheet(config: Experiment, method: Method, task: int, dirty: bool = False) -> Path | None:
    """Write what the method's server made in the task as a grid of images beside the records; -> its path, None if it made none.

    Raises:
        LsclError: the disk is full or the folder cannot be written.
    """
    images = method.sheet(task)
    if images is None or len(images) == 0:
        return None
    path = records.folder(config.profile, dirty) / "sheets" / f"{config.name}--task{task + 1}.png"
    data = io.BytesIO()
    Image.fromarray(grid(images)).save(data, "PNG")
    write_atomic(path, data.getvalue())
    return path


def grid(images: np.ndarray) -> np.ndarray:
    """Images side by side in a square as nearly as possible, row by row, black lines between: (n, H, W, 3) -> one (.., .., 3)."""
    columns = math.ceil(len(images) ** 0.5)
    rows = math.ceil(len(images) / columns)
    n, height, width, _ = images.shape
    cells = np.zeros((rows * columns, height + 1, width + 1, 3), np.uint8)
    cells[:n, :height, :width] = images
    cells = cells.reshape(rows, columns, height + 1, width + 1, 3).transpose(0, 2, 1, 3, 4)
    return cells.reshape(rows * (height + 1), columns * (width + 1), 3)[:-1, :-1]


def make_record(data: Dataset, parts: Partition, method: Method, reports: list[Round], about: dict) -> records.Record:
    """The record of the rounds of a finished run; "faults" are in it only if there were any."""
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
    phases = {name: round(sum(report.seconds[name] for report in reports), 3) for name in reports[0].seconds}
    images = sum(len(task.train) for stream in parts.tasks for task in stream[: config.tasks_run])
    left_out = {
        ("threads", config.cpu_threads),
        ("system_digest", None),
    }  # the first stands in the config, and ours have no such digest
    facts = {
        **{name: value for name, value in origin.of_run(data, parts, method).items() if (name, value) not in left_out},
        "bytes_up": [report.bytes_up for report in reports],
        "bytes_down": [report.bytes_down for report in reports],
        "trained_parameters": [sum(p.numel() for p in method.new_model(k).parameters()) for k in range(config.clients)],
        "trained_images": method.passes * config.epochs * config.rounds * images if method.trains else 0,
        "optimised_images": sum(report.images for report in reports),
        "seconds": {"prepare": round(about["prepare"], 3), **phases},
        "cpu_seconds": round(sum(report.cpu_seconds for report in reports), 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        **{key: about[key] for key in ("commit", "dirty", "code_digest")},
        **({"faults": [report.faults for report in reports]} if any(report.faults for report in reports) else {}),
    }
    return records.make(config, counts, seen, facts)


def state_folders() -> list[Path]:
    """Saved states of runs that were stopped."""
    return sorted(path for path in (paths.results() / "runs").glob("*/state/*") if path.is_dir())
