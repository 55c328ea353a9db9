"""Fed-LSCL: large-small model collaboration for federated continual learning, as a library behind a book."""

import os

# Torch's threads wait for each other by spinning, so that beside other work a run gets several times slower; asleep, they cost nothing.
# Read when torch is imported, hence here; results do not depend on it, and whoever has set it keeps that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
