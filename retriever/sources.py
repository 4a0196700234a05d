"""Which table is the corpus, and which of its columns mean what, as a configuration says.

Three forms are known by heart: our own corpus and the tables of langchain-postgres. Whether a table is as
its configuration says is found out by ``checked_sources.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from ragblame.errors import InputError

MAX_NAME: Final = 200  # code points quoted of a wrong name


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSource:
    """One table of the corpus, as a configuration names it. Names are checked by ``check_source``."""

    table: str
    schema: str = "public"
    id: str  # column whose values a trace's chunks carry as row ids
    text: str
    vector: str
    metadata: str | None = None  # json or jsonb column
    created_at: str | None = None  # timestamp column; without: the time in a version 7 UUID, or of the commit
    document: str | None = None  # a column, or "column.key" of a JSON column: what a chunk is a part of
    position: str | None = None  # the same: orders the chunks of a document
    search: str | None = None  # tsvector column; without, the text is parsed, which wants an index
    language: str = "english"  # text search configuration
    collection: str | None = None  # PGVector: the collection, by name
    model: str | None = None  # ragblame.chunk: the embedding model, by name
    distance: str | None = None  # of distances.METRICS; None: the indexes' own, else cosine
    # what the retriever's own session sets; None: as the server is configured
    ef_search: int | None = None  # [1, 1000]
    iterative_scan: str | None = None  # off, strict_order or relaxed_order
    probes: int | None = None  # ivfflat's, [1, 32768]

    @property
    def name(self) -> str:
        """The table with its schema, as a trace's chunks name it."""
        return f"{self.schema}.{self.table}"

    @property
    def is_ours(self) -> bool:
        """Whether it is the corpus that ``ragblame ingest`` keeps."""
        return self.name == "ragblame.chunk"


def our_corpus(model: str | None = None) -> CorpusSource:
    """The corpus of ``ragblame ingest``; ``model``: the embedding model, None: the probe's own."""
    return CorpusSource(
        schema="ragblame",
        table="chunk",
        id="id",
        text="text",
        vector="embedding",
        metadata="metadata",
        created_at="created_at",
        document="document_id",
        position="position",
        search="search",
        model=model,
        distance="cosine",
        ef_search=100,  # as retriever/search.py sets them
        iterative_scan="strict_order",
    )


def pgvector_collection(collection: str, *, schema: str = "public", **changes: Any) -> CorpusSource:
    """A collection of langchain-postgres' ``PGVector``; ``changes`` are fields of ``CorpusSource``."""
    known: dict[str, Any] = {
        "table": "langchain_pg_embedding",
        "schema": schema,
        "id": "id",
        "text": "document",
        "vector": "embedding",
        "metadata": "cmetadata",
        "document": "cmetadata.source",
        "position": "cmetadata.start_index",  # written by text splitters with add_start_index=True
        "collection": collection,
    }
    return source_from({**known, **changes})


def pgvector_store(table: str, *, schema: str = "public", **changes: Any) -> CorpusSource:
    """A table of langchain-postgres' ``PGVectorStore`` with its default columns, or others in ``changes``."""
    known: dict[str, Any] = {
        "table": table,
        "schema": schema,
        "id": "langchain_id",
        "text": "content",
        "vector": "embedding",
        "metadata": "langchain_metadata",
        "document": "langchain_metadata.source",
        "position": "langchain_metadata.start_index",
    }
    return source_from({**known, **changes})


def source_from(entries: Mapping[str, Any]) -> CorpusSource:
    """A source from a configuration's entries.

    ``kind`` = "ours", "PGVector" or "PGVectorStore" starts from that form, and the other entries change it.
    Raises ``InputError`` naming the entry that is unknown, missing or of another type.
    """
    given = dict(entries)
    kind = given.pop("kind", None)
    if kind == "ours":
        return our_corpus(given.get("model"))
    if kind == "PGVector":
        return pgvector_collection(**{"collection": "langchain", **given})
    if kind == "PGVectorStore":
        if not isinstance(given.get("table"), str):
            raise InputError("a corpus of kind PGVectorStore names its table: add `table`")
        return pgvector_store(**given)
    if kind is not None:
        raise InputError(f"a corpus of kind {kind!r} is not known: ours, PGVector, PGVectorStore, or none")
    known = {field.name: field for field in fields(CorpusSource)}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"a corpus has no entry {str(name)[:MAX_NAME]!r}: {', '.join(sorted(known))}")
        wanted = int if name in ("ef_search", "probes") else str
        is_missing = value is None and "None" in str(known[name].type)
        if not is_missing and (not isinstance(value, wanted) or isinstance(value, bool) or value == ""):
            raise InputError(f"the corpus entry {name} is no {wanted.__name__}: correct it")
    for name in ("table", "id", "text", "vector"):
        if name not in given:
            raise InputError(f"a corpus needs the entry {name}: add it")
    return CorpusSource(**given)
