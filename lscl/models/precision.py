"""The arithmetic of a client's training: float32 by default, half precision where the config asks for it.

Scores, uploads and the server's work are always computed in float32 (closed forms in float64), because logits in half
precision would tie.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from lscl.config import Experiment

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class MixedPrecision:
    """Forward passes under autocast, and gradients scaled for the small range of fp16; fp32 changes nothing.

    Args:
        precision: "fp32", "bf16" or "fp16".
        device: where the client trains.
    """

    def __init__(self, precision: str, device: torch.device):
        self.dtype, self.device = DTYPES[precision], device
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def forward(self) -> AbstractContextManager:
        """The context manager of a forward pass."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def step(self, loss: Tensor, optimiser: torch.optim.Optimizer, clip: float | None = None) -> None:
        """Run the backward pass, clip the gradient and step; a step whose scaled gradients overflow is skipped.

        Args:
            loss: a scalar.
            optimiser: the optimiser of all trained parameters.
            clip: largest norm of the gradient; None = any.
        """
        optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if clip is not None:
            self.scaler.unscale_(optimiser)
            nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], clip)
        self.scaler.step(optimiser)
        self.scaler.update()


def prepare_device(config: Experiment) -> None:
    """Let a CUDA GPU use TF32 in matrix products and convolutions only if the config asks for it."""
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32


def to_channels_last(model: nn.Module, config: Experiment) -> nn.Module:
    """Bring a model's convolutions into channels-last layout if the config asks for it.

    Args:
        model: the model, changed in place.
        config: the experiment.

    Returns:
        The model.
    """
    if config.channels_last:
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.to(memory_format=torch.channels_last)
    return model
