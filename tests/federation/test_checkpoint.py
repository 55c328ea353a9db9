"""A run's state on disk: whole, checked, and enough to go on after any stop as if there had been none."""

import json
import os
import random
import signal
import time

import pytest
import torch
from tests_root import compared

from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.run import run, state_folders
from lscl.federation import checkpoint
from lscl.federation.checkpoint import _digest, load_state, read_state, save_state
from lscl.federation.loop import InProcess, federate


def played(federation, config, rounds):
    """Reports, method and clients after some rounds."""
    method, clients = federation(config)
    reports = []
    for report in federate(method, InProcess(method, clients)):
        reports.append(report)
        if len(reports) == rounds:
            return reports, method, clients


def same(one, other):
    return set(one) == set(other) and all(
        torch.equal(value, other[name]) and value.dtype == other[name].dtype for name, value in one.items()
    )


@pytest.mark.parametrize("name", ["fed_lscl", "fedavg_vit", "local_head", "local_lora"])
def test_saving_and_loading_brings_everything_back(federation, smoke, tmp_path, name):
    config = smoke(method=name)
    reports, method, clients = played(federation, config, 3)
    save_state(tmp_path / "state", reports, method, clients, {"commit": "abc", "dirty": False})
    fresh, others = federation(config)
    saved = read_state(tmp_path / "state")
    found = load_state(saved, fresh, others)
    assert saved.about == {"commit": "abc", "dirty": False}
    assert same(fresh.server, method.server)
    for one, other in zip(clients, others):
        assert same(one.private_state(), other.private_state()) and same(one.state, other.state)
    for one, other in zip(reports, found):
        assert one.__dict__ | {"scores": None} == other.__dict__ | {"scores": None}
        assert set(one.scores) == set(other.scores) and all(same(one.scores[k], other.scores[k]) for k in one.scores)


def test_without_a_state_the_run_starts_at_the_beginning(federation, smoke, tmp_path):
    method, clients = federation(smoke())
    before = {name: value.clone() for name, value in clients[0].private_state().items()}
    saved = read_state(tmp_path / "none")
    assert load_state(saved, method, clients) == [] and saved.about == {}
    assert same(clients[0].private_state(), before)


def test_only_the_last_round_is_kept(federation, smoke, tmp_path):
    method, clients = federation(smoke(method="local_head"))
    reports = []
    for report in federate(method, InProcess(method, clients)):
        reports.append(report)
        save_state(tmp_path, reports, method, clients, {})
        assert [path.name for path in tmp_path.iterdir()] == [f"round-{len(reports):05d}"]
    assert len(load_state(read_state(tmp_path), method, clients)) == 4


def test_a_state_that_was_being_written_is_passed_over(federation, smoke, tmp_path):
    reports, method, clients = played(federation, smoke(), 2)
    save_state(tmp_path, reports, method, clients, {})
    (tmp_path / ".round-00003-abc").mkdir()
    (tmp_path / ".round-00003-abc" / "rounds.json").write_text("{", encoding="utf-8")
    assert len(load_state(read_state(tmp_path), method, clients)) == 2


def test_of_two_rounds_the_later_one_counts(federation, smoke, tmp_path):
    """As left by a stop between writing a round and dropping the one before."""
    reports, method, clients = played(federation, smoke(method="local_head"), 2)
    save_state(tmp_path / "a", reports, method, clients, {})
    save_state(tmp_path / "b", reports[:1], method, clients, {})
    (tmp_path / "b" / "round-00001").rename(tmp_path / "a" / "round-00001")
    assert len(load_state(read_state(tmp_path / "a"), method, clients)) == 2


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def rewrite(step, change, sign=False):
    """Change what is saved about the rounds; sign: give it a digest that fits."""
    saved = json.loads((step / "rounds.json").read_text())
    change(saved)
    if sign:
        saved["digest"] = _digest({key: value for key, value in saved.items() if key != "digest"})
    (step / "rounds.json").write_text(json.dumps(saved))


DAMAGE = {
    "a flipped bit of the server": lambda step: flip(step / "server.safetensors", -50),
    "a flipped bit of a client": lambda step: flip(step / "client1.safetensors", -50),
    "a flipped header": lambda step: flip(step / "client0.safetensors", 0),
    "a file cut off": lambda step: os.truncate(step / "client2.safetensors", 1000),
    "an empty file": lambda step: os.truncate(step / "server.safetensors", 0),
    "a client missing": lambda step: (step / "client1.safetensors").unlink(),
    "no reports": lambda step: (step / "rounds.json").unlink(),
    "half the reports": lambda step: os.truncate(step / "rounds.json", 100),
    "a folder for the reports": lambda step: ((step / "rounds.json").unlink(), (step / "rounds.json").mkdir()),
    "a pipe for the reports": lambda step: ((step / "rounds.json").unlink(), os.mkfifo(step / "rounds.json")),
    "a pipe for the server": lambda step: (
        (step / "server.safetensors").unlink(),
        os.mkfifo(step / "server.safetensors"),
    ),
    "nested reports": lambda step: (step / "rounds.json").write_text("[" * 100_000),
    "a changed score": lambda step: rewrite(
        step, lambda saved: saved["rounds"][1]["scores"]["0"]["correct"][0].__setitem__(0, 1000)
    ),
    "another count of bytes": lambda step: rewrite(step, lambda saved: saved["rounds"][0].update(bytes_up=[1, 1, 1])),
    "a dropped round": lambda step: rewrite(step, lambda saved: saved["rounds"].pop(0)),
    "a repeated round": lambda step: rewrite(step, lambda saved: saved["rounds"].append(saved["rounds"][-1])),
    "other code": lambda step: rewrite(step, lambda saved: saved["about"].update(dirty=False)),
    "unsigned, as by an earlier version": lambda step: rewrite(step, lambda saved: saved.pop("digest")),
    "a dropped round, signed": lambda step: rewrite(step, lambda saved: saved["rounds"].pop(0), sign=True),
    "no round, signed": lambda step: rewrite(step, lambda saved: saved["rounds"].clear(), sign=True),
    "rounds in another order, signed": lambda step: rewrite(step, lambda saved: saved["rounds"].reverse(), sign=True),
    "a later round's name": lambda step: step.rename(step.with_name("round-00009")),
    "other reports": lambda step: (step / "rounds.json").write_text("{}"),
    "no dictionary": lambda step: (step / "rounds.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_one_line_that_says_what_to_do(federation, smoke, tmp_path, damage, one_line):
    reports, method, clients = played(federation, smoke(), 2)
    save_state(tmp_path, reports, method, clients, {})
    DAMAGE[damage](tmp_path / "round-00002")
    with pytest.raises(LsclError) as caught:
        load_state(read_state(tmp_path), *federation(smoke()))
    (step,) = tmp_path.iterdir()
    one_line(caught, f"damaged state {step}", "delete that folder")


def test_the_state_of_another_model_is_one_line(federation, smoke, tmp_path, one_line):
    reports, method, clients = played(federation, smoke(), 1)
    save_state(tmp_path, reports, method, clients, {})
    with pytest.raises(LsclError) as caught:
        load_state(read_state(tmp_path), *federation(smoke(rank=2)))
    one_line(caught, f"damaged state {tmp_path / 'round-00001'}")


def test_a_full_disk_is_one_line_and_keeps_the_round_before(federation, smoke, tmp_path, small_files, one_line):
    reports, method, clients = played(federation, smoke(), 2)
    save_state(tmp_path, reports[:1], method, clients, {})
    with small_files(4000), pytest.raises(LsclError) as caught:
        save_state(tmp_path, reports, method, clients, {})
    one_line(caught, "cannot write", "round-00002")
    assert [path.name for path in tmp_path.iterdir()] == ["round-00001"]
    assert len(load_state(read_state(tmp_path), method, clients)) == 1


RUN = """
import json, sys
from lscl.config import experiment
from lscl.experiments import records
from lscl.experiments.run import run

records.source = lambda: {"commit": None, "dirty": False, "code_digest": "c0de"}  # as in the tests
run(experiment(**json.loads(sys.argv[1])), quiet=True)
"""


def test_a_run_killed_at_10_random_moments_ends_with_the_same_record(smoke, places, forked, monkeypatch, tmp_path):
    config = smoke(rounds=3, epochs=2)
    whole = run(config, quiet=True)
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "killed"))
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "cache"))  # of its own: the caches are killed too
    state = tmp_path / "killed" / "results" / "runs" / "smoke" / "state"
    draw, kills, resumed, ended = random.Random(1), 0, 0, 0
    start = lambda: forked(RUN, config.model_dump_json())

    def finish(process):
        said = process.communicate()
        assert process.returncode == 0, said
        (path,) = (tmp_path / "killed" / "results" / "runs" / "smoke").glob("*.json")
        assert compared(records.read_record(path)) == compared(whole)
        path.unlink()

    forked("pass").communicate()  # the first one waits until the server of all forks has imported the library
    started = time.perf_counter()
    finish(start())
    duration = time.perf_counter() - started
    while kills < 10 and ended < 100:
        saved = set(state.glob("*/round-*"))
        resumed += bool(saved)
        process = start()
        if kills % 2:  # soon after one more round was saved; else at any time
            while set(state.glob("*/round-*")) <= saved and not process.ended(0.001):
                pass
            wait = draw.uniform(0, duration / 6)
        else:
            wait = draw.uniform(0, duration)
        if process.ended(wait):
            finish(process)
            ended += 1
        else:
            process.kill()
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
    finish(start())
    assert kills == 10 and resumed >= 3
    assert not state.exists() or not list(state.iterdir())


def test_a_damaged_state_stops_the_run_with_one_line(smoke, places, monkeypatch, one_line):
    config = smoke()
    interrupted_after(monkeypatch, 8)
    with pytest.raises(KeyboardInterrupt):
        run(config, quiet=True)
    monkeypatch.undo()
    monkeypatch.setenv("LSCL_ROOT", str(places))
    (folder,) = state_folders()
    (step,) = folder.glob("round-*")
    os.truncate(step / "client1.safetensors", 500)
    with pytest.raises(LsclError) as caught:
        run(config, quiet=True)
    one_line(caught, f"damaged state {step}", "delete that folder to start the run again")


def interrupted_after(monkeypatch, exchanges):
    """Let Ctrl-C come after so many clients have answered."""
    from lscl.experiments.progress import Progress

    left = [exchanges]

    def client(self, stage, number):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "client", client)


@pytest.mark.parametrize("name", ["fed_lscl", "fedavg_vit"])
def test_a_run_interrupted_between_two_clients_ends_with_the_same_record(smoke, places, tmp_path, name):
    config = smoke(method=name)
    whole = run(config, quiet=True)
    for exchanges in (2, 3, 8, 13):  # of 18: two tasks of two rounds and a finish, three clients
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LSCL_ROOT", str(tmp_path / f"stopped{exchanges}"))
            interrupted_after(patch, exchanges)
            with pytest.raises(KeyboardInterrupt):
                run(config, quiet=True)
            assert records.find(config) is None
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LSCL_ROOT", str(tmp_path / f"stopped{exchanges}"))
            assert bool(state_folders()) == (
                exchanges >= 3
            )  # from the first finished round on there is something to go on from
            assert compared(run(config, quiet=True)) == compared(whole)
            assert state_folders() == []


def test_a_resumed_run_reads_its_reports_once(smoke, places, monkeypatch):
    config, read = smoke(), []
    with pytest.MonkeyPatch.context() as patch:
        interrupted_after(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            run(config, quiet=True)
    monkeypatch.setattr(checkpoint, "read_regular", lambda path, limit: read.append(path.name) or path.read_bytes())
    run(config, quiet=True)
    assert sorted(read) == [*(f"client{k}.safetensors" for k in range(3)), "rounds.json", "server.safetensors"]
