"""What the trace page shows: one trace with alignments, spans, numbers, verdicts, queue items and reviews.

The same records that cross every other floor, read with SQL; heat maps of tokens are read only for the span
and method on screen, because they are by far the largest part.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import DictRow, dict_row

from ragblame.records import (
    Alignment,
    AlignmentState,
    Attribution,
    Basis,
    Cause,
    Cost,
    Fitness,
    Method,
    Review,
    ScorerRef,
    Span,
    SpanKind,
    Support,
    SupportState,
    TokenHeat,
    Trace,
    Verdict,
    VerdictKind,
)
from ragblame.traces import read_trace
from ragblame.ui.reads import PROGRESS_SQL, ItemState, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the worker did about a trace, and with what."""

    error: str | None  # one line with the next step, when it failed
    scorer: ScorerRef | None
    fitness: Fitness | None
    notes: tuple[str, ...]
    cost: Cost
    finished_at: datetime


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
    """Everything about one trace but token heats."""

    trace: Trace
    recorded_at: datetime
    progress: Progress
    is_rerun_waiting: bool  # results are shown, and a newer job waits or runs
    run: Run | None
    alignments: Mapping[int, Alignment]  # by chunk position
    spans: tuple[Span, ...]
    attributions: Mapping[tuple[int, Method], Attribution]  # by span and method
    computed: Mapping[tuple[int, Method], frozenset[int]]  # chunk positions that really have a share
    supports: Mapping[int, Support]  # by span
    verdicts: Mapping[int, Verdict]
    items: Mapping[int, Item]
    reviews: Mapping[int, tuple[Review, ...]]  # newest first
    heat_methods: tuple[Method, ...]

    def span_text(self, span: Span) -> str:
        """The words of the answer that a span covers."""
        return self.trace.answer[span.start : span.end]

    def worst_span(self) -> Span | None:
        """The span to look at first: the most severe one, else the first."""
        ranked = sorted(
            self.spans, key=lambda span: (-self._severity(span.index), not self._is_flagged(span.index))
        )
        return ranked[0] if ranked else None

    def _severity(self, span: int) -> float:
        return self.verdicts[span].severity if span in self.verdicts else 0.0

    def _is_flagged(self, span: int) -> bool:
        return span in self.verdicts and self.verdicts[span].is_flagged


_STATE: Final = f"""
SELECT t.recorded_at, {PROGRESS_SQL} AS progress, r.*,
       EXISTS (SELECT FROM jobs.procrastinate_jobs j
               WHERE j.queueing_lock = 'attribute-' || t.id AND j.status = 'todo') AS waiting
FROM trace t LEFT JOIN attribution_run r ON r.trace_id = t.id WHERE t.id = %s"""


def read_trace_page(conn: Connection[Any], trace_id: UUID) -> TracePage:
    """Read everything about a trace. Raises ``InputError`` when there is none with that id."""
    trace = read_trace(conn, trace_id)
    with conn.cursor(row_factory=dict_row) as cursor:

        def rows(query: str) -> list[DictRow]:
            return cursor.execute(query.encode(), (trace_id,)).fetchall()

        state = rows(_STATE)[0]
        verdict_rows = rows("SELECT * FROM verdict WHERE trace_id = %s ORDER BY span")
        attributions, computed = _attributions(
            rows("SELECT * FROM attribution WHERE trace_id = %s ORDER BY span, method"),
            rows("SELECT span, method, position, value FROM share WHERE trace_id = %s"),
            size=1 + max((chunk.position for chunk in trace.chunks), default=-1),
        )
        return TracePage(
            trace=trace,
            recorded_at=state["recorded_at"],
            progress=Progress(state["progress"]),
            is_rerun_waiting=state["state"] is not None and state["waiting"],
            run=None if state["state"] is None else _run(state),
            alignments={
                row["position"]: _alignment(row)
                for row in rows("SELECT * FROM alignment WHERE trace_id = %s ORDER BY position")
            },
            spans=tuple(
                _span(row) for row in rows("SELECT * FROM answer_span WHERE trace_id = %s ORDER BY span")
            ),
            attributions=attributions,
            computed=computed,
            supports={row["span"]: _support(row) for row in verdict_rows},
            verdicts={row["span"]: _verdict(row) for row in verdict_rows},
            items={
                row["span"]: Item(
                    span=row["span"],
                    state=ItemState(row["state"]),
                    severity=row["severity"],
                    version=row["version"],
                    assignee=row["assignee"],
                    leased_until=row["leased_until"],
                )
                for row in rows("SELECT * FROM triage_item WHERE trace_id = %s")
            },
            reviews=_reviews(
                rows("SELECT * FROM review WHERE trace_id = %s ORDER BY created_at DESC, id DESC")
            ),
            heat_methods=tuple(
                Method(row["method"])
                for row in rows("SELECT DISTINCT method FROM token_heat WHERE trace_id = %s ORDER BY method")
            ),
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


def _run(row: DictRow) -> Run:
    scorer = None
    if row["scorer"] is not None:
        scorer = ScorerRef(
            name=row["scorer"], revision=row["revision"] or "", is_own_model=bool(row["is_own_model"])
        )
    fitness = None
    if row["fitness"] is not None and row["is_fit"] is not None:
        fitness = Fitness(
            is_fit=row["is_fit"],
            answer_nats=row["fitness"]["answer_nats"],
            unigram_nats=row["fitness"]["unigram_nats"],
            reason=row["fitness"]["reason"],
        )
    return Run(
        error=row["error"],
        scorer=scorer,
        fitness=fitness,
        notes=tuple(row["notes"]),
        cost=Cost(
            scored_coalitions=row["scored_coalitions"],
            forwards=row["forwards"],
            backwards=row["backwards"],
            tokens=row["tokens"],
            seconds=row["seconds"],
        ),
        finished_at=row["finished_at"],
    )


def _alignment(row: DictRow) -> Alignment:
    found = None if row["found_start"] is None else (row["found_start"], row["found_end"])
    return Alignment(
        position=row["position"],
        state=AlignmentState(row["state"]),
        message=row["message"],
        start=row["start_at"],
        end=row["end_at"],
        found=found,
    )


def _span(row: DictRow) -> Span:
    return Span(
        index=row["span"],
        start=row["start_at"],
        end=row["end_at"],
        kind=SpanKind(row["kind"]),
        sentence_start=row["sentence_start"],
        sentence_end=row["sentence_end"],
    )


def _attributions(
    heads: list[DictRow], shares: list[DictRow], size: int
) -> tuple[dict[tuple[int, Method], Attribution], dict[tuple[int, Method], frozenset[int]]]:
    values: dict[tuple[int, str], dict[int, float]] = defaultdict(dict)
    for row in shares:
        values[row["span"], row["method"]][row["position"]] = row["value"]
    attributions, computed = {}, {}
    for row in heads:
        found = values[row["span"], row["method"]]
        key = (row["span"], Method(row["method"]))
        computed[key] = frozenset(found)
        attributions[key] = Attribution(
            span=row["span"],
            method=Method(row["method"]),
            shares=tuple(found.get(position, 0.0) for position in range(size)),
            v_all=row["v_all"],
            v_none=row["v_none"],
            reliance=row["reliance"],
            noise_floor=row["noise_floor"],
            completeness_gap=row["completeness_gap"],
            settings_hash=row["settings_hash"],
            cost=Cost(
                scored_coalitions=row["scored_coalitions"],
                forwards=row["forwards"],
                backwards=row["backwards"],
                tokens=row["tokens"],
                seconds=row["seconds"],
            ),
        )
    return attributions, computed


def _support(row: DictRow) -> Support:
    return Support(
        span=row["span"],
        state=SupportState(row["support"]),
        rule=row["support_rule"],
        position=row["evidence_position"],
        evidence_start=row["evidence_start"],
        evidence_end=row["evidence_end"],
        stated=row["stated"],
        other_positions=tuple(row["support_positions"]),
    )


def _verdict(row: DictRow) -> Verdict:
    return Verdict(
        span=row["span"],
        verdict=VerdictKind(row["verdict"]),
        cause=None if row["cause"] is None else Cause(row["cause"]),
        basis=Basis(row["basis"]),
        confidence=row["confidence"],
        severity=row["severity"],
        explanation=row["explanation"],
        fix=row["fix"],
        evidence=tuple(row["evidence"]),
        other_causes=tuple(Cause(cause) for cause in row["other_causes"]),
        reliance_measurable=row["reliance_measurable"],
        thresholds_version=row["thresholds_version"],
    )


def _reviews(rows: list[DictRow]) -> dict[int, tuple[Review, ...]]:
    by_span: dict[int, list[Review]] = defaultdict(list)
    for row in rows:
        by_span[row["span"]].append(
            Review(
                id=row["id"],
                trace_id=row["trace_id"],
                span=row["span"],
                reviewer=row["reviewer"],
                verdict=VerdictKind(row["verdict"]),
                cause=None if row["cause"] is None else Cause(row["cause"]),
                note=row["note"],
                created_at=row["created_at"],
            )
        )
    return {span: tuple(found) for span, found in by_span.items()}
