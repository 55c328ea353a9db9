"""Small CNNs that start from pre-trained weights (cnn_start = pretrained). Heads and projections stay drawn.

- small: shipped with the package; made by `lscl pretrain --network small` from images of 32 pixels, as a run sees them.
- torchvision's five: IMAGENET1K_V1, trained on 224 pixels (EfficientNet-B3: 300) with ImageNet's mean and standard
  deviation of each channel.
- names of timm: timm's default weights, trained with the mean and standard deviation of their `pretrained_cfg`.

A run gives all CNNs the input of `lscl.models.cnn.to_cnn_input`. `Rescale` before the last two kinds turns it into
the input that their weights were trained with. The size is not changed: `cnn_size` sets it.
"""

from pathlib import Path

import timm
import torch
import torchvision
from timm.models import is_model_pretrained
from torch import Tensor, nn

from lscl.config import Experiment
from lscl.errors import LsclError, first_line
from lscl.models.cnn import (
    MEAN_OF_INPUT,
    STD_OF_INPUT,
    TORCHVISION,
    FeatureExtractor,
    Start,
    name_of,
    names_of,
    small_cnn,
)
from lscl.models.vit import read_weights
from lscl.seeding import seeded

SMALL_WEIGHTS = Path(__file__).parents[1] / "weights" / "small_cnn.safetensors"
OF_TORCHVISION = "IMAGENET1K_V1"


class Rescale(nn.Module):
    """Turns a run's input into that of a checkpoint, channel by channel.

    Args:
        mean: of the pixels that the checkpoint was trained with, as shares of 255; three numbers.
        std: their standard deviation; three numbers.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        mean, std = (torch.tensor(one).view(3, 1, 1) for one in (mean, std))  # each (3, 1, 1)
        self.register_buffer("scale", STD_OF_INPUT / std, persistent=False)
        self.register_buffer("shift", (MEAN_OF_INPUT - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Rescale images: (b, 3, H, W) -> (b, 3, H, W)."""
        return images * self.scale + self.shift


def started_cnn(config: Experiment, client: int, start: Start) -> FeatureExtractor:
    """Make the CNN of a client, drawn or pre-trained; either way the same random numbers are drawn.

    Args:
        config: the experiment.
        client: number of the client.
        start: what the CNN starts from.

    Returns:
        The CNN with layer-normalised features: (b, 3, side, side) -> (b, m).

    Raises:
        LsclError: an unknown name, or a CNN without pre-trained weights.
    """
    extractor = small_cnn(config, client, start=start)
    if start == "pretrained":
        name = name_of(config, client)
        state, rescale = pretrained(name)
        extractor.cnn.load_state_dict({key: state[key] for key in extractor.cnn.state_dict()})
        extractor.rescale = rescale
    return extractor


def check_weights(config: Experiment, start: Start) -> None:
    """Check that there are weights for every CNN that a client gets; nothing is downloaded.

    Args:
        config: the experiment.
        start: what the CNNs start from; drawn ones need no weights.

    Raises:
        LsclError: a CNN without weights.
    """
    if start == "drawn":
        return
    for name in names_of(config)[: config.clients]:
        if name != "small" and name not in TORCHVISION and not is_model_pretrained(name):
            raise LsclError(
                f"cnn = {name!r}: has no pre-trained weights; cnn_start = pretrained is for small, "
                f"{', '.join(TORCHVISION)} and timm's names with weights"
            )


def get_weights(config: Experiment, start: Start) -> None:
    """Read the weights of every CNN that a client gets once: a missing file then ends a run before it computes.

    Args:
        config: the experiment.
        start: what the CNNs start from; drawn ones need no weights.

    Raises:
        LsclError: a CNN without weights, or weights that cannot be read or downloaded.
    """
    check_weights(config, start)
    if start == "pretrained":
        for name in sorted(set(names_of(config)[: config.clients])):
            pretrained(name)


def pretrained(name: str) -> tuple[dict[str, Tensor], nn.Module]:
    """The weights of a CNN, and what turns a run's input into the one that they were trained with.

    Args:
        name: small, one of torchvision's five, or a name of timm.

    Returns:
        {name: tensor}, and a module (b, 3, H, W) -> (b, 3, H, W).

    Raises:
        LsclError: the shipped file is missing or damaged, or a download failed.
    """
    if name == "small":
        return read_weights(SMALL_WEIGHTS), nn.Identity()
    try:
        with seeded(0, name):  # what is drawn before the weights are read leaves the run's draws alone
            if name in TORCHVISION:
                transforms = torchvision.models.get_model_weights(name)[OF_TORCHVISION].transforms()
                network = torchvision.models.get_model(name, weights=OF_TORCHVISION)
                mean, std = transforms.mean, transforms.std
            else:
                network = timm.create_model(name, pretrained=True, num_classes=0)
                mean, std = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
    except Exception as error:  # failures of a download come in many types
        whose = "torchvision" if name in TORCHVISION else "timm"
        raise LsclError(
            f"cannot get the weights of cnn = {name!r}: {first_line(error)}; {whose} downloads them once and keeps "
            "them; without a network take cnn = small, whose weights are shipped, or cnn_start = drawn"
        ) from error
    return network.state_dict(), Rescale(tuple(mean), tuple(std))
