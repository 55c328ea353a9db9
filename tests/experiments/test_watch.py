"""Observers of a run: the table of its rounds, the live one of a notebook, and TensorBoard's files."""

import math
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lscl.config import experiment
from lscl.errors import LsclError
from lscl.experiments.watch import LiveTable, TensorBoard, rounds_table
from lscl.federation.loop import Round
from lscl.federation.metrics import MASKS

CONFIG = experiment(profile="smoke")


def reports(count=4):
    """Rounds of two tasks by hand; in each task's last one client 1 has half of its images right, client 0 all."""
    total = torch.full((14,), 2)
    right = {0: torch.full((len(MASKS), 14), 2), 1: torch.full((len(MASKS), 14), 1)}
    made = []
    for number in range(count):
        scores = {k: {"correct": correct, "total": total} for k, correct in right.items()} if number % 2 else {}
        seconds = {"train": 1.0, "aggregate": 0.5, "evaluate": 0.5}
        made.append(Round(number // 2, number % 2, [10**6, 10**6], [10**6, 2 * 10**6], seconds, scores=scores))
    return made


@pytest.fixture
def halves(monkeypatch):
    """Accuracies without the classes of tasks: client 0 has 100 %, client 1 has 50 %."""

    def simple(scores, classes_per_task):
        own = [100 * float(found["correct"].sum() / found["total"].sum() / len(MASKS)) for found in scores.values()]
        return dict.fromkeys(MASKS, sum(own) / len(own))

    monkeypatch.setattr("lscl.experiments.watch.accuracies_so_far", simple)


def test_the_table_has_a_row_per_round_and_accuracies_behind_a_task(halves):
    table = rounds_table(CONFIG, reports())
    assert table[["task", "round"]].values.tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert math.isnan(table["task-masked %"][0]) and table["class-incremental %"][3] == 75
    assert table[["MB up", "MB down", "seconds"]].values.tolist() == [[2, 3, 2]] * 4
    assert rounds_table(CONFIG, []).empty


def test_a_notebook_has_one_table_that_grows(halves, monkeypatch):
    shown = []

    class Handle:
        def update(self, table):
            shown.append(("update", table.to_html()))

    def display(table, display_id):
        shown.append(("display", table.to_html()))
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    live = LiveTable()
    for count in (1, 2, 3):
        live(CONFIG, reports(count))
    assert [how for how, _ in shown] == ["display", "update", "update"]
    tables = [table for _, table in shown]
    assert [table.count("<tr>") for table in tables] == [2, 3, 4]
    assert "75.00" in tables[-1] and "nan" not in tables[-1]


def scalars(folder):
    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_gets_every_round_once_even_when_a_run_is_resumed(halves, tmp_path):
    first = TensorBoard(tmp_path)
    for count in (1, 2):
        first(CONFIG, reports(count))
    first.close()
    again = TensorBoard(tmp_path)  # as another process, which has lost a round that nobody told of
    for count in (3, 4):
        again(CONFIG, reports(count))
    again.close()
    found = scalars(tmp_path / CONFIG.name)
    assert found["megabytes/up"] == [(1, 2), (2, 2), (3, 2), (4, 2)]
    assert found["accuracy/seen"] == [(2, 75), (4, 75)]
    assert found["client 1/class-incremental"] == [(2, 100), (4, 100)]
    assert found["client 2/class-incremental"] == [(2, 50), (4, 50)]
    assert found["seconds/train"][-1] == (4, 1)


def test_two_runs_have_two_folders(halves, tmp_path):
    board, other = TensorBoard(tmp_path), experiment(profile="smoke", seed=7)
    board(CONFIG, reports(1))
    board(other, reports(2))
    board.close()
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG.name, other.name}
    assert len(scalars(tmp_path / other.name)["megabytes/up"]) == 2


def test_without_tensorboard_one_line_says_what_to_install(monkeypatch, tmp_path, one_line):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(LsclError) as caught:
        TensorBoard(tmp_path)
    one_line(caught, "tensorboard", "lscl[track]")


def test_a_folder_that_cannot_be_written_is_one_line(halves, tmp_path, one_line):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(LsclError) as caught:
        TensorBoard(tmp_path / "file")(CONFIG, reports(1))
    one_line(caught, f"cannot write {tmp_path / 'file'}")
