"""One federated round as an animated picture, drawn from what really crossed between server and clients.

The picture is an SVG that needs no script. It plays a few times and then stays on its last state, which is also what
readers see who asked their system for less motion.
"""

import base64
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lscl.config import Experiment
from lscl.data.partition import Partition
from lscl.data.store import Dataset
from lscl.errors import LsclError, list_words, shorten
from lscl.experiments.run import prepare
from lscl.federation.loop import InProcess, federate
from lscl.federation.method import Stage
from lscl.federation.payload import Payload, num_bytes, seal
from lscl.results.colours import CLIENTS, INK, NEUTRAL, PAGE, PANEL
from lscl.results.labels import label_of

PICTURES = 3  # of each client
STATES = ("before", "trained", "fused")
GENERATOR = ("weight", "bias")  # its tensors
SECONDS, REPEATS = 14, 3
STEPS = {"train": (0, 24), "up": (24, 42), "server": (42, 66), "down": (66, 84)}  # shares of the time, %


@dataclass
class Recorder(InProcess):
    """The transport within one process, which also keeps a copy of every payload.

    Args:
        log: (stage, {client: download}, {client: upload}), in the order of the rounds.
    """

    log: list[tuple[Stage, dict[int, Payload], dict[int, Payload]]] = field(default_factory=list)

    def ask(self, stage: Stage, downloads: Mapping[int, Payload]) -> dict[int, Payload]:
        """Carry out one exchange and keep it.

        Args:
            stage: the exchange.
            downloads: {client: payload}.

        Returns:
            {client: its answer}.
        """
        answers = super().ask(stage, downloads)
        self.log.append((stage, dict(downloads), {k: seal(one, f"client {k}") for k, one in answers.items()}))
        return answers


def played_round(config: Experiment, number: int = 2) -> dict[str, Any]:
    """Play the first task of a run up to a round and say what crossed in it.

    Args:
        config: the run; its system must send the same tensors up and down, as one with a shared generator does.
        number: the round, from 1.

    Returns:
        dict: label, dataset, round, clients (each with classes, its pictures as base64 PNG, bytes_up, bytes_down),
            sent (names of the tensors that go up) and points: {"before", "trained", "fused": (clients, 2) places of
            what clients and server share, on the two main axes of all of them together}.

    Raises:
        LsclError: the first task has no such round with one after it, or the system shares nothing both ways.
    """
    data, parts, method, clients = prepare(config)
    recorder = Recorder(method, clients)
    for report in federate(method, recorder):
        if report.task > 0 or report.round >= number:
            break
    rounds = [entry for entry in recorder.log if entry[0].task == 0 and entry[0].name != "finish"]
    if not 1 <= number < len(rounds):
        raise LsclError(f"round {number} cannot be drawn: the first task has {len(rounds)}, and one must come after it")
    (_, down, up), (_, following, _) = rounds[number - 1 : number + 1]
    return traced_round(config, data, parts, number, {"before": down, "trained": up, "fused": following})


def traced_round(
    config: Experiment, data: Dataset, parts: Partition, number: int, states: Mapping[str, Mapping[int, Payload]]
) -> dict[str, Any]:
    """What crossed in a round of the first task, as `animated_round` takes it.

    Args:
        config: the run.
        data: its images.
        parts: which client has which.
        number: the round, from 1.
        states: {client: payload} under "before" (what the clients received), "trained" (what they sent) and "fused"
            (what they received after it).

    Returns:
        dict: as `played_round`.

    Raises:
        LsclError: nothing travels both ways.
    """
    down, up = states["before"], states["trained"]
    shared = sorted(set(down[0]) & set(up[0]))
    if not shared:
        raise LsclError(f"method {config.method!r} sends nothing both ways, so a round of it cannot be drawn")
    flat = lambda payload: torch.cat([payload[name].detach().cpu().flatten().double() for name in shared])
    rows = torch.stack([flat(states[name][k]) for name in STATES for k in range(config.clients)])
    places = np.split(main_plane(rows), len(STATES))
    spread = lambda images: [int(i) for i in images[:: max(1, len(images) // PICTURES)]][:PICTURES]
    return {
        "label": label_of(config.method),
        "dataset": config.dataset,
        "round": number,
        "sent": sorted(up[0]),
        "points": {name: found.tolist() for name, found in zip(STATES, places)},
        "clients": [
            {
                "classes": [data.classes[label] for label in parts.tasks[k][0].classes],
                "pictures": [_png(data.train.images[i]) for i in spread(parts.tasks[k][0].train)],
                "bytes_up": num_bytes(up[k]),
                "bytes_down": num_bytes(down[k]),
            }
            for k in range(config.clients)
        ],
    }


def main_plane(rows: Tensor) -> np.ndarray:
    """Vectors as points on the two main axes of all of them, the farthest coordinate being 1.

    Args:
        rows: (n, D), n at least 2.

    Returns:
        (n, 2).
    """
    centred = (rows - rows.mean(0)).numpy()
    flat = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    return np.round(flat / (np.abs(flat).max() or 1.0), 4)


def _png(pixels: np.ndarray) -> str:
    """pixels: (H, W, 3) uint8 -> a PNG of at most 32 pixels a side and 64 colours, in base64."""
    small, out = Image.fromarray(pixels), io.BytesIO()
    small.thumbnail((32, 32))
    small.quantize(64).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def mean_distance(points: np.ndarray) -> float:
    """Mean distance of two clients. points: (clients, 2)."""
    gaps = np.linalg.norm(points[:, None] - points[None], axis=2)
    return float(gaps.sum() / max(1, len(points) * (len(points) - 1)))


def round_in_words(trace: Mapping[str, Any]) -> str:
    """What the picture of a round shows, with its numbers.

    Args:
        trace: from `played_round`.

    Returns:
        sentences.
    """
    up, down = _megabytes(trace)
    return (
        f"Round {trace['round']} of {trace['label']} with {len(trace['clients'])} clients. Each client trains on "
        f"its own images. {up:.2f} MB go up from each, {down:.2f} MB come back, and no image among them. The server "
        f"fuses the generators. In the picture {_moved(trace)}"
    )


def _megabytes(trace: Mapping[str, Any]) -> list[float]:
    """What goes up and what comes down, mean over the clients."""
    return [np.mean([one[side] for one in trace["clients"]]) / 1e6 for side in ("bytes_up", "bytes_down")]


def _moved(trace: Mapping[str, Any]) -> str:
    """What the server's step does to the distances between the clients' points, as the rest of a sentence."""
    trained, fused = (mean_distance(np.array(trace["points"][name])) for name in ("trained", "fused"))
    if not trained or 0.995 < fused / trained < 1.005:
        return "the mean distance between two generators stays the same."
    verb = "falls" if fused < trained else "grows"
    return f"the mean distance between two generators {verb} to {100 * fused / trained:.0f} %."


def animated_round(trace: Mapping[str, Any], inline: bool = False) -> str:
    """The animated picture of a round.

    Args:
        trace: from `played_round`.
        inline: part of a page of the book, whose dark mode is `html[data-theme=dark]`; else a file of its own.

    Returns:
        an SVG.
    """
    clients, width = trace["clients"], 480
    shown = clients[: len(CLIENTS)]
    wide = (width - 8) / len(shown)
    middle = [4 + wide * (k + 0.5) for k in range(len(shown))]
    parts = [
        f'<rect x="4" y="4" width="{width - 8}" height="148" rx="8" class="box"/>',
        _said(14, 24, "server: generators on two main axes; grey: before the round", "small"),
    ]
    for k, (x, one) in enumerate(zip(middle, shown)):
        ink = CLIENTS[k]
        parts += _travelling(trace, k, x, ink)
        parts.append(
            f'<g class="client"><rect x="{x - wide / 2 + 4:.1f}" y="228" width="{wide - 8:.1f}" height="78" rx="8" '
            f'class="box" style="stroke: {ink}"/>{_said(x, 297, f"client {k + 1}", "small", "middle")}</g>'
        )
        parts += [
            f'<image x="{x + 33 * (i - (len(one["pictures"]) - 1) / 2) - 15:.1f}" y="238" width="30" height="30" '
            f'href="data:image/png;base64,{picture}"/>'
            for i, picture in enumerate(one["pictures"])
        ]
    parts += [
        f'<g class="caption {name}">{_said(8, 334 + 22 * place, text)}</g>'
        for place, (name, text) in enumerate(_captions(trace).items())
    ]
    title = html.escape(round_in_words(trace), quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="round" viewBox="0 0 {width} 412" role="img" '
        f'aria-label="{title}" style="max-width: 600px; width: 100%"><style>{_rules(inline)}</style>'
        f"{''.join(parts)}</svg>"
    )


def _captions(trace: Mapping[str, Any]) -> dict[str, str]:
    (up, down), sent = _megabytes(trace), _sent_in_words(trace)
    return {
        "train": "1  Each client trains on its own images.",
        "up": f"2  {sent[:1].upper()}{sent[1:]}: {up:.2f} MB per client.",
        "server": f"3  {_moved(trace).capitalize()}",
        "down": f"4  Each client gets a generator of its own: {down:.2f} MB.",
    }


def _sent_in_words(trace: Mapping[str, Any]) -> str:
    """What goes up: the weight and bias of a layer as a generator, all else by the names of the tensors."""
    rest = [name for name in trace["sent"] if name not in GENERATOR]
    names = ["generator", *rest] if len(rest) < len(trace["sent"]) else rest
    listed = shorten(list_words(names, "and"), 40)
    return f"{listed} {'go' if len(names) > 1 else 'goes'} up"


def _said(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _travelling(trace: Mapping[str, Any], k: int, x: float, ink: str) -> list[str]:
    """A client's packets on their way up and down, and its generators as points at the server: old, trained, fused."""
    across, along = lambda p: 240 + 205 * p[0], lambda p: 92 - 46 * p[1]
    (u, v), (a, b), (c, d) = ((across(p), along(p)) for p in (trace["points"][name][k] for name in STATES))
    return [
        f'<line x1="{x:.1f}" y1="156" x2="{x:.1f}" y2="224" class="way"/>',
        f'<rect x="{x - 7:.1f}" y="183" width="14" height="14" rx="3" fill="{ink}" class="packet"/>',
        f'<circle cx="{u:.1f}" cy="{v:.1f}" r="4" fill="{NEUTRAL}" class="before"/>',
        f'<line x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}" stroke="{ink}" class="trail"/>',
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="5" stroke="{ink}" class="trained"/>',
        f'<circle cx="{c:.1f}" cy="{d:.1f}" r="6" fill="{ink}" class="fused" '
        f'style="--dx: {a - c:.1f}px; --dy: {b - d:.1f}px"/>',
    ]


def _rules(inline: bool) -> str:
    """Colours and motion as CSS."""
    dark = "html[data-theme=dark] .round" if inline else ".round"
    (ink, night_ink), (box, night_box) = PAGE[INK], PAGE[PANEL]
    night = f"{dark} text {{fill: {night_ink}}} {dark} .box, {dark} .trained {{fill: {night_box}}}"
    night = night if inline else f"@media (prefers-color-scheme: dark) {{{night}}}"
    shown = " ".join(
        f"@keyframes round-{name} {{0%, {start}% {{opacity: .6}} {start + 2}%, {end - 2}% {{opacity: 1}} "
        f"{end}%, 99% {{opacity: .6}} 100% {{opacity: 1}}}} "
        f".round .{name} {{animation: round-{name} {SECONDS}s linear {REPEATS}}}"
        for name, (start, end) in STEPS.items()
    )
    (up, arrived), (_, fused), (down, home) = STEPS["up"], STEPS["server"], STEPS["down"]
    return (
        f".round text {{font: 14px system-ui, sans-serif; fill: {ink}}} .round .small {{font-size: 13px}} "
        f".round .box {{fill: {box}; stroke: {NEUTRAL}; stroke-width: 1.5}} .round .way {{stroke: {NEUTRAL}; "
        f"stroke-dasharray: 2 4}} .round .trained {{fill: {box}; stroke-width: 2}} .round .trail {{stroke-width: 1.5; "
        f"stroke-dasharray: 3 3}} {night} @media (prefers-reduced-motion: no-preference) {{{shown} "
        f"@keyframes round-packet {{0%, {up}% {{transform: translateY(34px); opacity: 0}} {up + 1}% {{transform: "
        f"translateY(34px); opacity: 1}} {arrived - 1}% {{transform: translateY(-34px); opacity: 1}} {arrived}%, "
        f"{down}% {{transform: translateY(-34px); opacity: 0}} "
        f"{down + 1}% {{transform: translateY(-34px); opacity: 1}} {home - 1}% "
        f"{{transform: translateY(34px); opacity: 1}} {home}%, 100% {{transform: translateY(34px); "
        "opacity: 0}} "
        f"@keyframes round-fused {{0%, {arrived}% {{transform: translate(var(--dx), var(--dy)); opacity: 0}} "
        f"{arrived + 3}% {{transform: translate(var(--dx), var(--dy)); opacity: 1}} {fused - 4}%, 100% {{transform: "
        "none; opacity: 1}} "
        f"@keyframes round-late {{0%, {arrived}% {{opacity: 0}} {arrived + 3}%, 100% {{opacity: 1}}}} "
        f".round .packet {{animation: round-packet {SECONDS}s ease-in-out {REPEATS}}} "
        f".round .fused {{animation: round-fused {SECONDS}s ease-in-out {REPEATS}}} "
        f".round .trail, .round .trained {{animation: round-late {SECONDS}s linear {REPEATS}}}}}"
    )
