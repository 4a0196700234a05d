"""Puts traces into PostgreSQL, or on the spool while it is away or too slow; in the recorder's thread only.

One connection, opened when there is something to write and closed when idle. A failing server is left alone
for a growing while, so that an outage costs neither log floods nor a connection attempt per trace; one that
is silent for seconds counts as failing.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID

import psycopg

from ragblame import database
from ragblame.errors import DatabaseError, RagblameError
from ragblame.plugin.assembly import Limits
from ragblame.plugin.breathing import breathe
from ragblame.plugin.counters import UNSAVED, counters
from ragblame.plugin.host_report import REPORT_SECONDS, report_host
from ragblame.plugin.patience import LIVE_SECONDS, REPLAY_SECONDS, PatientConnection
from ragblame.plugin.redaction import Redactor
from ragblame.plugin.spool import Spool
from ragblame.settings import Settings, default_data_dir
from ragblame.trace_records import Trace
from ragblame.traces import write_clean_traces

IDLE_SECONDS: Final = 30.0  # after which the connection is given back
FIRST_REST: Final = 1.0  # seconds without an attempt after a failure; doubles
LONGEST_REST: Final = 30.0
LOOK_SECONDS: Final = 60.0  # between two looks for files that other processes left
# A replay goes by few traces, and rests after them so many times as long as it worked: the host answers
# meanwhile, on the same processors as the server perhaps. New traces do not wait for it.
REPLAYED_AT_ONCE: Final = 10
REST_PER_WORK: Final = 3.0
LONGEST_REPLAY_REST: Final = 0.5  # seconds
CONNECT_SECONDS: Final = 3  # nothing is written meanwhile, and the queue grows
SAVE_SECONDS: Final = (
    5.0  # between two additions to the totals on disk, while there is always something to do
)
# The server ends a transaction that we left behind half-way, on the far side of a broken network: its rows
# would keep our replay of the same traces waiting.
_LEAVE_NOTHING_OPEN: Final = "SET idle_in_transaction_session_timeout = '60s'"


class Writer:
    """Writes batches of traces; without readable ``settings`` only the spool is left."""

    def __init__(
        self,
        settings: Settings | None,
        is_pressed: Callable[[], bool] = lambda: False,
    ) -> None:
        """``is_pressed`` tells whether more waits behind us than PostgreSQL can be waited for."""
        data_dir = settings.data_dir if settings is not None else default_data_dir()
        self.settings = settings
        self._is_pressed = is_pressed
        self.limits = Limits(redactor=Redactor.from_settings(settings))
        if settings is not None:
            self.limits = Limits(
                max_field=settings.capture_max_field,
                max_chunks=settings.capture_max_chunks,
                app=settings.app,
                sample_rate=settings.capture_sample_rate,
                redactor=self.limits.redactor,
            )
        self.spool = Spool(data_dir / "spool", settings.spool_max_bytes if settings else 512_000_000)
        self.is_clean = True  # nothing of this process waits on the spool or was lost
        self._conn: PatientConnection | None = None
        self._used = 0.0  # monotonic seconds of the last use of the connection
        self._rest = 0.0  # length of the current rest
        self._rests_until = 0.0
        self._reports_at = 0.0  # when the database hears of our totals again
        self._saved = time.monotonic()  # when the totals were added to last
        # when to look at the spool again; at once: earlier processes may have left files
        self._looks_at = 0.0
        self._replays_at = 0.0  # when the replay's rest is over

    def write(self, traces: Sequence[Trace]) -> Sequence[Trace]:
        """Store the traces, else spool them, else count them as dropped. Never raises.

        Returns those that are safe: committed by PostgreSQL, or synced to the spool.
        """
        if time.monotonic() >= self._rests_until and not self._is_pressed():
            try:
                refused = self._store(traces, LIVE_SECONDS)
                self._note_recovery()
                return [trace for trace in traces if trace.id not in refused]
            except Exception as error:
                self._note_outage(error)
        return self._to_spool(traces)

    def replay(self, *, everything: bool = False) -> bool:
        """Bring spooled traces to PostgreSQL when it is time, a few a call; whether none of ours is left.

        With ``everything``: all of them, and at once. Files of other living processes are left to them.
        """
        now = time.monotonic()
        if not everything and (now < self._replay_due() or self._is_pressed()):
            return self.is_clean
        if not self.spool.has_files():
            self.is_clean, self._looks_at = True, now + LOOK_SECONDS
            return True
        try:
            count, is_done = self.spool.replay(self._store_again, None if everything else REPLAYED_AT_ONCE)
            self._replays_at = time.monotonic() + min(
                REST_PER_WORK * (time.monotonic() - now), LONGEST_REPLAY_REST
            )
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
        if self.spool.has_files(now=False):
            due.append(self._replay_due())
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

    def save_counts(self, *, now: bool = True) -> None:
        """Add what was lost or refused since the last time to the spool folder's totals.

        Without ``now`` only every few seconds: a process that is killed takes that much to the grave.
        """
        if not now and time.monotonic() - self._saved < SAVE_SECONDS:
            return
        self._saved = time.monotonic()
        news = {name: count for name, count in counters.unsaved().items() if name not in UNSAVED}
        if news:
            try:
                self.spool.add_counts(news)
                counters.mark_saved(news)
            except OSError as error:
                counters.warn("spool", f"the spool {self.spool.folder} cannot be written ({error})")

    def report(self, *, now: bool = False) -> None:
        """Tell the database of our totals and our spool, now and then, while we are connected anyway."""
        if self._conn is None or (not now and time.monotonic() < self._reports_at) or self._is_pressed():
            return
        self._reports_at = time.monotonic() + REPORT_SECONDS
        try:
            self._conn.patience = LIVE_SECONDS
            report_host(self._conn, self.spool.folder)
        except (psycopg.Error, OSError):
            self.disconnect()  # the next batch finds out what it was

    def _store(self, traces: Sequence[Trace], patience: float) -> set[UUID]:
        """Write a batch in one transaction; traces that PostgreSQL refuses are set apart and returned.

        Raises ``DatabaseError`` when none can be written now.
        """
        try:
            counters.add("written", self._transact(traces, patience))
            return set()
        except DatabaseError:
            raise
        except Exception as error:
            if len(traces) > 1:  # halve it, to find the one that spoils the batch
                half = len(traces) // 2
                return self._store(traces[:half], patience) | self._store(traces[half:], patience)
            (trace,) = traces
            counters.add("refused")
            counters.warn("refused", f"{error}; trace {trace.id} is kept in {self.spool.folder}")
            with suppress(OSError):  # it is counted and named already
                self.spool.refuse(trace, str(error))
            return {trace.id}

    def _store_again(self, traces: Sequence[Trace]) -> None:
        self._store(traces, REPLAY_SECONDS)

    def _replay_due(self) -> float:
        return max(self._looks_at, self._rests_until, self._replays_at)

    def _transact(self, traces: Sequence[Trace], patience: float) -> int:
        while True:
            was_open = self._conn is not None
            conn = self._conn = self._conn or self._connect()
            conn.patience = patience
            self._used = time.monotonic()
            try:
                return write_clean_traces(conn, traces, between=breathe)
            except (DatabaseError, psycopg.Error) as error:
                self.disconnect()
                # A connection that stood open may have died with a restarted server: once more, afresh.
                if conn.gave_up or (not was_open and not _is_fleeting(error)):
                    if isinstance(error, DatabaseError):
                        raise
                    raise _outage(error) from error

    def _connect(self) -> PatientConnection:
        """Raises ``DatabaseError``, whatever goes wrong: no trace is to blame for it."""
        if self.settings is None:
            raise DatabaseError("the settings cannot be read; run `ragblame doctor`")
        try:
            url = database.resolve_url(self.settings)
            if self.settings.database_url is None:
                database.migrate(url)  # the embedded server is ours alone, nobody else prepares it
            conn = database.connect(
                url,
                autocommit=True,  # a batch is one statement: no round trips to begin and to commit
                application_name="ragblame capture",
                kind=PatientConnection,
                timeout=CONNECT_SECONDS,
            )
            assert isinstance(conn, PatientConnection)
            conn.is_needed_elsewhere = self._is_pressed
            conn.execute(_LEAVE_NOTHING_OPEN)
            return conn
        except DatabaseError:
            raise
        except Exception as error:
            raise _outage(error) from error

    def _to_spool(self, traces: Sequence[Trace]) -> Sequence[Trace]:
        self.is_clean = False
        self._looks_at = 0.0
        try:
            kept = self.spool.append(traces)
            counters.add("dropped_spool_full", len(traces) - len(kept))
        except (RagblameError, OSError) as error:
            kept = []
            counters.add("dropped_spool_error", len(traces))
            counters.warn(
                "spool", f"the spool {self.spool.folder} cannot be written ({error}); traces are dropped"
            )
        counters.add("spooled", len(kept))
        return kept

    def _note_outage(self, error: Exception) -> None:
        self._rest = min(max(self._rest * 2, FIRST_REST), LONGEST_REST)
        self._rests_until = time.monotonic() + self._rest
        counters.warn("outage", f"traces wait in {self.spool.folder}: {error}")

    def _note_recovery(self) -> None:
        self._rest = self._rests_until = 0.0


def _outage(error: Exception) -> DatabaseError:
    return DatabaseError(f"traces could not be committed ({error}); run `ragblame doctor`")


def _is_fleeting(error: Exception) -> bool:
    """Whether trying again at once makes sense: two writers got in each other's way."""
    cause = error.__cause__ if isinstance(error, DatabaseError) else error
    return isinstance(cause, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure)
