"""Records: every number of a finished run, and nothing of an unfinished or uncommitted one."""

import base64
import hashlib
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from tests_root import ROOT

from lscl.config import experiment
from lscl.data.partition import partition
from lscl.data.sources import load
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.records import MAY_DIFFER, SCHEMA, code_digest, source
from lscl.experiments.sweeps import TUNING_SEED
from lscl.registry import METHODS

COUNTS = [
    [{"correct": [[3, 1, 2], [2, 1, 2], [0, 1, 2]], "total": [3, 3, 3]}] * 3,
    [{"correct": [[3, 1, 2, 1, 1, 1], [2, 1, 2, 0, 0, 1], [0, 1, 2, 0, 0, 0]], "total": [3] * 6}] * 3,
]


@pytest.fixture
def make(smoke):
    """make(dirty, **config values): a record."""

    def record(dirty=False, **values):
        config = smoke(**values)
        facts = {
            "seconds": {"prepare": 0.5, "train": 1.5},
            "bytes_up": [[1, 2, 3]] * 4,
            "bytes_down": [[1, 2, 3]] * 4,
            "trained_parameters": [1, 2, 3],
        }
        facts |= {
            "trained_images": 9,
            "peak_memory_mb": 1,
            "commit": "abc",
            "dirty": dirty,
            "code_digest": "c0de",
            "device": "cpu",
        }
        facts |= {"data_digest": load(config).digest, "partition_digest": partition(config, load(config)).digest}
        facts |= {"server_images_digest": None, "weights_digest": "w1"}
        return records.assemble_record(config, COUNTS, [[1, 2, 3, 4, 5, 6]] * 3, facts)

    return record


def test_the_second_head_is_an_entry_of_its_own_that_old_records_lack(make, smoke, monkeypatch):
    plain = make()
    assert "ridge" not in plain and records.scores_of(plain, "ridge") == {}
    answers = [[{**found, "ridge": found["correct"][1:]} for found in row] for row in COUNTS]
    monkeypatch.setattr("test_records.COUNTS", answers)
    record = records.read_record(records.save(make()))
    assert set(record) - set(plain) == {"ridge", "overrides", "server_images_digest", "system_digest"} - set(plain)
    assert all(record[name] == plain[name] for name in ("accuracy", "config_digest", "name"))
    assert record["ridge"]["accuracy"]["task"] == plain["accuracy"]["seen"]
    assert np.array_equal(records.accuracy(record, "seen", "ridge"), records.accuracy(record, "all"), equal_nan=True)
    assert record["ridge"]["per_class"]["0"]["1"] == plain["per_class"][0][1][1:]


def test_a_run_that_older_code_began_has_no_second_head(make, monkeypatch):
    """Its sums lack the tasks before."""
    later = [{**found, "ridge": found["correct"][:2]} for found in COUNTS[1]]
    monkeypatch.setattr("test_records.COUNTS", [COUNTS[0], later])
    assert "ridge" not in make()


def test_a_second_head_of_the_wrong_size_is_refused(make, monkeypatch, one_line):
    monkeypatch.setattr(
        "test_records.COUNTS", [[{**found, "ridge": found["correct"][:2]} for found in row] for row in COUNTS]
    )
    record = make()
    record["ridge"]["accuracy"]["task"].pop()
    with pytest.raises(LsclError) as caught:
        records.save(record)
    one_line(caught, "accuracy by task, client and task")


def test_a_record_says_what_was_run_and_with_what(make, smoke):
    wanted = smoke(rank=2)
    record = records.read_record(records.save(make(rank=2)))
    assert record["schema"] == SCHEMA and record["config_digest"] == wanted.digest and record["name"] == wanted.name
    assert [record[key] for key in ("method", "dataset", "profile", "seed")] == ["fed_lscl", "folder", "smoke", 42]
    assert record["overrides"] == {"image_size": 16, "rank": 2}
    assert record["config"]["rank"] == 2 and record["config"]["threads"] == 1
    assert set(record["config"]) == {*wanted.values_read(), "threads"} and "mfcl_lr" not in record["config"]
    assert record["bytes_up"] == [[1, 2, 3]] * 4
    assert {"torch", "timm", "numpy", "python"} <= set(record["versions"]) and record["hardware"]["cores"] >= 1


def test_no_path_of_this_machine_is_in_a_record(make, tree):
    assert str(tree) not in json.dumps(make())


def test_accuracies_are_in_percent_by_mask_task_client_and_task_tested(make):
    record = make()
    seen = records.accuracy(record, "seen")
    assert seen.shape == (2, 3, 2)
    assert seen[1, 2] == pytest.approx([500 / 9, 100 / 9], abs=1e-5) and seen[0, 1, 0] == pytest.approx(
        500 / 9, abs=1e-5
    )
    assert np.isnan(seen[0, :, 1]).all() and np.isfinite(seen[1]).all()
    assert records.accuracy(record, "task")[1, 0, 0] == pytest.approx(600 / 9, abs=1e-5)


def test_a_record_survives_being_saved_and_read(make, places):
    record = make()
    path = records.save(record)
    assert path == places / "results" / "runs" / "smoke" / f"{record['name']}.json"
    found = records.read_record(path)
    assert found == {**json.loads(json.dumps(record)), "overrides": {"image_size": 16}, "system_digest": None}
    assert np.array_equal(records.accuracy(found, "all"), records.accuracy(record, "all"), equal_nan=True)
    json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"method": "fed_lscl"}', "\x00\x00"])
def test_a_damaged_record_is_one_line(tmp_path, content, one_line):
    path = tmp_path / "record.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(LsclError) as caught:
        records.read_record(path)
    one_line(caught, f"cannot read the record {path}", "move it away to run again")


def test_a_missing_record_is_one_line(tmp_path, one_line):
    with pytest.raises(LsclError) as caught:
        records.read_record(tmp_path / "none.json")
    one_line(caught, f"cannot read the record {tmp_path / 'none.json'}")


def test_a_record_of_another_schema_is_refused(make, one_line):
    path = records.save(make())
    path.write_text(json.dumps({**make(), "schema": SCHEMA + 1}))
    with pytest.raises(LsclError) as caught:
        records.read_record(path)
    one_line(caught, path, f"has schema {SCHEMA + 1}, this version reads schema {SCHEMA}", "move it away to run again")


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


def test_where_its_images_lie_does_not_matter_for_finding_it(make, smoke, tree, tmp_path):
    records.save(make())
    shutil.copytree(tree, tmp_path / "moved")
    assert records.find(smoke(data_dir=tmp_path / "moved", device="cpu")) is not None


def test_a_record_of_other_defaults_is_refused(make, smoke, one_line):
    record = make()
    path = records.save({**record, "config": {**record["config"], "lr_cnn": 0.25}})
    with pytest.raises(LsclError) as caught:
        records.find(smoke())
    one_line(caught, path, "made with other defaults", "lr_cnn = 0.25, now 0.001")


def test_a_record_is_found_and_read_whatever_became_a_value_of_the_profile(make, smoke, monkeypatch):
    path = records.save(make(lr=0.25))
    assert records.read_record(path)["overrides"] == {"image_size": 16, "lr": 0.25}
    monkeypatch.setattr(METHODS["fed_lscl"], "sizes", {"smoke": {"lr": 0.25}})
    assert records.find(smoke())["overrides"] == {"image_size": 16}
    assert smoke().name != path.stem and smoke().digest == path.stem[-12:]


def test_a_record_older_than_a_parameter_is_read_as_having_its_default(make, smoke):
    record = make()
    del record["config"]["auxiliary"]
    records.save(record)
    assert records.find(smoke())["overrides"] == {"image_size": 16}


def test_a_record_with_a_parameter_that_is_gone_is_refused(make, one_line):
    record = make()
    path = records.save(record)
    path.write_text(json.dumps({**record, "config": {**record["config"], "temperature": 2.0}}))
    with pytest.raises(LsclError) as caught:
        records.read_record(path)
    one_line(caught, path, "config that this version cannot read", "move it away to run again")


def test_a_run_with_many_overrides_can_be_looked_for(smoke):
    assert records.find(smoke(cnn=",".join(["tiny"] * 99))) is None


def test_records_are_selected_by_entry_or_config(make):
    some = [make(), make(seed=2), make(rank=2, seed=2), make(method="local_head")]
    assert records.select(some, seed=2) == some[1:3]
    assert records.select(some, rank=4, method="fed_lscl") == some[:2]
    assert records.select(some, rank=7) == []


# ---- one reader


def emptied(record, *keys):
    """The innermost list or dictionary on the way of `keys`, whose last one is returned with it."""
    for key in keys[:-1]:
        record = record[key]
    return record, keys[-1]


def put_in(*keys, value):
    def change(record):
        place, key = emptied(record, *keys)
        place[key] = value

    return change


def taken_out(*keys):
    def change(record):
        place, key = emptied(record, *keys)
        del place[key]

    return change


DAMAGE = {
    **{f"no {key}": taken_out(key) for key in (
        "method", "dataset", "profile", "seed", "name", "config", "config_digest", "accuracy", "per_class",
        "data_digest", "partition_digest", "weights_digest", "bytes_up", "bytes_down", "trained_parameters",
        "trained_images", "seconds", "peak_memory_mb", "commit", "dirty",
        "code_digest", "finished", "hardware", "versions",
    )},
    "a method as a number": put_in("method", value=3),
    "another method": put_in("method", value="fedavg"),
    "an unknown method": put_in("method", value="magic"),
    "a seed as text": put_in("seed", value="42"),
    "another seed": put_in("seed", value=7),
    "dirty as a number": put_in("dirty", value=0),
    "a name that is a path": put_in("name", value="../../evil"),
    "a hidden name": put_in("name", value=".hidden"),
    "a name with a NUL": put_in("name", value="a\x00b"),
    "a name of another run": put_in("name", value="glyphs--fed_lscl--s42--0123456789ab"),
    "a name as a list": put_in("name", value=["a"]),
    "no mask": taken_out("accuracy", "seen"),
    "another mask": put_in("accuracy", "other", value=[]),
    "a ragged accuracy": taken_out("accuracy", "seen", 1, 2, 0),
    "an accuracy without a task": taken_out("accuracy", "task", 1),
    "an accuracy without a client": taken_out("accuracy", "task", 1, 0),
    "an accuracy of 50,000 %": put_in("accuracy", "seen", 1, 0, 0, value=50_000.0),
    "a negative accuracy": put_in("accuracy", "seen", 1, 0, 0, value=-1.0),
    "an accuracy as text": put_in("accuracy", "seen", 1, 0, 0, value="50"),
    "an accuracy of a task to come": put_in("accuracy", "seen", 0, 0, 1, value=50.0),
    "an accuracy that is true": put_in("accuracy", "seen", 1, 0, 0, value=True),
    "no accuracy at all": put_in("accuracy", value=None),
    "a class without a mask": taken_out("per_class", "0", "1", 0),
    "a client without a class": taken_out("per_class", "0", "1"),
    "a client too many": put_in("per_class", "3", value={}),
    "a client without a number": put_in("per_class", "x", value={}),
    "a class of 101 %": put_in("per_class", "0", "1", value=[101, 0, 0]),
    "bytes of a client missing": taken_out("bytes_up", 0, 0),
    "bytes of a round missing": taken_out("bytes_down", 0),
    "negative bytes": put_in("bytes_up", 0, 0, value=-1),
    "half a byte": put_in("bytes_up", 0, 0, value=0.5),
    "too many bytes": put_in("bytes_up", 0, 0, value=2**70),
    "faults of one round": put_in("faults", value=[["late"]]),
    "parameters of a client missing": taken_out("trained_parameters", 0),
    "a digest that is markup": put_in("data_digest", value="<script>"),
    "a commit that is a number": put_in("commit", value=1),
    "a commit on two lines": put_in("commit", value="abc\nabc"),
    "seconds that are a list": put_in("seconds", value=[1.0]),
    "no seconds of the preparation": taken_out("seconds", "prepare"),
    "no seconds at all": put_in("seconds", value={}),
    "a config without threads": taken_out("config", "threads"),
    "negative seconds": put_in("seconds", "train", value=-1),
    "hardware without a processor": taken_out("hardware", "cpu"),
    "hardware as text": put_in("hardware", value="fast"),
    "a processor with a line break": put_in("hardware", "cpu", value="a\nb"),
    "a version as a number": put_in("versions", "torch", value=2.0),
    "a config that is a list": put_in("config", value=[]),
    "a wrong value in the config": put_in("config", "rank", value=-1),
    "other clients in the config": put_in("config", "clients", value=4),
    "an unknown device": put_in("device", value="tpu"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_record_that_is_none_is_one_line(make, damage, one_line):
    path = records.save(make())
    record = json.loads(path.read_text())
    DAMAGE[damage](record)
    path.write_text(json.dumps(record))
    for call in (lambda: records.read_record(path), lambda: records.all_records("smoke")):
        with pytest.raises(LsclError) as caught:
            call()
        one_line(caught, "record", path)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("damage", [name for name in DAMAGE if "name" not in name])
def test_what_could_not_be_read_is_not_written(make, damage, one_line):
    record = json.loads(json.dumps(make()))
    folder, name = records.folder("smoke"), record["name"]
    DAMAGE[damage](record)
    with pytest.raises(LsclError) as caught:
        records.write_record({**record, "name": name}, folder)
    one_line(caught, "record", folder)
    assert not folder.exists()


@pytest.mark.parametrize("schema", ["1", True, 1.5, [1], None, 2, {"1": 1}])
def test_only_the_number_of_the_schema_will_do(make, schema, one_line):
    path = records.save(make())
    path.write_text(json.dumps({**make(), "schema": schema}))
    with pytest.raises(LsclError) as caught:
        records.read_record(path)
    one_line(caught, path, f"has schema {schema!r}", f"reads schema {SCHEMA}")


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a":' * 100_000, b"\x00" * 10, b"\xff\xfe",
     b'{"schema": 1, "x": NaN}', b'{"schema": 1, "x": Infinity}', b"1" * 10_000,
     b'{"schema": 1, "x": "\\ud800"}', b'"schema"', b"true", b'{"schema": 1}'],
)  # fmt: skip
def test_whatever_lies_in_a_records_file_is_one_line(tmp_path, content, one_line):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(LsclError) as caught:
        records.read_record(path)
    one_line(caught, path)


PLACES = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a link to nothing": lambda path: os.symlink("nowhere", path),
    "a link to itself": lambda path: os.symlink(path, path),
    "a link to a device": lambda path: os.symlink("/dev/zero", path),
    "a huge file": lambda path: (path.touch(), os.truncate(path, records.LARGEST_FILE + 1)),
}


@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_file_in_a_records_place_is_one_line(make, smoke, kind, one_line):
    path = records.save(make())
    path.unlink()
    PLACES[kind](path)
    for call in (
        lambda: records.read_record(path),
        lambda: records.all_records("smoke"),
        lambda: records.find(smoke()),
    ):
        with pytest.raises(LsclError) as caught:
            call()
        one_line(caught, f"cannot read the record {path}")


def test_a_file_that_was_renamed_is_one_line(make, smoke, one_line):
    path = records.save(make())
    other = path.rename(path.with_name(f"copy-{path.name}"))
    for call in (
        lambda: records.read_record(other),
        lambda: records.all_records("smoke"),
        lambda: records.find(smoke()),
    ):
        with pytest.raises(LsclError) as caught:
            call()
        one_line(caught, other, f"says that its name is {path.stem}")


def test_a_record_in_the_folder_of_others_is_one_line(make, smoke, one_line):
    dirty = records.save(make(dirty=True))
    clean = records.folder("smoke") / dirty.name
    clean.write_bytes(dirty.read_bytes())
    for call in (lambda: records.all_records("smoke"), lambda: records.find(smoke())):
        with pytest.raises(LsclError) as caught:
            call()
        one_line(caught, clean, "from uncommitted code", dirty.parent)
    clean.unlink()
    other = records.folder("mini") / dirty.name
    other.parent.mkdir()
    other.write_text(json.dumps(make()))
    with pytest.raises(LsclError) as caught:
        records.all_records("mini")
    one_line(caught, other, "of profile smoke")


def test_of_uncommitted_code_only_what_this_very_code_made_is_found(make, smoke):
    records.save(make(dirty=True))
    assert (
        records.find(smoke(), True, "c0de")
        and records.find(smoke(), True)
        and records.find(smoke(), True, "0ther") is None
    )


def committed():
    return sorted((ROOT / "results" / "runs").glob("*/*.json"))


def test_every_committed_record_is_read_has_its_name_and_is_found(monkeypatch):
    """With threads, device and folder left open; threads that are other ones are refused."""
    monkeypatch.setenv("LSCL_ROOT", str(ROOT))
    for path in committed():
        raw, record = json.loads(path.read_text()), records.read_record(path)
        config = experiment(**{**record["config"], "threads": None})
        assert (
            config.digest == raw["config_digest"] == record["config_digest"]
            and raw["name"] == path.stem == record["name"]
        )
        assert (
            config.name == path.stem or raw["seed"] == TUNING_SEED
        )  # what the tuning chose became the profile's value
        assert {key: record[key] for key in raw if key != "config"} == {key: raw[key] for key in raw if key != "config"}
        assert raw["config"].items() <= record["config"].items()
        assert records.find(config) == record
        if record["device"] == "cpu":  # the threads of a run on a GPU decide nothing
            with pytest.raises(LsclError, match="threads"):
                records.find(config.model_copy(update={"threads": raw["config"]["threads"] + 1}))
    assert committed()


# ---- which code


@pytest.fixture
def checkout(tmp_path):
    """A folder with a package lscl/ and pyproject.toml, in no repository; -> the package."""
    package = tmp_path / "clone" / "lscl"
    (package / "part").mkdir(parents=True)
    for name in (
        "__init__.py",
        "a.py",
        "part/b.json",
        "publish/a.py",
        "results/a.py",
        "../pyproject.toml",
        "../README.md",
    ):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text("1")
    return package


def git_in(folder):
    """git(*words): a command of git in that folder, by nobody in particular."""

    def git(*words):
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "safe.directory=*", *words]
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()

    return git


@pytest.fixture
def repository(checkout, monkeypatch):
    """The same in a repository with one commit; -> git(*words)."""
    for key in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(key, "/dev/null")
    git = git_in(checkout.parent)
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return git


def test_a_clean_tree_is_its_commit(repository, checkout):
    code = source(checkout)
    assert (
        code["commit"] == repository("rev-parse", "HEAD") and code["dirty"] is False and len(code["code_digest"]) == 16
    )


CHANGES = {
    "lscl/a.py": True, "lscl/new.py": True, "lscl/part/weights.safetensors": True,
    "pyproject.toml": True, "README.md": False,
    "results/table.csv": False, "lscl/__pycache__/a.pyc": False, "lscl/.a.py.swp": False, "lscl/publish/a.py": False,
    "lscl/publish/new.py": False, "lscl/results/a.py": False, "lscl/part/results/a.py": True,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_tree_is_dirty_if_the_code_was_changed(repository, checkout, name):
    path, before = checkout.parent / name, source(checkout)["code_digest"]
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("2")
    assert source(checkout)["dirty"] is CHANGES[name]
    assert (source(checkout)["code_digest"] != before) is (CHANGES[name] and name != "pyproject.toml")


HIDDEN = {
    "ignored": lambda git, top: (
        (top / ".gitignore").write_text("lscl/new.py"),
        (top / "lscl" / "new.py").write_text("2"),
    ),
    "excluded": lambda git, top: (
        (top / ".git" / "info" / "exclude").write_text("*.py"),
        (top / "lscl" / "new.py").write_text("2"),
    ),
    "assumed unchanged": lambda git, top: (
        git("update-index", "--assume-unchanged", "lscl/a.py"),
        (top / "lscl" / "a.py").write_text("2"),
    ),
    "skipped": lambda git, top: (
        git("update-index", "--skip-worktree", "lscl/a.py"),
        (top / "lscl" / "a.py").write_text("2"),
    ),
    "staged": lambda git, top: ((top / "lscl" / "a.py").write_text("2"), git("add", ".")),
    "deleted": lambda git, top: (top / "lscl" / "a.py").unlink(),
    "of the same size and time": lambda git, top: same_time(top / "lscl" / "a.py"),
}


def same_time(path):
    about = path.stat()
    path.write_text("2")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("how", HIDDEN)
def test_a_change_that_git_does_not_show_is_one(repository, checkout, how):
    HIDDEN[how](repository, checkout.parent)
    assert source(checkout)["dirty"] is True


def test_lscl_root_and_gits_variables_do_not_say_which_code_runs(repository, checkout, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("1")
    git = git_in(other)
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "other")
    commit = repository("rev-parse", "HEAD")
    monkeypatch.setenv("LSCL_ROOT", str(other))
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    monkeypatch.chdir(other)
    assert (source(checkout)["commit"], source(checkout)["dirty"]) == (commit, False)


def test_a_clone_of_another_owner_is_read(repository, checkout, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout.parent, check=True, capture_output=True)
    assert (source(checkout)["commit"], source(checkout)["dirty"]) == (repository("rev-parse", "HEAD"), False)
    (checkout / "a.py").write_text("2")
    assert source(checkout)["dirty"] is True


def test_outside_a_repository_nothing_is_known(checkout):
    assert (source(checkout)["commit"], source(checkout)["dirty"]) == (None, True)


def test_without_git_nothing_is_known(repository, checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (source(checkout)["commit"], source(checkout)["dirty"]) == (None, True)


def test_a_repository_without_a_commit_says_nothing(checkout):
    git_in(checkout.parent)("init", "-q")
    assert (source(checkout)["commit"], source(checkout)["dirty"]) == (None, True)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package lscl in a site-packages, with the RECORD of its distribution, in a repository that ignores it."""
    site = tmp_path / "project" / "venv" / "site-packages"
    (site / "lscl" / "part").mkdir(parents=True)
    (site / "fed_lscl-0.1.0.dist-info").mkdir()
    (site / "fed_lscl-0.1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fed-lscl\nVersion: 0.1.0\n"
    )
    lines = []
    for name in ("lscl/__init__.py", "lscl/part/b.json"):
        (site / name).write_text("1")
        found = base64.urlsafe_b64encode(hashlib.sha256(b"1").digest()).decode().rstrip("=")
        lines.append(f"{name},sha256={found},1\n")
    (site / "fed_lscl-0.1.0.dist-info" / "RECORD").write_text("".join(lines) + "fed_lscl-0.1.0.dist-info/RECORD,,\n")
    (tmp_path / "project" / ".gitignore").write_text("venv")
    git = git_in(tmp_path / "project")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "of the project")
    monkeypatch.syspath_prepend(str(site))
    return site / "lscl"


def test_an_installed_package_has_no_commit_and_is_clean_as_it_was_packed(installed):
    assert (source(installed)["commit"], source(installed)["dirty"]) == (None, False)


@pytest.mark.parametrize("name", ["__init__.py", "part/b.json", "new.py"])
def test_an_installed_package_that_was_changed_is_dirty(installed, name):
    (installed / name).write_text("2")
    assert (source(installed)["commit"], source(installed)["dirty"]) == (None, True)


def test_an_installed_package_that_lost_its_list_of_files_is_dirty(installed):
    (installed.parent / "fed_lscl-0.1.0.dist-info" / "RECORD").unlink()
    assert source(installed)["dirty"] is True


def test_the_digest_of_the_code_is_that_of_all_its_files(repository, checkout):
    first = source(checkout)["code_digest"]
    for name in ("a.py", "part/b.json", "part/weights.safetensors"):
        (checkout / name).write_text("3")
        assert source(checkout)["code_digest"] != first
        first = source(checkout)["code_digest"]
    (checkout / "__pycache__").mkdir()
    (checkout / "__pycache__" / "a.pyc").write_text("3")
    assert source(checkout)["code_digest"] == first


def test_the_parts_that_only_show_results_may_be_lost_too(repository, checkout):
    for name in ("publish", "results"):
        (checkout / name / "a.py").unlink()
    assert source(checkout)["dirty"] is False


def test_the_digest_of_a_notebooks_code_counts_the_parts_that_it_does_not_leave_out(checkout):
    first = code_digest(("publish",), checkout)
    (checkout / "publish" / "a.py").write_text("2")
    assert code_digest(("publish",), checkout) == first
    (checkout / "results" / "a.py").write_text("2")
    assert code_digest(("publish",), checkout) != first


def test_times_are_what_may_differ_between_equal_runs(make):
    assert set(make()) & set(MAY_DIFFER) >= {"seconds", "finished", "hardware", "versions", "commit", "dirty"}
    assert not {"accuracy", "per_class", "config", "config_digest", "bytes_up"} & set(MAY_DIFFER)


def test_differing_names_entries_that_are_other_or_missing_and_no_times():
    one = {"a": 1, "b": [2], "c": 3, "seconds": 4}
    assert records.differing_entries(one, {"a": 1, "b": [5], "seconds": 6, "d": 7}) == ["b", "c"]
    assert records.differing_entries(one, {"a": 1, "b": [2], "c": 3}, ignored=()) == ["seconds"]


def test_the_code_of_a_run_is_looked_for_in_the_whole_package():
    assert records.PACKAGE == ROOT / "lscl"
