"""GLFC's proxy server: images from the gradients that a small encoder network, the same for everybody, has for them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def parameter_gradient(network: Encoder, image: Tensor, label: Tensor, differentiable: bool = False) -> Tensor:
    """d CE(encoder(x), y) / d parameters, flat, the linear layer's weights and biases last.

    Args:
        network: the encoder.
        image: x, (1, 3, 32, 32).
        label: y, (1,).
        differentiable: whether the gradient is itself to be differentiated.

    Returns:
        (E,).
    """
    loss = F.cross_entropy(network(image), label)
    parts = torch.autograd.grad(loss, list(network.parameters()), create_graph=differentiable)
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


def reconstruct_images(
    network: Encoder, received: Tensor, label: int, steps: int, iterations: int, keep: int, start: Tensor
) -> Tensor:
    """Images whose gradient is the received one, by L-BFGS on ||gradient(x) - received||^2.

    A step that leaves the finite numbers is undone and ends the search.

    Args:
        network: the encoder.
        received: a client's gradient, (E,).
        label: the one behind it.
        steps: of L-BFGS.
        iterations: in a step.
        keep: how many images, those after the last steps.
        start: noise, (1, 3, 32, 32).

    Returns:
        (min(keep, steps), 3, 32, 32).
    """
    image, target = start.clone().requires_grad_(), torch.tensor([label], device=start.device)
    optimiser = torch.optim.LBFGS([image], lr=0.1, max_iter=iterations)

    def closure() -> Tensor:
        loss = (parameter_gradient(network, image, target, differentiable=True) - received).square().sum()
        (image.grad,) = torch.autograd.grad(loss, [image])
        return loss.detach()

    iterates = []
    for _ in range(steps):
        optimiser.step(closure)
        if not image.isfinite().all():
            iterates += [iterates[-1] if iterates else start.clone()] * (steps - len(iterates))
            break
        iterates.append(image.detach().clone())
    return torch.cat(iterates[-keep:])
