"""Classifiers on top of features."""

import torch
from torch import nn

from lscl.methods.parts.heads import HIDDEN, classifier


def test_a_linear_head_is_one_layer_with_a_row_for_each_class(smoke):
    head = classifier(smoke(head="linear"), 32, 14)
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        "out.weight": (14, 32),
        "out.bias": (14,),
    }
    features = torch.randn(5, 32)
    assert torch.equal(head(features), features @ head.out.weight.T + head.out.bias)


def test_an_mlp_has_the_hidden_layer_of_the_authors_code(smoke):
    head = classifier(smoke(head="mlp"), 32, 14)
    shapes = {"hidden.weight": (HIDDEN, 32), "hidden.bias": (HIDDEN,), "out.weight": (14, HIDDEN), "out.bias": (14,)}
    assert HIDDEN == 512 and {name: tuple(value.shape) for name, value in head.state_dict().items()} == shapes
    features = torch.randn(5, 32)
    hidden = (features @ head.hidden.weight.T + head.hidden.bias).clamp(min=0)
    assert (hidden == 0).any() and (hidden > 0).any()
    assert torch.allclose(head(features), hidden @ head.out.weight.T + head.out.bias, atol=1e-6)


def test_the_last_layer_is_called_out_so_that_averaging_finds_the_rows_of_a_class(smoke):
    for kind in ("linear", "mlp"):
        head = classifier(smoke(head=kind), 8, 3)
        assert list(head._modules)[-1] == "out" and isinstance(head.out, nn.Linear) and head.out.out_features == 3
