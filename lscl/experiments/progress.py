"""What a run shows while it runs: a bar in a terminal, one line per round elsewhere."""

import sys
import time
from collections.abc import Collection
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from lscl.config import Experiment
from lscl.federation.loop import Round
from lscl.federation.method import Stage
from lscl.federation.metrics import accuracies_so_far


class Progress:
    """Task, round, client, the last accuracy and the time left; the bar goes with the end of the `with` block."""

    def __init__(self, config: Experiment, quiet: bool = False, every_round: bool = False):
        self.config, self.every_round = config, every_round
        console = Console(stderr=True, quiet=quiet)
        self.live = console.is_terminal and not quiet
        self.lines = not self.live and not quiet
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
        ]
        self.bar = Bar(*columns, console=console, disable=not self.live)
        self.label = f"{config.method} {config.dataset} seed {config.seed}"
        self.accuracy = ""
        self.task = self.bar.add_task(self.label, total=None)
        self.bar.start()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self, done: int, total: int) -> None:
        """Show how many images went through the frozen part.

        Args:
            done: images so far.
            total: images in all.
        """
        self.bar.update(self.task, description=f"{self.label}: frozen ViT, once per image", completed=done, total=total)

    def placed(self, split: str, there: Collection[str], every: Collection[str]) -> None:
        """Show what of the images lies on the GPU as a whole; the rest is read ahead batch by batch.

        Args:
            split: of the images.
            there: names of what lies there.
            every: names of all that is stored.
        """
        ahead = [name for name in every if name not in there]
        line = f"{self.label}: {split} images, on the GPU: {', '.join(there) or 'nothing'}"
        if self.lines:
            print(f"{line}; read ahead: {', '.join(ahead) or 'nothing'}", file=sys.stderr, flush=True)

    def start(self, exchanges: int, reports: list[Round]) -> None:
        """Show that the loop starts.

        Args:
            exchanges: their number, evaluations included.
            reports: the rounds that an earlier call has finished.
        """
        rounds = len(reports)
        done = sum(2 if report.scores else 1 for report in reports) * self.config.clients
        self.bar.reset(self.task, total=exchanges * self.config.clients, completed=done, description=self.label)
        self.began = time.perf_counter()
        if rounds and self.lines:
            print(f"{self.label}: going on after round {rounds}", file=sys.stderr, flush=True)

    def client(self, stage: Stage, client: int) -> None:
        """Show that a client has answered.

        Args:
            stage: the exchange.
            client: its number, from 0.
        """
        rounds = self.config.rounds_run
        step = f"round {stage.round + 1}/{rounds}" if stage.round < rounds else stage.name
        where = f"task {stage.task + 1}/{self.config.tasks_run} {step} client {client + 1}/{self.config.clients}"
        self.bar.update(self.task, advance=1, description=f"{self.label}: {where}{self.accuracy}")

    def round(self, report: Round) -> None:
        """Show that a round has ended; after the last one of a task, with its accuracy."""
        for fault in report.faults:
            line = f"{self.label}: task {report.task + 1} round {report.round + 1}: not taken: {fault}"
            self.bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        if not report.scores:
            if self.lines and self.every_round:
                where, seconds = (
                    f"task {report.task + 1}/{self.config.tasks_run} round {report.round + 1}",
                    time.perf_counter() - self.began,
                )
                print(f"{self.label}: {where} done, {seconds:.0f} s", file=sys.stderr, flush=True)
            return
        now = accuracies_so_far(report.scores, self.config.classes_per_task)
        self.accuracy = f", accuracy {now['task']:.1f} % (class-incremental {now['seen']:.1f} %)"
        if self.lines:
            seconds = time.perf_counter() - self.began
            print(
                f"{self.label}: task {report.task + 1}/{self.config.tasks_run} done{self.accuracy}, {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    def sheet(self, path: Path, report: Round) -> None:
        """The server's images were written; what they can show hangs on the model that they were made from.

        Args:
            path: the file.
            report: the round, with scores.
        """
        now = accuracies_so_far(report.scores, self.config.classes_per_task)
        model = f"{now['task']:.1f} % (class-incremental {now['seen']:.1f} %)"
        line = f"{self.label}: task {report.task + 1}: images of the server, from a model of accuracy {model}: {path}"
        if self.lines:
            print(line, file=sys.stderr, flush=True)
        else:
            self.bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bar and show the cursor again."""
        self.bar.stop()
