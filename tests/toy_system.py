"""A system and a data set as somebody else would write them, for the tests of all that has to know them by one call."""

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from lscl.data.store import ImageSet
from lscl.federation.client import Batch, Client
from lscl.federation.method import Method, Phase, Stage
from lscl.federation.search_space import LogRange, OneOf


class ToySystem(Method):
    """A head on coarse pixels, averaged; nothing is frozen and no CNN is trained.

    Trained, uploaded, returned: head W (C, 12), b (C,). Payload: up 52 C + 8 bytes, down 52 C bytes.
    """

    name, label = "toy", "Toy"
    vit = False
    tuned = {"lr": 1e-2}  # noqa: RUF012
    search_space = {"lr": LogRange(1e-4, 1), "toy_scale": OneOf((0.5, 1.0, 2.0))}  # noqa: RUF012
    studies = {"scales": lambda profile: {f"scale {scale}": {"toy_scale": scale} for scale in (1.0, 2.0)}}  # noqa: RUF012

    class Parameters(Method.Parameters):
        """Its one parameter."""

        toy_scale: float = Field(1.0, ge=0.1, le=10, description="factor on the pixels of the toy")

    def build(self, client: int) -> nn.Module:
        return nn.Linear(12, self.num_classes)

    def logits(self, client: Client, batch: Batch) -> Tensor:
        coarse = nn.functional.adaptive_avg_pool2d(batch.images, 2).flatten(1)  # (b, 3, H, W) -> (b, 12)
        return client.model(self.config.toy_scale * coarse)

    def phases(self, client: Client, stage: Stage) -> list[Phase]:
        return [
            Phase(
                [{"params": client.model.parameters(), "lr": self.config.lr}],
                self.loss,
                self.config.epochs,
                self.config.batch,
            )
        ]


TOY_FACTS = {"label": "Toy images", "images": (6, 2), "classes": 14, "pixels": 16}


def load_toy(config):
    """14 classes of flat colours with noise: 6 and 2 images of 16 pixels each."""
    draw, names = np.random.default_rng(3), tuple(f"colour{label:02d}" for label in range(14))
    colours = draw.uniform(40, 215, (14, 1, 1, 1, 3))

    def split(count):
        images = (colours + draw.normal(0, 20, (14, count, 16, 16, 3))).clip(0, 255).astype(np.uint8)
        return ImageSet(images.reshape(-1, 16, 16, 3), np.repeat(np.arange(14), count), names)

    return split(6), split(2)
