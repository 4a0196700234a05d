"""Distance and exact rank of retrieved rows, asked of PostgreSQL again, because LangChain drops them.

Read-only and limited in time. The distance is that of the row's vector as it is now; the rank counts every
row of the table that is nearer, by a full scan: what an approximate index or a filter left out shows in it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import psycopg
from langchain_core.embeddings import Embeddings
from psycopg import sql
from psycopg.rows import tuple_row

from ragblame.errors import InputError, ModelError
from ragblame.retriever.embedding_models import EmbeddingModel, name_of
from ragblame.retriever.sql_names import identifier
from ragblame.retriever.vector_tables import VectorTable

SAME_MODEL: Final = (
    0.99  # cosine of a row's vector and the model's own of its text: half precision keeps this
)

_START = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_LIMIT = "SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', '1s', true)"
_ROWS = sql.SQL(
    "SELECT {id}::text, {text}, {group}::text, {vector} {operator} %(vector)s::{type} FROM {relation} "
    "WHERE {id} = ANY (%(ids)s::text[]::{id_type}[]) AND {vector} IS NOT NULL"
)
# One scan for all rows: each is counted between the two wanted distances that it lies between.
_BUCKETS = sql.SQL(
    "SELECT width_bucket(distance, %(distances)s::float8[]), count(*) FROM "
    "(SELECT {vector} {operator} %(vector)s::{type} AS distance FROM {relation} "
    "WHERE {vector} IS NOT NULL AND {where}) AS measured WHERE distance <> 'NaN' GROUP BY 1"
)
_SAMPLE = sql.SQL(
    "SELECT {text}, {vector}::text FROM {relation} WHERE {id} = ANY (%(ids)s::text[]::{id_type}[])"
)
_MODELS = """
SELECT DISTINCT m.id, m.name, m.dimensions
FROM ragblame.chunk c JOIN ragblame.embedding_model m ON m.id = c.model_id
WHERE c.id = ANY (%s::text[]::uuid[])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScore:
    """One row, measured against a query."""

    text: str  # the row's text as it is now
    distance: float  # unit and range depend on the table's metric
    rank: int | None  # 1-based; rows at the same distance share it; None: it took too long
    rows: int | None  # that were ranked


def models_of(conn: psycopg.Connection[Any], ids: Sequence[str]) -> list[EmbeddingModel]:
    """The embedding models of these rows of ``ragblame.chunk``.

    Raises ``InputError`` for ids of another form, ``psycopg.Error`` when PostgreSQL fails.
    """
    try:
        with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
            found = cursor.execute(_MODELS, (list(ids),)).fetchall()
    except psycopg.DataError as error:
        raise InputError("the row ids are not of the form of ragblame.chunk's") from error
    return [EmbeddingModel(id=row[0], name=row[1], dimensions=row[2]) for row in found]


def score_rows(
    conn: psycopg.Connection[Any],
    table: VectorTable,
    ids: Sequence[str],
    vector: Sequence[float],
    *,
    seconds: float,
    with_rank: bool = True,
) -> dict[str, RowScore]:
    """Distance and exact rank of the rows with these ids; rows that are gone are left out.

    At most ``seconds`` for the distances and again for the ranks, which are None when they take longer.
    Raises ``InputError`` when ids or vector do not fit the table, or the distances take too long, and
    ``psycopg.Error`` when PostgreSQL fails.
    """
    parts = _parts(table)
    given = {"ids": list(ids), "vector": _vector_text(vector, table)}
    found: dict[str, tuple[RowScore, str | None]] = {}
    is_measured = False
    try:
        with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(_START)
            cursor.execute(_LIMIT, (f"{max(1, round(seconds * 1_000))}ms",))
            rows = cursor.execute(_ROWS.format(**parts), given).fetchall()
            found = {
                row[0]: (RowScore(text=row[1] or "", distance=row[3], rank=None, rows=None), row[2])
                for row in rows
                if math.isfinite(row[3])
            }
            is_measured = True
            if with_rank and found:
                with conn.transaction():  # a savepoint: too slow a scan costs the ranks only
                    return _ranked(cursor, table, parts, given, found)
    except psycopg.errors.QueryCanceled as error:
        if not is_measured:
            raise InputError(f"{table.name} took longer than {seconds:g} s") from error
    except psycopg.DataError as error:
        line = str(error).strip().splitlines()[0]
        raise InputError(
            f"the recorded ids or the query's vector do not fit {table.name} ({line})"
        ) from error
    return {key: score for key, (score, _) in found.items()}


def _ranked(
    cursor: psycopg.Cursor[tuple[Any, ...]],
    table: VectorTable,
    parts: Mapping[str, sql.Composable],
    given: Mapping[str, Any],
    found: Mapping[str, tuple[RowScore, str | None]],
) -> dict[str, RowScore]:
    ranked: dict[str, RowScore] = {}
    for group in {group for _, group in found.values()}:
        own = {key: score for key, (score, its) in found.items() if its == group}
        distances = sorted({score.distance for score in own.values()})
        where: sql.Composable = sql.SQL("true")
        if table.group_column is not None:
            where = sql.SQL("{}::text IS NOT DISTINCT FROM %(group)s").format(identifier(table.group_column))
            if table.is_ours:
                where = sql.SQL("model_id = {}").format(sql.Literal(int(group or 0)))
        counts = dict(
            cursor.execute(
                _BUCKETS.format(**parts, where=where), {**given, "distances": distances, "group": group}
            ).fetchall()
        )
        rows = sum(counts.values())
        for key, score in own.items():
            # bucket b holds rows from the b-th distance on, so those below hold exactly the nearer rows
            below = distances.index(score.distance)
            rank = 1 + sum(count for bucket, count in counts.items() if bucket <= below)
            ranked[key] = replace(score, rank=rank, rows=rows)
    return ranked


def require_same_model(
    conn: psycopg.Connection[Any], table: VectorTable, row_id: str, embeddings: Embeddings
) -> None:
    """Make sure that ``embeddings`` made the vectors of a foreign table, by making one of them again.

    Raises ``InputError`` when they did not, and what the embeddings raise.
    """
    with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(_SAMPLE.format(**_parts(table)), {"ids": [row_id]}).fetchone()
    if row is None or row[1] is None:
        raise InputError(f"{table.name} does not hold the row {row_id[:100]} any more")
    stored = [float(number) for number in row[1].strip("[]").split(",")]
    made = embeddings.embed_documents([row[0] or ""])[0]
    cosine = _cosine(stored, made)
    if cosine < SAME_MODEL:
        detail = (
            f"{len(stored)} dimensions against {len(made)}" if math.isnan(cosine) else f"cosine {cosine:.3f}"
        )
        raise InputError(
            f"the vectors of {table.name} were not made by the embedding model {name_of(embeddings)} "
            f"({detail}): name the right one with the setting `embeddings`"
        )


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    if len(left) != len(right):
        return math.nan
    length = math.hypot(*left) * math.hypot(*right)
    return sum(a * b for a, b in zip(left, right, strict=True)) / length if length else math.nan


def _vector_text(vector: Sequence[float], table: VectorTable) -> str:
    values = [float(value) for value in vector]
    length = math.hypot(*values)
    if not math.isfinite(length) or length == 0.0:
        raise ModelError(
            "the embedding model returned NaN, infinity or zero: check its weights and precision"
        )
    if table.is_cosine:  # which does not see the length, and half precision cannot hold every length
        values = [value / length for value in values]
    return "[" + ",".join(format(value, ".8g") for value in values) + "]"


def _parts(table: VectorTable) -> dict[str, sql.Composable]:
    return {
        "id": identifier(table.id_column),
        "id_type": sql.SQL(table.id_type),  # from PostgreSQL's own catalogue
        "text": identifier(table.text_column),
        "group": sql.SQL("NULL") if table.group_column is None else identifier(table.group_column),
        "vector": table.vector,
        "type": sql.SQL(table.vector_type),
        "operator": sql.SQL(table.operator),
        "relation": table.relation,
    }
