"""The support model as the debugger uses it, for fitting thresholds: how doubtful each span is."""

from collections.abc import Sequence

from ragblame.attribution.debugger import Debugger
from ragblame.attribution.evaluation.detection import ScoredSpan
from ragblame.attribution.evaluation.labelled import LabelledAnswer
from ragblame.errors import ModelError


class SupportReader:
    """Reads labelled answers; ``model`` is known after the first."""

    def __init__(self, debugger: Debugger | None = None) -> None:
        """``debugger``: None for one that reads text alone, as it ships."""
        self._debugger = debugger or Debugger.text_only()
        self.model = ""

    def __call__(self, row: LabelledAnswer) -> Sequence[ScoredSpan]:
        """Raises ``ModelError`` where no support model gives the spans a probability."""
        explanation = self._debugger.explain(question=row.question, chunks=row.chunks, answer=row.answer)
        found = []
        for span, support in zip(explanation.spans, explanation.supports, strict=True):
            if support.probability is None or support.model is None:
                raise ModelError(
                    "no support model reads the answers, so there is no probability to calibrate: install "
                    "ragblame[attribution], and see `ragblame doctor`"
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
