"""Failed attributions back into the queue, once their cause (a model, a setting, memory) was mended."""

from typing import Any

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
