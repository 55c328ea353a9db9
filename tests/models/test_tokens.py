"""Arrays of tokens in parts, each with its digest."""

import numpy as np
import pytest

from lscl.errors import LsclError
from lscl.models import tokens
from lscl.models.tokens import ABOUT, DATA, PartDigests, StoredTokens, rows_of_part

SHAPE = (10, 3, 4)


@pytest.fixture
def array():
    return np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)


@pytest.fixture
def stored(tmp_path, array, monkeypatch):
    """An array in parts of four rows, written in blocks that fit no part."""
    monkeypatch.setattr(tokens, "PART", 4 * array[0].nbytes)
    monkeypatch.setattr(tokens, "SMALL", 0)
    digests = PartDigests(SHAPE, array.dtype)
    for start in range(0, len(array), 3):
        digests.add(array[start : start + 3])
    np.save(tmp_path / DATA, array)
    digests.save(tmp_path)
    return tmp_path


def damage(folder, row):
    changed = np.load(folder / DATA, mmap_mode="r+")
    changed[row, 0, 0] += 1
    changed.flush()


def test_a_part_has_whole_rows_and_at_least_one(monkeypatch):
    monkeypatch.setattr(tokens, "PART", 100)
    assert rows_of_part((9, 6), np.dtype(np.float32)) == 4
    assert rows_of_part((9, 600), np.dtype(np.float32)) == 1


def test_rows_are_read_in_the_order_that_is_asked_for(stored, array):
    found = StoredTokens(stored)
    assert (found.shape, found.dtype, found.nbytes, len(found)) == (SHAPE, array.dtype, array.nbytes, 10)
    for index in (np.array([9, 0, 9, 3]), slice(2, 9), [5]):
        assert np.array_equal(found[index], array[index])
    assert np.array_equal(np.asarray(found), array)


def test_only_the_parts_that_are_read_are_compared(stored):
    damage(stored, 9)
    found = StoredTokens(stored)
    assert found.damaged([0, 1]) == [] and len(found[[0, 7]]) == 2 and (stored / ABOUT).exists()
    with pytest.raises(LsclError, match="part 3 of 3 is not as it was written"):
        found[[0, 8]]
    assert not (stored / ABOUT).exists()  # nobody takes it for a finished one


def test_digests_of_another_number_of_parts_are_refused(stored, monkeypatch):
    monkeypatch.setattr(tokens, "PART", 2**20)
    with pytest.raises(ValueError, match="other parts"):
        StoredTokens(stored)


def test_a_small_array_is_compared_when_it_is_opened(stored, monkeypatch):
    damage(stored, 0)
    monkeypatch.setattr(tokens, "SMALL", 2**20)
    with pytest.raises(ValueError, match="digest"):
        StoredTokens(stored)
