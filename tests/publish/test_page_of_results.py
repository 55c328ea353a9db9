"""Notebook 05 in the profile smoke, as the runs of its own profile take minutes; `make demo` executes it as it is."""

import json

import nbformat
import pytest
from tests_root import ROOT

from lscl.experiments.sweeps import plan
from lscl.publish import build


@pytest.fixture
def repository(places):
    """The repository's results in the folder of the test, without the runs of smoke and demo, which it makes itself."""
    (places / "results" / "runs").mkdir(parents=True)
    for part in (ROOT / "results").iterdir():
        if part.name not in ("runs", "partitions", "executed"):
            (places / "results" / part.name).symlink_to(part)
    (places / "results" / "runs" / "mini").symlink_to(ROOT / "results" / "runs" / "mini")
    return places


def test_it_makes_its_runs_and_shows_them_beside_the_committed_records(repository, tmp_path):
    target = tmp_path / "executed" / "05_results.ipynb"
    build.execute(ROOT / "notebooks" / "05_results.ipynb", target, "smoke", {"data_dir": None, "weights": None})
    made = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (repository / "results" / "runs" / "smoke").rglob("*.json")
        if path.parent.name != "models"
    ]
    wanted = plan("smoke")
    assert sorted(record["name"] for record in made) == sorted(config.name for config in wanted)
    cells = [cell for cell in nbformat.read(target, 4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(cell.execution_count for cell in cells) and not any(output.output_type == "error" for output in outputs)
    shown = "".join(str(output.get("data", {})) for output in outputs)
    assert "KeptModel(glyphs--fed_lscl--s42--" in shown and "The client calls" in shown
    assert "Fed-LSCL" in shown and "image/svg+xml" in shown and "profile `mini`" in shown
