"""Membership by shadow clients."""

import pytest
import torch

from lscl.experiments.privacy.shadow_clients import (
    infer_membership,
    likelihood_ratio,
    log_odds,
    play_shadow,
    travels_whole,
)


@pytest.mark.parametrize(
    ("name", "whole"), [("fedavg", True), ("l2p", True), ("pilora", True), ("fed_lscl", False), ("fed_ncm", False)]
)
def test_only_a_model_that_travels_whole_is_attacked(attacked, name, whole):
    assert travels_whole(attacked(name)) == whole
    assert whole or infer_membership(attacked(name)) == []


def test_log_odds_of_known_logits():
    found = log_odds(torch.tensor([[2.0, 0.0, -torch.inf]]), torch.tensor([0]))
    assert found.item() == pytest.approx(2.0)


def test_the_ratio_is_high_where_shadows_trained():
    draw = torch.Generator().manual_seed(0)
    inside, outside = torch.randn(200, generator=draw) + 3, torch.randn(200, generator=draw)
    assert likelihood_ratio(torch.tensor([3.0]), inside, outside) > 3
    assert likelihood_ratio(torch.tensor([0.0]), inside, outside) < -3


def test_a_shadow_trains_on_half_of_public_images_of_other_classes(attacked):
    observed = attacked("fedavg")
    census = observed.method.census
    shadow = play_shadow(observed, 0)
    assert observed.method.census is census
    assert not set(shadow.classes.tolist()) & set(observed.gallery.classes.tolist())
    assert shadow.inside.double().mean() == 0.5 and len(shadow.inside) == 3 * 24
    assert any(not torch.equal(shadow.up[name], value) for name, value in observed.down.items())
    again = play_shadow(observed, 0)
    assert all(torch.equal(shadow.up[name], again.up[name]) for name in shadow.up)


@pytest.mark.parametrize("name", ["fedavg", "lorm"])
def test_the_controls_hold(attacked, name):
    auc, tpr = infer_membership(attacked(name), 1)
    assert auc.by_design == tpr.by_design == 1.0 and 0.2 < auc.never_had < 0.8


def test_a_client_that_learned_its_images_by_heart_is_told(attacked):
    observed = attacked("fedavg_vit", epochs=300, rounds=1)
    (auc, _) = infer_membership(observed, 1)
    assert auc.value > 0.75
