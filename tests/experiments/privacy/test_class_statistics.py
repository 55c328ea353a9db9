"""What sums of frozen features tell."""

import pytest
import torch

from lscl.experiments.privacy.class_statistics import class_means_sent, frozen_features, read_class_statistics


@pytest.mark.parametrize("name", ["fed_ncm", "fed_ridge", "pilora"])
def test_the_means_in_a_payload_are_those_of_the_clients_images(attacked, name):
    observed = attacked(name)
    gallery = observed.gallery
    codes = frozen_features(observed, gallery.inputs)
    payload, means = class_means_sent(observed, codes.shape[1])
    labels = torch.from_numpy(gallery.inputs.images.labels)
    true = torch.stack([codes[gallery.held & (labels == label)].mean(0) for label in gallery.classes])
    assert payload in ("sums", "gram", "means")
    assert torch.allclose(means, true, atol=0.02 if name == "pilora" else 1e-4)  # its LoRA has moved the features


def test_a_class_of_one_image_is_its_feature(attacked):
    findings = read_class_statistics(attacked("fed_ncm"), 2)
    matched = {one.knows: one for one in findings if one.attack == "matching"}
    one = matched["a class of one image (upper bound)"]
    assert one.value == 1.0 and one.by_design == 1.0 and one.never_had < 0.5
    assert matched["nothing"].value < 1.0


def test_few_images_in_a_gram_matrix_are_all_told(attacked):
    found = {one.knows: one for one in read_class_statistics(attacked("fed_ridge"), 2) if one.score == "auc"}
    (knows,) = [knows for knows in found if "images" in knows]
    assert "18 images, 32 features" in knows and found[knows].value > 0.95
    assert all(0.2 < one.never_had < 0.8 and one.by_design == 1.0 for one in found.values())


def test_other_payloads_have_no_class_statistics(attacked):
    assert read_class_statistics(attacked(), 2) == [] and read_class_statistics(attacked("fedavg"), 2) == []
