"""What a run will send, before it runs: every upload has the shapes that its system declares.

The system is built on the meta device, where tensors have shapes and no numbers, and the classes are dealt as in the
run.
"""

import math
import warnings
from collections.abc import Collection

import numpy as np
import torch

from lscl.config import Experiment
from lscl.data.partition import Census, partition
from lscl.data.store import Dataset, ImageSet
from lscl.experiments.cost_model import has_known_size
from lscl.federation.loop import exchanges
from lscl.federation.method import Method, Stage
from lscl.federation.payload import Payload, num_bytes
from lscl.models.counting import uncut_vit, vit_shape
from lscl.registry import DATASETS, METHODS


def labels_alone(config: Experiment) -> Dataset:
    """A data set of the known size without pixels, of which only the labels are read."""
    source = DATASETS[config.dataset]
    given = (config.images_per_class, config.test_images_per_class)
    counts = [min(have, asked or have) for have, asked in zip(source.images, given)]
    classes = tuple(map(str, range(source.classes)))
    splits = [
        ImageSet(
            np.zeros((count * len(classes), 0, 0, 3), np.uint8), np.repeat(np.arange(len(classes)), count), classes
        )
        for count in counts
    ]
    return Dataset(config.dataset, *splits)


def planned_traffic(config: Experiment) -> tuple[float, float]:
    """Bytes that all clients send and get in a run, with the downloads for the tests at the end of each task.

    Args:
        config: the run.

    Returns:
        Bytes up and down; NaN where only the run itself tells: of a data set whose size is not known before it is read,
        or of what the server makes in the run.

    Raises:
        LsclError: an unknown network, or too few classes.
    """
    if not has_known_size(config):
        return math.nan, math.nan
    kind, data = METHODS[config.method], labels_alone(config)
    vit = uncut_vit(vit_shape(config.foundation)[0]) if kind.uses_vit(config) else None
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")  # weights are not needed
            method = kind(config, vit, len(data.classes))
    except NotImplementedError:  # its first server has numbers that it reads
        return math.nan, math.nan
    method.census = Census.count(partition(config, data), data)
    up, down, sent = 0.0, 0.0, {}
    for stage in exchanges(method):
        for client in range(config.clients):
            down += _broadcast_bytes(method, client, stage, sent)
            if stage.name != "finish":
                shapes = method.upload_shapes(client, stage)
                sent |= {
                    name: torch.empty(shape, dtype=method.dtype(name), device="meta") for name, shape in shapes.items()
                }
                up += num_bytes({name: sent[name] for name in shapes})
    return up, down


def _broadcast_bytes(method: Method, client: int, stage: Stage, sent: Payload) -> float:
    """Bytes of a download; some servers send on what they got, and NaN if the numbers of a run decide what is sent."""
    server = method.server
    for held in (server, {**sent, **server}):
        try:
            method.server = held
            return num_bytes(method.broadcast(client, stage))
        except (KeyError, NotImplementedError):
            continue
        finally:
            method.server = server
    return math.nan


def traffic_table(configs: Collection[Experiment]) -> str:
    """What a set of runs will send, as text: a line per system and data set, its seeds summed up.

    Args:
        configs: the runs.

    Returns:
        lines of equal columns, in GB of 10^9 bytes; what only the run itself tells reads "unknown".

    Raises:
        LsclError: as `planned_traffic`.
    """
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for one in configs:
        extra = ", ".join(f"{key}={value}" for key, value in one.overrides().items())
        groups.setdefault((one.dataset, f"{one.method} {extra}".strip()), []).append(planned_traffic(one))
    lines = [f"{'data':11} {'system':22} {'runs':>4} {'GB up':>9} {'GB down':>9}  what --keep-payloads writes"]
    for (dataset, name), found in groups.items():
        sums = [sum(one[side] for one in found) / 1e9 for side in (0, 1)]
        shown = " ".join(f"{'unknown' if math.isnan(one) else f'{one:.3f}':>9}" for one in sums)
        lines.append(f"{dataset:11} {name:22} {len(found):4} {shown}")
    return "\n".join(lines)
