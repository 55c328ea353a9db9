"""Payloads written to a folder as they travel."""

import threading
import time

import pytest
import torch
from tests_root import Recorder, compared

from lscl import cli
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.run import KEPT, run, run_until
from lscl.federation.kept_payloads import PayloadKeeper, lacks_payloads, payload_path, read_payload
from lscl.federation.loop import exchanges, federate
from lscl.federation.method import Stage


@pytest.mark.parametrize("name", ["fed_lscl", "glfc", "fed_ncm", "local_head"])
def test_the_files_hold_exactly_what_travelled(federation, smoke, name, tmp_path):
    method, clients = federation(smoke(method=name))
    recorder = Recorder(method, clients)
    reports = list(federate(method, PayloadKeeper(recorder, tmp_path)))
    assert lacks_payloads(tmp_path, exchanges(method), 3) == []
    for stage, downloads, uploads in recorder.log:
        for sent, direction in ((downloads, "down"), (uploads, "up")):
            for client, payload in sent.items():
                found = read_payload(tmp_path, stage, client, direction)
                assert found.keys() == payload.keys()
                assert all(torch.equal(found[name], payload[name]) for name in payload)
    first = read_payload(tmp_path, Stage(0, 0), 1, "up")
    assert sum(value.nbytes for value in first.values()) == reports[0].bytes_up[1]


def test_keeping_changes_no_number_and_is_off_by_default(smoke, tmp_path, monkeypatch):
    plain = run(smoke(), quiet=True)
    assert not list(tmp_path.glob("**/*.safetensors"))
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "other"))
    kept = run(smoke(), quiet=True, keep_payloads=tmp_path / "kept")
    assert compared(kept) == compared(plain)
    assert (tmp_path / "kept" / plain["name"] / KEPT).is_file()


def test_only_the_owner_can_read_them(smoke, tmp_path):
    record = run(smoke(method="fed_ncm"), quiet=True, keep_payloads=tmp_path)
    path = payload_path(tmp_path / record["name"], Stage(0, 0), 0, "up")
    assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0


def test_what_was_computed_without_keeping_is_not_kept_later(smoke, tmp_path):
    run_until(smoke(method="fed_ncm"), 1, quiet=True)
    with pytest.raises(LsclError, match="1 finished rounds, and its payloads are not in"):
        run(smoke(method="fed_ncm"), quiet=True, keep_payloads=tmp_path)
    run(smoke(method="fed_ncm"), quiet=True)
    with pytest.raises(LsclError, match="this run is finished, and its payloads are not in"):
        run(smoke(method="fed_ncm"), quiet=True, keep_payloads=tmp_path)
    assert records.find(smoke(method="fed_ncm")) is not None


def test_what_another_process_computes_meanwhile_without_keeping_is_said(smoke, tmp_path):
    """The second call waits for the first one, which has begun and keeps nothing."""
    config, found = smoke(method="fed_ncm"), []

    def keep():
        with pytest.raises(LsclError, match="this run is finished, and its payloads are not in"):
            run(config, quiet=True, keep_payloads=tmp_path)
        found.append(True)

    waiting = threading.Thread(target=keep)
    run(config, quiet=True, on_round=lambda _, reports: len(reports) == 1 and (waiting.start(), time.sleep(0.3)))
    waiting.join()
    assert found == [True]


def test_a_folder_may_be_given_as_text(smoke, tmp_path):
    record = run(smoke(method="fed_ncm"), quiet=True, keep_payloads=str(tmp_path))
    assert (tmp_path / record["name"] / KEPT).is_file()


def test_a_stopped_run_goes_on_keeping(smoke, tmp_path, monkeypatch):
    config, ask, asked = smoke(method="fed_ncm"), PayloadKeeper.ask, []

    def stop(self, stage, downloads):
        asked.append(stage)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(self, stage, downloads)

    with monkeypatch.context() as patch:
        patch.setattr(PayloadKeeper, "ask", stop)
        with pytest.raises(KeyboardInterrupt):
            run(config, quiet=True, keep_payloads=tmp_path)
    record = run(config, quiet=True, keep_payloads=tmp_path)
    stages = [Stage(task, 0, name) for task in (0, 1) for name in ("train", "finish")]
    assert lacks_payloads(tmp_path / record["name"], stages, 3) == []
    assert run(config, quiet=True, keep_payloads=tmp_path) == record


def test_a_missing_or_damaged_file_is_one_line(tmp_path):
    with pytest.raises(LsclError, match="cannot read the payload"):
        read_payload(tmp_path, Stage(0, 0), 0, "up")
    path = payload_path(tmp_path, Stage(0, 0), 0, "up")
    path.parent.mkdir()
    path.write_bytes(b"{")
    with pytest.raises(LsclError, match="cannot read the payload"):
        read_payload(tmp_path, Stage(0, 0), 0, "up")


def test_a_folder_that_cannot_be_written_is_one_line(smoke, tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    words = ["run", "--method", "fed_ncm", "--profile", "smoke", "--keep-payloads", str(tmp_path / "file")]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("cannot write") == 1
