"""In which arithmetic a client trains: the defaults are float32 everywhere and nothing that rounds otherwise.

Scores, uploads and the server's work are always computed in float32 (closed forms in float64): half-precision logits would tie.
"""

import torch
from torch import Tensor, nn

from lscl.config import Experiment

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class MixedPrecision:
    """Forward passes under autocast, and gradients scaled where the numbers' range is small (fp16). With fp32 nothing is changed."""

    def __init__(self, precision: str, device: torch.device):
        self.dtype, self.device = DTYPES[precision], device
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def forward(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def step(self, loss: Tensor, optimiser: torch.optim.Optimizer, clip: float | None = None) -> None:
        """Backward pass, gradient clipping and the optimiser's step; a step whose scaled gradients overflow is left out."""
        optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if clip is not None:
            self.scaler.unscale_(optimiser)
            nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], clip)
        self.scaler.step(optimiser)
        self.scaler.update()


def prepare_device(config: Experiment) -> None:
    """TF32 in matrix products and convolutions of a CUDA GPU only where the config asks for it."""
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32


def to_channels_last(model: nn.Module, config: Experiment) -> nn.Module:
    """The model, its convolutions in channels-last layout where the config asks for it."""
    if config.channels_last:
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.to(memory_format=torch.channels_last)
    return model
