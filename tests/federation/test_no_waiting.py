"""What would make a GPU wait: in a training step nothing is read back, and nothing is sent that was there before."""

from dataclasses import replace

import pytest
import torch
from far_device import FAR, FarDevice, to_far

from lscl.federation import masking, training
from lscl.federation.method import Stage
from lscl.federation.training import answer
from lscl.models import vit
from lscl.models.precision import MixedPrecision
from lscl.registry import METHODS

METHODS.load()
VARIANTS = [
    *({"method": name} for name in METHODS),
    *({"method": "fed_lscl", "continual": name} for name in ("ewc", "lwf", "replay")),
    *({"method": "fed_lscl", "collaboration": name, "auxiliary": 1.0} for name in ("static", "cnn")),
    *({"method": name, "augment": "crop_flip"} for name in ("fedavg", "glfc", "target", "mfcl")),
    *({"method": name, "prompt_batchwise": True} for name in ("l2p", "dualprompt")),
]


@pytest.fixture(autouse=True)
def nothing_sent_before():
    """Other tests use the device that plays the far one, and constants are kept for every device."""
    for kept in (vit._colours, masking._others):
        kept.cache_clear()
    yield
    for kept in (vit._colours, masking._others):
        kept.cache_clear()


@pytest.fixture
def far_client(played, smoke):
    """far_client(**values): method and first client before the second task, both on the far device."""

    def make(**values):
        method, clients, _ = played(smoke(epochs=3, **values), 2)
        client = clients[0]
        client.train, client.test = (replace(one, device=FAR) for one in (client.train, client.test))
        to_far(client.model)
        if method.foundation is not None:
            to_far(method.foundation)
        return method, client

    return make


def watched_steps(monkeypatch, device):
    """What each step of `fit` notes, from its start on: [(waits, copies)]."""
    steps = []

    class Watched(MixedPrecision):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            device.waits.clear(), device.copies.clear()

        def step(self, *arguments):
            super().step(*arguments)
            steps.append((device.waits[:], device.copies[:]))
            device.waits.clear(), device.copies.clear()

    monkeypatch.setattr(training, "MixedPrecision", Watched)
    return steps


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # the far device does copy it
@pytest.mark.parametrize("values", VARIANTS, ids=lambda values: "-".join(map(str, values.values())))
def test_a_step_reads_nothing_back_and_sends_nothing_twice(far_client, monkeypatch, values):
    method, client = far_client(**values)
    stage = Stage(1, 0)
    with FarDevice() as device:
        payload = method.broadcast(0, stage)
        steps = watched_steps(monkeypatch, device)
        monkeypatch.setattr(method, "upload", lambda client, stage: {})
        answer(method, client, stage, payload)
    assert bool(steps) == method.trains
    assert [waits for waits, _ in steps if waits] == []
    copies = [copy for _, later in steps[1:] for copy in later if copy[1].numel() > 1]
    assert [line for asynchronous, _, line in copies if not asynchronous] == []
    for line in {line for *_, line in copies}:
        sent = [tensor for _, tensor, place in copies if place == line]
        assert not all(one.shape == sent[0].shape and torch.equal(one, sent[0]) for one in sent), line


def test_the_far_device_notes_what_is_waited_for():
    with FarDevice() as device:
        x = torch.arange(6.0).to(FAR)
        assert [how for how, *_ in device.copies] == [False]
        float(x.sum()), x[x > 2], x[torch.tensor([1])], x.cpu(), x.nonzero()
        assert [what for what, _ in device.waits] == [
            "_local_scalar_dense", "index by a mask", "index of a tensor on the CPU", "_to_copy", "nonzero",
        ]  # fmt: skip
        assert (x * 2 + torch.ones(6, device=FAR)).cpu().tolist() == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize("name", ["target", "mfcl", "fedmgp"])
@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_the_servers_own_training_reads_no_number_back(played, smoke, name):
    method, clients, _ = played(smoke(method=name), 1)
    uploads = {client.id: method.upload(client, Stage(0, 1)) for client in clients}
    method.device = FAR
    if method.foundation is not None:
        to_far(method.foundation)
        method.server_images = replace(method.server_images, device=FAR)
    near_model, seen = method.new_model, method.optimised
    method.new_model = lambda client: to_far(near_model(client))
    with FarDevice() as device:
        method.aggregate(uploads, Stage(0, 1))
        method.server_end_task(0)
    assert method.optimised > seen
    assert [line for what, line in device.waits if what != "_to_copy"] == []  # results come back, decisions do not
