"""What a system declares for the diagram on its page of the book; `lscl.publish.diagrams` draws it."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["plain", "trained", "frozen", "kept"]


@dataclass(frozen=True)
class Part:
    """One box of a diagram.

    Args:
        text: a few words.
        kind: "trained" by the client, "frozen", "kept" on the client from earlier, or "plain".
        arrow: of a helper: where its arrow leads, "down" to the part below it or "right" to the next helper.
        fed: of a helper: whether it reads the part below it.
    """

    text: str
    kind: Kind = "plain"
    arrow: Literal["down", "right"] = "down"
    fed: bool = False


@dataclass(frozen=True)
class Sketch:
    """A system at a glance: an image's way through a client, and what travels.

    Args:
        row: the parts that an image passes, from the image to the class.
        helpers: the parts that act on the row, each above one part of it; None = none there.
        up: what a client uploads; empty = nothing.
        server: the server's work on it.
        down: what comes back; empty = nothing.
        stays: what else stays on the client; empty = nothing worth a word.
    """

    row: tuple[Part, ...]
    helpers: tuple[Part | None, ...] = ()
    up: str = ""
    server: str = ""
    down: str = ""
    stays: str = ""


IMAGE, CLASS = Part("image"), Part("class")
FROZEN_VIT, HEAD, CNN = Part("frozen ViT", "frozen"), Part("head", "trained"), Part("small CNN", "trained")
