"""What the paper states about the studies of `lscl.results.studies`, and what our records say to each statement."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lscl.errors import unknown
from lscl.experiments.sweeps import variants
from lscl.methods.parts.fed_lscl_studies import BLOCKS, CNNS
from lscl.results.report import DATASET_LABELS, MASK_LABELS, Summary, published_losses, summary
from lscl.results.studies import FACTORS, SCORES, Study, added, differences, shown


@dataclass(frozen=True)
class Claim:
    """A statement of the paper about final accuracies, as we test it: sign * (variant - beside) < margin, in percentage points.

    says: the statement; source: where the paper makes it. beside = WITHOUT: `variant` is a component, and the difference is what it
    adds on average (`studies.added`).
    """

    says: str
    source: str
    variant: str
    beside: str
    sign: int = 1
    margin: float = 0.0

    @property
    def compared(self) -> str:
        """What the difference is one of, as the start of a sentence that ends with its points."""
        return f"{self.variant}: on average" if self.beside == WITHOUT else f"{self.variant} minus {self.beside} is"

    def differences(self, study: Study, mask: str) -> np.ndarray:
        """variant - beside in points for every seed that has both: (seeds,)."""
        found = added(study, mask) if self.beside == WITHOUT else differences(study, self.beside, mask)
        return found.get(self.variant, np.zeros(0))

    def verdict(self, difference: Summary) -> str:
        """What the 95 % interval of variant - beside says to it: an entry of JUDGEMENTS."""
        if difference.n == 1:
            return OPEN
        middle = self.sign * difference.mean
        if middle + difference.half_width < self.margin:
            return AGREES
        return CONTRADICTS if middle - difference.half_width > self.margin else OPEN


WITHOUT = "the subsets without it"
AGREES, CONTRADICTS, OPEN = "Agrees with the paper", "Does not agree with the paper", "Cannot be concluded from these runs"
MISSING = "Not yet measured"
JUDGEMENTS = (AGREES, CONTRADICTS, OPEN)
MARGIN = 1.0  # points; what still counts as equal
_ADDS = (
    ("W", "an update written per image is better than a static one", "section 4.2"),
    ("S", "SM-CF makes the system better", "Table 2"),
    ("O", "O2D makes the system better", "Table 2"),
)


def claims(name: str, profile: str) -> list[Claim]:
    """The paper's statements that the study `name` can test in a profile."""
    depth = BLOCKS[profile]
    late = range(depth - depth // 4, depth)  # 9, 10 and 11 of 12
    found = {
        "ablations": [
            Claim("without O2D the system is worse", "Table 2", "no O2D", "whole"),
            Claim("without SM-CF it is worse", "Table 2", "no SM-CF", "whole"),
            Claim("without both it is worse", "Table 2", "neither O2D nor SM-CF", "whole"),
            Claim("without the large model it is worse", "Table 2", "CNN alone", "whole"),
            Claim("one static update for all images is worse than one written per image", "section 4.2", "static LoRA for the written one", "whole"),
            *(Claim(f"{says}, on average over the other components", source, FACTORS[key], WITHOUT, -1) for key, says, source in _ADDS),
        ],
        "blocks": [
            Claim(f"block {block}, in the last quarter of the model, is worse than block 3", "Fig. 3", f"block {block}", "block 3") for block in late
        ],
        "buffers": [
            Claim("with an empty buffer the system is worse", "Fig. 5", "0 per class", "20 per class"),
            Claim(f"20 images per class are enough: 50 are less than {MARGIN:g} point better", "Fig. 5", "50 per class", "20 per class", 1, MARGIN),
        ],
        "cnns": [Claim(f"clients may choose their CNN: the loss is less than {MARGIN:g} point", "Fig. 4", CNNS[1], CNNS[0], -1, MARGIN)],
    }
    if name not in found:
        raise unknown("study", name, found)
    return [claim for claim in found[name] if {claim.variant, claim.beside} <= {*variants(name, profile), *FACTORS.values(), WITHOUT}]


def judge(study: Study, mask: str) -> str:
    """Every statement of the paper that the study tests, sorted by what its records say to it under `mask`, as a list of lists in markdown."""
    sorted_out: dict[str, list[str]] = {verdict: [] for verdict in (*JUDGEMENTS, MISSING)}
    for claim in claims(study.name, study.profile):
        text, values = f"{claim.says} ({claim.source})", claim.differences(study, mask)
        if not len(values):
            sorted_out[MISSING].append(text)
            continue
        gap = summary(values)
        spread = f"95 % interval {gap.interval}, n = {gap.n}" if gap.n > 1 else "one seed"
        sorted_out[claim.verdict(gap)].append(f"{text}: {claim.compared} {gap.mean:+.1f} points ({spread})")
    lines = [line for verdict, found in sorted_out.items() if found for line in (f"- **{verdict}:**", *(f"  - {text}" for text in found))]
    return "\n".join(lines or ["- The paper states nothing that can be tested in this profile."])


def judged(studies: Sequence[Study]) -> str:
    """`judge` for each data set that has records, under the paper's score and the class-incremental one, as markdown."""
    parts = []
    for study in shown(studies):
        for mask in SCORES if study.found else SCORES[:1]:
            title = f"{DATASET_LABELS[study.dataset]}, {MASK_LABELS[mask]}" if study.found else DATASET_LABELS[study.dataset]
            parts.append(f"**{title}**\n\n{judge(study, mask)}")
    return "\n\n".join(parts)


def losses(study: Study) -> str:
    """The largest loss of a variant against the whole system beside the published ones, a sentence; empty if there is nothing to compare."""
    theirs, gaps = published_losses(study.dataset), differences(study, "whole", "task")
    if not theirs or not gaps:
        return ""
    least = min(gaps, key=lambda name: gaps[name].mean())
    return (
        f"On {DATASET_LABELS[study.dataset]} the three incomplete systems of the paper's Table 2 lie {min(theirs):.1f} to {max(theirs):.1f} points "
        f"below its whole one. Of the {len(gaps)} variants measured here the lowest beside ours is *{least}*, {gaps[least].mean():+.1f} points."
    )
