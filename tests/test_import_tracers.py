"""`ragblame import` of other tracers' files: what they recorded becomes ordinary traces, once."""

import gzip
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragblame.attribution.written import written
from ragblame.errors import InputError
from ragblame.records import Trace, TraceStatus
from ragblame.settings import Settings
from ragblame.traces import clean_trace, read_trace
from ragblame.ui import cli, import_langfuse, import_openinference, imports
from ragblame.ui.import_assembly import assemble
from ragblame.ui.import_steps import Step
from ragblame.ui.imports import ImportFormat, ImportResult, import_file

Connection = psycopg.Connection[Any]

DATA = Path(__file__).with_name("data")
FILES = {
    "openinference_spans": ImportFormat.OPENINFERENCE,
    "openinference_otlp": ImportFormat.OPENINFERENCE,
    "langfuse_traces": ImportFormat.LANGFUSE,
    "langfuse_observations": ImportFormat.LANGFUSE,
}
READERS: dict[ImportFormat, Callable[[Any], Iterator[Step | str]]] = {
    ImportFormat.OPENINFERENCE: import_openinference.read,
    ImportFormat.LANGFUSE: import_langfuse.read,
}


def values(name: str) -> list[Any]:
    """The lines of a committed export."""
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()]


def write(path: Path, *lines: Any) -> Path:
    """A JSONL file; texts are written as they are."""
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text, "utf-8")
    return path


def run(
    conn: Connection, path: Path, kind: ImportFormat, **options: Any
) -> tuple[ImportResult, list[tuple[int, str]]]:
    """Import and collect the problems."""
    problems: list[tuple[int, str]] = []
    result = import_file(
        conn, path, Settings(), kind=kind, on_problem=lambda *problem: problems.append(problem), **options
    )
    return result, problems


def stored(conn: Connection) -> list[Trace]:
    """Every trace, the oldest first."""
    ids = conn.execute("SELECT id FROM trace ORDER BY started_at, id").fetchall()
    return [read_trace(conn, row[0]) for row in ids]


def traces_of(kind: ImportFormat, *lines: Any) -> list[Trace]:
    """What these values become, without a database; a problem fails the test."""
    steps: dict[str, list[Step]] = {}
    for line in lines:
        for found in READERS[kind](line):
            assert isinstance(found, Step), found
            steps.setdefault(found.trace, []).append(found)
    traces = [assemble(some, kind.value, None, Settings()) for some in steps.values()]
    return [clean_trace(trace) for trace in traces if trace is not None]


def openinference(*lines: Any) -> Trace:
    """The one trace of these spans."""
    (trace,) = traces_of(ImportFormat.OPENINFERENCE, *lines)
    return trace


def langfuse(*lines: Any) -> Trace:
    """The one trace of these records."""
    (trace,) = traces_of(ImportFormat.LANGFUSE, *lines)
    return trace


def span(kind: str, number: int, parent: int | None = 1, **attributes: Any) -> dict[str, Any]:
    """A span in the form of Phoenix's API; ``__`` in a name stands for a dot."""
    flat = {name.replace("__", "."): value for name, value in attributes.items()}
    return {
        "name": kind.lower(),
        "context": {"trace_id": "ab" * 16, "span_id": f"{number:016x}"},
        "span_kind": kind,
        "parent_id": None if parent is None else f"{parent:016x}",
        "start_time": f"2025-03-01T10:00:{number:02}+00:00",
        "end_time": "2025-03-01T10:01:00+00:00",
        "status_code": "OK",
        "attributes": {"openinference.span.kind": kind, **flat},
        "events": [],
    }


def root(question: Any = "How long?", answer: Any = "30 s.", **attributes: Any) -> dict[str, Any]:
    """The span above."""
    given = {"input__value": question, "output__value": answer, **attributes}
    return span("CHAIN", 1, None, **{key: value for key, value in given.items() if value is not None})


def observation(type_: str, number: int, parent: int | None = 1, **fields: Any) -> dict[str, Any]:
    """An observation in the form of the API."""
    return {
        "id": f"o{number}",
        "traceId": "t1",
        "type": type_,
        "name": type_.lower(),
        "parentObservationId": None if parent is None else f"o{parent}",
        "startTime": f"2025-03-01T10:00:{number:02}Z",
        "endTime": "2025-03-01T10:01:00Z",
        "level": "DEFAULT",
        **fields,
    }


# The real exports --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), FILES.items(), ids=list(FILES))
def test_a_real_export_becomes_ordinary_traces(connection: Connection, name: str, kind: ImportFormat) -> None:
    """Question, query, chunks with identity, score and table, prompt, answer, model, times: all in place."""
    result, problems = run(connection, DATA / f"{name}.jsonl", kind)
    assert (result.imported, result.malformed, result.skipped, problems) == (3, 0, 0, [])
    first, second, failed = stored(connection)
    assert (first.question, first.answer) == ("Which port?", "It listens on port 2959.")
    assert first.query == "On which port does the Kestrel gateway listen?"
    assert [(c.position, c.rank, c.source_id, c.source_table) for c in first.chunks] == [
        (0, 1, "row-17", "public.notes"),
        (1, 2, "row-4", "public.notes"),
        (2, 3, "row-9", "public.notes"),
    ]
    assert [(c.score, c.score_name) for c in first.chunks] == [
        (0.91, "score"),
        (0.44, "score"),
        (0.12, "score"),
    ]
    assert first.chunks[2].text == "Ports below 1024 need root – even for “tests”."
    assert [message.role for message in first.prompt] == ["system", "human", "ai", "human"]
    assert all(chunk.text in first.prompt[0].text for chunk in first.chunks)
    assert first.prompt[-1].text == "Which port?"
    assert (first.model, first.generated, first.status, first.origin) == (
        "scripted-1", None, TraceStatus.OK, "import",
    )  # fmt: skip
    assert (first.app, first.session_id) == ("support", "talk-1")
    assert first.metadata["tenant"] == "acme"
    assert first.id.version == 7
    assert 0 < first.duration_ms < 60_000
    assert abs(first.started_at.timestamp() * 1_000 - (first.id.int >> 80)) < 1.001  # the id is of that time
    assert second.answer == "In Oslo, since 2024."
    assert (failed.status, failed.answer) == (TraceStatus.ERROR, "")
    assert "the model is overloaded" in (failed.error or "")
    assert (failed.model, len(failed.chunks)) == ("scripted-1", 3)  # the run that failed, not the rewriter
    jobs = connection.execute("SELECT count(*) FROM procrastinate_jobs").fetchone()
    assert jobs == (3,)


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        ("openinference_spans", "openinference_otlp", ImportFormat.OPENINFERENCE),
        ("langfuse_traces", "langfuse_observations", ImportFormat.LANGFUSE),
    ],
)
def test_imported_twice_is_once(
    connection: Connection, one: str, other: str, kind: ImportFormat, tmp_path: Path
) -> None:
    """The same file again, the same traces in another form, and in another order add nothing."""
    assert run(connection, DATA / f"{one}.jsonl", kind)[0].imported == 3
    ids = [trace.id for trace in stored(connection)]
    mixed = values(one)
    mixed.reverse()
    for path in (DATA / f"{one}.jsonl", DATA / f"{other}.jsonl", write(tmp_path / "a.jsonl", *mixed)):
        result, problems = run(connection, path, kind)
        assert (result.imported, result.known, problems) == (0, 3, [])
    assert [trace.id for trace in stored(connection)] == ids
    connection.execute("TRUNCATE trace, trace_chunk, procrastinate_jobs CASCADE")
    run(connection, DATA / f"{other}.jsonl", kind)
    assert [trace.id for trace in stored(connection)] == ids  # the ids are made of what was imported


def test_steps_of_several_traces_may_be_mixed(connection: Connection, tmp_path: Path) -> None:
    """Spans of concurrent traces come interleaved; each trace gets its own, and only them."""
    spans = values("openinference_spans")
    mixed = [one for offset in range(3) for one in spans[offset::3]]
    assert run(connection, write(tmp_path / "a.jsonl", *mixed), ImportFormat.OPENINFERENCE)[0].imported == 3
    assert [(t.question, len(t.chunks)) for t in stored(connection)] == [
        ("Which port?", 3), ("Where does it run?", 3), ("And in an outage?", 3),
    ]  # fmt: skip


def containers(name: str) -> Iterator[tuple[str, str]]:
    """The same values as files of other shapes."""
    found = values(name)
    yield "array", json.dumps(found, indent=2)
    yield "array on one line", json.dumps(found)
    yield "page", json.dumps({"data": found, "next_cursor": None}, indent=2)
    yield "pages by line", json.dumps({"data": found[:9]}) + "\n" + json.dumps({"data": found[9:]})


@pytest.mark.parametrize("shape", ["array", "array on one line", "page", "pages by line"])
@pytest.mark.parametrize("name", ["openinference_spans", "langfuse_traces", "langfuse_observations"])
def test_files_of_other_shapes(connection: Connection, tmp_path: Path, name: str, shape: str) -> None:
    """A downloaded array, an answer of the API and saved pages hold the same traces; gzipped, too."""
    text = dict(containers(name))[shape]
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(text.encode()))
    result, problems = run(connection, path, FILES[name])
    assert (result.imported, problems) == (3, [])


# OpenInference's spellings -------------------------------------------------------------------------------


DOCUMENTS: dict[str, Any] = {
    "retrieval__documents__0__document__content": "It takes 30 s.",
    "retrieval__documents__0__document__id": "d7",
    "retrieval__documents__0__document__score": 0.5,
    "retrieval__documents__0__document__metadata": '{"file.name": "a.md", "distance": 0.2}',
    "retrieval__documents__1__document__content": "Or not.",
    "retrieval__documents__1__document__id": 8,
    "retrieval__documents__10__document__content": "Tenth is after second.",
}
MESSAGES: dict[str, Any] = {
    "llm__model_name": "m",
    "llm__provider": "p",
    "llm__input_messages__0__message__role": "system",
    "llm__input_messages__0__message__content": "It takes 30 s. Or not.",
    "llm__input_messages__1__message__role": "user",
    "llm__input_messages__1__message__contents__0__message_content__type": "text",
    "llm__input_messages__1__message__contents__0__message_content__text": "How long?",
    "llm__input_messages__1__message__contents__1__message_content__type": "image",
    "llm__output_messages__0__message__role": "assistant",
    "llm__output_messages__0__message__content": "30 s.",
}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Flat attributes as nested objects with lists, made independently of the code under test."""
    made: dict[str, Any] = {}
    for key, value in flat.items():
        node = made
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value

    def listed(node: Any) -> Any:
        if isinstance(node, dict):
            if node and all(key.isdigit() for key in node):
                return [listed(node[key]) for key in sorted(node, key=int)]
            return {key: listed(entry) for key, entry in node.items()}
        return node

    found = listed(made)
    assert isinstance(found, dict)
    return found


def as_frame(one: dict[str, Any]) -> dict[str, Any]:
    """A row of Phoenix's data frame of spans: dotted columns, lists of objects with dotted keys."""
    tree = nested(one["attributes"])
    row = {
        "context.trace_id": one["context"]["trace_id"],
        "context.span_id": one["context"]["span_id"],
        "parent_id": one["parent_id"],
        "name": one["name"],
        "span_kind": one["span_kind"],
        "start_time": int(
            datetime.fromisoformat(one["start_time"]).timestamp() * 1_000
        ),  # as pandas writes it
        "end_time": one["end_time"],
        "status_code": one["status_code"],
    }
    for key, value in one["attributes"].items():
        if ".documents." not in key and "_messages." not in key:
            row[f"attributes.{key}"] = value
    if "retrieval" in tree:
        row["attributes.retrieval.documents"] = [
            {f"document.{key}": value for key, value in entry["document"].items()}
            for entry in tree["retrieval"]["documents"]
        ]
    if "llm" in tree:
        for name in ("input_messages", "output_messages"):
            row[f"attributes.llm.{name}"] = [
                {f"message.{key}": value for key, value in entry["message"].items()}
                for entry in tree["llm"][name]
            ]
    return row


def as_otlp(one: dict[str, Any], *, snake: bool) -> dict[str, Any]:
    """A request of one span, in OTLP's camel case or in the snake case of Phoenix's endpoint."""

    def any_value(value: Any) -> dict[str, Any]:
        kind = {str: "stringValue", int: "intValue", float: "doubleValue"}[type(value)]
        name = {"stringValue": "string_value", "intValue": "int_value", "doubleValue": "double_value"}[kind]
        return {name if snake else kind: str(value) if kind == "intValue" else value}

    nanoseconds = str(int(datetime.fromisoformat(one["start_time"]).timestamp() * 1_000_000_000))
    found = {
        "trace_id" if snake else "traceId": one["context"]["trace_id"],
        "span_id" if snake else "spanId": one["context"]["span_id"],
        "parent_span_id" if snake else "parentSpanId": one["parent_id"] or "",
        "name": one["name"],
        "start_time_unix_nano" if snake else "startTimeUnixNano": nanoseconds,
        "status": {"code": 1},
        "attributes": [{"key": key, "value": any_value(value)} for key, value in one["attributes"].items()],
    }
    if snake:
        return {"data": [found]}
    resource = {"attributes": [{"key": "openinference.project.name", "value": {"stringValue": "help"}}]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [found]}]}]}


@pytest.mark.parametrize("form", ["flat", "nested", "frame", "otlp", "phoenix otlp"])
def test_every_form_of_a_span_is_read_alike(form: str) -> None:
    """Flat, nested, data frame and both OTLP spellings give the same question, chunks, prompt and answer."""
    spans = [root(session__id="s"), span("RETRIEVER", 2, **DOCUMENTS), span("LLM", 3, **MESSAGES)]
    spans[1]["attributes"]["input.value"] = "how long"
    forms: dict[str, Any] = {
        "flat": lambda one: one,
        "nested": lambda one: one | {"attributes": nested(one["attributes"])},
        "frame": as_frame,
        "otlp": lambda one: as_otlp(one, snake=False),
        "phoenix otlp": lambda one: as_otlp(one, snake=True),
    }
    trace = openinference(*[forms[form](one) for one in spans])
    assert (trace.question, trace.query, trace.answer) == ("How long?", "how long", "30 s.")
    assert [(c.rank, c.source_id, c.score, c.score_name, c.text) for c in trace.chunks] == [
        (1, "d7", 0.2, "distance", "It takes 30 s."),  # the metadata says what kind of score it is
        (2, "8", None, None, "Or not."),
        (3, None, None, None, "Tenth is after second."),
    ]
    assert trace.chunks[0].metadata == {"file.name": "a.md", "distance": 0.2}
    assert [(m.role, m.text) for m in trace.prompt] == [
        ("system", "It takes 30 s. Or not."),
        ("human", "How long?[image]"),
    ]
    assert (trace.model, trace.provider, trace.session_id) == ("m", "p", "s")
    assert trace.started_at == datetime(2025, 3, 1, 10, 0, 1, tzinfo=UTC)
    assert trace.app == ("help" if form == "otlp" else "chain")


def test_a_score_without_a_name_of_its_own_keeps_the_field() -> None:
    """Where the metadata names no score, `document.score` is taken, under the name `score`."""
    trace = openinference(
        root(),
        span("RETRIEVER", 2, retrieval__documents__0__document__content="x",
             retrieval__documents__0__document__score=0.25),
    )  # fmt: skip
    assert [(c.score, c.score_name) for c in trace.chunks] == [(0.25, "score")]


def test_judges_and_rerankers_keep_their_places() -> None:
    """An evaluator's model never counts as the answer, and a reranker's order is the chunks' order."""
    trace = openinference(
        root(answer="30 s."),
        span("RETRIEVER", 2, retrieval__documents__0__document__content="a",
             retrieval__documents__1__document__content="b"),
        span("RERANKER", 3, reranker__output_documents__0__document__content="b",
             reranker__output_documents__0__document__score=0.9,
             reranker__input_documents__0__document__content="a"),
        span("LLM", 4, **MESSAGES),
        span("EVALUATOR", 5),
        span("LLM", 6, parent=5, llm__output_messages__0__message__content="30 s.",
             llm__output_messages__0__message__role="assistant", llm__model_name="judge"),
    )  # fmt: skip
    assert [(c.text, c.rank, c.score) for c in trace.chunks] == [("b", 1, 0.9)]
    assert trace.model == "m"


def test_of_equal_texts_the_run_that_saw_the_chunks_answered() -> None:
    """A self-check that repeats the answer is not taken for it, though it came last."""
    again: dict[str, Any] = {
             "llm__output_messages__0__message__content": "30 s.", "llm__model_name": "checker",
             "llm__output_messages__0__message__role": "assistant",
             "llm__input_messages__0__message__role": "user",
             "llm__input_messages__0__message__content": "Is this right?"}  # fmt: skip
    trace = openinference(
        root(), span("RETRIEVER", 2, **DOCUMENTS), span("LLM", 3, **MESSAGES), span("LLM", 4, **again)
    )
    assert trace.model == "m"


def test_an_answer_taken_out_of_the_models_text_is_mapped_to_it() -> None:
    """A parser stood between model and user: the model's own text is scored, at the places shown."""
    said = MESSAGES | {"llm__output_messages__0__message__content": '{"answer": "It takes 30 s."}'}
    trace = openinference(
        root(answer="It takes 30 s.", metadata=json.dumps({"ragblame": {"model_runs": 1}, "tenant": "acme"})),
        span("RETRIEVER", 2, **DOCUMENTS),
        span("LLM", 3, **said),
    )
    assert trace.generated == '{"answer": "It takes 30 s."}'
    assert trace.metadata["tenant"] == "acme"
    assert trace.metadata["ragblame"] == {"model_runs": 1, "answer_map": [[0, 12, 14]]}
    source = written(trace)
    assert source.text == trace.generated
    assert source.place(12, 26) == (0, 14)


def test_a_question_beside_its_history() -> None:
    """A field that is called the question is it, not the last turn of the history beside it."""
    turns = [{"role": "user", "content": "And before?"}, {"role": "assistant", "content": "Yes."}]
    for inputs, asked in (
        ({"messages": turns, "question": "How long?"}, "How long?"),
        ({"messages": turns}, "And before?"),
        ([["user", "And before?"]], "And before?"),
        ({"messages": [[{"lc": 1, "id": ["x", "HumanMessage"], "kwargs": {"content": "Hm?"}}]]}, "Hm?"),
    ):
        trace = openinference(root(question=json.dumps(inputs)), span("LLM", 2, **MESSAGES))
        assert trace.question == asked


def test_documents_that_only_passed_between_steps() -> None:
    """Without a retriever span, documents in a step's output are the chunks, each once."""
    output = {"context": [{"page_content": "It takes 30 s.", "metadata": {}, "id": "r"}], "answer": "30 s."}
    trace = openinference(root(answer=json.dumps(output)), span("LLM", 2, **MESSAGES))
    assert (trace.answer, [(c.source_id, c.text) for c in trace.chunks]) == (
        "30 s.",
        [("r", "It takes 30 s.")],
    )


def test_a_web_request_above_the_chain() -> None:
    """The outermost span with an input and an output is the question, not the server's span above it."""
    above = span("", 9, None)
    del above["attributes"]["openinference.span.kind"]
    trace = openinference(above, root() | {"parent_id": f"{9:016x}"}, span("LLM", 2, **MESSAGES))
    assert (trace.question, trace.answer, trace.app) == ("How long?", "30 s.", "chain")


def test_an_exception_is_named_by_its_event() -> None:
    """Class and message come from the exception event; a cancelled run is told from a failed one."""
    for name, status in (
        ("asyncio.exceptions.CancelledError", TraceStatus.CANCELLED),
        ("GraphInterrupt", TraceStatus.INTERRUPTED),
        ("openai.RateLimitError", TraceStatus.ERROR),
    ):
        event = {"name": "exception", "attributes": {"exception.type": name, "exception.message": "no\nmore"}}
        broken = root(answer=None) | {"status_code": "ERROR", "events": [event]}
        trace = openinference(broken, span("LLM", 2, **MESSAGES))
        assert (trace.status, trace.error) == (status, f"{name.rpartition('.')[2]}: no\nmore")


# Langfuse's spellings ------------------------------------------------------------------------------------


def test_a_trace_record_says_what_its_observations_do_not() -> None:
    """Input, output, session, tags and metadata of the trace are used, times and status of the run."""
    trace = langfuse(
        {"id": "t1", "name": "support", "timestamp": "2025-03-01T09:59:59Z",
         "input": {"question": "How long?"}, "output": "30 s.",
         "sessionId": "s", "tags": ["a"], "metadata": {"tenant": "x", "api_key": "secret"},
         "observations": [
             observation("SPAN", 1, None),
             observation("SPAN", 2, input="how long",
                         output=[{"page_content": "It takes 30 s.", "metadata": {"relevance_score": 0.5}}]),
             observation("GENERATION", 3, input=[{"role": "user", "content": "How long?"}],
                         output={"role": "assistant", "content": "30 s."}, model="m"),
         ]},
    )  # fmt: skip
    assert (trace.question, trace.query, trace.answer, trace.app) == (
        "How long?",
        "how long",
        "30 s.",
        "support",
    )
    assert [(c.text, c.score, c.score_name) for c in trace.chunks] == [
        ("It takes 30 s.", 0.5, "relevance_score")
    ]
    assert [(m.role, m.text) for m in trace.prompt] == [("human", "How long?")]
    assert (trace.session_id, trace.tags, trace.model) == ("s", ("a",), "m")
    assert trace.metadata["tenant"] == "x"
    assert "api_key" not in trace.metadata


def test_a_download_from_the_page_of_a_trace() -> None:
    """The file of Langfuse's "Download JSON": trace and observations side by side, texts that hold JSON."""
    trace = langfuse(
        {"trace": {"id": "t1", "name": "support"},
         "observations": [
             observation("CHAIN", 1, None, traceId=None, input='{"input": "How long?"}',
                         output='{"answer": "30 s."}'),
             observation("RETRIEVER", 2, traceId=None, input="how long",
                         output='["It takes 30 s.", "Or not."]'),
         ],
         "scores": []},
    )  # fmt: skip
    assert (trace.question, trace.answer) == ("How long?", "30 s.")
    assert [(c.rank, c.text) for c in trace.chunks] == [(1, "It takes 30 s."), (2, "Or not.")]


def test_scores_and_unknown_types_are_named(connection: Connection, tmp_path: Path) -> None:
    """A score, an unknown type and a stranger's line say what they are; the rest is imported."""
    good = observation("GENERATION", 1, None, input="How long?", output="30 s.")
    path = write(
        tmp_path / "a.jsonl",
        {"id": "x", "traceId": "t1", "name": "quality", "value": 1, "dataType": "NUMERIC"},
        observation("HOLOGRAM", 2),
        {"hello": "world"},
        good,
    )
    result, problems = run(connection, path, ImportFormat.LANGFUSE)
    assert (result.imported, result.malformed) == (1, 3)
    assert [number for number, _ in problems] == [1, 2, 3]
    for (_, said), word in zip(problems, ("a score", "HOLOGRAM", 'no "id"'), strict=True):
        assert word in said


# Bad lines and hostile input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{broken", "not JSON"),
        ('"text"', "not a JSON object"),
        ("7", "not a JSON object"),
        ('{"name": "x"}', "no trace id or span id"),
        ('{"context": {"trace_id": "ab"}, "attributes": {}}', "no trace id or span id"),
        ('{"resourceSpans": [{"scopeSpans": [{"spans": [1]}]}]}', "not OTLP"),
        ('{"data": [[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]}', "nested too deeply"),
        ('{"context": {"trace_id": "ab", "span_id": NaN}}', "NaN is no JSON number"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_line_is_named_and_costs_only_itself(
    connection: Connection, tmp_path: Path, line: str, said: str
) -> None:
    """Its number and the reason are told; the traces around it are imported whole."""
    lines = values("openinference_spans")
    path = write(tmp_path / "a.jsonl", *lines[:5], line, "", *lines[5:])
    result, problems = run(connection, path, ImportFormat.OPENINFERENCE)
    assert (result.imported, result.malformed, [number for number, _ in problems]) == (3, 1, [6])
    assert said in problems[0][1]
    assert "\n" not in problems[0][1]
    assert all(len(trace.chunks) == 3 for trace in stored(connection))


def test_traces_without_an_answer_are_counted_apart(connection: Connection, tmp_path: Path) -> None:
    """An embedding run or a web request is no answered question: passed over, and not an error."""
    path = write(tmp_path / "a.jsonl", span("EMBEDDING", 1, None, input__value="x", output__value="y"))
    result, problems = run(connection, path, ImportFormat.OPENINFERENCE)
    assert (result.imported, result.skipped, result.malformed, problems) == (0, 1, 0, [])


def test_a_cycle_of_parents_ends() -> None:
    """Spans that are each other's parents are read as any others."""
    one, two = root(), span("LLM", 2, **MESSAGES)
    one["parent_id"] = two["context"]["span_id"]
    assert openinference(one, two).answer == "30 s."


def test_hostile_texts_are_stored(connection: Connection, tmp_path: Path) -> None:
    """NUL, lone surrogates, markup, a huge number and an old time are data; long texts are cut and noted."""
    attack = "a\0b\ud800<script>\x1b[2J"
    spans = [
        root(question=attack, answer=attack + "x" * 2_000_000),
        span("RETRIEVER", 2, retrieval__documents__0__document__content=attack * 200_000,
             retrieval__documents__0__document__id=10**400,
             retrieval__documents__0__document__score="1e999",
             retrieval__documents__0__document__metadata=json.dumps({"a" * 9: [attack] * 9_000})),
        span("LLM", 3, **MESSAGES) | {"start_time": "-9999", "end_time": "9" * 40},
    ]  # fmt: skip
    spans[0]["attributes"]["ragblame"] = {"trace_id": "no uuid", "status": ["x"], "app": {}}
    result, problems = run(connection, write(tmp_path / "a.jsonl", *spans), ImportFormat.OPENINFERENCE)
    assert (result.imported, problems) == (1, [])
    (trace,) = stored(connection)
    assert trace.question == "a\u2400b\ufffd<script>\x1b[2J"
    assert (len(trace.answer), trace.truncated["answer"]) == (1_000_000, 2_000_000 + len(attack))
    assert trace.chunks[0].truncated_from == 200_000 * len(attack)
    assert trace.chunks[0].score is None


def test_a_stolen_id_overwrites_nothing(connection: Connection, tmp_path: Path) -> None:
    """A file that claims the id of a stored trace changes nothing of that trace."""
    run(connection, DATA / "langfuse_traces.jsonl", ImportFormat.LANGFUSE)
    before = stored(connection)
    thief = root(question="stolen", ragblame__trace_id=str(before[0].id))
    path = write(tmp_path / "a.jsonl", thief, span("LLM", 2, **MESSAGES))
    assert run(connection, path, ImportFormat.OPENINFERENCE)[0] == ImportResult(known=1, lines=2)
    assert stored(connection) == before


def test_too_many_steps_are_a_loop(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace without end is cut and named once; memory is bounded."""
    monkeypatch.setattr(imports, "MAX_STEPS", 3)
    spans = [root(), span("LLM", 2, **MESSAGES), *[span("CHAIN", number) for number in range(3, 9)]]
    result, problems = run(connection, write(tmp_path / "a.jsonl", *spans), ImportFormat.OPENINFERENCE)
    assert (result.imported, len(problems)) == (1, 1)
    assert "the rest is left out" in problems[0][1]
    (trace,) = stored(connection)
    assert trace.metadata["import"]["steps"] == 3  # type: ignore[call-overload,index]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(
            ["context", "trace_id", "span_id", "attributes", "openinference.span.kind", "input.value", "role",
             "output.value", "retrieval.documents", "document.content", "message", "content", "contents",
             "id", "llm.input_messages", "0", "1", "resourceSpans", "scopeSpans", "spans", "key", "value",
             "data",
             "observations", "traceId", "type", "startTime", "input", "output", "metadata", "trace", "kwargs",
             "page_content", "stringValue", "arrayValue", "values", "tags", "events", "status", "ragblame.x"]
        ) | st.text(max_size=5),
        inner, max_size=6,
    ),
    max_leaves=30,
)  # fmt: skip


BASES = [root(), span("LLM", 2, **MESSAGES), span("RETRIEVER", 3, **DOCUMENTS)]
FIELDS = ["attributes", "context", "status", "events", "start_time", "parent_id", "name"]


@given(JSON, st.sampled_from(BASES), st.sampled_from(FIELDS))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_stands_in_a_line_is_data(value: Any, base: dict[str, Any], field: str) -> None:
    """No JSON value makes a reader raise: it becomes steps, a reason, or nothing."""
    made = observation("RETRIEVER", 1, output=value, input=value)
    for kind, reader in READERS.items():
        for line in (value, base | {field: value}, made):
            steps = [found for found in reader(line) if isinstance(found, Step)]
            trace = assemble(steps, kind.value, None, Settings())
            if trace is not None:
                clean_trace(trace)


# The command line ------------------------------------------------------------------------------------------


def test_the_command_takes_exactly_one_file(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A tracer's file by its option, with counts for a program; none or two files are a usage error."""
    from ragblame.settings import load_settings

    monkeypatch.setenv("RAGBLAME_DATABASE_URL", database_url)
    load_settings.cache_clear()
    path = DATA / "openinference_spans.jsonl"
    assert cli.run(["import", "--openinference", str(path), "--json", "--app", "help"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"imported": 3, "known": 0, "malformed": 0, "skipped": 0}
    assert "3 imported" in err
    assert cli.run(["import"]) == 2
    assert cli.run(["import", str(path), "--langfuse", str(path)]) == 2
    assert "give one file" in capsys.readouterr().err
    broken = write(tmp_path / "a.jsonl", "{", *values("langfuse_traces"))
    assert cli.run(["import", "--langfuse", str(broken)]) == InputError.exit_code
    err = capsys.readouterr().err
    assert "line 1: not JSON" in err
    assert "3 imported" in err
