"""What sums of frozen features reveal: class means, and the Gram matrix that a ridge regression needs.

Everybody has the frozen model, so no stand-in is needed. A sum over one image is its feature; a mean over many leans a
little towards each of them. Three questions follow. Does the mean, or the leverage in the Gram matrix, reveal which
images are in it? What image does a decoder of frozen features reconstruct? And what happens if a class has only one
image (upper bound)?
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lscl.experiments.privacy.decoder import STEPS, score_reconstructions, train_decoder
from lscl.experiments.privacy.gram_spectrum import leverage
from lscl.experiments.privacy.observed import Observed, as_unit_images
from lscl.experiments.privacy.scores import Finding, membership_rates, top1_rate
from lscl.experiments.run import read_inputs
from lscl.federation.client import Inputs
from lscl.federation.passes import map_batches
from lscl.methods.parts.o2d import unpack_triangle

MEANS = ("sums", "means")


def frozen_features(observed: Observed, inputs: Inputs) -> Tensor:
    """What the head of the system reads, of images that the attacker has, with the frozen model alone.

    Args:
        observed: the client under attack.
        inputs: n images.

    Returns:
        (n, d).
    """
    method = observed.method
    of = lambda batch: method.foundation.suffix(batch.prefix)
    if hasattr(method, "frozen_feature"):
        of = method.frozen_feature
    elif observed.sends_label_sums and hasattr(
        method, "head_inputs"
    ):  # of features that a generator and a public CNN adapt
        of = lambda batch: method.head_inputs(method.features_of(observed.client, batch))
    return map_batches(inputs, torch.arange(len(inputs.images)), of).float().cpu()


def class_means_sent(observed: Observed, width: int) -> tuple[str, Tensor] | None:
    """The class means in a payload, in the order of the client's sorted classes.

    Args:
        observed: the client under attack.
        width: length d of a feature.

    Returns:
        The payload's name and (k, d); None if there are none of this length for each of the classes.
    """
    up, task = observed.up, observed.method.census.parts.tasks[observed.client.id][observed.stage.task]
    if {"sums", "counts"} <= set(up) and up["counts"].shape == up["sums"].shape[:1]:
        means, classes = up["sums"] / up["counts"].clamp(min=1)[:, None], torch.tensor(task.classes)
    elif {"means", "classes"} <= set(up):
        means, classes = up["means"], up["classes"]
    elif _joint(observed, width):
        k = len(task.classes)
        moments, classes = unpack_triangle(up["gram"]), torch.tensor(task.classes)
        means = (moments[:-k, -k:] / moments.diagonal()[-k:].clamp(min=1)).T  # (k, d)
    else:
        return None
    if means.shape != (len(task.classes), width) or classes.shape != means.shape[:1]:
        return None
    name = next(name for name in (*MEANS, "gram") if name in up)
    return name, means.float()[classes.argsort()]


def _joint(observed: Observed, width: int) -> bool:
    """Whether `gram` is that of features of this length and labels together."""
    size = width + len(observed.gallery.classes)
    return "gram" in observed.up and observed.up["gram"].numel() == size * (size + 1) // 2


def read_class_statistics(observed: Observed, steps: int = STEPS) -> list[Finding]:
    """Attack class means, and the Gram matrix of frozen features.

    Args:
        observed: the client under attack.
        steps: of the training of the decoder.

    Returns:
        The findings; nothing if no such payload travels.
    """
    if observed.method.foundation is None or not ({*MEANS, "gram"} & set(observed.up)):
        return []
    gallery = observed.gallery
    codes = frozen_features(observed, gallery.inputs)
    sent = class_means_sent(observed, codes.shape[1])
    if sent is None:
        return []
    name, means = sent
    findings = _membership_in_means(observed, name, codes, means)
    if _joint(observed, codes.shape[1]):
        findings += _membership_in_gram(observed, codes)
    return findings + _decoded(observed, name, codes, means, steps)


def _rates(observed: Observed, payload: str, knows: str, scores: Tensor, design: Tensor) -> list[Finding]:
    gallery = observed.gallery
    others = (~gallery.held).nonzero().squeeze(1)
    halves = others[observed.rng("halves").permutation(len(others))].tensor_split(2)  # (o / 2,) each
    found = membership_rates(scores[gallery.held], scores[others])
    absent = membership_rates(*(scores[half] for half in halves))
    known = membership_rates(design[gallery.held], design[others])
    return [
        Finding("membership", payload, knows, score, found[score], absent[score], known[score], chance, len(scores))
        for score, chance in {"auc": 0.5, "tpr": 0.01}.items()
    ]


def _membership_in_means(observed: Observed, name: str, codes: Tensor, means: Tensor) -> list[Finding]:
    """How near an image is to the mean of its class, beside how near images of its class are on average."""
    gallery = observed.gallery
    own = means.repeat_interleave(gallery.per_class, 0)  # (k c, d)
    scores = F.cosine_similarity(codes - own.mean(0), own - own.mean(0))
    pixels = gallery.pixels.flatten(1)  # (k c, 3 H W)
    design = -torch.cdist(pixels, pixels[gallery.held]).min(1).values  # the payload is the images
    return _rates(observed, name, "nothing", scores, design)


def _membership_in_gram(observed: Observed, codes: Tensor) -> list[Finding]:
    """Leverage in the Gram matrix of all features of the task."""
    gallery = observed.gallery
    moments = unpack_triangle(observed.up["gram"])
    count, k = float(moments.diagonal()[-len(gallery.classes) :].sum()), len(gallery.classes)
    size = len(moments) - k
    joint = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    joint[:-1, :-1], joint[-1, -1] = moments[:size, :size] / count, 1.0
    joint[-1, :-1] = joint[:-1, -1] = moments[:size, size:].sum(1) / count
    scores = -leverage(codes, joint)
    pixels = gallery.pixels.flatten(1)  # (k c, 3 H W)
    design = -torch.cdist(pixels, pixels[gallery.held]).min(1).values
    where = f"nothing; {int(count)} images, {size} features"
    return _rates(observed, "gram", where, scores, design)


def _decoded(observed: Observed, name: str, codes: Tensor, means: Tensor, steps: int) -> list[Finding]:
    """A decoder of frozen features on the means, and on the feature of one image, which is the mean of one."""
    gallery, config, public = observed.gallery, observed.config, observed.public
    method, device = observed.method, observed.client.train.device
    inputs = read_inputs(type(method), method.foundation, public, device)
    pixels, seed = as_unit_images(public.images), config.seed
    features = frozen_features(observed, inputs)
    centre, scale = features.mean(0), features.std(0).clamp(min=1e-6)
    decoder = train_decoder((features - centre) / scale, pixels, seed, "frozen", steps)
    identity = train_decoder(pixels.flatten(1) - 0.5, pixels, seed, "design", 2 * steps)  # (n, 3 H W)
    first = torch.arange(len(gallery.classes)) * gallery.per_class
    rows = torch.stack([one + gallery.held[one : one + gallery.per_class].nonzero()[0, 0] for one in first.tolist()])
    findings = []
    with torch.no_grad():
        design = score_reconstructions(
            identity(gallery.pixels[rows].flatten(1) - 0.5), rows, gallery, observed.rng("d")
        )
        made = {
            "nothing": decoder((means - centre) / scale),
            "a class of one image (upper bound)": decoder((codes[rows] - centre) / scale),
        }
        for knows, found in made.items():
            scores = score_reconstructions(found, rows, gallery, observed.rng("d"))
            for score, (value, absent) in scores.items():
                chance = 1 / gallery.per_class if score == "top1" else None
                findings.append(
                    Finding("reconstruction", name, knows, score, value, absent, design[score][0], chance, len(rows))
                )
    places, right = gallery.candidates(rows)
    wrong = gallery.others(rows, observed.rng("d")) % gallery.per_class
    pictures = gallery.pixels[places].flatten(2)  # (k, c, 3 H W)
    exact = top1_rate(gallery.pixels[rows].flatten(1), pictures, right)  # (k, 3 H W)
    for knows, sent in {"nothing": means, "a class of one image (upper bound)": codes[rows]}.items():
        value, absent = (top1_rate(sent, codes[places], answer) for answer in (right, wrong))
        findings.append(
            Finding("matching", name, knows, "top1", value, absent, exact, 1 / gallery.per_class, len(rows))
        )
    return findings
