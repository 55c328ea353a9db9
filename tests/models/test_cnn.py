"""The small CNNs."""

import pytest
import torch
from torch import nn

from lscl.errors import LsclError
from lscl.models.cnn import MINI_FIVE, TORCHVISION, small_cnn

NAMES = ("tiny", "small", *TORCHVISION, *MINI_FIVE)


@pytest.mark.parametrize("name", NAMES)
def test_every_cnn_gives_m_features_of_a_32_pixel_image(smoke, name):
    cnn = small_cnn(smoke(cnn=name, features=24, image_size=32), 0).eval()
    with torch.no_grad():
        f = cnn(torch.randn(3, 3, 32, 32))
    assert f.shape == (3, 24) and f.isfinite().all()
    assert isinstance(cnn.project, nn.Linear) and cnn.project.out_features == 24


@pytest.mark.parametrize(("name", "width"), [("tiny", 16), ("small", 128), ("resnet18", 512)])
def test_nothing_is_projected_where_the_width_fits(smoke, name, width):
    assert isinstance(small_cnn(smoke(cnn=name, features=width), 0).project, nn.Identity)
    assert isinstance(small_cnn(smoke(cnn=name, features=width + 1), 0).project, nn.Linear)


def test_features_have_mean_0_and_variance_1_if_normalised(smoke):
    images = 5 * torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        f = small_cnn(smoke(feature_norm=True), 0)(images)
        raw = small_cnn(smoke(feature_norm=False), 0)(images)
    assert f.mean(1).abs().max() < 1e-5 and (f.var(1, correction=0) - 1).abs().max() < 0.02
    assert raw.mean(1).abs().max() > 0.05


def test_several_cnns_are_dealt_out_in_turn(smoke):
    config = smoke(cnn="tiny, small", features=16)
    widths = [small_cnn(config, client).cnn.features for client in range(4)]
    assert widths == [16, 128, 16, 128]


@pytest.mark.parametrize(("name", "near"), [("resnet81", "'resnet18'"), ("tiny,smal", "'small'")])
def test_an_unknown_cnn_gets_the_nearest_one(smoke, name, near, one_line):
    with pytest.raises(LsclError) as caught:
        small_cnn(smoke(cnn=name), 1)
    one_line(caught, "unknown cnn", near, "vgg16_bn")


@pytest.mark.parametrize(("size", "stride"), [(32, 1), (64, 1), (224, 2)])
def test_resnet18_keeps_its_first_stride_for_large_images_only(smoke, size, stride):
    cnn = small_cnn(smoke(cnn="resnet18", image_size=size), 0).cnn
    assert cnn.conv1.stride == (stride, stride) and isinstance(cnn.maxpool, nn.MaxPool2d) == (stride == 2)


@pytest.mark.parametrize("name", ["tiny", "small", "resnet18"])
def test_every_parameter_of_the_cnn_gets_a_gradient(smoke, name):
    cnn = small_cnn(smoke(cnn=name, features=24), 0)
    cnn(torch.randn(4, 3, 16, 16))[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in cnn.named_parameters() if "bn" not in n)
