"""How the server fuses Fed-LSCL's generators (paper section 4.4): the interface, and replacements of O2D."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lscl.federation.averaging import average
from lscl.federation.client import Client
from lscl.federation.method import IMAGES, Method, Stage
from lscl.federation.payload import Payload, Shapes

GENERATOR_PARTS = ("weight", "bias")  # the names of a generator's tensors: (P, m) and (P,)


@dataclass(frozen=True)
class Fusion:
    """The interface of a fusion. This one shares nothing (o2d = none): every client keeps its own generator.

    An object lives for one call. A fusion of your own, with `shares = True`, takes a place in the dictionary
    `lscl.methods.fed_lscl.FUSIONS`; one whose runs are recorded comes as a system of its own, a registered subclass of
    `FedLSCL` whose property `fusion` returns it.

    Args:
        method: the system; its config and its census are at hand.
    """

    method: Method
    shares: ClassVar[bool] = False  # whether generators travel at all

    def upload_shapes(self, client: int, stage: Stage, generator: Shapes) -> Shapes:
        """Names and shapes of a valid upload.

        Args:
            client: its number.
            stage: the exchange.
            generator: names and shapes of the generator, which every upload has.

        Returns:
            These, and those of the tensors uploaded with them.
        """
        return generator

    def upload(self, client: Client, generator: Payload) -> Payload:
        """What a client sends.

        Args:
            client: after its training.
            generator: its `weight` (P, m) and `bias` (P,).

        Returns:
            These, and the tensors uploaded with them.
        """
        return generator

    def aggregate(self, uploads: Mapping[int, Payload]) -> dict[str, Tensor]:
        """The generators that the server sends back.

        Args:
            uploads: of the clients by their numbers, as `upload` makes them.

        Returns:
            "k.weight" (P, m) and "k.bias" (P,) of every client k that gets another generator.
        """
        return {}


class Averaging(Fusion):
    """FedAvg of the generators, weighted by the number of training images: all clients get the same one."""

    shares = True

    def upload_shapes(self, client: int, stage: Stage, generator: Shapes) -> Shapes:
        return {IMAGES: (), **generator}

    def upload(self, client: Client, generator: Payload) -> Payload:
        return {IMAGES: torch.tensor(len(client.current.train)), **generator}

    def aggregate(self, uploads: Mapping[int, Payload]) -> dict[str, Tensor]:
        states = {k: {name: payload[name] for name in GENERATOR_PARTS} for k, payload in uploads.items()}
        mean = average(states, {k: float(payload[IMAGES]) for k, payload in uploads.items()})
        return {f"{k}.{name}": mean[name].clone() for k in range(self.method.config.clients) for name in mean}
