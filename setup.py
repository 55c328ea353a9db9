"""Puts the numbers that the paper published into the package; all else stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PUBLISHED = Path("results", "published")


class BuildWithPublishedNumbers(build_py):
    """Copies results/published beside lscl/results/published.py, which reads it where there is no repository."""

    def run(self) -> None:
        """Build the package, then add the files; an editable installation reads them in the repository."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "lscl", "results", "published_numbers")
            self.mkpath(str(target))
            for path in sorted(PUBLISHED.iterdir()):
                self.copy_file(str(path), str(target / path.name))


setup(cmdclass={"build_py": BuildWithPublishedNumbers})
