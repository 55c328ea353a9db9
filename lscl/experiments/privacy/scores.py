"""The scores of an attack; PSNR, SSIM and the ROC curve come from torchmetrics."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lscl.errors import LsclError

CANDIDATES = 100  # images of one class among which a reconstruction has to find its own
FALSE_POSITIVES = 0.01  # rate at which the true positives of a membership attack are read


@dataclass(frozen=True)
class Finding:
    """One score of one attack on one client.

    Args:
        attack: its name.
        payload: the tensors that it reads, by their names.
        knows: what the attacker knows beyond payload and code.
        score: psnr (dB), ssim, top1 (share), auc, tpr (share) or classes (share).
        value: of the attack.
        never_had: of the same attack on images, or classes, that the client never had.
        by_design: of the same attack on a payload that leaks by design.
        chance: of guessing; None = the score has no such level.
        count: images or classes behind the value.
    """

    attack: str
    payload: str
    knows: str
    score: str
    value: float
    never_had: float
    by_design: float
    chance: float | None
    count: int

    def row(self) -> dict[str, Any]:
        """The finding as JSON can hold it."""
        rounded = {name: round(getattr(self, name), 6) for name in ("value", "never_had", "by_design")}
        return {**asdict(self), **rounded}


def _metrics() -> tuple[Any, Any]:
    try:
        from torchmetrics.functional import classification, image
    except ModuleNotFoundError as error:
        raise LsclError(f"no package {error.name}: pip install 'fed-lscl[privacy]'") from None
    return classification, image


def image_quality(found: Tensor, true: Tensor) -> dict[str, float]:
    """PSNR in dB and SSIM (Wang et al. 2004) of reconstructions, means over the images.

    Args:
        found: (n, 3, H, W) in 0 to 1.
        true: the images that they are compared with, of the same shape.

    Returns:
        {"psnr": mean, "ssim": mean}.

    Raises:
        LsclError: torchmetrics is not installed.
    """
    _, image = _metrics()
    psnr = image.peak_signal_noise_ratio(found, true, data_range=1.0, dim=(1, 2, 3), reduction="none")
    ssim = image.structural_similarity_index_measure(
        found, true, data_range=1.0, kernel_size=min(11, 2 * ((found.shape[-1] - 1) // 2) - 1), reduction="none"
    )
    return {"psnr": float(psnr.clamp(max=100).mean()), "ssim": float(ssim.mean())}


def top1_rate(found: Tensor, candidates: Tensor, right: Tensor) -> float:
    """How often the nearest candidate is the right one: re-identification.

    Args:
        found: what the attack made, (n, d).
        candidates: of each of them, (n, c, d).
        right: which candidate is right, (n,).

    Returns:
        Share of the n, 0 to 1.
    """
    distances = (candidates - found[:, None]).square().sum(2)  # (n, c)
    return float((distances.argmin(1) == right).double().mean())


def membership_rates(members: Tensor, others: Tensor) -> dict[str, float]:
    """AUC, and the true-positive rate at 1 % false positives, of scores that are high for members.

    Args:
        members: scores of images that were used, (n,).
        others: scores of images that were not, (m,).

    Returns:
        {"auc": 0 to 1, "tpr": 0 to 1}.

    Raises:
        LsclError: torchmetrics is not installed.
    """
    classification, _ = _metrics()
    scores = torch.cat([members, others]).double()
    scores = scores.unique(return_inverse=True)[1].double() / len(scores)  # ranks in 0 to 1, as the metric wants them
    used = torch.cat([torch.ones(len(members)), torch.zeros(len(others))]).long()
    wrong, right, _ = classification.binary_roc(scores, used)
    auc = min(1.0, float(classification.binary_auroc(scores, used)))  # it sums up in float32
    return {"auc": auc, "tpr": float(right[wrong <= FALSE_POSITIVES].max())}
