"""What the components of Fed-LSCL do inside a run, where the ablations only show what comes out of it.

The first tasks of the whole system are run again, and of the system with one static LoRA, with the values of the
records and with the larger rate of the generator that the study `larger_rate` has; on one seed's partition all see the
same images. At the end of each task, on the images of that task, with the task given:

- the accuracy on training and test images when the frozen ViT gets the update written for the image itself, that of
  another image, that of the mean features of the client's training images (one update for all), or none; the head
  stays as it is. The gap between training and test is overfitting; that between the own and another image's update is
  what the update says about its image.
- the accuracy with the generator as the client trained it, as One-by-One Distillation returned it, and with the mean
  of all clients'; and how far the server's step moves a generator, as a share of how far the round's training had
  moved it, for bias and weights.

The runs must give the accuracies of the records, if there are any; a difference ends the benchmark. Kernels of a GPU
do not repeat, and another kind of CPU rounds in another way. So there it ends only if the mean accuracy is more than
two points away.

    python benchmarks/components.py [--dataset cifar100 --data-dir FOLDER] [--seeds 42,1999,2024] [--tasks 2]
        [--device cuda]

writes results/components/<profile>--<dataset>.json, a row per seed, rate and task; what lies there is not run
again.
"""

import argparse
import json
from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path

import measure
import numpy as np
import torch
from torch import Tensor

from lscl import paths
from lscl.cli import one_line
from lscl.config import Experiment, experiment
from lscl.experiments import records
from lscl.experiments.run import prepare
from lscl.experiments.verify import same_rounding
from lscl.federation.averaging import average
from lscl.federation.client import Client, Inputs
from lscl.federation.loop import InProcess, federate
from lscl.federation.masking import mask_logits
from lscl.federation.method import Stage
from lscl.federation.metrics import MASKS, evaluate, task_accuracies
from lscl.federation.passes import BATCH, map_batches
from lscl.federation.payload import Payload, seal
from lscl.methods.fed_lscl import FedLSCL
from lscl.methods.parts.fed_lscl_studies import LARGER_RATE
from lscl.seeding import torch_generator


@torch.no_grad()
def accuracy(method: FedLSCL, client: Client, inputs: Inputs, index: Tensor, features: Tensor | None) -> float:
    """Percent of the images put in the right class of the task at hand.

    Args:
        method: Fed-LSCL.
        client: the one that classifies.
        inputs: of the images' split.
        index: their positions, (n,).
        features: what the updates are written from, (n, m); None = nothing adapted.

    Returns:
        0 to 100.
    """
    right, place = 0, 0
    for part in index.split(BATCH):  # (b,) each
        batch, f = (
            inputs.batch(part),
            None if features is None else features[place : place + len(part)].to(client.device),
        )
        z = method.foundation.suffix(batch.prefix, None if f is None else method.update(client, f))
        right += int((mask_logits(client.model["head"](z), client.classes).argmax(1) == batch.labels).sum())
        place += len(part)
    return 100 * right / len(index)


def accuracies_by_update(method: FedLSCL, client: Client) -> dict[str, dict[str, float]]:
    """Accuracy of the client on the task just learned: {split: {update: percent}}."""
    client.model.eval()
    found, mean = {}, map_batches(client.train, client.train_index, partial(method.cnn_features, client)).mean(0)
    for split, inputs, index in (
        ("training", client.train, client.train_index),
        ("test", client.test, client.test_index(client.task)),
    ):
        f = map_batches(inputs, index, partial(method.cnn_features, client))
        chosen: dict[str, Tensor | None] = {"own": f, "none": None}
        if method.m:
            turn = torch.randperm(
                len(f), generator=torch_generator(client.seed, f"another image, {split}", client.id, client.task)
            )
            chosen |= {
                "another": f[turn.roll(1)][turn.argsort()],
                "mean": mean.expand(len(f), -1),  # (n, m)
            }  # one cycle: no image keeps its own
        found[split] = {name: accuracy(method, client, inputs, index, features) for name, features in chosen.items()}
    return found


class Watched(InProcess):
    """Looks at the clients' generators around each server step, and at the updates at the end of each task."""

    def __init__(self, method: FedLSCL, clients: list[Client]):
        super().__init__(method, clients)
        self.rows: list[dict] = []
        self.received: dict[int, Payload] = {}
        self.uploads: dict[int, Payload] = {}
        self.moved: list[dict[str, float]] = []

    def ask(self, stage: Stage, downloads: Mapping[int, Payload]) -> dict[int, Payload]:
        if self.uploads and self.method.shares_generator:
            self.moved += [self.server_step(k, downloads[k]) for k in downloads]
        if stage.name == "finish":
            self.rows.append({"task": stage.task + 1, **self.measure(stage, downloads)})
            self.moved = []
        self.received, self.uploads = dict(downloads), {}
        answers = super().ask(stage, downloads)
        if stage.name != "finish":
            self.uploads = {k: seal(sent, f"client {k}") for k, sent in answers.items()}
        return answers

    def server_step(self, k: int, fused: Payload) -> dict[str, float]:
        """How far the server moved client k's generator, divided by how far the client had moved it in the round."""
        own, before = self.uploads[k], self.received[k]
        return {
            name: float((fused[name] - own[name]).norm() / (own[name] - before[name]).norm())
            for name in ("weight", "bias")
            if own[name].numel()
        }

    def measure(self, stage: Stage, downloads: Mapping[int, Payload]) -> dict:
        """Everything measured before a task ends, means over the clients."""
        found: dict = {}
        if self.method.shares_generator:
            states = {k: {name: one[name] for name in ("weight", "bias")} for k, one in self.uploads.items()}
            mean = average(states, dict.fromkeys(states, 1.0))
            kinds = {"own": self.uploads, "mean": dict.fromkeys(downloads, mean), "fused": downloads}
            found["generator"] = {kind: self.accuracy_with(stage, generators) for kind, generators in kinds.items()}
            found["server_step"] = {
                name: round(float(np.mean([one[name] for one in self.moved])), 4) for name in self.moved[0]
            }
        updates = []
        for client in self.clients:
            self.method.receive(client, downloads[client.id], stage)
            updates.append(accuracies_by_update(self.method, client))
        found["update"] = {
            split: {name: round(float(np.mean([one[split][name] for one in updates])), 3) for name in updates[0][split]}
            for split in updates[0]
        }
        return found

    def accuracy_with(self, stage: Stage, generators: Mapping[int, Payload]) -> float:
        """Mean over the clients of the test accuracy on the task at hand, with these generators."""
        found = []
        for client in self.clients:
            client.model["generator"].load_state_dict(
                {name: generators[client.id][name] for name in ("weight", "bias")}
            )
            client.model.eval()
            index = client.test_index(stage.task)
            f = map_batches(client.test, index, partial(self.method.cnn_features, client))
            found.append(accuracy(self.method, client, client.test, index, f))
        return round(float(np.mean(found)), 3)


POINTS_APART = 2.0  # of a mean accuracy on a GPU or another kind of CPU from that of its record


def same_as_record(config: Experiment, clients: list[Client], method: FedLSCL, tasks: int) -> bool | None:
    """Whether the accuracies after some tasks are those of the record of the whole run, to the bit; None = no record.

    Raises:
        SystemExit: they differ; where runs do not repeat, by more than POINTS_APART in the mean over clients and tasks.
    """
    record = records.find(config)
    if record is None:
        return None
    ours = np.array(
        [task_accuracies(evaluate(method, client), config.classes_per_task) for client in clients]
    )  # (k, mask, u)
    theirs = np.array([records.accuracy(record, mask)[tasks - 1, :, :tasks] for mask in MASKS])  # (mask, k, u)
    found = ours.transpose(1, 0, 2)  # (mask, k, u)
    same = np.array_equal(np.round(found, 6), theirs)  # a record has six decimals
    apart = np.abs(np.nanmean(found, (1, 2)) - np.nanmean(theirs, (1, 2))).max()
    if not same and (repeats(record, config, clients[0].device) or apart > POINTS_APART):
        raise SystemExit(f"{config.name}: the accuracies after task {tasks} are {apart:.2f} points from its record's")
    return same


def repeats(record: records.Record, config: Experiment, device: torch.device) -> bool:
    """Whether a run here must repeat a record to the bit."""
    about = {"device": device.type, "hardware": records.hardware(), "versions": records.versions()}
    return same_rounding(record, {**about, "config": {"threads": config.threads}})


def about_run(config: Experiment) -> dict:
    """What tells the rows of one run from those of the others."""
    return {"seed": config.seed, "collaboration": config.collaboration, "lr_generator": config.lr_generator}


def measure_run(config: Experiment, tasks: int) -> list[dict]:
    """The rows of one run's first `tasks` tasks."""
    _, _, method, clients = prepare(config.model_copy(update={"stop_after": tasks}))
    watched = Watched(method, clients)
    for report in federate(method, watched):
        print(f"{config.name}: task {report.task + 1} round {report.round + 1}", flush=True)
    same = same_as_record(config, clients, method, tasks)
    return [{**about_run(config), **row, "same_as_record": same} for row in watched.rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="glyphs")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--seeds", type=measure.counts, default="42,1999,2024")
    parser.add_argument("--tasks", type=measure.count, default=2)
    parser.add_argument(
        "--threads", type=measure.count, default=1, help="those of the records, or the comparison with them fails"
    )
    parser.add_argument("--device", help="default: the GPU if there is one; with it, the records must be from there")
    given = parser.parse_args()
    name = f"{given.profile}--{given.dataset}"
    path = paths.results() / "components" / f"{name}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    place = {"device": given.device} if given.device else {}
    for seed, rate, collaboration in product(given.seeds, ({}, LARGER_RATE), ("written", "static")):
        config = experiment(
            method="fed_lscl", profile=given.profile, dataset=given.dataset, data_dir=given.data_dir, seed=seed,
            threads=given.threads, collaboration=collaboration, **rate, **place,
        )  # fmt: skip
        about = about_run(config)
        if not any(about.items() <= row.items() for row in rows):
            rows += measure_run(config, given.tasks)
            measure.write(name, {"tasks": given.tasks, "rows": rows}, folder="components")


if __name__ == "__main__":
    with one_line():
        main()
