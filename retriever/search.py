"""Hybrid search in one SQL statement: nearest vectors and matching words, joined by reciprocal-rank fusion.

Vectors find paraphrases, words find names, codes and numbers that an embedding blurs. Their scores have no
common scale, so ranks are fused: ``score(c) = sum over both lists of 1 / (60 + rank(c))`` (Cormack, Clarke &
Büttcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods", SIGIR 2009,
k = 60 as there). A chunk that is in one list only has one term.

Words: chunks that hold *all* words of the question (``websearch_to_tsquery``: quotes make phrases, ``or`` an
alternative) come first. When they are fewer than ``depth``, chunks that hold *some* of them follow, because a
natural question says words that no document repeats. These are ordered by the share of the question's
information that stands in them: each word counts its inverse document frequency (Robertson & Zaragoza, "The
Probabilistic Relevance Framework", 2009; with one added inside the logarithm, so it stays positive), so an
error code outweighs "mean" or "service". A chunk with less than half the best share is no match: fusion
rewards standing in both lists, and a long tail of weak matches would outrank the one chunk with the code.
To bound the work on a large corpus, a word in ``COMMON`` chunks or more selects nothing by itself, and of
more chunks than that with all words the first stored are ranked.
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

from ragblame.corpus import MAX_K
from ragblame.errors import InputError
from ragblame.json_values import clean_json, clean_text
from ragblame.records import Json
from ragblame.retriever.embedding_models import EmbeddingModel, storage_error, vector_text

RRF_K: Final = 60
MAX_QUESTION: Final = 4_000  # code points of a question whose words are searched
MAX_WORDS: Final = 32  # of these the rarest words that select chunks
COMMON: Final = 5_000  # chunks; a word in so many tells little, and ranking more takes long
LEAST_SHARE: Final = 0.5  # of the best share

_DASHES = re.compile(r"(?<!\S)[-–—]+(?=\S)")

# ts_rank 1: divided by 1 + log(length), so a long chunk does not win by its length.
# A lexeme becomes a query by quoting it, as tsquery's own output does.
_HYBRID = sql.SQL(r"""
WITH near AS MATERIALIZED (
    SELECT c.id, c.embedding::{type} <=> %(vector)s::{type} AS distance
    FROM ragblame.chunk c WHERE c.model_id = {model} {filter}
    ORDER BY c.embedding::{type} <=> %(vector)s::{type}, c.id LIMIT %(depth)s
), by_vector AS (
    SELECT id, row_number() OVER (ORDER BY distance, id) AS rank FROM near
), lexemes AS (
    SELECT ('''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''')::tsquery AS query
    FROM unnest(to_tsvector('english', %(words)s))
), counted AS MATERIALIZED (
    SELECT query, (SELECT count(*) FROM (SELECT FROM ragblame.chunk c
        WHERE c.model_id = {model} AND c.search @@ query LIMIT {common}) AS seen) AS found
    FROM lexemes
), corpus AS MATERIALIZED (
    SELECT count(*) AS size FROM (SELECT FROM ragblame.chunk c
        WHERE c.model_id = {model} LIMIT {common}) AS seen
), words AS MATERIALIZED (
    SELECT query, ln(1 + (size - found + 0.5::float8) / (found + 0.5::float8)) AS idf
    FROM counted, corpus WHERE found BETWEEN 1 AND {common} - 1 ORDER BY found, query::text LIMIT {max_words}
), question AS MATERIALIZED (
    SELECT string_agg(query::text, ' | ')::tsquery AS any_word, sum(idf) AS information FROM words
), all_words AS MATERIALIZED (
    SELECT id, 1::float8 AS share, ts_rank(search, {all}, 1) AS density
    FROM (SELECT c.id, c.search FROM ragblame.chunk c
        WHERE c.model_id = {model} AND c.search @@ {all} {filter} LIMIT {common}) AS first
    ORDER BY density DESC, id LIMIT %(depth)s
), some_words AS MATERIALIZED (
    SELECT c.id, (SELECT sum(w.idf) FROM words w WHERE c.search @@ w.query)
        / (SELECT information FROM question) AS share,
        ts_rank(c.search, (SELECT any_word FROM question), 1) AS density
    FROM ragblame.chunk c WHERE (SELECT count(*) FROM all_words) < %(depth)s AND c.model_id = {model}
    AND c.search @@ (SELECT any_word FROM question) AND NOT c.search @@ {all} {filter}
    ORDER BY share DESC, density DESC, c.id LIMIT %(depth)s
), matching AS (
    SELECT *, true AS has_all FROM all_words UNION ALL SELECT *, false FROM some_words
), by_text AS (
    SELECT id, share, row_number() OVER (ORDER BY has_all DESC, share DESC, density DESC, id) AS rank
    FROM matching WHERE share >= {least} * (SELECT max(share) FROM matching) ORDER BY rank LIMIT %(depth)s
), fused AS (
    SELECT id, v.rank AS vector_rank, t.rank AS text_rank, t.share AS text_score,
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
    text_score: float | None  # share of the question's information that stands there, (0, 1]; 1: all words


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
        common=sql.Literal(COMMON),
        max_words=sql.Literal(MAX_WORDS),
        least=sql.Literal(LEAST_SHARE),
    )
    parameters = {
        "vector": vector_text(vector, model),
        "words": _DASHES.sub("", clean_text(question)[:MAX_QUESTION]),
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
