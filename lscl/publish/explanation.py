"""A record in words: what it is, how it differs from its profile, where it is used, how to make it again."""

import shlex
from pathlib import Path

from lscl.config import experiment
from lscl.errors import pluralize, shorten
from lscl.experiments import records
from lscl.experiments.config_files import command_of, config_of_record, different_values
from lscl.experiments.verify import cell_names
from lscl.federation.metrics import average_so_far, forgetting
from lscl.publish.verified import cells
from lscl.registry import METHODS
from lscl.results.labels import DATASET_LABELS, HEAD_LABELS, MASK_LABELS, label_of
from lscl.results.markdown import wall_minutes


def explain_record(record: records.Record, path: Path) -> list[str]:
    """The record in words.

    Args:
        record: as `records.read_record` gives it.
        path: its file.

    Returns:
        lines for a terminal.
    """
    config, code = config_of_record(record), records.source()
    where = DATASET_LABELS[record["dataset"]]
    lines = [
        record["name"],
        f"{label_of(record['method'])} on {where}, profile {record['profile']}, seed {config.seed}",
    ]
    if METHODS[record["method"]].citation:
        lines[-1] += f" (arXiv {METHODS[record['method']].citation})"
    lines.append(
        f"{config.clients} clients, {config.tasks_run} of {config.tasks} tasks of {config.classes_per_task} classes, "
        f"{config.rounds_run} rounds each"
    )
    lines += ["", "Accuracy on all tasks at the end:", *_scores(record)]
    lines += ["", "What differs from the profile (value, the profile's):", *_changes(config)]
    lines += ["", "Where it is used:", *(f"  {cell}" for cell in cells(record) or ["in no table of this book"])]
    lines += ["", "How it was made:", *(f"  {line}" for line in _made(record, code))]
    lines += ["", "Inputs:"]
    digests = ("data_digest", "partition_digest", "weights_digest", "server_images_digest", "system_digest")
    lines += [f"  {name.replace('_', ' ')} {record[name]}" for name in digests if record.get(name)]
    return [*lines, "", "To make it again:", *(f"  {line}" for line in _again(record, config, path))]


def _scores(record: records.Record) -> list[str]:
    lines = []
    for head, text in HEAD_LABELS.items():
        for mask in records.scores_of(record, head).get("accuracy", ()):
            found = records.accuracy(record, mask, head)
            reached = f"{average_so_far(found)[-1]:.2f} %, forgetting {forgetting(found):.2f} points"
            lines.append(f"  {text}, {MASK_LABELS[mask]}: {reached}")
    return lines


def _changes(config) -> list[str]:
    usual = experiment(method=config.method, dataset=config.dataset, profile=config.profile, seed=config.seed)
    pairs = different_values(config.values_read(), usual.values_read())
    about = type(config).model_fields
    return [
        f"  {name}: {here} ({there}); {about[name].description}"
        for name, here, there in pairs
        if name != "folder_digest"
    ] or ["  nothing"]


def _made(record: records.Record, code: dict) -> list[str]:
    machine, versions = record["hardware"], record["versions"]
    gpu = f", {machine['gpu']}" if record["device"] == "cuda" else ""
    same = "the same" if record["code_digest"] == code["code_digest"] else "another one"
    threads = f"{pluralize(record['config']['threads'], 'thread')}, device {record['device']}"
    changed = ", with uncommitted changes" if record["dirty"] else ""
    which = record["commit"][:10] if record["commit"] else "an installed package or no commit"
    faults = sum(map(len, record.get("faults", [])))
    return [
        f"{machine['cpu']}, {machine['cores']} cores{gpu}, {threads}",
        f"{wall_minutes(record):.1f} minutes, finished {record['finished']}",
        f"code {which}{changed} (digest {record['code_digest']}); the code here is {same}",
        ", ".join(f"{name} {number}" for name, number in versions.items()),
        *([f"{faults} answers of clients were rejected: {shorten(record['faults'], 200)}"] if faults else []),
    ]


def _again(record: records.Record, config, path: Path) -> list[str]:
    images = " --data-dir FOLDER" if config.folder_digest else ""
    weights = " --weights FILE" if config.weights_sha256 else ""
    seed = f" --seed {config.seed} --threads {config.threads} --device {record['device']}"
    return [
        f"lscl run --from {shlex.quote(str(path))}{images}{weights}",
        f"{command_of(record)}{seed}{images}{weights}",
        *([f"FOLDER: the images whose digest is {config.folder_digest}"] if images else []),
        *([f"FILE: the checkpoint whose SHA-256 is {config.weights_sha256}"] if weights else []),
        *(f"lscl verify --profile {record['profile']} --cell {shlex.quote(cell)}" for cell in cell_names(record)[:1]),
        "lscl run reads a finished record: set LSCL_ROOT to another folder, or let lscl verify compare",
    ]
