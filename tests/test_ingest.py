"""Files into the corpus on a real PostgreSQL: idempotent, resumable, and never stopped by one bad file."""

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings

from ragblame import database
from ragblame.errors import DatabaseError, InputError, ModelError
from ragblame.retriever import reading
from ragblame.retriever.ingest import IngestResult, ingest_paths
from ragblame.retriever.reading import Problem

Conn = psycopg.Connection[Any]


class CountingEmbeddings(Embeddings):
    """Deterministic vectors; counts the texts it read, and fails or turns to zero on request."""

    model_name = "counting"

    def __init__(self, size: int = 8, fail_after: int | None = None, zero: str = "\0") -> None:
        self.fake = DeterministicFakeEmbedding(size=size)
        self.fail_after = fail_after
        self.zero = zero
        self.texts: list[str] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        if self.fail_after is not None and len(self.texts) + len(texts) > self.fail_after:
            raise ConnectionError("planted: the embedding server went away")
        self.texts += texts
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        vector = self.fake.embed_query(text)
        return [0.0 for _ in vector] if self.zero in text else vector


@pytest.fixture
def embeddings() -> CountingEmbeddings:
    """Well-behaved embeddings of 8 dimensions."""
    return CountingEmbeddings()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of its own for files to ingest."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    return folder


def write_jsonl(path: Path, *values: object) -> Path:
    """One line per value; a string is written as it is."""
    lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def stored(conn: Conn) -> dict[str, list[str]]:
    """Source -> texts of its chunks in order; leaves no transaction open."""
    with conn.transaction():
        return dict(
            conn.execute(
                "SELECT source, ARRAY(SELECT text FROM ragblame.chunk c WHERE c.document_id = d.id "
                "ORDER BY position) FROM ragblame.document d"
            ).fetchall()
        )


def counts(result: IngestResult) -> tuple[int, int, int, int]:
    """(documents, chunks, unchanged, embedded)."""
    return result.documents, result.chunks, result.unchanged, result.embedded


def about(problems: Sequence[Problem], path: Path) -> list[tuple[int | None, str]]:
    """(line, message) of the problems of one file."""
    return [(problem.line, problem.message) for problem in problems if problem.path == str(path)]


def test_text_markdown_and_jsonl_are_ingested_and_a_second_run_does_nothing(
    connection: Conn, corpus: Path, embeddings: CountingEmbeddings
) -> None:
    """All three kinds, in folders, with titles, headings and metadata; a second run writes nothing."""
    (corpus / "deep").mkdir()
    (corpus / "deep" / "a.md").write_text("# Billing\n\nPort 8443.\n\n## Undo\n\nRun undo.sh.", "utf-8")
    (corpus / "b.txt").write_text("\ufeffPlain words.\r\n\r\nMore words.", "utf-8")
    lines = write_jsonl(
        corpus / "c.jsonl",
        {"text": "Named.", "source": "kb:1", "title": "T", "metadata": {"team": "x"}},
        {"text": "By id.", "id": 7},
        {"text": "By digest."},
    )
    result = ingest_paths(connection, [corpus], embeddings)
    assert result.problems == []
    assert counts(result) == (5, 6, 0, 6)
    held = stored(connection)
    assert held[str(corpus / "b.txt")] == ["Plain words.\n\nMore words."]
    assert held["kb:1"] == ["Named."]
    assert held[f"{lines}#7"] == ["By id."]
    assert sorted(embeddings.texts) == [
        "Billing\nPort 8443.",
        "Billing > Undo\nRun undo.sh.",
        "By digest.",
        "By id.",
        "Named.",
        "Plain words.\n\nMore words.",
    ]
    with connection.transaction():
        chunk = connection.execute(
            "SELECT metadata FROM ragblame.chunk WHERE text = 'Run undo.sh.'"
        ).fetchone()
        title = connection.execute("SELECT title FROM ragblame.document WHERE source LIKE '%a.md'").fetchone()
        named = connection.execute("SELECT metadata FROM ragblame.chunk WHERE text = 'Named.'").fetchone()
    assert (chunk, title, named) == (({"heading": "Billing > Undo"},), ("Billing",), ({"team": "x"},))

    with connection.transaction():
        before = connection.execute(
            "SELECT xmin::text, ctid::text, id FROM ragblame.chunk ORDER BY id"
        ).fetchall()
    again = ingest_paths(connection, [corpus, corpus / "b.txt", lines], embeddings)
    assert counts(again) == (0, 0, 5, 0)
    assert again.problems == []
    after = connection.execute("SELECT xmin::text, ctid::text, id FROM ragblame.chunk ORDER BY id").fetchall()
    assert before == after


def test_a_run_commits_as_it_goes(database_url: str, corpus: Path, embeddings: CountingEmbeddings) -> None:
    """Another connection sees the corpus although the caller never commits."""
    (corpus / "a.txt").write_text("Words.", "utf-8")
    with database.connect(database_url) as ours, database.connect(database_url) as theirs:
        ingest_paths(ours, [corpus], embeddings)
        assert list(stored(theirs).values()) == [["Words."]]
        ours.rollback()
        assert len(stored(theirs)) == 1


def test_an_edit_embeds_only_what_is_new(
    connection: Conn, corpus: Path, embeddings: CountingEmbeddings
) -> None:
    """One changed paragraph of three costs one embedding, and the others keep their rows."""
    file = corpus / "a.txt"
    file.write_text("One.\n\nTwo.\n\nThree.", "utf-8")
    ingest_paths(connection, [file], embeddings, one_chunk_per_paragraph=True)
    file.write_text("One.\n\nTwo changed.\n\nThree.", "utf-8")
    result = ingest_paths(connection, [file], embeddings, one_chunk_per_paragraph=True)
    assert counts(result) == (1, 3, 0, 1)
    assert stored(connection)[str(file)] == ["One.", "Two changed.", "Three."]


def test_other_chunking_is_a_change(connection: Conn, corpus: Path, embeddings: CountingEmbeddings) -> None:
    """The same file with another chunk length is cut anew, not mistaken for unchanged."""
    file = corpus / "a.txt"
    file.write_text("One.\n\nTwo.", "utf-8")
    ingest_paths(connection, [file], embeddings)
    assert counts(ingest_paths(connection, [file], embeddings, one_chunk_per_paragraph=True)) == (1, 2, 0, 2)


def test_a_malformed_line_is_named_and_the_others_are_ingested(
    connection: Conn, corpus: Path, embeddings: CountingEmbeddings
) -> None:
    """Each bad line is told with its number and what is wrong with it; none costs a good one."""
    deep = "[" * 100_000
    file = write_jsonl(
        corpus / "a.jsonl",
        {"text": "first"},
        "{not json",
        '["list"]',
        {"text": "  "},
        {"title": "no text"},
        {"text": "x", "metadata": [1]},
        {"text": "x", "source": 5.5},
        '{"text": "x", "metadata": {"n": NaN}}',
        '{"text": "x", "metadata": {"n": 1e999}}',
        '{"text": ' + deep,
        '{"text": "x", "metadata": {"n": ' + "9" * 5_000 + "}}",
        "",
        {"text": "first"},
        {"text": "last"},
    )
    file.write_bytes(file.read_bytes() + b'{"text": "\xff"}\n')
    result = ingest_paths(connection, [file], embeddings)
    found = dict(about(result.problems, file))
    assert sorted(line for line in found if line) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15]
    for line, words in (
        (2, "not JSON"), (3, "not a JSON object"), (4, '"text"'), (6, '"metadata"'), (7, '"source"'),
        (8, "NaN"), (9, "too large"), (13, f"same source as {file}, line 1"), (15, "not UTF-8"),
    ):  # fmt: skip
        assert words in found[line]
        assert "\n" not in found[line]
    assert sorted(texts for [texts] in stored(connection).values()) == ["first", "last"]


def test_files_that_are_no_text_are_reported_and_passed_over(
    connection: Conn, corpus: Path, embeddings: CountingEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Link loops, broken links, pipes, images, giants and wrong encodings cost only themselves."""
    monkeypatch.setattr(reading, "MAX_FILE", 1_000)
    monkeypatch.setattr(reading, "MAX_LINE", 1_000)
    (corpus / "good.txt").write_text("Good.", "utf-8")
    (corpus / "binary.txt").write_bytes(b"\x00\x01")
    (corpus / "latin.txt").write_bytes("café".encode("latin-1"))
    (corpus / "huge.md").write_text("x" * 1_001, "utf-8")
    (corpus / "image.png").write_bytes(b"\x89PNG")
    (corpus / "empty.txt").write_text("\n \n", "utf-8")
    (corpus / ".hidden.txt").write_text("Hidden.", "utf-8")
    (corpus / "loop").symlink_to(corpus, target_is_directory=True)
    (corpus / "broken.txt").symlink_to(corpus / "nowhere")
    os.mkfifo(corpus / "pipe.txt")
    lines = write_jsonl(corpus / "lines.jsonl", {"text": "x" * 1_001}, {"text": "After the giant."})
    missing = corpus / "missing.txt"
    result = ingest_paths(connection, [corpus, missing], embeddings)
    wrong = {
        "binary.txt": "binary", "latin.txt": "not UTF-8", "huge.md": "split it", "broken.txt": "no such file",
        "lines.jsonl": "split it", "missing.txt": "no such file",
    }  # fmt: skip
    passed_over = {
        "image.png": "no known kind", "empty.txt": "no text", "loop": "read already",
        "pipe.txt": "not a regular",
    }  # fmt: skip
    for reports, expected in ((result.problems, wrong), (result.skipped, passed_over)):
        assert {Path(report.path).name for report in reports} == set(expected)
        for report in reports:
            assert expected[Path(report.path).name] in report.message
    assert about(result.problems, lines)[0][0] == 1
    held = {texts[0] for texts in stored(connection).values() if texts}
    assert held == {"Good.", "After the giant."}


def test_a_file_named_itself_is_text_whatever_its_suffix(
    connection: Conn, corpus: Path, embeddings: CountingEmbeddings
) -> None:
    """The user knows better than the suffix, unless the bytes say otherwise."""
    file = corpus / "Procfile"
    file.write_text("web: run", "utf-8")
    assert counts(ingest_paths(connection, [file], embeddings)) == (1, 1, 0, 1)


def test_hostile_text_is_stored_as_data(
    connection: Conn, corpus: Path, embeddings: CountingEmbeddings
) -> None:
    """NUL, lone surrogates, a 1 MB line, SQL and markup, in text, keys, values, ids and file names."""
    attack = "'; DROP TABLE ragblame.chunk; -- <script>alert(1)</script> %s {} $1"
    (corpus / "line.txt").write_text("x" * 1_000_000, "utf-8")
    (corpus / "nul.txt").write_bytes(b"words " * 2_000 + b"\x00 end")
    Path(os.fsdecode(os.fsencode(corpus) + b"/bad\xffname.txt")).write_text("Named badly.", "utf-8")
    write_jsonl(
        corpus / "a.jsonl",
        '{"text": "nul \\u0000 lone \\ud800 end", "id": "\\u0000"}',
        {"text": attack, "source": attack, "title": attack, "metadata": {attack: [attack]}},
    )
    result = ingest_paths(connection, [corpus], embeddings)
    assert result.problems == []
    held = stored(connection)
    assert held[attack] == [attack]
    assert held[f"{corpus / 'a.jsonl'}#\u2400"] == ["nul \u2400 lone \ufffd end"]
    assert held[str(corpus / "bad\ufffdname.txt")] == ["Named badly."]
    assert len(held[str(corpus / "line.txt")]) == 1_000
    assert counts(ingest_paths(connection, [corpus], embeddings))[:3] == (0, 0, 5)


def test_progress_counts_bytes_up_to_the_total(
    connection: Conn, corpus: Path, embeddings: CountingEmbeddings
) -> None:
    """It never goes back and ends at the total; also on a second run, and with a bad line."""
    (corpus / "a.txt").write_text("\n\n".join(f"Paragraph {n}." for n in range(300)), "utf-8")
    write_jsonl(corpus / "b.jsonl", *({"text": f"Line {n}."} for n in range(300)), "not json")
    total = sum(file.stat().st_size for file in corpus.iterdir())
    for _ in range(2):
        done: list[int] = []
        totals: list[int] = []

        def on_progress(now: int, of: int, done: list[int] = done, totals: list[int] = totals) -> None:
            done.append(now)
            totals.append(of)

        ingest_paths(connection, [corpus], embeddings, one_chunk_per_paragraph=True, on_progress=on_progress)
        assert set(totals) == {total}
        assert done == sorted(done)
        assert done[-1] == total
    assert len(embeddings.texts) == 600


def test_an_interrupted_run_is_taken_up_where_it_stopped(connection: Conn, corpus: Path) -> None:
    """The embedding server fails in the middle: one clear error, and the next run embeds only the rest."""
    write_jsonl(corpus / "a.jsonl", *({"text": f"Line {n}."} for n in range(600)))
    failing = CountingEmbeddings(fail_after=400)
    with pytest.raises(ModelError, match=r"counting failed \(ConnectionError: planted.*ingest again"):
        ingest_paths(connection, [corpus], failing)
    done = len(stored(connection))
    assert 0 < done < 600
    embeddings = CountingEmbeddings()
    result = ingest_paths(connection, [corpus], embeddings)
    assert counts(result) == (600 - done, 600 - done, done, 600 - done)
    assert len(stored(connection)) == 600


def test_a_text_without_direction_costs_only_its_document(connection: Conn, corpus: Path) -> None:
    """A zero vector is refused and told; the other documents of the batch are stored."""
    file = write_jsonl(corpus / "a.jsonl", {"text": "good"}, {"text": "poison"}, {"text": "fine"})
    result = ingest_paths(connection, [file], CountingEmbeddings(zero="poison"))
    assert [(line, "no direction" in message) for line, message in about(result.problems, file)] == [
        (2, True)
    ]
    assert sorted(texts for [texts] in stored(connection).values()) == ["fine", "good"]


def test_other_dimensions_under_one_name_are_refused(
    connection: Conn, corpus: Path, embeddings: CountingEmbeddings
) -> None:
    """Embeddings of another size under the registered name stop the run before anything is written."""
    (corpus / "a.txt").write_text("Words.", "utf-8")
    ingest_paths(connection, [corpus], embeddings)
    (corpus / "b.txt").write_text("Other words.", "utf-8")
    with pytest.raises(ModelError, match="returned 4 dimensions, 8 are registered"):
        ingest_paths(connection, [corpus], CountingEmbeddings(size=4))
    assert len(stored(connection)) == 1
    assert counts(ingest_paths(connection, [corpus], CountingEmbeddings(size=4), model="small")) == (
        2,
        2,
        0,
        2,
    )


def test_two_runs_at_once_end_with_one_copy(database_url: str, corpus: Path) -> None:
    """Four runs over one folder, two of them starting from its end: one copy of each document and chunk."""
    for number in range(8):
        write_jsonl(corpus / f"{number}.jsonl", *({"text": f"Line {number}.{n}"} for n in range(60)))
    files = sorted(corpus.iterdir())
    barrier, results, failures = threading.Barrier(4), list[IngestResult](), list[BaseException]()

    def work(number: int) -> None:
        try:
            with database.connect(database_url) as conn:
                barrier.wait(60)
                paths = files[::-1] if number % 2 else files
                results.append(ingest_paths(conn, paths, CountingEmbeddings()))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert failures == []
    assert sum(result.documents for result in results) == 480
    assert all(result.documents + result.unchanged == 480 for result in results)
    with database.connect(database_url) as conn:
        held = stored(conn)
    assert len(held) == 480
    assert len({text for [text] in held.values()}) == 480


def test_pruning_removes_only_what_is_surely_gone(
    connection: Conn, corpus: Path, tmp_path: Path, embeddings: CountingEmbeddings
) -> None:
    """Deleted files and lines go when asked; what could not be read, or lies elsewhere, stays."""
    other = tmp_path / "corpus-2"
    other.mkdir()
    for name in ("keep", "gone", "sick"):
        (corpus / f"{name}.txt").write_text(f"Words of {name}.", "utf-8")
    (other / "far.txt").write_text("Far away.", "utf-8")
    lines = write_jsonl(
        corpus / "a.jsonl", {"text": "stays"}, {"text": "leaves"}, {"text": "named", "source": "n"}
    )
    ingest_paths(connection, [corpus, other], embeddings)
    (corpus / "gone.txt").unlink()
    (corpus / "sick.txt").write_bytes(b"\xff\xff")
    write_jsonl(lines, {"text": "stays"})
    assert ingest_paths(connection, [corpus], embeddings).removed == 0
    assert len(stored(connection)) == 7
    assert ingest_paths(connection, [corpus / "missing"], embeddings, prune=True).removed == 0
    assert ingest_paths(connection, [corpus], embeddings, prune=True).removed == 3
    assert {texts[0] for texts in stored(connection).values()} == {
        "Words of keep.", "Words of sick.", "Far away.", "stays",
    }  # fmt: skip
    write_jsonl(lines, {"text": "new"}, "not json")
    assert ingest_paths(connection, [corpus], embeddings, prune=True).removed == 0


def test_sources_may_be_relative_to_a_folder(
    connection: Conn, corpus: Path, tmp_path: Path, embeddings: CountingEmbeddings
) -> None:
    """Two checkouts of one repository are the same documents when sources are relative to its root."""
    for root in (corpus, tmp_path / "checkout"):
        (root / "docs").mkdir(parents=True)
        (root / "docs" / "a.txt").write_text("Words.", "utf-8")
        result = ingest_paths(connection, [root], embeddings, relative_to=root)
        assert result.documents + result.unchanged == 1
    assert list(stored(connection)) == [os.path.join("docs", "a.txt")]
    (corpus / "docs" / "a.txt").unlink()
    assert ingest_paths(connection, [corpus], embeddings, relative_to=corpus, prune=True).removed == 1


def test_the_order_of_a_run_is_stable(connection: Conn, corpus: Path, embeddings: CountingEmbeddings) -> None:
    """Row ids are time-ordered, so files are taken by name, whatever order the file system lists them in."""
    for name in ("b", "a", "C", "ä"):
        (corpus / f"{name}.txt").write_text(f"Words of {name}.", "utf-8")
    ingest_paths(connection, [corpus], embeddings)
    assert embeddings.texts == [f"Words of {name}." for name in ("C", "a", "b", "ä")]


def test_impossible_orders_are_refused(
    connection: Conn, corpus: Path, embeddings: CountingEmbeddings, empty_database_url: str
) -> None:
    """A chunk length out of range and a database without our schema are one clear error each."""
    with pytest.raises(InputError, match="max_chars is 3"):
        ingest_paths(connection, [corpus], embeddings, max_chars=3)
    with database.connect(empty_database_url) as conn, pytest.raises(DatabaseError, match="ragblame migrate"):
        ingest_paths(conn, [corpus], embeddings)
