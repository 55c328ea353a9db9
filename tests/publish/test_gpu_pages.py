"""What was measured on a card, as the book shows it."""

import pytest
from made_records import record
from timed_steps import H100, row, write

from lscl.errors import LsclError
from lscl.experiments.cards import measured_steps
from lscl.publish import gpu_pages

WAYS = {
    "placed_seconds": 0.4,
    "plain_seconds": 1.0,
    "peft_seconds": None,
    "peft_and_cnn_seconds": 0.6,
}


def smoke(method, apart=0.0, repeats=True):
    return {"check": f"a.{method}", "outcome": "passed", "points_apart": apart, "repeats": repeats}


def passed(name, **other):
    return {"check": name, "outcome": "passed", **other}


ROWS = [
    smoke("l2p", 1.5),
    smoke("lorm", 0.0, False),
    {"check": "a.glfc", "outcome": "failed", "reason": "20 points from the CPU"},
    passed("c.resume"),
    passed("d.01_data_partitioning"),
    passed("d.03_continual_finetuning"),
    row("fed_lscl", **WAYS),
    row("l2p", waiting=0.3, ratio_to_bare=1.3, planned_mb=8000),
    row("l2p", "bf16", 64, waiting=None, ratio_to_bare=None, peak_mb=None),
    {"check": "b2.fed_lscl-compiled-16", "outcome": "not run", "reason": "no time"},
    passed("b4.concurrency", steps_per_second={"1": 100.0, "4": 350.0}),
]


@pytest.fixture
def cards(places):
    write(places / "results", ROWS)
    return gpu_pages.measured_cards()


def test_without_a_card_the_page_says_so(places):
    assert gpu_pages.gpu_page() == gpu_pages.NOT_MEASURED
    write(places / "results", ROWS, gpu=None)
    assert gpu_pages.gpu_page() == gpu_pages.NOT_MEASURED


def test_checks_are_counted_and_what_did_not_pass_is_named(cards):
    table = gpu_pages.checks_table(cards).set_index("check")
    assert set(table["card"]) == {H100}
    smoked = table.loc["every system, profile smoke"]
    assert smoked["passed"] == "2 of 3"
    assert smoked["found"] == (
        "at most 1.5 points from the CPU; 1 repeat to the bit with deterministic kernels; "
        "failed: glfc (20 points from the CPU)"
    )
    assert table.loc["notebooks executed on the GPU", "found"] == "01, 03"
    compiled = table.loc["steps of Fed-LSCL in other arithmetics"]
    assert (compiled["passed"], compiled["found"]) == ("0 of 1", "not run: fed_lscl-compiled-16 (no time)")
    assert "a run in fp16" not in table.index  # it has no row


def test_steps_are_summed_up_by_arithmetic_and_batch(cards):
    first, second = gpu_pages.summary_table(measured_steps()).to_dict("records")
    assert (first["arithmetic"], first["batch"], first["steps"]) == ("fp32", "16", "2")
    assert first["time to bare products"] == "1.20 (1.10 to 1.30)" and first["GPU idle %"] == "20 (10 to 30)"
    assert first["memory, planned to measured"] == "1.55 (1.10 to 2.00)"
    assert first["plan within a factor of 1.25"] == "1 of 2"
    assert [value for key, value in second.items() if key not in ("card", "arithmetic", "batch", "steps")] == ["–"] * 4


def test_a_compared_step_stands_beside_the_other_ways(cards):
    (found,) = gpu_pages.ways_table(cards).to_dict("records")
    assert found["as in a run"] == "500.0" and found[gpu_pages.WAYS["plain_seconds"]] == "1000.0"
    assert found[gpu_pages.WAYS["peft_seconds"]] == "–" and found[gpu_pages.WAYS["peft_and_cnn_seconds"]] == "600.0"


def test_the_gain_of_several_runs_at_once(cards):
    found = gpu_pages.pace_table(cards)
    assert found[["runs", "steps/s", "gain"]].to_numpy().tolist() == [["1", "100", "1.0"], ["4", "350", "3.5"]]


def test_runs_of_the_profile_full_on_a_measured_card_are_shown_with_their_source(cards, monkeypatch):
    on = lambda gpu: {"cpu": "some cpu", "cores": 16, "memory_gb": 128, "gpu": gpu}
    changes = {"profile": "full", "optimised_images": 24000}
    runs = [
        record(hardware=on(H100), **changes),
        record("local_head", hardware=on(None), **changes),
        record("lorm", seed=1999, hardware=on(H100), **changes),
    ]
    monkeypatch.setattr(gpu_pages, "all_records", {"full": runs}.__getitem__)
    text = gpu_pages.gpu_page()
    assert "| Fed-LSCL (O2D exact) | 3.0 | 2.0 | 200 | 72.0 | 42.0 |" in text
    assert "local head" not in text and "| LoRM" not in text and "1 run, 3 minutes" in text


def test_every_table_of_the_page_has_an_anchor_of_its_own(cards):
    text = gpu_pages.gpu_page()
    names = ("tab-gpu-checks", "tab-steps", "tab-gpu-summary", "tab-gpu-ways", "tab-gpu-pace")
    assert [text.count(f":name: {name}\n") for name in names] == [1] * 5 and "tab-gpu-full" not in text


def test_a_single_card_stands_in_the_captions_several_in_a_column(cards, places):
    text = gpu_pages.gpu_page()
    assert f"other ways to compute it; {H100}\n" in text and "| card |" not in text
    write(places / "results", [row("fed_lscl", **WAYS)], gpu="Tesla T4", name="gpu--Tesla-T4")
    assert (
        "| card | system | arithmetic |" in gpu_pages.gpu_page() and "| Tesla T4 | Fed-LSCL |" in gpu_pages.gpu_page()
    )


@pytest.mark.parametrize(
    "damage",
    [
        {"check": "a.l2p", "outcome": "passed"},
        {"check": "b4.concurrency", "outcome": "passed", "steps_per_second": {}},
        {"check": "b4.concurrency", "outcome": "passed", "steps_per_second": {"1": "fast"}},
        {"check": "c.resume", "outcome": "perhaps"},
        {"check": "z.unknown", "outcome": "passed"},
        {"check": "d.01", "outcome": "failed"},
    ],
)
def test_a_damaged_row_is_one_line(places, damage, one_line):
    path = write(places / "results", [damage])
    with pytest.raises(LsclError) as caught:
        gpu_pages.measured_cards()
    one_line(caught, path.name, "rows")
