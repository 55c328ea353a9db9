"""One record per attacked run, from the command to the comparison with a second measurement."""

import json

import pytest
import torch
from tests_root import ROOT
from torch import nn
from toy_system import ToySystem

from lscl import cli, files
from lscl.config import experiment
from lscl.errors import LsclError
from lscl.experiments import origin
from lscl.experiments.privacy import measure as measuring
from lscl.experiments.privacy.measure import (
    attacked_runs,
    describe_defence,
    measure,
    measure_all,
    read_privacy,
    record_path,
    save_privacy,
    verify_privacy,
    verify_privacy_sample,
)
from lscl.experiments.run import claim
from lscl.federation.method import Method
from lscl.methods import METHODS
from lscl.publish import verified
from lscl.registry import register
from lscl.results import file_shapes


class OneLayer(Method):
    """The system that the book teaches: its model is a single layer on the frozen ViT, and has no parts."""

    name, label = "one_layer", "One layer"

    def build(self, client):
        return nn.Linear(self.foundation.width, self.num_classes)

    def features_of(self, client, batch):
        return self.foundation.suffix(batch.prefix)

    def head_logits(self, client, features):
        return client.model(features)


# Tensors with the names that our systems use for other things: (shape, type).
FOREIGN = {
    "features": ((3,), torch.float32),
    "gram": ((), torch.float32),
    "means": ((2, 3), torch.float32),
    "sums": ((4, 2), torch.float32),
    "weight": ((), torch.float32),
    "bias": ((2,), torch.float32),
    "gradients": ((4,), torch.float32),
    "classes": ((2,), torch.float32),
}


class ForeignNames(ToySystem):
    """A system with parts and payloads that have the names of ours, and are something else."""

    name, label = "foreign", "Foreign"

    def build(self, client):
        cnn = nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(5))
        return nn.ModuleDict({"cnn": cnn, "generator": nn.Linear(2, 2), "head": nn.Linear(5 + 12, self.num_classes)})

    def logits(self, client, batch):
        coarse = nn.functional.adaptive_avg_pool2d(batch.images, 2).flatten(1)
        return client.model["head"](torch.cat([client.model["cnn"](coarse), coarse], 1))

    def upload(self, client, stage):
        return {**super().upload(client, stage), **{n: torch.ones(s, dtype=d) for n, (s, d) in FOREIGN.items()}}

    def upload_shapes(self, client, stage):
        return {**super().upload_shapes(client, stage), **{name: shape for name, (shape, _) in FOREIGN.items()}}


@pytest.mark.parametrize("kind", [OneLayer, ForeignNames])
def test_an_attack_on_a_part_that_a_system_lacks_is_passed_over(quick, kind):
    register(kind)
    try:
        path = save_privacy(*measuring.measure(small(kind.name)))
        findings = read_privacy(path)["findings"]
    finally:
        METHODS.remove(kind.name)
    assert findings and {row["attack"] for row in findings} <= {"membership", "classes"}
    assert {row["payload"] for row in findings} <= {"whole model", "weight", "head.weight"}


@pytest.fixture
def quick(monkeypatch):
    """Attacks of a few steps among 24 candidates, whoever asks."""
    monkeypatch.setattr(measuring, "measure", lambda config, *_: measure(config, 0.01, 24))


def small(name, **values):
    return experiment(method=name, profile="smoke", stop_after=1, threads=1, **values)


def test_every_kind_of_payload_is_attacked_with_both_controls(quick):
    """The smoke version of the whole: what the notebook shows, from runs of seconds."""
    rows = []
    for name in ("fed_lscl", "glfc", "fed_ridge", "pilora"):
        path = save_privacy(*measuring.measure(small(name)))
        rows += read_privacy(path)["findings"]
        assert path.with_suffix(".png").is_file() == (name == "fed_lscl")
    assert {row["payload"] for row in rows} >= {
        *("features", "gram", "weight", "bias", "gradients", "cnn", "means", "whole model", "holds", "classes")
    }
    for row in rows:
        if row["score"] in ("auc", "classes") or row["attack"] == "matching":
            assert row["by_design"] > 0.95, row
        if row["score"] == "auc":
            assert 0.15 < row["never_had"] < 0.85, row


def test_a_second_measurement_is_equal_to_the_bit(quick):
    path = save_privacy(*measuring.measure(small("fed_ncm", dp_noise=1.0)))
    record = read_privacy(path)
    assert record["privacy"]["unit"] == "image" and verify_privacy(record)["differs"] == []
    changed = {**record, "accuracy": {**record["accuracy"], "task": 1.0}}
    assert verify_privacy(changed)["differs"] == ["accuracy"]


def test_finished_records_are_read_and_missing_ones_are_listed(quick, capsys):
    configs = [small("fed_ncm"), small("fed_ridge")]
    assert measure_all(configs[:1]) == [record_path(configs[0])]
    before = record_path(configs[0]).stat().st_mtime_ns
    assert len(measure_all(configs, list_only=True)) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [f"done    {configs[0].name}", f"missing {configs[1].name}"]
    measure_all(configs)
    assert record_path(configs[0]).stat().st_mtime_ns == before and record_path(configs[1]).is_file()


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [(None, "data_digest", "other"), (None, "partition_digest", "other"), ("config", "threads", 3)],
)
def test_a_record_of_another_origin_is_not_called_done(quick, tmp_path, where, name, value, one_line):
    config = small("fed_ncm", data_dir=tmp_path)  # glyphs, which need no folder: given one, their images are compared
    (path,) = measure_all([config])
    record = json.loads(path.read_text("utf-8"))
    (record[where] if where else record)[name] = value
    path.write_text(json.dumps(record), "utf-8")
    before = path.stat().st_mtime_ns
    for list_only in (True, False):
        with pytest.raises(LsclError) as caught:
            measure_all([config], list_only)
        one_line(caught, f"made with {name} = {value}, this call asks for {name} = ", path, origin.ENTRIES[name])
    assert path.stat().st_mtime_ns == before


def test_a_list_reads_no_images_and_every_committed_record_is_accepted(monkeypatch):
    monkeypatch.setenv("LSCL_ROOT", str(ROOT))
    monkeypatch.setattr(origin, "load", lambda config: pytest.fail("images were read"))
    for dataset in ("cifar100", "glyphs"):
        there = (ROOT / "results" / "privacy" / "mini").glob(f"{dataset}--*.json")
        assert set(measure_all(attacked_runs(dataset, "mini", [42, 1999, 2024]), list_only=True)) == set(there)


def test_a_folder_that_no_record_reads_is_refused(quick, tmp_path, one_line):
    measure_all([small("fed_ncm")])
    with pytest.raises(LsclError) as caught:
        verify_privacy_sample("smoke", 1, 0, tmp_path)
    one_line(caught, f"data_dir = {tmp_path}: the images of glyphs come with the package: leave it out")


def test_verification_says_what_differs_and_writes_the_outcome_all_the_same(quick, places):
    measure_all([small("fed_ncm")])
    path = record_path(small("fed_ncm"))
    outcome = verify_privacy_sample("smoke", 1, 0, dataset="glyphs")
    assert "--sample 1 --seed 0 --dataset glyphs`" in verified.privacy_outcome("smoke")
    assert files.read_json(outcome, file_shapes.VerifiedProfile)["runs"][0]["equal"]
    assert "1 of 1 were equal to the bit" in verified.privacy_outcome("smoke")
    assert record_path(small("fed_ncm")).stem in verified.privacy_outcome("smoke")
    record = json.loads(path.read_text("utf-8"))
    record["findings"][0]["value"] += 0.25
    path.write_text(json.dumps(record), "utf-8")
    with pytest.raises(LsclError, match="1 of 1 records differ"):
        verify_privacy_sample("smoke", 1, 0)
    assert json.loads(outcome.read_text("utf-8"))["runs"][0]["differs"] == ["findings"]
    with pytest.raises(LsclError, match="there are 1 privacy records"):
        verify_privacy_sample("smoke", 2, 0)


def spoiled(monkeypatch, name, method):
    """Let a function of the module fail for one system, as damaged data do."""
    whole = getattr(measuring, name)

    def spoil(one, *words):
        if (one["method"] if isinstance(one, dict) else one.method) == method:
            raise LsclError("its images are gone")
        return whole(one, *words)

    monkeypatch.setattr(measuring, name, spoil)


def test_a_record_that_cannot_be_measured_stops_no_other_one(quick, monkeypatch, one_line, places):
    configs = [small("fed_ncm"), small("fed_ridge")]
    measure_all(configs)
    spoiled(monkeypatch, "verify_privacy", "fed_ncm")
    with pytest.raises(LsclError) as caught:
        verify_privacy_sample("smoke", 2, 0)
    one_line(caught, "1 of 2 records cannot be computed again", f"{configs[0].name}: its images are gone")
    saved = json.loads((places / "results" / "verified" / "privacy-smoke.json").read_text("utf-8"))
    assert [one["name"] for one in saved["runs"]] == [configs[1].name]
    assert saved["without_outcome"] == [configs[0].name]


def test_a_run_that_fails_after_another_one_stops_no_later_one(quick, monkeypatch, capsys, one_line):
    configs = [small("fed_ncm"), small("fed_ridge"), small("fed_ncm", seed=2)]
    spoiled(monkeypatch, "measure", "fed_ridge")
    with pytest.raises(LsclError) as caught:
        measure_all(configs)
    one_line(caught, "1 of 3 runs failed, the others are done", "its images are gone")
    assert f"failed  {configs[1].name}: its images are gone" in capsys.readouterr().out
    assert [record_path(one).is_file() for one in configs] == [True, False, True]
    assert not list(record_path(configs[0]).parent.glob("*.lock"))


def test_a_run_that_another_process_measures_is_busy(quick, capsys):
    config = small("fed_ncm")
    with claim(record_path(config), wait=False):
        assert measure_all([config]) == []
    assert capsys.readouterr().out == f"busy    {config.name}\n"


def test_every_system_that_sends_is_attacked_and_its_defences_come_last():
    runs = attacked_runs("cifar100", "mini", [42, 1999])
    plain = [one.method for one in runs if not describe_defence(one)]
    silent = {"local_head", "local_lora", "local_ridge"}
    assert set(plain) == set(METHODS) - silent and len(plain) == 2 * len(set(plain))
    assert [bool(describe_defence(one)) for one in runs] == sorted(bool(describe_defence(one)) for one in runs)
    assert {one.tasks_run for one in runs} == {1} and len({one.digest for one in runs}) == len(runs)
    assert {describe_defence(one) for one in runs if one.method == "fedavg"} == {"", "clipped changes", "median"}
    for name, kind in METHODS.items():
        for label, change in kind.defences.items():
            assert any(one.method == name and describe_defence(one) == label for one in runs), (name, label, change)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: "{", "no valid JSON"),
        (lambda text: text.replace('"schema":1', '"schema":9'), "schema"),
        (lambda text: text.replace('"findings":[', '"findings":[{"attack":1},'), "findings"),
        (lambda text: text.replace('"name":"glyphs', '"name":"other'), "rename it"),
    ],
)
def test_a_damaged_record_is_one_line(quick, damage, says):
    path = save_privacy(*measuring.measure(small("fed_ncm")))
    path.write_text(damage(path.read_text("utf-8")), "utf-8")
    with pytest.raises(LsclError, match=says):
        read_privacy(path)


OPTIONAL = {"finished", "versions", "cpu_seconds", "code_digest"}  # nobody reads or compares them


def test_every_entry_that_is_read_or_compared_must_be_there(quick, places, capsys):
    path = save_privacy(*measuring.measure(small("fed_ncm")))
    record = json.loads(path.read_text("utf-8"))
    for name in set(record) - OPTIONAL:
        path.write_text(json.dumps({key: value for key, value in record.items() if key != name}), "utf-8")
        with pytest.raises(SystemExit) as ended:
            cli.main(["verify", "--privacy", "--profile", "smoke"])
        error = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and len(error) == 1 and name in error[0] and str(path) in error[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", {}),
        ("config", {}),
        ("config", {"threads": None}),
        ("hardware", {}),
        ("privacy", {}),
        ("sheet", {}),
        ("sheet", {"rows": []}),
        ("seconds", 3),
        ("steps", 0),
        ("candidates", 0),
        ("dirty", None),
        ("commit", 7),
    ],
)
def test_an_entry_of_another_shape_is_one_line(quick, name, value, one_line):
    path = save_privacy(*measuring.measure(small("fed_ncm")))
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), name: value}), "utf-8")
    with pytest.raises(LsclError) as caught:
        read_privacy(path)
    one_line(caught, path, name)


def test_every_committed_record_has_the_shape():
    found = sorted((ROOT / "results" / "privacy").glob("*/*.json"))
    assert found and all(read_privacy(path)["name"] == path.stem for path in found)


def test_a_config_that_is_none_is_one_line(quick, one_line):
    path = save_privacy(*measuring.measure(small("fed_ncm")))
    record = json.loads(path.read_text("utf-8"))
    for changes in ({"method": ["x"]}, {"method": "gone"}, {"rank": {}}, {"foundation": 3}, {"profile": []}):
        path.write_text(json.dumps({**record, "config": {**record["config"], **changes}}), "utf-8")
        with pytest.raises(LsclError) as caught:
            verify_privacy_sample("smoke", 1, 0)
        one_line(caught, path.stem)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--methods", "no"], "unknown method 'no'"),
        (["--dataset", "no"], "unknown data set 'no'"),
        (["--profile", "no"], "unknown profile 'no'"),
        (["--seeds", "a"], "give whole numbers"),
        (["--seeds", "-1"], "seed = -1"),
        (["--data-dir", "/no", "--dataset", "cifar100", "--seeds", "42", "--methods", "fed_ncm"], "no data folder /no"),
    ],
)
def test_bad_words_of_the_command_are_one_line(words, says, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["privacy", *words])
    error = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and len(error) == 1 and says in error[0]


def test_uncommitted_code_measures_nothing(monkeypatch):
    source = {"commit": "abc", "dirty": True, "code_digest": "x"}
    monkeypatch.setattr(measuring.records, "source", lambda: source)
    with pytest.raises(LsclError, match="uncommitted changes"):
        measure_all([small("fed_ncm")])
