"""Shared by tests of several folders: the repository's place, whatever LSCL_ROOT says, and a recording transport."""

from dataclasses import dataclass, field
from pathlib import Path

from lscl.federation.loop import InProcess
from lscl.federation.payload import seal

ROOT = Path(__file__).parents[1]


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
