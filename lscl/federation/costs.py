"""A system's own costs, for the cost model: its work beyond that of all systems.

Its traffic is not estimated here: `Method.upload_shapes` gives it exactly.
"""

from dataclasses import dataclass

from lscl.config import Experiment
from lscl.models.counting import Blocks, Network


@dataclass(frozen=True)
class Planned:
    """A run to be planned.

    Args:
        config: the experiment.
        cnn: the CNN of one client.
        blocks: the ViT's blocks that a training step passes.
        width: width d of the ViT, 0 without one.
        depth: number of blocks of the ViT, 0 without one.
        classes: classes of the data set.
        epoch: training images of all clients and tasks.
        trained: images that all training steps see, repeats included.
    """

    config: Experiment
    cnn: Network
    blocks: Blocks
    width: int
    depth: int
    classes: int
    epoch: float
    trained: float

    @property
    def later(self) -> float:
        """Share of the work that falls on the second and later tasks."""
        return (self.config.tasks_run - 1) / self.config.tasks_run

    @property
    def rounds(self) -> int:
        """Number of rounds of all tasks."""
        return self.config.tasks_run * self.config.rounds

    @property
    def ends(self) -> int:
        """Number of task ends that are followed by another task."""
        return self.config.tasks_run - 1


@dataclass(frozen=True)
class OwnWork:
    """A system's own work, beyond the training steps of the loop.

    Args:
        clients: FLOPs of all clients.
        server: FLOPs of the server.
        steps: steps of optimisers.
    """

    clients: float = 0.0
    server: float = 0.0
    steps: float = 0.0


class Costs:
    """A system's own costs beyond training and testing; the defaults are for a system that does nothing else."""

    every_input = False  # whether a training step keeps the inputs of all linear layers, to update each of them
    evaluations = 1  # passes of a test image through the blocks

    def __init__(self, config: Experiment):
        self.config = config

    def tokens(self) -> int:
        """Number of tokens in addition to those of the image, such as prompts."""
        return 0

    def cnn_images(self) -> float:
        """Images that pass the CNN for each image of a batch."""
        return 1

    def vit_images(self) -> float:
        """Images that pass the ViT's blocks for each image of a batch, from the second task on."""
        return 1

    def cnn_passes(self) -> float:
        """Forward passes of the CNN in a training step: its own, and twice as much for the backward pass."""
        return 3

    def in_front(self) -> tuple[int, int]:
        """In how many blocks keys and values are put before the block's own, and how many at most."""
        return 0, 0

    def passes(self) -> float:
        """Extra passes without gradients over the task's images in a round."""
        return 0

    def step_flops(self, width: int) -> float:
        """FLOPs of the system's own linear layers per image of a training step, for a ViT of this width."""
        return 0.0

    def parameters(self, run: Planned) -> float:
        """Trained parameters of a client without head and CNN, of all tasks together."""
        return 0.0

    def own_work(self, run: Planned) -> OwnWork:
        """Work that only this system does."""
        return OwnWork()
