"""The records of attacked runs as tables."""

import json

import numpy as np
import pytest
from PIL import Image

from lscl.errors import LsclError
from lscl.experiments.privacy.scores import Finding
from lscl.methods import METHODS
from lscl.results import claims, privacy


def attacked(places, method="fed_lscl", seed=42, defence="", epsilon=None, auc=0.6, top1=0.01, **changes):
    """Write the record of an attacked run by hand."""
    findings = [
        Finding("membership", "weight", "own CNN", "auc", auc, 0.5, 1.0, 0.5, 90),
        Finding("membership", "weight", "true CNN (upper bound)", "auc", 0.99, 0.5, 1.0, 0.5, 90),
        Finding("reconstruction", "features", "own CNN", "top1", top1, 0.01, 1.0, 0.01, 90),
        Finding("reconstruction", "features", "own CNN", "psnr", 12.0, 11.0, 30.0, None, 90),
        Finding("classes", "bias", "test images of every class", "classes", 0.5, 0.0, 1.0, 0.08, 8),
    ]
    scores = {"task": 80.0, "seen": 70.0, "all": 60.0}
    worse = {name: value - 20 for name, value in scores.items()}
    damage = {"answer": "update", "outcome": "taken", "honest": scores}
    record = {
        "schema": 1, "method": method, "dataset": "glyphs", "profile": "mini", "seed": seed, "defence": defence,
        "name": f"glyphs--{method}--{defence}--s{seed}", "config": {"threads": 1}, "config_digest": "c1",
        "steps": 1.0, "candidates": 100, "data_digest": "d1", "partition_digest": "p1", "accuracy": scores,
        "privacy": None if epsilon is None else {"epsilon": epsilon, "unit": "image"},
        "sent": {"weight": [6, 4], "bias": [6], "features": [3, 4]}, "summed": ["bias"], "bytes_up": 2_000_000,
        "bytes_down": 1, "findings": [one.row() for one in findings], "seconds": {"run": 60.0},
        "damages": [{**damage, "checks": False, "attacked": worse}, {**damage, "checks": True, "attacked": scores}],
        "commit": "abcdef0123456", "dirty": False, "hardware": {"cpu": "some cpu"}, **changes,
    }  # fmt: skip
    path = places / "results" / "privacy" / "mini" / f"{record['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), "utf-8")
    return path


def test_without_records_every_table_is_empty_and_says_so(places):
    frames = [privacy.attacked_frame("mini"), privacy.findings_frame("mini"), privacy.damages_frame("mini")]
    assert all(frame.empty and set(privacy.ABOUT) <= set(frame.columns) for frame in frames)
    assert privacy.sent_table("mini").empty and privacy.reconstructions("mini", "glyphs", 42) == {}
    assert privacy.privacy_note(frames[0]) == "" and privacy.best_membership(frames[1]).empty
    text = claims.judge_privacy(frames[1])
    assert text.count(claims.MISSING) == len(claims.PRIVACY_CLAIMS)


def test_noise_is_shown_on_the_first_data_set_that_has_it(places):
    """Not on the first of all: where no run has noise yet, there is no epsilon for an axis."""
    attacked(places, name="cifar100--fed_lscl----s42", dataset="cifar100")
    attacked(places)
    attacked(places, method="fed_ncm")
    assert privacy.noise_runs(privacy.attacked_frame("mini")).empty
    attacked(places, epsilon=2.0, defence="noise 1e-05")
    shown = privacy.noise_runs(privacy.attacked_frame("mini"))
    assert set(shown["dataset"]) == {"glyphs"} and set(shown["method"]) == {"fed_lscl"}
    assert set(shown["defence"]) == {"", "noise 1e-05"}


def test_rows_have_what_stands_in_the_records(places):
    attacked(places, epsilon=2.0, defence="noise 1e-05")
    attacked(places)
    runs = privacy.attacked_frame("mini")
    assert list(runs["defence"]) == ["", "noise 1e-05"] and list(runs["mb_up"]) == [2.0, 2.0]
    assert np.isnan(runs["epsilon"][0]) and runs["epsilon"][1] == 2.0
    lost = privacy.damages_frame("mini").set_index(["defence", "checks"])["lost_seen"]
    assert lost["", False] == 20 and lost["", True] == 0
    assert len(privacy.findings_frame("mini")) == 10
    assert privacy.best_membership(privacy.findings_frame("mini")).tolist() == [0.6, 0.6]  # no upper bound


def test_kept_images_are_counted_per_class_so_that_seeds_can_be_compared(places):
    gram = lambda count: Finding(
        "membership", "gram", f"own CNN, {count} kept images, 6 features", "auc", 0.5, 0.5, 1.0, 0.5, count
    )
    for seed, counts in ((42, (8, 40, 135)), (1999, (8, 31, 88))):
        attacked(places, seed=seed, findings=[gram(count).row() for count in reversed(counts)])
    attacked(places, defence="Gram matrix", sent={"gram": [21]}, findings=[gram(135).row()])
    found = privacy.findings_frame("mini")
    names = [f"own CNN, {kept}, 6 features" for kept in (
        "at most 20 kept images of a class", "at most 5 kept images of a class", "at most 1 kept image of a class"
    )]  # fmt: skip
    assert found[found["defence"] == ""].groupby("knows", sort=False)["seed"].nunique().to_dict() == dict.fromkeys(
        names, 2
    )
    assert list(found[found["defence"] != ""]["knows"]) == ["own CNN, all kept images, 6 features"]


@pytest.mark.parametrize(
    ("seen", "says"),
    [(70.1, "No defence of Fed-LSCL changes its accuracy by more than 0.1 points"), (50.0, "20.0 points")],
)
def test_the_price_of_defences_is_said_for_both_outcomes(places, seen, says):
    attacked(places)
    assert privacy.read_price(privacy.attacked_frame("mini")) == ""
    attacked(places, defence="1 kept image", accuracy={"task": 80.0, "seen": seen, "all": 60.0})
    attacked(places, method="fed_ncm")
    attacked(places, method="fed_ncm", defence="noise 1", accuracy={"task": 0.0, "seen": 0.0, "all": 0.0})
    assert says in privacy.read_price(privacy.attacked_frame("mini"))


def test_defences_stand_in_the_order_of_their_system(places):
    declared = list(METHODS["fed_lscl"].defences)
    for label in reversed(declared):
        attacked(places, defence=label)
    attacked(places)
    assert list(privacy.attacked_frame("mini")["defence"]) == ["", *declared]


def test_what_is_sent_is_summed_up_by_family(places):
    attacked(places)
    attacked(places, seed=1999)
    table = privacy.sent_table("mini").set_index("what goes up")
    assert list(table["numbers"]) == ["30", "12"] and list(table["sums are enough"]) == ["no", "no"]
    assert "CNN" in table.loc["features of kept images", "what the server reads"]


@pytest.mark.parametrize("name", list(METHODS))
def test_every_tensor_that_a_system_sends_has_a_family(federation, smoke, name):
    method, _ = federation(smoke(method=name))
    for stage in method.stages(0):
        for tensor in method.upload_shapes(0, stage):
            assert privacy.family_of(tensor)[1] != "not said", tensor


def test_pictures_are_rows_by_their_names(places):
    path = attacked(places, sheet={"rows": ["true image", "own CNN"], "images": 3})
    pixels = np.arange(2 * 4 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    Image.fromarray(pixels).save(path.with_suffix(".png"))
    found = privacy.reconstructions("mini", "glyphs", 42)
    assert list(found) == ["true image", "own CNN"] and np.array_equal(found["own CNN"], pixels[4:])
    assert privacy.reconstructions("mini", "cifar100", 42) == {}


def test_small_print_names_commit_seeds_and_machine(places):
    attacked(places)
    note = privacy.privacy_note(privacy.attacked_frame("mini"))
    assert "abcdef0123" in note and "seeds 42" in note and "1 run, 1 minutes" in note and "some cpu" in note


def test_uncommitted_code_stands_behind_no_table(places):
    attacked(places, dirty=True)
    with pytest.raises(LsclError, match="uncommitted code"):
        privacy.attacked_frame("mini")


def test_means_have_as_many_digits_as_asked_for():
    assert privacy.fewer_digits(".3f")([0.5, 0.5]) == "0.500 ± 0.000" and privacy.fewer_digits(".1f")([0.25]) == "0.2"
    assert privacy.fewer_digits(".3f")([float("nan")]) == "–"
