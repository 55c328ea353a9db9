"""Which classes a client has."""

import pytest
import torch

from lscl.experiments.privacy.class_guess import guess_classes, guess_score


@pytest.mark.parametrize(
    ("name", "payload"),
    [("fedavg", "head.weight"), ("glfc", "holds"), ("pilora", "classes"), ("fed_ncm", "sums by class")],
)
def test_payloads_that_name_the_classes_or_move_their_rows_give_them_away(attacked, name, payload):
    found = {one.payload: one for one in guess_classes(attacked(name))}[payload]
    assert found.value == 1.0 and found.never_had == 0.0 and found.by_design == 1.0


def test_evidence_of_nothing_is_no_better_than_chance(attacked):
    noise = torch.rand(200, generator=torch.Generator().manual_seed(0))
    assert guess_score(attacked(), "noise", "nothing", noise).value < 0.5


def test_a_generator_and_features_name_no_class(attacked):
    assert guess_classes(attacked()) == []
