"""Bad commands, files, places and sizes end in one line on stderr and exit code 2; a bug keeps its traceback."""

import argparse
import json
import os

import numpy as np
import pandas as pd
import pytest
import torch
from made_records import record
from test_cli import call
from tests_root import ROOT, measured

from lscl import cli, paths, results
from lscl.errors import LsclError, MissingFile
from lscl.experiments import doctor, records
from lscl.publish import (
    benchmark_pages,
    build,
    first_screen,
    freshness,
    gpu_pages,
    hardware,
    numbers,
    pages,
    readme,
    reference,
    verified,
)
from lscl.results import frames, markdown, measurements, published, readings
from lscl.results.tables import score_table

SMOKE = ("--profile", "smoke")
COMMANDS = [
    (["rnu"], "No such command 'rnu'"),
    (["data", "sho"], "No such command 'sho'"),
    (["run", "--rankk", "3"], "--rank"),
    (["run", "--rank"], "requires an argument"),
    (["run", "extra"], "unexpected extra argument"),
    *(
        (["run", *SMOKE, f"--{name}", value], f"{name.replace('-', '_')} = '{value}'")
        for name, value in (
            ("batch", "1" + "0" * 24),
            ("rank", "100000"),
            ("features", "1e24"),
            ("o2d-lambda", "1e308"),
            ("o2d-lambda", "1e-320"),
            ("lr", "1e38"),
            ("lr", "1e-40"),
            ("mfcl-latent", "1" + "0" * 24),
            ("l2p-length", "100000000"),
            ("glfc-memory", "-1"),
            ("target-width", "0x10"),
            ("min-share", "1"),
            ("seed", "none-such"),
            ("image-size", "99999"),
            ("normalize", ""),
            ("cnn", ""),
        )
    ),
    (["run", *SMOKE, "--foundation", "x" * 201], "at most 200 characters"),
    (["run", *SMOKE, "--dataset", "../x"], "unknown data set '../x'"),
    (["run", *SMOKE, "--method", ""], "unknown method ''"),
    (["run", "--profile", "x" * 5000], "unknown profile"),
    (["run", *SMOKE, "--weights", "/dev/zero"], "not a regular file"),
    (["run", *SMOKE, "--weights", "."], "not a regular file"),
    (["run", *SMOKE, "--dataset", "folder", "--data-dir", "x" * 3000], "lscl:"),
    *(
        (["sweep", name, "--profile", "xx", "--list"], "unknown profile 'xx'")
        for name in ("table1", "ablations", "blocks", "buffers", "cnns", "regimes", "larger_rate")
    ),
    (["sweep", "blocks", *SMOKE, "--seeds", ""], "seeds = ''"),
    (["sweep", "blocks", *SMOKE, "--seeds", "9" * 30, "--list"], "seed = 9999"),
    (["sweep", "blocks", *SMOKE, "--dataset", "no"], "unknown data set 'no'"),
    (["sweep", "table1", *SMOKE, "--methods", "no"], "unknown method 'no'"),
    (["sweep", "table1", *SMOKE, "--task-index", "-1"], "--task-index"),
    (["sweep", "table1", *SMOKE, "--task-index", "7", "--task-count", "7"], "task_index = 7"),
    (["sweep", "table1", *SMOKE, "--task-count", "0"], "--task-count"),
    (["plan", "blocks", "--profile", "xx"], "unknown profile 'xx'"),
    (["plan", "bloks", *SMOKE], "did you mean 'blocks'?"),
    (["plan", *SMOKE, "--card", "t5"], "did you mean 't4'?"),
    (["plan", *SMOKE, "--methods", "no"], "unknown method 'no'"),
    (["plan", "--profile", "paper", "--dataset", "glyphs"], "no run of the set"),
    (["plan", *SMOKE, "--seeds", "1,2,zz"], "seeds = '1,2,zz'"),
    (["plan", *SMOKE, "--methods", "fed_ncm", "--rank", "9"], "rank is an option of fed_lscl"),
    (["plan", *SMOKE, "--data-dir", "no"], "data_dir = no: the images of glyphs come with the package"),
    (["plan", "tune", *SMOKE, "--seeds", "1"], "seeds = 1: the tuning plays on a seed of its own"),
    (["sweep", "blocks", *SMOKE, "--methods", "fed_ncm", "--list"], "blocks: no run of this set is of fed_ncm"),
    (["sweep", "tune", *SMOKE, "--methods", "fed_ncm", "--list"], "tune: no run of this set is of fed_ncm"),
    (["sweep", "tune", *SMOKE, "--seeds", "1,2", "--list"], "seeds = 1,2: the tuning plays on a seed of its own"),
    (["sweep", *SMOKE, "--methods", ",", "--list"], "methods = ','"),
    (["sweep", *SMOKE, "--data-dir", "no", "--list"], "data_dir = no: the images of glyphs come with the package"),
    (["privacy", *SMOKE, "--methods", "local_head", "--list"], "methods = local_head: clients that send nothing"),
    (["privacy", *SMOKE, "--data-dir", "no", "--list"], "data_dir = no: the images of glyphs come with the package"),
    (["verify", "--privacy", "--cell", "a/b/c/1"], "cell = a/b/c/1: "),
    (["verify", "--privacy", "--weights", "no"], "weights = no: "),
    (["verify", "--cell", "a/b/c/1", "--sample", "1"], "sample = 1: "),
    (["verify", "--cell", "a/b/c/1", "--seed", "0"], "seed = 0: "),
    (["verify", "--cell", "a/b/c/1", "--dataset", "glyphs"], "dataset = glyphs: "),
    (["run", *SMOKE, "--data-dir", "no"], "data_dir = no: the images of glyphs come with the package"),
    (["run", *SMOKE, "--set", "data_dir=no"], "data_dir = no: the images of glyphs come with the package"),
    (["config", "show", *SMOKE, "--data-dir", "no"], "data_dir = no: the images of glyphs come with the package"),
    (["data", "show", *SMOKE, "--data-dir", "no"], "data_dir = no: the images of glyphs come with the package"),
    *((["data", "show", *SMOKE, f"--{name}", "3"], f"--{name}") for name in ("rank", "epochs", "device", "method")),
    *((["probe", *SMOKE, f"--{name}", "3"], f"--{name}") for name in ("clients", "rank", "device", "images-per-class")),
    (["table", "--profile", "xx"], "unknown profile 'xx'"),
    (["table", "--dataset", "cifar10"], "did you mean 'cifar100'?"),
    (["table", "--dataset", "glyphs"], "no records of profile mini on glyphs"),
    (["verify", "--profile", "xx"], "unknown profile 'xx'"),
    (["verify", "--dataset", "no"], "unknown data set 'no'"),
    (["verify", "--sample", "0"], "--sample"),
    (["verify", "--sample", "x"], "--sample"),
    (["verify", "--seed", "-1"], "--seed"),
    (["verify"], "no records of profile mini to verify"),
    (["data", "show", "--profile", "xx"], "unknown profile 'xx'"),
    (["probe", *SMOKE, "--per-class", "0"], "per_class = 0"),
    (["probe", *SMOKE, "--per-class", "99999999"], "99999999 per class were asked for"),
    (["reproduce", "smoek"], "did you mean 'smoke'?"),
    (["reproduce", "demo", "--weights", "no/such.npz"], "no/such.npz"),
    (["node", "--client", "-1", "--link", "a:1", "--authority", "a", "--key", "b"], "client = -1"),
    (["node"], "Missing option"),
]


@pytest.mark.parametrize(("words", "says"), COMMANDS, ids=[" ".join(words)[:60] for words, _ in COMMANDS])
def test_a_wrong_command_is_one_line(capsys, words, says):
    code, _, err = call(capsys, *words)
    assert code == 2 and err.startswith("lscl: ") and len(err.splitlines()) == 1, err
    assert says in err and len(err) < 3500


@pytest.mark.parametrize("words", [[], ["data"]], ids=str)
def test_no_command_shows_the_commands(capsys, words):
    code, out, err = call(capsys, *words)
    assert code == 2 and "Usage: lscl" in out + err and "Traceback" not in err


# ---- what values that are allowed one by one may come to

FAILURES = [
    (MemoryError(), "out of memory: lower batch"),
    (np.linalg.LinAlgError("Singular matrix"), "raise o2d_lambda"),
    (torch.linalg.LinAlgError("linalg.cholesky: not positive-definite"), "raise o2d_lambda"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory: lower batch"),
    (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1]\n"
            ". DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        "lower batch",
    ),
    (RuntimeError("Storage size calculation overflowed with sizes=[1, 2]"), "lower batch"),
    (ValueError("Maximum allowed dimension exceeded"), "lower batch"),
    (OverflowError("int too large to convert to float"), "nearer to their defaults"),
    (ZeroDivisionError("division by zero"), "nearer to their defaults"),
    (FloatingPointError("overflow"), "nearer to their defaults"),
    (RecursionError("maximum recursion depth exceeded"), "damaged file"),
    (ValueError("embedded null byte"), "NUL byte"),
    (PermissionError(13, "Permission denied", "/a/b"), "Permission denied: '/a/b'"),
]


@pytest.mark.parametrize(("failure", "says"), FAILURES, ids=[type(failure).__name__ for failure, _ in FAILURES])
def test_a_failure_of_values_is_one_line_with_what_helps(capsys, monkeypatch, failure, says):
    def fail(*_):
        raise failure

    monkeypatch.setattr(doctor, "doctor", fail)
    code, _, err = call(capsys, "doctor")
    assert code == 2 and err.startswith("lscl: ") and len(err.splitlines()) == 1 and says in err
    assert isinstance(failure, OSError) or "doctor" in err or "cli.py" in err, "where it happened"


def test_a_real_array_that_no_machine_holds(capsys, monkeypatch):
    for make in (
        lambda: np.empty((2**40, 2**20)),
        lambda: torch.empty(2**50),
        lambda: torch.empty(2**62, 2**62),
        lambda: np.empty(2**70),
    ):
        monkeypatch.setattr(doctor, "doctor", lambda *_, make=make: make())
        code, _, err = call(capsys, "doctor")
        assert code == 2 and len(err.splitlines()) == 1 and "lower batch" in err, err


@pytest.mark.parametrize(
    "bug",
    [KeyError("a"), RuntimeError("shape mismatch"), ValueError("x"), AttributeError("y"), TypeError("z"), IndexError()],
)
def test_a_bug_keeps_its_traceback(monkeypatch, bug):
    def fail(*_):
        raise bug

    monkeypatch.setattr(doctor, "doctor", fail)
    with pytest.raises(type(bug)):
        cli.main(["doctor"])


# ---- arguments of the benchmarks


def test_arguments_of_benchmarks_have_bounds(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import measure

    assert measure.counts("1, 1000000") == [1, 10**6] and measure.names(["a", "b"])("b,a") == ["b", "a"]
    for text in ("", "0", "-1", "1.5", "x", "1e3", "²", "1000001", "9" * 5000, "1,,2"):
        with pytest.raises(argparse.ArgumentTypeError, match="whole number from 1 to 1000000"):
            measure.counts(text)
    with pytest.raises(argparse.ArgumentTypeError, match="unknown name 'c'"):
        measure.names(["a", "b"])("a,c")


# ---- damaged files of results and settings

EXPECTED = {
    "profile": "demo", "command": "make demo", "minutes": 4.0, "runs_seconds": 1.0,
    "notebooks": {"05_results": 3}, "task": 80.0, "seen": 40.0,
    "hardware": {"cpu": "some cpu", "cores": 2, "memory_gb": 8, "gpu": None},
}  # fmt: skip
ONE_PLACE = pd.DataFrame({"profile": ["mini"], "dataset": ["cifar100"]})
DESCRIBED = [
    ("results/expected/demo.json", hardware.expected_profiles),
    ("results/expected/demo.json", lambda: numbers.numbers([])),
    ("results/probe/mini--cifar100--60.json", reference.model_card),
    ("results/tuning/mini--cifar100.json", measurements.tuning_frame),
    ("results/verified/mini.json", lambda: verified.outcome("mini")),
    ("results/components/mini--cifar100.json", lambda: measurements.components_frame("mini")),
    ("results/components/mini--cifar100.json", lambda: measurements.components_note(ONE_PLACE)),
    ("results/benchmarks/scaling.json", benchmark_pages.benchmark_table),
    ("results/benchmarks/scaling.json", measurements.growth_frame),
    ("results/benchmarks/o2d.json", benchmark_pages.benchmark_table),
    ("results/benchmarks/gpu--NVIDIA-H200.json", gpu_pages.measured_cards),
    ("results/federation/parity.json", benchmark_pages.wire_table),
    ("results/federation/faults.json", benchmark_pages.faults_table),
    ("results/federation/scale.json", lambda: benchmark_pages.federation_note("scale")),
    ("results/published/paper_table1.csv", published.published_table1),
    ("results/published/paper_table2.csv", lambda: published.published_final("cifar100")),
    ("notebooks/05_results.ipynb", freshness.stale_notebooks),
    ("_config.yml", pages.notebook_heads),
    (
        "README.md",
        lambda: readme.readme_text(
            pages.files.read_text(paths.root() / "README.md"), first_screen.read_first_screen({})
        ),
    ),
    ("pyproject.toml", lambda: first_screen.readme_blocks(first_screen.read_first_screen({}))),
    ("results/federation/round.json", lambda: first_screen.read_first_screen({})),
]
DAMAGES = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "not UTF-8": lambda data: b"\xff\xfe" + data,
    "NUL bytes": lambda data: data[:20] + b"\0\0" + data[20:],
    "a list": lambda data: b"[1, 2]",
    "a number": lambda data: b"3",
    "null": lambda data: b"null",
    "another table": lambda data: b"{}",
    "deeply nested": lambda data: b"[" * 100_000,
    "too large a number": lambda data: b'{"rows": [1e999], "seed": ' + b"9" * 5000 + b"}",
}
# Nothing need be in a probe; half of a table of numbers is one.
WELL = {("results/probe/mini--cifar100--60.json", "another table"), ("results/published/paper_table2.csv", "cut")}


@pytest.fixture
def repository(places):
    """What the commands read, copied from the repository: -> put(name, change), which changes one file of the copy."""

    def put(name, change):
        target = places / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(change(measured(name).read_bytes()))
        return target

    for other in (
        "_config.yml",
        "pyproject.toml",
        "notebooks/05_results.ipynb",
        "results/published/paper_table1.csv",
        "results/published/paper_table2.csv",
    ):
        put(other, lambda data: data)
    return put


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("name", "read"), DESCRIBED, ids=[f"{number} {name}" for number, (name, _) in enumerate(DESCRIBED)]
)
def test_a_damaged_file_is_one_line_with_its_name(repository, name, read, damage):
    repository(name, lambda data: data)
    read()
    repository(name, DAMAGES[damage])
    if (name, damage) in WELL:
        read()
        return
    with pytest.raises(LsclError) as caught:
        read()
    assert (
        name.rpartition("/")[2] in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600
    )


@pytest.mark.parametrize(
    ("name", "read"), DESCRIBED, ids=[f"{number} {name}" for number, (name, _) in enumerate(DESCRIBED)]
)
def test_a_pipe_or_folder_in_the_place_of_a_file_is_one_line(repository, name, read):
    path = repository(name, lambda data: data)
    for make in (os.mkfifo, os.mkdir):
        path.rmdir() if path.is_dir() else path.unlink()
        make(path)
        with pytest.raises(LsclError, match="not a regular file"):
            read()


def values_in(value, where=()):
    """Every place in what a JSON file holds, the first two entries of lists."""
    yield where
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from values_in(inner, (*where, key))


def changed(value, where, new):
    """The value with another one at that place."""
    if not where:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[where[0]] = changed(copy[where[0]], where[1:], new)
    return copy


JSON_FILES = [(name, read) for name, read in DESCRIBED if name.endswith(".json")]


@pytest.mark.parametrize(
    ("name", "read"), JSON_FILES, ids=[f"{number} {name}" for number, (name, _) in enumerate(JSON_FILES)]
)
def test_no_entry_of_another_type_is_a_traceback(repository, name, read):
    whole = json.loads(measured(name).read_text(encoding="utf-8"))
    places, refused = list(values_in(whole)), 0
    places = places[:: -(-len(places) // 100)]  # of a long file evenly spread ones
    for where in places:
        for new in (None, "<b>", [], {}, -1, 1.5, True, [None]):
            repository(name, lambda data, where=where, new=new: json.dumps(changed(whole, where, new)).encode())
            try:
                read()
            except LsclError as error:
                refused += 1
                assert name.rpartition("/")[2] in str(error) and "\n" not in str(error)
    assert refused > 0


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("results/published/paper_table1.csv", "accuracy", "accuracies"),
        ("results/published/paper_table1.csv", "task,", ""),
        ("results/published/paper_table1.csv", "43.925", "x"),
        ("results/published/paper_table1.csv", "43.925", ""),
        ("results/published/paper_table1.csv", "43.925", "inf"),
        ("results/published/paper_table1.csv", "43.925", "143.9"),
        ("results/published/paper_table1.csv", "FedAvg,", "FedAvgg,"),
        ("results/published/paper_table1.csv", ",1,", ",1.5,"),
        ("results/published/paper_table1.csv", "43.925", '"43'),
        ("results/published/paper_table2.csv", "variant", "variants"),
        ("results/published/paper_table2.csv", "89.396", "-1"),
        ("_config.yml", "repository:", "repositories:"),
        ("_config.yml", "url: https://", "url: [https]://"),
        ("_config.yml", "url: https://", "url: 'https://\"' #"),
        ("_config.yml", "url:", "irl:"),
        *(
            ("README.md", f"<!-- {name}:{one} -->", f"<!-- {name}:{other} -->")
            for name in ("badges", "finding", "round", "results", "expected")
            for one, other in (("begin", "start"), ("end", "begin"), ("begin", "end"))
        ),
        ("pyproject.toml", "[project]", "[projects]"),
        ("results/federation/round.json", '"fused"', '"fuse"'),
        ("results/federation/round.json", '"pictures": [', '"pictures": ["><script>", '),
    ],
)
def test_a_changed_file_is_one_line_with_its_name(repository, name, old, new):
    repository(name, lambda data: data.replace(old.encode(), new.encode()))
    with pytest.raises(LsclError) as caught:
        next(read for one, read in DESCRIBED if one == name)()
    assert name.rpartition("/")[2] in str(caught.value) and "\n" not in str(caught.value)


def test_the_commands_that_read_them_say_it(capsys, repository):
    repository("results/published/paper_table1.csv", lambda data: data[:-1].replace(b"accuracy", b"percent"))
    for words in (["check"], ["pages"], ["reproduce", "smoke", "--no-book"]):
        code, _, err = call(capsys, *words)
        lines = [line for line in err.splitlines() if line.startswith("lscl: ")]
        assert code == 2 and len(lines) == 1 and "paper_table1.csv" in lines[0], err


def test_a_file_that_is_not_there_is_told_from_a_damaged_one(places):
    with pytest.raises(MissingFile):
        pages.files.read_text(places / "no.json")


# ---- places


def test_an_empty_variable_is_as_good_as_none(monkeypatch, tmp_path):
    for name in ("LSCL_ROOT", "LSCL_CACHE", "LSCL_PRIVATE"):
        monkeypatch.setenv(name, " ")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert paths.root() == ROOT
    assert paths.cache() == tmp_path / ".cache" / "lscl" and paths.private() == tmp_path / ".local" / "share" / "lscl"


def test_relative_places_are_made_absolute_once(monkeypatch, tmp_path):
    names = ("LSCL_ROOT", "LSCL_CACHE", "LSCL_PRIVATE", "LSCL_DATA_DIR", "LSCL_WEIGHTS", "LSCL_TRACK")
    for name in names:
        monkeypatch.setenv(name, "here")
    monkeypatch.chdir(tmp_path)
    paths.make_absolute()
    monkeypatch.chdir("/")
    assert {os.environ[name] for name in names} == {str(tmp_path / "here")}
    assert paths.cache() == tmp_path / "here" == paths.root()


@pytest.mark.parametrize(("name", "place"), [("LSCL_CACHE", paths.cache), ("LSCL_PRIVATE", paths.private)])
def test_without_a_home_folder_it_says_what_to_set(monkeypatch, name, place, one_line):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(paths.Path, "home", no_home)
    monkeypatch.delenv(name, raising=False)
    with pytest.raises(LsclError) as caught:
        place()
    one_line(caught, f"set {name}")
    monkeypatch.setenv(name, "/somewhere")
    assert str(place()) == "/somewhere"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LSCL_ROOT", ["run", *SMOKE, "--method", "local_head"]),
        ("LSCL_ROOT", ["pages"]),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(capsys, monkeypatch, published, tmp_path, name, words):
    (tmp_path / "file").touch()
    monkeypatch.setenv(name, str(tmp_path / "file" / "inside"))
    code, _, err = call(capsys, *words)
    lines = [line for line in err.splitlines() if line.startswith("lscl: ")]
    assert code == 2 and len(lines) == 1 and "file" in lines[0], err


@pytest.mark.parametrize(("name", "what"), [("LSCL_ROOT", "results"), ("LSCL_CACHE", "cache")])
def test_a_place_that_cannot_be_written_is_an_answer_of_the_doctor(capsys, monkeypatch, tmp_path, name, what):
    (tmp_path / "file").touch()
    monkeypatch.setenv(name, str(tmp_path / "file" / "inside"))
    code, out, err = call(capsys, "doctor")
    assert (code, err) == (2, "") and f"bad: {what} cannot be written: " in out and "\ncode: " in out


# ---- nothing from a record is taken for a sign of markdown or HTML

HOSTILE = (
    "<script>alert(1)</script>|`c`|[x](javascript:alert(2)){{ 7 }}{ref}`y`$zz$ **b** __u__ &lt;"
    "\n\n# head\n\n:::{note}\n</small><img src=x>"
)


def poisoned(value, kept=()):
    """The same with the hostile text in the place of every text, but for the entries named in `kept`."""
    if isinstance(value, dict):
        return {key: inner if key in kept else poisoned(inner, kept) for key, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner, kept) for inner in value]
    return HOSTILE if isinstance(value, str) else value


MEASURED = (
    "expected/demo", "probe/mini--cifar100--60", "benchmarks/o2d", "federation/parity", "federation/faults",
    "federation/scale", "components/mini--cifar100", "verified/mini", "tuning/mini--cifar100",
)  # fmt: skip


# One of a few values, so that a reader refuses another text.
CHOICES = ("profile", "method", "transport", "collaboration", "better", "fault", "outcome")


def test_the_text_of_a_record_reaches_no_page_unescaped(places, published):
    """All free texts of records, measurements and probes are the hostile one, and the pages show none of its signs."""
    for name in MEASURED:
        whole = json.loads(measured(f"results/{name}.json").read_text(encoding="utf-8"))
        path = places / "results" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(poisoned(whole, CHOICES)),
            encoding="utf-8",
        )
    folder = records.folder("mini")
    folder.mkdir(parents=True)
    for seed in (42, 1999):
        one = record(seed=seed, clients=5)
        text = " ".join(HOSTILE.split())  # the reader takes one line
        made = {
            **one,
            "hardware": {**one["hardware"], "cpu": text, "gpu": text},
            "versions": {"torch": text, text: "1"},
        }
        (folder / f"{one['name']}.json").write_text(json.dumps(made), encoding="utf-8")
    made = pages.pieces()
    for name, text in made.items():
        for sign in (
            "<script>alert",
            "<img",
            "</small><img",
            "](javascript",
            "{{ 7",
            "{ref}`y",
            "$zz$",
            "**b**",
            "__u__",
            "&lt;\n",
            "\n# head",
            "\n:::{note}",
        ):
            assert sign not in text, f"{sign!r} in {name}"
    assert sum("alert(1)" in text for text in made.values()) > 10, "the text is shown, escaped"


def test_the_data_of_the_figure_are_what_they_were(places, published):
    from lscl.publish import explorer

    text = explorer.explorer_page([record(overrides={"cnn": "</script><script>{{ 1 }}"})])
    data = text.split('id="explore-data">')[1].split("</script>")[0]
    (system,) = json.loads(data)["CIFAR-100"]
    assert "</script><script>{{ 1 }}" in system["name"]


def test_a_name_of_a_model_is_escaped_wherever_a_system_is_named(places, published):
    """The config refuses such a name; a table would escape it all the same."""
    made = [record(overrides={"cnn": HOSTILE}), record("local_head")]
    scores = results.frame(made)
    table = markdown.captioned_table(score_table(scores), "Scores", "tab-x", made)
    by_seed = frames.final_rows(scores[scores["mask"] == "seen"]).pivot_table("accuracy", "seed", "label", sort=False)
    said = [read(by_seed, "seen") for read in (readings.read_ranking, readings.read_best)]
    for text in (table, *said):
        assert "alert" in text and not any(
            sign in text for sign in ("<script>", "`c`", "](javascript", "{{", "\n# head")
        )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "AMD EPYC, 2 cores < 3 & [a] lr_generator_bias = 1e-05",
            "AMD EPYC, 2 cores < 3 & [a] lr_generator_bias = 1e-05",
        ),
        ("a|b", "a&#124;b"),
        ("<b>", "&#60;b>"),
        ("[a](b)", "[a&#93;(b)"),
        ("a\n\n# b\x1b[31m\0", "a # b[31m"),
        ("{{ a }}", "&#123;&#123; a &#125;&#125;"),
        ("&amp;", "&#38;amp;"),
        ("_a_ a_b", "&#95;a_ a_b"),
        (None, "None"),
    ],
)
def test_plain_text(text, shown):
    assert markdown.plain_text(text) == shown


def test_code_ends_where_it_should():
    assert markdown.code_text("lscl run --lr_generator 1e-05") == "`lscl run --lr_generator 1e-05`"
    assert markdown.code_text("a `b` | c\nd") == "a &#96;b&#96; &#124; c d"


def test_an_executed_notebook_that_is_damaged_is_named(places, repository, one_line):
    path = places / "results" / "executed" / "smoke" / "05_results.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(LsclError) as caught:
        build.build_book("smoke")
    one_line(caught, path)
