"""An answer and its chunks as the token runs that the reader takes: what is encoded, what stands where.

The frozen encoder reads each run alone: the question with (a part of) the answer, and every chunk (or part of
a long one). So a chunk's vectors are the same whatever is asked, and their number is bounded by a cap alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ragblame.attribution.support_model.lexical import (
    Floats,
    Text,
    Vocabulary,
    answer_flags,
    counts,
    evidence_flags,
)

MAX_RUN: Final = 254  # tokens of one run, [CLS] and [SEP] aside: what the encoder was trained on
MAX_QUESTION: Final = 32  # tokens
MAX_EVIDENCE: Final = 4096  # tokens of chunks read for one answer

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Run:
    """One input of the encoder, and the part of its output that is used."""

    ids: tuple[int, ...]  # with [CLS] and [SEP]
    start: int  # tokens [start, end) of the output
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Everything that is read for one answer."""

    said: tuple[Run, ...]  # together the answer's tokens
    evidence: tuple[Run, ...]  # together the chunks' tokens that are read
    starts: Ints  # [answer token] code points in the answer
    ends: Ints
    stems: Ints  # [answer token] number of its word's stem, -1 outside of words
    flags: Floats  # [answer token, ANSWER_FLAGS]
    evidence_stems: Ints  # [evidence token], numbered as the answer's
    evidence_flags: Floats  # [evidence token, EVIDENCE_FLAGS]
    evidence_chunks: Ints  # [evidence token] position of its chunk
    counts: Floats  # [COUNTS]
    left_out: int  # runs of chunks that the cap left out

    @property
    def tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.starts)


def parts_of(reading: Reading, most: int) -> list[Reading]:
    """The reading in parts of whole runs with at most ``most`` answer tokens (or one run); same evidence."""
    parts: list[Reading] = []
    start = first = 0
    for at in range(len(reading.said)):
        end = start + sum(one.end - one.start for one in reading.said[first : at + 1])
        following = reading.said[at + 1] if at + 1 < len(reading.said) else None
        if following is None or end - start + following.end - following.start > most:
            rows = slice(start, end)
            parts.append(
                replace(
                    reading,
                    said=reading.said[first : at + 1],
                    starts=reading.starts[rows],
                    ends=reading.ends[rows],
                    stems=reading.stems[rows],
                    flags=reading.flags[rows],
                )
            )
            start, first = end, at + 1
    return parts


class Cutter:
    """Cuts answers and chunks with one tokenizer, which knows [CLS] and [SEP]."""

    def __init__(self, tokenizer: Any, *, max_evidence: int = MAX_EVIDENCE) -> None:
        """``max_evidence``: tokens of chunks that are read, those with most of the answer's words first."""
        self.tokenizer = tokenizer
        self.max_evidence = max_evidence
        self._cls, self._sep = tokenizer.cls_token_id, tokenizer.sep_token_id

    def cut(self, question: str, answer: str, chunks: Sequence[str]) -> Reading:
        """What is read for an answer; without chunks it is read beside nothing. Never raises on any text."""
        encoded = self.tokenizer(
            [question, answer, *chunks],
            add_special_tokens=False,
            return_offsets_mapping=True,
            truncation=False,
            verbose=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        offsets = [np.array(row, np.int64).reshape(-1, 2) for row in encoded["offset_mapping"]]
        asked, said = Text.of(question), Text.of(answer)
        texts = [Text.of(chunk) for chunk in chunks]
        by_chunk = [Vocabulary([text]) for text in texts]
        of_question, of_answer, whole = Vocabulary([asked]), Vocabulary([said]), Vocabulary(texts)
        numbers = {stem: number for number, stem in enumerate(dict.fromkeys(said.stems))}
        words = _words_of(offsets[1], said)
        pieces = self._pieces(ids)
        chosen = self._chosen(pieces, ids)
        runs, stems, flags, places = [], [], [], []
        by_text: dict[int, tuple[Ints, Floats]] = {}
        for position, start, end in chosen:
            if position not in by_text:
                text, words_there = texts[position], _words_of(offsets[2 + position], texts[position])
                by_text[position] = (
                    _numbered(text, words_there, numbers),
                    _spread(evidence_flags(text, of_question, of_answer), words_there),
                )
            runs.append(Run((self._cls, *ids[2 + position][start:end], self._sep), 1, 1 + end - start))
            stems.append(by_text[position][0][start:end])
            flags.append(by_text[position][1][start:end])
            places.append(np.full(end - start, position, np.int64))
        empty_flags = evidence_flags(Text.of(""), of_question, of_answer)
        return Reading(
            said=tuple(self._said(ids[0][:MAX_QUESTION], ids[1])),
            evidence=tuple(runs),
            starts=offsets[1][:, 0],
            ends=offsets[1][:, 1],
            stems=_numbered(said, words, numbers),
            flags=_spread(answer_flags(said, of_question, whole, by_chunk), words),
            evidence_stems=np.concatenate(stems) if stems else np.zeros(0, np.int64),
            evidence_flags=np.concatenate(flags) if flags else empty_flags,
            evidence_chunks=np.concatenate(places) if places else np.zeros(0, np.int64),
            counts=counts(said, of_question, whole, texts),
            left_out=len(pieces) - len(chosen),
        )

    def _said(self, question: list[int], answer: list[int]) -> list[Run]:
        """The answer in equal parts, the question before each."""
        room = MAX_RUN - 1 - len(question)
        count = max(1, -(-len(answer) // room))
        borders = [len(answer) * index // count for index in range(count + 1)]
        first = len(question) + 2
        return [
            Run((self._cls, *question, self._sep, *answer[start:end], self._sep), first, first + end - start)
            for start, end in pairwise(borders)
        ]

    def _pieces(self, ids: list[list[int]]) -> list[tuple[int, int, int]]:
        """Every chunk in equal parts: position, first token, end."""
        found: list[tuple[int, int, int]] = []
        for position, row in enumerate(ids[2:]):
            count = -(-len(row) // MAX_RUN)
            borders = [len(row) * index // max(1, count) for index in range(count + 1)]
            found.extend((position, start, end) for start, end in pairwise(borders))
        return found

    def _chosen(self, pieces: list[tuple[int, int, int]], ids: list[list[int]]) -> list[tuple[int, int, int]]:
        """The pieces that fit, those with most of the answer's tokens first, in their order."""
        if sum(end - start for _, start, end in pieces) <= self.max_evidence:
            return pieces
        said = set(ids[1])
        shared = [len(said & set(ids[2 + position][start:end])) for position, start, end in pieces]
        kept, room = [], self.max_evidence
        for index in sorted(range(len(pieces)), key=lambda index: (-shared[index], index)):
            size = pieces[index][2] - pieces[index][1]
            if size <= room:
                kept.append(index)
                room -= size
        return [pieces[index] for index in sorted(kept)]


def _words_of(offsets: Ints, text: Text) -> Ints:
    """The word that each token stands in, -1 for none."""
    if not text.words or not len(offsets):
        return np.full(len(offsets), -1, np.int64)
    starts = np.array([word.start for word in text.words])
    ends = np.array([word.end for word in text.words])
    index = np.searchsorted(starts, offsets[:, 0], side="right") - 1
    inside = (index >= 0) & (offsets[:, 0] < ends[np.maximum(index, 0)])
    return np.where(inside, index, -1).astype(np.int64)


def _numbered(text: Text, words_of: Ints, numbers: dict[str, int]) -> Ints:
    """The answer's number of each token's stem, -1 where the answer does not have it."""
    by_word = np.array([numbers.get(stem, -1) for stem in text.stems] or [-1], np.int64)
    return np.where(words_of >= 0, by_word[np.maximum(words_of, 0)], -1)


def _spread(by_word: Floats, words_of: Ints) -> Floats:
    """Flags of words as flags of their tokens; zeros outside of words."""
    if not len(by_word):
        return np.zeros((len(words_of), by_word.shape[1]), np.float32)
    return np.where(words_of[:, None] >= 0, by_word[np.maximum(words_of, 0)], 0).astype(np.float32)
