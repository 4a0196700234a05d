"""Statements of one read-only transaction under a common deadline: each may be cut short, none may write.

A statement that takes too long costs its own result only; what was found before it stays.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from ragblame.errors import DatabaseError

_LEAST: Final = 0.02  # seconds below which a statement is not begun
_START: Final = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_IS_READ_ONLY: Final = "SELECT current_setting('transaction_read_only')"
_LIMITS: Final = "SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', '500ms', true)"


def late(seconds: float) -> str:
    """Why a statement has no result."""
    return f"not finished in {seconds:.1f} s" if seconds > 0 else "not begun: the time was over"


class Clock:
    """Runs statements until ``seconds`` are over."""

    def __init__(self, cursor: psycopg.Cursor[tuple[Any, ...]], seconds: float) -> None:
        self._cursor = cursor
        self._began = time.monotonic()
        self._seconds = seconds

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds until the end; may be negative."""
        return self._seconds - self.spent

    def ask(
        self, statement: sql.SQL | sql.Composed, parameters: Mapping[str, Any], *, seconds: float
    ) -> tuple[list[tuple[Any, ...]] | None, float]:
        """The rows, or None when it took longer than ``seconds`` or than what is left; and what it took.

        Raises ``psycopg.Error`` for every other failure.
        """
        limit = min(seconds, self.left)
        if limit < _LEAST:
            return None, 0.0
        began = time.monotonic()
        try:
            with self._cursor.connection.transaction():
                self._cursor.execute(_LIMITS, (f"{max(1, round(limit * 1_000))}ms",))
                # prepared statements may fall back to a plan that knows no parameter: never here
                rows = self._cursor.execute(statement, parameters, prepare=False).fetchall()
        except psycopg.errors.QueryCanceled:
            return None, time.monotonic() - began
        return rows, time.monotonic() - began

    @contextmanager
    def settings(self, settings: Mapping[str, str]) -> Iterator[None]:
        """Settings of the server while the block runs, without those that an older pgvector does not have."""
        with self._cursor.connection.transaction(force_rollback=True):  # which takes the settings back
            for name, value in settings.items():
                try:
                    with self._cursor.connection.transaction():
                        self._cursor.execute("SELECT set_config(%s, %s, true)", (name, value))
                except psycopg.errors.InvalidName:
                    pass
            yield


@contextmanager
def read_only(conn: psycopg.Connection[Any], seconds: float) -> Iterator[Clock]:
    """One transaction over one snapshot, in which PostgreSQL itself refuses every write.

    Raises ``DatabaseError`` should the server not say that it is read-only.
    """
    with conn.transaction(force_rollback=True), conn.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(_START)
        said = cursor.execute(_IS_READ_ONLY).fetchone()
        if said is None or said[0] != "on":
            raise DatabaseError("the server does not keep the probe from writing: nothing was asked")
        yield Clock(cursor, seconds)


def search_path(extension_schema: str) -> dict[str, str]:
    """The setting that resolves operators and types in pgvector's schema only.

    No operator or function that a user planted elsewhere is found.
    """
    quoted = '"' + extension_schema.replace('"', '""') + '"'
    return {"search_path": f"pg_catalog, {quoted}"}
