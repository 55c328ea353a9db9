"""The arithmetic of a client's training: float32 by default, half precision where the config asks for it.

Scores, uploads and the server's work are always computed in float32 (closed forms in float64), because logits in half
precision would tie.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lscl.config import Experiment
from lscl.errors import LsclError, first_line

SCALER = "scaler."  # before the names of what a client keeps of it: `scale` () float32, `growth` () int64
WORKSPACE, REPEATING = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")  # with these, cuBLAS repeats its products
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
HALVES = (torch.bfloat16, torch.float16)

Anything = TypeVar("Anything")


class MixedPrecision:
    """Forward passes under autocast, and gradients scaled for the small range of fp16; fp32 changes nothing.

    Args:
        precision: "fp32", "bf16" or "fp16".
        device: where the client trains.
        kept: a client's private state, with the scaling that `scaling` stored there; None = scaling starts anew.
    """

    def __init__(self, precision: str, device: torch.device, kept: Mapping[str, Tensor] | None = None):
        self.dtype, self.device = DTYPES[precision], device
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        if kept and self.scaler.is_enabled() and f"{SCALER}scale" in kept:
            now = {"scale": float(kept[f"{SCALER}scale"]), "_growth_tracker": int(kept[f"{SCALER}growth"])}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **now})

    def scaling(self) -> dict[str, Tensor]:
        """What scaling remembers between rounds: its scale, and the steps since the last change; empty without fp16."""
        if not self.scaler.is_enabled():
            return {}
        now = self.scaler.state_dict()
        return {f"{SCALER}scale": torch.tensor(now["scale"]), f"{SCALER}growth": torch.tensor(now["_growth_tracker"])}

    def forward(self) -> AbstractContextManager:
        """A context manager in which the forward pass runs with this precision."""
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


def without_autocast(device: torch.device) -> AbstractContextManager:
    """A context manager in which everything is computed in float32, whatever the precision around it."""
    usable = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if usable else nullcontext()


def in_float32(function: Callable[..., Anything]) -> Callable[..., Anything]:
    """Make a function compute in float32, whatever the arithmetic around it: for losses, norms and distances.

    In fp16 a square of more than 256 is infinite, and 1e-8, which keeps a divisor from 0, is 0.
    """

    @wraps(function)
    def computed(*given: Any, **named: Any) -> Anything:
        device = next(value.device for value in given if isinstance(value, Tensor))
        with without_autocast(device):
            return function(*map(_widened, given), **named)

    return computed


def _widened(value: Any) -> Any:
    """A tensor of half precision as float32; anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value


def device_of(config: Experiment) -> torch.device:
    """The device to compute on.

    Raises:
        LsclError: device = cuda without a CUDA GPU; device = mps, whatever the machine.
    """
    if config.device == "mps":
        raise LsclError(
            "device = mps: a Mac's GPU has no float64, which closed forms and scores need (allowed here: auto, cpu"
            + (", cuda)" if torch.cuda.is_available() else ")")
        )
    if config.device == "cuda" and not torch.cuda.is_available():
        raise LsclError("device = cuda: no CUDA GPU found (allowed here: auto, cpu)")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def prepare_device(config: Experiment) -> None:
    """Let a CUDA GPU use TF32 in matrix products and convolutions only if the config asks for it.

    This holds for the whole process from then on.
    """
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32


def prepare_repetition(config: Experiment, device: torch.device) -> None:
    """Make a CUDA GPU repeat runs bit for bit if the config asks for it; a CPU always does.

    This costs time: a GPU then adds in a fixed order, and attention cannot use its fastest form. It holds for the whole
    process from then on: which operations and which forms of attention torch allows, that new tensors are not filled,
    and the environment variable of cuBLAS's workspace.

    Args:
        config: the experiment.
        device: where it runs.

    Raises:
        LsclError: CUDA has already started in this process without the setting that repeatable products need.
    """
    wanted = config.deterministic and device.type == "cuda"
    torch.use_deterministic_algorithms(wanted or device.type == "cpu", warn_only=not wanted)
    # Nothing here reads what it has not written, and filling costs 5 %.
    torch.utils.deterministic.fill_uninitialized_memory = False
    # What is left is plain attention, and in half precision FlashAttention, whose way back has a form that repeats.
    torch.backends.cuda.enable_mem_efficient_sdp(not wanted)
    if hasattr(torch.backends.cuda, "enable_cudnn_sdp"):  # torch from 2.5 on
        torch.backends.cuda.enable_cudnn_sdp(not wanted)
    if wanted and os.environ.get(WORKSPACE) not in REPEATING:
        if torch.cuda.is_initialized():
            raise LsclError(
                f"deterministic = True: this process has used CUDA already; start a new one, or set {WORKSPACE} to "
                f"{REPEATING[0]} before it"
            )
        os.environ[WORKSPACE] = REPEATING[0]


@contextmanager
def one_line_if_unrepeatable(config: Experiment) -> Iterator[None]:
    """Turn torch's refusal of an operation that cannot repeat into one line.

    Raises:
        LsclError: an operation has no repeatable form on a GPU.
    """
    try:
        yield
    except RuntimeError as error:
        if not config.deterministic or "deterministic" not in str(error):
            raise
        raise LsclError(f"deterministic = True: {first_line(error)}; leave it out for {config.method}") from error


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
