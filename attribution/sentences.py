"""Cuts text into sentences that tile it, because evidence is quoted by the sentence and spans live in one.

The boundaries are those of ``sentencex``; what it gets wrong for us (a title before a name, a list number on
its own, headings glued to the next line) is repaired here, and its result is never trusted blindly.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

import sentencex

from ragblame.attribution.verdicts.quantities import MONTHS_ABROAD

# Code points handed over at once, because unpaired quotes cost the splitter quadratic time; also the longest
# sentence there is.
MAX_BLOCK = 4_000
_SHORT_LINE = 80  # code points: a shorter line without an end mark is a heading or an entry, not wrapped text
_SURROGATES = re.compile("[\ud800-\udfff]")
_BEFORE_DOT = re.compile(r"(?<!\s)\s+\.")
_WIDE_SPACE = re.compile(r"[^\S\x00-\x7f]")
_APOSTROPHES = re.compile(r"(?<=[^\W_])['’]")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'“‘])(?:(?:Dr|Mr|Mrs|Ms|Prof|St|Sr|Jr|Mt|Lt|Col|Gen|Sgt|Rev|Hon|Gov|Sen|Rep|vs|cf|e\.g|i\.e|approx"
    r"|ca|No|Nos|Fig|Eq|Sec|Vol|pp|Inc|Ltd|Co|Corp|Ave|Blvd|a\.k\.a|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec)"
    r"|[A-Z])\.[ \t]+$"
)
_ORDINAL = re.compile(r"\b\d{1,2}\.[ \t]+$")  # "5. März"
_FOREIGN_MONTH = re.compile(rf"(?:{MONTHS_ABROAD})\b", re.IGNORECASE)
_LIST_NUMBER = re.compile(r"^\s*(?:\(?\d{1,3}[.)]|\(?[a-zA-Z][.)]|[-*•–])\s*$")
_LINE_START = re.compile(r"[ \t]*(?:[-*•–#>|]|\(?\d{1,3}[.)]\s|[^\W\d_a-z])")


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Sentence bounds ``[start, end)`` in code points; they tile the text, trailing white space included.

    Any string is accepted, lone surrogates included. No sentence is longer than ``MAX_BLOCK``.
    """
    # The splitter speaks UTF-8, takes two apostrophes for a quotation that it will not cut, and panics over
    # an initial with a no-break space before its dot; stand-ins of the same length keep the offsets.
    speakable = _APOSTROPHES.sub("x", _SURROGATES.sub("\ufffd", text))
    speakable = _BEFORE_DOT.sub(lambda match: _WIDE_SPACE.sub(" ", match[0]), speakable)
    bounds = [piece for start, end in _blocks(speakable) for piece in _split_block(speakable, start, end)]
    return list(_merged(text, bounds))


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Cut long text at a line or word border before ``MAX_BLOCK``."""
    start = 0
    while len(text) - start > MAX_BLOCK:
        limit = start + MAX_BLOCK
        cut = max(text.rfind(mark, start + MAX_BLOCK // 2, limit) for mark in ("\n\n", "\n"))
        if cut < 0:
            cut = max(text.rfind(mark, start + MAX_BLOCK // 2, limit) for mark in (". ", "。", " "))
        cut = limit if cut < 0 else cut + 1
        yield start, cut
        start = cut
    if start < len(text):
        yield start, len(text)


def _split_block(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Bounds inside one block: sentencex where it tiles the block, end marks otherwise; then line starts."""
    block = text[start:end]
    bounds = _proposed(block)
    if not _tiles(bounds, len(block)):
        cuts = [match.end() for match in re.finditer(r"[.!?。！？]+[\"'”’)\]]*\s+|\n+", block)]
        edges = [0, *(cut for cut in cuts if cut < len(block)), len(block)]
        bounds = [(low, high) for low, high in pairwise(edges) if high > low]
    return [
        (start + low, start + high)
        for first, last in bounds
        for low, high in _split_lines(block, first, last)
    ]


def _proposed(block: str) -> list[tuple[int, int]]:
    """What the splitter says; nothing where it panics, which its binding raises beside all exceptions."""
    try:
        found = sentencex.get_sentence_boundaries("en", block)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return []
    return [(int(bound["start_index"]), int(bound["end_index"])) for bound in found]


def _tiles(bounds: list[tuple[int, int]], length: int) -> bool:
    at = 0
    for start, end in bounds:
        if start != at or end <= start:
            return False
        at = end
    return at == length


def _split_lines(block: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Break before lines that begin something new: an entry, or a capital after a short or finished line."""
    at = start
    for match in re.finditer(r"\n+", block[start:end]):
        cut = start + match.end()
        line = block[at : start + match.start()].rsplit("\n", 1)[-1].rstrip()
        if cut >= end or not line:
            continue
        is_closed = len(line) < _SHORT_LINE or line[-1] in ".!?:;。！？"
        if len(match[0]) > 1 or (is_closed and _LINE_START.match(block, cut)):
            yield at, cut
            at = cut
    if end > at:
        yield at, end


def _merged(text: str, bounds: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join what must not stand alone: "Dr. " with the name, "1." with its entry, blanks with the text."""
    held: tuple[int, int] | None = None
    for start, end in bounds:
        if held is None:
            held = (start, end)
            continue
        before = text[held[0] : held[1]]
        joins = (
            not text[start:end].strip()
            or not before.strip()
            or _LIST_NUMBER.match(before)
            or _ABBREVIATION.search(before[-40:])
            or (_ORDINAL.search(before[-8:]) and _FOREIGN_MONTH.match(text, start))
        )
        if joins and end - held[0] <= MAX_BLOCK:
            held = (held[0], end)
        else:
            yield held
            held = (start, end)
    if held is not None:
        yield held
