"""The paper's numbers, and where they stand beside ours."""

import pandas as pd
import pytest
from made_records import record

from lscl import paths, results
from lscl.errors import LsclError
from lscl.results import frames, labels, published, statistics

pytestmark = pytest.mark.usefixtures("published")


def test_twelve_systems_under_our_names():
    table = published.published_table1()
    assert len(table) == 12 * 2 * 5
    assert table["method"].nunique() == 12
    names = dict(zip(table["label"], table["method"]))
    assert names["Fed-LSCL"] == "fed_lscl" and names["FedAvg+ViT"] == "fedavg_vit"


def test_a_number():
    table = published.published_table1("cifar100").set_index(["method", "task"])["accuracy"]
    assert table["fed_lscl", 5] == 96.932
    assert published.published_final("cifar100") == 89.396
    assert published.published_final("glyphs") is None and published.published_losses("glyphs") == []
    assert (
        published.published_losses("cifar100") == pytest.approx([39.1, 59.5, 59.5], abs=21)
        and len(published.published_losses("cifar100")) == 3
    )


def test_missing_file_and_unknown_system(places, one_line, monkeypatch):
    path = places / "results" / "published" / "paper_table1.csv"
    path.write_text(path.read_text("utf-8").replace("GLFC", "GLF"), "utf-8")
    with pytest.raises(LsclError) as caught:
        published.published_table1()
    one_line(caught, "unknown system GLF")
    path.unlink()
    assert len(published.published_table1()) == 120  # those of the repository, or of the package
    monkeypatch.setattr(paths, "repository", lambda: None)
    with pytest.raises(LsclError) as caught:
        published.published_table1()
    one_line(caught, path)


def table1(group, dataset="cifar100"):
    scores = results.frame(group)
    learned = frames.just_learned_rows(scores[scores["mask"] == "task"])
    by_seed = learned.pivot_table("accuracy", ["label", "seed"], "trained_task", sort=False).add_prefix("task ")
    by_seed[published.AT_THE_END] = (
        frames.final_rows(scores[scores["mask"] == "task"]).groupby(["label", "seed"])["accuracy"].mean()
    )
    return published.add_published_rows(statistics.estimates(by_seed, "label"), learned.assign(dataset=dataset))


class TestTable1:
    def test_a_published_row_follows_ours(self):
        table = table1(
            [record(score=80), record(seed=1999, score=82), record("local_head"), record("fedavg_vit", score=70)]
        )
        assert list(table.index) == [
            "Fed-LSCL (O2D exact)",
            "Fed-LSCL, published",
            "FedAvg + ViT",
            "FedAvg+ViT, published",
            "local head",
        ]
        ours, theirs = table.loc["Fed-LSCL (O2D exact)"], table.loc["Fed-LSCL, published"]
        assert ours["n"] == "2" and theirs["n"] == "–"
        assert ours["task 1"] == "81 ± 13"  # 12.706, the t quantile, times 1.414 / 1.414
        assert ours["all tasks, at the end"] == "73 ± 13"  # four tasks at 10 less: 81 - 8
        assert theirs["task 5"] == "96.9"
        assert (
            theirs["all tasks, at the end"] == "89.4"
            and table.loc["FedAvg+ViT, published", "all tasks, at the end"] == "–"
        )
        assert ours["gap"] == "-16.0"  # 81 - (97.735 + 97.419 + 96.597 + 96.544 + 96.932) / 5
        assert table.loc["local head", "gap"] == theirs["gap"] == "–"

    def test_both_forms_of_o2d_share_the_published_row(self):
        table = table1([record(), record(values={"o2d": "sgd"})])
        assert list(table.index) == ["Fed-LSCL (O2D exact)", "Fed-LSCL (O2D gradient)", "Fed-LSCL, published"]

    def test_other_numbers_of_tasks_and_other_data_are_not_compared(self):
        assert list(table1([record(tasks=3)])["gap"]) == ["–"] and list(table1([record()], "glyphs")["gap"]) == ["–"]

    def test_rows_of_a_system(self):
        rows = published.published_rows("imagenet_r", ["fedavg", "local_head"])
        assert list(rows.index) == ["FedAvg, published"] and rows.loc["FedAvg, published", "task 1"] == "37.8"
        assert published.published_rows("glyphs", ["fedavg"]).empty


def test_table2_below_ours():
    ours = pd.DataFrame(
        {"LSCT": ["✓"], "SM-CF": ["✓"], "O2D": ["✓"], "n": ["3"], "task-masked %": ["73.0"]}, index=["whole"]
    )
    table = published.add_published_table2(ours, pd.DataFrame({"dataset": ["cifar100"]}))
    assert list(table.index) == ["whole", "published, full", *(f"published, unidentified {name}" for name in "abc")]
    assert table.loc["published, full"].tolist() == ["✓", "✓", "✓", "–", "89.4"]
    assert table.loc["published, unidentified c"].tolist() == ["?", "?", "?", "–", "29.9"]
    assert list(published.add_published_table2(ours, pd.DataFrame({"dataset": ["glyphs"]})).index) == ["whole"]


def test_coverage_names_what_is_only_quoted():
    text = published.coverage(["fed_lscl", "fedavg_vit", "local_head"])
    assert text.startswith(
        "2 of the paper's 12 systems were measured; quoted only: FedAvg, FedProx, FedAvg+L2P, "
    ) and text.endswith("LoRM.")
    assert published.coverage(labels.paper_names().values()) == "All 12 systems of the paper's table were measured."


def test_published_and_measured_values_of_the_systems_that_both_have():
    made = [record(seed=seed, score=80 + seed) for seed in (0, 2)] + [record("local_head"), record("lorm", score=70)]
    made.append(record(seed=0, score=10, values={"o2d": "sgd"}))  # another row of the first system
    scores = results.frame(made)
    table = published.beside_published(scores[scores["mask"] == "task"])
    assert list(table.index) == ["Fed-LSCL (O2D exact)", "LoRM"]
    assert table.loc["Fed-LSCL (O2D exact)", "measured here"] == 81 and table.loc["LoRM", "text"] == "70.0"
    assert table.loc["Fed-LSCL (O2D exact)", "published"] == pytest.approx(97.0454)
    nothing = scores[scores["method"] == "local_head"]
    assert published.beside_published(nothing[nothing["mask"] == "task"]).empty
