"""Configs from records and YAML files, and back."""

import pytest
import yaml
from tests_root import compared

from lscl import cli
from lscl.config import PROFILES, experiment, fields
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.config_files import (
    change_config,
    command_of,
    config_from,
    config_yaml,
    different_values,
    origins_of_values,
    parse_changes,
    parse_texts,
    read_config,
    write_config,
)
from lscl.experiments.run import run
from lscl.registry import METHODS


def call(*words):
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    return end.value.code


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("profile", ["smoke", "full", "paper"])
def test_a_config_comes_back_from_its_yaml(tmp_path, method, profile):
    config = experiment(method=method, profile=profile, dataset="cifar100", seed=7, threads=2, device="cpu")
    found, lines = config_from(write_config(tmp_path / "one.yaml", config), {})
    assert found == config and found.digest == config.digest and lines == []


def test_a_yaml_keeps_the_values_of_its_day(tmp_path, monkeypatch):
    config = experiment(profile="smoke", rank=2)
    path = write_config(tmp_path / "one.yml", config)
    monkeypatch.setitem(PROFILES["smoke"], "batch", 4)
    assert experiment(profile="smoke", rank=2).digest != config.digest == config_from(path, {})[0].digest


def test_a_yaml_that_a_run_writes_runs_again_to_an_equal_record(tree, tmp_path, monkeypatch, capsys):
    """A folder with blanks and letters beyond ASCII in its name; values that are given; threads of its own."""
    images = tmp_path / "möbel und stühle"
    images.symlink_to(tree)
    words = ("--profile", "smoke", "--dataset", "folder", "--image-size", 16, "--data-dir", images)
    written = tmp_path / "run.yaml"
    own = ("--method", "local_lora", "--rank", 2, "--lr", "1e-3", "--threads", 2)
    assert call("run", *words, *own, "--write-config", written) == 0
    (first,) = records.all_records("smoke")
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "elsewhere"))
    assert call("run", "--from", written) == 0
    (again,) = records.all_records("smoke")
    assert compared(again) == compared(first) and again["finished"] >= first["finished"]
    assert yaml.safe_load(written.read_text("utf-8"))["threads"] == 2
    capsys.readouterr()


def test_a_record_is_read_by_its_own_config(smoke, tree):
    record = run(smoke(method="local_head", lr=0.01), quiet=True)
    path = records.folder("smoke") / f"{record['name']}.json"
    config, _ = config_from(path, {"data_dir": tree})
    assert run(config, quiet=True) == record and config.device == "cpu"


def test_every_value_says_where_it_comes_from():
    found = origins_of_values(experiment(profile="smoke", method="local_lora", lr=0.5))
    assert (found["lr"], found["clients"], found["dirichlet"]) == ("given", "profile", "default")
    text = config_yaml(experiment(profile="smoke", method="local_lora", lr=0.5))
    assert text.index("lr: 0.5") < text.index("all other values") < text.index("clients: 3  # profile")


def test_another_system_gets_the_values_of_its_own_profile():
    base = experiment(method="fed_lscl", profile="mini", dataset="cifar100", seed=7, rank=2, clients=4)
    values, lines = change_config(base.values_read(), {"method": "fedavg"})
    config = experiment(**values)
    plain = experiment(method="fedavg", profile="mini", dataset="cifar100", seed=7, clients=4)
    assert config == plain and len(lines) == 1 and "clients = 4" in lines[0] and "do" in lines[0] and "rank" in lines[0]


def test_another_profile_keeps_what_the_file_itself_changes():
    base = experiment(method="fed_lscl", profile="smoke", rank=2)
    values, _ = change_config(base.values_read(), {"profile": "full", "rank": "8"})
    assert experiment(**values) == experiment(method="fed_lscl", profile="full", rank=8)


def test_a_value_that_is_changed_leaves_all_others(tmp_path):
    path = write_config(tmp_path / "one.yaml", experiment(profile="smoke", rank=2))
    config, lines = config_from(path, {"lr": "0.5"})
    assert config == experiment(profile="smoke", rank=2, lr=0.5) and lines == []


def test_texts_of_the_command_line():
    assert parse_changes(["lr = 0.5", "stop-after=None", "continual=none"]) == {
        "lr": "0.5",
        "stop_after": None,
        "continual": "none",
    }
    assert parse_texts({"images_per_class": "none", "clients": 3}) == {"images_per_class": None, "clients": 3}


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["lr"], "give name=value"),
        (["=3"], "give name=value"),
        (["lrr=3"], "did you mean 'lr'?"),
        (["lr=1", "lr=2"], "lr: it is given twice"),
        (["stop-after=1", "stop_after=2"], "stop_after: it is given twice"),
    ],
)
def test_a_change_that_is_none(pairs, words, one_line):
    with pytest.raises(LsclError) as caught:
        parse_changes(pairs)
    one_line(caught, words)


BAD_FILES = {
    "gone.yaml": (None, "there is no such file"),
    "gone.json": (None, "gone.json"),
    "notes.txt": ("method: fedavg", "give a record (.json) or a YAML file"),
    "none": ("method: fedavg", "give a record"),
    "empty.yaml": ("", "it must have lines such as"),
    "list.yaml": ("- method", "it must have lines such as"),
    "word.yaml": ("fed_lscl", "it must have lines such as"),
    "broken.yaml": ("method: [", "no valid YAML"),
    "twice.yaml": ("lr: 0.1\nmethod: fedavg\nlr: 0.2\n", "lr stands there twice"),
    "binary.yaml": (b"\xff\xfe\x00", "cannot read"),
    "unknown.yaml": ("method: fedavg\nlearning_rate: 0.1", "unknown parameter 'learning_rate'"),
    "number.yaml": ("1: 2", "unknown parameter '1'"),
    "nested.yaml": ("method: fedavg\nlr: [0.1, 0.2]", "lr is a list, not a single value"),
    "mapping.yaml": ("lr: {a: 1}", "lr is a dict"),
    "hexadecimal.yaml": ("seed: 0x10", "0x10 is no plain number"),
    "octal.yaml": ("seed: 010", "010 is no plain number"),
    "clock.yaml": ("seed: 1:30", "1:30 is no plain number"),
    "clock_with_fraction.yaml": ("lr: 1:30.5", "1:30.5 is no plain number"),
    "digits.yaml": ("seed: " + "9" * 6000, "is too large a number"),
    "true.yaml": ("clients: true", "true and false are no values of it"),
    "date.yaml": ("seed: 2026-01-01", "seed is a date"),
    "set.yaml": ("lr: !!set {a}", "lr is a set"),
    "tag.yaml": ("lr: !!python/object/apply:os.system [ls]", "no valid YAML"),
    "bomb.yaml": (
        "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk")),
        "unknown parameter",
    ),
    "foreign.yaml": ("method: fedavg\nrank: 3", "rank is an option of"),
    "value.yaml": ("profile: smoke\nlr: fast", "lr = 'fast'"),
    "big.yaml": ("#" * 2**20 + "\nmethod: fedavg", "a config has at most"),
    "record.json": ('{"method": "fedavg"}', "KeyError"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_config_is_one_line(tmp_path, name, one_line):
    content, words = BAD_FILES[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LsclError) as caught:
        config_from(path, {})
    one_line(caught, words, name)


def test_a_folder_is_no_config(tmp_path, one_line):
    (tmp_path / "one.yaml").mkdir()
    for act in (lambda: read_config(tmp_path / "one.yaml"), lambda: write_config(tmp_path / "one.yaml", experiment())):
        with pytest.raises(LsclError) as caught:
            act()
        one_line(caught, "one.yaml")


def test_what_differs_between_two_runs():
    one, other = (experiment(method=name, profile="smoke").values_read() for name in ("local_head", "local_lora"))
    found = {name: (here, there) for name, here, there in different_values(one, other)}
    assert found["method"] == ("local_head", "local_lora") and found["rank"] == ("–", "4") and "clients" not in found


def test_the_command_of_a_record_makes_it(smoke, capsys):
    record = run(smoke(method="local_head", lr=0.01, images_per_class=None), quiet=True)
    assert "--image-size 16" in command_of(record) and "--images-per-class none" in command_of(record)
    named = {"--" + name.replace("_", "-") for name in fields()}
    assert {word for word in command_of(record).split() if word.startswith("--")} <= named


def test_the_commands_of_configs(tmp_path, capsys):
    path = tmp_path / "one.yaml"
    assert call("config", "save", path, "--profile", "smoke", "--set", "rank=2") == 0
    capsys.readouterr()
    assert call("config", "show", "--from", path) == 0
    assert capsys.readouterr().out == path.read_text("utf-8")
    assert call("config", "diff", path) == 0 and capsys.readouterr().out == "rank: 2 | 4\n"
    assert call("config", "diff", path, path) == 0 and capsys.readouterr().out == "no value differs\n"
    assert call("run", "--from", path, "--set", "rank=3", "--rank", 3) == 2
    assert "rank is given twice" in capsys.readouterr().err
    assert call("run", "--profile", "smoke", "--write-config", tmp_path / "one.json") == 2
    assert "a config ends in .yaml or .yml" in capsys.readouterr().err
    assert records.all_records("smoke") == []
