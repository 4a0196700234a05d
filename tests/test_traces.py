"""Traces stand in PostgreSQL and in JSON exactly once, whole, whatever the host put into them."""

import json
import random
import re
import threading
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragblame import database
from ragblame.errors import DatabaseError, InputError
from ragblame.json_values import MAX_IDENTITY_BYTES, clean_identity, clean_json
from ragblame.records import Chunk, Message, Trace, TraceStatus
from ragblame.traces import (
    clean_text,
    clean_trace,
    new_trace_id,
    read_trace,
    trace_from_json,
    trace_to_json,
    write_traces,
)

ANY_TEXT = st.text(st.characters(codec=None), max_size=40)  # NUL and lone surrogates included
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(ANY_TEXT | st.integers() | st.none(), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)
CHUNKS = st.lists(
    st.builds(
        Chunk,
        position=st.just(0),
        text=ANY_TEXT,
        source_id=st.none() | ANY_TEXT,
        source_table=st.none() | ANY_TEXT,
        rank=st.none() | st.integers(-(2**70), 2**70),
        score=st.none() | st.floats(),
        score_name=st.none() | ANY_TEXT,
        retriever_run=st.none() | st.uuids(),
        metadata=st.dictionaries(ANY_TEXT, ANY_VALUE, max_size=3),
        truncated_from=st.none() | st.integers(0, 2**40),
    ),
    max_size=4,
)


def numbered(chunks: list[Chunk]) -> tuple[Chunk, ...]:
    """The chunks with positions 0, 1, 2, …"""
    return tuple(
        Chunk(**{**{name: getattr(chunk, name) for name in Chunk.__slots__}, "position": position})
        for position, chunk in enumerate(chunks)
    )


TRACES = st.builds(
    Trace,
    id=st.builds(new_trace_id),
    app=ANY_TEXT,
    question=ANY_TEXT,
    query=st.none() | ANY_TEXT,
    chunks=CHUNKS.map(numbered),
    prompt=st.lists(st.builds(Message, role=ANY_TEXT, text=ANY_TEXT), max_size=3).map(tuple),
    answer=ANY_TEXT,
    generated=st.none() | ANY_TEXT,
    model=st.none() | ANY_TEXT,
    status=st.sampled_from(TraceStatus),
    error=st.none() | ANY_TEXT,
    started_at=st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
    duration_ms=st.floats(),
    session_id=st.none() | ANY_TEXT,
    root_run_id=st.none() | st.uuids(),
    partial_tree=st.booleans(),
    tags=st.lists(ANY_TEXT, max_size=3).map(tuple),
    metadata=st.dictionaries(ANY_TEXT, ANY_VALUE, max_size=3),
    truncated=st.dictionaries(st.sampled_from(["answer", "question"]), st.integers(0, 2**40), max_size=2),
)


def make_trace(**changes: Any) -> Trace:
    """A small ordinary trace."""
    fields: dict[str, Any] = {
        "id": new_trace_id(),
        "app": "test",
        "question": "Which port?",
        "chunks": (Chunk(position=0, text="The port is 2959.", source_id="7", source_table="public.notes"),),
        "prompt": (Message(role="human", text="The port is 2959. Which port?"),),
        "answer": "2959.",
        "started_at": datetime.now(UTC),
    }
    return Trace(**{**fields, **changes})


def count(conn: psycopg.Connection[Any], table: str) -> int:
    """Rows of a table."""
    row = conn.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


@given(trace=TRACES)
def test_json_keeps_every_field(trace: Trace) -> None:
    """Through strict JSON and back, a trace is the cleaned trace; cleaning twice changes nothing."""
    text = json.dumps(trace_to_json(trace), allow_nan=False)
    text.encode()  # no lone surrogate is left
    assert trace_from_json(json.loads(text)) == clean_trace(trace)
    assert clean_trace(clean_trace(trace)) == clean_trace(trace)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(trace=TRACES)
def test_postgres_keeps_every_field(connection: psycopg.Connection[Any], trace: Trace) -> None:
    """Through PostgreSQL and back, a trace is the cleaned trace, with its chunks in order."""
    assert write_traces(connection, [trace]) == 1
    stored = trace_to_json(read_trace(connection, trace.id))
    wanted = trace_to_json(trace)
    # jsonb has one kind of number and one zero, and the server answers in its own time zone
    assert _plain(stored) == _plain(wanted)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: datetime.fromisoformat(entry).timestamp() if key == "started_at" else _plain(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return f"{value:.12g}" if isinstance(value, int | float) and not isinstance(value, bool) else value


@given(text=st.text(st.characters(codec=None)))
def test_clean_text_keeps_the_length(text: str) -> None:
    """Offsets survive cleaning: every code point stays or becomes exactly one other."""
    cleaned = clean_text(text)
    assert len(cleaned) == len(text)
    assert "\0" not in cleaned
    cleaned.encode()
    assert all(a == b or a == "\0" or "\ud800" <= a <= "\udfff" for a, b in zip(text, cleaned, strict=True))


@given(text=st.text(st.characters(codec=None), min_size=1), times=st.integers(1, 4_000))
def test_identities_fit_an_index_and_stay_apart(text: str, times: int) -> None:
    """Two long identities that differ only at the end stay apart after being cut to what a B-tree takes."""
    long = text * times
    assert len(clean_identity(long).encode()) <= MAX_IDENTITY_BYTES
    assert clean_identity(clean_identity(long)) == clean_identity(long)
    assert clean_identity(long + "a") != clean_identity(long + "b")


def test_hostile_metadata_is_bounded() -> None:
    """Cycles, depth, width, giants and live objects end as small JSON that says what was cut."""
    cycle: dict[str, Any] = {"lock": threading.Lock(), "raw": b"123", "big": 10**5_000, "wide": [0] * 10_000}
    cycle["self"] = cycle
    cycle["text"] = "x" * 1_000_000
    cleaned = clean_json(cycle)
    text = json.dumps(cleaned, allow_nan=False)
    assert len(text) < 200_000
    assert isinstance(cleaned, dict)
    assert cleaned["raw"] == "<3 bytes>"
    assert cleaned["lock"] == "<lock>"
    assert "more" in text
    assert clean_json(cleaned) == cleaned


def test_ids_order_by_time() -> None:
    """Ids are version 7, increase with time, and carry the millisecond."""
    at = datetime(2025, 1, 31, 12, tzinfo=UTC)
    ids = [new_trace_id(at + timedelta(microseconds=step * 250)) for step in range(200)]
    assert ids == sorted(ids)
    assert {entry.version for entry in ids} == {7}
    assert ids[0].int >> 80 == int(at.timestamp() * 1_000)
    assert len({new_trace_id() for _ in range(1_000)}) == 1_000
    with pytest.raises(InputError, match="time zone"):
        new_trace_id(datetime(2025, 1, 1))
    with pytest.raises(InputError, match="1970"):
        new_trace_id(datetime(1969, 1, 1, tzinfo=UTC))


def test_written_exactly_once(connection: psycopg.Connection[Any]) -> None:
    """A trace handed over three times is one row, one job and one set of chunks."""
    first, second = make_trace(), make_trace()
    assert write_traces(connection, [first, second, first]) == 2
    assert write_traces(connection, [second]) == 0
    connection.commit()
    assert write_traces(connection, [first], enqueue=False) == 0
    assert count(connection, "trace") == count(connection, "trace_chunk") == 2
    assert count(connection, "procrastinate_jobs") == 2
    assert count(connection, "chunk_text") == 1


def test_the_caller_owns_the_transaction(connection: psycopg.Connection[Any]) -> None:
    """A rollback of the caller takes trace, chunks and job back together."""
    write_traces(connection, [make_trace()])
    connection.rollback()
    assert count(connection, "trace") == count(connection, "procrastinate_jobs") == 0


def test_autocommit_writes_whole(database_url: str) -> None:
    """On an autocommit connection the batch is a transaction of its own."""
    with database.connect(database_url, autocommit=True) as conn:
        assert write_traces(conn, [make_trace()]) == 1
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    with database.connect(database_url) as conn:
        assert count(conn, "trace") == 1


def test_a_batch_is_one_round_trip(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the writer's kind of connection a batch, new texts and jobs included, waits for the server once."""
    waits: list[None] = []
    with database.connect(database_url, autocommit=True) as conn:
        wait = conn.wait

        def counted(*args: Any, **kwargs: Any) -> Any:
            waits.append(None)
            return wait(*args, **kwargs)

        monkeypatch.setattr(conn, "wait", counted)
        assert write_traces(conn, [make_trace() for _ in range(20)]) == 20
        assert len(waits) == 1
        monkeypatch.undo()


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_refused_trace_takes_its_batch_back(
    connection: psycopg.Connection[Any], database_url: str, autocommit: bool
) -> None:
    """Outside a transaction nothing of a batch stays where PostgreSQL refuses one of its traces."""
    traces = [make_trace() for _ in range(3)]
    connection.execute(
        "INSERT INTO trace_chunk (trace_id, position, sha256) VALUES (%s, 0, sha256(''))", (traces[2].id,)
    )
    connection.commit()
    with database.connect(database_url, autocommit=autocommit) as conn:
        with pytest.raises(InputError, match="trace_chunk"):
            write_traces(conn, traces)
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert count(conn, "trace") == count(conn, "procrastinate_jobs") == count(conn, "chunk_text") == 0
        conn.rollback()
        assert write_traces(conn, traces[:2]) == 2


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_broken_connection_says_what_broke_it(database_url: str, autocommit: bool) -> None:
    """What the server said when it ended the session is told, not that the connection is closed."""
    with database.connect(database_url, autocommit=autocommit) as conn:
        write_traces(conn, [make_trace()])
        conn.commit()
        with database.connect(database_url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
        with pytest.raises(DatabaseError, match=r"terminating connection|server closed the connection"):
            write_traces(conn, [make_trace()])


def test_a_failure_leaves_the_callers_work_alone(connection: psycopg.Connection[Any]) -> None:
    """What the caller did before in the same transaction stays, and the transaction stays usable."""
    good, bad = make_trace(), make_trace()
    assert write_traces(connection, [good]) == 1
    connection.execute(
        "INSERT INTO trace_chunk (trace_id, position, sha256) VALUES (%s, 0, sha256(''))", (bad.id,)
    )
    with pytest.raises(InputError, match="trace_chunk"):
        write_traces(connection, [bad])
    connection.commit()
    assert count(connection, "trace") == 1


def test_the_job_is_what_the_worker_expects(connection: psycopg.Connection[Any]) -> None:
    """Queue, task, lock and argument of the job are those of the contract, and procrastinate noted it."""
    trace = make_trace()
    write_traces(connection, [trace])
    job = connection.execute(
        "SELECT queue_name, task_name, queueing_lock, args, status::text FROM procrastinate_jobs"
    ).fetchone()
    assert job == ("attribution", "attribute", f"attribute-{trace.id}", {"trace_id": str(trace.id)}, "todo")
    assert connection.execute("SELECT type::text FROM procrastinate_events").fetchall() == [("deferred",)]


def defer(conn: psycopg.Connection[Any], trace: Trace) -> None:
    """Another process's job with the lock of the trace's own."""
    conn.execute(
        "SELECT procrastinate_defer_jobs_v1(ARRAY[ROW('attribution', 'attribute', 0, NULL, %s, '{}', NULL)"
        "::procrastinate_job_to_defer_v1])",
        (f"attribute-{trace.id}",),
    )


def test_a_waiting_job_does_not_abort_the_batch(connection: psycopg.Connection[Any]) -> None:
    """Where a job with the trace's lock waits already, the traces are written and the others get jobs."""
    known, other = make_trace(), make_trace()
    defer(connection, known)
    assert write_traces(connection, [other, known]) == 2
    locks = connection.execute("SELECT queueing_lock FROM procrastinate_jobs ORDER BY 1").fetchall()
    assert locks == [(f"attribute-{known.id}",), (f"attribute-{other.id}",)]


def test_a_job_deferred_at_the_same_moment_does_not_fail_the_batch(database_url: str) -> None:
    """Another process defers the trace's job while ours waits for it: the trace is written, with that job."""
    trace = make_trace()
    written: list[int] = []
    with database.connect(database_url) as first, database.connect(database_url, autocommit=True) as second:
        defer(first, trace)
        other = threading.Thread(target=lambda: written.append(write_traces(second, [trace])))
        other.start()
        with database.connect(database_url, autocommit=True) as watch:
            while not count(watch, "pg_locks WHERE NOT granted"):
                assert other.is_alive(), "it did not wait"
        first.commit()
        other.join(30)
        assert written == [1]
        assert count(first, "trace") == count(first, "procrastinate_jobs") == 1


def test_waiting_jobs_are_not_read_for_every_batch(connection: psycopg.Connection[Any]) -> None:
    """What a batch reads of the queue does not grow with the queue, whatever the planner believes."""

    def rows_read() -> int:
        connection.execute("SELECT pg_stat_force_next_flush()")
        connection.commit()
        row = connection.execute(
            "SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0) FROM pg_stat_user_tables "
            "WHERE relname = 'procrastinate_jobs'"
        ).fetchone()
        assert row is not None
        return int(row[0])

    def write(batches: int) -> None:
        for _ in range(batches):
            write_traces(connection, [make_trace(chunks=())])

    write(20)  # the statement is prepared while the queue is short
    connection.execute(
        "SELECT procrastinate_defer_jobs_v1(array_agg(ROW('other', 'other', 0, NULL, 'other-' || n, '{}', "
        "NULL)::procrastinate_job_to_defer_v1)) FROM generate_series(1, 500) AS n"
    )
    before = rows_read()
    write(20)
    assert rows_read() - before <= 100


def test_procrastinates_function_is_the_one_we_call(connection: psycopg.Connection[Any]) -> None:
    """A procrastinate that renames or reshapes its defer function fails here, not in production."""
    procrastinate_schema = files("procrastinate.sql").joinpath("schema.sql").read_text("utf-8")
    assert re.search(
        r"FUNCTION procrastinate_defer_jobs_v1\(\s*jobs procrastinate_job_to_defer_v1\[\]\s*\)\s*"
        r"RETURNS bigint\[\]",
        procrastinate_schema,
    )
    fields = connection.execute(
        "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute "
        "WHERE attrelid = 'procrastinate_job_to_defer_v1'::regclass AND attnum > 0 ORDER BY attnum"
    ).fetchall()
    assert fields == [
        ("queue_name", "character varying"),
        ("task_name", "character varying"),
        ("priority", "integer"),
        ("lock", "text"),
        ("queueing_lock", "text"),
        ("args", "jsonb"),
        ("scheduled_at", "timestamp with time zone"),
    ]


def test_writers_over_the_same_texts_do_not_deadlock(database_url: str) -> None:
    """Two writers whose batches hold the same chunk texts in opposite order both finish."""
    texts = [f"chunk {number}" for number in range(200)]
    failures: list[Exception] = []
    barrier = threading.Barrier(4)

    def write(seed: int) -> None:
        shuffled = random.Random(seed).sample(texts, len(texts))
        with database.connect(database_url) as conn:
            barrier.wait()
            try:
                for start in range(0, 200, 20):
                    chunks = tuple(
                        Chunk(position=position, text=text)
                        for position, text in enumerate(shuffled[start : start + 20])
                    )
                    write_traces(conn, [make_trace(chunks=chunks), make_trace(chunks=chunks[::-1][:0])])
                    conn.commit()
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    with database.connect(database_url) as conn:
        assert count(conn, "chunk_text") == 200
        assert count(conn, "trace") == 80


@pytest.mark.parametrize(
    "isolation", [psycopg.IsolationLevel.READ_COMMITTED, psycopg.IsolationLevel.SERIALIZABLE]
)
@pytest.mark.parametrize("is_committed", [True, False])
def test_writers_of_the_same_trace_store_it_once(
    database_url: str, is_committed: bool, isolation: psycopg.IsolationLevel
) -> None:
    """Two replays of one file meet: the second waits for the first, and writes only if that was undone."""
    traces = [make_trace() for _ in range(5)]
    written: list[int] = []
    with database.connect(database_url) as first, database.connect(database_url) as second:
        second.isolation_level = isolation

        def replay() -> None:
            written.append(write_traces(second, traces[::-1]))
            second.commit()

        assert write_traces(first, traces) == 5
        other = threading.Thread(target=replay)
        other.start()
        with database.connect(database_url, autocommit=True) as watch:
            while not count(watch, "pg_locks WHERE NOT granted"):
                assert other.is_alive(), "it did not wait"
        first.commit() if is_committed else first.rollback()
        other.join(30)
        assert written == [0 if is_committed else 5]
        assert count(first, "trace") == count(first, "trace_chunk") == count(first, "procrastinate_jobs") == 5


def test_a_frozen_snapshot_is_told_to_come_back(database_url: str) -> None:
    """A transaction that cannot see the other writer's rows fails as an outage, never as a bad trace."""
    trace = make_trace()
    with database.connect(database_url) as old, database.connect(database_url) as other:
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.execute("SELECT 1")
        write_traces(other, [trace])
        other.commit()
        with pytest.raises(DatabaseError, match="another writer"):
            write_traces(old, [trace])


def test_a_text_that_was_cleared_away_comes_back(connection: psycopg.Connection[Any]) -> None:
    """Which texts the server has is asked each time, never remembered: a deleted one is stored again."""
    first, second = make_trace(), make_trace()
    write_traces(connection, [first])
    connection.execute("DELETE FROM chunk_text")
    write_traces(connection, [second])
    assert read_trace(connection, second.id).chunks == clean_trace(second).chunks


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunks": (Chunk(position=40_000, text=""),)}, "32767"),
        ({"chunks": (Chunk(position=0, text="a"), Chunk(position=0, text="b"))}, "share a position"),
        ({"started_at": datetime(2025, 1, 1)}, "time zone"),
    ],
)
def test_what_cannot_be_stored_is_refused_early(
    connection: psycopg.Connection[Any], changes: dict[str, Any], words: str
) -> None:
    """A trace that would break a column is an InputError, and the connection stays usable."""
    with pytest.raises(InputError, match=words):
        write_traces(connection, [make_trace(**changes)])
    assert write_traces(connection, [make_trace()]) == 1


def test_hostile_answers_are_stored(connection: psycopg.Connection[Any]) -> None:
    """Distinct hyphenated four-byte words, the worst case of full-text search, are stored whole."""
    letters = [chr(code) for code in range(0x20000, 0x2A000)]
    pick = random.Random(5)
    words = ("".join(pick.choices(letters, k=4)) for _ in range(120_000))
    answer = " ".join(f"{word[:2]}-{word[2:]}" for word in words)
    traces = [
        make_trace(
            answer=answer, question=answer, session_id=answer, chunks=(Chunk(position=0, text=answer),)
        ),
        make_trace(answer="a" * 1_000_000, question="\0\ud800", tags=("\0",), metadata={"\0": "\udfff"}),
        make_trace(answer="", question="", chunks=(), prompt=()),
    ]
    assert write_traces(connection, traces) == 3
    assert read_trace(connection, traces[0].id).answer == answer
    assert read_trace(connection, traces[1].id) == clean_trace(traces[1])


def test_an_unknown_trace_is_named(connection: psycopg.Connection[Any]) -> None:
    """Asking for a trace that is not there says which and what to do."""
    wanted = uuid4()
    with pytest.raises(InputError, match=str(wanted)):
        read_trace(connection, wanted)


def test_an_unmigrated_database_names_the_next_step(empty_database_url: str) -> None:
    """Without our schema, and without the job queue's, the error says to migrate."""
    with psycopg.connect(empty_database_url) as conn, pytest.raises(DatabaseError, match="ragblame migrate"):
        write_traces(conn, [make_trace()])


def test_a_database_without_the_queue_names_the_next_step(database_url: str) -> None:
    """A connection that does not see the jobs schema fails clearly, and can still write without jobs."""
    with psycopg.connect(database_url, options="-c search_path=ragblame,public") as conn:
        with pytest.raises(DatabaseError, match="ragblame migrate"):
            write_traces(conn, [make_trace()])
        assert write_traces(conn, [make_trace()], enqueue=False) == 1


@pytest.mark.parametrize(
    "value",
    [{}, {"id": "x"}, {"schema": 99}, {**trace_to_json(make_trace()), "surprise": 1}, {"id": 7, "chunks": 3}],
)
def test_foreign_json_is_refused(value: dict[str, Any]) -> None:
    """What is not a trace of ours is an InputError, never a half-filled trace."""
    with pytest.raises(InputError):
        trace_from_json(value)
