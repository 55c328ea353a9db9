"""One-by-One Distillation (paper section 4.4, Eq. 5): the server fuses the generators, one personalised one per client.

    L_k(W) = mean over teachers j != k of mean_{f in F_j} || W [f; 1] - W_j [f; 1] ||^2 + lambda c || W - W_k ||_F^2

f is what a generator reads, so scaled features (`lscl.models.generator.scale_features`), and F_j are those that teacher
j sent up. The generator is linear, so F_j enters only through its second moments C_j = mean of [f; 1][f; 1]^T:
the first term is mean_j tr((W - W_j) C_j (W - W_j)^T). Shapes: W_j (P, m + 1), bias last; C_j (m + 1, m + 1).

The unit of lambda is c = tr(mean_j C_j) / (m + 1), the mean eigenvalue of mean_j C_j. Layer-normalised features, scaled
by 1 / m, have ||f||^2 = 1 / m. So c = (1 + 1 / m) / (m + 1) = 1 / m for every CNN: the constant 1 beside f sets it. The
direction of this constant has an eigenvalue near 1, all others are far smaller. So at the tuned lambda the server fuses
the biases almost wholly, and the client keeps about half of what depends on the image (book/differences.md, number 12).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

MOMENTUM = 0.9  # of O2D by gradient


def second_moments(features: Tensor) -> Tensor:
    """C = (1/n) sum [f; 1][f; 1]^T in float64. features: (n, m) -> (m + 1, m + 1); zero if there are none."""
    f = torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64, device=features.device)], dim=1)
    # A matrix product is symmetric only up to rounding: its upper triangle counts.
    upper = torch.triu(f.T @ f / max(1, len(f)))
    return upper + upper.triu(1).T


def pack_triangle(moments: Tensor) -> Tensor:
    """The upper triangle of a symmetric matrix, row by row: (q, q) -> (q (q + 1) / 2,)."""
    rows, columns = torch.triu_indices(*moments.shape)
    return moments[rows, columns]


def unpack_triangle(packed: Tensor) -> Tensor:
    """Undo `pack_triangle`: (q (q + 1) / 2,) -> (q, q)."""
    size = int(((8 * len(packed) + 1) ** 0.5 - 1) / 2)
    rows, columns = torch.triu_indices(size, size)
    moments = packed.new_zeros(size, size)
    moments[rows, columns] = packed
    moments[columns, rows] = packed
    return moments


def o2d_loss(k: int, weight: Tensor, weights: Sequence[Tensor], moments: Sequence[Tensor], strength: float) -> Tensor:
    """Eq. 5 for one client, in float64.

    Args:
        k: the client's place in the lists.
        weight: where the loss is taken, (P, m + 1).
        weights: the uploaded generators, (P, m + 1) each.
        moments: their features' second moments, (m + 1, m + 1) each, float64.
        strength: lambda, in mean eigenvalues of the mean of the teachers' moments.

    Returns:
        L_k(weight), ().
    """
    teachers = [j for j in range(len(weights)) if j != k]
    total = torch.zeros((), dtype=torch.float64)
    for j in teachers:
        gap = weight.double() - weights[j].double()
        total = total + ((gap @ moments[j]) * gap).sum() / len(teachers)
    return total + _lambda(k, moments, strength) * (weight.double() - weights[k].double()).square().sum()


def o2d_exact(weights: Sequence[Tensor], moments: Sequence[Tensor], strength: float) -> list[Tensor]:
    """The minimiser of Eq. 5 for every client (ours, not in the paper):

        W_k* = (mean_j W_j C_j + lambda c W_k) (mean_j C_j + lambda c I)^{-1},  j over the other clients.

    The sums are shared, so the work is linear in the number of clients; one Cholesky solve each, in float64. With equal
    C_j and lambda -> 0 this is the mean of the other generators (the paper's Eq. 6). One client alone keeps its own.

    Args:
        weights: the uploaded generators, (P, m + 1) each.
        moments: their features' second moments, (m + 1, m + 1) each, float64.
        strength: lambda, in mean eigenvalues of mean_j C_j.

    Returns:
        The W_k*, (P, m + 1) each, in the type of the uploads.
    """
    if len(weights) == 1:
        return [weights[0].clone()]
    # Fresh memory takes longer than the sums, so one piece is used again and again.
    scratch = torch.empty(weights[0].shape, dtype=torch.float64)
    products = [scratch.copy_(weight) @ moment for weight, moment in zip(weights, moments, strict=True)]
    all_products, all_moments = products[0].clone(), sum(moments)
    for product in products[1:]:
        all_products += product
    others, eye = len(weights) - 1, torch.eye(len(all_moments), dtype=torch.float64)
    merged = []
    for k, weight in enumerate(weights):
        mean_moment = (all_moments - moments[k]) / others
        if mean_moment.trace() == 0:  # no features anywhere: nothing to distil
            merged.append(weight.clone())
            continue
        pull = strength * mean_moment.trace() / len(mean_moment)
        right = torch.sub(all_products, products[k], out=products[k]).div_(others)
        right += scratch.copy_(weight).mul_(pull)
        factor = torch.linalg.cholesky(mean_moment + pull * eye)
        merged.append(torch.cholesky_solve(right.T, factor).T.to(weight.dtype))
    return merged


def o2d_shared(weights: Sequence[Tensor], moments: Sequence[Tensor], strength: float) -> Tensor:
    """Eq. 5 with every client as a teacher and the mean of all generators in place of the client's own:

        W* = (mean_j W_j C_j + lambda c mean_j W_j) (mean_j C_j + lambda c I)^{-1}

    With equal C_j, or lambda to infinity, this is the mean of the generators.

    Args:
        weights: the uploaded generators, (P, m + 1) each.
        moments: their features' second moments, (m + 1, m + 1) each, float64.
        strength: lambda, in mean eigenvalues of mean_j C_j.

    Returns:
        W*, (P, m + 1), in the type of the uploads; the mean if there are no features.
    """
    mean_moment = sum(moments) / len(moments)
    mean = sum(weight.double() for weight in weights) / len(weights)
    if mean_moment.trace() == 0:
        return mean.to(weights[0].dtype)
    pull = strength * mean_moment.trace() / len(mean_moment)
    right = pull * mean
    for weight, moment in zip(weights, moments, strict=True):
        right += weight.double() @ moment / len(weights)
    factor = torch.linalg.cholesky(mean_moment + pull * torch.eye(len(mean_moment), dtype=torch.float64))
    return torch.cholesky_solve(right.T, factor).T.to(weights[0].dtype)


def o2d_sgd(
    weights: Sequence[Tensor], moments: Sequence[Tensor], strength: float, lr: float, epochs: int
) -> list[Tensor]:
    """Eq. 5 for every client by gradient steps, as `o2d_sgd_of_client`.

    Args:
        weights: the uploaded generators, (P, m + 1) each.
        moments: their features' second moments, (m + 1, m + 1) each, float64.
        strength: lambda, in mean eigenvalues of the mean of the teachers' moments.
        lr: size of the first step, in the largest one that cannot overshoot.
        epochs: passes over the teachers.

    Returns:
        The distilled generators, (P, m + 1) each.
    """
    return [o2d_sgd_of_client(k, weights, moments, strength, lr, epochs) for k in range(len(weights))]


def o2d_sgd_of_client(
    k: int, weights: Sequence[Tensor], moments: Sequence[Tensor], strength: float, lr: float, epochs: int
) -> Tensor:
    """Eq. 5 for one client by gradient steps, teacher after teacher, as in the paper.

    One step on teacher j goes down the gradient 2 (W - W_j) C_j + 2 lambda c (W - W_k) of its term, over all of its
    features. Half the inverse of the term's largest curvature is a step that cannot overshoot: the steps are in
    proportion to the teachers' distance and need no scale of their own. Nesterov's momentum averages over the teachers;
    the step falls linearly to zero, so that the last teacher has no more say than the first.

    Every row of W takes the same steps, and they are linear: W ends as sum_i W_i S_i, with matrices S_i that depend on
    the moments alone. So the steps are taken by the S_i, which have K (m + 1) rows and not P.

    Args:
        k: the client's place in the lists.
        weights: the uploaded generators, (P, m + 1) each.
        moments: their features' second moments, (m + 1, m + 1) each, float64.
        strength: lambda, in mean eigenvalues of the mean of the teachers' moments.
        lr: size of the first step, in the largest one that cannot overshoot.
        epochs: passes over the teachers.

    Returns:
        The distilled generator, (P, m + 1); the own one of a client alone, or if no teacher has features.
    """
    own, teachers = weights[k], [j for j in range(len(weights)) if j != k]
    pull = float(_lambda(k, moments, strength)) if teachers else 0.0
    if pull == 0:
        return own.clone()
    size = len(moments[k])
    start = torch.eye(len(weights) * size, dtype=moments[k].dtype).split(size, dim=1)  # each (K (m + 1), m + 1)
    student = start[k].clone()
    steepest = max(float(torch.linalg.eigvalsh(moments[j])[-1]) for j in teachers) + pull
    optimiser = torch.optim.SGD([student], lr=lr, momentum=MOMENTUM, nesterov=True)
    steps = epochs * len(teachers)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = lr / (2 * steepest) * (1 - step / steps)
        j = teachers[step % len(teachers)]
        student.grad = 2 * (student - start[j]) @ moments[j] + 2 * pull * (student - start[k])
        optimiser.step()
    shares = student.split(size)  # S_i, each (m + 1, m + 1)
    return sum(weight @ share.to(own.dtype) for weight, share in zip(weights, shares, strict=True))


def _lambda(k: int, moments: Sequence[Tensor], strength: float) -> Tensor:
    mean_moment = (sum(moments) - moments[k]) / (len(moments) - 1)
    return strength * mean_moment.trace() / len(mean_moment)
