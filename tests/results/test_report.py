"""Tables and sentences against numbers worked out by hand."""

import json
import math
import re

import numpy as np
import pytest
from made_records import record
from tests_root import ROOT

from lscl.errors import LsclError
from lscl.experiments import sweeps
from lscl.methods.parts import fed_lscl_studies
from lscl.results import report
from lscl.results.report import Summary

pytestmark = pytest.mark.usefixtures("published")


class TestSummary:
    def test_three_values(self):
        found = report.summary([80, 82, 87])  # mean 83, deviations -3, -1, 4: variance 26 / 2
        assert found.mean == 83
        assert found.n == 3
        assert found.sd == pytest.approx(math.sqrt(13))
        assert found.half_width == pytest.approx(4.302652729911275 * math.sqrt(13 / 3))  # t table: 0.975 quantile, 2 degrees of freedom

    def test_text(self):
        assert Summary(83.04, 3, 8.956, 3.606).estimate == "83.0 ± 9.0"
        assert Summary(83.04, 3, 8.956, 3.606).interval == "74.1 to 92.0"

    def test_one_value_has_no_spread(self):
        found = report.summary([83.0])
        assert math.isnan(found.sd)
        assert math.isnan(found.half_width)
        assert found.estimate == "83.0"

    def test_none(self, one_line):
        with pytest.raises(LsclError) as caught:
            report.summary([])
        one_line(caught, "at least one value")


class TestPublished:
    def test_twelve_systems_under_our_names(self):
        table = report.published()
        assert len(table) == 12 * 2 * 5
        assert table["method"].nunique() == 12
        assert dict(zip(table["label"], table["method"]))["Fed-LSCL"] == "fed_lscl"
        assert dict(zip(table["label"], table["method"]))["FedAvg+ViT"] == "fedavg_vit"

    def test_a_number(self):
        table = report.published().set_index(["method", "dataset", "task"])["accuracy"]
        assert table["fed_lscl", "cifar100", 5] == 96.932
        assert report.published_final("cifar100") == 89.396
        assert report.published_final("glyphs") is None

    def test_missing_file(self, places, one_line):
        (places / "results" / "published" / "paper_table1.csv").unlink()
        with pytest.raises(LsclError) as caught:
            report.published()
        one_line(caught, "paper_table1.csv")


class TestCells:
    def test_labels(self):
        group = [
            record(),
            record(values={"o2d": "sgd"}),
            record("fedavg_vit"),
            record("local_head"),
            record("local_lora"),
            record(values={"alpha": 0.0}),
        ]
        assert list(report.cells(group)) == [
            "Fed-LSCL (O2D exact)", "Fed-LSCL (O2D exact, alpha = 0.0)", "Fed-LSCL (O2D gradient)",
            "FedAvg + ViT", "own static LoRA", "own head only",
        ]  # fmt: skip

    def test_seeds_are_one_cell_in_order(self):
        (group,) = report.cells([record(seed=2024), record(seed=42)]).values()
        assert [one["seed"] for one in group] == [42, 2024]

    def test_uncommitted_code_is_refused(self, one_line):
        with pytest.raises(LsclError) as caught:
            report.scores([record(), record(seed=1999, dirty=True)])
        one_line(caught, "uncommitted", "s1999")

    def test_a_draft_may_be_looked_at_and_says_so(self):
        assert len(report.scores([record(dirty=True)], draft=True)) == 1
        assert report.provenance([record(dirty=True)], draft=True).startswith("DRAFT")

    @pytest.mark.parametrize(
        ("other", "words"),
        [
            (dict(seed=42), ["a seed occurs twice"]),
            (dict(seed=1999, weights_digest="w2"), ["differ in more than the seed"]),
            (dict(seed=1999, data_digest="d2"), ["one data_digest", "d1", "d2"]),
            (dict(seed=1999, profile="demo"), ["one profile", "demo", "mini"]),
        ],
    )
    def test_mixed_records_are_refused(self, other, words, one_line):
        with pytest.raises(LsclError) as caught:
            report.cells([record(), record(**other)])
        one_line(caught, *words)

    def test_other_config_values_under_the_same_label_are_refused(self, one_line):
        odd = record(seed=1999)
        odd["config"] = {**odd["config"], "epochs": 77}  # the profile's default has changed between the runs
        with pytest.raises(LsclError) as caught:
            report.cells([record(), odd])
        one_line(caught, "differ in more than the seed")

    def test_threads_do_not_matter(self):
        other = record(seed=1999)
        other["config"] = {**other["config"], "threads": 7}
        assert len(report.cells([record(), other])) == 1

    def test_nothing(self, one_line):
        with pytest.raises(LsclError) as caught:
            report.cells([])
        one_line(caught, "no records")

    def test_main_records_leave_out_tuning(self):
        kept = [record(), record(values={"o2d": "sgd"})]
        assert report.main_records([*kept, record(seed=7), record(values={"lr": 0.5})]) == kept


class TestTables:
    def test_table1(self):
        group = [record(score=80), record(seed=1999, score=82), record("local_head"), record("fedavg_vit", score=70)]
        table = report.table1(group, "cifar100")
        assert list(table.index) == ["Fed-LSCL (O2D exact)", "Fed-LSCL, published", "FedAvg + ViT", "FedAvg+ViT, published", "own head only"]
        ours, theirs = table.loc["Fed-LSCL (O2D exact)"], table.loc["Fed-LSCL, published"]
        assert ours["n"] == "2" and theirs["n"] == "–"
        assert ours["task 1"] == "81.0 ± 12.7"  # 12.706, the t quantile, times 1.414 / 1.414
        assert ours["all tasks, at the end"] == "73.0 ± 12.7"  # four tasks at 10 less: 81 - 8
        assert theirs["task 5"] == "96.9"
        assert theirs["all tasks, at the end"] == "89.4"
        assert ours["gap"] == "-16.0"  # 81 - (97.735 + 97.419 + 96.597 + 96.544 + 96.932) / 5
        assert table.loc["own head only", "gap"] == "–"

    def test_table1_class_incremental_has_all_tasks_so_far_and_nothing_published(self):
        table = report.table1([record(score=80), record("fedavg_vit", score=70)], "cifar100", "seen")
        assert list(table.index) == ["Fed-LSCL (O2D exact)", "FedAvg + ViT"]
        assert table.loc["FedAvg + ViT"].tolist() == ["1", "40.0", "35.0", "33.3", "32.5", "32.0"]
        assert list(table.columns) == ["n", "task 1", "task 2", "task 3", "task 4", "task 5"]

    def test_per_client(self):
        one = record(score=80)
        values = np.array(one["accuracy"]["task"], float)
        values[-1, 1] -= 5
        one["accuracy"] = {**one["accuracy"], "task": np.where(np.isnan(values), None, values).tolist()}
        table = report.per_client([one, record(seed=1999, score=80)], "task")
        assert table.loc["Fed-LSCL (O2D exact)"].tolist() == ["2", "72.0 ± 0.0", "69.5 ± 31.8", "2.5 ± 31.8"]  # 12.706 * 2.5

    def test_both_forms_of_o2d_share_the_published_row(self):
        table = report.table1([record(), record(values={"o2d": "sgd"})], "cifar100")
        assert list(table.index) == ["Fed-LSCL (O2D exact)", "Fed-LSCL (O2D gradient)", "Fed-LSCL, published"]

    def test_scores(self):
        row = report.scores([record(score=80), record(seed=1999, score=82)]).loc["Fed-LSCL (O2D exact)"]
        assert row["n"] == "2"
        assert row["task-masked %"] == "73.0 ± 12.7"  # 12.706 * 1.414 / 1.414
        assert row["class-incremental %"] == "43.0 ± 12.7"
        assert row["all classes %"] == "33.0 ± 12.7"
        assert row["forgetting"] == "10.0 ± 0.0"
        assert row["backward transfer"] == "-10.0 ± 0.0"

    def test_costs(self):
        row = report.costs([record(score=80), record(seed=1999, score=82)]).loc["Fed-LSCL (O2D exact)"]
        assert row.tolist() == ["2.00", "0.50", "1,500", "1.5", "900"]
        old = {key: value for key, value in record().items() if key != "cpu_seconds"}
        assert report.costs([old]).loc["Fed-LSCL (O2D exact)", "CPU minutes"] == "–"

    def test_curves(self):
        (values,) = report.curves([record(tasks=3), record(seed=1999, tasks=3, score=60)], "task").values()
        assert values.shape == (2, 3)
        assert values[0] == pytest.approx([80, 75, 80 - 20 / 3])

    def test_intervals(self):
        table = report.intervals(
            [record(score=80), record(seed=1999, score=84), record("local_head", score=90), record("local_head", seed=1999, score=91)], "task"
        )
        assert table.loc["own head only", "minus Fed-LSCL (O2D exact)"] == "+8.5"  # +10 and +7
        assert table.loc["own head only", "95 % interval of the difference"] == "-10.6 to 27.6"  # 8.5 ± 12.706 * 1.5


class TestPairedTest:
    def gap(self, *values):
        return report.Paired(report.summary(values))

    def test_p_of_three_differences(self):
        assert self.gap(1, 2, 3).p == pytest.approx(0.0741799, abs=1e-6)  # t = 2 / (1 / sqrt 3) = 3.4641, 2 degrees of freedom

    def test_p_without_spread_or_with_one_seed(self):
        assert self.gap(2, 2).p == 0.0 and self.gap(0, 0).p == 1.0
        assert math.isnan(self.gap(2).p)

    def test_holm(self):
        assert report.holm([0.04, 0.01, math.nan, 0.03]) == pytest.approx([0.06, 0.03, math.nan, 0.06], nan_ok=True)
        assert report.holm([0.9, 0.8]) == [1.0, 1.0]
        gaps = [0.21, math.nan, 0.005, math.nan, 0.007, 0.13]  # NaN cannot be sorted
        assert report.holm(gaps) == pytest.approx([0.26, math.nan, 0.02, math.nan, 0.021, 0.26], nan_ok=True)

    def test_both_stand_in_the_table(self):
        group = [record(seed=s, score=80) for s in (1, 2, 3)] + [record("local_head", seed=s, score=80 + s) for s in (1, 2, 3)]
        group += [record("fedavg_vit", seed=s, score=70) for s in (1, 2, 3)]
        table = report.intervals(group, "task")
        assert table.loc["own head only", ["p", "p, Holm"]].tolist() == ["0.074", "0.074"]
        assert table.loc["FedAvg + ViT", ["p", "p, Holm"]].tolist() == ["< 0.001", "< 0.001"]
        assert table.loc["Fed-LSCL (O2D exact)", "p"] == "–"


class TestCaptions:
    def test_a_table_has_caption_anchor_and_records(self):
        text = report.captioned(report.scores([record()]), "Scores.", "tab-scores", [record()])
        assert text.startswith(":::{table} Scores.\n:name: tab-scores\n\n| system |") and "\n:::\n\n<small>profile mini; commit abcdef0123;" in text

    def test_uncommitted_code_stands_behind_nothing(self, one_line):
        with pytest.raises(LsclError) as caught:
            report.source_note([record(), record(seed=1, dirty=True)])
        one_line(caught, "s1--", "uncommitted")
        with pytest.raises(LsclError) as caught:
            report.provenance([])
        one_line(caught, "no records")


class TestReading:
    def test_told_apart(self):
        groups = [record(seed=s, score=80 + i) for i, s in enumerate((1, 2, 3))] + [
            record("local_head", seed=s, score=85 + i) for i, s in enumerate((1, 2, 3))
        ]
        text = report.reading(groups, "task")
        assert "highest mean is that of own head only" in text
        assert text.endswith("Told apart from it, the interval leaving out zero: Fed-LSCL (O2D exact) 5.0 points behind (95 % interval 5.0 to 5.0).")

    def test_brief_gives_names_and_the_range(self):
        groups = [
            record(method, seed=s, score=score + s) for method, score in (("fed_lscl", 80), ("local_head", 85), ("lorm", 70)) for s in (1, 2, 3)
        ]
        text = report.reading(groups, "task", brief=True)
        assert text.endswith("Told apart from it, the interval leaving out zero: Fed-LSCL (O2D exact), LoRM, 5.0 to 15.0 points behind.")
        assert report.reading(groups[:6], "task", brief=True).endswith("Fed-LSCL (O2D exact), 5.0 points behind.")

    def test_not_told_apart(self):
        groups = [record(seed=s, score=80) for s in (1, 2, 3)] + [record("local_head", seed=s, score=80 + x) for s, x in ((1, -3), (2, 0), (3, 4))]
        assert "Not told apart from it by these seeds, the interval holding zero: Fed-LSCL" in report.reading(groups, "seen")

    def test_one_seed_concludes_nothing(self):
        assert "With one seed nothing can be concluded" in report.reading([record(), record("local_head", score=99)], "task")

    def test_other_partitions_are_not_paired(self, one_line):
        with pytest.raises(LsclError) as caught:
            report.paired([record()], [record("local_head", partition_digest="other")], "task")
        one_line(caught, "different partitions")

    def test_provenance(self):
        text = report.provenance([record(), record(seed=1999)])
        for part in ("profile mini", "abcdef0123", "seeds 42, 1999", "2 runs, 6 minutes", "some cpu", "data d1", "p1999", "weights w1"):
            assert part in text
        assert "\n" not in text


def test_coverage_names_what_is_only_quoted():
    text = report.coverage([record(), record("fedavg_vit"), record("local_head")])
    assert text.startswith("2 of the paper's 12 systems were measured; quoted only: FedAvg, FedProx, FedAvg+L2P, ") and text.endswith("LoRM.")
    every = [{**record(), "method": method} for method in report.paper_names().values()]
    assert report.coverage(every) == "All 12 systems of the paper's table were measured."


class TestWriters:
    def made(self, scores, seeds=(1, 2), regime=0):
        """Records of every writer in one regime: its score, one more with each further seed."""
        found = []
        for writer, score in scores.items():
            for extra, seed in enumerate(seeds):
                config = sweeps.variant_run(
                    {"dataset": "cifar100", "profile": "mini"}, fed_lscl_studies.regime_change(fed_lscl_studies.REGIMES[regime], writer), seed
                )
                accuracy = {"task": [[[score + extra]] * 5], "seen": [[[score]] * 5], "all": [[[score]] * 5]}
                found.append({"dataset": "cifar100", "profile": "mini", "seed": seed, "accuracy": accuracy, "config_digest": config.digest,
                              "config": config.model_dump(mode="json")})  # fmt: skip
        return found

    def test_the_best_written_one_is_compared_with_the_static_one(self):
        head, static, *written = fed_lscl_studies.WRITERS
        scores = {head: 70.0, static: 60.0} | {name: 50.0 + i for i, name in enumerate(written)}
        table = report.writers(self.made(scores))
        (name,) = table.index
        assert name == "CIFAR-100, 5 images a class, block 3"
        assert table.loc[name, "n"] == "2"
        assert table.loc[name, static] == "60.5 ± 6.4" and table.loc[name, "best written minus static"] == "-8.0"

    def test_only_seeds_that_every_writer_has_count(self):
        scores = dict.fromkeys(fed_lscl_studies.WRITERS, 60.0)
        partial = [one for one in self.made(scores) if one["seed"] == 1 or one["config"]["collaboration"] == "static"]
        assert report.writers(partial)["one static LoRA"].tolist() == ["60.0"]
        assert report.writers([one for one in partial if one["config"]["collaboration"] == "static"]).empty
        assert report.writers([record()]).empty


class TestFiles:
    def test_growth(self, places):
        assert report.growth() == []
        folder = places / "results" / "benchmarks"
        folder.mkdir()
        points = [{"tasks": n, "cpu_seconds": 3.0 * n, "peak_memory_mb": 500.0} for n in (1, 2)]
        row = {"method": "lorm", "size": "tasks", "points": points, "time_exponent": {"ratio": 1.0}, "memory_exponent": {"ratio": 0.0}}
        (folder / "scaling.json").write_text(json.dumps({"rows": [row]}), encoding="utf-8")
        assert report.growth_panels(report.growth(), "cpu_seconds") == {"tasks": {"LoRM": ([1, 2], [3.0, 6.0])}}
        assert report.exponents(report.growth()).values.tolist() == [["LoRM", "tasks", "1, 2", "1.00", "0.00"]]
        (folder / "scaling.json").write_text("{}", encoding="utf-8")
        with pytest.raises(LsclError, match=r"cannot read .*scaling\.json: rows: Field required"):
            report.growth()

    def test_tuning(self, places):
        folder = places / "results" / "tuning"
        folder.mkdir()
        rows = [
            {"method": "local_head", "point": {"lr": lr}, "seed": 7, "task_masked": 80.0, "class_incremental": score}
            for lr, score in ((0.1, 50.0), (0.01, 55.0))
        ]
        (folder / "mini--cifar100.json").write_text(json.dumps({"rows": rows, "best": {"local_head": {"lr": 0.01}}}), encoding="utf-8")
        ((name, table),) = report.tuning().items()
        assert name == "mini, CIFAR-100"
        assert list(table["chosen"]) == ["", "✓"]
        assert list(table["values"]) == ["lr = 0.1", "lr = 0.01"]

    def test_markdown(self):
        import pandas as pd

        table = pd.DataFrame({"a|b": ["x", "y"], "n": ["1.0", "-2.0"]}, index=pd.Index(["one", "two"], name="row"))
        assert report.to_markdown(table).splitlines() == ["| row | a&#124;b | n |", "|:---|:---|---:|", "| one | x | 1.0 |", "| two | y | -2.0 |"]


class TestCosts:
    def test_what_travels(self):
        rows = [[1_000_000, 3_000_000]] * 24 + [[3_000_000, 5_000_000]]
        table = report.travels([record(bytes_up=rows), record("fedavg", bytes_up=[[0, 0]] * 25, bytes_down=[[0, 0]] * 25)])
        assert table.loc["Fed-LSCL (O2D exact)"].tolist() == ["1", "2.08", "0.50", "2.00", "4.00", "0.129", "1.00"]  # 104 + 25 MB
        assert table.loc["FedAvg"].tolist() == ["1", "0.00", "0.00", "0.00", "0.00", "0.000", "0.00"]

    def test_by_round_is_the_mean_over_the_clients(self):
        assert report.traffic_by_round(record(), "bytes_up") == pytest.approx(np.full(25, 2.0))

    def test_efforts(self):
        group = [record(seed=seed, cpu_seconds=60.0 * seed, trained_images=6000) for seed in (1, 2)]
        table = report.efforts([*group, record("fedavg", cpu_seconds=math.nan, trained_images=10)])
        assert table.loc["Fed-LSCL (O2D exact)"].tolist() == ["2", "1,500", "6,000", "90.0 ± 381.2", "67", "900"]  # 12.706 * 30
        assert table.loc["FedAvg", ["CPU seconds", "images per CPU second"]].tolist() == ["–", "–"]

    def test_phases_share_out_processor_time_and_leave_out_the_preparation(self):
        """Twice the minutes by the clock, on a busy machine, change nothing; no bar for records from before processor time was measured."""
        seconds = {"prepare": 600, "train": 120, "aggregate": 30, "evaluate": 60}
        one = record(seconds=seconds, cpu_seconds=420)
        busy = record(seconds={name: 2 * value for name, value in seconds.items()}, cpu_seconds=420, seed=1999)
        old = record("fedavg", seconds=seconds)
        del old["cpu_seconds"]
        expected = {"train": 4, "aggregate": 1, "evaluate": 2}
        assert report.phases([one, old]) == {"Fed-LSCL (O2D exact)": pytest.approx(expected)}
        assert report.phases([one, busy]) == {"Fed-LSCL (O2D exact)": pytest.approx(expected)}

    def test_the_reading_of_costs(self):
        ours = [record(seed=seed, cpu_seconds=60.0 + seed) for seed in (1, 2, 3)]
        slower = [record("fedavg", seed=seed, cpu_seconds=120.0 + seed * seed, bytes_up=[[0, 0]] * 25) for seed in (1, 2, 3)]
        alike = [record("local_head", seed=seed, cpu_seconds=60.0 + 9 * seed * (-1) ** seed) for seed in (1, 2, 3)]
        up, down, parameters, time = report.cost_reading([*ours, *slower, *alike]).splitlines()
        assert up == "- **MB up**, 2.00 for Fed-LSCL (O2D exact). Less: FedAvg (0.00 times); the same: own head only (1.00 times)."
        assert down.endswith("The same: FedAvg (1.00 times), own head only (1.00 times).")
        assert "More: FedAvg (2.01 times); not told apart: own head only" in time
        assert "times" not in report.cost_reading(ours)

    def test_sheets_of_the_first_record_that_has_some(self, places):
        first, second = (record("target", seed=seed) for seed in (42, 1999))
        assert report.sheets([first, second]) == {}
        for task in range(1, 5):
            path = places / "results" / "runs" / "mini" / "sheets" / f"{second['name']}--task{task}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        found = report.sheets([record(), first, second])
        assert {title: path.name[-9:] for title, path in found.items()} == {"TARGET, after task 1": "task1.png", "TARGET, after task 4": "task4.png"}


class TestSentences:
    """Words that depend on a number are chosen by the number as it is shown."""

    @pytest.mark.parametrize(
        ("kept", "free", "says"),
        [
            (0.5, 0.6, "**1.20 times** as far; 2 means unrelated. Here the equation slows the drift down, it does not stop it."),
            (0.001, 0.6, "Here the equation slows the drift down, almost to nothing."),
            (0.6, 0.54, "**0.90 times** as far; 2 means unrelated. Here the equation does not slow the drift down."),
            (0.6, 0.599, "**1.00 times** as far; 2 means unrelated. Here the equation makes no difference to the drift."),
            (0.0, 0.5, "**inf times**"),
        ],
    )
    def test_drift(self, kept, free, says):
        assert says in report.drift_reading(kept, free)

    def test_growth(self):
        rows = [
            {"method": "fed_lscl", "size": size, "time_exponent": {"ratio": ratio}} for size, ratio in zip(report.GROWTH, (1.1, 1.104, 0.81, 1.2))
        ]
        assert report.growth_reading(rows) == (
            "Processor time grows **faster than in proportion**: Fed-LSCL with the number of images in a class (1.20); "
            "**in proportion, to a tenth of the exponent**: Fed-LSCL with the number of clients (1.10), Fed-LSCL with the number of tasks (1.10); "
            "**more slowly than that**: Fed-LSCL with the number of classes in a task (0.81)."
        )
        assert report.growth_reading([]) == ""


def test_the_sign_of_an_interval_means_one_thing_on_every_page():
    """± is half of the 95 % interval; a standard deviation would be called by its name, without that sign."""
    sources = [path.read_text() for folder in ("lscl", "book") for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        sources += ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    assert not [text for text in sources if re.search(r"± (the |a )?(standard|sd\b)", text)]
