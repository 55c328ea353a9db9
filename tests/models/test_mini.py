"""The mini foundation model."""

import copy

import timm
import torch
from torch import nn

from lscl.models.mini import IMAGE_SIZE, STEM_CHANNELS, Stem, fold_batch_norm, mini_vit
from lscl.seeding import seeded


def network():
    """An EfficientNet-Lite0 whose BatchNorm layers are not the identity."""
    with seeded(0, "network"), torch.no_grad():
        made = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
        for part in made.modules():
            if isinstance(part, nn.BatchNorm2d):
                (
                    part.running_mean.normal_(std=0.1),
                    part.running_var.uniform_(0.5, 2),
                    part.weight.uniform_(0.5, 1.5),
                    part.bias.normal_(std=0.1),
                )
        return made


def test_folding_batch_norm_does_not_change_the_output():
    plain = network().double()
    folded = copy.deepcopy(plain)
    fold_batch_norm(folded)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        expected = plain(images)
        assert expected.std() > 1e-3 and torch.allclose(folded(images), expected, rtol=1e-9, atol=1e-12)


def test_the_stem_is_the_network_up_to_stride_16():
    plain = network().double()
    stem = Stem(copy.deepcopy(plain))
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        expected = plain.blocks[:5](plain.bn1(plain.conv_stem(images)))
        found = stem(images)
    assert found.shape == (2, STEM_CHANNELS, 6, 6) and torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_the_mini_vit_has_36_patches_and_8_blocks_of_width_192():
    vit = mini_vit()
    assert (vit.patch_embed.num_patches, len(vit.blocks), vit.embed_dim, vit.blocks[0].attn.num_heads) == (
        36,
        8,
        192,
        3,
    )
    with torch.no_grad():
        assert vit.eval().forward_features(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)).shape == (1, 37, 192)
