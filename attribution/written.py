"""What the model itself wrote, where a later step turned it into the answer that was shown.

A parser takes the answer out of JSON, a template adds a greeting, a filter drops a sentence: the shown text
was never the model's to predict. So its own text is scored, and its tokens take the places that they have in
the shown answer. Capture keeps the map between both; it is believed only as far as both texts agree.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ragblame.records import Trace

ENOUGH: Final = 0.5  # of the shown answer's letters and digits, else the map tells too little to go by
_LONGEST_ESCAPE: Final = 12  # code points: two escapes that spell one character


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The text to be scored, and where its code points stand in the shown answer."""

    text: str
    shown: str
    # start in the shown answer, start in the text, length: equal text, rising; None: one and the same
    blocks: tuple[tuple[int, int, int], ...] | None
    notes: tuple[str, ...] = ()

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Where ``[start, end)`` of the text stands in the shown answer; ``(0, 0)`` for what was not shown.

        An escape stands for the character that it spells.
        """
        if self.blocks is None:
            return start, end
        first = bisect_right(self.blocks, start, key=lambda block: block[1]) - 1
        low: int | None = None
        high = 0
        for at in range(max(0, first), len(self.blocks)):
            a, g, length = self.blocks[at]
            if g >= end:
                break
            left, right = max(start, g), min(end, g + length)
            if left < right:
                low = a + left - g if low is None else low
                high = a + right - g
        for at in range(max(0, first), min(len(self.blocks) - 1, first + 2)):
            gap = self._escaped(at)
            if gap is not None and start < gap[3] and end > gap[2]:
                low, high = min(gap[0], gap[0] if low is None else low), max(high, gap[1])
        return (0, 0) if low is None else (low, high)  # an empty place at 0 touches no span

    def _escaped(self, at: int) -> tuple[int, int, int, int] | None:
        """The gap behind a block in both texts, when the text's side is an escape for the other side."""
        assert self.blocks is not None
        (a, g, length), (next_a, next_g, _) = self.blocks[at], self.blocks[at + 1]
        low, high = g + length, next_g
        if a + length == next_a or high - low > _LONGEST_ESCAPE or self.text[low : low + 1] != "\\":
            return None
        try:
            said = json.loads(f'"{self.text[low:high]}"')
        except ValueError:
            return None
        return (a + length, next_a, low, high) if said == self.shown[a + length : next_a] else None


def written(trace: Trace) -> Written:
    """The model's own text, mapped to the shown answer; the answer itself where the map tells too little."""
    shown, said = trace.answer, trace.generated
    if not said or said == shown:
        return Written(text=shown, shown=shown, blocks=None)
    blocks = _blocks(trace.metadata, shown, said)
    telling = sum(char.isalnum() for char in shown)
    found = sum(char.isalnum() for at, _, length in blocks for char in shown[at : at + length])
    if not blocks or found < ENOUGH * telling:
        note = (
            "The model's own text differs from the answer that was shown, and too little of it stands there "
            "to tell what became of it: the shown answer was scored as if the model had written it."
        )
        return Written(text=shown, shown=shown, blocks=None, notes=(note,))
    note = "The answer was shown in another form than the model wrote it: the model's own text was scored"
    if found < telling:
        note += "; words of the answer that are not the model's have no shares"
    return Written(text=said, shown=shown, blocks=blocks, notes=(f"{note}.",))


def _blocks(metadata: Mapping[str, Any], shown: str, said: str) -> tuple[tuple[int, int, int], ...]:
    """The blocks of the map that are true of both texts: metadata is anybody's."""
    notes = metadata.get("ragblame")
    found = notes.get("answer_map") if isinstance(notes, Mapping) else None
    kept: list[tuple[int, int, int]] = []
    at = g_at = 0
    for block in found if isinstance(found, list | tuple) else ():
        if not (isinstance(block, Sequence) and len(block) == 3 and all(type(n) is int for n in block)):
            continue
        a, g, length = block
        if a >= at and g >= g_at and length > 0 and shown[a : a + length] == said[g : g + length]:
            if a + length > len(shown) or g + length > len(said):
                continue
            kept.append((a, g, length))
            at, g_at = a + length, g + length
    return tuple(kept)
