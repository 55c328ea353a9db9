"""What the server sees of a client, and the truth beside it."""

import numpy as np
import pytest
import torch

from lscl.config import experiment
from lscl.errors import LsclError
from lscl.experiments.privacy.observed import make_gallery, public_images


def test_what_is_held_is_exactly_what_the_client_trained_on(attacked):
    observed = attacked()
    client, gallery = observed.client, observed.gallery
    mine = {image.tobytes() for image in client.train.images.images[client.train_index.numpy()]}
    found = [image.tobytes() in mine for image in gallery.inputs.images.images]
    assert gallery.held.tolist() == found and 0 < sum(found) < len(found)
    assert gallery.per_class == 24 and set(gallery.inputs.images.labels) == set(client.current.classes)


def test_the_kept_images_are_those_whose_features_travel(attacked):
    observed = attacked()
    f = observed.client.model["cnn"].eval()(
        observed.gallery.inputs.batch(observed.kept).images
    )  # what the client's CNN says of them
    assert torch.allclose(observed.up["features"] * f.shape[1], f, atol=1e-5)


def test_candidates_are_of_the_same_class_and_others_were_never_had(attacked):
    gallery = attacked().gallery
    rows = gallery.held.nonzero().squeeze(1)
    places, right = gallery.candidates(rows)
    assert torch.equal(places[torch.arange(len(rows)), right], rows)
    labels = torch.from_numpy(gallery.inputs.images.labels)
    assert (labels[places] == labels[rows][:, None]).all()
    absent = gallery.others(rows, np.random.default_rng(0))
    assert not gallery.held[absent].any() and torch.equal(labels[absent], labels[rows])


def test_the_balanced_rate_knows_its_own_and_is_one_half_by_chance(attacked):
    gallery = attacked().gallery
    codes, draw = gallery.pixels.flatten(1), np.random.default_rng(0)
    labels = torch.arange(len(gallery.classes)).repeat_interleave(gallery.per_class)
    value, _ = gallery.held_rate(codes[gallery.held], codes, labels[gallery.held], draw)
    assert value > 0.9  # one that stands on neither side of the draw may be nearer to another
    noise = torch.rand(300, codes.shape[1], generator=torch.Generator().manual_seed(0))
    value, control = gallery.held_rate(noise, codes, torch.arange(300) % 3, np.random.default_rng(1))
    assert 0.3 < control < 0.7


def test_public_images_have_no_class_of_the_client():
    config = experiment(profile="smoke")
    names = public_images(config, (0, 5, 7)).classes
    every = public_images(experiment(profile="smoke", dataset="cifar100"), ()).classes
    assert len(names) == 100 and len(every) == 200
    assert not {every[0], every[5], every[7]} & set(names)


def test_tensors_that_went_up_earlier_are_seen_too(attacked, played):
    observed = attacked("glfc")
    assert {"gradients", "holds"} <= set(observed.up)
    assert "gradients" not in played("glfc")[2].uploads[0]


def test_a_cnn_that_is_public_is_no_upper_bound(attacked):
    assert attacked("fed_lscl_ridge").true_cnn == "the public CNN"
    assert attacked().true_cnn == "true CNN (upper bound)"


def test_without_images_that_the_client_never_had_there_is_no_control(played):
    method, clients, _, _ = played()
    clients[0].task = 0
    with pytest.raises(LsclError, match="images_per_class = 6: client 0 has all 6 images of class"):
        make_gallery(method, clients[0], 6)
