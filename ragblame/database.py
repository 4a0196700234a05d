"""The one way to PostgreSQL: where it is, connections and pools that see our schemas, and migrations.

It imports psycopg, so the plugin imports it only in the background writer. Every failure is a
``DatabaseError`` whose text names the server and the next step.
"""

import selectors
import time
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from ragblame import schema
from ragblame.database_errors import OLDEST_SERVER, explain, server_name
from ragblame.errors import DatabaseError
from ragblame.schema import SchemaState, ensure_partitions
from ragblame.settings import Settings

__all__ = [
    "SchemaState",
    "check_schema",
    "connect",
    "ensure_partitions",
    "migrate",
    "open_pool",
    "require_schema",
    "resolve_url",
]

CONNECT_TIMEOUT = 10  # seconds, unless the URL says otherwise
CHECK_TIMEOUT = 5.0  # seconds a pooled connection may take to show that it is alive


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
    url: str,
    *,
    autocommit: bool = False,
    application_name: str = "ragblame",
    read_only: bool = False,
    kind: type[psycopg.Connection[Any]] = psycopg.Connection,
    timeout: int = CONNECT_TIMEOUT,
) -> psycopg.Connection:
    """One connection with search path ``ragblame, jobs, public``; a caller's ``with`` commits and closes it.

    ``timeout``: seconds until the server must have let us in, unless the URL says otherwise.
    Raises ``DatabaseError``: unreachable, wrong password, no such database, server older than 16.
    """
    try:
        conn = kind.connect(url, **_parameters(url, application_name, timeout))
        try:
            schema.set_search_path(conn)
            conn.read_only = read_only or None
            conn.autocommit = autocommit
        except BaseException:
            conn.close()
            raise
    except psycopg.Error as error:
        raise explain(error, url) from error
    if conn.info.server_version < OLDEST_SERVER * 10_000:
        version = schema.server_version(conn)
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
        schema.set_search_path(conn)
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
    with connect(url, autocommit=True, application_name="ragblame migrate") as conn:
        try:
            return schema.apply_pending(conn, f"PostgreSQL at {server_name(url)}", report)
        except psycopg.Error as error:
            raise explain(error, url) from error


def check_schema(url: str) -> SchemaState:
    """What the database holds; changes nothing. Raises ``DatabaseError`` when it cannot be reached."""
    with connect(url, autocommit=True, read_only=True) as conn:
        try:
            return schema.read_state(conn)
        except psycopg.Error as error:
            raise explain(error, url) from error


def require_schema(url: str) -> None:
    """Raise ``DatabaseError`` with the next step unless the database is exactly what this program expects."""
    step = check_schema(url).next_step
    if step is not None:
        raise DatabaseError(f"PostgreSQL at {server_name(url)}: {step}")


def _parameters(url: str, application_name: str, timeout: int = CONNECT_TIMEOUT) -> dict[str, Any]:
    """Connection parameters that the URL leaves open; a dead network peer is noticed within a minute."""
    server_name(url)
    wanted = {
        "connect_timeout": timeout,
        "application_name": application_name,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    }
    given = conninfo_to_dict(url)
    return {name: value for name, value in wanted.items() if name not in given}


def _check_alive(conn: psycopg.Connection) -> None:
    """psycopg_pool's check with a limit: its own waits for ever for a server that is frozen."""
    pgconn = conn.pgconn
    pgconn.send_query(b"")
    deadline = time.monotonic() + CHECK_TIMEOUT
    with selectors.DefaultSelector() as selector:
        selector.register(pgconn.socket, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            pgconn.consume_input()
            while not pgconn.is_busy():
                if pgconn.get_result() is None:
                    return
    conn.close()
    raise psycopg.OperationalError(f"the server does not answer within {CHECK_TIMEOUT:.0f} s")
