"""The models that replace the update written per image; in whole runs they are tested with Fed-LSCL."""

import torch

from lscl.methods.parts.collaboration import cnn_alone_model, static_lora_model


def test_a_static_lora_is_a_generator_without_features(federation, smoke):
    method, _ = federation(smoke(collaboration="static"))
    one, other = (static_lora_model(method, k) for k in range(2))
    assert list(one) == ["generator", "head"]
    assert one["generator"].weight.shape == (512, 0) and one["generator"].bias.shape == (512,)
    assert one["head"].weight.shape == (14, 32)
    assert not torch.equal(one["head"].weight, other["head"].weight)


def test_all_clients_start_from_the_same_static_lora(federation, smoke):
    _, clients = federation(smoke(collaboration="static"))
    biases = [client.model["generator"].bias for client in clients]
    assert biases[0].abs().max() > 0 and all(torch.equal(bias, biases[0]) for bias in biases)


def test_the_cnn_alone_has_its_own_head_and_no_generator(federation, smoke):
    method, _ = federation(smoke(collaboration="cnn"))
    one, other = (cnn_alone_model(method, k) for k in range(2))
    assert list(one) == ["cnn", "head"] and one["head"].weight.shape == (14, 16)
    assert not torch.equal(one["head"].weight, other["head"].weight)
