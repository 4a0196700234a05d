"""A Trace as clean, bounded, plain JSON: what the spool keeps, an export shows and PostgreSQL can store."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from operator import is_
from typing import Any, Final
from uuid import UUID

from ragblame.errors import InputError
from ragblame.json_values import clean_identity, clean_json, clean_text, is_clean
from ragblame.trace_records import Chunk, Json, Message, Trace, TraceStatus

JSON_SCHEMA: Final = 1  # number of the JSON form; a reader refuses what it does not know
MAX_SMALLINT: Final = 32_767
MAX_INTEGER: Final = 2_147_483_647
MAX_TABLE_BYTES: Final = 500  # of a table's name
_CLEANED: Final[tuple[tuple[str, Callable[[str], str]], ...]] = (
    ("app", clean_identity),
    ("question", clean_text),
    ("query", clean_text),
    ("answer", clean_text),
    ("generated", clean_text),
    ("model", clean_text),
    ("provider", clean_text),
    ("error", clean_text),
    ("session_id", clean_identity),
    ("origin", clean_identity),
)


def clean_trace(trace: Trace, *, has_clean_chunks: bool = False) -> Trace:
    """The trace as it can be stored: clean text, bounded JSON, finite numbers. Idempotent.

    The trace itself when it is clean, as nearly all are. With ``has_clean_chunks`` its chunks stay as
    they are: ``clean_chunk`` made them.
    Raises ``InputError`` when a chunk position is negative, above 32767 or used twice, or a time has no zone.
    """
    positions = [chunk.position for chunk in trace.chunks]
    if any(not 0 <= position <= MAX_SMALLINT for position in positions):
        raise InputError(
            f"trace {trace.id}: chunk positions must lie in 0..{MAX_SMALLINT}; renumber the chunks"
        )
    if len(set(positions)) != len(positions):
        raise InputError(f"trace {trace.id}: two chunks share a position; number them 0, 1, 2, …")
    if trace.started_at.tzinfo is None:
        raise InputError(f"trace {trace.id}: started_at has no time zone; write 2025-01-31T12:00:00+00:00")
    changes: dict[str, Any] = {}
    for name, clean in _CLEANED:
        given = getattr(trace, name)
        if given is not None and (cleaned := clean(given)) is not given:
            changes[name] = cleaned
    prompt = tuple([_clean_message(message) for message in trace.prompt])
    if not all(map(is_, prompt, trace.prompt)):
        changes["prompt"] = prompt
    tags = tuple([clean_text(tag) for tag in trace.tags])
    if not all(map(is_, tags, trace.tags)):
        changes["tags"] = tags
    if not has_clean_chunks:
        chunks = tuple([clean_chunk(chunk) for chunk in trace.chunks])
        if not all(map(is_, chunks, trace.chunks)):
            changes["chunks"] = chunks
    if not is_clean(trace.metadata):
        changes["metadata"] = _clean_object(trace.metadata)
    if trace.truncated:
        changes["truncated"] = {
            clean_text(name): min(int(size), MAX_INTEGER) for name, size in trace.truncated.items()
        }
    if type(trace.duration_ms) is not float or not 0 <= trace.duration_ms < math.inf:
        is_duration = math.isfinite(trace.duration_ms) and trace.duration_ms >= 0
        changes["duration_ms"] = float(trace.duration_ms) if is_duration else 0.0
    return replace(trace, **changes) if changes else trace


def trace_to_json(trace: Trace) -> dict[str, Json]:
    """The trace as plain JSON values that ``json.dumps(..., allow_nan=False)`` takes, with ``schema``."""
    return clean_to_json(clean_trace(trace))


def clean_to_json(trace: Trace) -> dict[str, Json]:
    """As ``trace_to_json``, of a trace that ``clean_trace`` made."""
    return {
        "schema": JSON_SCHEMA,
        "id": str(trace.id),
        **clean_fields(trace),
        "prompt": [{"role": message.role, "text": message.text} for message in trace.prompt],
        "chunks": [{"text": chunk.text, **clean_chunk_fields(chunk)} for chunk in trace.chunks],
    }


def clean_fields(trace: Trace) -> dict[str, Json]:
    """The fields of a clean trace but its id, prompt and chunks."""
    return {
        "app": trace.app,
        "question": trace.question,
        "query": trace.query,
        "answer": trace.answer,
        "generated": trace.generated,
        "model": trace.model,
        "provider": trace.provider,
        "status": trace.status.value,
        "error": trace.error,
        "started_at": trace.started_at.isoformat(),
        "duration_ms": trace.duration_ms,
        "session_id": trace.session_id,
        "root_run_id": None if trace.root_run_id is None else str(trace.root_run_id),
        "origin": trace.origin,
        "partial_tree": trace.partial_tree,
        "tags": list(trace.tags),
        "metadata": dict(trace.metadata),
        "truncated": dict(trace.truncated),
    }


def clean_chunk_fields(chunk: Chunk) -> dict[str, Json]:
    """The fields of a clean chunk but its text."""
    return {
        "position": chunk.position,
        "source_id": chunk.source_id,
        "source_table": chunk.source_table,
        "rank": chunk.rank,
        "score": chunk.score,
        "score_name": chunk.score_name,
        "retriever_run": None if chunk.retriever_run is None else str(chunk.retriever_run),
        "metadata": dict(chunk.metadata),
        "truncated_from": chunk.truncated_from,
    }


def trace_from_json(value: Mapping[str, Any]) -> Trace:
    """The trace that ``trace_to_json`` wrote. Raises ``InputError`` naming what does not fit."""
    known = value.get("schema", JSON_SCHEMA)
    if known != JSON_SCHEMA:
        raise InputError(f"trace schema {known!r} is not known (only {JSON_SCHEMA}): upgrade ragblame")
    try:
        fields: dict[str, Any] = {key: entry for key, entry in value.items() if key != "schema"}
        fields["id"] = UUID(value["id"])
        fields["status"] = TraceStatus(value.get("status", "ok"))
        fields["started_at"] = datetime.fromisoformat(value["started_at"])
        fields["root_run_id"] = _optional_uuid(value.get("root_run_id"))
        fields["prompt"] = tuple(Message(**message) for message in value.get("prompt", ()))
        fields["chunks"] = tuple(
            Chunk(**{**chunk, "retriever_run": _optional_uuid(chunk.get("retriever_run"))})
            for chunk in value.get("chunks", ())
        )
        fields["tags"] = tuple(value.get("tags", ()))
        return clean_trace(Trace(**fields))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        detail = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"not a trace: {detail}; write it with trace_to_json") from error


def clean_chunk(chunk: Chunk) -> Chunk:
    """The chunk as it can be stored, at any position: itself when it is clean, as nearly all are."""
    rank, score, table = chunk.rank, chunk.score, chunk.source_table
    text, source_id = clean_text(chunk.text), chunk.source_id
    if source_id is not None:
        source_id = clean_identity(source_id)
    if table is not None:
        table = clean_identity(table, MAX_TABLE_BYTES)
    if rank is not None and not 0 <= rank <= MAX_INTEGER:
        rank = None
    if score is not None and not math.isfinite(score):
        score = None
    score_name, truncated = _optional(chunk.score_name), chunk.truncated_from
    if truncated is not None:
        truncated = min(truncated, MAX_INTEGER)
    cleaned = (text, source_id, table, rank, score, score_name, truncated)
    given = (chunk.text, chunk.source_id, chunk.source_table, chunk.rank, chunk.score, chunk.score_name,
             chunk.truncated_from)  # fmt: skip
    if all(map(is_, cleaned, given)) and is_clean(chunk.metadata):
        return chunk
    return Chunk(
        position=chunk.position,
        text=text,
        source_id=source_id,
        source_table=table,
        rank=rank,
        score=score,
        score_name=score_name,
        retriever_run=chunk.retriever_run,
        metadata=_clean_object(chunk.metadata),
        truncated_from=truncated,
    )


def _clean_message(message: Message) -> Message:
    role, text = clean_identity(message.role), clean_text(message.text)
    return message if role is message.role and text is message.text else Message(role=role, text=text)


def _clean_object(value: Mapping[str, Any]) -> dict[str, Json]:
    cleaned = clean_json(value)
    return cleaned if isinstance(cleaned, dict) else {}


def _optional(text: str | None) -> str | None:
    return None if text is None else clean_text(text)


def _optional_uuid(text: str | None) -> UUID | None:
    return None if text is None else UUID(text)
