"""The rendered book: links lead somewhere, and every page is readable in a browser, wide or narrow, light or dark."""

import os
import re
import shutil
import subprocess
import sys
import zlib
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from bs4 import BeautifulSoup
from playwright.sync_api import TimeoutError, sync_playwright
from test_book import entries
from tests_root import ROOT

SITE = ROOT / "_build" / "test" / "_build" / "html"
SHOTS = ROOT / "_build" / "screenshots"
NAMES = sorted(f"{entry}.html" for entry in entries())
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDE, MEDIUM, NARROW = ({"width": width, "height": 900} for width in (1400, 800, 400))
FIRST = f"{entries()[0]}.html"
MOST, MOST_OF_FIRST = 2_000_000, 1_000_000  # bytes that a page may load, without the interactive figure's library
PACKED = {".html", ".js", ".css", ".svg", ".json"}  # what a web server sends compressed
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
DRAWN = (
    "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"  # the new size has been laid out
)
BROKEN = "[...document.images].filter(image => !image.complete || image.naturalWidth === 0).map(image => image.src)"
# Tables that leave their column or cannot be scrolled there, and those with a row that fills a small screen.
BAD_TABLES = """[...document.querySelectorAll(".bd-article table")].filter((table) => {
  const inside = table.closest(".scroll, .cell_output") ?? table, wide = table.scrollWidth > table.clientWidth + 1;
  const scrolls = ["auto", "scroll"].includes(getComputedStyle(table).overflowX) || inside !== table;
  return inside.getBoundingClientRect().right > innerWidth || (wide && !scrolls)
    || [...table.rows].some((row) => row.getBoundingClientRect().height > 700);
}).map((table) => table.textContent.trim().slice(0, 80))"""
UNNAMED = "[...document.querySelectorAll('button.copybtn')].filter(button => !button.ariaLabel).length"
REPEATED = "[data-repeated]"
# Mark the entries of the API whose elements (names with classes) all stand in an earlier entry of the page.
MARK_REPEATED = """() => {
  for (const marked of document.querySelectorAll("[data-repeated]")) delete marked.dataset.repeated;
  const seen = new Set(), kind = (element) => element.tagName + " " + [...element.classList].sort().join(" ");
  for (const entry of document.querySelectorAll("dl.py"))
    if (!entry.closest("[data-repeated]")) {
      const kinds = [entry, ...entry.querySelectorAll("*")].map(kind);
      if (kinds.every((one) => seen.has(one))) entry.dataset.repeated = "";
      else if (!entry.querySelector("dl.py")) kinds.forEach((one) => seen.add(one));
    }
}"""
# Mark the rows of tables and the pieces of code that hold plain text only and all of whose elements look (as the
# browser draws them, with everything around them) like elements before them; count all that is marked.
MARK_SAME_LOOKS = """() => {
  const PLAIN = new Set(["TR", "TH", "TD", "P", "STRONG", "EM", "CODE", "PRE", "SPAN", "BR"]);
  const STYLES = ["color", "backgroundColor", "backgroundImage", "opacity", "fontSize", "fontWeight", "textShadow",
                  "filter", "mixBlendMode", "visibility"];
  const numbers = new Map(), looks = new Map(), seen = new Set();
  const number = (text) => numbers.set(text, numbers.get(text) ?? numbers.size + 1).get(text);
  const own = (element) => {
    const style = getComputedStyle(element), scrolls = element.scrollWidth > element.clientWidth;
    const names = element.getAttributeNames().filter((name) => !["id", "style", "data-repeated"].includes(name));
    return [element.tagName, scrolls, ...names.map((name) => name + element.getAttribute(name)),
            ...STYLES.map((name) => style[name])].join();
  };
  const look = (element) => {
    if (element === null) return 0;
    if (!looks.has(element)) looks.set(element, number(look(element.parentElement) + own(element)));
    return looks.get(element);
  };
  for (const part of document.querySelectorAll("tbody tr, pre")) {
    const elements = [part, ...part.querySelectorAll("*")];
    if (part.closest("[data-repeated]") || !elements.every((one) => PLAIN.has(one.tagName))) continue;
    if (elements.map(look).every((one) => seen.has(one))) part.dataset.repeated = "";
    else elements.map(look).forEach((one) => seen.add(one));
  }
  return document.querySelectorAll("[data-repeated]").length;
}"""
# Without transitions a colour is there as soon as it is set.
STILL = "*, ::before, ::after { transition: none !important; animation: none !important }"


@pytest.fixture(scope="session", autouse=True)
def site():
    """The book, built as readers get it, warnings being errors."""
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(ROOT),
        "--toc",
        str(ROOT / "book" / "_toc.yml"),
    ]
    built = subprocess.run(
        [*command, "--path-output", str(ROOT / "_build" / "test"), "-q", "-n", "-W", "--keep-going"],
        capture_output=True,
        encoding="utf-8",
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return SITE


@pytest.fixture(scope="module")
def soups(site):
    return {
        path.relative_to(site).as_posix(): BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for path in sorted(site.rglob("*.html"))
    }


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        if found is None and Path(playwright.chromium.executable_path).exists():
            found = playwright.chromium.executable_path
        if found is None and "LSCL_BROWSER" in os.environ:
            pytest.fail("LSCL_BROWSER is set, but there is no Chromium")
        if found is None:
            pytest.skip("no Chromium here: install the system's chromium, or run .venv/bin/playwright install chromium")
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def window(browser):
    """One page for all tests; it remembers what went wrong, and which other hosts it asked for anything."""
    context = browser.new_context(viewport=WIDE, reduced_motion="reduce")
    page = context.new_page()
    page.wrong, page.loaded = [], set()
    page.on(
        "console", lambda message: page.wrong.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(("file:", "data:", "blob:"))
            else page.wrong.append(f"asked for {request.url}")
        ),
    )
    page.on("request", lambda request: page.loaded.add(urlsplit(request.url)._replace(query="", fragment="").geturl()))
    page.on("requestfailed", lambda request: page.wrong.append(f"missing {request.url}"))
    yield page
    context.close()


@pytest.fixture
def page(window):
    """The page as a reader finds it: empty, wide, nothing wrong yet."""
    window.goto("about:blank")
    window.set_viewport_size(WIDE)
    window.wrong.clear()
    window.loaded.clear()
    return window


def visit(page, name):
    page.goto((SITE / name).as_uri())
    page.wait_for_function("!window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)")


@contextmanager
def pictured(page, name):
    """If what is checked here fails, what the page looked like is in _build/screenshots."""
    try:
        yield
    except Exception:
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"{name.removesuffix('.html').replace('/', '--')}.png", full_page=True)
        raise


@cache
def transferred(path):
    """Bytes of a file on their way to a reader: text compressed, as web servers send it."""
    content = path.read_bytes()
    return len(zlib.compress(content, 6)) if path.suffix in PACKED else len(content)


def weight(page):
    """Bytes that a page has loaded, without the library of the interactive figure."""
    paths = [
        Path(unquote(urlsplit(url).path)) for url in page.loaded if url.startswith("file:") and "/plotly" not in url
    ]
    return sum(map(transferred, paths))


def faults(page, theme, rules=None):
    """The faults that axe finds in a theme, in all but what repeats kinds and looks of elements before it.

    `rules` names the only rules to check; by default all.
    """
    page.evaluate(f"Object.assign(document.documentElement.dataset, {{theme: '{theme}', mode: '{theme}'}})")
    page.evaluate(MARK_REPEATED)
    where = {"exclude": [[REPEATED]]} if page.evaluate(MARK_SAME_LOOKS) else None
    options = {"preload": False, "resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
    if page.evaluate("typeof axe === 'undefined'"):
        page.evaluate(AXE_SCRIPT)
    found = page.evaluate("([where, options]) => axe.run(where ?? document, options)", [where, options])["violations"]
    return [f"{theme}: {one['id']}: {one['nodes'][0]['html']}" for one in found]


@pytest.fixture(scope="module")
def anchors(soups):
    """What a link can lead to on each page."""
    return {name: {tag["id"] for tag in soup.find_all(id=True)} for name, soup in soups.items()}


@pytest.mark.parametrize("name", NAMES)
def test_links_anchors_and_pictures(soups, anchors, name):
    for tag, attribute in (("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")):
        for found in soups[name].find_all(tag, **{attribute: True}):
            parts = urlsplit(found[attribute])
            if parts.scheme or parts.netloc:
                assert parts.scheme in ("https", "data") and tag == "a", found
                continue
            target = (SITE / name).parent / unquote(parts.path) if parts.path else SITE / name
            assert target.resolve().exists(), found
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in anchors[target.resolve().relative_to(SITE.resolve()).as_posix()], (
                    found
                )
    for picture in soups[name].select("article img"):
        assert len(picture.get("alt", "")) > 30, picture


@pytest.mark.parametrize("name", NAMES)
def test_page_in_a_browser(page, name):
    visit(page, name)
    with pictured(page, name):
        for label, size in (("wide", WIDE), ("medium", MEDIUM), ("narrow", NARROW)):
            page.set_viewport_size(size)
            page.evaluate(DRAWN)
            with suppress(TimeoutError):  # figures follow the new width
                page.wait_for_function(f"{OVERFLOW} <= 0", timeout=5000)
            assert page.evaluate(OVERFLOW) <= 0, f"{label}: the page scrolls sideways"
            assert page.evaluate(BROKEN) == []
        assert page.evaluate(BAD_TABLES) == []
        page.set_viewport_size(WIDE)
        assert page.wrong == []
        assert weight(page) <= (MOST_OF_FIRST if name == FIRST else MOST)
        assert page.evaluate(UNNAMED) == 0
        page.add_style_tag(content=STILL)
        assert faults(page, "light") == []
        assert faults(page, "dark", ["color-contrast"]) == []  # nothing but colours follows the theme


@pytest.mark.parametrize(
    ("name", "part"), [("book/configuration.html", "tr"), ("notebooks/01_data_partitioning.html", "pre")]
)
def test_what_cannot_be_read_is_found_among_what_repeats_looks(page, name, part):
    """A single pale word in a row or in a piece of code that is left out as it is."""
    visit(page, name)
    page.add_style_tag(content=STILL)
    assert faults(page, "light") == []
    words = page.locator(f"{part}[data-repeated] :is(p, span)").filter(has_text=re.compile(r"^\s*\w{4,}\s*$"))
    words.last.evaluate("(word) => { word.style.color = '#eeeeee' }")
    assert any("color-contrast" in fault for fault in faults(page, "light", ["color-contrast"]))


def test_a_table_that_leaves_its_column_is_found(page):
    visit(page, "book/notation.html")
    page.set_viewport_size(NARROW)
    assert page.evaluate(BAD_TABLES) == []
    page.add_style_tag(content=".bd-article table { overflow-x: visible !important; min-width: 900px }")
    assert len(page.evaluate(BAD_TABLES)) > 2


def test_what_a_page_loads_is_counted(page):
    """Formulas load MathJax, pages without them do not; icons come from fonts."""
    visit(page, "book/notation.html")
    with_formulas = weight(page)
    assert any("tex-chtml" in url for url in page.loaded)
    page.loaded.clear()
    visit(page, "book/configuration.html")
    assert not any("tex-chtml" in url for url in page.loaded)
    assert 200_000 < weight(page) < with_formulas
    icon = "getComputedStyle(document.querySelector('i.fa-bars, span.fa-bars'), '::before').fontFamily"
    assert "Font Awesome" in page.evaluate(icon)


def test_copy_buttons_have_a_name_and_copy(page):
    visit(page, "book/scaling_out.html")
    buttons = page.get_by_role("button", name="Copy this code")
    assert buttons.count() == page.locator("div.highlight pre").count() > 3


def test_search_finds_a_page_without_a_server(page):
    page.goto((SITE / "search.html").as_uri() + "?q=distillation")
    page.wait_for_selector("#search-results li a")
    assert "one_by_one_distillation" in page.inner_html("#search-results")
    assert page.wrong == []


def test_a_table_is_sorted_by_a_click(page):
    visit(page, "book/configuration.html")
    cells = lambda: page.locator("table.table").first.locator("tbody tr td:first-child").all_text_contents()
    before, button = cells(), page.locator("table.table").first.locator("th button").first
    button.click()
    assert cells() == sorted(before) != before
    button.click()
    assert cells() == sorted(before, reverse=True)
    assert page.locator("table.table th[aria-sort]").count() == 1


def test_the_interactive_figure(page):
    visit(page, "book/explore.html")
    lines = lambda: page.evaluate(
        "document.getElementById('explore-plot').data.map(line => [line.name, line.y.length])"
    )
    before = lines()
    assert len(before) > 1 and all(count == 5 for _, count in before)
    page.get_by_role("combobox", name="score").select_option("task-masked")
    page.get_by_role("combobox", name="accuracy on").select_option("the task just learned")
    assert any("published" in name for name, _ in lines())
    page.get_by_role("combobox", name="against").select_option("MB up")
    assert all(count == 1 for _, count in lines())
    everybody = len(lines())
    page.locator(".explore input[type=checkbox]").first.press("Space")  # by keyboard
    page.wait_for_function(f"document.getElementById('explore-plot').data.length === {everybody - 1}")
    page.locator(".explore details summary").press("Enter")
    assert page.locator(".explore details tbody tr").count() == everybody - 1
    page.get_by_role("button", name="as in the paper's Table 1").press("Enter")
    assert page.get_by_role("combobox", name="score").input_value() == "task-masked"
    published = "document.getElementById('explore-plot').data.filter(one => one.name.endsWith('published'))"
    assert page.evaluate(f"{published}.length > 0 && {published}.every(one => one.visible !== 'legendonly')")
    assert page.wrong == []
