"""The studies of Fed-LSCL: its search space, Table 2, Fig. 3 to 5, and when writing an update per image helps.

A study is a function: profile -> {label in the tables: what the run changes in the profile}. A change without a method
is Fed-LSCL's.
"""

from collections.abc import Callable
from typing import Any

from lscl.federation.search_space import Axis, LogRange, OneOf
from lscl.models.cnn import MINI_FIVE, TORCHVISION

SEARCH_SPACE: dict[str, Axis] = {
    "lr": LogRange(1e-4, 1e-1),
    "lr_cnn": LogRange(1e-5, 1e-1),
    "lr_generator": LogRange(1e-5, 1e-1),
    "rank": OneOf((1, 2, 4, 8, 16, 32)),
    "o2d_lambda": LogRange(1e-2, 100),
    "alpha": LogRange(0.1, 10),
    "beta": LogRange(0.1, 10),
}

# Table 2 and beyond: Fed-LSCL without or with other components. The first entry is the whole system.
ABLATIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "no O2D": {"o2d": "none"},
    "no SM-CF": {"continual": "none"},
    "neither O2D nor SM-CF": {"o2d": "none", "continual": "none"},
    "static LoRA for the written one": {"collaboration": "static"},
    "static LoRA, no O2D": {"collaboration": "static", "o2d": "none"},
    "static LoRA, no SM-CF": {"collaboration": "static", "continual": "none"},
    "static LoRA, neither O2D nor SM-CF": {"collaboration": "static", "o2d": "none", "continual": "none"},
    "CNN alone": {"collaboration": "cnn"},
    "CNN alone, no SM-CF": {"collaboration": "cnn", "continual": "none"},
    "generators averaged for O2D": {"o2d": "average"},
    "O2D by gradient": {"o2d": "sgd"},
    "A and B apart in SM-CF": {"consistency_compares": "matrices"},
    "EWC for SM-CF": {"continual": "ewc"},
    "LwF for SM-CF": {"continual": "lwf"},
    "replay for SM-CF": {"continual": "replay"},
    "CNN pre-trained": {"cnn_start": "pretrained"},
}
# The paper's Fig. 3: every block of the profile's ViT.
BLOCKS = {"smoke": 3, "demo": 8, "mini": 8, "full": 8, "colab": 12, "paper": 12}
BUFFERS = (0, 1, 5, 10, 20, 50)  # the paper's Fig. 5: kept images per class
CNNS = ("one CNN for all", "five different CNNs")  # the paper's Fig. 4

# The tuned rate of the generator hardly moves it, and the parts of what does not move cannot matter. So these runs
# change one thing each at a rate at which it moves, that of the profiles without tuned values.
LARGER_RATE = {"lr_generator": 1e-3}
TUNED_PROFILES = ("demo", "mini", "full")
_ABLATED_AT_LARGER_RATE = (
    "whole",
    "no O2D",
    "no SM-CF",
    "neither O2D nor SM-CF",
    "generators averaged for O2D",
    "static LoRA for the written one",
    "static LoRA, neither O2D nor SM-CF",
    "CNN pre-trained",
)

# What a pre-trained CNN needs beside its start: in smoke one that has weights, with ResNet-18 the size of its images.
_WITH_WEIGHTS = {"smoke": {"cnn": "small"}, "colab": {"cnn_size": 224}, "paper": {"cnn_size": 224}}

# When does writing an update per image help? One task, no federation: only what the update is made of differs.
# Steps and rank are given here, so that they do not follow what the tuning of the whole system chose.
_ALONE = {"tasks": 1, "o2d": "none", "continual": "none", "lr": 3e-3, "lr_generator": 1e-3, "lr_cnn": 1e-4, "rank": 4}
WRITERS: dict[str, dict[str, Any]] = {
    "local head, nothing adapted": {"method": "local_head"},
    "one static LoRA": {"collaboration": "static"},
    "written, small steps": {"lr_generator": 3e-4},
    "written": {},
    "written, CNN with its own loss": {"auxiliary": 1.0, "lr_cnn": 1e-3},
    "written, CNN pre-trained": {"cnn_start": "pretrained"},
}
REGIMES: list[dict[str, Any]] = [{"images_per_class": images, "block": block} for images in (5, 20) for block in (3, 6)]
# The paper has 500 of a private class; a data set that has fewer leaves a regime out.
REGIMES += [{"images_per_class": images, "block": 3} for images in (60, 200, 500)]


def with_weights(change: dict[str, Any], profile: str) -> dict[str, Any]:
    """Add to a change what a pre-trained CNN needs in the profile, if there is one.

    Args:
        change: parameters by name.
        profile: the profile of the run.

    Returns:
        Parameters by name.
    """
    return change | _WITH_WEIGHTS.get(profile, {}) if change.get("cnn_start") == "pretrained" else change


def regime_change(regime: dict[str, Any], writer: str, profile: str = "mini") -> dict[str, Any]:
    """What the run of one writer in one regime changes in the profile.

    Args:
        regime: one of REGIMES.
        writer: a name in WRITERS.
        profile: the profile of the run.

    Returns:
        Parameters by name.
    """
    return with_weights({**_ALONE, **WRITERS[writer], **regime}, profile)


def _larger_rate(profile: str) -> dict[str, dict[str, Any]]:
    """The whole system at rising rates of the generator; at the last one, what parts, block and buffer do."""
    rates = {"tuned rate": {}, "rate 0.0003": {"lr_generator": 3e-4}} if profile in TUNED_PROFILES else {}
    changes = {
        **{label: with_weights(ABLATIONS[label], profile) for label in _ABLATED_AT_LARGER_RATE},
        **{f"{size} per class": {"buffer_per_class": size} for size in (0, 50)},
        **{f"block {block}": {"block": block} for block in (0, BLOCKS[profile] - 1)},
    }
    return rates | {label: {**change, **LARGER_RATE} for label, change in changes.items()}


def _regimes(profile: str) -> dict[str, dict[str, Any]]:
    """Every writer in every regime: few and more images, an early and a late block."""
    about = "{images_per_class} images a class, block {block}"
    return {
        f"{writer}; {about.format(**regime)}": regime_change(regime, writer, profile)
        for regime in REGIMES
        for writer in WRITERS
    }


STUDIES: dict[str, Callable[[str], dict[str, dict[str, Any]]]] = {
    "ablations": lambda profile: {label: with_weights(change, profile) for label, change in ABLATIONS.items()},
    "blocks": lambda profile: {f"block {block}": {"block": block} for block in range(BLOCKS[profile])},
    "buffers": lambda profile: {f"{size} per class": {"buffer_per_class": size} for size in BUFFERS},
    "cnns": lambda profile: dict(
        zip(CNNS, ({}, {"cnn": ",".join(TORCHVISION if profile in ("colab", "paper") else MINI_FIVE)}))
    ),
    "regimes": _regimes,
    "larger_rate": _larger_rate,
}
