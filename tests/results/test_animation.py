"""A round is drawn from what really crossed, and says so whichever way the generators moved."""

import base64
import importlib.util
import io
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from tests_root import ROOT

from lscl.errors import LsclError
from lscl.results import animation, colours

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def trace():
    """A round as it is stored, without a run."""
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(out, "PNG")
    client = {
        "classes": ["a"],
        "pictures": [base64.b64encode(out.getvalue()).decode()] * 2,
        "bytes_up": 2_000_000,
        "bytes_down": 1_000_000,
    }
    points = {"before": [[0, 0], [0, 0]], "trained": [[1.0, 0.0], [-1.0, 0.0]], "fused": [[0.5, 0.0], [-0.5, 0.0]]}
    return {"label": "X", "dataset": "d", "round": 2, "sent": ["w"], "points": points, "clients": [client] * 2}


def test_a_played_round_is_what_crossed(smoke):
    config = smoke(rounds=3, tasks=1)
    found = animation.played_round(config, 2)
    assert found["sent"] == ["bias", "features", "weight"] and found["round"] == 2
    assert {len(points) for points in found["points"].values()} == {config.clients} == {len(found["clients"])}
    for one in found["clients"]:
        assert one["bytes_up"] > one["bytes_down"] > 0 and len(one["classes"]) == config.classes_per_task
        assert Image.open(io.BytesIO(base64.b64decode(one["pictures"][0]))).size == (16, 16)
    assert np.abs(np.array(found["points"]["trained"]) - found["points"]["before"]).max() > 0
    assert np.abs(np.array(found["points"]["fused"]) - found["points"]["trained"]).max() > 0


@pytest.mark.parametrize(("changes", "number"), [({}, 3), ({}, 0), ({"method": "local_head"}, 1)])
def test_a_round_that_cannot_be_drawn_is_one_line(smoke, one_line, changes, number):
    with pytest.raises(LsclError) as caught:
        animation.played_round(smoke(rounds=3, tasks=1, **changes), number)
    one_line(caught, "cannot be drawn")


@pytest.mark.parametrize(
    ("factor", "said"), [(0.5, "falls to 50 %."), (2.0, "grows to 200 %."), (1.0, "stays the same.")]
)
def test_the_words_follow_the_distances(trace, factor, said):
    points = {**trace["points"], "fused": (factor * np.array(trace["points"]["trained"])).tolist()}
    assert said in animation.round_in_words({**trace, "points": points})
    assert "2.00 MB go up" in animation.round_in_words(trace) and "1.00 MB come back" in animation.round_in_words(trace)


def test_the_picture_has_every_client_its_images_and_its_generator(trace):
    root = ElementTree.fromstring(animation.animated_round(trace))
    fused = [one for one in root.iter(f"{SVG}circle") if one.get("class") == "fused"]
    assert [float(one.get("cx")) for one in fused] == [240 + 205 * 0.5, 240 - 205 * 0.5]
    before = [one for one in root.iter(f"{SVG}circle") if one.get("class") == "before"]
    assert [(one.get("cx"), one.get("cy")) for one in before] == [("240.0", "92.0")] * 2
    assert len(list(root.iter(f"{SVG}image"))) == 4 and len([*root.iter(f"{SVG}rect")]) == 1 + 2 * 2
    assert root.get("aria-label") == animation.round_in_words(trace)
    style = next(root.iter(f"{SVG}style")).text
    assert "prefers-reduced-motion: no-preference" in style and "prefers-color-scheme: dark" in style
    assert "data-theme=dark" in animation.animated_round(trace, inline=True)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (["bias", "features", "weight"], "2  Generator and features go up: 2.00 MB per client."),
        (["bias", "features", "gram", "weight"], "2  Generator, features and gram go up: 2.00 MB per client."),
        (["w"], "2  W goes up: 2.00 MB per client."),
    ],
)
def test_the_second_step_says_what_goes_up(trace, sent, said):
    root = ElementTree.fromstring(animation.animated_round({**trace, "sent": sent}))
    assert said in [text.text for text in root.iter(f"{SVG}text")]


def test_many_clients_and_none_apart(trace):
    many = {**trace, "clients": trace["clients"][:1] * 9, "points": dict.fromkeys(trace["points"], [[0.0, 0.0]] * 9)}
    assert len([*ElementTree.fromstring(animation.animated_round(many)).iter(f"{SVG}image")]) == 2 * len(
        colours.CLIENTS
    )
    assert "two generators stays the same" in animation.round_in_words(many)


def test_the_script_stores_the_round_and_the_image(smoke, places):
    found = importlib.util.spec_from_file_location("played_round", ROOT / "benchmarks" / "played_round.py")
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    script.experiment = lambda **_: smoke(rounds=3, tasks=1)
    script.main()
    stored = json.loads((places / "results" / "federation" / "round.json").read_text(encoding="utf-8"))
    assert stored["round"] == 2 and (places / "book" / "_static" / "social.png").stat().st_size > 1000
