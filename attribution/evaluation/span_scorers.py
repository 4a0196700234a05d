"""The scorers of spans that ship: today the rules over the text alone, made into a ranking.

Rules give a state, not a probability. The ranking keeps their order (flagged, undetermined, supported) and
breaks ties by the share of the span's content words that no chunk holds: a stopgap, and labelled as such,
until a calibrated model takes its place behind the same protocol.
"""

from collections.abc import Sequence
from typing import Final

from ragblame.attribution.debugger import Debugger
from ragblame.attribution.evaluation.detection import ScoredSpan
from ragblame.attribution.evaluation.labelled import LabelledAnswer
from ragblame.attribution.evaluation.lexical_baselines import LexicalView
from ragblame.records import Verdict, VerdictKind

# Each state owns a third of [0, 1], and the tie-break stays inside it, short of the next.
_FLAGGED: Final = 2 / 3
_OPEN: Final = 1 / 3
_WIDTH: Final = 0.33


class TextRules:
    """The text-only debugger as a ``SpanScorer``: its verdicts as they ship, no model asked."""

    name: Final = "ragblame, text only"

    def __init__(self) -> None:
        self._debugger = Debugger.text_only()

    def __call__(self, row: LabelledAnswer) -> Sequence[ScoredSpan]:
        explanation = self._debugger.explain(question=row.question, chunks=row.chunks, answer=row.answer)
        view = LexicalView(row)
        return [
            ScoredSpan(
                start=span.start,
                end=span.end,
                score=_tier(verdict) + _WIDTH * view.word_misses(span.start, span.end),
                is_flagged=verdict.is_flagged,
                cause=verdict.cause.value if verdict.cause is not None else "",
                position=support.position,
            )
            for span, verdict, support in zip(
                explanation.spans, explanation.verdicts, explanation.supports, strict=True
            )
        ]


def _tier(verdict: Verdict) -> float:
    if verdict.is_flagged:
        return _FLAGGED
    return _OPEN if verdict.verdict is VerdictKind.UNDETERMINED else 0.0
