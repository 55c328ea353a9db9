"""Forward and backward of every system at the paper's shapes: ViT-B/16, ResNet-18, 224 px, drawn weights, a batch of 2.

pytest -m true_shapes runs these alone.
"""

import numpy as np
import pytest
import torch

from lscl.config import experiment
from lscl.data.partition import partition
from lscl.data.store import Dataset, ImageSet
from lscl.experiments.run import read_inputs
from lscl.federation.client import Client
from lscl.methods import METHODS
from lscl.models.vit import FrozenViT, architecture

pytestmark = pytest.mark.true_shapes
BATCH = 2
SIZE = {
    "profile": "paper",
    "dataset": "imagenet_r",
    "eval_split": "official",
    "clients": 1,
    "tasks": 1,
    "classes_per_task": 2,
    "private_classes": 2,
}


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return architecture("vit_base_patch16_224")


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0)
    return ImageSet(draw.integers(0, 256, (BATCH, 224, 224, 3), np.uint8), np.arange(BATCH), ("a", "b"))


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """Systems that cut the ViT at the same place share what lies in front."""
    return tmp_path_factory.mktemp("true-shapes")


@pytest.mark.parametrize("name", METHODS)
def test_forward_and_backward_at_the_papers_shapes(name, vit, images, monkeypatch, own_cache):
    monkeypatch.setenv("LSCL_CACHE", str(own_cache))
    config, kind, device = experiment(method=name, **SIZE), METHODS[name], torch.device("cpu")
    cut = kind.cut(config) if kind.cut(config) is not None else len(vit.blocks)
    frozen = FrozenViT(vit, cut, (0.5,) * 3, (0.5,) * 3) if kind.vit else None
    method, both = kind(config, frozen, len(images.classes)), read_inputs(kind, frozen, images, device)
    client = Client(
        0, method.new_model(0), partition(config, Dataset("drawn", images, images)), both, both, config.seed, task=0
    )
    if kind.vit:
        shape = both.batch(torch.arange(BATCH)).prefix.shape
        assert (frozen.width, frozen.depth) == (768, 12) and shape == (BATCH, 1 if frozen.block == 12 else 197, 768)
        assert (both.prefix is None) == (frozen.block == 0)
    stage, batch = method.stages(0)[0], client.train.batch(client.train_index)
    method.start_task(client)
    method.receive(client, method.broadcast(0, stage), stage)
    client.model.train()
    for phase in method.phases(client, stage):
        loss = phase.loss(client, batch)
        loss.backward()
        trained = [p for group in phase.groups for p in group["params"]]
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in trained if p.grad is not None)
        assert sum(float(p.grad.abs().sum()) for p in trained if p.grad is not None) > 0
    client.model.eval()
    with torch.no_grad():
        logits = method.logits(client, batch)
    assert logits.shape == (BATCH, 2) and logits.isfinite().all()
