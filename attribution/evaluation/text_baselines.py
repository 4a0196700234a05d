"""Chunk scores from the texts alone, without any model: what attribution must beat to be worth its forwards.

In many a world a word overlap finds the right chunk, so these rows stand in every table (and the cells where
they must fail are what tells a method that reads the model from one that reads the words).

Retrieval is the cosine of plain bags of words: the product's own search lives in SQL, a floor that evaluation
does not reach, and hashing words into buckets would only add collisions to the same number.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Words in lower case, in order; digits and letters count, punctuation does not."""
    return _WORD.findall(text.casefold())


def inverse_document_frequency(documents: Sequence[str]) -> dict[str, float]:
    """``ln(1 + (N - d + 0.5) / (d + 0.5))`` for each word that stands in d of N documents.

    The weight of Robertson & Zaragoza, "The Probabilistic Relevance Framework" (2009), with one added inside
    the logarithm so that it stays positive, as in the product's search.
    """
    found = Counter(word for document in documents for word in set(words(document)))
    size = len(documents)
    return {word: math.log1p((size - count + 0.5) / (count + 0.5)) for word, count in found.items()}


def overlap(
    text: str, chunks: Sequence[str], weights: Mapping[str, float] | None = None
) -> NDArray[np.float64]:
    """Share of the text's distinct words that stand in each chunk, in [0, 1], shape [chunk].

    ``weights``: what each word counts, 1 for all when None; words without a weight stand in no document, so
    they could be found in no chunk and count nothing. A text without words scores 0 everywhere.
    """
    wanted = set(words(text))
    counts = {word: 1.0 if weights is None else weights.get(word, 0.0) for word in wanted}
    total = sum(counts.values())
    if total == 0.0:
        return np.zeros(len(chunks))
    return np.array([sum(counts[word] for word in wanted & set(words(chunk))) / total for chunk in chunks])


def holds_value(value: str, chunks: Sequence[str]) -> NDArray[np.float64]:
    """1 where the chunk holds the words of the value in a row, else 0, shape [chunk]: the citation by search.

    A value without words is nowhere.
    """
    wanted = words(value)
    if not wanted:
        return np.zeros(len(chunks))
    needle = f" {' '.join(wanted)} "
    return np.array([float(needle in f" {' '.join(words(chunk))} ") for chunk in chunks])


def retrieval(question: str, chunks: Sequence[str]) -> NDArray[np.float64]:
    """Cosine of the word counts of question and chunk, in [0, 1], shape [chunk]; 0 without words."""
    asked = Counter(words(question))
    return np.array([_cosine(asked, Counter(words(chunk))) for chunk in chunks])


def length(chunks: Sequence[str]) -> NDArray[np.float64]:
    """Number of words of each chunk, shape [chunk]."""
    return np.array([float(len(words(chunk))) for chunk in chunks])


def first_position(n: int) -> NDArray[np.float64]:
    """``1 / (1 + position)``, shape [n]: the first retrieved chunk is the source."""
    return np.array([1.0 / (1 + position) for position in range(n)])


def last_position(n: int) -> NDArray[np.float64]:
    """``1 / (n - position)``, shape [n]: the chunk next to the question is the source."""
    return first_position(n)[::-1].copy()


def text_baselines(
    *,
    question: str,
    answer: str,
    chunks: Sequence[str],
    seed: int,
    value: str | None = None,
    documents: Sequence[str] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Every text baseline of one span by name, each of shape [chunk position]; higher: the likelier source.

    ``answer``: the answer, or its sentence around the span. ``value``: the span's own text, which adds a row.
    ``documents``: what word frequencies are counted in, None for the chunks of this prompt.
    """
    rare = inverse_document_frequency(chunks if documents is None else documents)
    found = {
        "overlap": overlap(answer, chunks),
        "overlap, IDF": overlap(answer, chunks, rare),
        "retrieval": retrieval(question, chunks),
        "length": length(chunks),
        "first position": first_position(len(chunks)),
        "last position": last_position(len(chunks)),
        "random": np.random.default_rng(seed).random(len(chunks)),
    }
    return found if value is None else found | {"holds the value": holds_value(value, chunks)}


def _cosine(one: Counter[str], other: Counter[str]) -> float:
    product = sum(count * other[word] for word, count in one.items())
    norms = math.sqrt(sum(count**2 for count in one.values()) * sum(count**2 for count in other.values()))
    return product / norms if norms else 0.0
