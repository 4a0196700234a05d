"""The one database pool of the triage page's process, and what pages read and write through it.

Reads are cached for seconds and shared by all browser sessions: a page is drawn again on each click, and the
database should not hear of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import psycopg
import psycopg_pool
import streamlit as st

from ragblame.attribution.jobs.preview import Preview, preview
from ragblame.attribution.jobs.requeue import requeue_trace
from ragblame.attribution.jobs.thresholds import Version, read_thresholds, read_versions
from ragblame.database import open_pool, require_schema, resolve_url
from ragblame.database_errors import explain
from ragblame.records import Method, TokenHeat
from ragblame.settings import load_settings
from ragblame.ui import reads, reads_facets, reads_health, reads_radius, reads_trace, reads_traces
from ragblame.ui.reviews import wake_snoozed

POOL_SIZE: Final = 8  # one browser session holds a connection only while it reads
PREVIEWED: Final = 10_000  # traces that a preview on the page looks at; the command line takes more
STATEMENT_SECONDS: Final = 15  # a page that takes longer is better refused than hung


@st.cache_resource(show_spinner=False)
def _pool() -> tuple[str, psycopg_pool.ConnectionPool[Any]]:
    """Opened once the schema is as this program expects it; a failure is not remembered: a reload retries."""
    url = resolve_url(load_settings())
    require_schema(url)
    return url, open_pool(url, max_size=POOL_SIZE, application_name="ragblame ui")


@contextmanager
def transaction(*, read_only: bool = False) -> Iterator[psycopg.Connection[Any]]:
    """A transaction with a time limit that commits at the end. Raises ``DatabaseError``."""
    url, pool = _pool()
    try:
        with pool.connection() as conn:
            if read_only:
                conn.execute("SET TRANSACTION READ ONLY")
            conn.execute(f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'")
            yield conn
    except psycopg.OperationalError as error:  # a pool's time-out is one, too
        if error.sqlstate is None:  # the server is gone or moved: look for it anew next time
            _pool.clear()
            pool.close(timeout=0)
        raise explain(error, url) from error
    except psycopg.Error as error:
        raise explain(error, url) from error


@st.cache_data(ttl=3, max_entries=100, show_spinner=False)
def queue(filters: reads.Filters, after: reads.Cursor | None) -> reads.QueuePage:
    """One page of flagged spans."""
    with transaction(read_only=True) as conn:
        return reads.read_queue(conn, filters, after)


@st.cache_data(ttl=3, max_entries=100, show_spinner=False)
def traces(filters: reads.Filters, before: UUID | None) -> reads_traces.TracesPage:
    """One page of traces."""
    with transaction(read_only=True) as conn:
        return reads_traces.read_traces(conn, filters, before)


@st.cache_data(ttl=10, max_entries=100, show_spinner=False)
def facets(filters: reads.Filters) -> reads_facets.Facets:
    """Counts beside the filters."""
    with transaction(read_only=True) as conn:
        return reads_facets.read_facets(conn, filters)


@st.cache_data(ttl=3, max_entries=50, show_spinner=False)
def new_spans(since: datetime) -> int:
    """Spans flagged since the queue was drawn."""
    with transaction(read_only=True) as conn:
        return reads_facets.count_new(conn, since)


@st.cache_data(ttl=3, max_entries=200, show_spinner=False)
def neighbours(
    filters: reads.Filters, at: reads.Cursor | None
) -> tuple[reads.QueueRow | None, reads.QueueRow | None]:
    """The queue's rows before and behind one; without ``at`` the first row is the next."""
    with transaction(read_only=True) as conn:
        if at is None:
            rows = reads.read_queue(conn, filters).rows
            return None, (rows[0] if rows else None)
        return reads.read_neighbours(conn, filters, at)


@st.cache_data(ttl=5, max_entries=32, show_spinner=False)
def trace_page(trace_id: UUID) -> reads_trace.TracePage:
    """One trace with everything known about it."""
    with transaction(read_only=True) as conn:
        return reads_trace.read_trace_page(conn, trace_id)


@st.cache_data(ttl=30, max_entries=200, show_spinner=False)
def radius(trace_id: UUID, span: int) -> tuple[reads_radius.Reach, ...]:
    """How far the failure of one span reaches."""
    with transaction(read_only=True) as conn:
        return reads_radius.read_radius(conn, trace_id, span)


@st.cache_data(ttl=60, max_entries=64, show_spinner=False)
def heats(trace_id: UUID, finished_at: datetime | None, span: int, method: Method) -> dict[int, TokenHeat]:
    """Token heats of one span; ``finished_at`` tells the results of one run from those of the next."""
    with transaction(read_only=True) as conn:
        return reads_trace.read_heats(conn, trace_id, span, method)


@st.cache_data(ttl=30, max_entries=100, show_spinner=False)
def is_trace(trace_id: UUID) -> bool:
    """Whether there is a trace with this id."""
    with transaction(read_only=True) as conn:
        return conn.execute("SELECT FROM trace WHERE id = %s", (trace_id,)).fetchone() is not None


@st.cache_data(ttl=3, show_spinner=False)
def has_traces() -> bool:
    """Whether anything was ever recorded."""
    with transaction(read_only=True) as conn:
        return conn.execute("SELECT FROM trace LIMIT 1").fetchone() is not None


@st.cache_data(ttl=3, show_spinner=False)
def backlog() -> reads_health.Backlog:
    """The attribution queue now."""
    with transaction(read_only=True) as conn:
        return reads_health.read_backlog(conn)


@st.cache_data(ttl=10, max_entries=10, show_spinner=False)
def health(since: datetime) -> reads_health.Health:
    """Figures over the traces since ``since``."""
    with transaction(read_only=True) as conn:
        return reads_health.read_health(conn, since)


@st.cache_data(ttl=10, show_spinner=False)
def versions() -> tuple[Version, ...]:
    """The versions of the thresholds."""
    with transaction(read_only=True) as conn:
        return read_versions(conn)


@st.cache_data(ttl=60, max_entries=8, show_spinner="Deciding history again …")
def previewed(version: str) -> Preview:
    """What a version would have decided otherwise."""
    with transaction(read_only=True) as conn:
        return preview(conn, read_thresholds(conn, version), max_traces=PREVIEWED)


@st.cache_data(ttl=10, show_spinner=False)
def capture_hosts() -> tuple[reads_health.CaptureHost, ...]:
    """The machines that capture."""
    with transaction(read_only=True) as conn:
        return reads_health.read_capture_hosts(conn)


@st.cache_data(ttl=30, show_spinner=False)
def wake_sleepers() -> int:
    """Reopen snoozed items whose time has come, at most every half minute."""
    with transaction() as conn:
        return wake_snoozed(conn)


def attribute_again(trace_id: UUID) -> None:
    """Put a trace into the attribution queue."""
    with transaction() as conn:
        requeue_trace(conn, trace_id)
    forget()
    backlog.clear()


def forget() -> None:
    """Drop cached reads after a write, so that the writer sees it at once."""
    for cached in (queue, traces, facets, neighbours, trace_page, health):
        cached.clear()
