"""Recorded runs computed again."""

import json
import os
import shutil

import pytest
import torch
from made_records import record
from safetensors.torch import save_file

from lscl import cli
from lscl.config import experiment
from lscl.errors import LsclError
from lscl.experiments import records, rounding, verify
from lscl.experiments.run import run
from lscl.models.vit import foundation


def test_a_record_is_equal_to_the_bit_when_computed_again(recorded, tree, places):
    path = verify.verify_sample("smoke", 2, 0, tree)
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert path == places / "results" / "verified" / "smoke.json"
    assert [(one["name"], one["equal"], one["differs"]) for one in saved["runs"]] == [
        (one["name"], True, []) for one in sorted_by_name(recorded)
    ]
    assert len(records.all_records("smoke")) == 2  # nothing was added


def test_the_outcome_names_the_code_that_verified(recorded, tree, monkeypatch):
    here = os.environ["LSCL_ROOT"]
    monkeypatch.setattr(
        records,
        "source",
        lambda: {"commit": "abc" if os.environ["LSCL_ROOT"] == here else None, "dirty": False, "code_digest": "0"},
    )
    assert verify.verify(recorded[0], tree)["verified_at"] == "abc"
    assert os.environ["LSCL_ROOT"] == here


def test_a_run_with_a_local_checkpoint_is_verified_with_that_file(smoke, tree, tmp_path, one_line):
    path = tmp_path / "tiny.safetensors"
    save_file(foundation("tiny", None).vit.state_dict(), path)
    record = run(smoke(method="local_head", weights=path), quiet=True)
    assert verify.verify(record, tree, path)["equal"]
    with pytest.raises(LsclError) as caught:
        verify.verify(record, tree)
    one_line(caught, "say by weights where")


def test_a_record_that_cannot_be_computed_stops_no_other_one(smoke, tree, tmp_path, one_line, places, capsys):
    shutil.copytree(tree, tmp_path / "other")
    next((tmp_path / "other" / "train" / "class00").iterdir()).unlink()
    there, gone = (
        run(smoke(method="local_head", images_per_class=5, data_dir=folder), quiet=True)["name"]
        for folder in (tree, tmp_path / "other")
    )
    path = places / "results" / "verified" / "smoke.json"
    for folder, well, failed in ((tree, there, gone), (tmp_path / "other", gone, there)):
        with pytest.raises(LsclError) as caught:
            verify.verify_sample("smoke", 2, 0, folder)
        one_line(caught, "1 of 2 records cannot be computed again", f"{failed}: ", "holds other images")
        assert f"{failed}: cannot be computed again: " in capsys.readouterr().out
        saved = json.loads(path.read_text("utf-8"))
        assert [one["name"] for one in saved["runs"]] == [well] and saved["without_outcome"] == [failed]
    before = path.read_bytes()
    with pytest.raises(LsclError) as caught:
        verify.verify_sample("smoke", 2, 0, tmp_path / "nowhere")
    one_line(caught, "2 of 2 records cannot be computed again", there, gone)
    assert path.read_bytes() == before  # no outcome is nothing to write


def test_a_stop_keeps_the_outcomes_so_far(recorded, tree, places, monkeypatch):
    compute, begun = verify.verify, []

    def stop_at_the_second(record, *words):
        begun.append(record["name"])
        if len(begun) == 2:
            raise KeyboardInterrupt
        return compute(record, *words)

    monkeypatch.setattr(verify, "verify", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        verify.verify_sample("smoke", 2, 0, tree)
    saved = json.loads((places / "results" / "verified" / "smoke.json").read_text("utf-8"))
    assert ([one["name"] for one in saved["runs"]], saved["without_outcome"]) == (begun[:1], begun[1:])


def test_a_cell_that_cannot_be_computed_is_named(capsys, monkeypatch):
    record = run(experiment(profile="smoke", method="local_head"), quiet=True)

    def fail(*_):
        raise LsclError("its images are gone")

    monkeypatch.setattr(verify, "verify", fail)
    with pytest.raises(SystemExit) as end:
        cli.main(["verify", "--profile", "smoke", "--cell", "table1/glyphs/local_head/42"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"lscl: 1 of 1 records cannot be computed again: {record['name']}: its images are gone\n"
    )


def test_a_place_that_no_record_reads_is_refused_before_anything_is_computed(
    recorded, tree, tmp_path, capsys, monkeypatch, one_line
):
    monkeypatch.setattr(verify, "run", lambda config: pytest.fail("computed"))
    with pytest.raises(LsclError) as caught:
        verify.verify_sample("smoke", 1, 0, tree, weights=tmp_path / "vit.npz")
    one_line(caught, f"weights = {tmp_path / 'vit.npz'}: no record to verify was made with a local checkpoint")
    run(experiment(profile="smoke", method="local_head"), quiet=True)
    with pytest.raises(LsclError) as caught:
        verify.verify_sample("smoke", 1, 0, tree, "glyphs")
    one_line(caught, f"data_dir = {tree}: the images of glyphs come with the package: leave it out")
    cell = ("verify", "--profile", "smoke", "--cell", "table1/glyphs/local_head/42")
    for option, says in (("--data-dir", "data_dir = x: the images of glyphs"), ("--weights", "weights = x: no record")):
        with pytest.raises(SystemExit) as end:
            cli.main([*cell, option, "x"])
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.startswith(f"lscl: {says}") and len(said.splitlines()) == 1


def sorted_by_name(found):
    return sorted(found, key=lambda one: one["name"])


def test_nothing_recorded_is_said(one_line):
    with pytest.raises(LsclError) as caught:
        verify.sample("smoke", 1, 0)
    one_line(caught, "no records of profile smoke")


def test_a_changed_number_is_found_and_named(recorded, tree, one_line):
    path = records.folder("smoke") / f"{recorded[0]['name']}.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["accuracy"]["seen"][0][0][0] += 1e-6
    record["bytes_up"][0][0] += 1
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(LsclError) as caught:
        verify.verify_sample("smoke", 2, 0, tree)
    one_line(caught, "1 of 2 records differ", recorded[0]["name"])
    found = {
        one["name"]: one["differs"]
        for one in json.loads((path.parents[2] / "verified" / "smoke.json").read_text(encoding="utf-8"))["runs"]
    }
    assert found == {recorded[0]["name"]: ["accuracy", "bytes_up"], recorded[1]["name"]: []}


SPOILED = {
    "a missing entry": (lambda one: one.pop("bytes_up"), "bytes_up"),
    "an evil name": (lambda one: one.update(name="../../evil"), "name"),
    "another name": (lambda one: one.update(name="evil"), "name"),
    "uncommitted code": (lambda one: one.update(dirty=True), "from uncommitted code"),
    "no digest of the server's images, which this system has not": (lambda one: one.pop("server_images_digest"), None),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_record_that_is_none_is_not_called_equal(recorded, tree, how, one_line):
    spoil, words = SPOILED[how]
    path = records.folder("smoke") / f"{recorded[0]['name']}.json"
    record = json.loads(path.read_text())
    spoil(record)
    path.write_text(json.dumps(record))
    if words is None:
        assert verify.verify(records.read_record(path), tree)["equal"]
        return
    with pytest.raises(LsclError) as caught:
        verify.verify_sample("smoke", 2, 0, tree)
    one_line(caught, path, words)
    assert not (path.parents[2] / "verified").exists()


def moved(record, points, **changes):
    """The record with other accuracies, and whatever else is changed."""
    accuracy = {
        mask: [[[None if value is None else value + points for value in row] for row in task] for task in found]
        for mask, found in record["accuracy"].items()
    }
    return {**record, "accuracy": accuracy, **changes}


@pytest.fixture
def made():
    """A record made by hand."""
    return record(score=70)


XEON = {"cpu": "another cpu", "cores": 2, "memory_gb": 8, "gpu": None}
GPU = {"cpu": "another cpu", "cores": 16, "memory_gb": 8, "gpu": "a card"}
OUTCOMES = {
    "nothing differs": (0, {}, "equal"),
    "nothing differs on another processor": (0, {"hardware": XEON}, "equal"),
    "the same processor": (0.1, {}, "different"),
    "another processor": (0.1, {"hardware": XEON}, "rounding"),
    "another processor, as far as is allowed": (rounding.ALLOWED, {"hardware": XEON}, "rounding"),
    "another processor, farther": (-rounding.ALLOWED - 0.1, {"hardware": XEON}, "different"),
    "a GPU": (-1, {"hardware": GPU, "device": "cuda"}, "rounding"),
    "another torch": (1, {"versions": {"torch": "3.0"}}, "rounding"),
    "other bytes on another processor": (0, {"hardware": XEON, "bytes_up": [[1, 2]]}, "different"),
    "other images on a GPU": (0, {"hardware": GPU, "device": "cuda", "data_digest": "d2"}, "different"),
    "more parameters": (0, {"hardware": XEON, "trained_parameters": [1, 2]}, "different"),
    "other classes alone": (0, {"hardware": XEON, "per_class": {}}, "rounding"),
}


@pytest.mark.parametrize("what", OUTCOMES)
def test_three_outcomes(made, what):
    points, changes, outcome = OUTCOMES[what]
    found = verify.compare_records(made, moved(made, points, **changes))
    assert (found["outcome"], found["equal"]) == (outcome, outcome == "equal")
    assert found["gaps"]["seen"] == pytest.approx(points, abs=1e-3)
    words = {"equal": "equal to the bit", "rounding": "equal within rounding", "different": "differs in"}
    assert verify.describe_outcome(found).startswith(words[outcome])


@pytest.mark.parametrize(
    ("here", "there", "outcome"), [("a", "b", "rounding"), ("a", "a", "different"), (None, "a", "different")]
)
def test_processors_of_one_name_with_other_instructions_are_two_kinds(made, here, there, outcome):
    one, other = ({**made["hardware"], **({"instructions": name} if name else {})} for name in (here, there))
    found = verify.compare_records({**made, "hardware": one}, moved(made, 1, hardware=other))
    assert found["outcome"] == outcome


def test_other_threads_are_another_rounding(made):
    other = moved(made, 1, config={**made["config"], "threads": 1})
    assert verify.compare_records(made, other)["outcome"] == "rounding"


def test_two_runs_on_one_gpu_need_not_be_equal(made):
    one = {**made, "hardware": GPU, "device": "cuda"}
    assert verify.compare_records(one, moved(one, 1))["outcome"] == "rounding"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_record_of_a_gpu_is_verified_on_the_cpu(recorded, tree, capsys):
    path = records.folder("smoke") / f"{recorded[0]['name']}.json"
    raw = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**raw, "device": "cuda", "hardware": GPU}), "utf-8")
    verify.verify_sample("smoke", 2, 0, tree)
    out = capsys.readouterr().out
    assert out.count("equal within rounding (points apart: task +0.00") == 1 and out.count("equal to the bit") == 1


def test_a_record_of_another_processor_passes_within_the_tolerance_alone(recorded, tree, one_line):
    path = records.folder("smoke") / f"{recorded[0]['name']}.json"
    raw = {**json.loads(path.read_text("utf-8")), "hardware": XEON}
    change = lambda of: {
        mask: [[[None if value is None else of(value) for value in row] for row in task] for task in found]
        for mask, found in raw["accuracy"].items()
    }
    path.write_text(json.dumps({**raw, "accuracy": change(lambda value: min(value + 1, 100.0))}), "utf-8")
    saved = json.loads(verify.verify_sample("smoke", 2, 0, tree).read_text("utf-8"))
    assert sorted(one["outcome"] for one in saved["runs"]) == ["equal", "rounding"]
    path.write_text(json.dumps({**raw, "accuracy": change(lambda value: 100.0)}), "utf-8")
    with pytest.raises(LsclError) as caught:
        verify.verify_sample("smoke", 2, 0, tree)
    one_line(caught, "1 of 2 records differ")


def test_a_record_is_found_by_the_name_of_its_cell(put, one_line):
    put(70.0), put(60.0, {"block": 6}), put(50.0, {"rank": 5}, seed=1999)
    plain = verify.find_cell("mini", "table1/cifar100/fed_lscl/42")
    assert "table1/cifar100/fed_lscl/42" in verify.cell_names(plain) and plain["overrides"] == {}
    assert verify.find_cell("mini", " Blocks/CIFAR100/block 6 /42")["config"]["block"] == 6
    for name in ("table1/cifar100/fed_lscl/7", "table1/cifar100/fed_lsc/42", "table1", "", "a/b/c/d/e", "\n" * 300):
        with pytest.raises(LsclError) as caught:
            verify.find_cell("mini", name)
        one_line(caught, "no recorded cell", "table1/cifar100/fed_lscl/42")


def test_a_cell_without_records_is_one_line(one_line):
    with pytest.raises(LsclError) as caught:
        verify.find_cell("mini", "table1/cifar100/fed_lscl/42")
    one_line(caught, "there are 0 recorded cells")


def test_the_servers_images_are_compared(smoke, tree):
    record = run(smoke(method="fedmgp"), quiet=True)
    assert verify.verify(record, tree)["differs"] == []
    path = records.folder("smoke") / f"{record['name']}.json"
    raw = json.loads(path.read_text())
    del raw["server_images_digest"]
    path.write_text(json.dumps(raw))
    assert verify.verify(records.read_record(path), tree)["differs"] == ["server_images_digest"]


def test_a_run_is_verified_with_its_threads_on_its_device(smoke, tree):
    record = run(smoke(method="local_head", threads=2), quiet=True)
    assert verify.verify(record, tree)["equal"] and torch.get_num_threads() == 2


def test_a_record_is_not_verified_on_other_images(recorded, tree, tmp_path, one_line):
    shutil.copytree(tree, tmp_path / "other")
    next((tmp_path / "other" / "train" / "class00").iterdir()).unlink()
    with pytest.raises(LsclError) as caught:
        verify.verify(recorded[0], tmp_path / "other")
    one_line(caught, tmp_path / "other", "holds other images")


def test_the_draw_depends_on_its_seed_alone(recorded):
    drawn = [[one["name"] for one in verify.sample("smoke", 1, seed)] for seed in range(12)]
    assert drawn == [[one["name"] for one in verify.sample("smoke", 1, seed)] for seed in range(12)]
    assert len({tuple(names) for names in drawn}) == 2


@pytest.mark.parametrize("count", [0, 3])
def test_more_than_there_is_cannot_be_verified(recorded, count, one_line):
    with pytest.raises(LsclError) as caught:
        verify.sample("smoke", count, 0)
    one_line(caught, f"sample = {count}", "there are 2 records", "give 1 to 2")


def test_the_command_line(recorded, tree, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["verify", "--profile", "smoke", "--sample", "1", "--data-dir", str(tree)])
    assert end.value.code == 0 and "equal to the bit" in capsys.readouterr().out
