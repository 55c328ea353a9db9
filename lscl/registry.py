"""The registered systems and data sets: ours, those of other installed packages, and those of a notebook.

A system is a subclass of `lscl.federation.method.Method`; a data set is an `ImageSource`. Ours are in `lscl.methods`
and `lscl.data`. Other packages name theirs as entry points of the groups `lscl.methods` and `lscl.datasets`.
The first use loads them all.
"""

import hashlib
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar

from pydantic import BaseModel, ValidationError

from lscl.errors import LsclError, first_line, unknown_name

NAME = re.compile("[a-z][a-z0-9_]{0,39}")  # of a system or a data set: it becomes part of file names


class Parameters(BaseModel):
    """The parameters of a system: fields with default, bounds and description, which every `Experiment` gets.

    A field name must therefore be unique, unless several systems share the field through a common base class.
    """

    # Values of the fields that this very class defines which a profile, or a profile on a data set, sets:
    # {"demo": {"rank": 2}, ("paper", "cifar100"): {"rank": 8}}. A run has them if its system reads the fields.
    profile_values: ClassVar[Mapping[str | tuple[str, str], Mapping[str, Any]]] = {}


@dataclass(frozen=True)
class ImageSource:
    """A data set.

    Args:
        name: its name in the config.
        load: config -> training and test images; it reads `data_dir`, `image_size` and `folder_digest` of the config.
        label: its name in tables; empty = `name`.
        values: {profile: {field: value}}; they override the system's values.
        images: training and test images per class, on average; None = unknown until they are read.
        classes: number of classes; None = unknown until they are read.
        download: bytes to download if no folder is given.
        pixels: pixels a side, for a data set that has one size only.
        identity: config -> the config fields that only the images tell.
        fixed: whether the images without a folder never change; others are compared with those of a finished run.
    """

    name: str
    load: Callable[[Any], tuple[Any, Any]]
    label: str = ""
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    images: tuple[int, int] | None = None
    classes: int | None = None
    download: int = 0
    pixels: int | None = None
    identity: Callable[[Any], dict[str, Any]] | None = None
    fixed: bool = False


class Registry(Mapping[str, Any]):
    """A read-only dictionary of registered entries by name, in the order of the tables.

    Args:
        kind: the word for an entry in messages.
        builtin: module whose import registers our entries.
        group: entry-point group of other packages' entries.
    """

    def __init__(self, kind: str, builtin: str, group: str):
        self.kind, self.builtin, self.group = kind, builtin, group
        self.version = 0  # grows with every change, so that whatever depends on the entries is made anew
        self._entries: dict[str, Any] = {}
        self._loaded, self._lock = False, threading.RLock()

    def load(self) -> None:
        """Import our entries, then those of other packages; a broken one becomes one line on stderr."""
        with self._lock:
            if self._loaded:
                return
            self._loaded = True  # at once: the modules themselves may ask
            try:
                import_module(self.builtin)
            except BaseException:
                self._loaded = False
                raise
            for point in entry_points(group=self.group):
                try:
                    self.add(point.load())
                except Exception as error:
                    whose = f" of {point.dist.name}" if point.dist else ""
                    print(
                        f"lscl: {self.kind} {point.name} = {point.value}{whose} is left out: {first_line(error)}",
                        file=sys.stderr,
                    )

    def add(self, entry: Any) -> None:
        """Register an entry; the same class or function again, as from a repeated cell, replaces the earlier one.

        Raises:
            LsclError: the entry is of the wrong kind, or its name is invalid or taken.
        """
        if not is_ours(entry):
            self.load()
        self.check(entry)
        before = self._entries.get(entry.name)
        if before is not None and origin_of(before) != origin_of(entry):
            old, new = (".".join(origin_of(one)) for one in (before, entry))
            raise LsclError(f"{self.kind} {entry.name!r} is {old} already: give {new} another name")
        self._entries[entry.name] = entry
        self.version += 1

    def check(self, entry: Any) -> None:
        """Check the name of an entry.

        Raises:
            LsclError: it has none, or an invalid one.
        """
        found = getattr(entry, "name", None)
        if not isinstance(found, str) or not NAME.fullmatch(found):
            rule = "lower-case letters, digits and _, at most 40, and begins with a letter"
            raise LsclError(f"{self.kind} {found!r}: a name has {rule}")

    def find(self, name: object) -> Any:
        """The entry of a name.

        Raises:
            LsclError: an unknown name; the line has the nearest one.
        """
        if not isinstance(name, str) or name not in self:
            raise unknown_name(self.kind, name, self)
        return self[name]

    def remove(self, name: str) -> None:
        """Forget an entry."""
        del self._entries[name]
        self.version += 1

    def __getitem__(self, name: str) -> Any:
        self.load()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self.load()
        return iter(sorted(self._entries, key=lambda name: getattr(self._entries[name], "place", 0)))

    def __len__(self) -> int:
        self.load()
        return len(self._entries)


class Systems(Registry):
    """The registered systems: {name: class}."""

    core: frozenset[str] = frozenset()  # config fields that belong to no system; lscl.config sets it
    profiles: tuple[str, ...] = ()  # the profiles; likewise
    _homes: tuple[int, list[type[Parameters]]] = -1, []  # the version that the list belongs to, and the list

    def check(self, entry: Any) -> None:
        """Check that an entry is a system whose name and parameters are its own.

        Raises:
            LsclError: it is not; the line says what to change.
        """
        if not isinstance(entry, type) or not hasattr(entry, "Parameters") or not hasattr(entry, "phases"):
            raise LsclError(f"register takes a class on lscl.federation.method.Method, this is {entry!r:.100}")
        super().check(entry)
        for name, parameter in entry.Parameters.model_fields.items():
            what = f"method {entry.name!r}: its parameter {name}"
            if parameter.is_required():
                raise LsclError(f"{what} has no default, and other systems do not give it")
            if name in self.core:
                raise LsclError(f"{what} has the name of one that every system has, give it another one")
            home = home_of(entry.Parameters, name)
            for other in self._entries.values():
                known = other.Parameters.model_fields
                if other.name != entry.name and name in known and home_of(other.Parameters, name) is not home:
                    raise LsclError(f"{what} has the name of one of {other.name}, give it another one")
        for home in bases_of(entry.Parameters):
            if "profile_values" in vars(home):
                self.check_profile_values(entry, home)
        if entry.role is not None and not is_ours(entry):
            what = f"method {entry.name!r}: role = {entry.role!r}"
            raise LsclError(f"{what} is for systems of this package, leave it out")

    def check_profile_values(self, entry: Any, home: type[Parameters]) -> None:
        """Check that a class sets only fields that it defines, to values that they may have, in known profiles.

        Args:
            entry: the system.
            home: the class of its parameters, or a base class of it.

        Raises:
            LsclError: it does not.
        """
        what, given = f"method {entry.name!r}: Parameters.profile_values", vars(home)["profile_values"]
        for key, values in given.items() if isinstance(given, Mapping) else [(None, None)]:
            profile = key[0] if isinstance(key, tuple) and len(key) == 2 else key
            if profile not in self.profiles or not isinstance(values, Mapping):
                raise LsclError(
                    f"{what}: {key!r:.80} must be a profile, or a pair of profile and data set, with a dictionary of "
                    f"values (profiles: {', '.join(self.profiles)})"
                )
            for name, value in values.items():
                if name not in home.model_fields or home_of(entry.Parameters, name) is not home:
                    raise LsclError(
                        f"{what}: {str(name)[:80]} is no field that {home.__qualname__} defines: give sizes, tuned or "
                        "official"
                    )
                try:
                    home.model_validate({name: value})
                except ValidationError as error:
                    raise LsclError(f"{what}: {name} = {value!r:.80}: {error.errors()[0]['msg']}") from error

    def find_role(self, role: str) -> str:
        """The name of the system with a role: "own" is the paper's, "floor" is the reference for all others.

        Raises:
            LsclError: no system has the role.
        """
        for name, kind in self.items():
            if kind.role == role:
                return name
        raise LsclError(f"no system has the role {role!r}")

    def owners(self, option: str) -> tuple[str, ...]:
        """The systems that have a parameter."""
        return tuple(name for name, kind in self.items() if option in kind.Parameters.model_fields)

    def homes(self) -> list[type[Parameters]]:
        """The classes that define parameters: first those that several systems share, then system by system."""
        self.load()
        if self._homes[0] != self.version:
            every = [base for kind in self.values() for base in reversed(bases_of(kind.Parameters))]
            many = {home for home in every if sum(issubclass(kind.Parameters, home) for kind in self.values()) > 1}
            self._homes = self.version, list(dict.fromkeys(sorted(every, key=lambda home: home not in many)))
        return self._homes[1]

    def profile_values(self, key: str | tuple[str, str]) -> dict[str, Any]:
        """`Parameters.profile_values` of all systems, for a profile or for a pair (profile, data set)."""
        return {
            name: value
            for home in self.homes()
            for name, value in vars(home).get("profile_values", {}).get(key, {}).items()
        }


class Labels(Mapping[str, str]):
    """The labels of a registry's entries in tables: {name: label}, in the order of the tables."""

    def __init__(self, registry: Registry):
        self.registry = registry

    def __getitem__(self, name: str) -> str:
        return self.registry[name].label or name

    def __iter__(self) -> Iterator[str]:
        return iter(self.registry)

    def __len__(self) -> int:
        return len(self.registry)


METHODS = Systems("method", "lscl.methods", "lscl.methods")
DATASETS = Registry("data set", "lscl.data.sources", "lscl.datasets")


def register(kind: type) -> type:
    """Register a system for runs, sweeps, plans, federations, tables and pages; works as a decorator, too.

    Args:
        kind: a subclass of `lscl.federation.method.Method` with a `name`.

    Returns:
        The class.

    Raises:
        LsclError: not such a class, or another system has its name or the name of a parameter.
    """
    METHODS.add(kind)
    return kind


def register_dataset(name: str, load: Callable | None = None, **facts: Any) -> Callable:
    """Register a data set; without `load` this is a decorator for that function.

    Args:
        name: its name in the config.
        load: config -> training and test images, two `lscl.data.store.ImageSet` with the same classes.
        facts: further fields of `ImageSource`.

    Returns:
        The function `load`.

    Raises:
        LsclError: another data set has the name, `load` is no function, or there is no such field.
    """
    allowed = [one.name for one in fields(ImageSource)][2:]  # behind name and load
    for fact in facts:
        if fact not in allowed:
            raise unknown_name("field of a data set", fact, allowed)
    if load is not None and not callable(load):
        raise LsclError(f"data set {name!r}: load = {load!r:.80}: must be a function of a config")
    if load is None:
        return partial(register_dataset, name, **facts)
    DATASETS.add(ImageSource(name, load, **facts))
    return load


def code_of(method: str) -> str | None:
    """Digest of the source of another package's system, 16 hex digits; None for ours, or if the source is not there.

    The digest covers the class and its base classes, but not the functions that they call elsewhere.
    """
    kinds = [kind for kind in METHODS[method].__mro__ if not is_ours(kind) and kind.__module__ != "builtins"]
    try:
        text = "".join(inspect.getsource(kind) for kind in kinds)
    except (OSError, TypeError):
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:16] if kinds else None


def origin_of(entry: Any) -> tuple[str, str]:
    """Module and name of the class, or of the function that loads a data set."""
    made = getattr(entry, "load", entry)
    return getattr(made, "__module__", "?"), getattr(made, "__qualname__", repr(made))


def is_ours(entry: Any) -> bool:
    """Whether a class, or the function that loads a data set, belongs to this package."""
    return origin_of(entry)[0].startswith("lscl.")


def bases_of(kind: type[Parameters]) -> list[type[Parameters]]:
    """The class itself and its base classes that have fields, without `Parameters`."""
    return [base for base in kind.__mro__ if issubclass(base, Parameters) and base is not Parameters]


def home_of(kind: type[Parameters], name: str) -> type[Parameters]:
    """The class that defines a parameter.

    Args:
        kind: the parameters of a system.
        name: the parameter.

    Returns:
        The class itself or one of its base classes.
    """
    return [base for base in bases_of(kind) if name in base.model_fields][-1]
