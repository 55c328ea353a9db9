"""The image for social networks."""

import io

from PIL import Image
from tests_root import ROOT

from lscl import files
from lscl.results import file_shapes
from lscl.results.social_image import SIZE, social_image


def test_the_image_is_as_large_as_the_networks_ask_and_so_is_the_committed_one():
    trace = files.read_json(ROOT / "results" / "federation" / "round.json", file_shapes.PlayedRound)
    drawn = Image.open(io.BytesIO(social_image(trace)))
    stored = ROOT / "book" / "_static" / "social.png"
    with Image.open(stored) as kept:
        assert drawn.size == kept.size == SIZE and stored.stat().st_size < 300_000
    assert len(drawn.convert("RGB").getcolors(10**6)) > 20
