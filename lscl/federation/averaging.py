"""Weighted averages of uploads."""

from collections.abc import Mapping

import torch
from torch import Tensor


def average(states: Mapping[int, Mapping[str, Tensor]], weights: Mapping[int, float]) -> dict[str, Tensor]:
    """FedAvg: sum_k p_k w_k with p_k = weight_k / sum of weights (McMahan et al. 2017), in float64.

    Args:
        states: {client: {name: tensor}}, the same names and shapes on all clients.
        weights: {client: weight}; if none is positive, all clients count the same.

    Returns:
        {name: tensor}; floating-point tensors are averaged, of integer ones (BatchNorm's counter) the largest is taken.
    """
    total = sum(weights.values())
    if total <= 0:
        weights, total = dict.fromkeys(states, 1.0), len(states)
    first = next(iter(states.values()))
    merged = {}
    for name, value in first.items():
        if value.is_floating_point():
            mean = sum(states[k][name].double() * (weights[k] / total) for k in states)
            merged[name] = mean.to(value.dtype)
        else:
            merged[name] = torch.stack([states[k][name] for k in states]).amax(0)
    return merged


def average_rows(
    before: Tensor, rows: Mapping[int, Tensor], holders: Mapping[int, Tensor], weights: Mapping[int, float]
) -> Tensor:
    """Average each row of a head over the clients that trained it.

    Args:
        before: (C, ...) the server's rows.
        rows: {client: (C, ...)}, the clients' rows.
        holders: {client: (C,) bool}, the classes of the client's task.
        weights: {client: weight}.

    Returns:
        (C, ...); a row that no client trained stays as it was.
    """
    total = torch.zeros(len(before), dtype=torch.float64)
    summed = torch.zeros_like(before, dtype=torch.float64)
    for k, row in rows.items():
        share = holders[k].double() * weights[k]
        total += share
        summed += row.double() * share.view(-1, *[1] * (row.ndim - 1))
    trained = total > 0
    merged = before.clone()
    merged[trained] = (summed[trained] / total[trained].view(-1, *[1] * (before.ndim - 1))).to(before.dtype)
    return merged


def clip_changes(
    states: Mapping[int, Mapping[str, Tensor]], before: Mapping[str, Tensor]
) -> dict[int, dict[str, Tensor]]:
    """Shorten the changes that are longer than the median one, each taken as one vector (Sun et al. 2019, 1911.07963).

    Args:
        states: {client: {name: tensor}}.
        before: what the clients started from, by the same names.

    Returns:
        {client: {name: tensor}}; tensors of integers stay as they are.
    """
    changes = {
        k: {name: value.double() - before[name].double() for name, value in state.items() if value.is_floating_point()}
        for k, state in states.items()
    }
    lengths = {k: float(sum(value.square().sum() for value in change.values())) ** 0.5 for k, change in changes.items()}
    allowed = float(torch.tensor(list(lengths.values()), dtype=torch.float64).median())
    clipped = {}
    for k, state in states.items():
        factor = min(1.0, allowed / lengths[k]) if lengths[k] > 0 else 1.0
        clipped[k] = {
            name: (before[name].double() + factor * changes[k][name]).to(value.dtype) if name in changes[k] else value
            for name, value in state.items()
        }
    return clipped


def coordinate_median(states: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The median over the clients of every number (Yin et al. 2018, arXiv 1803.01498); no client has a weight.

    Args:
        states: {client: {name: tensor}}, the same names and shapes on all clients.

    Returns:
        {name: tensor}; with an even number of clients the mean of the two in the middle.
    """
    merged = {}
    for name, value in next(iter(states.values())).items():
        stacked = torch.stack([state[name] for state in states.values()])
        if value.is_floating_point():
            merged[name] = stacked.double().quantile(0.5, dim=0).to(value.dtype)
        else:
            merged[name] = stacked.amax(0)
    return merged
