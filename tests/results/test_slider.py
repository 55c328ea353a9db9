"""The slider has a place for every value of lambda, and moves without a server."""

import json
import re

import pytest
import torch

from lscl.results.slider import lambda_slider

WEIGHTS = [torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]])]
RESULTS = [torch.tensor([[2.0, 2.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.0]])]


def frames(text):
    return json.loads(re.search(r"found = (\[\[.*?\]\]);", text)[1])


def test_every_value_has_its_place_and_its_distances():
    text = lambda_slider([1e-3, 1.0, 1e3], WEIGHTS, RESULTS)
    found = frames(text)
    assert [one[2] for one in found] == ["λ = 0.001", "λ = 1", "λ = 1000"]
    assert "1.00 from client 1's own generator and 0.00 from the mean" in found[0][3]
    assert "0.50 from client 1's own generator and 0.50 from the mean" in found[1][3]
    assert "0.00 from client 1's own generator and 1.00 from the mean" in found[2][3]
    rings = re.findall(r'<circle cx="([\d.-]+)" cy="([\d.-]+)" r="8"', text)
    assert len(rings) == 3 and [float(value) for value in rings[0]] == found[2][:2]


def test_one_value_is_shown_without_a_script_and_a_name_cannot_end_it():
    text = lambda_slider([1e-3, 1.0, 1e3], WEIGHTS, RESULTS, name='"><script>')
    before = text.split("<script>")[0]
    assert "<output>λ = 1</output>" in before and 'min="0" max="2" value="1"' in before and text.count("<script>") == 1


def test_as_many_results_as_values_are_needed():
    with pytest.raises(ValueError, match="shorter"):
        lambda_slider([1.0, 2.0], WEIGHTS, RESULTS[:1])
