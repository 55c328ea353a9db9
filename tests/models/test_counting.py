"""FLOPs and bytes of networks on shapes without memory; what of it makes a run is tested with the cost model."""

import numpy as np
import pytest

from lscl.config import experiment
from lscl.models import counting
from lscl.models.cnn import small_cnn


def test_a_resnet_costs_what_is_published_for_it():
    config = experiment(profile="paper", dataset="imagenet_r")
    found = counting.count_cnn(config)
    assert found.flops / 2 == pytest.approx(1.8e9, rel=0.02)  # multiply-adds, He et al. 2015, Table 1
    assert found.weights == 4 * sum(p.numel() for p in small_cnn(config, 0).parameters())


def test_vit_b_costs_what_is_published_for_it():
    config = experiment(profile="paper", dataset="cifar100", method="l2p", l2p_top_k=1, l2p_length=1)
    _, stem = counting.vit_shape(config.foundation)
    whole = counting.Blocks(12, 197, 768, 3072).forward(cls_only=False).sum() + stem
    assert whole / 2 == pytest.approx(17.5e9, rel=0.03)  # multiply-adds


def test_a_vit_that_pools_all_tokens_needs_all_of_its_last_block():
    pooled, by_token = (counting.Blocks(2, 10, 4, 16, pooled) for pooled in (True, False))
    assert (
        np.array_equal(pooled.forward(), by_token.forward(cls_only=False))
        and (pooled.forward() > by_token.forward()).all()
    )
    assert pooled.saved() > by_token.saved() and pooled.low_rank() > by_token.low_rank()


def test_a_pre_trained_resnet_on_small_images_has_its_own_first_layers():
    config = experiment(profile="paper", dataset="cifar100", cnn_size=32)
    drawn, pretrained = (counting.count_cnn(config, start=start) for start in ("drawn", "pretrained"))
    assert pretrained.flops < drawn.flops / 8  # a stride and a max-pool in front, on 32 pixels
    assert pretrained.weights - drawn.weights == 4 * 3 * 64 * (7 * 7 - 3 * 3)


def test_a_larger_vit_has_more_tokens():
    assert [counting.vit_shape("mini", size)[0].patch_embed.num_patches for size in (None, 96, 192)] == [36, 36, 144]
