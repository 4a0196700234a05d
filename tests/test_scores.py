"""Row P13: scores are taken with their name, else recomputed from real pgvector, or it is told why not."""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_postgres import PGEngine, PGVectorStore
from langchain_postgres.vectorstores import PGVector

from ragblame import database
from ragblame.attribution.jobs.attribute import attribute_trace
from ragblame.attribution.jobs.rescoring import SCORE_NAME, Rescorer
from ragblame.attribution.jobs.stored import read_explanation
from ragblame.attribution.jobs.worker import run_worker
from ragblame.errors import DatabaseError, InputError
from ragblame.plugin.passages import make_chunk, read_passages
from ragblame.records import MASK, Chunk, Explanation, Trace
from ragblame.retriever.chunks import write_documents
from ragblame.retriever.drafts import ChunkDraft, draft_document
from ragblame.retriever.embedding_models import register_model, vector_text
from ragblame.retriever.scores import score_rows
from ragblame.retriever.vector_tables import find_vector_table
from ragblame.settings import Settings
from ragblame.traces import new_trace_id, read_trace, write_traces

Conn = psycopg.Connection[Any]
SIZE = 5
QUERY = "which port?"


class LetterEmbeddings(Embeddings):
    """Counts of some letters: a model that always says the same of the same text."""

    model_name = "letters"

    def embed_query(self, text: str) -> list[float]:
        return [text.count(letter) + 0.1 for letter in "eatop"]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


class OtherEmbeddings(LetterEmbeddings):
    """Another model of the same size."""

    model_name = "other"

    def embed_query(self, text: str) -> list[float]:
        return [text.count(letter) + 0.1 for letter in "xyzvw"]


class BrokenEmbeddings(LetterEmbeddings):
    """A model behind a server that is down."""

    def embed_query(self, text: str) -> list[float]:
        raise ConnectionError("the embedding server\nis away")


class Explainer:
    """Explains nothing, so that only the score step is left."""

    def explain_trace(self, trace: Trace, **_: Any) -> Explanation:
        return Explanation(
            trace=trace, scorer=None, fitness=None, alignments=(), spans=(), attributions=(), heats=(),
            supports=(), verdicts=(), coalitions=None, notes=("first",),
        )  # fmt: skip


def texts_of(count: int) -> list[str]:
    """Different texts."""
    rng = random.Random(count)
    return [f"{number}: " + "".join(rng.choices("eatop xyz", k=40)) for number in range(count)]


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """The cosine distance, computed here."""
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return 1 - product / math.hypot(*left) / math.hypot(*right)


def expected(texts: Sequence[str], query: str = QUERY) -> dict[str, tuple[float, int]]:
    """Distance and rank of each text by brute force."""
    model = LetterEmbeddings()
    distances = {text: cosine(model.embed_query(text), model.embed_query(query)) for text in texts}
    return {
        text: (distance, 1 + sum(other < distance - 1e-9 for other in distances.values()))
        for text, distance in distances.items()
    }


def trace_with(*chunks: Chunk, **fields: Any) -> Trace:
    """A stored-like trace of these chunks."""
    given = {"question": QUERY, "answer": "8443", "app": "t", "started_at": datetime.now(UTC), **fields}
    return Trace(
        id=new_trace_id(),
        chunks=tuple(replace(chunk, position=position) for position, chunk in enumerate(chunks)),
        **given,
    )


def rescorer(
    url: str, embeddings: str | None = "tests.test_scores:LetterEmbeddings", **options: Any
) -> Rescorer:
    """The worker's score step with a model of ours."""
    return Rescorer(url=url, embeddings=embeddings, **options)


def finding(chunk: Chunk) -> dict[str, Any]:
    """What the metadata say about a recomputed score."""
    ours = chunk.metadata["ragblame"]
    assert isinstance(ours, dict)
    found = ours["recomputed"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("key", ["score", "relevance_score", "similarity", "distance", "_score"])
def test_a_told_score_keeps_its_name(key: str) -> None:
    """Row P13: each known metadata key gives the score under the retriever's own name for it."""
    documents = [
        Document(page_content="a", metadata={key: 0.25}),
        Document(page_content="b", metadata={"n": 1}),
    ]
    passages, _ = read_passages(documents)
    told, untold = (make_chunk(passage, limit=9) for passage in passages)
    assert (told.score, told.score_name) == (0.25, key)
    assert (untold.score, untold.score_name) == (None, None)


@pytest.fixture
def corpus(connection: Conn) -> dict[str, str]:
    """Our own table with 60 chunks; text -> row id."""
    model = register_model(connection, "letters", SIZE)
    texts = texts_of(60)
    vectors = {text: vector_text(LetterEmbeddings().embed_query(text), model) for text in texts}
    drafts = [draft_document(f"d{n:03}", [ChunkDraft(text=text)]) for n, text in enumerate(texts)]
    write_documents(connection, drafts, model, vectors)
    connection.commit()
    return {
        row[0]: str(row[1]) for row in connection.execute("SELECT text, id FROM ragblame.chunk").fetchall()
    }


def foreign_table(url: str, name: str, texts: Sequence[str]) -> dict[str, str]:
    """A table that langchain-postgres made and filled; text -> row id."""
    engine = PGEngine.from_connection_string(url.replace("postgresql://", "postgresql+psycopg://"))
    engine.init_vectorstore_table(name, SIZE)
    store = PGVectorStore.create_sync(engine, LetterEmbeddings(), name)
    ids = store.add_texts(list(texts))
    return dict(zip(texts, ids, strict=True))


def test_our_own_rows_get_distance_and_exact_rank(database_url: str, corpus: dict[str, str]) -> None:
    """Distance and rank equal those of brute force, under a name that says they were recomputed."""
    chosen = list(corpus)[:5]
    chunks = [
        Chunk(position=0, text=text, source_id=corpus[text], source_table="ragblame.chunk") for text in chosen
    ]
    scored, notes = rescorer(database_url).rescore(trace_with(*chunks))
    wanted = expected(list(corpus))
    for chunk in scored.chunks:
        distance, rank = wanted[chunk.text]
        assert chunk.score_name == SCORE_NAME == "recomputed distance"
        assert chunk.score == pytest.approx(distance, abs=2e-3)  # vectors are stored in half precision
        found = finding(chunk)
        assert abs(found["rank"] - rank) <= 1  # half precision may swap two that are as near
        assert (found["rows"], found["metric"], found["model"], found["table"]) == (
            60, "cosine distance", "letters", "ragblame.chunk"
        )  # fmt: skip
        assert chunk.rank is None, "the retriever's rank is its own"
    assert notes == [
        "No score came with chunks 1, 2, 3, 4, 5: cosine distance and exact rank recomputed from "
        "ragblame.chunk as it is now."
    ]


@pytest.mark.parametrize("name", ["public.runbooks", "runbooks", "Odd Name", "100 %s"])
def test_rows_of_langchain_postgres_are_measured(database_url: str, name: str) -> None:
    """A PGVectorStore's table, named with or without schema: exact distances and ranks; ties share one."""
    texts = [*texts_of(30), "same words to tie", "same words to tie "]
    ids = foreign_table(database_url, name.removeprefix("public."), texts)
    table = f'"{name}"' if " " in name else name
    chosen = [texts[3], texts[17], *texts[-2:]]
    chunks = [Chunk(position=0, text=text, source_id=ids[text], source_table=table) for text in chosen]
    scored, _ = rescorer(database_url).rescore(trace_with(*chunks))
    wanted = expected(texts)
    for chunk in scored.chunks:
        assert chunk.score == pytest.approx(wanted[chunk.text][0], abs=1e-6)
        assert finding(chunk)["rank"] == wanted[chunk.text][1]
        assert finding(chunk)["rows"] == 32
    assert finding(scored.chunks[2])["rank"] == finding(scored.chunks[3])["rank"]


def test_the_older_vector_store_is_measured_within_its_collection(database_url: str) -> None:
    """PGVector keeps all collections in one table: rows are ranked among those of their own."""
    connection = database_url.replace("postgresql://", "postgresql+psycopg://")
    texts = texts_of(12)
    for collection, some in (("a", texts[:5]), ("b", texts[5:])):
        store = PGVector(LetterEmbeddings(), collection_name=collection, connection=connection)
        store.add_texts(some, ids=[f"{collection}-{n}" for n in range(len(some))])
    chunk = Chunk(position=0, text=texts[6], source_id="b-1", source_table="langchain_pg_embedding")
    scored, _ = rescorer(database_url).rescore(trace_with(chunk))
    assert finding(scored.chunks[0])["rows"] == 7
    assert finding(scored.chunks[0])["rank"] == expected(texts[5:])[texts[6]][1]


def test_the_metric_is_that_of_the_tables_index(database_url: str, connection: Conn) -> None:
    """A table indexed for Euclidean distance is measured by it; one for two metrics is not guessed about."""
    ids = foreign_table(database_url, "l2", texts_of(10))
    text = next(iter(ids))
    connection.execute(
        "CREATE INDEX ON l2 USING hnsw (embedding vector_l2_ops)".replace("l2 U", "public.l2 U")
    )
    connection.commit()
    trace = trace_with(Chunk(position=0, text=text, source_id=ids[text], source_table="public.l2"))
    scored, _ = rescorer(database_url).rescore(trace)
    model = LetterEmbeddings()
    assert finding(scored.chunks[0])["metric"] == "Euclidean distance"
    assert scored.chunks[0].score == pytest.approx(
        math.dist(model.embed_query(text), model.embed_query(QUERY))
    )
    connection.execute("CREATE INDEX ON public.l2 USING hnsw (embedding vector_cosine_ops)")
    connection.commit()
    scored, notes = rescorer(database_url).rescore(trace)
    assert scored == trace
    assert "several distances" in notes[0]


def test_a_retrievers_own_score_is_left_alone(database_url: str, corpus: dict[str, str]) -> None:
    """Recorded scores stay with their name, no question is asked; only what lacks one is recomputed."""
    [first, second] = list(corpus)[:2]
    told = Chunk(
        position=0,
        text=first,
        source_id=corpus[first],
        source_table="ragblame.chunk",
        score=0.7,
        score_name="relevance_score",
    )
    trace = trace_with(told)
    assert rescorer("postgresql://nobody@127.0.0.1:9/x").rescore(trace) == (trace, [])
    lacking = Chunk(position=1, text=second, source_id=corpus[second], source_table="ragblame.chunk")
    scored, _ = rescorer(database_url).rescore(trace_with(told, lacking))
    assert (scored.chunks[0].score, scored.chunks[0].score_name) == (0.7, "relevance_score")
    assert scored.chunks[1].score_name == SCORE_NAME


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"source_id": None}, "no row id is known"),
        ({"source_table": None}, "no table is known: give the handler source_table="),
        ({"source_table": "public.nowhere"}, "there is no table public.nowhere"),
        ({"source_table": "a.b.c.d; DROP TABLE trace"}, "there is no table a.b.c.d; DROP"),
        ({"source_table": '"x'}, 'there is no table "x'),
        ({"source_table": "ragblame.document"}, "has 0 vector columns"),
        ({"source_id": "not-a-uuid"}, "its row id is no uuid"),
        ({"source_id": str(UUID(int=1))}, "its row is not in ragblame.chunk any more"),
        ({"text": "what it said then"}, "its row in ragblame.chunk holds another text by now"),
    ],
)
def test_what_cannot_be_recomputed_says_why(
    database_url: str, corpus: dict[str, str], change: dict[str, Any], reason: str
) -> None:
    """Each reason is one sentence with the chunk's number; that chunk stays as it was, others get theirs."""
    good, other = list(corpus)[:2]
    chunk = Chunk(position=0, text=good, source_id=corpus[good], source_table="ragblame.chunk")
    trace = trace_with(replace(chunk, **change), replace(chunk, text=other, source_id=corpus[other]))
    scored, notes = rescorer(database_url).rescore(trace)
    assert scored.chunks[0] == trace.chunks[0]
    told = [note for note in notes if reason in note]
    assert told, notes
    assert "chunk" in told[0]
    assert scored.chunks[1].score_name == SCORE_NAME


def test_the_query_must_be_known_whole(database_url: str, corpus: dict[str, str]) -> None:
    """A cut or masked query, or one of several unknown searches, gives no distance; known ones do."""
    text, other = list(corpus)[:2]
    chunk = Chunk(position=0, text=text, source_id=corpus[text], source_table="ragblame.chunk")
    for fields, reason in (
        ({"truncated": {"question": 10_000}}, "the query was cut at capture"),
        ({"question": f"is {MASK * 5} it?"}, "the query was masked at capture"),
        ({"question": " "}, "the query is not known"),
    ):
        scored, [note] = rescorer(database_url).rescore(trace_with(chunk, **fields))
        assert scored.chunks[0].score is None
        assert note == f"No score came with chunk 1, and none was recomputed: {reason}."
    first, second = (
        replace(chunk, retriever_run=UUID(int=1)),
        replace(chunk, retriever_run=UUID(int=2), text=other, source_id=corpus[other]),
    )
    _, [note] = rescorer(database_url).rescore(trace_with(first, second))
    assert "several searches" in note
    searches = {"ragblame": {"retrievers": [{"name": "a", "query": "eat"}, {"name": "b", "query": "top"}]}}
    scored, _ = rescorer(database_url).rescore(trace_with(first, second, metadata=searches))
    assert scored.chunks[0].score == pytest.approx(expected([text], "eat")[text][0], abs=2e-3)
    assert scored.chunks[1].score == pytest.approx(expected([other], "top")[other][0], abs=2e-3)
    scored, _ = rescorer(database_url).rescore(trace_with(chunk, query="eat"))
    assert scored.chunks[0].score == pytest.approx(expected([text], "eat")[text][0], abs=2e-3)


def test_only_the_model_that_made_the_vectors_is_believed(database_url: str, corpus: dict[str, str]) -> None:
    """Another model, one that fails, and one that is none: no number, and the setting to correct is named."""
    text = next(iter(corpus))
    ours = trace_with(Chunk(position=0, text=text, source_id=corpus[text], source_table="ragblame.chunk"))
    ids = foreign_table(database_url, "foreign_rows", list(corpus)[:3])
    foreign = trace_with(
        Chunk(position=0, text=text, source_id=ids[text], source_table="public.foreign_rows")
    )
    for trace, path, reason in (
        (ours, "tests.test_scores:OtherEmbeddings", "was embedded with letters, and the worker has other"),
        (foreign, "tests.test_scores:OtherEmbeddings", "were not made by the embedding model other (cosine"),
        (foreign, "tests.test_scores:BrokenEmbeddings", "ConnectionError: the embedding server is away"),
        (foreign, "tests.test_scores:nothing", "the setting embeddings = 'tests.test_scores:nothing'"),
        (foreign, "tests.test_scores:texts_of", "TypeError"),
    ):
        scored, [note] = rescorer(database_url, path).rescore(trace)
        assert scored == trace
        assert reason in note
        assert "\n" not in note


def test_masked_and_cut_texts_are_the_same_text(database_url: str, corpus: dict[str, str]) -> None:
    """A row is recognised by what is left of its text after redaction and after the capture's cut."""
    text = next(iter(corpus))
    chunk = Chunk(position=0, text=text, source_id=corpus[text], source_table="ragblame.chunk")
    for shown in (
        replace(chunk, text=MASK * 4 + text[4:]),
        replace(chunk, text=text[:9], truncated_from=len(text)),
    ):
        scored, _ = rescorer(database_url).rescore(trace_with(shown))
        assert scored.chunks[0].score_name == SCORE_NAME
    scored, _ = rescorer(database_url).rescore(
        trace_with(replace(chunk, text="x" * 9, truncated_from=len(text)))
    )
    assert scored.chunks[0].score is None


def test_a_slow_table_costs_its_ranks_only(database_url: str, connection: Conn) -> None:
    """A scan that takes too long is given up, and not tried again at once: the distance is told."""
    connection.execute("CREATE TABLE public.big (id int PRIMARY KEY, content text, embedding vector(5))")
    connection.execute("SELECT setseed(0.5)")  # two rows as near as a last bit may change places
    connection.execute(
        "INSERT INTO public.big SELECT n, 'eat ' || n, "
        "ARRAY[random(), random(), random(), random(), random()]::vector FROM generate_series(1, 300000) n"
    )
    text = "eat 7"
    connection.execute(
        "UPDATE public.big SET embedding = %s::vector WHERE id = 7",
        (str(LetterEmbeddings().embed_query(text)),),
    )
    connection.commit()
    trace = trace_with(Chunk(position=0, text=text, source_id="7", source_table="public.big"))
    step = rescorer(database_url, seconds=0.004)
    began = time.monotonic()
    scored, notes = step.rescore(trace)
    assert time.monotonic() - began < 5
    assert scored.chunks[0].score == pytest.approx(expected([text])[text][0], abs=1e-6)
    assert finding(scored.chunks[0])["rank"] is None
    assert notes == [
        "No score came with chunk 1: cosine distance recomputed from public.big as it is now; ranking its "
        "rows took too long."
    ]
    step.seconds = 60.0
    assert finding(step.rescore(trace)[0].chunks[0])["rank"] is None, "a slow table rests"
    began = time.monotonic()
    scored, _ = rescorer(database_url, seconds=60.0).rescore(trace)
    print(f"exact rank among 300,000 rows: {time.monotonic() - began:.2f} s")
    rank = connection.execute(
        "SELECT count(*) + 1 FROM public.big WHERE embedding <=> %s::vector < "
        "(SELECT embedding <=> %s::vector FROM public.big WHERE id = 7)",
        (str(LetterEmbeddings().embed_query(QUERY)),) * 2,
    ).fetchone()
    assert rank is not None
    assert finding(scored.chunks[0])["rank"] == rank[0]


def test_a_locked_table_is_not_waited_for(database_url: str, connection: Conn) -> None:
    """A table under maintenance costs the time limit, then a note; nothing is written to it ever."""
    ids = foreign_table(database_url, "locked", texts_of(3))
    text = next(iter(ids))
    connection.execute("LOCK TABLE public.locked IN ACCESS EXCLUSIVE MODE")
    step = rescorer(database_url, seconds=0.3)
    step._verified.add(("public.locked", "letters"))
    began = time.monotonic()
    scored, notes = step.rescore(
        trace_with(Chunk(position=0, text=text, source_id=ids[text], source_table="public.locked"))
    )
    assert time.monotonic() - began < 5
    assert scored.chunks[0].score is None
    assert "longer than 0.3 s" in notes[0]
    connection.rollback()
    with database.connect(database_url, read_only=True, autocommit=True) as conn:
        table = find_vector_table(conn, "public.locked")
        with conn.transaction():
            conn.execute("SELECT 1")
        assert score_rows(conn, table, [ids[text]], [1.0] * SIZE, seconds=1)[ids[text]].rank is not None
        with pytest.raises(InputError, match="do not fit"):
            score_rows(conn, table, [ids[text]], [1.0] * 3, seconds=1)


def test_the_worker_stores_what_it_recomputed(
    database_url: str, connection: Conn, corpus: dict[str, str]
) -> None:
    """A job stores score, name and finding; a rerun makes them anew, and own scores are never touched."""
    first, second = list(corpus)[:2]
    trace = trace_with(
        Chunk(
            position=0, text=first, source_id=corpus[first], source_table="ragblame.chunk", metadata={"k": 1}
        ),
        Chunk(
            position=1,
            text=second,
            source_id=corpus[second],
            source_table="ragblame.chunk",
            score=0.5,
            score_name="score",
        ),
    )
    write_traces(connection, [trace])
    connection.commit()
    settings = Settings(embeddings="tests.test_scores:LetterEmbeddings")
    tally = run_worker(database_url, once=True, settings=settings, load=Explainer, report=lambda line: None)
    assert (tally.attributed, tally.failed) == (1, 0)
    stored = read_trace(connection, trace.id)
    assert stored.chunks[0].score_name == SCORE_NAME
    assert stored.chunks[0].metadata["k"] == 1
    assert finding(stored.chunks[0])["rows"] == 60
    assert stored.chunks[1] == trace.chunks[1]
    explanation = read_explanation(connection, trace.id)
    connection.commit()
    assert explanation is not None
    assert explanation.trace == stored
    assert explanation.notes[0] == "first"
    assert "recomputed from ragblame.chunk" in explanation.notes[1]
    connection.execute("DELETE FROM ragblame.chunk WHERE id <> %s", (corpus[first],))
    connection.commit()
    again = attribute_trace(database_url, Explainer(), trace.id, rescorer=rescorer(database_url))
    assert finding(again.trace.chunks[0])["rows"] == 1
    assert read_trace(connection, trace.id) == again.trace


def test_a_forbidden_table_is_a_note_and_a_lost_server_is_not(database_url: str, connection: Conn) -> None:
    """Only what may pass is tried again: a missing permission is told, a killed connection is an error."""
    ids = foreign_table(database_url, "closed", texts_of(3))
    text = next(iter(ids))
    trace = trace_with(Chunk(position=0, text=text, source_id=ids[text], source_table="public.closed"))
    connection.execute("CREATE ROLE reader LOGIN PASSWORD 'r'")
    connection.commit()
    host = f"postgresql://reader:r@{connection.info.host}:{connection.info.port}/{connection.info.dbname}"
    try:
        scored, [note] = rescorer(host).rescore(trace)
        assert scored == trace
        assert "permission denied" in note
    finally:
        connection.execute("DROP ROLE reader")
        connection.commit()
    step = rescorer(database_url)
    step.load = lambda path: KillingEmbeddings(database_url)
    with pytest.raises(DatabaseError, match="PostgreSQL failed"):
        step.rescore(trace)


class KillingEmbeddings(LetterEmbeddings):
    """Ends every other connection to the database while it embeds."""

    def __init__(self, url: str) -> None:
        self.url = url

    def embed_query(self, text: str) -> list[float]:
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() "
                "AND application_name = 'ragblame'"
            )
        return super().embed_query(text)


def test_scores_can_be_left_as_they_came(database_url: str) -> None:
    """The setting switches the step off; PostgreSQL being away is not hidden as a note."""
    assert Rescorer.from_settings("url", Settings(recompute_scores=False)) is None
    step = Rescorer.from_settings("postgresql://nobody@127.0.0.1:9/x", Settings(recompute_seconds=0.5))
    assert step is not None
    assert step.seconds == 0.5
    with pytest.raises(DatabaseError):
        step.rescore(trace_with(Chunk(position=0, text="t", source_id="1", source_table="public.t")))
