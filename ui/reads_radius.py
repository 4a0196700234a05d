"""How far a failure reaches: traces of a day and a week that share it, its document, its cause, its chunk."""

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from ragblame.ui.reads import as_uuid

MOST: Final = 2_000  # rows looked at for each line, newest first; bounds the cost
OWN_TABLE: Final = "ragblame.chunk"
_SPAN: Final = "now() - interval '7 days'"

# Each source gives (trace_id) of the week; the day is counted out of the same rows.
_COUNT = """
SELECT count(DISTINCT trace_id) FILTER (WHERE trace_id >= ragblame.uuid_floor(now() - interval '1 day')),
       count(DISTINCT trace_id), count(*)
FROM ({source} ORDER BY trace_id DESC LIMIT {most}) rows
"""
_BY_NAME = f"""SELECT trace_id FROM triage_item
    WHERE {{column}} = %s AND trace_id >= ragblame.uuid_floor({_SPAN})"""
_BY_CAUSE = f"""SELECT v.trace_id FROM verdict v JOIN triage_item i USING (trace_id, span)
    WHERE v.cause = %s AND v.trace_id >= ragblame.uuid_floor({_SPAN})"""
_BY_ROW = f"""SELECT trace_id FROM trace_chunk
    WHERE source_id = ANY(%s) AND source_table = %s AND trace_id >= ragblame.uuid_floor({_SPAN})"""
_BY_TEXT = f"""SELECT trace_id FROM trace_chunk
    WHERE sha256 = %s AND trace_id >= ragblame.uuid_floor({_SPAN})"""
_SIBLINGS = """
SELECT array_agg(s.id::text) FROM ragblame.chunk c JOIN ragblame.chunk s USING (document_id) WHERE c.id = %s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """One line: how many traces share something with the span on screen, this one included."""

    what: str
    day: int
    week: int
    is_partial: bool  # only the newest MOST were counted: "at least"
    same: str | None = None  # signature by which the queue shows just these
    cause: str | None = None  # or the cause


def read_radius(conn: Connection[Any], trace_id: UUID, span: int) -> tuple[Reach, ...]:
    """The reach of one span's failure, narrowest first; empty for a span that is not in the queue."""
    row = conn.execute(
        """SELECT i.signature, i.document, v.cause, c.source_table, c.source_id, c.sha256
           FROM triage_item i
           JOIN verdict v ON v.trace_id = i.trace_id AND v.span = i.span
           LEFT JOIN trace_chunk c
               ON c.trace_id = i.trace_id AND c.position = coalesce(v.evidence[1], v.evidence_position)
           WHERE i.trace_id = %s AND i.span = %s""",
        (trace_id, span),
    ).fetchone()
    if row is None:
        return ()
    signature, document, cause, table, source_id, sha256 = row
    what = "this cause at this chunk" if sha256 is not None else "this cause for this question"
    found = [_count(conn, what, _BY_NAME.format(column="signature"), (signature,), same=signature)]
    if document:
        name = "this cause at this document"
        found.append(_count(conn, name, _BY_NAME.format(column="document"), (document,), same=document))
    if cause is not None:
        found.append(_count(conn, "this cause", _BY_CAUSE, (cause,), cause=cause))
    if source_id is not None and table is not None:
        found.append(_count(conn, "retrieved this chunk", _BY_ROW, ([source_id], table)))
        identity = as_uuid(source_id) if table == OWN_TABLE else None
        siblings = None if identity is None else conn.execute(_SIBLINGS, (identity,)).fetchone()
        if siblings is not None and siblings[0]:
            found.append(_count(conn, "retrieved this document", _BY_ROW, (siblings[0], table)))
    elif sha256 is not None:
        found.append(_count(conn, "retrieved this text", _BY_TEXT, (sha256,)))
    return tuple(found)


def _count(
    conn: Connection[Any],
    what: str,
    source: str,
    params: tuple[Any, ...],
    *,
    same: str | None = None,
    cause: str | None = None,
) -> Reach:
    row = conn.execute(_COUNT.format(source=source, most=MOST).encode(), params).fetchone()
    assert row is not None  # an aggregate without GROUP BY
    day, week, rows = row
    return Reach(what=what, day=day, week=week, is_partial=rows >= MOST, same=same, cause=cause)
