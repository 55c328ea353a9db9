"""The small CNNs."""

import pytest
import torch
from torch import nn

from lscl.errors import LsclError
from lscl.models import cnn
from lscl.models.cnn import (
    MINI_FIVE,
    TORCHVISION,
    check_cnns,
    from_unit_range,
    small_cnn,
    to_cnn_input,
    to_unit_range,
)

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
        f = small_cnn(smoke(), 0)(images)
        raw = small_cnn(smoke(), 0, norm=False)(images)
    assert f.mean(1).abs().max() < 1e-5 and (f.var(1, correction=0) - 1).abs().max() < 0.02
    assert raw.mean(1).abs().max() > 0.05


def test_the_input_of_a_cnn_and_the_way_back():
    """All numbers equal to the bit to (x - 0.5) / 0.25 and x * 0.25 + 0.5: those of the records are made by these."""
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    shares = pixels.permute(0, 3, 1, 2).float() / 255  # (1, 3, 16, 16)
    images = to_cnn_input(pixels)
    assert torch.equal(images, (shares - 0.5) / 0.25) and torch.equal(images, from_unit_range(shares))
    assert torch.equal(to_unit_range(images), images * 0.25 + 0.5)
    assert to_unit_range(images).min() == 0 and to_unit_range(images).max() == 1
    assert torch.allclose(from_unit_range(to_unit_range(images)), images, atol=1e-6)


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


MISFITS = [
    ("vit_tiny_patch16_224", 32), ("swin_tiny_patch4_window7_224", 32), ("mixer_s32_224", 32), ("levit_128s", 32),
    ("maxvit_pico_rw_256", 32), ("inception_v3", 32),
    ("inception_v4", 32), ("cait_xxs24_224", 32), ("coat_lite_tiny", 32), ("densenet121", 8),
]  # fmt: skip


@pytest.mark.parametrize(("name", "side"), MISFITS)
def test_a_cnn_that_does_not_take_the_size_is_one_line(smoke, name, side, one_line):
    with pytest.raises(LsclError) as caught:
        check_cnns(smoke(cnn=name, cnn_size=side))
    one_line(caught, f"cnn = {name!r}", f"{side} pixels", "cnn_size")


@pytest.mark.parametrize(
    "name", [*NAMES[:3], *MINI_FIVE, "convnext_atto", "efficientvit_b0", "mobilevit_xxs", "test_vit"]
)
def test_a_cnn_that_takes_the_size_passes(smoke, name):
    check_cnns(smoke(cnn=name, cnn_size=160 if name == "test_vit" else 32, features=24))


def test_every_cnn_that_a_client_gets_is_looked_at_and_no_other(smoke, one_line):
    check_cnns(smoke(cnn="tiny,small,tiny,inception_v3"))  # for three clients
    with pytest.raises(LsclError) as caught:
        check_cnns(smoke(cnn="tiny,small,inception_v3"))
    one_line(caught, "'inception_v3'")


@pytest.mark.parametrize(
    ("output", "words"), [((2, 3, 3), "shape (3, 3), not (3,)"), ((2, 2), "shape (2,)"), (float("nan"), "not finite")]
)
def test_features_of_another_shape_or_not_finite_are_one_line(smoke, monkeypatch, output, words, one_line):
    class Odd(nn.Module):
        def forward(self, images):
            return torch.zeros(output) if isinstance(output, tuple) else torch.full((2, 3), output)

    monkeypatch.setattr(cnn, "new_cnn", lambda *_, **__: Odd())
    cnn._look.cache_clear()
    with pytest.raises(LsclError) as caught:
        check_cnns(smoke(cnn="odd", features=3))
    one_line(caught, "cnn = 'odd'", words)


def test_looking_changes_no_draw(smoke):
    config = smoke(cnn="mobilenetv3_small_050", image_size=32)
    torch.manual_seed(3)
    expected = [*small_cnn(config, 0).state_dict().values(), torch.rand(3)]
    cnn._look.cache_clear()
    torch.manual_seed(3)
    check_cnns(config)
    found = [*small_cnn(config, 0).state_dict().values(), torch.rand(3)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
