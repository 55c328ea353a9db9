"""What can replace O2D; in whole runs it is tested with Fed-LSCL."""

from types import SimpleNamespace

import torch

from lscl.federation.method import IMAGES, Stage
from lscl.methods.parts.fusion import Averaging, Fusion

SYSTEM = SimpleNamespace(config=SimpleNamespace(clients=3))
SHAPES = {"weight": (4, 2), "bias": (4,)}


def test_the_interface_itself_shares_nothing():
    part = Fusion(SYSTEM)
    assert not part.shares and part.aggregate({0: {}}) == {}
    assert part.upload_shapes(0, Stage(0, 0), SHAPES) == SHAPES


def test_averaging_weighs_by_images_and_serves_clients_that_sent_nothing():
    part = Averaging(SYSTEM)
    client = SimpleNamespace(current=SimpleNamespace(train=range(30)))
    sent = part.upload(client, {"weight": torch.full((4, 2), 4.0), "bias": torch.zeros(4)})
    other = {IMAGES: torch.tensor(10), "weight": torch.zeros(4, 2), "bias": torch.full((4,), 8.0)}
    assert {name: tuple(value.shape) for name, value in sent.items()} == part.upload_shapes(0, Stage(0, 0), SHAPES)
    fused = part.aggregate({0: sent, 2: other})
    assert set(fused) == {f"{k}.{name}" for k in range(3) for name in SHAPES}
    for k in range(3):
        assert torch.equal(fused[f"{k}.weight"], torch.full((4, 2), 3.0))
        assert torch.equal(fused[f"{k}.bias"], torch.full((4,), 2.0))
    assert fused["0.weight"] is not fused["1.weight"]
