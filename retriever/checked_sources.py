"""Whether the corpus' table is as its configuration says, looked up in PostgreSQL's own catalogue.

The probe asks foreign tables too, and their names come from a file that somebody edits. So no name becomes
SQL before the catalogue has it, letter for letter, in a role that may only have SELECT.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from ragblame.errors import InputError
from ragblame.retriever.distances import METRICS, USUAL, made_for
from ragblame.retriever.embedding_models import EmbeddingModel, find_model
from ragblame.retriever.sources import MAX_NAME, CorpusSource
from ragblame.retriever.sql_names import identifier, literal

_ITERATIVE: Final = ("off", "strict_order", "relaxed_order")
_COLLECTIONS: Final = "langchain_pg_collection"  # PGVector's second table, beside the first

_TABLE = """
SELECT c.oid, c.relkind, c.relrowsecurity, (SELECT sum(nullif(p.reltuples, -1))
    FROM pg_partition_tree(c.oid) t JOIN pg_class p ON p.oid = t.relid WHERE p.relkind <> 'p'), c.reltuples
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s::text AND c.relname = %s::text
"""
_COLUMNS = """
SELECT a.attname, t.typname, format_type(a.atttypid, a.atttypmod),
    has_column_privilege(a.attrelid, a.attnum, 'SELECT')
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
"""
_CLASSES_OF = """
SELECT DISTINCT o.opcname FROM pg_catalog.pg_index i JOIN pg_catalog.pg_opclass o ON o.oid = ANY (i.indclass)
WHERE i.indrelid = %s
"""
_EXTENSION = """
SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'vector'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSource:
    """A source whose every name the catalogue has: pieces of SQL that the probe's statements are made of."""

    source: CorpusSource
    relation: sql.Identifier
    id: sql.Identifier
    id_type: sql.SQL
    id_type_name: str  # as PostgreSQL writes it
    text: sql.Identifier
    vector: sql.Composable  # an expression over the relation's columns, the one its index is made on
    vector_type: sql.SQL
    dimensions: int | None  # None: the column does not tell
    operator: sql.SQL
    metric: str  # its name on a screen
    scope: sql.Composable  # a condition that every search carries
    metadata: sql.Composable | None  # as jsonb
    columns: Mapping[str, str]  # that a filter may name -> type; empty: a filter names metadata only
    created: sql.Composable | None  # a timestamptz
    created_from: str  # what it is read from; "" for nowhere
    document: sql.Composable | None  # a text
    position: sql.Composable | None  # something ordered
    words: sql.Composable  # a tsvector
    language: sql.Composable  # a regconfig
    extension_schema: str  # where pgvector lives
    rows: int | None  # estimate; None: never analysed
    is_row_secured: bool  # row security: the role may see a part of the rows only
    model: EmbeddingModel | None  # of our own corpus


def check_source(conn: psycopg.Connection[Any], source: CorpusSource) -> CheckedSource:
    """Look every name up in the catalogue.

    Raises ``InputError`` for a name that is not there, a column of another type, or a missing right, and
    ``psycopg.Error`` when PostgreSQL fails.
    """
    with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
        extension = cursor.execute(_EXTENSION).fetchone()
        if extension is None:
            raise InputError(
                "this database has no pgvector: run `CREATE EXTENSION vector` in the corpus' one"
            )
        table = cursor.execute(_TABLE, (_name(source.schema), _name(source.table))).fetchone()
        if table is None:
            raise InputError(
                f"there is no table {source.name[:MAX_NAME]!r} (or no right to see it): names are taken "
                "letter for letter, with the schema apart"
            )
        oid, kind, is_row_secured, in_parts, in_table = table
        if kind not in ("r", "p", "m"):
            raise InputError(f"{source.name} is no table: name the table behind it")
        found = {row[0]: row[1:] for row in cursor.execute(_COLUMNS, (oid,)).fetchall()}
        columns = _Columns(source.name, found)
        classes = [row[0] for row in cursor.execute(_CLASSES_OF, (oid,)).fetchall()]
        model = _model(conn, source) if source.is_ours else None
        scope, vector, vector_type = _scope(cursor, source, columns, model)
        language = cursor.execute(
            "SELECT n.nspname, c.cfgname FROM pg_catalog.pg_ts_config c "
            "JOIN pg_catalog.pg_namespace n ON n.oid = c.cfgnamespace WHERE c.cfgname = %s::text",
            (_name(source.language),),
        ).fetchone()
        if language is None:
            raise InputError(f"there is no text search configuration {source.language[:MAX_NAME]!r}")
        commits = cursor.execute("SELECT current_setting('track_commit_timestamp')").fetchone()
        rights = cursor.execute("SELECT has_schema_privilege(%s, 'USAGE')", (source.schema,)).fetchone()
    if rights is None or not rights[0]:
        raise InputError(f"the role may not use the schema: GRANT USAGE ON SCHEMA {source.schema} TO it")
    id_column = columns.get(source.id, "id")
    text = columns.get(source.text, "text", ("text", "varchar", "bpchar", "citext"))
    language_name = literal(f"{_quoted(language[0])}.{_quoted(language[1])}") + sql.SQL("::regconfig")
    created, created_from = _created(source, columns, kind, commits is not None and commits[0] == "on")
    operator, metric = METRICS[_distance(source, classes)]
    _check_settings(source)
    estimate = in_parts if kind == "p" else (None if in_table < 0 else in_table)
    return CheckedSource(
        source=source,
        relation=identifier(source.schema, source.table),
        id=id_column,
        id_type=_type(found[source.id][1]),
        id_type_name=found[source.id][1],
        text=text,
        vector=vector,
        vector_type=_type(vector_type),
        dimensions=_dimensions(vector_type),
        operator=sql.SQL(operator),  # one of METRICS
        metric=metric,
        scope=scope,
        metadata=None if source.metadata is None else columns.json(source.metadata, "metadata"),
        columns=_filterable(source, found),
        created=created,
        created_from=created_from,
        document=columns.place(source.document, "document"),
        position=columns.place(source.position, "position", is_number=True),
        words=columns.get(source.search, "search", ("tsvector",))
        if source.search is not None
        else sql.SQL("to_tsvector({}, {})").format(language_name, text),
        language=language_name,
        extension_schema=extension[0],
        rows=None if estimate is None else int(estimate),
        is_row_secured=is_row_secured,
        model=model,
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns that the table has, as identifiers."""

    table: str
    found: Mapping[str, tuple[str, str, bool]]  # name -> type name, type as written, readable

    def get(self, name: str, entry: str, types: tuple[str, ...] = ()) -> sql.Identifier:
        if name not in self.found:
            raise InputError(f"{self.table} has no column {name[:MAX_NAME]!r}: correct the entry {entry}")
        kind, written, is_readable = self.found[name]
        if types and kind not in types:
            raise InputError(f"column {name} of {self.table} is {written}, and {entry} needs {types[0]}")
        if not is_readable:
            raise InputError(
                f"the role may not read column {name} of {self.table}: GRANT SELECT ON it to the role"
            )
        return identifier(name)

    def json(self, name: str, entry: str) -> sql.Composable:
        column = self.get(name, entry, ("jsonb", "json"))
        return sql.SQL("{}::jsonb").format(column) if self.found[name][0] == "json" else column

    def place(self, name: str | None, entry: str, *, is_number: bool = False) -> sql.Composable | None:
        """A column as it is, or one key of a JSON column."""
        if name is None:
            return None
        head, dot, key = name.partition(".")
        if name in self.found or not dot:
            column = self.get(name, entry)
            return column if is_number else sql.SQL("{}::text").format(column)
        parts = {"json": self.json(head, entry), "key": literal(key)}
        if is_number:
            return sql.SQL(
                "CASE jsonb_typeof({json} -> {key}) WHEN 'number' THEN ({json} ->> {key})::numeric END"
            ).format(**parts)
        return sql.SQL("({json} ->> {key})").format(**parts)


def _model(conn: psycopg.Connection[Any], source: CorpusSource) -> EmbeddingModel:
    model = None if source.model is None else find_model(conn, source.model)
    if model is None:
        raise InputError(
            f"nothing is ingested under the embedding model {source.model}: run `ragblame ingest PATH`, or "
            "name the model that the corpus was ingested with"
        )
    return model


def _scope(
    cursor: psycopg.Cursor[tuple[Any, ...]],
    source: CorpusSource,
    columns: _Columns,
    model: EmbeddingModel | None,
) -> tuple[sql.Composable, sql.Composable, str]:
    """The condition on every search, the vector's expression, and its type."""
    vector: sql.Composable = columns.get(source.vector, "vector", ("vector", "halfvec"))
    vector_type = columns.found[source.vector][1]
    if model is not None:
        scope = sql.SQL("model_id = {}").format(sql.Literal(model.id))  # of its partial index
        cast = sql.SQL("{}::{}").format(vector, model.halfvec)
        return scope, sql.SQL("({})").format(cast), f"halfvec({model.dimensions})"
    if source.collection is None:
        return sql.SQL("true"), vector, vector_type
    group = columns.get("collection_id", "collection", ("uuid",))
    row = cursor.execute(
        sql.SQL("SELECT uuid FROM {} WHERE name = %s").format(identifier(source.schema, _COLLECTIONS)),
        (source.collection,),
    ).fetchone()
    if row is None:
        raise InputError(f"{source.schema}.{_COLLECTIONS} has no collection {source.collection[:MAX_NAME]!r}")
    return sql.SQL("{} = {}").format(group, sql.Literal(row[0])), vector, vector_type


def _created(
    source: CorpusSource, columns: _Columns, kind: str, has_commit_times: bool
) -> tuple[sql.Composable | None, str]:
    """When a row was made, as a timestamptz, and what says so."""
    if source.created_at is not None:
        column: sql.Composable = columns.get(source.created_at, "created_at", ("timestamptz", "timestamp"))
        is_utc = columns.found[source.created_at][0] == "timestamp"
        if is_utc:
            column = sql.SQL("({} AT TIME ZONE 'UTC')").format(column)
        # what Python's datetime cannot hold, infinity for one, counts as not known
        readable = sql.SQL("CASE WHEN {at} >= '0002-01-01Z' AND {at} < '9999-01-01Z' THEN {at} END")
        return readable.format(at=column), f"column {source.created_at}{', as UTC' if is_utc else ''}"
    if columns.found.get(source.id, ("",))[0] == "uuid" and not has_commit_times:
        return (
            sql.SQL(
                "CASE substr({id}::text, 15, 1) WHEN '7' THEN to_timestamp("
                "('x' || translate(left({id}::text, 13), '-', ''))::bit(48)::bigint / 1000.0) END"
            ).format(id=identifier(source.id)),
            "version 7 row ids",
        )
    if has_commit_times and kind != "m":
        return sql.SQL("pg_xact_commit_timestamp(xmin)"), "the last commit that wrote the row"
    return None, ""


def _distance(source: CorpusSource, classes: list[str]) -> str:
    if source.distance is not None:
        if source.distance not in METRICS:
            raise InputError(f"the corpus entry distance is one of {', '.join(METRICS)}")
        return source.distance
    found = made_for(classes)
    if len(found) > 1:
        raise InputError(
            f"{source.name} has vector indexes for several distances: say which one is searched by, with the "
            f"entry distance ({', '.join(found)})"
        )
    return found[0] if found else USUAL


def _check_settings(source: CorpusSource) -> None:
    for name, value, most in (("ef_search", source.ef_search, 1_000), ("probes", source.probes, 32_768)):
        if value is not None and not 1 <= value <= most:
            raise InputError(f"the corpus entry {name} is {value}: choose 1 to {most}")
    if source.iterative_scan is not None and source.iterative_scan not in _ITERATIVE:
        raise InputError(f"the corpus entry iterative_scan is one of {', '.join(_ITERATIVE)}")


def _filterable(source: CorpusSource, found: Mapping[str, tuple[str, str, bool]]) -> Mapping[str, str]:
    """Our own corpus and PGVector filter by metadata only; other tables have columns to filter by too."""
    if source.is_ours or source.collection is not None:
        return {}
    taken = {source.vector, source.text, source.search}
    return {name: kind for name, (kind, _, readable) in found.items() if readable and name not in taken}


def _dimensions(vector_type: str) -> int | None:
    _, _, rest = vector_type.partition("(")
    return int(rest[:-1]) if rest else None


def _name(name: str) -> str:
    """A name that PostgreSQL can be asked about: it refuses NUL, and lone surrogates cannot be sent."""
    if not isinstance(name, str) or "\0" in name or any("\ud800" <= sign <= "\udfff" for sign in name):
        raise InputError(f"{str(name)[:MAX_NAME]!r} is not a name")
    return name


def _type(written: str) -> sql.SQL:
    """A type as the catalogue writes it."""
    return sql.SQL(written.replace("%", "%%"))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
