"""Small traces laid out for a tokenizer, spans at words of an answer, and a scorer that is a dictionary."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ragblame.attribution.layout import Layout, build_layout
from ragblame.records import Alignment, AlignmentState, Chunk, Cost, Message, ScorerRef, Span, SpanKind, Trace

CHUNKS = (
    "The port of the checkout service is 8443.",
    "Alice Smith is on call for the gateway.",
    "Backups run at 02:30 every night and take an hour.",
)
ANSWER = "The port is 8443. Alice Smith is on call."


def tiny_trace(
    chunks: Sequence[str] = CHUNKS,
    answer: str = ANSWER,
    *,
    prompt: Sequence[Message] = (),
    question: str = "What is the port?",
) -> Trace:
    """A trace with these chunks; no prompt: the default prompt is assumed."""
    return Trace(
        id=UUID(int=7),
        app="tests",
        question=question,
        chunks=tuple(Chunk(position=i, text=text) for i, text in enumerate(chunks)),
        prompt=tuple(prompt),
        answer=answer,
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def composed(
    pieces: Sequence[str | int], chunks: Sequence[str], message: int = 0
) -> tuple[str, list[Alignment]]:
    """A message text from literal strings and chunk numbers, with the exact place of each chunk."""
    text = ""
    alignments = []
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        start = len(text)
        text += chunks[piece]
        alignments.append(
            Alignment(
                position=piece,
                state=AlignmentState.EXACT,
                message=message,
                start=start,
                end=len(text),
                found=(0, len(chunks[piece])),
            )
        )
    return text, alignments


def plain_layout(
    pieces: Sequence[str | int],
    chunks: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    answer: str = ANSWER,
) -> Layout:
    """Layout of one plain prompt composed of literals and chunks."""
    text, alignments = composed(pieces, chunks)
    prompt = (Message(role="prompt", text=text),)
    return build_layout(tiny_trace(chunks, answer, prompt=prompt), alignments, tokenizer)


def span_at(answer: str, words: str, index: int = 0) -> Span:
    """The span of these words."""
    start = answer.index(words)
    return Span(
        index=index,
        start=start,
        end=start + len(words),
        kind=SpanKind.CLAUSE,
        sentence_start=0,
        sentence_end=len(answer),
    )


def tiny_spans(answer: str = ANSWER) -> tuple[Span, ...]:
    """Two spans of the standard answer."""
    return span_at(answer, "8443", 0), span_at(answer, "Alice Smith is on call", 1)


@dataclass
class DictionaryScorer:
    """A scorer that looks its values up: estimators are tested against games with known answers."""

    values: Mapping[int, Sequence[float]] | Callable[[int], Sequence[float]]
    ref: ScorerRef = field(
        default_factory=lambda: ScorerRef(name="dictionary", revision="0", is_own_model=False)
    )
    cost: Cost = field(default_factory=Cost)
    asked: list[tuple[int, ...]] = field(default_factory=list)

    def score(self, layout: Layout, masks: Sequence[int]) -> NDArray[np.float32]:
        """Values of these coalitions, shape [coalition, answer token]."""
        self.asked.append(tuple(masks))
        self.cost = Cost(scored_coalitions=self.cost.scored_coalitions + len(masks))
        look = self.values if callable(self.values) else self.values.__getitem__
        return np.array([look(mask) for mask in masks], dtype=np.float32)
