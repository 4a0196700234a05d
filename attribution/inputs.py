"""Makes a trace out of what a caller has at hand: strings, chunks or LangChain documents, prompt or none."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol, TypeAlias, runtime_checkable

from ragblame.errors import InputError
from ragblame.records import Chunk, Message, Trace
from ragblame.traces import new_trace_id


@runtime_checkable
class DocumentLike(Protocol):
    """A LangChain ``Document``, or anything with its text."""

    @property
    def page_content(self) -> str: ...


ChunkInput: TypeAlias = "str | Chunk | DocumentLike"
PromptInput: TypeAlias = "str | Message | Sequence[Message] | None"


def trace_of(question: str, chunks: Sequence[ChunkInput], answer: str, prompt: PromptInput) -> Trace:
    """A trace with origin "explain". Raises ``InputError`` naming the first thing that cannot be used."""
    if isinstance(chunks, str):
        raise InputError("chunks is one string: pass a list of strings, Chunk records or documents")
    if not isinstance(answer, str) or not isinstance(question, str):
        raise InputError("question and answer must be strings")
    return Trace(
        id=new_trace_id(),
        app="explain",
        question=question,
        chunks=tuple(_chunk(position, chunk) for position, chunk in enumerate(chunks)),
        prompt=_messages(prompt),
        answer=answer,
        started_at=datetime.now(UTC),
        origin="explain",
    )


def _chunk(position: int, given: ChunkInput) -> Chunk:
    if isinstance(given, str):
        return Chunk(position=position, text=given)
    if isinstance(given, Chunk):
        return replace(given, position=position)
    if isinstance(given, DocumentLike):
        identity = getattr(given, "id", None)
        metadata = getattr(given, "metadata", None)
        plain = {
            str(key): value
            for key, value in (metadata if isinstance(metadata, Mapping) else {}).items()
            if value is None or isinstance(value, (bool, int, float, str))
        }
        return Chunk(
            position=position,
            text=given.page_content,
            source_id=None if identity is None else str(identity),
            metadata=plain,
        )
    raise InputError(
        f"chunk {position} is a {type(given).__name__}: pass a string, a Chunk or something with page_content"
    )


def _messages(prompt: PromptInput) -> tuple[Message, ...]:
    if prompt is None:
        return ()
    if isinstance(prompt, str):
        return (Message(role="prompt", text=prompt),)
    return (prompt,) if isinstance(prompt, Message) else tuple(prompt)
