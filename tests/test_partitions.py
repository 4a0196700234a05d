"""The schema at its edges: weeks, rows without a partition, other servers, texts that exceed index limits."""

import uuid
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import psycopg
import pytest
from psycopg import sql

from ragblame import database, postgres_binaries, schema
from tests.embedded_server import other_server


def uuid7(at: datetime) -> uuid.UUID:
    """A UUIDv7 of an instant, made independently of the code under test (RFC 9562, 5.7)."""
    milliseconds = int(at.timestamp() * 1000)
    return uuid.UUID(int=(milliseconds << 80) | (7 << 76) | (2 << 62) | (uuid.uuid4().int & ((1 << 62) - 1)))


def add_trace(
    conn: psycopg.Connection, at: datetime, question: str = "q", answer: str = "a", **more: object
) -> str:
    """Store a trace; returns the partition that took it."""
    columns = {"id": uuid7(at), "app": "t", "question": question, "answer": answer, "status": "ok", **more}
    columns |= {"started_at": at, "duration_ms": 1.0, "origin": "import"}
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    values = sql.SQL(", ").join(sql.Placeholder() * len(columns))
    insert = sql.SQL("INSERT INTO trace ({}) VALUES ({}) RETURNING tableoid::regclass::text").format(
        names, values
    )
    row = conn.execute(insert, list(columns.values())).fetchone()
    assert row is not None
    return str(row[0])


def test_every_instant_of_the_coming_weeks_has_a_partition(connection: psycopg.Connection) -> None:
    """Traces from now until four weeks ahead have partitions; weeks start on Monday, UTC."""
    now = datetime.now(UTC)
    for hours in range(0, 28 * 24, 13):
        at = now + timedelta(hours=hours)
        year, week, _ = at.isocalendar()
        assert add_trace(connection, at) == f"trace_{year}w{week:02}"


def test_week_boundaries_are_exact(connection: psycopg.Connection) -> None:
    """The last millisecond of a Sunday and the first of the Monday after it fall into different weeks."""
    now = datetime.now(UTC)
    monday = (now + timedelta(days=7 - now.weekday())).replace(hour=0, minute=0, second=0, microsecond=0)
    before, after = (add_trace(connection, monday + timedelta(milliseconds=step)) for step in (-1, 0))
    assert before < after
    assert after == f"trace_{monday.isocalendar().year}w{monday.isocalendar().week:02}"


def test_rows_move_out_of_the_default_partition(connection: psycopg.Connection) -> None:
    """Rows of a week without a partition are kept, and move into it, searchable, when it is made."""
    at = datetime(2031, 6, 4, tzinfo=UTC)
    assert add_trace(connection, at, question="zebra") == "trace_default"
    assert add_trace(connection, at + timedelta(days=30)) == "trace_default"
    connection.execute(
        "INSERT INTO verdict (trace_id, span, verdict, basis, support, support_rule, severity, explanation, "
        "thresholds_version) VALUES (%s, 0, 'grounded', 'b', 'entailed', 'r', 0, 'e', 'v')",
        (uuid7(at),),
    )
    connection.commit()
    made = connection.execute("SELECT ensure_partitions(%s, %s)", (at, at)).fetchone()
    assert made == (14,)
    found = "SELECT tableoid::regclass::text, count(*) FROM trace GROUP BY 1 ORDER BY 1"
    assert connection.execute(found).fetchall() == [("trace_2031w23", 1), ("trace_default", 1)]
    assert connection.execute("SELECT tableoid::regclass::text FROM verdict").fetchall() == [
        ("verdict_2031w23",)
    ]
    assert connection.execute("SELECT count(*) FROM trace WHERE search @@ 'zebra'::tsquery").fetchone() == (
        1,
    )


def test_partition_equals_its_siblings(connection: psycopg.Connection) -> None:
    """A partition attached later has the indexes and constraints of those made by other means."""
    at = datetime(2031, 6, 4, tzinfo=UTC)
    connection.execute("SELECT ensure_partitions(%s, %s)", (at, at))
    shape = """SELECT count(*) FILTER (WHERE indisprimary), count(*),
        (SELECT count(*) FROM pg_constraint WHERE conrelid = indrelid AND contype = 'c')
        FROM pg_index WHERE indrelid = %s::regclass GROUP BY indrelid"""
    for table in ("trace", "trace_chunk", "verdict", "triage_item", "review"):
        late, default = (
            connection.execute(shape, (f"{table}_{part}",)).fetchone() for part in ("2031w23", "default")
        )
        assert late == default


def test_making_partitions_again_does_nothing(connection: psycopg.Connection) -> None:
    """The daily call is idle when all weeks exist, and makes exactly what is missing."""
    assert database.ensure_partitions(connection) == 0
    week = (datetime.now(UTC) + timedelta(weeks=2)).isocalendar()
    connection.execute(f"DROP TABLE share_{week.year}w{week.week:02}".encode())
    connection.commit()
    assert database.ensure_partitions(connection) == 1
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_busy_default_partition_is_not_waited_for_long(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a long query reads everything, making a partition gives up and blocks nobody for long."""
    week = (datetime.now(UTC) + timedelta(weeks=2)).isocalendar()
    with database.connect(database_url) as reader, database.connect(database_url, autocommit=True) as worker:
        worker.execute(f"DROP TABLE trace_{week.year}w{week.week:02}".encode())
        reader.execute("SELECT count(*) FROM trace")
        monkeypatch.setattr(schema, "PARTITION_LOCK_SECONDS", 0.2)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            database.ensure_partitions(worker)
        reader.rollback()
        assert database.ensure_partitions(worker) == 1


def worst_words(size: int) -> dict[str, str]:
    """Texts of many distinct long-encoded words, which fill a tsvector fastest."""
    rare = [chr(0x20000 + number) for number in range(size // 2)]  # letters of four bytes
    return {
        "words": " ".join(rare),
        "hyphenated": " ".join(f"{left}-{right}" for left, right in pairwise(rare)),
        "addresses": " ".join(f"http://{number}.example.org/{number}/x?y" for number in range(size // 30)),
        "one word": "x" * size,
        "nothing": "",
    }


@pytest.mark.parametrize("kind", ["words", "hyphenated", "addresses", "one word", "nothing"])
def test_hostile_text_of_a_megabyte_is_stored(connection: psycopg.Connection, kind: str) -> None:
    """No text exceeds a limit of PostgreSQL's indexes: not answer, question, chunk, or any identity."""
    text = worst_words(1_000_000)[kind]
    assert add_trace(connection, datetime.now(UTC), text, text, session_id=text).startswith("trace_2")
    connection.execute(
        "INSERT INTO trace_chunk (trace_id, position, sha256, source_table, source_id) "
        "VALUES (%s, 0, '', %s, %s)",
        (uuid7(datetime.now(UTC)), text, text),
    )
    connection.execute(
        "WITH m AS (INSERT INTO embedding_model (name, dimensions) VALUES ('m', 1) RETURNING id), "
        "d AS (INSERT INTO document (id, source, title, sha256) "
        "VALUES (gen_random_uuid(), 's', %s, '') RETURNING id) "
        "INSERT INTO chunk (id, document_id, position, text, model_id, embedding) "
        "SELECT gen_random_uuid(), d.id, 0, %s, m.id, '[1]' FROM m, d",
        (text, text),
    )


def test_oldest_supported_server() -> None:
    """Every migration, and moving rows into a new partition, works on PostgreSQL 16 too."""
    with other_server(postgres_binaries.find_binaries().parents[1] / "pginstall" / "bin") as url:
        assert database.migrate(url)
        assert database.check_schema(url).server_version.startswith("16.")
        at = datetime(2031, 6, 4, tzinfo=UTC)
        with database.connect(url) as conn:
            assert add_trace(conn, at) == "trace_default"
            conn.execute("SELECT ensure_partitions(%s, %s)", (at, at))
            assert conn.execute("SELECT count(*) FROM trace_2031w23").fetchone() == (1,)
