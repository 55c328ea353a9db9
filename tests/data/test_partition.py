"""Who gets which images when."""

import json

import numpy as np
import pytest

from lscl.config import experiment
from lscl.data.partition import Census, Partition, Task, check_partition, partition
from lscl.data.store import Dataset, ImageSet, digest_of
from lscl.errors import LsclError


@pytest.fixture(scope="module")
def hundred():
    """100 classes of 20 training and 4 test images, one pixel each."""

    names = tuple(f"class{label}" for label in range(100))

    def split(count):
        return ImageSet(np.zeros((100 * count, 1, 1, 3), np.uint8), np.repeat(np.arange(100), count), names)

    return Dataset("hundred", split(20), split(4))


def paper(**values):
    """5 clients, 5 tasks of 8 classes, 15 private and 25 public ones."""
    return experiment(**{"profile": "mini", "dataset": "cifar100", **values})


def stream(made, client):
    return [label for task in made.tasks[client] for label in task.classes]


@pytest.mark.parametrize("split", ["official", "holdout"])
def test_no_image_is_on_two_clients_or_in_two_tasks(hundred, split):
    made = partition(paper(eval_split=split), hundred)
    used = [image for client in made.tasks for task in client for image in task.train]
    assert len(used) == len(set(used)) > 0


def test_every_client_has_5_tasks_of_8_classes(hundred):
    made = partition(paper(), hundred)
    assert len(made.tasks) == 5
    for client in range(5):
        assert [len(task.classes) for task in made.tasks[client]] == [8] * 5
        assert len(set(stream(made, client))) == 40


def test_a_private_class_is_on_one_client_and_a_public_one_on_all(hundred):
    made = partition(paper(), hundred)
    holders = {label: [k for k in range(5) if label in stream(made, k)] for label in range(100)}
    assert len(made.public) == 25 and all(holders[label] == [0, 1, 2, 3, 4] for label in made.public)
    private = [holders[label] for label in range(100) if label not in made.public]
    assert all(len(one) == 1 for one in private) and [private.count([k]) for k in range(5)] == [15] * 5


def test_public_classes_come_at_each_clients_own_time(hundred):
    made = partition(paper(), hundred)
    when = np.array(
        [
            [next(t for t, task in enumerate(made.tasks[k]) if label in task.classes) for k in range(5)]
            for label in made.public
        ]
    )
    assert (np.ptp(when, axis=1) > 0).mean() > 0.8  # all five at the same time: 1 in 625


def test_images_belong_to_the_classes_of_their_task(hundred):
    made = partition(paper(), hundred)
    for client in made.tasks:
        for task in client:
            assert (
                set(hundred.train.labels[list(task.train)])
                == set(hundred.test.labels[list(task.test)])
                == set(task.classes)
            )


def test_the_shares_of_a_class_use_all_of_its_images(hundred):
    for dirichlet in (0.05, 1.0, 100.0):
        made = partition(paper(dirichlet=dirichlet), hundred)
        counts = made.counts(hundred.train.labels, 100)
        assert counts.shape == (5, 5, 100) and counts.sum((0, 1)).tolist() == [20] * 100
        assert counts.sum(1)[:, list(made.public)].min() >= 1


def test_the_concentration_makes_the_shares_more_even(hundred):
    def spread(dirichlet):
        made = partition(paper(dirichlet=dirichlet), hundred)
        return made.counts(hundred.train.labels, 100).sum(1)[:, list(made.public)].std(0).mean()

    assert spread(0.05) > 1.3 * spread(1.0) > 1.3**2 * spread(1000.0)


def test_counts_are_images_by_client_task_and_class():
    made = Partition(
        ((Task((1,), (0, 3), ()), Task((0,), (2,), ())), (Task((2,), (1,), ()), Task((1,), (4,), ()))), (1,), False
    )
    assert made.counts(np.array([1, 2, 0, 1, 1]), 3).tolist() == [[[0, 2, 0], [1, 0, 0]], [[0, 0, 1], [0, 1, 0]]]


def test_seen_is_every_class_so_far_in_order_of_arrival(hundred):
    made = partition(paper(), hundred)
    assert made.seen_classes(2, 0) == made.tasks[2][0].classes
    assert made.seen_classes(2, 2) == tuple(stream(made, 2)[:24])


def test_official_test_images_are_those_of_the_tasks_classes(hundred):
    made = partition(paper(), hundred)
    assert not made.holdout
    for task in made.tasks[3]:
        assert list(task.test) == np.flatnonzero(np.isin(hundred.test.labels, task.classes)).tolist()


def test_holdout_takes_30_percent_of_the_clients_own_images_out_of_training(hundred):
    config = paper(eval_split="holdout")
    made, official = partition(config, hundred), partition(paper(), hundred)
    assert made.holdout
    labels = hundred.train.labels
    train = [image for client in made.tasks for task in client for image in task.train]
    test = [image for client in made.tasks for task in client for image in task.test]
    assert not set(train) & set(test) and len(set(test)) == len(test) and sorted(train + test) == list(range(2000))
    assert abs(len(test) / 2000 - 0.3) < 0.05
    for client, of_client in zip(made.tasks, official.tasks):
        for task, other in zip(client, of_client):
            assert task.classes == other.classes
            own = np.bincount(labels[[*task.train, *task.test]], minlength=100)
            held = np.bincount(labels[list(task.test)], minlength=100)
            for label in task.classes:
                assert held[label] == max(1, round(0.3 * own[label])) and own[label] > held[label]


def test_the_same_seed_gives_the_same_partition(hundred):
    assert partition(paper(), hundred) == partition(paper(), hundred)
    assert partition(paper(), hundred).digest == partition(paper(method="local_head", rank=9, rounds=1), hundred).digest


def test_another_seed_gives_another_partition(hundred):
    made = [partition(paper(seed=seed), hundred) for seed in (42, 1999, 2024)]
    assert len({one.digest for one in made}) == 3
    assert len({one.public for one in made}) == 3 and len({tuple(stream(one, 0)) for one in made}) == 3
    assert len({one.tasks[0][0].train for one in made}) == 3


def test_another_seed_holds_out_other_images(hundred):
    held = []
    for seed in (42, 1999):
        made = partition(paper(seed=seed, clients=1, private_classes=40, eval_split="holdout"), hundred)
        test = [image for task in made.tasks[0] for image in task.test]
        held.append(
            {
                label: [image for image in test if hundred.train.labels[image] == label]
                for label in made.seen_classes(0, 4)
            }
        )
    both = set(held[0]) & set(held[1])
    assert both and all(held[0][label] != held[1][label] for label in both)


def test_only_private_classes_leave_nothing_public(hundred):
    made = partition(paper(clients=2, private_classes=40), hundred)
    assert made.public == () and not set(stream(made, 0)) & set(stream(made, 1))


def test_more_private_classes_than_a_client_can_meet_are_cut(hundred):
    assert partition(paper(clients=2, private_classes=99), hundred) == partition(
        paper(clients=2, private_classes=40), hundred
    )


def test_only_public_classes_go_to_everybody(hundred):
    made = partition(paper(private_classes=0), hundred)
    assert len(made.public) == 40 and all(sorted(stream(made, k)) == sorted(made.public) for k in range(5))


def test_too_many_classes_are_one_line(hundred, one_line):
    with pytest.raises(LsclError) as caught:
        partition(paper(clients=6), hundred)
    one_line(caught, "6 clients x 15 private + 25 public classes need 115 classes, but hundred has 100")


@pytest.mark.parametrize(("split", "images"), [("official", 4), ("holdout", 9)])
def test_too_few_images_of_a_public_class_are_one_line(toy, split, images, one_line):
    values = dict(clients=5, tasks=2, classes_per_task=2, private_classes=2, eval_split=split)
    assert partition(paper(**values), toy(12, images + 1))
    with pytest.raises(LsclError) as caught:
        partition(paper(**values), toy(12, images))
    one_line(caught, f"has {images} training images, too few for 5 clients")


def test_a_private_class_that_leaves_nothing_to_train_on_is_one_line(toy, one_line):
    with pytest.raises(LsclError) as caught:
        partition(paper(clients=2, tasks=2, classes_per_task=2, private_classes=4, eval_split="holdout"), toy(8, 1))
    one_line(caught, "leaves client 0 without training or test images")


def test_a_class_without_test_images_is_one_line(toy, one_line):
    data = toy(8, 4)
    data = Dataset("toy", data.train, data.test.subset(np.flatnonzero(data.test.labels != 5)))
    with pytest.raises(LsclError) as caught:
        partition(paper(clients=2, tasks=2, classes_per_task=2, private_classes=4), data)
    one_line(caught, "class 'class05' leaves client", "without training or test images")


def test_min_share_is_kept(hundred):
    made = partition(paper(min_share=0.1), hundred)
    counts = made.counts(hundred.train.labels, 100).sum(1)[:, list(made.public)]
    assert counts.min() >= 2  # 1 for everybody and at least a tenth of the other 15


@pytest.mark.parametrize("values", [{"min_share": 0.5}, {"min_share": 0.19, "dirichlet": 0.01}])
def test_a_min_share_that_cannot_be_drawn_is_one_line(hundred, values, one_line):
    with pytest.raises(LsclError) as caught:
        partition(paper(**values), hundred)
    one_line(caught, f"min_share = {values['min_share']}", "5 clients")


def test_the_saved_file_has_the_index_lists_and_their_digest(hundred, tmp_path):
    made = partition(paper(), hundred)
    made.save(tmp_path / "deep" / "partition.json")
    saved = json.loads((tmp_path / "deep" / "partition.json").read_text(encoding="utf-8"))
    digest = saved.pop("digest")
    assert digest == made.digest == digest_of(json.dumps(saved, sort_keys=True).encode())[:16]
    assert saved["tasks"][4][2]["train"] == list(made.tasks[4][2].train) and saved["public"] == list(made.public)


def test_an_image_dealt_out_twice_is_noticed(one_line):
    config = paper(clients=2, tasks=1, classes_per_task=1, private_classes=1)
    with pytest.raises(LsclError) as caught:
        check_partition(Partition(((Task((0,), (0, 1), (0,)),), (Task((1,), (1, 2), (1,)),)), (), False), config)
    one_line(caught, "an image was dealt out twice")
    with pytest.raises(LsclError) as caught:
        check_partition(Partition(((Task((0,), (0, 1), (1,)),), (Task((1,), (2,), (3,)),)), (), True), config)
    one_line(caught, "an image was dealt out twice")


def test_a_class_that_comes_twice_is_noticed(one_line):
    config = paper(clients=1, tasks=2, classes_per_task=1, private_classes=2)
    with pytest.raises(LsclError) as caught:
        check_partition(Partition(((Task((0,), (0,), ()), Task((0,), (1,), ())),), (), False), config)
    one_line(caught, "client 0 has 1 classes in 2 tasks")


@pytest.mark.parametrize("split", ["official", "holdout"])
def test_a_census_counts_every_clients_images(toy, split):
    data = toy(classes=14, train=8)
    made = partition(experiment(profile="smoke", private_classes=2, eval_split=split), data)
    census, tested = Census.count(made, data), data.train if made.holdout else data.test
    for client, stream in enumerate(made.tasks):
        for task, part in enumerate(stream):
            assert census.images(client, task) == len(part.train)
            assert census.images_so_far(client, task) == sum(len(one.train) for one in stream[: task + 1])
            shown = np.concatenate([tested.labels[list(one.test)] for one in stream[: task + 1]])
            assert census.test_images_so_far(client, task).tolist() == [
                (shown == label).sum() for label in made.seen_classes(client, task)
            ]
