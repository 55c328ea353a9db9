"""The server's side: the record of one process, whatever stops it."""

import contextlib

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytest.importorskip("flwr", reason="needs the extra flower: pip install -e '.[flower]'")
from stub_grid import alone, exchanges_in
from tests_root import compared

from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.run import settle_device
from lscl.federation.checkpoint import read_state
from lscl.flower import server_app
from lscl.methods import METHODS


def test_a_federation_is_watched_round_by_round_also_behind_a_stop(over_flower, smoke, monkeypatch, tmp_path):
    """What TensorBoard reads behind a stop and its end has every round of the run once."""
    monkeypatch.setenv("LSCL_TRACK", str(tmp_path / "board"))
    config = smoke(method="local_head", rounds=2)
    gone = lambda exchange, client: "gone" if (exchange, client) == (4, 1) else None
    seen = []
    for lost in (gone, lambda exchange, client: None):
        with contextlib.suppress(LsclError):
            over_flower(config, {"timeout": 0.01 if lost is gone else 5.0}, lost)
        found = EventAccumulator(str(tmp_path / "board" / config.name)).Reload()
        seen.append([event.step for event in found.Scalars("megabytes/up")])
    whole = list(range(1, config.tasks * config.rounds_run + 1))
    assert seen[1] == whole and 0 < len(seen[0]) < len(whole)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_record_of_one_process(over_flower, smoke, name):
    config = smoke(method=name, rounds=1)
    record, _ = over_flower(config)
    assert compared(record) == compared(alone(config))


def test_an_error_before_the_first_round_gives_a_terminal_its_cursor_back(over_flower, smoke, capsys, monkeypatch):
    def refuse(*_):
        raise LsclError("wrong")

    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    monkeypatch.setattr(server_app, "build_experiment", refuse)
    with pytest.raises(LsclError, match="wrong"):
        over_flower(smoke())
    said = capsys.readouterr().err
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h") == 1


def modes(folder):
    """The modes of a folder and all that is in it: those of folders, those of files."""
    there = [folder, *folder.rglob("*")]
    return [{path.stat().st_mode & 0o777 for path in there if path.is_dir() == kind} for kind in (True, False)]


def test_only_the_owner_can_read_what_clients_and_server_keep(over_flower, smoke, places):
    """Also what an earlier version left open to all."""
    config = smoke(method="local_head")
    with pytest.raises(LsclError):
        over_flower(
            config, {"timeout": 0.01}, lambda exchange, client: "gone" if (exchange, client) == (2, 1) else None
        )
    kept = [places / "private" / config.name, places / "results" / "federation" / "state" / config.name]
    assert [modes(folder) for folder in kept] == [[{0o700}, {0o600}]] * 2
    for folder in kept:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    with pytest.raises(LsclError):
        over_flower(
            config, {"timeout": 0.01}, lambda exchange, client: "gone" if (exchange, client) == (3, 1) else None
        )
    assert [modes(folder) for folder in kept] == [[{0o700}, {0o600}]] * 2
    assert modes(places / "results" / "federation")[0] == {0o755, 0o700}  # what is not private stays as it was
    over_flower(config)
    assert modes(kept[0]) == [{0o700}, {0o600}]


def test_too_few_clients_stop_the_run_at_the_last_finished_round_and_it_goes_on(over_flower, smoke, one_line):
    config = smoke(method="lorm")
    whole, _ = over_flower(config)
    with pytest.raises(LsclError) as caught:
        over_flower(
            config, {"timeout": 0.01}, lambda exchange, client: "gone" if (exchange, client) == (2, 1) else None
        )
    one_line(caught, "2 good answers, at least 3 are needed: client 1: no answer")
    again, grid = over_flower(config)
    assert compared(again) == compared(whole)
    assert min(min(exchanges_in(message)) for message in grid.sent) == 2  # the two rounds before were not done again


class Killed(BaseException):
    """Stands for SIGKILL: nothing between here and the test may handle it."""


@pytest.mark.parametrize("name", ["fed_lscl", "fedavg", "lorm", "pilora"])
def test_a_server_that_is_killed_anywhere_resumes_and_ends_as_if_it_had_not(over_flower, smoke, name):
    """One run, killed in every exchange, once after one answer and once after all; it resumes after each kill."""
    config = smoke(method=name)
    whole, grid = over_flower(config)
    exchanges = max(max(exchanges_in(message)) for message in grid.sent) + 1
    for point in range(exchanges):
        for client in (0, 2):

            def kill(exchange, k, point=point, client=client):
                if (exchange, k) == (point, client):
                    raise Killed

            with pytest.raises(Killed):
                over_flower(config, lost=kill)
    again, _ = over_flower(config)
    assert compared(again) == compared(whole)


def test_a_server_does_not_go_on_with_the_state_of_another_origin(over_flower, smoke, places, one_line):
    config = smoke(threads=2)
    with pytest.raises(LsclError, match="at least 3 are needed"):
        over_flower(config, {"timeout": 1.0}, lost=lambda exchange, client: "gone" if exchange >= 4 else None)
    (step,) = (places / "results" / "federation" / "state" / config.name).glob("round-*")
    with pytest.raises(LsclError) as caught:
        over_flower(smoke(threads=1))
    one_line(caught, "saved state", "threads = 2, this call asks for threads = 1", step.parent)
    asked = settle_device(smoke(), read_state(step.parent))  # what `lscl federate` asks for without --threads
    assert asked.threads == 2
    record, _ = over_flower(config)
    assert record["config"]["threads"] == 2 and "optimised_images" not in record
    assert (
        records.read_record(places / "results" / "federation" / "runs" / f"{config.name}.json")["name"]
        == record["name"]
    )
