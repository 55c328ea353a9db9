"""What the paper states about its studies, and what our records say to each statement."""

from dataclasses import dataclass

import pandas as pd

from lscl.errors import unknown_name
from lscl.experiments.sweeps import variants
from lscl.methods.parts.fed_lscl_studies import BLOCKS, CNNS
from lscl.results.frames import final_by_seed
from lscl.results.labels import DATASET_LABELS, MASK_LABELS, SCORES
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
