"""What all checks of gpu.py are told: the device, and the sizes on a GPU and in a dry run."""

from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from lscl.errors import LsclError
from lscl.federation.passes import BATCH

ROOT = Path(__file__).resolve().parents[1]


class CheckFailed(LsclError):
    """A check ran and found something wrong; `facts` is what it had measured until then."""

    def __init__(self, reason: str, facts: dict[str, Any]):
        super().__init__(reason)
        self.facts = facts


@dataclass(frozen=True)
class Setting:
    """How the checks run.

    Args:
        out: folder of the outcomes.
        dry: toy sizes on the CPU.
        data_dir: folder with CIFAR-100; None = none was given.
        cifar100: whether CIFAR-100 is there, in that folder or in the cache.
    """

    out: Path
    dry: bool = False
    data_dir: Path | None = None
    cifar100: bool = False

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def toy(self) -> dict[str, Any]:
        """What a dry run changes of the smoke profile."""
        return {"rounds": 1, "images_per_class": 3, "test_images_per_class": 1} if self.dry else {}

    @property
    def shortest(self) -> dict[str, Any]:
        """What a dry run changes besides where one task is enough."""
        return {"tasks": 1} if self.dry else {}

    @property
    def vit(self) -> str:
        return "test_vit" if self.dry else "vit_base_patch16_224"

    @property
    def step_values(self) -> dict[str, Any]:
        """The values of the profile `paper` that a measured step changes."""
        small = {"cnn": "tiny", "features": 16, "cnn_size": 32} if self.dry else {}
        return {"foundation": f"random/{self.vit}", **small}

    @property
    def largest_batch(self) -> int:
        return 4 if self.dry else 10**6

    @property
    def tested(self) -> int:
        """Images of a pass as tests make it."""
        return 4 if self.dry else BATCH

    @property
    def steps(self) -> int | None:
        """Steps that are timed; None = as many as the batch size asks for."""
        return 1 if self.dry else None

    @property
    def turns(self) -> int:
        """How often steps are timed."""
        return 1 if self.dry else 3

    @property
    def every(self) -> int:
        """Of the checks that matter least, a dry run does each so-manyth."""
        return 10 if self.dry else 1

    @property
    def notebooks(self) -> tuple[str, ...]:
        """The notebooks to execute; other tests execute all of them on a CPU."""
        found = sorted(path.stem for path in (ROOT / "notebooks").glob("0[1-4]_*.ipynb"))
        return tuple(found[: 1 if self.dry else None])

    @property
    def context(self) -> BaseContext:
        """How checks start processes: a fork is fast, but a child cannot use the GPU that its parent has used."""
        return get_context("fork" if self.dry else "spawn")

    @property
    def compiler(self) -> str:
        """The backend of torch.compile."""
        return "eager" if self.dry else "inductor"

    @property
    def patience(self) -> float:
        """Factor for the times that checks are expected to take, which are those on a GPU."""
        return 0.1 if self.dry else 1.0

    @property
    def processes(self) -> tuple[int, ...]:
        """Numbers of processes at once."""
        return (1, 2) if self.dry else (1, 4, 8)

    @property
    def seconds_of_pace(self) -> float:
        return 0.2 if self.dry else 4.0

    @property
    def notebook_profile(self) -> str:
        return "smoke" if self.dry else "demo"

    @property
    def run_values(self) -> dict[str, Any]:
        """The runs whose records are wanted."""
        if self.dry:
            return {"profile": "smoke", "dataset": "glyphs", "seed": 42, "device": "cpu", **self.toy}
        return {"profile": "full", "dataset": "cifar100", "seed": 42, "device": "cuda", "data_dir": self.data_dir}
