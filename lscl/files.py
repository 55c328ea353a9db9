"""Files of results and settings as they are read: whatever is damaged is one line that names the file and what is wrong."""

import io
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import nbformat
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from lscl.errors import LsclError, MissingFile


class Shape(BaseModel):
    """What a file must have at least: entries that it does not name may be there too."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


def read_text(path: Path) -> str:
    """The whole text of a file.

    Raises:
        Absent: there is no such file.
        LsclError: no regular file (a pipe would never end), not UTF-8, or NUL bytes in it.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a regular file")
        found = path.read_text(encoding="utf-8")
        if "\0" in found:
            raise ValueError("NUL bytes in it")
        return found
    except FileNotFoundError as error:
        raise MissingFile(f"cannot read {path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise LsclError(f"cannot read {path}: not UTF-8 at byte {error.start}") from error
    except (OSError, ValueError) as error:
        raise LsclError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def read_json(path: Path, shape: Any) -> Any:
    """What a JSON file holds, just as it stands there, if it has this shape.

    shape: a type as pydantic takes it, such as dict[str, float] or a subclass of Shape.

    Raises:
        LsclError: the file cannot be read, is no JSON, or has another shape: where, and what is wrong there.
    """
    try:
        found = json.loads(read_text(path), parse_constant=_number, parse_float=_number, parse_int=_whole)
        _checker(shape).validate_python(found)
        return found
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LsclError(f"cannot read {path}: {where + ': ' if where else ''}{first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise LsclError(f"cannot read {path}: no valid JSON ({error})") from error


@lru_cache
def _checker(shape: Any) -> TypeAdapter:
    return TypeAdapter(
        shape, config=None if isinstance(shape, type) and issubclass(shape, BaseModel) else Shape.model_config
    )


def _number(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"{word[:30]} is no finite number")
    return number


def _whole(word: str) -> int:
    if len(word) > 19:
        raise ValueError(f"{word[:30]} is too large a number")
    return int(word)


class _Output(Shape):
    output_type: str
    data: dict[str, Any] = {}
    text: str | list[str] = ""


class _Code(Shape):
    cell_type: Literal["code"]
    source: str | list[str]
    metadata: dict[str, Any]
    outputs: list[_Output]
    execution_count: int | None


class _Text(Shape):
    cell_type: Literal["markdown", "raw"]
    source: str | list[str]
    metadata: dict[str, Any]


class _Digest(Shape):
    reads: dict[str, str] = {}
    cells: str = ""


class _Declared(Shape):
    reads: list[str] = []
    makes: list[str] = []
    digest: _Digest = _Digest()


class _About(Shape):
    lscl: _Declared = _Declared()


class _Notebook(Shape):
    cells: list[_Code | _Text]
    metadata: _About
    nbformat: Literal[4]
    nbformat_minor: int


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook.

    Raises:
        LsclError: it cannot be read, or is no notebook.
    """
    read_json(path, _Notebook)
    return nbformat.v4.reads(read_text(path))


def read_table(path: Path, columns: dict[str, type]) -> pd.DataFrame:
    """A CSV file with just these columns, of str, int or float.

    Raises:
        LsclError: it cannot be read, has other columns, or an entry is missing or of another kind.
    """
    try:
        found = pd.read_csv(io.StringIO(read_text(path)), dtype=str, keep_default_na=False)
    except ValueError as error:
        raise LsclError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error
    if list(found.columns) != list(columns):
        raise LsclError(
            f"cannot read {path}: its columns are {', '.join(found.columns)[:100]}, they must be {', '.join(columns)}"
        )
    return pd.DataFrame(
        {name: [_entry(path, name, kind, value) for value in found[name]] for name, kind in columns.items()}
    )


def _entry(path: Path, name: str, kind: type, value: str) -> Any:
    try:
        entry = kind(value)
    except ValueError:
        entry = math.nan
    if value.strip() == "" or (kind is not str and not math.isfinite(entry)):
        raise LsclError(
            f"cannot read {path}: {name} = {value[:50]!r}, it must be {'text' if kind is str else 'a number'}"
        )
    return entry


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        LsclError: it cannot be read, or is no YAML.
    """
    try:
        return yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise LsclError(f"cannot read {path}: no valid YAML ({' '.join(str(error).split())})") from error
