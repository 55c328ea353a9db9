"""pyproject.toml, constraints.txt and environment.yml name the same packages, and newer torch versions are allowed."""

import re
import tomllib

import yaml
from tests_root import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!\[;@ ]", requirement, maxsplit=1)[0].lower().replace("-", "_")


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {name_of(line): line.split("==")[1] for line in lines if "==" in line and not line.startswith("#")}


def required() -> set[str]:
    extras = PROJECT["optional-dependencies"]
    names = [
        *PROJECT["dependencies"],
        *extras["book"],
        *extras["pretrain"],
        *extras["flower"],
        *extras["tune"],
        *extras["privacy"],
        *extras["track"],
        *extras["test"],
    ]
    return {name_of(name) for name in names} - {"fed_lscl"}


def test_environment_yml_lists_what_pyproject_requires():
    (pip,) = [part["pip"] for part in ENVIRONMENT["dependencies"] if isinstance(part, dict)]
    listed = {name_of(line) for line in pip if not line.startswith("-")}
    assert listed == required()
    assert "-c constraints.txt" in pip
    assert "-e ." in pip


def test_every_required_package_has_a_pinned_version():
    assert required() - set(pinned()) == set()


def test_python_is_the_same_everywhere():
    assert f"python{PROJECT['requires-python']}" in ENVIRONMENT["dependencies"]


def test_torch_has_no_upper_bound_in_the_package():
    for requirement in PROJECT["dependencies"]:
        if name_of(requirement) in {"torch", "torchvision", "numpy"}:
            assert "<" not in requirement
            assert "==" not in requirement


def test_jupyter_book_stays_below_2_everywhere():
    assert any(line.startswith("jupyter-book") and "<2" in line for line in PROJECT["optional-dependencies"]["book"])
    assert pinned()["jupyter_book"].startswith("1.")
