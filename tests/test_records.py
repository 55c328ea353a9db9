"""Records: every number of a finished run, and nothing of an unfinished or uncommitted one."""

import json
import subprocess

import numpy as np
import pytest

from lscl import config, records
from lscl.errors import LsclError
from lscl.records import SCHEMA, TIMES

COUNTS = [
    [{"correct": [[3, 1, 2], [2, 1, 2], [0, 1, 2]], "total": [3, 3, 3]}] * 3,
    [{"correct": [[3, 1, 2, 1, 1, 1], [2, 1, 2, 0, 0, 1], [0, 1, 2, 0, 0, 0]], "total": [3] * 6}] * 3,
]


@pytest.fixture
def make(smoke):
    """make(dirty, **config values): a record."""

    def record(dirty=False, **values):
        facts = {"seconds": {"train": 1.5}, "bytes_up": [[1, 2, 3]] * 4, "commit": "abc", "dirty": dirty}
        return records.make(smoke(**values), COUNTS, [[1, 2, 3, 4, 5, 6]] * 3, facts)

    return record


def test_a_record_says_what_was_run_and_with_what(make, smoke):
    wanted = smoke(rank=2)
    record = records.read(records.save(make(rank=2)))
    assert record["schema"] == SCHEMA and record["config_digest"] == wanted.digest and record["name"] == wanted.name
    assert [record[key] for key in ("method", "dataset", "profile", "seed")] == ["fed_lscl", "folder", "smoke", 42]
    assert record["overrides"] == {"image_size": 16, "rank": 2}
    assert record["config"]["rank"] == 2 and record["config"]["threads"] == 1
    assert set(record["config"]) == set(wanted.model_dump()) - {"data_dir", "device", "weights"}
    assert record["bytes_up"] == [[1, 2, 3]] * 4
    assert {"torch", "timm", "numpy", "python"} <= set(record["versions"]) and record["hardware"]["cores"] >= 1


def test_no_path_of_this_machine_is_in_a_record(make, tree):
    assert str(tree) not in json.dumps(make())


def test_accuracies_are_in_percent_by_mask_task_client_and_task_tested(make):
    record = make()
    seen = records.accuracy(record, "seen")
    assert seen.shape == (2, 3, 2)
    assert seen[1, 2] == pytest.approx([500 / 9, 100 / 9], abs=1e-5) and seen[0, 1, 0] == pytest.approx(500 / 9, abs=1e-5)
    assert np.isnan(seen[0, :, 1]).all() and np.isfinite(seen[1]).all()
    assert records.accuracy(record, "task")[1, 0, 0] == pytest.approx(600 / 9, abs=1e-5)


def test_a_record_survives_being_saved_and_read(make, places):
    record = make()
    path = records.save(record)
    assert path == places / "results" / "runs" / "smoke" / f"{record['name']}.json"
    found = records.read(path)
    assert found == {**json.loads(json.dumps(record)), "overrides": {"image_size": 16}}
    assert np.array_equal(records.accuracy(found, "all"), records.accuracy(record, "all"), equal_nan=True)
    json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"method": "fed_lscl"}', "\x00\x00"])
def test_a_damaged_record_is_one_line(tmp_path, content, one_line):
    path = tmp_path / "record.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(LsclError) as caught:
        records.read(path)
    one_line(caught, f"cannot read the record {path}")


def test_a_missing_record_is_one_line(tmp_path, one_line):
    with pytest.raises(LsclError) as caught:
        records.read(tmp_path / "none.json")
    one_line(caught, f"cannot read the record {tmp_path / 'none.json'}")


def test_a_record_of_another_schema_is_refused(make, one_line):
    path = records.save({**make(), "schema": SCHEMA + 1})
    with pytest.raises(LsclError) as caught:
        records.read(path)
    one_line(caught, path, f"has schema {SCHEMA + 1}, this version reads schema {SCHEMA}")


def test_runs_of_uncommitted_code_are_filed_apart(make):
    clean, dirty = records.save(make()), records.save(make(dirty=True))
    assert clean != dirty and dirty.parent.name == "dirty"


def test_all_records_are_the_committed_ones_in_the_order_of_their_names(make):
    names = []
    for values in ({"seed": 2}, {"rank": 2}, {"method": "local_head"}, {}):
        record = make(**values)
        names.append(record["name"])
        path = records.save(record)
    records.save(make(dirty=True, seed=9))
    state = records.folder("smoke") / "state" / "run--1"
    state.mkdir(parents=True)
    (state / "rounds.json").write_text("{}", encoding="utf-8")
    path.with_name(f".{path.name}.123").write_text("half a rec", encoding="utf-8")  # what a killed process leaves
    assert [record["name"] for record in records.all_records("smoke")] == sorted(names)
    assert records.all_records("paper") == []


def test_a_finished_run_is_found_by_its_config(make, smoke):
    assert records.find(smoke(seed=3)) is None
    records.save(make(seed=3))
    assert records.find(smoke(seed=3))["seed"] == 3
    assert records.find(smoke(seed=4)) is None and records.find(smoke(seed=3), dirty=True) is None


def test_where_it_ran_does_not_matter_for_finding_it(make, smoke, tmp_path):
    records.save(make())
    assert records.find(smoke(data_dir=tmp_path, device="cpu", threads=4)) is not None


def test_a_record_of_other_defaults_is_refused(make, smoke, one_line):
    record = make()
    path = records.save({**record, "config": {**record["config"], "lr_cnn": 0.25}})
    with pytest.raises(LsclError) as caught:
        records.find(smoke())
    one_line(caught, path, "made with other defaults", "lr_cnn = 0.25, now 0.001")


def test_a_record_is_found_and_read_whatever_became_a_value_of_the_profile(make, smoke, monkeypatch):
    path = records.save(make(lr=0.25))
    assert records.read(path)["overrides"] == {"image_size": 16, "lr": 0.25}
    monkeypatch.setitem(config.CHOSEN, "smoke", {"fed_lscl": {"lr": 0.25}})
    assert records.find(smoke())["overrides"] == {"image_size": 16}
    assert smoke().name != path.stem and smoke().digest == path.stem[-12:]


def test_a_record_older_than_a_parameter_is_read_as_having_its_default(make, smoke):
    record = make()
    del record["config"]["auxiliary"]
    records.save(record)
    assert records.find(smoke())["overrides"] == {"image_size": 16}


def test_a_record_with_a_parameter_that_is_gone_is_refused(make, one_line):
    record = make()
    path = records.save({**record, "config": {**record["config"], "temperature": 2.0}})
    with pytest.raises(LsclError) as caught:
        records.read(path)
    one_line(caught, path, "config that this version cannot read")


def test_a_run_with_many_overrides_can_be_looked_for(smoke):
    assert records.find(smoke(cnn=",".join(["tiny"] * 99))) is None


def test_records_are_selected_by_entry_or_config(make):
    some = [make(), make(seed=2), make(rank=2, seed=2), make(method="local_head")]
    assert records.select(some, seed=2) == some[1:3]
    assert records.select(some, rank=4, method="fed_lscl") == some[:2]
    assert records.select(some, rank=7) == []


@pytest.fixture
def repository(places, monkeypatch):
    """A git repository with lscl/, pyproject.toml and a committed result."""
    (places / "lscl").mkdir(parents=True)
    for name in ("lscl/a.py", "pyproject.toml", "README.md"):
        (places / name).write_text("1", encoding="utf-8")
    for key, value in {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}.items():
        monkeypatch.setenv(key, value)

    def git(*words):
        return subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=places, check=True, capture_output=True, encoding="utf-8"
        ).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return git


def test_a_clean_tree_is_its_commit(repository):
    code = records.source()
    assert code["commit"] == repository("rev-parse", "HEAD") and code["dirty"] is False and len(code["code_digest"]) == 16


@pytest.mark.parametrize(
    ("name", "dirty"), [("lscl/a.py", True), ("lscl/new.py", True), ("pyproject.toml", True), ("README.md", False), ("results/table.csv", False)]
)
def test_a_tree_is_dirty_if_the_code_was_changed(repository, places, name, dirty):
    (places / name).parent.mkdir(exist_ok=True)
    (places / name).write_text("2", encoding="utf-8")
    assert records.source()["dirty"] is dirty


def test_outside_a_repository_there_is_no_commit(places):
    places.mkdir()
    assert (records.source()["commit"], records.source()["dirty"]) == (None, False)


def test_times_are_what_may_differ_between_equal_runs(make):
    assert set(make()) & set(TIMES) >= {"seconds", "finished", "hardware", "versions", "commit", "dirty"}
    assert not {"accuracy", "per_class", "config", "config_digest", "bytes_up"} & set(TIMES)


def test_differing_names_entries_that_are_other_or_missing_and_no_times():
    one = {"a": 1, "b": [2], "c": 3, "seconds": 4}
    assert records.differing(one, {"a": 1, "b": [5], "seconds": 6, "d": 7}) == ["b", "c"]
    assert records.differing(one, {"a": 1, "b": [2], "c": 3}, ignored=()) == ["seconds"]
