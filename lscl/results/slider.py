"""A slider in a page: everything is computed beforehand, so that it needs no server, and arrow keys move it."""

import html
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from lscl.results.animation import CLIENT_INKS, main_plane

WIDTH, HEIGHT = 480, 260
SCRIPT = """(() => {
  const root = document.getElementById(%(name)s), found = %(frames)s;
  const input = root.querySelector("input"), dot = root.querySelector(".result");
  const show = () => {
    const [x, y, strength, text] = found[input.value];
    dot.setAttribute("cx", x); dot.setAttribute("cy", y);
    root.querySelector("output").textContent = strength;
    root.querySelector(".said").textContent = text;
    input.setAttribute("aria-valuetext", strength + ": " + text);
  };
  input.addEventListener("input", show);
  show();
})();"""


def lambda_slider(
    strengths: Sequence[float], weights: Sequence[Tensor], results: Sequence[Tensor], name: str = "lambda-slider"
) -> str:
    """Where the first client's generator goes as lambda grows, on the two main axes of all generators.

    Args:
        strengths: the values of lambda, ascending.
        weights: the uploaded generators, (P, m + 1) each; the first one is the client's own.
        results: its new generator for each value of lambda, (P, m + 1) each.
        name: of the element in the page.

    Returns:
        HTML that shows one value without JavaScript, and all of them with it.
    """
    own, mean = weights[0].double(), torch.stack([one.double() for one in weights[1:]]).mean(0)
    rows = [*weights, mean, *results]
    places = main_plane(torch.stack([one.double().cpu().flatten() for one in rows]))
    across, along = lambda p: round(WIDTH / 2 + 205 * float(p[0]), 1), lambda p: round(130 - 105 * float(p[1]), 1)
    points, result = [(across(p), along(p)) for p in places], len(weights) + 1
    apart = float((own - mean).norm()) or 1.0
    frames = [
        [*points[result + i], f"λ = {strength:g}", _distances(one.double(), own, mean, apart)]
        for i, (strength, one) in enumerate(zip(strengths, results, strict=True))
    ]
    start = len(frames) // 2
    parts = [
        f'<circle cx="{x}" cy="{y}" r="8" fill="none" stroke="{CLIENT_INKS[k % len(CLIENT_INKS)]}" stroke-width="2.5"/>'
        f'<text x="{x + 12:g}" y="{y + 5:g}">{"client 1, as sent" if k == 0 else f"client {k + 1}"}</text>'
        for k, (x, y) in enumerate(points[: len(weights)])
    ]
    x, y = points[len(weights)]
    parts.append(f'<path d="M{x - 7:g} {y:g}h14M{x:g} {y - 7:g}v14" stroke="#8A8A8A" stroke-width="3"/>')
    parts.append(f'<text x="{x + 12:g}" y="{y - 8:g}">mean of the others</text>')
    path = " ".join(f"{a},{b}" for a, b in points[result:])
    parts.append(f'<polyline points="{path}" fill="none" stroke="#8A8A8A" stroke-dasharray="2 3"/>')
    parts.append(
        f'<circle class="result" cx="{frames[start][0]}" cy="{frames[start][1]}" r="6" fill="{CLIENT_INKS[0]}"/>'
    )
    alt = html.escape(
        f"The generators of {len(weights)} clients as rings, the mean of the others as a cross, and client 1's new "
        "generator as a dot, which moves with lambda. The sentence below has its distances.",
        quote=True,
    )
    values = {"name": name, "frames": frames}
    script = SCRIPT % {key: json.dumps(value).replace("<", "\\u003c") for key, value in values.items()}
    return (
        f'<div id="{html.escape(name, quote=True)}" class="slider" style="max-width: 600px">'
        f'<label>λ <input type="range" min="0" max="{len(frames) - 1}" value="{start}" step="1" style="width: 60%" '
        f'aria-valuetext="{frames[start][2]}"></label> <output>{frames[start][2]}</output>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{alt}" style="width: 100%; display: block">'
        "<style>.slider svg text {font: 13px system-ui, sans-serif; fill: currentColor}</style>"
        f'{"".join(parts)}</svg><p class="said" aria-live="polite">{frames[start][3]}</p>'
        f"<script>{script}</script></div>"
    )


def _distances(result: Tensor, own: Tensor, mean: Tensor, apart: float) -> str:
    """How far a result is from the client's own generator and from the mean of the others, in their distance."""
    from_own, from_mean = (float((result - one).norm()) / apart for one in (own, mean))
    return (
        f"The result is {from_own:.2f} from client 1's own generator and {from_mean:.2f} from the mean of the others, "
        "where 1 is the distance between the two."
    )
