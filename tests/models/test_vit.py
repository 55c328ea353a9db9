"""The frozen ViT: the same function as timm's, cut in two, with a low-rank update that is exactly W + s B A."""

import copy
import io
import json
import os
import zipfile

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import Attention
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

from lscl.config import experiment
from lscl.errors import LsclError
from lscl.models import vit as module
from lscl.models.mini import MEAN, STD, mini_vit
from lscl.models.pretrain import write_weights
from lscl.models.vit import (
    Adapter,
    FrozenViT,
    LowRank,
    architecture,
    block_forward,
    enlarge,
    foundation,
    foundation_of,
    read_weights,
)
from lscl.seeding import seeded


def random_images(count=3, size=32):
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def random_update(frozen, rank=3, batch=None, dtype=torch.float32):
    lead = () if batch is None else (batch,)
    draw = torch.Generator().manual_seed(1)
    a = torch.randn(*lead, rank, frozen.width, generator=draw, dtype=dtype) * 0.2
    return LowRank(a, torch.randn(*lead, 3 * frozen.width, rank, generator=draw, dtype=dtype) * 0.2, scale=1.5)


@pytest.fixture(scope="module")
def untrained_mini():
    with seeded(3, "mini"):
        return mini_vit()


def vit_of(name, mini):
    return mini if name == "mini" else foundation("tiny", 0).vit


CUTS = [("tiny", cut) for cut in range(4)] + [("mini", cut) for cut in range(9)]


@pytest.mark.parametrize(("name", "cut"), CUTS)
def test_prefix_and_suffix_equal_timm_bit_for_bit(name, cut, untrained_mini):
    frozen = FrozenViT(vit_of(name, untrained_mini), cut, MEAN, STD)
    images = random_images()
    with torch.no_grad():
        expected = frozen.vit.forward_features(frozen.preprocess(images))
        found = frozen.suffix(frozen.prefix(images), keep=None)
    assert torch.equal(found, expected[:, : frozen.tokens])
    assert frozen.tokens == (1 if cut == frozen.depth else expected.shape[1])


@pytest.mark.parametrize(("name", "cut"), CUTS)
def test_a_last_block_that_computes_only_cls_gives_the_same_feature(name, cut, untrained_mini):
    frozen = FrozenViT(vit_of(name, untrained_mini), cut, MEAN, STD)
    images = random_images()
    with torch.no_grad():
        expected = frozen.vit.forward_features(frozen.preprocess(images))[:, 0]
        z = frozen.prefix(images)
        found = frozen.suffix(z)
        assert found.shape == expected.shape and (found - expected).abs().max() < 1e-6 * max(1, expected.abs().max())
        if cut < frozen.depth:
            update = random_update(frozen, batch=3)
            expected = frozen.suffix(z, update, keep=None)[:, 0]
            assert (frozen.suffix(z, update) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("cut", range(3))
@pytest.mark.parametrize("batch", [None, 3])
def test_an_update_with_b_zero_gives_exactly_the_frozen_output(cut, batch):
    frozen = foundation("tiny", cut)
    z = frozen.prefix(random_images())
    update = random_update(frozen, batch=batch)
    update = LowRank(update.A, torch.zeros_like(update.B), update.scale)
    assert torch.equal(frozen.suffix(z, update, keep=None), frozen.suffix(z, keep=None))
    assert (frozen.suffix(z, update) - frozen.suffix(z)).abs().max() < 1e-6


def merged(frozen, update, sample=None):
    """The same ViT with W + s B A in place of W."""
    a, b = (update.A, update.B) if sample is None else (update.A[sample], update.B[sample])
    made = copy.deepcopy(frozen)
    made.vit.blocks[frozen.block].attn.qkv.weight += update.scale * b @ a
    return made


@pytest.mark.parametrize("cut", range(3))
def test_updates_per_sample_equal_merged_weights_one_by_one(cut):
    frozen = foundation("tiny", cut)
    z = frozen.prefix(random_images(4))
    update = random_update(frozen, batch=4)
    together = frozen.suffix(z, update)
    assert (together - frozen.suffix(z)).abs().max() > 1e-2  # the update does something
    for i in range(4):
        assert (merged(frozen, update, i).suffix(z[i : i + 1])[0] - together[i]).abs().max() < 1e-5


@pytest.mark.parametrize("cut", range(3))
def test_a_static_update_equals_merged_weights(cut):
    frozen = foundation("tiny", cut)
    z = frozen.prefix(random_images(4))
    update = random_update(frozen)
    assert (merged(frozen, update).suffix(z) - frozen.suffix(z, update)).abs().max() < 1e-5
    same = LowRank(update.A.expand(4, -1, -1), update.B.expand(4, -1, -1), update.scale)
    assert torch.allclose(frozen.suffix(z, same), frozen.suffix(z, update), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep", [1, 3])
def test_adapters_of_every_linear_layer_equal_merged_weights(keep):
    frozen = foundation("tiny", 0)
    z, d = frozen.prefix(random_images(4)), frozen.width
    draw = torch.Generator().manual_seed(1)
    updates, made = {}, copy.deepcopy(frozen)
    for index, block in enumerate(made.vit.blocks):
        layers = {"qkv": block.attn.qkv, "proj": block.attn.proj, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
        low = {}
        for name, layer in layers.items():
            a, b = (
                torch.randn(2, layer.in_features, generator=draw),
                torch.randn(layer.out_features, 2, generator=draw) / d,
            )
            low[name] = LowRank(a, b, 0.5)
            layer.weight += 0.5 * b @ a
        updates[index] = Adapter(**low)
    with torch.no_grad():
        found, expected = frozen.suffix(z, updates, keep), made.suffix(z, keep=None)[:, :keep]
        assert (found - (expected[:, 0] if keep == 1 else expected)).abs().max() < 1e-4
        assert (found - frozen.suffix(z, keep=keep)).abs().max() > 0.1


def test_the_share_of_an_update_is_that_of_the_matrix_that_is_never_formed():
    frozen = foundation("tiny", 1)
    z, draw = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    update = LowRank(torch.randn(2, 3, 32, generator=draw), torch.randn(2, 96, 3, generator=draw), 1.5)
    block = frozen.vit.blocks[1]
    y, W = block.norm1(z), block.attn.qkv.weight
    written = torch.stack([y[i] @ (1.5 * update.B[i] @ update.A[i]).T for i in range(2)])
    assert frozen.update_share(z, update) == pytest.approx(float(written.norm() / (y @ W.T).norm()), rel=1e-5)


@pytest.mark.parametrize("batch", [None, 4])
def test_prefix_tuning_lets_tokens_attend_to_keys_and_values_in_front(batch):
    """By hand: with keys far away from every query nothing changes; with equal logits the values are mixed in."""
    frozen = foundation("tiny", 1)
    z, shape = frozen.prefix(random_images(4)), (2, 32) if batch is None else (batch, 2, 32)
    block = frozen.vit.blocks[1]
    x = block.norm1(z)
    q, k, v = block.attn.qkv(x).reshape(4, z.shape[1], 3, 2, 16).permute(2, 0, 3, 1, 4)
    keys, values = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    front = [part.expand(4, 2, 32).reshape(4, 2, 2, 16).transpose(1, 2) for part in (keys, values)]
    weights = (q @ torch.cat([front[0], k], 2).transpose(2, 3) / 4).softmax(-1)
    mixed = block.attn.proj((weights @ torch.cat([front[1], v], 2)).transpose(1, 2).reshape(z.shape))
    expected = z + mixed
    expected = expected + block.mlp(block.norm2(expected))
    assert torch.allclose(block_forward(block, z, Adapter(keys=keys, values=values)), expected, atol=1e-5)


def test_an_adapter_in_front_of_the_cut_is_refused(one_line):
    frozen = foundation("tiny", 1)
    with pytest.raises(LsclError) as caught:
        frozen.suffix(frozen.prefix(random_images()), {0: Adapter()})
    one_line(caught, "adapters for blocks [0]", "blocks 1 to 2")


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("cut", [0, 1])
def test_gradients_of_a_and_b_equal_finite_differences(cut, batch):
    with seeded(0, "small"):
        vit = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=0, mlp_ratio=1)
    frozen = FrozenViT(vit, cut, MEAN, STD).double()
    z = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    update = random_update(frozen, 2, batch, torch.float64)
    a, b = update.A.requires_grad_(), update.B.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b, z: frozen.suffix(z, LowRank(a, b, 1.5)), (a, b, z), eps=1e-6, atol=1e-8
    )


def test_no_gradient_reaches_a_frozen_weight():
    frozen = foundation("tiny", 1)
    digest = frozen.digest
    update = random_update(frozen, batch=3)
    update.A.requires_grad_(), update.B.requires_grad_()
    z = frozen.prefix(random_images())
    assert not z.requires_grad
    frozen.suffix(z, update).square().sum().backward()
    assert update.A.grad.abs().sum() > 0 and update.B.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in frozen.parameters())
    assert copy.deepcopy(frozen).digest == digest


def test_the_frozen_vit_is_in_evaluation_mode():
    assert not any(part.training for part in FrozenViT(foundation("tiny", 1).vit.train(), 1, MEAN, STD).vit.modules())


def test_the_block_without_update_equals_timms_block():
    frozen = foundation("tiny", 0)
    z = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0))
    for block in frozen.vit.blocks:
        assert torch.equal(block_forward(block, z), block(z))


@pytest.mark.parametrize("cut", [-1, 4, 99])
def test_a_block_that_does_not_exist_is_one_line(cut, one_line):
    with pytest.raises(LsclError) as caught:
        foundation("tiny", cut)
    one_line(caught, f"block = {cut}", "blocks 0 to 2")


def test_no_block_means_behind_the_last_one():
    frozen = foundation("tiny", None)
    assert frozen.block == frozen.depth == 3 and frozen.prefix(random_images()).shape == (3, 1, 32)


def test_a_vit_of_other_blocks_is_refused(one_line):
    vit = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=0, block_fn=ParallelScalingBlock
    )
    with pytest.raises(LsclError) as caught:
        FrozenViT(vit, 0, MEAN, STD)
    one_line(caught, "standard blocks")


# A name of each family, with values that make it small: timm's pooling, norms, prefix tokens, MLPs and patch embeddings
# stay as they are.
NARROW = {"embed_dim": 48, "num_heads": 2}
FAMILIES = [
    ("vit_tiny_patch16_224", {}),  # class token
    ("vit_base_patch8_224", dict(NARROW, img_size=32)),
    ("deit_tiny_patch16_224", {}),
    ("deit_tiny_distilled_patch16_224", {}),  # class and distillation token
    ("deit3_small_patch16_224", NARROW),  # layer scale, positions without the class token
    ("vit_small_patch14_reg4_dinov2", dict(NARROW, img_size=56)),  # registers
    ("vit_giant_patch14_dinov2", dict(NARROW, img_size=28)),  # gated MLP
    ("vit_base_patch14_reg1_tipsv2", dict(NARROW, img_size=28)),
    ("vit_base_patch16_siglip_224", NARROW),  # attention pooling, no class token
    ("vit_base_patch32_siglip_gap_256", NARROW),  # mean, no class token
    ("vit_so150m_patch16_reg4_map_256", NARROW),
    ("vit_so150m_patch16_reg4_gap_256", NARROW),
    ("vit_base_patch16_gap_224", NARROW),
    ("vit_medium_patch16_gap_240", NARROW),
    ("vit_wee_patch16_reg1_gap_256", NARROW),  # mean without the register, norm behind it
    ("vit_medium_patch16_reg4_gap_256", NARROW),
    ("vit_base_patch16_reg4_gap_256", NARROW),
    ("eva_large_patch14_196", NARROW),  # mean, although there is a class token
    ("beit3_base_patch16_224", NARROW),
    ("aimv2_large_patch14_224", dict(NARROW, img_size=28)),  # gated MLP, RMSNorm
    ("vitamin_small_224", {}),  # gated MLP behind a CNN
    ("vit_xsmall_patch16_clip_224", {}),  # norm in front of the blocks
    ("vit_base_patch32_clip_quickgelu_224", NARROW),
    ("flexivit_small", NARROW),
    ("vit_intern300m_patch14_448", dict(NARROW, img_size=28)),  # no final norm
    ("vit_base_patch16_radio_v3", dict(NARROW, img_size=32)),
    ("vit_tiny_r_s16_p8_224", {}),  # hybrids
    ("vit_base_mci_224", {}),
    ("test_vit", {}),
    ("test_vit2", {}),
    ("test_vit3", {}),
    ("test_vit4", {}),
]


def of_family(name, changes, depth=2):
    """A timm ViT of two blocks with random parameters, so that no norm or scale is the identity; and two images."""
    with seeded(0, name), torch.no_grad():
        vit = timm.create_model(name, num_classes=0, depth=depth, **changes).eval()
        for parameter in vit.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return vit, random_images(2, vit.patch_embed.img_size[0])


@pytest.mark.parametrize(("name", "changes"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_the_feature_is_the_one_that_timm_gives_its_own_head(name, changes):
    vit, images = of_family(name, changes)
    for cut in (0, 1, 2):
        frozen = FrozenViT(vit, cut, MEAN, STD)
        with torch.no_grad():
            expected = vit.forward_head(vit.forward_features(frozen.preprocess(images)), pre_logits=True)
            z = frozen.prefix(images)
            found = frozen.suffix(z)
        assert z.shape == (2, frozen.tokens, frozen.width) and frozen.tokens == (
            1 if cut == 2 else expected_tokens(vit)
        )
        assert found.shape == expected.shape == (2, frozen.width)
        assert (found - expected).norm() < 1e-5 * expected.norm()
        assert not torch.allclose(expected[0], expected[1], rtol=0.01)
        if cut == 2:
            assert torch.equal(frozen.feature(z), found)


def expected_tokens(vit):
    with torch.no_grad():
        return vit.forward_features(torch.zeros(1, 3, *vit.patch_embed.img_size)).shape[1]


POOLED = [
    "vit_base_patch16_siglip_224",
    "vit_wee_patch16_reg1_gap_256",
    "aimv2_large_patch14_224",
    "deit_tiny_distilled_patch16_224",
]


@pytest.mark.parametrize("name", POOLED)
def test_updates_of_a_vit_that_pools_equal_merged_weights(name):
    vit, images = of_family(name, dict(FAMILIES)[name])
    frozen = FrozenViT(vit, 1, MEAN, STD)
    z = frozen.prefix(images)
    update = random_update(frozen)
    found, expected = frozen.suffix(z, update), merged(frozen, update).suffix(z)
    assert (found - expected).norm() < 1e-5 * expected.norm() and (
        found - frozen.suffix(z)
    ).norm() > 1e-3 * expected.norm()


REFUSED = {
    "vit_base_patch16_rpn_224": "ResPostBlock",
    "vit_pwee_patch16_reg1_gap_256": "ParallelScalingBlock",
    "vit_small_patch16_18x2_224": "ParallelThingsBlock",
    "vit_dwee_patch16_reg1_gap_256": "DiffAttention",
    "eva02_tiny_patch14_224": "Eva",
    "beit_base_patch16_224": "Beit",
    "cait_xxs24_224": "Cait",
    "xcit_nano_12_p16_224": "Xcit",
    "swin_tiny_patch4_window7_224": "SwinTransformer",
    "pit_ti_224": "PoolingVisionTransformer",
    "naflexvit_base_patch16_gap": "NaFlexVit",
    "vit_relpos_small_patch16_224": "VisionTransformerRelPos",
    "samvit_base_patch16": "VisionTransformerSAM",
    "resnet18": "ResNet",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_and_adapted_is_one_line(name, one_line):
    with torch.device("meta"), pytest.raises(LsclError) as caught:
        architecture(f"random/{name}")
    one_line(caught, f"random/{name}", "cannot be the frozen ViT", REFUSED[name])


def test_a_network_that_cannot_be_used_is_refused_before_its_weights_are_fetched(monkeypatch, one_line):
    made = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained, **more: pretrained or made(name, pretrained=False, **more)
    )
    with pytest.raises(LsclError) as caught:
        foundation("pit_ti_224", 0)
    one_line(caught, "pit_ti_224", "PoolingVisionTransformer")


def test_tokens_without_pooling_and_a_gate_in_the_attention_are_refused(one_line):
    vit = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=0, global_pool="")
    with pytest.raises(LsclError) as caught:
        FrozenViT(vit, 0, MEAN, STD)
    one_line(caught, "does not pool")
    vit = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=0)
    vit.blocks[1].attn = Attention(8, 2, gated=True)
    with pytest.raises(LsclError) as caught:
        FrozenViT(vit, 0, MEAN, STD)
    one_line(caught, "gate")


def test_a_vit_that_cut_in_two_gives_something_else_is_refused(monkeypatch, one_line):
    monkeypatch.setattr(FrozenViT, "pooled", lambda self, tokens: tokens[:, 0])
    with pytest.raises(LsclError) as caught:
        foundation("random/test_vit2", 0)
    one_line(caught, "random/test_vit2", "as a whole")


@pytest.mark.parametrize(("name", "near"), [("tinny", "'tiny'"), ("vit_bas_patch16_224", "'vit_base_patch16_224'")])
def test_an_unknown_foundation_model_gets_the_nearest_one(name, near, one_line):
    with pytest.raises(LsclError) as caught:
        foundation(name, 0)
    one_line(caught, f"unknown foundation model {name!r}", near)


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch, tmp_path, one_line):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LsclError) as caught:
        foundation("vit_tiny_patch16_224.augreg_in21k", 0)
    one_line(caught, "cannot get the weights of vit_tiny_patch16_224.augreg_in21k")


def test_the_tiny_vit_is_always_the_same():
    torch.manual_seed(1)
    first = foundation("tiny", 0).digest
    torch.manual_seed(2)
    assert foundation("tiny", 2).digest == first
    changed = foundation("tiny", 0)
    changed.vit.blocks[1].norm1.bias[3] += 1e-3
    assert changed.digest != first


def test_images_are_enlarged_and_normalised():
    images = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    images[..., 0], images[..., 2] = 255, 51
    made = enlarge(images, 32, (0.5, 0.5, 0.0), (0.5, 0.25, 1.0))
    assert made.shape == (2, 3, 32, 32)
    assert torch.allclose(made.mean((0, 2, 3)), torch.tensor([1.0, -2.0, 0.2]), atol=1e-5)
    exact = enlarge(random_images(), 32, (0.0,) * 3, (1.0,) * 3)
    assert torch.equal(exact, random_images().permute(0, 3, 1, 2).float() / 255)


def test_normalisation_can_be_switched_off():
    images = random_images()
    plain = foundation("tiny", 0, normalize=False)
    assert torch.equal(plain.preprocess(images), images.permute(0, 3, 1, 2).float() / 255)
    assert torch.allclose(foundation("tiny", 0).preprocess(images), 2 * plain.preprocess(images) - 1)


@pytest.fixture
def weight_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_weights(path, {"a": torch.tensor([[1.0, -0.5], [3.0, 4.0]]), "b": torch.arange(3.0)}, {"epochs": 6})
    return path


def test_weights_are_read_as_written_in_half_precision(weight_file):
    found = read_weights(weight_file)
    assert (
        found["a"].dtype == torch.float16
        and found["a"].tolist() == [[1.0, -0.5], [3.0, 4.0]]
        and found["b"].tolist() == [0, 1, 2]
    )


@pytest.mark.parametrize("at", [0, 20, -1])
def test_a_damaged_weight_file_is_noticed(weight_file, at, one_line):
    data = bytearray(weight_file.read_bytes())
    data[at] ^= 4
    weight_file.write_bytes(data)
    with pytest.raises(LsclError) as caught:
        read_weights(weight_file)
    one_line(caught, f"damaged weight file {weight_file}", "SHA-256")


@pytest.mark.parametrize("damage", ["no weights", "no description", "no digest", "no json"])
def test_missing_weights_or_description_are_one_line(weight_file, damage, one_line):
    about = weight_file.with_suffix(".json")
    if damage == "no weights":
        weight_file.unlink()
    elif damage == "no description":
        about.unlink()
    else:
        about.write_text({"no digest": "{}", "no json": "{"}[damage], encoding="utf-8")
    with pytest.raises(LsclError) as caught:
        read_weights(weight_file)
    one_line(caught, f"cannot read the weights {weight_file}", "install the package again")


def test_the_mini_vit_computes_with_the_shipped_weights(monkeypatch, tmp_path, untrained_mini):
    monkeypatch.setattr(module, "WEIGHTS", tmp_path / "mini.safetensors")
    write_weights(tmp_path / "mini.safetensors", untrained_mini.state_dict(), {})
    frozen, images = foundation("mini", 3), random_images()
    rounded = copy.deepcopy(untrained_mini).half().float().eval()
    with torch.no_grad():
        assert torch.equal(frozen.vit.blocks[2].attn.qkv.weight, rounded.blocks[2].attn.qkv.weight)
        expected = rounded.forward_features(frozen.preprocess(images))[:, 0]
        assert torch.allclose(frozen.suffix(frozen.prefix(images)), expected, rtol=1e-4, atol=1e-4)
    assert (frozen.width, frozen.depth, frozen.tokens) == (192, 8, 37)


NAME = "vit_tiny_patch16_224.augreg_in21k"


@pytest.fixture(scope="module")
def drawn():
    return foundation(f"random/{NAME}", 2)


def original_release(vit):
    """The weights of a timm ViT under the names and in the layouts of the .npz files of the original release."""
    d, heads = vit.embed_dim, vit.blocks[0].attn.num_heads
    found = {
        "cls": vit.cls_token,
        "embedding/bias": vit.patch_embed.proj.bias,
        "Transformer/posembed_input/pos_embedding": vit.pos_embed,
    }
    found |= {"embedding/kernel": vit.patch_embed.proj.weight.permute(2, 3, 1, 0)}
    found |= {"Transformer/encoder_norm/scale": vit.norm.weight, "Transformer/encoder_norm/bias": vit.norm.bias}
    for i, block in enumerate(vit.blocks):
        at = f"Transformer/encoderblock_{i}/"
        for name, norm in (("LayerNorm_0", block.norm1), ("LayerNorm_2", block.norm2)):
            found |= {f"{at}{name}/scale": norm.weight, f"{at}{name}/bias": norm.bias}
        for name, weight, bias in zip(
            ("query", "key", "value"), block.attn.qkv.weight.split(d), block.attn.qkv.bias.split(d)
        ):
            layer = f"{at}MultiHeadDotProductAttention_1/{name}/"
            found |= {f"{layer}kernel": weight.T.reshape(d, heads, -1), f"{layer}bias": bias.view(heads, -1)}
        layer = f"{at}MultiHeadDotProductAttention_1/out/"
        found |= {
            f"{layer}kernel": block.attn.proj.weight.T.reshape(heads, -1, d),
            f"{layer}bias": block.attn.proj.bias,
        }
        for name, dense in (("Dense_0", block.mlp.fc1), ("Dense_1", block.mlp.fc2)):
            found |= {f"{at}MlpBlock_3/{name}/kernel": dense.weight.T, f"{at}MlpBlock_3/{name}/bias": dense.bias}
    return {key: value.detach().contiguous().numpy() for key, value in found.items()}


def test_random_weights_have_the_true_shape_and_are_always_the_same(drawn):
    assert (drawn.width, drawn.depth, drawn.tokens) == (192, 12, 197) and drawn.mean == (0.5,) * 3
    assert foundation(f"random/{NAME}", 2).digest == drawn.digest
    imagenet = foundation("random/vit_small_patch16_224.dino", 0)
    assert imagenet.mean == (0.485, 0.456, 0.406) and imagenet.std == (
        0.229,
        0.224,
        0.225,
    )  # what that checkpoint wants


@pytest.mark.parametrize("kind", ["safetensors", "safetensors with a classifier", "npz"])
def test_a_local_checkpoint_fills_the_network(drawn, tmp_path, kind):
    path = tmp_path / f"weights.{kind.split()[0]}"
    state = dict(drawn.vit.state_dict())
    if kind == "npz":
        np.savez(path, **original_release(drawn.vit))
    else:
        save_file(
            {
                **state,
                **({"head.weight": torch.zeros(5, 192), "head.bias": torch.zeros(5)} if "classifier" in kind else {}),
            },
            path,
        )
    found = foundation(NAME, 2, weights=path)
    assert found.digest == drawn.digest
    assert found.mean == (0.5,) * 3


DAMAGES = {
    "cut off": "cannot be read",
    "other network": "blocks.11.norm1.weight is missing",
    "other shape": "norm.weight has the shape (7,), not (192,)",
    "stranger": "blocks.12.norm1.weight does not belong",
    "whole numbers": "norm.weight holds torch.int64",
    "complex numbers": "norm.weight holds torch.complex64",
    "NaN": "blocks.3.norm2.bias holds numbers that are not finite",
    "inf": "blocks.3.norm2.bias holds numbers that are not finite",
    "huge": "its feature of an image is not finite",
    "pickle": "allowed are .safetensors files and .npz files",
    "npz": "cannot be read",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unfit_checkpoint_is_one_line(drawn, tmp_path, damage, one_line):
    path, state = tmp_path / "weights.safetensors", dict(drawn.vit.state_dict())
    if damage == "other network":
        state = {name: value for name, value in state.items() if not name.startswith("blocks.11.")}
    if damage == "other shape":
        state["norm.weight"] = torch.ones(7)
    if damage == "stranger":
        state["blocks.12.norm1.weight"] = torch.ones(192)
    if damage in ("whole numbers", "complex numbers"):
        state["norm.weight"] = torch.ones(192, dtype=torch.int64 if damage == "whole numbers" else torch.complex64)
    if damage in ("NaN", "inf"):
        state["blocks.3.norm2.bias"] = torch.full((192,), float(damage))
    if damage == "huge":
        state["blocks.3.mlp.fc1.weight"] = torch.full((768, 192), 3e38)
    save_file(state, path)
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:1000])
    if damage == "pickle":
        path = path.rename(tmp_path / "weights.pth")
    if damage == "npz":
        path = path.rename(tmp_path / "weights.npz")
    with pytest.raises(LsclError) as caught:
        foundation(NAME, 2, weights=path)
    one_line(caught, path, DAMAGES[damage])


NPZ = {
    "huge shape": ("cls", (10**12, 1000), "numbers"),
    "huge positions": ("Transformer/posembed_input/pos_embedding", (1, 10**7, 192), "pos_embedding has the shape"),
    "broadcast": ("Transformer/encoder_norm/scale", np.ones(1, np.float32), "numbers"),
    "whole numbers": ("cls", np.ones((1, 1, 192), np.int32), "cls holds int32"),
    "texts": ("cls", np.full((1, 1, 192), "a"), "cls holds <U1"),
    "objects": ("cls", np.full((1, 1, 192), None), "cls holds object"),
    "too much": ("Transformer/encoderblock_12/LayerNorm_0/scale", np.ones(192, np.float32), "numbers"),
    "other names": ("embedding/kernel", None, "not of the original release"),
    "missing": ("Transformer/encoderblock_7/LayerNorm_0/scale", None, "numbers"),
    "NaN": ("cls", np.full((1, 1, 192), np.nan, np.float32), "cls_token holds numbers that are not finite"),
    "no array": ("cls", (), "cannot be read"),
}


@pytest.mark.parametrize("damage", NPZ)
def test_an_unfit_checkpoint_of_the_original_release_is_one_line(drawn, tmp_path, damage, one_line):
    name, value, message = NPZ[damage]
    arrays = {key: array for key, array in original_release(drawn.vit).items() if key != name}
    path = tmp_path / "weights.npz"
    np.savez(path, **arrays, **({name: value} if isinstance(value, np.ndarray) else {}))
    if isinstance(value, tuple):  # what the head says, and nothing behind it
        head = io.BytesIO()
        if value:
            np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": value})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{name}.npy", head.getvalue())
    with pytest.raises(LsclError) as caught:
        foundation(NAME, 2, weights=path)
    one_line(caught, path, message)


def test_the_mini_vit_takes_no_file_of_the_original_release(drawn, tmp_path, one_line):
    np.savez(tmp_path / "weights.npz", **original_release(drawn.vit))
    with pytest.raises(LsclError) as caught:
        foundation("mini", 2, weights=tmp_path / "weights.npz")
    one_line(caught, tmp_path / "weights.npz", "not a checkpoint of mini")


def test_a_pipe_or_folder_in_place_of_a_checkpoint_is_one_line(tmp_path, one_line):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    for name in ("pipe.npz", "folder.npz"):
        with pytest.raises(LsclError) as caught:
            experiment(profile="smoke", weights=tmp_path / name)
        one_line(caught, tmp_path / name, "not a regular file")


def test_drawn_weights_and_a_file_exclude_each_other(tmp_path, one_line):
    with pytest.raises(LsclError) as caught:
        foundation(f"random/{NAME}", 0, weights=tmp_path / "w.npz")
    one_line(caught, "random/", "w.npz")


def test_a_run_with_a_local_checkpoint_never_falls_back_to_another(one_line):
    with pytest.raises(LsclError) as caught:
        foundation_of(experiment(profile="smoke", weights_sha256="0" * 64), 0)
    one_line(caught, "weights_sha256", "say by weights where")


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # raised and hidden inside torch.compile
def test_compiled_blocks_give_the_same_output_and_gradients():
    plain, compiled = foundation("tiny", 1), foundation("tiny", 1)
    compiled.compile_blocks("aot_eager")  # traces all of it and needs no C++ compiler
    assert compiled.block_forward is not block_forward
    for batch in (3, 4):  # another size than the one before
        z, found = plain.prefix(random_images(batch)), []
        for frozen in (plain, compiled):
            update = random_update(frozen, batch=batch)
            leaves = [update.A.requires_grad_(), update.B.requires_grad_()]
            out = frozen.suffix(z, update)
            loss = (
                out * torch.arange(out.numel()).view_as(out)
            ).sum()  # not the sum of squares, which the final norm makes a constant
            found.append([out, *torch.autograd.grad(loss, leaves)])
        gaps = [float((a - b).detach().norm() / a.detach().norm()) for a, b in zip(*found, strict=True)]
        assert max(gaps) < 1e-5, gaps


@pytest.mark.parametrize(
    ("broken", "message"),
    [(RuntimeError("no compiler\nand more"), "does not work here.*: no compiler$"), (None, "differs by")],
)
def test_a_compiler_that_fails_or_computes_something_else_is_refused(monkeypatch, broken, message):
    def compiled(function, backend):
        def other(block, z, *rest):
            if broken:
                raise broken
            return function(block, z, *rest) * 1.01

        return other

    monkeypatch.setattr(torch, "compile", compiled)
    frozen = foundation("tiny", 1)
    with pytest.raises(LsclError, match=message):
        frozen.compile_blocks()
    assert frozen.block_forward is block_forward


def test_nothing_is_compiled_behind_the_last_block():
    frozen = foundation("tiny", None)
    frozen.compile_blocks("no such backend")
    assert frozen.block_forward is block_forward


@pytest.mark.parametrize("name", ["tiny", "mini", "random/test_vit2", "random/test_vit3"])
def test_no_feature_is_longer_than_the_last_norm_lets_it_be(name, untrained_mini):
    """Also with a norm that scales and shifts; a ViT that pools by attention behind it has no such bound."""
    vit = (
        copy.deepcopy(untrained_mini)
        if name == "mini"
        else architecture(name)
        if "/" in name
        else foundation("tiny", 0).vit
    )
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (vit.norm, vit.fc_norm):
            for parameter in layer.parameters():
                parameter += torch.randn(parameter.shape, generator=draw)
    frozen = FrozenViT(vit, len(vit.blocks), MEAN, STD)
    longest = float(frozen.suffix(frozen.prefix(random_images(20))).norm(dim=1).max())
    if vit.global_pool == "map":
        assert frozen.largest_feature == float("inf")
    else:
        assert longest <= frozen.largest_feature < 20 * longest


@pytest.mark.parametrize(
    ("name", "size", "tokens"), [("mini", 128, 65), ("tiny", 64, 65), ("random/test_vit2", 96, 37)]
)
def test_another_size_has_another_grid_of_patches(name, size, tokens):
    """The network is the same but for its positions, which timm resamples."""
    own, other = foundation(name, 0), foundation(name, 0, size=size)
    assert other.tokens == tokens and other.preprocess(random_images()).shape == (3, 3, size, size)
    assert other.digest != own.digest
    differs = {
        key for key, value in own.vit.state_dict().items() if not torch.equal(value, other.vit.state_dict()[key])
    }
    assert differs == {"pos_embed"}
    with torch.no_grad():
        expected = other.vit.forward_head(
            other.vit.forward_features(other.preprocess(random_images())), pre_logits=True
        )
        assert torch.allclose(other.suffix(other.prefix(random_images())), expected, atol=1e-5)


def test_its_own_size_changes_nothing():
    assert foundation("tiny", 0, size=32).digest == foundation("tiny", 0).digest


@pytest.mark.parametrize(("name", "size", "patch"), [("mini", 100, 16), ("tiny", 33, 8), ("random/test_vit2", 40, 16)])
def test_a_size_that_the_patches_do_not_divide_is_refused(name, size, patch, one_line):
    with pytest.raises(LsclError) as caught:
        foundation(name, 0, size=size)
    one_line(caught, f"vit_size = {size}", name, f"{patch} pixels a side")


def test_a_local_checkpoint_of_any_size_is_resampled_once(tmp_path):
    """A checkpoint that was tuned at the wanted size keeps its positions; one of the own size gets new ones."""
    large = foundation("tiny", 0, size=64).vit
    for vit, same in ((large, True), (foundation("tiny", 0).vit, False)):
        save_file(vit.state_dict(), tmp_path / "tiny.safetensors")
        found = foundation("tiny", 0, weights=tmp_path / "tiny.safetensors", size=64)
        assert torch.allclose(found.vit.pos_embed, large.pos_embed, atol=1e-6)
        assert torch.equal(found.vit.pos_embed, vit.pos_embed) if same else found.tokens == 65


def test_a_model_of_the_hub_is_made_from_its_description_and_weights(monkeypatch, tmp_path, one_line):
    """As timm reads a repository of the hub, with files of this machine in the place of its downloads."""
    asked, vit = [], timm.create_model("test_vit2", pretrained=False, num_classes=0)
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    about = {"architecture": "test_vit2", "num_classes": 0, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1] * 3}}
    about["pretrained_cfg"] |= {"input_size": [3, 160, 160], "num_classes": 0, "first_conv": "", "classifier": "head"}
    (tmp_path / "config.json").write_text(json.dumps(about), encoding="utf-8")

    def download(repo_id, filename, **_):
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    found = foundation("hf-hub:somebody/their-vit", 1, size=96)
    assert set(asked) == {("somebody/their-vit", "config.json"), ("somebody/their-vit", "model.safetensors")}
    assert torch.equal(found.vit.blocks[0].attn.qkv.weight, vit.blocks[0].attn.qkv.weight)
    assert found.mean == (0.1, 0.2, 0.3) and found.vit.patch_embed.img_size == (96, 96)
    name = experiment(foundation="hf-hub:somebody/their-vit").name
    assert ":" not in name and "/" not in name
    (tmp_path / "config.json").write_text(json.dumps({**about, "architecture": "resnet18"}), encoding="utf-8")
    with pytest.raises(LsclError) as caught:
        foundation("hf-hub:somebody/their-vit", 1)
    one_line(caught, "hf-hub:somebody/their-vit", "ResNet")


def test_what_is_not_on_the_hub_is_one_line(monkeypatch, one_line):
    def download(**_):
        raise OSError("no such repository\nsecond line")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    with pytest.raises(LsclError) as caught:
        foundation("hf-hub:somebody/nothing", 0)
    one_line(caught, "hf-hub:somebody/nothing", "local file by weights")


def test_a_vit_that_pools_by_a_class_token_needs_one(one_line):
    vit = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=0)
    vit.has_class_token = False
    with pytest.raises(LsclError) as caught:
        FrozenViT(vit, 0, MEAN, STD)
    one_line(caught, "no class token")
