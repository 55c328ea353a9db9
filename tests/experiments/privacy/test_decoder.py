"""Feature inversion, on features that are easy and on those of a client."""

import numpy as np
import torch

from lscl.experiments.privacy.decoder import align, invert_features, score_reconstructions, train_decoder


def test_a_decoder_learns_to_turn_features_back_into_images():
    draw = torch.Generator().manual_seed(0)
    features = torch.rand(256, 3, generator=draw)
    images = features[:, :, None, None].expand(-1, -1, 8, 8).contiguous()
    decoder = train_decoder(features, images, 0, "test", 60)
    before = train_decoder(features, images, 0, "test", 1)
    gap = lambda made: float((made(features) - images).square().mean().detach())
    assert gap(decoder) < 0.02 < gap(before)


def test_alignment_finds_a_turned_and_shifted_space():
    draw = torch.Generator().manual_seed(0)
    own = torch.randn(80, 6, generator=draw)
    turned = own @ torch.linalg.qr(torch.randn(6, 6, generator=draw))[0] + 1.0
    known = torch.arange(80) < 40
    found = align(turned, own, known)
    assert (found - own)[~known].norm() < 0.05 * own[~known].norm()


def test_true_images_are_found_and_images_nobody_had_are_not(attacked):
    gallery = attacked().gallery
    rows = gallery.held.nonzero().squeeze(1)
    scores = score_reconstructions(gallery.pixels[rows], rows, gallery, np.random.default_rng(0))
    assert scores["top1"] == (1.0, 0.0) and scores["psnr"][0] == 100 and scores["psnr"][1] < 40


def test_the_stolen_cnn_matches_every_kept_image(attacked):
    findings, shown = invert_features(attacked(), 3)
    matched = {one.knows: one for one in findings if one.attack == "matching"}
    true, own = matched["true CNN (upper bound)"], matched["own CNN"]
    assert true.value == 1.0 and true.by_design == 1.0 and true.never_had < 0.5 and own.value < 1.0
    assert {one.score for one in findings} == {"psnr", "ssim", "top1"}
    assert {len(images) for images in shown.values()} == {len(shown["true image"])}


def test_where_no_features_travel_there_is_nothing_to_invert(attacked):
    assert invert_features(attacked("fedavg"), 2) == ([], {})
