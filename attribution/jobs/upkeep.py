"""What keeps the queue healthy: dead workers' jobs, the coming partitions, severities that follow traffic."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import procrastinate
import psycopg
from procrastinate.exceptions import ConnectorException, UniqueViolation
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager

from ragblame import database
from ragblame.attribution.jobs.faults import first_line
from ragblame.attribution.jobs.job import MAX_ATTEMPTS, WorkerTally
from ragblame.attribution.jobs.signatures import recount_traffic
from ragblame.errors import DatabaseError
from ragblame.traces import QUEUE

PARTITIONS_SECONDS: Final = 6 * 3600.0
TRAFFIC_SECONDS: Final = 600.0
_TRAFFIC_LOCK: Final = 0x7261_6762_0002
_LOCK: Final = 0x7261_6762_0001  # one rescuer at a time, in any process on any machine


@dataclass(slots=True, kw_only=True)
class Upkeep:
    """The upkeep one worker does; several workers may do it at once."""

    url: str
    report: Callable[[str], None]
    tally: WorkerTally
    stalled_seconds: float  # a worker silent for longer is dead
    next_partitions: float = 0.0  # monotonic clock
    next_traffic: float = 0.0

    async def run(self, app: procrastinate.App) -> None:
        """Until cancelled. A fault is reported and tried again: it must not end running attributions."""
        while True:
            await asyncio.sleep(self.stalled_seconds / 2)
            try:
                await self.rescue(app)
            except (ConnectorException, psycopg.Error, OSError) as error:
                self.report(f"dead workers could not be looked for: {first_line(error)}; trying again")
            await asyncio.to_thread(self.prepare_partitions)
            await asyncio.to_thread(self.recount)

    async def rescue(self, app: procrastinate.App) -> None:
        """Put back the jobs of workers that died; the attempts they count guard against poison."""
        connector = app.connector
        assert isinstance(connector, procrastinate.PsycopgConnector)
        async with connector.pool.connection() as conn, conn.transaction():
            cursor = await conn.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,))
            if await cursor.fetchone() != (True,):
                return
            stalled = await app.job_manager.get_stalled_jobs(
                queue=QUEUE, seconds_since_heartbeat=self.stalled_seconds
            )
            for job in stalled:
                await self._put_back(app.job_manager, job)

    async def _put_back(self, manager: JobManager, job: Job) -> None:
        trace_id: Any = job.task_kwargs.get("trace_id")
        try:
            await manager.retry_job(job)
        except UniqueViolation:
            await manager.finish_job(job=job, status=Status.FAILED, delete_job=True)
            self.report(f"{trace_id}: its worker died; a newer job waits")
        except ConnectorException:
            return  # it was finished meanwhile: the worker was slow, not dead
        else:
            self.tally.rescued += 1
            self.report(
                f"{trace_id}: its worker died in attempt {job.attempts + 1} of {MAX_ATTEMPTS}; put back"
            )

    def prepare_partitions(self) -> None:
        """Make the coming weeks' partitions when it is time. Never raises: there is a default one."""
        if time.monotonic() < self.next_partitions:
            return
        try:
            with database.connect(self.url) as conn:
                database.ensure_partitions(conn)
            self.next_partitions = time.monotonic() + PARTITIONS_SECONDS
        except (DatabaseError, psycopg.Error) as error:
            self.report(f"the coming weeks' partitions could not be made: {first_line(error)}; trying again")
            self.next_partitions = time.monotonic() + 60.0

    def recount(self) -> None:
        """Let severities follow how often a failure is seen, when it is time. Never raises."""
        if time.monotonic() < self.next_traffic:
            return
        self.next_traffic = time.monotonic() + TRAFFIC_SECONDS
        try:
            with database.connect(self.url) as conn:
                row = conn.execute("SELECT pg_try_advisory_xact_lock(%s)", (_TRAFFIC_LOCK,)).fetchone()
                if row == (True,):  # else another worker is at it
                    recount_traffic(conn)
        except (DatabaseError, psycopg.Error) as error:
            self.report(f"severities were not renewed: {first_line(error)}; trying again in ten minutes")
