"""One page for every system, from its docstring, the config and the records."""

import json
import re

import pytest
from made_records import record
from tests_root import ROOT

from lscl.config import experiment, fields
from lscl.experiments.sweeps import runs_of
from lscl.methods import METHODS
from lscl.publish import method_pages
from lscl.results.markdown import NO_RECORDS

pytestmark = pytest.mark.usefixtures("published")
CONTROLS = [name for name, kind in METHODS.items() if kind.paper_name is None]
UNSOURCED = ("local_head", "local_lora", "local_ridge")  # their docstrings have no list of differences
every = pytest.mark.parametrize("method", METHODS)


@every
def test_a_docstring_has_its_parts(method):
    about = method_pages.description(method)
    assert len(re.findall(r"\.(?=\s|$)", about.idea)) == 3  # three plain sentences
    assert not re.search(r"[$`\\^_]|arXiv", about.idea)
    assert "$" in about.formulas and about.travels.startswith("- **") and "- **Payload:** " in about.travels
    if method not in UNSOURCED:
        assert about.heading.startswith(("Differences from", "Choices where")) and about.differences.startswith("1. ")
        assert "arXiv" in about.formulas + about.travels


@every
def test_a_page_shows_the_diagram_before_any_formula(method):
    text = method_pages.page(method, [])
    drawn = f"```{{live-figure}} /{method_pages.figure_path(method)} fig-"
    assert text.index("## Idea") < text.index(drawn) < text.index("$")
    assert method_pages.drawing(method).startswith("<svg ")


@every
def test_formulas_are_set_as_maths(method):
    """No Greek letter by its name, no subscript outside maths or code, and every formula is closed."""
    text = "\n".join(method_pages.description(method))
    plain = re.sub(r"\$\$.*?\$\$|\$[^$]+\$|`[^`]+`", "", text, flags=re.DOTALL)
    assert "$" not in plain
    assert not re.search(r"\b(theta|phi|lambda|omega|alpha|beta|mu|sigma)\b|\w_\w|\^", plain)


@every
def test_a_page_without_records_has_every_part_and_says_what_is_missing(method):
    text = method_pages.page(method, [])
    for heading in (
        "Idea",
        "In formulas",
        "What is trained and what travels",
        "Code",
        "Parameters",
        "Results",
        "Tuning",
    ):
        assert f"\n## {heading}\n" in text
    (name,) = re.findall(rf"`lscl sweep (\w+) --methods {method} --dataset cifar100 --profile mini` makes them\.", text)
    values = {"profile": "mini", "dataset": "cifar100"}
    plain = experiment(method=method, seed=42, **values).digest
    assert plain in {run.digest for run in runs_of(name, values, [42], [method])}
    tuned = len(METHODS[method].search_space) > 0
    assert (f"`lscl sweep tune --methods {method} --profile mini`" in text) == tuned
    assert ("This system has nothing to tune" in text) == (not tuned)
    assert ("published |" in text) == (method not in CONTROLS)


@every
def test_the_parameters_are_those_that_the_method_reads(method):
    names = method_pages.names_of_parameters(method)
    training = {"lr", "epochs", "batch"} if METHODS[method].trains else set()
    assert {*training, *METHODS[method].search_space} <= set(names) <= set(fields())
    assert training or not {"lr", "epochs", "batch"} & set(names)
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
    assert "| Fed-LSCL (O2D exact) | task-masked, task just learned | 2 | 81 ±" in text
    assert "| Fed-LSCL, published | task-masked, task just learned | – | 97.7 |" in text
    assert "| Fed-LSCL (O2D exact) | class-incremental, all tasks so far | 2 | 51 ±" in text
    assert "| Fed-LSCL (O2D exact) | 2 | 43 ± 13 | +10 ± 6 |" in text
    assert "Fed-LSCL" not in method_pages.results_of("local_head", made)


def put_trials(places, chosen, method="fedprox"):
    """A file with two trials of a system, the second with the profile's values."""
    used = experiment(profile="mini", dataset="cifar100", method=method).model_dump()
    space = METHODS[method].search_space
    ends = [{name: axis.from_drawn(axis.to_drawn(axis.high)) for name, axis in space.items()}]
    trials = [
        {"values": values, "config_digest": "0", "seen": seen, "task": [80.0] * len(seen)}
        for values, seen in ((ends[0], [20.0, 19.0]), ({name: used[name] for name in space}, [21.0]))
    ]
    trials.append({**trials[0], "seen": [], "task": [], "failed": "it diverged"})
    study = {"space": {name: axis.to_json() for name, axis in space.items()}, "trials": trials, "chosen": chosen}
    path = places / "results" / "tuning" / "mini--cifar100.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seed": 7, "studies": {method: study}}), encoding="utf-8")


def test_trials_and_choice_stand_beside_what_is_in_use(places):
    assert "No trial is recorded yet" in method_pages.tuning("fedprox")
    put_trials(places, None)
    text = method_pages.tuning("fedprox")
    assert "2 of 3 trials are through the first task, so no values are chosen yet" in text
    assert "- `prox_mu`: 0.001 to 10, log" in text and "16 until the end of task 1, 5 until the end of task 2" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert [line.split("|")[3].strip() for line in lines if "lr =" in line] == ["2", "1", "0, then diverged"]
    put_trials(places, 1)
    text = method_pages.tuning("fedprox")
    used = experiment(profile="mini", dataset="cifar100", method="fedprox")
    assert f"Chosen: lr = {used.lr:g}, prox_mu = {used.prox_mu:g}.\n" in text and "✓" in text
    put_trials(places, 0)
    text = method_pages.tuning("fedprox")
    assert "Chosen: lr = 0.1, prox_mu = 10. At an edge of the search space:" in text
    assert f"The profile `mini` still uses lr = {used.lr:g}, prox_mu = {used.prox_mu:g}." in text


def test_the_trials_say_where_they_ran_and_what_their_first_one_had(places):
    put_trials(places, 1)
    text = method_pages.tuning("fedprox")
    assert (
        "All trials ran in `mini` on CIFAR-100. `demo`, `mini` and `full` use the chosen values, on every data set."
        in text
    )
    assert "Trial 0 had lr = 0.1, prox_mu = 10, the value of the profile then; it would have lr = 0.003" in text
    put_trials(places, 1, "fed_ridge")
    assert "ridge_lambda = 0.3 of the main table has values that these trials did not choose" in method_pages.tuning(
        "fed_ridge"
    )


def test_a_download_for_the_test_is_told_from_the_bytes():
    two_tasks = {"accuracy": {"task": [0, 0]}}
    assert method_pages.sent_again({**two_tasks, "bytes_down": [[5], [4], [8], [7], [6], [12]]})
    assert not method_pages.sent_again({**two_tasks, "bytes_down": [[5], [4], [8], [7], [6], [7]]})
    assert not method_pages.sent_again({**two_tasks, "bytes_down": [[8], [8]]})  # one exchange per task
    assert not method_pages.sent_again({**two_tasks, "bytes_down": [[0]] * 6})


def test_edges_are_told_on_every_axis():
    space = {"lr": {"log_range": [1e-4, 1]}, "lorm_rank": {"one_of": [1, 4]}, "lorm_alpha": {"range": [0, 1]}}
    assert method_pages.edges(space, {"lr": 0.9, "lorm_rank": 4, "lorm_alpha": 0.02}) == (
        " At an edge of the search space: lr = 0.9 is in the highest tenth of the range; "
        "lorm_rank = 4 is the larger of 1, 4; lorm_alpha = 0.02 is in the lowest tenth of the range. "
        "A value beyond it may be better."
    )
    assert method_pages.edges({"lr": space["lr"]}, {"lr": 0.01}) == ""


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
        assert f"| {method_pages.description(method).idea.split('.')[0]} |".replace("\n", " ") in text  # not cut off
    assert "| {ref}`Fed-LSCL <method-fed-lscl>` |" in text and "| 1 | 72.0 | 42.0 |" in text
    assert NO_RECORDS in method_pages.overview([])
