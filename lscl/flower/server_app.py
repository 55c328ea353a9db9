"""The server's side: the same loop as in one process, over Flower's grid."""

import shutil
import time

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from lscl import paths
from lscl.data.store import private_folder
from lscl.experiments import origin, records
from lscl.experiments.progress import Progress
from lscl.experiments.run import build_experiment, claim, make_record, run_rounds
from lscl.experiments.watch import TensorBoard
from lscl.federation.checkpoint import read_state
from lscl.flower.grid import GridTransport
from lscl.flower.messages import unpack_config
from lscl.flower.rules import rules

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Compute one run, resuming after the last finished round; the record goes to results/federation/runs/.

    With LSCL_TRACK in the environment, TensorBoard's files of the run go to that folder.

    Args:
        grid: reaches the nodes.
        context: the run's config.
    """
    config = unpack_config(context.run_config)
    needs = rules(config, context.run_config)
    least, limit = needs.min_clients or config.clients, int(needs.max_mb * 10**6)
    folder, track = paths.results() / "federation", paths.variable("LSCL_TRACK")
    observer = TensorBoard(track) if track else None
    state, started = folder / "state" / config.name, time.perf_counter()
    with claim(state, wait=False), Progress(config, every_round=True) as progress:
        for kept in (state, *state.glob("round-*")):
            private_folder(kept)
        data, parts, method, _ = build_experiment(config, progress)
        about = {
            **records.source(),
            "prepare": time.perf_counter() - started,
            "origin": origin.origin_of_run(data, parts, method),
        }
        transport = GridTransport(grid, method, least, needs.timeout, limit, progress)
        saved = read_state(state)
        reports, about = run_rounds(
            method, transport, [transport], saved, about, progress, on_round=observer, least=least, limit=limit
        )
        record = make_record(data, parts, method, reports, about)
        del record["optimised_images"]  # how many the clients have seen is known to them alone
        records.write_record(record, folder / "runs")
        shutil.rmtree(state, ignore_errors=True)
