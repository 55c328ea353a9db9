"""What the paper states about its studies and about privacy, and what our records say to each statement."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from lscl.errors import unknown_name
from lscl.experiments.sweeps import variants
from lscl.methods.parts.fed_lscl_studies import BLOCKS, CNNS
from lscl.registry import METHODS
from lscl.results.frames import final_by_seed
from lscl.results.labels import DATASET_LABELS, MASK_LABELS, SCORES, label_of
from lscl.results.privacy import best_membership
from lscl.results.published import published_losses
from lscl.results.statistics import Estimate, differences_from, estimate
from lscl.results.studies import FACTORS, Study, component_effects


@dataclass(frozen=True)
class Claim:
    """A statement of the paper about final accuracies, as we test it: sign * (variant - reference) < margin.

    statement: in words; source: where the paper makes it; margin: percentage points. With reference = SUBSETS_WITHOUT,
    `variant` is a component, and the difference is what it adds on average (`studies.component_effects`).
    """

    statement: str
    source: str
    variant: str
    reference: str
    sign: int = 1
    margin: float = 0.0

    @property
    def comparison(self) -> str:
        """The start of a sentence that ends with the points of the difference."""
        return (
            f"{self.variant}: on average"
            if self.reference == SUBSETS_WITHOUT
            else f"{self.variant} minus {self.reference} is"
        )

    def gaps(self, by_seed: pd.DataFrame) -> pd.Series:
        """variant - reference in points for every seed that has both.

        Args:
            by_seed: final accuracies, a row per seed and a column per variant.
        """
        found = (
            component_effects(by_seed)
            if self.reference == SUBSETS_WITHOUT
            else differences_from(by_seed, self.reference)
        )
        return found[self.variant].dropna() if self.variant in found else pd.Series(dtype=float)

    def verdict(self, difference: Estimate) -> str:
        """What the 95 % interval of variant - reference says to the statement: an entry of JUDGEMENTS."""
        if difference.n == 1:
            return OPEN
        middle = self.sign * difference.mean
        if middle + difference.half_width < self.margin:
            return AGREES
        return CONTRADICTS if middle - difference.half_width > self.margin else OPEN


SUBSETS_WITHOUT = "the subsets without it"
AGREES, CONTRADICTS, OPEN = (
    "Agrees with the paper",
    "Does not agree with the paper",
    "Cannot be concluded from these runs",
)
MISSING = "Not yet measured"
JUDGEMENTS = (AGREES, CONTRADICTS, OPEN)
MARGIN = 1.0  # points; what still counts as equal
_ADDS = (
    ("W", "an update written per image is better than a static one", "section 4.2"),
    ("S", "SM-CF makes the system better", "Table 2"),
    ("O", "O2D makes the system better", "Table 2"),
)


def claims_of(name: str, profile: str) -> list[Claim]:
    """The paper's statements that a study can test.

    Args:
        name: ablations, blocks, buffers or cnns.
        profile: whose variants the study has.

    Returns:
        the statements about variants that exist in the profile.

    Raises:
        LsclError: the paper says nothing about such a study.
    """
    depth = BLOCKS[profile]
    late = range(depth - depth // 4, depth)  # 9, 10 and 11 of 12
    found = {
        "ablations": [
            Claim("without O2D the system is worse", "Table 2", "no O2D", "whole"),
            Claim("without SM-CF it is worse", "Table 2", "no SM-CF", "whole"),
            Claim("without both it is worse", "Table 2", "neither O2D nor SM-CF", "whole"),
            Claim("without the large model it is worse", "Table 2", "CNN alone", "whole"),
            Claim(
                "one static update for all images is worse than one written per image",
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
    if name not in found:
        raise unknown_name("study", name, found)
    return [
        claim
        for claim in found[name]
        if {claim.variant, claim.reference} <= {*variants(name, profile), *FACTORS.values(), SUBSETS_WITHOUT}
    ]


def judge(name: str, profile: str, by_seed: pd.DataFrame) -> str:
    """Every statement of the paper that a study tests, sorted by what its records say to it.

    Args:
        name: the study.
        profile: of its runs.
        by_seed: final accuracies (%) under one score, a row per seed and a column per variant.

    Returns:
        a list of lists in markdown.
    """
    sorted_out: dict[str, list[str]] = {verdict: [] for verdict in (*JUDGEMENTS, MISSING)}
    for claim in claims_of(name, profile):
        text, values = f"{claim.statement} ({claim.source})", claim.gaps(by_seed)
        if values.empty:
            sorted_out[MISSING].append(text)
            continue
        gap = estimate(values)
        spread = f"95 % interval {gap.interval}, n = {gap.n}" if gap.n > 1 else "one seed"
        sorted_out[claim.verdict(gap)].append(f"{text}: {claim.comparison} {gap.mean:+.1f} points ({spread})")
    lines = [
        line
        for verdict, found in sorted_out.items()
        if found
        for line in (f"- **{verdict}:**", *(f"  - {text}" for text in found))
    ]
    return "\n".join(lines or ["- The paper states nothing that can be tested in this profile."])


def judge_datasets(study: Study, scores: pd.DataFrame) -> str:
    """`judge` for each data set that has records, under the paper's score and the class-incremental one.

    Args:
        study: whose statements.
        scores: its accuracies, see `lscl.results.frame`.

    Returns:
        markdown with a title for each data set and score.
    """
    if scores.empty:
        return f"**{DATASET_LABELS[study.datasets[0]]}**\n\n{judge(study.name, study.profile, pd.DataFrame())}"
    parts = []
    for dataset in sorted(scores["dataset"].unique()):
        part = scores[scores["dataset"] == dataset]
        for mask in SCORES:
            title = f"{DATASET_LABELS[dataset]}, {MASK_LABELS[mask]}"
            parts.append(f"**{title}**\n\n{judge(study.name, study.profile, final_by_seed(part, mask, 'variant'))}")
    return "\n\n".join(parts)


def compare_losses(scores: pd.DataFrame) -> str:
    """The largest loss of a variant against the whole system beside the published losses, in words.

    Args:
        scores: accuracies of the ablations on one data set, see `lscl.results.frame`.

    Returns:
        two sentences; empty if there is nothing to compare.
    """
    dataset = scores["dataset"].iloc[0]
    by_seed = final_by_seed(scores, "task", "variant")
    theirs, gaps = published_losses(dataset), differences_from(by_seed, "whole").mean()
    if not theirs or gaps.empty:
        return ""
    return (
        f"On {DATASET_LABELS[dataset]} the three incomplete systems of the paper's Table 2 lie "
        f"{min(theirs):.1f} to {max(theirs):.1f} points below its whole one. Of the {len(gaps)} variants measured here "
        f"the lowest beside ours is *{gaps.idxmin()}*, {gaps.min():+.1f} points."
    )


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
        """What the 95 % interval of the gap says to the statement: an entry of JUDGEMENTS, or MISSING.

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
        "the protection is strong, beside that of other systems",
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
                spread = f"95 % interval {gap.interval}, n = {gap.n}" if gap.n > 1 else "one seed"
                line += f": {gap.mean:+.1f} points ({spread}); it would have to stay below {100 * claim.margin:g}"
            lines.append(f"{line}.")
        title = f"**{DATASET_LABELS[dataset]}**\n\n" if dataset else ""
        parts.append(title + "\n".join(lines))
    return "\n\n".join(parts)
