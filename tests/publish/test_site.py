"""The rendered book: links lead somewhere, and every page is readable in a browser, wide or narrow, light or dark."""

import os
import re
import shutil
import subprocess
import sys
import zlib
from collections import Counter
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from lxml import html
from playwright.sync_api import TimeoutError, sync_playwright
from test_book import entries
from tests_root import ROOT

from lscl.publish.build import JUPYTER_BOOK

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
# Formulas whose beginning lies left of the screen, where nobody can scroll.
CUT_FORMULAS = """[...document.querySelectorAll("mjx-container[display=true]")]
  .filter((one) => one.getBoundingClientRect().left < 0).map((one) => one.textContent)"""
UNNAMED = "[...document.querySelectorAll('button.copybtn')].filter(button => !button.ariaLabel).length"
# Take the entries of the API away whose elements (names with classes) all stand in an earlier entry of the page.
REMOVE_REPEATED = """() => {
  const seen = new Set(), kind = (element) => element.tagName + " " + [...element.classList].sort().join(" ");
  for (const entry of document.querySelectorAll("dl.py"))
    if (entry.isConnected) {
      const kinds = [entry, ...entry.querySelectorAll("*")].map(kind);
      if (kinds.every((one) => seen.has(one))) entry.remove();
      else if (!entry.querySelector("dl.py")) kinds.forEach((one) => seen.add(one));
    }
}"""
COLOURS = ["color-contrast", "link-in-text-block"]  # the rules of axe that colours alone decide
# Whether colours can be read, checked on three elements of each look (as the browser draws them, with everything around
# them) that no earlier page has settled; -> faults, looks that are settled now, looks that axe could not decide on.
CHECK_COLOURS = """async ([settled, rules]) => {
  const STYLES = ["color", "backgroundColor", "backgroundImage", "opacity", "fontSize", "fontWeight", "textShadow",
                  "filter", "mixBlendMode", "position", "textDecorationLine"];
  const known = new Set(settled), looks = new Map([[null, ""]]), counts = new Map();
  const hash = (text) => {
    let one = 7, other = 31;
    for (let i = 0; i < text.length; i++) {
      one = Math.imul(one ^ text.charCodeAt(i), 2654435761);
      other = Math.imul(other ^ text.charCodeAt(i), 1597334677);
    }
    return (one >>> 0) + "." + (other >>> 0);
  };
  const hasText = (element) => element.matches("a, input, select, textarea")
    || [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  const look = (element) => {
    if (!looks.has(element)) {
      const style = getComputedStyle(element), inText = element.tagName === "A" && hasText(element.parentElement);
      const own = [look(element.parentElement), element.tagName, inText, ...STYLES.map((name) => style[name])];
      looks.set(element, hash(own.join()));
    }
    return looks.get(element);
  };
  const few = (kind) => counts.set(kind, (counts.get(kind) ?? 0) + 1).get(kind) <= 3;
  const open = [...document.body.querySelectorAll("*")].filter(
    (one) => hasText(one) && one.checkVisibility() && !known.has(look(one)) && few(look(one)));
  if (open.length === 0) return [[], [], []];
  const { passes, violations } = await axe.run(open, {
    runOnly: rules, resultTypes: ["passes", "violations"], elementRef: true, selectors: false, preload: false,
  });
  const nodes = (results) => results.flatMap((result) => result.nodes.map((node) => [result.id, node]));
  const passed = new Set(nodes(passes).map(([, node]) => look(node.element)));
  return [nodes(violations).map(([id, node]) => `${id}: ${node.html}`), [...passed],
          [...new Set(open.map(look))].filter((one) => !passed.has(one))];
}"""
# What has a bright ground of its own in the dark mode: a relative luminance (WCAG 2) above 0.5.
BRIGHT_IN_THE_DARK = """() => {
  Object.assign(document.documentElement.dataset, {theme: "dark", mode: "dark"});
  const luminance = (colour) => {
    const most = colour.startsWith("rgb") ? 255 : 1;
    const [red, green, blue, alpha = 1] = colour.match(/[\\d.]+/g).map(Number);
    const linear = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = [red, green, blue].map((value) => linear(value / most));
    return alpha * (0.2126 * r + 0.7152 * g + 0.0722 * b);
  };
  return [...document.querySelectorAll(".bd-article *")]
    .filter((one) => one.checkVisibility() && luminance(getComputedStyle(one).backgroundColor) > 0.5)
    .map((one) => `${one.tagName} ${one.className}: ${one.textContent.trim().slice(0, 60)}`);
}"""
# Without transitions a colour is there as soon as it is set.
STILL = "*, ::before, ::after { transition: none !important; animation: none !important }"


@pytest.fixture(scope="session", autouse=True)
def site():
    """The book, built as readers get it, warnings being errors.

    Sphinx warns only of pages that it reads, so it has to read all of them again unless the last build was without one.
    """
    clean = SITE.parent / ".without-warnings"
    if not clean.exists():
        shutil.rmtree(SITE.parent / ".doctrees", ignore_errors=True)
    clean.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-c",
        JUPYTER_BOOK,
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
    clean.touch()
    return SITE


@pytest.fixture(scope="module")
def trees(site):
    """{name: the elements of a page}."""
    pages = sorted(site.rglob("*.html"))
    return {path.relative_to(site).as_posix(): html.parse(path, html.HTMLParser(encoding="utf-8")) for path in pages}


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


def prepare(page):
    """The page as axe gets it: without transitions, without entries that repeat the kinds of elements before them."""
    page.add_style_tag(content=STILL)
    page.evaluate(REMOVE_REPEATED)
    page.evaluate(AXE_SCRIPT)


def faults(page):
    """The faults that axe finds beside those of colours."""
    rules = {name: {"enabled": False} for name in COLOURS}
    options = {"preload": False, "resultTypes": ["violations"], "rules": rules}
    found = page.evaluate("(options) => axe.run(options)", options)["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found]


@pytest.fixture(scope="module")
def looks():
    """How often each look was open: those that passed count as settled, as do those axe left open on three pages."""
    return Counter()


def pale(page, theme, looks):
    """The faults of colours in a theme, in all looks that the pages before have not settled."""
    page.evaluate(f"Object.assign(document.documentElement.dataset, {{theme: '{theme}', mode: '{theme}'}})")
    settled = [look for look, count in looks.items() if count >= 3]
    found, passed, undecided = page.evaluate(CHECK_COLOURS, [settled, COLOURS])
    looks.update(undecided)
    looks.update(dict.fromkeys(passed, 3))
    return [f"{theme}: {one}" for one in found]


def kinds(tree):
    """What style sheets tell elements apart by: names with classes, and styles of their own."""
    elements = (one for one in tree.iter() if isinstance(one.tag, str))
    return {(one.tag, *sorted(one.get("class", "").split()), one.get("style")) for one in elements}


def pages_with_new_kinds(trees, names):
    """The pages that have a kind of element which no page before has."""
    found, known = set(), set()
    for name in names:
        if not kinds(trees[name]) <= known:
            found.add(name)
        known |= kinds(trees[name])
    return found


@pytest.fixture(scope="module")
def templates(trees):
    """The pages that are checked in the dark mode, too: the first ones with what the others are made of."""
    return pages_with_new_kinds(trees, NAMES)


def test_the_dark_mode_is_checked_wherever_a_kind_of_element_is_new(templates):
    texts = ["<p class='b a'>x<p class=c>", "<p class='a b'>y", "<p class=c>z", "<p class=c style='color: red'>z"]
    pages = {text: html.fromstring(f"<html><body>{text}</body></html>").getroottree() for text in texts}
    assert pages_with_new_kinds(pages, texts) == {texts[0], texts[3]}
    assert {NAMES[0], "notebooks/00_the_problem.html", "book/explore.html"} <= templates
    assert len(templates) < len(NAMES) / 2


@pytest.fixture(scope="module")
def anchors(trees):
    """What a link can lead to on each page."""
    return {name: set(tree.xpath("//@id")) for name, tree in trees.items()}


@pytest.mark.parametrize("name", NAMES)
def test_links_anchors_and_pictures(trees, anchors, name):
    found = trees[name].xpath("//a/@href | //img/@src | //link/@href | //script/@src")
    assert len(found) > 20
    for link in found:
        parts, tag = urlsplit(link), link.getparent().tag
        if parts.scheme or parts.netloc:
            assert parts.scheme in ("https", "data") and tag == "a", link
            continue
        target = (SITE / name).parent / unquote(parts.path) if parts.path else SITE / name
        assert target.resolve().exists(), link
        if parts.fragment and target.suffix == ".html":
            reached = target.resolve().relative_to(SITE.resolve()).as_posix()
            assert unquote(parts.fragment) in anchors[reached], link
    assert all(len(picture.get("alt", "")) > 30 for picture in trees[name].xpath("//article//img"))


@pytest.mark.parametrize("name", NAMES)
def test_page_in_a_browser(page, looks, templates, name):
    page.set_viewport_size(NARROW)
    visit(page, name)
    with pictured(page, name):
        for label, size in (("narrow", NARROW), ("medium", MEDIUM), ("wide", WIDE)):
            page.set_viewport_size(size)
            page.evaluate(DRAWN)
            with suppress(TimeoutError):  # figures follow the new width
                page.wait_for_function(f"{OVERFLOW} <= 0", timeout=30_000)
            assert page.evaluate(OVERFLOW) <= 0, f"{label}: the page scrolls sideways"
            assert page.evaluate(BROKEN) == []
            if size is NARROW:
                assert page.evaluate(BAD_TABLES) == page.evaluate(CUT_FORMULAS) == []
        assert page.wrong == []
        assert weight(page) <= (MOST_OF_FIRST if name == FIRST else MOST)
        assert page.evaluate(UNNAMED) == 0
        prepare(page)
        assert faults(page) == []
        assert pale(page, "light", looks) == []
        if name in templates:
            assert pale(page, "dark", looks) == []
        assert page.evaluate(BRIGHT_IN_THE_DARK) == []


def test_a_bright_card_in_the_dark_mode_is_found(page):
    visit(page, "notebooks/04_one_by_one_distillation.html")
    prepare(page)
    assert page.evaluate(BRIGHT_IN_THE_DARK) == []
    card = ".bd-article div.cell_output div.text_html { background: var(--pst-color-text-base) !important }"
    page.add_style_tag(content=card)
    assert any("text_html" in one for one in page.evaluate(BRIGHT_IN_THE_DARK))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    ("name", "part"), [("book/configuration.html", "tr"), ("notebooks/01_data_partitioning.html", "pre")]
)
def test_one_pale_word_is_found_on_a_page_that_was_settled(page, looks, name, part, theme):
    visit(page, name)
    prepare(page)
    assert pale(page, theme, looks) == []
    words = page.locator(f"{part} :is(p, span)").filter(has_text=re.compile(r"^\s*\w{4,}\s*$"))
    words.last.evaluate(
        "(word, colour) => { word.style.color = colour }", {"light": "#eeeeee", "dark": "#222222"}[theme]
    )
    assert any("color-contrast" in fault for fault in pale(page, theme, looks))


def test_a_link_that_only_its_colour_tells_from_text_is_found(page, looks):
    visit(page, "book/scaling_out.html")
    prepare(page)
    page.add_style_tag(content=".bd-article p a { text-decoration: none !important; color: #445 !important }")
    assert any("link-in-text-block" in fault for fault in pale(page, "light", looks))


def test_faults_that_are_not_of_colours_are_found(page):
    visit(page, "book/api/methods.html")
    prepare(page)
    page.locator("dl.py").last.evaluate("(entry) => { entry.querySelector('dd').innerHTML += '<button></button>' }")
    assert [fault.split(":")[0] for fault in faults(page)] == ["button-name"]


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
    drawn = "[...document.querySelectorAll('#explore-plot, #explore-plot .main-svg')].map(one => one.{})"
    for size in (WIDE, {"width": 1300, "height": 700}, MEDIUM, NARROW, WIDE):
        page.set_viewport_size(size)
        page.evaluate(DRAWN)
        for side in ("clientWidth", "clientHeight"):  # the drawing fills its place, and no more than that
            page.wait_for_function(f"new Set({drawn.format(side)}).size === 1", timeout=5_000)
    assert page.wrong == []
