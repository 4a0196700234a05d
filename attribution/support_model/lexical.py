"""Which words of an answer the chunks hold, word by word: what a small reader need not learn from few labels.

A reader with a few million parameters spends its training on finding equal words; given as input features,
equality is free, and what is left to learn is what equality misses. The same facts, counted over the whole
answer, are the figures that the trivial detectors go by.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ragblame.attribution.verdicts.normalise import Word, words

ANSWER_FLAGS: Final = (
    *("content", "number", "capital", "negation", "asked", "first in sentence"),
    *("in a chunk", "pair in a chunk", "triple in a chunk"),
    *("near its neighbours", "in most chunks"),
)
EVIDENCE_FLAGS: Final = ("content", "number", "asked", "answered", "pair answered", "triple answered")
COUNTS: Final = (
    *("words", "content words", "sentences", "chunk words"),
    *("content words missing", "pairs missing", "triples missing", "numbers missing", "capitals missing"),
    *("share of content words missing", "share of pairs missing", "share of triples missing"),
    *("share of numbers missing", "share of capitals missing", "longest run missing"),
    *("worst sentence, share of content words missing", "question words in the chunks", "negations"),
    *("share of chunk words answered", "says that it cannot say"),
)
_NEAR: Final = 6  # words: how far apart two neighbours of the answer may stand in a chunk
_ABSTAINS: Final = ("unable to answer", "cannot answer", "not provide", "no information", "not mention")

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Text:
    """A text as the features see it."""

    text: str
    words: tuple[Word, ...]
    stems: tuple[str, ...]
    is_number: tuple[bool, ...]

    @classmethod
    def of(cls, text: str) -> "Text":
        """Cut into words once."""
        found = tuple(words(text))
        return cls(
            text,
            found,
            tuple(word.stem for word in found),
            tuple(any(char.isdigit() for char in word.folded) for word in found),
        )

    def pairs(self) -> list[tuple[str, str]]:
        """Neighbouring stems; one fewer than words."""
        return list(pairwise(self.stems))

    def triples(self) -> list[tuple[str, str, str]]:
        """Three stems in a row; two fewer than words."""
        return list(zip(self.stems, self.stems[1:], self.stems[2:], strict=False))


class Vocabulary:
    """Stems, pairs and triples of some texts, and where each stem stands."""

    def __init__(self, texts: Sequence[Text]) -> None:
        self.stems = frozenset(stem for text in texts for stem in text.stems)
        self.pairs = frozenset(pair for text in texts for pair in text.pairs())
        self.triples = frozenset(triple for text in texts for triple in text.triples())
        self._places: dict[str, list[int]] = {}
        at = 0
        for text in texts:
            for stem in text.stems:
                self._places.setdefault(stem, []).append(at)
                at += 1
            at += _NEAR + 1

    def is_near(self, one: str, other: str) -> bool:
        """Whether the two stand within a few words of each other."""
        there, here = self._places.get(other), self._places.get(one)
        if not there or not here:
            return False
        return any(abs(a - b) <= _NEAR for a in here[:32] for b in there[:32])


def _in_row(known: Set[Any], runs: Sequence[Any], size: int, n: int) -> list[bool]:
    """Which of ``n`` words stand in a run of ``size`` words that is known."""
    held = [False] * n
    for index, run in enumerate(runs):
        if run in known:
            held[index : index + size] = [True] * size
    return held


def answer_flags(
    answer: Text, question: Vocabulary, whole: Vocabulary, chunks: Sequence[Vocabulary]
) -> Floats:
    """0 or 1 for every word of the answer, [word, ANSWER_FLAGS]; ``whole``: of all ``chunks`` together."""
    n = len(answer.words)
    flags = np.zeros((n, len(ANSWER_FLAGS)), np.float32)
    if not n:
        return flags
    pairs, triples = answer.pairs(), answer.triples()
    columns: list[list[bool]] = [
        [word.is_content for word in answer.words],
        list(answer.is_number),
        [word.is_capital for word in answer.words],
        [word.is_negation for word in answer.words],
        [stem in question.stems for stem in answer.stems],
        _first_in_sentence(answer),
        [stem in whole.stems for stem in answer.stems],
        _in_row(whole.pairs, pairs, 2, n),
        _in_row(whole.triples, triples, 3, n),
        _near(answer, whole),
        [2 * sum(stem in chunk.stems for chunk in chunks) > len(chunks) for stem in answer.stems],
    ]
    flags[:] = np.array(columns, np.float32).T
    return flags


def evidence_flags(chunk: Text, question: Vocabulary, answer: Vocabulary) -> Floats:
    """0 or 1 for every word of a chunk, [word, EVIDENCE_FLAGS]."""
    n = len(chunk.words)
    if not n:
        return np.zeros((0, len(EVIDENCE_FLAGS)), np.float32)
    columns = [
        [word.is_content for word in chunk.words],
        list(chunk.is_number),
        [stem in question.stems for stem in chunk.stems],
        [stem in answer.stems for stem in chunk.stems],
        _in_row(answer.pairs, chunk.pairs(), 2, n),
        _in_row(answer.triples, chunk.triples(), 3, n),
    ]
    return np.array(columns, np.float32).T


def _first_in_sentence(text: Text) -> list[bool]:
    found, end = [], 0
    for index, word in enumerate(text.words):
        between = text.text[end : word.start]
        found.append(index == 0 or any(char in ".!?\n。！？" for char in between))
        end = word.end
    return found


def _near(answer: Text, whole: Vocabulary) -> list[bool]:
    """Whether a content word stands near its previous or next content word in a chunk."""
    held = [False] * len(answer.words)
    content = [index for index, word in enumerate(answer.words) if word.is_content]
    for one, other in pairwise(content):
        if whole.is_near(answer.stems[one], answer.stems[other]):
            held[one] = held[other] = True
    return held


def counts(answer: Text, question: Vocabulary, whole: Vocabulary, chunk_texts: Sequence[Text]) -> Floats:
    """Figures of the whole answer, [COUNTS]: logarithms of counts, and shares in [0, 1]."""
    pairs, triples = answer.pairs(), answer.triples()
    is_first = _first_in_sentence(answer)
    content = [index for index, word in enumerate(answer.words) if word.is_content]
    missing = [index for index in content if answer.stems[index] not in whole.stems]
    numbers = [index for index, is_number in enumerate(answer.is_number) if is_number]
    capitals = [i for i in content if answer.words[i].is_capital and not is_first[i]]
    missed = {
        "pairs": sum(pair not in whole.pairs for pair in pairs),
        "triples": sum(triple not in whole.triples for triple in triples),
        "numbers": sum(answer.stems[index] not in whole.stems for index in numbers),
        "capitals": sum(answer.stems[index] not in whole.stems for index in capitals),
    }
    gone = set(missing)
    longest = run = 0
    for index in content:
        run = run + 1 if index in gone else 0
        longest = max(longest, run)
    sentence = np.cumsum(is_first) if is_first else np.zeros(0)
    worst = 0.0
    for number in set(sentence.tolist()):
        inside = [index for index in content if sentence[index] == number]
        if len(inside) >= 3:
            worst = max(worst, sum(index in gone for index in inside) / len(inside))
    chunk_words = [stem for text in chunk_texts for stem in text.stems]
    said = frozenset(answer.stems)
    low = answer.text.lower()
    figures = (
        *(np.log1p(len(answer.words)), np.log1p(len(content)), np.log1p(sum(is_first))),
        np.log1p(len(chunk_words)),
        np.log1p(len(missing)),
        *(np.log1p(missed[name]) for name in ("pairs", "triples", "numbers", "capitals")),
        _share(len(missing), len(content)),
        _share(missed["pairs"], len(pairs)),
        _share(missed["triples"], len(triples)),
        _share(missed["numbers"], len(numbers)),
        _share(missed["capitals"], len(capitals)),
        np.log1p(longest),
        worst,
        _share(sum(stem in whole.stems for stem in question.stems), len(question.stems)),
        np.log1p(sum(word.is_negation for word in answer.words)),
        _share(sum(stem in said for stem in chunk_words), len(chunk_words)),
        float(any(phrase in low for phrase in _ABSTAINS)),
    )
    return np.array(figures, np.float32)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
