"""The page of differences against the code: its numbers run on, and the sizes that it lists are those of the config."""

import re
from pathlib import Path

import pytest

from lscl.config import experiment, fields
from lscl.registry import METHODS
from lscl.results.labels import label_of

TEXT = (Path(__file__).parents[2] / "book" / "differences.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| ([^|]+) \| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
SIZES = [found.groups() for found in ROW.finditer(TEXT)]
PROFILES = ("demo", "mini", "full")


def sizes_of(method, profile):
    return experiment(method=method, dataset="cifar100", profile=profile).model_dump()


def official(name):
    """The official value in a parameter's description, as text; None = it has none."""
    found = re.search(r"\(official: ([\d.]+)\)", fields()[name].description)
    return found and found[1]


def test_the_items_are_numbered_one_after_another():
    found = [int(number) for number in re.findall(r"^(\d+)\. ", TEXT, re.MULTILINE)]
    assert found == list(range(1, len(found) + 1))
    assert all(int(number) <= len(found) for number in re.findall(r"number (\d+)", TEXT))


@pytest.mark.parametrize(("system", "name", "there", "demo", "mini", "full"), SIZES, ids=[row[1] for row in SIZES])
def test_a_listed_size_is_that_of_the_config(system, name, there, demo, mini, full):
    (method,) = METHODS.owners(name)
    assert (label_of(method), official(name)) == (system, there)
    assert [f"{sizes_of(method, profile)[name]:g}" for profile in PROFILES] == [demo, mini, full]


@pytest.mark.parametrize("method", sorted({METHODS.owners(row[1])[0] for row in SIZES}))
def test_every_size_below_the_official_one_is_listed(method):
    tuned, listed = METHODS[method].search_space, {row[1] for row in SIZES}
    for name in METHODS[method].Parameters.model_fields:
        if official(name) and name not in tuned:
            differs = any(sizes_of(method, profile)[name] != float(official(name)) for profile in PROFILES)
            assert differs == (name in listed), name
