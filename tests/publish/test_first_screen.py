"""What README and landing page show first."""

import importlib.util
import json
import re
import shutil
from types import SimpleNamespace

import pytest
from docutils import nodes
from made_records import record
from tests_root import ROOT

from lscl.errors import LsclError
from lscl.publish import first_screen
from lscl.results.markdown import NO_RECORDS

ADDRESS = "https://example.org/someone/copy"


@pytest.fixture
def settings(places):
    """settings(address): the settings with another address, and the project's file; -> the root of the test."""

    def put(address=ADDRESS):
        places.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "pyproject.toml", places / "pyproject.toml")
        (places / "_config.yml").write_text(f"repository:\n  url: {json.dumps(address)}\n", encoding="utf-8")
        return places

    return put


def test_the_site_follows_from_the_address_of_the_repository():
    assert first_screen.site_address("https://github.com/Some-One/copy.git") == "https://some-one.github.io/copy/"
    for address in (ADDRESS, "https://github.com/someone", "https://github.com.example.org/a/b", ""):
        assert first_screen.site_address(address) is None


def test_badges_have_the_address_of_the_settings_and_the_values_of_the_project(settings):
    settings()
    text = first_screen.readme_blocks(first_screen.read_first_screen({"mini": []}))["badges"]
    assert text.count(f"{ADDRESS}/actions/workflows/test.yml") == 2 and f"[The repository]({ADDRESS})" in text
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    licence = re.search(r'^license = "(.+)"', project, re.MULTILINE)[1].replace("-", "--")
    python = re.search(r'^requires-python = ">=(.+)"', project, re.MULTILINE)[1]
    assert f"licence-{licence}-" in text and f"%3E%3D{python}-" in text
    settings("https://github.com/someone/copy")
    assert (
        "[Read the book](https://someone.github.io/copy/)"
        in first_screen.readme_blocks(first_screen.read_first_screen({"mini": []}))["badges"]
    )


@pytest.mark.parametrize("address", ["", "ftp://a/b", "https://a/b) [x](c", "https://a/ b", 3, ["x"]])
def test_an_address_that_is_none_is_one_line(settings, one_line, address):
    place = settings(address) / "_config.yml"
    with pytest.raises(LsclError) as caught:
        first_screen.readme_blocks(first_screen.read_first_screen({"mini": []}))
    one_line(caught, place, "repository: url")


@pytest.mark.parametrize("text", ["", "[project", "project = 3", "[project]\nlicense = 'x'\n"])
def test_a_damaged_project_file_is_one_line(settings, one_line, text):
    place = settings() / "pyproject.toml"
    place.write_text(text, encoding="utf-8")
    with pytest.raises(LsclError) as caught:
        first_screen.readme_blocks(first_screen.read_first_screen({"mini": []}))
    one_line(caught, place, "requires-python")


def test_without_records_every_piece_is_a_sentence(settings):
    settings()
    made = first_screen.first_pieces(first_screen.read_first_screen({"full": [], "mini": []}))
    assert NO_RECORDS in made["results/tables/finding.md"] and NO_RECORDS in made["results/tables/first_dots.html"]
    assert first_screen.NOT_PLAYED in made["results/tables/round.html"] and first_screen.ROUND not in made
    blocks = first_screen.readme_blocks(first_screen.read_first_screen({"full": [], "mini": []}))
    assert (
        blocks["finding"] == NO_RECORDS
        and blocks["round"] == first_screen.NOT_PLAYED
        and blocks["results"] == NO_RECORDS
    )


def test_with_records_and_a_played_round_there_are_pictures(settings):
    federation = settings() / "results" / "federation"
    federation.mkdir(parents=True)
    shutil.copy(ROOT / "results" / "federation" / "round.json", federation / "round.json")
    runs = [record(seed=seed, clients=5) for seed in (42, 1999)] + [record("fed_ncm", clients=5, score=90)]
    screen = first_screen.read_first_screen({"mini": runs})
    made, blocks = first_screen.first_pieces(screen), first_screen.readme_blocks(screen)
    assert "One seed is recorded so far" in blocks["finding"] and f"]({first_screen.DOTS})" in blocks["finding"]
    assert made[first_screen.DOTS].startswith("<svg") and f"]({first_screen.ROUND})" in blocks["round"]
    assert len(made[first_screen.ROUND]) < 1_500_000
    assert "| federated class means | control | 1 |" in blocks["results"] and "<details " in blocks["results"]


@pytest.mark.parametrize("change", [{"round": 0}, {"clients": []}, {"points": {}}, {"sent": 3}])
def test_a_damaged_round_is_one_line(settings, one_line, change):
    place = settings() / "results" / "federation" / "round.json"
    place.parent.mkdir(parents=True)
    whole = json.loads((ROOT / "results" / "federation" / "round.json").read_text(encoding="utf-8"))
    place.write_text(json.dumps({**whole, **change}), encoding="utf-8")
    with pytest.raises(LsclError) as caught:
        first_screen.first_pieces(first_screen.read_first_screen({"mini": []}))
    one_line(caught, place, next(iter(change)))


@pytest.fixture
def extension():
    """The book's own Sphinx extension."""
    found = importlib.util.spec_from_file_location("plain_pages", ROOT / "book" / "_ext" / "plain_pages.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_a_returned_value_with_a_colon_in_its_description_keeps_it(extension):
    """Napoleon would make a type of what stands before the colon; only one word is one."""
    from sphinx.ext.napoleon import Config, GoogleDocstring

    def returned(text):
        lines = ["Do it.", "", "Returns:", f"    {text}"]
        extension.untyped_returns(None, "function", "f", None, None, lines)
        return str(GoogleDocstring(lines, Config(napoleon_use_rtype=True), what="function"))

    for text in ("The CNN: (b, 3, H, W) -> (b, m).", "{name: tensor}, and a module.", "(n,) bool."):
        assert f":returns: {text}" in returned(text) and ":rtype:" not in returned(text)
    assert ":rtype: pandas.DataFrame" in returned("pandas.DataFrame: a row per system.")


def described(extension, address, text):
    """The meta tags that a page with one paragraph gets."""
    page = nodes.document(None, None)
    page += nodes.paragraph("", "Short.")
    page += nodes.paragraph("", text)
    options = {"repository_url": address}
    app = SimpleNamespace(config=SimpleNamespace(html_title="Book", project="P", html_theme_options=options))
    context = {"title": "A page", "metatags": "<meta before>"}
    extension.describe(app, "book/a", "page.html", context, page)
    return context["metatags"]


def test_a_page_describes_itself_by_its_first_long_paragraph(extension):
    tags = described(extension, "https://github.com/some/copy", 'What "it" says <b>, ' + 50 * "word ")
    assert (
        tags.startswith("<meta before>")
        and '<meta name="description" content="What &quot;it&quot; says &lt;b&gt;,' in tags
    )
    assert '<meta property="og:image" content="https://some.github.io/copy/_static/social.png">' in tags
    assert '<meta property="og:url" content="https://some.github.io/copy/book/a.html">' in tags
    assert "og:image" not in described(extension, ADDRESS, 100 * "x")
    notebook = nodes.document(None, None)
    notebook += nodes.paragraph("", "Needs the frozen mini model of the package. Takes 20 seconds on 2 cores.")
    items = [nodes.list_item("", nodes.paragraph("", text)) for text in ("what a round is,", "why.")]
    notebook += nodes.bullet_list("", *items)
    assert extension.summary(notebook) == "What a round is, why."
    context = {}
    extension.describe(None, "search", "search.html", context, None)
    assert context == {}
