"""A slider in a page: everything is computed beforehand, so that it needs no server, and arrow keys move it."""

import html
import json
from collections.abc import Mapping, Sequence

from lscl.errors import LsclError
from lscl.results.colours import CLIENTS, NEUTRAL

WIDTH, ROW = 480, 52
SCRIPT = """(() => {
  const root = document.getElementById(%(name)s), frames = %(frames)s, width = %(width)s;
  const input = root.querySelector("input"), output = root.querySelector("output");
  const show = () => {
    const { place, values } = frames[input.value];
    output.textContent = place;
    root.querySelectorAll("rect.bar").forEach((bar, i) => bar.setAttribute("width", width * values[i].share));
    root.querySelectorAll("text.value").forEach((text, i) => { text.textContent = values[i].text; });
    input.setAttribute("aria-valuetext", [place, ...values.map((one) => one.name + " " + one.text)].join(", "));
  };
  input.addEventListener("input", show);
  show();
})();"""


def value_slider(
    symbol: str, places: Sequence[float], series: Mapping[str, Sequence[float]], name: str = "value-slider"
) -> str:
    """A slider over the values of one quantity, and a bar for each of the others that follow from it.

    Args:
        symbol: of the quantity that the slider moves.
        places: its values.
        series: {what a bar shows: one number from 0 on for each place}; all bars have one scale.
        name: of the element in the page.

    Returns:
        HTML that shows the middle place without JavaScript, and all of them with it.

    Raises:
        LsclError: no place, no bar, or a bar without a number for every place.
    """
    if not places or not series or any(len(values) != len(places) for values in series.values()):
        raise LsclError(f"a slider needs a number for each of its {len(places)} places in every bar")
    most = max(max(values) for values in series.values()) or 1.0
    frames = [
        {
            "place": f"{symbol} = {place:g}",
            "values": [
                {"name": what, "share": round(values[i] / most, 4), "text": f"{values[i]:.2g}"}
                for what, values in series.items()
            ],
        }
        for i, place in enumerate(places)
    ]
    start = len(frames) // 2
    shown, reach = frames[start], WIDTH - 70
    bars = "".join(_bar(row, one, reach, CLIENTS[row % len(CLIENTS)]) for row, one in enumerate(shown["values"]))
    alt = f"Bars that follow the slider: {', '.join(series)}. Each has its number at its end."
    values = {"name": name, "frames": frames, "width": reach}
    script = SCRIPT % {key: json.dumps(value).replace("<", "\\u003c") for key, value in values.items()}
    return (
        f'<div id="{html.escape(name, quote=True)}" class="slider" style="max-width: 600px">'
        '<label style="display: flex; gap: 0.8rem; align-items: center">'
        f'{html.escape(symbol)} <input type="range" min="0" max="{len(frames) - 1}" value="{start}" step="1" '
        f'style="flex: 1" aria-valuetext="{html.escape(shown["place"])}"> '
        f'<output style="min-width: 7em">{html.escape(shown["place"])}</output></label>'
        f'<svg viewBox="0 0 {WIDTH} {ROW * len(series)}" role="img" aria-label="{html.escape(alt, quote=True)}" '
        'style="width: 100%; display: block"><style>.slider svg text {font: 14px system-ui, sans-serif; fill: '
        f"currentColor}}</style>{bars}</svg><script>{script}</script></div>"
    )


def _bar(row: int, one: Mapping, reach: float, ink: str) -> str:
    """One bar, its name above it and its number behind the longest bar."""
    y = row * ROW
    return (
        f'<text x="0" y="{y + 16}">{html.escape(one["name"])}</text>'
        f'<rect x="0" y="{y + 23}" width="{reach}" height="16" fill="{NEUTRAL}" opacity="0.15"/>'
        f'<rect class="bar" x="0" y="{y + 23}" width="{reach * one["share"]:g}" height="16" fill="{ink}"/>'
        f'<text class="value" x="{reach + 8}" y="{y + 36}">{one["text"]}</text>'
    )
