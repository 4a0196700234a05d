"""Our own import format: one answer a line, with its chunks and, where people labelled it, the labels.

A line is identified by its (dataset, id). Human labels travel in the trace's metadata, where evaluations find
them.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from ragblame.errors import InputError
from ragblame.records import Chunk, Message, Trace
from ragblame.settings import Settings
from ragblame.traces import new_trace_id
from ragblame.ui.import_steps import import_identity
from ragblame.ui.import_values import cut_messages, messages_of

# These have a place in the trace.
_NO_METADATA: Final = frozenset({"question", "chunks", "prompt", "answer", "model"})


def read_answer(row: Any, *, fallback: str, app: str | None, settings: Settings) -> Trace:
    """The trace of one row. ``fallback`` is the dataset of a row that names none; ``app`` overrides it.

    Raises ``InputError`` naming what does not fit.
    """
    if isinstance(row, InputError):
        raise row
    if not isinstance(row, dict):
        raise InputError("not a JSON object: write one object per line")
    row_id = row.get("id")
    if not isinstance(row_id, str | int) or isinstance(row_id, bool) or row_id == "":
        raise InputError('no "id": give each line one that stays the same')
    dataset = _text(row, "dataset", "") or fallback
    answer = _text(row, "answer", None)
    longest = settings.capture_max_field
    if len(answer) > longest:
        raise InputError(
            f"the answer has {len(answer):,} characters: raise RAGBLAME_CAPTURE_MAX_FIELD ({longest:,})"
        )
    prompt, truncated = cut_messages(_prompt(row), longest)
    now = datetime.now(UTC)
    # Labels first: metadata is bounded when stored, and they are what evaluations need.
    metadata = {"labels": _labels(row, answer)} | {
        key: value for key, value in row.items() if key not in _NO_METADATA and key != "labels"
    }
    return Trace(
        id=new_trace_id(now),
        app=app or dataset,
        question=_text(row, "question", ""),
        chunks=_chunks(row, settings),
        prompt=prompt,
        answer=answer,
        model=_text(row, "model", "") or None,
        started_at=now,
        root_run_id=import_identity(dataset, row_id),
        origin="import",
        metadata=metadata,
        truncated=truncated,
    )


def _prompt(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """What the model was sent: one text, or messages as any tracer writes them; () where it is not told."""
    given = row.get("prompt")
    if not given:
        return ()
    found = (Message(role="prompt", text=given),) if isinstance(given, str) else messages_of(given)
    if not found:
        raise InputError('"prompt" holds no message: give a text, or a list of {"role", "content"}')
    return found


def _chunks(row: Mapping[str, Any], settings: Settings) -> tuple[Chunk, ...]:
    chunks = row.get("chunks")
    if not isinstance(chunks, list):
        raise InputError('no "chunks": give a list of {"chunk_id", "text"}, empty if nothing was retrieved')
    if len(chunks) > settings.capture_max_chunks:
        raise InputError(
            f"{len(chunks)} chunks: raise RAGBLAME_CAPTURE_MAX_CHUNKS ({settings.capture_max_chunks})"
        )
    found = []
    for position, chunk in enumerate(chunks):
        if not isinstance(chunk, dict) or not isinstance(chunk.get("text"), str):
            raise InputError(f'chunk {position + 1} has no "text": give each chunk a text')
        text, longest = chunk["text"], settings.capture_max_field
        source_id = chunk.get("chunk_id")
        found.append(
            Chunk(
                position=position,
                text=text[:longest],
                source_id=None if source_id is None else str(source_id),
                rank=position + 1,
                metadata={key: value for key, value in chunk.items() if key not in ("text", "chunk_id")},
                truncated_from=len(text) if len(text) > longest else None,
            )
        )
    return tuple(found)


def _labels(row: Mapping[str, Any], answer: str) -> list[dict[str, Any]]:
    """The human labels, whose offsets must fit the answer: a shifted label would mislead every evaluation."""
    labels = row.get("labels", [])
    if not isinstance(labels, list):
        raise InputError('"labels" is no list: write [] when there are none')
    for label in labels:
        if not isinstance(label, dict):
            raise InputError('a label is no object: give {"start", "end", "type"}')
        start, end = label.get("start"), label.get("end")
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start <= end <= len(answer)):
            raise InputError(
                f"label [{start}, {end}) lies outside the answer's {len(answer)} characters: "
                "offsets are Unicode code points"
            )
        if isinstance(label.get("text"), str) and answer[start:end] != label["text"]:
            raise InputError(
                f"label [{start}, {end}) is not the text it quotes: offsets are Unicode code points"
            )
    return labels


def _text(row: Mapping[str, Any], key: str, default: str | None) -> str:
    value = row.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise InputError(f'no text "{key}": give one')
    return value
