"""Networks that were tried as the frozen ViT: what works, what is refused, and what the book's table shows of it."""

import json

import pytest

from lscl.errors import LsclError
from lscl.experiments import backbones
from lscl.publish.reference import backbone_table


def test_a_vit_with_a_class_token_works_with_every_system():
    found = backbones.try_backbone("vit_tiny_patch16_224", 32)
    assert (found.pixels, found.tokens, found.width, found.blocks) == (32, 5, 192, 12)
    assert found.reads == "class token" and backbones.outcome_of(found) == "works with every system"
    assert backbones.try_backbone("random/vit_tiny_patch16_224", 32) == found


def test_a_vit_that_pools_its_patches_is_refused_by_those_that_read_a_class_token():
    found = backbones.try_backbone("vit_medium_patch16_gap_240", 32)
    assert found.reads == "mean of the patches" and set(found.without) == {"l2p", "fedmgp"}
    assert backbones.outcome_of(found).endswith("but fedmgp, l2p")
    first, *others = backbones.backbone_lines([found])
    assert "4 tokens of width 512" in first and len(others) == 2 and all("class token" in line for line in others)


@pytest.mark.parametrize(
    ("name", "size", "why"),
    [
        ("swin_tiny_patch4_window7_224", None, "SwinTransformer"),
        ("vit_tiny_patch16_224", 33, "16 pixels a side"),
        ("no_such_network", None, "unknown foundation model"),
        ("hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", None, "nothing is downloaded"),
    ],
)
def test_a_refusal_is_a_result(name, size, why):
    found = backbones.try_backbone(name, size)
    assert why in found.refused and "\n" not in found.refused and "random/" not in found.refused
    (line,) = backbones.backbone_lines([found])
    assert line.startswith(f"{name}: refused: ")


def test_the_table_shows_what_was_kept(places):
    assert backbones.read_backbones() is None and "Nobody has tried" in backbone_table()
    tried = [backbones.try_backbone("tiny"), backbones.try_backbone("resnet18")]
    path = backbones.save_backbones(tried)
    assert backbones.read_backbones()[1] == tried
    rows = [line for line in backbone_table().splitlines() if line.startswith("| `")]
    assert [row.split(" | ")[1:3] for row in rows] == [["32", "17"], ["–", "–"]]
    assert "every system" in rows[0] and "ResNet" in rows[1]
    path.write_text(json.dumps({"timm": "1", "tried": [{"name": 3}]}), encoding="utf-8")
    with pytest.raises(LsclError) as caught:
        backbones.read_backbones()
    assert "backbones.json: tried.0.name" in str(caught.value)
