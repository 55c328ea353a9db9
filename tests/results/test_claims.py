"""What the paper states, sorted by what records made by hand say to it."""

import math

import pandas as pd
import pytest

from lscl import results
from lscl.errors import LsclError
from lscl.experiments import sweeps
from lscl.methods.parts import fed_lscl_studies
from lscl.results import claims, frames, studies
from lscl.results.claims import AGREES, CONTRADICTS, OPEN, Claim
from lscl.results.labels import label_of
from lscl.results.statistics import Estimate

pytestmark = pytest.mark.usefixtures("published")


@pytest.mark.parametrize(
    ("sign", "margin", "mean", "expected"),
    [
        (1, 0, -3, AGREES), (1, 0, 3, CONTRADICTS), (1, 0, -0.5, OPEN), (1, 0, 0.5, OPEN),  # "is worse"
        # "is less than a point better"
        (1, 1, -3, AGREES), (1, 1, -0.1, AGREES), (1, 1, 0.5, OPEN), (1, 1, 2.5, CONTRADICTS),
        (-1, 1, 3, AGREES), (-1, 1, -2.5, CONTRADICTS), (-1, 1, -0.5, OPEN),  # "is less than a point worse"
    ],
)  # fmt: skip
def test_the_interval_decides(sign, margin, mean, expected):
    claim = Claim("", "", "a", "b", sign, margin)
    assert claim.verdict(Estimate(mean, 3, 1.0)) == expected
    assert claim.verdict(Estimate(mean, 1, math.nan)) == OPEN


@pytest.mark.parametrize("profile", sweeps.PLANS)
@pytest.mark.parametrize("study", ("ablations", "blocks", "buffers", "cnns"))
def test_every_statement_is_about_variants_of_the_study(study, profile):
    labels = sweeps.variants(study, profile)
    found = claims.claims_of(study, profile)
    assert all(
        {claim.variant, claim.reference} <= set(labels) for claim in found if claim.reference != claims.SUBSETS_WITHOUT
    )
    assert [claim.variant for claim in found if claim.reference == claims.SUBSETS_WITHOUT] == (
        list(studies.FACTORS.values()) if study == "ablations" else []
    )
    assert found or (study, profile) == ("blocks", "smoke")  # three blocks have no last quarter


def test_the_last_quarter_of_the_blocks():
    assert [claim.variant for claim in claims.claims_of("blocks", "mini")] == ["block 6", "block 7"]
    assert [claim.variant for claim in claims.claims_of("blocks", "paper")] == ["block 9", "block 10", "block 11"]
    with pytest.raises(LsclError, match="unknown study 'block'"):
        claims.claims_of("block", "mini")


def by_seed(mask="task"):
    """The final accuracies of the ablations that are recorded, a row per seed and a column per variant."""
    scores = results.frame("mini", study="ablations")
    return frames.final_rows(scores[scores["mask"] == mask]).pivot_table("accuracy", "seed", "variant", sort=False)


def sections(text):
    """Verdict -> its statements, one per line, of a list that `claims.judge` wrote."""
    parts = (part.split(":**\n") for part in text.removeprefix("- **").split("\n- **"))
    return {
        verdict: statements
        for verdict, statements in parts
        if all(line.startswith("  - ") for line in statements.splitlines())
    }


def test_statements_are_sorted(put):
    for seed, noise in ((42, 0), (1999, 0.2), (2024, -0.2)):
        put(80, seed=seed)
        put(70 + noise, {"o2d": "none"}, seed)
        put(85 + noise, {"continual": "none"}, seed)
        put(80 + 5 * noise, {"collaboration": "static"}, seed)
    put(60, {"collaboration": "cnn"})
    found = sections(claims.judge("ablations", "mini", by_seed()))
    assert list(found) == [*claims.JUDGEMENTS, "Not yet measured"]
    agrees, contradicts, still_open, missing = found.values()
    assert "no O2D minus whole is -10.0 points (95 % interval -10.5 to -9.5, n = 3)" in agrees
    assert "no SM-CF minus whole is +5.0" in contradicts
    assert "one static update" in still_open and "CNN alone minus whole is -20.0 points (one seed)" in still_open
    assert "without both" in missing
    assert claims.compare_losses(results.frame("mini", study="ablations")).endswith(
        "lie 39.1 to 59.5 points below its whole one. "
        "Of the 4 variants measured here the lowest beside ours is *CNN alone*, -20.0 points."
    )


def test_components_are_judged_by_all_their_subsets(put):
    for seed, noise in ((42, 0), (1999, 0.1), (2024, -0.1)):
        for place, change in enumerate(fed_lscl_studies.ABLATIONS[label] for label in studies._SUBSETS):
            static, without_smcf = "collaboration" in change, "continual" in change
            put(70 + (4 + noise) * static - 2 * without_smcf + (noise if place % 2 else -noise), change, seed)
    added = studies.component_effects(by_seed())
    written, smcf, o2d = (added.loc[[42, 1999, 2024], studies.FACTORS[key]].tolist() for key in "WSO")
    assert (
        written == pytest.approx([-4, -4.1, -3.9])
        and smcf == pytest.approx([2, 2, 2])
        and o2d == pytest.approx([0, -0.2, 0.2])
    )
    agrees, contradicts, still_open, _ = sections(claims.judge("ablations", "mini", by_seed())).values()
    assert (
        "SM-CF makes the system better, on average over the other components (Table 2): SM-CF: on average +2.0 points"
        in agrees
    )
    assert (
        "a static one, on average over the other components (section 4.2): "
        "written per image, not static: on average -4.0 points" in contradicts
    )
    assert "O2D: on average +0.0 points" in still_open


def test_both_scores_of_each_data_set(put):
    for seed in (42, 1999):
        put(80, seed=seed)
        put(70, {"o2d": "none"}, seed)
    text = claims.judge_datasets(studies.collect("ablations", "mini"), results.frame("mini", study="ablations"))
    parts = text.split("\n\n")
    assert parts[::2] == ["**CIFAR-100, task-masked**", "**CIFAR-100, class-incremental**"]
    assert all("no O2D minus whole is -10.0 points" in part for part in parts[1::2])


def test_without_records_nothing_is_claimed():
    nothing = results.frame("mini", study="cnns")
    assert claims.judge_datasets(studies.collect("cnns", "mini"), nothing) == (
        "**CIFAR-100**\n\n- **Not yet measured:**\n"
        "  - clients may choose their CNN: the loss is less than 1 point (Fig. 4)"
    )


def test_losses_need_a_published_table_and_a_variant(put):
    put(80)
    assert claims.compare_losses(results.frame("mini", study="ablations")) == ""


class TestPrivacy:
    """The paper's sentences on privacy against findings made by hand."""

    def findings(self, method, values, payload="features", knows="own CNN", score="top1", chance=0.01):
        about = {"dataset": "glyphs", "profile": "mini", "method": method, "defence": "", "label": label_of(method)}
        row = {**about, "payload": payload, "knows": knows, "score": score, "chance": chance}
        return [{**row, "seed": seed, "value": value} for seed, value in enumerate(values)]

    @pytest.mark.parametrize(
        ("values", "verdict"),
        [
            ((0.01, 0.012, 0.011), claims.AGREES),
            ((0.5, 0.52, 0.51), claims.CONTRADICTS),
            ((0.01, 0.3, 0.0), claims.OPEN),
            ((0.01,), claims.OPEN),
            ((), claims.MISSING),
        ],
    )
    def test_the_interval_decides(self, values, verdict):
        rows = pd.DataFrame(self.findings("fed_lscl", values) or self.findings("fedavg", (0.5, 0.6)))
        first = claims.PRIVACY_CLAIMS[0]
        assert first.verdict(first.gap(rows)) == verdict
        assert f"**{verdict}:** {first.statement}" in claims.judge_privacy(rows)

    def test_defended_runs_and_upper_bounds_judge_nothing(self):
        rows = pd.DataFrame(self.findings("fed_lscl", (0.9, 0.9), knows="true CNN (upper bound)"))
        assert claims.PRIVACY_CLAIMS[0].gap(rows).empty
        rows = pd.DataFrame(self.findings("fed_lscl", (0.9, 0.9))).assign(defence="Gram matrix")
        assert claims.PRIVACY_CLAIMS[0].gap(rows).empty

    def test_systems_are_compared_seed_by_seed(self):
        auc = {"payload": "weight", "score": "auc", "chance": 0.5}
        rows = self.findings("fed_lscl", (0.50, 0.51, 0.52), **auc)
        rows += self.findings("fedavg", (0.60, 0.61, 0.62), **auc) + self.findings("l2p", (0.70, 0.71, 0.72), **auc)
        last = claims.PRIVACY_CLAIMS[-1]
        gap = last.gap(pd.DataFrame(rows))
        assert gap.tolist() == pytest.approx([-0.15] * 3) and last.verdict(gap) == claims.AGREES
        assert last.gap(pd.DataFrame(rows[:3])).empty  # nobody to compare with
