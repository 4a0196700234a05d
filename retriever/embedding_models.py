"""Which embedding model made a chunk's vector: its number, its dimensions and its HNSW index, created once.

Vectors of different models have different lengths and are not comparable, so every chunk names its model and
every model has a partial expression index of its own (the layout pgvector's documentation advises for mixed
dimensions). Vectors travel as text (`[0.1,0.2]`, cast by the server), so no adapter package is needed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString, NewType

import psycopg
from langchain_core.embeddings import Embeddings
from psycopg import sql
from psycopg.rows import tuple_row

from ragblame.database_errors import explain
from ragblame.errors import DatabaseError, InputError, ModelError
from ragblame.json_values import clean_identity

MAX_DIMENSIONS: Final = 4_000  # what an HNSW index over halfvec can hold
LOCK_SPACE: Final = 0x72_62_65_6D  # first key of our advisory locks for models: "rbem"

VectorText = NewType("VectorText", str)  # a checked vector as pgvector reads it, made by ``vector_text``


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingModel:
    """A registered embedding model."""

    id: int  # ragblame.embedding_model.id, > 0
    name: str
    dimensions: int  # [1, 4000]

    @property
    def index_name(self) -> str:
        """Name of the model's HNSW index in schema ragblame."""
        return f"chunk_embedding_{self.id}_hnsw"

    @property
    def halfvec(self) -> sql.SQL:
        """The SQL type of its vectors, e.g. ``halfvec(384)``; a typmod cannot be a parameter."""
        return sql.SQL(f"halfvec({int(self.dimensions)})")


def name_of(embeddings: Embeddings) -> str:
    """The name to register ``embeddings`` under: its ``model_name`` or ``model``, else its class.

    LangChain's interface has no name; its integrations use one of the two attributes.
    """
    for attribute in ("model_name", "model"):
        value = getattr(embeddings, attribute, None)
        if isinstance(value, str) and value.strip():
            return clean_identity(value)
    return clean_identity(f"{type(embeddings).__module__}.{type(embeddings).__qualname__}")


def find_model(conn: psycopg.Connection[Any], name: str) -> EmbeddingModel | None:
    """The model registered under ``name``, or None. Raises ``DatabaseError``."""
    try:
        with conn.transaction():  # a bare SELECT would leave a transaction open
            return _find(conn, clean_identity(name))
    except psycopg.Error as error:
        raise storage_error(conn, error) from error


def register_model(conn: psycopg.Connection[Any], name: str, dimensions: int) -> EmbeddingModel:
    """The model under ``name``, registered and indexed if it was not; safe when many processes race.

    Runs in the caller's transaction, else in one of its own. The index is built while the model has no chunk
    yet, so creating it costs one scan of the table at most.
    Raises ``InputError`` when the name is registered with other dimensions, or when there are none or too
    many; ``DatabaseError`` when PostgreSQL refuses.
    """
    name = clean_identity(name)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise InputError(
            f"embedding model {name} makes vectors of {dimensions} dimensions, an HNSW index holds 1 to "
            f"{MAX_DIMENSIONS}: choose a model (or its shortened output) within that"
        )
    try:
        with conn.transaction():
            model = _find(conn, name)
            if model is None or not _has_index(conn, model):
                # One waits for the other here, and then finds the work done. A plain INSERT … ON CONFLICT
                # would burn one of 32 767 smallint numbers on every run.
                conn.execute("SELECT pg_advisory_xact_lock(%s::int, hashtext(%s))", (LOCK_SPACE, name))
                model = _find(conn, name) or _insert_model(conn, name, dimensions)
                _require_dimensions(model, dimensions)
                conn.execute(_index_statement(model))
    except psycopg.Error as error:
        raise storage_error(conn, error) from error
    _require_dimensions(model, dimensions)
    return model


def vector_text(vector: Sequence[float], model: EmbeddingModel) -> VectorText:
    """``vector`` as pgvector reads it, scaled to unit length.

    Cosine distance does not see the length, and at unit length half precision (11 bits, largest 65 504) can
    neither overflow nor lose a whole vector to zero.
    Raises ``ModelError`` for a wrong number of dimensions, NaN, infinity, or a zero vector.
    """
    if len(vector) != model.dimensions:
        raise ModelError(
            f"embedding model {model.name} returned {len(vector)} dimensions, {model.dimensions} are "
            f"registered: use the model the corpus was ingested with, or ingest under another model name"
        )
    values = [float(value) for value in vector]
    length = math.hypot(*values)
    if not math.isfinite(length):
        raise ModelError(
            f"embedding model {model.name} returned NaN or infinity: such a vector has no neighbours; check "
            f"the model's weights and precision"
        )
    if length == 0.0:
        raise ModelError(
            f"embedding model {model.name} returned a zero vector: it has no direction, so no cosine "
            f"distance; check the model, or leave the text out"
        )
    return VectorText("[" + ",".join(format(value / length, ".8g") for value in values) + "]")


def has_direction(vector: Sequence[float]) -> bool:
    """Whether a vector can be compared by cosine: all finite, not all zero."""
    length = math.hypot(*vector)
    return math.isfinite(length) and length > 0.0


def storage_error(
    conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], error: psycopg.Error
) -> DatabaseError:
    """A driver's failure as one line that names the server and ends with the next step."""
    try:
        return explain(error, conn.info.dsn)
    except psycopg.Error:  # a lost connection no longer knows where it led
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return DatabaseError(f"the connection to PostgreSQL was lost ({line}): run `ragblame doctor`")


def _find(conn: psycopg.Connection[Any], name: str) -> EmbeddingModel | None:
    row = _one(conn, "SELECT id, dimensions FROM ragblame.embedding_model WHERE name = %s", name)
    return None if row is None else EmbeddingModel(id=row[0], name=name, dimensions=row[1])


def _insert_model(conn: psycopg.Connection[Any], name: str, dimensions: int) -> EmbeddingModel:
    statement = "INSERT INTO ragblame.embedding_model (name, dimensions) VALUES (%s, %s) RETURNING id"
    row = _one(conn, statement, name, dimensions)
    assert row is not None  # RETURNING of one inserted row
    return EmbeddingModel(id=row[0], name=name, dimensions=dimensions)


def _one(conn: psycopg.Connection[Any], statement: LiteralString, *values: object) -> tuple[Any, ...] | None:
    """First row as a tuple, whatever row factory the caller's connection has."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(statement, values).fetchone()


def _require_dimensions(model: EmbeddingModel, dimensions: int) -> None:
    if model.dimensions != dimensions:
        raise InputError(
            f"embedding model {model.name} is registered with {model.dimensions} dimensions, these "
            f"embeddings have {dimensions}: use the model the corpus was ingested with, or another model name"
        )


def _has_index(conn: psycopg.Connection[Any], model: EmbeddingModel) -> bool:
    row = _one(conn, "SELECT to_regclass(%s) IS NOT NULL", f"ragblame.{model.index_name}")
    return row is not None and bool(row[0])


def _index_statement(model: EmbeddingModel) -> sql.Composed:
    return sql.SQL(
        "CREATE INDEX IF NOT EXISTS {name} ON ragblame.chunk "
        "USING hnsw ((embedding::{type}) halfvec_cosine_ops) WHERE model_id = {id}"
    ).format(name=sql.Identifier(model.index_name), type=model.halfvec, id=sql.Literal(model.id))
