"""The diagram on the page of every system, as SVG that follows the colours of the page, light or dark."""

from html import escape
from textwrap import wrap

from lscl.federation.sketch import Part, Sketch

WIDTH, EDGE, GAP = 420, 10, 18  # of the drawing, around it, and between boxes, in units of the SVG
BOX, LINE = 68, 15  # height of a box, of a line of text
LEGEND = {"trained": "trained", "frozen": "frozen", "kept": "kept from earlier"}
NOTHING = "nothing travels"


def diagram(sketch: Sketch, label: str) -> str:
    """The drawing of a system: the server on top, a client below it, arrows for what travels.

    Args:
        sketch: what the system says of itself.
        label: its name in tables.

    Returns:
        one `<svg>` element; its colours come from book/_static/lscl.css.
    """
    parts, top = [_arrow_head()], EDGE
    if sketch.up or sketch.down:
        server = wrap(sketch.server, 52)
        parts.append(_panel(top, 30 + LINE * len(server), "Server"))
        parts.append(_text(server, WIDTH / 2, top + 36, "middle"))
        top += 30 + LINE * len(server)
        up, down = wrap(sketch.up, 24), wrap(sketch.down, 23)
        height = LINE * max(len(up), len(down)) + 30
        parts.append(_arrow(28, top + height, 28, top + 4) if up else "")
        parts.append(_arrow(226, top, 226, top + height - 4) if down else "")
        parts.append(_text(up, 40, top + 28) + _text(down, 238, top + 28))
        top += height
    else:
        parts.append(_text([f"no server: {NOTHING}"], WIDTH / 2, top + LINE, "middle"))
        top += 2 * LINE
    stays = wrap(f"stays here: {sketch.stays}", 54) if sketch.stays else []
    helped = BOX + GAP + 12 if sketch.helpers else 0
    height = 34 + helped + BOX + 12 + LINE * len(stays) + (8 if stays else 0)
    parts.append(_panel(top, height, "Each client"))
    row = top + 34 + helped
    places = _columns(len(sketch.row))
    for number, part in enumerate(sketch.row):
        parts.append(_box(part, places[number], row))
        if number + 1 < len(sketch.row):
            parts.append(_arrow(places[number][1], row + BOX / 2, places[number + 1][0] - 3, row + BOX / 2))
    for number, part in enumerate(sketch.helpers):
        parts.append(_helper(part, places, number, row - BOX - GAP - 12, row) if part else "")
    parts.append(_text(stays, WIDTH / 2, row + BOX + 22, "middle"))
    top += height + 8
    kinds = [kind for kind in LEGEND if any(part and part.kind == kind for part in (*sketch.row, *sketch.helpers))]
    parts.append(_legend(kinds, top))
    return (
        f'<svg class="system-diagram" viewBox="0 0 {WIDTH} {top + 26}" role="img" '
        f'aria-label="{escape(described(sketch, label))}" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(parts)}</svg>"
    )


def described(sketch: Sketch, label: str) -> str:
    """The drawing in words, for readers who do not see it.

    Args:
        sketch: what the system says of itself.
        label: its name in tables.

    Returns:
        a few sentences.
    """
    kind = lambda part: f"{part.text} ({LEGEND[part.kind]})" if part.kind in LEGEND else part.text
    said = [f"Diagram of {label}. On each client: {', then '.join(map(kind, sketch.row))}."]
    for below, part in zip(sketch.row, sketch.helpers, strict=False):
        if part:
            said.append(f"{kind(part)} acts on {'the next helper' if part.arrow == 'right' else below.text}.")
    said.append(f"To the server: {sketch.up}. The server: {sketch.server}." if sketch.up else f"No server: {NOTHING}.")
    said += [f"Back to the client: {sketch.down}."] * bool(sketch.down)
    said += [f"On the client stays: {sketch.stays}."] * bool(sketch.stays)
    return " ".join(said)


def _columns(count: int) -> list[tuple[float, float]]:
    """The left and right edges of so many boxes in a row."""
    inside = WIDTH - 4 * EDGE
    width = (inside - GAP * (count - 1)) / count
    return [(2 * EDGE + number * (width + GAP), 2 * EDGE + number * (width + GAP) + width) for number in range(count)]


def _helper(part: Part, places: list[tuple[float, float]], number: int, top: float, row: float) -> str:
    left, right = places[number]
    middle, drawn = (left + right) / 2, [_box(part, places[number], top)]
    if part.fed:
        drawn.append(_arrow(middle, row, middle, top + BOX + 3))
    if part.arrow == "right":
        drawn.append(_arrow(right, top + BOX / 2, places[number + 1][0] - 3, top + BOX / 2))
    else:
        drawn.append(_arrow(middle, top + BOX, middle, row - 3))
    return "".join(drawn)


def _box(part: Part, place: tuple[float, float], top: float) -> str:
    left, right = place
    lines = wrap(part.text, 10)
    first = top + BOX / 2 - LINE * (len(lines) - 1) / 2 + 4
    return (
        f'<rect class="{part.kind}" x="{left:.0f}" y="{top:.0f}" width="{right - left:.0f}" height="{BOX}" rx="8"/>'
        f"{_text(lines, (left + right) / 2, first, 'middle')}"
    )


def _panel(top: float, height: float, title: str) -> str:
    return (
        f'<rect class="panel" x="{EDGE}" y="{top:.0f}" width="{WIDTH - 2 * EDGE}" height="{height:.0f}" rx="10"/>'
        f'<text class="title" x="{2 * EDGE}" y="{top + 20:.0f}">{title}</text>'
    )


def _text(lines: list[str], x: float, y: float, anchor: str = "start") -> str:
    return "".join(
        f'<text x="{x:.0f}" y="{y + LINE * number:.0f}" text-anchor="{anchor}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="arrow" d="M{x1:.0f} {y1:.0f}L{x2:.0f} {y2:.0f}" marker-end="url(#arrow-head)"/>'


def _arrow_head() -> str:
    return (
        '<defs><marker id="arrow-head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
    )


def _legend(kinds: list[str], top: float) -> str:
    drawn, x = [], float(2 * EDGE)
    for kind in kinds:
        drawn.append(f'<rect class="{kind}" x="{x:.0f}" y="{top:.0f}" width="16" height="14" rx="3"/>')
        drawn.append(_text([LEGEND[kind]], x + 22, top + 12))
        x += 60 + 7 * len(LEGEND[kind])
    return "".join(drawn)
