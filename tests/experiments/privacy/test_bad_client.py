"""What one client can do to the others, without and with the server's checks."""

import pytest
import torch

from lscl.experiments.privacy.bad_client import (
    accuracy_of_others,
    answers_against,
    farthest_inside,
    is_let_through,
    measure_damage,
    negative_gram,
    turn_round,
)
from lscl.federation.limits import largest_magnitude
from lscl.federation.metrics import MASKS, task_accuracies

GRAM = {"o2d_upload": "gram"}


def test_the_honest_accuracy_is_that_of_the_run(played):
    method, clients, exchange, reports = played("fedavg_vit")
    method.server = dict(exchange.server)
    method.aggregate(dict(exchange.uploads), exchange.stage)
    found = accuracy_of_others(method, clients, exchange, 1)
    scores = [task_accuracies(reports[-1].scores[k], 3).mean(1) for k in (0, 2)]
    assert list(found) == list(MASKS)
    assert list(found.values()) == pytest.approx([float(sum(row) / 2) for row in zip(*scores)], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "changes", "answers"),
    [
        ("fed_lscl", {}, {"update", "features"}),
        ("fed_lscl", GRAM, {"update", "gram"}),
        ("fedavg", {}, {"images", "update"}),
        ("fed_ncm", {}, {"features"}),
        ("fed_ridge", {}, {"gram"}),
    ],
)
def test_every_payload_gets_the_answers_that_it_has_room_for(played, name, changes, answers):
    _, _, exchange, _ = played(name, **changes)
    assert set(answers_against(exchange.uploads[1], exchange.downloads[1])) == answers


def test_checks_stop_what_no_honest_client_sends(played):
    method, _, exchange, _ = played(**GRAM)
    up, down = exchange.uploads[1], exchange.downloads[1]
    assert is_let_through(method, exchange, 1, up) is None
    assert "eigenvalue below zero" in is_let_through(method, exchange, 1, negative_gram(up, down)) or "squares" in (
        is_let_through(method, exchange, 1, negative_gram(up, down))
    )
    assert "away from what was sent" in is_let_through(method, exchange, 1, turn_round(up, down))


def test_damage_is_measured_without_and_with_checks(played):
    damages = {(one.answer, one.checks): one for one in measure_damage(*played("fedavg_vit")[:3], 1)}
    assert {name for name, _ in damages} == {"images", "update", "inside the checks"}
    assert damages["images", True].outcome.startswith("payload of client 1: images is")
    assert damages["update", False].outcome == damages["inside the checks", True].outcome == "taken"
    assert damages["images", True].attacked == damages["update", True].attacked  # both are left out


def test_a_matrix_that_is_none_breaks_the_server_without_checks(played):
    found = {(one.answer, one.checks): one.outcome for one in measure_damage(*played(**GRAM)[:3], 1)}
    assert found["gram", False].startswith("the aggregation fails") and "payload of client 1" in found["gram", True]


@pytest.mark.parametrize("averaging", ["clipped", "median"])
def test_averages_that_withstand_a_client_move_less(played, averaging):
    def moved(**changes):
        method, _, exchange, _ = played("fedavg_vit", **changes)
        method.server = dict(exchange.server)
        bad = turn_round(exchange.uploads[1], exchange.downloads[1])
        method.aggregate({**exchange.uploads, 1: bad}, exchange.stage)
        return largest_magnitude(method.server["out.weight"] - exchange.server["out.weight"])

    assert moved(averaging=averaging) < 0.2 * moved()
    assert torch.isfinite(torch.tensor(moved(averaging=averaging)))


@pytest.mark.parametrize("name", ["fedavg", "fedavg_vit", "fed_lscl", "pilora"])
def test_the_farthest_answer_is_inside_the_checks_and_one_step_more_is_not(played, name):
    method, _, exchange, _ = played(name)
    found, up, down = farthest_inside(method, exchange, 1), exchange.uploads[1], exchange.downloads[1]
    assert is_let_through(method, exchange, 1, found) is None
    moved = max((one for one in up if one in down and up[one].is_floating_point()), key=lambda one: up[one].numel())
    trained, bad = (sent[moved] - down[moved] for sent in (up, found))
    factor = float((bad * trained).sum() / trained.square().sum())
    assert factor < 0 and is_let_through(method, exchange, 1, turn_round(up, down, 1.6 * factor)) is not None
    assert all(torch.equal(found[one], up[one]) for one in up if "running_" in one)
