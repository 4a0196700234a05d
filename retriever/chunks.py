"""The document and chunk store: afterwards PostgreSQL holds exactly the drafts, however often written.

A chunk whose text did not change keeps its row id, because recorded traces point at row ids; a document is
replaced in one transaction, so a search sees the old one or the new one, never half of each.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.rows import tuple_row

from ragblame.errors import InputError
from ragblame.retriever.drafts import FILE_KEY, ChunkDraft, DocumentDraft
from ragblame.retriever.embedding_models import EmbeddingModel, VectorText, storage_error
from ragblame.traces import new_trace_id as new_id  # a version 7 UUID, as everywhere

SOURCE_TABLE: Final = "ragblame.chunk"  # what a trace's chunk names as the home of its row

_COMPARE = """
SELECT a.source, d.id, coalesce(d.sha256 = a.sha256 AND d.title = a.title AND d.metadata = a.metadata::jsonb
    AND NOT EXISTS (SELECT FROM ragblame.chunk c WHERE c.document_id = d.id AND c.model_id <> %s), false)
FROM unnest(%s::text[], %s::bytea[], %s::text[], %s::text[]) AS a (source, sha256, title, metadata)
LEFT JOIN ragblame.document d ON d.source = a.source
"""
# The empty digest equals no draft's: the row counts as changed until its chunks are there.
_INSERT_DOCUMENT = """
INSERT INTO ragblame.document (id, source, title, sha256)
SELECT id, source, '', '' FROM unnest(%s::uuid[], %s::text[]) AS a (id, source)
ON CONFLICT (source) DO NOTHING
"""
_LOCK_DOCUMENTS = "SELECT id FROM ragblame.document WHERE source = ANY(%s::text[]) ORDER BY source FOR UPDATE"
_READ_CHUNKS = """
SELECT document_id, id, position, sha256(convert_to(text, 'UTF8')), model_id,
    coalesce(metadata ->> 'heading', '')
FROM ragblame.chunk WHERE document_id = ANY(%s::uuid[]) ORDER BY document_id, position
"""
_DELETE_CHUNKS = "DELETE FROM ragblame.chunk WHERE id = ANY(%s::uuid[])"
# Positions are unique within a document at every moment, so those that move step aside first.
_PARK_CHUNKS = "UPDATE ragblame.chunk SET position = -1 - position WHERE id = ANY(%s::uuid[])"
_PLACE_CHUNK = """
UPDATE ragblame.chunk SET position = %s, metadata = %s::jsonb WHERE id = %s
AND (position, metadata) IS DISTINCT FROM (%s, %s::jsonb)
"""
_EMBED_CHUNK = "UPDATE ragblame.chunk SET model_id = %s, embedding = %s::halfvec WHERE id = %s"
_INSERT_CHUNK = """
INSERT INTO ragblame.chunk (id, document_id, position, text, model_id, embedding, metadata)
VALUES (%s, %s, %s, %s, %s, %s::halfvec, %s::jsonb)
"""
_FLUSH_GIN = """
SELECT gin_clean_pending_list(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am a ON a.oid = c.relam WHERE i.indrelid = 'ragblame.chunk'::regclass AND a.amname = 'gin'
"""
_FINISH_DOCUMENT = """
UPDATE ragblame.document SET title = %s, sha256 = %s, metadata = %s::jsonb, updated_at = now() WHERE id = %s
"""

# A folder named "." holds every relative name that does not climb out of it.
_READ_FROM = """
SELECT d.source, file.name FROM ragblame.document d, LATERAL (SELECT d.metadata ->> %(key)s AS name) file
WHERE d.metadata ? %(key)s AND EXISTS (SELECT FROM unnest(%(roots)s::text[]) AS root
    WHERE file.name = root OR starts_with(file.name, rtrim(root, '/') || '/')
    OR (root = '.' AND NOT starts_with(file.name, '/') AND NOT starts_with(file.name, '../')))
ORDER BY d.source
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What ``write_documents`` did."""

    documents: int = 0  # new or changed, and now stored
    chunks: int = 0  # of those documents, rows kept included
    unchanged: int = 0
    lacking: tuple[DocumentDraft, ...] = ()  # not written: rows we meant to keep vanished meanwhile


def changed_documents(
    conn: psycopg.Connection[Any], drafts: Sequence[DocumentDraft], model: EmbeddingModel
) -> list[DocumentDraft]:
    """Those of ``drafts`` that do not stand in the store exactly so, embedded by ``model``; order kept."""
    try:
        with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
            same = {source for source, _, is_same in _compare(cursor, drafts, model) if is_same}
    except psycopg.Error as error:
        raise storage_error(conn, error) from error
    return [draft for draft in drafts if draft.source not in same]


def texts_to_embed(
    conn: psycopg.Connection[Any], drafts: Sequence[DocumentDraft], model: EmbeddingModel
) -> list[str]:
    """The distinct texts of ``drafts`` whose vectors the store lacks, in order of appearance."""
    try:
        with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
            ids = {source: id for source, id, _ in _compare(cursor, drafts, model) if id is not None}
            stored = _read_chunks(cursor, list(ids.values()))
    except psycopg.Error as error:
        raise storage_error(conn, error) from error
    plans = [_plan(draft, stored.get(ids.get(draft.source, UUID(int=0)), []), model) for draft in drafts]
    return list(dict.fromkeys(chunk.embedded_text for plan in plans for chunk in plan.to_embed))


def write_documents(
    conn: psycopg.Connection[Any],
    drafts: Sequence[DocumentDraft],
    model: EmbeddingModel,
    vectors: Mapping[str, VectorText],
) -> Written:
    """Make the store hold ``drafts``; ``vectors`` maps ``ChunkDraft.embedded_text`` to its ``vector_text``.

    One transaction (the caller's, if it has one open). Concurrent writers of the same document wait for each
    other, and the later one finds it unchanged. A draft that needs a vector which is not in ``vectors`` comes
    back in ``lacking``, untouched: embed ``texts_to_embed`` again and retry.
    Raises ``InputError`` for two drafts of one source, ``DatabaseError`` when PostgreSQL fails; then
    nothing is written.
    """
    if len({draft.source for draft in drafts}) < len(drafts):
        raise InputError("two documents share a source: give each its own")
    sources = sorted(draft.source for draft in drafts)  # one order for all writers: nobody deadlocks
    try:
        with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(_INSERT_DOCUMENT, ([new_id() for _ in sources], sources))
            cursor.execute(_LOCK_DOCUMENTS, (sources,))
            states = {source: (id, is_same) for source, id, is_same in _compare(cursor, drafts, model)}
            changed = [draft for draft in drafts if not states[draft.source][1]]
            stored = _read_chunks(cursor, [states[draft.source][0] for draft in changed])
            lacking: list[DocumentDraft] = []
            written = chunks = 0
            for draft in changed:
                id = states[draft.source][0]
                if id is None:  # removed between our insert, which found it, and our lock
                    lacking.append(draft)
                    continue
                plan = _plan(draft, stored.get(id, []), model)
                if any(chunk.embedded_text not in vectors for chunk in plan.to_embed):
                    lacking.append(draft)
                    continue
                _replace(cursor, id, draft, plan, model, vectors)
                written += 1
                chunks += len(draft.chunks)
    except psycopg.Error as error:
        raise storage_error(conn, error) from error
    return Written(
        documents=written, chunks=chunks, unchanged=len(drafts) - len(changed), lacking=tuple(lacking)
    )


def documents_read_from(conn: psycopg.Connection[Any], roots: Sequence[str]) -> list[tuple[str, str]]:
    """(source, file name) of the documents whose file is one of ``roots`` or lies under one."""
    try:
        with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(_READ_FROM, {"key": FILE_KEY, "roots": list(roots)})
            return [(source, file) for source, file in cursor]
    except psycopg.Error as error:
        raise storage_error(conn, error) from error


def settle(conn: psycopg.Connection[Any]) -> None:
    """Make a large write searchable at full speed now: autovacuum would, a minute or more later.

    New rows wait in an unsorted list of each GIN index, and the planner knows nothing of them yet. A role
    that does not own the table leaves both to autovacuum.
    """
    try:
        with conn.transaction():
            conn.execute(_FLUSH_GIN)
            conn.execute("ANALYZE ragblame.chunk")
    except psycopg.errors.InsufficientPrivilege:
        return
    except psycopg.Error as error:
        raise storage_error(conn, error) from error


def remove_documents(conn: psycopg.Connection[Any], sources: Sequence[str]) -> int:
    """Delete the documents under ``sources`` with their chunks; returns how many there were."""
    try:
        with conn.transaction(), conn.cursor() as cursor:
            cursor.execute(_LOCK_DOCUMENTS, (sorted(sources),))
            cursor.execute("DELETE FROM ragblame.document WHERE source = ANY(%s::text[])", (list(sources),))
            return cursor.rowcount
    except psycopg.Error as error:
        raise storage_error(conn, error) from error


@dataclass(frozen=True, slots=True)
class _Stored:
    """A chunk row as it stands."""

    id: UUID
    position: int
    model_id: int
    heading: str


@dataclass(frozen=True, slots=True)
class _Plan:
    """What becomes of a document's rows."""

    kept: tuple[_Stored | None, ...]  # per draft chunk: the row that keeps its id; None: a new row
    to_embed: tuple[ChunkDraft, ...]  # new rows, and rows whose heading or model changed
    surplus: tuple[UUID, ...]  # rows to delete


def _compare(
    cursor: psycopg.Cursor[tuple[Any, ...]], drafts: Sequence[DocumentDraft], model: EmbeddingModel
) -> list[tuple[Any, ...]]:
    """(source, document id or None, is the same) for each draft."""
    columns = (
        [draft.source for draft in drafts],
        [draft.sha256 for draft in drafts],
        [draft.title for draft in drafts],
        [draft.document_metadata() for draft in drafts],
    )
    return cursor.execute(_COMPARE, (model.id, *columns)).fetchall()


def _read_chunks(
    cursor: psycopg.Cursor[tuple[Any, ...]], ids: list[UUID]
) -> dict[UUID, list[tuple[bytes, _Stored]]]:
    stored: dict[UUID, list[tuple[bytes, _Stored]]] = defaultdict(list)
    for document, id, position, digest, model_id, heading in cursor.execute(_READ_CHUNKS, (ids,)):
        stored[document].append((bytes(digest), _Stored(id, position, model_id, heading)))
    return stored


def _plan(draft: DocumentDraft, stored: list[tuple[bytes, _Stored]], model: EmbeddingModel) -> _Plan:
    """Pair equal texts in order of position; among repeats of one text, a row of the same heading first."""
    pool: dict[bytes, list[_Stored]] = defaultdict(list)
    for digest, found in stored:
        pool[digest].append(found)
    kept: list[_Stored | None] = []
    to_embed: list[ChunkDraft] = []
    for chunk in draft.chunks:
        rows = pool.get(hashlib.sha256(chunk.text.encode()).digest())
        same = next((i for i, other in enumerate(rows or ()) if other.heading == chunk.heading), 0)
        row = rows.pop(same) if rows else None
        kept.append(row)
        if row is None or row.model_id != model.id or row.heading != chunk.heading:
            to_embed.append(chunk)
    surplus = tuple(left.id for rest in pool.values() for left in rest)
    return _Plan(tuple(kept), tuple(to_embed), surplus)


def _replace(
    cursor: psycopg.Cursor[tuple[Any, ...]],
    document: UUID,
    draft: DocumentDraft,
    plan: _Plan,
    model: EmbeddingModel,
    vectors: Mapping[str, VectorText],
) -> None:
    """Make the rows of ``document`` those of ``draft``."""
    if plan.surplus:
        cursor.execute(_DELETE_CHUNKS, (list(plan.surplus),))
    rows = list(zip(draft.chunks, plan.kept, strict=True))
    moved = [row.id for position, (_, row) in enumerate(rows) if row is not None and row.position != position]
    if moved:
        cursor.execute(_PARK_CHUNKS, (moved,))
    placed, embedded, new = [], [], []
    for position, (chunk, row) in enumerate(rows):
        metadata = draft.chunk_metadata(chunk)
        if row is None:
            vector = vectors[chunk.embedded_text]
            new.append((new_id(), document, position, chunk.text, model.id, vector, metadata))
            continue
        placed.append((position, metadata, row.id, position, metadata))
        if row.model_id != model.id or row.heading != chunk.heading:
            embedded.append((model.id, vectors[chunk.embedded_text], row.id))
    if placed:
        cursor.executemany(_PLACE_CHUNK, placed)
    if embedded:
        cursor.executemany(_EMBED_CHUNK, embedded)
    if new:
        cursor.executemany(_INSERT_CHUNK, new)
    cursor.execute(_FINISH_DOCUMENT, (draft.title, draft.sha256, draft.document_metadata(), document))
