"""The README's commands work as written."""

import re
import shlex

import pytest
from tests_root import ROOT

from lscl import cli
from lscl.config import PROFILES, fields

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
def test_long_commands_name_real_commands_options_and_profiles(line, capsys):
    _, command, *rest = shlex.split(line)
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    for word in rest:
        if word.startswith("--"):
            assert word[2:].replace("-", "_") in fields()
    assert any(word in PROFILES for word in rest)


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
