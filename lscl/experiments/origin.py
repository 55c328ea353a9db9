"""What decides a number apart from the config: images, partition, weights, device and threads.

A run compares it when it finds a record and when it resumes a saved state, so that two different inputs never share a
result.
"""

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
    """The origin of a run that is about to be computed.

    Args:
        data: its images.
        parts: how they are dealt to the clients.
        method: the system, with its frozen model and server images.

    Returns:
        a value for each of ENTRIES; None where the run has no such input.
    """
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
    """What a call fixes of the origin before anything is computed: device, threads and images of its own.

    What the call leaves open, an existing result decides. Without a folder the images are those of the data set, which
    never change.

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


# A set of runs asks for the same images again and again. The digest in the config is always a fresh one, so a changed
# folder is read again.
@lru_cache(maxsize=2)
def _images(config: Experiment, there: bool, _version: int) -> Dataset:
    return load(config)


def check_origin(made: Mapping[str, Any], wanted: Mapping[str, Any], what: str, place: object) -> None:
    """Refuse a result of another origin; on a GPU the number of threads does not matter.

    Args:
        made: the whole origin of the result.
        wanted: what a call asks for, all entries or some.
        what: names the result in the message, such as "the record of this run".
        place: the file or folder of the result.

    Raises:
        LsclError: saying what differs, and what to do.
    """
    for name, remedy in ENTRIES.items():
        if name in wanted and made.get(name) != wanted[name] and not (name == "threads" and made["device"] == "cuda"):
            gap = f"{what} was made with {name} = {made.get(name)}, this call asks for {name} = {wanted[name]}"
            raise LsclError(f"{gap}: {remedy}, or move {place} away to start again")
