"""The process that turns waiting traces into results: procrastinate's worker, kept alive through outages.

The model is loaded once. PostgreSQL may restart underneath; the first signal lets a running attribution end.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import procrastinate
import psycopg
from procrastinate.exceptions import ConnectorException

from ragblame import database
from ragblame.attribution.jobs.attribute import Explainer, load_debugger
from ragblame.attribution.jobs.faults import first_line
from ragblame.attribution.jobs.job import PutBack, TraceJobs, WorkerTally
from ragblame.attribution.jobs.rescoring import Rescorer
from ragblame.attribution.jobs.upkeep import Upkeep
from ragblame.corpus import CorpusProbe
from ragblame.errors import DatabaseError
from ragblame.settings import Settings, load_settings
from ragblame.traces import QUEUE, TASK

__all__ = ["WorkerTally", "run_worker"]

GRACE_SECONDS: Final = 10.0  # a running attribution may finish after the signal, then it is put back
POLL_SECONDS: Final = 1.0  # for new and cancelled jobs, beside PostgreSQL's notifications
RECONNECT_SECONDS: Final = (1.0, 2.0, 5.0, 10.0, 30.0)  # between looks at a lost PostgreSQL; the last repeats
_STEADY_SECONDS: Final = 60.0  # a connection that held so long starts those waits anew


def run_worker(
    url: str,
    *,
    once: bool = False,
    settings: Settings | None = None,
    load: Callable[[], Explainer] | None = None,
    probe: CorpusProbe | None = None,
    report: Callable[[str], None] = print,
    heartbeat_seconds: float = 10.0,
    stalled_seconds: float = 30.0,
) -> WorkerTally:
    """Work on the attribution queue until SIGTERM or SIGINT; with ``once`` until no job waits.

    The model is loaded before the first job is taken: when that fails the queue stays as it is. One line per
    trace goes to ``report``. ``probe``: what causes ask the corpus through; None: they do not.
    A worker without a heartbeat for ``stalled_seconds`` counts as dead.
    Raises ``DatabaseError`` when PostgreSQL cannot be used at the start (later it is waited for, except with
    ``once``), ``ModelError`` or ``MissingExtraError`` when the scorer cannot be loaded.
    """
    database.require_schema(url)
    chosen = settings or load_settings()
    worker = _Worker(
        url=url,
        once=once,
        load=load or (lambda: load_debugger(chosen, probe)),
        rescorer=Rescorer.from_settings(url, chosen),
        report=report,
        heartbeat_seconds=heartbeat_seconds,
        stalled_seconds=stalled_seconds,
    )
    with _libraries_speak_through(report):
        asyncio.run(worker.serve())
    return worker.tally


@dataclass(slots=True, kw_only=True)
class _Worker:
    """One worker process; lives in one event loop."""

    url: str
    once: bool
    load: Callable[[], Explainer]
    rescorer: Rescorer | None
    report: Callable[[str], None]
    heartbeat_seconds: float
    stalled_seconds: float
    tally: WorkerTally = field(default_factory=WorkerTally)
    jobs: TraceJobs | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    stop_by: float = float("inf")  # monotonic clock: end of the grace

    async def serve(self) -> None:
        """Until stopped, or with ``once`` until nothing waits; reconnects after outages."""
        self._install_signals()
        upkeep = Upkeep(
            url=self.url, report=self.report, tally=self.tally, stalled_seconds=self.stalled_seconds
        )
        await asyncio.to_thread(upkeep.prepare_partitions)
        failures = 0
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                if await self._serve_connected(upkeep):
                    break
                problem = "the connection to the job queue was lost"
            except (DatabaseError, ConnectorException, psycopg.Error, OSError) as error:
                if self.once:
                    raise _as_database_error(error) from error
                problem = str(_as_database_error(error))
            failures = 0 if time.monotonic() - began > _STEADY_SECONDS else failures + 1
            wait = RECONNECT_SECONDS[min(max(failures, 1), len(RECONNECT_SECONDS)) - 1]
            if not self.stop.is_set():
                self.report(f"{problem}; looking again in {wait:g} s")
                await self._pause(wait)
        if self.stop.is_set():
            self.report("worker stopped")

    async def _serve_connected(self, upkeep: Upkeep) -> bool:
        """Serve while PostgreSQL is there; returns whether the work is done."""
        await asyncio.to_thread(database.require_schema, self.url)
        app = self._make_app()
        async with app.open_async():
            await upkeep.rescue(app)
            if self.jobs is None:
                if self.once and await asyncio.to_thread(self._seconds_to_next_job) is None:
                    return True
                self.jobs = TraceJobs(
                    url=self.url,
                    explainer=await asyncio.to_thread(self.load),
                    report=self.report,
                    is_stopping=lambda: time.monotonic() > self.stop_by,
                    tally=self.tally,
                    rescorer=self.rescorer,
                )
                self.report("worker ready: the model is loaded")
            keeping = asyncio.create_task(upkeep.run(app))
            try:
                while not self.stop.is_set():
                    await self._work(app)
                    if not self.once:
                        return self.stop.is_set()
                    wait = await asyncio.to_thread(self._seconds_to_next_job)
                    if wait is None:
                        return True
                    await self._pause(min(max(wait, 0.05), 5.0))
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
        return True

    async def _work(self, app: procrastinate.App) -> None:
        """Run procrastinate's worker until it ends by itself, or we are asked to stop and it is still."""
        serving = asyncio.create_task(
            app.run_worker_async(
                queues=[QUEUE],
                name="ragblame",
                concurrency=1,  # the model uses all cores; more throughput is more processes
                wait=not self.once,
                fetch_job_polling_interval=POLL_SECONDS,
                abort_job_polling_interval=POLL_SECONDS,
                delete_jobs="successful",  # what became of a trace stands in attribution_run
                install_signal_handlers=False,
                update_heartbeat_interval=self.heartbeat_seconds,
                stalled_worker_timeout=self.stalled_seconds,
            )
        )
        stopping = asyncio.create_task(self.stop.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                serving.cancel()  # graceful: it waits for the running job, which polls is_stopping
            with suppress(asyncio.CancelledError):
                await serving
        finally:
            stopping.cancel()

    def _make_app(self) -> procrastinate.App:
        async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
            await conn.execute("SET search_path TO jobs, public")
            await conn.commit()

        app = procrastinate.App(
            connector=procrastinate.PsycopgConnector(
                conninfo=self.url,
                kwargs={"application_name": "ragblame worker", "connect_timeout": database.CONNECT_TIMEOUT},
                configure=configure,
                min_size=1,
                max_size=4,
                timeout=10.0,
            )
        )
        app.task(name=TASK, queue=QUEUE, pass_context=True, retry=PutBack())(self._run_job)
        return app

    def _run_job(self, context: procrastinate.JobContext, /, **arguments: object) -> None:
        assert self.jobs is not None  # loaded before a job is taken
        self.jobs.run(context, **arguments)

    def _install_signals(self) -> None:
        """The first signal asks to stop; a second one ends the process as if we were not here."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)

        def ask() -> None:
            for number in numbers:
                loop.remove_signal_handler(number)
            self.report(f"stopping: a running attribution has {GRACE_SECONDS:g} s, then it is put back")
            self.stop_by = time.monotonic() + GRACE_SECONDS
            self.stop.set()

        with suppress(ValueError, RuntimeError, NotImplementedError):  # not the main thread, or Windows
            for number in numbers:
                loop.add_signal_handler(number, ask)

    def _seconds_to_next_job(self) -> float | None:
        """Seconds until the earliest waiting job may start, 0 when it may now; None: nothing waits."""
        with database.connect(self.url, read_only=True) as conn:
            row = conn.execute(
                "SELECT extract(epoch FROM min(coalesce(scheduled_at, now())) - now()) "
                "FROM jobs.procrastinate_jobs WHERE queue_name = %s AND status = 'todo'",
                (QUEUE,),
            ).fetchone()
        return None if row is None or row[0] is None else max(0.0, float(row[0]))

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)


def _as_database_error(error: BaseException) -> DatabaseError:
    if isinstance(error, DatabaseError):
        return error
    return DatabaseError(
        f"the job queue in PostgreSQL failed: {first_line(error.__cause__ or error)}; run `ragblame doctor`"
    )


class _OneLine(logging.Handler):
    """What the libraries warn about as one line of ours: their tracebacks say nothing to an operator."""

    def __init__(self, report: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Report the message alone."""
        self.report(f"queue: {' '.join(record.getMessage().split())[:300]}")


@contextmanager
def _libraries_speak_through(report: Callable[[str], None]) -> Iterator[None]:
    handler = _OneLine(report)
    loggers = [logging.getLogger(name) for name in ("procrastinate", "psycopg.pool")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate
