"""The scores of an attack, on cases whose answer is known."""

import math
import sys

import pytest
import torch

from lscl.errors import LsclError
from lscl.experiments.privacy.scores import Finding, image_quality, membership_rates, top1_rate


def test_psnr_and_ssim_of_equal_and_of_known_images():
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    same, off = image_quality(images, images), image_quality(images * 0 + 0.5, images * 0 + 0.6)
    assert same == {"psnr": pytest.approx(100.0), "ssim": pytest.approx(1.0, abs=1e-5)}
    assert off["psnr"] == pytest.approx(20.0, abs=1e-3)
    assert image_quality(images, images.flip(0))["ssim"] < 0.5


def test_the_nearest_candidate_counts():
    candidates = torch.eye(4)[None].expand(3, -1, -1)
    found = torch.tensor([[0.9, 0, 0, 0], [0, 0.2, 0, 0.1], [0, 0, 0, 1.0]])
    assert top1_rate(found, candidates, torch.tensor([0, 1, 2])) == pytest.approx(2 / 3)


def test_membership_of_separate_mixed_and_turned_scores():
    low, high = torch.linspace(-1e9, -1, 300), torch.linspace(1, 1e9, 300)
    assert membership_rates(high, low) == {"auc": 1.0, "tpr": 1.0}
    assert membership_rates(low, high)["auc"] == 0.0
    draw = torch.Generator().manual_seed(1)
    one, other = torch.randn(2, 4000, generator=draw)
    found = membership_rates(one, other)
    assert found["auc"] == pytest.approx(0.5, abs=0.02) and found["tpr"] == pytest.approx(0.01, abs=0.006)
    shifted = membership_rates(one + 1, other)  # known: Phi(1 / sqrt(2))
    assert shifted["auc"] == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=0.02)


def test_equal_scores_say_nothing():
    assert membership_rates(torch.zeros(50), torch.zeros(50))["auc"] == pytest.approx(0.5)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional", None)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(LsclError, match=r"pip install 'fed-lscl\[privacy\]'"):
        image_quality(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))


def test_a_finding_becomes_a_row():
    row = Finding("a", "b", "c", "auc", 1 / 3, 0.5, 1.0, 0.5, 7).row()
    assert row["value"] == 0.333333 and row["chance"] == 0.5 and row["count"] == 7
