"""Prompts and their selection."""

import pytest
import torch

from lscl.methods.parts.prompts import choose_keys, cosine_to_keys, insert_prompts
from lscl.models.vit import foundation


def test_similarity_is_the_cosine():
    query, keys = torch.tensor([[3.0, 4.0], [0.0, -2.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0], [6.0, 8.0]])
    assert torch.allclose(cosine_to_keys(query, keys), torch.tensor([[0.6, 0.8, 1.0], [0.0, -1.0, -0.8]]))


def test_each_sample_gets_its_own_most_similar_keys():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.2, 0.7]])
    assert choose_keys(scores, 2, batchwise=False).tolist() == [[1, 2], [0, 2]]
    assert choose_keys(scores[[1, 0]], 2, batchwise=False).tolist() == [[0, 2], [1, 2]]
    assert choose_keys(scores[1:], 2, batchwise=False).tolist() == [[0, 2]]  # whatever else is in the batch


def test_batchwise_all_samples_get_what_most_of_them_chose():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.2, 0.7], [0.0, 0.1, 0.9]])
    assert choose_keys(scores, 1, batchwise=False)[:, 0].tolist() == [1, 0, 2]
    votes = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.1, 0.9], [0.8, 0.0, 0.1]])
    assert choose_keys(votes, 1, batchwise=True).tolist() == [[0], [0], [0]]
    assert sorted(choose_keys(scores, 2, batchwise=True)[0].tolist()) in ([0, 2], [1, 2])


@pytest.fixture(scope="module")
def tiny():
    return foundation("tiny", 0)


def test_prompts_stand_between_cls_and_the_patches_at_the_position_of_cls(tiny):
    z, prompts = torch.randn(2, tiny.tokens, 32), torch.randn(3, 32)
    out = insert_prompts(tiny, z, prompts)
    assert out.shape == (2, 3 + tiny.tokens, 32)
    assert torch.equal(out[:, 0], z[:, 0]) and torch.equal(out[:, 4:], z[:, 1:])
    assert torch.allclose(out[:, 1:4], (prompts + tiny.vit.pos_embed[0, 0]).expand(2, -1, -1))


def test_prompts_may_differ_per_sample(tiny):
    z, prompts = torch.randn(2, tiny.tokens, 32), torch.randn(2, 3, 32)
    out = insert_prompts(tiny, z, prompts)
    for sample in range(2):
        assert torch.equal(out[sample], insert_prompts(tiny, z[sample : sample + 1], prompts[sample])[0])


def test_the_prompts_get_a_gradient_and_change_the_output(tiny):
    z, prompts = torch.randn(2, tiny.tokens, 32), torch.randn(3, 32, requires_grad=True)
    out = tiny.suffix(insert_prompts(tiny, z, prompts))
    assert (out - tiny.suffix(z)).abs().max() > 1e-4
    out[:, 0].sum().backward()
    assert (prompts.grad != 0).any(1).all()
