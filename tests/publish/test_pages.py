"""The generated pieces of the book's pages."""

import json
import re
import shutil

import pytest
import yaml
from made_records import record
from test_cli import call
from tests_root import ROOT

from lscl.experiments import records, sweeps
from lscl.experiments.sweeps import PLANS, main_table
from lscl.publish import benchmark_pages, freshness, numbers, pages, status
from lscl.registry import METHODS
from lscl.results.labels import DATASET_LABELS
from lscl.results.markdown import NO_RECORDS

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
    written = {str(path.relative_to(places)): path.read_text(encoding="utf-8") for path in pages.write_pages()}
    assert set(written) == set(pages.pieces())
    values = written["results/tables/method_values.md"]
    assert (
        "| LoRM | paper | from codes | lr = 0.003 |" in values
        and "| GLFC | smoke | size | glfc_memory = 12, " in values
    )
    assert written["results/tables/headline.md"].strip() == NO_RECORDS
    assert all(
        "Not measured yet" in written[f"results/tables/federation_{name}.md"]
        for name in benchmark_pages.FEDERATION_TABLES
    )


def test_what_is_not_measured_yet_is_said_in_a_sentence(places):
    found = numbers.numbers([])
    assert found["ours_cifar100_task"] == found["demo_minutes"] == numbers.NONE
    assert found["published_cifar100"] == "89.4 %" and found["main_runs"] == "0"


def test_sentences_take_their_numbers_from_records(places, saved):
    saved(record(clients=5), record(seed=1999, score=82, clients=5))
    expect(places)
    pages.write_pages()
    found = json.loads((places / "results" / "tables" / "numbers.json").read_text(encoding="utf-8"))
    assert found["demo_minutes"] == "4" and found["demo_seen"].startswith("40.0 (") and found["main_runs"] == "2"
    assert found["ours_cifar100_task"].startswith("73 ± ") and found["ours_glyphs_task"] == numbers.NONE
    times = (places / "results" / "tables" / "times.md").read_text(encoding="utf-8")
    assert "| some cpu, 2 cores, 8 GB, no GPU | `make demo` | 4.0 | 80.0 (" in times
    assert "| `lscl run --method fed_lscl --dataset cifar100 --profile mini` | 3.0 | 72.0 (" in times


def expect(places, **seconds):
    about = {
        "profile": "demo",
        "command": "make demo",
        "minutes": 4.0,
        "hardware": record()["hardware"],
        "commit": "c",
        "task": 80.0,
        "seen": 40.0,
    }
    (places / "results" / "expected").mkdir()
    (places / "results" / "expected" / "demo.json").write_text(
        json.dumps({**about, "runs_seconds": 140.0, "notebooks": seconds}), encoding="utf-8"
    )


def test_the_notebooks_say_how_long_they_took(places):
    for name in ("_config.yml", "notebooks/04_one_by_one_distillation.ipynb", "notebooks/05_results.ipynb"):
        (places / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, places / name)
    expect(places, **{"04_one_by_one_distillation": 72.0, "05_results": 11.0})
    pages.write_pages()
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
    pages.write_pages()
    before = notebook.read_text(encoding="utf-8")
    assert before == (ROOT / "notebooks" / "05_results.ipynb").read_text(encoding="utf-8")
    address = yaml.safe_load(settings.read_text(encoding="utf-8"))["repository"]["url"]
    settings.write_text(settings.read_text(encoding="utf-8").replace(address, "https://example.org/someone/copy"))
    code, _, err = call(capsys, "check")
    assert code == 2 and "notebooks/05_results.ipynb, line" in err and "https://example.org/someone/copy" in err
    pages.write_pages()
    assert notebook.read_text(encoding="utf-8") == before.replace(address, "https://example.org/someone/copy") != before


def test_every_number_that_a_page_calls_exists_and_every_one_is_called():
    called = {
        name
        for path in (ROOT / "book").glob("*.md")
        for name in re.findall(r"\{\{ (\w+) \}\}", path.read_text(encoding="utf-8"))
    }
    assert called == {*numbers.numbers([]), "built_from"}


def test_no_result_is_typed_by_hand():
    """A number with a unit in a hand-written page or the README is a setting of this list, or called by its name."""
    unit = re.compile(r"(?<![\w.])\d[\d.,]*\s*(?:%|percent\b|points?\b|minutes?\b|seconds?\b|hours?\b|[GMk]B\b)")
    readme = re.sub(
        r"<!-- (\w+):begin -->.*?<!-- \1:end -->",
        "",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("*.md")} | {
        "README.md": readme
    }
    takes = re.compile(r"\*\*Takes\*\* \[[^]]+\]")  # written by `lscl pages`
    texts |= {path.name: takes.sub("", "\n".join(markdown(path))) for path in (ROOT / "notebooks").glob("*.ipynb")}
    settings = {"95 %", "30 %"}  # the intervals' level, `eval_split`
    settings |= {"5 GB", "200 MB", "4 GB", "16 GB"}  # what is installed, memory of machines
    found = {
        (name, number)
        for name, text in texts.items()
        for number in unit.findall(re.sub(r"(?ms)^```(?!\{figure).*?^```$|^:.*?$", "", text))
    }
    assert {pair for pair in found if pair[1] not in settings} == set()


def markdown(path):
    return [
        "".join(cell["source"])
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "markdown"
    ]


def test_the_state_of_the_records(places, saved):
    table = status.set_table([])
    assert len(table) == 2 * len(status.NAMED_SETS) and set(table["minutes"]) == {"0"}
    assert table["runs"].iloc[0] == f"0 of {len(main_table()) * 3}"
    real = sweeps.table1({"profile": "mini", "dataset": "cifar100"}, [42])[0]
    found = status.set_table([{**record(), "config_digest": real.digest}]).iloc[0]
    assert (
        found["runs"] == f"1 of {len(main_table()) * 3}"
        and found["minutes"] == "3"
        and found["commits"] == "abcdef0123"
    )
    made = [record(seed=seed) for seed in (42, 1999)]
    assert ["partition", "CIFAR-100", "`p42`", "1"] in status.digest_table(made).to_numpy().tolist()
    assert status.version_table(made).to_numpy().tolist()[0] == ["torch", "2.0", "2"]


def test_headline_from_records(places, saved):
    saved(
        record(clients=5),
        record(seed=1999, score=82, clients=5),
        record("local_head", clients=5),
        record("local_head", seed=7, clients=5),
        record("fed_lscl_ridge", score=95, clients=5),
    )
    pages.write_pages()
    text = (places / "results" / "tables" / "headline.md").read_text(encoding="utf-8")
    assert "| Fed-LSCL (O2D exact) | paper | 2 | 73 ± 13 | 43 ± 13 |" in text and "standard deviation" not in text
    assert "seeds 42, 1999;" in text
    table, _, ranking = text.partition("</small>")
    assert "| Fed-LSCL + ridge | our variant | 1 |" in table and "Fed-LSCL + ridge" not in ranking
    assert "is the best of the paper's systems and the controls: " in ranking


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
    assert {
        "results/tables/headline.md",
        "results/tables/systems.md",
        "results/tables/explore.html",
        "book/methods/fed_lscl.md",
    } <= named
    assert "book/methods/local_head.md" not in named and "results/tables/config.md" not in named
    assert (
        "has '| Fed-LSCL (O2D exact) | paper | 1 | 72.0 | 42.0 |" in err
        and "the records give '| Fed-LSCL (O2D exact) | paper | 1 | 72.0 | 42.5 |" in err
    )


def test_check_finds_a_number_changed_by_hand_and_a_missing_page(places, saved, capsys):
    saved(record(clients=5))
    pages.write_pages()
    table = places / "results" / "tables" / "headline.md"
    table.write_text(table.read_text(encoding="utf-8").replace("| 72.0 |", "| 79.0 |"))
    (places / "book" / "methods" / "fedavg.md").unlink()
    code, _, err = call(capsys, "check")
    assert code == 2 and len(err.splitlines()) == 3
    assert "results/tables/headline.md, line 6, has" in err and "book/methods/fedavg.md is missing" in err


def test_what_is_committed_is_what_the_records_give(monkeypatch):
    monkeypatch.setenv("LSCL_ROOT", str(ROOT))
    assert pages.stale_pages() == [], "run: lscl pages"


def test_committed_notebooks_are_not_older_than_the_records_they_show(monkeypatch):
    monkeypatch.setenv("LSCL_ROOT", str(ROOT))
    assert freshness.stale_notebooks() == [], "run: lscl reproduce demo --store"


def test_two_writes_are_equal(places):
    first = [path.read_bytes() for path in pages.write_pages()]
    assert [path.read_bytes() for path in pages.write_pages()] == first


def test_the_papers_plan_has_every_system_with_the_servers_work():
    text = pages.paper_plan()
    parts = dict(zip(PLANS["paper"], text.split(":::{table} ")[1:], strict=True))
    for part in parts.values():
        assert len([line for line in part.splitlines() if line.startswith("|")]) == 2 + len(main_table())
    assert all(
        part.startswith(f"{DATASET_LABELS[dataset]}, profile `paper`, one seed") for dataset, part in parts.items()
    )
    (target,) = [line.split("|") for line in parts["imagenet_r"].splitlines() if line.startswith("| TARGET ")]
    assert float(target[5]) > float(target[4]) > 0


def test_the_books_contents_list_the_page_of_every_system(toys, places):
    (places / "book").mkdir(parents=True)
    assert pages.contents() == {}
    shutil.copy(ROOT / "book" / "_toc.yml", places / "book" / "_toc.yml")
    (text,) = pages.contents().values()
    listed = [line.rpartition("/")[2] for line in text.splitlines() if "book/methods/" in line]
    assert listed == list(METHODS) and listed[-1] == "toy" and text.count("book/api/") == 8


def test_without_attacked_runs_the_table_of_what_is_sent_says_so(places):
    assert pages.sent_by_systems() == "Not yet measured. `lscl privacy` does it."
