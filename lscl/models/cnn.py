"""The small CNNs theta_k, one on each client: b images (b, 3, H, W) -> their features f (b, m)."""

from functools import lru_cache
from typing import Literal

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet
from torchvision.models.vgg import make_layers

from lscl.config import Experiment
from lscl.errors import LsclError, first_line, unknown_name
from lscl.seeding import seeded

TORCHVISION = (
    "resnet18",
    "mobilenet_v3_large",
    "densenet121",
    "efficientnet_b3",
    "vgg16_bn",
)  # paper Fig. 4, clients 0 to 4
WIDTHS = {"tiny": (8, 16), "small": (32, 64, 128, 128)}
# The same five families in sizes for 32 pixels and two cores; timm has the two called mini_ only in large sizes.
MINI_FIVE = ("resnet10t", "mobilenetv3_small_050", "mini_densenet", "tf_efficientnet_lite0", "mini_vgg")
STEM_MAX_SIZE = 64  # pixels a side; up to here ResNet's first stride and max-pool are left out, or little would remain
MEAN_OF_INPUT, STD_OF_INPUT = 0.5, 0.25  # what turns shares of 255 into the input of a CNN

Start = Literal["drawn", "pretrained"]


class SmallCNN(nn.Module):
    """A CNN for 32-pixel images: layers of convolution, BatchNorm and ReLU, then the mean over all positions.

    Args:
        widths: channels of each layer; all but the first have stride 2, and the last width is m.
    """

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        layers, last = [], 3
        for i, width in enumerate(widths):
            layers += [
                nn.Conv2d(last, width, 3, stride=1 if i == 0 else 2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            last = width
        self.layers = nn.Sequential(*layers)
        self.features = last

    def forward(self, images: Tensor) -> Tensor:
        """Features of a batch: (b, 3, H, W) -> (b, m)."""
        return self.layers(images).mean((2, 3))


class FeatureExtractor(nn.Module):
    """A CNN whose features have a given width m.

    Args:
        cnn: the CNN: (b, 3, H, W) -> (b, width).
        width: its own width; if it is not m, a linear projection follows, which stays on the client like the CNN.
        features: m.
        norm: layer-normalise the features, without parameters, so that Eq. 4 and Eq. 5 see them at one scale.
    """

    def __init__(self, cnn: nn.Module, width: int, features: int, norm: bool):
        super().__init__()
        self.cnn, self.norm = cnn, norm
        self.rescale: nn.Module = nn.Identity()  # `lscl.models.cnn_weights` puts a checkpoint's own normalisation here
        self.project = nn.Identity() if width == features else nn.Linear(width, features)

    def forward(self, images: Tensor) -> Tensor:
        """Features f of a batch: (b, 3, H, W) -> (b, m)."""
        f = self.project(self.cnn(self.rescale(images)))
        return F.layer_norm(f, f.shape[-1:]) if self.norm else f


def to_cnn_input(pixels: Tensor) -> Tensor:
    """Turn pixels into the CNNs' input: (b, H, W, 3) uint8 -> (b, 3, H, W) float32 in -2 to 2."""
    return from_unit_range(pixels.permute(0, 3, 1, 2).float() / 255)  # (b, 3, H, W)


def from_unit_range(pixels: Tensor) -> Tensor:
    """Pixels between 0 (black) and 1 as the CNN's input, -2 to 2."""
    return (pixels - MEAN_OF_INPUT) / STD_OF_INPUT


def to_unit_range(images: Tensor) -> Tensor:
    """The CNN's input, -2 to 2, as pixels between 0 (black) and 1."""
    return images * STD_OF_INPUT + MEAN_OF_INPUT


def small_cnn(config: Experiment, client: int, norm: bool = True, start: Start = "drawn") -> FeatureExtractor:
    """Make the CNN of a client with drawn weights.

    Args:
        config: `cnn` is one name for all clients, or several with commas, which clients get in turn.
        client: number of the client.
        norm: layer-normalise the features.
        start: what it starts from, see `new_cnn`.

    Returns:
        The CNN: (b, 3, side, side) -> (b, m).

    Raises:
        LsclError: an unknown name.
    """
    return new_cnn(name_of(config, client), config.side, config.features, norm, start)


def name_of(config: Experiment, client: int) -> str:
    """The name of a client's CNN.

    Args:
        config: `cnn` is one name for all clients, or several with commas, which clients get in turn.
        client: number of the client.

    Returns:
        The name.
    """
    names = names_of(config)
    return names[client % len(names)]


def names_of(config: Experiment) -> list[str]:
    """The names in `config.cnn`."""
    return [name.strip() for name in config.cnn.split(",")]


def check_cnns(config: Experiment, start: Start = "drawn") -> None:
    """Pass two images through every CNN that a client gets.

    Args:
        config: the experiment.
        start: what the CNNs start from, see `new_cnn`; the weights here are drawn.

    Raises:
        LsclError: an unknown name, or a CNN that does not take images of this size.
    """
    for name in names_of(config)[: config.clients]:
        _look(name, config.side, config.features, start)


@lru_cache
def _look(name: str, side: int, features: int, start: Start) -> None:
    """Pass two images in both modes, with a network and a seed of its own, which leave the run's draws alone."""
    with seeded(0, "two images"), torch.no_grad():
        try:
            cnn, images = new_cnn(name, side, features, norm=False, start=start), torch.randn(2, 3, side, side)
            found = [cnn.train(training)(images) for training in (True, False)]
        except LsclError:
            raise
        except Exception as error:  # another library's networks fail in many ways
            raise _misfit(name, side, first_line(error)) from error
    for f in found:
        if f.shape != (2, features):
            raise _misfit(name, side, f"its features have the shape {tuple(f.shape[1:])}, not ({features},)")
        if not f.isfinite().all():
            raise _misfit(name, side, "its features are not finite")


def _misfit(name: str, side: int, reason: str) -> LsclError:
    what = f"cnn = {name!r}: does not take images of {side} pixels ({reason})"
    return LsclError(f"{what}; give a size that it takes by cnn_size, or take another CNN")


def new_cnn(name: str, side: int, features: int, norm: bool, start: Start = "drawn") -> FeatureExtractor:
    """Make a CNN by its name, with drawn weights.

    Args:
        name: tiny or small, which are ours; mini_densenet or mini_vgg, torchvision's classes with few channels; one of
            the paper's five, from torchvision; or a name of timm.
        side: pixels a side of its images.
        features: width m of its features.
        norm: layer-normalise the features.
        start: drawn, or pretrained: then the CNN has the form that its weights were trained in
            (`lscl.models.cnn_weights`), so ResNet-18 keeps its own first layers on images of any size.

    Returns:
        The CNN: (b, 3, side, side) -> (b, m).

    Raises:
        LsclError: an unknown name.
    """
    if name in WIDTHS:
        cnn = SmallCNN(WIDTHS[name])
        return FeatureExtractor(cnn, cnn.features, features, norm)
    if name == "mini_densenet":
        cnn = DenseNet(growth_rate=12, block_config=(3, 3, 3, 3), num_init_features=24)
        width, cnn.classifier = cnn.classifier.in_features, nn.Identity()
        return FeatureExtractor(cnn, width, features, norm)
    if name == "mini_vgg":
        cnn = nn.Sequential(
            make_layers([32, "M", 64, "M", 128, 128, "M", 128, 128], batch_norm=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        return FeatureExtractor(cnn, 128, features, norm)
    if name not in TORCHVISION and timm.is_model(name):
        cnn = timm.create_model(name, pretrained=False, num_classes=0)
        width = cnn.num_features if not hasattr(cnn, "head_hidden_size") else cnn.head_hidden_size
        return FeatureExtractor(cnn, width, features, norm)
    if name not in TORCHVISION:
        raise unknown_name("cnn", name, [*WIDTHS, "mini_densenet", "mini_vgg", *TORCHVISION])
    cnn = torchvision.models.get_model(name, weights=None)
    classifier = cnn.fc if hasattr(cnn, "fc") else cnn.classifier
    width = next(layer for layer in classifier.modules() if isinstance(layer, nn.Linear)).in_features
    if name == "vgg16_bn":  # its first linear layer takes a 7 x 7 map; the features are the mean over positions
        cnn.avgpool, width = nn.AdaptiveAvgPool2d(1), 512
    if hasattr(cnn, "fc"):
        cnn.fc = nn.Identity()
    else:
        cnn.classifier = nn.Identity()
    if name == "resnet18" and side <= STEM_MAX_SIZE and start == "drawn":
        cnn.conv1, cnn.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return FeatureExtractor(cnn, width, features, norm)
