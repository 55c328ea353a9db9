"""Named random generators."""

import pytest
import torch

from lscl.seeding import numpy_generator, seeded, torch_generator


def draws(*names):
    return torch.rand(4, generator=torch_generator(*names)).tolist(), numpy_generator(*names).random(4).tolist()


def test_the_same_name_draws_the_same():
    assert draws(42, "batches", 0, 1, 2) == draws(42, "batches", 0, 1, 2)


@pytest.mark.parametrize(
    "names",
    [
        (43, "batches", 0, 1, 2),
        (42, "replay", 0, 1, 2),
        (42, "batches", 1, 1, 2),
        (42, "batches", 0, 0, 2),
        (42, "batches", 0, 1, 3),
    ],
)
def test_seed_purpose_client_task_and_round_each_change_the_draw(names):
    for one, other in zip(draws(*names), draws(42, "batches", 0, 1, 2), strict=True):
        assert not set(one) & set(other)


def test_neighbouring_numbers_do_not_run_together():
    assert draws(4, 21) != draws(42, 1) and draws(1, 1, 12) != draws(1, 11, 2)


def test_the_seed_of_a_name_never_changes():
    """Published records were made with these."""
    assert torch_generator(42, "batches-train", 0, 1, 2).initial_seed() == 5813612749143313852
    assert torch_generator(0, "tiny-vit").initial_seed() == 2383862921180273781


def test_a_named_generator_leaves_the_global_one_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    draws(42, "x")
    assert torch.equal(torch.rand(3), expected)


def test_seeded_draws_by_name_and_puts_the_global_state_back():
    torch.manual_seed(1)
    expected = torch.rand(6)
    torch.manual_seed(1)
    first = torch.rand(3)
    with seeded(42, "model"):
        inside = torch.rand(3)
    assert torch.equal(torch.cat([first, torch.rand(3)]), expected)
    with seeded(42, "model"):
        assert torch.equal(torch.rand(3), inside)
    with seeded(42, "model", 1):
        assert not torch.equal(torch.rand(3), inside)


def test_seeded_puts_the_global_state_back_after_an_error():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with pytest.raises(ZeroDivisionError), seeded(42, "model"):
        1 / (torch.rand(3).numel() - 3)
    assert torch.equal(torch.rand(3), expected)


def test_seeded_contexts_can_be_nested():
    with seeded(1, "a"):
        expected = torch.rand(4)
    with seeded(1, "a"):
        first = torch.rand(2)
        with seeded(1, "b"):
            torch.rand(7)
        assert torch.equal(torch.cat([first, torch.rand(2)]), expected)


def test_on_a_cpu_seeding_leaves_nothing_behind(monkeypatch):
    """Torch would keep every seeding, with its stack, for a GPU that it may find later."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    queued = len(torch.cuda._queued_calls)
    with seeded(42, "weights"):
        torch.rand(1)
    assert len(torch.cuda._queued_calls) == queued
