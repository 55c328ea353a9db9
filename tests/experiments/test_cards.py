"""What is read of timed steps, and which of them a run's hours follow."""

import json

import pytest
from timed_steps import H100, row, write

from lscl.config import experiment
from lscl.errors import LsclError
from lscl.experiments import cards


def test_a_sheet_has_rates_with_a_source_and_a_date():
    for sheet in cards.SHEETS.values():
        assert sheet.source and len(sheet.dated) == 7 and sheet.device in sheet.title.lower()
        assert sheet.peak("fp32") == sheet.fp32 <= sheet.peak("tf32") <= max(sheet.peak("bf16"), sheet.peak("fp16"))
        assert sheet.peak("compiled") == sheet.peak("bf16")
    assert cards.SHEETS["t4"].peak("bf16") == 8.1 and cards.SHEETS["t4"].peak("fp16") == 65  # it has no unit for bf16


def test_only_timed_steps_that_passed_are_read(places):
    rows = [
        row("l2p"),
        row("lorm", outcome="failed"),
        {"check": "a.l2p", "outcome": "passed", "method": "l2p", "gpu": 50.0},
        {"check": "b1.pilora-fp32-16", "outcome": "not run", "reason": "no time"},
    ]
    write(places / "results", rows)
    (step,) = cards.measured_steps()
    assert (step.device, step.method, step.arithmetic, step.batch) == (H100, "l2p", "fp32", 16)
    assert (step.seconds, step.peak, step.ratio_to_bare) == (0.5, 4.0e9, 1.1)


def test_without_a_gpu_or_a_file_there_are_none(places):
    assert cards.measured_steps() == []
    write(places / "results", [row("l2p")], gpu=None)
    assert cards.measured_steps() == []


@pytest.mark.parametrize("damage", [{"seconds": "fast"}, {"batch": 0}, {"seconds": -1.0}])
def test_a_damaged_row_is_one_line(places, damage, one_line):
    path = write(places / "results", [{**row("l2p"), **damage}])
    with pytest.raises(LsclError) as caught:
        cards.measured_steps()
    one_line(caught, path.name, "rows")


def test_steps_belong_to_the_card_whose_name_they_have(places):
    write(places / "results", [row("l2p")], gpu="NVIDIA T400 4GB")
    assert cards.steps_on("t4") == () and len(cards.steps_on("NVIDIA T400 4GB")) == 1
    write(places / "results", [row("l2p")], gpu="Tesla T4", name="gpu--Tesla-T4")
    assert len(cards.steps_on("t4")) == 1 and cards.steps_on("h100") == ()


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, "fp32"),
        ({"tf32": True}, "tf32"),
        ({"precision": "bf16"}, "bf16"),
        ({"precision": "bf16", "tf32": True}, "bf16"),
        ({"precision": "bf16", "compile": True}, "compiled"),
        ({"precision": "fp16", "compile": True}, "fp16"),
    ],
)
def test_the_arithmetic_of_a_run(values, wanted):
    assert cards.arithmetic_of(experiment(**values)) == wanted


def test_a_run_follows_the_step_of_its_system_vit_and_arithmetic_with_the_nearest_batch(places):
    write(places / "results", [row("l2p", batch=16), row("l2p", batch=64, seconds=1.6), row("l2p", mode="tf32")])
    steps = cards.steps_on("h100")
    paper = lambda **values: experiment(**{"profile": "paper", "dataset": "cifar100", "method": "l2p", **values})
    assert cards.step_like(paper(), steps) == steps[0] and cards.step_like(paper(tf32=True), steps) == steps[2]
    assert cards.step_like(paper(batch=48), steps) == steps[1]
    assert cards.seconds_like(paper(batch=48), steps[1]) == pytest.approx(1.2)
    for other in (paper(method="lorm"), paper(precision="bf16"), paper(foundation="mini")):
        assert cards.step_like(other, steps) is None
    assert cards.step_like(paper(vit_size=384), steps) is None  # timed at the ViT's own size


def test_the_reader_needs_no_more_than_it_says(places):
    path = write(places / "results", [row("l2p")])
    found = json.loads(path.read_text())
    (one,) = found["rows"]
    needed = ("outcome", "method", "mode", "batch", "vit", "seconds", "images_per_second")
    path.write_text(json.dumps({"machine": {"gpu": H100}, "rows": [{key: one[key] for key in needed}]}))
    (step,) = cards.measured_steps()
    assert (step.peak, step.planned, step.ratio_to_bare) == (None, None, None)
