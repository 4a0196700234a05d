"""What people decided, as labels for fitting thresholds: reviewed spans with the number a model gave them."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from ragblame.attribution.evaluation.detection import ScoredSpan, with_worst_span
from ragblame.attribution.evaluation.labelled import Label, LabelledAnswer
from ragblame.attribution.evaluation.threshold_fit import Judged
from ragblame.errors import InputError
from ragblame.records import VerdictKind

UNSUPPORTED: Final = (VerdictKind.DISTORTED.value, VerdictKind.FABRICATED.value)

# The last word on each span; what a person left undetermined is no label. A span that a rerun cuts no more
# has a negative number and no verdict, so it drops out.
_REVIEWED = """
SELECT r.trace_id, t.question, t.answer, s.start_at, s.end_at, r.verdict, r.flagged_as, v.support_model,
       v.support_probability
FROM (SELECT DISTINCT ON (trace_id, span) trace_id, span, verdict, flagged_as FROM ragblame.review
      ORDER BY trace_id, span, created_at DESC, id DESC) r
JOIN ragblame.answer_span s ON s.trace_id = r.trace_id AND s.span = r.span
JOIN ragblame.verdict v ON v.trace_id = r.trace_id AND v.span = r.span
JOIN ragblame.trace t ON t.id = r.trace_id
WHERE r.verdict <> 'undetermined' AND v.support_probability IS NOT NULL AND v.support_model IS NOT NULL
ORDER BY r.trace_id, s.start_at
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewed:
    """Reviews as labels."""

    judged: list[Judged]
    model: str  # that gave the numbers
    source: str  # for the record of the promise


def read_reviewed(conn: Connection[Any]) -> Reviewed:
    """All reviewed spans that the most frequent support model read; a question is one source.

    Reviewers see what was flagged, so what was missed altogether is rare among these labels: the promise is
    about spans like those that people look at, and ``source`` says how many of them were not flagged.
    Raises ``InputError`` when nothing was reviewed.
    """
    rows = conn.execute(_REVIEWED).fetchall()
    if not rows:
        raise InputError(
            "no reviewed span has a probability of a support model: review spans on the triage page, or give "
            "labelled answers with --labels"
        )
    model: str = Counter(row[7] for row in rows).most_common(1)[0][0]
    kept = [row for row in rows if row[7] == model]
    by_trace: dict[UUID, list[tuple[Any, ...]]] = defaultdict(list)
    for row in kept:
        by_trace[row[0]].append(row)
    unflagged = sum(row[6] not in UNSUPPORTED for row in kept)
    return Reviewed(
        judged=[_judged(trace_id, spans) for trace_id, spans in by_trace.items()],
        model=model,
        source=f"reviews of {len(kept):,} spans, {unflagged:,} of them not flagged",
    )


def _judged(trace_id: UUID, rows: list[tuple[Any, ...]]) -> Judged:
    _, question, answer, *_ = rows[0]
    source = " ".join(question.casefold().split())
    row = LabelledAnswer(
        id=str(trace_id),
        dataset="reviews",
        source_id=source,
        question=question,
        chunks=(),
        answer=answer,
        labels=tuple(
            Label(start=start, end=end, type=verdict)
            for _, _, _, start, end, verdict, *_ in rows
            if verdict in UNSUPPORTED
        ),
        support_sets=(),
        model="",
    )
    spans = [ScoredSpan(start=r[3], end=r[4], score=r[8]) for r in rows]
    return Judged(source=source, scored=with_worst_span(row, spans))
