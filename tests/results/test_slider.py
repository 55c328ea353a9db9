"""The slider has numbers for every place, and moves without a server."""

import json
import re
import shutil

import pytest
from playwright.sync_api import sync_playwright

from lscl.errors import LsclError
from lscl.results.slider import WIDTH, value_slider

PLACES, SERIES = [1e-3, 1.0, 1e3], {"from its own": [2.0, 1.0, 0.0], "from the mean": [0.0, 0.5, 1.0]}


def frames(text):
    return json.loads(re.search(r"frames = (\[\{.*?\}\]), width", text)[1])


def test_every_place_has_all_numbers_on_one_scale():
    found = frames(value_slider("λ", PLACES, SERIES))
    assert [one["place"] for one in found] == ["λ = 0.001", "λ = 1", "λ = 1000"]
    assert [[value["share"] for value in one["values"]] for one in found] == [[1.0, 0.0], [0.5, 0.25], [0.0, 0.5]]
    assert [value["text"] for value in found[1]["values"]] == ["1", "0.5"]


def test_the_middle_place_is_shown_without_a_script():
    before = value_slider("λ", PLACES, SERIES).split("<script>")[0]
    assert ">λ = 1</output>" in before and 'min="0" max="2" value="1"' in before
    assert f'width="{0.5 * (WIDTH - 70):g}"' in before and ">0.5</text>" in before


def test_a_name_cannot_end_the_script_or_its_element():
    text = value_slider("<b>", PLACES, {"</script><i>": [1.0, 2.0, 3.0]}, name='"><script>')
    assert text.count("<script>") == text.count("</script>") == 1 and "<b>" not in text and "<i>" not in text


@pytest.mark.parametrize(("places", "series"), [([], SERIES), (PLACES, {}), (PLACES[:2], SERIES), ([], {})])
def test_a_slider_without_numbers_is_one_line(one_line, places, series):
    with pytest.raises(LsclError) as caught:
        value_slider("λ", places, series)
    one_line(caught, len(places))


def test_a_slider_of_zeros_has_empty_bars():
    assert {value["share"] for one in frames(value_slider("x", [1.0], {"a": [0.0]})) for value in one["values"]} == {
        0.0
    }


def test_arrow_keys_move_the_slider_without_a_server():
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium here: install the system's chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        page = running.new_page()
        page.set_content(value_slider("λ", PLACES, SERIES))
        page.get_by_role("slider").focus()
        page.keyboard.press("ArrowRight")
        bars = page.locator("rect.bar").evaluate_all("bars => bars.map(bar => +bar.getAttribute('width'))")
        told = page.get_by_role("slider").get_attribute("aria-valuetext")
        assert page.locator("output").text_content() == "λ = 1000" and bars == [0, 0.5 * (WIDTH - 70)]
        assert told == "λ = 1000, from its own 0, from the mean 1"
        running.close()
