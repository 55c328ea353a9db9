"""Make the networks that this package ships: distil them from EfficientNet-Lite0's final features, without labels.

The teacher sees every image at 128 pixels, and its features are kept on disk (`lscl.models.teacher`).

mini_vit: the blocks of the mini foundation model. It sees an image at 96 pixels through the teacher's own first stages,
          which are frozen; their output is kept on disk, too.
small:    the CNN `small`, which Fed-LSCL's clients may start from. It sees an image at 32 pixels, as in a run
          (`to_cnn_input`), and half of the images mirrored. Its features are layer-normalised, as in a run.
"""

import hashlib
import io
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from lscl import paths
from lscl.data.folder import image_folder
from lscl.data.store import write_atomic
from lscl.errors import LsclError, first_line, make_printable, unknown_name
from lscl.models.cnn import WIDTHS, new_cnn, to_cnn_input
from lscl.models.mini import Stem, mini_vit
from lscl.models.teacher import TEACHER_WIDTH, stem_maps, teacher_features, teacher_network
from lscl.seeding import seeded, torch_generator

SMALL_SIZE = 32  # pixels a side of what the CNN sees
LIMITS = {"epochs": (1, 10_000), "batch": (1, 65_536), "lr": (1e-9, 1.0), "seed": (0, 2**31 - 1), "threads": (1, 1024)}


@dataclass(frozen=True)
class Student:
    """A network that learns, followed by the map to the teacher's features.

    Args:
        modules: the network and the map `to_teacher`; all parameters are trained.
        guess: positions (b,) of a step's images, and the generator of the epoch's flips -> (b, 1280).
        weights: -> what is written, {name: tensor}.
    """

    modules: nn.ModuleDict
    guess: Callable[[np.ndarray, torch.Generator], Tensor]
    weights: Callable[[], dict[str, Tensor]]


class TokensFromMaps(nn.Module):
    """Replaces the stem while its output is read from disk."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps unchanged: (b, 112, 6, 6)."""
        return maps


def mini_vit_student(images: np.ndarray, work: Path, seed: int) -> Student:
    """The mini ViT on top of the teacher's stem.

    Args:
        images: (n, 32, 32, 3) uint8.
        work: where the stem's outputs are kept.
        seed: seed of the initial weights.

    Returns:
        The student; it draws no flips.
    """
    maps = stem_maps(images, work)
    stem = Stem(teacher_network())
    with seeded(seed, "mini-vit"):
        vit = mini_vit(stem)
        vit.patch_embed.backbone = TokensFromMaps()
        vit.patch_embed.strict_img_size = False
        to_teacher = nn.Linear(vit.embed_dim, TEACHER_WIDTH)

    def guess(index: np.ndarray, _flips: torch.Generator) -> Tensor:
        return to_teacher(vit.forward_head(vit.forward_features(torch.from_numpy(maps[index]).float())))

    def weights() -> dict[str, Tensor]:
        vit.patch_embed.backbone = stem
        return vit.state_dict()

    return Student(nn.ModuleDict({"vit": vit, "to_teacher": to_teacher}), guess, weights)


def small_student(images: np.ndarray, work: Path, seed: int) -> Student:
    """The CNN `small` with its features layer-normalised, as Fed-LSCL's clients have it.

    Args:
        images: (n, 32, 32, 3) uint8.
        work: not used, nothing is kept.
        seed: seed of the initial weights.

    Returns:
        The student; each image of a step is mirrored or not.
    """
    width = WIDTHS["small"][-1]
    with seeded(seed, "small-cnn"):
        extractor = new_cnn("small", SMALL_SIZE, width, norm=True)
        to_teacher = nn.Linear(width, TEACHER_WIDTH)

    def guess(index: np.ndarray, flips: torch.Generator) -> Tensor:
        x = to_cnn_input(torch.from_numpy(np.array(images[index])))  # (b, 3, 32, 32)
        mirrored = torch.rand(len(x), generator=flips) < 0.5
        return to_teacher(extractor(torch.where(mirrored[:, None, None, None], x.flip(3), x)))

    return Student(nn.ModuleDict({"cnn": extractor, "to_teacher": to_teacher}), guess, extractor.cnn.state_dict)


# What can be made: {name: (how, the file it is shipped as)}.
NETWORKS: dict[str, tuple[Callable[[np.ndarray, Path, int], Student], str]] = {
    "mini_vit": (mini_vit_student, "mini_vit.safetensors"),
    "small": (small_student, "small_cnn.safetensors"),
}


def pretrain(
    data_dir: Path,
    out: Path | None = None,
    epochs: int = 3,
    batch: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    threads: int = 2,
    network: str = "mini_vit",
) -> None:
    """Distil a network and write its weights (safetensors, float16).

    The same call resumes after a stop.

    Args:
        data_dir: folder of <class>/<image> files; the classes do not matter.
        out: the new weight file, .safetensors; None = a file of the shipped one's name in the current folder.
        epochs: passes over the images.
        batch: images per step.
        lr: largest learning rate.
        seed: seed of weights, order and flips.
        threads: CPU threads.
        network: mini_vit or small.

    Raises:
        LsclError: an unknown network, a value outside of LIMITS, too few images, a missing package of the teacher, a
            damaged state, or a loss that is not finite.
    """
    if network not in NETWORKS:
        raise unknown_name("network", network, NETWORKS)
    student_of, file_name = NETWORKS[network]
    for name, value in {"epochs": epochs, "batch": batch, "lr": lr, "seed": seed, "threads": threads}.items():
        low, high = LIMITS[name]
        if not low <= value <= high:
            raise LsclError(f"{name} = {value}: allowed are {low} to {high}")
    out = Path(file_name) if out is None else out
    if out.suffix != ".safetensors":
        raise LsclError(f"out = {str(out)!r}: the name of a weight file ends in .safetensors")
    torch.set_num_threads(threads)
    data = image_folder(data_dir, SMALL_SIZE)
    for note in data.notes:
        print(f"{make_printable(str(data_dir))}: {note}", file=sys.stderr)
    if len(data) < batch:
        raise LsclError(f"batch = {batch}: {data_dir} holds {len(data)} images, and a step needs a whole batch")
    work = paths.cache() / "pretrain" / data.digest[:16]
    features = teacher_features(data.images, work)
    student = student_of(data.images, work, seed)
    state = work / f"state-{network}-{epochs}-{batch}-{lr}-{seed}.pt"
    loss = distil(student, features, state, epochs=epochs, batch=batch, lr=lr, seed=seed)
    about = {"images": len(data), "data_digest": data.digest, "epochs": epochs, "batch": batch, "lr": lr, "seed": seed}
    write_weights(out, student.weights(), {"network": network, **about, "loss": round(loss, 4)})
    print(f"wrote {out}", flush=True)


def distil(
    student: Student, features: np.ndarray, state: Path, *, epochs: int, batch: int, lr: float, seed: int
) -> float:
    """Train a student; the state is saved after every epoch, and the same call resumes.

    Loss: 1 - cos(W z, standardised teacher feature), AdamW, one-cycle learning rate.

    Args:
        student: the network.
        features: the teacher's, (n, 1280).
        state: the file of the state.
        epochs: passes over the images.
        batch: images per step.
        lr: largest learning rate.
        seed: seed of order and flips.

    Returns:
        The mean loss of the last epoch.

    Raises:
        LsclError: a damaged state, or a loss that is not finite.
    """
    sample = torch.from_numpy(features[:: max(1, len(features) // 10_000)]).float()  # (about 10,000, 1280)
    mean, std = sample.mean(0), sample.std(0) + 1e-4
    modules = student.modules.train()
    decayed = [p for p in modules.parameters() if p.ndim > 1]
    others = [p for p in modules.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], lr=lr
    )
    steps = len(features) // batch
    total, warm = epochs * steps, steps // 2

    def schedule(step: int) -> float:  # linear warm-up, then half a cosine
        return (
            (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm))) + 1e-3
        )

    first, loss_found = _resume(state, modules, optimiser)
    for epoch in range(first, epochs):
        order = torch.randperm(len(features), generator=torch_generator(seed, "pretrain", epoch)).numpy()
        flips = torch_generator(seed, "pretrain-flips", epoch)
        started, losses = time.time(), []
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = lr * schedule(epoch * steps + step)
            index = np.sort(order[step * batch : (step + 1) * batch])  # sorted: fewer page faults
            target = (torch.from_numpy(features[index]).float() - mean) / std
            loss = (1 - F.cosine_similarity(student.guess(index, flips), target, dim=1)).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
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
                "student": modules.state_dict(),
                "optimiser": optimiser.state_dict(),
                "epoch": epoch + 1,
                "loss": loss_found,
            },
            saved,
        )
        write_atomic(state, saved.getvalue())
    return loss_found


def _resume(state: Path, modules: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, float]:
    """Load what an earlier call saved, if it did; -> the epochs that are done and the loss of the last one."""
    if not state.exists():
        return 0, math.nan
    try:
        saved = torch.load(state, weights_only=True)
        modules.load_state_dict(saved["student"])
        optimiser.load_state_dict(saved["optimiser"])
        return saved["epoch"], saved["loss"]
    except Exception as error:  # damaged files fail in many ways
        raise LsclError(f"cannot read {state}: {first_line(error)}; remove it to begin again") from error


def write_weights(path: Path, state: dict[str, Tensor], about: dict[str, object]) -> None:
    """Write tensors in half precision, and a .json file of the same name with their SHA-256 and facts about them.

    Args:
        path: the new file, .safetensors.
        state: {name: tensor}; whole numbers, such as BatchNorm's count of steps, stay as they are.
        about: facts about the weights, such as images and loss.
    """
    halved = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    data = save({name: value.contiguous() for name, value in halved.items()})
    write_atomic(path, data)
    write_atomic(
        path.with_suffix(".json"), json.dumps({"sha256": hashlib.sha256(data).hexdigest(), **about}, indent=1).encode()
    )
