"""The worker as a real process on real PostgreSQL: every job ends once, whatever dies meanwhile."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from ragblame import database
from ragblame.attribution.jobs.worker import run_worker
from ragblame.errors import DatabaseError, ModelError
from ragblame.records import Trace
from ragblame.settings import Settings
from ragblame.traces import QUEUE, TASK, new_trace_id, write_traces

SCRIPT = Path(__file__).with_name("worker_process.py")
PATIENCE = 60.0  # seconds; a busy machine must not fail a test


def ask(url: str, *questions: str) -> list[UUID]:
    """Store one trace with a job for each question; returns their ids."""
    traces = [
        Trace(id=new_trace_id(), app="test", question=question, answer="So.", started_at=datetime.now(UTC))
        for question in questions
    ]
    with database.connect(url) as conn:
        assert write_traces(conn, traces) == len(traces)
    return [trace.id for trace in traces]


def rows(url: str, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    """What a fresh connection sees."""
    with database.connect(url, read_only=True) as conn:
        return conn.execute(query.encode(), parameters).fetchall()


def runs(url: str) -> dict[UUID, tuple[str, str | None]]:
    """Trace -> (state, error)."""
    return {
        row[0]: (row[1], row[2]) for row in rows(url, "SELECT trace_id, state, error FROM attribution_run")
    }


def jobs(url: str) -> list[tuple[str, int]]:
    """(status, attempts) of every job left in the queue."""
    return [
        (row[0], row[1])
        for row in rows(url, "SELECT status::text, attempts FROM procrastinate_jobs ORDER BY id")
    ]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Poll until it holds; names what did not happen."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.05)


@contextlib.contextmanager
def worker(url: str, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """A worker process that never outlives its test."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), url, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def output_of(process: "subprocess.Popen[str]") -> str:
    """Everything it says until it ends by itself, which must be soon and without a traceback."""
    output, _ = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in output, output
    return output


def read_until(process: "subprocess.Popen[str]", word: str) -> None:
    """Read its output up to the line that holds ``word``."""
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return
    pytest.fail(f"the worker ended without saying {word!r}")


def test_works_until_the_queue_is_empty(database_url: str) -> None:
    """Each waiting trace is attributed once, bad ones end as failed with the next step, one line each."""
    good, raised, refused, other = ask(database_url, "fine", "raise", "refuse", "fine")
    with worker(database_url, "--once") as process:
        output = output_of(process)
        assert process.returncode == 0
    states = runs(database_url)
    assert states[good] == states[other] == ("done", None)
    assert states[refused] == ("failed", "the prompt is too long; use a scorer with a longer context")
    state, error = states[raised]
    assert state == "failed"
    assert error is not None
    assert error.startswith("unexpected ZeroDivisionError: no such luck; run `ragblame --debug explain")
    assert f"{good}: 1 spans, 1 flagged" in output
    assert f"{raised}: failed: unexpected ZeroDivisionError" in output
    assert jobs(database_url) == []
    assert rows(database_url, "SELECT count(*) FROM triage_item") == [(2,)]


def test_once_on_an_empty_queue_loads_nothing(database_url: str) -> None:
    """``--once`` with nothing to do ends at once, without the seconds and memory of a model."""

    def load() -> Any:
        raise AssertionError("loaded")

    assert run_worker(database_url, once=True, load=load, report=lambda line: None).attributed == 0


def test_a_model_that_does_not_load_leaves_the_queue(database_url: str) -> None:
    """A misspelt scorer ends the worker with the next step; no job is taken, counted or marked failed."""
    pytest.importorskip("torch")
    ask(database_url, "fine")
    settings = Settings(scorer="/nowhere/model")
    with pytest.raises(ModelError, match="RAGBLAME_SCORER"):
        run_worker(database_url, once=True, settings=settings, report=lambda line: None)
    assert jobs(database_url) == [("todo", 0)]
    assert runs(database_url) == {}


def test_a_database_without_schema_is_named(empty_database_url: str) -> None:
    """At the start an unusable database is an error, not something to wait for."""
    with pytest.raises(DatabaseError, match="ragblame migrate"):
        run_worker(empty_database_url, load=lambda: pytest.fail("loaded"), report=lambda line: None)


def test_jobs_without_a_trace_end(database_url: str) -> None:
    """A trace dropped by retention and nonsense arguments end their jobs with a line each."""
    (gone,) = ask(database_url, "fine")
    with database.connect(database_url) as conn:
        conn.execute("DELETE FROM trace WHERE id = %s", (gone,))
        conn.execute(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, args) VALUES (%s, %s, %s), (%s, %s, %s)",
            (QUEUE, TASK, '{"trace_id": "x"}', QUEUE, TASK, '{"strange": 1}'),
        )
    with worker(database_url, "--once") as process:
        output = output_of(process)
    assert f"{gone}: there is no such trace" in output
    assert "'x' is no trace id" in output
    assert "'None' is no trace id" in output
    assert jobs(database_url) == []
    assert runs(database_url) == {}


def test_killed_worker_is_rescued(database_url: str) -> None:
    """kill -9 in the middle of a job: the next worker puts it back and finishes it exactly once."""
    (trace_id,) = ask(database_url, "sleep 2.5")
    with worker(database_url) as process:
        read_until(process, "sleeping")
        process.kill()
        process.wait()
    assert jobs(database_url) == [("doing", 0)]
    with worker(database_url) as process:
        read_until(process, "its worker died in attempt 1 of 3; put back")
        read_until(process, f"{trace_id}: 1 spans")
        wait_for(lambda: jobs(database_url) == [], "the job's end")
        process.send_signal(signal.SIGTERM)
        output_of(process)
    assert runs(database_url)[trace_id] == ("done", None)
    assert rows(database_url, "SELECT count(*) FROM answer_span") == [(1,)]


def test_poison_ends_as_failed_and_others_go_on(database_url: str) -> None:
    """A trace that kills every worker is given up after three, with the next step; the rest is attributed."""
    poison, good = ask(database_url, "die", "fine")
    deaths = 0
    while jobs(database_url):
        assert deaths < 5, "the poison job is never given up"
        with worker(database_url) as process:  # killed at the end: no job may be left that it could hold
            wait_for(
                lambda p=process: p.poll() is not None or not jobs(database_url),  # type: ignore[misc]
                "death or the end of the queue",
            )
            deaths += process.poll() == -signal.SIGKILL
    assert deaths == 3
    state, error = runs(database_url)[poison]
    assert state == "failed"
    assert error is not None
    assert error.startswith("gave up after 3 attempts")
    assert "ragblame explain" in error
    assert runs(database_url)[good] == ("done", None)
    assert jobs(database_url) == []


def test_sigterm_lets_a_running_job_finish(database_url: str) -> None:
    """A deploy in the middle of a short attribution loses nothing and leaves the next job waiting."""
    running, waiting = ask(database_url, "sleep 1.5", "fine")
    with worker(database_url) as process:
        read_until(process, "sleeping")
        process.send_signal(signal.SIGTERM)
        output = output_of(process)
        assert process.returncode == 0
    assert "worker stopped" in output
    assert runs(database_url) == {running: ("done", None)}
    assert jobs(database_url) == [("todo", 0)]
    assert waiting not in runs(database_url)
    assert rows(database_url, "SELECT count(*) FROM procrastinate_workers") == [(0,)]


def test_second_signal_ends_at_once(database_url: str) -> None:
    """An impatient operator is obeyed; the job waits for its rescuer."""
    ask(database_url, "burn 30")
    with worker(database_url) as process:
        read_until(process, "burning")
        process.send_signal(signal.SIGTERM)
        read_until(process, "stopping")
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        assert process.returncode == -signal.SIGTERM
    assert jobs(database_url) == [("doing", 0)]


def test_a_cancelled_job_stops(database_url: str) -> None:
    """Aborting a running job stops the attribution between batches; nothing is written, nothing repeats."""
    ask(database_url, "sleep 50")
    with worker(database_url) as process:
        read_until(process, "sleeping")
        with database.connect(database_url) as conn:
            conn.execute("SELECT procrastinate_cancel_job_v1(id, true, false) FROM procrastinate_jobs")
        wait_for(lambda: jobs(database_url)[0][0] == "aborted", "the abort")
    assert runs(database_url) == {}


def test_survives_the_loss_of_every_connection(database_url: str) -> None:
    """A restart of PostgreSQL in the middle of a job: its result is kept and later jobs are worked on."""
    (first,) = ask(database_url, "sleep 1.5")
    with worker(database_url) as process:
        read_until(process, "sleeping")
        with database.connect(database_url, autocommit=True) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        read_until(process, f"{first}: 1 spans")
        (second,) = ask(database_url, "fine")
        read_until(process, f"{second}: 1 spans")
        wait_for(lambda: jobs(database_url) == [], "the end of both jobs")
        process.send_signal(signal.SIGTERM)
        output_of(process)
    assert set(runs(database_url)) == {first, second}


def test_a_newer_job_takes_the_place_of_a_stalled_one(database_url: str) -> None:
    """Asked for again while its worker lay dead: the rescuer ends the old job, whose lock the new one has."""
    (trace_id,) = ask(database_url, "fine")
    with database.connect(database_url) as conn:
        conn.execute("UPDATE procrastinate_jobs SET status = 'doing'")
        conn.execute(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, queueing_lock, args) "
            "SELECT queue_name, task_name, queueing_lock, args FROM procrastinate_jobs"
        )
    with worker(database_url, "--once") as process:
        output = output_of(process)
    assert "a newer job waits" in output
    assert runs(database_url) == {trace_id: ("done", None)}
    assert jobs(database_url) == []


def test_prepares_partitions(database_url: str) -> None:
    """A worker makes the coming weeks' partitions, so that rows do not pile up in the default one."""
    with database.connect(database_url) as conn:
        names = [
            row[0]
            for row in conn.execute(
                "SELECT inhrelid::regclass::text FROM pg_inherits "
                "WHERE inhparent = 'ragblame.trace'::regclass "
                "AND inhrelid::regclass::text NOT LIKE '%default'"
            )
        ]
        for name in names:
            conn.execute(psycopg.sql.SQL("DROP TABLE {}").format(psycopg.sql.SQL(name)))
    assert names
    run_worker(database_url, once=True, load=lambda: pytest.fail("loaded"), report=lambda line: None)
    (count,) = rows(
        database_url, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'ragblame.trace'::regclass"
    )
    assert count[0] == len(names) + 1
