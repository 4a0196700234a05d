"""How bad a flagged span is: probability that it is wrong, times harm, raised by how often it happens.

The queue is ordered by it, so each factor is kept with the verdict and shown. Traffic multiplies the odds of
probability x harm instead of the product: the result stays below 1, a failure seen once keeps its product,
and a hundred wrong numbers still come before a hundred wrong clauses, where a cut at 1 would make them equal.
"""

import math
from dataclasses import dataclass
from typing import Final

from ragblame.records import Basis, Cause, SpanKind, Support, SupportState, Verdict

# How bad a wrong span of each kind is for whoever acts on the answer, [0, 1].
HARM: Final = {
    SpanKind.NUMBER: 0.9,
    SpanKind.DATE: 0.9,
    SpanKind.NEGATION: 0.9,
    SpanKind.NAME: 0.8,
    SpanKind.QUOTE: 0.75,
    SpanKind.CLAUSE: 0.6,
}
MEASURED: Final = (
    0.92  # of what is flagged where a scorer measured it, in the known-cause world (evaluation.md)
)
BY_TEXT: Final = 0.85  # where only the text was checked and nothing is calibrated
DOUBTED: Final = 0.4  # probability that a supported answer is wrong, where its source is doubtful
STALE: Final = 0.7  # harm of a supported value that a newer row of the corpus contradicts
MOST_TRAFFIC: Final = 4.0  # factor on the odds, from MOST_SEEN traces on
MOST_SEEN: Final = 1_000
TRAFFIC_DAYS: Final = 7  # traces of so many days count


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """What a severity is made of."""

    probability: float  # that the span is wrong, [0, 1]
    is_calibrated: bool  # False: by the rule that fired
    harm: float  # to whoever acts on the answer, [0, 1]
    seen: int = 1  # traces of TRAFFIC_DAYS with the same failure (its signature), this one included; >= 1

    @property
    def traffic(self) -> float:
        """Factor on the odds, [1, MOST_TRAFFIC]: one more for ten times as often."""
        return traffic(self.seen)

    @property
    def severity(self) -> float:
        """[0, 1]."""
        return round(raised(self.probability * self.harm, self.traffic), 3)


def traffic(seen: int) -> float:
    """1 for what was seen once, MOST_TRAFFIC from MOST_SEEN times on, by the logarithm between."""
    return 1.0 + (MOST_TRAFFIC - 1.0) * min(1.0, math.log(max(1, seen)) / math.log(MOST_SEEN))


def raised(product: float, factor: float) -> float:
    """A number of [0, 1] with its odds multiplied by ``factor`` >= 1; for a factor of 1 the same number."""
    return product if factor == 1.0 else product * factor / (1 - product + product * factor)


def weigh(kind: SpanKind, verdict: Verdict, support: Support, seen: int = 1) -> Factors:
    """The factors of a flagged span's severity; all zero for one that is not flagged."""
    if not verdict.is_flagged:
        return Factors(probability=0.0, is_calibrated=False, harm=0.0, seen=max(1, seen))
    harm = HARM[kind]
    if support.state is SupportState.CONTRADICTED:
        harm = 1.0 if harm >= HARM[SpanKind.NAME] else harm + 0.2
    elif verdict.cause is Cause.BORROWED:
        harm = min(1.0, harm + 0.05)
    is_calibrated = False
    if verdict.cause is Cause.STALE_SOURCE:
        probability, harm = 1.0, STALE
    elif support.state is SupportState.ENTAILED:
        probability = DOUBTED * (BY_TEXT if verdict.basis is Basis.SUPPORT_ONLY else MEASURED)
    elif verdict.basis is not Basis.SUPPORT_ONLY:
        probability = MEASURED  # its numbers decided; what is calibrated is about text alone
    elif verdict.confidence is not None:
        probability, is_calibrated = verdict.confidence, True
    else:
        probability = BY_TEXT
    return Factors(
        probability=round(probability, 3), is_calibrated=is_calibrated, harm=round(harm, 3), seen=max(1, seen)
    )
