"""A linear probe: how good the frozen features are, measured without any federation."""

import json
import re
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lscl import paths
from lscl.config import Experiment, fields
from lscl.data.sources import first_per_class, load
from lscl.data.store import ImageSet, write_atomic
from lscl.errors import LsclError
from lscl.models.vit import FrozenViT, foundation_of
from lscl.seeding import numpy_generator

DECAYS = (1e-3, 1e-2, 3e-2)  # weight decays; cross-validation on the training images chooses one
SETS = 50  # random sets of 8 classes


def probe(config: Experiment, count: int) -> dict[str, Any]:
    """Train a linear classifier on the frozen features, test it, and write the result to results/probe/.

    Args:
        config: the foundation model and the data set.
        count: training images per class.

    Returns:
        What was measured on what: accuracies in percent over all classes and over 8 at a time (mean of 50 random sets).

    Raises:
        LsclError: a class has fewer images, or there are too few for a cross-validation.
    """
    if count < 1:
        raise LsclError(f"per_class = {count}: at least 1 image of each class is needed")
    torch.set_num_threads(config.cpu_threads)
    data = load(config.model_copy(update={"images_per_class": None, "test_images_per_class": None}))
    train = first_per_class(data.train, count, f"{config.dataset} train")
    fold = torch.from_numpy(numpy_generator(0, "probe-folds").integers(0, 3, len(train)))
    if not 0 < (fold > 0).sum() < len(train):
        raise LsclError(f"per_class = {count}: {len(train)} training images are too few for a cross-validation")
    model = foundation_of(config, None)
    x, y = _features(model, train), torch.from_numpy(train.labels)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x = (x - mean) / std
    held = {decay: _accuracy(_fit(x[fold > 0], y[fold > 0], decay), x[fold == 0], y[fold == 0]) for decay in DECAYS}
    weights = _fit(x, y, max(held, key=held.get))
    tx, ty = (_features(model, data.test) - mean) / std, torch.from_numpy(data.test.labels)
    draws = numpy_generator(0, "probe-classes")
    eight = []
    for _ in range(SETS):
        chosen = torch.from_numpy(np.sort(draws.permutation(len(data.classes))[:8]))
        inside = torch.isin(ty, chosen)
        eight.append(
            _accuracy(tuple(part[chosen] for part in weights), tx[inside], torch.searchsorted(chosen, ty[inside]))
        )
    result = {
        "foundation": config.foundation,
        **({"vit_size": config.vit_size} if config.vit_size else {}),
        "weights_digest": model.digest,
        "dataset": config.dataset,
        "data_digest": data.digest,
        "images_per_class": count,
        "classes": len(data.classes),
        "accuracy_all": round(_accuracy(weights, tx, ty), 2),
        "accuracy_8": round(float(np.mean(eight)), 2),
        "weight_decay": max(held, key=held.get),
    }
    write_atomic(paths.results() / "probe" / _file_name(config, count), (json.dumps(result, indent=1) + "\n").encode())
    return result


def _file_name(config: Experiment, count: int) -> str:
    """The name of a probe's file: two probes that read other values or images have two names."""
    size = f"--{config.vit_size}px" if config.vit_size else ""
    file = f"--{config.weights_sha256[:12]}" if config.weights_sha256 else ""
    others = {name: getattr(config, name) for name in ("image_size", "duplicates", "normalize")}
    changed = "".join(f"--{name}={value}" for name, value in others.items() if value != fields()[name].default)
    return re.sub("[/:]", "_", f"{config.foundation}{size}{file}--{config.source}{changed}--{count}.json")


@torch.no_grad()
def _features(model: FrozenViT, images: ImageSet) -> Tensor:
    parts = [images.images[start : start + 100] for start in range(0, len(images), 100)]
    return torch.cat([model.suffix(model.prefix(torch.from_numpy(np.array(part)))) for part in parts])


def _fit(x: Tensor, y: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with a quadratic penalty, by L-BFGS: weights (C, d), bias (C,)."""
    classes = int(y.max()) + 1
    weight, bias = torch.zeros(classes, x.shape[1], requires_grad=True), torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach(), bias.detach()


def _accuracy(weights: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> float:
    return 100 * (F.linear(x, *weights).argmax(1) == y).double().mean().item()
