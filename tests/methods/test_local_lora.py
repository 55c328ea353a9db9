"""The control with a static LoRA: what it has beside the head. What both controls promise is in test_local_head.py."""

import torch

from lscl.federation.method import Stage
from lscl.federation.training import answer


def test_the_static_lora_starts_as_the_frozen_vit(federation, smoke):
    method, clients = federation(smoke(method="local_lora"))
    batch = clients[0].train.batch(torch.arange(6))
    head = clients[0].model["head"]
    assert torch.allclose(method.logits(clients[0], batch), head(method.foundation.suffix(batch.prefix)), atol=1e-6)
    assert clients[0].model["lora"].B.abs().max() == 0 and clients[0].model["lora"].A.abs().max() > 0


def test_the_static_lora_has_the_place_rank_and_scale_of_the_written_one(federation, smoke):
    method, clients = federation(smoke(method="local_lora", block=2, rank=3, lora_alpha=12.0))
    update = clients[0].model["lora"]()
    assert (
        update.A.shape == (3, 32) and update.B.shape == (96, 3) and update.scale == 4.0 and method.foundation.block == 2
    )
    written = federation(smoke(method="fed_lscl", block=2, rank=3, lora_alpha=12.0))
    assert written[1][0].model["generator"].scale == 4.0 and written[0].foundation.block == 2


def test_training_moves_a_and_b_and_the_head(federation, smoke):
    method, clients = federation(smoke(method="local_lora"))
    before = {key: value.clone() for key, value in clients[0].model.state_dict().items()}
    answer(method, clients[0], Stage(0, 0), {})
    moved = {key for key, value in clients[0].model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"lora.A", "lora.B", "head.weight", "head.bias"}


def test_head_and_lora_have_their_own_learning_rates(federation, smoke):
    method, clients = federation(smoke(method="local_lora", lr=0.5, lr_lora=0.25))
    (phase,) = method.phases(clients[0], Stage(0, 0))
    rates = {id(p): group["lr"] for group in phase.groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in clients[0].model.named_parameters()} == {
        "lora.A": 0.25,
        "lora.B": 0.25,
        "head.weight": 0.5,
        "head.bias": 0.5,
    }
