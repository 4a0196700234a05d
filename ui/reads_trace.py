"""What the trace page shows: an explanation, how far the worker is, and what people did about its spans.

Token heats are read only for the span and method on screen, because they are by far the largest part.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import DictRow, dict_row

from ragblame.attribution.jobs.provenance import read_provenance
from ragblame.attribution.jobs.stored import read_explanation
from ragblame.attribution.verdicts.provenance import Provenance
from ragblame.records import (
    Alignment,
    AlignmentState,
    Attribution,
    Cause,
    Explanation,
    Method,
    Review,
    Span,
    Support,
    TokenHeat,
    Trace,
    Verdict,
    VerdictKind,
)
from ragblame.traces import TASK, read_trace
from ragblame.ui.reads import ItemState, Progress
from ragblame.ui.reads_traces import PROGRESS_SQL


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """The queue's entry for a flagged span."""

    span: int
    state: ItemState
    severity: float  # [0, 1]
    version: int  # optimistic lock, handed back with a review
    assignee: str | None
    leased_until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TracePage:
    """Everything about one trace but token heats; mappings are by span number or chunk position."""

    explanation: Explanation  # without heats; empty when the trace was not attributed yet
    progress: Progress
    error: str | None  # of the last attribution: one line with the next step
    finished_at: datetime | None  # of the last attribution
    is_rerun_waiting: bool  # results are shown, and a newer job waits
    items: Mapping[int, Item]
    reviews: Mapping[int, tuple[Review, ...]]  # newest first; negative numbers: spans that are cut no more
    heat_methods: tuple[Method, ...]
    verdicts: Mapping[int, Verdict]
    supports: Mapping[int, Support]
    alignments: Mapping[int, Alignment]
    attributions: Mapping[tuple[int, Method], Attribution]
    provenance: Mapping[int, Provenance] = field(default_factory=dict)  # the chain behind each verdict

    @property
    def trace(self) -> Trace:
        """The recorded question, chunks, prompt and answer."""
        return self.explanation.trace

    @property
    def spans(self) -> tuple[Span, ...]:
        """The checkable pieces of the answer."""
        return self.explanation.spans

    def span_text(self, span: Span) -> str:
        """The words of the answer that a span covers."""
        return self.trace.answer[span.start : span.end]

    def shares(self, span: int, method: Method) -> dict[int, float]:
        """Share by chunk position; chunks that do not stand in the prompt took no part and are left out."""
        attribution = self.attributions.get((span, method))
        if attribution is None:
            return {}
        positions = sorted(chunk.position for chunk in self.trace.chunks)
        return {
            position: share
            for position, share in zip(positions, attribution.shares, strict=True)
            if position not in self.alignments
            or self.alignments[position].state is not AlignmentState.MISSING
        }

    def worst_span(self) -> Span | None:
        """The span to look at first: the most severe one, else the first."""
        return max(self.spans, key=lambda span: (self._severity(span.index), -span.index), default=None)

    def _severity(self, span: int) -> float:
        return self.verdicts[span].severity if span in self.verdicts else 0.0


_STATE: Final = f"""
SELECT {PROGRESS_SQL} AS progress, r.error, r.finished_at, r.state IS NOT NULL AND EXISTS (
           SELECT FROM jobs.procrastinate_jobs j
           WHERE j.queueing_lock = '{TASK}-' || t.id AND j.status = 'todo') AS is_rerun_waiting
FROM trace t LEFT JOIN attribution_run r ON r.trace_id = t.id WHERE t.id = %s"""


def read_trace_page(conn: Connection[Any], trace_id: UUID) -> TracePage:
    """Read everything about a trace. Raises ``InputError`` when there is none with that id."""
    explanation = read_explanation(conn, trace_id, with_heats=False) or _unexplained(
        read_trace(conn, trace_id)
    )
    with conn.cursor(row_factory=dict_row) as cursor:

        def rows(query: str) -> list[DictRow]:
            return cursor.execute(query.encode(), (trace_id,)).fetchall()

        state = rows(_STATE)[0]
        items = rows(
            "SELECT span, state, severity, version, assignee, leased_until FROM triage_item"
            " WHERE trace_id = %s"
        )
        reviews = rows(
            "SELECT id, trace_id, span, reviewer, verdict, cause, note, created_at FROM review"
            " WHERE trace_id = %s ORDER BY created_at DESC, id DESC"
        )
        heats = rows("SELECT DISTINCT method FROM token_heat WHERE trace_id = %s")
    stored = {Method(row["method"]) for row in heats}
    return TracePage(
        explanation=explanation,
        progress=Progress(state["progress"]),
        error=state["error"],
        finished_at=state["finished_at"],
        is_rerun_waiting=state["is_rerun_waiting"],
        items={row["span"]: Item(**row | {"state": ItemState(row["state"])}) for row in items},
        reviews=_reviews(reviews),
        heat_methods=tuple(method for method in Method if method in stored),
        verdicts={verdict.span: verdict for verdict in explanation.verdicts},
        supports={support.span: support for support in explanation.supports},
        alignments={alignment.position: alignment for alignment in explanation.alignments},
        attributions={(entry.span, entry.method): entry for entry in explanation.attributions},
        provenance={entry.span: entry for entry in read_provenance(conn, explanation)},
    )


def read_heats(conn: Connection[Any], trace_id: UUID, span: int, method: Method) -> dict[int, TokenHeat]:
    """Token heats of one span by chunk position."""
    found = conn.execute(
        "SELECT position, starts, ends, heat FROM token_heat"
        " WHERE trace_id = %s AND span = %s AND method = %s",
        (trace_id, span, method.value),
    ).fetchall()
    return {
        position: TokenHeat(
            span=span,
            position=position,
            method=method,
            starts=tuple(starts),
            ends=tuple(ends),
            values=tuple(values),
        )
        for position, starts, ends, values in found
    }


def _unexplained(trace: Trace) -> Explanation:
    """A trace no worker has finished: everything but the trace is empty."""
    return Explanation(
        trace=trace,
        scorer=None,
        fitness=None,
        alignments=(),
        spans=(),
        attributions=(),
        heats=(),
        supports=(),
        verdicts=(),
        coalitions=None,
    )


def _reviews(rows: list[DictRow]) -> dict[int, tuple[Review, ...]]:
    by_span: dict[int, list[Review]] = defaultdict(list)
    for row in rows:
        enums = {
            "verdict": VerdictKind(row["verdict"]),
            "cause": None if row["cause"] is None else Cause(row["cause"]),
        }
        by_span[row["span"]].append(Review(**row | enums))
    return {span: tuple(found) for span, found in by_span.items()}
