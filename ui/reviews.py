"""What people decide: a review of a span, and who looks at which flagged span until when.

Two people may have the same span on their screens, so every change hands back the version it was shown;
whoever comes second is told what happened and keeps the text they typed.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import dict_row

from ragblame.errors import InputError, ReviewConflictError
from ragblame.json_values import clean_text
from ragblame.records import Cause, Review, VerdictKind
from ragblame.traces import new_trace_id

LEASE: Final = timedelta(minutes=15)
MAX_NOTE: Final = 10_000  # code points
MAX_REVIEWER: Final = 200


def save_review(
    conn: Connection[Any],
    *,
    trace_id: UUID,
    span: int,
    version: int | None,
    reviewer: str,
    verdict: VerdictKind,
    cause: Cause | None = None,
    note: str = "",
) -> Review:
    """Store a review and close its queue item, in one transaction.

    ``version`` is the queue item's as shown to the reviewer; None for a span that was not in the queue (a
    person may find what the machine missed). Raises ``ReviewConflictError`` when the item changed since, and
    ``InputError`` when the name is empty, the note too long, or the span no longer exists.
    """
    reviewer = _checked_reviewer(reviewer)
    note = clean_text(note).strip()
    if len(note) > MAX_NOTE:
        raise InputError(f"the note has {len(note):,} characters; shorten it to {MAX_NOTE:,}")
    with conn.transaction(), conn.cursor(row_factory=dict_row) as cursor:
        _close_item(conn, trace_id, span, version, reviewer)
        row = cursor.execute(
            """
            INSERT INTO review
                (trace_id, id, span, start_at, end_at, reviewer, verdict, cause, note, flagged_as)
            SELECT s.trace_id, %s, s.span, s.start_at, s.end_at, %s, %s, %s, %s, v.verdict
            FROM answer_span s LEFT JOIN verdict v ON v.trace_id = s.trace_id AND v.span = s.span
            WHERE s.trace_id = %s AND s.span = %s
            RETURNING id, created_at
            """,
            (new_trace_id(), reviewer, verdict.value, cause and cause.value, note, trace_id, span),
        ).fetchone()
        if row is None:
            raise InputError(
                f"span {span} of trace {trace_id} no longer exists: it was attributed again; reload the page"
            )
    return Review(
        id=row["id"],
        trace_id=trace_id,
        span=span,
        reviewer=reviewer,
        verdict=verdict,
        cause=cause,
        note=note,
        created_at=row["created_at"],
    )


def claim_item(
    conn: Connection[Any], *, trace_id: UUID, span: int, version: int, reviewer: str, lease: timedelta = LEASE
) -> int:
    """Put a name on a queue item for a while; returns its new version. Raises ``ReviewConflictError``."""
    return _change_item(
        conn,
        "assignee = %s, leased_until = now() + %s",
        (_checked_reviewer(reviewer), lease),
        trace_id,
        span,
        version,
    )


def snooze_item(conn: Connection[Any], *, trace_id: UUID, span: int, version: int, until: datetime) -> int:
    """Hide a queue item until ``until``; returns its new version. Raises ``ReviewConflictError``."""
    if until.tzinfo is None:
        raise InputError("the time to wake up has no time zone: give one")
    return _change_item(conn, "state = 'snoozed', leased_until = %s", (until,), trace_id, span, version)


def reopen_item(conn: Connection[Any], *, trace_id: UUID, span: int, version: int) -> int:
    """Put a reviewed or snoozed item back; returns its new version. Raises ``ReviewConflictError``."""
    return _change_item(conn, "state = 'open', leased_until = NULL", (), trace_id, span, version)


def wake_snoozed(conn: Connection[Any]) -> int:
    """Reopen the items whose time has come; returns how many. Called when the queue is looked at."""
    return conn.execute(
        "UPDATE triage_item"
        " SET state = 'open', leased_until = NULL, version = version + 1, updated_at = now()"
        " WHERE state = 'snoozed' AND leased_until <= now()"
    ).rowcount


def _change_item(
    conn: Connection[Any], change: str, values: tuple[Any, ...], trace_id: UUID, span: int, version: int
) -> int:
    with conn.transaction():
        row = conn.execute(
            f"UPDATE triage_item SET {change}, version = version + 1, updated_at = now()"
            " WHERE trace_id = %s AND span = %s AND version = %s RETURNING version".encode(),
            (*values, trace_id, span, version),
        ).fetchone()
        if row is None:
            raise _conflict(conn, trace_id, span)
    return int(row[0])


def _close_item(conn: Connection[Any], trace_id: UUID, span: int, version: int | None, reviewer: str) -> None:
    if version is not None:
        _change_item(
            conn,
            "state = 'reviewed', assignee = %s, leased_until = NULL",
            (reviewer,),
            trace_id,
            span,
            version,
        )
        return
    appeared = conn.execute(
        "SELECT 1 FROM triage_item WHERE trace_id = %s AND span = %s FOR UPDATE", (trace_id, span)
    ).fetchone()
    if appeared is not None:
        raise _conflict(conn, trace_id, span)


def _conflict(conn: Connection[Any], trace_id: UUID, span: int) -> ReviewConflictError:
    """Say who did what meanwhile."""
    row = conn.execute(
        """
        SELECT i.state, i.assignee, i.updated_at, r.reviewer, r.verdict
        FROM triage_item i
        LEFT JOIN LATERAL (SELECT reviewer, verdict FROM review WHERE trace_id = i.trace_id AND span = i.span
                           ORDER BY created_at DESC, id DESC LIMIT 1) r ON i.state = 'reviewed'
        WHERE i.trace_id = %s AND i.span = %s
        """,
        (trace_id, span),
    ).fetchone()
    if row is None:
        return ReviewConflictError(
            "this span left the queue while you were reading: it was attributed again; reload the page"
        )
    state, assignee, updated_at, who, verdict = row
    at = f"{updated_at.astimezone(UTC):%H:%M:%S} UTC"
    if who is not None:
        happened = f"{who} reviewed this span as “{verdict}” at {at}"
    elif state == "snoozed":
        happened = f"this span was snoozed at {at}"
    elif assignee is not None:
        happened = f"{assignee} took this span at {at}"
    else:
        happened = f"this span changed at {at}"
    return ReviewConflictError(f"{happened}; nothing was overwritten: look again, then decide")


def _checked_reviewer(reviewer: str) -> str:
    reviewer = clean_text(reviewer).strip()
    if not reviewer:
        raise InputError("a review needs a name: fill in “Reviewer”")
    return reviewer[:MAX_REVIEWER]
