"""Reviews are stored once, closed over by an optimistic lock, and never overwrite what somebody else did."""

import threading
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from ragblame import database
from ragblame.attribution.jobs.requeue import requeue_trace
from ragblame.errors import InputError, ReviewConflictError
from ragblame.records import Cause, VerdictKind
from ragblame.ui import reads
from ragblame.ui.reads import Filters, ItemState, QueueRow
from ragblame.ui.reads_health import read_health
from ragblame.ui.reads_trace import read_trace_page
from ragblame.ui.reviews import (
    MAX_NOTE,
    claim_item,
    reopen_item,
    save_review,
    snooze_item,
    wake_snoozed,
)
from tests.example_cases import example_explanations
from tests.triage_seed import store_explanation

Connection = psycopg.Connection


@pytest.fixture
def stored(connection: Connection) -> tuple[Connection, QueueRow]:
    """A database with the first example, and its one row in the queue."""
    store_explanation(connection, example_explanations()[0])
    connection.commit()
    (row,) = reads.read_queue(connection, Filters()).rows
    return connection, row


def reviews_of(conn: Connection) -> list[tuple[str, str, str | None, str, str | None]]:
    """(reviewer, verdict, cause, note, flagged as) of all reviews, oldest first."""
    rows = conn.execute("SELECT reviewer, verdict, cause, note, flagged_as FROM review ORDER BY created_at")
    return rows.fetchall()


def test_review_closes_the_item(stored: tuple[Connection, QueueRow]) -> None:
    """A review is stored with offsets and the machine's verdict, and the span leaves the queue."""
    conn, row = stored
    review = save_review(
        conn,
        trace_id=row.trace_id,
        span=row.span,
        version=row.version,
        reviewer="  Ana ",
        verdict=VerdictKind.DISTORTED,
        cause=Cause.BORROWED,
        note=" wrong queue ",
    )
    assert reviews_of(conn) == [
        ("Ana", "distorted", "borrowed from another subject", "wrong queue", "distorted")
    ]
    offsets = conn.execute("SELECT start_at, end_at FROM review WHERE id = %s", (review.id,)).fetchone()
    span = example_explanations()[0].spans[0]
    assert offsets == (span.start, span.end)
    assert reads.read_queue(conn, Filters()).rows == ()
    (closed,) = reads.read_queue(conn, Filters(state=ItemState.REVIEWED)).rows
    assert (closed.assignee, closed.version) == ("Ana", row.version + 1)
    assert read_trace_page(conn, row.trace_id).reviews[row.span] == (review,)
    health = read_health(conn, datetime.now(UTC) - timedelta(days=7))
    assert (health.reviews, health.agreed, health.reviewed_items) == (1, 1, 1)


def test_second_reviewer_is_told(stored: tuple[Connection, QueueRow]) -> None:
    """Whoever decides on an old page is told who was faster; nothing of theirs is stored or overwritten."""
    conn, row = stored
    shown = {"trace_id": row.trace_id, "span": row.span, "version": row.version}
    save_review(conn, **shown, reviewer="Ana", verdict=VerdictKind.GROUNDED)  # type: ignore[arg-type]
    with pytest.raises(ReviewConflictError, match=r"Ana reviewed this span as “grounded” at .*look again"):
        save_review(conn, **shown, reviewer="Ben", verdict=VerdictKind.FABRICATED)  # type: ignore[arg-type]
    assert [entry[0] for entry in reviews_of(conn)] == ["Ana"]


def test_two_at_the_same_moment(database_url: str) -> None:
    """Eight people press a key at once: exactly one review is stored, the others get the conflict."""
    with database.connect(database_url) as conn:
        store_explanation(conn, example_explanations()[0])
        conn.commit()
        (row,) = reads.read_queue(conn, Filters()).rows
    start = threading.Barrier(8)
    outcomes: list[str] = []

    def decide(name: str) -> None:
        with database.connect(database_url) as own:
            start.wait()
            try:
                save_review(
                    own,
                    trace_id=row.trace_id,
                    span=row.span,
                    version=row.version,
                    reviewer=name,
                    verdict=VerdictKind.FABRICATED,
                )
                outcomes.append("saved")
            except ReviewConflictError:
                outcomes.append("conflict")

    threads = [threading.Thread(target=decide, args=(f"reviewer {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict"] * 7 + ["saved"]
    with database.connect(database_url) as conn:
        assert len(reviews_of(conn)) == 1


def test_unflagged_span_can_be_reviewed(stored: tuple[Connection, QueueRow]) -> None:
    """A person may mark what the machine missed; with the machine's verdict beside it."""
    conn, row = stored
    save_review(
        conn,
        trace_id=row.trace_id,
        span=1,
        version=None,
        reviewer="Ana",
        verdict=VerdictKind.FABRICATED,
    )
    assert reviews_of(conn) == [("Ana", "fabricated", None, "", "grounded")]
    assert len(reads.read_queue(conn, Filters()).rows) == 1


def test_item_that_appeared_meanwhile_is_a_conflict(stored: tuple[Connection, QueueRow]) -> None:
    """A page that was drawn before the span was flagged may not review around the lock."""
    conn, row = stored
    with pytest.raises(ReviewConflictError, match="changed"):
        save_review(
            conn,
            trace_id=row.trace_id,
            span=row.span,
            version=None,
            reviewer="Ana",
            verdict=VerdictKind.GROUNDED,
        )
    assert reviews_of(conn) == []


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"reviewer": " "}, "fill in"),
        ({"reviewer": "\u0000"}, None),
        ({"note": "x" * (MAX_NOTE + 1)}, "shorten it"),
        ({"span": 99, "version": None}, "attributed again"),
        ({"span": 99}, "attributed again"),
        ({"note": "NUL \0 and \ud800 surrogate, '; DROP TABLE review; --"}, None),
    ],
)
def test_bad_input(stored: tuple[Connection, QueueRow], change: dict[str, object], match: str | None) -> None:
    """What cannot be stored is refused in one line before anything changes; the rest is stored as text."""
    conn, row = stored
    arguments: dict[str, object] = {
        "trace_id": row.trace_id,
        "span": row.span,
        "version": row.version,
        "reviewer": "Ana",
        "verdict": VerdictKind.GROUNDED,
    }
    if match is None:
        save_review(conn, **arguments | change)  # type: ignore[arg-type]
        assert len(reviews_of(conn)) == 1
        return
    with pytest.raises((InputError, ReviewConflictError), match=match):
        save_review(conn, **arguments | change)  # type: ignore[arg-type]
    assert reviews_of(conn) == []
    (same,) = reads.read_queue(conn, Filters()).rows
    assert same.version == row.version


def test_taking_snoozing_and_reopening(stored: tuple[Connection, QueueRow]) -> None:
    """Each change hands out a new version, an old one is refused, and a snoozed span comes back by itself."""
    conn, row = stored
    at: dict[str, UUID | int] = {"trace_id": row.trace_id, "span": row.span}
    second = claim_item(conn, **at, version=row.version, reviewer="Ana")  # type: ignore[arg-type]
    with pytest.raises(ReviewConflictError, match="Ana took this span"):
        claim_item(conn, **at, version=row.version, reviewer="Ben")  # type: ignore[arg-type]
    soon = datetime.now(UTC) + timedelta(hours=1)
    third = snooze_item(conn, **at, version=second, until=soon)  # type: ignore[arg-type]
    assert reads.read_queue(conn, Filters()).rows == ()
    assert wake_snoozed(conn) == 0
    fourth = reopen_item(conn, **at, version=third)  # type: ignore[arg-type]
    past = datetime.now(UTC) - timedelta(seconds=1)
    snooze_item(conn, **at, version=fourth, until=past)  # type: ignore[arg-type]
    with pytest.raises(ReviewConflictError, match="snoozed"):
        reopen_item(conn, **at, version=fourth)  # type: ignore[arg-type]
    assert wake_snoozed(conn) == 1
    (back,) = reads.read_queue(conn, Filters()).rows
    assert (back.state, back.version) == (ItemState.OPEN, row.version + 5)


def test_trace_is_requeued_once(stored: tuple[Connection, QueueRow]) -> None:
    """Asking for a new attribution twice makes one job."""
    conn, row = stored
    assert requeue_trace(conn, row.trace_id)
    assert not requeue_trace(conn, row.trace_id)
    assert read_trace_page(conn, row.trace_id).is_rerun_waiting
