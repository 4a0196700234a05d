"""The one way to PostgreSQL: where it is, connections and pools that see our schemas, and migrations.

It imports psycopg, so the plugin imports it only in the background writer. Every failure is a
``DatabaseError`` whose text names the server and the next step.
"""

import hashlib
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from ragblame.database_errors import OLDEST_SERVER, explain, server_name
from ragblame.errors import DatabaseError, MigrationError
from ragblame.settings import Settings

CONNECT_TIMEOUT = 10  # seconds, unless the URL says otherwise
CHECK_TIMEOUT = 5.0  # seconds a pooled connection may take to show that it is alive
PREPARED_WEEKS = 4  # partitions made ahead
_LOCK_KEY = 0x7261_6762_6C61_6D65  # "ragblame": one migrator at a time, in any process on any machine
_LOCK_PATIENCE = 600.0  # seconds to wait for another migrator

# pgvector may live in any schema (hosted services use their own), so its home is looked up, not assumed
_SEARCH_PATH = """
    SELECT set_config('search_path', concat_ws(', ', 'ragblame', 'jobs', 'public',
        (SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
         WHERE e.extname = 'vector' AND n.nspname <> 'public')), false)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaState:
    """What is in a database, against what this program expects."""

    applied: tuple[str, ...]  # names of migration files, in order
    pending: tuple[str, ...]
    edited: tuple[str, ...]  # applied, but the file has changed since
    newer_than_code: tuple[str, ...]  # applied by a newer program: unknown here
    server_version: str  # for example "18.4"
    vector_version: str | None  # of the extension in this database; None: not installed

    @property
    def next_step(self) -> str | None:
        """What a person must do before this program can use the database; None when it is ready."""
        if self.newer_than_code:
            return f"the database is newer than this program ({self.newer_than_code[-1]}): upgrade ragblame"
        if self.edited:
            return f"{self.edited[0]} was edited after it was applied: restore it and add a new file instead"
        if self.pending:
            return f"{len(self.pending)} migrations are missing: run `ragblame migrate`"
        return None


def resolve_url(settings: Settings) -> str:
    """The configured database, or the embedded server's, started when needed and kept while we live.

    Raises ``DatabaseError``.
    """
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        server_name(url)  # an unreadable URL is refused here, before anybody quotes it
        return url
    from ragblame import postgres

    return postgres.ensure_running(settings.data_dir)


def connect(
    url: str, *, autocommit: bool = False, application_name: str = "ragblame", read_only: bool = False
) -> psycopg.Connection:
    """One connection with search path ``ragblame, jobs, public``; a caller's ``with`` commits and closes it.

    Raises ``DatabaseError``: unreachable, wrong password, no such database, server older than 16.
    """
    try:
        conn = psycopg.connect(url, **_parameters(url, application_name))
        try:
            _configure(conn)
            conn.read_only = read_only or None
            conn.autocommit = autocommit
        except BaseException:
            conn.close()
            raise
    except psycopg.Error as error:
        raise explain(error, url) from error
    if conn.info.server_version < OLDEST_SERVER * 10_000:
        version = _server_version(conn)
        conn.close()
        raise DatabaseError(
            f"PostgreSQL at {server_name(url)} is version {version}, but ragblame needs {OLDEST_SERVER}: "
            "upgrade the server, or unset RAGBLAME_DATABASE_URL to use the embedded one"
        )
    return conn


def open_pool(
    url: str,
    *,
    min_size: int = 1,
    max_size: int = 4,
    application_name: str = "ragblame",
    read_only: bool = False,
) -> ConnectionPool:
    """A pool whose connections are checked before use, so it survives a restart of the server; close it.

    Raises ``DatabaseError`` at once when the server cannot be used. ``pool.connection()`` waits at most 10 s.
    """
    connect(url, application_name=application_name).close()  # a clear error now, instead of a time-out later

    def configure(conn: psycopg.Connection) -> None:
        _configure(conn)
        conn.read_only = read_only or None

    return ConnectionPool(
        url,
        kwargs=_parameters(url, application_name),
        min_size=min_size,
        max_size=max_size,
        configure=configure,
        check=_check_alive,
        timeout=10.0,
        name=application_name,
        open=True,
    )


def migrate(url: str, on_progress: Callable[[str], None] | None = None) -> list[str]:
    """Bring the database up to date, with the coming weeks' partitions; returns the names of what it applied.

    Safe to run from any number of processes at once. ``on_progress`` gets one line per step.
    Raises ``MigrationError`` (edited file, newer database, failing SQL) or another ``DatabaseError``.
    """
    report = on_progress or (lambda line: None)
    known = _migration_files()
    applied: list[str] = []
    with connect(url, autocommit=True, application_name="ragblame migrate") as conn:
        try:
            if _value(conn, "SELECT pg_is_in_recovery()"):
                raise psycopg.errors.ReadOnlySqlTransaction
            with _only_migrator(conn, url, report):
                _prepare(conn, url)
                state = _schema_state(conn, known)
                if state.newer_than_code or state.edited:
                    raise MigrationError(state.next_step)
                if state.pending and state.applied and state.pending[0] < state.applied[-1]:
                    raise MigrationError(
                        f"{state.pending[0]} would run after {state.applied[-1]}: give it a higher number"
                    )
                for number, name in enumerate(state.pending, 1):
                    report(f"migration {number}/{len(state.pending)}: {name}")
                    _apply(conn, name, known[name])
                    applied.append(name)
                ensure_partitions(conn)
        except psycopg.Error as error:
            raise explain(error, url) from error
    return applied


def check_schema(url: str) -> SchemaState:
    """What the database holds; changes nothing. Raises ``DatabaseError`` when it cannot be reached."""
    with connect(url, autocommit=True, read_only=True) as conn:
        try:
            return _schema_state(conn, _migration_files())
        except psycopg.Error as error:
            raise explain(error, url) from error


def require_schema(url: str) -> None:
    """Raise ``DatabaseError`` with the next step unless the database is exactly what this program expects."""
    step = check_schema(url).next_step
    if step is not None:
        raise DatabaseError(f"PostgreSQL at {server_name(url)}: {step}")


def ensure_partitions(conn: psycopg.Connection) -> int:
    """Make the partitions of this and the coming weeks in one transaction; returns how many were new.

    Call it daily. Nothing to do costs a millisecond and takes no lock. When a long query holds the tables for
    more than 5 s it raises ``psycopg.errors.LockNotAvailable`` and has changed nothing: try again later.
    """
    with conn.transaction():
        conn.execute("SET LOCAL lock_timeout = '5s'")
        weeks = f"SELECT ragblame.ensure_partitions(now(), now() + interval '{PREPARED_WEEKS} weeks')"
        return int(_value(conn, weeks))


def _parameters(url: str, application_name: str) -> dict[str, Any]:
    """Connection parameters that the URL leaves open; a dead network peer is noticed within a minute."""
    server_name(url)
    wanted = {
        "connect_timeout": CONNECT_TIMEOUT,
        "application_name": application_name,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    }
    given = conninfo_to_dict(url)
    return {name: value for name, value in wanted.items() if name not in given}


def _configure(conn: psycopg.Connection) -> None:
    """Set the search path by a statement: start-up ``options`` are refused by pgbouncer."""
    conn.execute(_SEARCH_PATH)
    conn.commit()


def _check_alive(conn: psycopg.Connection) -> None:
    """psycopg_pool's check with a limit: its own waits for ever for a server that is frozen."""
    pgconn = conn.pgconn
    pgconn.send_query(b"")
    deadline = time.monotonic() + CHECK_TIMEOUT
    while True:
        readable, _, _ = select.select([pgconn.socket], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            conn.close()
            raise psycopg.OperationalError("the server does not answer in time")
        pgconn.consume_input()
        while not pgconn.is_busy():
            if pgconn.get_result() is None:
                return


def _value(conn: psycopg.Connection, query: str, *parameters: object) -> Any:
    row = conn.execute(query.encode(), parameters or None).fetchone()
    assert row is not None
    return row[0]


def _server_version(conn: psycopg.Connection) -> str:
    major, minor = divmod(conn.info.server_version, 10_000)
    return f"{major}.{minor}"


def _migration_files() -> dict[str, str]:
    """Name -> text of our numbered SQL files, in order; line ends as in the repository on every platform."""
    found = [entry for entry in files("ragblame.migrations").iterdir() if entry.name.endswith(".sql")]
    return {
        entry.name: entry.read_text("utf-8").replace("\r\n", "\n")
        for entry in sorted(found, key=lambda e: e.name)
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _schema_state(conn: psycopg.Connection, known: dict[str, str]) -> SchemaState:
    applied: dict[str, str] = {}
    if _value(conn, "SELECT to_regclass('ragblame.migration') IS NOT NULL"):
        applied = dict(conn.execute("SELECT name, sha256 FROM ragblame.migration ORDER BY name").fetchall())
    vector = conn.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    return SchemaState(
        applied=tuple(applied),
        pending=tuple(name for name in known if name not in applied),
        edited=tuple(
            name for name, digest in applied.items() if name in known and _digest(known[name]) != digest
        ),
        newer_than_code=tuple(name for name in applied if name not in known),
        server_version=_server_version(conn),
        vector_version=vector[0] if vector else None,
    )


@contextmanager
def _only_migrator(conn: psycopg.Connection, url: str, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the migrators' lock. Polled: waiting inside PostgreSQL holds a snapshot, which deadlocks with the
    CREATE INDEX CONCURRENTLY of the migrator that we wait for."""
    deadline = time.monotonic() + _LOCK_PATIENCE
    waiting = False
    while not _value(conn, "SELECT pg_try_advisory_lock(%s)", _LOCK_KEY):
        if not waiting:
            report("waiting for another migration to finish")
            waiting = True
        if time.monotonic() > deadline:
            raise MigrationError(
                f"another migration of {server_name(url)} does not finish: end it (application_name "
                "'ragblame migrate' in pg_stat_activity) and run `ragblame migrate` again"
            )
        time.sleep(0.1)
    try:
        yield
    finally:
        if not conn.closed:
            conn.execute("SELECT pg_advisory_unlock(%s)", (_LOCK_KEY,))


def _prepare(conn: psycopg.Connection, url: str) -> None:
    """What must stand before the first file: our schema, pgvector, the table of applied files."""
    where = f"PostgreSQL at {server_name(url)}"
    # existence first: IF NOT EXISTS asks for the right to create even where nothing is created
    if not _value(conn, "SELECT to_regnamespace('ragblame') IS NOT NULL"):
        conn.execute("CREATE SCHEMA IF NOT EXISTS ragblame")
    if not _value(conn, "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'vector')"):
        if not _value(conn, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector')"):
            major = conn.info.server_version // 10_000
            raise DatabaseError(
                f"{where} has no pgvector: install it there (Debian and Ubuntu: postgresql-{major}-pgvector, "
                f"Red Hat: pgvector_{major}), or unset RAGBLAME_DATABASE_URL to use the embedded server"
            )
        home = "public" if _value(conn, "SELECT to_regnamespace('public') IS NOT NULL") else "ragblame"
        try:
            conn.execute(f"CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA {home}".encode())
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseError(
                f"{where} does not let this user install pgvector: have a superuser run "
                "`CREATE EXTENSION vector` in this database once"
            ) from error
    _configure(conn)
    if not _value(conn, "SELECT to_regclass('ragblame.migration') IS NOT NULL"):
        conn.execute(
            "CREATE TABLE ragblame.migration (name text PRIMARY KEY, sha256 text NOT NULL, "
            "applied_at timestamptz NOT NULL DEFAULT now(), seconds double precision NOT NULL)"
        )


def _apply(conn: psycopg.Connection, name: str, text: str) -> None:
    """Run one file, whole or not at all; a file that says ``-- no-transaction`` statement by statement."""
    began = time.monotonic()
    try:
        if text.startswith("-- no-transaction"):
            for statement in text.split(";\n"):
                if statement.strip():
                    conn.execute(statement.encode())
            _record(conn, name, text, began)
        else:
            with conn.transaction():
                conn.execute("SET LOCAL lock_timeout = '30s'")  # never queue the whole application behind us
                conn.execute(text.encode())  # no parameters: several statements, and % means itself
                _record(conn, name, text, began)
    except psycopg.Error as error:
        if error.sqlstate is None or error.sqlstate in ("25006", "53100", "55P03"):
            raise  # the server's trouble, not the file's
        said = (error.diag.message_primary or str(error)).splitlines()[0]
        raise MigrationError(
            f"migration {name} failed and was rolled back ({said}): correct the cause, run `ragblame migrate`"
        ) from error


def _record(conn: psycopg.Connection, name: str, text: str, began: float) -> None:
    conn.execute(
        "INSERT INTO ragblame.migration (name, sha256, seconds) VALUES (%s, %s, %s)",
        (name, _digest(text), time.monotonic() - began),
    )
