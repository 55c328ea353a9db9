"""What the first cell of a notebook runs on Colab, where the package is missing: clone the repository and install it.

The cell gives the repository's address as REPOSITORY.
"""

import importlib
import os
import subprocess
import sys

subprocess.run(["git", "clone", "-q", "--depth", "1", REPOSITORY, "lscl-repository"], check=True)  # noqa: F821
subprocess.run([sys.executable, "-m", "pip", "install", "-q", "./lscl-repository"], check=True)
importlib.invalidate_caches()  # so that the import that follows finds it
os.environ["LSCL_ROOT"] = os.path.abspath("lscl-repository")
