"""The one reader of files of results and settings; what the commands make of damaged ones is in test_bad_input.py."""

import json
import os

import nbformat
import pytest

from lscl import files
from lscl.errors import LsclError, MissingFile


class Pair(files.Shape):
    """A name and a number."""

    name: str
    number: float


@pytest.fixture
def put(tmp_path):
    """put(content): a file with it; -> its path."""

    def write(content):
        path = tmp_path / "file"
        path.write_bytes(content)
        return path

    return write


def test_json_is_given_as_it_stands_with_entries_that_the_shape_does_not_name(put):
    whole = {"name": "a", "number": 1.5, "more": [1, None]}
    assert files.read_json(put(json.dumps(whole).encode()), Pair) == whole
    assert files.read_json(put(b"[1, 2]"), list[int]) == [1, 2]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"name": "a"}', "number: Field required"),
        (b'{"name": 3, "number": 1}', "name: "),
        (b'{"name": "a", "number": "1"}', "number: "),
        (b'{"name": "a", "number": NaN}', "no finite number"),
        (b'{"name": "a", "number": 1e999}', "no finite number"),
        (b'{"name": "a", "number": 12345678901234567890}', "too large a number"),
        (b"{", "no valid JSON"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b"\0", "NUL bytes"),
    ],
)
def test_json_of_another_shape_is_one_line_with_the_place(put, content, says, one_line):
    path = put(content)
    with pytest.raises(LsclError) as caught:
        files.read_json(path, Pair)
    one_line(caught, f"cannot read {path}: ", says)


def test_no_file_and_no_regular_file(tmp_path, one_line):
    with pytest.raises(MissingFile) as caught:
        files.read_text(tmp_path / "none")
    one_line(caught, "there is no such file")
    with pytest.raises(LsclError) as caught:
        files.read_text(tmp_path)
    one_line(caught, "not a regular file")


def test_only_a_regular_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert files.check_regular(tmp_path / "file").st_size == files.check_regular(tmp_path / "link").st_size == 3
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(OSError, match="not a regular file"):
            files.check_regular(path)
    with pytest.raises(FileNotFoundError):
        files.check_regular(tmp_path / "none")


def test_a_table_has_just_its_columns_and_kinds(put, one_line):
    found = files.read_table(put(b"name,count,share\na,1,0.5\nb,2,1\n"), {"name": str, "count": int, "share": float})
    assert found.to_dict("list") == {"name": ["a", "b"], "count": [1, 2], "share": [0.5, 1.0]}
    for content, says in (
        (b"name,share\na,1\n", "its columns are"),
        (b"name,count\na,1.5\n", "count = '1.5'"),
        (b"name,count\n,1\n", "name = ''"),
    ):
        with pytest.raises(LsclError) as caught:
            files.read_table(put(content), {"name": str, "count": int})
        one_line(caught, says)


def test_settings_are_yaml(put, one_line):
    assert files.read_yaml(put(b"a: {b: [1, x]}")) == {"a": {"b": [1, "x"]}}
    with pytest.raises(LsclError) as caught:
        files.read_yaml(put(b"a: ["))
    one_line(caught, "no valid YAML")


def test_a_notebook_is_one(put, one_line):
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1"), nbformat.v4.new_markdown_cell("text")])
    assert [cell.source for cell in files.read_notebook(put(nbformat.writes(made).encode())).cells] == ["1 + 1", "text"]
    with pytest.raises(LsclError) as caught:
        files.read_notebook(put(b'{"cells": 3, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'))
    one_line(caught, "cells: ")
