"""CNNs that start from pre-trained weights: which weights, in which input, and what stays drawn."""

from urllib.error import URLError

import pytest
import timm
import torch
import torchvision

from lscl.errors import LsclError
from lscl.models import cnn_weights
from lscl.models.cnn import new_cnn, small_cnn, to_cnn_input
from lscl.models.cnn_weights import SMALL_WEIGHTS, check_weights, get_weights, started_cnn
from lscl.models.vit import read_weights

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def downloaded(monkeypatch):
    """Stands in for a download: a network that is asked for with weights has every number scaled by 0.9."""

    def scaled(network):
        with torch.no_grad():
            for p in network.parameters():
                p.mul_(0.9).add_(0.01)
        return network

    get_model, create_model = torchvision.models.get_model, timm.create_model
    monkeypatch.setattr(
        torchvision.models,
        "get_model",
        lambda name, weights: scaled(get_model(name, weights=None)) if weights else get_model(name, weights=None),
    )
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, pretrained, **more: (
            scaled(create_model(name, pretrained=False, **more))
            if pretrained
            else create_model(name, pretrained=False, **more)
        ),
    )


@pytest.fixture
def offline(monkeypatch):
    """Every download fails."""

    def fail(*_, **__):
        raise URLError("no network")

    create_model = timm.create_model
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, pretrained, **more: fail() if pretrained else create_model(name, pretrained=False, **more),
    )


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_shipped_cnn_has_its_own_weights_and_statistics_in_the_plain_input_of_a_run(smoke, pixels):
    found = started_cnn(smoke(cnn="small", features=128), 1, "pretrained").eval()
    shipped = {name: value.float() for name, value in read_weights(SMALL_WEIGHTS).items()}
    state = found.cnn.state_dict()
    assert state.keys() == shipped.keys() and all(torch.equal(state[name].float(), shipped[name]) for name in state)
    assert state["layers.1.running_var"].min() > 0 and not torch.equal(state["layers.1.running_mean"], torch.zeros(32))
    expected = new_cnn("small", 32, 128, norm=True).eval()
    expected.cnn.load_state_dict(shipped)
    with torch.no_grad():
        assert torch.equal(found(to_cnn_input(pixels)), expected(to_cnn_input(pixels)))


def test_the_shipped_file_is_small():
    assert SMALL_WEIGHTS.stat().st_size <= 10**6


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        *[(name, *IMAGENET) for name in ("resnet18", "efficientnet_b3")],
        ("tf_efficientnet_lite0", (0.5,) * 3, (0.5,) * 3),
    ],
)
def test_downloaded_weights_get_the_input_that_they_were_trained_with(smoke, downloaded, pixels, name, mean, std):
    """At run time the extractor takes `to_cnn_input`; the network behind it must see (x / 255 - mean) / std."""
    found = started_cnn(smoke(cnn=name, features=24), 0, "pretrained").eval()
    seen = []
    found.cnn.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    with torch.no_grad():
        found(to_cnn_input(pixels))
    shares = pixels.permute(0, 3, 1, 2) / 255
    expected = (shares - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(seen[0], expected, atol=1e-5)
    weights = cnn_weights.pretrained(name)[0]
    assert all(torch.equal(value, weights[key]) for key, value in found.cnn.state_dict().items())


@pytest.mark.parametrize("size", [32, 224])
def test_a_pre_trained_resnet18_keeps_its_first_layers(smoke, downloaded, size):
    cnn = started_cnn(smoke(cnn="resnet18", image_size=size), 0, "pretrained").cnn
    assert cnn.conv1.kernel_size == (7, 7) and isinstance(cnn.maxpool, torch.nn.MaxPool2d)


@pytest.mark.parametrize("name", ["small", "vgg16_bn", "tf_efficientnet_lite0"])
def test_everything_but_the_cnn_is_drawn_as_otherwise(smoke, downloaded, name):
    made = {}
    for start in ("drawn", "pretrained"):
        torch.manual_seed(3)
        made[start] = started_cnn(smoke(cnn=name, features=24), 0, start), torch.rand(3)
    (drawn, after), (pretrained, after_too) = made.values()
    assert torch.equal(after, after_too) and torch.equal(drawn.project.weight, pretrained.project.weight)
    assert not torch.equal(next(drawn.cnn.parameters()), next(pretrained.cnn.parameters()))
    assert list(drawn.state_dict()) == list(pretrained.state_dict())


def test_a_drawn_start_is_the_plain_cnn(smoke):
    torch.manual_seed(3)
    expected = small_cnn(smoke(), 0).state_dict()
    torch.manual_seed(3)
    found = started_cnn(smoke(), 0, "drawn").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["tiny", "mini_densenet", "mini_vgg", "resnetv2_50d"])
def test_a_cnn_without_weights_is_one_line(smoke, name, one_line):
    with pytest.raises(LsclError) as caught:
        check_weights(smoke(cnn=f"small, {name}"), "pretrained")
    one_line(caught, f"cnn = {name!r}", "no pre-trained weights", "small", "resnet18")
    check_weights(smoke(cnn=f"small, {name}"), "drawn")


def test_our_own_names_are_none_of_timm_and_the_mini_ones_of_timm_have_weights(smoke, one_line):
    check_weights(smoke(cnn="small,resnet10t,mobilenetv3_small_050"), "pretrained")
    for name in ("tiny", "mini_densenet", "mini_vgg"):
        with pytest.raises(LsclError):
            check_weights(smoke(cnn=name), "pretrained")
    check_weights(smoke(cnn="small,small,small,tiny"), "pretrained")  # for three clients: nobody gets tiny


@pytest.mark.parametrize(("name", "whose"), [("resnet18", "torchvision"), ("resnet10t", "timm")])
def test_without_a_network_it_is_one_line(smoke, offline, one_line, name, whose):
    check_weights(smoke(cnn=name), "pretrained")  # asks for nothing
    with pytest.raises(LsclError) as caught:
        get_weights(smoke(cnn=name), "pretrained")
    one_line(
        caught, f"cnn = {name!r}", "no network", f"{whose} downloads them once", "cnn = small", "cnn_start = drawn"
    )
    get_weights(smoke(cnn=name), "drawn")


def test_a_missing_shipped_file_is_one_line(smoke, monkeypatch, tmp_path, one_line):
    monkeypatch.setattr(cnn_weights, "SMALL_WEIGHTS", tmp_path / "small_cnn.safetensors")
    with pytest.raises(LsclError) as caught:
        get_weights(smoke(cnn="small"), "pretrained")
    one_line(caught, "small_cnn.safetensors", "lscl pretrain")
