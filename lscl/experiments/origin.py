"""What decides a number beside the config: images, partition, weights, device and threads. It is compared when a record is found and when
a saved state goes on, so that two different inputs never share a result."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from lscl.config import Experiment
from lscl.data.partition import Partition, partition
from lscl.data.sources import load, surrogate
from lscl.data.store import Dataset
from lscl.errors import LsclError
from lscl.federation.method import Method
from lscl.registry import DATASETS, METHODS, code_of

# Every entry with what to do where it differs.
ENTRIES = {
    "data_digest": "give the images that it was made from",
    "partition_digest": "use the versions of numpy and lscl that it was made with",
    "server_images_digest": "give the images that it was made from",
    "weights_digest": "give the weights that it was made with",
    "system_digest": "register the system that it was made with",
    "device": "leave device out, or give that one",
    "threads": "leave threads out, or give as many",
}

IMAGES = (
    "dataset",
    "data_dir",
    "folder_digest",
    "image_size",
    "images_per_class",
    "test_images_per_class",
    "duplicates",
)  # parameters that `load` reads


def origin_of_run(data: Dataset, parts: Partition, method: Method) -> dict[str, Any]:
    """The origin of a run that is about to be computed."""
    return {
        "data_digest": data.digest,
        "partition_digest": parts.digest,
        "server_images_digest": method.server_images.images.digest[:16] if method.server_images else None,
        "weights_digest": method.foundation.digest if method.foundation else None,
        "system_digest": code_of(method.config.method),
        "device": method.device.type,
        "threads": method.config.cpu_threads,
    }


def origin_of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The origin of a finished run."""
    return {name: record["config"]["threads"] if name == "threads" else record[name] for name in ENTRIES}


def requested_origin(config: Experiment) -> dict[str, Any]:
    """What a call says about the origin before anything is computed: device and threads that are given, images in a folder that is given.

    What it leaves open is taken as it is found. Without a folder the images are those of the data set, always the same.

    Raises:
        LsclError: the folder is missing, or does not hold what it should.
    """
    wanted = {
        "threads": config.threads,
        "device": None if config.device == "auto" else config.device,
        "system_digest": code_of(config.method),
    }
    if config.data_dir is not None or not DATASETS[config.dataset].fixed:
        there = config.data_dir is not None and config.data_dir.is_dir()
        data = _images(Experiment(**{name: getattr(config, name) for name in IMAGES}), there, DATASETS.version)
        wanted |= {"data_digest": data.digest, "partition_digest": partition(config, data).digest}
        option = METHODS[config.method].surrogate
        if option:
            wanted["server_images_digest"] = surrogate(config, option).digest[:16]
    return {name: value for name, value in wanted.items() if value is not None}


@lru_cache(
    maxsize=2
)  # a set of runs asks for the same ones again and again; an own folder is known by its digest, which is always a fresh one
def _images(config: Experiment, there: bool, _version: int) -> Dataset:
    return load(config)


def check_origin(made: Mapping[str, Any], wanted: Mapping[str, Any], what: str, place: object) -> None:
    """Refuse a result of another origin. On a GPU the threads do not matter.

    made: the whole origin of `what`, which lies at `place`; wanted: what is asked for.

    Raises:
        LsclError: saying what differs, and what to do.
    """
    for name, remedy in ENTRIES.items():
        if name in wanted and made.get(name) != wanted[name] and not (name == "threads" and made["device"] == "cuda"):
            gap = f"{what} was made with {name} = {made.get(name)}, this call asks for {name} = {wanted[name]}"
            raise LsclError(f"{gap}: {remedy}, or move {place} away to start anew")
