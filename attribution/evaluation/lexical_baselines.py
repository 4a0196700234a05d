"""Trivial scores for unsupported text, which every detector has to beat before it may claim anything.

They look at the very spans that the detector looks at, so that a difference is one of scores and not of
segmentation. Each has a score for the whole answer too: the maximum over spans would turn any of them into a
measure of length.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np

from ragblame.attribution.evaluation.detection import ScoredAnswer, ScoredSpan
from ragblame.attribution.evaluation.labelled import LabelledAnswer
from ragblame.attribution.verdicts.normalise import Word, words

LONG: Final = 20_000  # code points; longer texts count as equally long
MANY: Final = 1000  # missing words; more count as equally many
_NUMBER = re.compile(r"\d[\d.,]*")

Score = Callable[["LexicalView", int, int], float]  # of the answer's part [start, end), in [0, 1]


class LexicalView:
    """The words, pairs of neighbouring words and numbers of one answer, and whether the chunks hold them."""

    def __init__(self, row: LabelledAnswer) -> None:
        self.row = row
        self._words = words(row.answer)
        self._chunks = [words(chunk.text) for chunk in row.chunks]

    @cached_property
    def _stems_by_chunk(self) -> list[frozenset[str]]:
        return [frozenset(word.stem for word in chunk) for chunk in self._chunks]

    @cached_property
    def _stems(self) -> frozenset[str]:
        return frozenset[str]().union(*self._stems_by_chunk)

    @cached_property
    def _pairs(self) -> frozenset[tuple[str, str]]:
        return frozenset(pair for chunk in self._chunks for pair in _neighbours(chunk))

    @cached_property
    def _numbers(self) -> frozenset[str]:
        return frozenset(number for chunk in self.row.chunks for number in _numbers(chunk.text))

    def _between(self, start: int, end: int) -> list[Word]:
        return [word for word in self._words if word.start < end and start < word.end]

    def word_misses(self, start: int, end: int) -> float:
        """Share of the content words in [start, end) that no chunk holds, compared by stem; 0 without any."""
        return _share(word.stem not in self._stems for word in self._between(start, end) if word.is_content)

    def pair_misses(self, start: int, end: int) -> float:
        """Share of the pairs of neighbouring words that no chunk holds; a single word is paired with none."""
        return _share(pair not in self._pairs for pair in _neighbours(self._between(start, end)))

    def missing_words(self, start: int, end: int) -> float:
        """How many of the content words no chunk holds, as a part of ``MANY``."""
        missed = (word.stem not in self._stems for word in self._between(start, end) if word.is_content)
        return min(sum(missed), MANY) / MANY

    def overlap(self, position: int, start: int, end: int) -> float:
        """Share of the content words in [start, end) that one chunk holds; 0 without any."""
        held = self._stems_by_chunk[position]
        return _share(word.stem in held for word in self._between(start, end) if word.is_content)

    def echo(self, position: int) -> float:
        """Share of the question's content words that one chunk holds."""
        held = self._stems_by_chunk[position]
        return _share(word.stem in held for word in words(self.row.question) if word.is_content)

    def number_misses(self, start: int, end: int) -> float:
        """Share of the numbers that no chunk holds, thousands separators aside; 0 without numbers."""
        return _share(number not in self._numbers for number in _numbers(self.row.answer[start:end]))


def _neighbours(found: Sequence[Word]) -> Iterable[tuple[str, str]]:
    return zip((word.folded for word in found), (word.folded for word in found[1:]), strict=False)


def _numbers(text: str) -> list[str]:
    return [match[0].rstrip(".,").replace(",", "") for match in _NUMBER.finditer(text)]


def _share(misses: Iterable[bool]) -> float:
    listed = list(misses)
    return sum(listed) / len(listed) if listed else 0.0


@dataclass(frozen=True, slots=True)
class Baseline:
    """A trivial detector."""

    name: str
    score: Score
    has_rule: bool = False  # flags whatever scores above 0; others have no rule, only a ranking


BASELINES: Final = (
    Baseline("flag everything", lambda view, start, end: 1.0, has_rule=True),
    Baseline("length", lambda view, start, end: min(end - start, LONG) / LONG),
    Baseline("words in no chunk, share", LexicalView.word_misses),
    Baseline("words in no chunk, count", LexicalView.missing_words),
    Baseline("word pairs in no chunk, share", LexicalView.pair_misses),
    Baseline("numbers in no chunk, share", LexicalView.number_misses, has_rule=True),
)
RANDOM: Final = "random"
NAMES: Final = (RANDOM, *(baseline.name for baseline in BASELINES))


def score_trivially(
    view: LexicalView, spans: Sequence[ScoredSpan], rng: np.random.Generator
) -> dict[str, ScoredAnswer]:
    """What each baseline says about an answer whose ``spans`` somebody else has cut; by name."""
    row = view.row
    plain = [ScoredSpan(start=span.start, end=span.end, score=0.0) for span in spans]
    drawn = tuple(
        replace(span, score=value) for span, value in zip(plain, rng.random(len(plain)).tolist(), strict=True)
    )
    found = {RANDOM: ScoredAnswer(row=row, spans=drawn, score=float(rng.random()))}
    for baseline in BASELINES:
        scored = []
        for span in plain:
            score = baseline.score(view, span.start, span.end)
            scored.append(replace(span, score=score, is_flagged=baseline.has_rule and score > 0))
        whole = baseline.score(view, 0, len(row.answer))
        found[baseline.name] = ScoredAnswer(row=row, spans=tuple(scored), score=whole)
    return found
