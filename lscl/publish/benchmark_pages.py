"""Benchmarks and federations as the book's pages show them: tables of recorded measurements with their source."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from lscl import files, paths
from lscl.errors import LsclError
from lscl.results import file_shapes
from lscl.results.labels import label_of
from lscl.results.markdown import commits_of, numbered_table, plain_text, short_commit, small_print
from lscl.results.measurements import measured_rows


def benchmark_page() -> str:
    """Every recorded benchmark against its goal, as markdown."""
    table = benchmark_table()
    caption = "Every recorded benchmark against its goal, the machine and the commit"
    return "No benchmark has been recorded yet." if table.empty else numbered_table(table, caption, "tab-benchmarks")


def benchmark_table() -> pd.DataFrame:
    """Every recorded benchmark: its ratio, the goal, whether it is met, machine and commit; its parts follow it.

    Raises:
        LsclError: a file that cannot be read.
    """
    rows = {}
    for path in sorted((paths.results() / "benchmarks").glob("*.json")):
        found = files.read_json(path, file_shapes.Benchmark)
        try:
            rows[found["name"]] = _benchmark(found) | {
                "machine": found["machine"].get("gpu") or found["machine"]["cpu"],
                "commit": short_commit(found["commit"], "–"),
            }
            parts = {"": found}
            for row in found.get("rows", []):
                parts[", ".join(str(row[key]) for key in ("size", "method", "phase", "case") if key in row)] = row
            for name, part in parts.items():
                inner = {
                    f"{name} {key.replace('_', ' ')}".strip(): value
                    for key, value in part.items()
                    if isinstance(value, dict) and "ratio" in value
                }
                for label_of, value in ({name: part} | inner).items():
                    if label_of and "ratio" in value:
                        rows[f"{found['name']}: {label_of}"] = _benchmark(value) | {"machine": "", "commit": ""}
        except (ValueError, LookupError, TypeError) as error:
            raise LsclError(f"cannot read the benchmark {path}: {type(error).__name__} {error}") from error
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("benchmark")


def _benchmark(found: dict[str, Any]) -> dict[str, str]:
    goal, ratio, lower = found.get("goal"), found["ratio"], found["better"] == "lower"
    if goal is None:
        return {"measured": f"{ratio:g}", "goal": "–", "met": "–"}
    met = ratio <= goal if lower else ratio >= goal
    return {
        "measured": f"{ratio:g}",
        "goal": f"{'at most' if lower else 'at least'} {goal:g}",
        "met": "yes" if met else "no",
    }


# ---- federations over Flower (results/federation/, made by benchmarks/federation.py)


def federation_rows(part: str) -> list[dict[str, Any]]:
    """The recorded rows of one part: parity, faults or scale; none if it was never run.

    Raises:
        LsclError: a file that cannot be read.
    """
    return measured_rows(paths.results() / "federation" / f"{part}.json", file_shapes.FEDERATION_ROWS[part])


def parity_table() -> pd.DataFrame:
    """Every federation against the same run in one process: what was compared and what differed."""
    rows = [
        {
            "system": label_of(row["method"]),
            "profile": row["profile"],
            "transport": {"tls": "processes over TLS", "simulation": "Flower's simulation"}[row["transport"]],
            "accuracies compared": row["accuracies"],
            "byte counts compared": row["byte_counts"],
            "differs": ", ".join(row["differs"]) or "nothing",
        }
        for row in federation_rows("parity")
    ]
    return pd.DataFrame(rows)


def wire_table() -> pd.DataFrame:
    """Bytes between SuperLink and nodes, TLS and HTTP and questions for work included, against the payloads among them.

    overhead: kB beyond the payload for each client and exchange, up and down. It grows with the seconds that an
    exchange takes, for nodes ask for work all the time.
    """
    rows = []
    for row in federation_rows("parity"):
        if row.get("wire_up") is None:
            continue
        messages = row["clients"] * sum(row["exchanges"])
        shown = {"system": label_of(row["method"]), "profile": row["profile"]}
        for side in ("up", "down"):
            payload, sent = sum(row[f"payload_{side}"]), sum(row[f"wire_{side}"])
            shown |= {f"payload MB {side}": f"{payload / 1e6:.2f}", f"wire MB {side}": f"{sent / 1e6:.2f}"}
            shown[f"overhead kB {side}"] = f"{(sent - payload) / 1e3 / messages:.1f}"
        rows.append({**shown, "seconds of an exchange": f"{row['seconds'] / sum(row['exchanges']):.0f}"})
    return pd.DataFrame(rows)


def faults_table() -> pd.DataFrame:
    """Every fault that was tried, how often, and its outcome."""
    rows = []
    for row in federation_rows("faults"):
        if row["fault"] == "client killed":
            points = row["points"]
            missed, back = sum(point["rounds_missed"] for point in points), sum(point["came_back"] for point in points)
            busy = sum(point["while_it_computed"] for point in points)
            finished = f"{row['rounds_finished']} of {row['rounds']} rounds finished"
            outcome = f"{finished}; answers missing in all: {missed}; back in a later round: {back} of {len(points)}"
            fault = f"SIGKILL to a client, while it computed: {busy} of {len(points)}"
            rows.append({"fault": fault, "times": len(points), "outcome": outcome})
        elif row["fault"] == "server killed":
            finished = f"{row['finished_rounds']} of {row['of']} rounds were finished"
            outcome = f"{finished}; resumed after round {row['resumed_after']}; {row['then']}"
            rows.append({"fault": f"SIGKILL to the server {row['killed']}", "times": 1, "outcome": outcome})
        else:
            went = f"{row['rounds_finished']} of {row['rounds']} rounds finished; left out:"
            rows += [
                {"fault": f"payload: {one['kind']}", "times": 1, "outcome": f"{went} {one['server_says']}"}
                for one in row["bad_payloads"]
            ]
            rows += [
                {"fault": f"node: {one['node']}", "times": 1, "outcome": f"not admitted: {one['says']}"}
                for one in row["strangers"]
            ]
    return pd.DataFrame(rows)


def scale_table() -> pd.DataFrame:
    """Flower's simulation of many clients."""
    rows = [
        {
            "clients": row["clients"],
            "rounds": row["rounds"],
            "seconds per exchange": row["seconds_per_exchange"],
            "CPU seconds per exchange": row["cpu_seconds_per_exchange"],
            "memory MB after the first round": row["memory_mb"][0],
            "after the last": row["memory_mb"][-1],
            "differs from one process": ", ".join(row["differs_from_one_process"]) or "nothing",
        }
        for row in federation_rows("scale")
    ]
    return pd.DataFrame(rows)


def federation_note(part: str) -> str:
    """Machines, commits and the version of Flower for the rows of a part, in small print."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in federation_rows(part):
        machine = f"{row['machine']['cpu']}, {row['machine']['cores']} cores, flwr {row['flwr']}"
        groups.setdefault(machine, []).append(row)
    notes = []
    for machine, rows in sorted(groups.items()):
        loads = sorted({round(row["machine"]["load"]) for row in rows})
        load = f"load {loads[0]}" + (f" to {loads[-1]}" if len(loads) > 1 else "")
        notes.append(f"{plain_text(machine)}, {load} before a row began, {commits_of(rows, '–')}")
    return small_print(*notes)


# The tables of the page about federations: how each is made, from which part of the measurements, and what it shows.
FEDERATION_TABLES: dict[str, tuple[Callable[[], pd.DataFrame], str, str]] = {
    "parity": (parity_table, "parity", "Federations compared with the same run in one process"),
    "wire": (
        wire_table,
        "parity",
        "Bytes on the wire and in payloads; overhead: kB beyond the payload, for each client and exchange",
    ),
    "faults": (faults_table, "faults", "Tested faults and their outcomes"),
    "scale": (scale_table, "scale", "Simulated clients: seconds, and the memory of all processes together"),
}


def federation_page(name: str) -> str:
    """What was measured of real federations, one table with its source, as markdown."""
    make, part, caption = FEDERATION_TABLES[name]
    table = make()
    if table.empty:
        return "Not measured yet. See `benchmarks/federation.py`."
    return f"{numbered_table(table, caption, f'tab-federation-{name}', index=False)}\n\n{federation_note(part)}"
