"""How a batch of new traces becomes rows: one statement, so one round trip and one transaction.

Exactly once is the primary key's work: a trace that is stored already is passed over, and with it its chunks
and its job. Rows travel as JSON: making it costs the host a fraction of what a COPY's rows and round trips
do, and the server no more. The texts of chunks go along, each once, and only new ones are kept.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from ragblame.json_values import json_bytes
from ragblame.prompt_parts import prompt_to_parts
from ragblame.trace_json import clean_chunk_fields, clean_fields
from ragblame.trace_records import Trace

if TYPE_CHECKING:
    import psycopg

_REMEMBERED: Final = 4_000  # code points of a text whose digest is

QUEUE: Final = "attribution"
TASK: Final = "attribute"

# Texts of chunks and their digests are one parameter each, split by the server: an array of them would be
# quoted and escaped on both sides. A database that cannot put a prompt's parts together yet refuses the
# statement, so that no reader meets them.
_INSERT: Final = """
WITH given AS (
    SELECT * FROM json_to_recordset(%s::json) AS t(id uuid, app text, question text, query text, prompt jsonb,
        answer text, generated text, model text, provider text, status text, error text,
        started_at timestamptz, duration_ms double precision, session_id text, root_run_id uuid, origin text,
        partial_tree boolean, tags text[], metadata jsonb, truncated jsonb)
    WHERE 'ragblame.whole_prompt(uuid, jsonb)'::regprocedure IS NOT NULL
), fresh AS (
    INSERT INTO ragblame.trace (id, app, question, query, prompt, answer, generated, model, provider, status,
        error, started_at, duration_ms, session_id, root_run_id, origin, partial_tree, tags, metadata,
        truncated)
    SELECT * FROM given ON CONFLICT DO NOTHING RETURNING id
), texts AS (
    INSERT INTO ragblame.chunk_text (sha256, text) SELECT decode(digest, 'hex'), text
    FROM unnest(string_to_array(%s, ','), (string_to_array(%s, %s))[2:]) AS t(digest, text)
    ON CONFLICT DO NOTHING
), chunks AS (
    INSERT INTO ragblame.trace_chunk (trace_id, position, sha256, source_table, source_id, rank, score,
        score_name, retriever_run, truncated_from, metadata)
    SELECT c.* FROM json_to_recordset(%s::json) AS c(trace_id uuid, position smallint, sha256 bytea,
        source_table text, source_id text, rank integer, score double precision, score_name text,
        retriever_run uuid, truncated_from integer, metadata jsonb)
    JOIN fresh ON fresh.id = c.trace_id
)"""
_COUNT: Final = _INSERT + " SELECT count(*) FROM fresh"
# procrastinate's own function, called as text: a capturing process never imports procrastinate (0.4 s).
# Fields: queue, task, priority, lock, queueing_lock, args, scheduled_at. tests/test_traces.py pins the name.
_DEFER: Final = f"""{_INSERT}, locks AS (
    SELECT id, '{TASK}-' || id AS name FROM fresh
), jobs AS (
    SELECT procrastinate_defer_jobs_v1(array_agg(
        ROW('{QUEUE}', '{TASK}', 0, NULL, name, jsonb_build_object('trace_id', id::text), NULL)
        ::procrastinate_job_to_defer_v1 ORDER BY id)) AS ids
    FROM locks {{condition}}
    HAVING count(*) > 0
)
SELECT (SELECT count(*) FROM fresh), (SELECT cardinality(ids) FROM jobs)
"""
_COUNT_AND_DEFER: Final = _DEFER.format(condition="")
# A new trace has no job, so nobody looks first: PostgreSQL's plan for that, made while the queue was short,
# would read every waiting job for every batch. Only after a refusal is it worth that.
_COUNT_AND_DEFER_MISSING: Final = _DEFER.format(
    condition="WHERE NOT EXISTS "
    "(SELECT FROM procrastinate_jobs WHERE queueing_lock = name AND status = 'todo')"
)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


_digest: Final = lru_cache(maxsize=1_000)(_sha256)  # of popular chunks


def insert_new(
    conn: "psycopg.Connection[Any]",
    traces: Sequence[Trace],
    *,
    enqueue: bool,
    looks_for_jobs: bool = False,
    between: Callable[[], object],
) -> int:
    """Insert those of the cleaned ``traces`` that are not stored, in one statement; returns how many.

    ``between`` is called between two traces while their rows are made. Raises whatever psycopg raises;
    ``UniqueViolation`` when a job of one of them waits already: with ``looks_for_jobs``, only when another
    process defers it meanwhile.
    """
    from psycopg.rows import tuple_row

    # Sorted: two writers that meet over the same ids or texts wait for each other, not in a circle.
    wanted = {trace.id: trace for trace in sorted(traces, key=lambda trace: trace.id)}
    rows: list[Any] = []
    chunks: list[Any] = []
    digests: dict[str, str] = {}  # popular chunks come back within a batch: each goes once
    for trace in wanted.values():
        trace_id = str(trace.id)
        rows.append(
            {
                **clean_fields(trace),
                "id": trace_id,
                "prompt": prompt_to_parts(trace.prompt, trace.chunks),
            }
        )
        for chunk in trace.chunks:
            text = chunk.text
            digest = digests.get(text)
            if digest is None:
                digest = digests[text] = _digest(text) if len(text) <= _REMEMBERED else _sha256(text)
            chunks.append({**clean_chunk_fields(chunk), "trace_id": trace_id, "sha256": f"\\x{digest}"})
        between()
    texts = sorted((digest, text) for text, digest in digests.items())
    between_texts = os.urandom(16).hex()  # stands in none of them
    given = (
        json_bytes(rows).decode(),
        ",".join([digest for digest, _ in texts]),
        between_texts.join(["", *(text for _, text in texts)]),
        between_texts,
        json_bytes(chunks).decode(),
    )
    insert = (_COUNT_AND_DEFER_MISSING if looks_for_jobs else _COUNT_AND_DEFER) if enqueue else _COUNT
    with conn.cursor(row_factory=tuple_row) as cursor:
        counted = cursor.execute(insert, given).fetchone()
    assert counted is not None
    return int(counted[0])
