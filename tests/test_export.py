"""`ragblame export`: traces with verdicts as spans that other tools read, and that come back as they were."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragblame import database
from ragblame.attribution.jobs.results import write_explanation
from ragblame.errors import InputError
from ragblame.records import Chunk, Explanation, Message, Trace, TraceStatus
from ragblame.settings import Settings, load_settings
from ragblame.traces import clean_trace, new_trace_id, read_trace, write_traces
from ragblame.ui import cli, import_openinference
from ragblame.ui.export import export_traces, spans_of, to_otlp
from ragblame.ui.import_assembly import assemble
from ragblame.ui.import_steps import Step
from ragblame.ui.imports import ImportFormat, import_file
from tests.test_results import make_explanation

Connection = psycopg.Connection[Any]

DATA = Path(__file__).with_name("data")
STARTED = datetime(2026, 3, 1, 10, 0, 0, 123_456, tzinfo=UTC)


def captured(**changes: Any) -> Trace:
    """A trace as the callback records it, every field used."""
    given_fields: dict[str, Any] = {
        "id": new_trace_id(STARTED), "app": "support", "question": "How do I restart the relay?",
        "query": "relay restart", "answer": "It takes 40 seconds.", "generated": "It takes 40 seconds. ",
        "model": "m", "provider": "p", "started_at": STARTED, "duration_ms": 1_234.567, "session_id": "s",
        "tags": ("a", "b"), "metadata": {"tenant": "acme", "n": 1.5, "deep": {"x": [1, None]}},
        "prompt": (Message(role="system", text="Restart takes 30 seconds.\nCall Ann."),
                   Message(role="human", text="How?"), Message(role="ai", text="So."),
                   Message(role="tool", text="{}")),
        "chunks": (
            Chunk(position=0, text="Restart takes 30 seconds.", source_id="7", source_table="public.notes",
                  rank=1, score=0.25, score_name="distance", metadata={"distance": 0.25, "file": "a.md"}),
            Chunk(position=1, text="Call Ann. \u20ac \U0001f600", rank=2, score=-1.0, score_name="own",
                  metadata={"id": "no identity", "distance": 0.5, "source_table": "none"}),
            Chunk(position=2, text="", truncated_from=99),
        ),
    }  # fmt: skip
    return clean_trace(Trace(**{**given_fields, **changes}))


def explained(trace: Trace) -> Explanation:
    """With shares for three chunks."""
    made = make_explanation(trace, flagged=(0,), offsets=((0, 20),), alignments=(), heats=(), coalitions=None)
    shares = (1.5, -0.25, 0.0)
    attributions = tuple(replace(one, shares=shares, standard_errors=None) for one in made.attributions)
    return replace(made, attributions=attributions)


def imported(lines: Sequence[Any]) -> Trace:
    """What the importer makes of exported lines."""
    steps = [found for line in lines for found in import_openinference.read(line)]
    assert all(isinstance(step, Step) for step in steps), steps
    trace = assemble([step for step in steps if isinstance(step, Step)], "openinference", None, Settings())
    assert trace is not None
    return clean_trace(trace)


def as_imported(trace: Trace) -> Trace:
    """The same trace with what an import is known to change."""
    return replace(
        trace,
        origin="import",
        root_run_id=None,
        metadata={key: entry for key, entry in trace.metadata.items() if key != "import"},
        chunks=tuple(replace(chunk, retriever_run=None) for chunk in trace.chunks),
    )


def lines_of(path: Path) -> list[Any]:
    """The JSON lines of a file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# The way back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["lines", "otlp"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"query": None, "generated": None, "prompt": ()},
        {"answer": '{"answer": "x", "b": 1}', "generated": None, "question": '["What?"]'},
        {"status": TraceStatus.ERROR, "error": "ValueError: no", "answer": "", "generated": None},
        {"status": TraceStatus.ABANDONED, "answer": "It ta"},
        {"chunks": (), "query": None},
    ],
    ids=["everything", "plain", "JSON for texts", "failed", "abandoned", "no chunks"],
)
def test_an_export_comes_back_as_it_was(form: str, changes: dict[str, Any]) -> None:
    """Question, query, chunks with rank, score and table, prompt, answer, model, status, times: all equal."""
    trace = captured(**changes)
    spans = spans_of(trace, explained(trace))
    lines = spans if form == "lines" else [to_otlp(spans)]
    back = imported(json.loads(json.dumps(lines)))
    assert as_imported(back) == as_imported(trace)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)


@given(TEXT, TEXT, st.lists(st.tuples(TEXT, st.none() | st.floats(allow_nan=False, allow_infinity=False)),
                            max_size=5), st.lists(TEXT, max_size=3))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back(
    question: str, answer: str, chunks: list[tuple[str, float | None]], prompt: list[str]
) -> None:
    """Whatever question, answer, chunks and prompt hold, they come back to the last code point."""
    trace = captured(
        question=question or "?",
        query=None,
        answer=answer or "!",
        generated=None,
        prompt=tuple(Message(role="human", text=text) for text in prompt),
        chunks=tuple(
            Chunk(position=i, rank=i + 1, text=text, score=score, score_name=None if score is None else "own")
            for i, (text, score) in enumerate(chunks)
        ),
    )
    back = imported(json.loads(json.dumps(spans_of(trace, None))))
    assert as_imported(back) == as_imported(trace)


def test_export_and_import_on_databases(connection: Connection, tmp_path: Path) -> None:
    """Exported and imported again into the same database nothing is new; into an empty one all is there."""
    traces = [captured(id=new_trace_id(STARTED + timedelta(minutes=i)), question=f"q{i}") for i in range(3)]
    write_traces(connection, traces)
    connection.commit()
    path = tmp_path / "a.jsonl"
    spans = [span for found in export_traces(connection) for span in found]
    path.write_text("".join(json.dumps(span) + "\n" for span in spans), "utf-8")
    connection.commit()
    connection.autocommit = True
    kind = ImportFormat.OPENINFERENCE
    again = import_file(connection, path, Settings(), kind=kind)
    assert (again.imported, again.known) == (0, 3)
    connection.execute("TRUNCATE trace, trace_chunk, procrastinate_jobs CASCADE")
    assert import_file(connection, path, Settings(), kind=kind).imported == 3
    for trace in traces:
        assert as_imported(read_trace(connection, trace.id)) == as_imported(trace)


# What the spans say ------------------------------------------------------------------------------------


def test_the_verdicts_are_attributes(connection: Connection) -> None:
    """Verdict, cause and every chunk's share of each piece of the answer, with counts to filter by."""
    trace = captured()
    write_traces(connection, [trace])
    explanation = explained(trace)
    write_explanation(connection, explanation)
    connection.commit()
    (spans,) = export_traces(connection)
    assert [span["span_kind"] for span in spans] == ["CHAIN", "RETRIEVER", "LLM", "EVALUATOR"]
    said = spans[-1]["attributes"]
    assert said["ragblame.flagged"] == 1
    assert said["ragblame.verdicts.distorted"] == 1
    assert said["ragblame.causes"] == ["distortion"]
    assert said["ragblame.scorer"] == "small"
    assert said["ragblame.scorer_is_own_model"] is False
    at = "ragblame.spans.0"
    assert (said[f"{at}.verdict"], said[f"{at}.cause"]) == ("distorted", "distortion")
    assert (said[f"{at}.start"], said[f"{at}.end"], said[f"{at}.text"]) == (0, 20, trace.answer)
    assert said[f"{at}.shares"] == [1.5, -0.25, 0.0]
    assert said[f"{at}.reliance"] == 1.5
    assert said[f"{at}.explanation"] == "The answer says 40, the chunk says 30."
    assert said["output.value"] == said[f"{at}.explanation"]
    assert said[f"{at}.confidence"] == 0.75
    uncalibrated = replace(explanation.verdicts[0], confidence=None)
    again = spans_of(trace, replace(explanation, verdicts=(uncalibrated,)))[-1]["attributes"]
    assert f"{at}.confidence" not in again  # absent, not zero
    documents = spans[1]["attributes"]
    assert documents["retrieval.documents.0.document.content"] == "Restart takes 30 seconds."
    assert documents["retrieval.documents.0.document.score"] == 0.25


def test_only_verdicts_of_attributed_traces(connection: Connection) -> None:
    """With `only_verdicts` a trace that still waits gives nothing, an attributed one its one span."""
    waiting, done = captured(), captured(id=new_trace_id(STARTED + timedelta(hours=1)))
    write_traces(connection, [waiting, done])
    write_explanation(connection, explained(done))
    connection.commit()
    assert [len(spans) for spans in export_traces(connection)] == [3, 4]
    ((span,),) = export_traces(connection, only_verdicts=True)
    assert span["attributes"]["ragblame.trace_id"] == str(done.id)


@pytest.mark.parametrize("name", ["openinference_spans", "langfuse_traces"])
def test_an_imported_trace_goes_back_to_its_own(connection: Connection, name: str) -> None:
    """Its verdicts hang under the trace id and root span that the tracer gave, so the tracer shows them."""
    connection.autocommit = True
    kind = ImportFormat.OPENINFERENCE if name.startswith("open") else ImportFormat.LANGFUSE
    import_file(connection, DATA / f"{name}.jsonl", Settings(), kind=kind, limit=1)
    found = connection.execute("SELECT id FROM trace").fetchone()
    assert found is not None
    trace = read_trace(connection, found[0])
    with connection.transaction():
        write_explanation(connection, explained(trace))
    (((span,)),) = export_traces(connection, only_verdicts=True)
    roots = {
        (one.trace, one.id)
        for line in lines_of(DATA / f"{name}.jsonl")
        for one in (import_openinference.read(line) if name.startswith("open") else langfuse_roots(line))
        if isinstance(one, Step) and one.parent in (None, f"trace {one.trace}") and not one.is_record
    }
    assert (span["context"]["trace_id"], span["parent_id"]) in roots
    assert len(span["context"]["span_id"]) == 16


def langfuse_roots(line: Any) -> list[Step | str]:
    """The steps of a Langfuse line."""
    from ragblame.ui import import_langfuse

    return list(import_langfuse.read(line))


def test_sent_twice_is_shown_once() -> None:
    """Trace and span ids are the same on every export, and differ between spans and traces."""
    one, two = captured(), captured(id=new_trace_id(STARTED))
    first = [span["context"] for span in spans_of(one, explained(one))]
    assert first == [span["context"] for span in spans_of(one, explained(one))]
    other = [span["context"] for span in spans_of(two, explained(two))]
    assert len({entry["span_id"] for entry in (*first, *other)}) == 8
    assert len({entry["trace_id"] for entry in (*first, *other)}) == 2


def test_otlp_is_what_a_collector_reads() -> None:
    """Ids are hexadecimal, times exact nanoseconds as text, integers text, lists arrays."""
    trace = captured(status=TraceStatus.ERROR, error="ValueError: no")
    request = to_otlp(spans_of(trace, explained(trace)))
    ((scope,),) = [resource["scopeSpans"] for resource in request["resourceSpans"]]
    chain, _, _, verdicts = scope["spans"]
    assert chain["traceId"] == trace.id.hex
    assert len(chain["spanId"]) == 16
    assert "parentSpanId" not in chain
    assert chain["startTimeUnixNano"] == "1772359200123456000"
    assert int(chain["endTimeUnixNano"]) - int(chain["startTimeUnixNano"]) == 1_234_567_000
    assert chain["status"] == {"code": 2, "message": "ValueError: no"}
    values = {pair["key"]: pair["value"] for pair in verdicts["attributes"]}
    assert values["ragblame.flagged"] == {"intValue": "1"}
    assert values["ragblame.scorer_is_own_model"] == {"boolValue": False}
    assert values["ragblame.spans.0.shares"] == {
        "arrayValue": {"values": [{"doubleValue": 1.5}, {"doubleValue": -0.25}, {"doubleValue": 0.0}]}
    }


def test_every_attribute_is_documented() -> None:
    """Who reads our spans finds each attribute of ours in docs/interop.md."""
    page = (Path(__file__).parent.parent / "docs" / "interop.md").read_text("utf-8")
    trace = captured()
    sampled = tuple(replace(one, standard_errors=(0.1, 0.1, 0.1)) for one in explained(trace).attributions)
    spans = spans_of(trace, replace(explained(trace), attributions=sampled))
    for key in {key for span in spans for key in span["attributes"] if "ragblame" in key}:
        name = re.sub(r"\.\d+\.", ".N.", key)
        start, _, last = name.rpartition(".")
        if start == "ragblame.verdicts":
            last = "VERDICT"
        assert f"`{start}.{last}`" in page or (f"`{start}." in page and f"`.{last}`" in page), key


# Many traces, the command line ---------------------------------------------------------------------------


def test_pages_filters_and_order(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of traces comes oldest first, each once; app, time and limit choose among them."""
    from ragblame.ui import export

    monkeypatch.setattr(export, "PAGE", 3)
    traces = [
        captured(
            id=new_trace_id(STARTED + timedelta(minutes=i)), started_at=STARTED + timedelta(minutes=i),
            question=f"q{i}", app="odd" if i % 2 else "even",
        )
        for i in range(10)
    ]  # fmt: skip
    write_traces(connection, traces)
    connection.commit()

    def asked(**options: Any) -> list[str]:
        return [spans[0]["attributes"]["input.value"] for spans in export_traces(connection, **options)]

    assert asked() == [f"q{i}" for i in range(10)]
    assert asked(limit=4) == ["q0", "q1", "q2", "q3"]
    assert asked(app="odd") == ["q1", "q3", "q5", "q7", "q9"]
    assert asked(since=STARTED + timedelta(minutes=7)) == ["q7", "q8", "q9"]
    assert asked(since=datetime(1900, 1, 1, tzinfo=UTC), limit=1) == ["q0"]
    assert asked(app="none") == []


@pytest.fixture
def on_database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A migrated database that the command line finds in its settings."""
    monkeypatch.setenv("RAGBLAME_DATABASE_URL", database_url)
    load_settings.cache_clear()
    return database_url


def test_the_command_writes_lines(
    on_database: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Data go to stdout or the file, words to stderr; the file imports again; a bad folder is one line."""
    with database.connect(on_database) as conn:
        write_traces(conn, [captured(question="\x1b[2J\nq")])
    assert cli.run(["export"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["span_kind"] for line in out.splitlines()] == ["CHAIN", "RETRIEVER", "LLM"]
    assert "1 traces exported in 3 lines" in err
    path = tmp_path / "a.jsonl"
    assert cli.run(["export", str(path), "--otlp-json", "--since", "2026-01-01", "--app", "support"]) == 0
    assert [list(line) for line in lines_of(path)] == [["resourceSpans"]]
    assert capsys.readouterr().out == ""
    assert cli.run(["import", "--openinference", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["known"] == 1
    assert cli.run(["export", str(tmp_path / "no" / "a.jsonl")]) == InputError.exit_code
    assert "cannot be written" in capsys.readouterr().err
