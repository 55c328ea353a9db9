"""Control: the class means of all clients' frozen features; the nearest one, by the cosine, names the class."""

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lscl.federation.client import Batch, Client
from lscl.federation.costs import Costs, OwnWork, Planned
from lscl.federation.limits import Check, class_sums_check, equality_check
from lscl.federation.method import Stage
from lscl.federation.payload import Payload, Shapes
from lscl.federation.sketch import CLASS, FROZEN_VIT, IMAGE, Part, Sketch
from lscl.methods.parts.closed_form import ClosedForm
from lscl.methods.parts.noise import Noise, clip_length, noisy_sums
from lscl.registry import register


def class_cosines(features: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    """Cosines of features with class means, after the mean of all images is subtracted from both.

    Args:
        features: (b, d).
        sums: of the features of each class, (C, d) float64.
        counts: images of each class, (C,).

    Returns:
        (b, C) float64; -1, the lowest cosine, for a class without images.
    """
    centre = sums.sum(0) / counts.sum().clamp(min=1)
    means = sums / counts.clamp(min=1)[:, None] - centre  # (C, d)
    cosines = F.normalize(features.double() - centre, dim=1) @ F.normalize(means, dim=1).T
    return cosines.masked_fill(counts == 0, -1.0)


class ClassMeans(nn.Module):
    """Sums (C, d) and numbers (C,) of the features of each class."""

    sums: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.register_buffer("sums", torch.zeros(num_classes, width, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        """Scores: (b, d) -> (b, C)."""
        return class_cosines(features, self.sums, self.counts)


class NearestMeanCosts(Costs):
    """Sums of features; nothing is trained."""

    def parameters(self, run: Planned) -> float:
        """Sums in float64, without the head that every system is counted with."""
        return run.classes * (run.width + 2)

    def own_work(self, run: Planned) -> OwnWork:
        return OwnWork(run.epoch * run.width, run.rounds * run.classes * run.width)


@register
class FedNCM(ClosedForm):
    r"""This control trains nothing: it measures what the frozen features already know. The clients send the sum of the
    features of each class, and the server adds the sums of all clients. An image gets the class whose mean feature
    has the highest cosine similarity with its own.

    With the mean feature $\mu_c$ of class $c$ over all clients and the mean $\bar\mu$ of all images,

    $$\hat y(x) = \arg\max_c \cos\big(\phi(x) - \bar\mu,\; \mu_c - \bar\mu\big).$$

    - Source: nearest class mean on a frozen model, as in SimpleCIL (Zhou et al. 2023, arXiv 2303.07338).
    - Trained: nothing.
    - Up, once per task: for each of the $k$ classes of the client's task the sum of its features, of length $d$, and
      its number of images.
    - Down, for the test: sums and numbers of all $C$ classes.
    - Stays on the server: these sums. The result does not depend on the order of tasks or clients.
    - Payload: up $8kd + 8k$ bytes, once per task; down $8Cd + 8C$ bytes, once per task.
    - Privacy: the server learns class means. The mean of a class with one image is that image's feature.

    The control shows how much a system must add at this scale. A system below it is not refuted for other models,
    more images or other data. The paper has no such control.

    Differences from SimpleCIL:
    1. The mean of all images is subtracted before the cosine. Features of a frozen ViT share a large mean, which
       makes all cosines nearly equal.
    2. The sums run over clients. All images of a class count in one mean, whichever client holds them.
    """

    name, label = "fed_ncm", "federated class means"
    place, turn, quick = 14, 14, ("demo", "colab")
    costs = NearestMeanCosts
    sketch = Sketch(
        row=(IMAGE, FROZEN_VIT, Part("nearest class mean"), CLASS),
        up="for each class the sum of features and the number of images",
        server="add the sums of all clients",
        down="the sums of all classes",
    )
    defences = {f"noise {noise:g}": {"dp_noise": noise} for noise in (0.03, 0.1, 0.3, 1.0, 3.0)}
    head_names = ("sums", "counts")
    Parameters = Noise

    def build(self, client: int) -> nn.Module:
        return ClassMeans(self.num_classes, self.foundation.width)

    def logits(self, client: Client, batch: Batch) -> Tensor:
        return client.model(self.frozen_feature(batch))

    def upload(self, client: Client, stage: Stage) -> Payload:
        features, labels = self.features_and_labels(client)
        members = (labels == client.classes[:, None]).double()  # (k, n)
        config, counts = self.config, members.sum(1).long()
        if config.dp_noise == 0:
            return {"sums": members @ features, "counts": counts}
        clip = min(config.dp_clip, self.longest)
        sums = members @ clip_length(features, clip)
        return {"sums": noisy_sums(sums, counts, clip, config.dp_noise, client.rng("noise-sums")), "counts": counts}

    def releases(self) -> tuple[str, int]:
        """An image is in the sums of one task, which go up once."""
        return "image", 1

    def upload_shapes(self, client: int, stage: Stage) -> Shapes:
        k = self.config.classes_per_task
        return {"sums": (k, self.foundation.width), "counts": (k,)}

    def dtype(self, name: str) -> torch.dtype:
        return torch.int64 if name == "counts" else super().dtype(name)

    def checks(self, client: int, stage: Stage) -> dict[str, Check]:
        """Numbers of images are known; no sum is longer than so many features can make it."""
        counts = self.counts(client, stage)
        return {"sums": class_sums_check(counts, self.longest), "counts": equality_check(counts)}

    def summed_names(self, stage: Stage) -> Collection[str]:
        """All, if a client sends a row for every class of the data set instead of those of its task."""
        return {"sums", "counts"}

    def aggregate(self, uploads: Mapping[int, Payload], stage: Stage) -> None:
        """Add the sums."""
        total = {name: self.server[name].clone() for name in self.head_names}
        for k, payload in uploads.items():
            for name, value in total.items():
                value.index_add_(0, self.classes(k, stage), payload[name])
        self.server.update(total)
