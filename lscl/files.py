"""Read files of results and settings; a damaged file becomes one line that names it and says what is wrong."""

import io
import json
import math
import os
import re
import stat
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from lscl.errors import LsclError, MissingFile

if TYPE_CHECKING:  # both take a while to import, and the command line needs neither to start
    import nbformat
    import pandas as pd


class Shape(BaseModel):
    """The entries that a file must have; it may have others, too."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


def check_regular(path: Path) -> os.stat_result:
    """Make sure that reading a file comes to an end: a pipe never does.

    Returns:
        Size, times and the like of the file, links followed.

    Raises:
        OSError: the file does not exist, or it is a folder, a pipe or a device.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError("not a regular file")
    return about


def read_text(path: Path) -> str:
    """Read the whole text of a file.

    Raises:
        MissingFile: the file does not exist.
        LsclError: it is not a regular file, not UTF-8, or has NUL bytes.
    """
    try:
        check_regular(path)
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
    """Read a JSON file and check its shape.

    Args:
        path: the file.
        shape: a type that pydantic understands, such as dict[str, float] or a subclass of `Shape`.

    Returns:
        The content exactly as the file has it; nothing is converted.

    Raises:
        LsclError: the file cannot be read, is not JSON, or has another shape; the line says where.
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


def read_notebook(path: Path) -> "nbformat.NotebookNode":
    """Read a notebook of nbformat 4.

    Raises:
        LsclError: the file cannot be read, or it is not a notebook.
    """
    import nbformat

    read_json(path, _Notebook)
    return nbformat.v4.reads(read_text(path))


def read_table(path: Path, columns: dict[str, type]) -> "pd.DataFrame":
    """Read a CSV file whose columns are known.

    Args:
        path: the file.
        columns: {name: str, int or float}, all of them and in their order.

    Returns:
        One row for each line of the file.

    Raises:
        LsclError: the file cannot be read, has other columns, or an entry is missing or of another type.
    """
    import pandas as pd

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


class _Plain(yaml.SafeLoader):
    """Refuses a name that stands twice in a mapping, of which YAML would take the last, and odd spellings of numbers.

    YAML 1.1 reads 010 as 8, 0x10 as 16 and 1:30 as 90.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"{twice[:100]} stands there twice")
        return super().construct_mapping(node, deep)

    def construct_plain_int(self, node: yaml.ScalarNode) -> int:
        if not re.fullmatch(r"[-+]?(0|[1-9][0-9_]*)", node.value):
            raise ValueError(f"{node.value[:30]} is no plain number")
        return _whole(node.value.replace("_", ""))

    def construct_plain_float(self, node: yaml.ScalarNode) -> float:
        if ":" in node.value:
            raise ValueError(f"{node.value[:30]} is no plain number")
        return self.construct_yaml_float(node)


_Plain.add_constructor("tag:yaml.org,2002:int", _Plain.construct_plain_int)
_Plain.add_constructor("tag:yaml.org,2002:float", _Plain.construct_plain_float)


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        LsclError: the file cannot be read, it is not YAML, a name stands twice in a mapping, or a number is written
            neither in the decimal system nor in at most 19 characters.
    """
    try:
        return yaml.load(read_text(path), _Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise LsclError(f"cannot read {path}: no valid YAML ({' '.join(str(error).split())})") from error
