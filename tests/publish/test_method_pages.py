"""One page for every system, from its docstring, the config and the records."""

import json

import pytest
from made_records import record
from tests_root import ROOT

from lscl.config import experiment, fields
from lscl.experiments import sweeps
from lscl.methods import METHODS
from lscl.publish import method_pages
from lscl.results.markdown import NO_RECORDS

pytestmark = pytest.mark.usefixtures("published")
CONTROLS = [name for name, kind in METHODS.items() if kind.paper_name is None]
UNSOURCED = ("local_head", "local_lora", "local_ridge")  # their docstrings have no list of differences
every = pytest.mark.parametrize("method", METHODS)


@every
def test_a_docstring_has_its_parts(method):
    idea, travels, heading, differences = method_pages.description(method)
    assert idea.endswith(".") and "\n1." not in idea
    assert "payload" in travels.lower() or "returned: nothing" in travels
    if method not in UNSOURCED:
        assert heading.startswith(("Differences from", "Choices where")) and differences.startswith("1. ")
        assert "arXiv" in travels or method == "fed_lscl"


@every
def test_a_page_without_records_has_every_part_and_says_what_is_missing(method):
    text = method_pages.page(method, [])
    for heading in ("Idea", "What is trained and what travels", "Parameters", "Results", "Tuning"):
        assert f"\n## {heading}\n" in text
    assert f"`lscl sweep table1 --methods {method} --dataset cifar100 --profile mini` makes the records" in text
    tuned = len(METHODS[method].search_space) > 0
    assert (f"`lscl sweep tune --methods {method} --profile mini`" in text) == tuned
    assert ("It has no grid" in text) == (not tuned)
    assert ("published |" in text) == (method not in CONTROLS)


@every
def test_the_parameters_are_those_that_the_method_reads(method):
    names = method_pages.names_of_parameters(method)
    training = {"lr", "epochs", "batch"} if METHODS[method].trains else set()
    assert {*training, *(name for point in method_pages.points_of(method)[:1] for name in point)} <= set(names)
    assert set(names) <= set(fields()) and (training or not {"lr", "epochs", "batch"} & set(names))
    own = {"fedprox": "prox", "l2p": "l2p", "dualprompt": "dual", "fedmgp": "mgp", "pilora": "pilora", "lorm": "lorm"}
    own |= {"glfc": "glfc", "target": "target", "mfcl": "mfcl"}
    for other, prefix in own.items():
        mine = [name for name in fields() if name.startswith(f"{prefix}_")]
        assert (set(mine) <= set(names)) if method == other else not set(mine) & set(names), (method, mine)


def test_values_are_those_of_the_profiles():
    table = method_pages.parameter_table("glfc")
    assert table.loc["`glfc_steps`", ["mini", "paper"]].tolist() == ["30", "250"]


def test_results_stand_beside_the_published_ones_and_an_own_head():
    made = [
        record(score=80),
        record(seed=1999, score=82),
        record("local_head", score=70),
        record("local_head", seed=1999, score=73),
    ]
    text = method_pages.page("fed_lscl", made)
    assert "| Fed-LSCL (O2D exact) | task-masked, task just learned | 2 | 81.0 ±" in text
    assert "| Fed-LSCL, published | task-masked, task just learned | – | 97.7 |" in text
    assert "| Fed-LSCL (O2D exact) | class-incremental, all tasks so far | 2 | 51.0 ±" in text
    assert "| Fed-LSCL (O2D exact) | 43.0 | 2 |" in text and "| +9.5 |" in text
    assert "Fed-LSCL" not in method_pages.results_of("local_head", made)


def test_the_choice_is_compared_with_what_is_in_use(places):
    folder = places / "results" / "tuning"
    folder.mkdir(parents=True)
    used = experiment(profile="mini", dataset="cifar100", method="fedavg").lr
    other = next(point["lr"] for point in method_pages.points_of("fedavg") if point["lr"] != used)
    row = {"method": "fedavg", "seed": sweeps.TUNING_SEED, "task_masked": 30.0, "class_incremental": 20.0}
    rows = [{**row, "point": {"lr": lr}} for lr in (used, other)]
    path = folder / "mini--cifar100.json"
    for best, says in (
        ({}, "2 of 6 points are recorded, so nothing is chosen yet"),
        ({"lr": used}, f"Chosen: lr = {used:g}."),
        ({"lr": other}, f"Best: lr = {other:g}. Not yet in use: `mini` has lr = {used:g}."),
    ):
        path.write_text(json.dumps({"rows": rows, "best": {"fedavg": best} if best else {}}), encoding="utf-8")
        assert says in method_pages.tuning("fedavg")
    assert "edge" not in method_pages.tuning("fedavg")


def test_a_choice_at_the_edge_of_its_grid_is_told():
    edge = method_pages._edges("fedavg_vit", {"lr": 1e-1})
    assert (
        edge
        == " At the edge of the grid: `lr` = 0.1 is the largest that was tried, so a value beyond it might do better."
    )
    assert method_pages._edges("fedavg_vit", {"lr": 1e-2}) == ""
    says = method_pages._edges("lorm", {"lr": 1e-3, "lorm_rank": 4})
    assert (
        says == " At the edge of the grid: `lorm_rank` = 4 is the larger of the two that were tried, "
        "so a value beyond it might do better."
    )
    assert "`prox_mu` = 0.01 is the smaller of the two that were tried" in method_pages._edges(
        "fedprox", {"lr": 3e-3, "prox_mu": 0.01}
    )
    says = method_pages._edges("fed_lscl", {"lr_generator": 1e-3, "lr_cnn": 1e-4})
    assert "`lr_cnn` = 0.0001 is the smaller of the two that were tried" in says and "lr_generator" not in says


def test_an_arxiv_number_leads_to_the_bibliography(monkeypatch):
    assert method_pages.link_citations("(arXiv 1602.05629)") == "(arXiv 1602.05629)"  # no book here
    monkeypatch.setenv("LSCL_ROOT", str(ROOT))
    assert (
        method_pages.link_citations("(arXiv 1602.05629) and arXiv 0000.00000")
        == "(arXiv 1602.05629, {cite}`fedavg`) and arXiv 0000.00000"
    )
    for method in set(METHODS) - {*UNSOURCED, "fed_lscl"}:
        assert "{cite}" in method_pages.page(method, []), method


def test_the_overview_links_every_page():
    text = method_pages.overview([record()])
    for method in METHODS:
        assert f"<{method_pages.anchor(method)}>`" in text
    assert "| {ref}`Fed-LSCL <method-fed-lscl>` |" in text and "| 1 | 72.0 | 42.0 |" in text
    assert NO_RECORDS in method_pages.overview([])
