"""Configs that come from a file and go to one: a finished record, or a YAML file of config fields.

A YAML file that `config_yaml` makes has every value that decides the run. So it gives an equal record later, too, when
a profile has got other values.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from lscl import files
from lscl.config import Experiment, check_options, experiment, fields, read_by
from lscl.data.store import write_atomic
from lscl.errors import LsclError, MissingFile, shorten, unknown_name
from lscl.experiments import records

WHICH_RUN = ("method", "dataset", "profile", "seed")
ENDINGS = (".yaml", ".yml")
LARGEST_YAML = 2**20  # bytes; a config has a few thousand
SCALARS = (str, int, float, bool, type(None))
FROM_IMAGES = ("data_dir", "folder_digest")  # they go with the data set
FROM_CHECKPOINT = ("weights", "weights_sha256")


def parse_texts(given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn texts into config values: `none` means no limit, unless it is a choice of the field.

    Args:
        given: {field: value}; what is no text stays as it is.

    Returns:
        {field: value}.
    """
    choices = {name: get_args(fields()[name].annotation) for name in given if name in fields()}
    empty = lambda name, value: (
        isinstance(value, str) and value.lower() == "none" and "none" not in choices.get(name, ())
    )
    return {name: None if empty(name, value) else value for name, value in given.items()}


def parse_changes(pairs: Sequence[str]) -> dict[str, Any]:
    """The values of `--set name=value`, given any number of times.

    Args:
        pairs: the texts behind `--set`.

    Returns:
        {field: value}; a field may have dashes in the place of underscores.

    Raises:
        LsclError: no equals sign, an unknown field, or one that is given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise LsclError(f"--set {shorten(repr(pair), 100)}: give name=value, for example --set lr=0.01")
        if name not in fields():
            raise unknown_name("parameter", name, fields())
        if name in found:
            raise LsclError(f"--set {name}: it is given twice, as {found[name]!r:.60} and as {value.strip()!r:.60}")
        found[name] = value.strip()
    return parse_texts(found)


def read_config(path: Path) -> dict[str, Any]:
    """The values that a record or a YAML file gives.

    Args:
        path: a record (.json), or config fields (.yaml, .yml).

    Returns:
        {field: value}. Those of a record are all that its system reads, its threads and its device.

    Raises:
        LsclError: no such file, another kind of file, a damaged one, or an unknown field; the line names the file.
    """
    if path.suffix == ".json":
        record = records.read_record(path)
        return {**record["config"], "device": record["device"]}
    if path.suffix not in ENDINGS:
        raise LsclError(f"cannot read {path} as a config: give a record (.json) or a YAML file ({', '.join(ENDINGS)})")
    return _read_yaml(path)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        size = files.check_regular(path).st_size
    except FileNotFoundError as error:
        raise MissingFile(f"cannot read {path}: there is no such file") from error
    except OSError as error:
        raise LsclError(f"cannot read {path}: {error.strerror or error}") from error
    if size > LARGEST_YAML:
        raise LsclError(f"cannot read {path}: it has {size} bytes, a config has at most {LARGEST_YAML}")
    found = files.read_yaml(path)
    if not isinstance(found, dict) or not found:
        raise LsclError(f"cannot read {path} as a config: it must have lines such as `profile: demo`")
    for name, value in found.items():
        if name not in fields():
            error = unknown_name("parameter", name, fields())
            raise LsclError(f"cannot read {path} as a config: {error}")
        if not isinstance(value, SCALARS):
            raise LsclError(f"cannot read {path} as a config: {name} is a {type(value).__name__}, not a single value")
    return parse_texts(found)


def change_config(values: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Change some values of a config that came from a file.

    With another method, data set or profile only those values stay that differ from the file's own profile, and of
    these the ones that the new system reads: everything else is what the new profile says.

    Args:
        values: what `read_config` gave.
        changes: {field: value} in their place.

    Returns:
        {field: value} for `experiment`, and a line for the user if values were left out.

    Raises:
        LsclError: an impossible value in the file.
    """
    before = {name: values.get(name, fields()[name].default) for name in WHICH_RUN}
    moved = {name: changes[name] for name in WHICH_RUN[:3] if changes.get(name, before[name]) != before[name]}
    if not moved:
        return {**values, **changes}, []
    of_files = (*FROM_IMAGES, *FROM_CHECKPOINT)
    own = experiment(**{name: value for name, value in values.items() if name not in of_files}).overrides()
    stay = {name: values[name] for name in (*WHICH_RUN, "device", "threads", *of_files) if name in values}
    if "dataset" in moved:
        stay = {name: value for name, value in stay.items() if name not in FROM_IMAGES}
    after = {**stay, **changes}
    read = read_by(experiment(**{name: after[name] for name in WHICH_RUN if name in after}).method)
    kept = {name: value for name, value in own.items() if name in read and name not in of_files}
    left = sorted(own.keys() - kept.keys() - changes.keys() - set(of_files))
    after = {**{name: value for name, value in after.items() if name in read}, **kept, **changes}
    where = ", ".join(f"{name} = {value}" for name, value in moved.items())
    said = ", ".join(f"{name} = {value}" for name, value in kept.items() if name not in changes) or "nothing"
    line = f"{where}: the values are those of its profile; the file's own that stay: {said}"
    return after, [line + (f"; left out, the system does not read them: {', '.join(left)}" if left else "")]


def config_from(path: Path | None, changes: Mapping[str, Any]) -> tuple[Experiment, list[str]]:
    """The run of a file, with some values changed.

    Args:
        path: a record or a YAML file; None = the profile alone.
        changes: {field: value} in the place of the file's.

    Returns:
        the run, and lines for the user.

    Raises:
        LsclError: as `read_config` and `experiment`, or an option that the system does not read; a line about a value
            of the file names the file.
    """
    found = None if path is None else read_config(path)
    try:
        values, lines = (dict(changes), []) if found is None else change_config(found, changes)
        config = experiment(**values)
        check_options(values, [config.method])
    except LsclError as error:
        raise error if path is None else LsclError(f"{path}: {error}") from error
    return config, lines


def origins_of_values(config: Experiment) -> dict[str, str]:
    """Where each value of a run comes from.

    Args:
        config: the run.

    Returns:
        {field: "given", "profile" or "default"} of the values that its system reads.
    """
    given, defaults = config.overrides(), fields()
    return {
        name: "given" if name in given else "default" if value == _plain(defaults[name].default) else "profile"
        for name, value in config.values_read().items()
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def config_yaml(config: Experiment, device: str | None = None) -> str:
    """A YAML file that `lscl run --from` turns into this very run.

    Args:
        config: the run.
        device: where it was computed; None = as the config says.

    Returns:
        the text: the run's name, what tells it from its profile, then all other values, each with its origin.
    """
    origins, values = origins_of_values(config), config.values_read()
    places = {
        "data_dir": config.data_dir and str(config.data_dir.absolute()),
        "weights": config.weights and str(config.weights.absolute()),
        "device": device or (None if config.device == "auto" else config.device),
        "threads": config.threads,
    }
    own = [name for name in values if name not in WHICH_RUN and origins[name] == "given"]
    rest = [name for name in values if name not in WHICH_RUN and origins[name] != "given"]
    lines = [f"# {config.name}", "# lscl run --from this file", *(_line(name, values[name]) for name in WHICH_RUN)]
    if own:
        lines += ["", "# what differs from the profile", *(_line(name, values[name]) for name in own)]
    lines += ["", "# all other values that decide the run"]
    lines += [_line(name, values[name], origins[name]) for name in rest]
    machine = [_line(name, value) for name, value in places.items() if value is not None]
    return "\n".join([*lines, *(["", "# this machine", *machine] if machine else [])]) + "\n"


def _line(name: str, value: Any, comment: str = "") -> str:
    text = yaml.safe_dump({name: value}, width=10**6).strip()
    return f"{text}  # {comment}" if comment else text


def check_writable_config(path: Path) -> None:
    """Refuse a place for a YAML file before a run begins.

    Args:
        path: where it is to be written.

    Raises:
        LsclError: another ending, or a folder has the name.
    """
    if path.suffix not in ENDINGS:
        raise LsclError(f"cannot write {path}: a config ends in {' or '.join(ENDINGS)}")
    if path.is_dir():
        raise LsclError(f"cannot write {path}: it is a folder")


def write_config(path: Path, config: Experiment, device: str | None = None) -> Path:
    """Write `config_yaml` to a file.

    Args:
        path: the file, which ends in .yaml or .yml.
        config: the run.
        device: as in `config_yaml`.

    Returns:
        the path.

    Raises:
        LsclError: another ending, or the file cannot be written.
    """
    check_writable_config(path)
    write_atomic(path, config_yaml(config, device).encode())
    return path


def config_of_record(record: records.Record, data_dir: Path | None = None, weights: Path | None = None) -> Experiment:
    """The run of a record, with its threads and on its device.

    Args:
        record: as `records.read_record` gives it.
        data_dir: where the images lie here.
        weights: where a local checkpoint lies here, for records that were made with one.

    Returns:
        the run.

    Raises:
        LsclError: as `experiment`.
    """
    file = weights if record["config"].get("weights_sha256") else None
    return experiment(**{**record["config"], "data_dir": data_dir, "weights": file, "device": record["device"]})


def different_values(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The values in which two runs differ.

    Args:
        one: {field: value}, as `Experiment.values_read` gives them.
        other: likewise.

    Returns:
        (field, value in the first, value in the second) in the order of the fields; "–" where its system does not read
        it.
    """
    show = lambda values, name: _shown(values[name]) if name in values else "–"
    return [
        (name, show(one, name), show(other, name))
        for name in fields()
        if (name in one or name in other) and (name in one, one.get(name)) != (name in other, other.get(name))
    ]


def _shown(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def command_of(record: records.Record) -> str:
    """The command that makes a record, without its seed and its images.

    Args:
        record: as `records.read_record` gives it.

    Returns:
        One line.
    """
    options = "".join(f" --{name.replace('_', '-')} {_shown(value)}" for name, value in record["overrides"].items())
    return f"lscl run --method {record['method']} --dataset {record['dataset']} --profile {record['profile']}{options}"
