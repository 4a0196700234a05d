"""The probe on tables that are not ours: langchain-postgres' two, made by the library, and plain ones."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from langchain_core.documents import Document
from langchain_postgres import Column, PGEngine, PGVector, PGVectorStore
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from ragblame.corpus import FoundChunk, ProbeReport, ProbeRequest, ProbeText, ProbeWay
from ragblame.errors import InputError
from ragblame.retriever import probe_asking, probe_words
from ragblame.retriever.filters import OPERATORS
from ragblame.retriever.probe import TableProbe, open_probe
from ragblame.retriever.sources import CorpusSource, pgvector_collection, pgvector_store, source_from
from ragblame.settings import Settings
from ragblame.traces import new_trace_id
from tests.probe_corpus import SIZE, Conn, PlantedEmbeddings, random_vector, reader, set_for_database

QUESTION = "Which port does the Kestrel gateway listen on?"
GOLD = "The Kestrel gateway listens on port 2959."
TEXTS = [GOLD, *(f"Note {place} about the weather in Oslo." for place in range(60))]
REQUEST = ProbeRequest(question=QUESTION, claim="It listens on port 4000.", value="4000", k=5)
PLAIN = CorpusSource(table="notes", id="id", text="body", vector="v")


def alchemy(url: str) -> str:
    """The URL as langchain-postgres wants it."""
    known = conninfo_to_dict(url)
    return (
        f"postgresql+psycopg://{known['user']}:{known['password']}@{known['host']}:{known['port']}"
        f"/{known['dbname']}?options=-csearch_path%3Dpublic"
    )


def chunk_of(report: ProbeReport, text: str) -> FoundChunk:
    """The chunk with this text."""
    [chunk] = [chunk for chunk in report.chunks if chunk.text == text]
    return chunk


def ranks(report: ProbeReport, *, is_filtered: bool = False) -> dict[str, int]:
    """Text -> exact rank for the query."""
    seen = {chunk.text: chunk.sighting(ProbeText.QUERY, is_filtered=is_filtered) for chunk in report.chunks}
    assert all(sighting.is_exact for sighting in seen.values() if sighting is not None)
    return {text: sighting.rank for text, sighting in seen.items() if sighting is not None}


def order(documents: list[Document]) -> dict[str, int]:
    """Text -> place in what the library's own retriever returned."""
    return {document.page_content: place for place, document in enumerate(documents, start=1)}


@pytest.fixture
def collection(database_url: str) -> Iterator[PGVector]:
    """A collection of the library's older table, beside another collection with nearer rows."""
    embeddings = PlantedEmbeddings()
    other = PGVector(embeddings, connection=alchemy(database_url), collection_name="other")
    other.add_texts([QUESTION, f"{QUESTION}!"])
    store = PGVector(embeddings, connection=alchemy(database_url), collection_name="runbooks")
    store.add_documents(
        [
            Document(
                page_content=text,
                metadata={
                    "source": f"{place // 10}.md",
                    "start_index": place % 10 * 100,
                    "even": place % 2 == 0,
                },
            )
            for place, text in enumerate(TEXTS)
        ]
    )
    yield store
    for opened in (store, other):
        assert opened._engine is not None
        opened._engine.dispose()


def test_a_pgvector_collection(database_url: str, connection: Conn, collection: PGVector) -> None:
    """Ranks, filter, ids and neighbours are those of the collection, for a role with SELECT on two tables."""
    url = reader(database_url)
    with connection.transaction():
        connection.execute("GRANT SELECT ON langchain_pg_embedding, langchain_pg_collection TO probe_reader")
    retrieved = collection.similarity_search(QUESTION, k=5)
    request = replace(REQUEST, filter={"even": True}, retrieved=tuple(str(hit.id) for hit in retrieved))
    with TableProbe(url, pgvector_collection("runbooks"), PlantedEmbeddings(), seconds=30.0) as probe:
        report = probe.probe(request)
    assert report.source == "public.langchain_pg_embedding"
    assert {chunk.text for chunk in report.chunks if chunk.is_retrieved} == set(order(retrieved))
    everything = order(collection.similarity_search(QUESTION, k=100))
    assert len(ranks(report)) >= 50
    assert ranks(report) == {text: everything[text] for text in ranks(report)}
    filtered = order(collection.similarity_search(QUESTION, k=100, filter={"even": {"$eq": True}}))
    assert {text: filtered[text] for text in ranks(report, is_filtered=True)} == ranks(
        report, is_filtered=True
    )
    assert len(ranks(report, is_filtered=True)) == len(filtered)
    own = [search for search in report.searches if search.way is ProbeWay.RETRIEVER]
    assert [(search.is_filtered, search.is_exact, search.found) for search in own] == [
        (False, True, 5),
        (True, True, 5),
    ]
    gold = chunk_of(report, GOLD)
    assert gold.previous is None
    assert gold.next is not None
    assert gold.next.text == TEXTS[1]
    assert chunk_of(report, TEXTS[10]).previous is None  # another document begins
    with connection.transaction():
        connection.execute("DROP OWNED BY probe_reader")


def test_a_collection_that_is_not_there(database_url: str, collection: PGVector) -> None:
    """The message names it."""
    with (
        TableProbe(database_url, pgvector_collection("nothing"), PlantedEmbeddings()) as probe,
        pytest.raises(InputError, match="has no collection 'nothing'"),
    ):
        probe.probe(REQUEST)


def test_a_pgvector_store(database_url: str) -> None:
    """The library's newer table, with a metadata column, JSON metadata and names of its user's."""
    engine = PGEngine.from_connection_string(alchemy(database_url))
    engine.init_vectorstore_table(
        "Run books",
        SIZE,
        content_column="Body",
        embedding_column="Vec",
        id_column="Key",
        metadata_columns=[Column("team", "text")],
    )
    store = PGVectorStore.create_sync(
        engine,
        PlantedEmbeddings(),
        "Run books",
        content_column="Body",
        embedding_column="Vec",
        id_column="Key",
        metadata_columns=["team"],
    )
    store.add_documents(
        [
            Document(
                page_content=text,
                id=str(new_trace_id()),
                metadata={"team": "a" if place % 3 else "b", "year": 2000 + place},
            )
            for place, text in enumerate(TEXTS)
        ]
    )
    source = pgvector_store("Run books", text="Body", vector="Vec", id="Key", document="team")
    retrieved = store.similarity_search(QUESTION, k=5)
    with TableProbe(database_url, source, PlantedEmbeddings(), seconds=30.0) as probe:
        request = replace(
            REQUEST, filter={"team": "b"}, retrieved=tuple(str(hit.id) for hit in retrieved),
            answered_at=datetime.now(UTC),
        )  # fmt: skip
        report = probe.probe(request)
        by_year = probe.probe(replace(REQUEST, filter={"year": {"$lt": 2003}}))
    assert {chunk.text for chunk in report.chunks if chunk.is_retrieved} == set(order(retrieved))
    everything = order(store.similarity_search(QUESTION, k=100))
    assert ranks(report) == {text: everything[text] for text in ranks(report)}
    filtered = order(store.similarity_search(QUESTION, k=100, filter={"team": "b"}))
    assert ranks(report, is_filtered=True) == {text: filtered[text] for text in filtered}
    assert set(ranks(by_year, is_filtered=True)) == set(TEXTS[:3])
    assert chunk_of(report, GOLD).metadata == {"year": 2000}
    assert {chunk.is_newer for chunk in report.chunks} == {False}  # the ids tell their time


def make_notes(conn: Conn, count: int, *, more: str = "", kind: str = "vector") -> None:
    """A plain table of ``count`` notes, analysed; the first is the gold one."""
    with conn.transaction():
        conn.execute(
            f"CREATE TABLE public.notes (id int PRIMARY KEY, body text, v {kind}({SIZE}){more})".encode()
        )
        with conn.cursor() as cursor:
            cursor.executemany(
                sql.SQL("INSERT INTO public.notes (id, body, v) VALUES (%s, %s, %s::text::{})").format(
                    sql.SQL(kind)
                ),
                [(n, text, str(random_vector(text))) for n, text in enumerate(texts(count))],
            )
        conn.execute("ANALYZE public.notes")


def texts(count: int) -> list[str]:
    """The notes' texts."""
    return [GOLD, *(f"Note {place} about the weather." for place in range(1, count))]


def truth(conn: Conn, operator: str = "<=>") -> dict[str, int]:
    """Text -> rank by a full sort."""
    with conn.transaction():
        conn.execute("SET LOCAL enable_indexscan = off")
        rows = conn.execute(
            (
                f"SELECT body, rank() OVER (ORDER BY v {operator} %s::text::vector({SIZE})) FROM public.notes"
            ).encode(),
            (str(random_vector(QUESTION)),),
        ).fetchall()
    return dict(rows)


@pytest.mark.parametrize("index", ["", "ivfflat (v vector_l2_ops) WITH (lists = 50)"])
def test_a_large_table_is_compared_by_one_scan(
    database_url: str, connection: Conn, monkeypatch: pytest.MonkeyPatch, index: str
) -> None:
    """Without an index a sample says how far to look, with ivfflat the index does; both come out exact."""
    monkeypatch.setattr(probe_asking, "SMALL", 1_000)
    make_notes(connection, 6_000)
    if index:
        with connection.transaction():
            connection.execute(f"CREATE INDEX ON public.notes USING {index}".encode())
        set_for_database(database_url, "enable_seqscan", "off")
    with TableProbe(database_url, PLAIN, PlantedEmbeddings(), seconds=30.0) as probe:
        report = probe.probe(REQUEST)
    assert report.metric == ("Euclidean distance" if index else "cosine distance")
    assert report.is_exact
    right = truth(connection, "<->" if index else "<=>")
    assert ranks(report) == {text: right[text] for text in ranks(report)}
    assert {text for text, place in right.items() if place <= 20} <= set(ranks(report))
    [own] = [search for search in report.searches if search.way is ProbeWay.RETRIEVER]
    assert own.is_exact is (not index)


def test_words_without_an_index_are_sought_where_the_vectors_led(
    database_url: str, connection: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a large table: labelled approximate without the index of docs/probe.md, exact with it."""
    monkeypatch.setattr(probe_words, "SMALL", 100)
    make_notes(connection, 500)
    words = (ProbeWay.PHRASE, ProbeWay.ALL_WORDS, ProbeWay.SOME_WORDS)
    with TableProbe(database_url, PLAIN, PlantedEmbeddings(), seconds=30.0) as probe:
        report = probe.probe(REQUEST)
        by_words = [search for search in report.searches if search.way in words]
        assert by_words
        assert all(not search.is_exact and "full-text index" in search.note for search in by_words)
        with connection.transaction():
            connection.execute("CREATE INDEX ON public.notes USING gin (to_tsvector('english', body))")
        report = probe.probe(REQUEST)
    assert all(search.is_exact for search in report.searches if search.way in words)
    assert chunk_of(report, GOLD).sighting(ProbeText.MASKED, ProbeWay.SOME_WORDS) is not None


def test_a_partitioned_table_of_halfvec(database_url: str, connection: Conn) -> None:
    """Partitions count as one table, whatever index each has."""
    with connection.transaction():
        connection.execute(
            f"CREATE TABLE public.notes (id int, body text, v halfvec({SIZE})) "
            "PARTITION BY RANGE (id)".encode()
        )
        for low in (0, 100):
            connection.execute(
                f"CREATE TABLE public.notes_{low} PARTITION OF public.notes FOR VALUES FROM ({low}) "
                f"TO ({low + 100})".encode()
            )
        connection.execute("CREATE INDEX ON public.notes USING hnsw (v halfvec_ip_ops)")
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO public.notes VALUES (%s, %s, %s::text::halfvec)",
                [(n, text, str(random_vector(text))) for n, text in enumerate(texts(200))],
            )
        connection.execute("ANALYZE public.notes")
    with TableProbe(database_url, PLAIN, PlantedEmbeddings(), seconds=30.0) as probe:
        report = probe.probe(replace(REQUEST, retrieved=("0", "150")))
    assert (report.rows, report.metric) == (200, "negative inner product")
    assert {"0", "150"} <= {chunk.id for chunk in report.chunks}


@pytest.mark.parametrize("kind", ["timestamp", "timestamptz"])
def test_when_a_row_was_made(database_url: str, connection: Conn, kind: str) -> None:
    """From a column, of which infinity is no time; and where nothing tells, the note says so."""
    make_notes(connection, 3, more=f", made {kind}")
    with connection.transaction():
        times = "(ARRAY['2001-01-01', '2101-01-01', 'infinity'])[id + 1]::timestamptz"
        zone = " AT TIME ZONE 'UTC'" if kind == "timestamp" else ""
        connection.execute(f"UPDATE public.notes SET made = {times}{zone}".encode())
    request = replace(REQUEST, answered_at=datetime(2050, 1, 1, tzinfo=UTC))
    with TableProbe(database_url, replace(PLAIN, created_at="made"), PlantedEmbeddings()) as probe:
        chunks = {chunk.id: chunk for chunk in probe.probe(request).chunks}
    assert [chunks[id].is_newer for id in "012"] == [False, True, None]
    made = chunks["0"].created_at
    assert made is not None
    assert abs((made - datetime(2001, 1, 1, tzinfo=UTC)).total_seconds()) < 86_400
    with TableProbe(database_url, PLAIN, PlantedEmbeddings()) as probe:
        report = probe.probe(request)
    assert {chunk.is_newer for chunk in report.chunks} == {None}
    assert any("does not tell when a row was made" in note for note in report.notes)


def test_another_models_vectors_are_refused(database_url: str, connection: Conn) -> None:
    """One row's vector is made again, and nothing is searched with a model that did not make the corpus."""

    class Other(PlantedEmbeddings):
        def embed_query(self, text: str) -> list[float]:
            return super().embed_query(f"other {text}")

    make_notes(connection, 3)
    with (
        TableProbe(database_url, PLAIN, Other()) as probe,
        pytest.raises(InputError, match="were not made by the embedding model planted"),
    ):
        probe.probe(REQUEST)


def test_a_view_is_not_asked(database_url: str, connection: Conn) -> None:
    """A view may do anything when it is read; its table is named instead."""
    make_notes(connection, 1)
    with connection.transaction():
        connection.execute("CREATE VIEW public.seen AS SELECT * FROM public.notes")
    with (
        TableProbe(database_url, replace(PLAIN, table="seen"), PlantedEmbeddings()) as probe,
        pytest.raises(InputError, match="is no table"),
    ):
        probe.probe(REQUEST)


def test_the_configured_corpora(database_url: str, connection: Conn) -> None:
    """By the table that a trace's chunk names; a table that nobody configured is refused."""
    make_notes(connection, 3)
    settings = Settings(
        probe_url=SecretStr(database_url),
        probe_seconds=20,
        probe_corpora=(
            {"kind": "PGVector", "collection": "runbooks"},
            {"table": "notes", "id": "id", "text": "body", "vector": "v", "ef_search": 64},
        ),
    )
    with open_probe(settings, PlantedEmbeddings(), "public.notes") as probe:
        assert len(probe.probe(REQUEST).chunks) == 3
    with open_probe(settings, None, "ragblame.chunk") as probe:
        assert probe.source.is_ours
    with open_probe(settings, None) as probe:
        assert probe.source.collection == "runbooks"
    with pytest.raises(InputError, match=r"public\.other is no configured corpus"):
        open_probe(settings, None, "public.other")


def test_ids_of_any_type_come_back_as_recorded(database_url: str, connection: Conn) -> None:
    """A uuid written in capitals by the host is the row's id all the same."""
    id = UUID(int=0xABCDEF)
    with connection.transaction():
        connection.execute(f"CREATE TABLE public.notes (id uuid, body text, v vector({SIZE}))".encode())
        connection.execute(
            "INSERT INTO public.notes VALUES (%s, 'A note.', %s::text::vector)",
            (id, str(random_vector("A note."))),
        )
    with TableProbe(database_url, PLAIN, PlantedEmbeddings()) as probe:
        [chunk] = probe.probe(replace(REQUEST, retrieved=(str(id).upper(), "no uuid"))).chunks
    assert (chunk.id, chunk.is_retrieved, chunk.is_newer) == (str(id), True, None)


def test_the_page_tells_what_is_true() -> None:
    """The configuration in docs/probe.md is one, and every entry, operator and way has its place there."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "probe.md").read_text("utf-8")
    [block] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    made = [source_from(entries) for entries in tomllib.loads(block)["probe_corpora"]]
    assert [source.name for source in made] == [
        "public.langchain_pg_embedding",
        "public.runbooks",
        "support.articles",
    ]
    for entry in fields(CorpusSource):
        assert f"`{entry.name}`" in page
    for word in (*OPERATORS, *ProbeWay):
        assert word in page
