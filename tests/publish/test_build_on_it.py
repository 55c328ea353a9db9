"""The page "Build on it": what stands there runs, and is what the commands know."""

import re
import shlex

import matplotlib.pyplot as plt
import pytest
import typer
from tests_root import ROOT

from lscl import cli
from lscl.registry import DATASETS, METHODS

TEXT = (ROOT / "book" / "build_on_it.md").read_text(encoding="utf-8")
SCRIPTS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]


@pytest.fixture
def tidy(monkeypatch, tmp_path):
    """In an empty folder; what a script registers is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(METHODS), set(DATASETS)
    yield tmp_path
    for registry, known in zip((METHODS, DATASETS), before):
        for name in set(registry) - known:
            registry.remove(name)
    plt.close("all")


def test_every_section_with_code_is_tried():
    assert set(SCRIPTS) == {"A method", "A data set", "A CNN", "A metric or a figure", "Watch a run"}
    assert len(SCRIPTS) == TEXT.count("```python\n")


@pytest.mark.parametrize("section", SCRIPTS)
def test_the_code_of_a_section_runs_by_itself(section, tidy, capsys):
    found = {"__name__": "__main__"}
    exec(compile(SCRIPTS[section], f"{section}.py", "exec"), found)
    if section == "A metric or a figure":
        assert (tidy / "worst.png").stat().st_size > 1000 and list(found["worst"].index) == [
            "Fed-LSCL (O2D exact)",
            "local head",
        ]
        return
    record = found["record"]
    assert record["method"] == {
        "A method": "clipped_head", "A data set": "local_head", "A CNN": "fed_lscl", "Watch a run": "fedavg_vit"
    }[section]  # fmt: skip
    if section == "Watch a run":
        assert capsys.readouterr().out.count("class-incremental %") == len(record["bytes_up"])


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("lscl ")])
def test_the_commands_of_the_page_exist_with_these_options(line):
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    context = command.make_context(command.name, words)  # refuses unknown options
    values = {name: value for name, value in context.params.items() if value is not None}
    assert values.get("method", "fed_lscl") in METHODS


def test_the_short_method_of_the_page_is_short():
    code = SCRIPTS["A method"]
    body = code[code.index("class ClippedHead") : code.index("config = ")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20
