"""Finds the values inside a clause: quotations, quantities, names; and the words that stand between them.

Kept apart from the cutting of sentences and clauses, because what makes a name or a quotation is a matter of
the words alone.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ragblame.attribution.citations import find_citations
from ragblame.attribution.verdicts.normalise import Word, words
from ragblame.attribution.verdicts.quantities import Quantity, find_quantities
from ragblame.records import SpanKind

_QUOTE = re.compile(
    r"„[^„“”\n]{1,300}[“”]|[“\"](?=\S)[^“”\"\n]{1,300}?(?<=\S)[”\"](?!\w)|«[^«»\n]{1,300}»|»[^«»\n]{1,300}«"
    r"|‹[^‹›\n]{1,300}›|`[^`\n]{1,200}`|「[^「」\n]{1,300}」|『[^『』\n]{1,300}』"
)
_ITALIAN_NOT = re.compile(r"\bnon\b(?![-–]) (?!profit)[a-zàèéìòù]", re.IGNORECASE)
_INSIDE_WORDS = re.compile(r"なかった|않|없")  # Japanese, Korean: negations that are no words of their own
# German capitalises every noun, so a capital alone names nobody there.
_GERMAN = frozenset(
    ("der", "die", "das", "und", "ist", "nicht", "ein", "eine", "einen", "den", "dem", "des", "mit", "fur",
     "im", "wird", "werden", "auf", "zu", "von")
)  # fmt: skip
_GERMAN_PART = 0.12  # of a text's words that tell German
_JOINERS = frozenset(("of", "de", "da", "di", "van", "von", "der", "den", "la", "le", "du", "for", "the"))
_NO_NAMES = frozenset(("i", "i'm", "i'd", "i've", "i'll", "ok", "note", "yes", "no"))


@dataclass(frozen=True, slots=True)
class Piece:
    """A span to be."""

    start: int  # code points in the answer
    end: int
    kind: SpanKind


@dataclass(frozen=True, slots=True)
class Known:
    """What the question already says, and which words are names wherever they stand."""

    echo: frozenset[str]  # stems of the question
    names: frozenset[str]  # folded words seen capitalised inside a sentence
    has_capital_nouns: bool = False  # the text is German: only several capitals in a row make a name


def values_and_words(
    text: str, start: int, end: int, known: Known, *, is_first: bool, with_names: bool
) -> Iterator[Piece]:
    """Quotes, quantities and names in [start, end) and the clause words between them."""
    at = start
    for item in _items(text, start, end, known, is_first=is_first, with_names=with_names):
        yield from words_between(text, at, item.start)
        yield item
        at = item.end
    yield from words_between(text, at, end)


def _items(text: str, start: int, end: int, known: Known, *, is_first: bool, with_names: bool) -> list[Piece]:
    """Disjoint values: quotes win over quantities, quantities over names."""
    part = text[start:end]
    found = [Piece(start + q.start(), start + q.end(), SpanKind.QUOTE) for q in _QUOTE.finditer(part)]
    cited = [(citation.start, citation.end) for citation in find_citations(part)]
    for quantity in find_quantities(part):
        if any(low <= quantity.start < high for low, high in cited) or _is_list_mark(part, quantity):
            continue
        piece = Piece(start + quantity.start, start + quantity.end, quantity.kind)
        if not any(piece.start < other.end and other.start < piece.end for other in found):
            found.append(piece)
    if with_names:
        taken = sorted((piece.start, piece.end) for piece in found)
        for low, high in _name_runs(part, known, is_first=is_first):
            piece = Piece(start + low, start + high, SpanKind.NAME)
            if not any(piece.start < last and first < piece.end for first, last in taken):
                found.append(piece)
    return sorted(found, key=lambda piece: piece.start)


def _is_list_mark(part: str, quantity: Quantity) -> bool:
    """Whether a number only counts lines: "3." at the start of one."""
    line = part[part.rfind("\n", 0, quantity.start) + 1 : quantity.start]
    counts = not line.strip(" \t(-*") and len(quantity.text) < 4
    return counts and re.match(r"[.):]\s+\S", part[quantity.end :]) is not None


def _name_runs(part: str, known: Known, *, is_first: bool) -> Iterator[tuple[int, int]]:
    """Runs of capitalised words that the question does not hold: "Kluane National Park"."""
    items = words(part)
    index = 0
    while index < len(items):
        word = items[index]
        starts_name = _may_name(word) and not (
            is_first and index == 0 and not _opens_name(items, part, known)
        )
        if not starts_name:
            index += 1
            continue
        last = index
        while last + 1 < len(items):
            step = _next_in_name(items, last, part)
            if step is None:
                break
            last = step
        run = items[index : last + 1]
        if known.has_capital_nouns and not _is_german_name(run):
            index = last + 1
            continue
        if not {item.stem for item in run if item.is_content} <= known.echo:
            yield run[0].start, run[-1].end
        index = last + 1


def _is_german_name(run: Sequence[Word]) -> bool:
    """Two capitalised words in a row, or one with a second capital or a digit ("GmbH", "Q7")."""
    is_noun = [word.is_capital and word.folded not in _GERMAN for word in run]
    return any(both == (True, True) for both in pairwise(is_noun)) or any(
        noun and any(char.isupper() or char.isdigit() for char in word.surface[1:])
        for noun, word in zip(is_noun, run, strict=True)
    )


def is_german(items: Sequence[Word]) -> bool:
    """Whether the words are German, by its articles and the like."""
    known = [word.folded in _GERMAN for word in items]
    return sum(known) >= 2 and sum(known) >= _GERMAN_PART * len(known)


def _opens_name(items: Sequence[Word], part: str, known: Known) -> bool:
    """Whether a sentence's first word is a name: a name elsewhere, or followed by another capital."""
    if items[0].folded in known.names:
        return True
    return len(items) > 1 and items[0].is_content and _next_in_name(items, 0, part) is not None


def _next_in_name(items: Sequence[Word], last: int, part: str) -> int | None:
    """Index of the capitalised word that goes on with a name, over at most one "of" or "van"."""
    for step in (1, 2):
        index = last + step
        if index >= len(items):
            return None
        gap = part[items[index - 1].end : items[index].start]
        if gap.strip(" .&'’-/") or "\n" in gap or gap.count(".") > 1:
            return None
        if gap.startswith(". ") and items[index - 1].end - items[index - 1].start > 3:
            return None
        if _may_name(items[index]):
            return index
        if items[index].folded not in _JOINERS:
            return None
    return None


def words_between(text: str, start: int, end: int) -> Iterator[Piece]:
    """The words between values, as a clause or, with a negation in it, a negated clause."""
    low, high = trimmed(text, start, end)
    items = words(text[low:high])
    if not items and not any(ord(char) >= 0x2E80 for char in text[low:high]):
        return
    if any(word.is_negation for word in items) or _denies(text[low:high]):
        yield Piece(low, high, SpanKind.NEGATION)
    else:
        yield Piece(low, high, SpanKind.CLAUSE)


def _denies(text: str) -> bool:
    """Whether a negation stands there that is no word of its own."""
    return _ITALIAN_NOT.search(text) is not None or _INSIDE_WORDS.search(text) is not None


def value_kind(value: str) -> SpanKind:
    """What a few words behind "is" are: the kind of the first telling thing in them."""
    quantities = find_quantities(value)
    if quantities:
        return quantities[0].kind
    items = words(value)
    if any(word.is_negation for word in items):
        return SpanKind.NEGATION
    if _QUOTE.search(value):
        return SpanKind.QUOTE
    return SpanKind.NAME if any(_may_name(word) for word in items) else SpanKind.CLAUSE


def names_inside(sentences: Sequence[str]) -> frozenset[str]:
    """Words that are capitalised where nothing begins: names, even at the start of another sentence."""
    inside: set[str] = set()
    for sentence in sentences:
        items = words(sentence)
        if not is_heading(items):
            inside.update(
                word.folded
                for before, word in pairwise(items)
                if _may_name(word)
                and sentence[before.end : word.start].strip(" ,'’-/&") == ""
                and not before.surface.isdigit()
            )
    return frozenset(inside)


def is_heading(items: Sequence[Word]) -> bool:
    """Title case says nothing about names."""
    long = [word for word in items if len(word.surface) > 3]
    return len(long) > 3 and sum(word.is_capital for word in long) > 0.7 * len(long)


def _may_name(word: Word) -> bool:
    return word.is_capital and word.folded not in _NO_NAMES and (word.is_content or len(word.surface) > 4)


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Drop white space and loose punctuation at both ends, but never everything that is visible."""
    low, high = start, end
    while low < high and not _is_core(text[low]):
        low += 1
    while high > low and not _is_core(text[high - 1]):
        high -= 1
    if low < high:
        return low, high
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _is_core(char: str) -> bool:
    # Currency, percent, degree and emoji are symbols and belong to the value; commas and brackets do not.
    if char.isalnum() or char in "$€£¥₹%°+#@":
        return True
    return ord(char) >= 0x300 and not char.isspace() and unicodedata.category(char)[0] != "P"
