"""The generated pieces of the book's pages."""

import json
import re
import shutil

import pytest
import yaml
from made_records import record
from test_cli import call
from tests_root import ROOT

from lscl.errors import LsclError
from lscl.experiments import records, sweeps
from lscl.experiments.sweeps import PLANS, main_table
from lscl.publish import freshness, numbers, pages, status
from lscl.registry import METHODS
from lscl.results import report
from lscl.results.report import DATASET_LABELS

pytestmark = pytest.mark.usefixtures("published")


@pytest.fixture
def saved(places):
    """saved(records, ...): their files in the results folder of the test; -> the paths."""

    def save(*made):
        folder = records.folder("mini")
        folder.mkdir(parents=True, exist_ok=True)
        for one in made:
            (folder / f"{one['name']}.json").write_text(json.dumps(one))
        return [folder / f"{one['name']}.json" for one in made]

    return save


def test_without_records_every_table_is_a_sentence(places):
    written = {str(path.relative_to(places)): path.read_text(encoding="utf-8") for path in pages.write()}
    assert set(written) == set(pages.pieces())
    values = written["results/tables/method_values.md"]
    assert "| LoRM | paper | official | lr = 0.003 |" in values and "| GLFC | smoke | size | glfc_memory = 12, " in values
    assert written["results/tables/headline.md"].strip() == report.NO_RECORDS
    assert all("Not measured yet" in written[f"results/tables/federation_{name}.md"] for name in pages.FEDERATION)


def test_what_is_not_measured_yet_is_said_in_a_sentence(places):
    found = numbers.numbers([])
    assert found["ours_cifar100_task"] == found["demo_minutes"] == numbers.NONE
    assert found["published_cifar100"] == "89.4 %" and found["main_runs"] == "0"


def test_sentences_take_their_numbers_from_records(places, saved):
    saved(record(clients=5), record(seed=1999, score=82, clients=5))
    expect(places)
    pages.write()
    found = json.loads((places / "results" / "tables" / "numbers.json").read_text(encoding="utf-8"))
    assert found["demo_minutes"] == "4" and found["demo_seen"] == "40.0 %" and found["main_runs"] == "2"
    assert found["ours_cifar100_task"].startswith("73.0 ± ") and found["ours_glyphs_task"] == numbers.NONE
    times = (places / "results" / "tables" / "times.md").read_text(encoding="utf-8")
    assert "| some cpu, 2 cores, 8 GB, no GPU | `make demo` | 4.0 | 80.0 | 40.0 |" in times
    assert "| `lscl run --method fed_lscl --dataset cifar100 --profile mini` | 3.0 | 72.0 | 42.0 |" in times


def expect(places, **seconds):
    about = {"profile": "demo", "command": "make demo", "minutes": 4.0, "hardware": record()["hardware"], "commit": "c", "task": 80.0, "seen": 40.0}
    (places / "results" / "expected").mkdir()
    (places / "results" / "expected" / "demo.json").write_text(json.dumps({**about, "runs_seconds": 140.0, "notebooks": seconds}), encoding="utf-8")


def test_the_notebooks_say_how_long_they_took(places):
    for name in ("_config.yml", "notebooks/04_one_by_one_distillation.ipynb", "notebooks/05_results.ipynb"):
        (places / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, places / name)
    expect(places, **{"04_one_by_one_distillation": 72.0, "05_results": 11.0})
    pages.write()
    four, five = (markdown(path)[0] for path in sorted((places / "notebooks").glob("*.ipynb")))
    assert "**Takes** [70 seconds on 2 cores](../book/hardware.md)." in four
    assert "**Takes** [2.5 minutes on 2 cores, runs included](../book/hardware.md)" in five
    table = (places / "results" / "tables" / "notebooks.md").read_text(encoding="utf-8")
    assert "| {doc}`/notebooks/05_results` | 10 seconds |" in table


def test_every_notebook_says_how_long_it_took():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert len(re.findall(r"\*\*Takes\*\* \[[^]]+ on \d+ cores", markdown(path)[0])) == 1, path.name


def test_the_address_of_the_settings_is_written_into_the_notebooks(places, capsys):
    for name in ("_config.yml", "notebooks/05_results.ipynb"):
        (places / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, places / name)
    settings, notebook = places / "_config.yml", places / "notebooks" / "05_results.ipynb"
    pages.write()
    before = notebook.read_text(encoding="utf-8")
    assert before == (ROOT / "notebooks" / "05_results.ipynb").read_text(encoding="utf-8")
    address = yaml.safe_load(settings.read_text(encoding="utf-8"))["repository"]["url"]
    settings.write_text(settings.read_text(encoding="utf-8").replace(address, "https://example.org/someone/copy"))
    code, _, err = call(capsys, "check")
    assert code == 2 and "notebooks/05_results.ipynb, line" in err and "https://example.org/someone/copy" in err
    pages.write()
    assert notebook.read_text(encoding="utf-8") == before.replace(address, "https://example.org/someone/copy") != before


def test_every_number_that_a_page_calls_exists_and_every_one_is_called():
    called = {name for path in (ROOT / "book").glob("*.md") for name in re.findall(r"\{\{ (\w+) \}\}", path.read_text(encoding="utf-8"))}
    assert called == {*numbers.numbers([]), "built_from"}


def test_no_result_is_typed_by_hand():
    """A number with a unit in a hand-written page or the README is a setting that stands in the list, or is called by its name."""
    unit = re.compile(r"(?<![\w.])\d[\d.,]*\s*(?:%|percent\b|points?\b|minutes?\b|seconds?\b|hours?\b|[GMk]B\b)")
    readme = re.sub(r"<!-- expected:begin -->.*<!-- expected:end -->", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("*.md")} | {"README.md": readme}
    takes = re.compile(r"\*\*Takes\*\* \[[^]]+\]")  # written by `lscl pages`
    texts |= {path.name: takes.sub("", "\n".join(markdown(path))) for path in (ROOT / "notebooks").glob("*.ipynb")}
    settings = {"95 %", "30 %"}  # the intervals' level, `eval_split`
    settings |= {"5 GB", "4 GB", "16 GB"}  # what is installed, memory of machines
    found = {(name, number) for name, text in texts.items() for number in unit.findall(re.sub(r"(?ms)^```(?!\{figure).*?^```$|^:.*?$", "", text))}
    assert {pair for pair in found if pair[1] not in settings} == set()


def markdown(path):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "markdown"]


def test_the_state_of_the_records(places, saved):
    table = status.sets([])
    assert len(table) == 2 * len(status.SETS) and set(table["minutes"]) == {"0"}
    assert table["runs"].iloc[0] == f"0 of {len(main_table()) * 3}"
    real = sweeps.table1({"profile": "mini", "dataset": "cifar100"}, [42])[0]
    found = status.sets([{**record(), "config_digest": real.digest}]).iloc[0]
    assert found["runs"] == f"1 of {len(main_table()) * 3}" and found["minutes"] == "3" and found["commits"] == "abcdef0123"
    made = [record(seed=seed) for seed in (42, 1999)]
    assert ["partition", "CIFAR-100", "`p42`", "1"] in status.digests(made).to_numpy().tolist()
    assert status.versions(made).to_numpy().tolist()[0] == ["torch", "2.0", "2"]


def test_headline_from_records(places, saved):
    saved(record(clients=5), record(seed=1999, score=82, clients=5), record("local_head", clients=5), record("local_head", seed=7, clients=5))
    pages.write()
    text = (places / "results" / "tables" / "headline.md").read_text(encoding="utf-8")
    assert "| Fed-LSCL (O2D exact) | 2 | 73.0 ± 12.7 | 43.0 ± 12.7 |" in text and "standard deviation" not in text
    assert "seeds 42, 1999;" in text


def test_check_is_green_after_pages_and_names_what_a_changed_record_makes_old(places, saved, capsys):
    path, _ = saved(record(clients=5), record("local_head", clients=5))
    for command, code in (("check", 2), ("pages", 0), ("check", 0)):
        assert call(capsys, command)[0] == code
    changed = json.loads(path.read_text())
    changed["accuracy"]["seen"][-1][0][0] += 12.5  # of 25
    path.write_text(json.dumps(changed))
    code, _, err = call(capsys, "check")
    assert code == 2
    named = {line.split(",")[0].removeprefix("lscl: ") for line in err.splitlines()}
    assert {"results/tables/headline.md", "results/tables/systems.md", "results/tables/explore.html", "book/methods/fed_lscl.md"} <= named
    assert "book/methods/local_head.md" not in named and "results/tables/config.md" not in named
    assert "has '| Fed-LSCL (O2D exact) | 1 | 72.0 | 42.0 |" in err and "the records give '| Fed-LSCL (O2D exact) | 1 | 72.0 | 42.5 |" in err


def test_check_finds_a_number_changed_by_hand_and_a_missing_page(places, saved, capsys):
    saved(record(clients=5))
    pages.write()
    table = places / "results" / "tables" / "headline.md"
    table.write_text(table.read_text(encoding="utf-8").replace("| 72.0 |", "| 79.0 |"))
    (places / "book" / "methods" / "fedavg.md").unlink()
    code, _, err = call(capsys, "check")
    assert code == 2 and len(err.splitlines()) == 3
    assert "results/tables/headline.md, line 6, has" in err and "book/methods/fedavg.md is missing" in err


def test_what_is_committed_is_what_the_records_give(monkeypatch):
    monkeypatch.setenv("LSCL_ROOT", str(ROOT))
    assert pages.stale() == [], "run: lscl pages"


def test_committed_notebooks_are_not_older_than_the_records_they_show(monkeypatch):
    monkeypatch.setenv("LSCL_ROOT", str(ROOT))
    assert freshness.stale() == [], "run: lscl reproduce demo --store"


def test_two_writes_are_equal(places):
    first = [path.read_bytes() for path in pages.write()]
    assert [path.read_bytes() for path in pages.write()] == first


def test_the_papers_plan_has_every_system_with_the_servers_work():
    text = pages.paper_plan()
    parts = dict(zip(PLANS["paper"], text.split(":::{table} ")[1:], strict=True))
    for part in parts.values():
        assert len([line for line in part.splitlines() if line.startswith("|")]) == 2 + len(main_table())
    assert all(part.startswith(f"{DATASET_LABELS[dataset]}, profile `paper`, one seed") for dataset, part in parts.items())
    (target,) = [line.split("|") for line in parts["imagenet_r"].splitlines() if line.startswith("| TARGET ")]
    assert float(target[5]) > float(target[4]) > 0


def test_benchmarks_are_told_from_their_goals(places, one_line):
    assert pages.benchmarks() == "No benchmark has been recorded yet."
    folder = places / "results" / "benchmarks"
    folder.mkdir(parents=True)
    about = {"machine": {"cpu": "some cpu"}, "commit": "abcdef0123456"}
    rows = [
        {"method": "l2p", "ratio": 1.6, "goal": 1.5, "better": "lower"},
        {"method": "none", "part_of_it": {"ratio": 3, "goal": 2, "better": "higher"}},
    ]
    for name, ratio, better in (("slow", 1.3, "lower"), ("fast", 120.0, "higher")):
        found = {"name": name, "ratio": ratio, "goal": 1.25 if better == "lower" else 100, "better": better, "rows": rows * (name == "slow"), **about}
        (folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    (folder / "open.json").write_text(json.dumps({"name": "open", "ratio": 2, "better": "lower", **about}), encoding="utf-8")
    assert [line for line in pages.benchmarks().splitlines() if line.startswith("| ")][1:] == [
        "| fast | 120 | at least 100 | yes | some cpu | abcdef0123 |",
        "| open | 2 | – | – | some cpu | abcdef0123 |",
        "| slow | 1.3 | at most 1.25 | no | some cpu | abcdef0123 |",
        "| slow: l2p | 1.6 | at most 1.5 | no |  |  |",
        "| slow: none part of it | 3 | at least 2 | yes |  |  |",
    ]
    (folder / "open.json").write_text("{}", encoding="utf-8")
    with pytest.raises(LsclError) as caught:
        pages.benchmarks()
    one_line(caught, "open.json")


ABOUT = {"commit": "abcdef0123456", "machine": {"cpu": "some cpu", "cores": 2, "load": 1.6}, "flwr": "1.41.0"}
SENT = {
    "clients": 2,
    "seconds": 60.0,
    "exchanges": [1, 2],
    "wire_up": [1200, 400],
    "payload_up": [1000, 0],
    "wire_down": [6e6, 6e6],
    "payload_down": [5e6, 5e6],
}
MEASURED = {
    "parity": [
        {"profile": "demo", "method": "lorm", "transport": "tls", "differs": [], "accuracies": 75, "byte_counts": 50, **SENT, **ABOUT},
        {"profile": "demo", "method": "lorm", "transport": "simulation", "differs": ["bytes_up"], "accuracies": 75, "byte_counts": 50, **ABOUT},
    ],
    "faults": [
        {
            "fault": "client killed", "rounds": 8, "rounds_finished": 8, **ABOUT,
            "points": [{"rounds_missed": n, "came_back": True, "while_it_computed": n == 1} for n in (2, 1)],
        },
        {"fault": "server killed", "killed": "inside a round", "finished_rounds": 1, "of": 4, "resumed_after": 1, "then": "all the same", **ABOUT},
        {
            "fault": "bad", "bad_payloads": [{"kind": "NaN", "server_says": "no"}], "strangers": [{"node": "plain text", "says": "out"}],
            "rounds": 8, "rounds_finished": 8, **ABOUT,
        },
    ],
    "scale": [
        {
            "clients": 9, "rounds": 6, "seconds_per_exchange": 8.5, "cpu_seconds_per_exchange": 9.5, "memory_mb": [700, 800, 710],
            "differs_from_one_process": [], **ABOUT,
        },
    ],
}  # fmt: skip


def test_measurements_of_federations_are_told_as_they_are(places, one_line):
    folder = places / "results" / "federation"
    folder.mkdir(parents=True)
    for part, rows in MEASURED.items():
        (folder / f"{part}.json").write_text(json.dumps({"name": part, "rows": rows}), encoding="utf-8")
    texts = {name: pages.federation(name) for name in pages.FEDERATION}
    note = "<small>some cpu, 2 cores, flwr 1.41.0, load 2 before a row began, commit abcdef0123</small>"
    assert all(text.endswith(note) and f":name: tab-federation-{name}" in text for name, text in texts.items())
    lines = {name: [line for line in text.splitlines() if line.startswith("|")][2:] for name, text in texts.items()}
    assert lines == {
        "parity": ["| LoRM | demo | processes over TLS | 75 | 50 | nothing |", "| LoRM | demo | Flower's simulation | 75 | 50 | bytes_up |"],
        "wire": ["| LoRM | demo | 0.00 | 0.00 | 0.1 | 10.00 | 12.00 | 333.3 | 20 |"],
        "faults": [
            "| SIGKILL to a client, 1 times while it computed | 2 | "
            "8 of 8 rounds finished; 3 answers missing in all; back in a later round 2 times |",
            "| SIGKILL to the server inside a round | 1 | 1 of 4 rounds were finished; went on after round 1; all the same |",
            "| payload: NaN | 1 | 8 of 8 rounds finished; left out: no |",
            "| node: plain text | 1 | not let in: out |",
        ],
        "scale": ["| 9 | 6 | 8.5 | 9.5 | 700 | 710 | nothing |"],
    }
    (folder / "scale.json").write_text("{}", encoding="utf-8")
    with pytest.raises(LsclError) as caught:
        pages.federation("scale")
    one_line(caught, "scale.json")


def test_the_books_contents_list_the_page_of_every_system(toys, places):
    (places / "book").mkdir(parents=True)
    assert pages.contents() == {}
    shutil.copy(ROOT / "book" / "_toc.yml", places / "book" / "_toc.yml")
    (text,) = pages.contents().values()
    listed = [line.rpartition("/")[2] for line in text.splitlines() if "book/methods/" in line]
    assert listed == list(METHODS) and listed[-1] == "toy" and text.count("book/api/") == 8
