"""Classifiers on top of features."""

from collections import OrderedDict
from typing import Literal

from pydantic import Field
from torch import nn

from lscl.config import Experiment
from lscl.registry import Parameters

HIDDEN = 512  # width of the hidden layer in the code bases of the paper's authors


class HeadShape(Parameters):
    """For systems whose averaged classifier is made by `classifier`."""

    head: Literal["linear", "mlp"] = Field(
        "linear", description="classifier on the ViT: one layer, or two with 512 hidden units"
    )


def classifier(config: Experiment, width: int, num_classes: int) -> nn.Sequential:
    """An averaged classifier, as the parameter `head` names it: linear is d -> C, mlp is d -> 512 -> ReLU -> C.

    Args:
        config: with `head`.
        width: d.
        num_classes: C.

    Returns:
        The layers by name; the last is `out`, with one row per class.
    """
    if config.head == "linear":
        return nn.Sequential(OrderedDict(out=nn.Linear(width, num_classes)))
    return nn.Sequential(
        OrderedDict(hidden=nn.Linear(width, HIDDEN), act=nn.ReLU(), out=nn.Linear(HIDDEN, num_classes))
    )
