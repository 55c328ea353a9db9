"""The rules of the house that a reader feels: what a docstring says, and which shape an array has after it changed."""

import ast
import re
import tokenize

import pytest
from tests_root import ROOT

RESHAPING = {"chunk", "einsum", "expand", "flatten", "permute", "reshape", "split", "transpose", "unflatten", "view"}
RAISED_BY_PYTHON = {"StopIteration", "SystemExit"}


def modules(*parts):
    """(path below the root, source) of every module of the library below these packages."""
    for path in sorted(place for part in parts for place in (ROOT / "lscl" / part).rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), path.read_text("utf-8")


def hooks():
    """Names of the methods that a base class of the library describes: an override need not describe them again."""
    trees = [ast.parse(source) for _, source in modules(".")]
    return {
        item.name
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in ("Method", "Costs", "Parameters")
        for item in node.body
        if isinstance(item, ast.FunctionDef)
    }


def public(tree, inherited):
    """Public functions, and the methods of public classes that override nothing described elsewhere."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            own = node.name in ("Method", "Costs", "Parameters")
            for item in node.body:
                shown = isinstance(item, ast.FunctionDef) and not item.name.startswith("_")
                if shown and (own or item.name not in inherited):
                    yield item


def unsaid(node):
    """What the docstring of one function leaves out."""
    said = ast.get_docstring(node) or ""
    given = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    given = [name for name in given if name not in ("self", "cls")]
    if not said:
        return ["a docstring"]
    missing = []
    if len(given) >= 2:
        described = re.search(r"^Args:\n(.*?)(?:\n\n|\Z)", said, re.MULTILINE | re.DOTALL)
        found = set(re.findall(r"^ {4}\*{0,2}(\w+)(?: \(.*?\))?:", described[1], re.MULTILINE)) if described else set()
        missing += [f"argument {name}" for name in given if name not in found]
        nothing = node.returns is None or (isinstance(node.returns, ast.Constant) and node.returns.value is None)
        if not nothing and not re.search(r"^(Returns|Yields):$", said, re.MULTILINE):
            missing.append("what it returns")
    raised = {
        name.func.id
        for name in (inner.exc for inner in ast.walk(node) if isinstance(inner, ast.Raise))
        if isinstance(name, ast.Call) and isinstance(name.func, ast.Name)
    }
    if raised - RAISED_BY_PYTHON and not re.search(r"^Raises:$", said, re.MULTILINE):
        missing.append(f"that it raises {', '.join(sorted(raised))}")
    return missing


def without_docs(sources, inherited):
    return [
        f"{path}:{node.lineno} {node.name} lacks {', '.join(missing)}"
        for path, source in sources
        for node in public(ast.parse(source), inherited)
        if (missing := unsaid(node))
    ]


def test_every_public_function_says_what_it_takes_gives_and_raises():
    described = [(path, source) for path, source in modules(".") if path != "lscl/cli.py"]  # there the options say it
    found = without_docs(described, hooks())
    assert not found, "\n".join([f"{len(found)} in all", *found])


def without_shape(path, source):
    """Calls that change the shape of an array, without a comment such as `# (b, n, d)` in their lines."""
    comments = {}
    for token in tokenize.generate_tokens(iter(source.splitlines(True)).__next__):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string
    for statement in ast.walk(ast.parse(source)):
        if not isinstance(statement, ast.stmt) or isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.With):
            continue
        own = getattr(statement, "test", getattr(statement, "iter", statement))  # the head of an if, a while or a for
        for node in ast.walk(own):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            text = name == "split" and (not node.args or isinstance(node.args[0], ast.Constant | ast.JoinedStr))
            if name in RESHAPING and not (text and not (node.args and isinstance(node.args[0].value, int))):
                lines = range(own.lineno, own.end_lineno + 1)
                if not any(re.search(r"\(.*\)|-> *\w", comments.get(line, "")) for line in lines):
                    yield f"{path}:{node.lineno} {name}"


def test_every_change_of_shape_says_the_shape():
    found = [
        line for path, source in modules("models", "methods") for line in dict.fromkeys(without_shape(path, source))
    ]
    assert not found, "\n".join([f"{len(found)} in all", *found])


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("def f(a): ...", 1),
        ("def f(a):\n    '''Says.'''", 0),
        ("def f(a, b):\n    '''Says.'''", 2),
        ("def f(a, b) -> int:\n    '''Says.\n\n    Args:\n        a: one\n        b: two\n    '''", 1),
        (
            "def f(a, b) -> int:\n    '''Says.\n\n    Args:\n        a: (n,)\n        b: two\n\n"
            "    Returns:\n        c\n    '''",
            0,
        ),
        ("def f(a):\n    '''Says.'''\n    raise ValueError('x')", 1),
        ("class A:\n    def update(self, a, b): ...", 0),
        ("def _own(a, b): ...", 0),
    ],
)
def test_what_a_docstring_must_say(source, missing):
    found = without_docs([("x", source)], {"update"})
    assert (len(found[0].split("lacks ")[1].split(", ")) if found else 0) == missing


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("y = x.reshape(2, 3)", 1),
        ("y = x.reshape(2, 3)  # (2, 3)", 0),
        ("y = x.reshape(\n    2, 3\n)  # (2, 3)", 0),
        ("y = text.split(',')", 0),
        ("y = text.split()", 0),
        ("y = x.split(4)", 1),
        ("y = x.split(sizes)  # here", 1),
        ("for part in x.split(n):\n    pass  # (n,)", 1),
        ("if a:\n    y = torch.einsum('ij,j->i', a, b)", 1),
    ],
)
def test_which_calls_must_say_a_shape(source, found):
    assert len(list(without_shape("x", source))) == found
