"""Hybrid search in one SQL statement: nearest vectors and matching words, joined by reciprocal-rank fusion.

Vectors find paraphrases, words find names, codes and numbers that an embedding blurs. Their scores have no
common scale, so ranks are fused: ``score(c) = sum over both lists of 1 / (60 + rank(c))`` (Cormack, Clarke &
Büttcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods", SIGIR 2009,
k = 60 as there). A chunk that is in one list only has one term.

Words: rows that hold *all* words of the question (``websearch_to_tsquery``: quotes make phrases, ``or`` an
alternative) come first. Only when they are fewer than ``depth``, rows that hold *any* of them follow, because
a natural question says words ("which", "please") that no document repeats. Within both, ``ts_rank`` orders.
A leading dash is no negation here: in a question, ``--force`` is an option, not a wish to exclude it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from ragblame.errors import InputError
from ragblame.json_values import clean_json, clean_text
from ragblame.records import Json
from ragblame.retriever.embedding_models import EmbeddingModel, storage_error, vector_text

RRF_K: Final = 60
MAX_K: Final = 1_000  # pgvector's largest hnsw.ef_search
MAX_WORDS_TEXT: Final = 4_000  # code points of a question whose words are searched

_DASHES = re.compile(r"(?<!\S)[-–—]+(?=\S)")

# ts_rank 1: divided by 1 + log(length), so a long chunk does not win by its length.
_HYBRID = sql.SQL("""
WITH near AS MATERIALIZED (
    SELECT c.id, c.embedding::{type} <=> %(vector)s::{type} AS distance
    FROM ragblame.chunk c WHERE c.model_id = {model} {filter}
    ORDER BY c.embedding::{type} <=> %(vector)s::{type}, c.id LIMIT %(depth)s
), by_vector AS (
    SELECT id, row_number() OVER (ORDER BY distance, id) AS rank FROM near
), all_words AS MATERIALIZED (
    SELECT c.id, 1 + ts_rank(c.search, {any}, 1)::float8 AS score
    FROM ragblame.chunk c WHERE c.model_id = {model} AND c.search @@ {all} {filter}
    ORDER BY score DESC, c.id LIMIT %(depth)s
), any_word AS MATERIALIZED (
    SELECT c.id, ts_rank(c.search, {any}, 1)::float8 AS score
    FROM ragblame.chunk c WHERE (SELECT count(*) FROM all_words) < %(depth)s
    AND c.model_id = {model} AND c.search @@ {any} AND NOT c.search @@ {all} {filter}
    ORDER BY score DESC, c.id LIMIT %(depth)s
), by_text AS (
    SELECT id, score, row_number() OVER (ORDER BY score DESC, id) AS rank
    FROM (SELECT * FROM all_words UNION ALL SELECT * FROM any_word) AS matching
    ORDER BY score DESC, id LIMIT %(depth)s
), fused AS (
    SELECT id, v.rank AS vector_rank, t.rank AS text_rank, t.score AS text_score,
        coalesce(1 / ({rrf_k} + v.rank)::float8, 0) + coalesce(1 / ({rrf_k} + t.rank)::float8, 0) AS score
    FROM by_vector v FULL JOIN by_text t USING (id)
    ORDER BY score DESC, vector_rank, text_rank LIMIT %(k)s
)
SELECT f.id, c.document_id, d.source, d.title, c.text, c.metadata, f.score, f.vector_rank,
    c.embedding::{type} <=> %(vector)s::{type}, f.text_rank, f.text_score
FROM fused f JOIN ragblame.chunk c USING (id) JOIN ragblame.document d ON d.id = c.document_id
ORDER BY f.score DESC, f.vector_rank, f.text_rank
""")
_ALL = sql.SQL("websearch_to_tsquery('english', %(words)s)")
# plainto_tsquery joins lexemes with & only, and quotes each: exchanging the joints keeps the lexemes.
_ANY = sql.SQL("replace(plainto_tsquery('english', %(words)s)::text, ' & ', ' | ')::tsquery")
# Strict order keeps scanning the index until enough rows pass the filter; the default stops short, silently.
_SETTINGS: Final = (
    "SELECT set_config('hnsw.ef_search', %s, true), set_config('hnsw.iterative_scan', 'strict_order', true)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One chunk found."""

    chunk_id: UUID  # ragblame.chunk.id
    document_id: UUID
    source: str
    title: str
    text: str
    metadata: Mapping[str, Json]
    rank: int  # 1-based, by score
    score: float  # reciprocal-rank fusion, (0, 2/61]
    vector_rank: int | None  # 1-based among the nearest `depth`; None: not among them
    vector_distance: float  # cosine distance, [0, 2], of half-precision vectors
    text_rank: int | None  # 1-based among the best `depth` by words; None: not among them
    text_score: float | None  # ts_rank, (0, 1); plus 1 when all words of the question stand there


@dataclass(frozen=True, slots=True)
class HybridQuery:
    """The statement and its parameters, for a synchronous or an asynchronous connection."""

    settings: tuple[str]  # hnsw.ef_search
    statement: sql.Composed
    parameters: Mapping[str, Any]


def hybrid_query(
    question: str,
    vector: Sequence[float],
    model: EmbeddingModel,
    *,
    k: int = 4,
    filter: Mapping[str, Any] | None = None,
    depth: int | None = None,
) -> HybridQuery:
    """Compose the search for ``question`` whose embedding by ``model`` is ``vector``.

    ``filter`` keeps chunks whose metadata contains it (jsonb ``@>``). ``depth`` is the length of both lists
    before fusion, by default ``max(50, 4 k)``. Raises ``InputError`` for ``k`` outside [1, 1000] or a smaller
    ``depth``, ``ModelError`` for an unusable vector.
    """
    if not 1 <= k <= MAX_K:
        raise InputError(f"k is {k}: ask for 1 to {MAX_K} chunks")
    depth = min(max(50, 4 * k), MAX_K) if depth is None else depth
    if not k <= depth <= MAX_K:
        raise InputError(f"depth is {depth}: choose k ({k}) to {MAX_K}")
    # Our own numbers are literals, so that every plan can prove the partial index's condition.
    statement = _HYBRID.format(
        type=model.halfvec,
        model=sql.Literal(model.id),
        rrf_k=sql.Literal(RRF_K),
        filter=sql.SQL("" if filter is None else "AND c.metadata @> %(filter)s"),
        all=_ALL,
        any=_ANY,
    )
    parameters = {
        "vector": vector_text(vector, model),
        "words": _DASHES.sub("", clean_text(question)[:MAX_WORDS_TEXT]),
        "filter": Jsonb(clean_json(filter)),
        "depth": depth,
        "k": k,
    }
    return HybridQuery((str(max(depth, 100)),), statement, parameters)


def search(
    conn: psycopg.Connection[Any],
    question: str,
    vector: Sequence[float],
    model: EmbeddingModel,
    *,
    k: int = 4,
    filter: Mapping[str, Any] | None = None,
    depth: int | None = None,
) -> list[Hit]:
    """The ``k`` best chunks, best first; arguments and errors as for ``hybrid_query``, and ``DatabaseError``.

    Ties are broken by vector rank, then text rank, those by row id: the same store gives the same order.
    """
    query = hybrid_query(question, vector, model, k=k, filter=filter, depth=depth)
    try:
        with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(_SETTINGS, query.settings)
            cursor.execute(query.statement, query.parameters, prepare=False)
            return _hits(cursor.fetchall())
    except psycopg.Error as error:
        raise storage_error(conn, error) from error


async def search_async(
    conn: psycopg.AsyncConnection[Any],
    question: str,
    vector: Sequence[float],
    model: EmbeddingModel,
    *,
    k: int = 4,
    filter: Mapping[str, Any] | None = None,
    depth: int | None = None,
) -> list[Hit]:
    """``search`` on an asynchronous connection."""
    query = hybrid_query(question, vector, model, k=k, filter=filter, depth=depth)
    try:
        async with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(_SETTINGS, query.settings)
            await cursor.execute(query.statement, query.parameters, prepare=False)
            return _hits(await cursor.fetchall())
    except psycopg.Error as error:
        raise storage_error(conn, error) from error


def _hits(rows: Iterable[tuple[Any, ...]]) -> list[Hit]:
    return [
        Hit(
            chunk_id=row[0],
            document_id=row[1],
            source=row[2],
            title=row[3],
            text=row[4],
            metadata=row[5],
            rank=rank,
            score=row[6],
            vector_rank=row[7],
            vector_distance=row[8],
            text_rank=row[9],
            text_score=row[10],
        )
        for rank, row in enumerate(rows, start=1)
    ]
