"""The way to PostgreSQL: clear errors for every way to miss it, migrations never half-done, partitions."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ragblame import database, postgres_binaries, postgres_cluster, schema
from ragblame.database_errors import server_name
from ragblame.errors import DatabaseError, MigrationError
from ragblame.settings import Settings

ALL = ("0001_schema.sql", "0002_jobs.sql")


def changed(url: str, **parts: object) -> str:
    """The same connection string with other parts."""
    return make_conninfo(url, **{name: str(value) for name, value in parts.items()})


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def add_migrations(monkeypatch: pytest.MonkeyPatch, extra: Mapping[str, str | None]) -> None:
    """Pretend that the code has further migration files, others' texts, or (None) lacks some."""
    known = schema._migration_files()
    wanted = {name: text for name, text in sorted({**known, **extra}.items()) if text is not None}
    monkeypatch.setattr(schema, "_migration_files", lambda: wanted)


# Connections ------------------------------------------------------------------------------------------------


def test_connection_sees_our_schemas_only_then_public(database_url: str) -> None:
    """The search path is ours also in a new transaction, and pgvector's types are found."""
    with database.connect(database_url) as conn:
        conn.rollback()
        assert conn.execute("SHOW search_path").fetchone() == ("ragblame, jobs, public",)
        assert conn.execute("SELECT '[1,2]'::halfvec::text").fetchone() == ("[1,2]",)


def test_vector_in_a_schema_of_its_own(empty_database_url: str) -> None:
    """Hosted services keep extensions elsewhere; migrations and connections find them there."""
    with psycopg.connect(empty_database_url) as conn:
        conn.execute('CREATE SCHEMA "Ext ensions"')
        conn.execute('CREATE EXTENSION vector WITH SCHEMA "Ext ensions"')
    database.migrate(empty_database_url)
    with database.connect(empty_database_url) as conn:
        assert conn.execute("SELECT '[1,2]'::halfvec::text").fetchone() == ("[1,2]",)


def test_vector_goes_to_public_not_to_our_schema(database_url: str) -> None:
    """A chain that shares the database finds the extension on its default search path."""
    with psycopg.connect(database_url) as conn:
        assert conn.execute("SELECT '[1]'::vector::text").fetchone() == ("[1]",)


def test_read_only_connection_cannot_write(database_url: str) -> None:
    """What the triage page reads with cannot change a row."""
    with (
        database.connect(database_url, read_only=True) as conn,
        pytest.raises(psycopg.errors.ReadOnlySqlTransaction),
    ):
        conn.execute("DELETE FROM trace")


def test_application_name_is_seen_by_the_operator(database_url: str) -> None:
    """pg_stat_activity says which part of us a connection belongs to, unless the URL says otherwise."""
    with database.connect(database_url, application_name="ragblame worker") as conn:
        assert conn.execute("SHOW application_name").fetchone() == ("ragblame worker",)
    with database.connect(changed(database_url, application_name="mine")) as conn:
        assert conn.execute("SHOW application_name").fetchone() == ("mine",)


def test_pool_replaces_a_broken_connection(database_url: str) -> None:
    """A connection that the server closed is noticed before use; the next one is set up like the first."""
    with database.open_pool(database_url, max_size=1) as pool:
        with pool.connection() as conn:
            backend = conn.info.backend_pid
        with psycopg.connect(database_url) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (backend,))
        with pool.connection() as conn:
            assert conn.info.backend_pid != backend
            assert conn.execute("SHOW search_path").fetchone() == ("ragblame, jobs, public",)


def test_configured_url_is_used_as_it_is(database_url: str) -> None:
    """With a database configured no embedded server is started."""
    settings = Settings(database_url=database_url)  # type: ignore[arg-type]
    assert database.resolve_url(settings) == database_url
    assert list(Path(os.environ["RAGBLAME_DATA_DIR"]).iterdir()) == []


# Errors: each in one line, with the server and the next step, never with the password -----------------------


def message_of(url: str) -> str:
    """What connecting fails with; checked for the general rules."""
    began = time.monotonic()
    with pytest.raises(DatabaseError) as raised:
        database.connect(url)
    assert time.monotonic() - began < 8
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_no_server() -> None:
    """Nothing listens: host and port are shown."""
    port = free_port()
    message = message_of(f"postgresql://u:secret@127.0.0.1:{port}/x")
    assert f"127.0.0.1:{port}/x" in message
    assert "nothing listens there" in message
    assert "secret" not in message


def test_wrong_password(postgres_url: str) -> None:
    """The wrong password is called so, and not repeated."""
    message = message_of(changed(postgres_url, password="not-the-secret"))
    assert "the password is wrong" in message
    assert "not-the-secret" not in message


def test_missing_password(postgres_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A URL without the password says where to put it."""
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    known = conninfo_to_dict(postgres_url)
    message = message_of(f"postgresql://{known['user']}@{known['host']}:{known['port']}/{known['dbname']}")
    assert "a password is needed" in message


def test_unknown_database(postgres_url: str) -> None:
    """A database that does not exist is named."""
    message = message_of(changed(postgres_url, dbname="nowhere"))
    assert "/nowhere" in message
    assert "does not exist: create it" in message


def test_unknown_host() -> None:
    """A host name that nobody knows is named."""
    assert "the host name is unknown" in message_of("postgresql://u:secret@no-such-host.invalid/x")


def test_server_that_never_answers() -> None:
    """A port that accepts and stays silent gives an error in connect_timeout seconds."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        message = message_of(f"postgresql://u:secret@127.0.0.1:{port}/x?connect_timeout=2")
    assert "does not answer in time" in message


@pytest.mark.parametrize("url", ["nonsense", "mysql://u:secret@h/x", "postgresql://u:sec%ret@h/x"])
def test_what_is_no_libpq_url(url: str) -> None:
    """An unreadable URL is refused without quoting it, by the settings already."""
    assert "is not a libpq URL" in message_of(url)
    with pytest.raises(DatabaseError, match="is not a libpq URL"):
        database.resolve_url(Settings(database_url=url))  # type: ignore[arg-type]


@given(st.text("ab@/:%#? &=[]", min_size=4, max_size=12))
def test_password_never_leaks_from_a_badly_escaped_url(tail: str) -> None:
    """Whatever an unescaped password does to the URL, no message shows it."""
    try:
        named = server_name(f"postgresql://user:S3CR3T{tail}T3RC3S@127.0.0.1:1/x")
    except DatabaseError as error:
        named = str(error)
    assert "S3CR3T" not in named
    assert "T3RC3S" not in named


@contextmanager
def other_server(programs: Path) -> Iterator[str]:
    """A server of another version, from its folder of programs; skips where there is none."""
    if not (programs / "initdb").exists():
        pytest.skip(f"needs PostgreSQL's programs in {programs}")
    home = Path(tempfile.mkdtemp(prefix="ragblame-other-"))
    home.chmod(0o711 if os.geteuid() == 0 else 0o700)
    data = home / "data"
    data.mkdir(mode=0o700)
    options: dict[str, Any] = {"cwd": "/", "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    account = postgres_binaries.choose_account(data)
    if account is not None:
        os.chown(data, account.uid, account.gid)
        options |= {"user": account.uid, "group": account.gid, "extra_groups": []}
    port = free_port()
    command = [
        str(programs / "postgres"),
        "-D",
        str(data),
        "-p",
        str(port),
        "-h",
        "127.0.0.1",
        "-k",
        "",
        "-F",
    ]
    subprocess.run([programs / "initdb", "-D", data, "-U", "u", "-A", "trust", "-N"], check=True, **options)
    with subprocess.Popen(command, **options) as server:
        try:
            while not postgres_cluster.is_ready(home, server.pid):
                assert server.poll() is None
                time.sleep(0.05)
            yield f"postgresql://u@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGQUIT)
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def old_server_url() -> Iterator[str]:
    """Debian's PostgreSQL 15: older than we support, and without pgvector."""
    with other_server(Path("/usr/lib/postgresql/15/bin")) as url:
        yield url


def test_server_too_old(old_server_url: str) -> None:
    """A server older than 16 is refused with both versions."""
    message = message_of(old_server_url)
    assert "is version 15." in message
    assert "needs 16" in message


def test_server_without_pgvector(old_server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extension the package to install is named, and nothing of ours is applied."""
    monkeypatch.setattr(database, "OLDEST_SERVER", 15)
    with pytest.raises(DatabaseError, match=r"has no pgvector: install it there .*postgresql-15-pgvector"):
        database.migrate(old_server_url)
    state = database.check_schema(old_server_url)
    assert state.applied == ()
    assert state.vector_version is None
    assert state.server_version.startswith("15.")


def test_replica_is_called_so(empty_database_url: str) -> None:
    """A database that takes no writes is not migrated, and says where writes go."""
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        name = sql.Identifier(conn.info.dbname)
        conn.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
    with pytest.raises(DatabaseError, match="read-only replica: point RAGBLAME_DATABASE_URL at the primary"):
        database.migrate(empty_database_url)


def test_user_without_rights_is_told_what_is_missing(empty_database_url: str) -> None:
    """A user who may not create our schema learns that it is a right."""
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute("DROP ROLE IF EXISTS powerless")
        conn.execute("CREATE ROLE powerless LOGIN PASSWORD 'p'")
    try:
        with pytest.raises(DatabaseError, match=r"refuses us a right .* grant it"):
            database.migrate(changed(empty_database_url, user="powerless", password="p"))
    finally:
        with psycopg.connect(empty_database_url, autocommit=True) as conn:
            conn.execute("DROP ROLE powerless")


# Migrations -------------------------------------------------------------------------------------------------


def test_fresh_database_needs_migrating(empty_database_url: str) -> None:
    """An empty database says what to run, and is ready after it; a second run does nothing."""
    with pytest.raises(DatabaseError, match="run `ragblame migrate`"):
        database.require_schema(empty_database_url)
    lines: list[str] = []
    assert database.migrate(empty_database_url, lines.append) == list(ALL)
    assert lines == [f"migration {number}/2: {name}" for number, name in enumerate(ALL, 1)]
    database.require_schema(empty_database_url)
    assert database.migrate(empty_database_url) == []
    state = database.check_schema(empty_database_url)
    assert (state.applied, state.pending, state.edited, state.newer_than_code) == (ALL, (), (), ())
    assert state.vector_version is not None
    assert state.next_step is None


def test_oldest_supported_server() -> None:
    """Every migration, and moving rows into a new partition, works on PostgreSQL 16 too."""
    with other_server(postgres_binaries.find_binaries().parents[1] / "pginstall" / "bin") as url:
        assert database.migrate(url) == list(ALL)
        assert database.check_schema(url).server_version.startswith("16.")
        at = datetime(2031, 6, 4, tzinfo=UTC)
        with database.connect(url) as conn:
            assert add_trace(conn, at) == "trace_default"
            conn.execute("SELECT ensure_partitions(%s, %s)", (at, at))
            assert conn.execute("SELECT count(*) FROM trace_2031w23").fetchone() == (1,)


def test_files_are_numbered_without_gaps() -> None:
    """Two branches that took the same number are found before they are released."""
    names = sorted(
        entry.name for entry in files("ragblame.migrations").iterdir() if entry.name.endswith(".sql")
    )
    assert [name[:5] for name in names] == [f"{number:04}_" for number in range(1, len(names) + 1)]


def test_six_migrators_at_once(empty_database_url: str) -> None:
    """Processes that migrate at the same time apply each file once, and all succeed."""
    code = "import sys; from ragblame import database; print(len(database.migrate(sys.argv[1])))"
    command = [sys.executable, "-c", code, empty_database_url]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    applied = sorted(int(process.communicate(timeout=60)[0]) for process in racing)
    assert applied == [0, 0, 0, 0, 0, len(ALL)]
    database.require_schema(empty_database_url)


def test_migrator_waits_without_a_snapshot(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiting migrator lets CREATE INDEX CONCURRENTLY finish; a plain lock wait would deadlock."""
    add_migrations(
        monkeypatch,
        {
            "0003_index.sql": "-- no-transaction\nSELECT pg_sleep(1);\n"
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS document_title ON ragblame.document (title);\n"
        },
    )
    code = """
        import sys
        from ragblame import database, schema
        known = schema._migration_files()
        known["0003_index.sql"] = sys.argv[2]
        schema._migration_files = lambda: known
        lines = []
        print(len(database.migrate(sys.argv[1], lines.append)), lines)
    """
    text = schema._migration_files()["0003_index.sql"]
    command = [sys.executable, "-c", textwrap.dedent(code), database_url, text]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate(timeout=60)[0] for process in racing)
    assert said[0].startswith("0 ['waiting for another migration")
    assert said[1].startswith("1 ")


def test_edited_file_is_refused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changed after it was applied is named, and nothing else is applied."""
    first = schema._migration_files()[ALL[0]]
    add_migrations(monkeypatch, {ALL[0]: first + "-- more", "0003_more.sql": "CREATE TABLE more ();"})
    with pytest.raises(MigrationError, match=r"0001_schema.sql was edited .*: restore it"):
        database.migrate(database_url)
    state = database.check_schema(database_url)
    assert (state.edited, state.pending) == (ALL[:1], ("0003_more.sql",))


def test_windows_line_ends_are_no_edit(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that turned line ends around is the same file."""
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: read(self, *a, **k).replace("\n", "\r\n"))
    assert database.check_schema(database_url).edited == ()


def test_newer_database_is_refused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that a newer program migrated is not touched by this one."""
    add_migrations(monkeypatch, {ALL[1]: None})
    with pytest.raises(MigrationError, match=r"newer than this program .*: upgrade ragblame"):
        database.migrate(database_url)
    with pytest.raises(DatabaseError, match="upgrade ragblame"):
        database.require_schema(database_url)


def test_late_number_is_refused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that sorts before applied ones, say from another branch, is not slipped in."""
    add_migrations(monkeypatch, {"0001_zebra.sql": "CREATE TABLE zebra ();"})
    with pytest.raises(
        MigrationError, match=r"0001_zebra.sql would run after 0002_jobs.sql: give it a higher"
    ):
        database.migrate(database_url)


def test_failing_file_leaves_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that fails half-way is undone whole; files before it stay, and a corrected one runs."""
    good = {"0003_good.sql": "CREATE TABLE good ();"}
    bad = "CREATE TABLE half ();\nSELECT 1/0;\nCREATE TABLE other ();"
    add_migrations(monkeypatch, {**good, "0004_bad.sql": bad})
    with pytest.raises(
        MigrationError, match=r"0004_bad.sql failed \(division by zero\) and it changed nothing"
    ):
        database.migrate(database_url)
    with database.connect(database_url) as conn:
        found = conn.execute(
            "SELECT to_regclass('good') IS NOT NULL, to_regclass('half'), to_regclass('other')"
        )
        assert found.fetchone() == (True, None, None)
    add_migrations(monkeypatch, {**good, "0004_bad.sql": bad.replace("1/0", "1/1")})
    assert database.migrate(database_url) == ["0004_bad.sql"]


def test_lock_is_free_after_a_failure(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed migration does not keep the next one waiting."""
    add_migrations(monkeypatch, {"0003_bad.sql": "SELECT 1/0;"})
    for _ in range(2):
        with pytest.raises(MigrationError, match="division by zero"):
            database.migrate(database_url)


def test_percent_and_semicolons_in_bodies(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQL is run as written: no parameter and no splitting inside a transaction file."""
    body = "BEGIN\n RETURN format('100%% %s;\n', 1);\nEND"
    text = f"CREATE FUNCTION odd() RETURNS text LANGUAGE plpgsql AS $$ {body} $$;"
    add_migrations(monkeypatch, {"0003_odd.sql": text})
    database.migrate(database_url)
    with database.connect(database_url) as conn:
        assert conn.execute("SELECT odd()").fetchone() == ("100% 1;\n",)


# The job queue ----------------------------------------------------------------------------------------------


def test_job_schema_is_procrastinates_own() -> None:
    """An upgraded procrastinate cannot slip in: its schema and its migration files are those that we ship."""
    manager = pytest.importorskip("procrastinate.schema").SchemaManager
    ours = schema._migration_files()["0002_jobs.sql"]
    assert (
        ours.split("-- Procrastinate Schema", 1)[1]
        == manager.get_schema().split("-- Procrastinate Schema", 1)[1]
    )
    shipped = sorted(name for name in os.listdir(manager.get_migrations_path()) if name.endswith(".sql"))
    assert len(shipped) == 38
    assert shipped[-1] == "03.04.00_50_post_add_retry_failed_job_procedure.sql"


def test_job_commits_with_its_trace(database_url: str) -> None:
    """A job deferred by plain SQL is seen after commit, and gone after rollback."""
    defer = """SELECT procrastinate_defer_jobs_v1(ARRAY[ROW('attribution', 'attribute', 0, NULL,
        %s, '{}'::jsonb, NULL)::procrastinate_job_to_defer_v1])"""
    with database.connect(database_url) as conn:
        conn.execute(defer, ("attribute-1",))
        conn.rollback()
        conn.execute(defer, ("attribute-2",))
        conn.commit()
    with psycopg.connect(database_url) as conn:
        assert conn.execute("SELECT queueing_lock FROM jobs.procrastinate_jobs").fetchall() == [
            ("attribute-2",)
        ]


# Partitions and limits of the schema ------------------------------------------------------------------------


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
    assert made == (12,)
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
