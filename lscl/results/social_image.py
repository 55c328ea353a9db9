"""The image that social networks show of the site: its title, and what clients of a played round look at."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from lscl.results.colours import CLIENTS
from lscl.results.figures import BookFigure, house_style

SIZE = (1200, 630)  # pixels, as the networks ask for
TITLE = (
    "Fed-LSCL, taken apart",
    "Small networks on the clients steer one large frozen model.",
    "Library, book, records.",
)


@house_style
def _drawn(trace: Mapping[str, Any]) -> BookFigure:
    figure = BookFigure(figsize=(SIZE[0] / 100, SIZE[1] / 100), dpi=100)
    for y, text, size, weight in zip((0.84, 0.73, 0.66), TITLE, (46, 24, 24), ("bold", "normal", "normal")):
        figure.text(0.06, y, text, fontsize=size, fontweight=weight, va="center")
    clients = trace["clients"][: len(CLIENTS)]
    width = 0.88 / len(clients)
    for k, one in enumerate(clients):
        figure.text(0.06 + width * k, 0.50, f"client {k + 1}", fontsize=20, color=CLIENTS[k], fontweight="bold")
        for i, picture in enumerate(one["pictures"][:3]):
            side = width / 3.4
            axes = figure.add_axes((0.06 + width * k + i * side, 0.30, side * 0.92, side * 0.92 * SIZE[0] / SIZE[1]))
            axes.imshow(np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")))
            axes.set_axis_off()
    figure.text(0.06, 0.14, "Large-small model collaboration for federated continual learning", fontsize=22)
    return figure


def social_image(trace: Mapping[str, Any]) -> bytes:
    """A picture of `SIZE` without a number that a record could change.

    Args:
        trace: from `animation.played_round`.

    Returns:
        a PNG.
    """
    drawn, small = io.BytesIO(), io.BytesIO()
    _drawn(trace).savefig(drawn, format="png", dpi=100)
    Image.open(drawn).convert("RGB").quantize(128).save(small, "PNG", optimize=True)
    return small.getvalue()
