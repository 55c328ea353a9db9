"""Terms against forgetting that may stand in for Eq. 4 of the paper: EWC, LwF, replay."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lscl.federation.masking import mask_logits


def diagonal_fisher(
    parameters: Mapping[str, nn.Parameter], log_likelihoods: Callable[[int], Tensor], count: int
) -> dict[str, Tensor]:
    """F = (1/n) sum_i (d log p(y_i | x_i) / d w)^2, the empirical Fisher information's diagonal (Kirkpatrick et al. 2017).

    log_likelihoods(i): the scalar of sample i < count.
    """
    fisher = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for i in range(count):
        gradients = torch.autograd.grad(log_likelihoods(i), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients):
            if gradient is not None:
                fisher[name] += gradient.square() / count
    return fisher


def ewc_penalty(parameters: Mapping[str, Tensor], fisher: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor:
    """(1/2) sum F (w - w_before)^2 (EWC, Kirkpatrick et al. 2017, arXiv 1612.00796)."""
    return 0.5 * sum((fisher[name] * (value - before[name]).square()).sum() for name, value in parameters.items())


def distillation(student: Tensor, teacher: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """-mean_b sum_c softmax(teacher / T) log softmax(student / T) over `classes` only (LwF, Li and Hoiem 2016, arXiv 1606.09282).

    student, teacher: (b, C) logits. The factor T^2 is left to the caller's weight. Zero without classes.
    """
    classes = classes.to(student.device)
    target = F.softmax(teacher[:, classes] / temperature, dim=1)
    return -(target * F.log_softmax(student[:, classes] / temperature, dim=1)).sum(1).mean()


def replay_cross_entropy(logits: Tensor, labels: Tensor, seen: Tensor) -> Tensor:
    """Cross-entropy of kept images over all classes seen so far (experience replay, Chaudhry et al. 2019, arXiv 1902.10486)."""
    return F.cross_entropy(mask_logits(logits, seen), labels)
