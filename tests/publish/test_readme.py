"""The README's commands work as written, and its table of what to expect follows the records and timed steps."""

import json
import re
import shlex

import pytest
from made_records import record
from PIL import Image
from tests_root import ROOT
from timed_steps import H100, row, write

from lscl import cli
from lscl.config import PROFILES, fields
from lscl.experiments import records
from lscl.experiments.rounding import ALLOWED, expected_range
from lscl.publish import readme

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
QUICK = [line for line in COMMANDS if line == "lscl doctor" or "--profile smoke" in line]


def test_the_readme_shows_the_two_commands_and_the_command_line():
    assert {"make demo", "make test"} <= set(COMMANDS)
    assert len(QUICK) >= 3


@pytest.mark.parametrize("line", QUICK)
def test_quick_commands_run(line, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(shlex.split(line)[1:])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("lscl") and line not in QUICK])
def test_long_commands_name_real_commands_options_and_profiles(line, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")  # a narrow help text cuts names off
    _, command, *rest = shlex.split(line)
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    named = capsys.readouterr().out
    for word in rest:
        if word.startswith("--"):
            assert word[2:].replace("-", "_") in fields() or word in named
    assert any(word in PROFILES or word.endswith((".json", ".yaml")) for word in rest)


def small(text):
    """The same with the smallest profile."""
    return text.replace("demo", "smoke")


def test_the_commands_around_a_config_file_work_one_after_the_other(tmp_path, monkeypatch, capsys, places):
    monkeypatch.chdir(tmp_path)
    lines = [line for line in COMMANDS if "demo.yaml" in line]
    assert len(lines) == 3
    for line in lines:
        with pytest.raises(SystemExit) as end:
            cli.main(shlex.split(small(line))[1:])
        assert end.value.code == 0
    assert capsys.readouterr().out.endswith("no value differs\n") and len(records.all_records("smoke")) == 2
    assert (tmp_path / "smoke.yaml").exists() and list(places.rglob("models/*.safetensors"))


def test_the_python_of_the_readme_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 32), "red").save("glyph.png")
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(small(block), {})
    assert capsys.readouterr().out.startswith("['") and (tmp_path / "seen.png").stat().st_size > 1000


def reached(places, task, runs):
    about = {"profile": "demo", "command": "make demo", "minutes": 4, "runs_seconds": 1, "notebooks": {}, "seen": 42.0}
    about["hardware"] = {"cpu": "some cpu", "cores": 2, "memory_gb": 8, "gpu": None}
    path = places / "results" / "expected" / "demo.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "task": task}), "utf-8")
    return readme.compare_with_expected("demo", runs)


def test_a_demo_says_what_it_reached_and_what_is_expected(places):
    runs = [record(), record("local_head", score=10)]  # 72 and 42 percent
    lines = reached(places, 72.5, runs)
    assert lines[0] == f"Fed-LSCL (O2D exact), task-masked: 72.0 %, expected {expected_range(72.5)} %" or lines[0] == (
        f"Fed-LSCL, task-masked: 72.0 %, expected {expected_range(72.5)} %"
    )
    assert len(lines) == 2 and "class-incremental: 42.0 %, expected 42.0" in lines[1]
    assert len(reached(places, 72.0 - ALLOWED, runs)) == 2
    assert "more than the" in reached(places, 72.1 + ALLOWED, runs)[2]
    assert reached(places, 72.0, runs[1:]) == [] == readme.compare_with_expected("mini", runs)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in COMMANDS:
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE)


def test_continuous_integration_calls_the_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_files_the_readme_names_exist():
    for path in re.findall(r"\]\(([^)#]+)\)|`([A-Za-z_/.]+\.(?:cff|md)|LICENSE)`", TEXT):
        name = path[0] or path[1]
        if not name.startswith("http"):
            assert (ROOT / name).exists(), name


def test_the_table_has_runs_of_both_profiles_and_only_the_paper_s_own_system(published, monkeypatch):
    on_gpu = {"cpu": "some cpu", "cores": 16, "memory_gb": 128, "gpu": H100}
    runs = {"mini": [record(), record("lorm")], "full": [record(profile="full", hardware=on_gpu)]}
    monkeypatch.setattr(records, "all_records", runs.__getitem__)
    head, rule, *rows = readme.expected_table().splitlines()
    assert [line.split(" | ")[0] for line in rows[:2]] == ["| 2 cores, no GPU", f"| 16 cores, {H100}"]
    ends = f"--profile full` | 3.0 | {expected_range(72.0)} % | {expected_range(42.0)} % |"
    assert rows[1].endswith(ends) and len(rows) == 3


def test_cards_whose_steps_were_timed_stand_beside_the_t4(published, places):
    cards = lambda: [line for line in readme.expected_table().splitlines() if "by the cost model" in line]
    assert [line.split(" | ")[0] for line in cards()] == ["| one NVIDIA T4, by the cost model, not measured"]
    write(places / "results", [row("fed_lscl")])
    assert cards()[1].startswith("| one NVIDIA H100 SXM5 80 GB, by the cost model, from timed steps | ")
