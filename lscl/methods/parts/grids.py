"""The points at which systems with one learning rate are tuned."""

# Six points for every system. This is the second grid: in the first, of the same size, some systems were best at an edge, so the learning
# rates were moved up by one step.
LEARNING_RATES = tuple({"lr": lr} for lr in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1))
