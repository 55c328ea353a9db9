"""What enters a page: tables, captions, and the line that says where numbers come from."""

import math

import pandas as pd
import pytest
from made_records import record

from lscl import results
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.results import markdown


class TestText:
    def test_a_cell_with_nothing_to_say_shows_nothing(self):
        assert markdown.as_output("") is None and markdown.as_output("**a**").data == "**a**"

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("<script>alert(1)</script>", "&#60;script>alert(1)&#60;/script>"),
            ("a|b\nc", "a&#124;b c"),
            ("*x* `y` $z$ {{ n }}", "&#42;x&#42; &#96;y&#96; &#36;z&#36; &#123;&#123; n &#125;&#125;"),
            ("[a](b) &amp; __x__", "[a&#93;(b) &#38;amp; &#95;&#95;x&#95;&#95;"),
            (
                "o2d_lambda = 10, p < 0.001 & [5]",
                "o2d_lambda = 10, p < 0.001 & [5]",
            ),  # nothing here means anything in markdown
        ],
    )
    def test_signs_of_markdown_and_html_lose_their_meaning(self, text, shown):
        assert markdown.plain_text(text) == shown

    def test_code_cannot_be_left(self):
        assert markdown.code_text("lscl run --method l2p") == "`lscl run --method l2p`"
        assert markdown.code_text("lscl run `x` | y\nz") == "lscl run &#96;x&#96; &#124; y z"

    def test_commits(self):
        assert (
            markdown.short_commit("abcdef0123456") == "abcdef0123"
            and markdown.short_commit(None) == "installed package"
        )
        found = [{"commit": "b" * 40}, {"commit": None}, {"commit": "b" * 40}]
        assert markdown.commits_of(found) == "commit bbbbbbbbbb, installed package"
        assert markdown.small_print("a", "", "b") == "<small>a; b</small>" and markdown.small_print("") == ""


class TestTables:
    def test_numbers_stand_right(self):
        table = pd.DataFrame({"a|b": ["x", "y"], "n": ["1.0", "-2.0"]}, index=pd.Index(["one", "two"], name="row"))
        assert markdown.to_markdown(table).splitlines() == [
            "| row | a&#124;b | n |",
            "|:---|:---|---:|",
            "| one | x | 1.0 |",
            "| two | y | -2.0 |",
        ]
        assert markdown.to_markdown(table, index=False).splitlines()[0] == "| a&#124;b | n |"

    def test_text_of_records_is_text_and_markdown_columns_are_markdown(self):
        table = pd.DataFrame({"text": ["`x` <b>"], "link": ["{ref}`a|b`"], "n": [math.nan]})
        assert (
            markdown.to_markdown(table, index=False, markdown=["link"]).splitlines()[2]
            == "| &#96;x&#96; &#60;b> | {ref}`a\\|b` | – |"
        )

    def test_the_label_of_a_frame_is_called_system(self):
        assert markdown.to_markdown(pd.DataFrame({"n": [1]}, index=pd.Index(["x"], name="label"))).startswith(
            "| system | n |"
        )

    def test_a_table_without_rows_is_a_head(self):
        assert markdown.to_markdown(pd.DataFrame(columns=["a", "b"]), index=False).splitlines() == [
            "| a | b |",
            "|:---|:---|",
        ]

    def test_a_table_has_caption_anchor_and_records(self):
        table = pd.DataFrame({"n": ["1"]}, index=pd.Index(["x"], name="label"))
        text = markdown.captioned_table(table, "Scores.", "tab-scores", [record()])
        assert (
            text.startswith(":::{table} Scores.\n:name: tab-scores\n\n| system |")
            and '\n:::\n\n<details class="source"><summary>Where these numbers come from</summary><small>profile mini;'
            in text
        )


class TestByDataset:
    def count(self, part):
        return part.groupby("variant")[["accuracy"]].count().rename(columns={"accuracy": "n"})

    def test_a_table_for_each_data_set(self, put):
        for seed in (42, 1999):
            put(80, seed=seed)
        scores = results.frame("mini")
        text = markdown.tables_by_dataset(scores, self.count, "Counts", "x")
        assert text.startswith(":::{table} Counts, CIFAR-100.\n:name: tab-x-cifar100\n\n| variant | n |")
        assert "seeds 42, 1999; 2 runs" in text and "Glyphs" not in text
        assert "seeds 42; 1 run," in markdown.tables_by_dataset(scores[scores["seed"] == 42], self.count, "Counts", "x")

    def test_what_is_missing_is_said(self, put):
        assert markdown.tables_by_dataset(results.frame("mini"), self.count, "Counts", "x") == markdown.NO_RECORDS
        put(80)
        empty = markdown.tables_by_dataset(
            results.frame("mini"), lambda part: pd.DataFrame(), "Counts", "x", "nothing yet"
        )
        assert empty == "nothing yet"
        single = ("Counts", "x", "too few")
        assert markdown.tables_by_dataset(results.frame("mini"), self.count, *single, least=2) == "too few"

    def test_one_table_has_one_set_of_images(self, put, one_line):
        put(80)
        put(80, {"images_per_class": 5}, data_digest="d2", partition_digest="p2")
        with pytest.raises(LsclError) as caught:
            markdown.tables_by_dataset(results.frame("mini"), self.count, "Counts", "x")
        one_line(caught, "one data_digest", "d1, d2")

    def test_all_data_sets_but_the_first_are_folded(self):
        rows = pd.DataFrame({"dataset": ["glyphs", "cifar100"], "variant": ["a", "b"], "accuracy": [1.0, 2.0]})
        first, second = markdown.tables_by_dataset(rows, self.count, "Counts", "x", note=lambda part: "").split(
            "::::{", 1
        )
        assert "CIFAR-100" in first and second.startswith("dropdown} The same on Glyphs\n\n:::{table} Counts, Glyphs.")
        assert second.endswith("\n\n::::") and markdown.folded("empty", "") == ""
        outer = markdown.folded("all", f"::::{{{second}")  # its fence is longer than those inside
        assert outer.startswith(":::::{dropdown} all\n") and outer.endswith("\n\n:::::")

    def test_other_notes(self):
        rows = pd.DataFrame({"dataset": ["imagenet_r"], "variant": ["a"], "accuracy": [1.0]})
        text = markdown.tables_by_dataset(rows, self.count, "Counts", "x", note=lambda part: f"{len(part)} row")
        assert ":name: tab-x-imagenet-r" in text and text.endswith("1 row")


class TestProvenance:
    def test_of_records(self):
        text = markdown.provenance([record(), record(seed=1999)])
        for part in (
            "profile mini",
            "abcdef0123",
            "seeds 42, 1999",
            "2 runs, 6 minutes",
            "some cpu",
            "data d1",
            "p1999",
            "weights w1",
        ):
            assert part in text
        assert "\n" not in text

    def test_uncommitted_code_stands_behind_nothing(self, one_line):
        with pytest.raises(LsclError) as caught:
            markdown.source_note([record(), record(seed=1, dirty=True)])
        one_line(caught, "s1--", "uncommitted")
        with pytest.raises(LsclError) as caught:
            markdown.provenance([])
        one_line(caught, "no records")
        assert markdown.source_note([]) == ""

    def test_rows_with_several_kinds_of_processor_are_named(self, places):
        other = {"hardware": {"cpu": "another cpu", "cores": 2, "memory_gb": 8, "gpu": None}}
        made = [record(), record(seed=1), record("lorm"), record("lorm", seed=1, **other)]
        for one in made:
            records.save(one)
        text = markdown.provenance(results.frame(made))
        assert "; several kinds of processor in the rows LoRM; " in text
        assert "several kinds" not in markdown.provenance(results.frame(made[:2]))

    def test_a_draft_says_so(self):
        assert markdown.provenance([record(dirty=True)], draft=True).startswith("DRAFT")

    def test_nothing_from_a_record_is_markup(self):
        odd = record(hardware={"cpu": "<script>x</script>", "cores": 2, "memory_gb": 8, "gpu": None}, commit="<b>")
        assert "<script" not in markdown.source_note([odd]) and "<b>" not in markdown.source_note([odd])

    def test_a_processor_comes_with_its_threads(self):
        one, other = record(), record()
        one["config"]["threads"], other["config"]["threads"] = 1, 2
        text = markdown.provenance([one, other])
        assert "; some cpu with 1 thread, some cpu with 2 threads; " in text

    def test_minutes_by_the_clock(self):
        assert markdown.wall_minutes(record()) == 3.0
