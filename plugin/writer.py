"""Puts traces into PostgreSQL, or on the spool while it is away. Lives in the recorder's thread only.

One connection, opened when there is something to write and closed when idle. A failing server is left alone
for a growing while, so that an outage costs neither log floods nor a connection attempt per trace.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import psycopg

from ragblame import database
from ragblame.errors import DatabaseError, RagblameError
from ragblame.plugin.assembly import Limits
from ragblame.plugin.counters import counters
from ragblame.plugin.spool import Spool
from ragblame.records import Trace
from ragblame.settings import Settings, default_data_dir
from ragblame.traces import write_traces

IDLE_SECONDS: Final = 30.0  # after which the connection is given back
FIRST_REST: Final = 1.0  # seconds without an attempt after a failure; doubles
LONGEST_REST: Final = 30.0
LOOK_SECONDS: Final = 60.0  # between two looks for files that other processes left


class Writer:
    """Writes batches of traces; without readable ``settings`` only the spool is left."""

    def __init__(self, settings: Settings | None) -> None:
        data_dir = settings.data_dir if settings is not None else default_data_dir()
        self.settings = settings
        self.limits = Limits()
        if settings is not None:
            self.limits = Limits(
                max_field=settings.capture_max_field,
                max_chunks=settings.capture_max_chunks,
                app=settings.app,
            )
        self.spool = Spool(data_dir / "spool", settings.spool_max_bytes if settings else 512_000_000)
        self.is_clean = True  # nothing of this process waits on the spool or was lost
        self._conn: psycopg.Connection[Any] | None = None
        self._used = 0.0  # monotonic seconds of the last use of the connection
        self._rest = 0.0  # length of the current rest
        self._rests_until = 0.0
        self._looks_at = (
            0.0  # when to look at the spool again; at once: earlier processes may have left files
        )

    def write(self, traces: Sequence[Trace]) -> None:
        """Store the traces, else spool them, else count them as dropped. Never raises."""
        if time.monotonic() >= self._rests_until:
            try:
                self._store(traces)
                self._note_recovery()
                return
            except Exception as error:
                self._note_outage(error)
        self._to_spool(traces)

    def replay(self, *, everything: bool = False) -> bool:
        """Bring spooled traces to PostgreSQL when it is time, a file a call; whether none of ours is left.

        With ``everything``: all of them, and at once. Files of other living processes are left to them.
        """
        now = time.monotonic()
        if not everything and now < max(self._looks_at, self._rests_until):
            return self.is_clean
        if not self.spool.has_files():
            self.is_clean, self._looks_at = True, now + LOOK_SECONDS
            return True
        try:
            count, is_done = self.spool.replay(self._store, max_files=None if everything else 1)
            counters.add("replayed", count)
            if count:
                self._note_recovery()
        except Exception as error:
            self._note_outage(error)
            return False
        if is_done:
            self.is_clean, self._looks_at = True, now + LOOK_SECONDS
        return self.is_clean

    def next_wakeup(self) -> float | None:
        """Seconds until there is something to do without a new trace; None: nothing at all."""
        now = time.monotonic()
        due = [self._used + IDLE_SECONDS] if self._conn is not None else []
        if self.spool.has_files():
            due.append(max(self._looks_at, self._rests_until))
        return max(min(due) - now, 0.001) if due else None

    def rest(self) -> None:
        """Called when nothing is to be done: give an idle connection back, keep the totals."""
        if self._conn is not None and time.monotonic() - self._used >= IDLE_SECONDS:
            self.disconnect()
        self.save_counts()

    def disconnect(self) -> None:
        """Close the connection, if any."""
        conn, self._conn = self._conn, None
        if conn is not None:
            try:
                conn.close()
            except Exception as error:
                counters.note_fault(error)

    def save_counts(self) -> None:
        """Add what was lost or refused since the last time to the spool folder's totals."""
        news = {name: count for name, count in counters.unsaved().items() if name != "written"}
        if news:
            try:
                self.spool.add_counts(news)
                counters.mark_saved(news)
            except OSError as error:
                counters.warn("spool", f"the spool {self.spool.folder} cannot be written ({error})")

    def _store(self, traces: Sequence[Trace]) -> None:
        """Write a batch in one transaction; a trace that PostgreSQL refuses is set apart.

        Raises ``DatabaseError`` when none can be written now.
        """
        try:
            counters.add("written", self._transact(traces))
        except DatabaseError:
            raise
        except Exception:
            for trace in traces:  # one by one, to find the one that spoils the batch
                try:
                    counters.add("written", self._transact([trace]))
                except DatabaseError:
                    raise
                except Exception as error:
                    counters.add("refused")
                    counters.warn("refused", f"{error}; trace {trace.id} is kept in {self.spool.folder}")
                    with suppress(OSError):  # it is counted and named already
                        self.spool.refuse(trace, str(error))

    def _transact(self, traces: Sequence[Trace]) -> int:
        while True:
            was_open = self._conn is not None
            conn = self._conn = self._conn or self._connect()
            self._used = time.monotonic()
            try:
                count = write_traces(conn, traces)
                conn.commit()
                return count
            except (DatabaseError, psycopg.Error) as error:
                self.disconnect()
                # A connection that stood open may have died with a restarted server: once more, afresh.
                if not was_open and not _is_fleeting(error):
                    if isinstance(error, DatabaseError):
                        raise
                    raise DatabaseError(
                        f"traces could not be committed ({error}); run `ragblame doctor`"
                    ) from error
            except Exception:
                conn.rollback()
                raise

    def _connect(self) -> psycopg.Connection[Any]:
        if self.settings is None:
            raise DatabaseError("the settings cannot be read; run `ragblame doctor`")
        url = database.resolve_url(self.settings)
        if self.settings.database_url is None:
            database.migrate(url)  # the embedded server is ours alone, nobody else prepares it
        return database.connect(url, application_name="ragblame capture")

    def _to_spool(self, traces: Sequence[Trace]) -> None:
        self.is_clean = False
        self._looks_at = 0.0
        kept = 0
        try:
            kept = self.spool.append(traces)
        except (RagblameError, OSError) as error:
            counters.warn(
                "spool", f"the spool {self.spool.folder} cannot be written ({error}); traces are dropped"
            )
        counters.add("spooled", kept)
        counters.add("dropped", len(traces) - kept)

    def _note_outage(self, error: Exception) -> None:
        self._rest = min(max(self._rest * 2, FIRST_REST), LONGEST_REST)
        self._rests_until = time.monotonic() + self._rest
        counters.warn("outage", f"traces wait in {self.spool.folder}: {error}")

    def _note_recovery(self) -> None:
        self._rest = self._rests_until = 0.0


def _is_fleeting(error: Exception) -> bool:
    """Whether trying again at once makes sense: two writers got in each other's way."""
    cause = error.__cause__ if isinstance(error, DatabaseError) else error
    return isinstance(cause, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure)
