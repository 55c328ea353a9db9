"""The tests mirror the library: tests/data/test_store.py tests lscl/data/store.py; others say their subject."""

from tests_root import ROOT

# Test files that belong to no single module, and what they are about.
OF_THE_WHOLE = {
    "test_bad_input": "wrong values, damaged files and full disks, as the commands tell of them",
    "test_colab": "the bootstrap of Colab, and Colab's packages",
    "test_environment": "pyproject.toml, constraints.txt, environment.yml",
    "test_gpu_benchmark": "the checks of benchmarks/gpu.py",
    "test_imports": "the order of the packages",
    "test_language": "the English of pages, notebooks and docstrings, and the glossary",
    "test_mirror": "this",
    "test_readability": "docstrings and comments on shapes",
    "test_repository": "workflows, issue forms, Docker image, Makefile",
    "test_troubleshooting": "the page of errors",
    "test_wheel": "the package as it is installed, without a clone",
    "experiments/test_planned_memory": "the memory that the plan counts, against the measured one",
    "federation/test_no_waiting": "steps that wait for no device",
    "federation/test_robust": "what one client can do to the others",
    "flower/test_flower_processes": "a federation of real processes",
    "methods/test_other_vits": "every system on ViTs of other families",
    "methods/test_proportion": "how large the first steps of Fed-LSCL are beside the frozen model",
    "methods/test_readers": "which system reads which values of the config",
    "methods/test_true_shapes": "every system at the shapes of the large profiles",
    "publish/test_build_on_it": "the page on methods, data, models and machines of one's own",
    "publish/test_differences": "the page of differences against the config",
    "publish/test_book": "pages and notebooks as committed",
    "publish/test_notebooks_of_records": "notebooks that only read records",
    "publish/test_page_of_results": "notebook 05, which makes runs",
    "publish/test_site": "the rendered book",
}


def modules():
    paths = [path.relative_to(ROOT / "lscl") for path in (ROOT / "lscl").rglob("*.py") if path.name != "__init__.py"]
    return {str(path.with_name(f"test_{path.stem}")) for path in paths}


def files():
    return {str(path.relative_to(ROOT / "tests").with_suffix("")) for path in (ROOT / "tests").rglob("test_*.py")}


def test_every_module_has_a_test_file_and_every_test_file_a_module():
    assert sorted(modules() - files()) == []
    assert sorted(files() - modules()) == sorted(OF_THE_WHOLE)


def test_every_test_file_has_tests():
    empty = [path.name for path in (ROOT / "tests").rglob("test_*.py") if "def test_" not in path.read_text("utf-8")]
    assert empty == []


def test_file_names_are_unique():
    """The folders of the tests are no packages, so that two files of one name would shadow each other."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
