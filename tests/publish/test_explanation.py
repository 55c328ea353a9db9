"""A record in words."""

import json

import pytest

from lscl import cli
from lscl.experiments import records
from lscl.experiments.run import run
from lscl.publish.explanation import explain_record


def test_a_record_says_what_it_was_and_how_to_make_it_again(smoke, places):
    record = run(smoke(method="local_lora", rank=2), quiet=True)
    path = records.folder("smoke") / f"{record['name']}.json"
    text = "\n".join(explain_record(record, path))
    assert "profile smoke, seed 42" in text and "3 clients, 2 of 2 tasks of 3 classes, 2 rounds each" in text
    assert "  rank: 2 (4); rank r of the update" in text and "  image_size: 16 (32)" in text
    assert f"lscl run --from {path} --data-dir FOLDER" in text and record["data_digest"] in text
    assert f"FOLDER: the images whose digest is {record['config']['folder_digest']}" in text
    assert "the code here is the same" in text and "in no table of this book" in text


def test_a_run_of_the_profile_differs_in_nothing(put, monkeypatch):
    put(70.0)
    monkeypatch.setattr(records, "source", lambda: {"commit": None, "dirty": False, "code_digest": "0ther"})
    (record,) = records.all_records("mini")
    lines = explain_record(record, records.folder("mini") / "x.json")
    at = lines.index("What differs from the profile (value, the profile's):")
    assert lines[at + 1] == "  nothing" and "Table 1, CIFAR-100" in "\n".join(lines)
    assert "the code here is another one" in "\n".join(lines)


@pytest.mark.parametrize("content", [None, "", "{}", "[1, 2]", "no JSON"])
def test_what_is_no_record_is_one_line(tmp_path, capsys, content):
    path = tmp_path / "one.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        cli.main(["explain", str(path)])
    err = capsys.readouterr().err
    assert end.value.code == 2 and len(err.strip().splitlines()) == 1 and str(path) in err


def test_the_command_line(recorded, capsys):
    path = records.folder("smoke") / f"{recorded[0]['name']}.json"
    with pytest.raises(SystemExit) as end:
        cli.main(["explain", str(path)])
    out = capsys.readouterr().out
    assert end.value.code == 0 and out.startswith(recorded[0]["name"]) and json.loads(path.read_text())["name"] in out
