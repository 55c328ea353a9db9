"""The paper's claims about accuracy and privacy, tested against our records; effect sizes next to the paper's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from lscl.errors import unknown_name
from lscl.experiments.sweeps import variants
from lscl.methods.parts.fed_lscl_studies import BLOCKS, CNNS, TUNED_PROFILES
from lscl.registry import METHODS
from lscl.results.frames import final_by_seed, final_rows, just_learned_rows
from lscl.results.labels import DATASET_LABELS, SCORES, label_of, paper_names
from lscl.results.privacy import best_membership
from lscl.results.published import published_losses, published_table1
from lscl.results.statistics import Estimate, differences_from, estimate
from lscl.results.studies import FACTORS, component_effects

SUBSETS_WITHOUT = "the subsets without it"
AGREES, CONTRADICTS, OPEN = (
    "Agrees with the paper",
    "Does not agree with the paper",
    "Cannot be concluded from these runs",
)
MISSING = "Not yet measured"
MARGIN = 1.0  # points; what still counts as equal
# The named sets of runs that test a claim.
CLAIMED = ("table1", "ablations", "blocks", "buffers", "cnns", "larger_rate")
KINDS = {  # what a test of a claim can come to, and what the summary says of such claims
    "agrees": "supported",
    "contradicts": "contradicted",
    "smaller": "of the right sign, but at least {times:g} times smaller",
    "absent": "without an effect near the paper's size",
    "open": "open, because they have fewer than {least} seeds or too wide an interval",
    "missing": "without a run",
}
_ADDS = (
    ("W", "an update written per image is better than a static one", "section 4.2"),
    ("S", "SM-CF makes the system better", "Table 2"),
    ("O", "O2D makes the system better", "Table 2"),
)
# Another kind of processor moves a trained system about as much as another seed does. Only an interval over several
# runs contains both.
LEAST_SEEDS = 3
TIMES = 2.0  # by what factor two effects may differ and still be called of similar size


@dataclass(frozen=True)
class Claim:
    """A claim of the paper about accuracies, as we test it: sign * (variant - reference) < margin.

    statement: in words; source: where the paper makes it; margin: percentage points. With reference = SUBSETS_WITHOUT,
    `variant` is a component, and the difference is what it adds on average (`studies.component_effects`). In the claims
    of Table 1 both are systems.
    """

    statement: str
    source: str
    variant: str
    reference: str
    sign: int = 1
    margin: float = 0.0

    def effects(self, by_seed: pd.DataFrame) -> pd.Series:
        """Points in favour of the claim, for every seed that has both sides.

        Args:
            by_seed: accuracies (%), a row per seed and a column per variant or system.

        Returns:
            sign * (reference - variant): the claim holds where this is above -margin.
        """
        found = (
            component_effects(by_seed)
            if self.reference == SUBSETS_WITHOUT
            else differences_from(by_seed, self.reference)
        )
        return -self.sign * found[self.variant].dropna() if self.variant in found else pd.Series(dtype=float)

    def published(self, dataset: str) -> list[float]:
        """The paper's effects that may be the one of this claim, in points in its favour; [] if it prints none.

        Args:
            dataset: one data set.

        Returns:
            One number for a claim of Table 1. Table 2 does not say which of its rows is which, so a claim of it has
            several.
        """
        if self.source == "Table 1":
            means = published_table1(dataset).groupby("method")["accuracy"].mean()
            both = {self.variant, self.reference} <= set(means.index)
            return [float(means[self.variant] - means[self.reference])] if both else []
        return published_losses(dataset) if self.source == "Table 2" and self.reference != SUBSETS_WITHOUT else []

    def weigh(self, effect: Estimate, published: Sequence[float] = ()) -> tuple[str, str]:
        """The verdict: the 95 % interval decides the sign, and the size is compared with the paper's.

        Args:
            effect: points in favour of the claim.
            published: the paper's, as `published` gives them.

        Returns:
            (an entry of KINDS, the verdict in words).
        """
        if effect.n < LEAST_SEEDS:
            return "open", f"open: {'one seed' if effect.n == 1 else f'{effect.n} seeds'}"
        low, high = effect.mean - effect.half_width, effect.mean + effect.half_width
        least, most = (min(published), max(published)) if published else (0.0, 0.0)
        if high < -self.margin:
            return "contradicts", "contradicted: the sign is the opposite" if not self.margin else "contradicted"
        if low > -self.margin:
            if self.margin or least <= 0:
                return "agrees", "agrees"
            if effect.mean * TIMES <= least:
                return "smaller", f"same sign, {_times(least / effect.mean)} times smaller"
            if effect.mean >= TIMES * most:
                return "agrees", f"agrees, {_times(effect.mean / most)} times larger"
            return "agrees", "agrees, with an effect of similar size"
        if least > 0 and high * TIMES <= least:
            return (
                "absent",
                f"no effect seen; at most 1/{least / high:.0f} of the paper's" if high > 0 else "no effect seen",
            )
        return "open", "open: the interval contains both answers"


def _times(ratio: float) -> str:
    """A ratio as text: two digits are enough to weigh it."""
    return f"{ratio:.1f}" if ratio < 9.5 else f"{float(f'{ratio:.1e}'):.0f}"


def claims_of(name: str, profile: str) -> list[Claim]:
    """The paper's claims that a named set of runs can test.

    Args:
        name: an entry of CLAIMED.
        profile: whose variants the set has.

    Returns:
        the claims about systems, or about variants that exist in the profile.

    Raises:
        LsclError: the paper claims nothing about such a set.
    """
    if name not in CLAIMED:
        raise unknown_name("study", name, CLAIMED)
    if name == "table1":
        return _about_systems()
    there = variants(name, profile)
    if name != "larger_rate":
        known = {*there, *FACTORS.values(), SUBSETS_WITHOUT}
        return [claim for claim in _about_studies(profile)[name] if {claim.variant, claim.reference} <= known]
    if profile not in TUNED_PROFILES:  # all its runs have this rate
        return []
    return [
        replace(claim, statement=f"{claim.statement}, at a larger rate of the generator", reference="whole")
        for found in _about_studies(profile).values()
        for claim in found
        if claim.variant in there
    ]


def _about_systems() -> list[Claim]:
    """Table 1: the paper's own system against every other one."""
    own = METHODS.find_role("own")
    return [
        Claim(f"{label_of(own)} is more accurate than {label_of(rival)}", "Table 1", own, rival, -1)
        for rival in paper_names().values()
        if rival != own
    ]


def _about_studies(profile: str) -> dict[str, list[Claim]]:
    """Table 2 and Fig. 3 to 5, by the name of the study."""
    depth = BLOCKS[profile]
    late = range(depth - depth // 4, depth)  # 9, 10 and 11 of 12
    return {
        "ablations": [
            Claim("without O2D the system is worse", "Table 2", "no O2D", "whole"),
            Claim("without SM-CF it is worse", "Table 2", "no SM-CF", "whole"),
            Claim("without both it is worse", "Table 2", "neither O2D nor SM-CF", "whole"),
            Claim("without the large model it is worse", "Table 2", "CNN alone", "whole"),
            Claim(
                "an update written per image is better than one static update",
                "section 4.2",
                "static LoRA for the written one",
                "whole",
            ),
            *(
                Claim(f"{says}, on average over the other components", source, FACTORS[key], SUBSETS_WITHOUT, -1)
                for key, says, source in _ADDS
            ),
        ],
        "blocks": [
            Claim(
                f"block {block}, in the last quarter of the model, is worse than block 3",
                "Fig. 3",
                f"block {block}",
                "block 3",
            )
            for block in late
        ],
        "buffers": [
            Claim("with an empty buffer the system is worse", "Fig. 5", "0 per class", "20 per class"),
            Claim(
                f"20 images per class are enough: 50 are less than {MARGIN:g} point better",
                "Fig. 5",
                "50 per class",
                "20 per class",
                1,
                MARGIN,
            ),
        ],
        "cnns": [
            Claim(
                f"clients may choose their CNN: the loss is less than {MARGIN:g} point",
                "Fig. 4",
                CNNS[1],
                CNNS[0],
                -1,
                MARGIN,
            )
        ],
    }


def scoreboard(name: str, profile: str, scores: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims that a named set of runs tests, each with our effect, the paper's effect and the verdict.

    Args:
        name: an entry of CLAIMED.
        profile: of the runs.
        scores: their accuracies on one data set, see `lscl.results.frame`.

    Returns:
        pandas.DataFrame: a row per claim that has runs; columns claim, source, n; points in favour of the claim under
            the paper's score and under the class-incremental one at the end, ± half of the 95 % interval; the paper's
            points; the verdict on the paper's score, in words; and kind, an entry of KINDS.
    """
    rows_under = lambda mask: scores[scores["mask"] == mask]
    task, seen = _tested(name, rows_under(SCORES[0]), learned=True), _tested(name, rows_under(SCORES[1]), learned=False)
    rows = []
    for claim in claims_of(name, profile):
        found, other = claim.effects(task), claim.effects(seen)
        if found.empty:
            continue
        effect, (dataset,) = estimate(found), scores["dataset"].unique()
        theirs = claim.published(dataset)
        kind, verdict = claim.weigh(effect, theirs)
        rows.append(
            (
                claim.statement,
                claim.source,
                str(effect.n),
                effect.signed,
                _range(theirs) or (f"above -{claim.margin:g}" if claim.margin else "–"),
                verdict,
                estimate(other).signed if len(other) else "–",
                kind,
            )
        )
    return pd.DataFrame(rows, columns=BOARD)


CLAIM, OURS, THEIRS = "the paper's claim", "our effect, points", "the paper's, points"
INCREMENTAL = "class-incremental, at the end"
BOARD = [CLAIM, "source", "n", OURS, THEIRS, "verdict", INCREMENTAL, "kind"]


def _tested(name: str, scores: pd.DataFrame, learned: bool) -> pd.DataFrame:
    """What the claims of a set compare, by seed: all tasks at the end, but the task just learned if Table 1 has it."""
    if name != "table1":
        return final_rows(scores).pivot_table("accuracy", "seed", "variant", sort=False)
    first = scores.drop_duplicates("method")["label"]  # of a system's rows
    rows = (just_learned_rows if learned else final_rows)(scores[scores["label"].isin(first)])
    return rows.pivot_table("accuracy", "seed", "method", sort=False)


def _range(values: Sequence[float]) -> str:
    """A few effects as text: the smallest to the largest."""
    return " to ".join(dict.fromkeys(f"{value:+.1f}" for value in sorted(values)[:: max(1, len(values) - 1)]))


def sentences(board: pd.DataFrame) -> str:
    """A scoreboard as a list in markdown, where a table would have one row.

    Args:
        board: rows of `scoreboard`.

    Returns:
        a line per claim; empty without rows.
    """
    return "\n".join(
        f"- {row[CLAIM]} ({row['source']}): {row[OURS]} points task-masked (n = {row['n']}), "
        f"{row[INCREMENTAL]} class-incremental at the end. Verdict: {row['verdict']}."
        for _, row in board.iterrows()
    )


def summary(board: pd.DataFrame, total: int) -> str:
    """A scoreboard in one sentence; if claims have no run, another one says where the commands are.

    Args:
        board: rows of `scoreboard`.
        total: how many claims there are.

    Returns:
        text.
    """
    counts = board["kind"].value_counts().to_dict() | {"missing": total - len(board)}
    said = [
        f"**{counts[kind]}** {words.format(times=TIMES, least=LEAST_SEEDS)}"
        for kind, words in KINDS.items()
        if counts.get(kind)
    ]
    command = " [The state of the records](../book/status.md) has the commands." if counts["missing"] else ""
    return f"Of {total} claims of the paper, these runs find {'; '.join(said)}.{command}"


def also_true_of(control: str, scores: pd.DataFrame) -> str:
    """Which claims of Table 1 hold for a control as well, in words: they cannot show what the paper's system adds.

    Args:
        control: a registered system that has no part of the paper's own.
        scores: rows of `lscl.results.frame` of Table 1 on one data set.

    Returns:
        two sentences; empty if there is no such claim.
    """
    by_seed = _tested("table1", scores[scores["mask"] == SCORES[0]], learned=True)
    own, rivals = METHODS.find_role("own"), [claim.reference for claim in _about_systems()]
    if not {own, control} <= set(by_seed):
        return ""
    lead = lambda name, rival: estimate((by_seed[name] - by_seed[rival]).dropna())
    both = [one for one in rivals if one in by_seed and lead(own, one).side == lead(control, one).side == 1]
    if not both:
        return ""
    least, most = (find(lead(control, one).mean for one in both) for find in (min, max))
    return (
        f"The {label_of(control)} has no part of {label_of(own)}, and it is ahead of "
        f"{', '.join(map(label_of, both))} as well, by {least:.1f} to {most:.1f} points. So these rows say that the "
        f"frozen model helps, not that {label_of(own)} does."
    )


def compare_losses(scores: pd.DataFrame) -> str:
    """The largest loss of a variant against the whole system beside the published losses, in words.

    Args:
        scores: accuracies of the ablations on one data set, see `lscl.results.frame`.

    Returns:
        two sentences; empty if there is nothing to compare.
    """
    dataset = scores["dataset"].iloc[0]
    by_seed = final_by_seed(scores, "task", "variant")
    theirs, gaps = published_losses(dataset), differences_from(by_seed, "whole")
    if not theirs or gaps.empty or not len(gaps.columns):
        return ""
    return (
        f"In the paper's Table 2, on {DATASET_LABELS[dataset]}, the three incomplete systems are "
        f"{min(theirs):.1f} to {max(theirs):.1f} points below the whole one. Of the {len(gaps.columns)} variants "
        f"measured here, {_lowest(gaps)} our whole system, seed by seed."
    )


def _lowest(gaps: pd.DataFrame) -> str:
    """Which variant is the lowest, in words that go before "our whole system"; a difference of 0.0 names nobody."""
    means = gaps.mean()
    if means.min() > -0.05:
        return "none is more than 0.05 points below"
    return f"*{means.idxmin()}* is the lowest: {estimate(-gaps[means.idxmin()].dropna())} points below"


# ---- privacy

EVEN = 0.05  # share; what still counts as no better than chance


@dataclass(frozen=True)
class PrivacyClaim:
    """A statement of the paper about privacy (section 5.3.1, in our words), as we test it: the gap is below a margin.

    statement: in words; tested: what is measured; gap: findings of one data set -> the gap of every seed; margin: of
    the gap, as a share.
    """

    statement: str
    tested: str
    gap: Callable[[pd.DataFrame], pd.Series]
    margin: float = EVEN

    def verdict(self, found: pd.Series) -> str:
        """What the 95 % interval of the gap says to the statement: AGREES, CONTRADICTS, OPEN or MISSING.

        Args:
            found: the gap of every seed.
        """
        if found.empty:
            return MISSING
        gap = estimate(found)
        if gap.n == 1:
            return OPEN
        if gap.mean + gap.half_width < self.margin:
            return AGREES
        return CONTRADICTS if gap.mean - gap.half_width > self.margin else OPEN


def _own_system(findings: pd.DataFrame) -> pd.DataFrame:
    """The rows of the paper's system without a defence."""
    return findings[(findings["method"] == METHODS.find_role("own")) & (findings["defence"] == "")]


def _above_chance(payload: str, knows: str, score: str) -> Callable[[pd.DataFrame], pd.Series]:
    """The largest value minus chance, seed by seed, of one kind of attack on the paper's system.

    Args:
        payload: the tensors.
        knows: how what the attacker knows begins.
        score: which one.

    Returns:
        findings -> the gap by seed.
    """

    def gap(findings: pd.DataFrame) -> pd.Series:
        rows = _own_system(findings)
        rows = rows[(rows["payload"] == payload) & (rows["score"] == score) & rows["knows"].str.startswith(knows)]
        return (rows["value"] - rows["chance"]).groupby(rows["seed"]).max()

    return gap


def _beside_others(findings: pd.DataFrame) -> pd.Series:
    """The best membership attack on the paper's system minus the mean over the other systems of theirs, by seed.

    No attacker has more than a server has.
    """
    best = best_membership(findings[findings["defence"] == ""]).reset_index()
    best = best.pivot_table("auc", "seed", "label")
    own = label_of(METHODS.find_role("own"))
    others = best.drop(columns=own, errors="ignore")
    return (best[own] - others.mean(axis=1)).dropna() if own in best and len(others.columns) else pd.Series(dtype=float)


PRIVACY_CLAIMS = (
    PrivacyClaim(
        "what goes up does not show the images",
        "right image of 100 from the features, without the client's CNN, minus chance",
        _above_chance("features", "own CNN", "top1"),
    ),
    PrivacyClaim(
        "what goes up does not show the images",
        "the same for a server that also knows half of the kept images",
        _above_chance("features", "aligned CNN", "top1"),
    ),
    PrivacyClaim(
        "since the CNN stays, the generator says nothing of the data",
        "membership by the generator's change, AUC minus one half",
        _above_chance("weight", "own CNN", "auc"),
    ),
    PrivacyClaim(
        "since the CNN stays, the generator says nothing of the data",
        "classes of the task guessed from the generator's bias, minus chance",
        _above_chance("bias", "", "classes"),
    ),
    PrivacyClaim(
        "the protection is strong, compared with that of other systems",
        "best membership AUC of a server on it, minus the mean of those on the other systems",
        _beside_others,
        0.0,
    ),
)


def judge_privacy(findings: pd.DataFrame) -> str:
    """The paper's statements on privacy, sorted by what the records say to them, for each data set.

    Args:
        findings: see `lscl.results.privacy.findings_frame`.

    Returns:
        markdown; every statement as not yet measured if there are no rows.
    """
    parts = []
    for dataset, part in findings.groupby("dataset") if len(findings) else [("", findings)]:
        lines = []
        for claim in PRIVACY_CLAIMS:
            values = claim.gap(part)
            line = f"- **{claim.verdict(values)}:** {claim.statement}. *Tested:* {claim.tested}"
            if len(values):
                gap = estimate(100 * values)
                line += (
                    f": {gap.signed} points (n = {gap.n}); the statement holds if this is below {100 * claim.margin:g}"
                )
            lines.append(f"{line}.")
        title = f"**{DATASET_LABELS[dataset]}**\n\n" if dataset else ""
        parts.append(title + "\n".join(lines))
    return "\n\n".join(parts)
