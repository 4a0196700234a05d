"""One job of the queue: what becomes of a trace when it works, when it cannot, and when it kills its worker.

Returning ends the job; only a stopping worker and PostgreSQL's own faults put it back, because everything
else would fail again and is better told to a person at once.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from procrastinate import JobContext
from procrastinate.exceptions import JobAborted
from procrastinate.jobs import Job
from procrastinate.retry import BaseRetryStrategy, RetryDecision

from ragblame import database
from ragblame.attribution.jobs.attribute import (
    AttributionAbortedError,
    Explainer,
    attribute_trace,
    store_failure,
)
from ragblame.attribution.jobs.faults import first_line
from ragblame.attribution.jobs.rescoring import Rescorer
from ragblame.errors import DatabaseError, InputError, RagblameError
from ragblame.traces import TASK

MAX_ATTEMPTS: Final = 3  # a job that was started so often and never finished is poison
_RETRY_SECONDS: Final = 15  # after the first database fault; doubles

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class WorkerTally:
    """What a worker did so far."""

    attributed: int = 0
    failed: int = 0
    rescued: int = 0  # jobs of other, dead workers that were put back


class PutBack(BaseRetryStrategy):
    """When procrastinate puts a job back instead of ending it."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        """At once when the worker stops; after 15 s, then 30 s, when the database failed; else never."""
        if isinstance(exception, AttributionAbortedError):
            return RetryDecision(retry_in={"seconds": 0})
        if isinstance(exception, DatabaseError):
            return RetryDecision(retry_in={"seconds": _RETRY_SECONDS * 2**job.attempts})
        return None


@dataclass(slots=True, kw_only=True)
class TraceJobs:
    """Runs jobs with one loaded explainer; ``run`` is procrastinate's task and is called in a thread."""

    url: str
    explainer: Explainer
    report: Callable[[str], None]
    is_stopping: Callable[[], bool]  # the worker's grace is over: put the job back
    rescorer: Rescorer | None = None  # None: chunks without a score stay so
    tally: WorkerTally = field(default_factory=WorkerTally)

    def run(self, context: JobContext, trace_id: object = None, **_: object) -> None:
        """Attribute one trace. Raises ``AttributionAbortedError`` or ``DatabaseError`` to be put back, and
        ``JobAborted`` when a person cancelled the job."""
        try:
            identity = UUID(str(trace_id))
        except ValueError:
            self.report(f"job {context.job.id}: {str(trace_id)[:80]!r} is no trace id; job dropped")
            return

        def should_abort() -> bool:
            return self.is_stopping() or context.should_abort()

        try:
            if context.job.attempts >= MAX_ATTEMPTS:
                self._give_up(identity, context.job.attempts, should_abort)
            else:
                self._attribute(identity, context.job.attempts, should_abort)
        except AttributionAbortedError as error:
            if context.should_abort():
                raise JobAborted(str(error)) from error
            self.report(f"{identity}: put back")
            raise

    def _attribute(self, trace_id: UUID, attempts: int, should_abort: Callable[[], bool]) -> None:
        began = time.monotonic()
        try:
            explanation = attribute_trace(
                self.url, self.explainer, trace_id, should_abort=should_abort, rescorer=self.rescorer
            )
        except AttributionAbortedError:
            raise
        except DatabaseError as error:
            if attempts + 1 < MAX_ATTEMPTS and not self._waits_again(trace_id):
                self.report(f"{trace_id}: {error}; will be tried again")
                raise
            self._fail(trace_id, str(error), should_abort)
        except InputError as error:
            if self._is_stored(trace_id):
                self._fail(trace_id, str(error), should_abort)
            else:
                self.report(f"{trace_id}: there is no such trace (dropped by retention?); job dropped")
        except RagblameError as error:
            self._fail(trace_id, str(error), should_abort)
        except Exception as error:  # a fault of ours: it would fail again, and must not stop the others
            logger.debug("attribution of %s failed", trace_id, exc_info=True)
            message = (
                f"unexpected {type(error).__name__}: {first_line(error)[:300]}; "
                f"run `ragblame --debug explain {trace_id}` and report what it prints"
            )
            self._fail(trace_id, message, should_abort)
        else:
            self.tally.attributed += 1
            flagged = sum(verdict.is_flagged for verdict in explanation.verdicts)
            seconds = time.monotonic() - began
            self.report(f"{trace_id}: {len(explanation.spans)} spans, {flagged} flagged, {seconds:.1f} s")

    def _give_up(self, trace_id: UUID, attempts: int, should_abort: Callable[[], bool]) -> None:
        message = (
            f"gave up after {attempts} attempts that never finished: the worker was killed (out of memory?) "
            f"or stopped each time; run `ragblame explain {trace_id}` to see why"
        )
        self._fail(trace_id, message, should_abort)

    def _fail(self, trace_id: UUID, message: str, should_abort: Callable[[], bool]) -> None:
        store_failure(self.url, trace_id, message, should_abort=should_abort)
        self.tally.failed += 1
        self.report(f"{trace_id}: failed: {message}")

    def _is_stored(self, trace_id: UUID) -> bool:
        return self._is_true("SELECT EXISTS (SELECT FROM ragblame.trace WHERE id = %s)", trace_id)

    def _waits_again(self, trace_id: UUID) -> bool:
        """Whether a newer job of the trace waits: putting this one back would break the queueing lock."""
        with suppress(DatabaseError):
            return self._is_true(
                "SELECT EXISTS (SELECT FROM jobs.procrastinate_jobs "
                "WHERE queueing_lock = %s AND status = 'todo')",
                f"{TASK}-{trace_id}",
            )
        return False

    def _is_true(self, query: str, parameter: object) -> bool:
        with database.connect(self.url, read_only=True) as conn:
            row = conn.execute(query.encode(), (parameter,)).fetchone()
        return row is not None and bool(row[0])
