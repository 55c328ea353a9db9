"""What the paper states, sorted by what records made by hand say to it."""

import math

import pandas as pd
import pytest
from made_records import record

from lscl import results
from lscl.errors import LsclError
from lscl.experiments import sweeps
from lscl.methods.parts import fed_lscl_studies
from lscl.results import claims, studies
from lscl.results.claims import Claim
from lscl.results.labels import label_of
from lscl.results.statistics import Estimate

pytestmark = pytest.mark.usefixtures("published")


@pytest.mark.parametrize(
    ("margin", "mean", "published", "kind", "words"),
    [
        (0, 3, (), "agrees", "agrees"), (0, -3, (), "contradicts", "the sign is the opposite"),
        (0, 0.5, (), "open", "both answers"), (0, -0.5, (), "open", "both answers"),
        (1, 0.1, (), "agrees", "agrees"), (1, -0.5, (), "open", "both answers"),
        (1, -2.5, (), "contradicts", "contradicted"),
        # the size weighs as much as the sign
        (0, 3, (4.0, 50.0), "agrees", "similar size"), (0, 3, (120.0, 150.0), "smaller", "same sign, 40 times smaller"),
        (0, 3, (6.1,), "smaller", "same sign, 2.0 times smaller"), (0, 3, (1.0,), "agrees", "agrees, 3.0 times larger"),
        (0, 0.5, (30.0,), "absent", "no effect seen; at most 1/20 of the paper's"),
        (0, 0.5, (2.0,), "open", "both answers"),
        (0, -1.0, (30.0,), "absent", "no effect seen"), (0, -3, (30.0,), "contradicts", "the sign is the opposite"),
        (0, 3, (-4.0,), "agrees", "agrees"),
    ],
)  # fmt: skip
def test_sign_and_size_make_the_verdict(margin, mean, published, kind, words):
    claim = Claim("", "", "a", "b", 1, margin)
    found = claim.weigh(Estimate(mean, 3, 1.0), published)
    assert found[0] == kind and found[1].endswith(words) and kind in claims.KINDS
    assert claim.weigh(Estimate(mean, 1, math.nan), published) == ("open", "open: one seed")
    assert claim.weigh(Estimate(mean, 2, 1.0), published) == ("open", "open: 2 seeds")


def test_effects_are_points_in_favour_of_the_claim():
    table = pd.DataFrame({"a": [70.0, 71], "b": [80.0, 80]})
    worse, better = Claim("a is worse than b", "", "a", "b"), Claim("a is better than b", "", "a", "b", -1)
    assert worse.effects(table).tolist() == [10, 9] and better.effects(table).tolist() == [-10, -9]
    assert worse.effects(table[["a"]]).empty


@pytest.mark.parametrize("profile", sweeps.PLANS)
@pytest.mark.parametrize("study", claims.CLAIMED[1:])
def test_every_statement_is_about_variants_of_the_study(study, profile):
    labels = sweeps.variants(study, profile)
    found = claims.claims_of(study, profile)
    assert all(
        {claim.variant, claim.reference} <= set(labels) for claim in found if claim.reference != claims.SUBSETS_WITHOUT
    )
    assert [claim.variant for claim in found if claim.reference == claims.SUBSETS_WITHOUT] == (
        list(studies.FACTORS.values()) if study == "ablations" else []
    )
    untuned = profile in ("smoke", "colab", "paper")
    assert bool(found) != ((study, profile) == ("blocks", "smoke") or (study == "larger_rate" and untuned))


def test_the_last_quarter_of_the_blocks():
    assert [claim.variant for claim in claims.claims_of("blocks", "mini")] == ["block 6", "block 7"]
    assert [claim.variant for claim in claims.claims_of("blocks", "paper")] == ["block 9", "block 10", "block 11"]
    with pytest.raises(LsclError, match="unknown study 'block'"):
        claims.claims_of("block", "mini")


def test_at_the_larger_rate_a_claim_compares_with_the_whole_system_at_that_rate(put):
    rate = {"lr_generator": 1e-3}
    put(60)
    put(80, rate)
    put(70, {**rate, "o2d": "none"})
    put(79.5, {**rate, "buffer_per_class": 50})
    found = board("larger_rate")
    assert found.loc["without O2D the system is worse, at a larger rate of the generator", claims.OURS] == "+10.0"
    enough = f"20 images per class are enough: 50 are less than {claims.MARGIN:g} point better"
    assert found.loc[f"{enough}, at a larger rate of the generator", claims.OURS] == "+0.5" and len(found) == 2


def board(study="ablations"):
    return claims.scoreboard(study, "mini", results.frame("mini", study=study)).set_index(claims.CLAIM)


def test_every_claim_with_runs_has_its_row(put):
    for seed, noise in ((42, 0), (1999, 0.2), (2024, -0.2)):
        put(80, seed=seed)
        put(70 + noise, {"o2d": "none"}, seed)
        put(85 + noise, {"continual": "none"}, seed)
        put(80 + 5 * noise, {"collaboration": "static"}, seed)
    put(60, {"collaboration": "cnn"})
    found = board()
    assert list(found["kind"]) == ["smaller", "contradicts", "open", "open"]
    row = found.loc["without O2D the system is worse"]
    assert row.tolist() == [
        "Table 2", "3", "+10.0 ± 0.5", "+39.1 to +59.5", "same sign, 3.9 times smaller", "+10.0 ± 0.5", "smaller",
    ]  # fmt: skip
    assert found.loc["without SM-CF it is worse", claims.OURS] == "-5.0 ± 0.5"
    assert found.loc["without the large model it is worse", ["n", "verdict"]].tolist() == ["1", "open: one seed"]
    assert found.loc["an update written per image is better than one static update", claims.THEIRS] == "–"
    said = claims.summary(found.reset_index(), 24)
    assert said.startswith(
        "Of 24 claims of the paper, these runs find **1** contradicted; **1** of the right sign, but at least 2 times "
        "smaller; **2** open, because they have fewer than 3 seeds or too wide an interval; **20** without a run. "
    )
    assert claims.summary(found, len(found)).endswith("too wide an interval.")
    assert claims.compare_losses(results.frame("mini", study="ablations")).endswith(
        "are 39.1 to 59.5 points below the whole one. "
        "Of the 4 variants measured here, *CNN alone* is the lowest: 20.0 points below our whole system, seed by seed."
    )


def test_a_loss_of_nothing_names_no_variant(put):
    put(80)
    put(79.98, {"o2d": "none"})
    said = claims.compare_losses(results.frame("mini", study="ablations"))
    assert said.endswith("none is more than 0.05 points below our whole system, seed by seed.")


def test_components_are_judged_by_all_their_subsets(put):
    for seed, noise in ((42, 0), (1999, 0.1), (2024, -0.1)):
        for place, change in enumerate(fed_lscl_studies.ABLATIONS[label] for label in studies._SUBSETS):
            static, without_smcf = "collaboration" in change, "continual" in change
            put(70 + (4 + noise) * static - 2 * without_smcf + (noise if place % 2 else -noise), change, seed)
    found = board()
    about = "{}, on average over the other components"
    written, smcf, o2d = (found.loc[about.format(says), [claims.OURS, "kind"]].tolist() for _, says, _ in claims._ADDS)
    assert written == ["-4.00 ± 0.25", "contradicts"] and smcf == ["+2.0 ± 0.0", "agrees"] and o2d[1] == "open"


def test_systems_are_compared_on_the_task_just_learned_as_in_the_papers_table(put):
    rows = [record(seed=seed, score=80) for seed in (1, 2, 3)] + [
        record("lorm", seed=seed, score=70 + seed) for seed in (1, 2, 3)
    ]
    scores = results.frame([*rows, record("fedavg_vit", seed=1, score=90)])
    found = claims.scoreboard("table1", "mini", scores).set_index(claims.CLAIM)
    row = found.loc["Fed-LSCL is more accurate than LoRM"]
    assert row[["n", claims.OURS, claims.THEIRS, "source"]].tolist() == ["3", "+8.0 ± 2.5", "+10.5", "Table 1"]
    assert row["verdict"] == "agrees, with an effect of similar size"
    assert found.loc["Fed-LSCL is more accurate than FedAvg + ViT", claims.OURS] == "-10.0" and len(found) == 2


def test_a_claim_that_holds_for_a_control_says_nothing_about_the_system():
    scored = {"fed_lscl": 80, "local_head": 79, "fedavg": 30, "glfc": 40, "lorm": 85}
    said = claims.also_true_of(
        "local_head",
        results.frame([record(name, seed, score + seed / 10) for name, score in scored.items() for seed in (1, 2, 3)]),
    )
    assert "is ahead of FedAvg, GLFC as well, by 39.0 to 49.0 points" in said and "LoRM" not in said
    assert claims.also_true_of("local_head", results.frame([record(), record("lorm", score=90)])) == ""
    assert (
        claims.also_true_of("local_head", results.frame([record(), record("local_head"), record("lorm", score=90)]))
        == ""
    )


def test_the_class_incremental_effect_is_that_of_the_end(put):
    ours, rival = record(score=80), record("lorm", score=80)
    rival["accuracy"]["seen"][-1] = [[10.0] * 5] * 2  # after the last task; ours has 50 on it and 40 before
    found = claims.scoreboard("table1", "mini", results.frame([ours, rival])).iloc[0]
    assert (found[claims.OURS], found[claims.INCREMENTAL]) == ("+0.0", "+32.0")


def test_a_single_claim_is_a_sentence(put):
    for seed, noise in ((42, 0), (1999, 0.1), (2024, 0)):
        put(80, seed=seed)
        put(80 + noise, sweeps.variants("cnns", "mini")[fed_lscl_studies.CNNS[1]], seed)
    said = claims.sentences(claims.scoreboard("cnns", "mini", results.frame("mini", study="cnns")))
    assert said.startswith(
        "- clients may choose their CNN: the loss is less than 1 point (Fig. 4): +0.03 ± 0.14 points"
    )
    assert said.endswith("Verdict: agrees.")


def test_without_records_nothing_is_claimed():
    nothing = claims.scoreboard("cnns", "mini", results.frame("mini", study="cnns"))
    assert nothing.empty and list(nothing.columns) == claims.BOARD and claims.sentences(nothing) == ""
    assert claims.summary(nothing, 24).startswith(
        "Of 24 claims of the paper, these runs find **24** without a run. [The"
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
