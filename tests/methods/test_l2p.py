"""FedAvg + L2P."""

import pytest
import torch

from lscl.errors import LsclError
from lscl.federation.loop import InProcess, federate
from lscl.federation.method import Stage
from lscl.federation.training import answer


@pytest.fixture
def ready(federation, smoke):
    """ready(**values): the method and a client in its first task that has received the server's payload."""

    def make(**values):
        method, clients = federation(smoke(method="l2p", **values))
        client, stage = clients[0], Stage(0, 0)
        client.task = 0
        method.receive(client, method.broadcast(0, stage), stage)
        return method, client

    return make


def test_the_payload_has_the_size_of_the_formula(federation, smoke):
    method, clients = federation(smoke(method="l2p", l2p_pool=7, l2p_length=3, l2p_top_k=2))
    down = 4 * (7 * 3 * 32 + 7 * 32 + 32 * 14 + 14)
    for report in federate(method, InProcess(method, clients)):
        assert report.bytes_up == [down + 8] * 3
        assert report.bytes_down == [down * (2 if report.scores else 1)] * 3


def test_each_image_gets_the_prompts_of_its_nearest_keys(ready):
    method, client = ready(l2p_pool=6, l2p_top_k=2)
    batch = client.train.batch(client.train_index[:5])
    features = method.foundation.feature(batch.last_token)
    with torch.no_grad():
        client.model["pool"]["key"][4] = features[2] * 3  # parallel: cosine 1
        scores, chosen = method.choose_prompts(client, batch)
    assert scores[2, 4] == pytest.approx(1, abs=1e-6) and int(chosen[2, 0]) == 4
    expected = torch.nn.functional.cosine_similarity(features[:, None], client.model["pool"]["key"][None], dim=2)
    assert torch.allclose(scores, expected, atol=1e-6) and torch.equal(chosen, expected.topk(2).indices)


def test_only_the_pull_moves_the_keys(ready):
    for pull, moved in ((0.0, False), (0.1, True)):
        method, client = ready(l2p_pull=pull)
        method.loss(client, client.train.batch(client.train_index[:6])).backward()
        gradient = client.model["pool"]["key"].grad
        assert (gradient is not None and bool((gradient != 0).any())) is moved


def test_the_pull_raises_the_similarity_to_the_chosen_keys(federation, smoke):
    before, after = [], []
    method, clients = federation(smoke(method="l2p", epochs=3, lr=1e-2))
    client, stage = clients[0], Stage(0, 0)
    client.task = 0
    method.receive(client, method.broadcast(0, stage), stage)
    batch = client.train.batch(client.train_index)
    for found in (before, after):
        with torch.no_grad():
            scores, chosen = method.choose_prompts(client, batch)
        found.append(float(scores.gather(1, chosen).mean()))
        answer(method, client, stage, method.broadcast(0, stage))
    assert after[0] > before[0] + 0.1


def test_prompts_stand_at_the_position_of_cls_between_cls_and_the_patches(ready):
    method, client = ready(l2p_pool=1, l2p_top_k=1, l2p_length=2)
    batch = client.train.batch(client.train_index[:3])
    prompt, table = client.model["pool"]["prompt"][0], method.foundation.vit.pos_embed
    with torch.no_grad():
        tokens = torch.cat([batch.prefix[:, :1], (prompt + table[:, :1]).expand(3, 2, 32), batch.prefix[:, 1:]], dim=1)
        for block in method.foundation.vit.blocks:
            tokens = block(tokens)
        expected = client.model["head"](method.foundation.vit.norm(tokens)[:, 1:3].mean(1))
        assert torch.allclose(method.logits(client, batch), expected, atol=1e-5)


def test_a_vote_of_the_batch_gives_all_images_the_same_prompts(ready):
    method, client = ready(prompt_batchwise=True)
    chosen = method.choose_prompts(client, client.train.batch(client.train_index[:8]))[1]
    assert (chosen == chosen[0]).all() and len(set(chosen[0].tolist())) == 5


def test_more_prompts_than_the_pool_has_are_refused(federation, smoke, one_line):
    with pytest.raises(LsclError) as caught:
        federation(smoke(method="l2p", l2p_pool=3))
    one_line(caught, "l2p_top_k = 5", "l2p_pool = 3")
