"""Which images a client keeps."""

from types import SimpleNamespace

import numpy as np
import torch

from lscl.methods.parts.buffer import first_of_each_class, herding, lowest_loss, random_per_class, sample_buffer

INDEX = torch.tensor([10, 11, 12, 13, 14, 15, 16])
LABELS = torch.tensor([7, 2, 7, 7, 2, 7, 9])
LOSSES = torch.tensor([0.5, 0.1, 0.2, 0.9, 0.05, 0.2, 3.0])


def test_the_lowest_losses_of_every_class_are_kept_class_by_class():
    assert lowest_loss(INDEX, LABELS, LOSSES, 2).tolist() == [14, 11, 12, 15, 16]
    assert lowest_loss(INDEX, LABELS, LOSSES, 1).tolist() == [14, 12, 16]


def test_a_class_with_fewer_images_is_kept_whole():
    assert sorted(lowest_loss(INDEX, LABELS, LOSSES, 20).tolist()) == INDEX.tolist()


def test_equal_losses_are_taken_in_the_order_of_position():
    kept = lowest_loss(torch.arange(100), torch.zeros(100, dtype=torch.int64), torch.zeros(100), 7)
    assert kept.tolist() == list(range(7))


def test_no_place_and_no_images_keep_nothing():
    none = lowest_loss(INDEX, LABELS, LOSSES, 0)
    assert none.shape == (0,) and none.dtype == torch.int64
    assert lowest_loss(INDEX[:0], LABELS[:0], LOSSES[:0], 3).shape == (0,)


def features(seed=0):
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))


def test_herding_equals_a_search_by_hand():
    f = torch.nn.functional.normalize(features(), dim=1).numpy().astype(np.float64)
    own = [0, 2, 3, 5]  # class 7
    chosen = []
    for k in range(1, 4):
        gaps = {i: np.linalg.norm(f[own].mean(0) - (f[chosen].sum(0) + f[i]) / k) for i in own if i not in chosen}
        chosen.append(min(gaps, key=gaps.get))
    kept = herding(INDEX, LABELS, features(), 3)
    assert kept[2:5].tolist() == INDEX[chosen].tolist()
    assert sorted(kept[:2].tolist()) == [11, 14] and kept[5:].tolist() == [16]


def test_herding_takes_no_image_twice_and_shorter_lists_begin_longer_ones():
    draw = torch.Generator().manual_seed(1)
    index, labels, f = torch.arange(100, 130), torch.arange(30) % 2, torch.randn(30, 4, generator=draw)
    f[::3] = f[0]  # many equal features
    kept = herding(index, labels, f, 15)
    assert sorted(kept.tolist()) == list(range(100, 130))
    for per_class in range(15):
        lists = [kept[:15][:per_class], kept[15:][:per_class]]
        assert torch.equal(herding(index, labels, f, per_class), torch.cat(lists))
        assert torch.equal(
            first_of_each_class(kept, torch.cat([labels[::2], labels[1::2]]), per_class), torch.cat(lists)
        )


def test_herding_does_not_see_the_length_of_the_features():
    scaled = features() * torch.tensor([1.0, 5.0, 0.1, 2.0, 1.0, 7.0, 3.0])[:, None]
    assert torch.equal(herding(INDEX, LABELS, features(), 2), herding(INDEX, LABELS, scaled, 2))


def test_random_images_are_drawn_once_each_from_the_generator():
    draw = lambda seed, count: random_per_class(INDEX, LABELS, count, torch.Generator().manual_seed(seed)).tolist()
    assert draw(0, 2) == draw(0, 2) and len({tuple(draw(seed, 2)) for seed in range(9)}) > 3
    kept = draw(0, 2)
    assert len(kept) == 5 and set(kept[:2]) == {11, 14} and set(kept[2:4]) <= {10, 12, 13, 15} and kept[4] == 16
    assert sorted(draw(0, 99)) == INDEX.tolist()


def test_no_place_and_no_images_keep_nothing_however_they_are_chosen():
    for count, n in ((0, 7), (3, 0)):
        parts = (INDEX[:n], LABELS[:n])
        assert herding(*parts, features()[:n], count).shape == (0,)
        assert (
            random_per_class(*parts, count, torch.Generator()).shape == first_of_each_class(*parts, count).shape == (0,)
        )
        assert herding(*parts, features()[:n], count).dtype == torch.int64


def test_rows_of_the_buffer_are_drawn_by_the_rounds_generator():
    draw = lambda seed: torch.Generator().manual_seed(seed)
    client = lambda seed: SimpleNamespace(state={"buffer": INDEX}, scratch={"replay": draw(seed)})
    assert torch.equal(sample_buffer(client(3), 4), torch.randint(7, (4,), generator=draw(3)))
    assert not torch.equal(sample_buffer(client(3), 7), sample_buffer(client(4), 7))
    assert len(sample_buffer(client(3), 100)) == 7
