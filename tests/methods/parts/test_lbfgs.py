"""Many small problems at once: each goes the way that torch.optim.LBFGS goes with it alone."""

import pytest
import torch

from lscl.methods.parts.lbfgs import ManyLBFGS

STEPS = 4


def problem(x):
    """A curved valley, another one for every row."""
    rows = torch.arange(1, len(x) + 1, dtype=x.dtype)[:, None]
    return (rows * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)


def objective(x):
    x = x.clone().requires_grad_()
    losses = problem(x)
    (slopes,) = torch.autograd.grad(losses.sum(), [x])
    return losses.detach(), slopes


def alone(start, row, iterations, history):
    """Where torch's own optimiser is after each step with this row."""
    x = start[row].clone().requires_grad_()
    optimiser = torch.optim.LBFGS([x], lr=0.1, max_iter=iterations, history_size=history)

    def closure():
        optimiser.zero_grad()
        whole = start.clone()
        whole[row] = x
        loss = problem(whole)[row]
        loss.backward()
        return loss

    found = []
    for _ in range(STEPS):
        optimiser.step(closure)
        found.append(x.detach().clone())
    return torch.stack(found)


@pytest.mark.parametrize(("iterations", "history"), [(20, 100), (1, 100), (20, 3)])
def test_every_row_goes_the_way_of_torchs_own_optimiser(iterations, history):
    start = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5
    start[3] = 1.0  # the minimum: nothing to do
    search, found = ManyLBFGS(start, objective, lr=0.1, iterations=iterations, history=history), []
    for _ in range(STEPS):
        search.step()
        found.append(search.x)
    found = torch.stack(found)  # (steps, rows, d)
    for row in range(5):
        assert torch.allclose(found[:, row], alone(start, row, iterations, history), atol=1e-9), row
    assert torch.equal(found[-1, 3], start[3]) and (problem(found[-1])[:3] < problem(start)[:3]).all()


def test_a_row_without_curvature_goes_along_its_gradient():
    start = torch.zeros(2, 3, dtype=torch.float64)
    linear = lambda x: (x.sum(1), torch.ones_like(x))
    search = ManyLBFGS(start, linear, lr=0.1, iterations=4)
    search.step()
    expected = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([expected], lr=0.1, max_iter=4)

    def closure():
        optimiser.zero_grad()
        loss = expected.sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert torch.allclose(search.x, expected.detach().expand(2, 3)) and search.x.max() < 0
