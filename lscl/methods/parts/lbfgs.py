"""L-BFGS for many small problems at once, each with its own curvature, as `torch.optim.LBFGS` solves one."""

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]  # x (n, d) -> losses (n,), gradients (n, d)


class ManyLBFGS:
    """n problems of d numbers, minimised at once; problem i reads and moves row i only.

    Steps, the first one, curvature pairs and all reasons to stop are those of `torch.optim.LBFGS` without a line
    search. A call of the objective serves all problems, so that n of them cost little more than one.

    Args:
        x: where they start, (n, d).
        objective: the losses and their gradients.
        lr: length of a step, in quasi-Newton steps.
        iterations: at most, in a call of `step`.
        history: how many curvature pairs are kept.
    """

    tolerance_gradient, tolerance_change, least_curvature = 1e-7, 1e-9, 1e-10

    def __init__(self, x: Tensor, objective: Objective, lr: float, iterations: int, history: int = 100):
        self.x, self.objective = x.clone(), objective
        self.lr, self.iterations, self.history = lr, iterations, history
        n = len(x)
        self.count = torch.zeros(n, dtype=torch.long, device=x.device)  # iterations of each problem so far
        self.direction, self.before = torch.zeros_like(x), torch.zeros_like(x)  # (n, d); the gradient before
        self.length, self.scale = x.new_zeros(n), x.new_ones(n)  # of the last step; of the first guess of the curvature
        # Newest last: moves s (n, d), changes of the gradient y (n, d) and 1 / (s y) (n,), zero where there is no pair.
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def step(self) -> None:
        """Up to `iterations` iterations of every problem."""
        loss, gradient = self.objective(self.x)
        active = gradient.abs().amax(1) > self.tolerance_gradient  # (n,)
        for iteration in range(1, self.iterations + 1):
            self.turn(gradient, active)
            slope = (gradient * self.direction).sum(1)  # (n,)
            active = active & ~(slope > -self.tolerance_change)
            if not active.any():
                return
            move = torch.where(active[:, None], self.length[:, None] * self.direction, 0.0)  # (n, d)
            self.x = self.x + move
            if iteration == self.iterations:
                return
            old_loss = loss
            loss, gradient = self.objective(self.x)
            active = active & (gradient.abs().amax(1) > self.tolerance_gradient)
            active = active & (move.abs().amax(1) > self.tolerance_change)
            active = active & ~((loss - old_loss).abs() < self.tolerance_change)

    def turn(self, gradient: Tensor, active: Tensor) -> None:
        """Take up the change of the gradient, and choose the direction and length of the next step.

        Args:
            gradient: at x, (n, d).
            active: the problems that go on, (n,); the others stay as they are.
        """
        self.count = self.count + active
        first = self.count == 1
        s, y = self.length[:, None] * self.direction, gradient - self.before  # (n, d) each
        curvature = (y * s).sum(1)  # (n,)
        fits = active & ~first & (curvature > self.least_curvature)
        inverse = torch.where(fits, 1 / torch.where(fits, curvature, 1.0), 0.0)
        if fits.any():
            self.pairs = [*self.pairs, (s, y, inverse)][-self.history :]
            self.scale = torch.where(fits, curvature / (y * y).sum(1).clamp_min(1e-38), self.scale)
        chosen = torch.where(first[:, None], -gradient, self.quasi_newton(gradient))
        length = torch.where(first, (1 / gradient.abs().sum(1)).clamp_max(1.0) * self.lr, self.lr)
        self.direction = torch.where(active[:, None], chosen, self.direction)
        self.length = torch.where(active, length, self.length)
        self.before = torch.where(active[:, None], gradient, self.before)

    def quasi_newton(self, gradient: Tensor) -> Tensor:
        """-H g by the two loops over the pairs; one without curvature changes nothing.

        Args:
            gradient: g, (n, d).

        Returns:
            (n, d).
        """
        q, weights = -gradient, []
        for s, y, inverse in reversed(self.pairs):
            weights.append((s * q).sum(1) * inverse)  # (n,)
            q = q - weights[-1][:, None] * y
        r = q * self.scale[:, None]
        for (s, y, inverse), weight in zip(self.pairs, reversed(weights)):
            r = r + (weight - (y * r).sum(1) * inverse)[:, None] * s
        return r
