"""What the queue and trace pages read equals what was stored, filtered, ordered and paged by the database."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragblame import database
from ragblame.attribution.jobs.results import write_failure
from ragblame.errors import InputError
from ragblame.records import Cause, Method, VerdictKind
from ragblame.traces import write_traces
from ragblame.ui import reads, reads_facets, reads_traces
from ragblame.ui.reads import Cursor, Filters, ItemState, Progress
from ragblame.ui.reads_health import read_backlog, read_health
from ragblame.ui.reads_trace import read_heats, read_trace_page
from tests.example_cases import example_explanations, hostile_explanation
from tests.triage_seed import bare_trace, many, seed, store_explanation

Connection = psycopg.Connection


@pytest.fixture
def seeded(database_url: str) -> Iterator[Connection]:
    """A connection to a database with all examples."""
    seed(database_url)
    with database.connect(database_url) as conn:
        yield conn


def test_queue_is_ordered_by_severity(seeded: Connection) -> None:
    """The most severe flagged span comes first, and its words are cut out of its own sentence."""
    rows = reads.read_queue(seeded, Filters()).rows
    assert [row.severity for row in rows] == [0.94, 0.88, 0.71, 0.66, 0.61, 0.52]
    first = rows[0]
    assert (first.before, first.flagged) == ("The kestrel queue keeps messages for ", "90 days")
    assert first.after == ", and its owner is the Lagos team."
    assert (first.verdict, first.cause) == (VerdictKind.DISTORTED, Cause.BORROWED)
    assert first.source == "runbooks/osprey.md"  # it made the model say it


def test_source_is_the_evidence_where_no_chunk_was_relied_on(seeded: Connection) -> None:
    """A span from memory shows the chunk that says otherwise, not the one with a share of hundredths."""
    row = reads.read_queue(seeded, Filters(cause=Cause.MEMORY_OVERRIDE)).rows[0]
    assert row.source == "runbooks/harrier.md"


@pytest.mark.parametrize(
    ("filters", "severities"),
    [
        (Filters(verdict=VerdictKind.FABRICATED), [0.88, 0.71, 0.66]),
        (Filters(cause=Cause.CONFLICTING_CHUNKS), [0.52]),
        (Filters(app="support-bot"), [0.71]),
        (Filters(model="gpt-3.5-turbo"), [0.61]),
        (Filters(min_severity=0.7), [0.94, 0.88, 0.71]),
        (Filters(since=datetime.now(UTC) - timedelta(hours=1)), [0.94, 0.88, 0.71]),
        (Filters(state=ItemState.REVIEWED), []),
        (Filters(state=None, text="harrier"), [0.88]),
        (Filters(text='"listens on port 8080"'), [0.88]),
        (Filters(text='"port listens 8080"'), []),
        (Filters(text="8080 -harrier or nothing"), []),
        (Filters(text="the - harrier"), [0.88]),
        (Filters(text="; DROP TABLE trace; --"), []),
        (Filters(text="%"), []),
    ],
)
def test_filters_select(seeded: Connection, filters: Filters, severities: list[float]) -> None:
    """Each filter keeps exactly the rows it names; a pasted text holds no operators but quotes."""
    assert [row.severity for row in reads.read_queue(seeded, filters).rows] == severities


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40))
def test_any_text_can_be_searched(connection: Connection, text: str) -> None:
    """No search text, whatever its quotes, controls and surrogates, is an error."""
    reads.read_queue(connection, Filters(text=text))
    reads_traces.read_traces(connection, Filters(text=text))


def test_search_finds_ids(seeded: Connection) -> None:
    """A pasted trace id finds its trace, in either spelling."""
    wanted = reads.read_queue(seeded, Filters()).rows[2]
    for text in (str(wanted.trace_id), f" {wanted.trace_id.hex.upper()} "):
        found = reads.read_queue(seeded, Filters(text=text)).rows
        assert [row.trace_id for row in found] == [wanted.trace_id]


def test_pages_are_complete_and_disjoint(connection: Connection) -> None:
    """Walking the queue page by page gives every row once, in order, also among equal severities."""
    many(connection, 70)
    seen: list[reads.QueueRow] = []
    cursor: Cursor | None = None
    for _ in range(10):
        page = reads.read_queue(connection, Filters(), cursor)
        seen += page.rows
        cursor = page.after
        if cursor is None:
            break
    keys = [(-row.severity, -row.trace_id.int, row.span) for row in seen]
    assert len(seen) == 70
    assert keys == sorted(keys)
    assert len(set(keys)) == 70
    for left, middle, right in zip(seen, seen[1:], seen[2:], strict=False):
        assert reads.read_neighbours(connection, Filters(), middle.cursor) == (left, right)


def test_neighbours_of_a_reviewed_span(seeded: Connection) -> None:
    """The next span is found although the one on screen has just left the list."""
    first, second, third = reads.read_queue(seeded, Filters()).rows[:3]
    seeded.execute("UPDATE triage_item SET state = 'reviewed' WHERE trace_id = %s", (second.trace_id,))
    assert reads.read_neighbours(seeded, Filters(), second.cursor) == (first, third)


def test_new_spans_are_counted(connection: Connection) -> None:
    """Spans flagged after the queue was read are counted; earlier and reviewed ones are not."""
    many(connection, 2)
    connection.commit()
    read_at = reads.read_queue(connection, Filters()).read_at
    connection.commit()
    many(connection, 3)
    assert reads_facets.count_new(connection, read_at) == 3
    connection.execute("UPDATE triage_item SET state = 'reviewed' WHERE created_at > %s", (read_at,))
    assert reads_facets.count_new(connection, read_at) == 0


def test_facets_count_what_the_queue_shows(seeded: Connection) -> None:
    """Each count is the number of rows that choosing the value would show."""
    chosen = Filters(verdict=VerdictKind.FABRICATED)
    facets = reads_facets.read_facets(seeded, chosen)
    assert facets.verdicts == {"distorted": 3, "fabricated": 3}
    assert facets.states == {"open": 3}
    for cause, count in facets.causes.items():
        assert len(reads.read_queue(seeded, replace(chosen, cause=Cause(cause))).rows) == count
    for app, count in facets.apps.items():
        assert len(reads.read_queue(seeded, replace(chosen, app=app)).rows) == count
    assert not facets.is_partial


def test_traces_without_results_are_listed(seeded: Connection) -> None:
    """A trace shows up before any worker saw it, and after one gave up on it."""
    rows = {row.question: row for row in reads_traces.read_traces(seeded, Filters()).rows}
    assert len(rows) == 9
    waiting = rows["Who is on call for the gannet pipeline?"]
    failed = rows["What does error K-19 of the ibis relay mean?"]
    assert (waiting.progress, waiting.worst, waiting.spans) == (Progress.QUEUED, None, 0)
    assert failed.progress is Progress.FAILED
    assert failed.error is not None
    assert "copy it there" in failed.error
    done = rows["Which port does the harrier service listen on?"]
    assert (done.worst, done.flagged, done.spans) == (VerdictKind.FABRICATED, 1, 2)


@pytest.mark.parametrize("progress", list(Progress))
def test_progress_filter_agrees_with_the_rows(seeded: Connection, progress: Progress) -> None:
    """Choosing a progress gives exactly the rows that show it."""
    write_traces(seeded, [bare_trace("lonely", "x")], enqueue=False)
    everything = reads_traces.read_traces(seeded, Filters()).rows
    chosen = reads_traces.read_traces(seeded, Filters(progress=progress)).rows
    assert chosen == tuple(row for row in everything if row.progress is progress)
    assert (progress is Progress.RUNNING) == (not chosen)


def test_running_jobs_show(seeded: Connection) -> None:
    """A trace whose job a worker holds is running."""
    worker = seeded.execute("INSERT INTO jobs.procrastinate_workers DEFAULT VALUES RETURNING id").fetchone()
    assert worker is not None
    seeded.execute("UPDATE jobs.procrastinate_jobs SET status = 'doing', worker_id = %s", worker)
    rows = reads_traces.read_traces(seeded, Filters(progress=Progress.RUNNING)).rows
    assert [row.question for row in rows] == ["Who is on call for the gannet pipeline?"]
    backlog = read_backlog(seeded)
    assert (backlog.waiting, backlog.running, backlog.workers, backlog.is_stuck) == (0, 1, 1, False)


@pytest.mark.parametrize("index", range(7))
def test_trace_page_holds_the_explanation(connection: Connection, index: int) -> None:
    """The trace page shows what the worker wrote, without the heats, which are read on demand."""
    explanation = example_explanations()[index]
    store_explanation(connection, explanation)
    page = read_trace_page(connection, explanation.trace.id)
    assert page.progress is Progress.DONE
    assert page.trace == explanation.trace
    assert page.spans == explanation.spans
    assert page.verdicts == {verdict.span: verdict for verdict in explanation.verdicts}
    assert page.supports == {support.span: support for support in explanation.supports}
    assert set(page.items) == {verdict.span for verdict in explanation.verdicts if verdict.is_flagged}
    for span in explanation.spans:
        stored = read_heats(connection, explanation.trace.id, span.index, Method.INPUT_X_GRADIENT)
        expected = {heat.position: heat for heat in explanation.heats if heat.span == span.index}
        assert stored.keys() == expected.keys()
        for position, heat in stored.items():
            assert (heat.starts, heat.ends) == (expected[position].starts, expected[position].ends)
            assert heat.values == pytest.approx(expected[position].values)


def test_missing_chunks_have_no_share(connection: Connection) -> None:
    """A chunk that was dropped before the prompt took no part: not a share of zero."""
    explanation = example_explanations()[3]
    store_explanation(connection, explanation)
    page = read_trace_page(connection, explanation.trace.id)
    assert page.shares(0, Method.SHAPLEY) == {0: 0.4, 2: -0.1}
    assert page.shares(0, Method.INTEGRATED_GRADIENTS) == {}


def test_worst_span_comes_first(seeded: Connection) -> None:
    """Without a span in the address, the page opens at the most severe one."""
    row = reads.read_queue(seeded, Filters()).rows[0]
    worst = read_trace_page(seeded, row.trace_id).worst_span()
    assert worst is not None
    assert worst.index == row.span


def test_unattributed_trace_has_a_page(connection: Connection) -> None:
    """A trace in the queue can be opened: its question and answer are there, and nothing else is claimed."""
    trace = bare_trace("why?", "because")
    write_traces(connection, [trace])
    page = read_trace_page(connection, trace.id)
    assert (page.progress, page.spans, page.worst_span()) == (Progress.QUEUED, (), None)


def test_failed_rerun_keeps_the_old_results(connection: Connection) -> None:
    """When a rerun fails, the page says so and still shows the earlier results."""
    explanation = example_explanations()[0]
    store_explanation(connection, explanation)
    write_failure(connection, explanation.trace.id, "out of memory: use a smaller model")
    page = read_trace_page(connection, explanation.trace.id)
    assert (page.progress, page.error) == (Progress.FAILED, "out of memory: use a smaller model")
    assert page.spans == explanation.spans


def test_unknown_trace_is_named(connection: Connection) -> None:
    """An id nobody stored gives one clear line."""
    with pytest.raises(InputError, match="no trace"):
        read_trace_page(connection, uuid4())


def test_hostile_text_is_read_back_unchanged(connection: Connection) -> None:
    """Payloads come back as the same text: reading neither cuts, escapes nor interprets them."""
    explanation = hostile_explanation()
    store_explanation(connection, explanation)
    page = read_trace_page(connection, explanation.trace.id)
    assert page.trace == explanation.trace
    rows = reads.read_queue(connection, Filters()).rows
    assert {row.flagged for row in rows} == {page.span_text(span) for span in page.spans}


def test_health_figures(seeded: Connection) -> None:
    """Health counts what is there: traces, failures, scorers, and a queue without a worker is stuck."""
    health = read_health(seeded, datetime.now(UTC) - timedelta(days=7))
    assert (health.traces, health.attributed, health.failed, health.open_items) == (9, 7, 1, 6)
    assert health.median_seconds == pytest.approx(0.84)
    assert [(use.is_own_model, use.runs, use.fit) for use in health.scorers] == [(True, 5, 5), (False, 2, 1)]
    assert next(failure.error for failure in health.failures).startswith("the model folder")
    recent = read_health(seeded, datetime.now(UTC) - timedelta(minutes=10))
    assert recent.traces == 2
    backlog = read_backlog(seeded)
    assert (backlog.waiting, backlog.workers, backlog.is_stuck) == (1, 0, True)
    assert backlog.oldest_waiting_seconds is not None
    assert 0 <= backlog.oldest_waiting_seconds < 60
