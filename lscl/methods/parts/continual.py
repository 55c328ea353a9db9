"""The equations of the terms against forgetting: EWC, LwF, replay."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lscl.federation.masking import mask_logits
from lscl.models.precision import in_float32


def diagonal_fisher(
    parameters: Mapping[str, nn.Parameter], log_likelihoods: Callable[[int], Tensor], count: int
) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information, F = (1/n) sum_i (d log p(y_i | x_i) / d w)^2.

    Kirkpatrick et al. 2017 (arXiv 1612.00796). What a log-likelihood does not depend on has F = 0.

    Args:
        parameters: w, by name.
        log_likelihoods: i -> log p(y_i | x_i), ().
        count: the number n of samples.

    Returns:
        F by name, in the shapes of the parameters.
    """
    fisher = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for i in range(count):
        gradients = torch.autograd.grad(log_likelihoods(i), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients):
            if gradient is not None:
                fisher[name] += gradient.square() / count
    return fisher


def ewc_penalty(parameters: Mapping[str, Tensor], fisher: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor:
    """EWC's term, (1/2) sum F (w - w_before)^2 (Kirkpatrick et al. 2017, arXiv 1612.00796).

    Args:
        parameters: w, by name.
        fisher: F, by the same names and in the same shapes.
        before: w_before, likewise.

    Returns:
        ().
    """
    return 0.5 * sum((fisher[name] * (value - before[name]).square()).sum() for name, value in parameters.items())


@in_float32
def distillation(student: Tensor, teacher: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """LwF's term, -mean_b sum_c softmax(teacher / T) log softmax(student / T) (Li and Hoiem 2016, arXiv 1606.09282).

    The factor T^2 is left to the caller's weight.

    Args:
        student: logits, (b, C).
        teacher: logits, (b, C).
        classes: those that are compared, (k,), on the device of the logits.
        temperature: T.

    Returns:
        (); zero without classes.
    """
    target = F.softmax(teacher[:, classes] / temperature, dim=1)
    return -(target * F.log_softmax(student[:, classes] / temperature, dim=1)).sum(1).mean()


@in_float32
def replay_cross_entropy(logits: Tensor, labels: Tensor, seen: Tensor) -> Tensor:
    """Experience replay's term, a cross-entropy over all classes seen so far (Chaudhry et al. 2019, arXiv 1902.10486).

    Args:
        logits: of kept images, (b, C).
        labels: their classes, (b,).
        seen: the classes seen so far, (k,).

    Returns:
        The mean over the images, ().
    """
    return F.cross_entropy(mask_logits(logits, seen), labels)
