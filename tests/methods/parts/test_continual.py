"""EWC, LwF and replay against values computed by hand."""

import pytest
import torch
from torch import nn

from lscl.methods.parts.continual import diagonal_fisher, distillation, ewc_penalty, replay_cross_entropy


def test_the_fisher_information_of_a_logistic_regression():
    """For p(y = 1 | x) = sigmoid(w x): the gradient of log p is (y - p) x."""
    w, x, y = nn.Parameter(torch.tensor(0.3)), torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.0, 0.0, 1.0])
    unused = nn.Parameter(torch.ones(2))
    log_p = lambda i: torch.where(
        y[i] > 0, torch.nn.functional.logsigmoid(w * x[i]), torch.nn.functional.logsigmoid(-w * x[i])
    )
    found = diagonal_fisher({"w": w, "unused": unused}, log_p, 3)
    expected = ((y - torch.sigmoid(0.3 * x)) * x).square().mean()
    assert float(found["w"]) == pytest.approx(float(expected)) and found["unused"].tolist() == [0, 0]


def test_the_penalty_is_half_the_weighted_square():
    now, before, fisher = (
        {"a": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([0.0, 4.0])},
        {"a": torch.tensor([3.0, 0.5])},
    )
    assert float(ewc_penalty(now, fisher, before)) == pytest.approx(0.5 * (3 * 1 + 0.5 * 4))


def test_distillation_looks_at_the_given_classes_only_and_is_least_at_the_teacher():
    teacher = torch.tensor([[2.0, 0.0, 9.0, -1.0]])
    classes = torch.tensor([0, 1, 3])
    p = torch.softmax(torch.tensor([1.0, 0.0, -0.5]), 0)
    assert float(distillation(teacher, teacher, classes, 2.0)) == pytest.approx(float(-(p * p.log()).sum()))
    other = teacher.clone()
    other[0, 2] = -50.0
    assert distillation(other, teacher, classes, 2.0) == distillation(teacher, teacher, classes, 2.0)
    assert distillation(-teacher, teacher, classes, 2.0) > distillation(teacher, teacher, classes, 2.0)


def test_replay_is_the_cross_entropy_over_the_classes_seen():
    logits, labels = torch.tensor([[1.0, 2.0, 50.0], [0.0, 0.0, 50.0]]), torch.tensor([1, 0])
    expected = -(torch.log_softmax(torch.tensor([1.0, 2.0]), 0)[1] + torch.log(torch.tensor(0.5))) / 2
    assert float(replay_cross_entropy(logits, labels, torch.tensor([0, 1]))) == pytest.approx(float(expected))


def test_distillation_brings_the_student_to_the_teacher_and_is_zero_without_classes():
    teacher, every = torch.tensor([[2.0, 0.0, -1.0]]), torch.arange(3)
    student = torch.zeros(1, 3, requires_grad=True)
    for _ in range(300):
        (slope,) = torch.autograd.grad(distillation(student, teacher, every, 2.0), [student])
        student = (student - 4 * slope).detach().requires_grad_()
    assert torch.allclose(student.softmax(1), teacher.softmax(1), atol=1e-3)
    assert distillation(torch.zeros(3, 3), torch.zeros(3, 3), every[:0], 2.0) == 0
