"""Processes that have the library imported when they begin: a new interpreter spends five seconds of a core on that.

They are forked from a server that each worker of the tests starts once.
"""

import os
import sys
from multiprocessing import get_context
from pathlib import Path

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["torch.optim", "lscl.experiments.run", "lscl.experiments.tuning"])


class Forked:
    """A process that executes code, to be handled like a `subprocess.Popen`.

    Args:
        folder: where its two outputs go.
        code: Python source, executed as `python -c` would.
        words: what it finds in sys.argv[1:].
    """

    def __init__(self, folder: Path, code: str, *words: object):
        folder.mkdir(parents=True)
        self.outputs = folder / "out", folder / "err"
        self.process = FORKS.Process(
            target=execute, args=(code, [str(word) for word in words], dict(os.environ), os.getcwd(), self.outputs)
        )
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def ended(self, seconds: float) -> bool:
        """Whether it ends within so many seconds."""
        self.process.join(seconds)
        return self.returncode is not None

    def written(self) -> str:
        """What it has written to its standard output until now."""
        return self.outputs[0].read_text(encoding="utf-8") if self.outputs[0].exists() else ""

    def kill(self) -> None:
        self.process.kill()

    def communicate(self, timeout: float | None = 600) -> tuple[str, str]:
        """Wait for its end; -> what it wrote."""
        assert self.ended(timeout), f"still running after {timeout} s"
        return tuple(path.read_text(encoding="utf-8") if path.exists() else "" for path in self.outputs)


def execute(code: str, words: list[str], environment: dict[str, str], folder: str, outputs: tuple[Path, Path]) -> None:
    """Run in the forked process."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.argv = ["-c", *words]
    exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})


# Execute the cells of a notebook, given by its path, as a kernel does; prints how many figures were shown.
CELLS = """
import sys
import nbformat
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from matplotlib_inline.backend_inline import configure_inline_support

shell = InteractiveShell.instance()
shell.display_pub = CapturingDisplayPublisher(shell=shell)
configure_inline_support(shell, "module://matplotlib_inline.backend_inline")
for cell in nbformat.read(sys.argv[1], 4).cells:
    if cell.cell_type == "code":
        shell.run_cell(cell.source, store_history=True).raise_error()
print("figures:", sum("image/svg+xml" in output["data"] for output in shell.display_pub.outputs))
"""
