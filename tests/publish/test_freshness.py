"""A notebook whose outputs are not what executing it would give is found."""

import json

import nbformat
import pytest
from made_records import record
from test_cli import call
from tests_root import ROOT

from lscl import files
from lscl.errors import LsclError
from lscl.experiments import records, sweeps
from lscl.experiments.sweeps import runs_of
from lscl.publish import freshness
from lscl.publish.watched_kernel import STUDY, is_declared, is_study_declared

pytestmark = pytest.mark.usefixtures("published")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PLACES = {"data_dir": None, "weights": None}


def entries(kind):
    """(notebook, entry) of everything that the committed notebooks declare, in the profile mini."""
    return [
        (path, entry)
        for path in NOTEBOOKS
        for entry in freshness.declared_inputs(files.read_notebook(path), "mini")[kind]
    ]


def each(kind):
    return pytest.mark.parametrize(
        ("path", "entry"), entries(kind), ids=[f"{path.stem} {entry}" for path, entry in entries(kind)]
    )


@pytest.fixture
def save(places):
    """save(study, seed, method, profile): a record of the last run of a named set, or of the first of a method.

    The first one of a study may be a row of the main table, too.
    """

    def write(study, seed=42, method=None, profile="mini"):
        runs = runs_of(study, {"profile": profile, "dataset": "cifar100"}, [seed], [method] if method else ())
        config = runs[0 if method else -1]
        one = record(config.method, seed, tasks=config.tasks_run, clients=config.clients)
        about = {"name": config.name, "config_digest": config.digest, "trained_parameters": [1] * config.clients}
        about |= {"config": {**config.values_read(), "threads": 1}, "profile": profile}
        path = records.folder(profile) / f"{config.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({name: value for name, value in {**one, **about}.items() if name != "overrides"}),
            encoding="utf-8",
        )
        return path

    return write


@pytest.fixture
def notebook(places):
    """notebook(*reads, number, code): a committed notebook with one cell and the digest of today; -> its path."""

    def write(*reads, number=5, code="1 + 1"):
        path = places / "notebooks" / f"{number:02d}_results.ipynb"
        path.parent.mkdir(exist_ok=True)
        cells = [nbformat.v4.new_markdown_cell("One"), nbformat.v4.new_code_cell(code)]
        made = nbformat.v4.new_notebook(cells=cells, metadata={"lscl": {"reads": list(reads)}})
        freshness.store_digest(made, "demo", PLACES)
        nbformat.write(made, path)
        return path

    return write


@pytest.fixture
def put(places, save):
    """put(entry): the first file that a declared entry can mean; -> its path."""

    def write(entry):
        if entry.startswith(STUDY):
            profile, _, study = entry.removeprefix(STUDY).partition("/")
            return save(study, profile="mini" if profile.startswith("{") else profile)
        path = places / "results" / entry.replace("*", "one")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[1]", encoding="utf-8")
        return path

    return write


@pytest.fixture
def committed(places):
    """committed(path): a copy of a notebook of the repository with the digest of today; -> the copy."""

    def copy(path):
        target = places / "notebooks" / path.name
        target.parent.mkdir(exist_ok=True)
        made = files.read_notebook(path)
        freshness.store_digest(made, "demo", PLACES)
        nbformat.write(made, target)
        return target

    return copy


@each("reads")
def test_a_new_changed_or_lost_file_that_a_notebook_declares_makes_it_old(put, committed, path, entry):
    committed(path)
    assert freshness.stale_notebooks() == []
    file = put(entry)
    (found,) = freshness.stale_notebooks()  # a record may belong to several sets of runs
    older = found.removeprefix(f"notebooks/{path.name}: its outputs are older than ").split(": `lscl ")[0]
    assert entry in older.split(", "), found
    for change in (lambda: file.write_bytes(file.read_bytes().replace(b"[1", b"[ 1", 1)), file.unlink):
        committed(path)
        assert freshness.stale_notebooks() == []
        change()
        assert len(freshness.stale_notebooks()) == 1 and entry in freshness.stale_notebooks()[0]


@each("makes")
def test_what_a_notebook_makes_itself_makes_it_run_again_but_not_old(put, path, entry):
    made = files.read_notebook(path)
    before = freshness.digest(made, "mini", PLACES)
    put(entry)
    after = freshness.digest(made, "mini", PLACES)
    assert before["makes"] != after["makes"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_entry_that_a_notebook_declares_is_of_files_that_are_there(path, monkeypatch):
    monkeypatch.setenv("LSCL_ROOT", str(ROOT))
    nothing = freshness.digest(nbformat.v4.new_notebook(metadata={"lscl": {"reads": ["none/*"]}}), "demo", PLACES)[
        "reads"
    ]["none/*"]
    found = freshness.digest(files.read_notebook(path), "demo", PLACES)["reads"]
    absent = {entry for entry, digest in found.items() if digest == nothing}
    studies = {entry for entry in absent if entry.partition("/")[2] in sweeps.named_sets()}  # not measured at present
    unmeasured = {"runs/mini/sheets/*.png", "components/mini--*.json"}
    assert absent - studies <= unmeasured  # nor these


def test_check_names_the_notebook_and_what_has_changed(save, notebook, capsys):
    path = save("table1", method="local_head")
    notebook("study:{shown}/table1")
    notebook("study:mini/blocks", number=7)
    assert freshness.stale_notebooks() == []
    path.write_text(path.read_text(encoding="utf-8").replace("50.0", "50.5", 1))
    assert [line.split(":")[0] for line in freshness.stale_notebooks()] == ["notebooks/05_results.ipynb"]
    notebook("study:{shown}/table1")
    save("table1", method="fed_lscl")  # the run with block 3, too
    assert [line.split(":")[0] for line in freshness.stale_notebooks()] == [
        "notebooks/05_results.ipynb",
        "notebooks/07_results.ipynb",
    ]
    assert "older than study:mini/blocks" in freshness.stale_notebooks()[1]
    (path.parents[3] / "_config.yml").write_text("repository: {url: https://example.org}", encoding="utf-8")
    code, _, err = call(capsys, "check")
    assert code == 2 and "notebooks/07_results.ipynb: its outputs are older" in err


def test_a_notebook_is_old_when_its_code_has_changed_but_not_when_its_text_has(notebook):
    path = notebook()
    for old, new, lines in (("One", "Two", 0), ("1 + 1", "1 + 2", 1)):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(old, new), encoding="utf-8")
        assert len(freshness.stale_notebooks()) == lines


def test_a_notebook_whose_digest_was_never_stored_is_old(notebook):
    path = notebook("tuning/*.json")
    made = nbformat.read(path, 4)
    del made.metadata["lscl"]["digest"]
    nbformat.write(made, path)
    assert "older than tuning/*.json, its code" in freshness.stale_notebooks()[0]


def test_other_seeds_and_tuning_runs_do_not_count(save, notebook):
    save("table1", method="local_head")
    notebook("study:mini/table1")
    save("table1", seed=7, method="local_head")
    assert freshness.stale_notebooks() == []


def test_a_set_of_runs_that_does_not_exist_is_one_line(notebook, one_line):
    path = notebook()
    path.write_text(
        path.read_text(encoding="utf-8").replace('"reads": []', '"reads": ["study:mini/tabel1"]'), encoding="utf-8"
    )
    with pytest.raises(LsclError) as caught:
        freshness.stale_notebooks()
    one_line(caught, "notebooks/05_results.ipynb", "tabel1", "table1")


def test_every_part_of_the_digest_changes_for_itself(places):
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("1")], metadata={"lscl": {"reads": ["tuning/*.json"]}}
    )
    first = freshness.digest(made, "mini", PLACES)
    differing = lambda other: [name for name in first if first[name] != other[name]]
    assert differing(freshness.digest(made, "mini", {**PLACES, "weights": "one.npz"})) == ["parameters"]
    assert differing(freshness.digest(made, "demo", PLACES)) == ["parameters"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "code_digest", lambda without: f"without {without}")
        assert differing(freshness.digest(made, "mini", PLACES)) == ["code"]
    made.cells.append(nbformat.v4.new_markdown_cell("1"))
    assert differing(freshness.digest(made, "mini", PLACES)) == ["text"]
    del made.cells[1]
    made.cells[0].metadata["papermill"] = {"duration": 1}
    assert differing(freshness.digest(made, "mini", PLACES)) == []
    made.cells[0].metadata["tags"] = ["hide-input"]  # else a stored notebook would lose what its source gained
    assert differing(freshness.digest(made, "mini", PLACES)) == ["text"]
    made.cells[0].source = "2"
    assert differing(freshness.digest(made, "mini", PLACES)) == ["cells", "text"]


MADE = ["study:demo/table1"]


@pytest.mark.parametrize(
    ("place", "reads", "expected"),
    [
        ("tuning/a.json", ["tuning/*.json"], True),
        ("tuning/a.json", ["published/*.csv"], False),
        ("tuning/b/a.json", ["tuning/*.json"], False),
        ("old/tuning/a.json", ["tuning/*.json"], False),
        ("runs/mini/a.json", ["study:mini/table1"], True),
        ("runs/mini/dirty/a.json", ["study:mini/table1"], False),
        ("runs/mini/sheets/a.png", ["study:mini/table1"], False),
        ("runs/paper/a.json", ["study:mini/table1"], False),
        ("runs/demo/state/a/rounds.json", [], True),
    ],
)
def test_which_files_are_declared(place, reads, expected):
    assert is_declared(place, reads, MADE) is expected


@pytest.mark.parametrize(
    ("profile", "name", "reads", "expected"),
    [
        ("mini", "table1", ["study:mini/table1"], True),
        ("mini", "blocks", ["study:mini/table1"], False),
        ("mini", "", ["study:mini/table1"], False),
        ("mini", "", ["runs/mini/*.json"], True),
        ("paper", "table1", ["study:mini/table1"], False),
        ("demo", "table1", [], True),
    ],
)
def test_which_sets_of_runs_are_declared(profile, name, reads, expected):
    assert is_study_declared(profile, name, reads, MADE) is expected
