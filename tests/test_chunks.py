"""The document and chunk store on a real PostgreSQL: ids that last, replacement in one step, safe races."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding

from ragblame import database
from ragblame.errors import DatabaseError, InputError, ModelError
from ragblame.retriever.chunks import (
    changed_documents,
    remove_documents,
    texts_to_embed,
    write_documents,
)
from ragblame.retriever.drafts import ChunkDraft, DocumentDraft, draft_document
from ragblame.retriever.embedding_models import (
    EmbeddingModel,
    VectorText,
    find_model,
    has_direction,
    name_of,
    register_model,
    vector_text,
)

Conn = psycopg.Connection[Any]
FAKE = DeterministicFakeEmbedding(size=8)


def draft(source: str, *texts: str, heading: str = "", **metadata: Any) -> DocumentDraft:
    """A document of these chunks."""
    chunks = [ChunkDraft(text=text, heading=heading) for text in texts]
    return draft_document(source, chunks, metadata=metadata)


def vectors(model: EmbeddingModel, *drafts: DocumentDraft) -> dict[str, VectorText]:
    """A vector for every chunk."""
    texts = [chunk.embedded_text for document in drafts for chunk in document.chunks]
    return {text: vector_text(FAKE.embed_query(text), model) for text in texts}


def write(conn: Conn, model: EmbeddingModel, *drafts: DocumentDraft) -> tuple[int, int]:
    """Write with all vectors at hand; returns (written, unchanged)."""
    written = write_documents(conn, drafts, model, vectors(model, *drafts))
    assert written.lacking == ()
    return written.documents, written.unchanged


def rows(conn: Conn, source: str) -> list[tuple[UUID, int, str]]:
    """(id, position, text) of a document's chunks in order; leaves no transaction open."""
    with conn.transaction():
        return conn.execute(
            "SELECT c.id, c.position, c.text FROM ragblame.chunk c "
            "JOIN ragblame.document d ON d.id = document_id WHERE d.source = %s ORDER BY c.position",
            (source,),
        ).fetchall()


def versions(conn: Conn) -> list[tuple[Any, ...]]:
    """Physical place and writing transaction of every row: equal before and after means nothing touched."""
    with conn.transaction():
        query = "SELECT xmin::text, ctid::text, id FROM {} ORDER BY id"
        return [
            row
            for table in ("ragblame.document", "ragblame.chunk", "ragblame.embedding_model")
            for row in conn.execute(query.format(table)).fetchall()
        ]


def race(count: int, work: Callable[[int], None]) -> None:
    """Run ``work(0) … work(count - 1)`` at once; the first failure is raised."""
    barrier, failures = threading.Barrier(count), list[BaseException]()

    def run(number: int) -> None:
        try:
            barrier.wait(60)
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert not any(thread.is_alive() for thread in threads)
    if failures:
        raise failures[0]


@pytest.fixture
def model(connection: Conn) -> EmbeddingModel:
    """A registered model of 8 dimensions."""
    return register_model(connection, "fake", 8)


def test_a_model_is_registered_and_indexed_once_when_many_race(database_url: str) -> None:
    """Eight connections registering one model at once agree on one row and one partial index."""
    found: list[EmbeddingModel] = []

    def work(_: int) -> None:
        with database.connect(database_url) as conn:
            found.append(register_model(conn, "fake", 8))

    race(8, work)
    assert len(set(found)) == 1
    with database.connect(database_url) as conn:
        index = conn.execute(
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'ragblame' AND indexdef LIKE '%hnsw%'"
        ).fetchall()
        assert len(index) == 1
        assert "((embedding)::halfvec(8)) halfvec_cosine_ops" in index[0][0]
        assert f"model_id = {found[0].id}" in index[0][0]


def test_registering_again_burns_no_number(connection: Conn) -> None:
    """Model numbers are smallint: a run that finds its model must not use one up."""
    first = register_model(connection, "first", 8)
    for _ in range(3):
        assert register_model(connection, "first", 8) == first
    assert register_model(connection, "second", 4).id == first.id + 1
    assert find_model(connection, "second") is not None
    assert find_model(connection, "third") is None


def test_other_dimensions_are_refused(connection: Conn, model: EmbeddingModel) -> None:
    """A model name stands for one number of dimensions; the message names both."""
    with pytest.raises(InputError, match="registered with 8 dimensions, these embeddings have 4"):
        register_model(connection, "fake", 4)
    with pytest.raises(InputError, match="4001 dimensions"):
        register_model(connection, "wide", 4001)
    with pytest.raises(ModelError, match="returned 4 dimensions, 8 are registered"):
        vector_text([1.0] * 4, model)


def test_vectors_without_direction_are_refused(model: EmbeddingModel) -> None:
    """NaN, infinity and zero have no cosine distance; the message says so."""
    for bad, word in ((float("nan"), "NaN"), (float("inf"), "infinity"), (0.0, "zero vector")):
        vector = [bad] * 8
        assert not has_direction(vector)
        with pytest.raises(ModelError, match=word):
            vector_text(vector, model)


def test_vectors_of_any_length_fit_half_precision(connection: Conn, model: EmbeddingModel) -> None:
    """1e30 would overflow half precision and 1e-30 vanish in it: only the direction is stored."""
    for scale in (1e30, 1e-30):
        document = draft(f"scale {scale}", f"text {scale}")
        vector = vector_text([scale * number for number in range(1, 9)], model)
        write_documents(connection, [document], model, {document.chunks[0].text: vector})
    distances = connection.execute(
        "SELECT embedding::halfvec(8) <=> '[1,2,3,4,5,6,7,8]'::halfvec(8) FROM ragblame.chunk"
    ).fetchall()
    assert len(distances) == 2
    assert all(abs(distance) < 1e-3 for (distance,) in distances)


def test_the_same_again_does_nothing(connection: Conn, model: EmbeddingModel) -> None:
    """A second write of unchanged documents touches no row at all, and asks for no embedding."""
    documents = [draft("a", "one", "two"), draft("b", "three", team="x", ratio=1e300, count=1.0), draft("c")]
    assert texts_to_embed(connection, documents, model) == ["one", "two", "three"]
    assert write(connection, model, *documents) == (3, 0)
    before = versions(connection)
    assert changed_documents(connection, documents, model) == []
    assert texts_to_embed(connection, documents, model) == []
    assert write(connection, model, *documents) == (0, 3)
    assert versions(connection) == before


def test_unchanged_texts_keep_their_row_ids(connection: Conn, model: EmbeddingModel) -> None:
    """Traces point at row ids: a paragraph put in front moves the others without renaming them."""
    write(connection, model, draft("a", "one", "two", "three"))
    before = {text: id for id, _, text in rows(connection, "a")}
    changed = draft("a", "zero", "three", "one")
    assert texts_to_embed(connection, [changed], model) == ["zero"]
    assert write(connection, model, changed) == (1, 0)
    after = rows(connection, "a")
    assert [(position, text) for _, position, text in after] == [(0, "zero"), (1, "three"), (2, "one")]
    assert {text: id for id, _, text in after if text != "zero"} == {
        text: before[text] for text in ("one", "three")
    }
    assert all(id.version == 7 for id, _, _ in after)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from("abcd"), max_size=6), st.lists(st.sampled_from("abcd"), max_size=6))
def test_any_edit_ends_with_the_new_texts_and_the_most_old_ids(
    connection: Conn, model: EmbeddingModel, old: list[str], new: list[str]
) -> None:
    """Inserted, removed, repeated or reordered: texts as drafted, and every id that can stay stays."""
    remove_documents(connection, ["a"])
    write(connection, model, draft("a", *old))
    before = {id: text for id, _, text in rows(connection, "a")}
    write(connection, model, draft("a", *new))
    after = rows(connection, "a")
    assert [text for _, _, text in after] == new
    assert [position for _, position, _ in after] == list(range(len(new)))
    kept = [id for id, _, text in after if before.get(id) == text]
    assert len(kept) == (Counter(old) & Counter(new)).total()


def test_metadata_title_and_heading_are_part_of_a_document(connection: Conn, model: EmbeddingModel) -> None:
    """A changed title or metadata is written without embedding anything; a changed heading is embedded."""
    write(connection, model, draft("a", "one", heading="H", team="x"))
    [(id, _, _)] = rows(connection, "a")
    other = draft("a", "one", heading="H", team="y")
    assert texts_to_embed(connection, [other], model) == []
    assert write_documents(connection, [other], model, {}).documents == 1
    renamed = draft("a", "one", heading="I", team="y")
    assert texts_to_embed(connection, [renamed], model) == ["I\none"]
    write(connection, model, renamed)
    stored = connection.execute("SELECT id, metadata FROM ragblame.chunk").fetchall()
    assert stored == [(id, {"team": "y", "heading": "I"})]


def test_another_model_embeds_again_and_keeps_the_ids(connection: Conn, model: EmbeddingModel) -> None:
    """Moving a corpus to another embedding model changes vectors, not identities."""
    document = draft("a", "one", "two")
    write(connection, model, document)
    before = rows(connection, "a")
    other = register_model(connection, "other", 8)
    assert changed_documents(connection, [document], other) == [document]
    assert texts_to_embed(connection, [document], other) == ["one", "two"]
    assert write(connection, other, document) == (1, 0)
    assert rows(connection, "a") == before
    assert connection.execute("SELECT DISTINCT model_id FROM ragblame.chunk").fetchall() == [(other.id,)]


def test_a_failed_replacement_leaves_the_old_document_whole(connection: Conn, model: EmbeddingModel) -> None:
    """A server error halfway is one clear error, and a search still sees the old version."""
    write(connection, model, draft("a", "one", "two"))
    connection.execute(
        """CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.text = 'poison' THEN RAISE EXCEPTION 'planted'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER fail BEFORE INSERT ON ragblame.chunk FOR EACH ROW EXECUTE FUNCTION fail()"""
    )
    connection.commit()
    before = rows(connection, "a")
    with pytest.raises(DatabaseError, match="planted"):
        write(connection, model, draft("a", "two", "new", "poison"))
    assert rows(connection, "a") == before
    assert write(connection, model, draft("b", "three")) == (1, 0)  # the connection is still good


def test_a_draft_whose_kept_rows_vanished_comes_back(connection: Conn, model: EmbeddingModel) -> None:
    """Between asking what to embed and writing, another process may delete: then the draft is handed back."""
    write(connection, model, draft("a", "one"))
    changed = draft("a", "one", "two")
    assert texts_to_embed(connection, [changed], model) == ["two"]
    known = {"two": vectors(model, changed)["two"]}
    remove_documents(connection, ["a"])
    assert write_documents(connection, [changed], model, known).lacking == (changed,)
    assert texts_to_embed(connection, [changed], model) == ["one", "two"]
    assert write(connection, model, changed) == (1, 0)


def write_at_once(url: str, model: EmbeddingModel, documents: Sequence[DocumentDraft]) -> list[int]:
    """Six connections write overlapping parts of ``documents``; returns how many each wrote."""
    known = vectors(model, *documents)
    counts: list[int] = []

    def work(number: int) -> None:
        mine = documents[number:] if number % 2 else documents[::-1]
        with database.connect(url) as conn:
            counts.append(write_documents(conn, mine, model, known).documents)

    race(6, work)
    return counts


def test_concurrent_writers_end_with_one_copy(
    database_url: str, connection: Conn, model: EmbeddingModel
) -> None:
    """Six writers of overlapping documents in opposite orders, new and changed: no deadlock, no double."""
    for version in range(3):
        documents = [
            draft(f"doc {number}", *(f"{number}.{part} v{version % (part + 1)}" for part in range(3)))
            for number in range(20)
        ]
        assert sum(write_at_once(database_url, model, documents)) == 20
        for document in documents:
            wanted = [(position, chunk.text) for position, chunk in enumerate(document.chunks)]
            assert [(position, text) for _, position, text in rows(connection, document.source)] == wanted


def test_hostile_parts_become_storable(connection: Conn, model: EmbeddingModel) -> None:
    """NUL bytes, lone surrogates, markup, SQL and endless names are stored as data, the rest intact."""
    text = "'; DROP TABLE ragblame.chunk; -- <script>alert(1)</script> \x00 \ud800 %s {} 😀"
    document = draft_document(
        "s" * 5_000 + "\x00\udfff",
        [ChunkDraft(text=text, heading="h\x00"), ChunkDraft(text="x" * 100_000)],
        title="\ud800" + "t" * 5_000,
        metadata={"k\x00": ["\ud800", float("nan"), {"deep": "'\""}], "n": 10**400},
    )
    assert len(document.source.encode()) <= 2_000
    assert write(connection, model, document) == (1, 0)
    stored = rows(connection, document.source)
    assert stored[0][2] == text.replace("\x00", "\u2400").replace("\ud800", "\ufffd")
    assert write(connection, model, document) == (0, 1)


@pytest.mark.parametrize("text", ["", " \n", "x" * 100_001])
def test_chunks_without_text_or_without_end_are_refused(text: str) -> None:
    """An empty chunk finds nothing and a giant one breaks the text index: both are refused by name."""
    with pytest.raises(InputError, match=r"a chunk of 'a' has \d+ characters"):
        draft("a", text)
    with pytest.raises(InputError, match="without a source"):
        draft(" ", "text")


def test_the_widest_chunk_fits_the_text_index(connection: Conn, model: EmbeddingModel) -> None:
    """100 000 code points of hyphenated four-byte letters make the largest tsvector there can be: it fits."""
    document = draft(
        "a", "".join(f"{chr(0x10400 + n % 40)}{chr(0x10400 + n // 40 % 40)}-" for n in range(33_333))
    )
    assert write(connection, model, document) == (1, 0)


def test_two_drafts_of_one_source_are_refused(connection: Conn, model: EmbeddingModel) -> None:
    """The later one would silently win."""
    with pytest.raises(InputError, match="share a source"):
        write(connection, model, draft("a", "one"), draft("a", "two"))


def test_documents_are_removed_with_their_chunks(connection: Conn, model: EmbeddingModel) -> None:
    """Removal counts what was there and leaves no chunk behind."""
    write(connection, model, draft("a", "one"), draft("b", "two"))
    assert remove_documents(connection, ["a", "never"]) == 1
    assert rows(connection, "a") == []
    assert len(rows(connection, "b")) == 1


def test_an_unmigrated_database_says_what_to_run(empty_database_url: str) -> None:
    """Without the schema every entry ends in the same next step."""
    with database.connect(empty_database_url) as conn:
        with pytest.raises(DatabaseError, match="ragblame migrate"):
            find_model(conn, "fake")
        with pytest.raises(DatabaseError, match="ragblame migrate"):
            register_model(conn, "fake", 8)


def test_embeddings_are_named_by_their_own_words() -> None:
    """LangChain's embeddings have no common name: model_name, then model, then the class."""

    class Named(DeterministicFakeEmbedding):
        model_name: str = "a/b"

    assert name_of(Named(size=2)) == "a/b"
    assert name_of(FAKE).endswith("DeterministicFakeEmbedding")
