"""Every parameter once: command-line options, notebook parameters and the book's table all come from `fields`.

This module has the parameters of all systems. Those of a single system stand in its file (see `lscl.registry`);
they become fields of an `Experiment`, too.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator
from pydantic.fields import FieldInfo

from lscl.errors import LsclError, shorten, unknown_name, value_text
from lscl.files import check_regular
from lscl.registry import DATASETS, METHODS, home_of

ProfileName = Literal["smoke", "demo", "mini", "full", "colab", "paper"]

PLACES = {"data_dir", "device", "weights"}  # paths and devices of one machine: records leave them out
WHERE_AND_HOW = PLACES | {"threads"}  # the digest leaves them out; lscl.experiments.origin compares them
# Options that only systems with the frozen ViT, or with a CNN on each client, or with something to train read.
NEEDS = {
    "trains": ("rounds", "epochs", "batch", "lr", "precision"),
    "vit": ("foundation", "vit_size", "weights", "weights_sha256", "normalize", "activations", "compile"),
    "cnn": ("cnn", "cnn_size", "features", "channels_last"),
}


def readers(option: str) -> tuple[str, ...]:
    """The systems that read an option."""
    if option not in Experiment.model_fields:
        return METHODS.owners(option)
    return tuple(
        name
        for name, kind in METHODS.items()
        if all(getattr(kind, need) for need, options in NEEDS.items() if option in options)
    )


def read_by(method: str) -> frozenset[str]:
    """The fields that decide a run of a system: all but those that only other systems read.

    Args:
        method: its name.

    Returns:
        names of fields of `Experiment`.
    """
    return _read_by(method, METHODS.version)


@lru_cache
def _read_by(method: str, _version: int) -> frozenset[str]:
    return frozenset(name for name in fields() if method in readers(name))


def check_options(options: Iterable[str], methods: Iterable[str]) -> None:
    """Refuse options that no system reads: they would only give the same run another name.

    Args:
        options: names of config fields.
        methods: names of the systems that are to run.

    Raises:
        LsclError: none of the systems reads an option; the line names the systems that do.
    """
    methods = sorted(set(methods))
    for option in options:
        if not set(readers(option)) & set(methods):
            raise LsclError(
                f"{option} is an option of {', '.join(readers(option))}, not of {', '.join(methods)}: leave it out"
            )


def check_data_dir(dataset: str, folder: Path | str | None) -> None:
    """Refuse a folder of images for a data set that no folder holds.

    Args:
        dataset: name of the data set.
        folder: the folder; None = none was given.

    Raises:
        LsclError: an unknown data set; or there is a folder, and the images come with the package.
    """
    source = DATASETS.find(dataset)
    if folder is not None and source.fixed and not source.download:
        raise LsclError(f"data_dir = {folder}: the images of {dataset} come with the package: leave it out")


# Bounds far beyond any use: a value outside is a slip, and would end in an overflow or fill the memory.
RATE = {"ge": 1e-9, "le": 1e3}  # learning rates
WEIGHT = {"ge": 0, "le": 1e6}  # of a term of a loss
SCALE = {"ge": 1e-6, "le": 1e6}  # divisors: temperatures, norms, concentrations
NAME = r"^[A-Za-z0-9_@./:, +=-]*$"  # characters in names of models; these enter file names and pages


class Experiment(BaseModel):
    """One run, fully described. Call `experiment` to make one: it fills in the profile's values.

    This class has the fields of every system; objects also have those of the registered ones (see `experiment_class`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: str = Field(description="system to run")
    dataset: str = Field("glyphs", description="data set; folder = any image-folder tree given by data_dir")
    profile: ProfileName = Field("demo", description="size of the experiment")
    seed: int = Field(42, ge=0, le=2**31 - 1, description="seed of every named draw (paper: 42, 1999, 2024)")

    data_dir: Path | None = Field(
        None, description="folder with the images (train/ and test/ trees, torchvision's own files, or imagenet-r)"
    )
    folder_digest: str | None = Field(
        None,
        pattern="^[0-9a-f]{16}$",
        description="digest of all images of dataset = folder; filled in if absent, checked if given",
    )
    images_per_class: int | None = Field(None, ge=1, le=10**6, description="training images used per class, none = all")
    test_images_per_class: int | None = Field(
        None, ge=1, le=10**6, description="test images used per class, none = all"
    )
    duplicates: Literal["keep", "drop"] = Field(
        "keep",
        description="drop: leave out training images whose pixels a test image or another class has, "
        "and keep one of those repeated in a class",
    )
    eval_split: Literal["official", "holdout"] = Field(
        "official", description="test images: official split, or 30 % of the client's own"
    )
    image_size: int = Field(32, ge=8, le=1024, description="pixels a side of the decoded images")
    cnn_size: int | None = Field(None, ge=8, le=1024, description="pixels a side of the CNN's input, none = as decoded")

    clients: int = Field(5, ge=1, le=1000, description="clients (paper: 5)")
    tasks: int = Field(5, ge=1, le=1000, description="tasks per client (paper: 5)")
    classes_per_task: int = Field(8, ge=1, le=10**4, description="classes per task (paper: 8)")
    private_classes: int = Field(
        15, ge=0, le=10**6, description="classes that only one client has (paper: 15 on CIFAR-100, 40 on ImageNet-R)"
    )
    stop_after: int | None = Field(
        None, ge=1, le=1000, description="end the run after this task, none = the last; results up to it stay the same"
    )
    rounds: int = Field(5, ge=1, le=10**4, description="communication rounds per task (paper: 5)")
    dirichlet: float = Field(
        1.0, **SCALE, description="concentration of the shares of a public class (authors' code: 1.0)"
    )
    min_share: float = Field(
        0.0, ge=0, lt=1, description="redraw until every client has at least this share of a public class"
    )

    epochs: int = Field(5, ge=1, le=10**4, description="local epochs per round (authors' code: 5)")
    batch: int = Field(16, ge=1, le=2**16, description="images per step (authors' code: 16)")
    lr: float = Field(
        1e-3, **RATE, description="Adam learning rate of the classifier and of everything without its own rate"
    )

    foundation: str = Field(
        "mini",
        min_length=1,
        max_length=200,
        pattern=NAME,
        description="frozen ViT: mini (shipped), tiny (random, for tests), a timm name, hf-hub:<owner>/<model>, or "
        "random/<timm name>",
    )
    vit_size: int | None = Field(
        None, ge=8, le=1024, description="pixels a side of the ViT's input, none = its own; positions are resampled"
    )
    weights: Path | None = Field(
        None, description="local checkpoint of the frozen ViT: .safetensors, or .npz of the original release"
    )
    weights_sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="SHA-256 of that file; filled in if absent, checked if given"
    )
    normalize: bool = Field(
        True, description="normalise the ViT's input as its checkpoint expects (the authors' code does not)"
    )

    cnn: str = Field(
        "small",
        min_length=1,
        max_length=10**4,
        pattern=NAME,
        description="each client's CNN: small, tiny, a name of torchvision or timm; several with commas",
    )
    features: int = Field(128, ge=1, le=2**14, description="width m of the CNN's features (512 for ResNet-18)")

    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="arithmetic of the clients' training; fp16 scales its gradients"
    )
    tf32: bool = Field(False, description="let a CUDA GPU round products of float32 to TF32")
    deterministic: bool = Field(
        False, description="make a CUDA GPU repeat a run to the bit, which is slower; a CPU always repeats"
    )
    channels_last: bool = Field(False, description="convolutions in channels-last layout")
    activations: Literal["fp32", "bf16"] = Field(
        "fp32", description="type of the stored prefix activations; bf16 needs half of the disk"
    )
    compile: bool = Field(
        False,
        description="compile the blocks above the cut (torch.compile); a run compares them with the plain ones first",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto",
        description="where to compute; auto = as in record or saved state, else a CUDA GPU if any; mps, a Mac's GPU, "
        "is refused: it has no float64",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads; none = those of record or saved state, else OMP_NUM_THREADS, else 2 (smoke: 1)",
    )

    def __new__(cls, **values: Any) -> "Experiment":
        return super().__new__(experiment_class() if cls is Experiment else cls)

    def __eq__(self, other: object) -> bool:
        """Whether all values are equal; a field that came with a system registered later counts with its default."""
        if not isinstance(other, Experiment):
            return NotImplemented
        mine, theirs = self.__dict__, other.__dict__
        known = {**type(self).model_fields, **type(other).model_fields}
        return all(mine.get(name, one.default) == theirs.get(name, one.default) for name, one in known.items())

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__[name] for name in Experiment.model_fields))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the values: the class itself is made anew whenever a system is registered."""
        return _unpickled, (dict(self.__dict__), set(self.model_fields_set))

    @field_validator("method", "dataset")
    @classmethod
    def _registered(cls, name: str, info: Any) -> str:
        try:
            {"method": METHODS, "dataset": DATASETS}[info.field_name].find(name)
        except LsclError as error:
            raise ValueError(str(error)) from None
        return name

    @property
    def side(self) -> int:
        """Pixels a side of the CNN's input."""
        return self.image_size if self.cnn_size is None else self.cnn_size

    @property
    def source(self) -> str:
        """The data set in file names; for a folder the first 8 digits of its images' digest follow."""
        return f"{self.dataset}-{self.folder_digest[:8]}" if self.folder_digest else self.dataset

    @property
    def cpu_threads(self) -> int:
        """CPU threads, where neither a record nor a saved state says how many."""
        asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # OpenMP takes a list, too
        usual = int(asked) if re.fullmatch("[1-9][0-9]{0,2}", asked) else 2
        return self.threads or (1 if self.profile == "smoke" else usual)

    @property
    def tasks_run(self) -> int:
        """How many tasks the run computes: all, or as many as `stop_after` says."""
        return self.tasks if self.stop_after is None else min(self.stop_after, self.tasks)

    @property
    def rounds_run(self) -> int:
        """Rounds of a task: one if the system trains nothing."""
        return self.rounds if METHODS[self.method].trains else 1

    @property
    def digest(self) -> str:
        """SHA-256 of the values that decide the result and differ from the field's default, 12 hex digits.

        A new parameter whose default changes nothing therefore keeps the digests of finished runs, and so does whatever
        changes in the parameters of other systems.
        """
        values = self.values_read(exclude_defaults=True)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """File name of the record: data set, system, values that differ from the profile's, seed, digest."""
        differs = [f"{key}={value}" for key, value in sorted(self.overrides().items())]
        text = re.sub("[/:]", "_", "--".join([self.source, self.method, *differs]))  # Windows has no : in names
        if len(text) > 150:  # a file name has room for 255 bytes
            text = text[:150]
        return f"{text}--s{self.seed}--{self.digest}"

    def values_read(self, exclude_defaults: bool = False) -> dict[str, Any]:
        """The values that decide the result: those that its system reads, without places and devices.

        Args:
            exclude_defaults: leave out those that have the field's default.

        Returns:
            {field: value}, as JSON can hold it.
        """
        unread = set(fields()) - read_by(self.method)
        return self.model_dump(mode="json", exclude=WHERE_AND_HOW | unread, exclude_defaults=exclude_defaults)

    def overrides(self) -> dict[str, Any]:
        """The values that differ from the profile's; the digest of a folder's images does not count."""
        base = experiment(method=self.method, dataset=self.dataset, profile=self.profile, seed=self.seed).values_read()
        return {name: v for name, v in self.values_read().items() if name != "folder_digest" and v != base[name]}


def _unpickled(values: dict[str, Any], given: set[str]) -> Experiment:
    """The config of a pickle, with the systems that are registered here; fields of others decide nothing."""
    known = {name: value for name, value in values.items() if name in fields()}
    try:
        made = Experiment(**known)
    except ValidationError as error:
        first = error.errors()[0]
        raise LsclError(
            f"cannot read a pickled config: {'.'.join(map(str, first['loc']))}: {first['msg']}; register its system "
            "and its data set in this process, too"
        ) from None
    object.__setattr__(made, "__pydantic_fields_set__", given & known.keys())
    return made


METHODS.core, METHODS.profiles = frozenset(Experiment.model_fields), get_args(ProfileName)


def experiment_class() -> type[Experiment]:
    """`Experiment` with the fields of all registered systems, and the paper's own system as the default method."""
    METHODS.load()
    return _complete(METHODS.version)


@lru_cache(maxsize=1)
def _complete(_version: int) -> type[Experiment]:
    found = {
        name: (info.annotation, info)
        for home in METHODS.homes()
        for name, info in home.model_fields.items()
        if home_of(home, name) is home
    }
    found["method"] = (str, Field(METHODS.find_role("own"), description=Experiment.model_fields["method"].description))
    return create_model("Experiment", __base__=Experiment, __module__=__name__, __doc__=Experiment.__doc__, **found)


def fields() -> dict[str, FieldInfo]:
    """Every field of an experiment by name: those that all systems have, those that several share, those of each."""
    return experiment_class().model_fields


# The values that each profile changes: smoke for seconds, demo for minutes on two slow cores, mini for studies and
# tuning, full for the main table, with all training images, colab and paper for the paper's setting (ViT at 224 px),
# the latter with ResNet-18, batches of 16, 5 epochs. In full every system is tested on the same 80 of the 100 official
# test images of a class; the other 20 are those that a server may have, see `lscl.data.sources.surrogate`.
_SMALL_STEPS = {"epochs": 2, "batch": 32, "lr": 3e-3}
PROFILES: dict[str, dict[str, Any]] = {
    "smoke": dict(
        clients=3, tasks=2, classes_per_task=3, private_classes=4, rounds=2, epochs=1, batch=8,
        images_per_class=6, test_images_per_class=2, foundation="tiny", cnn="tiny", features=16,
    ),
    "demo": dict(_SMALL_STEPS, epochs=1, images_per_class=10, test_images_per_class=4),
    "mini": dict(_SMALL_STEPS, images_per_class=60, test_images_per_class=50),
    "full": dict(_SMALL_STEPS, epochs=1, test_images_per_class=80),
    "colab": dict(foundation="vit_small_patch16_224.augreg_in21k", cnn="resnet18", features=512, images_per_class=100),
    "paper": dict(foundation="vit_base_patch16_224.orig_in21k", cnn="resnet18", features=512, eval_split="holdout"),
}  # fmt: skip
# Profiles with the values of the official codes, or what a system has in their place (`Method.official`, and the
# defaults); those of demo, mini and full were tuned.
OFFICIAL = ("colab", "paper")


def values_of(method: str, dataset: str, profile: str, chosen: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The values that a profile sets: its own, the system's, the data set's, and those of the system on the data set.

    Args:
        method: name of the system.
        dataset: name of the data set.
        profile: name of the profile.
        chosen: in the place of what `chosen_values` gives for the profile; None = that.

    Returns:
        {field: value}; all other fields keep their defaults.

    Raises:
        LsclError: an unknown name.
    """
    check_profile(profile)
    kind, source = METHODS.find(method), DATASETS.find(dataset)
    return {
        **PROFILES[profile],
        **METHODS.profile_values(profile),
        **kind.sizes.get(profile, {}),
        **(chosen_values(kind, profile) if chosen is None else chosen),
        **({"image_size": source.pixels} if source.pixels else {}),
        **source.values.get(profile, {}),
        **METHODS.profile_values((profile, dataset)),
        **kind.sizes.get((profile, dataset), {}),
    }


def chosen_values(kind: Any, profile: str) -> dict[str, Any]:
    """The values that tuning chose for a system (demo, mini, full), or its `Method.official` (colab, paper).

    Args:
        kind: class of the system.
        profile: name of the profile; in smoke nothing was chosen.

    Returns:
        {field: value}.
    """
    return {} if profile == "smoke" else dict(kind.official if profile in OFFICIAL else kind.tuned)


def check_profile(name: object) -> None:
    """Refuse anything but the name of a profile.

    Raises:
        LsclError: an unknown profile.
    """
    if not isinstance(name, str) or name not in PROFILES:
        raise unknown_name("profile", name, PROFILES)


def experiment(**values: Any) -> Experiment:
    """Make the experiment of a profile with some values changed.

    Args:
        values: fields of `Experiment`; a field that is left out, or None, has the profile's value.

    Raises:
        LsclError: an unknown field or an impossible value; the line names the field, the value and what is allowed.
    """
    known = fields()
    for key in values:
        if key not in known:
            raise unknown_name("parameter", key, known)
    which = ("method", "dataset", "profile")
    values = {key: value for key, value in values.items() if value is not None or key not in which}
    profile, dataset = values.get("profile", "demo"), values.get("dataset", "glyphs")
    check_profile(profile)
    for key, value in values.items():
        kind = known[key].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):  # pydantic would take it for 1 or 0
            raise LsclError(f"{key} = {value}: true and false are no values of it ({_describe(key)})")
    base = values_of(values.get("method", known["method"].default), dataset, profile)
    given = {key: value for key, value in values.items() if value is not None or known[key].default is None}
    if given.get("weights") is not None:
        given["weights_sha256"] = _checked_digest(Path(str(given["weights"])), given.get("weights_sha256"))
    try:
        made = Experiment(**{**base, "profile": profile, "dataset": dataset, **given})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise LsclError(
            f"{field} = {shorten(value_text(first['input'], repr), 200)}: {first['msg'][0].lower()}{first['msg'][1:]} "
            f"({_describe(field)})"
        ) from None
    return _with_images(made)


def run_of_set(values: Mapping[str, Any], own: Mapping[str, Any]) -> Experiment:
    """A run of a set: its own values, and those of the whole set that its system reads.

    Args:
        values: what the config of the whole set has.
        own: the run's, the method among them.

    Returns:
        the run.

    Raises:
        LsclError: as `experiment`.
    """
    shared = {name: value for name, value in values.items() if name in read_by(own["method"])}
    return experiment(**{**shared, **own})


def _with_images(config: Experiment) -> Experiment:
    """The config with the facts about its images: the one size that a data set has, the digest of a folder."""
    source = DATASETS[config.dataset]
    if source.pixels not in (None, config.image_size):
        raise LsclError(
            f"image_size = {config.image_size}: images of {config.dataset} have {source.pixels} pixels a side, "
            "no other size is allowed"
        )
    if source.identity is not None:
        return config.model_copy(update=source.identity(config))
    if config.folder_digest is not None:
        known = ", ".join(name for name, one in DATASETS.items() if one.identity)
        raise LsclError(
            f"folder_digest = {config.folder_digest!r}: only dataset = {known} is known by its images, "
            f"this is {config.dataset}"
        )
    return config


def _checked_digest(path: Path, wanted: str | None) -> str:
    name = f"weights = {shorten(repr(str(path)), 200)}"
    try:
        about = check_regular(path)
        found = _file_digest(path, about.st_size, about.st_mtime_ns)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise LsclError(f"{name}: {why}; give an existing .safetensors or .npz file") from error
    if wanted is not None and wanted != found:
        raise LsclError(f"{name}: its SHA-256 is {found}, weights_sha256 = {wanted} was asked for")
    return found


@lru_cache
def _file_digest(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file; its size and the time of its last change tell whether the stored value still holds."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(field: str) -> str:
    return fields()[field].description or field if field in fields() else "no parameter of any system"
