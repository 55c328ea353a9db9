"""The page of errors: every line on it is one that the package says."""

import ast
import re
import shlex

import pytest
from test_cli import call
from tests_root import ROOT

TEXT = (ROOT / "book" / "troubleshooting.md").read_text(encoding="utf-8")
SAID = re.findall(r"```console\n\$ lscl (.*)\n((?:.*\n)+?)```", TEXT)
NAMED = re.findall(r"```text\n(.+)\n```", TEXT)


@pytest.mark.parametrize(("words", "lines"), SAID, ids=[words for words, _ in SAID])
def test_a_command_says_what_the_page_says(words, lines, capsys, published):
    code, _, err = call(capsys, *shlex.split(words))
    assert code == 2
    pattern = ".*".join(re.escape(part.strip("\n")) for part in lines.split("..."))
    assert re.search(pattern, err, re.DOTALL), err
    assert all(line.startswith("lscl: ") for line in err.splitlines())


@pytest.fixture(scope="module")
def said():
    """Every error text of the package, `...` for what is filled in."""
    return set(error_texts())


def error_texts():
    for path in (ROOT / "lscl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("LsclError", "RejectedPayload"):
                parts = getattr(node.args[0], "values", [node.args[0]])
                yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in parts)


@pytest.mark.parametrize("line", NAMED)
def test_a_line_that_needs_more_than_a_command_is_in_the_code(said, line):
    assert line in said
