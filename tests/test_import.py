"""`ragblame import`'s engine: every readable line becomes one trace, once, whatever stands around it."""

import gzip
import json
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ragblame import database
from ragblame.errors import InputError
from ragblame.records import Trace
from ragblame.settings import Settings
from ragblame.traces import read_trace, write_traces
from ragblame.ui import import_files, imports
from ragblame.ui.imports import ImportResult, import_file, import_identity

Connection = psycopg.Connection[Any]

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def row(row_id: str | int = "r1", **changes: Any) -> dict[str, Any]:
    """A line of the documented format."""
    return {
        "id": row_id,
        "dataset": "toy",
        "task": "qa",
        "question": "How long?",
        "chunks": [
            {"chunk_id": "p1", "text": "It takes 30 s.", "title": "T"},
            {"chunk_id": 2, "text": "Or not."},
        ],
        "answer": "It takes 40 s.",
        "labels": [{"start": 9, "end": 13, "type": "Evident Conflict", "text": "40 s"}],
        "model": "m",
        "split": "dev",
        **changes,
    }  # fmt: skip


def write(path: Path, *lines: object) -> Path:
    """A JSONL file; bytes and text are written as they are."""
    data = b"\n".join(
        line
        if isinstance(line, bytes)
        else line.encode()
        if isinstance(line, str)
        else json.dumps(line).encode()
        for line in lines
    )
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def run(conn: Connection, path: Path, **options: Any) -> tuple[ImportResult, list[tuple[int, str]]]:
    """Import and collect the problems."""
    problems: list[tuple[int, str]] = []
    result = import_file(
        conn, path, Settings(), on_problem=lambda number, text: problems.append((number, text)), **options
    )
    return result, problems


def only_trace(conn: Connection) -> Trace:
    """The one that is stored."""
    [(trace_id,)] = conn.execute("SELECT id FROM trace").fetchall()
    return read_trace(conn, trace_id)


def count(conn: Connection, table: str = "trace") -> int:
    """Rows of a table."""
    found = conn.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert found is not None
    return int(found[0])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_becomes_a_trace_with_a_job(connection: Connection, tmp_path: Path, name: str) -> None:
    """Every field finds its place: chunks with rank and name, model, and the labels in the metadata."""
    result, problems = run(connection, write(tmp_path / name, row()))
    assert (result.imported, result.known, result.malformed, problems) == (1, 0, 0, [])
    trace = only_trace(connection)
    assert (trace.question, trace.answer, trace.model, trace.origin) == (
        "How long?", "It takes 40 s.", "m", "import",
    )  # fmt: skip
    assert (trace.app, trace.prompt, trace.id.version) == ("toy", (), 7)
    assert trace.root_run_id == import_identity("toy", "r1")
    assert [(c.position, c.rank, c.source_id, c.text) for c in trace.chunks] == [
        (0, 1, "p1", "It takes 30 s."),
        (1, 2, "2", "Or not."),
    ]
    assert trace.chunks[0].metadata == {"title": "T"}
    assert trace.metadata["labels"] == row()["labels"]
    assert (trace.metadata["id"], trace.metadata["dataset"], trace.metadata["split"]) == ("r1", "toy", "dev")
    jobs = connection.execute("SELECT args ->> 'trace_id' FROM procrastinate_jobs").fetchall()
    assert jobs == [(str(trace.id),)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Answer from:\nIt takes 30 s.", [("prompt", "Answer from:\nIt takes 30 s.")]),
        (
            [{"role": "system", "content": "[1] It takes 30 s."}, {"role": "user", "content": "How long?"}],
            [("system", "[1] It takes 30 s."), ("human", "How long?")],
        ),
        ("", []),
        (None, []),
    ],
)
def test_the_prompt_comes_along_where_it_is_told(
    connection: Connection, tmp_path: Path, prompt: object, expected: list[tuple[str, str]]
) -> None:
    """One text or messages; none is no fault."""
    result, problems = run(connection, write(tmp_path / "a.jsonl", row(prompt=prompt)))
    assert (result.imported, problems) == (1, [])
    trace = only_trace(connection)
    assert [(message.role, message.text) for message in trace.prompt] == expected
    assert "prompt" not in trace.metadata


def test_a_prompt_beyond_the_limit_is_cut(connection: Connection, tmp_path: Path) -> None:
    """The trace has its beginning and its true length."""
    path = write(tmp_path / "a.jsonl", row(prompt=[{"role": "user", "content": "long " * 200_001}]))
    assert run(connection, path)[0].imported == 1
    trace = only_trace(connection)
    assert [(message.role, len(message.text)) for message in trace.prompt] == [("human", 1_000_000)]
    assert trace.truncated == {"prompt[0]": 1_000_005}


def test_importing_again_adds_nothing(connection: Connection, tmp_path: Path) -> None:
    """A second run, a copied line and a longer copy of the file add only what is new."""
    path = write(tmp_path / "a.jsonl", row(1), row(1), row("1"))
    assert run(connection, path)[0] == ImportResult(imported=2, known=1, malformed=0, lines=3)
    assert run(connection, path)[0] == ImportResult(imported=0, known=3, malformed=0, lines=3)
    longer = write(tmp_path / "b.jsonl", row(1), row(2), row("1"), row(1, dataset="other"))
    assert run(connection, longer)[0] == ImportResult(imported=2, known=2, malformed=0, lines=4)
    assert count(connection) == count(connection, "procrastinate_jobs") == 4


def test_lines_without_a_dataset_belong_to_their_file(connection: Connection, tmp_path: Path) -> None:
    """Two files that number their lines alike are not taken for each other."""
    bare = {key: value for key, value in row(1).items() if key != "dataset"}
    for name in ("one.jsonl", "two.jsonl", "one.jsonl"):
        run(connection, write(tmp_path / name, bare))
    assert connection.execute("SELECT app FROM trace ORDER BY app").fetchall() == [("one",), ("two",)]


BAD_LINES = {
    b"{": "not JSON",
    b"[1]": "not a JSON object",
    b'{"id": 1, "answer": NaN, "chunks": []}': "NaN is no JSON number",
    b"\xff{}": "not UTF-8",
    b"[" * 100_000: "nested too deeply",
    json.dumps({"answer": "a", "chunks": []}).encode(): 'no "id"',
    json.dumps(row(chunks=None)).encode(): 'no "chunks"',
    json.dumps(row(chunks=[{"chunk_id": "p"}])).encode(): 'chunk 1 has no "text"',
    json.dumps(row(answer=7)).encode(): 'no text "answer"',
    json.dumps(row(question=["a"])).encode(): 'no text "question"',
    json.dumps(row(prompt=[7])).encode(): '"prompt" holds no message',
    json.dumps(row(labels={"a": 1})).encode(): '"labels" is no list',
    json.dumps(row(labels=[{"start": 0, "end": 99}])).encode(): "lies outside the answer",
    json.dumps(row(labels=[{"start": 0, "end": 2, "text": "xx"}])).encode(): "is not the text it quotes",
    json.dumps(row(answer="x" * 1_000_001, labels=[])).encode(): "raise RAGBLAME_CAPTURE_MAX_FIELD",
}  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BAD_LINES.items(), ids=list(BAD_LINES.values()))
def test_a_malformed_line_is_named_and_costs_only_itself(
    connection: Connection, tmp_path: Path, line: bytes, message: str
) -> None:
    """Its number and what to do are told; the lines before and after it are imported."""
    path = write(tmp_path / "a.jsonl", row(1), line, b"", b"   ", row(2))
    result, problems = run(connection, path)
    assert (result.imported, result.malformed, result.lines) == (2, 1, 3)
    ((number, text),) = problems
    assert number == 2
    assert message in text
    assert "\n" not in text
    assert count(connection) == 2


def test_hostile_texts_are_imported(connection: Connection, tmp_path: Path) -> None:
    """NUL, lone surrogates, a byte order mark, no question and a megabyte: stored, with offsets kept."""
    answer = "a\0b\ud800" + "x" * 999_996
    labels = [{"start": 1, "end": 4, "type": "t", "text": "\0b\ud800"}]
    path = write(
        tmp_path / "a.jsonl",
        b"\xef\xbb\xbf" + json.dumps(row("\0\ud800", answer=answer, labels=labels, question=None)).encode(),
        row(2, answer="", labels=[], chunks=[], model=None),
    )
    result, problems = run(connection, path)
    assert (result.imported, problems) == (2, [])
    rows = connection.execute("SELECT answer, question, model FROM trace ORDER BY id").fetchall()
    assert rows[0][0][:4] == "a\u2400b\ufffd"
    assert len(rows[0][0]) == 1_000_000
    assert rows[0][1:] == ("", "m")
    assert rows[1] == ("", "How long?", None)
    assert run(connection, path)[0].known == 2


def test_a_line_too_long_to_be_an_answer(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without line ends cannot fill the memory: the giant is skipped, the next line is read."""
    monkeypatch.setattr(import_files, "MAX_LINE", 2_000)
    result, problems = run(connection, write(tmp_path / "a.jsonl", row(1), b"x" * 9_999, row(2)))
    assert (result.imported, [number for number, _ in problems]) == (2, [2])


def test_a_torn_archive_keeps_what_was_read(connection: Connection, tmp_path: Path) -> None:
    """A gzip file cut in the middle imports its beginning and names the line where it ends."""
    rows = [row(i, answer=f"{i}" * 500, labels=[]) for i in range(300)]
    path = write(tmp_path / "a.jsonl.gz", *rows)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result, problems = run(connection, path)
    assert 0 < result.imported < 300
    assert problems[0][0] == result.imported + 1
    assert "damaged" in problems[0][1]
    assert count(connection) == result.imported


def test_one_refused_trace_leaves_the_batch(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace that storage refuses is named by its line; the others of its batch are written."""
    real = write_traces

    def refuse(conn: Connection, traces: list[Any], **options: Any) -> int:
        if any(trace.question == "refuse me" for trace in traces):
            raise InputError("PostgreSQL refuses a trace: correct it")
        return real(conn, traces, **options)

    monkeypatch.setattr(imports, "write_traces", refuse)
    path = write(tmp_path / "a.jsonl", row(1), row(2, question="refuse me"), row(3))
    result, problems = run(connection, path)
    assert (result.imported, result.malformed) == (2, 1)
    assert problems == [(2, "PostgreSQL refuses a trace: correct it")]
    assert count(connection) == 2


def test_limit_app_and_progress(connection: Connection, tmp_path: Path) -> None:
    """``limit`` counts lines, ``app`` files them together, progress ends at the file's size or before."""
    path = write(tmp_path / "a.jsonl", *[row(i) for i in range(10)])
    seen: list[tuple[int, int]] = []
    result, _ = run(connection, path, limit=3, app="mine", on_progress=lambda *at: seen.append(at))
    assert (result.imported, result.lines) == (3, 3)
    assert connection.execute("SELECT DISTINCT app FROM trace").fetchall() == [("mine",)]
    assert all(0 <= done <= total == path.stat().st_size for done, total in seen)
    assert run(connection, path, enqueue=False)[0].imported == 7
    assert count(connection, "procrastinate_jobs") == 3


def test_files_that_cannot_be_opened(connection: Connection, tmp_path: Path) -> None:
    """A missing file and a folder are one line with the next step."""
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            run(connection, path)
    assert run(connection, write(tmp_path / "empty.jsonl"))[0] == ImportResult()


def test_two_imports_at_once_add_each_line_once(database_url: str, tmp_path: Path) -> None:
    """The same file imported by several processes at the same time ends with one copy."""
    path = write(tmp_path / "a.jsonl", *[row(i) for i in range(250)])
    results: list[ImportResult] = []

    def work() -> None:
        with database.connect(database_url, autocommit=True) as conn:
            results.append(run(conn, path)[0])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(result.imported for result in results) == 250
    assert sum(result.known for result in results) == 500
    with database.connect(database_url) as conn:
        assert count(conn) == count(conn, "procrastinate_jobs") == 250


@pytest.mark.parametrize("name", ["ragtruth_qa", "wice", "clapnq", "xquad_en"])
def test_the_labelled_sets_import(connection: Connection, name: str) -> None:
    """200 rows of each human-labelled set import without a problem, labels included."""
    path = DATA / f"{name}.dev.jsonl.gz"
    if not path.exists():
        pytest.skip("the labelled sets are not part of the repository")
    result, problems = run(connection, path, limit=200)
    assert (result.imported, problems) == (200, [])
    with gzip.open(path, "rt", encoding="utf-8") as file:
        first = json.loads(next(file))
    found = connection.execute(
        "SELECT metadata -> 'labels' FROM trace WHERE root_run_id = %s",
        (import_identity(first["dataset"], first["id"]),),
    ).fetchone()
    assert found == (first["labels"],)
