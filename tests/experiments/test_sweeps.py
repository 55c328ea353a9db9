"""Named sets of runs."""

import json

import pytest
from filelock import FileLock

from lscl.config import PROFILES, experiment
from lscl.data.glyphs import PER_CLASS
from lscl.errors import LsclError
from lscl.experiments import records, sweeps
from lscl.experiments.run import run
from lscl.experiments.tuning import TUNING_SEED
from lscl.federation.search_space import OneOf
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


def failing(monkeypatch, *seeds):
    """Runs with these seeds fail."""

    def run_or_fail(config, **options):
        if config.seed in seeds:
            raise LsclError(f"no memory for seed {config.seed}")
        return run(config, quiet=True, **options)

    monkeypatch.setattr(sweeps, "main_table", lambda: [("local_head", {})])
    monkeypatch.setattr(sweeps, "run", run_or_fail)


def test_a_run_that_fails_does_not_stop_the_others(values, monkeypatch, capsys, one_line):
    failing(monkeypatch, 2, 4)
    with pytest.raises(LsclError) as caught:
        sweeps.sweep("table1", values, [1, 2, 3, 4, 5])
    one_line(caught, "2 of 5 runs failed, the others are done; the first one: no memory for seed 2")
    assert sorted(record["seed"] for record in records.all_records("smoke")) == [1, 3, 5]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed")]
    assert len(lines) == 2 and "--s4--" in lines[1] and lines[1].endswith(": no memory for seed 4")


def test_a_sweep_whose_first_run_fails_stops_there(values, monkeypatch, capsys, one_line):
    failing(monkeypatch, 1)
    with pytest.raises(LsclError) as caught:
        sweeps.sweep("table1", values, [1, 2])
    one_line(caught, "no memory for seed 1")
    assert records.all_records("smoke") == [] and "failed" not in capsys.readouterr().out


def test_tuning_plays_the_systems_of_a_share_and_lists_their_trials(values, monkeypatch, capsys):
    for name in METHODS:
        monkeypatch.setattr(METHODS[name], "search_space", {})
    for name in ("local_head", "fedavg_vit"):
        monkeypatch.setattr(METHODS[name], "search_space", {"lr": OneOf((1e-3, 3e-3))})
    sweeps.sweep("tune", values, [], list_only=True)
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in listed] == [
        ["due", name, f"{number}:"] for name in ("local_head", "fedavg_vit") for number in (0, 1)
    ]
    assert records.all_records("smoke") == []
    sweeps.sweep("tune", values, [], index=1, count=2)
    assert {record["method"] for record in records.all_records("smoke")} == {"fedavg_vit"}
    sweeps.sweep("tune", values, [], methods=["local_head"])
    out = capsys.readouterr().out
    assert out.count("chosen") == 2 and "fedavg_vit 0 until task 1: " in out
    assert {record["seed"] for record in records.all_records("smoke")} == {TUNING_SEED}


def test_tuning_refuses_what_no_system_reads_and_unknown_systems(values, one_line):
    with pytest.raises(LsclError) as caught:
        sweeps.sweep("tune", {**values, "glfc_memory": 5}, [], methods=["local_head"])
    one_line(caught, "glfc_memory is an option of glfc")
    with pytest.raises(LsclError) as caught:
        sweeps.sweep("tune", values, [], methods=["local_hat"])
    one_line(caught, "unknown method 'local_hat'")


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
    with pytest.raises(LsclError) as caught:
        sweeps.sweep("tune", values, [], methods=["local_head"])
    one_line(caught, "uncommitted changes")
    monkeypatch.setattr(records, "source", lambda: {"commit": None, "dirty": True, "code_digest": "0"})
    with pytest.raises(LsclError) as caught:
        sweeps.sweep("table1", values, [42])
    one_line(caught, "lscl/ is of no known commit")
    assert records.all_records("smoke") == []


def test_regimes_differ_only_in_what_the_update_is_made_of(values):
    runs = sweeps.named_sets()["regimes"]({"profile": "mini", "dataset": "cifar100"}, [42, 1999])
    sizes = {regime["images_per_class"] for regime in fed_lscl_studies.REGIMES}
    adapting = (len(fed_lscl_studies.WRITERS) - 1) * len(fed_lscl_studies.REGIMES)
    assert len({config.digest for config in runs}) == len(runs) == 2 * (adapting + len(sizes))  # a head has no block
    free = {"method", "collaboration", "lr_generator", "lr_cnn", "auxiliary", "cnn_start"}
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
        read = [{name: v for name, v in config.values_read().items() if name not in free} for config in same]
        shared = set.intersection(*map(set, read))  # the local head reads less
        assert all(one[name] == read[0][name] for one in read for name in shared)
        assert len({json.dumps(one, sort_keys=True) for one in read if len(one) > len(shared)}) <= 1
        assert [config.collaboration for config in same].count("static") == 1
    assert all(config.tasks == 1 and config.o2d == "none" for config in runs)


@pytest.mark.parametrize(("name", "count"), [("ablations", 17), ("blocks", 8), ("buffers", 6), ("cnns", 2)])
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
