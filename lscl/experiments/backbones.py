"""Which networks can be the frozen ViT: each gets random weights, processes one image, and is offered to each system.

Nothing is downloaded, because what a network can do hangs on its architecture only.
"""

import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from pydantic import ConfigDict, Field, TypeAdapter

from lscl import files, paths
from lscl.config import experiment
from lscl.data.store import write_atomic
from lscl.errors import LsclError
from lscl.models.vit import HUB, OURS, RANDOM, FrozenViT, foundation
from lscl.registry import METHODS

# What the book's table shows: (name, pixels a side; None = its own). The last ones are of other families.
TRIED = (
    ("mini", None),
    ("mini", 128),
    ("vit_tiny_patch16_224", None),
    ("vit_small_patch16_224", None),
    ("vit_base_patch16_224", None),
    ("vit_base_patch16_224", 384),
    ("vit_base_patch32_224", None),
    ("vit_small_r26_s32_224", None),
    ("deit_small_distilled_patch16_224", None),
    ("deit3_small_patch16_224", None),
    ("vit_base_patch16_clip_224", None),
    ("vit_small_patch14_dinov2", None),
    ("vit_small_patch14_dinov2", 224),
    ("vit_small_patch14_reg4_dinov2", 224),
    ("vit_medium_patch16_gap_240", None),
    ("vit_little_patch16_reg4_gap_256", None),
    ("vit_base_patch16_siglip_224", None),
    ("vit_small_patch14_dinov2", 225),
    ("beit_base_patch16_224", None),
    ("eva02_tiny_patch14_224", None),
    ("vit_small_patch16_dinov3", None),
    ("cait_xxs24_224", None),
    ("swin_tiny_patch4_window7_224", None),
    ("resnet50", None),
)
READS = {"token": "class token", "avg": "mean of the patches", "map": "attention over the patches"}


class Backbone(files.Shape):
    """A network that was tried.

    Args:
        name: as `--foundation` takes it, without random/.
        vit_size: the size that was asked for; None = its own.
        refused: the line that refuses it; None = it works.
        pixels: pixels a side of its inputs.
        tokens: how many there are, the class token and registers included.
        width: of a token.
        blocks: their number.
        reads: what its feature is.
        without: the systems that refuse it, with their line.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    vit_size: int | None = None
    refused: str | None = None
    pixels: int | None = None
    tokens: int | None = None
    width: int | None = None
    blocks: int | None = None
    reads: str | None = None
    without: dict[str, str] = Field(default_factory=dict)


class BackbonesFile(files.Shape):
    """The file of the networks that were tried, with the version of timm that made them."""

    timm: str
    tried: list[Backbone]


def try_backbone(name: str, vit_size: int | None = None) -> Backbone:
    """Make a network with random weights and try it with an image of noise and with every system.

    Args:
        name: mini, tiny, or a timm name, with or without random/.
        vit_size: pixels a side of its inputs; None = its own.

    Returns:
        The outcome; a refusal is a result, too.
    """
    name = name.removeprefix(RANDOM)
    if name.startswith(HUB):
        refused = f"foundation = {name!r}: nothing is downloaded here, give the timm name of its architecture"
        return Backbone(name=name, vit_size=vit_size, refused=refused)
    try:
        frozen = foundation(name if name in OURS else f"{RANDOM}{name}", None, size=vit_size)
    except LsclError as error:
        return Backbone(name=name, vit_size=vit_size, refused=str(error).replace(RANDOM, ""))
    pool = frozen.vit.global_pool
    return Backbone(
        name=name,
        vit_size=vit_size,
        pixels=frozen.vit.patch_embed.img_size[0],
        tokens=frozen.recut(0).tokens,
        width=frozen.width,
        blocks=frozen.depth,
        reads="class and distillation token" if frozen.tokens_read == 2 else READS.get(pool, pool),
        without=_refusals(name, frozen),
    )


def _refusals(name: str, frozen: FrozenViT) -> dict[str, str]:
    """The systems that refuse a frozen ViT, each with the values that the paper's setting gives it: {system: line}."""
    found = {}
    for method, kind in METHODS.items():
        if kind.vit:
            config = experiment(method=method, profile="paper", dataset="cifar100", foundation=name)
            try:
                kind.check_foundation(config, frozen)
            except LsclError as error:
                found[method] = str(error)
    return found


def outcome_of(one: Backbone) -> str:
    """The outcome of a trial, in words: works with which systems, or the line that refuses the network."""
    if one.refused:
        return f"refused: {one.refused}"
    if not one.without:
        return "works with every system"
    return "works with every system but " + ", ".join(sorted(one.without))


def backbone_lines(tried: Iterable[Backbone]) -> Iterable[str]:
    """One line for each network, and one for each system that refuses it."""
    for one in tried:
        if one.refused:
            yield f"{one.name}: {outcome_of(one)}"
            continue
        about = f"{one.pixels} pixels, {one.tokens} tokens of width {one.width}, {one.blocks} blocks, reads {one.reads}"
        yield f"{one.name}: {outcome_of(one)} ({about})"
        yield from (f"  {method}: {line}" for method, line in one.without.items())


def backbones_path() -> Path:
    """The file of the book's table."""
    return paths.results() / "backbones.json"


def save_backbones(tried: Iterable[Backbone]) -> Path:
    """Write the outcomes, for the book's table; -> the file."""
    found = {"timm": version("timm"), "tried": [one.model_dump(exclude_defaults=True) for one in tried]}
    write_atomic(backbones_path(), (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    return backbones_path()


def read_backbones() -> tuple[str, list[Backbone]] | None:
    """The version of timm and the outcome of every trial; None if nobody has tried yet.

    Raises:
        LsclError: the file cannot be read, or is not of this kind.
    """
    if not backbones_path().exists():
        return None
    found = files.read_json(backbones_path(), BackbonesFile)
    return found["timm"], TypeAdapter(list[Backbone]).validate_python(found["tried"])
