"""An answer and its chunks as the sequences that are read: the whole answer beside as many chunks as fit.

The encoder takes 512 tokens. An answer is cut only when it is very long, chunks are packed in their order,
and each part is read beside every pack; what is read twice is joined by the network, never averaged here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ragblame.attribution.support_model.lexical import (
    ANSWER_FLAGS,
    EVIDENCE_FLAGS,
    Floats,
    Text,
    Vocabulary,
    answer_flags,
    counts,
    evidence_flags,
)

MAX_TOKENS: Final = 512  # positions of the encoder
MAX_QUESTION: Final = 32  # tokens
MAX_ANSWER: Final = 320  # tokens of an answer read at once
MAX_EVIDENCE: Final = 256  # tokens of chunks in one window
OVERLAP: Final = 48  # tokens that two parts of a cut chunk share
FLAGS: Final = 3 + len(ANSWER_FLAGS) + len(EVIDENCE_FLAGS)  # which part a token belongs to, then its word's

_ANSWER_AT: Final = 3
_EVIDENCE_AT: Final = 3 + len(ANSWER_FLAGS)

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """One sequence: [CLS] question [SEP] part of the answer [SEP] chunks [SEP]."""

    ids: Ints  # [token]
    types: Ints  # [token], 1 in the chunks
    flags: Floats  # [token, FLAGS]
    answer_at: int  # first token of the answer's part
    part: tuple[int, int]  # tokens [start, end) of the answer
    chunks: tuple[int, ...]  # positions read in this window


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Everything that is read for one answer."""

    windows: tuple[Window, ...]  # by part of the answer, then by chunks
    starts: Ints  # [answer token] code points in the answer
    ends: Ints
    flags: Floats  # [answer token, ANSWER_FLAGS], compared with all chunks
    counts: Floats  # [COUNTS]
    left_out: int  # windows that the cap left out

    @property
    def tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of tokens of one chunk."""

    position: int
    start: int
    end: int


class Cutter:
    """Cuts answers and chunks with one tokenizer, which knows [CLS] and [SEP]."""

    def __init__(self, tokenizer: Any, *, max_windows: int = 12) -> None:
        """``max_windows``: packs of chunks read per part of the answer, those with most of its words."""
        self.tokenizer = tokenizer
        self.max_windows = max_windows
        self._cls, self._sep = tokenizer.cls_token_id, tokenizer.sep_token_id

    def cut(self, question: str, answer: str, chunks: Sequence[str]) -> Reading:
        """The windows of an answer; without chunks it is read beside nothing. Never raises on any text."""
        encoded = self.tokenizer(
            [question, answer, *chunks],
            add_special_tokens=False,
            return_offsets_mapping=True,
            truncation=False,
            verbose=False,
        )
        ids = [np.array(row, np.int64) for row in encoded["input_ids"]]
        offsets = [np.array(row, np.int64).reshape(-1, 2) for row in encoded["offset_mapping"]]
        asked, said = Text.of(question), Text.of(answer)
        texts = [Text.of(chunk) for chunk in chunks]
        by_chunk = [Vocabulary([text]) for text in texts]
        of_question, of_answer, whole = Vocabulary([asked]), Vocabulary([said]), Vocabulary(texts)
        answer_words = _words_of(offsets[1], said)
        chunk_flags = [
            _spread(evidence_flags(text, of_question, of_answer), _words_of(offsets[2 + i], text))
            for i, text in enumerate(texts)
        ]
        question_ids = ids[0][:MAX_QUESTION]
        windows: list[Window] = []
        left_out = 0
        for part in _parts(len(ids[1])):
            room = min(MAX_EVIDENCE, MAX_TOKENS - 4 - len(question_ids) - (part[1] - part[0]))
            packs = _packs([len(row) for row in ids[2:]], room)
            chosen = self._chosen(packs, ids, set(ids[1][part[0] : part[1]].tolist()))
            left_out += len(packs) - len(chosen)
            for pack in chosen or [[]]:
                positions = tuple(dict.fromkeys(piece.position for piece in pack))
                beside = Vocabulary([texts[position] for position in positions])
                here = _spread(answer_flags(said, of_question, beside, whole, by_chunk), answer_words)
                windows.append(self._window(question_ids, ids, here, part, pack, positions, chunk_flags))
        return Reading(
            windows=tuple(windows),
            starts=offsets[1][:, 0],
            ends=offsets[1][:, 1],
            flags=_spread(answer_flags(said, of_question, whole, whole, by_chunk), answer_words),
            counts=counts(said, of_question, whole, texts),
            left_out=left_out,
        )

    def _chosen(self, packs: list[list[_Piece]], ids: list[Ints], said: set[int]) -> list[list[_Piece]]:
        """The packs that hold most of the answer's tokens, in their order."""
        if len(packs) <= self.max_windows:
            return packs
        shared = [
            len(said & {int(x) for piece in pack for x in ids[2 + piece.position][piece.start : piece.end]})
            for pack in packs
        ]
        best = sorted(range(len(packs)), key=lambda index: (-shared[index], index))[: self.max_windows]
        return [packs[index] for index in sorted(best)]

    def _window(
        self,
        question: Ints,
        ids: list[Ints],
        here: Floats,
        part: tuple[int, int],
        pack: list[_Piece],
        positions: tuple[int, ...],
        chunk_flags: list[Floats],
    ) -> Window:
        start, end = part
        answer_at = len(question) + 2
        evidence_at = answer_at + (end - start) + 1
        pieces = [ids[2 + piece.position][piece.start : piece.end] for piece in pack]
        evidence = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
        total = evidence_at + len(evidence) + 1
        row = np.full(total, self._sep, np.int64)
        row[0] = self._cls
        row[1 : 1 + len(question)] = question
        row[answer_at : answer_at + end - start] = ids[1][start:end]
        row[evidence_at : evidence_at + len(evidence)] = evidence
        flags = np.zeros((total, FLAGS), np.float32)
        flags[1 : 1 + len(question), 0] = 1
        flags[answer_at : evidence_at - 1, 1] = 1
        flags[answer_at : evidence_at - 1, _ANSWER_AT:_EVIDENCE_AT] = here[start:end]
        flags[evidence_at : total - 1, 2] = 1
        at = evidence_at
        for piece in pack:
            size = piece.end - piece.start
            flags[at : at + size, _EVIDENCE_AT:] = chunk_flags[piece.position][piece.start : piece.end]
            at += size
        types = np.zeros(total, np.int64)
        types[evidence_at:] = 1
        return Window(row, types, flags, answer_at, part, positions)


def _parts(tokens: int) -> list[tuple[int, int]]:
    """Equal parts of at most MAX_ANSWER tokens; at least one, which may be empty."""
    count = max(1, -(-tokens // MAX_ANSWER))
    borders = [tokens * index // count for index in range(count + 1)]
    return list(pairwise(borders))


def _packs(sizes: Sequence[int], room: int) -> list[list[_Piece]]:
    """Chunks in their order, whole ones packed together, long ones cut with an overlap."""
    packs: list[list[_Piece]] = []
    free = 0
    for position, size in enumerate(sizes):
        start = 0
        while start < size:
            end = min(size, start + room)
            if not packs or end - start > free:
                packs.append([])
                free = room
            packs[-1].append(_Piece(position, start, end))
            free -= end - start
            start = end if end == size else end - min(OVERLAP, room // 4)
    return packs


def _words_of(offsets: Ints, text: Text) -> Ints:
    """The word that each token stands in, -1 for none."""
    if not text.words or not len(offsets):
        return np.full(len(offsets), -1, np.int64)
    starts = np.array([word.start for word in text.words])
    ends = np.array([word.end for word in text.words])
    index = np.searchsorted(starts, offsets[:, 0], side="right") - 1
    inside = (index >= 0) & (offsets[:, 0] < ends[np.maximum(index, 0)])
    return np.where(inside, index, -1).astype(np.int64)


def _spread(by_word: Floats, words_of: Ints) -> Floats:
    """Flags of words as flags of their tokens; zeros outside of words."""
    if not len(by_word):
        return np.zeros((len(words_of), by_word.shape[1]), np.float32)
    return np.where(words_of[:, None] >= 0, by_word[np.maximum(words_of, 0)], 0).astype(np.float32)
