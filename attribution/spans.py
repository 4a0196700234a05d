"""Cuts an answer into checkable spans: values first, then what remains of each clause.

A value (number, date, quote, name) is what a wrong answer gets wrong, so it stands alone; the words around
it are its subject. Words that only repeat the question, list marks and phrases about the sources claim
nothing and get no span of their own, or the queue would fill with filler.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from ragblame.attribution.citations import bare_citations
from ragblame.attribution.pieces import (
    Known,
    Piece,
    is_german,
    is_heading,
    names_inside,
    trimmed,
    value_kind,
    values_and_words,
    words_between,
)
from ragblame.attribution.sentences import split_sentences
from ragblame.attribution.verdicts.normalise import content_stems, words
from ragblame.attribution.verdicts.quantities import find_quantities
from ragblame.records import Span, SpanKind

MAX_SPANS = 400  # per answer; what exceeds it is merged into sentences, then into one tail
MAX_VALUE_WORDS = 4  # "is" + at most so many words is a value: "110 requests per second"
LOOKED_AT = 4_000  # code points that tell the language
MIN_CLAUSE_WORDS = 3  # a clause border with fewer words on one side is no border

_LIST_MARK = re.compile(r"\s*(?:(?:\(?\d{1,3}[.)]|[-*•–>|]|#{1,6})\s+)+")
_BORDER = re.compile(
    r"[;:—–](?=\s)|,(?=\s+(?:and|but|or|so|which|who|while|whereas|although|though|because|where|when|however"
    r"|then)\b)|\s[()]|[()]\s|\s-\s|[、，；：]"
)
_COPULAS = frozenset(("is", "are", "was", "were", "be", "equals"))
_LINKS = _COPULAS | {"at", "on", "in", "to", "by", "for", "after", "from", "of", "about", "the", "a", "an"}
_IN_VALUES = frozenset(("per", "of", "and", "to", "a", "the"))  # stop words that a value may hold


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The spans of an answer, and whether the cap was met."""

    spans: tuple[Span, ...]
    note: str | None  # one sentence when spans were merged


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
    first_words = words(" ".join(texts)[:LOOKED_AT])
    known = Known(content_stems(question), names_inside([*texts, question]), is_german(first_words))
    found: list[tuple[Piece, tuple[int, int]]] = []
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


def _whole(text: str, bounds: tuple[int, int]) -> Piece:
    start, end = trimmed(text, *bounds)
    return Piece(start, end, SpanKind.CLAUSE)


def _pieces(text: str, bounds: tuple[int, int], known: Known) -> Iterator[Piece]:
    """The spans of one sentence; none where it only announces what follows."""
    start, end = bounds
    mark = _LIST_MARK.match(text, start, end)
    if mark is not None and mark.end() < end:
        start = mark.end()
    items = words(text[start:end])
    # "To lock the file, follow these steps:" announces; what it announces is checked.
    announces = text[start:end].rstrip().endswith(":")
    has_claim = announces
    with_names = not is_heading(items)
    parts = list(_without_citations(text, start, end))
    for low, high in (clause for part in parts for clause in _clauses(text, *part)):
        is_first = low == start or text[low - 1] in ":;"
        for piece in _clause_pieces(text, low, high, known, is_first=is_first, with_names=with_names):
            if _claims(text, piece, known) and not (announces and piece.kind is SpanKind.CLAUSE):
                has_claim = True
                yield piece
    # Nothing but the question's words: "Yes, it uses TLS." is a claim too, "Here is how to grow it:" is not.
    is_short_answer = bool(items) and items[0].folded == "yes"
    if not has_claim and parts and (is_short_answer or any(word.is_content for word in items) or not items):
        whole = _whole(text, (start, end))
        if whole.end > whole.start:
            yield whole


def _claims(text: str, piece: Piece, known: Known) -> bool:
    """Whether a piece says something that the question did not."""
    if piece.kind is not SpanKind.CLAUSE:
        return True
    stems = content_stems(text[piece.start : piece.end])
    if not stems:
        return any(ord(char) >= 0x2E80 for char in text[piece.start : piece.end])
    return not stems <= known.echo


def _without_citations(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """What a sentence says between its "[1]" and "[2]"."""
    at = start
    for low, high in [*bare_citations(text, start, end), (end, end)]:
        if any(char.isalnum() for char in text[at:low]) or (at, low) == (start, end):
            yield at, low
        at = high


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
    text: str, start: int, end: int, known: Known, *, is_first: bool, with_names: bool
) -> Iterator[Piece]:
    """Values of a clause and the words between them, in order."""
    head = _value_start(text, start, end, known)
    if head is not None:
        # The words before a value are its subject; one that the question asked about claims nothing more.
        if not content_stems(text[start:head]) & known.echo:
            yield from words_between(text, start, head)
        low, high = trimmed(text, head, end)
        yield Piece(low, high, value_kind(text[low:high]))
    else:
        yield from values_and_words(text, start, end, known, is_first=is_first, with_names=with_names)


def _value_start(text: str, start: int, end: int, known: Known) -> int | None:
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
            low = tail[0].start
            # A currency's sign is no word: "€ 1.299,50" begins with it.
            around = (q.start for q in find_quantities(text[start:end]) if q.start <= low < q.end)
            return start + min(low, *around, low)
    return None
