"""The verified records as a page shows them."""

import json

import pytest
from made_records import record

from lscl import cli
from lscl.config import experiment
from lscl.experiments import records, verify
from lscl.publish import verified


def test_the_cells_behind_a_record_are_named(recorded, tree, capsys):
    head, ours = recorded
    assert verified.cells(head) == []  # on images of one's own: no set has them
    config = experiment(profile="mini", dataset="cifar100", seed=1999)
    made = {**record(seed=1999), "config_digest": config.digest}
    assert (
        verified.cells(made)[0]
        == "Table 1, CIFAR-100, Fed-LSCL (O2D exact), seed 1999: 72.0 % task-masked, 42.0 % class-incremental"
    )
    assert [text.split(",")[:3] for text in verified.cells(made)[1:3]] == [
        ["Table 2", " CIFAR-100", " whole"],
        ["Fig. 3", " CIFAR-100", " block 3"],
    ]
    with pytest.raises(SystemExit):
        cli.main(["verify", "--profile", "smoke", "--data-dir", str(tree)])
    assert capsys.readouterr().out.startswith("in no table: equal to the bit (")


def test_the_page_shows_the_outcome_that_is_kept(recorded, tree):
    assert "`lscl verify --profile smoke --sample 3`" in verified.outcome("smoke")
    verify.verify_sample("smoke", 2, 5, tree)
    text = verified.outcome("smoke")
    assert (
        text.startswith("2 of 2 were equal to the bit.") and "`lscl verify --profile smoke --sample 2 --seed 5`" in text
    )
    for one in recorded:
        assert f"| `{one['name']}` | equal to the bit |" in text
    path = verify.verify_sample("smoke", 2, 5, tree)
    saved = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**saved, "without_outcome": ["gone"]}), "utf-8")
    text = verified.outcome("smoke")
    assert "to the bit. 1 of the 3 drawn runs failed." in text and "--sample 3 --seed 5`" in text
    path = records.folder("smoke") / f"{recorded[0]['name']}.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "commit": "0" * 40}))
    assert verified.outcome("smoke").count(f"| {verified.MADE_AGAIN} |") == 1


def test_a_record_that_was_equal_within_rounding_is_counted_apart(recorded, tree):
    path = verify.verify_sample("smoke", 2, 5, tree)
    saved = json.loads(path.read_text("utf-8"))
    saved["runs"][0] |= {
        "equal": False,
        "outcome": "rounding",
        "differs": ["accuracy"],
        "gaps": {"task": 0.5},
        "allowed": 5,
    }
    path.write_text(json.dumps(saved), "utf-8")
    text = verified.outcome("smoke")
    assert text.startswith("1 of 2 were equal to the bit, 1 within rounding.")
    assert "equal within rounding (points apart: task +0.50; allowed on another processor: 5)" in text
