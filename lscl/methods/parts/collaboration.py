"""What can replace the update written per image (paper section 4.2): one static LoRA, or the CNN alone."""

from collections.abc import Callable

from torch import nn

from lscl.federation.method import Method
from lscl.models.cnn_weights import started_cnn
from lscl.models.generator import Generator
from lscl.seeding import seeded


def static_lora_model(method: Method, client: int) -> nn.ModuleDict:
    """The modules of a client without a CNN: a generator of m = 0 features is its bias, one LoRA for all images.

    Args:
        method: Fed-LSCL with collaboration = static.
        client: its number.

    Returns:
        `generator`, the same on all clients, and `head` (d -> C), the client's own.
    """
    config, width = method.config, method.foundation.width
    generator = Generator(0, width, config.rank, config.lora_alpha / config.rank)
    with seeded(config.seed, "model", client):
        return nn.ModuleDict({"generator": generator, "head": nn.Linear(width, method.num_classes)})


def cnn_alone_model(method: Method, client: int) -> nn.ModuleDict:
    """The modules of a client without the ViT: there is no generator, so nothing travels.

    Args:
        method: Fed-LSCL with collaboration = cnn.
        client: its number.

    Returns:
        `cnn` and `head` (m -> C), both the client's own.
    """
    config = method.config
    with seeded(config.seed, "model", client):
        cnn = started_cnn(config, client, config.cnn_start)
        return nn.ModuleDict({"cnn": cnn, "head": nn.Linear(config.features, method.num_classes)})


REPLACED_MODELS: dict[str, Callable[[Method, int], nn.ModuleDict]] = {
    "static": static_lora_model,
    "cnn": cnn_alone_model,
}
