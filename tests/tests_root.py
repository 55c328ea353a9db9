"""Where the repository is, whatever LSCL_ROOT says in the tests."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
