"""What the change of a generator tells."""

import torch

from lscl.experiments.privacy.generator_change import energy, read_generator, separation


def test_a_change_points_where_the_trained_features_point():
    draw = torch.Generator().manual_seed(0)
    inside, outside = torch.randn(2, 5, 60, generator=draw)
    change = torch.randn(30, 5, generator=draw) @ inside
    assert energy(inside, change).min() > 3 * energy(outside, change).max()


def test_classes_that_lie_apart_are_separate():
    near = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1], [50, 0], [50, 1]])
    found = separation(near, torch.tensor([0, 0, 1, 1, 2, 2]), 3)
    assert found[2] > 10 * found[:2].max()


def test_the_controls_of_the_attack_hold(attacked):
    findings = read_generator(attacked())
    assert {one.attack for one in findings} == {"membership", "classes"}
    for one in findings:
        if one.score == "auc":
            assert one.by_design == 1.0 and 0.2 < one.never_had < 0.8
        if one.score == "classes":
            assert one.by_design == 1.0 and one.chance == 3 / 200


def test_a_head_is_no_generator(attacked):
    assert read_generator(attacked("fedavg_vit")) == []
