"""Traces back into the queue, once what kept them out of it (a model, a setting, memory) was mended."""

from typing import Any
from uuid import UUID

import psycopg

from ragblame.attribution.jobs.faults import database_faults
from ragblame.traces import QUEUE, TASK

_REQUEUE = """
WITH failed AS (
    SELECT r.trace_id FROM ragblame.attribution_run r JOIN ragblame.trace t ON t.id = r.trace_id
    WHERE r.state = 'failed' AND NOT EXISTS (
        SELECT FROM jobs.procrastinate_jobs j
        WHERE j.queueing_lock = %(task)s || '-' || r.trace_id AND j.status IN ('todo', 'doing'))
    ORDER BY r.trace_id
)
SELECT cardinality(procrastinate_defer_jobs_v1(array_agg(
    ROW(%(queue)s, %(task)s, 0, NULL, %(task)s || '-' || trace_id,
        jsonb_build_object('trace_id', trace_id::text), NULL)::procrastinate_job_to_defer_v1)))
FROM failed HAVING count(*) > 0
"""


def requeue_failed(conn: psycopg.Connection[Any]) -> int:
    """Give every trace whose last attribution failed a new job; returns how many. The failure stays to be
    seen until the job replaces it. Runs in the caller's transaction. Raises ``DatabaseError``."""
    with database_faults("failed attributions"), conn.transaction():
        row = conn.execute(_REQUEUE, {"queue": QUEUE, "task": TASK}).fetchone()
    return 0 if row is None else int(row[0])


_REQUEUE_ONE = """
SELECT procrastinate_defer_jobs_v1(ARRAY[
    ROW(%(queue)s::text, %(task)s::text, 0, NULL, %(task)s::text || '-' || t.id,
        jsonb_build_object('trace_id', t.id::text), NULL)::procrastinate_job_to_defer_v1])
FROM ragblame.trace t
WHERE t.id = %(id)s AND NOT EXISTS (
    SELECT FROM jobs.procrastinate_jobs j
    WHERE j.queueing_lock = %(task)s::text || '-' || t.id AND j.status IN ('todo', 'doing'))
"""


def requeue_trace(conn: psycopg.Connection[Any], trace_id: UUID) -> bool:
    """Give one trace a job unless it has one that waits or runs; whether it got one.

    Runs in the caller's transaction. Raises ``DatabaseError``.
    """
    with database_faults("job", trace_id):
        try:
            with conn.transaction():
                values = {"queue": QUEUE, "task": TASK, "id": trace_id}
                return conn.execute(_REQUEUE_ONE, values).fetchone() is not None
        except psycopg.errors.UniqueViolation:  # somebody else was faster
            return False
