"""Every system at the shapes of the large profiles, on drawn ViTs and in batches of two.

The losses and the answer of every system on ViT-B/16 at 224 px with ResNet-18, and five steps of every system that
trains, with the learning rates of the profile; there the ViTs see 32 px, which leaves their widths and depth as they
are and costs a fraction.

pytest -m true_shapes runs these alone.
"""

import pytest
import timm
import torch
from drawn_vits import MOST, drawn_images, fit_watched, listed, one_client, update_share, values_at
from tests_root import note_trained

from lscl.config import experiment
from lscl.methods import METHODS

pytestmark = pytest.mark.true_shapes
BATCH = 2
VITS = {"colab": "vit_small_patch16_224", "paper": "vit_base_patch16_224"}
STEPS = 5
SIDE = 32  # pixels of the ViTs that take several steps


@pytest.fixture(scope="module")
def drawn():
    """drawn(profile, side): the profile's ViT for images of that size, drawn once."""
    made = {}

    def draw(profile, side):
        if (profile, side) not in made:
            torch.manual_seed(0)
            made[profile, side] = timm.create_model(VITS[profile], img_size=side, num_classes=0)
        return made[profile, side]

    return draw


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch, places):
    """Systems that cut the ViT at the same place share what lies in front."""
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path_factory.getbasetemp() / "true-shapes"))


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_answers_at_the_papers_shapes(name, drawn):
    method, client = one_client(values_at("paper", name), drawn("paper", 224), drawn_images(BATCH, 224))
    frozen, batch = method.foundation, client.train.batch(client.train_index)
    if frozen is not None:
        tokens = 1 if frozen.block == 12 else 197
        assert (frozen.width, frozen.depth) == (768, 12) and batch.prefix.shape == (BATCH, tokens, 768)
        assert (client.train.prefix is None) == (frozen.block == 0)
    client.model.train()
    with torch.no_grad():
        losses = [phase.loss(client, batch) for phase in method.phases(client, method.stages(0)[0])]
        client.model.eval()
        logits = method.logits(client, batch)
    assert all(loss.isfinite() and loss > 0 for loss in losses) and bool(losses) == METHODS[name].trains
    assert logits.shape == (BATCH, 2) and logits.isfinite().all()


def numbers_of(module):
    return {name: value.clone() for name, value in module.named_parameters()}


def changed(before, module):
    return {name for name, value in module.named_parameters() if not torch.equal(before[name], value)}


@pytest.mark.parametrize("name", METHODS)
def test_colab_and_paper_differ_in_the_vit_and_the_images_alone(name):
    """So the steps of a system in `paper` stand for those in `colab`; our own takes them in both."""
    one, other = (experiment(method=name, profile=profile).values_read() for profile in VITS)
    differing = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    assert differing <= {"profile", "foundation", "images_per_class", "test_images_per_class", "eval_split"}


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        (name, profile)
        for name, kind in METHODS.items()
        for profile in VITS
        if kind.trains and (profile == "paper" or kind.role == "own")
    ],
)
def test_five_steps_are_finite_and_in_proportion(name, profile, drawn, monkeypatch):
    """What a system adds to the frozen ViT is small beside it at first, and what is frozen stays as it is.

    All steps are on the same two images, so the loss falls. Without a ViT each step draws new crops of them.
    """
    vit = drawn(profile, SIDE)
    method, client = one_client(values_at(profile, name), vit, drawn_images(BATCH, SIDE))
    batch = client.train.batch(client.train_index)
    frozen = {name: p._version for name, p in vit.named_parameters()}
    features = lambda: (method.features_of(client, batch), update_share(method, client, batch) if is_own else None)
    is_own = METHODS[name].role == "own"
    for phase in map(listed, method.phases(client, method.stages(0)[0])):
        assert phase.batch == BATCH
        before, trained = numbers_of(client.model), note_trained(monkeypatch)
        losses, found = fit_watched(client, phase, (0, 1, STEPS), features)
        names = {name for name, p in client.model.named_parameters() if id(p) in trained}
        assert len(losses) == STEPS and all(loss.isfinite() for loss in losses)
        assert changed(before, client.model) == names != set()
        start = found[0][0]
        moved = {step: float((one - start).norm() / start.norm()) for step, (one, _) in found.items()}
        assert all(torch.isfinite(one).all() for one, _ in found.values())
        if METHODS[name].vit:
            assert losses[-1] < losses[0], losses
            adapts = method.foundation.block < method.foundation.depth
            assert (moved[STEPS] > 0) == adapts and all(moved[step] <= MOST[step] for step in (1, STEPS)), moved
        if is_own:
            assert all(0 < found[step][1] <= MOST[step] for step in (1, STEPS)), found
    assert frozen == {name: p._version for name, p in vit.named_parameters()}  # no number was written
    assert all(p.grad is None for p in vit.parameters())
