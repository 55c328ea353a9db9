"""Shared by tests of several folders: the repository's place, equal runs, and a recording transport."""

import json
import os
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from lscl.experiments import records
from lscl.results.animation import Recorder  # noqa: F401  for tests of all folders

ROOT = Path(__file__).parents[1]  # whatever LSCL_ROOT says


def compared(record, *ignored):
    """What must be equal in equal runs, as text; without the entries `ignored`."""
    left_out = {*records.MAY_DIFFER, *ignored}
    return json.dumps({name: value for name, value in record.items() if name not in left_out}, sort_keys=True)


def uploads_in_training(recorder):
    """The uploads of every training round that a `Recorder` has seen."""
    return [sent for stage, _, sent in recorder.log if stage.name == "train"]


def marked_processes(marker):
    """What other processes run that have LSCL_MARKER = marker in their environment, which children inherit."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # gone, or somebody else's
            if process.pid != os.getpid() and process.environ().get("LSCL_MARKER") == str(marker):
                found.append(process.cmdline()[:4])
    return found


def note_trained(monkeypatch):
    """The parameters with a gradient in a step of Adam from now on, by their ids: a set that grows."""
    found, step = set(), torch.optim.Adam.step

    def noted(self, *rest):
        found.update(id(p) for group in self.param_groups for p in group["params"] if p.grad is not None)
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    return found


def measured(name):
    """A committed file of results, or where none is measured at present, a sample of its shape."""
    return ROOT / name if (ROOT / name).exists() else ROOT / "tests" / "samples" / "--".join(name.split("/")[-2:])
