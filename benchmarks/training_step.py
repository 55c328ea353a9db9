"""One training step of every ViT method at the shapes of ViT-B/16 or the mini ViT, against its bare matrix products.

ViT-B/16 has 224 px and random weights. The products: for every block behind the method's cut the four linear layers and
the two of attention, forward, and back to the activations (no weight gradient), on all tokens, as plain matrix products
into memory that is allocated already. Fed-LSCL's reference also has the bare step of its CNN. `minimal` leaves out what
nobody needs: in the last block all but the CLS token's path, in the first everything behind its adapted layer.
Fed-LSCL is also compared with the plain way (whole ViT in every step, one updated weight formed per sample) and, where
the package peft is installed, with a LoRA made by it in the same block.

    python benchmarks/training_step.py [--shapes vit_b] [--batch 16] [--threads 2] [--methods fed_lscl,lorm]

writes results/benchmarks/training_step_<shapes>.json. Run it alone on the machine: about half an hour for ViT-B/16 on
two slow cores.
"""

import argparse
import copy
import importlib.util
from collections.abc import Callable

import measure
import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from lscl.cli import one_line
from lscl.config import experiment, readers
from lscl.data.partition import Census, partition
from lscl.data.store import Dataset, ImageSet
from lscl.experiments.run import read_inputs
from lscl.federation.client import Client
from lscl.federation.method import Method, Phase, Stage
from lscl.methods import METHODS
from lscl.models.vit import FrozenViT, foundation

CLASSES = 4  # few, so that a small batch has them all; they only make the head narrower
METHOD_VALUES = {"vit_b": {"lorm": {"lorm_rank": 16, "batch": 8}}, "mini": {}}
SHAPES = {
    "vit_b": {"profile": "paper", "batch": 16},
    "mini": {"profile": "mini", "batch": 32},
}
GOALS = {"fed_lscl": 1.12, "lorm": 1.4}  # at ViT-B/16
OTHERS = 1.5  # all others there
FASTER = {"vit_b": 1.3, "mini": 2.0}  # than the plain way


def federation(
    name: str,
    vit: timm.models.VisionTransformer,
    shapes: str,
    batch: int | None,
    device: str = "cpu",
    count: int | None = None,
    **more: object,
) -> tuple[Method, Client]:
    """A method and its one client, holding `count` random images, none = as many as a batch has."""
    values = {**SHAPES[shapes], **METHOD_VALUES[shapes].get(name, {}), **({"batch": batch} if batch else {}), **more}
    if name in readers("cnn_start"):
        values["cnn_start"] = "drawn"  # trained weights would have to be downloaded, and cost the same
    config = experiment(
        method=name,
        dataset="cifar100",
        eval_split="official",
        clients=1,
        tasks=1,
        classes_per_task=CLASSES,
        private_classes=CLASSES,
        device=device,
        **values,
    )
    draw, count = np.random.default_rng(0), count or config.batch
    images = ImageSet(
        draw.integers(0, 256, (count, config.image_size, config.image_size, 3), np.uint8),
        np.arange(count) % CLASSES,
        tuple(f"class{label}" for label in range(CLASSES)),
    )
    kind, place = METHODS[name], torch.device(device)
    frozen = None
    if kind.vit:
        cut = kind.cut(config)
        frozen = FrozenViT(vit, len(vit.blocks) if cut is None else cut, (0.5,) * 3, (0.5,) * 3)
    data = Dataset("random", images, images)
    method, parts = kind(config, frozen, len(data.classes)), partition(config, data)
    method.device, method.census = place, Census.count(parts, data)
    both = read_inputs(kind, frozen, images, place, side=config.cnn_size)
    return method, Client(0, method.new_model(0).to(place), parts, both, both, config.seed)


def frozen_vit(shapes: str) -> timm.models.VisionTransformer:
    """The mini ViT, or ViT-B/16 with random weights."""
    return (
        foundation("mini", None).vit
        if shapes == "mini"
        else timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)
    )


def begin(method: Method, client: Client, number: int = 0) -> Stage:
    """Bring the client to a stage of its first task, by the stage's number, as the loop does before it trains."""
    client.task, stage = 0, method.stages(0)[number]
    method.start_task(client)
    method.receive(client, method.broadcast(0, stage), stage)
    return stage


def step(method: Method, client: Client, phase: Phase) -> Callable[[], None]:
    """A training step as `lscl.federation.training.fit` makes it, the optimiser's included."""
    optimiser = torch.optim.Adam(phase.groups)
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    client.model.train()

    def one() -> None:
        loss = phase.loss(client, client.train.batch(client.train_index))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if phase.clip is not None:
            torch.nn.utils.clip_grad_norm_(trained, phase.clip)
        optimiser.step()

    return one


class Products:
    """The bare matrix products of blocks `first` to the last on b samples of N tokens: run() does them all."""

    def __init__(
        self,
        vit: timm.models.VisionTransformer,
        first: int,
        samples: int,
        tokens: int,
        minimal: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        self.blocks, self.minimal, self.b, self.n = list(vit.blocks)[first:], minimal, samples, tokens
        self.heads, self.d = vit.blocks[0].attn.num_heads, vit.embed_dim
        rows, hidden = samples * tokens, vit.blocks[0].mlp.fc1.out_features
        self.weights = {
            layer: layer.weight.detach().to(dtype)
            for block in self.blocks
            for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
        }
        draw = lambda *shape: torch.randn(*shape, device=vit.cls_token.device, dtype=dtype)
        self.at = {size: draw(rows, size) for size in (self.d, 3 * self.d, hidden)}
        self.out = {size: draw(rows, size) for size in (self.d, 3 * self.d, hidden)}
        per_head = self.d // self.heads
        self.q, self.map = draw(samples * self.heads, tokens, per_head), draw(samples * self.heads, tokens, tokens)
        self.q_out, self.map_out = torch.empty_like(self.q), torch.empty_like(self.map)

    def linear(self, layer: torch.nn.Linear, forward: bool, rows: int, part: slice = slice(None)) -> None:
        weight = self.weights[layer][part]  # (out, in)
        inputs, outputs = (weight.shape[1], weight.shape[0]) if forward else weight.shape
        source, target = self.at[self._wide(inputs)][:rows, :inputs], self.out[self._wide(outputs)][:rows, :outputs]
        torch.mm(source, weight.T if forward else weight, out=target)

    def _wide(self, size: int) -> int:
        return min(width for width in self.at if width >= size)

    def attention(self, queries: int, count: int) -> None:
        """`count` pairs of products with the (queries, N) maps: one pair forward, two back."""
        for _ in range(count):
            torch.bmm(self.q[:, :queries], self.q.transpose(1, 2), out=self.map_out[:, :queries])
            torch.bmm(self.map[:, :queries], self.q, out=self.q_out[:, :queries])

    @torch.no_grad()
    def run(self) -> None:
        every, last = self.b * self.n, len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            short = self.minimal and index == last
            rows, queries = (self.b, 1) if short else (every, self.n)
            for forward in (True, False):
                if short:  # queries of CLS only; keys and values of all tokens
                    self.linear(block.attn.qkv, forward, rows, slice(self.d))
                    self.linear(block.attn.qkv, forward, every, slice(self.d, None))
                elif forward or not (self.minimal and index == 0):
                    self.linear(block.attn.qkv, forward, every)
                self.attention(queries, 1 if forward else 2)
                for layer in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                    self.linear(layer, forward, rows)


def cnn_step(client: Client) -> Callable[[], None]:
    """Forward and backward of the CNN alone, its optimiser's step included."""
    network = copy.deepcopy(client.model["cnn"]).train()
    optimiser, images = torch.optim.Adam(network.parameters()), client.train.batch(client.train_index).images

    def one() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss = network(images).square().mean()
        if loss.requires_grad:  # a frozen CNN only looks
            loss.backward()
        optimiser.step()

    return one


def plain_step(method: Method, client: Client) -> Callable[[], None]:
    """Fed-LSCL the plain way: the whole ViT in every step, and one qkv weight W + s B_i A_i formed for each sample."""
    config, vit, model = method.config, method.foundation.vit, client.model
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr)
    pixels = method.foundation.preprocess(torch.from_numpy(client.train.images.images).to(client.device))
    attention = vit.blocks[config.block].attn

    def one() -> None:
        batch = client.train.batch(client.train_index)
        update = method.update(client, model["cnn"](batch.images))

        def qkv(x: Tensor) -> Tensor:
            weight = attention.qkv.weight + update.scale * torch.bmm(update.B, update.A)  # (b, 3d, d)
            return torch.baddbmm(attention.qkv.bias.expand(len(x), 1, -1), x, weight.transpose(1, 2))

        before, attention.qkv.forward = attention.qkv.forward, qkv
        try:
            logits = model["head"](vit(pixels))
        finally:
            attention.qkv.forward = before
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(logits, batch.labels).backward()
        optimiser.step()

    return one


def peft_step(method: Method, client: Client, with_cnn: bool) -> Callable[[], None]:
    """A LoRA of the same rank on the same qkv by peft, with a head, the whole ViT in every step, and the same CNN."""
    from peft import LoraConfig, get_peft_model

    config = method.config
    pattern = rf"blocks\.{config.block}\.attn\.qkv"
    lora = get_peft_model(
        copy.deepcopy(method.foundation.vit),
        LoraConfig(r=config.rank, lora_alpha=config.lora_alpha, target_modules=pattern),
    )
    head, pixels = (
        copy.deepcopy(client.model["head"]),
        method.foundation.preprocess(torch.from_numpy(client.train.images.images).to(client.device)),
    )
    optimiser = torch.optim.Adam([*(p for p in lora.parameters() if p.requires_grad), *head.parameters()], lr=config.lr)
    labels, cnn = client.train.batch(client.train_index).labels, cnn_step(client)

    def one() -> None:
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(head(lora(pixels)), labels).backward()
        optimiser.step()
        if with_cnn:
            cnn()

    return one


def vit_part(method: Method, client: Client) -> Callable[[], None]:
    """Fed-LSCL without its CNN: generator on given features, frozen suffix, head."""
    batch, model = client.train.batch(client.train_index), client.model
    f = torch.randn(len(batch.index), method.config.features)
    optimiser = torch.optim.Adam([*model["generator"].parameters(), *model["head"].parameters()], lr=method.config.lr)

    def one() -> None:
        optimiser.zero_grad(set_to_none=True)
        logits = model["head"](method.foundation.suffix(batch.prefix, method.update(client, f)))
        F.cross_entropy(logits, batch.labels).backward()
        optimiser.step()

    return one


def goal(shapes: str, method: str) -> float | None:
    """The largest ratio to the bare products that is wanted, None where there is no goal."""
    return GOALS.get(method, OTHERS) if shapes == "vit_b" else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=SHAPES, default="vit_b")
    parser.add_argument("--batch", type=measure.count, help="images per step, none = 16 at vit_b (LoRM 8), 32 at mini")
    parser.add_argument("--threads", type=measure.count, default=2)
    parser.add_argument(
        "--methods", type=measure.names(METHODS), default="fed_lscl,local_lora,l2p,dualprompt,fedmgp,pilora,lorm"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.utils.deterministic.fill_uninitialized_memory = False  # as in lscl.experiments.run
    torch.manual_seed(0)
    vit = frozen_vit(given.shapes)
    rows = []
    for name in given.methods:
        method, client = federation(name, vit, given.shapes, given.batch)
        stage = begin(method, client)
        extra = {"l2p": method.config.l2p_top_k * method.config.l2p_length, "fedmgp": method.config.mgp_length}.get(
            name, 0
        )
        samples, tokens = len(client.train_index), method.foundation.tokens + extra
        for number, phase in enumerate(method.phases(client, stage)):
            bare = {
                kind: Products(vit, method.foundation.block, samples, tokens, kind == "minimal")
                for kind in ("all", "minimal")
            }
            work = {"step": step(method, client, phase), **{kind: one.run for kind, one in bare.items()}}
            if name == "fed_lscl":
                cnn = cnn_step(client)
                for kind, one in bare.items():
                    work[kind] = lambda one=one, cnn=cnn: (one.run(), cnn())
                work |= {"plain": plain_step(method, client), "ViT part": vit_part(method, client)}
                if importlib.util.find_spec("peft") and given.shapes == "vit_b":
                    work |= {"peft": peft_step(method, client, False), "peft and CNN": peft_step(method, client, True)}
            seconds = measure.side_by_side(work)
            row = {"method": name, "phase": number, "batch": samples, "ratio": measure.ratio(seconds, "step", "all")}
            row |= {
                "goal": goal(given.shapes, name),
                "better": "lower",
                "ratio_to_minimal": measure.ratio(seconds, "step", "minimal"),
            }
            row["images_per_second"] = round(samples / float(np.median(seconds["step"])), 2)
            if name == "fed_lscl":
                row["times_faster_than_plain"] = {
                    "ratio": measure.ratio(seconds, "plain", "step"),
                    "goal": FASTER[given.shapes],
                    "better": "higher",
                }
                if "peft" in work:
                    row["vit_part_to_peft"] = {
                        "ratio": measure.ratio(seconds, "ViT part", "peft"),
                        "goal": 0.8,
                        "better": "lower",
                    }
                    row["whole_to_peft"] = {
                        "ratio": measure.ratio(seconds, "step", "peft and CNN"),
                        "goal": 1.0,
                        "better": "lower",
                    }
            rows.append(row)
            print(row, flush=True)
    ours = next((row for row in rows if row["method"] == "fed_lscl"), rows[0])
    measure.write(
        f"training_step_{given.shapes}",
        {"ratio": ours["ratio"], "goal": ours["goal"], "better": "lower", "threads": given.threads, "rows": rows},
    )


if __name__ == "__main__":
    with one_line():
        main()
