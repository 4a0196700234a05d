"""Which passages an answer says it has something from: "(Passage 2)", "[1][3]", "the second document".

Models that are told "passage 1: …" cite by number, and a right sentence with a wrong number is common:
the words are in the chunks, only not where the answer says. What a number means, the prompt tells.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ragblame.attribution.sentences import split_sentences

# Numbers of up to three digits: higher ones are years.
NOUN: Final = r"(?:passage|document|doc|source|chunk|context|reference|excerpt|snippet)s?"
_JOIN = rf"(?:\s*(?:,\s*(?:and\b|or\b)?|\band\b|\bor\b|\bto\b|\bthrough\b|[&–-])\s*(?:{NOUN}\s+)?)"
_ORDINALS: Final = (
    *("first", "second", "third", "fourth", "fifth"),
    *("sixth", "seventh", "eighth", "ninth", "tenth"),
)
_ORDINAL = "|".join(_ORDINALS)
_BARE = re.compile(r"\[(?P<bare>\d{1,3}(?:\s*[,;–-]\s*\d{1,3})*)\]")
_CITATION = re.compile(
    rf"\b{NOUN}\s+(?:#|no\.?\s|number\s)?\s*\[?(?P<named>\d{{1,3}}(?:{_JOIN}\d{{1,3}})*)\b(?!\.\d)"
    rf"|{_BARE.pattern}"
    rf"|\b(?P<ordinals>(?:{_ORDINAL})(?:\s*(?:,|and|or)\s+(?:{_ORDINAL}))*)\s+{NOUN}\b",
    re.IGNORECASE,
)
_RANGE = re.compile(r"(\d{1,3})\s*(?:\bto\b|\bthrough\b|[–-])\s*(?:[a-z]+\s+)?(\d{1,3})", re.IGNORECASE)
_HEADING = re.compile(rf"[^\w\n]*{NOUN}\s+\d{{1,3}}\s*[^\w\s]*:", re.IGNORECASE)
_OPENING = re.compile(r"\s*(?:\([^()\n]{1,60}\)|\[[^\[\]\n]{1,60}\])[.,;]?\s*")
_LONGEST: Final = 50  # passages that a range may name
_SAYING: Final = frozenset(  # words about who said it
    ("according", "to", "as", "per", "see", "also", "from", "in", "and", "the", "by", "stated", "says")
)
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True, slots=True)
class Citation:
    """One place of an answer that names passages."""

    start: int  # code points of the answer
    end: int
    numbers: frozenset[int]  # as written; such as no passage has are kept


@dataclass(frozen=True, slots=True)
class Cited:
    """A sentence and the passages that the answer says it is from."""

    start: int  # code points of the answer
    end: int
    numbers: frozenset[int]


def find_citations(text: str) -> list[Citation]:
    """All that name passages by number, in order; they do not overlap."""
    return [
        Citation(match.start(), match.end(), _numbers(match["named"] or match["bare"] or match["ordinals"]))
        for match in _CITATION.finditer(text)
    ]


def only_cites(text: str) -> bool:
    """Whether the words name passages and say nothing else: "as per passage 2"."""
    citations = find_citations(text)
    if not citations:
        return False
    edges = [0, *(edge for one in citations for edge in (one.start, one.end)), len(text)]
    rest = " ".join(text[low:high] for low, high in zip(edges[::2], edges[1::2], strict=True))
    return _SAYING.issuperset(re.findall(r"\w+", rest.lower()))


def bare_citations(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Where "[1]" and "[2, 3]" stand in [start, end), brackets included, in order."""
    return [match.span() for match in _BARE.finditer(text, start, end)]


def _numbers(written: str) -> frozenset[int]:
    """ "1, 2 and 4-6" as 1, 2, 4, 5, 6; "first and third" as 1, 3."""
    numbers = {int(number) for number in re.findall(r"\d{1,3}", written)}
    numbers |= {_ORDINALS.index(word) + 1 for word in re.findall(_ORDINAL, written.lower())}
    for match in _RANGE.finditer(written):
        numbers |= set(range(int(match[1]), min(int(match[2]), int(match[1]) + _LONGEST) + 1))
    return frozenset(numbers)


def cited_sentences(text: str) -> list[Cited]:
    """The sentences of an answer that name passages, in order, disjoint.

    A sentence of nothing but a citation belongs to the one before; a heading ("Passage 2:") to none.
    """
    return list(_cited(text, find_citations(text)))


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Sentences, and what stands in brackets before one apart: it may end the sentence before."""
    for start, end in split_sentences(text):
        opening = _OPENING.match(text, start, end)
        cut = start if opening is None else opening.end()
        if start < cut:
            yield start, cut
        if cut < end:
            yield cut, end


def _cited(text: str, citations: Sequence[Citation]) -> Iterator[Cited]:
    if not citations:
        return  # and no sentence is looked for
    before: Cited | None = None  # the sentence to be told next, if it cites
    at = 0
    for start, end in _sentences(text):
        own: frozenset[int] = frozenset()
        rest, last = [], start
        while at < len(citations) and citations[at].start < end:
            own |= citations[at].numbers
            rest.append(text[last : citations[at].start])
            last = max(last, citations[at].end)
            at += 1
        rest.append(text[last:end])
        is_bracket = _OPENING.fullmatch(text, start, end) is not None
        if _WORD.search(" ".join(rest)) is not None and not (own and is_bracket):
            if before is not None and before.numbers:
                yield before
            before = Cited(start, end, own)
        elif own and before is not None and not _HEADING.match(text, start, end):
            before = Cited(before.start, end, before.numbers | own)  # "… in 2019. (Passage 2)"
    if before is not None and before.numbers:
        yield before
