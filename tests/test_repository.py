"""What runs elsewhere: workflows, issue forms, the Docker image, and the Makefile's CPU build."""

import re
import subprocess
import sys

import pytest
import yaml
from test_environment import PROJECT, pinned
from tests_root import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def jobs(name):
    """The jobs of a workflow."""
    return yaml.safe_load((GITHUB / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))["jobs"]


def check(schema, *files):
    words = ["check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", WORKFLOWS),
        ("github-issue-forms", FORMS),
        ("github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_github_can_read_its_files(schema, files):
    code, said = check(schema, *files)
    assert files and code == 0, said


def test_a_wrong_workflow_would_be_found(tmp_path):
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("on: push\njobs: {a: {runs-on: ubuntu-24.04, stepps: []}}\n", encoding="utf-8")
    assert check("github-workflows", wrong)[0] != 0


def test_every_script_of_a_workflow_is_right_for_its_shell():
    for path in WORKFLOWS:
        for name, job in jobs(path.stem).items():
            for step in job["steps"]:
                script = re.sub(r"\$\{\{.*?\}\}", "x", step.get("run", ""))
                done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
                assert done.returncode == 0, f"{path.name}, {name}: {done.stderr}"


def test_every_job_ends_and_has_no_more_rights_than_it_needs():
    for path in WORKFLOWS:
        whole = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert whole["permissions"] == {"contents": "read"}, path.name
        for name, job in whole["jobs"].items():
            assert "timeout-minutes" in job or len(job["steps"]) <= 3, f"{path.name}: {name}"


def test_jobs_run_what_there_is():
    """Files and options that the scripts name exist; a system or a profile that is gone would fail on GitHub only."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    for name in re.findall(r"\btests/[\w/.]+", text):
        assert (ROOT / name).exists(), name
    from lscl.config import PROFILES
    from lscl.registry import METHODS

    assert set(re.findall(r"--method (\w+)", text)) <= set(METHODS)
    assert set(re.findall(r"--profile (\w+)", text)) <= set(PROFILES)


def test_the_declared_pythons_and_both_ends_of_the_versions_are_run():
    matrix = jobs("test")["systems"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"] and PROJECT["requires-python"].startswith(">=3.11")
    assert {name.split("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    bounds = jobs("test")["bounds"]["strategy"]["matrix"]["include"]
    assert {one["resolution"] for one in bounds} == {"lowest-direct", "highest"}


def test_a_form_asks_about_a_number_that_differs():
    forms = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FORMS}
    assert forms["number"]["name"] == "My number differs"
    assert {"command", "expected", "reached", "doctor"} <= {one.get("id") for one in forms["number"]["body"]}
    assert "number" in (GITHUB / "pull_request_template.md").read_text(encoding="utf-8")


def test_the_image_is_made_of_the_pinned_versions_of_files_that_it_gets():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    version = re.search(r"^FROM python:3\.(\d+)-slim$", text, re.MULTILINE)
    assert 11 < int(version[1]) <= 14
    assert text.count("-c constraints.txt") == 2 and "${TORCH}" in text and "ARG TORCH=cpu" in text
    let_in = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for name in line.split()}
    assert copied == let_in and all((ROOT / name).exists() for name in copied)
    extras = re.search(r"'\.\[(.+)\]'", text)[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("words", [(), ("CPU=1",)])
def test_make_takes_the_small_build_of_pytorch_if_asked(words, tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    plan = subprocess.run(["make", "-n", "demo", *words], cwd=tmp_path, capture_output=True, text=True, check=True)
    installs = [line for line in plan.stdout.splitlines() if " pip install " in line]
    assert all("-c constraints.txt" in line for line in installs) and installs[-1].endswith("-e '.[test]'")
    assert ["--index-url https://download.pytorch.org/whl/cpu torch torchvision" in line for line in installs] == (
        [True, False] if words else [False]
    )
    assert {"torch", "torchvision"} <= set(pinned())
