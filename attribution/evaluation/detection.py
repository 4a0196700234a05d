"""What there is to detect in labelled answers, and what a method says about it: answers, spans, characters.

The three units pose one question: which items are rightly flagged, and how much of what was wanted is found.
Here they become arrays that ``sweep.py`` measures; a label of a kind that is not counted makes what it
touches count neither way, since flagging it is neither right nor wrong.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ragblame.attribution.evaluation.labelled import Label, LabelledAnswer

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredSpan:
    """A piece of an answer with how doubtful it looks."""

    start: int  # code points in the answer
    end: int
    score: float  # [0, 1], higher is more likely unsupported
    is_flagged: bool = False  # by the scorer's own rule, if it has one
    cause: str = ""  # why it was flagged
    position: int | None = None  # chunk that says it, or comes nearest to


class SpanScorer(Protocol):
    """Anything that finds doubtful spans: rules today, a learned model as well."""

    def __call__(self, row: LabelledAnswer) -> Sequence[ScoredSpan]:
        """Disjoint spans of the answer, in order; it must not look at the labels."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredAnswer:
    """One answer as one method sees it."""

    row: LabelledAnswer
    spans: tuple[ScoredSpan, ...]
    score: float  # [0, 1], of the whole answer

    @property
    def is_flagged(self) -> bool:
        """An answer is flagged when one of its spans is."""
        return any(span.is_flagged for span in self.spans)


def with_worst_span(row: LabelledAnswer, spans: Sequence[ScoredSpan]) -> ScoredAnswer:
    """An answer is as doubtful as its most doubtful span; without spans not at all.

    Raises ``ValueError`` for spans that overlap, leave the answer, or are scored outside [0, 1]: a scorer at
    fault must not pass for a bad one.
    """
    at = 0
    for span in spans:
        if not at <= span.start < span.end <= len(row.answer) or not 0.0 <= span.score <= 1.0:
            raise ValueError(f"{row.id}: no span of its answer, or out of order: {span}")
        at = span.end
    return ScoredAnswer(row=row, spans=tuple(spans), score=max((s.score for s in spans), default=0.0))


Counted: TypeAlias = Callable[[Label], bool]  # which labels are to be found; the others count neither way


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Scored things; arrays [things]."""

    row: NDArray[np.intp]  # index of the answer
    score: Floats  # -inf: never found, whatever the threshold
    weight: Floats  # how many it stands for
    is_flagged: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """What is judged at one level, which of it is rightly flagged, and what there is to be found."""

    judged: Points
    is_right: NDArray[np.bool_]  # [judged]
    wanted: Points


def answers(scored: Sequence[ScoredAnswer], counted: Counted) -> Items:
    """Answers; wanted are those with a label. One with none but other labels is left out."""
    rows, scores, flagged, right = [], [], [], []
    for index, answer in enumerate(scored):
        is_wanted = any(counted(label) for label in answer.row.labels)
        if answer.row.labels and not is_wanted:
            continue
        rows.append(index)
        scores.append(answer.score)
        flagged.append(answer.is_flagged)
        right.append(is_wanted)
    judged = _points(rows, scores, [1.0] * len(rows), flagged)
    return _found_by_themselves(judged, np.array(right, dtype=np.bool_))


def characters(scored: Sequence[ScoredAnswer], counted: Counted) -> Items:
    """Characters, with the score of the span that covers them and 0 outside of every span.

    Equal neighbours are one item of their common weight. Characters under none but other labels are left out.
    """
    rows, scores, weights, flagged, right = [], [], [], [], []
    for index, answer in enumerate(scored):
        length = len(answer.row.answer)
        score, flag, label = np.zeros(length), np.zeros(length, np.bool_), np.zeros(length, np.int8)
        for span in answer.spans:
            score[span.start : span.end] = span.score
            flag[span.start : span.end] = span.is_flagged
        for is_wanted in (False, True):  # the wanted ones last: they win where labels overlap
            for each in answer.row.labels:
                if counted(each) is is_wanted:
                    label[each.start : each.end] = 1 if is_wanted else -1
        changes = (np.diff(score) != 0) | np.diff(flag) | (np.diff(label) != 0)
        borders = np.concatenate(([0], np.flatnonzero(changes) + 1, [length]))
        for start, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
            if label[start] >= 0:
                rows.append(index)
                scores.append(float(score[start]))
                weights.append(float(end - start))
                flagged.append(bool(flag[start]))
                right.append(label[start] == 1)
    return _found_by_themselves(_points(rows, scores, weights, flagged), np.array(right, dtype=np.bool_))


def spans(scored: Sequence[ScoredAnswer], counted: Counted) -> Items:
    """Spans, right when they overlap a label by a character or more; wanted are the labels themselves.

    A label is found when any span that overlaps it is flagged, so its score is the highest of theirs. Spans
    that overlap none but other labels are left out.
    """
    judged: list[tuple[int, float, bool, bool]] = []  # answer, score, flagged, right
    wanted: list[tuple[int, float, bool]] = []
    for index, answer in enumerate(scored):
        labels = answer.row.labels
        for span in answer.spans:
            met = [label for label in labels if label.start < span.end and span.start < label.end]
            is_right = any(counted(label) for label in met)
            if is_right or not met:
                judged.append((index, span.score, span.is_flagged, is_right))
        for label in labels:
            if counted(label):
                over = [span for span in answer.spans if label.start < span.end and span.start < label.end]
                score = max((span.score for span in over), default=-np.inf)
                wanted.append((index, score, any(span.is_flagged for span in over)))
    rows, scores, flagged = [x[0] for x in judged], [x[1] for x in judged], [x[2] for x in judged]
    found = [x[0] for x in wanted], [x[1] for x in wanted], [1.0] * len(wanted), [x[2] for x in wanted]
    return Items(
        judged=_points(rows, scores, [1.0] * len(rows), flagged),
        is_right=np.array([x[3] for x in judged], dtype=np.bool_),
        wanted=_points(*found),
    )


def _points(
    rows: Sequence[int], scores: Sequence[float], weights: Sequence[float], flagged: Sequence[bool]
) -> Points:
    return Points(
        row=np.array(rows, dtype=np.intp),
        score=np.array(scores, dtype=np.float64),
        weight=np.array(weights, dtype=np.float64),
        is_flagged=np.array(flagged, dtype=np.bool_),
    )


def _found_by_themselves(judged: Points, is_right: NDArray[np.bool_]) -> Items:
    """Where what is judged is also what is wanted."""
    wanted = Points(
        row=judged.row[is_right],
        score=judged.score[is_right],
        weight=judged.weight[is_right],
        is_flagged=judged.is_flagged[is_right],
    )
    return Items(judged=judged, is_right=is_right, wanted=wanted)
