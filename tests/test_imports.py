"""Imports go down and public names are unique, both read from the sources; and what `import lscl` does first."""

import ast
import os
import subprocess
import sys
from collections import defaultdict
from functools import cache

import nbformat
import pytest
from tests_root import ROOT

# From the ground up: a module may import what stands before it, and its own package.
ORDER = (
    *("errors", "paths", "machine", "files", "seeding", "registry", "config"),
    *("data", "models", "federation", "methods", "experiments", "flower", "results", "publish", "cli"),
)
ONLY_CLI = ("flower", "publish")  # nothing but the command line, and they themselves, import these
SAME_BY_DESIGN = {"main"}  # the entry point of the command line, and the one that Flower's ServerApp wants

# The only imports by a computed name: the registry loads systems and data sets when the first one is needed, and the
# package of the systems loads its own modules.
UP = {"lscl.registry imports lscl.?", "lscl.methods imports lscl.?"}


@cache
def sources():
    """(name, tree) of every module of the package, such as ("lscl.data.store", ...)."""
    found = []
    for path in sorted((ROOT / "lscl").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), ast.parse(path.read_text("utf-8"))))
    return found


def imported(name, tree):
    """The modules and names of lscl that a module imports anywhere, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "lscl")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: a relative import"
            if node.module.split(".")[0] == "lscl":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
            "import_module",
            "__import__",
        ):
            given = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else "lscl.?"
            yield from [given] if str(given).split(".")[0] == "lscl" else []


def layer(name):
    """The first part of a name below lscl: its package, or its module at the top."""
    return name.split(".")[1] if "." in name else None


def upward(modules):
    """One line for every import that goes up, or into what only the command line may import."""
    found = []
    for name, tree in modules:
        own = layer(name)
        for target in imported(name, tree):
            other = layer(target)
            if own is None or other is None or other.startswith("__") or own == other:
                continue  # lscl/__init__.py may import all, all may import its path and version, and one's own package
            if other not in ORDER or ORDER.index(other) > ORDER.index(own) or (other in ONLY_CLI and own != "cli"):
                found.append(f"{name} imports {target}")
    return found


def doubled(modules):
    """Public functions and classes that stand in more than one module: {name: modules}."""
    found = defaultdict(list)
    for name, tree in modules:
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith(
                "_"
            ):
                found[node.name].append(name)
    return {name: places for name, places in found.items() if len(places) > 1}


def test_every_module_has_its_layer():
    assert {layer(name) for name, _ in sources()} - {None} == set(ORDER)


def test_imports_go_down():
    found = set(upward(sources()))
    assert not found - UP, f"imports that go up: {sorted(found - UP)}"
    assert not UP - found, f"no longer there, strike them off UP: {sorted(UP - found)}"


def test_the_face_of_the_package_is_imported_by_no_module():
    """lscl/__init__.py may take names from everywhere, so nothing inside may take them from there."""
    inside = {
        target
        for name, tree in sources()
        if name != "lscl"
        for target in imported(name, tree)
        if target.count(".") == 1
    }
    assert {
        target for target in inside if layer(target) not in (*ORDER, "?") and not layer(target).startswith("__")
    } == set()


def test_a_public_name_is_unique():
    found = {name: places for name, places in doubled(sources()).items() if name not in SAME_BY_DESIGN}
    assert not found, f"public names that stand in several modules: {found}"


@pytest.mark.parametrize(
    ("name", "text", "bad"),
    [
        ("lscl.data.store", "from lscl.models.vit import enlarge", True),
        ("lscl.data.store", "def f():\n    if True:\n        import lscl.experiments.run", True),
        (
            "lscl.data.store",
            "def f():\n    import importlib\n    return importlib.import_module('lscl.results.frames')",
            True,
        ),
        ("lscl.data.store", "from lscl import methods", True),
        ("lscl.results.frames", "from lscl.flower.messages import pack_config", True),
        ("lscl.experiments.verify", "from lscl.publish.pages import write", True),
        ("lscl.config", "from lscl.elsewhere import x", True),
        ("lscl.cli", "from lscl.publish.pages import write", False),
        ("lscl.publish.build", "from lscl.publish.pages import write", False),
        ("lscl.experiments.records", "from lscl import __version__, paths", False),
        ("lscl", "from lscl.experiments.run import run", False),
    ],
)
def test_what_counts_as_up(name, text, bad):
    assert bool(upward([(name, ast.parse(text))])) == bad


def test_what_counts_as_a_public_name():
    one = ast.parse("def shown(): ...\ndef _own(): ...\nclass A:\n    def cut(self): ...")
    other = ast.parse("class shown: ...\ndef _own(): ...\ndef cut(): ...")
    assert doubled([("a", one), ("b", other)]) == {"shown": ["a", "b"]}


def test_everything_can_be_imported_where_unix_modules_are_missing():
    """As on Windows: no module of ours imports them when it is imported itself."""
    code = """
import builtins, importlib, pkgutil
real = builtins.__import__
def guarded(name, globals=None, *others, **named):
    who = (globals or {}).get("__name__", "")
    if name in ("fcntl", "grp", "pwd", "resource", "termios") and who.startswith("lscl"):
        raise ImportError(f"{who} imports {name}")
    return real(name, globals, *others, **named)
builtins.__import__ = guarded
import lscl
modules = [found.name for found in pkgutil.walk_packages(lscl.__path__, "lscl.")]
for name in modules:
    importlib.import_module(name)
from lscl.machine import peak_memory
print(len(modules), peak_memory() > 10**7)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    count, measured = done.stdout.split() or (done.stderr, "")
    assert int(count) >= len(sources()) - 1 and measured == "True"


@pytest.mark.parametrize(("own", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_torchs_threads_sleep_while_they_wait_unless_the_user_says_otherwise(own, found):
    """The variable is read when torch is imported, so it has to be set before anything of lscl imports torch."""
    code = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
import lscl.models.cache
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, **own}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == found, done.stderr


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_imports_lscl_before_torch(path):
    """In a kernel, too, the variable is set in time."""
    cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    nodes = [node for source in cells for node in ast.parse(source).body]
    names = [
        name.split(".")[0]
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module])
    ]
    assert next(name for name in names if name in ("lscl", "torch", "torchvision", "timm")) == "lscl"


@pytest.mark.parametrize(("own", "found"), [("gc.get_threshold()[0]", 10_000), ("50_000", 50_000), ("0", 0)])
def test_python_looks_for_unused_objects_less_often_unless_the_user_says_how_often(own, found):
    code = f"import gc; gc.set_threshold({own}); import lscl; print(gc.get_threshold()[0])"
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) == found
