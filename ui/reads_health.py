"""Whether the triage can be trusted now: capture, backlog, workers, failures, scorers, agreement."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import dict_row

from ragblame.traces import QUEUE

HEARTBEAT_SECONDS: Final = 60.0  # a worker silent for longer counts as gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The attribution queue and the processes that work on it."""

    waiting: int
    running: int
    oldest_waiting_seconds: float | None
    workers: int  # with a heartbeat within HEARTBEAT_SECONDS
    last_heartbeat: datetime | None

    @property
    def is_stuck(self) -> bool:
        """Jobs wait and nobody works on them."""
        return self.waiting > 0 and self.workers == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A trace the worker gave up on."""

    trace_id: UUID
    error: str
    finished_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerUse:
    """How often a scorer was used, and how often it could explain the recorded answer."""

    scorer: str | None
    is_own_model: bool
    runs: int
    fit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Figures over the traces recorded since ``since``."""

    since: datetime
    traces: int
    attributed: int
    failed: int
    partial_trees: int  # traces whose root run was not seen
    truncated: int  # traces with a text cut at the capture limit
    median_seconds: float | None  # of one attribution
    open_items: int
    reviewed_items: int
    snoozed_items: int
    reviews: int  # of flagged spans
    agreed: int  # reviews that confirm the machine's verdict
    failures: tuple[Failure, ...]  # newest first, at most 20
    scorers: tuple[ScorerUse, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureHost:
    """One machine that captures, as it told of itself last."""

    host: str
    folder: str  # its spool
    counts: Mapping[str, int]  # totals so far: spooled, refused, dropped_…
    waiting_files: int  # on its disk, then
    waiting_bytes: int
    seen_at: datetime

    @property
    def lost(self) -> Mapping[str, int]:
        """What will never be stored, by the reason; without zeros."""
        return {
            name.removeprefix("dropped_").replace("_", " "): count
            for name, count in sorted(self.counts.items())
            if count and (name.startswith("dropped") or name == "refused")
        }


def read_capture_hosts(conn: Connection[Any]) -> tuple[CaptureHost, ...]:
    """The machines that captured in the last 30 days, those with losses first; at most 50."""
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            """SELECT host, folder, counts, waiting_files, waiting_bytes, seen_at
               FROM capture_host WHERE seen_at > now() - interval '30 days' ORDER BY seen_at DESC LIMIT 50"""
        ).fetchall()
    hosts = [CaptureHost(**row) for row in rows]
    return tuple(sorted(hosts, key=lambda host: -sum(host.lost.values())))


def read_backlog(conn: Connection[Any]) -> Backlog:
    """State of the attribution queue now."""
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            """
            SELECT (SELECT count(*) FROM jobs.procrastinate_jobs
                    WHERE queue_name = %(queue)s AND status = 'todo') AS waiting,
                   (SELECT count(*) FROM jobs.procrastinate_jobs
                    WHERE queue_name = %(queue)s AND status = 'doing') AS running,
                   (SELECT extract(epoch FROM now() - min(e.at)) FROM jobs.procrastinate_events e
                    JOIN jobs.procrastinate_jobs j ON j.id = e.job_id
                    WHERE j.queue_name = %(queue)s AND j.status = 'todo'
                      AND e.type = 'deferred') AS oldest,
                   (SELECT count(*) FROM jobs.procrastinate_workers
                    WHERE last_heartbeat > now() - make_interval(secs => %(silence)s)) AS workers,
                   (SELECT max(last_heartbeat) FROM jobs.procrastinate_workers) AS heartbeat
            """,
            {"queue": QUEUE, "silence": HEARTBEAT_SECONDS},
        ).fetchone()
    assert row is not None  # a SELECT of scalars has exactly one row
    return Backlog(
        waiting=row["waiting"],
        running=row["running"],
        oldest_waiting_seconds=None if row["oldest"] is None else float(row["oldest"]),
        workers=row["workers"],
        last_heartbeat=row["heartbeat"],
    )


def read_health(conn: Connection[Any], since: datetime) -> Health:
    """Figures over the traces recorded since ``since``; partitions before it are not touched."""
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            """
            WITH bound AS (SELECT ragblame.uuid_floor(%(since)s) AS id)
            SELECT t.*, r.*, i.*, v.* FROM
              (SELECT count(*) AS traces, count(*) FILTER (WHERE partial_tree) AS partial_trees,
                      count(*) FILTER (WHERE truncated <> '{}') AS truncated
               FROM trace WHERE id >= (SELECT id FROM bound)) t,
              (SELECT count(*) FILTER (WHERE state = 'done') AS attributed,
                      count(*) FILTER (WHERE state = 'failed') AS failed,
                      percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) FILTER (WHERE state = 'done')
                          AS median_seconds
               FROM attribution_run WHERE trace_id >= (SELECT id FROM bound)) r,
              (SELECT count(*) FILTER (WHERE state = 'open') AS open_items,
                      count(*) FILTER (WHERE state = 'reviewed') AS reviewed_items,
                      count(*) FILTER (WHERE state = 'snoozed') AS snoozed_items
               FROM triage_item WHERE trace_id >= (SELECT id FROM bound)) i,
              (SELECT count(*) AS reviews, count(*) FILTER (WHERE verdict = flagged_as) AS agreed
               FROM review WHERE trace_id >= (SELECT id FROM bound)
                 AND flagged_as IN ('distorted', 'fabricated')) v
            """,
            {"since": since},
        ).fetchone()
        failures = cursor.execute(
            """SELECT trace_id, coalesce(error, 'no reason was recorded') AS error, finished_at
               FROM attribution_run WHERE state = 'failed' AND trace_id >= ragblame.uuid_floor(%s)
               ORDER BY finished_at DESC LIMIT 20""",
            (since,),
        ).fetchall()
        scorers = cursor.execute(
            """SELECT scorer, coalesce(is_own_model, false) AS is_own_model, count(*) AS runs,
                      count(*) FILTER (WHERE is_fit) AS fit
               FROM attribution_run WHERE state = 'done' AND trace_id >= ragblame.uuid_floor(%s)
               GROUP BY 1, 2 ORDER BY 3 DESC""",
            (since,),
        ).fetchall()
    assert row is not None  # each part is an aggregate without GROUP BY
    return Health(
        since=since,
        **row,
        failures=tuple(Failure(**failure) for failure in failures),
        scorers=tuple(ScorerUse(**scorer) for scorer in scorers),
    )
