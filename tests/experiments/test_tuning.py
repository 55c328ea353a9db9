"""Trials: how they are drawn, thinned, shared by processes and resumed."""

import json
import os
import sys
import time

import pytest
from filelock import FileLock
from tests_root import ROOT

from lscl.config import OFFICIAL, experiment
from lscl.data.sources import load
from lscl.errors import LsclError, RejectedPayload
from lscl.experiments import records, sweeps, tuning
from lscl.experiments.run import RunBusy, run, state_folder, state_folders
from lscl.experiments.tuning import RUNGS, TRIALS, TUNING_SEED, Tuner, draw_trials, first_values, rungs, standing
from lscl.federation.loop import InProcess
from lscl.federation.metrics import average_so_far
from lscl.federation.search_space import LogRange, OneOf
from lscl.registry import METHODS

MINI = {"profile": "mini", "dataset": "cifar100"}
every = pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if kind.search_space])


@pytest.fixture
def values(tree):
    return {"profile": "smoke", "dataset": "folder", "data_dir": tree, "image_size": 16}


@pytest.fixture
def heads(monkeypatch):
    """A tuning of one system with four trials, of which two go on."""
    monkeypatch.setattr(METHODS["local_head"], "search_space", {"lr": OneOf((1e-5, 1e-3, 1e-2, 1e-1))})
    monkeypatch.setattr(tuning, "RUNGS", ((1, 4), (float("inf"), 2)))
    return ["local_head"]


def saved(places, method="local_head"):
    path = places / "results" / "tuning" / "smoke--folder.json"
    return json.loads(path.read_text(encoding="utf-8"))["studies"][method]


def drawn(method):
    return draw_trials(method, first_values(method, MINI))


# ---- what is drawn


@every
def test_every_system_has_as_many_trials_each_a_valid_run_of_its_own(method):
    trials, space = drawn(method), METHODS[method].search_space
    assert len(trials) == TRIALS
    assert all(set(trial) == set(space) and all(trial[name] in space[name] for name in space) for trial in trials)
    assert len({experiment(**MINI, method=method, **trial).digest for trial in trials}) == TRIALS


@every
def test_all_that_tuning_chooses_is_in_the_space_so_that_no_trial_depends_on_the_choice(method, monkeypatch):
    kind = METHODS[method]
    assert set(kind.tuned) <= set(kind.search_space)
    before = drawn(method)
    monkeypatch.setattr(kind, "tuned", before[-1])
    assert drawn(method) == before


@every
def test_the_first_trial_has_the_values_of_the_official_code(method):
    kind, first = METHODS[method], drawn(method)[0]
    assert first == first_values(method, MINI)
    assert {name: first[name] for name in kind.official if name in first} == {
        name: value for name, value in kind.official.items() if name in first
    }


@every
def test_a_learning_rate_has_a_decade_on_either_side_of_its_first_value(method):
    space = METHODS[method].search_space
    for profile in ("mini", *OFFICIAL):
        first = first_values(method, {"profile": profile, "dataset": "cifar100"})
        for name in first:
            assert first[name] in space[name]
            if "lr" in name.split("_"):
                assert space[name].low <= first[name] / 10 * 1.01 and space[name].high >= first[name] * 9.9, name


def test_draws_repeat_and_differ_by_system_and_by_space(monkeypatch):
    one = drawn("fedprox")
    assert drawn("fedprox") == one
    monkeypatch.setattr(METHODS["local_head"], "search_space", METHODS["fedprox"].search_space)
    other = draw_trials("local_head", one[0])
    assert other[0] == one[0] and not [trial for trial in other[1:] if trial in one]
    monkeypatch.setattr(METHODS["fedprox"], "search_space", {"lr": LogRange(1e-4, 1e-1), "prox_mu": LogRange(1e-3, 1)})
    assert drawn("fedprox")[1:] != one[1:]


def test_the_trials_cover_every_axis_evenly():
    for axis in ("lr", "prox_mu"):
        places = [METHODS["fedprox"].search_space[axis].place(trial[axis]) for trial in drawn("fedprox")]
        assert {int(4 * place) for place in places} == {0, 1, 2, 3}


def test_a_small_space_is_tried_in_full_and_nothing_twice(monkeypatch):
    monkeypatch.setattr(METHODS["local_head"], "search_space", {"lr": OneOf((1e-3, 1e-2)), "epochs": OneOf((1, 2))})
    trials = draw_trials("local_head", {"lr": 1e-2, "epochs": 2})
    assert trials[0] == {"lr": 1e-2, "epochs": 2} and len(trials) == 4
    monkeypatch.setattr(METHODS["local_head"], "search_space", {})
    assert draw_trials("local_head", {}) == []


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (({"lr": 1e-3},), "its search_space must be a dictionary from parameters to axes"),
        ({"lrr": LogRange(1e-3, 1)}, "its search_space has 'lrr', which is no parameter to tune"),
        ({"seed": OneOf((1, 2))}, "its search_space has 'seed', which is no parameter to tune"),
        ({"images_per_class": OneOf((1, 2))}, "its search_space has 'images_per_class', which is no parameter to tune"),
        ({"lr": (1e-3, 1)}, "allowed are Range, LogRange and OneOf"),
        ({"lr": LogRange(1, 2)}, "lr = 0.003, its first value, is not in 1 to 2, log"),
    ],
)
def test_a_wrong_search_space_is_one_line(monkeypatch, space, says, one_line):
    monkeypatch.setattr(METHODS["fedavg"], "search_space", space)
    with pytest.raises(LsclError) as caught:
        first_values("fedavg", MINI)
    one_line(caught, "method 'fedavg': ", says)


def test_without_optuna_it_is_one_line(monkeypatch, one_line):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(LsclError) as caught:
        drawn("fedavg")
    one_line(caught, "no package optuna", "pip install 'fed-lscl[tune]'")


# ---- thinning


def test_sixteen_play_the_first_task_five_the_second_and_two_all():
    assert rungs(5) == [(1, 16), (2, 5), (5, 2)] and rungs(2) == [(1, 16), (2, 5)] and rungs(1) == [(1, 16)]


def trials_with(*scores, **failed):
    return [{"seen": list(one), **({"failed": "x"} if f"t{i}" in failed else {})} for i, one in enumerate(scores)]


def test_the_best_go_on_and_equal_ones_by_their_number():
    begun = standing(trials_with(*[()] * 16), 5)
    assert begun.task == 1 and begun.due == begun.alive == list(range(16)) and begun.chosen is None
    first = [(float(i % 8),) for i in range(16)]  # 7 and 15 are best, then 6 and 14, then 5 before 13
    second = standing(trials_with(*first), 5)
    assert second.task == 2 and sorted(second.due) == [5, 6, 7, 14, 15] and second.chosen is None
    first[5], first[6], first[7], first[14], first[15] = (5.0, 9.0), (6.0, 1.0), (7.0, 8.0), (6.0, 8.0), (7.0, 2.0)
    last = standing(trials_with(*first), 5)
    assert last.task == 5 and sorted(last.due) == [5, 7]
    first[5], first[7] = (5.0, 9.0, 0.0, 0.0, 3.0), (7.0, 8.0, 9.0, 9.0, 3.0)
    assert standing(trials_with(*first), 5) == tuning.Standing(5, [], [5, 7], 5)
    first[7] = (*first[7][:4], 3.1)
    assert standing(trials_with(*first), 5).chosen == 7


def test_a_trial_that_diverged_is_out_and_another_takes_its_place():
    scores = [(float(i),) for i in range(16)]
    assert sorted(standing(trials_with(*scores, t15=True), 5).due) == [10, 11, 12, 13, 14]
    assert standing(trials_with(*scores, **{f"t{i}": True for i in range(16)}), 5).chosen is None


# ---- playing


class Stub:
    """Scores without runs: `scores_after` of a run is its learning rate in percent, and what was asked for."""

    def __init__(self, monkeypatch):
        self.asked, self.more = [], {}
        monkeypatch.setattr(tuning, "scores_after", self)

    def __call__(self, config, task):
        self.asked.append((config.lr, task))
        if config.lr == 0.1:
            raise RejectedPayload("payload of client 0: x holds NaN or infinite numbers")
        return {"seen": [100 * config.lr] * task, "task": [50.0] * task, "seconds": 1.0, "commit": None} | self.more


def test_scores_choice_and_failures_stand_in_the_file_and_nothing_is_played_twice(values, heads, monkeypatch, places):
    stub = Stub(monkeypatch)
    Tuner(values, heads).tune()
    assert sorted(stub.asked) == [(1e-5, 1), (1e-3, 1), (1e-3, 2), (1e-2, 1), (1e-2, 2), (1e-1, 1)]
    study = saved(places)
    best = study["trials"][study["chosen"]]
    assert best["values"] == {"lr": 1e-2} and best["seen"] == [1.0, 1.0] and study["space"]["lr"]["one_of"][0] == 1e-5
    (failed,) = [trial for trial in study["trials"] if trial.get("failed")]
    assert failed["values"] == {"lr": 0.1} and "task 1: payload of client 0" in failed["failed"]
    stub.asked.clear()
    Tuner(values, heads).tune()
    assert stub.asked == []


def test_a_tuning_that_stops_goes_on_where_it_was(values, heads, monkeypatch):
    stub = Stub(monkeypatch)
    for _ in range(6):
        tuner = Tuner(values, heads)
        tuner.play(*tuner.due()[0])
    assert tuner.due() == [] and len(stub.asked) == len(set(stub.asked)) == 6


def test_the_scores_are_those_of_the_runs_and_no_state_is_left(values, heads, places):
    Tuner(values, heads).tune()
    study = saved(places)
    assert [len(trial["seen"]) for trial in study["trials"]].count(2) == 2 and state_folders() == []
    assert len(records.all_records("smoke")) == 2  # of the two that played all tasks
    for trial in study["trials"]:
        record = run(experiment(**values, method="local_head", seed=TUNING_SEED, **trial["values"]), quiet=True)
        for mask in ("seen", "task"):
            whole = average_so_far(records.accuracy(record, mask))
            assert trial[mask] == pytest.approx(whole[: len(trial[mask])], abs=1e-3)
        assert trial["data_digest"] == record["data_digest"]
    best = max((trial for trial in study["trials"] if len(trial["seen"]) == 2), key=lambda trial: trial["seen"][1])
    assert study["trials"][study["chosen"]] == best


def test_a_trial_goes_on_from_its_state(values, heads, monkeypatch):
    rounds, ask = [], InProcess.ask
    monkeypatch.setattr(InProcess, "ask", lambda self, stage, sent: rounds.append(stage) or ask(self, stage, sent))
    Tuner(values, heads).tune()
    assert len([stage for stage in rounds if stage.name == "train"]) == 4 * 2 + 2 * 2  # not 4 * 2 + 2 * 4


def test_a_whole_run_that_is_there_is_not_played_again(values, heads, monkeypatch, places):
    whole = run(experiment(**values, method="local_head", lr=1e-5, seed=TUNING_SEED), quiet=True)
    monkeypatch.setattr(tuning, "run_until", lambda config, *_, **__: pytest.fail("again") if config.lr == 1e-5 else [])
    tuner = Tuner(values, heads)
    number = [config.lr for config in tuner.configs["local_head"]].index(1e-5)
    tuner.play("local_head", number, 1)
    seen = average_so_far(records.accuracy(whole, "seen"))
    assert saved(places)["trials"][number]["seen"] == [pytest.approx(seen[0], abs=1e-3)]


def test_what_another_process_plays_is_left_to_it_and_waited_for_at_the_end(values, heads, monkeypatch):
    tuner, order = Tuner(values, heads), []
    config = tuner.configs["local_head"][0]
    state_folder(config).parent.mkdir(parents=True)
    lock = FileLock(f"{state_folder(config)}.lock")
    lock.acquire()
    play = Tuner.play

    def spy(self, method, number, task):
        try:
            play(self, method, number, task)
            order.append((number, task))
        except RunBusy:
            order.append("busy")
            raise

    monkeypatch.setattr(Tuner, "play", spy)
    claim = tuning.claim

    def claimed(state, wait):
        if wait:
            lock.release()  # the other process was killed
        return claim(state, wait)

    monkeypatch.setattr(tuning, "claim", claimed)
    tuner.tune()
    assert order[:5] == ["busy", (1, 1), (2, 1), (3, 1), (0, 1)] and len(order) == 7


def test_an_older_score_never_replaces_a_later_one(values, heads, places):
    tuner = Tuner(values, heads)
    for seen in ([1.0, 2.0], [1.0]):
        tuner._write("local_head", 0, {"seen": seen, "task": seen, "seconds": 1.0, "commit": None})
    assert saved(places)["trials"][0]["seen"] == [1.0, 2.0]


COMMAND = (
    "import sys; from pathlib import Path; from lscl.experiments import tuning; from lscl.registry import METHODS;"
    "from lscl.federation.search_space import OneOf;"
    "METHODS['local_head'].search_space = {'lr': OneOf((1e-5, 1e-3, 1e-2, 1e-1))};"
    "tuning.RUNGS = ((1, 4), (float('inf'), 2));"
    "values = {'profile': 'smoke', 'dataset': 'folder', 'data_dir': Path(sys.argv[1]), 'image_size': 16, 'rounds': 5};"
    "tuning.Tuner(values, ['local_head']).tune()"
)


def scores(places):
    return [(trial["values"], trial["seen"], trial["task"]) for trial in saved(places)["trials"]]


def test_a_real_process_is_killed_and_two_others_come_to_the_same_end_as_one_alone(
    values, heads, tree, places, forked, monkeypatch, tmp_path
):
    first = forked(COMMAND, tree)
    while first.poll() is None and not any(
        name in ("round-00002", "round-00003", "round-00004") for _, names, _ in os.walk(places) for name in names
    ):  # os.walk passes over folders that vanish meanwhile
        time.sleep(0.01)
    first.kill()
    first.communicate()
    assert [path for path in places.rglob("round-*") if path.is_dir()]  # in the middle of a task
    rest = [forked(COMMAND, tree) for _ in range(2)]
    told = [one.communicate() for one in rest]
    assert [one.returncode for one in rest] == [0, 0], told
    assert state_folders() == [] and saved(places)["chosen"] is not None
    shared = scores(places)
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "alone"))
    Tuner({**values, "rounds": 5}, heads).tune()
    assert scores(tmp_path / "alone") == shared


# ---- the file


def write(places, study):
    path = tuning.tuning_path("smoke", "folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seed": TUNING_SEED, "studies": {"local_head": study}}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"space": {"lr": {"one_of": [1e-5, 1e-3]}}}, "local_head was tuned in another space; remove it there"),
        ({"space": {"lr": {"cube": [1]}}}, "no axis of a search space"),
        ({"space": {}}, "each has a value for every axis of the space, and no other"),
        ({"chosen": 16}, "there is no trial 16"),
        ({"trials": []}, "should have at least 1 item"),
    ],
)
def test_a_file_of_another_study_or_none_is_one_line(values, heads, monkeypatch, places, change, says, one_line):
    Stub(monkeypatch)
    Tuner(values, heads).tune()
    path = write(places, {**saved(places), **change})
    with pytest.raises(LsclError) as caught:
        Tuner(values, heads)
    one_line(caught, path, says)


def test_trials_of_other_values_are_one_line(values, heads, monkeypatch, places, one_line):
    Stub(monkeypatch)
    Tuner(values, heads).tune()
    with pytest.raises(LsclError) as caught:
        Tuner({**values, "rounds": 3}, heads)
    one_line(caught, "local_head was tuned with other values; remove it there to tune it anew")
    with pytest.raises(LsclError) as caught:
        Tuner({**values, "lr": 1e-2}, heads)
    one_line(caught, "lr is tuned for local_head: leave it out")


def test_trials_of_other_images_never_stand_in_one_study(heads, monkeypatch, tmp_path, one_line):
    stub = Stub(monkeypatch)
    glyphs = {"profile": "smoke", "dataset": "glyphs"}
    tuner = Tuner(glyphs, heads)
    tuner.play("local_head", 0, 1)  # as in a file of an older version: of which images is not known
    stub.more = {"data_digest": "one"}
    tuner.play("local_head", 1, 1)
    before = tuner.path.read_bytes()
    stub.more = {"data_digest": "other"}
    with pytest.raises(LsclError) as caught:
        tuner.play("local_head", 2, 1)
    one_line(caught, tuner.path, "local_head was tuned on images with data_digest = one, these have other", "remove it")
    assert tuner.path.read_bytes() == before
    Tuner(glyphs, heads)  # without a folder it is left open which images these are
    with pytest.raises(LsclError) as caught:
        Tuner({**glyphs, "data_dir": tmp_path}, heads)  # glyphs need no folder: given one, their images are compared
    one_line(caught, tuner.path, "data_digest = one")


def test_a_trial_that_diverged_says_on_which_images(values, heads, monkeypatch, places):
    Stub(monkeypatch)
    Tuner(values, heads).tune()
    (failed,) = [trial for trial in saved(places)["trials"] if trial.get("failed")]
    config = experiment(**values, method="local_head", lr=1e-2)
    assert failed["data_digest"] == load(config).digest


def test_the_trials_of_the_file_count_whatever_optuna_draws_today(values, heads, monkeypatch):
    stub = Stub(monkeypatch)
    Tuner(values, heads).tune()
    monkeypatch.setattr(tuning, "draw_trials", lambda *_: pytest.fail("drawn again"))
    stub.asked.clear()
    Tuner(values, heads).tune()
    assert stub.asked == []


# ---- what is in use


def test_a_choice_that_the_profile_does_not_use_is_told(values, heads, monkeypatch, capsys):
    Stub(monkeypatch)
    tuner = Tuner(values, heads)
    assert list(tuner.unused_choices()) == []  # nothing is chosen yet
    tuner.tune()
    assert experiment(profile="smoke", method="local_head").lr != 1e-2
    line = "unused  local_head: the profile has other values than lr = 0.01"
    assert list(tuner.unused_choices()) == [line]
    sweeps.sweep("tune", values, [], list_only=True, methods=heads)
    assert capsys.readouterr().out.splitlines()[-1] == line
    monkeypatch.setattr(METHODS["local_head"], "sizes", {"smoke": {"lr": 1e-2}})
    assert list(tuner.unused_choices()) == []


def test_the_profiles_use_what_was_chosen(monkeypatch):
    monkeypatch.setenv("LSCL_ROOT", str(ROOT))
    tuner = Tuner(MINI, METHODS)
    assert any(study["chosen"] is not None for study in tuner.studies().values())
    assert list(tuner.unused_choices()) == []


def test_no_reported_seed_is_tuned_on_and_all_systems_have_the_same_budget():
    assert TUNING_SEED not in {seed for plan in sweeps.PLANS.values() for seeds in plan.values() for seed in seeds}
    assert RUNGS[0] == (1, TRIALS)
    planned = sweeps.tune(MINI, [])
    for method, kind in METHODS.items():
        stops = [config.stop_after for config in planned if config.method == method]
        assert (stops.count(1), stops.count(2), stops.count(None)) == ((11, 3, 2) if kind.search_space else (0, 0, 0))
