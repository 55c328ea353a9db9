"""Numbers in the sentences of the book: a page names one in double braces, `lscl pages` writes all to one file."""

from collections.abc import Callable

from lscl import files, paths
from lscl.config import PROFILES, experiment
from lscl.data import imagenet_r
from lscl.errors import MissingFile, pluralize
from lscl.experiments import cost_model, sweeps
from lscl.experiments.records import Record, select
from lscl.experiments.rounding import ALLOWED, describe_pairs, expected_range
from lscl.experiments.tuning import TRIALS
from lscl.models.vit import WEIGHTS
from lscl.publish.gpu_pages import measured_cards
from lscl.publish.hardware import cost
from lscl.registry import DATASETS, METHODS
from lscl.results import file_shapes
from lscl.results.frames import final_accuracy
from lscl.results.labels import SCORES
from lscl.results.markdown import plain_text, wall_minutes
from lscl.results.published import published_final
from lscl.results.statistics import mean_with_interval

NONE = "(not yet measured)"
FILE = "numbers.json"


def numbers(records: list[Record]) -> dict[str, str]:
    """Every number by its name, from the records of the main table; what nobody has measured yet says so."""
    ours = {
        dataset: select(records, method=METHODS.find_role("own"), overrides={}, dataset=dataset)
        for dataset in sweeps.PLANS["mini"]
    }
    found: dict[str, Callable[[], str]] = {
        "demo_minutes": lambda: f"{_expected('demo')['minutes']:g}",
        "demo_cores": lambda: str(_expected("demo")["hardware"]["cores"]),
        "demo_task": lambda: f"{expected_range(_expected('demo')['task'])} %",
        "demo_seen": lambda: f"{expected_range(_expected('demo')['seen'])} %",
        "rounding_points": lambda: f"{ALLOWED:g}",
        "rounding_pairs": lambda: describe_pairs(_rounding_pairs()),
        **{
            f"ours_{dataset}_{mask}": lambda group=group, mask=mask: _final(group, mask)
            for dataset, group in ours.items()
            for mask in SCORES
        },
        "published_cifar100": lambda: _published("cifar100"),
        "main_runs": lambda: str(len(records)),
        "main_devices": lambda: _devices(records),
        "mini_images": lambda: str(PROFILES["mini"]["images_per_class"]),
        "demo_images": lambda: str(PROFILES["demo"]["images_per_class"]),
        "full_test_images": lambda: str(PROFILES["full"]["test_images_per_class"]),
        "full_server_images": lambda: str(_cifar100_tests() - PROFILES["full"]["test_images_per_class"]),
        "trials": lambda: str(TRIALS),
        "reported_seeds": lambda: f"{', '.join(map(str, sweeps.SEEDS[:-1]))} and {sweeps.SEEDS[-1]}",
        "tuning_seed": lambda: str(sweeps.TUNING_SEED),
        "weights_images": lambda: f"{files.read_json(WEIGHTS.with_suffix('.json'), file_shapes.Weights)['images']:,}",
        "imagenet_r_size": lambda: f"{imagenet_r.SIZE / 1e9:.1f} GB",
        "gpu_card": _gpu_cards,
        "gpu_passed": lambda: _gpu_outcomes("passed"),
        "gpu_failed": lambda: _gpu_outcomes("failed"),
        "gpu_not_run": lambda: _gpu_outcomes("not run"),
        "colab_hours": lambda: (
            f"{sum(cost(one).hours(cost_model.find_card('t4')) for one in sweeps.plan('colab')):.1f}"
        ),
        "paper_hours": lambda: (
            f"{cost(experiment(profile='paper', dataset='cifar100')).hours(cost_model.find_card('t4')):.0f}"
        ),
    }
    return {name: _value(of) for name, of in found.items()}


def _gpu_cards() -> str:
    """The cards that `benchmarks/gpu.py` has measured."""
    return ", ".join(plain_text(one["machine"]["gpu"]) for one in measured_cards()) or NONE


def _gpu_outcomes(outcome: str) -> str:
    """How many checks on these cards ended in that way."""
    rows = [row for one in measured_cards() for row in one["rows"]]
    return str(sum(row["outcome"] == outcome for row in rows)) if rows else NONE


def _devices(records: list[Record]) -> str:
    """How many runs were made on what, and their hours: those on a GPU say little about a CPU."""
    groups: dict[str, list[Record]] = {}
    for one in records:
        where = plain_text(one["hardware"]["gpu"]) if one["device"] == "cuda" else "CPUs"
        groups.setdefault(where, []).append(one)
    took = lambda group: f"{pluralize(len(group), 'run')} took {sum(map(wall_minutes, group)) / 60:.1f} hours"
    return " and ".join(f"{took(groups[where])} on {where}" for where in sorted(groups)) or NONE


def _cifar100_tests() -> int:
    """Official test images of a class of CIFAR-100."""
    return DATASETS["cifar100"].images[1]


def _value(of: Callable[[], str]) -> str:
    try:
        return of()
    except MissingFile:
        return NONE


def _final(group: list[Record], mask: str) -> str:
    return f"{mean_with_interval(final_accuracy(one, mask) for one in group)} %" if group else NONE


def _published(dataset: str) -> str:
    found = published_final(dataset)
    return NONE if found is None else f"{found:.1f} %"


def _rounding_pairs() -> list[dict]:
    """The runs that were made on two processors."""
    return files.read_json(paths.results() / "rounding" / "pairs.json", file_shapes.RoundingPairs)["rows"]


def _expected(profile: str) -> dict:
    """What a whole profile took and gave, see `readme.expect`."""
    return files.read_json(paths.results() / "expected" / f"{profile}.json", file_shapes.ExpectedProfile)
