"""Cuts an answer into checkable spans: values first, then what remains of each clause.

A value (number, date, quote, name) is what a wrong answer gets wrong, so it stands alone; the words around
it are its subject. Words that only repeat the question, list marks and phrases about the sources claim
nothing and get no span of their own, or the queue would fill with filler.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from ragblame.attribution.sentences import split_sentences
from ragblame.attribution.verdicts.normalise import Word, content_stems, words
from ragblame.attribution.verdicts.quantities import find_quantities
from ragblame.records import Span, SpanKind

MAX_SPANS = 400  # per answer; what exceeds it is merged into sentences, then into one tail
MAX_VALUE_WORDS = 4  # "is" + at most so many words is a value: "110 requests per second"
MIN_CLAUSE_WORDS = 3  # a clause border with fewer words on one side is no border

_LIST_MARK = re.compile(r"\s*(?:(?:\(?\d{1,3}[.)]|[-*•–>|]|#{1,6})\s+)+")
_QUOTE = re.compile(
    r"[“\"](?=\S)[^“”\"\n]{1,300}?(?<=\S)[”\"](?!\w)|«[^«»\n]{1,300}»|`[^`\n]{1,200}`|「[^「」\n]{1,300}」"
)
_BORDER = re.compile(
    r"[;:—–](?=\s)|,(?=\s+(?:and|but|or|so|which|who|while|whereas|although|though|because|where|when|however"
    r"|then)\b)|\s[()]|[()]\s|\s-\s|[、，；：]"
)
_CITATION = re.compile(
    r"\b(?:passage|document|doc|source|chunk|context|reference)s?\s+\d{1,3}(?:(?:,\s*|,?\s+and\s+|\s*&\s*)\d{1,3})*\b"
    r"|\[\d{1,3}(?:,\s*\d{1,3})*\]",
    re.IGNORECASE,
)
_COPULAS = frozenset(("is", "are", "was", "were", "be", "equals"))
_LINKS = _COPULAS | {"at", "on", "in", "to", "by", "for", "after", "from", "of", "about", "the", "a", "an"}
_IN_VALUES = frozenset(("per", "of", "and", "to", "a", "the"))  # stop words that a value may hold
_JOINERS = frozenset(("of", "de", "da", "di", "van", "von", "der", "den", "la", "le", "du", "for", "the"))
_NO_NAMES = frozenset(("i", "i'm", "i'd", "i've", "i'll", "ok", "note", "yes", "no"))


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The spans of an answer, and whether the cap was met."""

    spans: tuple[Span, ...]
    note: str | None  # one sentence when spans were merged


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    end: int
    kind: SpanKind


@dataclass(frozen=True, slots=True)
class _Known:
    """What the question already says, and which words are names wherever they stand."""

    echo: frozenset[str]  # stems of the question
    names: frozenset[str]  # folded words seen capitalised inside a sentence


def split_spans(answer: str, question: str = "") -> tuple[Span, ...]:
    """Spans of an answer: disjoint, in order, never blank; offsets are code points of ``answer``.

    With the ``question`` known, words that only repeat it are left out. Never raises; a blank answer has no
    spans. At most ``MAX_SPANS``.
    """
    return segment(answer, question).spans


def segment(answer: str, question: str = "") -> Segmentation:
    """As ``split_spans``, saying too whether spans had to be merged."""
    sentences = [(start, end) for start, end in split_sentences(answer) if answer[start:end].strip()]
    merged = max(0, len(sentences) - MAX_SPANS)
    if merged:
        sentences[MAX_SPANS - 1 :] = [(sentences[MAX_SPANS - 1][0], sentences[-1][1])]
    texts = [answer[start:end] for start, end in sentences[: MAX_SPANS - 1]]
    known = _Known(content_stems(question), _names_inside([*texts, question]))
    found: list[tuple[_Piece, tuple[int, int]]] = []
    for index, bounds in enumerate(sentences):
        room = MAX_SPANS - len(found) - (len(sentences) - index - 1)
        pieces = list(islice(_pieces(answer, bounds, known), room + 1)) if room > 1 else []
        if room <= 1 or len(pieces) > room:
            pieces = [_whole(answer, bounds)]
            merged += 1
        found.extend((piece, bounds) for piece in pieces)
    if not found and sentences:
        found = [(_whole(answer, sentences[0]), sentences[0])]
    spans = tuple(
        Span(
            index=index,
            start=piece.start,
            end=piece.end,
            kind=piece.kind,
            sentence_start=bounds[0],
            sentence_end=bounds[1],
        )
        for index, (piece, bounds) in enumerate(found)
    )
    note = None
    if merged:
        note = (
            f"The answer has more than {MAX_SPANS} checkable spans: {merged} sentences were kept whole or "
            "merged into the last span."
        )
    return Segmentation(spans, note)


def _names_inside(sentences: Sequence[str]) -> frozenset[str]:
    """Words that are capitalised where nothing begins: names, even at the start of another sentence."""
    inside: set[str] = set()
    for sentence in sentences:
        items = words(sentence)
        if not _is_heading(items):
            inside.update(
                word.folded
                for before, word in pairwise(items)
                if _may_name(word)
                and sentence[before.end : word.start].strip(" ,'’-/&") == ""
                and not before.surface.isdigit()
            )
    return frozenset(inside)


def _is_heading(items: Sequence[Word]) -> bool:
    """Title case says nothing about names."""
    long = [word for word in items if len(word.surface) > 3]
    return len(long) > 3 and sum(word.is_capital for word in long) > 0.7 * len(long)


def _may_name(word: Word) -> bool:
    return word.is_capital and word.folded not in _NO_NAMES and (word.is_content or len(word.surface) > 4)


def _whole(text: str, bounds: tuple[int, int]) -> _Piece:
    start, end = _trim(text, *bounds)
    return _Piece(start, end, SpanKind.CLAUSE)


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
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
    return not char.isspace() and (char.isalnum() or char in "$€£¥₹%°+#@" or ord(char) >= 0x300)


def _pieces(text: str, bounds: tuple[int, int], known: _Known) -> Iterator[_Piece]:
    """The spans of one sentence; none where it only announces what follows."""
    start, end = bounds
    mark = _LIST_MARK.match(text, start, end)
    if mark is not None and mark.end() < end:
        start = mark.end()
    items = words(text[start:end])
    has_claim = False
    for low, high in _clauses(text, start, end):
        is_first = low == start
        for piece in _clause_pieces(
            text, low, high, known, is_first=is_first, with_names=not _is_heading(items)
        ):
            if _claims(text, piece, known):
                has_claim = True
                yield piece
    # Nothing but the question's words: "Yes, it uses TLS." is a claim too, "Here is how to grow it:" is not.
    is_short_answer = bool(items) and items[0].folded == "yes"
    if not has_claim and (is_short_answer or any(word.is_content for word in items) or not items):
        whole = _whole(text, (start, end))
        if whole.end > whole.start and (is_short_answer or not text[start:end].rstrip().endswith(":")):
            yield whole


def _claims(text: str, piece: _Piece, known: _Known) -> bool:
    """Whether a piece says something that the question did not."""
    if piece.kind is not SpanKind.CLAUSE:
        return True
    stems = content_stems(text[piece.start : piece.end])
    if not stems:
        return any(ord(char) >= 0x2E80 for char in text[piece.start : piece.end])
    return not stems <= known.echo


def _clauses(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    at = start
    for border in _BORDER.finditer(text, start, end):
        if border.start() <= at or border.end() >= end:
            continue
        # A look at the nearest words is enough, and keeps long sentences linear.
        before = text[max(at, border.start() - 60) : border.start()]
        after = text[border.end() : min(end, border.end() + 60)]
        if len(before.split()) >= MIN_CLAUSE_WORDS and len(after.split()) >= MIN_CLAUSE_WORDS:
            yield at, border.start()
            at = border.end()
    if at < end:
        yield at, end


def _clause_pieces(
    text: str, start: int, end: int, known: _Known, *, is_first: bool, with_names: bool
) -> Iterator[_Piece]:
    """Values of a clause and the words between them, in order."""
    head = _value_start(text, start, end, known)
    if head is not None:
        # The words before a value are its subject; one that the question asked about claims nothing more.
        if not content_stems(text[start:head]) & known.echo:
            yield from _between(text, start, head)
        low, high = _trim(text, head, end)
        yield _Piece(low, high, _value_kind(text[low:high]))
    else:
        yield from _rest(text, start, end, known, is_first=is_first, with_names=with_names)


def _value_start(text: str, start: int, end: int, known: _Known) -> int | None:
    """Where "The port of the gateway is | 2959" turns from subject to value; None when it does not."""
    items = words(text[start:end])
    for index in range(len(items) - 1, 0, -1):
        link = items[index - 1]
        tail = items[index:]
        if len(tail) > MAX_VALUE_WORDS:
            return None
        if link.folded not in _LINKS:
            continue
        if any(
            not word.is_content and word.folded not in _IN_VALUES and not word.is_negation for word in tail
        ):
            return None
        subject = {word.stem for word in items[:index] if word.is_content}
        is_echo = bool(subject) and subject <= known.echo
        has_value = any(word.is_content or word.is_negation for word in tail)
        if has_value and (link.folded in _COPULAS or is_echo):
            return start + tail[0].start
    return None


def _value_kind(value: str) -> SpanKind:
    quantities = find_quantities(value)
    if quantities:
        return quantities[0].kind
    items = words(value)
    if any(word.is_negation for word in items):
        return SpanKind.NEGATION
    if _QUOTE.search(value):
        return SpanKind.QUOTE
    return SpanKind.NAME if any(_may_name(word) for word in items) else SpanKind.CLAUSE


def _rest(
    text: str, start: int, end: int, known: _Known, *, is_first: bool, with_names: bool
) -> Iterator[_Piece]:
    """Quotes, quantities and names in [start, end) and the clause words between them."""
    at = start
    for item in _items(text, start, end, known, is_first=is_first, with_names=with_names):
        yield from _between(text, at, item.start)
        yield item
        at = item.end
    yield from _between(text, at, end)


def _items(
    text: str, start: int, end: int, known: _Known, *, is_first: bool, with_names: bool
) -> list[_Piece]:
    """Disjoint values: quotes win over quantities, quantities over names."""
    part = text[start:end]
    found = [_Piece(start + q.start(), start + q.end(), SpanKind.QUOTE) for q in _QUOTE.finditer(part)]
    cited = [citation.span() for citation in _CITATION.finditer(part)]
    for quantity in find_quantities(part):
        if any(low <= quantity.start < high for low, high in cited):
            continue
        piece = _Piece(start + quantity.start, start + quantity.end, quantity.kind)
        if not any(piece.start < other.end and other.start < piece.end for other in found):
            found.append(piece)
    if with_names:
        taken = sorted((piece.start, piece.end) for piece in found)
        for low, high in _name_runs(part, known, is_first=is_first):
            piece = _Piece(start + low, start + high, SpanKind.NAME)
            if not any(piece.start < last and first < piece.end for first, last in taken):
                found.append(piece)
    return sorted(found, key=lambda piece: piece.start)


def _name_runs(part: str, known: _Known, *, is_first: bool) -> Iterator[tuple[int, int]]:
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
        if not {item.stem for item in run if item.is_content} <= known.echo:
            yield run[0].start, run[-1].end
        index = last + 1


def _opens_name(items: Sequence[Word], part: str, known: _Known) -> bool:
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


def _between(text: str, start: int, end: int) -> Iterator[_Piece]:
    """The words between values, as a clause or, with a negation in it, a negated clause."""
    low, high = _trim(text, start, end)
    items = words(text[low:high])
    if not items and not any(ord(char) >= 0x2E80 for char in text[low:high]):
        return
    if any(word.is_negation for word in items):
        yield _Piece(low, high, SpanKind.NEGATION)
    else:
        yield _Piece(low, high, SpanKind.CLAUSE)
