"""Cuts a text at the borders of overlapping marks, so that any set of spans is drawn without nested markup.

Everything is counted in code points here, in Python; the browser only ever receives the finished pieces, so
its UTF-16 offsets never matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A piece of text that lies in the same marks from its first to its last code point."""

    start: int  # code points in the whole text
    text: str  # never empty
    marks: tuple[int, ...]  # indices of the marks that cover it, ascending


def cut_segments(text: str, marks: Sequence[tuple[int, int]]) -> tuple[Segment, ...]:
    """Sweep the borders of ``marks`` (half open, code points) over ``text``.

    The pieces joined give ``text`` again. Marks may overlap, nest, touch or repeat; parts outside the text
    and empty marks are ignored. O(n log n) in the number of marks for marks of bounded depth.
    """
    size = len(text)
    opening: dict[int, list[int]] = {}
    closing: dict[int, list[int]] = {}
    for index, (start, end) in enumerate(marks):
        start, end = max(0, start), min(size, end)
        if start < end:
            opening.setdefault(start, []).append(index)
            closing.setdefault(end, []).append(index)
    borders = sorted({0, size, *opening, *closing})
    active: set[int] = set()
    segments = []
    for left, right in pairwise(borders):
        active.difference_update(closing.get(left, ()))
        active.update(opening.get(left, ()))
        segments.append(Segment(start=left, text=text[left:right], marks=tuple(sorted(active))))
    return tuple(segments)
