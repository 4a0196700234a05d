"""The list of all traces, newest first, whatever became of them: attributed, waiting or failed."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import dict_row

from ragblame.records import TraceStatus, VerdictKind
from ragblame.traces import TASK
from ragblame.ui.reads import PAGE_ROWS, Filters, Progress, found_cte, joined, trace_conditions


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One trace, whatever became of it."""

    trace_id: UUID
    asked_at: datetime
    app: str
    model: str | None
    question: str
    answer: str  # its beginning
    status: TraceStatus
    progress: Progress
    error: str | None  # of the attribution
    spans: int
    flagged: int
    worst: VerdictKind | None  # verdict of the most severe span
    severity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TracesPage:
    """At most ``PAGE_ROWS`` traces, newest first; ``before`` is None on the last page."""

    rows: tuple[TraceRow, ...]
    before: UUID | None


# A waiting job is found by procrastinate's partial unique index, a running one by its index on working jobs.
PROGRESS_SQL: Final = f"""CASE
    WHEN r.state IS NOT NULL THEN r.state
    WHEN EXISTS (SELECT FROM jobs.procrastinate_jobs j
                 WHERE j.queueing_lock = '{TASK}-' || t.id AND j.status = 'todo') THEN 'queued'
    WHEN EXISTS (SELECT FROM jobs.procrastinate_jobs j
                 WHERE j.worker_id IS NOT NULL AND j.status = 'doing'
                   AND j.queueing_lock = '{TASK}-' || t.id) THEN 'running'
    ELSE 'not queued' END"""

_TRACES = """
WITH {found} page AS MATERIALIZED (
    SELECT t.id, {progress} AS progress, r.error FROM trace t
    LEFT JOIN attribution_run r ON r.trace_id = t.id
    WHERE {where} ORDER BY t.id DESC LIMIT %s)
SELECT t.id AS trace_id, t.started_at AS asked_at, t.app, t.model, left(t.question, 400) AS question,
       left(t.answer, 400) AS answer, t.status, p.progress, p.error, coalesce(n.spans, 0) AS spans,
       coalesce(n.flagged, 0) AS flagged, w.verdict AS worst, coalesce(w.severity, 0) AS severity
FROM page p JOIN trace t ON t.id = p.id
LEFT JOIN LATERAL (
    SELECT count(*) AS spans, count(i.span) AS flagged
    FROM verdict v LEFT JOIN triage_item i ON i.trace_id = v.trace_id AND i.span = v.span
    WHERE v.trace_id = p.id) n ON true
LEFT JOIN LATERAL (
    SELECT v.verdict, v.severity FROM verdict v WHERE v.trace_id = p.id
    ORDER BY v.severity DESC, v.span LIMIT 1) w ON true
ORDER BY t.id DESC"""


def read_traces(conn: Connection[Any], filters: Filters, before: UUID | None = None) -> TracesPage:
    """All traces that match, newest first, also those no worker has seen yet."""
    where, params = trace_conditions(filters)
    if before is not None:
        where.append("t.id < %s")
        params.append(before)
    if filters.progress is not None:
        where.append(f"({PROGRESS_SQL}) = %s")
        params.append(str(filters.progress))
    cte, found = found_cte(filters)
    query = _TRACES.format(found=cte, progress=PROGRESS_SQL, where=joined(where))
    with conn.cursor(row_factory=dict_row) as dicts:
        rows = dicts.execute(query.encode(), [*found, *params, PAGE_ROWS + 1]).fetchall()
    shown = tuple(
        TraceRow(
            **row
            | {
                "status": TraceStatus(row["status"]),
                "progress": Progress(row["progress"]),
                "worst": None if row["worst"] is None else VerdictKind(row["worst"]),
            }
        )
        for row in rows[:PAGE_ROWS]
    )
    return TracesPage(rows=shown, before=shown[-1].trace_id if len(rows) > PAGE_ROWS else None)
