"""The tidy tables of all results, against records made by hand and against the metrics of single records."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from made_records import record, with_ridge

import lscl
from lscl import results
from lscl.config import experiment_class
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.cost_model import cost
from lscl.experiments.sweeps import variant_run, variants
from lscl.federation.metrics import average_so_far, backward_transfer, current_task, forgetting
from lscl.methods.parts.fed_lscl_studies import ABLATIONS, CNNS, REGIMES, WRITERS, regime_change
from lscl.results import frames, labels

COLUMNS = ["dataset", "profile", "method", "variant", "label", "seed", "run"]


def uneven(seed=42, tasks=4, method="fed_lscl", **changes):
    """A record of two clients whose accuracies are all different."""
    one = record(method, seed=seed, tasks=tasks, **changes)
    draw = np.random.default_rng(seed)
    values = {}
    for mask in labels.MASK_LABELS:
        acc = draw.uniform(0, 100, (tasks, 2, tasks)).round(3)
        acc[np.triu_indices(tasks, 1)[0], :, np.triu_indices(tasks, 1)[1]] = np.nan
        values[mask] = np.where(np.isnan(acc), None, acc).tolist()
    return {**one, "accuracy": values}


class TestAccuracies:
    def test_a_row_for_every_accuracy(self):
        table = results.frame([record(tasks=3)])
        assert list(table.columns) == [*COLUMNS, "head", "mask", "client", "trained_task", "tested_task", "accuracy"]
        assert len(table) == 3 * 2 * (1 + 2 + 3)  # masks, clients, pairs of tasks
        row = table[
            (table["mask"] == "seen")
            & (table["client"] == 2)
            & (table["trained_task"] == 3)
            & (table["tested_task"] == 1)
        ]
        assert row["accuracy"].tolist() == [
            40.0
        ]  # 80, of which 10 less on earlier tasks, and 30 less class-incremental
        assert not table["accuracy"].isna().any()

    def test_every_number_of_a_record_is_in_it(self):
        one = uneven()
        for (mask, client, t, u), value in (
            results.frame([one])
            .set_index(["mask", "client", "trained_task", "tested_task"])["accuracy"]
            .to_dict()
            .items()
        ):
            assert value == one["accuracy"][mask][t - 1][client - 1][u - 1]

    def test_a_group_by_gives_the_metrics_of_a_record(self):
        made = [uneven(seed) for seed in (42, 1999)]
        table = results.frame(made)
        for of, part in ((average_so_far, table), (current_task, frames.just_learned_rows(table))):
            found = part.groupby(["mask", "seed", "trained_task"])["accuracy"].mean()
            for one in made:
                for mask in labels.MASK_LABELS:
                    assert found[mask, one["seed"]].tolist() == pytest.approx(of(records.accuracy(one, mask)).tolist())

    def test_another_group_by_gives_the_accuracy_of_every_client(self):
        one = record(score=80)
        values = np.array(one["accuracy"]["task"], float)
        values[-1, 1] -= 5
        one["accuracy"] = {**one["accuracy"], "task": np.where(np.isnan(values), None, values).tolist()}
        end = frames.final_rows(results.frame([one, record(seed=1999, score=80)]))
        by_client = end[end["mask"] == "task"].groupby(["client", "seed"])["accuracy"].mean()
        assert by_client.to_dict() == {(1, 42): 72.0, (1, 1999): 72.0, (2, 42): 67.0, (2, 1999): 72.0}

    def test_how_tasks_fared_since_they_were_learned(self):
        made = [uneven(seed, tasks) for seed, tasks in ((42, 4), (1999, 3), (2024, 1))]
        found = (
            frames.changes(results.frame(made)).groupby(["mask", "seed"])[["forgetting", "backward transfer"]].mean()
        )
        for one in made[:2]:
            for mask in labels.MASK_LABELS:
                acc = records.accuracy(one, mask)
                assert found.loc[mask, one["seed"]].tolist() == pytest.approx([forgetting(acc), backward_transfer(acc)])
        assert 2024 not in found.index.get_level_values("seed")  # one task: nothing could be forgotten

    def test_forgetting_has_two_parts(self):
        """Backward transfer under both masks, by the definition of it, and what lies between them."""
        made = [uneven(seed) for seed in (42, 1999)]
        found = frames.parts_of_forgetting(results.frame(made))
        assert list(found.columns) == list(labels.LOSSES)
        for one in made:
            task, seen = (backward_transfer(records.accuracy(one, mask)) for mask in ("task", "seen"))
            (row,) = found.xs(one["seed"], level="seed").to_numpy().tolist()
            assert row == pytest.approx([seen, task, seen - task])

    def test_final_is_the_last_task_of_each_run(self):
        end = frames.final_rows(results.frame([record(tasks=2), record("local_head", tasks=5)]))
        assert end.groupby("method")["trained_task"].unique().map(list).to_dict() == {
            "fed_lscl": [2],
            "local_head": [5],
        }
        assert frames.final_accuracy(record(tasks=2), "task") == 75.0


class TestRows:
    def test_labels_in_the_order_of_the_tables(self):
        group = [
            record(), record(values={"o2d": "sgd"}), record("fedavg_vit"), record("local_head"), record("local_lora"),
            record(values={"alpha": 0.0}),
        ]  # fmt: skip
        table = results.frame(group)
        assert list(table["label"].unique()) == [
            "Fed-LSCL (O2D exact)", "Fed-LSCL (O2D exact, alpha = 0.0)", "Fed-LSCL (O2D gradient)",
            "FedAvg + ViT", "local LoRA",
            "local head",
        ]  # fmt: skip
        assert list(table["variant"].unique()) == ["O2D exact", "O2D exact, alpha = 0.0", "O2D gradient", ""]

    def test_seeds_of_a_row_in_order(self):
        assert list(results.frame([record(seed=2024), record(seed=42)])["seed"].unique()) == [42, 2024]

    def test_parameters_become_columns(self, one_line):
        table = results.frame(
            [record(values={"buffer_per_class": 5}), record("local_head")], values=["buffer_per_class", "rounds"]
        )
        assert table.groupby("method")["buffer_per_class"].first().to_dict() == {"fed_lscl": 5, "local_head": 20}
        assert set(table["rounds"]) == {5}
        with pytest.raises(LsclError) as caught:
            results.frame([record()], values=["buffer"])
        one_line(caught, "unknown parameter 'buffer'", "buffer_per_class")

    def test_one_data_set(self):
        assert len(results.frame([record()], dataset="glyphs")) == 0
        both = pd.concat([results.frame([record()]), results.frame([record()]).assign(dataset="a")])
        assert set(frames.first_dataset(both)["dataset"]) == {"a"}

    @pytest.mark.parametrize("make", [results.frame, results.costs_frame, results.traffic_frame, results.classes_frame])
    def test_without_runs_it_has_its_columns(self, make):
        table = make("mini", study="ablations")
        assert len(table) == 0 and list(table.columns)[:7] == COLUMNS and len(table.columns) > 10


class TestFiles:
    def test_a_profile_has_all_its_runs_but_those_for_tuning(self, put, one_line):
        put(80)
        put(70, {"buffer_per_class": 5}, 1999)
        put(60, seed=7)
        assert results.frame("mini").groupby("variant", sort=False)["seed"].unique().map(list).to_dict() == {
            "O2D exact": [42], "O2D exact, buffer_per_class = 5": [1999],
        }  # fmt: skip
        with pytest.raises(LsclError) as caught:
            results.frame("mni")
        one_line(caught, "unknown profile 'mni'", "mini")

    def test_a_study_has_its_own_names_in_its_own_order(self, put):
        for label in ("replay for SM-CF", "no O2D", "whole"):
            put(80, ABLATIONS[label])
        put(80, {"buffer_per_class": 5})
        assert list(results.frame("mini", study="ablations")["variant"].unique()) == [
            "whole",
            "no O2D",
            "replay for SM-CF",
        ]
        assert list(results.frame("mini", study="buffers")["variant"].unique()) == ["5 per class", "20 per class"]
        assert list(results.frame("mini", study="table1")["variant"].unique()) == ["O2D exact"]
        with pytest.raises(LsclError, match="unknown study"):
            results.frame("mini", study="ablation")

    def test_writers_by_regime(self):
        made = []
        for writer in reversed(WRITERS):
            config = variant_run({"dataset": "cifar100", "profile": "mini"}, regime_change(REGIMES[1], writer), 42)
            one = record(config.method, tasks=1)
            made.append(
                {
                    **one,
                    "config": config.values_read(),
                    "config_digest": config.digest,
                    "overrides": config.overrides(),
                }
            )
        table = results.frame([*made, record()], study="regimes", values=["images_per_class", "block"])
        assert list(table["variant"].unique()) == list(WRITERS)
        assert set(table["images_per_class"]) == {5}
        assert set(table.loc[table["method"] == "fed_lscl", "block"]) == {6}  # the own head has none

    def test_what_is_filtered_out_of_a_frame_leads_back_to_its_records(self, put):
        for seed in (42, 1999):
            put(80, seed=seed)
        table = results.frame("mini")
        assert [one["seed"] for one in frames.records_behind(table)] == [42, 1999]
        assert [one["seed"] for one in frames.records_behind(table[table["seed"] == 1999])] == [1999]
        one = record()
        assert frames.records_behind([one]) == [one]

    def test_a_record_that_changed_is_read_again(self, put):
        put(80)
        table = results.frame("mini")
        assert frames.records_behind(table)[0]["accuracy"]["task"][0][0][0] == 80
        (path,) = records.folder("mini").glob("*.json")
        path.write_text(path.read_text("utf-8").replace("80.0", "81.0"), "utf-8")
        assert frames.records_behind(table)[0]["accuracy"]["task"][0][0][0] == 81

    def test_main_records_leave_out_tuning_and_other_values(self):
        kept = [record(), record(values={"o2d": "sgd"})]
        assert frames.main_records([*kept, record(seed=7), record(values={"lr": 0.5})]) == kept


class TestRefusals:
    def test_uncommitted_code(self, one_line):
        with pytest.raises(LsclError) as caught:
            results.frame([record(), record(seed=1999, dirty=True)])
        one_line(caught, "uncommitted", "s1999")

    def test_a_draft_may_be_looked_at(self):
        table = results.frame([record(dirty=True)], draft=True)
        assert table["run"].iloc[0].startswith("mini/dirty/")

    @pytest.mark.parametrize("make", [results.frame, results.costs_frame])
    @pytest.mark.parametrize(
        ("other", "words"),
        [
            (dict(seed=42), ["a seed occurs twice"]),
            (dict(seed=1999, weights_digest="w2"), ["differ in more than the seed"]),
            (dict(seed=1999, data_digest="d2"), ["one data_digest", "d1", "d2"]),
            (dict(seed=1999, profile="demo"), ["one profile", "demo", "mini"]),
            (dict(method="local_head", data_digest="d2"), ["one data_digest", "d1", "d2"]),
            (dict(method="local_head", weights_digest="w2"), ["one weights_digest", "w1", "w2"]),
            (dict(method="local_head", partition_digest="other"), ["seed 42", "different partitions", "p42", "other"]),
        ],
    )
    def test_mixed_records(self, make, other, words, one_line):
        with pytest.raises(LsclError) as caught:
            make([record(), record(**other)])
        one_line(caught, *words)

    def test_other_config_values_under_the_same_label(self, one_line):
        odd = record(seed=1999)
        odd["config"] = {**odd["config"], "epochs": 77}  # the profile's default has changed between the runs
        with pytest.raises(LsclError) as caught:
            results.frame([record(), odd])
        one_line(caught, "differ in more than the seed")

    def test_threads_and_runs_without_a_vit_do_not_matter(self):
        other = record(seed=1999)
        other["config"] = {**other["config"], "threads": 7}
        assert results.frame([record(), other])["label"].nunique() == 1
        assert results.frame([record(), record("fedavg", weights_digest=None)])["label"].nunique() == 2

    def test_images_without_duplicates_are_other_images(self):
        fewer = record("local_head", values={"duplicates": "drop"}, data_digest="d2", partition_digest="p2")
        assert results.frame([record(), fewer])["label"].nunique() == 2

    def test_other_images_by_another_value_are_another_row(self):
        few = record(values={"images_per_class": 5}, data_digest="d2", partition_digest="p2")
        assert list(results.frame([record(), few])["variant"].unique()) == [
            "O2D exact",
            "O2D exact, images_per_class = 5",
        ]


class TestCosts:
    def test_one_run(self):
        (row,) = results.costs_frame([record(trained_images=6000)]).to_dict("records")
        about = (
            "clients",
            "bytes_up",
            "mb_up",
            "mb_down",
            "trained_parameters",
            "trained_images",
            "cpu_seconds",
            "cpu_minutes",
        )
        assert [row[name] for name in about] == [2, 1e8, 50.0, 12.5, 1500, 6000, 90.0, 1.5]
        assert (row["prepare"], row["train"], row["peak_memory_mb"]) == (60, 120, 900) and math.isnan(row["aggregate"])

    def test_what_was_not_measured_is_nan(self):
        old = {key: value for key, value in record().items() if key != "cpu_seconds"}
        assert results.costs_frame([old])[["cpu_minutes", "cpu_train"]].isna().all(axis=None)

    def test_phases_share_out_processor_time_and_leave_out_the_preparation(self):
        """Twice the minutes by the clock, on a busy machine, change nothing."""
        seconds = {"prepare": 600, "train": 120, "aggregate": 30, "evaluate": 60}
        one = record(seconds=seconds, cpu_seconds=420)
        busy = record(seconds={name: 2 * value for name, value in seconds.items()}, cpu_seconds=420, seed=1999)
        table = results.costs_frame([one, busy])[["cpu_train", "cpu_aggregate", "cpu_evaluate"]]
        assert table.to_numpy().tolist() == [[4, 1, 2]] * 2

    def test_images_are_those_that_optimisers_have_seen_if_the_record_says(self):
        assert results.costs_frame([record(trained_images=10, optimised_images=30)])["trained_images"].tolist() == [30]

    def test_every_exchange(self):
        rows = [[1_000_000, 3_000_000]] * 24 + [[3_000_000, 5_000_000]]
        table = results.traffic_frame([record(bytes_up=rows)])
        assert len(table) == 25 * 2
        by_exchange = table.groupby("exchange")["bytes_up"].mean() / 1e6  # over the clients
        assert by_exchange.iloc[[0, -1]].tolist() == [2.0, 4.0]
        assert table.groupby("task")["exchange"].unique().map(list).tolist() == [
            [*range(5 * task + 1, 5 * task + 6)] for task in range(5)
        ]

    def test_a_task_without_training_has_one_exchange(self):
        one = record("fed_lscl_ridge", bytes_up=[[8, 8]] * 10, bytes_down=[[8, 8]] * 10)
        assert results.traffic_frame([one]).groupby("task")["exchange"].nunique().tolist() == [6, 1, 1, 1, 1]

    def test_operations_are_those_of_the_plan(self):
        one = record()
        planned = cost(experiment_class().model_validate(one["config"]))
        assert results.costs_frame([one])["tflop"].tolist() == [planned.flops / 1e12]

    def test_time_and_memory_of_a_run_on_a_gpu_are_left_out(self):
        here, elsewhere = record(), record(device="cuda", seed=1999)
        table = results.costs_frame([here, elsewhere]).set_index("seed")
        spent = ["cpu_seconds", "cpu_minutes", "peak_memory_mb"]
        assert table.loc[42, spent].notna().all() and table.loc[1999, spent].isna().all()
        assert table.loc[1999, "mb_up"] == table.loc[42, "mb_up"]


class TestClasses:
    def test_all_seeds(self, put):
        put(80)
        put(60, seed=1999)
        table = results.classes_frame("mini", study="cnns")
        assert set(table["variant"]) == {CNNS[0]} and set(table["client"]) == {1, 2, 3, 4, 5}
        first = table[(table["client"] == 1) & (table["mask"] == "task")]
        assert first["accuracy"].tolist() == [80] * 40 + [60] * 40 and first["class"].tolist() == [
            *range(40),
            *range(40),
        ]
        assert table[(table["mask"] == "seen") & (table["seed"] == 42)]["accuracy"].unique() == [50]

    def test_every_client_has_its_cnn(self, put):
        put(80, variants("cnns", "mini")[CNNS[1]])
        clients = results.classes_frame("mini", study="cnns").groupby("client")[["cnn", "trained_parameters"]].first()
        assert clients["cnn"].tolist() == [
            "resnet10t",
            "mobilenetv3_small_050",
            "mini_densenet",
            "tf_efficientnet_lite0",
            "mini_vgg",
        ]
        assert clients["trained_parameters"].tolist() == [1000, 1001, 1002, 1003, 1004]


def test_the_frames_are_the_public_face():
    assert lscl.results.frame is results.frame is frames.frame
    assert lscl.experiment is lscl.config.experiment and lscl.run is lscl.experiments.run.run
    assert {"experiment", "run", "results"} <= set(dir(lscl))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lscl.nothing


def test_the_public_face_is_loaded_when_it_is_used():
    loaded = "print([name for name in ('torch', 'pandas', 'lscl.config') if name in sys.modules])"
    code = f"import sys, lscl; {loaded}; print(lscl.experiment.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "lscl.config"]


class TestHeads:
    def test_only_the_trained_head_is_shown_unless_it_is_asked_for(self):
        one = with_ridge(record(tasks=3))
        plain = results.frame([one])
        assert set(plain["head"]) == {"trained"}
        assert plain.drop(columns="head").equals(results.frame([record(tasks=3)]).drop(columns="head"))

    def test_the_closed_form_head_has_its_own_rows(self):
        both = results.frame([with_ridge(record(tasks=3), 7.0), record(seed=1, tasks=3)], head=None)
        ridge = results.frame([with_ridge(record(tasks=3), 7.0), record(seed=1, tasks=3)], head="ridge")
        assert set(ridge["head"]) == {"ridge"} and set(ridge["seed"]) == {42} and set(ridge["mask"]) == {"task", "seen"}
        assert len(both[both["head"] == "ridge"]) == len(ridge) == 2 * 2 * 6
        keys = ["seed", "mask", "client", "trained_task", "tested_task"]
        trained = both[both["head"] == "trained"].set_index(keys)["accuracy"]
        gain = (ridge.set_index(keys)["accuracy"] - trained).dropna()
        assert len(gain) == len(ridge) and set(gain) == {7.0}

    def test_classes_have_heads_too(self):
        one = with_ridge(record(tasks=3), 7.0)
        assert set(results.classes_frame([one])["head"]) == {"trained"}
        ridge = results.classes_frame([one], head="ridge")
        assert set(ridge["mask"]) == {"task", "seen"} and ridge["accuracy"].max() == 87.0

    def test_heads_are_not_mixed_when_tasks_are_compared_over_time(self):
        moved = frames.changes(results.frame([with_ridge(record())], head=None))
        assert set(moved["head"]) == {"trained", "ridge"} and moved["forgetting"].tolist() == [10.0] * len(moved)

    def test_an_unknown_head_gets_the_nearest_one(self):
        with pytest.raises(LsclError, match="did you mean 'ridge'"):
            results.frame([record()], head="rigde")


class TestControls:
    def test_the_best_control_is_found_under_each_score(self):
        low, high = record("fed_ncm", score=70), record("fed_ridge", score=75)
        swapped = {**low["accuracy"], "seen": high["accuracy"]["task"]}
        table = results.frame([record(score=90), {**low, "accuracy": swapped}, high])
        best = frames.best_control(table)
        assert {mask: set(part["method"]) for mask, part in best.groupby("mask")} == {
            "task": {"fed_ridge"}, "seen": {"fed_ncm"}, "all": {"fed_ridge"},
        }  # fmt: skip
        assert list(best.columns) == list(table.columns)
        assert len(best[best["mask"] == "task"]) == len(results.frame([high]).query("mask == 'task'"))

    def test_without_controls_there_is_none(self):
        assert frames.best_control(results.frame([record()])).empty

    def test_a_figure_gets_the_level_of_its_own_data_set_and_scores(self):
        glyphs = {"dataset": "glyphs", "data_digest": "d2"}
        table = results.frame([record("fed_ncm", score=70), {**record("fed_ridge", score=90), **glyphs}])
        shown = results.frame([record(score=80)]).query("mask != 'all'")
        assert set(frames.best_control(table, shown)["method"]) == {"fed_ncm"}
        assert frames.control_levels(table, shown) == {"seen": 32.0, "task": 62.0}
        base = shown["variant"].iloc[0]
        assert frames.control_levels(table, shown, base) == {"seen": -10.0, "task": -10.0}
        more = results.frame([record(score=80), record(seed=1, score=60)]).query("mask != 'all'")
        assert frames.control_levels(table, more, base)["seen"] == -10.0  # on the seed that both have
        assert frames.control_levels(table, shown, "nobody") == frames.control_levels(table[:0], shown) == {}

    def test_a_level_is_that_of_one_data_set(self, one_line):
        both = results.frame([record("fed_ridge")])
        both = pd.concat([both, both.assign(dataset="glyphs")])
        with pytest.raises(LsclError) as caught:
            frames.control_levels(both, both)
        one_line(caught, "has one data set, not 2")


def test_means_over_the_seeds_that_all_variants_have():
    rows = pd.DataFrame({"variant": ["a", "a", "b", "b", "b"], "seed": [1, 2, 2, 2, 3], "accuracy": range(5)})
    assert frames.common_seeds(rows)["accuracy"].tolist() == [1, 2, 3]
    assert frames.common_seeds(rows[rows["seed"] != 2]).empty and frames.common_seeds(rows[:0]).empty


def test_the_accuracy_matrix_of_a_system():
    scores = results.frame([record(score=80, tasks=2), record(seed=1999, score=82, tasks=2), record("lorm", tasks=2)])
    found = frames.accuracy_matrix(scores[scores["mask"] == "seen"], "Fed-LSCL (O2D exact)")
    assert found[0, 0] == 51 and np.isnan(found[0, 1]) and found[1].tolist() == [41, 51]


def test_a_class_is_public_if_all_clients_have_it():
    classes = results.classes_frame([record(tasks=1)])  # client 1 has 0 to 7, client 2 has 1 to 8
    kinds = frames.by_kind_of_class(classes).drop_duplicates("class").set_index("class")["kind"].to_dict()
    assert kinds == {0: "private", 8: "private"} | {label: "public" for label in range(1, 8)}
    alone = frames.by_kind_of_class(results.classes_frame([record(tasks=1, clients=1)]))
    assert set(alone["kind"]) == {"private"}


def test_one_variant_alone_compares_nothing():
    rows = pd.DataFrame({"variant": ["whole", "whole", "no O2D"], "accuracy": [1.0, 2.0, 3.0]})
    assert frames.compared_rows(rows) is rows
    alone = frames.compared_rows(rows[:2])
    assert alone.empty and list(alone.columns) == list(rows.columns)


def test_plain_runs_of_our_variants_and_nothing_else():
    plain = record("fed_lscl_ridge")
    local = record("fed_lscl_ridge", seed=1999, overrides={"weights_sha256": "abc"})
    others = [
        record("fed_lscl_ridge", values={"adapt": "none"}), record("fed_lscl_ridge", seed=7), record(),
        record("fed_ridge"),
    ]  # fmt: skip
    assert frames.variant_records([plain, *others, local]) == [plain, local]
    assert plain not in frames.main_records([plain, *others, local])
    assert frames.table_records([plain, *others, local]) == [*others[2:], plain, local]
