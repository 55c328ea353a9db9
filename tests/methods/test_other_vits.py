"""Every system on ViTs with registers, no class token, another pooling or a gated MLP: right or refused in a line."""

import pytest
import torch
from timm.layers import SwiGLU
from timm.models.vision_transformer import VisionTransformer

from lscl.errors import LsclError
from lscl.experiments.run import run
from lscl.methods import METHODS
from lscl.methods.parts.prompts import insert_prompts
from lscl.models.mini import MEAN, STD
from lscl.models.vit import FrozenViT
from lscl.results.figures import cls_attention
from lscl.seeding import seeded

POOLED = {"random/test_vit2": "avg", "random/test_vit3": "map"}  # one register, no class token
SMALL = {"clients": 2, "private_classes": 5, "tasks": 1, "rounds": 1, "threads": 1}
VIT = [name for name, kind in METHODS.items() if kind.vit]
READS_PROMPTS = ("l2p", "fedmgp")


def small_vit(**values):
    with seeded(0, "small"):
        return VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=0, **values)


@pytest.mark.parametrize("name", [name for name in VIT if name not in READS_PROMPTS])
def test_systems_run_on_a_vit_that_pools(smoke, name):
    record = run(smoke(method=name, foundation="random/test_vit3", **SMALL), quiet=True)
    assert record["config"]["foundation"] == "random/test_vit3"


@pytest.mark.parametrize("name", READS_PROMPTS)
@pytest.mark.parametrize("foundation", POOLED)
def test_prompts_that_are_read_need_a_class_token(smoke, name, foundation, one_line):
    with pytest.raises(LsclError) as caught:
        run(smoke(method=name, foundation=foundation, **SMALL), quiet=True)
    one_line(caught, foundation, f"pools all tokens ({POOLED[foundation]})", name)


@pytest.mark.parametrize("foundation", POOLED)
def test_frozen_features_are_those_of_timms_head(federation, smoke, foundation):
    """Of the cached tokens behind the last block: what heads without an update and keys of prompts see."""
    for name in ("local_head", "dualprompt"):
        method, clients = federation(smoke(method=name, foundation=foundation, **SMALL))
        batch, frozen = clients[0].train.batch(torch.arange(4)), method.foundation
        pixels = frozen.preprocess(torch.from_numpy(batch.inputs.images.images[:4]))
        with torch.no_grad():
            expected = frozen.vit.forward_head(frozen.vit.forward_features(pixels), pre_logits=True)
        found = frozen.feature(batch.last_token) if name == "dualprompt" else frozen.suffix(batch.prefix)
        assert torch.allclose(found, expected, atol=1e-5) and frozen.recut(frozen.depth).tokens == 1


def test_lorm_needs_an_mlp_of_two_layers(smoke, one_line):
    gated = FrozenViT(small_vit(mlp_layer=SwiGLU), 0, MEAN, STD)
    with pytest.raises(LsclError) as caught:
        METHODS["lorm"](smoke(method="lorm", foundation="random/gated"), gated, 14)
    one_line(caught, "random/gated", "SwiGLU")
    METHODS["fed_lscl"](smoke(foundation="random/gated"), gated, 14)


@pytest.mark.parametrize("reg_tokens", [0, 3])
@pytest.mark.parametrize("no_embed_class", [False, True])
def test_prompts_stand_behind_the_class_token_whatever_else_does(reg_tokens, no_embed_class):
    """By timm's blocks, with the prompts behind all of the image's own tokens: attention does not see the order."""
    vit = small_vit(reg_tokens=reg_tokens, no_embed_class=no_embed_class)
    frozen = FrozenViT(vit, 0, MEAN, STD)
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prompts = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    z = frozen.prefix(images)
    with torch.no_grad():
        found = frozen.suffix(insert_prompts(frozen, z, prompts), keep=6)
        placed = prompts if no_embed_class else prompts + vit.pos_embed[:, :1]
        expected = vit.norm(vit.blocks(torch.cat([z, placed], dim=1)))
    assert torch.allclose(found[:, 1:], expected[:, -5:], atol=1e-5) and torch.allclose(
        found[:, 0], expected[:, 0], atol=1e-5
    )


def test_a_vit_without_a_class_token_has_no_attention_of_it_to_show(one_line):
    frozen = FrozenViT(small_vit(class_token=False, global_pool="avg"), 0, MEAN, STD)
    with pytest.raises(LsclError) as caught:
        cls_attention(frozen, torch.zeros(1, 4, 16))
    one_line(caught, "no class token")
