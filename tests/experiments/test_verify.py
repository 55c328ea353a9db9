"""Recorded runs computed again."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from lscl import cli
from lscl.errors import LsclError
from lscl.experiments import records, verify
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
