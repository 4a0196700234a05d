"""What a learned reader says about an answer: a probability for every token, and one for the answer.

A reader is trained on answers that people have labelled; whatever model it is, the verdicts see only this
record, so that a better one can take its place by name.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ragblame.records import Alignment, Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportReading:
    """How likely people would call each token of an answer unsupported by the chunks."""

    model: str  # name@revision
    starts: tuple[int, ...]  # code points in the answer, by token
    ends: tuple[int, ...]
    probabilities: tuple[float, ...]  # P(unsupported), [0, 1], by token; as the model says, not calibrated
    answer_probability: float  # that anything in the answer is unsupported, [0, 1]
    left_out: int = 0  # passages that were not read, as there were too many
    read_to: int | None = None  # code points of the answer: what comes later was not read; None: all was

    def logits(self, start: int, end: int) -> list[float]:
        """Log-odds of the tokens that touch [start, end) of the answer, each within ±12."""
        return [
            logit(probability)
            for low, high, probability in zip(self.starts, self.ends, self.probabilities, strict=True)
            if low < end and start < high
        ]


class SupportReader(Protocol):
    """Anything that reads an answer beside its chunks."""

    def read(self, question: str, answer: str, chunks: Sequence[str]) -> SupportReading:
        """Raises ``ModelError`` when the model cannot read."""
        ...


def in_prompt(chunks: Sequence[Chunk], alignments: Sequence[Alignment] | None) -> list[str]:
    """Of every chunk the text that stood in the prompt; all of it where the prompt is not known."""
    if alignments is None:
        return [chunk.text for chunk in chunks]
    by_position = {alignment.position: alignment for alignment in alignments}
    return [_present(chunk, by_position.get(chunk.position)) for chunk in chunks]


def _present(chunk: Chunk, alignment: Alignment | None) -> str:
    if alignment is None or alignment.found is None:
        return ""
    start, end = alignment.found
    edges = [start, *(edge for gap in alignment.absent for edge in gap if start < edge < end), end]
    return " ".join(chunk.text[low:high] for low, high in zip(edges[::2], edges[1::2], strict=True))


def logit(probability: float) -> float:
    """Log-odds, within ±12."""
    inside = min(max(probability, 6.2e-6), 1 - 6.2e-6)
    return math.log(inside / (1 - inside))


def sigmoid(value: float) -> float:
    """The inverse of ``logit``."""
    return 1 / (1 + math.exp(-min(max(value, -40.0), 40.0)))
