"""Benchmarks and federations as their pages show them, of measurements made by hand."""

import json

import pytest

from lscl.errors import LsclError
from lscl.publish import benchmark_pages


def test_benchmarks_are_told_from_their_goals(places, one_line):
    assert benchmark_pages.benchmark_page() == "No benchmark has been recorded yet."
    folder = places / "results" / "benchmarks"
    folder.mkdir(parents=True)
    about = {"machine": {"cpu": "some cpu"}, "commit": "abcdef0123456"}
    rows = [
        {"method": "l2p", "ratio": 1.6, "goal": 1.5, "better": "lower"},
        {"method": "none", "part_of_it": {"ratio": 3, "goal": 2, "better": "higher"}},
    ]
    for name, ratio, better in (("slow", 1.3, "lower"), ("fast", 120.0, "higher")):
        found = {
            "name": name,
            "ratio": ratio,
            "goal": 1.25 if better == "lower" else 100,
            "better": better,
            "rows": rows * (name == "slow"),
            **about,
        }
        (folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    (folder / "open.json").write_text(
        json.dumps(
            {"name": "open", "ratio": 2, "better": "lower", **about, "machine": {"cpu": "c", "gpu": "some card"}}
        ),
        encoding="utf-8",
    )
    assert [line for line in benchmark_pages.benchmark_page().splitlines() if line.startswith("| ")][1:] == [
        "| fast | 120 | at least 100 | yes | some cpu | abcdef0123 |",
        "| open | 2 | – | – | some card | abcdef0123 |",
        "| slow | 1.3 | at most 1.25 | no | some cpu | abcdef0123 |",
        "| slow: l2p | 1.6 | at most 1.5 | no |  |  |",
        "| slow: none part of it | 3 | at least 2 | yes |  |  |",
    ]
    (folder / "open.json").write_text("{}", encoding="utf-8")
    with pytest.raises(LsclError) as caught:
        benchmark_pages.benchmark_page()
    one_line(caught, "open.json")


ABOUT = {"commit": "abcdef0123456", "machine": {"cpu": "some cpu", "cores": 2, "load": 1.6}, "flwr": "1.41.0"}
SENT = {
    "clients": 2,
    "seconds": 60.0,
    "exchanges": [1, 2],
    "wire_up": [1200, 400],
    "payload_up": [1000, 0],
    "wire_down": [6e6, 6e6],
    "payload_down": [5e6, 5e6],
}
COMPARED = {"profile": "demo", "method": "lorm", "accuracies": 75, "byte_counts": 50}
MEASURED = {
    "parity": [
        {**COMPARED, "transport": "tls", "differs": [], **SENT, **ABOUT},
        {**COMPARED, "transport": "simulation", "differs": ["bytes_up"], **ABOUT},
    ],
    "faults": [
        {
            "fault": "client killed", "rounds": 8, "rounds_finished": 8, **ABOUT,
            "points": [{"rounds_missed": n, "came_back": True, "while_it_computed": n == 1} for n in (2, 1)],
        },
        {
            "fault": "server killed", "killed": "inside a round", "finished_rounds": 1, "of": 4,
            "resumed_after": 1, "then": "all the same", **ABOUT,
        },
        {
            "fault": "bad", "bad_payloads": [{"kind": "NaN", "server_says": "no"}],
            "strangers": [{"node": "plain text", "says": "out"}],
            "rounds": 8, "rounds_finished": 8, **ABOUT,
        },
    ],
    "scale": [
        {
            "clients": 9, "rounds": 6, "seconds_per_exchange": 8.5, "cpu_seconds_per_exchange": 9.5,
            "memory_mb": [700, 800, 710],
            "differs_from_one_process": [], **ABOUT,
        },
    ],
}  # fmt: skip


def test_measurements_of_federations_are_told_as_they_are(places, one_line):
    folder = places / "results" / "federation"
    folder.mkdir(parents=True)
    for part, rows in MEASURED.items():
        (folder / f"{part}.json").write_text(json.dumps({"name": part, "rows": rows}), encoding="utf-8")
    texts = {name: benchmark_pages.federation_page(name) for name in benchmark_pages.FEDERATION_TABLES}
    note = "<small>some cpu, 2 cores, flwr 1.41.0, load 2 before a row began, commit abcdef0123</small>"
    assert all(text.endswith(note) and f":name: tab-federation-{name}" in text for name, text in texts.items())
    lines = {name: [line for line in text.splitlines() if line.startswith("|")][2:] for name, text in texts.items()}
    assert lines == {
        "parity": [
            "| LoRM | demo | processes over TLS | 75 | 50 | nothing |",
            "| LoRM | demo | Flower's simulation | 75 | 50 | bytes_up |",
        ],
        "wire": ["| LoRM | demo | 0.00 | 0.00 | 0.1 | 10.00 | 12.00 | 333.3 | 20 |"],
        "faults": [
            "| SIGKILL to a client, while it computed: 1 of 2 | 2 | "
            "8 of 8 rounds finished; answers missing in all: 3; back in a later round: 2 of 2 |",
            "| SIGKILL to the server inside a round | 1 "
            "| 1 of 4 rounds were finished; resumed after round 1; all the same |",
            "| payload: NaN | 1 | 8 of 8 rounds finished; left out: no |",
            "| node: plain text | 1 | not admitted: out |",
        ],
        "scale": ["| 9 | 6 | 8.5 | 9.5 | 700 | 710 | nothing |"],
    }
    (folder / "scale.json").write_text("{}", encoding="utf-8")
    with pytest.raises(LsclError) as caught:
        benchmark_pages.federation_page("scale")
    one_line(caught, "scale.json")
