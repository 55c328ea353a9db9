"""Watch a run: observers for `lscl.run(config, on_round=...)`. They only show; the record stays the only truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lscl.config import Experiment
from lscl.data.store import cannot_write
from lscl.errors import LsclError
from lscl.federation.loop import Round
from lscl.federation.metrics import accuracies_so_far


def rounds_table(config: Experiment, reports: Sequence[Round]) -> pd.DataFrame:
    """A row per finished round: accuracies in percent after the last round of a task, megabytes, seconds.

    Args:
        config: the run.
        reports: its rounds so far.

    Returns:
        the columns task, round, task-masked %, class-incremental %, MB up, MB down, seconds; accuracies are over all
        clients and all tasks so far, and NaN where nobody was tested.
    """
    rows = []
    for report in reports:
        now = accuracies_so_far(report.scores, config.classes_per_task) if report.scores else {}
        rows.append(
            {
                "task": report.task + 1,
                "round": report.round + 1,
                "task-masked %": now.get("task", float("nan")),
                "class-incremental %": now.get("seen", float("nan")),
                "MB up": sum(report.bytes_up) / 1e6,
                "MB down": sum(report.bytes_down) / 1e6,
                "seconds": sum(report.seconds.values()),
            }
        )
    return pd.DataFrame(rows)


class LiveTable:
    """A table in a notebook that grows by a row with every finished round."""

    def __init__(self):
        self.handle: Any = None

    def __call__(self, config: Experiment, reports: Sequence[Round]) -> None:
        """Show the rounds so far in the place of the earlier table.

        Args:
            config: the run.
            reports: its rounds so far.
        """
        from IPython.display import display  # only notebooks have it at hand

        shown = rounds_table(config, reports).style.format(precision=2, na_rep="").hide(axis="index")
        if self.handle is None:
            self.handle = display(shown, display_id=True)
        else:
            self.handle.update(shown)


class TensorBoard:
    """Writes accuracies, bytes and seconds of every round for TensorBoard; needs the extra `track`.

    A run has a folder of its own, and a resumed one goes on in it: what an earlier call wrote is replaced.

    Args:
        folder: what `tensorboard --logdir` reads; each run gets a folder in it.

    Raises:
        LsclError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path | str):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise LsclError(
                "no package tensorboard: to track runs takes the extra track, pip install 'fed-lscl[track]'"
            ) from None
        self.folder, self.writer_class = Path(folder), SummaryWriter
        self.writer: Any = None
        self.name, self.written = "", 0

    def __call__(self, config: Experiment, reports: Sequence[Round]) -> None:
        """Write the rounds that are not written yet; the number of a round counts from 1 over all tasks.

        Args:
            config: the run.
            reports: its rounds so far.

        Raises:
            LsclError: the folder cannot be written.
        """
        try:
            if self.name != config.name:
                self.close()
                self.writer = self.writer_class(self.folder / config.name, purge_step=0)
                self.name, self.written = config.name, 0
            for number, report in enumerate(reports[self.written :], self.written + 1):
                self._write(config, report, number)
            self.written = len(reports)
            self.writer.flush()
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def _write(self, config: Experiment, report: Round, number: int) -> None:
        if report.scores:
            for mask, value in accuracies_so_far(report.scores, config.classes_per_task).items():
                self.writer.add_scalar(f"accuracy/{mask}", value, number)
            for client, found in report.scores.items():
                own = accuracies_so_far({client: found}, config.classes_per_task)
                self.writer.add_scalar(f"client {client + 1}/class-incremental", own["seen"], number)
        self.writer.add_scalar("megabytes/up", sum(report.bytes_up) / 1e6, number)
        self.writer.add_scalar("megabytes/down", sum(report.bytes_down) / 1e6, number)
        for part, seconds in report.seconds.items():
            self.writer.add_scalar(f"seconds/{part}", seconds, number)

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        if self.writer is not None:
            self.writer.close()
        self.writer, self.name = None, ""
