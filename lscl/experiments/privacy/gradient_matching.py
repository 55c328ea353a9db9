"""Images from gradients: from gradients that are sent, and from those that a round's change of a CNN contains.

- `gradients`, one image each, for a small encoder that everybody has: L-BFGS on the squared distance, the search that
  the payload's own receiver makes (Zhu et al. 2019, arXiv 1906.08935).
- the change of a CNN in a round: images whose gradient points the same way, by Adam on 1 - cosine and total variation
  (Geiping et al. 2020, arXiv 2003.14053). A round has many steps on many images, which the attacker replaces by one
  step on one image of each class; the upper bound is a client that does just that with a single image.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lscl.experiments.privacy.observed import Observed
from lscl.experiments.privacy.scores import Finding, top1_rate
from lscl.federation.client import resize
from lscl.methods.parts.inversion import SIDE, build_encoder, parameter_gradient, reconstruct_images, recover_class
from lscl.models.cnn import from_unit_range
from lscl.seeding import torch_generator

MATCHING_STEPS = 120
SMOOTHNESS = 1e-3  # weight of the total variation
SINGLE = 4  # images that the upper bound and the control are measured on
L_BFGS_STEPS, L_BFGS_ITERATIONS = 30, 20


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels: (n, 3, H, W) -> ()."""
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()


def cosine_gap(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """1 - cosine of two lists of tensors, each taken as one vector.

    Args:
        one: the first list.
        other: the second, of the same shapes.

    Returns:
        (), 0 to 2.
    """
    product = sum((a * b).sum() for a, b in zip(one, other, strict=True))
    sizes = [torch.stack([a.square().sum() for a in parts]).sum().sqrt() for parts in (one, other)]
    return 1 - product / (sizes[0] * sizes[1]).clamp(min=1e-20)


def match_gradient(
    network: Callable[[Tensor], Tensor],
    parameters: list[Tensor],
    target: list[Tensor],
    labels: Tensor,
    shape: tuple[int, ...],
    draw: torch.Generator,
    steps: int = MATCHING_STEPS,
) -> Tensor:
    """Images whose gradient points in the direction of a given one.

    Args:
        network: images -> logits.
        parameters: of the network, to which the gradient belongs.
        target: the given gradient, tensor by tensor.
        labels: of the images, (n,).
        shape: of an image.
        draw: of the first guess.
        steps: of Adam.

    Returns:
        (n, 3, H, W) in -2 to 2.
    """
    images = (0.5 * torch.randn(len(labels), *shape, generator=draw)).requires_grad_()
    optimiser = torch.optim.Adam([images], 0.1)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        loss = F.cross_entropy(network(images), labels)
        slopes = torch.autograd.grad(loss, parameters, create_graph=True)
        gap = cosine_gap(list(slopes), target) + SMOOTHNESS * total_variation(images)
        (images.grad,) = torch.autograd.grad(gap, [images])
        optimiser.step()
        with torch.no_grad():
            images.clamp_(-2, 2)
    return images.detach()


def _standardised(images: Tensor) -> Tensor:
    """Pixels without brightness and contrast, which a gradient hardly tells: (n, 3, H, W) -> (n, 3 H W)."""
    flat = images.flatten(1)  # (n, 3 H W)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


def _top1(found: Tensor, rows: Tensor, observed: Observed, name: str) -> tuple[float, float]:
    """Re-identification of reconstructions: the right image, and one that the client never had."""
    gallery = observed.gallery
    places, right = gallery.candidates(rows)
    pixels = _standardised(gallery.pixels)[places]  # (n, c, 3 H W)
    wrong = gallery.others(rows, observed.rng(name)) % gallery.per_class
    flat = _standardised(found)
    return top1_rate(flat, pixels, right), top1_rate(flat, pixels, wrong)


def linear_control(observed: Observed, rows: Tensor, steps: int = MATCHING_STEPS) -> float:
    """The control of gradient matching: the gradient of one linear layer on the pixels, which is the image itself.

    Args:
        observed: the client under attack.
        rows: images of the client, (n,) positions in the gallery.
        steps: of the search.

    Returns:
        Re-identification, 0 to 1.
    """
    pixels = from_unit_range(observed.gallery.pixels[rows])
    draw, classes = torch_generator(observed.config.seed, "linear control"), len(observed.gallery.classes)
    layer, found = nn.Sequential(nn.Flatten(), nn.Linear(pixels[0].numel(), classes)), []
    parameters = list(layer.parameters())
    nn.init.normal_(parameters[0], std=0.01, generator=draw)
    for image, row in zip(pixels, rows.tolist()):
        label = torch.tensor([row // observed.gallery.per_class])
        target = list(torch.autograd.grad(F.cross_entropy(layer(image[None]), label), parameters))
        found.append(match_gradient(layer, parameters, target, label, image.shape, draw, 3 * steps))
    return _top1(torch.cat(found), rows, observed, "linear control")[0]


def match_gradients(observed: Observed, steps: int = MATCHING_STEPS, searches: int = L_BFGS_STEPS) -> list[Finding]:
    """Attack gradients, and the change of a CNN with a classifier.

    Args:
        observed: the client under attack.
        steps: of Adam.
        searches: steps of L-BFGS.

    Returns:
        The findings; nothing if neither travels.
    """
    findings, gallery = [], observed.gallery
    few = gallery.held.nonzero().squeeze(1)[:: max(1, int(gallery.held.sum()) // SINGLE)][:SINGLE]
    if not observed.sends_classifier:
        return findings
    control = linear_control(observed, few, steps)
    if "gradients" in observed.up:
        findings += _encoder_gradients(observed, searches)
    return [*findings, *_change_of_cnn(observed, few, control, steps)]


def _encoder_gradients(observed: Observed, searches: int) -> list[Finding]:
    """Gradients of single images for the shared encoder: is the nearest image of the class one of the client's?

    The control is the gradient of an image that was not disguised before, by the same search.
    """
    classes, seed = observed.method.num_classes, observed.config.seed
    network, draw = build_encoder(classes, seed), torch_generator(seed, "encoder attack")
    if observed.up["gradients"].shape[1:] != (sum(value.numel() for value in network.parameters()),):
        return []
    mine = observed.gallery.classes.tolist()
    labels = torch.tensor([recover_class(received, classes) for received in observed.up["gradients"]])
    inside = torch.tensor([int(label) in mine for label in labels])
    places = torch.tensor([mine.index(int(label)) for label in labels[inside]])
    side = observed.gallery.pixels.shape[-1]

    def search(received: Tensor, labels: Tensor) -> Tensor:
        start = torch.randn(len(labels), 3, SIDE, SIDE, generator=draw)
        made = reconstruct_images(network, received, labels, searches, L_BFGS_ITERATIONS, 1, start)
        return resize(made[:, 0], side)

    if not inside.any():
        return []
    found = search(observed.up["gradients"][inside], labels[inside])
    share, absent = observed.gallery.held_rate(
        _standardised(found),
        _standardised(observed.gallery.pixels),
        places,
        observed.rng("side"),
    )
    images = observed.gallery.pixels
    mine_first = observed.gallery.held.nonzero().squeeze(1)[:1]
    true = resize(from_unit_range(images[mine_first]), SIDE)
    label = observed.gallery.classes[mine_first // observed.gallery.per_class]
    single = parameter_gradient(network, true, label)
    undisguised = _top1(search(single[None], label), mine_first, observed, "encoder")[0]
    return [Finding("gradient search", "gradients", "nothing", "held", share, absent, undisguised, 0.5, len(found))]


def _change_of_cnn(observed: Observed, few: Tensor, control: float, steps: int) -> list[Finding]:
    """The round's change as one step on one image of each class; and a client with one image and one step."""
    gallery, config, client = observed.gallery, observed.config, observed.client
    model = observed.method.new_model(client.id)
    model.load_state_dict(observed.down, strict=False)
    model.train()
    names = [name for name, _ in model.named_parameters() if name in observed.up and name in observed.down]
    parameters = [dict(model.named_parameters())[name] for name in names]
    for layer in model.modules():  # one image has no statistics of its own
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    network = lambda images: model["head"](model["cnn"](images))
    draw, shape = torch_generator(config.seed, "matching"), (3, config.side, config.side)
    target = [observed.down[name] - observed.up[name] for name in names]
    labels = gallery.classes
    found = match_gradient(network, parameters, target, labels, shape, draw, steps)
    share, absent = gallery.held_rate(
        _standardised(resize(found, gallery.pixels.shape[-1])),
        _standardised(gallery.pixels),
        torch.arange(len(labels)),
        observed.rng("side"),
    )
    single = []
    for row in few.tolist():
        image = resize(from_unit_range(gallery.pixels[row : row + 1]), config.side)
        label = gallery.classes[row // gallery.per_class][None]
        slope = list(torch.autograd.grad(F.cross_entropy(network(image), label), parameters))
        made = match_gradient(network, parameters, slope, label, shape, draw, steps)
        single.append(resize(made, gallery.pixels.shape[-1]))
    alone, never = _top1(torch.cat(single), few, observed, "single")
    return [
        Finding("gradient matching", "cnn", "the round's change", "held", share, absent, control, 0.5, len(labels)),
        Finding(
            "gradient matching",
            "cnn",
            "one image and one step (upper bound)",
            "top1",
            alone,
            never,
            control,
            1 / gallery.per_class,
            len(few),
        ),
    ]
