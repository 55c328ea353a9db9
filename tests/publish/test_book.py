"""The book's sources: complete, readable without pictures, small, and free of this machine's paths."""

import ast
import builtins
import importlib.util
import io
import json
import re
import subprocess
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

import lscl

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = sorted((ROOT / "book").rglob("*.md"))
SETTINGS = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
LIMIT = 250_000  # bytes
SETUP = "setup"  # tag of the cell that fetches the package, which pages leave out
PATH = re.compile(r"(?<![\w.:/])/(home|root|work|tmp|usr|opt|mnt|Users|content)/\w")


def contents():
    return yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))


def entries():
    """The pages of the book in their order."""
    below = lambda page: [page["file"], *(one for section in page.get("sections", []) for one in below(section))]
    toc = contents()
    return [toc["root"], *(one for part in toc["parts"] for chapter in part["chapters"] for one in below(chapter))]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def outputs(notebook):
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def texts(output):
    """Every text of an output, pictures left out."""
    parts = [value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")]
    return "".join("".join(part) if isinstance(part, list) else str(part) for part in [*parts, output.get("text", "")])


notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_every_entry_exists_and_every_page_is_an_entry():
    found = set(entries())
    for entry in found:
        assert any((ROOT / f"{entry}{ending}").exists() for ending in (".md", ".ipynb")), entry
    assert {str(path.relative_to(ROOT).with_suffix("")) for path in (*PAGES, *NOTEBOOKS)} == found


def test_the_list_of_pages_shows_a_newcomer_the_way():
    """From the start over chapters and results to reference; what is looked up is folded below one entry."""
    parts = {part["caption"]: part["chapters"] for part in contents()["parts"]}
    assert list(parts) == [
        "Start", "The method, chapter by chapter", "Results", "Methods", "Build on it", "Look it up"
    ]  # fmt: skip
    assert sum(map(len, parts.values())) <= 24
    folded = [one["file"] for one in parts["Look it up"][-1]["sections"]]
    assert "book/api" in folded and "book/configuration" in folded
    assert all(
        one["file"].startswith("notebooks/0") for one in [*parts["Start"], *parts["The method, chapter by chapter"]]
    )


def test_the_book_never_executes():
    assert SETTINGS["execute"]["execute_notebooks"] == "off"
    assert SETTINGS["launch_buttons"]["colab_url"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pictures_in_pages_have_alt_text(path):
    text = path.read_text(encoding="utf-8")
    for block in re.findall(r"```\{(?:figure|image)\}.*?```", text, re.DOTALL):
        alt = re.search(r"^:alt: (.+)$", block, re.MULTILINE)
        assert alt and len(alt[1]) > 30, block[:80]
    assert not re.search(r"!\[\]\(|<img", text)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_included_tables_exist(path):
    for name in re.findall(r"```\{include\} (\S+)", path.read_text(encoding="utf-8")):
        assert (path.parent / name).exists(), name


@notebooks
def test_pictures_in_notebooks_have_alt_text_and_caption(path):
    for cell in read(path)["cells"]:
        kinds = {kind for output in cell.get("outputs", []) for kind in output.get("data", {})}
        drawn = bool(kinds & {"image/png", "image/svg+xml"})
        calls = cell["cell_type"] == "code" and re.search(
            r"^(figures|comparisons)\.(?!cls_attention)", source(cell).strip().splitlines()[-1]
        )
        if drawn or calls:
            settings = cell["metadata"].get("mystnb", {})
            assert len(settings["image"]["alt"]) > 40
            assert settings["figure"]["name"].startswith("fig-")
            assert settings["figure"]["caption"].endswith(".")


def test_figure_names_are_unique():
    names = [
        cell["metadata"]["mystnb"]["figure"]["name"]
        for path in NOTEBOOKS
        for cell in read(path)["cells"]
        if "mystnb" in cell["metadata"]
    ]
    assert len(set(names)) == len(names) > 10


@notebooks
def test_one_parameters_cell_in_front(path):
    cells = read(path)["cells"]
    tagged = [place for place, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0] <= 4
    assert 'profile = "demo"' in source(cells[tagged[0]])
    names = [node.targets[0].id for node in ast.parse(source(cells[tagged[0]])).body]
    # derived values come later, or an injected value would not reach them
    assert set(names) <= {"profile", "dataset", "seed", "data_dir", "weights", "compute"}


def test_the_results_begin_with_the_scoreboard():
    """No code, folded or not, stands before the table of the paper's claims, and no long text."""
    cells = read(next(path for path in NOTEBOOKS if path.stem == "05_results"))["cells"]
    board = next(place for place, cell in enumerate(cells) if "claims.summary(" in source(cell))
    before = cells[: board + 1]
    assert all("remove-input" in cell["metadata"]["tags"] for cell in before if cell["cell_type"] == "code")
    words = " ".join(source(cell) for cell in before if cell["cell_type"] == "markdown").split()
    assert "claims," in words and len(words) < 60


@notebooks
def test_small_and_clean(path):
    notebook = read(path)
    assert path.stat().st_size <= LIMIT
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "papermill" not in notebook["metadata"]
    assert not any("papermill" in cell["metadata"] for cell in notebook["cells"])
    assert not any("injected-parameters" in cell["metadata"].get("tags", []) for cell in notebook["cells"])


@notebooks
def test_stored_outputs_are_complete_and_name_no_place(path):
    notebook = read(path)
    assert all(cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    for output in outputs(notebook):
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", texts(output)[:200]
        assert not PATH.search(texts(output)), texts(output)[:200]
        # a page shows empty markdown as the name of its class
        assert "".join(output.get("data", {}).get("text/markdown", "something")), path.name


@pytest.mark.parametrize("number", ["06", "07", "08"])
def test_a_page_of_studies_says_once_what_is_missing(number):
    (path,) = (one for one in NOTEBOOKS if one.name.startswith(number))
    assert sum("runs behind this page are" in texts(output) for output in outputs(read(path))) == 1


@notebooks
def test_notebooks_show_and_the_library_computes(path):
    code = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    of_results = path.name >= "05"  # filter, group, mean, plot: in view, and small
    for cell in code:
        tags = cell["metadata"]["tags"]
        own = "own-code" in tags and path.stem == "10_build_on_it"  # what a reader would write: a method takes about 20
        visible = not {"hide-input", "remove-input"} & set(tags)
        limit = 22 if own else 14 if of_results and visible else 24
        statements = ast.parse(source(cell)).body
        imported = [one for one in statements if isinstance(one, ast.Import | ast.ImportFrom)]
        written = [line for line in source(cell).splitlines() if line.strip() or not own]
        lines = len(written) - sum(one.end_lineno - one.lineno + 1 for one in imported)
        assert lines <= limit, source(cell)[:80]
        assert own or not any(isinstance(one, ast.ClassDef) for one in statements)


EQUATIONS = {"00": ["1"], "01": [], "02": ["2", "3"], "03": ["4"], "04": ["5", "6"]}  # of the paper, by chapter
WIDEST = 88  # columns that fit beside the contents in a window of 1200 pixels


chapters = pytest.mark.parametrize("path", [one for one in NOTEBOOKS if one.name < "05"], ids=lambda path: path.stem)


@chapters
def test_a_chapter_teaches_in_the_same_order_and_no_cell_is_wider_than_its_page(path):
    """What you will learn, the paper's equation numbers, an exercise with a folded answer, three lines at the end."""
    cells = read(path)["cells"]
    wide = [
        line
        for cell in cells
        if cell["cell_type"] == "code" and SETUP not in cell["metadata"]["tags"]
        for line in source(cell).splitlines()
        if len(line) > WIDEST
    ]
    assert wide == []
    words = [source(cell) for cell in cells if cell["cell_type"] == "markdown"]
    assert "What you will learn:" in words[0] and 2 <= words[0].count("\n- ") <= 5
    assert "## Exercise" in words[-1] and "<details><summary>Answer</summary>" in words[-1]
    recap = words[-1].split("## In three lines")[1]
    assert len(re.findall(r"^- ", recap, re.MULTILINE)) == 3
    assert re.findall(r"\\tag\{(\d)\}", "\n".join(words)) == EQUATIONS[path.name[:2]]
    formulas = re.findall(r"\$\$.*?\$\$", "\n".join(words), re.DOTALL)
    assert not [one for one in formulas if "\\tag" in one and "\\\\" in one], "the page would show an error of MathJax"


@chapters
def test_every_code_cell_explains_itself_or_is_folded(path):
    """Text before it, a comment or docstring in it, or a figure's caption below it; only a folded cell may lack all."""
    before = ""
    for cell in read(path)["cells"]:
        tags = cell["metadata"].get("tags", [])
        said = before == "markdown" or '"""' in source(cell) or "#" in source(cell) or "mystnb" in cell["metadata"]
        assert cell["cell_type"] == "markdown" or {"hide-input", "hide-cell"} & set(tags) or said, source(cell)[:80]
        before = cell["cell_type"]


def test_equations_have_the_numbers_of_the_paper_or_none():
    """A number that the page makes itself would contradict the text, which calls equations as the paper does."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\$\$ *\([\w-]+\)$|```\{math\}(?s:.*?):label:", text, re.MULTILINE), path.name
    assert re.findall(r"\\tag\{(\d)\}", (ROOT / "book" / "notation.md").read_text(encoding="utf-8")) == list("2345")


def first_cell(path):
    return next(cell for cell in read(path)["cells"] if cell["cell_type"] == "code")


@notebooks
def test_the_colab_cell_is_the_same_in_all_and_has_the_address_of_the_settings_and_the_release(path):
    first = first_cell(path)
    assert {"remove-input", "setup"} <= set(first["metadata"]["tags"])
    assert re.search(r'^REPOSITORY = "(.+)"$', source(first), re.MULTILINE)[1] == SETTINGS["repository"]["url"]
    assert re.search(r'^RELEASE = "(.+)"$', source(first), re.MULTILINE)[1] == f"v{lscl.__version__}"
    assert source(first) == source(first_cell(NOTEBOOKS[0]))


@pytest.mark.parametrize(("on_colab", "there", "fetched"), [(0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1)])
def test_the_colab_cell_fetches_the_bootstrap_of_the_release_where_it_is_needed(on_colab, there, fetched, monkeypatch):
    """At home with the package nothing happens; on Colab it runs after a restart, too."""
    asked, given = [], "import builtins; builtins.given = (REPOSITORY, RELEASE)"
    monkeypatch.setattr(urllib.request, "urlopen", lambda url: asked.append(url) or io.BytesIO(given.encode()))
    monkeypatch.setattr(builtins, "given", None, raising=False)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "r") if on_colab else monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    if not there:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exec(source(first_cell(NOTEBOOKS[0])), {})
    address, release = SETTINGS["repository"]["url"], f"v{lscl.__version__}"
    assert asked == [f"{address}/raw/{release}/notebooks/colab_setup.py"] * fetched
    assert builtins.given == ((address, release) if fetched else None)


def test_the_address_stands_nowhere_else():
    """Apart from what `lscl pages` writes: the notebooks' first cell, which the test above compares, and the badges."""
    address = urlsplit(SETTINGS["repository"]["url"])
    assert address.scheme == "https" and len(address.path) > 3
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout.splitlines()
    holding = [
        name
        for name in tracked
        if (ROOT / name).exists() and address.path.strip("/").encode() in (ROOT / name).read_bytes()
    ]
    assert [name for name in holding if not name.startswith("notebooks/")] == ["README.md", "_config.yml"]
    before, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- badges:begin -->")
    assert address.path.strip("/") not in before + rest.partition("<!-- badges:end -->")[2]
    for path in NOTEBOOKS:
        assert path.read_text(encoding="utf-8").count(address.path) == 1
