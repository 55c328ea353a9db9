"""Named sets of runs."""

import json

import pytest
from filelock import FileLock

from lscl.config import PROFILES, experiment
from lscl.data.glyphs import PER_CLASS
from lscl.errors import LsclError
from lscl.experiments import records, sweeps
from lscl.experiments.run import run
from lscl.federation.metrics import average_so_far
from lscl.methods.parts import fed_lscl_studies
from lscl.registry import METHODS


@pytest.fixture
def values(tree):
    return {"profile": "smoke", "dataset": "folder", "data_dir": tree, "image_size": 16}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_plan_of_every_profile_has_every_system_with_every_seed_once(profile):
    plan = sweeps.plan(profile)
    assert len({config.name for config in plan}) == len(plan) > 0
    for dataset, seeds in sweeps.PLANS[profile].items():
        systems = [one for one in sweeps.main_table() if one[0] in sweeps.quick_systems(profile)]
        assert len([one for one in plan if one.dataset == dataset]) == len(seeds) * len(systems)
    assert all(config.profile == profile for config in plan)


def test_nothing_is_tuned_on_a_reported_seed():
    reported = {seed for plan in sweeps.PLANS.values() for seeds in plan.values() for seed in seeds}
    assert sweeps.TUNING_SEED not in reported | set(sweeps.SEEDS)


def test_every_system_has_as_many_points_to_tune_and_all_are_valid():
    assert {method for method, _ in sweeps.main_table() if METHODS[method].trains} <= set(sweeps.grids())
    assert len({len(points) for points in sweeps.grids().values()}) == 1
    for method, points in sweeps.grids().items():
        configs = [experiment(profile="mini", dataset="cifar100", method=method, **point) for point in points]
        assert len({config.digest for config in configs}) == len(points)
        assert len({tuple(sorted(point)) for point in points}) == 1  # so that no point depends on what is chosen


def test_an_unknown_set_gets_the_nearest_one(values, one_line):
    with pytest.raises(LsclError) as caught:
        sweeps.sweep("tabel1", values, [42])
    one_line(caught, "unknown sweep 'tabel1'", "did you mean 'table1'?")


def test_a_list_says_what_is_done_and_runs_nothing(values, capsys):
    values_name = run(experiment(**values, method="fedavg_vit"), quiet=True)["name"]
    sweeps.sweep("table1", values, [42], list_only=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(sweeps.main_table())
    assert [line for line in lines if line.startswith("done")] == [f"done    smoke {values_name}"]
    assert len(records.all_records("smoke")) == 1


def test_a_sweep_runs_what_is_missing(values, monkeypatch, capsys):
    monkeypatch.setattr(sweeps, "main_table", lambda: [("local_head", {}), ("local_head", {"lr": 1e-2})])
    sweeps.sweep("table1", values, [1, 2])
    first = {record["name"]: record["finished"] for record in records.all_records("smoke")}
    assert len(first) == 4
    sweeps.sweep("table1", values, [1, 2])
    assert {record["name"]: record["finished"] for record in records.all_records("smoke")} == first
    assert capsys.readouterr().out.count("done ") == 4


def test_tuning_keeps_the_best_point_of_each_system_on_the_tuning_seed(values, monkeypatch, places):
    monkeypatch.setattr(
        sweeps, "grids", lambda: {"local_head": [{"lr": lr} for lr in (1e-6, 1e-2)], "fedavg_vit": [{"lr": 1e-2}]}
    )
    sweeps.sweep("tune", values, [])
    saved = json.loads((places / "results" / "tuning" / "smoke--folder.json").read_text(encoding="utf-8"))
    assert [(row["method"], row["point"]) for row in saved["rows"]] == [
        ("local_head", {"lr": 1e-6}),
        ("local_head", {"lr": 1e-2}),
        ("fedavg_vit", {"lr": 1e-2}),
    ]
    for row in saved["rows"]:
        config = experiment(
            **values, method=row["method"], seed=sweeps.TUNING_SEED, stop_after=sweeps.TUNING_TASKS, **row["point"]
        )
        record = records.find(config)
        assert row["class_incremental"] == pytest.approx(average_so_far(records.accuracy(record, "seen"))[-1], abs=1e-3)
        assert row["task_masked"] == pytest.approx(average_so_far(records.accuracy(record, "task"))[-1], abs=1e-3)
    scores = [row["class_incremental"] for row in saved["rows"]]
    assert saved["best"] == {"local_head": {"lr": 1e-2 if scores[1] > scores[0] else 1e-6}, "fedavg_vit": {"lr": 1e-2}}


def test_tuning_of_some_methods_adds_to_what_is_there(values, monkeypatch, places):
    grids = {"local_head": [{"lr": lr} for lr in (1e-6, 1e-2)], "fedavg_vit": [{"lr": lr} for lr in (1e-6, 1e-2)]}
    monkeypatch.setattr(sweeps, "grids", lambda: grids)
    run(experiment(**values, method="fedavg_vit", lr=1e-2, seed=sweeps.TUNING_SEED), quiet=True)
    sweeps.sweep("tune", values, [], methods=["local_head"])
    saved = json.loads((places / "results" / "tuning" / "smoke--folder.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in saved["rows"]] == ["local_head", "local_head", "fedavg_vit"]
    assert set(saved["best"]) == {"local_head"}  # the other grid is not complete


def test_a_whole_run_serves_for_tuning_as_well_as_one_that_stops(values, monkeypatch, places):
    monkeypatch.setattr(sweeps, "grids", lambda: {"local_head": [{"lr": 1e-2}]})
    whole = run(
        experiment(**values, method="local_head", lr=1e-2, tasks=3, classes_per_task=2, seed=sweeps.TUNING_SEED),
        quiet=True,
    )
    values = {**values, "tasks": 3, "classes_per_task": 2}
    assert [config.stop_after for config in sweeps.tune(values, [])] == [None]
    sweeps.sweep("tune", values, [])
    saved = json.loads((places / "results" / "tuning" / "smoke--folder.json").read_text(encoding="utf-8"))
    assert saved["rows"][0]["class_incremental"] == pytest.approx(
        average_so_far(records.accuracy(whole, "seen"))[1], abs=1e-3
    )
    assert len(records.all_records("smoke")) == 1


def test_several_processes_share_a_sweep(values, monkeypatch, places):
    monkeypatch.setattr(sweeps, "main_table", lambda: [("local_head", {}), ("local_head", {"lr": 1e-2})])
    first, second = (experiment(**values, method="local_head", seed=1, **extra) for _, extra in sweeps.main_table())
    state = records.folder("smoke") / "state"
    state.mkdir(parents=True)
    lock, order = FileLock(str(state / f"{first.name}.lock")), []

    def spy(config, **options):
        record = run(config, quiet=True, **options)
        order.append(config)
        lock.release()  # the other process has ended without a record
        return record

    lock.acquire()
    monkeypatch.setattr(sweeps, "run", spy)
    sweeps.sweep("table1", values, [1])
    assert order == [second, first] and len(records.all_records("smoke")) == 2


def test_nothing_runs_from_uncommitted_code(values, monkeypatch, one_line):
    monkeypatch.setattr(records, "source", lambda: {"commit": "abc", "dirty": True, "code_digest": "0"})
    with pytest.raises(LsclError) as caught:
        sweeps.sweep("table1", values, [42])
    one_line(caught, "uncommitted changes")
    monkeypatch.setattr(records, "source", lambda: {"commit": None, "dirty": True, "code_digest": "0"})
    with pytest.raises(LsclError) as caught:
        sweeps.sweep("table1", values, [42])
    one_line(caught, "lscl/ is of no known commit")
    assert records.all_records("smoke") == []


def test_regimes_differ_only_in_what_the_update_is_made_of(values):
    runs = sweeps.named_sets()["regimes"]({"profile": "mini", "dataset": "cifar100"}, [42, 1999])
    assert (
        len({config.digest for config in runs})
        == len(runs)
        == 2 * len(fed_lscl_studies.REGIMES) * len(fed_lscl_studies.WRITERS)
    )
    free = {"method", "collaboration", "lr_generator", "lr_cnn", "auxiliary"}
    assert len({config.lr for config in runs}) == 1
    assert (
        max(
            config.images_per_class
            for config in sweeps.named_sets()["regimes"]({"profile": "mini", "dataset": "glyphs"}, [42])
        )
        <= PER_CLASS
    )
    for regime in fed_lscl_studies.REGIMES:
        same = [
            config
            for config in runs
            if config.seed == 42 and all(getattr(config, key) == value for key, value in regime.items())
        ]
        assert len({json.dumps(config.model_dump(mode="json", exclude=free), sort_keys=True) for config in same}) == 1
        assert [config.collaboration for config in same].count("static") == 1
    assert all(config.tasks == 1 and config.o2d == "none" for config in runs)


@pytest.mark.parametrize(("name", "count"), [("ablations", 15), ("blocks", 8), ("buffers", 6), ("cnns", 2)])
def test_studies_hold_the_whole_system_once_and_differ_in_one_respect(name, count):
    runs = sweeps.named_sets()[name]({"profile": "mini", "dataset": "cifar100"}, [42])
    assert len({config.digest for config in runs}) == len(runs) == count
    assert [config.overrides() for config in runs].count({}) == 1
    if name != "ablations":
        assert all(len(config.overrides()) <= 1 for config in runs)


def test_a_study_has_labels_and_its_runs_follow_them(one_line):
    found = sweeps.variants("cnns", "mini")
    assert list(found) == list(fed_lscl_studies.CNNS) and found[fed_lscl_studies.CNNS[0]] == {}
    runs = sweeps.named_sets()["cnns"]({"profile": "mini", "dataset": "cifar100"}, [1, 2])
    assert [config.overrides() for config in runs] == [*found.values(), *found.values()] and [
        config.seed for config in runs
    ] == [1, 1, 2, 2]
    assert sweeps.variants("cnns", "paper") != found
    with pytest.raises(LsclError) as caught:
        sweeps.variants("block", "mini")
    one_line(caught, "unknown study 'block'", "blocks")


def test_every_named_sweep_makes_valid_runs(values):
    for name, make in sweeps.named_sets().items():
        assert all(config.profile == "smoke" for config in make(values, [42])), name
