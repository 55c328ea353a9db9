"""Table 2 and the studies of blocks, buffers and CNNs, from records made by hand."""

import numpy as np
import pytest

from lscl.errors import LsclError
from lscl.experiments import sweeps
from lscl.methods.parts import fed_lscl_studies
from lscl.results import studies

pytestmark = pytest.mark.usefixtures("published")


def collect(name="ablations", **options):
    return studies.collect(name, "mini", "cifar100", **options)


class TestCollect:
    def test_without_records_it_names_the_command(self):
        study = collect()
        assert study.found == {} and study.records == [] and len(study.missing) == 3 * len(fed_lscl_studies.ABLATIONS)
        assert study.note == (
            "**Not yet measured: 45 of 45 runs of this study.** `lscl sweep ablations --dataset cifar100 --profile mini` makes them."
        )

    def test_found_by_variant_in_the_order_of_the_seeds(self, put):
        for seed in (2024, 42):
            put(80, seed=seed)
        put(70, {"o2d": "none"}, 1999)
        study = collect()
        assert {label: [one["seed"] for one in group] for label, group in study.found.items()} == {"whole": [42, 2024], "no O2D": [1999]}
        assert "42 of 45 runs" in study.note
        assert not study.draft

    def test_nothing_is_missing(self, put):
        for size in fed_lscl_studies.BUFFERS:
            put(50 + size, {"buffer_per_class": size}, 42)
        study = collect("buffers", seeds=[42])
        assert study.note == "" and list(study.found) == list(study.labels)

    def test_other_images_do_not_mix(self, put, one_line):
        put(80)
        put(80, seed=1999, data_digest="d2")
        with pytest.raises(LsclError) as caught:
            collect()
        one_line(caught, "study ablations", "data_digest", "d1, d2")

    def test_one_seed_with_two_partitions_is_refused(self, put, one_line):
        put(80)
        put(80, {"o2d": "none"}, partition_digest="other")
        with pytest.raises(LsclError) as caught:
            collect()
        one_line(caught, "study ablations", "seed 42", "different partitions", "other")

    def test_what_is_missing_can_be_computed(self, tree, monkeypatch):
        monkeypatch.setattr(fed_lscl_studies, "BUFFERS", (0, 2))
        options = {"seeds": [42], "data_dir": tree}
        base = sweeps.variant_run
        monkeypatch.setattr(studies, "variant_run", lambda values, change, seed: base({**values, "image_size": 16}, change, seed))
        assert len(studies.collect("buffers", "smoke", "folder", **options).missing) == 2
        study = studies.collect("buffers", "smoke", "folder", **options, compute=True)
        assert study.missing == [] and len(study.records) == 2


class TestPages:
    """What the notebooks show of a study with all, some or no records."""

    def test_a_small_profile_shows_the_records_of_mini_unless_it_computes(self, monkeypatch):
        asked = []
        monkeypatch.setattr(studies, "collect", lambda *args: asked.append(args))
        for profile, compute in (("demo", False), ("demo", True), ("paper", False)):
            studies.of_profile("blocks", profile, compute, "folder", "vit.npz")
        assert asked[:2] == [("blocks", "mini", name, sweeps.SEEDS, False, "folder", "vit.npz") for name in ("cifar100", "glyphs")]
        assert asked[2:] == [
            ("blocks", "demo", "glyphs", [42], True, "folder", "vit.npz"),
            ("blocks", "paper", "cifar100", sweeps.SEEDS, False, "folder", "vit.npz"),
            ("blocks", "paper", "imagenet_r", sweeps.SEEDS, False, "folder", "vit.npz"),
        ]

    def test_without_records_one_table_and_what_is_missing(self):
        both = studies.of_profile("buffers", "mini")
        assert studies.shown(both) == both[:1]
        assert studies.status(both).count("Not yet measured: 18 of 18") == 2
        options = {"caption": "Scores", "name": "buffers"}
        assert studies.by_dataset(both, studies.scores, **options) == f"CIFAR-100: {both[0].note}"
        assert studies.by_dataset(both, lambda study: studies.against(study, "20 per class"), **options) == f"CIFAR-100: {both[0].note}"

    def test_with_some_records(self, put):
        for seed in (42, 1999):
            put(80, seed=seed)
        both = studies.of_profile("ablations", "demo")
        assert studies.shown(both) == both[:1]
        first, second = studies.status(both).splitlines()
        assert "43 of 45" in first and "the tables have 2 runs, and no row for: no O2D, no SM-CF, " in first
        assert "45 of 45" in second and "row" not in second
        text = studies.by_dataset(both, studies.components, "Components", "components")
        assert text.startswith(":::{table} Components, CIFAR-100.\n:name: tab-components-cifar100\n\n| variant | LSCT |")
        assert "seeds 42, 1999; 2 runs" in text and "Glyphs" not in text

    def test_when_nothing_is_missing(self, put):
        for label in fed_lscl_studies.CNNS:
            put(80, sweeps.variants("cnns", "mini")[label])
        assert studies.status([collect("cnns", seeds=[42])]) == "- CIFAR-100, profile `mini`: all 2 runs are measured."

    def test_the_command_names_the_seeds_that_are_missing(self, put):
        for size in fed_lscl_studies.BUFFERS:
            for seed in (42, 1999):
                put(80, {"buffer_per_class": size}, seed)
        assert "`lscl sweep buffers --dataset cifar100 --profile mini --seeds 2024` makes them" in collect("buffers").note


class TestTables:
    def test_scores(self, put):
        put(80)
        put(82, seed=1999)
        table = studies.scores(collect())
        assert table.loc["whole"].tolist() == ["2", "73.0 ± 12.7", "43.0 ± 12.7", "10.0 ± 0.0"]  # 12.706 * 1.414 / 1.414
        assert list(table.index) == ["whole"]

    def test_components_and_published_rows(self, put):
        for label in ("whole", "static LoRA, no O2D", "CNN alone", "EWC for SM-CF", "O2D by gradient"):
            put(80, fed_lscl_studies.ABLATIONS[label])
        table = studies.components(collect())
        assert table.loc["whole", ["LSCT", "SM-CF", "O2D"]].tolist() == ["✓", "✓", "✓"]
        assert table.loc["static LoRA, no O2D", ["LSCT", "SM-CF", "O2D"]].tolist() == ["static", "✓", "–"]
        assert table.loc["CNN alone", ["LSCT", "SM-CF", "O2D"]].tolist() == ["–", "✓", "–"]
        assert table.loc["EWC for SM-CF", "SM-CF"] == "ewc" and table.loc["O2D by gradient", "O2D"] == "✓ gradient"
        assert table.loc["published, full", ["LSCT", "task-masked %", "class-incremental %"]].tolist() == ["✓", "89.4", "–"]
        assert table.loc["published, unidentified c", ["LSCT", "task-masked %"]].tolist() == ["?", "29.9"]

    def test_without_any_record_the_published_rows_stand(self):
        table = studies.components(collect())
        assert list(table.index) == ["published, full", *(f"published, unidentified {name}" for name in "abc")]
        assert studies.scores(collect("blocks")).empty and studies.against(collect(), "whole").empty and studies.effects(collect()).empty

    def test_against(self, put):
        for seed, one, other in ((1, 80, 70), (2, 82, 75)):
            put(one, seed=seed)
            put(other, {"o2d": "none"}, seed)
            put(other, {"o2d": "sgd"}, seed)
        put(60, {"continual": "none"}, 3)
        table = studies.against(collect(seeds=[1, 2, 3]), "whole")
        assert list(table.index) == ["no O2D", "O2D by gradient"]  # no SM-CF has no seed in common
        assert table.loc["no O2D"].tolist() == ["2", "-8.5", "-27.6 to 10.6", "0.222", "-8.5", "-27.6 to 10.6", "0.222"]  # -10 and -7

    def test_curves_and_differences(self, put):
        put(80, {"block": 2})
        put(82, {"block": 2}, 1999)
        put(75, {}, 1999)  # block 3
        put(70, {"block": 0}, 2024)
        study = collect("blocks")
        assert studies.curves(study, "task")["block 2"][:1] == pytest.approx(np.array([[80, 75, 70 + 10 / 3, 72.5, 72]]))
        assert studies.differences(study, "block 3", "seen") == {"block 2": pytest.approx([7])}  # the one seed in common
        assert studies.differences(study, "block 7", "seen") == {}

    def test_effects_are_those_of_a_factorial_design(self, put):
        added = {"W": 8, "S": 4, "O": 2}
        for seed in (42, 1999):
            for label, has in studies._SUBSETS.items():
                put(50 + sum(added[key] for key in has) + (seed == 42) * ("O" in has), fed_lscl_studies.ABLATIONS[label], seed)
        put(90, seed=2024)  # a third seed without the other subsets does not count
        table = studies.effects(collect())
        assert table["task-masked, points"].tolist() == ["+8.0", "+4.0", "+2.5"] and table["n"].tolist() == ["2"] * 3
        assert table.loc["O2D", ["95 % interval, task-masked", "p, task-masked"]].tolist() == ["-3.9 to 8.9", "0.126"]  # 12.706 * 0.5
        assert table.loc["SM-CF", "p, class-incremental"] == "< 0.001"
        assert studies.effects(collect("ablations", seeds=[2024])).empty

    def test_costs(self, put):
        put(80)
        table = studies.costs(collect())
        assert table.loc["whole", ["n", "MB up", "trained parameters"]].tolist() == ["1", "2.00", "1,002"]
        assert list(table.index) == ["whole"]


class TestCnns:
    def test_clients_and_their_cnns(self, put):
        put(80, sweeps.variants("cnns", "mini")[fed_lscl_studies.CNNS[1]])
        study = collect("cnns")
        table = studies.by_cnn(study, fed_lscl_studies.CNNS[1], "seen")
        assert table["CNN"].tolist() == ["resnet10t", "mobilenetv3_small_050", "mini_densenet", "tf_efficientnet_lite0", "mini_vgg"]
        assert table.loc["client 2"].tolist()[1:] == ["1,001", "1", "50.0", "50.0", "50.0"]
        assert studies.by_cnn(study, fed_lscl_studies.CNNS[0], "seen").empty

    def test_own_cnn_minus_the_common_one(self, put):
        for seed in (42, 1999):
            put(80, seed=seed)
            put(77 + (seed == 42), sweeps.variants("cnns", "mini")[fed_lscl_studies.CNNS[1]], seed)
        table = studies.own_cnn(collect("cnns"))
        assert list(table.index)[:2] == ["client 1, resnet10t", "client 2, mobilenetv3_small_050"] and len(table) == 5
        assert table.loc["client 1, resnet10t", ["n", "class-incremental, points"]].tolist() == ["2", "-2.5"]
        assert studies.own_cnn(collect("cnns", seeds=[2024])).empty

    def test_class_accuracies_of_all_seeds(self, put):
        put(80)
        put(60, seed=1999)
        (first, *others) = studies.class_accuracies(collect("cnns").found[fed_lscl_studies.CNNS[0]], "task")
        assert first == pytest.approx([80] * 40 + [60] * 40) and len(others) == 4
