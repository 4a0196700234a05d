"""Hybrid search on a real PostgreSQL: the fusion is exact, both halves matter, hostile questions are text."""

import asyncio
import math
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from ragblame import database
from ragblame.errors import DatabaseError, InputError, ModelError
from ragblame.retriever import search as search_module
from ragblame.retriever.chunks import remove_documents, settle, write_documents
from ragblame.retriever.drafts import ChunkDraft, draft_document
from ragblame.retriever.embedding_models import EmbeddingModel, register_model, vector_text
from ragblame.retriever.langchain import HybridRetriever
from ragblame.retriever.search import Hit, hybrid_query, search

Conn = psycopg.Connection[Any]
Entry = tuple[str, Sequence[float]]  # a chunk's text and its vector


class PlantedEmbeddings(Embeddings):
    """Vectors given by a table; any other text points along the last axis."""

    model_name = "planted"

    def __init__(self, table: dict[str, list[float]]) -> None:
        self.table = table

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.table.get(text, [0.0, 0.0, 0.0, 1.0])


@pytest.fixture
def model(connection: Conn) -> EmbeddingModel:
    """A registered model of 4 dimensions, under the planted embeddings' name."""
    return register_model(connection, "planted", 4)


def store(conn: Conn, model: EmbeddingModel, entries: Sequence[Entry], **metadata: Any) -> None:
    """One document per chunk, in order; equal texts may have different vectors."""
    documents = [
        draft_document(f"{metadata}{number:05}", [ChunkDraft(text=text)], metadata=metadata)
        for number, (text, _) in enumerate(entries)
    ]
    literals = [(text, vector_text(vector, model)) for text, vector in entries]
    if len({text for text, _ in entries}) == len(entries):
        assert write_documents(conn, documents, model, dict(literals)).documents == len(entries)
        return
    for document, literal in zip(documents, literals, strict=True):
        assert write_documents(conn, [document], model, dict([literal])).documents == 1


def clear(conn: Conn) -> None:
    """An empty corpus again."""
    with conn.transaction():
        sources = [source for (source,) in conn.execute("SELECT source FROM ragblame.document").fetchall()]
    remove_documents(conn, sources)


def texts(hits: Sequence[Hit]) -> list[str]:
    """The hits' texts, best first."""
    return [hit.text for hit in hits]


ENTRIES: list[Entry] = [
    ("Restart the ledger with ledgerctl restart --force.", [0.0, 1.0, 0.0, 0.0]),
    ("Error E4711 means the disk of the archive is full.", [0.1, 0.0, 1.0, 0.0]),
    ("When storage runs out, old snapshots are deleted.", [1.0, 0.0, 0.1, 0.0]),
    ("The service listens on port 8443 of the gateway.", [0.0, 0.5, 0.5, 0.0]),
]


def test_hybrid_beats_either_half_alone(connection: Conn, model: EmbeddingModel) -> None:
    """A code that vectors miss and a paraphrase that words miss: each half fails one, the fusion neither."""
    far = [(f"Filler {n}.", [0.0, 0.1, 0.2, 1.0 + n / 100]) for n in range(30)]
    store(connection, model, [*ENTRIES, *far])
    questions = {
        "what does E4711 mean": ([0.0, 0.0, 0.2, 1.0], ENTRIES[1][0]),  # its vector says nothing of the code
        "is there no space left": ([1.0, 0.0, 0.0, 0.0], ENTRIES[2][0]),  # no word in common
    }
    found = dict.fromkeys(("hybrid", "vectors", "words"), 0)
    for question, (vector, wanted) in questions.items():
        hits = search(connection, question, vector, model, k=34)
        hit = next(hit for hit in hits if hit.text == wanted)
        found["hybrid"] += hit.rank <= 2
        found["vectors"] += hit.vector_rank is not None and hit.vector_rank <= 2
        found["words"] += hit.text_rank is not None and hit.text_rank <= 2
    assert found == {"hybrid": 2, "vectors": 1, "words": 1}


def half(value: float) -> float:
    """Rounded to half precision, as stored."""
    return float(struct.unpack("e", struct.pack("e", value))[0])


def cosine_distance(left: Sequence[float], right: Sequence[float]) -> float:
    """1 - cosine, in double precision, of the two as stored."""
    a = [half(value / math.hypot(*left)) for value in left]
    b = [half(value / math.hypot(*right)) for value in right]
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return 1 - dot / (math.hypot(*a) * math.hypot(*b))


WORDS = ["port", "ledger", "disk", "gateway", "full", "the", "of"]
STEMS = {**dict(zip(WORDS, WORDS, strict=True)), "the": "-", "of": "-"}  # stop words are never stored
ENTRY = st.tuples(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join),
    st.lists(st.integers(-3, 3), min_size=4, max_size=4).filter(any),
)


def words_of(question: str, found: dict[str, int], size: int) -> dict[str, float]:
    """Inverse document frequency of the question's words that stand somewhere, rarest first."""
    known = sorted((found[word], word) for word in set(question.split()) if found.get(word))
    return {word: math.log(1 + (size - count + 0.5) / (count + 0.5)) for count, word in known}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(ENTRY, min_size=1, max_size=10),
    st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join),
    st.lists(st.integers(-3, 3), min_size=4, max_size=4).filter(any),
    st.integers(1, 12),
    st.integers(0, 3),
)
def test_fusion_equals_brute_force(
    connection: Conn,
    model: EmbeddingModel,
    entries: list[tuple[str, list[int]]],
    question: str,
    vector: list[int],
    k: int,
    extra: int,
) -> None:
    """Both rankings, the fused score to the last bit, the order and the cut equal a computation in Python."""
    clear(connection)
    store(connection, model, entries)
    depth = k + extra
    hits = search(connection, question, vector, model, k=k, depth=depth)

    any_word = " | ".join(question.split())
    with connection.transaction():
        rows = connection.execute(
            "SELECT id, embedding <=> %s::halfvec, tsvector_to_array(search), "
            "search @@ websearch_to_tsquery('english', %s), "
            "ts_rank(search, websearch_to_tsquery('english', %s), 1), "
            "ts_rank(search, to_tsquery('english', %s), 1) FROM ragblame.chunk ORDER BY id",
            (vector_text(vector, model), question, question, any_word),
        ).fetchall()
    for row, (_, stored_vector) in zip(rows, entries, strict=True):
        assert row[1] == pytest.approx(cosine_distance(stored_vector, vector), abs=2e-3)
    near = [row[0] for row in sorted(rows, key=lambda row: (row[1], row[0]))][:depth]

    found = {word: sum(STEMS[word] in row[2] for row in rows) for word in WORDS}
    idf = words_of(question, found, len(rows))
    keys: dict[UUID, tuple[bool, float, float]] = {}
    for id, _, lexemes, has_all, all_density, any_density in rows:
        share = sum(value for word, value in idf.items() if STEMS[word] in lexemes)
        if has_all:
            keys[id] = (True, 1.0, all_density)
        elif share:
            keys[id] = (False, share / sum(idf.values()), any_density)
    best = max((share for _, share, _ in keys.values()), default=0.0)
    matching = [id for id, (_, share, _) in keys.items() if share >= 0.5 * best]
    matching = sorted(matching, key=lambda id: (*(-part for part in keys[id]), id))[:depth]
    vector_rank = {id: rank for rank, id in enumerate(near, start=1)}
    text_rank = {id: rank for rank, id in enumerate(matching, start=1)}

    def fused(id: UUID) -> float:
        return sum(1 / (60 + ranks[id]) for ranks in (vector_rank, text_rank) if id in ranks)

    def order(id: UUID) -> tuple[float, float, float]:
        return -fused(id), vector_rank.get(id, math.inf), text_rank.get(id, math.inf)

    wanted = sorted(vector_rank.keys() | text_rank.keys(), key=order)[:k]
    assert [hit.chunk_id for hit in hits] == wanted
    assert [hit.rank for hit in hits] == list(range(1, len(wanted) + 1))
    for hit in hits:
        assert hit.score == fused(hit.chunk_id)
        assert hit.vector_rank == vector_rank.get(hit.chunk_id)
        assert hit.text_rank == text_rank.get(hit.chunk_id)
        assert hit.text_score == (keys[hit.chunk_id][1] if hit.text_rank else None)


def test_chunks_with_all_words_come_before_those_with_some(connection: Conn, model: EmbeddingModel) -> None:
    """A natural question finds a chunk that lacks some of its words; one that has all of them ranks first."""
    same = [1.0, 0.0, 0.0, 0.0]
    both, one = "The ledger keeps its books; restart it, they say.", "ledger ledger ledger ledger"
    store(connection, model, [(one, same), (both, same), ("Nothing of the kind.", same)])
    for question in ("restart ledger", "Please, how do I restart the ledger?"):
        hits = search(connection, question, same, model, k=3)
        assert [hit.text for hit in hits if hit.text_rank == 1] == [both]
        assert [hit.text_score for hit in hits if hit.text_rank == 1] == [1.0]
        assert {hit.text_score for hit in hits if hit.text == "Nothing of the kind."} == {None}


def test_a_rare_word_outweighs_common_ones(connection: Conn, model: EmbeddingModel) -> None:
    """The chunk with the error code is the one match, however many share the question's other words."""
    far, asked = [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]
    near = [(f"What errors of service {n} mean, they mean.", [1.0, n / 100, 0.0, 0.0]) for n in range(40)]
    store(connection, model, [*near, ("E4711: the disk is full.", far)])
    hits = search(connection, "What does error E4711 of the service mean?", asked, model, k=2)
    assert "E4711: the disk is full." in texts(hits)
    assert [hit.text_rank for hit in hits if hit.text.startswith("E4711")] == [1]
    assert [hit.text_rank for hit in hits if not hit.text.startswith("E4711")] == [None]


def test_words_of_a_whole_corpus_select_nothing(
    connection: Conn, model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word in COMMON chunks costs no ranking of them all; together with a rarer one it still counts."""
    monkeypatch.setattr(search_module, "COMMON", 20)
    entries = [(f"port of gateway {n}", [1.0, n / 100, 0.0, 0.0]) for n in range(30)]
    store(connection, model, entries)
    asked = [1.0, 0.0, 0.0, 0.0]
    hits = search(connection, "please which port", asked, model, k=5)
    assert [hit.text_rank for hit in hits] == [None] * 5
    assert texts(search(connection, "port 29", asked, model, k=2))[0] == "port of gateway 29"
    assert sum(hit.text_rank is not None for hit in search(connection, "port", asked, model, k=30)) == 20


def test_an_option_in_a_question_is_no_negation(connection: Conn, model: EmbeddingModel) -> None:
    """websearch_to_tsquery reads --force as "without force"; a question about it means the opposite."""
    other = ("Does ledgerctl do what it should?", [0.0, 0.0, 0.1, 1.0])
    store(connection, model, [*ENTRIES, other])  # which is all of the question, without force
    for question in ("--force", "ledgerctl --force", "ledgerctl -force", "ledgerctl –force"):
        hits = search(connection, question, [0.0, 0.0, 0.0, 1.0], model)
        assert [hit.text for hit in hits if hit.text_rank == 1] == [ENTRIES[0][0]]


def test_a_filter_keeps_only_chunks_that_contain_it(connection: Conn, model: EmbeddingModel) -> None:
    """jsonb containment, nested too, on both halves; it is data, so markup and SQL in it match literally."""
    entries = [(f"port {n}", [1.0, n / 10, 0.0, 0.0]) for n in range(60)]
    store(connection, model, entries, team="a", tags=["x", "y"])
    store(connection, model, entries[:3], team="b'; DROP TABLE ragblame.chunk; --")
    assert len(search(connection, "port", [1, 0, 0, 0], model, k=50)) == 50
    for wanted in (
        {"team": "b'; DROP TABLE ragblame.chunk; --"},
        {"team": "b'; DROP TABLE ragblame.chunk; --\x00"},
    ):
        hits = search(connection, "port", [1, 0, 0, 0], model, k=50, filter=wanted)
        assert {hit.metadata["team"] for hit in hits} <= {wanted["team"]}
        assert len(hits) == (0 if "\x00" in wanted["team"] else 3)
    assert len(search(connection, "port", [1, 0, 0, 0], model, k=100, filter={"tags": ["y"]})) == 60
    assert len(search(connection, "port", [1, 0, 0, 0], model, k=100, filter={})) == 63


def test_chunks_of_another_model_are_not_compared(connection: Conn, model: EmbeddingModel) -> None:
    """Vectors of two models share no space, and their dimensions differ: each search sees its own model's."""
    store(connection, model, ENTRIES)
    other = register_model(connection, "other", 3)
    store(connection, other, [("A port of another model.", [1.0, 0.0, 0.0])], only="other")
    assert len(search(connection, "port", [1, 0, 0, 0], model, k=10)) == 4
    assert texts(search(connection, "port", [1, 0, 0], other, k=10)) == ["A port of another model."]


@pytest.mark.parametrize(
    "question",
    [
        "",
        " \n",
        "\x00\ud800",
        "'; DROP TABLE ragblame.chunk; --",
        "<script>alert(1)</script> %s {} $1 :x",
        '"unclosed quote or -- & | ! ( <-> :*',
        "or or or",
        "x" * 1_000_000,
        "a-b " * 250_000,
        "the of and",
    ],
)
def test_hostile_questions_are_only_text(connection: Conn, model: EmbeddingModel, question: str) -> None:
    """Whatever a question holds, the search answers by vectors at least, quickly, and nothing is executed."""
    store(connection, model, ENTRIES)
    began = time.monotonic()
    hits = search(connection, question, [1.0, 0.0, 0.0, 0.0], model, k=4)
    assert time.monotonic() - began < 30
    assert [hit.vector_rank for hit in sorted(hits, key=lambda hit: hit.vector_distance)] == [1, 2, 3, 4]


def test_impossible_searches_are_refused(connection: Conn, model: EmbeddingModel) -> None:
    """k and depth out of range and unusable vectors are clear errors before any SQL runs."""
    for k, depth in ((0, None), (1_001, None), (4, 3), (4, 1_001)):
        with pytest.raises(InputError):
            search(connection, "port", [1, 0, 0, 0], model, k=k, depth=depth)
    for vector in ([0.0] * 4, [math.nan] * 4, [1.0] * 3):
        with pytest.raises(ModelError):
            search(connection, "port", vector, model)


def test_a_lost_connection_is_one_clear_error(
    database_url: str, connection: Conn, model: EmbeddingModel
) -> None:
    """A backend killed between two searches gives a DatabaseError with the next step, again and again."""
    with database.connect(database_url, autocommit=True) as conn:
        search(conn, "port", [1, 0, 0, 0], model)
        connection.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
        for _ in range(2):
            with pytest.raises(DatabaseError, match=r"doctor|try again"):
                search(conn, "port", [1, 0, 0, 0], model)
    with database.connect(database_url) as closed:
        pass
    with pytest.raises(DatabaseError, match="connection to PostgreSQL was lost"):
        search(closed, "port", [1, 0, 0, 0], model)


def test_the_indexes_serve_a_large_corpus(connection: Conn, model: EmbeddingModel) -> None:
    """On 3 000 settled chunks the planner, left alone, takes HNSW for vectors and GIN for a rare word."""
    with connection.transaction():
        connection.execute(
            "INSERT INTO ragblame.document (id, source, title, sha256) SELECT gen_random_uuid(), 'd', 'd', ''"
        )
        connection.execute(
            "INSERT INTO ragblame.chunk (id, document_id, position, text, model_id, embedding) "
            "SELECT gen_random_uuid(), d.id, n, format('word%%s %%s', n, repeat('filler ', 20)), %s, "
            "format('[%%s,%%s,%%s,1]', random(), random(), random())::halfvec "
            "FROM ragblame.document d, generate_series(1, 3000) n",
            (model.id,),
        )
    settle(connection)
    query = hybrid_query("word77", [1.0, 0.0, 0.0, 1.0], model)
    with connection.transaction():
        rows = connection.execute(sql.SQL("EXPLAIN ") + query.statement, query.parameters).fetchall()
    plan = "\n".join(line for (line,) in rows)
    assert f"Index Scan using {model.index_name}" in plan
    assert "Bitmap Index Scan on chunk_search_idx" in plan
    assert plan.count("Seq Scan on chunk") == 1  # the size of the corpus, counted up to COMMON
    hits = search(connection, "word77", [1.0, 0.0, 0.0, 1.0], model, k=3)
    assert [hit.text.split()[0] for hit in hits if hit.text_rank] == ["word77"]


def test_a_selective_filter_still_fills_the_list(connection: Conn, model: EmbeddingModel) -> None:
    """The index scan goes on until enough chunks pass the filter, past its first list of candidates."""
    far = [(f"common {n}", [1.0, n / 1e3, 0.0, 0.0]) for n in range(600)]
    store(connection, model, far, team="many")
    store(connection, model, [(f"rare {n}", [-1.0, n / 10, 0.0, 0.0]) for n in range(12)], team="few")
    with connection.transaction():
        connection.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
        connection.execute("SET LOCAL enable_sort = off")
        hits = search(connection, "nothing", [1, 0, 0, 0], model, k=12, filter={"team": "few"})
    assert len(hits) == 12


def test_ties_are_broken_by_row_id(connection: Conn, model: EmbeddingModel) -> None:
    """Twenty equal texts with equal vectors come in the order they were ingested, every time."""
    store(connection, model, [("the same port", [1.0, 0.0, 0.0, 0.0])] * 20)
    found = {
        tuple(hit.source for hit in search(connection, "port", [1, 0, 0, 0], model, k=5)) for _ in range(3)
    }
    assert found == {tuple(f"{{}}{n:05}" for n in range(5))}


# The LangChain retriever ------------------------------------------------------------------------------------


@pytest.fixture
def retriever(connection: Conn, database_url: str) -> Iterator[HybridRetriever]:
    """A retriever over the planted entries, on a pool."""
    embeddings = PlantedEmbeddings({**dict(ENTRIES), "roll back?": [0.0, 1.0, 0.0, 0.0]})  # type: ignore[arg-type]
    model = register_model(connection, embeddings.model_name, 4)
    store(connection, model, ENTRIES, team="a", rank="hostile", source="hostile")
    pool = database.open_pool(database_url)
    try:
        yield HybridRetriever(pool=pool, embeddings=embeddings, k=2)
    finally:
        pool.close()


def test_documents_say_who_they_are_and_why(connection: Conn, retriever: HybridRetriever) -> None:
    """Document.id is the row id; metadata holds the keys that capture reads, over the chunk's own."""
    documents = retriever.invoke("roll back?")
    first = documents[0]
    assert first.page_content == ENTRIES[0][0]
    row = connection.execute("SELECT text FROM ragblame.chunk WHERE id = %s", (first.id,)).fetchone()
    assert row == (first.page_content,)
    assert first.metadata["source_table"] == "ragblame.chunk"
    assert (first.metadata["rank"], first.metadata["score_name"]) == (1, "rrf")
    assert first.metadata["score"] == pytest.approx(1 / 61)
    assert first.metadata["team"] == "a"
    assert first.metadata["source"].endswith("00000")
    assert {"vector_rank", "vector_distance", "text_rank", "text_score", "title", "document_id"} <= set(
        first.metadata
    )
    assert "password" not in repr(retriever)


def test_async_finds_the_same(retriever: HybridRetriever, database_url: str) -> None:
    """ainvoke equals invoke, through a thread and on a pool of asynchronous connections."""

    async def both() -> list[list[str | None]]:
        found = [[document.id for document in await retriever.ainvoke("roll back?")]]
        async with AsyncConnectionPool(database_url, min_size=1, max_size=1, open=False) as pool:
            native = retriever.model_copy(update={"async_pool": pool})
            found.append([document.id for document in await native.ainvoke("roll back?")])
            several = await native.abatch(["roll back?"] * 5)
            found += [[document.id for document in documents] for documents in several]
        return found

    wanted = [document.id for document in retriever.invoke("roll back?")]
    assert len(wanted) == 2
    assert asyncio.run(both()) == [wanted] * 7


def test_a_corpus_of_other_embeddings_is_named(retriever: HybridRetriever) -> None:
    """Asking with embeddings that nothing was ingested under tells so, instead of finding nothing."""
    stranger = HybridRetriever(pool=retriever.pool, embeddings=retriever.embeddings, model="stranger")
    with pytest.raises(InputError, match="nothing is ingested under the embedding model stranger"):
        stranger.invoke("port")
    with pytest.raises(InputError, match="stranger"):
        asyncio.run(stranger.ainvoke("port"))


def test_k_and_filter_are_obeyed(retriever: HybridRetriever) -> None:
    """k bounds the documents, a filter that nothing contains leaves none, a wrong k is refused at once."""
    assert len(retriever.model_copy(update={"k": 3}).invoke("port")) == 3
    assert retriever.model_copy(update={"filter": {"team": "b"}}).invoke("port") == []
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        HybridRetriever(pool=retriever.pool, embeddings=retriever.embeddings, k=0)
