"""The mini foundation model: a hybrid ViT small enough for two CPU cores.

A frozen EfficientNet-Lite0 stem (ImageNet weights, Apache-2.0) is the patch embedding, as in the
hybrid models of Dosovitskiy et al. 2020 (arXiv 2010.11929); eight transformer blocks follow.
"""

from functools import partial

import timm
import torch
from timm.layers import BatchNormAct2d, HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

IMAGE_SIZE = 96  # pixels a side at the stem; stride 16 gives 6 x 6 patches
STEM_CHANNELS = 112
MEAN = STD = (0.5, 0.5, 0.5)  # of EfficientNet-Lite


class Stem(nn.Module):
    """EfficientNet-Lite0 up to stride 16, with BatchNorm folded into the convolutions.

    Folded and in channels-last layout it is twice as fast on a CPU.

    Args:
        network: the whole EfficientNet-Lite0; None = an untrained one.
    """

    def __init__(self, network: nn.Module | None = None):
        super().__init__()
        network = network or timm.create_model("tf_efficientnet_lite0", pretrained=False)
        self.conv_stem, self.bn1, self.blocks = network.conv_stem, network.bn1, network.blocks[:5]
        self.eval()
        with torch.no_grad():
            fold_batch_norm(self)

    def forward(self, images: Tensor) -> Tensor:
        """Maps of a batch: (b, 3, 96, 96) -> (b, 112, 6, 6)."""
        images = images.contiguous(memory_format=torch.channels_last)
        return self.blocks(self.bn1(self.conv_stem(images)))


def fold_batch_norm(module: nn.Module) -> None:
    """Fold every BatchNorm into the convolution before it, in place; the activation stays.

    W' = W g / sqrt(v + eps), b' = beta - m g / sqrt(v + eps), which is exact for a network in eval mode.
    """
    convolution = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            convolution = child
        elif isinstance(child, BatchNormAct2d):
            scale = child.weight / torch.sqrt(child.running_var + child.eps)
            convolution.weight = nn.Parameter(convolution.weight * scale[:, None, None, None])
            convolution.bias = nn.Parameter(child.bias - child.running_mean * scale)
            setattr(module, name, child.act)
        else:
            fold_batch_norm(child)


def mini_vit(stem: nn.Module | None = None) -> VisionTransformer:
    """Make the untrained mini ViT: 36 patches and CLS, 8 blocks of width 192 with 3 heads, no classifier."""
    return VisionTransformer(
        img_size=IMAGE_SIZE,
        patch_size=1,
        embed_dim=192,
        depth=8,
        num_heads=3,
        num_classes=0,
        embed_layer=partial(HybridEmbed, backbone=stem or Stem()),
    )
