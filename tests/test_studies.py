"""Table 2 and the studies of blocks, buffers and CNNs, from records made by hand."""

import json

import numpy as np
import pytest
from made_records import record

from lscl import records, studies, sweeps
from lscl.errors import LsclError

pytestmark = pytest.mark.usefixtures("published")


@pytest.fixture
def put(places):
    """put(score, variant, seed): save a record of Fed-LSCL with what the variant changes."""

    def save(score, variant=None, seed=42, **changes):
        config = sweeps.variant_run({"profile": "mini", "dataset": "cifar100"}, variant or {}, seed)
        one = record(seed=seed, score=score, **changes)
        classes = {str(k): {str(c): [float(score), score - 30.0, score - 40.0] for c in range(k, k + 2)} for k in range(5)}
        one |= {"config": config.model_dump(mode="json", exclude={"data_dir", "device"}), "name": config.name, "per_class": classes}
        one |= {"config_digest": config.digest, "trained_parameters": [1000 + k for k in range(5)]}
        one.pop("overrides")
        folder = records.folder("mini")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{config.name}.json").write_text(json.dumps(one))

    return save


def collect(name="ablations", **options):
    return studies.collect(name, "mini", "cifar100", **options)


class TestCollect:
    def test_without_records_it_names_the_command(self):
        study = collect()
        assert study.found == {} and study.records == [] and len(study.missing) == 3 * len(sweeps.ABLATIONS)
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
        for size in sweeps.BUFFERS:
            put(70 + size, {"buffer_per_class": size}, 42)
        study = collect("buffers", seeds=[42])
        assert study.note == "" and list(study.found) == list(study.labels)

    def test_other_images_do_not_mix(self, put, one_line):
        put(80)
        put(80, seed=1999, data_digest="d2")
        with pytest.raises(LsclError) as caught:
            collect()
        one_line(caught, "study ablations", "data_digest", "d1, d2")

    def test_what_is_missing_can_be_computed(self, tree, monkeypatch):
        monkeypatch.setattr(sweeps, "BUFFERS", (0, 2))
        options = {"seeds": [42], "data_dir": tree}
        base = sweeps.variant_run
        monkeypatch.setattr(studies, "variant_run", lambda values, change, seed: base({**values, "image_size": 16}, change, seed))
        assert len(studies.collect("buffers", "smoke", "folder", **options).missing) == 2
        study = studies.collect("buffers", "smoke", "folder", **options, compute=True)
        assert study.missing == [] and len(study.records) == 2


class TestTables:
    def test_scores(self, put):
        put(80)
        put(82, seed=1999)
        table = studies.scores(collect())
        assert table.loc["whole"].tolist() == ["2", "73.0 ± 12.7", "43.0 ± 12.7", "33.0 ± 12.7", "10.0 ± 0.0"]  # 12.706 * 1.414 / 1.414
        assert table.loc["no O2D"].tolist() == ["not yet measured", "–", "–", "–", "–"]
        assert list(table.index) == list(sweeps.ABLATIONS)

    def test_components_and_published_rows(self, put):
        put(80)
        table = studies.components(collect())
        assert table.loc["whole", ["LSCT", "SM-CF", "O2D"]].tolist() == ["✓", "✓", "✓"]
        assert table.loc["static LoRA, no O2D", ["LSCT", "SM-CF", "O2D"]].tolist() == ["static", "✓", "–"]
        assert table.loc["CNN alone", ["LSCT", "SM-CF", "O2D"]].tolist() == ["–", "✓", "–"]
        assert table.loc["EWC for SM-CF", "SM-CF"] == "ewc" and table.loc["O2D by gradient", "O2D"] == "✓ gradient"
        assert table.loc["published, full", ["LSCT", "task-masked %", "class-incremental %"]].tolist() == ["✓", "89.4", "–"]
        assert table.loc["published, unidentified c", ["LSCT", "task-masked %"]].tolist() == ["?", "29.9"]

    def test_without_any_record_the_tables_stand(self):
        assert set(studies.scores(collect("blocks"))["seeds"]) == {"not yet measured"}
        table = studies.components(collect())
        assert table.loc["published, full", "seeds"] == "–"
        assert studies.against(collect(), "whole", "task").empty

    def test_against(self, put):
        for seed, one, other in ((1, 80, 70), (2, 82, 75)):
            put(one, seed=seed)
            put(other, {"o2d": "none"}, seed)
        put(60, {"continual": "none"}, 3)
        table = studies.against(collect(seeds=[1, 2, 3]), "whole", "task")
        assert list(table.index) == ["whole", "no O2D", "no SM-CF"]
        assert table.loc["no O2D", "minus whole"] == "-8.5"  # -10 and -7
        assert table.loc["no SM-CF", "minus whole"] == "–"  # no seed in common

    def test_curves_and_finals(self, put):
        put(80, {"block": 2})
        study = collect("blocks")
        assert studies.curves(study, "task")["block 2"] == pytest.approx(np.array([[80, 75, 70 + 10 / 3, 72.5, 72]]))
        assert studies.finals(study, "seen")["block 2"] == pytest.approx([42])


class TestCnns:
    def test_clients_and_their_cnns(self, put):
        put(80, sweeps.variants("cnns", "mini")[sweeps.CNNS[1]])
        study = collect("cnns")
        table = studies.by_cnn(study, sweeps.CNNS[1], "seen")
        assert table["CNN"].tolist() == ["resnet10t", "mobilenetv3_small_050", "mini_densenet", "tf_efficientnet_lite0", "mini_vgg"]
        assert table.loc["client 2"].tolist()[1:] == ["1,001", "1", "50.0", "50.0", "50.0"]
        assert studies.by_cnn(study, sweeps.CNNS[0], "seen").empty

    def test_class_accuracies_of_all_seeds(self, put):
        put(80)
        put(60, seed=1999)
        (first, *others) = studies.class_accuracies(collect("cnns").found[sweeps.CNNS[0]], "task")
        assert first == pytest.approx([80, 80, 60, 60]) and len(others) == 4
