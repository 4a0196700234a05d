"""What the queue page shows, read with SQL: flagged spans by severity, traces by time, counts of each filter.

Everything is filtered, ordered and paged by the server (keyset, never OFFSET), so a page costs the same
whether the database holds a hundred traces or ten million. All functions only read.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import DictRow, dict_row

from ragblame.records import Cause, VerdictKind

LONGEST: Final = 600  # code points shown from the start of a flagged span on
PAGE_ROWS: Final = 50
FACET_ROWS: Final = 50_000  # newest matching spans that the counts look at; bounds their cost
RELIED: Final = 1.0  # nats; a smaller share names no chunk as the source of a span
MOST_SAME: Final = 500  # the same failure is counted up to here
CONTEXT: Final = 140  # code points of the sentence shown on either side of a flagged span


class ItemState(StrEnum):
    """Where a flagged span stands in the triage; values are stored."""

    OPEN = "open"
    REVIEWED = "reviewed"
    SNOOZED = "snoozed"


class Progress(StrEnum):
    """How far the worker is with a trace."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    NOT_QUEUED = "not queued"  # stored without a job


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What the page was asked for; ``None`` and the empty text mean no restriction."""

    state: ItemState | None = ItemState.OPEN
    verdict: VerdictKind | None = None
    cause: Cause | None = None
    app: str | None = None
    model: str | None = None
    min_severity: float = 0.0  # [0, 1]
    text: str = ""  # words all of which occur, "quoted phrases", a trace id, run id or session id
    since: datetime | None = None  # traces asked at or after
    progress: Progress | None = None  # only the list of traces looks at it
    same: str = ""  # signature of a failure, or of its document; only flagged spans have one


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The last row of a page: the next page starts behind it."""

    severity: float
    trace_id: UUID
    span: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRow:
    """One flagged span in the queue."""

    trace_id: UUID
    span: int
    severity: float  # [0, 1]
    state: ItemState
    version: int
    assignee: str | None
    verdict: VerdictKind
    cause: Cause | None
    confidence: float | None  # calibrated P(unsupported), [0, 1]
    before: str  # the sentence around the flagged text, cut to CONTEXT code points
    flagged: str
    after: str
    question: str
    app: str
    model: str | None
    source: str | None  # of the chunk that made the model say it, else of the quoted evidence
    asked_at: datetime
    signature: str  # equal for the same failure
    same: int  # traces of the last week with this failure, this one included; at most MOST_SAME

    @property
    def cursor(self) -> Cursor:
        """The place of this row in the order of the queue."""
        return Cursor(severity=self.severity, trace_id=self.trace_id, span=self.span)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePage:
    """At most ``PAGE_ROWS`` rows; ``after`` is None on the last page."""

    rows: tuple[QueueRow, ...]
    after: Cursor | None
    read_at: datetime  # the database's clock


_UUID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)
_WORDS = re.compile(r'"([^"]*)"|([^"\s]+)')


def as_uuid(text: str) -> UUID | None:
    """The UUID that ``text`` spells, or None."""
    return UUID(text.strip()) if _UUID.fullmatch(text.strip()) else None


def text_condition(text: str) -> tuple[str, list[Any]]:
    """SQL over trace ``t`` for a search text, and its parameters; ("", []) for an empty text.

    Nothing in the text is an operator except pairs of double quotes, because what is pasted here is a piece
    of somebody's answer, in which "or" and "-" are just words.
    """
    text = text.replace("\x00", " ").strip()
    if not text:
        return "", []
    if (identity := as_uuid(text)) is not None:
        return "(t.id = %s OR t.root_run_id = %s OR t.session_id = %s)", [identity, identity, text]
    if not re.search(r"\w", text):
        return "strpos(t.question || ' ' || t.answer, %s) > 0", [text]
    queries, params = [], []
    for phrase, word in _WORDS.findall(text):
        queries.append("phraseto_tsquery('simple', %s)" if phrase else "plainto_tsquery('simple', %s)")
        params.append(phrase or word)
    return f"(t.search @@ ({' && '.join(queries)}) OR t.session_id = %s)", [*params, text]


def found_cte(filters: Filters) -> tuple[str, list[Any]]:
    """A CTE of the traces that a search text finds, and its parameters; empty without a text.

    Materialised, because the planner otherwise walks the queue in order and probes the text of every trace.
    """
    condition, params = text_condition(filters.text)
    if not condition:
        return "", []
    if filters.since is not None:
        condition = f"t.id >= ragblame.uuid_floor(%s) AND {condition}"
        params = [filters.since, *params]
    return f"found AS MATERIALIZED (SELECT t.id FROM trace t WHERE {condition}),", params


def trace_conditions(filters: Filters) -> tuple[list[str], list[Any]]:
    """Conditions over trace ``t`` that both lists share: time, app, model, text."""
    where: list[str] = []
    params: list[Any] = []
    if filters.since is not None:
        where.append("t.id >= ragblame.uuid_floor(%s)")
        params.append(filters.since)
    for column, value in (("t.app", filters.app), ("t.model", filters.model)):
        if value is not None:
            where.append(f"{column} = %s")
            params.append(value)
    if text_condition(filters.text)[0]:
        where.append("t.id = ANY(ARRAY(SELECT id FROM found))")
    return where, params


def item_conditions(filters: Filters) -> tuple[list[str], list[Any]]:
    """Conditions over trace ``t``, triage item ``i`` and verdict ``v``."""
    where, params = trace_conditions(filters)
    # Said again of the ordered table, so that its partitions are pruned and its primary key is used.
    if filters.since is not None:
        where.append("i.trace_id >= ragblame.uuid_floor(%s)")
        params.append(filters.since)
    if text_condition(filters.text)[0]:
        where.append("i.trace_id = ANY(ARRAY(SELECT id FROM found))")
    for column, value in (
        ("i.state", filters.state),
        ("v.verdict", filters.verdict),
        ("v.cause", filters.cause),
    ):
        if value is not None:
            where.append(f"{column} = %s")
            params.append(str(value))
    if filters.same:
        where.append("(i.signature = %s OR i.document = %s)")
        params += [filters.same, filters.same]
    if filters.min_severity > 0:
        where.append("i.severity >= %s")
        params.append(filters.min_severity)
    return where, params


def joined(where: list[str]) -> str:
    return " AND ".join(where) if where else "true"


ITEMS = """triage_item i
    JOIN verdict v ON v.trace_id = i.trace_id AND v.span = i.span
    JOIN trace t ON t.id = i.trace_id"""

_QUEUE = """
WITH {found} page AS MATERIALIZED (
    SELECT i.trace_id, i.span, i.severity, i.state, i.version, i.assignee, v.verdict, v.cause, v.confidence,
           v.evidence_position, i.signature
    FROM {items} WHERE {where}
    ORDER BY {order} LIMIT %s),
same AS MATERIALIZED (  -- once for each failure on the page, and bounded
    SELECT w.signature, (
        SELECT count(DISTINCT s.trace_id) FROM (
            SELECT o.trace_id FROM triage_item o
            WHERE o.signature = w.signature AND o.trace_id >= ragblame.uuid_floor(now() - interval '7 days')
            LIMIT {most_same}) s) AS traces
    FROM (SELECT DISTINCT signature FROM page) w)
SELECT p.trace_id, p.span, p.severity, p.state, p.version, p.assignee, p.verdict, p.cause, p.confidence,
       p.signature, greatest(1, (SELECT traces FROM same WHERE same.signature = p.signature)) AS same,
       t.app, t.model, t.started_at AS asked_at, left(t.question, 400) AS question,
       s.start_at, s.end_at, w.start_at AS window_start,
       substr(t.answer, w.start_at + 1, w.end_at - w.start_at) AS words,
       left(coalesce(c.metadata ->> 'source', c.metadata ->> 'title', c.source_id), 200) AS source
FROM page p
JOIN trace t ON t.id = p.trace_id
JOIN answer_span s ON s.trace_id = p.trace_id AND s.span = p.span
CROSS JOIN LATERAL (  -- the part of the sentence to show, cut out once: an answer may be a megabyte
    SELECT greatest(s.sentence_start, s.start_at - {context}) AS start_at,
           least(greatest(s.sentence_end, s.end_at), s.end_at + {context}, s.start_at + {longest})
               AS end_at) w
LEFT JOIN LATERAL (
    SELECT h.position FROM share h
    WHERE h.trace_id = p.trace_id AND h.span = p.span AND h.method = 'shapley' AND h.value >= {relied}
    ORDER BY h.value DESC LIMIT 1) top ON true
LEFT JOIN trace_chunk c
    ON c.trace_id = p.trace_id AND c.position = coalesce(top.position, p.evidence_position)
ORDER BY {page_order}"""

_BEHIND = "(i.severity < %s OR (i.severity = %s AND (i.trace_id < %s OR (i.trace_id = %s AND i.span > %s))))"
_BEFORE = "(i.severity > %s OR (i.severity = %s AND (i.trace_id > %s OR (i.trace_id = %s AND i.span < %s))))"


def _read_rows(
    conn: Connection[Any], filters: Filters, cursor: Cursor | None, limit: int, *, backwards: bool = False
) -> list[QueueRow]:
    where, params = item_conditions(filters)
    if cursor is not None:
        where.append(_BEFORE if backwards else _BEHIND)
        params += [cursor.severity, cursor.severity, cursor.trace_id, cursor.trace_id, cursor.span]
    order = (
        "{0}.severity, {0}.trace_id, {0}.span DESC"
        if backwards
        else ("{0}.severity DESC, {0}.trace_id DESC, {0}.span")
    )
    cte, found = found_cte(filters)
    query = _QUEUE.format(
        found=cte,
        items=ITEMS,
        where=joined(where),
        order=order.format("i"),
        page_order=order.format("p"),
        context=CONTEXT,
        longest=LONGEST,
        relied=RELIED,
        most_same=MOST_SAME,
    )
    with conn.cursor(row_factory=dict_row) as dicts:
        rows = dicts.execute(query.encode(), [*found, *params, limit]).fetchall()
    return [_queue_row(row) for row in rows]


def _queue_row(row: DictRow) -> QueueRow:
    start, end, offset = row.pop("start_at"), row.pop("end_at"), row.pop("window_start")
    words = row.pop("words")
    enums = {
        "state": ItemState(row["state"]),
        "verdict": VerdictKind(row["verdict"]),
        "cause": None if row["cause"] is None else Cause(row["cause"]),
    }
    return QueueRow(
        before=words[: start - offset],
        flagged=words[start - offset : end - offset],
        after=words[end - offset :],
        **row | enums,
    )


def read_queue(conn: Connection[Any], filters: Filters, after: Cursor | None = None) -> QueuePage:
    """The most severe flagged spans that match, newest first among equals."""
    rows = _read_rows(conn, filters, after, PAGE_ROWS + 1)
    more = len(rows) > PAGE_ROWS
    shown = tuple(rows[:PAGE_ROWS])
    clock = conn.execute("SELECT now()").fetchone()
    assert clock is not None
    return QueuePage(rows=shown, after=shown[-1].cursor if more else None, read_at=clock[0])


def read_neighbours(
    conn: Connection[Any], filters: Filters, at: Cursor
) -> tuple[QueueRow | None, QueueRow | None]:
    """The rows right before and behind ``at`` in the queue, whether or not ``at`` itself still matches."""
    before = _read_rows(conn, filters, at, 1, backwards=True)
    behind = _read_rows(conn, filters, at, 1)
    return (before[0] if before else None), (behind[0] if behind else None)
