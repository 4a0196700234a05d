"""What a capturing host records: the part of the vocabulary that a production process loads.

``records.py`` has all of it. Apart, because the classes of a whole explanation took a seventh of the time of
importing the callback, LangChain's part included.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, TypeAlias
from uuid import UUID

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

MASK: Final = "\u2588"  # stands for each code point that redaction took out of a text, so offsets hold


class TraceStatus(StrEnum):
    """How the host chain's run ended."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"  # the caller gave up: task cancelled, timeout
    ABANDONED = "abandoned"  # a stream that the consumer stopped reading
    INTERRUPTED = "interrupted"  # a graph paused to ask a person


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of the prompt that was really sent."""

    role: str  # system, human, ai, tool; "prompt" for a plain completion model
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One retrieved passage, as the chain saw it."""

    position: int  # 0-based place among the chunks of the trace, in retrieval order
    text: str  # as captured; cut at the capture limit
    source_id: str | None = None  # row identity in PostgreSQL (Document.id), as text
    source_table: str | None = None  # where that row lives, e.g. "ragblame.chunk"; None when unknown
    rank: int | None = None  # 1-based rank within its retriever run
    score: float | None = None  # as reported by the retriever; scale depends on score_name
    score_name: str | None = None  # metadata key the score came from
    retriever_run: UUID | None = None  # LangChain run that returned it
    metadata: Mapping[str, Json] = field(default_factory=dict)
    truncated_from: int | None = None  # true length in code points when text was cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One answered question."""

    id: UUID  # version 7: time-ordered, the partition key
    app: str  # which chain or service; free text of the host
    question: str
    query: str | None = None  # what the retriever was asked, when it differs from the question
    chunks: tuple[Chunk, ...] = ()
    prompt: tuple[Message, ...] = ()  # empty when it was not seen (imports)
    answer: str = ""  # what the user was shown
    generated: str | None = None  # the model's own text, when it differs from the answer
    model: str | None = None  # name as the host reports it
    provider: str | None = None
    status: TraceStatus = TraceStatus.OK
    error: str | None = None  # class and message of the host's exception
    started_at: datetime  # with time zone
    duration_ms: float = 0.0  # monotonic, >= 0
    session_id: str | None = None
    root_run_id: UUID | None = None  # LangChain root run; may repeat, never an identity of ours
    origin: str = "callback"  # callback, import or explain
    partial_tree: bool = False  # the root run was not seen: some events are missing
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Json] = field(default_factory=dict)
    truncated: Mapping[str, int] = field(default_factory=dict)  # field -> true length in code points
