"""Which columns of a table hold row ids, texts and vectors: distances can be asked of foreign tables too.

Our own ``ragblame.chunk``, the tables of langchain-postgres (``PGVectorStore`` and the older ``PGVector``)
and others of that form are read; nothing is guessed where a table could be meant in two ways.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from ragblame.errors import InputError
from ragblame.retriever.chunks import SOURCE_TABLE
from ragblame.retriever.distances import METRICS, USUAL, made_for
from ragblame.retriever.sql_names import identifier

_COLUMNS = """
SELECT n.nspname, c.relname, a.attname, t.typname, format_type(a.atttypid, a.atttypmod),
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary
        AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
WHERE c.oid = to_regclass(%s) AND c.relkind IN ('r', 'p', 'm')
ORDER BY a.attnum
"""
_OPERATOR_CLASSES = """
SELECT DISTINCT o.opcname FROM pg_index i JOIN pg_opclass o ON o.oid = ANY (i.indclass)
WHERE i.indrelid = to_regclass(%s)
"""
_INTEGER_BITS: Final[Mapping[str, int]] = {"smallint": 16, "integer": 32, "bigint": 64}
_ID_NAMES: Final = ("langchain_id",)
_TEXT_NAMES: Final = ("content", "document", "page_content", "text")
_GROUP_NAMES: Final = ("collection_id",)  # PGVector keeps all collections in one table


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorTable:
    """A table whose rows have an id, a text and a vector."""

    name: str  # with its schema, as people write it
    relation: sql.Identifier
    id_column: str
    id_type: str  # as PostgreSQL writes it
    text_column: str
    vector: sql.Composable  # the vectors, as an expression over the relation's columns
    vector_type: str  # as PostgreSQL writes it, with the dimensions if it has any
    operator: str  # pgvector's, of the distance
    metric: str  # its name
    group_column: str | None  # rows are compared within one value of it

    @property
    def is_ours(self) -> bool:
        """Whether its rows name the embedding model."""
        return self.name == SOURCE_TABLE

    @property
    def is_cosine(self) -> bool:
        """Whether the distance is the cosine one."""
        return self.operator == METRICS["cosine"][0]

    def may_hold(self, row_id: str) -> bool:
        """Whether a text can be a row id of this table: one that cannot would fail the whole question."""
        try:
            if self.id_type == "uuid":
                UUID(row_id)
            elif self.id_type in _INTEGER_BITS:
                return int(row_id).bit_length() < _INTEGER_BITS[self.id_type]
        except ValueError:
            return False
        return True


def find_vector_table(conn: psycopg.Connection[Any], name: str) -> VectorTable:
    """Read how the table ``name`` ("public.runbooks") is made.

    Raises ``InputError`` saying why its distances cannot be asked, ``psycopg.Error`` when PostgreSQL fails.
    """
    try:
        with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
            columns = cursor.execute(_COLUMNS, (name,)).fetchall()
            classes = [row[0] for row in cursor.execute(_OPERATOR_CLASSES, (name,)).fetchall()]
    except (psycopg.errors.SyntaxErrorOrAccessRuleViolation, psycopg.DataError) as error:
        raise InputError(f"{name[:100]!r} is not the name of a table") from error
    if not columns:
        raise InputError(f"there is no table {name[:100]} in ragblame's database")
    shown = f"{columns[0][0]}.{columns[0][1]}"
    vectors = [(row[2], row[4]) for row in columns if row[3] in ("vector", "halfvec")]
    if len(vectors) != 1:
        raise InputError(f"{shown} has {len(vectors)} vector columns, and only one can be meant")
    ids = {row[2]: row[4] for row in columns if row[2] in _ID_NAMES} or {
        row[2]: row[4] for row in columns if row[5]
    }
    text = _first(_TEXT_NAMES, [row[2] for row in columns])
    if len(ids) != 1 or text is None:
        lacks = (
            "a primary key of one column" if len(ids) != 1 else f"a text column ({', '.join(_TEXT_NAMES)})"
        )
        raise InputError(f"{shown} lacks {lacks}")
    [(id_column, id_type)] = ids.items()
    distances = made_for(classes)
    if len(distances) > 1:
        raise InputError(f"{shown} has vector indexes for several distances, and only one was searched by")
    operator, metric = METRICS[distances[0] if distances else USUAL]
    return VectorTable(
        name=shown,
        relation=identifier(columns[0][0], columns[0][1]),
        id_column=id_column,
        id_type=id_type,
        text_column=text,
        vector=identifier(vectors[0][0]),
        vector_type=vectors[0][1],
        operator=operator,
        metric=metric,
        group_column="model_id"
        if shown == SOURCE_TABLE
        else _first(_GROUP_NAMES, [row[2] for row in columns]),
    )


def _first(wanted: Sequence[str], present: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in present), None)
