"""GLFC's proxy server: images from the gradients of a small encoder network, the same for everybody."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap

from lscl.methods.parts.lbfgs import ManyLBFGS
from lscl.seeding import seeded

SIDE = 32  # pixels a side that the encoder sees, whatever the images have: larger ones cannot be reconstructed
CHANNELS = 12


class Encoder(nn.Module):
    """Three 5 x 5 convolutions of 12 channels with sigmoids, strides 2, 2, 1, and a linear layer.

    Weights are uniform in -0.5 to 0.5. E = 8136 + 769 C parameters. What enters the linear layer is positive: see
    `recover_class`.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        layers = []
        for inside, stride in ((3, 2), (CHANNELS, 2), (CHANNELS, 1)):
            layers += [nn.Conv2d(inside, CHANNELS, 5, stride=stride, padding=2), nn.Sigmoid()]
        self.body, self.fc = nn.Sequential(*layers), nn.Linear(CHANNELS * (SIDE // 4) ** 2, num_classes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (b, 3, 32, 32) -> (b, C)."""
        return self.fc(self.body(images).flatten(1))  # (b, 12 * 8 * 8) -> (b, C)


def build_encoder(num_classes: int, seed: int) -> Encoder:
    """The encoder of an experiment: clients and proxy server draw the same one.

    Args:
        num_classes: C.
        seed: of the experiment.

    Returns:
        It is never trained.
    """
    with seeded(seed, "encoder"):
        return Encoder(num_classes)


def parameter_gradient(network: Encoder, image: Tensor, label: Tensor) -> Tensor:
    """d CE(encoder(x), y) / d parameters, flat, the linear layer's weights and biases last.

    Args:
        network: the encoder.
        image: x, (1, 3, 32, 32).
        label: y, (1,).

    Returns:
        (E,).
    """
    loss = F.cross_entropy(network(image), label)
    parts = torch.autograd.grad(loss, list(network.parameters()))
    return torch.cat([part.flatten() for part in parts])  # (E,)


def recover_class(received: Tensor, num_classes: int) -> int:
    """The label behind a gradient: of the linear layer's rows (p_c - y_c) h, h > 0, only that of the label is negative.

    Args:
        received: the gradient, (E,).
        num_classes: C.

    Returns:
        The label, 0 to C - 1.
    """
    inputs = CHANNELS * (SIDE // 4) ** 2
    rows = received[-num_classes * (inputs + 1) : -num_classes].view(num_classes, inputs)  # (C, 768)
    return int(rows.sum(1).argmin())


def gradient_gaps(network: Encoder, received: Tensor, labels: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """||gradient(x) - received||^2 of every image, and its gradient for the image.

    Args:
        network: the encoder.
        received: gradients, (n, E).
        labels: those behind them, (n,).
        images: x, (n, 3, 32, 32).

    Returns:
        (n,) and (n, 3, 32, 32).
    """
    parameters = {name: value.detach() for name, value in network.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, parameters, (image[None],)), label[None])

    def gap(image: Tensor, label: Tensor, wanted: Tensor) -> Tensor:
        parts = grad(loss)(parameters, image, label)
        return (torch.cat([parts[name].flatten() for name in parameters]) - wanted).square().sum()  # (E,) - (E,)

    slopes, gaps = vmap(grad_and_value(gap))(images, labels, received)
    return gaps, slopes


def reconstruct_images(
    network: Encoder, received: Tensor, labels: Tensor, steps: int, iterations: int, keep: int, start: Tensor
) -> Tensor:
    """Images whose gradients are the received ones, by L-BFGS on ||gradient(x) - received||^2, all at once.

    A step that leaves the finite numbers is undone and ends the search of that image.

    Args:
        network: the encoder.
        received: clients' gradients, (n, E).
        labels: those behind them, (n,).
        steps: of L-BFGS.
        iterations: in a step.
        keep: how many images of each search, those after the last steps.
        start: noise, (n, 3, 32, 32).

    Returns:
        (n, min(keep, steps), 3, 32, 32).
    """

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        gaps, slopes = gradient_gaps(network, received, labels, x.view(start.shape))  # (n, 3072) -> (n, 3, 32, 32)
        return gaps, slopes.flatten(1)  # (n,), (n, 3, 32, 32) -> (n, 3072)

    search = ManyLBFGS(start.flatten(1), objective, lr=0.1, iterations=iterations)  # (n, 3072)
    iterates, kept, ended = [], search.x, torch.zeros(len(start), dtype=torch.bool, device=start.device)
    for _ in range(steps):
        search.step()
        ended = ended | ~search.x.isfinite().all(1)
        kept = torch.where(ended[:, None], kept, search.x)  # (n, 3072)
        iterates.append(kept)
    return torch.stack(iterates[-keep:], 1).unflatten(2, start.shape[1:])  # (n, k, 3072) -> (n, k, 3, 32, 32)
