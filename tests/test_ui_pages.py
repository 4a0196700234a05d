"""The pages' logic, run by Streamlit's own test runner against a real PostgreSQL: no browser needed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import ragblame.ui.launch
from ragblame import database
from ragblame.attribution.jobs.thresholds import store_thresholds
from ragblame.attribution.verdicts.thresholds import DEFAULT, Thresholds
from ragblame.records import VerdictKind
from ragblame.settings import load_settings
from ragblame.traces import write_traces
from ragblame.ui import reads, reads_facets
from ragblame.ui.reads import Filters
from tests.triage_seed import bare_trace, many, seed

APP = Path(ragblame.ui.launch.__file__).with_name("app.py")
SECONDS = 30  # the first run imports Altair and pandas


@pytest.fixture(autouse=True)
def fresh_caches() -> Iterator[None]:
    """Streamlit's caches are of the process; a test must not see another one's database."""
    st.cache_data.clear()
    st.cache_resource.clear()
    yield
    st.cache_data.clear()
    st.cache_resource.clear()


@pytest.fixture
def app(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The app on an empty migrated database, not run yet."""
    monkeypatch.setenv("RAGBLAME_DATABASE_URL", database_url)
    load_settings.cache_clear()
    return AppTest.from_file(str(APP), default_timeout=SECONDS)


@pytest.fixture
def ids(database_url: str) -> dict[str, UUID]:
    """The example traces, stored."""
    return seed(database_url)


def drawn(app: AppTest) -> str:
    """All text our component was given on the page, in order."""
    assert not app.exception, [entry.message for entry in app.exception]

    def text(node: Any) -> str:
        return node if isinstance(node, str) else " ".join(text(child) for child in node.get("children", ()))

    parts = [json.loads(element.proto.json)["nodes"] for element in app.get("bidi_component")]
    return "\n".join(text(node) for nodes in parts for node in nodes)


def open_trace(app: AppTest, trace_id: object, span: int | None = None) -> AppTest:
    """The trace page at ``/trace?id=…&span=…``."""
    app.switch_page("screens/trace.py")
    app.query_params["id"] = str(trace_id)
    if span is not None:
        app.query_params["span"] = str(span)
    return app.run()


def button(app: AppTest, label: str) -> Any:
    """The button with this label."""
    (found,) = [entry for entry in app.button if entry.label == label]
    return found


def test_queue_shows_the_flagged_spans(app: AppTest, ids: dict[str, UUID]) -> None:
    """The queue opens with the most severe span, its cause, the backlog and the missing worker."""
    text = drawn(app.run())
    assert "90 days" in text
    assert "borrowed from another subject" in text
    assert text.index("0.94") < text.index("0.88") < text.index("0.52")
    assert "1 trace waiting for attribution" in text
    assert "ragblame worker" in text


def test_search_and_filters_narrow_the_queue(app: AppTest, ids: dict[str, UUID]) -> None:
    """A pasted quote and a filter in the address leave the matching rows, and stay in the address."""
    app.run()
    app.text_input(key="filter q").set_value('"introduced in 2019"').run()
    text = drawn(app)
    assert "falcon cache" in text
    assert "kestrel" not in text
    assert app.query_params["q"] == '"introduced in 2019"'
    app.selectbox(key="filter severity").set_value("0.75").run()
    assert "Nothing matches" in drawn(app)
    button(app, "Clear filters").click().run()
    assert "kestrel" in drawn(app)


def test_address_sets_the_filters(app: AppTest, ids: dict[str, UUID]) -> None:
    """A link with filters shows that list; a value nobody knows is left out."""
    app.query_params.update({"verdict": "fabricated", "cause": "no such cause", "severity": "abc"})
    text = drawn(app.run())
    assert "8080" in text
    assert "90 days" not in text


def test_all_traces_are_listed(app: AppTest, ids: dict[str, UUID]) -> None:
    """The other list holds also what was not flagged, not attributed, or failed."""
    app.query_params["view"] = "All traces"
    text = drawn(app.run())
    for words in ("gannet", "wren team", "queued", "failed", "known already"):
        assert words in text


def test_queue_is_paged(app: AppTest, database_url: str) -> None:
    """Fifty rows a page, forth and back."""
    with database.connect(database_url) as conn:
        many(conn, 60)
    app.run()
    assert drawn(app).count("90 days") == 50
    button(app, "Next page").click().run()
    assert drawn(app).count("90 days") == 10
    button(app, "Previous page").click().run()
    assert drawn(app).count("90 days") == 50


def test_trace_page_explains_the_worst_span(app: AppTest, ids: dict[str, UUID]) -> None:
    """Without a click: question, answer, cause as a sentence, basis, what the chunk says, all chunks."""
    text = drawn(open_trace(app, ids["How long does the kestre"]))
    for words in (
        "How long does the kestrel queue keep messages",
        "chunk 1 says 14 days",
        "attribution and support",
        "252 times likelier",
        "runbooks/osprey.md",
        "+6.92 nats",
        "the parts sum to the total",
        "Answer from the context only.",
    ):
        assert words in text


def test_span_in_the_address_is_selected(app: AppTest, ids: dict[str, UUID]) -> None:
    """A deep link opens its span; an unknown number falls back to the worst one."""
    kestrel = ids["How long does the kestre"]
    assert "Chunk 3 says it" in drawn(open_trace(app, kestrel, span=2))
    assert "chunk 1 says 14 days" in drawn(open_trace(app, kestrel, span=77))


def test_verdict_is_saved(app: AppTest, ids: dict[str, UUID], database_url: str) -> None:
    """A verdict with cause and note is stored and confirmed, and the note field is empty again."""
    harrier = ids["Which port does the harr"]
    open_trace(app, harrier)
    app.selectbox(key=f"cause {harrier} 0").set_value("wrong source").run()
    app.text_input(key=f"note {harrier} 0").set_value("port from the old wiki").run()
    app.text_input(key="reviewer").set_value("Ana").run()
    button(app, "Fabricated").click().run()
    assert "Saved" in drawn(app)
    assert app.text_input(key=f"note {harrier} 0").value == ""
    with database.connect(database_url) as conn:
        stored = conn.execute("SELECT trace_id, span, reviewer, verdict, cause, note FROM review").fetchall()
        assert stored == [(harrier, 0, "Ana", "fabricated", "wrong source", "port from the old wiki")]
        assert harrier not in [row.trace_id for row in reads.read_queue(conn, Filters()).rows]
    assert "reviewed" in drawn(app)


@pytest.mark.parametrize(("label", "cause"), [("Fabricated", "memory over documents"), ("Grounded", None)])
def test_cause_as_found(
    app: AppTest, ids: dict[str, UUID], database_url: str, label: str, cause: str | None
) -> None:
    """Left alone, the cause is the machine's if the person agrees with its verdict, else none."""
    open_trace(app, ids["Which port does the harr"])
    button(app, label).click().run()
    with database.connect(database_url) as conn:
        assert conn.execute("SELECT cause FROM review").fetchall() == [(cause,)]


def test_conflict_keeps_what_was_typed(app: AppTest, ids: dict[str, UUID], database_url: str) -> None:
    """When somebody else was faster, the page says who, nothing is stored, and the note stays."""
    harrier = ids["Which port does the harr"]
    open_trace(app, harrier)
    app.text_input(key=f"note {harrier} 0").set_value("my long thought").run()
    with database.connect(database_url) as conn:
        conn.execute(
            "UPDATE triage_item SET version = version + 1, assignee = 'Ben' WHERE trace_id = %s", (harrier,)
        )
    button(app, "Grounded").click().run()
    text = drawn(app)
    assert "Not saved" in text
    assert "Ben took this span" in text
    assert app.text_input(key=f"note {harrier} 0").value == "my long thought"
    button(app, "Grounded").click().run()
    assert "Saved" in drawn(app)


def test_review_without_a_name_is_refused(app: AppTest, ids: dict[str, UUID]) -> None:
    """An empty name is told in one line that says what to do."""
    open_trace(app, ids["Which port does the harr"])
    app.text_input(key="reviewer").set_value(" ").run()
    button(app, "Grounded").click().run()
    assert "a review needs a name" in drawn(app)


def test_taking_snoozing_reopening(app: AppTest, ids: dict[str, UUID]) -> None:
    """The small buttons move an item, and the page shows where it is."""
    open_trace(app, ids["Which port does the harr"])
    app.text_input(key="reviewer").set_value("Ana").run()
    button(app, "Take").click().run()
    assert "taken by Ana until" in drawn(app)
    button(app, "Snooze").click().run()
    assert "snoozed until" in drawn(app)
    button(app, "Reopen").click().run()
    assert "Reopened" in drawn(app)


def test_next_goes_down_the_queue(app: AppTest, ids: dict[str, UUID]) -> None:
    """Next and previous walk the queue that the trace was opened from."""
    open_trace(app, ids["How long does the kestre"])
    assert button(app, "Previous").disabled
    button(app, "Next").click().run()
    assert app.query_params["id"] == str(ids["Which port does the harr"])
    assert "harrier" in drawn(app)


def test_stand_in_and_unfit_scorers_are_named(app: AppTest, ids: dict[str, UUID]) -> None:
    """No number of a model that did not write the answer is shown without saying so."""
    assert "Stand-in scorer" in drawn(open_trace(app, ids["In which city is the mai"]))
    text = drawn(open_trace(app, ids["Who invented the telepho"]))
    assert "no better than a unigram guess" in text
    assert "support only" in text
    assert "No Shapley shares" in text


def test_token_heat_can_be_switched_on(app: AppTest, ids: dict[str, UUID]) -> None:
    """Heat marks words of the chunks, and nothing is lost."""
    open_trace(app, ids["How long does the kestre"])
    before = drawn(app)
    app.selectbox(key="heat").set_value("input x gradient").run()
    assert "".join(drawn(app).split()) == "".join(before.split())
    assert "heat h4" in "".join(element.proto.json for element in app.get("bidi_component"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("waiting", ["Waiting for a worker", "ragblame worker", "The Oslo team is on call."]),
        ("failed", ["Attribution failed", "copy it there"]),
    ],
)
def test_unattributed_traces_say_why(app: AppTest, ids: dict[str, UUID], name: str, words: list[str]) -> None:
    """A trace without results shows what was captured, why there is no more, and the next step."""
    text = drawn(open_trace(app, ids[name]))
    assert all(word in text for word in words)


def test_failed_trace_can_be_queued_again(app: AppTest, ids: dict[str, UUID], database_url: str) -> None:
    """One button puts a failed trace back, once."""
    open_trace(app, ids["failed"])
    button(app, "Attribute it again").click().run()
    assert "A new attribution of this trace is waiting." in drawn(app)
    with database.connect(database_url) as conn:
        count = conn.execute(
            "SELECT count(*) FROM jobs.procrastinate_jobs WHERE queueing_lock = %s",
            (f"attribute-{ids['failed']}",),
        ).fetchone()
    assert count == (1,)


def test_trace_without_job_can_be_queued(app: AppTest, database_url: str) -> None:
    """A trace that was stored without a job is one click away from its attribution."""
    trace = bare_trace("why?", "because")
    with database.connect(database_url) as conn:
        write_traces(conn, [trace], enqueue=False)
    assert "stored without a job" in drawn(open_trace(app, trace.id))
    button(app, "Attribute it").click().run()
    assert "Waiting for a worker" in drawn(app)


def test_unknown_and_malformed_ids(app: AppTest) -> None:
    """An id that is none, or that nobody stored, is told in one line."""
    assert "No trace chosen" in drawn(open_trace(app, "'; DROP TABLE trace; --"))
    missing = uuid4()
    assert f"no trace {missing}" in drawn(open_trace(app, missing))


def test_trace_page_tells_why_and_how_far(app: AppTest, ids: dict[str, UUID]) -> None:
    """Under the finding: the chain behind the verdict with what an old trace lacks, and its blast radius."""
    text = drawn(open_trace(app, ids["Which port does the harr"]))
    for words in (
        "Why this verdict",
        "Cell of the table",
        "Thresholds",
        "Not kept: premises",
        "Blast radius",
    ):
        assert words in text


def test_the_same_failure_can_be_listed_alone(app: AppTest, database_url: str) -> None:
    """A signature in the address leaves the traces that failed alike, and says so above them."""
    seed(database_url)
    with database.connect(database_url) as conn:
        many(conn, 3)
        row = reads.read_queue(conn, Filters()).rows[0]
    app.query_params["same"] = row.signature
    text = drawn(app.run())
    assert text.count("90 days") == row.same == 4
    assert "×4 of the same" in text
    assert "show all" in text
    assert not re.search(r"(?<![\w-])8080(?![\w-])", text)  # alone: an id may hold these digits


def test_health_page_previews_thresholds(app: AppTest, ids: dict[str, UUID], database_url: str) -> None:
    """The active version is shown, and another one can be tried on history before anything changes."""
    app.switch_page("screens/health.py")
    assert DEFAULT.version in drawn(app.run())
    assert not [entry for entry in app.button if entry.label == "Preview"]
    with database.connect(database_url) as conn:
        store_thresholds(conn, Thresholds(version="strict-1", tau_nats=5.0), note="a trial")
    st.cache_data.clear()
    text = drawn(app.run())
    assert "strict-1" in text
    assert "a trial" in text
    button(app, "Preview").click().run()
    text = drawn(app)
    assert "would be" in text
    assert "stored without what they follow from" in text  # the examples have no premises


def test_health_page(app: AppTest, ids: dict[str, UUID]) -> None:
    """Health shows the missing worker with the command, the scorers, and the failure with its reason."""
    app.switch_page("screens/health.py").run()
    text = drawn(app)
    for words in ("No worker is running", "ragblame worker", "stand-in", "holds no tokenizer"):
        assert words in text


def test_empty_database_says_how_to_begin(app: AppTest) -> None:
    """A fresh installation shows the two ways to get a first trace."""
    text = drawn(app.run())
    assert "No traces yet" in text
    assert "ragblame demo" in text


def test_everything_reviewed_is_no_error(app: AppTest, ids: dict[str, UUID], database_url: str) -> None:
    """An empty queue says that nothing waits."""
    with database.connect(database_url) as conn:
        conn.execute("UPDATE triage_item SET state = 'reviewed'")
    assert "Nothing to review" in drawn(app.run())


def test_unmigrated_database_says_migrate(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without our tables the page names the command that makes them, and recovers without a restart."""
    monkeypatch.setenv("RAGBLAME_DATABASE_URL", empty_database_url)
    load_settings.cache_clear()
    app = AppTest.from_file(str(APP), default_timeout=SECONDS).run()
    assert "ragblame migrate" in drawn(app)
    database.migrate(empty_database_url)
    button(app, "Try again").click().run()
    assert "No traces yet" in drawn(app)


def test_unreachable_database_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is away is one clear line with the next step, without the password."""
    monkeypatch.setenv("RAGBLAME_DATABASE_URL", "postgresql://me:sesame@127.0.0.1:9/none")
    load_settings.cache_clear()
    text = drawn(AppTest.from_file(str(APP), default_timeout=SECONDS).run())
    assert "This page cannot be shown" in text
    assert "nothing listens there" in text
    assert "sesame" not in text


def test_lost_connections_heal(app: AppTest, ids: dict[str, UUID], database_url: str) -> None:
    """When the server drops all connections, the next draw works again."""
    app.run()
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'ragblame ui' AND datname = current_database()"
        )
    st.cache_data.clear()
    assert "90 days" in drawn(app.run())


def test_faults_of_ours_are_not_shown_raw(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug gives a calm line; its details, which may hold a stranger's text, stay in the log."""

    def broken(*arguments: object) -> None:
        raise ValueError("secret text of a document")

    monkeypatch.setattr(reads_facets, "read_facets", broken)
    text = drawn(app.run())
    assert "This page broke" in text
    assert "secret" not in text


def test_five_verdicts_have_the_keys_one_to_five(app: AppTest, ids: dict[str, UUID]) -> None:
    """Each verdict has its button and key."""
    open_trace(app, ids["Which port does the harr"])
    keys = {entry.label: entry.proto.shortcut for entry in app.button}
    assert [keys[kind.value.capitalize()] for kind in VerdictKind] == ["1", "2", "3", "4", "5"]
