"""What a Gram matrix of features tells."""

import pytest
import torch

from lscl.experiments.privacy.gram_spectrum import (
    first_of_class,
    gram_matrices_sent,
    leading_directions,
    leverage,
    read_gram,
)
from lscl.methods.parts.o2d import second_moments


def test_those_inside_a_small_gram_matrix_do_not_stick_out():
    draw = torch.Generator().manual_seed(0)
    inside, outside = torch.randn(2, 10, 40, generator=draw)
    moments = second_moments(inside)
    assert leverage(inside, moments).max() < 10.01 < 1e3 < leverage(outside, moments).min()


def test_the_leading_direction_of_one_image_is_the_image():
    feature = torch.tensor([[3.0, -4.0, 0.0]])
    assert torch.allclose(leading_directions(second_moments(feature), 1).float(), feature / 5)


def test_the_attack_needs_the_clients_cnn_and_its_controls_hold(attacked):
    findings = read_gram(attacked())
    auc = {(one.knows, one.count): one for one in findings if one.score == "auc"}
    assert {count for _, count in auc} == {3, 6}  # 1 and 2 kept images of 3 classes
    for (knows, _), one in auc.items():
        assert one.by_design == 1.0 and 0.2 < one.never_had < 0.8
        assert (one.value > 0.95) == knows.startswith("true CNN")


def test_the_matrix_that_travels_is_that_of_the_features(attacked):
    ((_, sent),) = gram_matrices_sent(attacked(o2d_upload="gram"))
    *_, (chosen, made) = gram_matrices_sent(attacked())
    assert chosen.all() and torch.allclose(sent, made, atol=1e-6)
    same = {one.score: one.value for one in read_gram(attacked(o2d_upload="gram")) if "true" in one.knows}
    assert same["auc"] == pytest.approx(1.0, abs=0.05)


def test_a_smaller_buffer_has_the_first_of_each_class(attacked):
    observed = attacked()
    assert int(first_of_class(observed.kept, observed.gallery, 1).sum()) == 3
    assert first_of_class(observed.kept, observed.gallery, 99).all()


@pytest.mark.parametrize("name", ["fedavg", "fed_ncm", "fed_ridge"])
def test_without_features_there_is_nothing(attacked, name):
    assert read_gram(attacked(name)) == []
