"""The one place that knows how a Trace stands in PostgreSQL and in JSON, so both agree to the last field.

Writing is exactly once by trace id: the recorder, the spool's replay and an import may all hand over the same
trace, and its chunks and its attribution job appear only with the row that was really new.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from ragblame.errors import DatabaseError, InputError
from ragblame.json_values import clean_text
from ragblame.trace_json import clean_trace, trace_from_json, trace_to_json
from ragblame.trace_records import Chunk, Message, Trace, TraceStatus
from ragblame.trace_rows import QUEUE, TASK, insert_new

if TYPE_CHECKING:
    import psycopg

__all__ = [
    "QUEUE",
    "TASK",
    "clean_text",
    "clean_trace",
    "new_trace_id",
    "read_trace",
    "trace_from_json",
    "trace_to_json",
    "write_clean_traces",
    "write_traces",
]

_ATTEMPTS: Final = 3  # when another process is at the same traces or jobs meanwhile

_READ_TRACE = """
SELECT id, app, question, query, ragblame.whole_prompt(id, prompt), answer, generated, model, provider,
    status, error, started_at, duration_ms, session_id, root_run_id, origin, partial_tree, tags, metadata,
    truncated
FROM ragblame.trace WHERE id = %s
"""
_READ_CHUNKS = """
SELECT c.position, t.text, c.source_id, c.source_table, c.rank, c.score, c.score_name, c.retriever_run,
    c.metadata, c.truncated_from
FROM ragblame.trace_chunk c LEFT JOIN ragblame.chunk_text t USING (sha256)
WHERE c.trace_id = %s ORDER BY c.position
"""


def new_trace_id(at: datetime | None = None) -> UUID:
    """A version 7 UUID (RFC 9562): 48 bits of Unix milliseconds, 12 bits of their fraction, 62 random bits.

    Raises ``InputError`` when ``at`` has no time zone or lies before 1970.
    """
    if at is None:
        nanoseconds = time.time_ns()
    elif at.tzinfo is None:
        raise InputError(f"time {at} has no time zone: give one, for example datetime.now(UTC)")
    else:
        delta = at - datetime(1970, 1, 1, tzinfo=UTC)
        nanoseconds = ((delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds) * 1_000
    if nanoseconds < 0:
        raise InputError(f"time {at} lies before 1970 and makes no time-ordered id: correct started_at")
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    fraction = (rest << 12) // 1_000_000
    random_bits = int.from_bytes(os.urandom(8), "big") >> 2
    return UUID(int=(milliseconds << 80) | (0x7 << 76) | (fraction << 64) | (0b10 << 62) | random_bits)


def write_traces(conn: "psycopg.Connection[Any]", traces: Sequence[Trace], *, enqueue: bool = True) -> int:
    """Write traces, their chunks and, with ``enqueue``, one attribution job each; returns how many were new.

    Everything happens in the caller's transaction (on an autocommit connection outside one: in a transaction
    of its own). A trace whose id is stored already is left alone, chunks and job included.
    Raises ``InputError`` for a trace that cannot be stored, ``DatabaseError`` when PostgreSQL fails or the
    schema is not migrated. Afterwards the caller's transaction is as it was before the call.
    """
    return write_clean_traces(conn, [clean_trace(trace) for trace in traces], enqueue=enqueue)


def write_clean_traces(
    conn: "psycopg.Connection[Any]",
    traces: Sequence[Trace],
    *,
    enqueue: bool = True,
    between: Callable[[], object] = lambda: None,
) -> int:
    """As ``write_traces``, of traces that ``clean_trace`` made: a capturing host cleans each once.

    ``between`` is called between two traces; a background thread lets others run there.
    """
    import psycopg

    if not traces:
        return 0
    try:
        return _insert_once(conn, traces, enqueue=enqueue, between=between)
    except _missing() as error:
        raise DatabaseError(_what_is_missing(conn, _first_line(error), enqueue=enqueue)) from error
    except (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded) as error:
        raise InputError(
            f"PostgreSQL refuses a trace: {_first_line(error)}; correct or leave it out"
        ) from error
    except psycopg.Error as error:
        raise DatabaseError(
            f"traces could not be written: {_first_line(error)}; run `ragblame doctor` to see what is wrong"
        ) from error


def read_trace(conn: "psycopg.Connection[Any]", trace_id: UUID) -> Trace:
    """The stored trace with its chunks in order. Raises ``InputError`` when there is none with that id."""
    from psycopg.rows import tuple_row

    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(_READ_TRACE, (trace_id,)).fetchone()
        if row is None:
            raise InputError(f"no trace {trace_id}: copy its id from the triage page, or check the URL")
        chunks = cursor.execute(_READ_CHUNKS, (trace_id,)).fetchall()
    return Trace(
        id=row[0],
        app=row[1],
        question=row[2],
        query=row[3],
        prompt=tuple(Message(role=message["role"], text=message["text"]) for message in row[4]),
        answer=row[5],
        generated=row[6],
        model=row[7],
        provider=row[8],
        status=TraceStatus(row[9]),
        error=row[10],
        started_at=row[11],
        duration_ms=row[12],
        session_id=row[13],
        root_run_id=row[14],
        origin=row[15],
        partial_tree=row[16],
        tags=tuple(row[17]),
        metadata=row[18],
        truncated=row[19],
        chunks=tuple(
            Chunk(
                position=chunk[0],
                text=chunk[1] if chunk[1] is not None else "",
                source_id=chunk[2],
                source_table=chunk[3],
                rank=chunk[4],
                score=chunk[5],
                score_name=chunk[6],
                retriever_run=chunk[7],
                metadata=chunk[8],
                truncated_from=chunk[9],
            )
            for chunk in chunks
        ),
    )


def _insert_once(
    conn: "psycopg.Connection[Any]",
    traces: Sequence[Trace],
    *,
    enqueue: bool,
    between: Callable[[], object],
) -> int:
    """Insert what is new; where another process is at the same traces or jobs at this moment, look again."""
    from psycopg.errors import SerializationFailure, UniqueViolation
    from psycopg.pq import TransactionStatus

    looks_for_jobs = False
    for _ in range(_ATTEMPTS):
        try:
            with _undone_on_failure(conn):
                return insert_new(
                    conn, traces, enqueue=enqueue, looks_for_jobs=looks_for_jobs, between=between
                )
        except SerializationFailure:
            if conn.info.transaction_status != TransactionStatus.IDLE:
                break  # the caller's snapshot is older than the other writer's rows, and stays so
        except UniqueViolation as error:
            if (error.diag.table_name or "").startswith("trace_chunk"):
                raise  # rows without their trace: looking again would not help
            looks_for_jobs = True
    raise DatabaseError(
        "another writer stores the same traces in a transaction we cannot see: write them again later"
    )


@contextmanager
def _undone_on_failure(conn: "psycopg.Connection[Any]") -> Iterator[None]:
    """A failure takes back one statement, and no more; outside a transaction that costs no round trip."""
    from psycopg import Error
    from psycopg.pq import TransactionStatus

    if conn.info.transaction_status != TransactionStatus.IDLE:
        with conn.transaction():
            yield
        return
    try:
        yield
    except BaseException:
        with suppress(Error):  # a connection that broke has nothing to take back, and its error tells why
            conn.rollback()
        raise


def _missing() -> "tuple[type[psycopg.Error], ...]":
    """What PostgreSQL raises where a table, column, type or function of ours is not there."""
    from psycopg import errors

    return (
        errors.UndefinedTable,
        errors.UndefinedColumn,
        errors.UndefinedObject,
        errors.UndefinedFunction,
        errors.InvalidSchemaName,
    )


def _what_is_missing(conn: "psycopg.Connection[Any]", reason: str, *, enqueue: bool) -> str:
    """Which part of the schema is missing, and the next step."""
    from psycopg import Error
    from psycopg.rows import tuple_row

    try:
        with _undone_on_failure(conn), conn.cursor(row_factory=tuple_row) as cursor:
            found = cursor.execute(
                "SELECT to_regclass('ragblame.trace') IS NULL, "
                "to_regtype('procrastinate_job_to_defer_v1') IS NULL"
            ).fetchone()
    except Error:
        found = None
    if found is not None and found[0]:
        return "the database has no ragblame schema yet: run `ragblame migrate`"
    if found is not None and found[1] and enqueue:
        return "the database has no job queue (schema jobs) on its path: run `ragblame migrate`"
    return f"the database's schema does not fit this version ({reason}); run `ragblame migrate`"


def _first_line(error: Exception) -> str:
    return re.split(r"[\r\n]", str(error).strip() or type(error).__name__, maxsplit=1)[0]
