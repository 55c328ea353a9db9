"""Shared by tests of several folders: the repository's place, equal runs, and a recording transport."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from lscl.experiments import records
from lscl.federation.loop import InProcess
from lscl.federation.payload import seal

ROOT = Path(__file__).parents[1]  # whatever LSCL_ROOT says


def compared(record, *ignored):
    """What must be equal in equal runs, as text; without the entries `ignored`."""
    left_out = {*records.MAY_DIFFER, *ignored}
    return json.dumps({name: value for name, value in record.items() if name not in left_out}, sort_keys=True)


@dataclass
class Recorder(InProcess):
    """Keeps copies of everything that is sent: (stage, downloads, uploads)."""

    log: list = field(default_factory=list)

    def ask(self, stage, downloads):
        answers = super().ask(stage, downloads)
        self.log.append((stage, dict(downloads), {k: seal(payload, "test") for k, payload in answers.items()}))
        return answers

    @property
    def uploads(self):
        """The uploads of every training round."""
        return [sent for stage, _, sent in self.log if stage.name == "train"]


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
