"""Named random generators: one per (seed, purpose, client, task, round), and no global one."""

import hashlib

import numpy as np
import torch


def _number(seed: int, *names: object) -> int:
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1  # 63 bits


def torch_generator(seed: int, *names: object) -> torch.Generator:
    """A torch generator on the CPU for the draw called `names`, for example ("batches", client, task, round)."""
    return torch.Generator().manual_seed(_number(seed, *names))


def numpy_generator(seed: int, *names: object) -> np.random.Generator:
    """A numpy generator for the draw called `names`."""
    return np.random.default_rng(_number(seed, *names))


class seeded:
    """Seed torch's global generator by name inside a `with` block, and restore it afterwards.

    Torch's layers know no other generator: they draw their initial weights and their dropout masks from it.
    """

    def __init__(self, seed: int, *names: object):
        self.number = _number(seed, *names)

    def __enter__(self) -> None:
        self.saved = torch.get_rng_state()
        # Without an accelerator torch.manual_seed would queue, for one that never comes, a call with its whole stack.
        seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
        seed(self.number)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.saved)
