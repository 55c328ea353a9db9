"""What is studied of Fed-LSCL; that the runs of a study are valid is tested with the sweeps."""

import pytest

from lscl.config import PROFILES, fields
from lscl.methods.parts import fed_lscl_studies
from lscl.registry import METHODS


def test_every_set_of_components_is_among_the_ablations():
    """With a written and a static update, each of O2D and SM-CF on and off; the CNN alone has no generator to fuse."""
    on = lambda change: (
        change.get("collaboration", "written"),
        change.get("o2d", "exact") != "none",
        change.get("continual", "consistency") != "none",
    )
    found = {on(change) for change in fed_lscl_studies.ABLATIONS.values()}
    assert {
        (kind, o2d, kept) for kind in ("written", "static") for o2d in (True, False) for kept in (True, False)
    } <= found
    assert {("cnn", True, True), ("cnn", True, False)} <= found


@pytest.mark.parametrize("name", fed_lscl_studies.STUDIES)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_study_changes_only_parameters_that_there_are(name, profile):
    found = fed_lscl_studies.STUDIES[name](profile)
    assert len(found) > 1 and all(set(change) <= set(fields()) for change in found.values())
    assert {change.get("method", "fed_lscl") for change in found.values()} <= set(METHODS)


def test_a_regime_has_every_writer_once():
    found = fed_lscl_studies.STUDIES["regimes"]("mini")
    assert len(found) == len(fed_lscl_studies.REGIMES) * len(fed_lscl_studies.WRITERS)
    assert found["one static LoRA; 5 images a class, block 3"] == fed_lscl_studies.regime_change(
        {"images_per_class": 5, "block": 3}, "one static LoRA"
    )
    assert found["one static LoRA; 5 images a class, block 3"]["tasks"] == 1
