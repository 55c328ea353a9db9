"""What a system needs beyond what all of them need, for the cost model. How much it sends is no estimate: see `Method.upload_shapes`."""

from dataclasses import dataclass

from lscl.config import Experiment
from lscl.models.counting import Blocks, Network


@dataclass(frozen=True)
class Planned:
    """A run that is being planned.

    cnn: of one client; blocks: those that a training step passes; width, depth: of the ViT, 0 without one; classes: of the data set;
    epoch: training images of all clients and tasks; trained: images that all training steps see.
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
        """Share of the work from the second task on."""
        return (self.config.tasks_run - 1) / self.config.tasks_run

    @property
    def rounds(self) -> int:
        """Rounds of all tasks."""
        return self.config.tasks_run * self.config.rounds

    @property
    def ends(self) -> int:
        """Ends of tasks that another one follows."""
        return self.config.tasks_run - 1


@dataclass(frozen=True)
class OwnWork:
    """FLOPs of all clients and of the server, and steps of optimisers, beyond the training steps of the loop."""

    clients: float = 0.0
    server: float = 0.0
    steps: float = 0.0


class Costs:
    """What a system needs beyond training on its images and being tested. The defaults are those of one that does no more than that.

    every_input: whether a step keeps the inputs of all linear layers, to update every one of them; evaluations: passes through the blocks
    for a tested image.
    """

    every_input = False
    evaluations = 1

    def __init__(self, config: Experiment):
        self.config = config

    def tokens(self) -> int:
        """Tokens that stand beside those of the image."""
        return 0

    def cnn_images(self) -> float:
        """Images that go through the CNN for one of a batch."""
        return 1

    def passes(self) -> float:
        """How often a round goes through the images of the task once more without gradients."""
        return 0

    def step_flops(self, width: int) -> float:
        """FLOPs in linear layers of its own, for an image in a training step; width: of the ViT."""
        return 0.0

    def parameters(self, run: Planned) -> float:
        """Trained parameters of a client beside head and CNN, those of all tasks; a bound for what is not a matrix of the list."""
        return 0.0

    def own_work(self, run: Planned) -> OwnWork:
        """What is particular to the system."""
        return OwnWork()
