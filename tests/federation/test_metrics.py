"""Scores: what counts as right under each mask, and every metric on an example worked by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from lscl.data.partition import Partition, Task
from lscl.data.store import ImageSet
from lscl.federation.client import Client, Inputs
from lscl.federation.metrics import (
    MASKS,
    accuracies_so_far,
    accuracy_per_class,
    accuracy_tensor,
    average_so_far,
    backward_transfer,
    count_tested,
    current_task,
    evaluate,
    forgetting,
    task_accuracies,
)

NAN = np.nan
# acc[t][k][u]: three tasks, two clients; after task t, accuracy on task u
ACC = np.array(
    [
        [[90, NAN, NAN], [100, NAN, NAN]],
        [[95, 70, NAN], [70, 60, NAN]],
        [[60, 75, 50], [80, 40, 90]],
    ]
)


def test_the_current_task_is_the_diagonal():
    assert current_task(ACC).tolist() == [95, 65, 70]  # (90 + 100) / 2, (70 + 60) / 2, (50 + 90) / 2


def test_the_average_so_far_is_over_clients_and_tasks():
    assert average_so_far(ACC) == pytest.approx([95, (95 + 70 + 70 + 60) / 4, (60 + 75 + 50 + 80 + 40 + 90) / 6])


def test_forgetting_is_measured_from_the_best_before():
    # client 0: 95 - 60, 70 - 75; client 1: 100 - 80, 60 - 40
    assert forgetting(ACC) == pytest.approx((35 - 5 + 20 + 20) / 4)


def test_backward_transfer_is_measured_from_the_end_of_the_own_task():
    # client 0: 60 - 90, 75 - 70; client 1: 80 - 100, 40 - 60
    assert backward_transfer(ACC) == pytest.approx((-30 + 5 - 20 - 20) / 4)


def test_one_task_alone_cannot_be_forgotten():
    one = ACC[:1, :, :1]
    assert forgetting(one) == 0 and backward_transfer(one) == 0
    assert current_task(one).tolist() == average_so_far(one).tolist() == [95]


def without(*answers):
    """ACC without the answers of some clients after some tasks."""
    acc = ACC.copy()
    for task, client in answers:
        acc[task, client] = NAN
    return acc


def test_every_metric_is_the_mean_over_the_clients_that_have_answered():
    """Client 1 is silent after the second task: its best on the first is then 100, and on the second nothing."""
    acc = without((1, 1))
    assert count_tested(acc).tolist() == [2, 1, 2] and count_tested(ACC).tolist() == [2, 2, 2]
    assert current_task(acc).tolist() == [95, 70, 70]
    assert average_so_far(acc) == pytest.approx([95, (95 + 70) / 2, (60 + 75 + 50 + 80 + 40 + 90) / 6])
    assert forgetting(acc) == pytest.approx((35 - 5 + 20) / 3)
    assert backward_transfer(acc) == pytest.approx((-30 + 5 - 20) / 3)


def test_a_client_that_is_silent_at_the_end_counts_for_nothing_there():
    acc = without((2, 0))
    assert current_task(acc).tolist() == [95, 65, 90] and average_so_far(acc)[-1] == pytest.approx((80 + 40 + 90) / 3)
    assert forgetting(acc) == pytest.approx((20 + 20) / 2) and backward_transfer(acc) == pytest.approx((-20 - 20) / 2)


@pytest.mark.filterwarnings("error")
def test_without_any_answer_a_metric_is_nan():
    acc = without((2, 0), (2, 1))
    assert np.isnan([current_task(acc)[-1], average_so_far(acc)[-1], forgetting(acc), backward_transfer(acc)]).all()
    never = np.full_like(ACC, NAN)
    assert np.isnan([*current_task(never), *average_so_far(never), forgetting(never), backward_transfer(never)]).all()


def test_with_all_answers_a_metric_is_equal_to_the_bit_to_the_plain_mean():
    acc = np.random.default_rng(0).uniform(0, 100, (10, 50, 10))
    assert current_task(acc).tolist() == [acc[t, :, t].mean() for t in range(10)]
    assert average_so_far(acc).tolist() == [acc[t, :, : t + 1].mean() for t in range(10)]
    assert forgetting(acc) == (np.nanmax(acc[:-1, :, :-1], axis=0) - acc[-1, :, :-1]).mean()


def counted(correct, total):
    return {"correct": correct, "total": total}


COUNTS = [  # [t][k]: two classes a task; rows of `correct` are the masks task, seen, all
    [counted([[3, 1], [2, 1], [0, 1]], [4, 1]), counted([[2, 2], [2, 2], [2, 2]], [2, 2])],
    [
        counted([[4, 1, 2, 0], [1, 0, 2, 0], [0, 0, 1, 0]], [4, 1, 2, 2]),
        counted([[2, 0, 3, 3], [1, 0, 3, 3], [1, 0, 0, 0]], [2, 2, 3, 3]),
    ],
]


def test_a_tasks_accuracy_counts_images_not_classes():
    assert task_accuracies(COUNTS[0][0], 2).tolist() == [[80], [60], [20]]
    assert task_accuracies(COUNTS[1][0], 2).tolist() == [[100, 50], [20, 50], [0, 25]]


def test_the_accuracy_tensor_is_by_mask_task_client_and_task_tested():
    acc = accuracy_tensor(COUNTS, 2)
    assert acc.shape == (len(MASKS), 2, 2, 2)
    assert np.array_equal(acc[0], [[[80, NAN], [100, NAN]], [[100, 50], [50, 100]]], equal_nan=True)
    assert np.array_equal(acc[1], [[[60, NAN], [100, NAN]], [[20, 50], [25, 100]]], equal_nan=True)
    assert np.array_equal(acc[2], [[[20, NAN], [100, NAN]], [[0, 25], [25, 0]]], equal_nan=True)


def test_counts_read_from_tensors_give_the_same():
    tensors = [[{name: torch.tensor(value) for name, value in one.items()} for one in row] for row in COUNTS]
    assert np.array_equal(accuracy_tensor(tensors, 2), accuracy_tensor(COUNTS, 2), equal_nan=True)


def test_accuracy_per_class_is_that_of_the_last_task_under_each_mask():
    found = accuracy_per_class(COUNTS, [[8, 3, 5, 0], [1, 2, 5, 9]])
    assert list(found[0]) == [8, 3, 5, 0]
    assert (
        found[0][8] == [100, 25, 0]
        and found[0][3] == [100, 0, 0]
        and found[0][5] == [100, 100, 50]
        and found[0][0] == [0, 0, 0]
    )
    assert found[1][2] == [0, 0, 0] and found[1][9] == [100, 100, 0]


# Six classes; the client meets 4 and 1 first, then 0 and 5; classes 2 and 3 belong to others.
LABELS = np.array([4, 1, 1, 0, 5, 2])
LOGITS = torch.tensor(  # columns: classes 0 to 5
    [
        [9.0, 1.0, 0.0, 0.0, 5.0, 0.0],  # a 4: right among {4, 1}; 0 wins once it has been met
        [0.0, 4.0, 9.0, 0.0, 1.0, 0.0],  # a 1: right among all met; 2 wins among all classes
        [0.0, 4.0, 0.0, 0.0, 6.0, 0.0],  # a 1: wrong under every mask
        [7.0, 0.0, 0.0, 0.0, 8.0, 1.0],  # a 0: right among {0, 5}; 4 wins among all met
        [1.0, 0.0, 0.0, 0.0, 2.0, 9.0],  # a 5: always right
        [0.0, 0.0, 9.0, 0.0, 0.0, 0.0],  # a 2: never tested
    ]
)


class Table:
    """A method whose logits are given."""

    num_classes = 6

    def __init__(self, logits):
        self.table, self.modes = logits, []

    def logits(self, client, batch):
        self.modes.append(client.model.training)
        return self.table[batch.index]


def client_of(labels, tasks, task):
    images = Inputs(
        ImageSet(np.zeros((len(labels), 1, 1, 3), np.uint8), labels, tuple("abcdef")), None, torch.device("cpu")
    )
    return Client(0, nn.Identity().train(), Partition((tasks,), (), False), images, images, 0, task=task)


TASKS = (Task((4, 1), (), (0, 1, 2)), Task((0, 5), (), (3, 4)))


def test_masks_of_the_task_of_all_met_and_of_all_classes():
    found = evaluate(Table(LOGITS), client_of(LABELS, TASKS, 1))
    assert found["total"].tolist() == [1, 2, 1, 1]  # classes 4, 1, 0, 5 in order of arrival
    assert dict(zip(MASKS, found["correct"].tolist())) == {
        "task": [1, 1, 1, 1],
        "seen": [0, 1, 0, 1],
        "all": [0, 0, 0, 1],
    }


def test_after_the_first_task_only_its_classes_have_been_met():
    found = evaluate(Table(LOGITS), client_of(LABELS, TASKS, 0))
    assert found["total"].tolist() == [1, 2]
    assert dict(zip(MASKS, found["correct"].tolist())) == {"task": [1, 1], "seen": [1, 1], "all": [0, 0]}


def test_the_evaluation_is_in_evaluation_mode_without_gradients():
    method = Table(LOGITS.clone().requires_grad_())
    found = evaluate(method, client_of(LABELS, TASKS, 1))
    assert set(method.modes) == {False} and not found["correct"].requires_grad


def test_more_images_than_a_batch_are_all_counted():
    labels = np.array([4, 1] * 317)
    logits = torch.zeros(634, 6)
    logits[torch.arange(634), torch.from_numpy(labels)] = 1
    logits[[0, 250, 633]] = torch.tensor([0.0, 0, 9, 0, 0, 0])
    found = evaluate(Table(logits), client_of(labels, (Task((4, 1), (), tuple(range(634))),), 0))
    assert found["total"].tolist() == [317, 317]
    assert found["correct"][2].tolist() == [315, 316]


def test_a_real_run_is_scored_like_a_direct_count(federation, smoke):
    method, clients = federation(smoke(method="local_head"))
    client = clients[1]
    client.task = 1
    found = evaluate(method, client)
    seen = torch.tensor(client.partition.seen_classes(1, 1))
    with torch.no_grad():
        for task, part in enumerate(client.partition.tasks[1]):
            batch = client.test.batch(torch.tensor(part.test))
            logits = method.logits(client, batch)
            for row, allowed in enumerate((torch.tensor(part.classes), seen, torch.arange(14))):
                right = allowed[logits[:, allowed].argmax(1)] == batch.labels
                assert found["correct"][row, 3 * task : 3 * task + 3].sum() == right.sum()


def test_masks_only_ever_help():
    draw = torch.Generator().manual_seed(0)
    labels = np.array([4, 1, 0, 5] * 50)
    tasks = (
        Task((4, 1), (), tuple(np.flatnonzero(np.isin(labels, (4, 1))))),
        Task((0, 5), (), tuple(np.flatnonzero(np.isin(labels, (0, 5))))),
    )
    correct = evaluate(Table(torch.randn(200, 6, generator=draw)), client_of(labels, tasks, 1))["correct"]
    assert (correct[0] >= correct[1]).all() and (correct[1] >= correct[2]).all() and correct[0].sum() > correct[2].sum()


def test_accuracies_so_far_are_means_over_clients_and_tasks_not_over_images():
    one = {"correct": torch.tensor([[2, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]), "total": torch.tensor([2, 2, 1, 1])}
    other = {"correct": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]), "total": torch.tensor([2, 2, 1, 1])}
    assert accuracies_so_far({0: one, 4: other}, 2) == {"task": 62.5, "seen": 50.0, "all": 12.5}
    assert accuracies_so_far({0: one}, 2)["task"] == 50.0


class Features(Table):
    """A method whose head gives each image its row, and whose features are the images' numbers as one-hot vectors."""

    def features_of(self, client, batch):
        return torch.eye(len(self.table))[batch.index]


def test_the_second_head_is_tested_on_the_features_under_two_masks():
    client, ridge = client_of(LABELS, TASKS, 1), LOGITS.T.double()  # on these features the same scores
    found, plain = (evaluate(Features(LOGITS), client, head) for head in (ridge, None))
    assert "ridge" not in plain and all(torch.equal(found[name], value) for name, value in plain.items())
    assert torch.equal(found["ridge"], found["correct"][:2])
    assert evaluate(Features(LOGITS), client, -ridge)["ridge"].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]


def test_one_pass_serves_both_heads(federation, smoke, monkeypatch):
    method, clients = federation(smoke(method="local_lora"))
    clients[0].task, calls, suffix = 1, [], type(method.foundation).suffix
    counted = lambda self, *args, **options: calls.append(1) or suffix(self, *args, **options)
    monkeypatch.setattr(type(method.foundation), "suffix", counted)
    evaluate(method, clients[0], torch.zeros(14, method.foundation.width, dtype=torch.float64))
    assert len(calls) == 2  # one for each task


def test_the_accuracy_tensor_of_the_second_head():
    counts = [[{**found, "ridge": np.asarray(found["correct"])[:2]} for found in row] for row in COUNTS]
    assert np.array_equal(accuracy_tensor(counts, 2, "ridge"), accuracy_tensor(COUNTS, 2)[:2], equal_nan=True)
