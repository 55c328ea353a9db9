"""What a run shows while it runs."""

import re

import pytest
import torch

from lscl.config import experiment
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.progress import Progress
from lscl.experiments.run import run
from lscl.federation.loop import Round
from lscl.federation.method import Stage
from lscl.federation.metrics import average_so_far


def test_one_line_per_task_with_its_accuracy_where_there_is_no_terminal(smoke, capsys):
    record = run(smoke())
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and len(lines) == 2
    for t, line in enumerate(lines):
        task, seen = (average_so_far(records.accuracy(record, mask))[t] for mask in ("task", "seen"))
        assert line.startswith(
            f"fed_lscl folder seed 42: task {t + 1}/2 done, accuracy {task:.1f} % (class-incremental {seen:.1f} %), "
        )
        assert re.search(r", \d+ s$", line)


def test_a_quiet_run_says_nothing(smoke, capsys):
    run(smoke(), quiet=True)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_run_that_goes_on_says_from_where(smoke, capsys):
    progress = Progress(smoke())
    progress.start(6, [Round(0, 0, [], [], {})] * 3)
    progress.close()
    assert capsys.readouterr().err.strip() == "fed_lscl folder seed 42: going on after round 3"


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_the_bar_is_full_when_the_last_client_has_answered(smoke, done):
    scores = {k: {"correct": torch.ones(3, 3), "total": torch.ones(3)} for k in range(3)}
    reports = [Round(t, r, [], [], {}, scores=scores if r == 1 else {}) for t in range(2) for r in range(2)]
    progress = Progress(smoke(), quiet=True)
    progress.start(6, reports[:done])
    stages = [Stage(t, r, name) for t in range(2) for r, name in ((0, "train"), (1, "train"), (1, "finish"))]
    for stage in stages:
        if stage.task * 2 + stage.round >= done:
            for k in range(3):
                progress.client(stage, k)
    bar = progress.bar.tasks[0]
    assert bar.completed == bar.total == 18
    progress.close()


def test_whatever_ends_the_block_a_terminal_gets_its_cursor_back(smoke, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    with pytest.raises(LsclError), Progress(smoke()) as progress:
        assert progress.live
        raise LsclError("wrong")
    said = capsys.readouterr().err
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h") == 1


def test_an_error_before_the_first_round_stands_behind_the_bar(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(LsclError, match="classes need"):
        run(experiment(profile="smoke", clients=100))
    said = capsys.readouterr().err
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h") == 1
