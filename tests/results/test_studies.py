"""Named sets of runs: what is recorded of them, which row a record belongs to, and the components of Table 2."""

import re

import pandas as pd
import pytest
from made_records import record

from lscl import results
from lscl.errors import LsclError
from lscl.experiments import sweeps
from lscl.methods.parts import fed_lscl_studies
from lscl.results import frames, statistics, studies

pytestmark = pytest.mark.usefixtures("published")
CIFAR = {"cifar100": sweeps.SEEDS}


def collect(name="ablations", planned=CIFAR, **options):
    return studies.collect(name, "mini", planned=planned, **options)


class TestCollect:
    def test_without_records_it_names_the_command(self):
        study = collect()
        assert study.found == [] and len(study.missing) == 3 * len(fed_lscl_studies.ABLATIONS)
        assert studies.describe_states(study) == (
            "**Some runs behind this page are missing.** In the profile `mini` the study *ablations* has 0 of "
            "51 on CIFAR-100. Tables and figures that need the others say so. `lscl sweep ablations --dataset cifar100 "
            "--profile mini` makes them."
        )

    def test_every_data_set_of_the_profile(self, put, one_line):
        for seed in (42, 1999):
            put(80, seed=seed)
        ablations, blocks = (studies.collect(name, "mini") for name in ("ablations", "blocks"))
        said = studies.describe_states(ablations, blocks)
        assert "*ablations* has 2 of 51 on CIFAR-100 and 0 of 51 on Glyphs; *blocks* has" in said and "\n" not in said
        assert re.findall(r"`lscl sweep (\w+) --dataset (\w+) ", said) == [
            (name, dataset) for name in ("ablations", "blocks") for dataset in ("cifar100", "glyphs")
        ]
        with pytest.raises(LsclError) as caught:
            studies.collect("ablations", "min")
        one_line(caught, "unknown profile 'min'")

    def test_found_in_the_order_of_the_seeds(self, put):
        for seed in (2024, 42):
            put(80, seed=seed)
        put(70, {"o2d": "none"}, 1999)
        assert [(one["seed"], studies.variant_of(one, "ablations")) for one in collect().found] == [
            (42, "whole"),
            (1999, "no O2D"),
            (2024, "whole"),
        ]

    def test_nothing_is_missing(self, put):
        for label in fed_lscl_studies.CNNS:
            put(80, sweeps.variants("cnns", "mini")[label])
        study = collect("cnns", {"cifar100": [42]})
        assert studies.describe_states(study) == "All 2 runs behind this page are recorded."
        other = studies.describe_states(study, collect("buffers"))
        assert "*cnns* has 2 of 2 on CIFAR-100;" in other and "lscl sweep cnns" not in other

    def test_the_command_names_the_seeds_that_are_missing(self, put):
        for size in fed_lscl_studies.BUFFERS:
            for seed in (42, 1999):
                put(80, {"buffer_per_class": size}, seed)
        assert (
            "`lscl sweep buffers --dataset cifar100 --profile mini --seeds 2024` makes them."
            in studies.describe_states(collect("buffers"))
        )

    def test_what_is_missing_can_be_computed(self, tree, monkeypatch):
        monkeypatch.setattr(fed_lscl_studies, "BUFFERS", (0, 2))
        base = sweeps.variant_run
        monkeypatch.setattr(
            sweeps, "variant_run", lambda values, change, seed: base({**values, "image_size": 16}, change, seed)
        )
        options = {"data_dir": tree, "planned": {"folder": [42]}}
        assert len(studies.collect("buffers", "smoke", **options).missing) == 2
        study = studies.collect("buffers", "smoke", **options, compute=True)
        assert study.missing == [] and len(study.found) == 2

    def test_other_images_and_partitions_do_not_mix(self, put, one_line):
        put(80)
        put(80, {"o2d": "none"}, data_digest="d2")
        with pytest.raises(LsclError) as caught:
            results.frame(collect().found, study="ablations")
        one_line(caught, "data_digest", "d1, d2")
        put(80, {"o2d": "none"}, partition_digest="other")
        with pytest.raises(LsclError) as caught:
            results.frame(collect().found, study="ablations")
        one_line(caught, "seed 42", "different partitions", "other")


def test_a_small_profile_shows_the_records_of_mini_unless_it_computes():
    shown = {
        (profile, compute): studies.shown_profile(profile, compute)
        for profile in ("smoke", "demo", "paper")
        for compute in (False, True)
    }
    assert shown == {
        ("smoke", False): "mini", ("smoke", True): "smoke", ("demo", False): "mini", ("demo", True): "demo",
        ("paper", False): "paper", ("paper", True): "paper",
    }  # fmt: skip


class TestVariants:
    @pytest.mark.parametrize("study", ["ablations", "blocks", "buffers", "cnns"])
    def test_every_run_of_a_study_has_its_row(self, study):
        runs = sweeps.runs_of(study, {"profile": "mini", "dataset": "cifar100"}, [1999])
        rows = [
            studies.variant_of(
                {"method": one.method, "profile": "mini", "dataset": "cifar100", "overrides": one.overrides()}, study
            )
            for one in runs
        ]
        assert rows == studies.rows_in_order(study, "mini") == list(sweeps.variants(study, "mini"))

    def test_a_local_checkpoint_is_no_variant(self):
        one = record()
        assert (
            studies.variant_of({**one, "overrides": {"weights_sha256": "a" * 64, "o2d": "none"}}, "ablations")
            == "no O2D"
        )
        assert studies.variant_of({**one, "overrides": {"lr": 0.5}}, "ablations") is None
        assert (
            studies.variant_of({**record("lorm"), "overrides": {"weights_sha256": "a" * 64}}, "table1")
            == "weights_sha256 = " + "a" * 64
        )


def wide(study="ablations"):
    return frames.final_rows(results.frame("mini", study=study)).pivot_table(
        "accuracy", ["mask", "seed"], "variant", sort=False
    )


def test_a_writer_that_adapts_nothing_stands_beside_every_block():
    rows = [("a", "fed_lscl", 5, 3), ("a", "fed_lscl", 5, 6), ("a", "local_head", 5, 3), ("b", "local_head", 5, 3)]
    table = pd.DataFrame(rows, columns=["dataset", "method", "images_per_class", "block"])
    found = studies.beside_every_block(table)
    assert sorted(found[found["method"] == "local_head"]["block"]) == [3, 6] and len(found) == 4
    assert found["block"].tolist() == [3, 3, 6, 6] and set(found["dataset"]) == {"a"}


class TestDifferences:
    """What the notebooks make of a study: every variant minus one of them, seed by seed."""

    def test_against_the_whole(self, put):
        for seed, one, other in ((42, 80, 70), (1999, 82, 75)):
            put(one, seed=seed)
            put(other, {"o2d": "none"}, seed)
            put(other, {"o2d": "sgd"}, seed)
        put(60, {"continual": "none"}, 2024)
        table = statistics.paired_tests(statistics.differences_from(wide().drop(index="all", level="mask"), "whole"))
        assert list(table.index) == ["no O2D", "O2D by gradient"]  # no SM-CF has no seed in common
        assert table.loc["no O2D"].tolist() == [
            "2",
            "-8 ± 19",
            "0.222",
            "-8 ± 19",
            "0.222",
        ]  # -10 and -7

    def test_seeds_that_both_have(self, put):
        put(80, {"block": 2})
        put(82, {"block": 2}, 1999)
        put(75, {}, 1999)  # block 3
        put(70, {"block": 0}, 2024)
        gaps = statistics.differences_from(wide("blocks"), "block 3")
        assert gaps.loc["seen"].to_dict() == {"block 2": {1999: pytest.approx(7)}}
        assert statistics.differences_from(wide("blocks"), "block 7").empty

    def test_own_cnn_minus_the_common_one(self, put):
        for seed in (42, 1999):
            put(80, seed=seed)
            put(77 + (seed == 42), sweeps.variants("cnns", "mini")[fed_lscl_studies.CNNS[1]], seed)
        end = frames.final_rows(results.frame("mini", study="cnns"))
        by_client = end.groupby(["mask", "seed", "client", "variant"], sort=False)["accuracy"].mean().unstack("variant")
        gaps = statistics.differences_from(by_client, fed_lscl_studies.CNNS[0])[fed_lscl_studies.CNNS[1]].unstack(
            "client"
        )
        assert statistics.paired_tests(gaps).loc[1, ["n", "class-incremental, points"]].tolist() == ["2", "-2 ± 6"]


class TestComponents:
    def test_marks(self):
        marks = studies.component_marks("mini")
        assert list(marks.columns) == ["LSCT", "SM-CF", "O2D"] and list(marks.index) == list(fed_lscl_studies.ABLATIONS)
        assert marks.loc["whole"].tolist() == ["✓", "✓", "✓"]
        assert marks.loc["static LoRA, no O2D"].tolist() == ["static", "✓", "–"]
        assert marks.loc["CNN alone"].tolist() == ["–", "✓", "–"]
        assert marks.loc["EWC for SM-CF", "SM-CF"] == "ewc" and marks.loc["O2D by gradient", "O2D"] == "✓ gradient"

    def test_the_design_is_that_of_the_variants(self):
        """Each subset has what its run has, and every component is in four of the eight."""
        assert (studies.DESIGN.sum() == 0).all() and len(studies.DESIGN.drop_duplicates()) == 8
        for label, row in studies.DESIGN.iterrows():
            change = fed_lscl_studies.ABLATIONS[label]
            lacks = [key in change for key in ("collaboration", "continual", "o2d")]
            assert (row == -1).tolist() == lacks, label

    def test_effects_are_those_of_a_factorial_design(self, put):
        added = {"W": 8, "S": 4, "O": 2}
        for seed in (42, 1999):
            for label, row in studies.DESIGN.iterrows():
                has = {key for key, title in studies.FACTORS.items() if row[title] == 1}
                put(
                    50 + sum(added[key] for key in has) + (seed == 42) * ("O" in has),
                    fed_lscl_studies.ABLATIONS[label],
                    seed,
                )
        put(90, seed=2024)  # a third seed without the other subsets does not count
        table = statistics.paired_tests(studies.component_effects(wide().drop(index="all", level="mask")))
        assert table["task-masked, points"].tolist() == ["+8.0 ± 0.0", "+4.0 ± 0.0", "+2 ± 6"]
        assert table["n"].tolist() == ["2"] * 3
        assert table.loc["O2D", "p, task-masked"] == "0.126"
        assert table.loc["SM-CF", "p, class-incremental"] == "–"  # both seeds have one difference
        assert studies.component_effects(pd.DataFrame({"whole": [1.0]})).empty
