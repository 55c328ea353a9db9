"""Which classes a client has, guessed from its uploads.

Some payloads name them: flags, labels, or sums with an entry for each class of the task. A classifier reveals them by
its rows: the rows of classes that the client has not seen hardly change, or all change in the same way. The attacker
guesses as many classes as a task has, which the config says.
"""

import torch
from torch import Tensor

from lscl.experiments.privacy.observed import Observed
from lscl.experiments.privacy.scores import Finding
from lscl.federation.method import HOLDS


def guess_score(observed: Observed, payload: str, knows: str, evidence: Tensor) -> Finding:
    """How many of the client's classes are among those with the strongest evidence.

    Args:
        observed: the client under attack.
        payload: what the evidence was read from.
        knows: what the attacker knows.
        evidence: (C,).

    Returns:
        The finding. Its controls: the classes of another client's task, without those that both have; and the
        histogram of the labels themselves as evidence.
    """
    mine = set(observed.gallery.classes.tolist())
    parts, stage = observed.method.census.parts, observed.stage
    other = next(k for k in [*observed.others, observed.client.id])
    theirs = set(parts.tasks[other][stage.task].classes) - mine
    histogram = torch.from_numpy(observed.method.census.train[observed.client.id, stage.task]).double()
    count = len(mine)
    found, known = (set(values.topk(count).indices.tolist()) for values in (evidence.double(), histogram))
    return Finding(
        "classes",
        payload,
        knows,
        "classes",
        len(found & mine) / count,
        len(found & theirs) / max(1, len(theirs)),
        len(known & mine) / count,
        count / observed.method.num_classes,
        count,
    )


def _labels_in(sent: Tensor | None, classes: int) -> Tensor | None:
    """The labels that a tensor names, as flags or as whole numbers; None if it names none."""
    if sent is None or sent.ndim != 1:
        return None
    if sent.dtype == torch.bool:
        return sent.nonzero().squeeze(1) if len(sent) == classes else None
    whole = not (sent.is_floating_point() or sent.is_complex())
    return sent.long() if whole and bool(((sent >= 0) & (sent < classes)).all()) else None


def guess_classes(observed: Observed) -> list[Finding]:
    """Attack every payload that reveals something about single classes.

    Args:
        observed: the client under attack.

    Returns:
        The findings; nothing if no payload does.
    """
    up, down, classes = observed.up, observed.down, observed.method.num_classes
    findings = []
    for name in sorted((HOLDS, "classes")):
        labels = _labels_in(up.get(name), classes)
        if labels is not None:
            flags = torch.zeros(classes)
            flags[labels] = 1
            findings.append(guess_score(observed, name, "nothing", flags))
    same = [name for name in up if name in down and up[name].shape == down[name].shape]
    rows = [name for name in same if up[name].ndim == 2 and len(up[name]) == classes]
    for name in rows:
        evidence = (up[name] - down[name]).double().norm(dim=1)
        findings.append(guess_score(observed, name, "nothing", evidence))
    if not findings and ("sums" in up or observed.sends_label_sums):  # the server has to know where they belong
        flags = torch.zeros(classes)
        flags[list(observed.method.census.parts.tasks[observed.client.id][observed.stage.task].classes)] = 1
        findings.append(guess_score(observed, "sums by class", "nothing", flags))
    return findings
