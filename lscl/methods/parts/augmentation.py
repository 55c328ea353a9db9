"""Random crops, mirroring and brightness of training images, as the official codes of systems with a CNN have them."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lscl.config import PROFILES
from lscl.models.cnn import MEAN_OF_INPUT, STD_OF_INPUT, from_unit_range, to_unit_range
from lscl.models.transfer import send
from lscl.registry import Parameters

BLACK = -MEAN_OF_INPUT / STD_OF_INPUT  # black pixels in the CNN's input, see `lscl.models.cnn.to_cnn_input`
BRIGHTNESS = 63 / 255  # largest change of the brightness in the official codes of GLFC and TARGET

# What changes of an image leave its class as it is. Photos may be mirrored, symbols may not: two of the glyphs are each
# other's mirror image (U+2208 and U+220B), and a mirrored letter is no letter. Of other data sets nothing is known.
SUITABLE = {"cifar100": "crop_flip", "imagenet_r": "crop_flip", "glyphs": "crop"}
AUGMENTED = {
    (profile, dataset): {"augment": how}
    for profile in PROFILES
    if profile != "smoke"
    for dataset, how in SUITABLE.items()
}


class Augmentation(Parameters):
    """For systems that train a CNN on pixels."""

    augment: Literal["none", "crop", "crop_flip"] = Field(
        "none",
        description="training images of the CNN: unchanged, randomly cropped, or also randomly mirrored (official)",
    )


def crop_and_flip(images: Tensor, generator: torch.Generator, flip: bool = True, reflect: bool = False) -> Tensor:
    """Each image shifted by up to an eighth of its side (4 of 32 pixels), and mirrored or not; differentiable.

    Args:
        images: as the CNN takes them, (n, 3, H, W).
        generator: of the draws, on the CPU.
        flip: whether half of the images are mirrored.
        reflect: how the border is filled: with the image's own pixels, reflected; else black, as in the official code.

    Returns:
        (n, 3, H, W).
    """
    n, _, height, width = images.shape
    pad = max(1, height // 8)
    sides = (pad, pad, pad, pad)
    padded = F.pad(images, sides, mode="reflect") if reflect else F.pad(images, sides, value=BLACK)
    down, right = (torch.randint(2 * pad + 1, (n, 1), generator=generator) for _ in range(2))
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    if flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        columns[mirrored] = columns[mirrored].flip(1)
    which = torch.arange(n, device=images.device)[:, None, None]
    rows, columns = (send(one, images.device) for one in (rows, columns))
    chosen = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]  # (n, H, W, 3)
    return chosen.permute(0, 3, 1, 2)  # (n, 3, H, W)


def change_brightness(images: Tensor, generator: torch.Generator, most: float) -> Tensor:
    """Each image's pixels times a factor of its own, 1 - most to 1 + most; what gets too bright is white.

    Args:
        images: as the CNN takes them, (n, 3, H, W).
        generator: of the draws, on the CPU.
        most: 0 to 1.

    Returns:
        (n, 3, H, W).
    """
    factor = 1 + most * (2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 1)
    return from_unit_range((to_unit_range(images) * send(factor, images.device)).clamp(0, 1))


def augmentation(
    augment: str, generator: torch.Generator, brightness: float = 0.0
) -> Callable[[Tensor], Tensor] | None:
    """The change of the images in a training step.

    Args:
        augment: the parameter of this name.
        generator: of the draws, on the CPU.
        brightness: largest change of the brightness.

    Returns:
        (b, 3, H, W) -> (b, 3, H, W), other draws in every call; None if images stay as they are.
    """
    if augment == "none":
        return None

    def changed(images: Tensor) -> Tensor:
        images = crop_and_flip(images, generator, flip=augment == "crop_flip")
        return change_brightness(images, generator, brightness) if brightness else images

    return changed
