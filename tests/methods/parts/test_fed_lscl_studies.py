"""What is studied of Fed-LSCL; that the runs of a study are valid is tested with the sweeps."""

import pytest

from lscl.config import PROFILES, fields
from lscl.experiments.sweeps import variant_run
from lscl.methods.parts import fed_lscl_studies
from lscl.models.cnn_weights import check_weights
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


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("study", "label"), [("ablations", "CNN pre-trained"), ("regimes", "written, CNN pre-trained")]
)
def test_the_pre_trained_cnn_stands_in_a_study_with_a_cnn_that_has_weights(profile, study, label):
    found = {name: one for name, one in fed_lscl_studies.STUDIES[study](profile).items() if name.split(";")[0] == label}
    assert len(found) == {"ablations": 1, "regimes": len(fed_lscl_studies.REGIMES)}[study]
    for change in found.values():
        config = variant_run({"profile": profile, "dataset": "cifar100"}, change, 42)
        assert config.cnn_start == "pretrained"
        check_weights(config, config.cnn_start)
        assert config.side == (224 if config.cnn == "resnet18" else 32)  # the size that its weights were trained with


def test_all_other_ablations_start_from_drawn_cnns():
    started = [label for label, change in fed_lscl_studies.ABLATIONS.items() if "cnn_start" in change]
    assert started == ["CNN pre-trained"]


@pytest.mark.parametrize("profile", PROFILES)
def test_at_the_larger_rate_a_run_differs_from_the_whole_system_in_what_its_name_says(profile):
    found = {
        label: variant_run({"profile": profile}, change, 42).overrides()
        for label, change in fed_lscl_studies.STUDIES["larger_rate"](profile).items()
    }
    last = fed_lscl_studies.BLOCKS[profile] - 1
    named = fed_lscl_studies.ABLATIONS | {
        "block 0": {"block": 0}, f"block {last}": {"block": last},
        "0 per class": {"buffer_per_class": 0}, "50 per class": {"buffer_per_class": 50},
    }  # fmt: skip
    rates = [found.pop(label).get("lr_generator", 0) for label in ("tuned rate", "rate 0.0003") if label in found]
    assert rates == ([0, 3e-4] if METHODS["fed_lscl"].tuned and profile in ("demo", "mini", "full") else [])
    assert len(found) == 12
    for label, overrides in found.items():
        change = fed_lscl_studies.with_weights(named[label], profile)
        wanted = variant_run({"profile": profile}, {**change, "lr_generator": 1e-3}, 42)
        assert wanted.lr_generator == 1e-3 and overrides == wanted.overrides()
