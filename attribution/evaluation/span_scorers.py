"""The scorers of spans that ship: the debugger on text alone, with the support model or with rules only.

With a support model a span's score is the fused probability. Rules alone give a state, not a probability:
their ranking keeps the order (flagged, undetermined, supported) and breaks ties by the share of the span's
content words that no chunk holds, a stopgap that is labelled as such.
"""

from collections.abc import Sequence
from typing import Final

from ragblame.attribution.debugger import Debugger
from ragblame.attribution.evaluation.detection import ScoredSpan
from ragblame.attribution.evaluation.labelled import LabelledAnswer
from ragblame.attribution.evaluation.lexical_baselines import LexicalView
from ragblame.attribution.verdicts.learned import SupportReader
from ragblame.errors import ModelError
from ragblame.records import Verdict, VerdictKind

# Each state owns a third of [0, 1], and the tie-break stays inside it, short of the next.
_FLAGGED: Final = 2 / 3
_OPEN: Final = 1 / 3
_WIDTH: Final = 0.33


class TextOnly:
    """The debugger without a scorer as a ``SpanScorer``: its verdicts as they ship."""

    def __init__(self, support_reader: SupportReader | None = None) -> None:
        """``support_reader``: None for rules alone."""
        self.name = "ragblame, rules alone" if support_reader is None else "ragblame"
        self._has_reader = support_reader is not None
        self._debugger = Debugger.text_only(support_reader=support_reader)

    def __call__(self, row: LabelledAnswer) -> Sequence[ScoredSpan]:
        """Raises ``ModelError`` when the support model cannot read the answer: rules would be another
        method."""
        explanation = self._debugger.explain(question=row.question, chunks=row.chunks, answer=row.answer)
        # Spans far behind in a very long answer are not read; then the rules' order stands in for them.
        if (
            self._has_reader
            and explanation.supports
            and all(support.probability is None for support in explanation.supports)
        ):
            raise ModelError(f"{row.id}: {' '.join(explanation.notes)}")
        view = LexicalView(row)
        found = []
        for span, verdict, support in zip(
            explanation.spans, explanation.verdicts, explanation.supports, strict=True
        ):
            score = support.probability
            if score is None:
                score = _tier(verdict) + _WIDTH * view.word_misses(span.start, span.end)
            found.append(
                ScoredSpan(
                    start=span.start,
                    end=span.end,
                    score=score,
                    is_flagged=verdict.is_flagged,
                    cause=verdict.cause.value if verdict.cause is not None else "",
                    position=support.position,
                )
            )
        return found


def _tier(verdict: Verdict) -> float:
    if verdict.is_flagged:
        return _FLAGGED
    return _OPEN if verdict.verdict is VerdictKind.UNDETERMINED else 0.0
