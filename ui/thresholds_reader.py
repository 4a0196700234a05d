"""The support model as the debugger uses it, for fitting thresholds: how doubtful each span is."""

from collections.abc import Sequence

from ragblame.attribution.debugger import Debugger
from ragblame.attribution.evaluation.detection import ScoredSpan
from ragblame.attribution.evaluation.labelled import LabelledAnswer
from ragblame.errors import ModelError


class SpanReader:
    """Reads labelled answers; ``model`` is known after the first."""

    def __init__(self, debugger: Debugger) -> None:
        """``debugger``: one that has a support model and no scorer."""
        self._debugger = debugger
        self.model = ""

    def __call__(self, row: LabelledAnswer) -> Sequence[ScoredSpan]:
        """Raises ``ModelError`` where no support model gives the spans a probability."""
        explanation = self._debugger.explain(question=row.question, chunks=row.chunks, answer=row.answer)
        found = []
        for span, support in zip(explanation.spans, explanation.supports, strict=True):
            if support.probability is None or support.model is None:
                raise ModelError(
                    "no support model reads the answers, so there is no probability to calibrate: set "
                    "RAGBLAME_SUPPORT_MODEL=shipped, or name one; the notes of `ragblame explain` say more"
                )
            if self.model not in ("", support.model):
                raise ModelError(f"two support models read the answers, {self.model} and {support.model}")
            self.model = support.model
            found.append(
                ScoredSpan(
                    start=span.start, end=span.end, score=support.probability, position=support.position
                )
            )
        return found
