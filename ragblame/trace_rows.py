"""How a batch of new traces becomes rows: looked up, then COPY, in the caller's transaction.

Exactly once needs no ``ON CONFLICT`` for what is nearly always new: the ids that are stored already are asked
for first, the rest is copied, and the primary key refuses what another writer stored in between. The texts of
chunks are the opposite, mostly known: only those that the server does not have are sent at all.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from ragblame.json_values import json_bytes
from ragblame.records import Trace

if TYPE_CHECKING:
    import psycopg

QUEUE: Final = "attribution"
TASK: Final = "attribute"

# Parameters in binary (%b): an array of texts would otherwise be quoted and escaped on both sides.
_KNOWN_TRACES = "SELECT id FROM ragblame.trace WHERE id = ANY(%b)"
_KNOWN_TEXTS = "SELECT sha256 FROM ragblame.chunk_text WHERE sha256 = ANY(%b)"
_INSERT_TEXTS = """
INSERT INTO ragblame.chunk_text (sha256, text) SELECT * FROM unnest(%b::bytea[], %b::text[])
ON CONFLICT DO NOTHING
"""
_COPY_TRACES = """
COPY ragblame.trace (id, app, question, query, prompt, answer, generated, model, provider, status, error,
    started_at, duration_ms, session_id, root_run_id, origin, partial_tree, tags, metadata, truncated)
FROM STDIN
"""
_COPY_CHUNKS = """
COPY ragblame.trace_chunk (trace_id, position, sha256, source_table, source_id, rank, score, score_name,
    retriever_run, truncated_from, metadata)
FROM STDIN
"""
# procrastinate's own function, called as text: a capturing process never imports procrastinate (0.4 s).
# Fields: queue, task, priority, lock, queueing_lock, args, scheduled_at. tests/test_traces.py pins the name.
_DEFER = f"""
SELECT procrastinate_defer_jobs_v1(array_agg(
    ROW('{QUEUE}', '{TASK}', 0, NULL, '{TASK}-' || id, jsonb_build_object('trace_id', id::text), NULL)
    ::procrastinate_job_to_defer_v1 ORDER BY id)) FROM unnest(%s::uuid[]) AS id
"""


def insert_new(
    conn: "psycopg.Connection[Any]",
    traces: Sequence[Trace],
    *,
    enqueue: bool,
    between: Callable[[], object],
) -> int:
    """Insert those of the cleaned ``traces`` that are not stored, in order of their ids; returns how many.

    ``between`` is called between two traces. Raises whatever psycopg raises, ``UniqueViolation`` when another
    writer stored one in between; the caller rolls back then.
    """
    from psycopg.rows import tuple_row

    wanted = {trace.id: trace for trace in traces}
    with conn.cursor(row_factory=tuple_row) as cursor:
        known = {row[0] for row in cursor.execute(_KNOWN_TRACES, (list(wanted),))}
        # Sorted: two writers that meet over the same ids or texts wait for each other, not in a circle.
        new = sorted((wanted[trace_id] for trace_id in wanted.keys() - known), key=lambda trace: trace.id)
        if new:
            with cursor.copy(_COPY_TRACES) as copy:
                for trace in new:
                    copy.write_row(_trace_row(trace))
                    between()
            _insert_chunks(cursor, new, between)
            if enqueue:
                _defer_jobs(conn, [trace.id for trace in new])
    return len(new)


def _insert_chunks(
    cursor: "psycopg.Cursor[Any]", traces: Sequence[Trace], between: Callable[[], object]
) -> None:
    digests: dict[str, bytes] = {}  # popular chunks come back within a batch: each is hashed once
    for trace in traces:
        between()
        for chunk in trace.chunks:
            if chunk.text not in digests:
                digests[chunk.text] = hashlib.sha256(chunk.text.encode()).digest()
    if not digests:
        return
    texts = {digest: text for text, digest in digests.items()}
    missing = set(texts).difference(row[0] for row in cursor.execute(_KNOWN_TEXTS, (list(texts),)))
    if missing:
        ordered = sorted(missing)
        cursor.execute(_INSERT_TEXTS, (ordered, [texts[digest] for digest in ordered]))
    with cursor.copy(_COPY_CHUNKS) as copy:
        for trace in traces:
            between()
            for chunk in trace.chunks:
                copy.write_row(
                    (trace.id, chunk.position, digests[chunk.text], chunk.source_table, chunk.source_id,
                     chunk.rank, chunk.score, chunk.score_name, chunk.retriever_run, chunk.truncated_from,
                     _dumps(chunk.metadata))
                )  # fmt: skip


def _dumps(value: Any) -> str:
    return json_bytes(value).decode()


def _trace_row(trace: Trace) -> tuple[Any, ...]:
    prompt = [{"role": message.role, "text": message.text} for message in trace.prompt]
    return (
        trace.id, trace.app, trace.question, trace.query, _dumps(prompt), trace.answer, trace.generated,
        trace.model, trace.provider, trace.status.value, trace.error, trace.started_at, trace.duration_ms,
        trace.session_id, trace.root_run_id, trace.origin, trace.partial_tree, list(trace.tags),
        _dumps(trace.metadata), _dumps(trace.truncated),
    )  # fmt: skip


def _defer_jobs(conn: "psycopg.Connection[Any]", ids: Sequence[UUID]) -> None:
    from psycopg.errors import UniqueViolation

    try:
        with conn.transaction():  # a savepoint: a job that waits already must not abort the traces
            conn.execute(_DEFER, (list(ids),))
    except UniqueViolation:
        if len(ids) > 1:
            for trace_id in ids:
                _defer_jobs(conn, (trace_id,))
