"""The schema's state and how it is brought up to date: numbered SQL files, applied once, in order, whole.

A few dozen lines instead of a migration framework, because our schema is plain SQL that no ORM describes.
psycopg's errors pass through; ``ragblame.database`` opens the connections and explains them.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import psycopg

from ragblame.errors import DatabaseError, MigrationError

PREPARED_WEEKS = 4  # partitions made ahead
PARTITION_LOCK_SECONDS = 5.0  # longest wait for a table; whoever comes after us waits as long
_LOCK_KEY = 0x7261_6762_6C61_6D65  # "ragblame": one migrator at a time, in any process on any machine
_SERVER_TROUBLE = {"25006", "53100", "55P03", "57P01", "57P02", "57P03"}  # read-only, disk, locks, shutdown
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


def apply_pending(conn: psycopg.Connection, where: str, report: Callable[[str], None]) -> list[str]:
    """Apply what is missing on an autocommit connection, one migrator at a time; returns the names applied.

    ``where`` names the server in messages; ``report`` gets one line per step.
    Raises ``MigrationError`` (edited file, newer database, failing SQL) or ``DatabaseError`` (no pgvector).
    """
    known = _migration_files()
    with _only_migrator(conn, where, report):
        _prepare(conn, where)
        state = read_state(conn)
        if state.newer_than_code or state.edited:
            raise MigrationError(f"{where}: {state.next_step}")
        if state.pending and state.applied and state.pending[0] < state.applied[-1]:
            raise MigrationError(
                f"{where}: {state.pending[0]} would run after {state.applied[-1]}: give it a higher number"
            )
        for number, name in enumerate(state.pending, 1):
            report(f"migration {number}/{len(state.pending)}: {name}")
            _apply(conn, name, known[name])
        ensure_partitions(conn)
    return list(state.pending)


def set_search_path(conn: psycopg.Connection) -> None:
    """Make our schemas and pgvector's visible; by a statement, as pgbouncer refuses start-up ``options``."""
    conn.execute(_SEARCH_PATH)
    if not conn.autocommit:
        conn.commit()


def read_state(conn: psycopg.Connection) -> SchemaState:
    """What the database holds, read through this connection."""
    known = _migration_files()
    applied: dict[str, str] = {}
    if _value(conn, "SELECT to_regclass('ragblame.migration') IS NOT NULL"):
        applied = dict(conn.execute("SELECT name, sha256 FROM ragblame.migration ORDER BY name").fetchall())
    vector = conn.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    return SchemaState(
        applied=tuple(applied),
        pending=tuple(name for name in known if name not in applied),
        edited=tuple(name for name in applied if name in known and _digest(known[name]) != applied[name]),
        newer_than_code=tuple(name for name in applied if name not in known),
        server_version=server_version(conn),
        vector_version=vector[0] if vector else None,
    )


def ensure_partitions(conn: psycopg.Connection) -> int:
    """Make the missing partitions of this and the coming weeks, each in a transaction; returns how many.

    Call it daily, outside a transaction. Nothing to do costs a millisecond and no lock. When a long query
    holds a table for more than 5 s it raises ``psycopg.errors.LockNotAvailable``: try again later.
    """
    with conn.transaction():
        missing = conn.execute(
            "SELECT parent, week FROM ragblame.missing_partitions(now(), now() + make_interval(weeks => %s))",
            (PREPARED_WEEKS,),
        ).fetchall()
    made = 0
    for parent, week in missing:
        with conn.transaction():
            conn.execute(f"SET LOCAL lock_timeout = '{PARTITION_LOCK_SECONDS}s'".encode())
            made += bool(_value(conn, "SELECT ragblame.ensure_partition(%s, %s)", parent, week))
    return made


def _value(conn: psycopg.Connection, query: str, *parameters: object) -> Any:
    row = conn.execute(query.encode(), parameters or None).fetchone()
    assert row is not None
    return row[0]


def server_version(conn: psycopg.Connection) -> str:
    """The server's version as people write it, for example "18.4"."""
    major, minor = divmod(conn.info.server_version, 10_000)
    return f"{major}.{minor}"


def _migration_files() -> dict[str, str]:
    """Name -> text of our numbered SQL files, in order; line ends as in the repository on every platform."""
    found = [entry for entry in files("ragblame.migrations").iterdir() if entry.name.endswith(".sql")]
    found.sort(key=lambda entry: entry.name)
    return {entry.name: entry.read_text("utf-8").replace("\r\n", "\n") for entry in found}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _only_migrator(conn: psycopg.Connection, where: str, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the migrators' lock for the block.

    It is polled: waiting inside PostgreSQL holds a snapshot, which deadlocks with a CREATE INDEX
    CONCURRENTLY of the very migrator that we wait for.
    """
    deadline = time.monotonic() + _LOCK_PATIENCE
    waiting = False
    while not _value(conn, "SELECT pg_try_advisory_lock(%s)", _LOCK_KEY):
        if not waiting:
            report("waiting for another migration to finish")
            waiting = True
        if time.monotonic() > deadline:
            raise MigrationError(
                f"another migration of {where} does not finish: end it (application_name "
                "'ragblame migrate' in pg_stat_activity) and run `ragblame migrate` again"
            )
        time.sleep(0.1)
    try:
        yield
    finally:
        with suppress(psycopg.Error):  # a broken connection has given its locks back already
            conn.execute("SELECT pg_advisory_unlock(%s)", (_LOCK_KEY,))


def _prepare(conn: psycopg.Connection, where: str) -> None:
    """What must stand before the first file: our schema, pgvector, the table of applied files."""
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
    set_search_path(conn)
    if not _value(conn, "SELECT to_regclass('ragblame.migration') IS NOT NULL"):
        conn.execute(
            "CREATE TABLE ragblame.migration (name text PRIMARY KEY, sha256 text NOT NULL, "
            "applied_at timestamptz NOT NULL DEFAULT now(), seconds double precision NOT NULL)"
        )


def _apply(conn: psycopg.Connection, name: str, text: str) -> None:
    """Run one file, whole or not at all; a file that says ``-- no-transaction`` statement by statement."""
    began = time.monotonic()
    is_whole = not text.startswith("-- no-transaction")
    try:
        if is_whole:
            with conn.transaction():
                conn.execute("SET LOCAL lock_timeout = '30s'")  # never queue the whole application behind us
                conn.execute(text.encode())  # no parameters: several statements, and % means itself
                _record(conn, name, text, began)
        else:
            for statement in text.split(";\n"):
                if statement.strip():
                    conn.execute(statement.encode())
            _record(conn, name, text, began)
    except psycopg.Error as error:
        if error.sqlstate is None or error.sqlstate in _SERVER_TROUBLE:
            raise
        said = (error.diag.message_primary or str(error)).splitlines()[0]
        left = "it changed nothing" if is_whole else "it can be run again"
        raise MigrationError(
            f"migration {name} failed ({said}) and {left}: correct the cause, then run `ragblame migrate`"
        ) from error


def _record(conn: psycopg.Connection, name: str, text: str, began: float) -> None:
    conn.execute(
        "INSERT INTO ragblame.migration (name, sha256, seconds) VALUES (%s, %s, %s)",
        (name, _digest(text), time.monotonic() - began),
    )
