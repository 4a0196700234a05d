"""Runs of equal text of two texts, by edit distance and within a budget, for small places of a prompt.

A run is (offset in the chunk, place in the message, length).
"""

from typing import Final, TypeAlias

from rapidfuzz.distance import Levenshtein

Run: TypeAlias = tuple[int, int, int]

MAX_CELLS: Final = 4_000_000  # of one comparison: product of both lengths
ALL_CELLS: Final = 1_000_000_000  # of one prompt: about 50 ms
SIMILAR: Final = 0.6  # of the chunk's code points in a gap agree: then each counts, else only solid runs
ALIKE: Final = 0.75  # of the code points agree: without solid runs, less is no likeness
SOLID: Final = 8  # code points of a run that chance does not make
EDGE: Final = 4  # code points of a run that may follow the one before at some distance
INSERTED: Final = 0.4  # of the prompt's agree, at least: escapes and citations are inserted text
STEP: Final = 500  # code points outside of what is known that are compared at once


class EditRuns:
    """Compares texts until its budget is spent; then nothing more agrees."""

    def __init__(self) -> None:
        self.cells = ALL_CELLS

    def equal(self, own: str, shown: str, most: int = MAX_CELLS) -> list[Run]:
        """All runs of a cheapest edit from one text to the other; none when that costs too much."""
        cells = len(own) * len(shown)
        if not cells or cells > min(self.cells, most):
            return []
        self.cells -= cells
        blocks = Levenshtein.editops(own, shown).as_matching_blocks()
        return [(block.a, block.b, block.size) for block in blocks if block.size]

    def between(self, own: str, shown: str) -> tuple[list[Run], bool]:
        """What agrees in a gap between two known runs, and whether most of it does."""
        runs = self.equal(own, shown)
        is_similar = sum(length for _, _, length in runs) >= max(SIMILAR * len(own), INSERTED * len(shown))
        return (runs if is_similar else [run for run in runs if run[2] >= SOLID]), is_similar

    @staticmethod
    def reach(own: int) -> int:
        """Code points of a prompt that may hold ``own`` code points of a chunk: escapes make text longer."""
        return own + own // 2 + 4

    def outward(self, own: str, shown: str) -> list[Run]:
        """What agrees from the start of both texts on, as far as most of them does."""
        found: list[Run] = []
        offset = at = 0
        while offset < len(own):
            step = self._step(own[offset : offset + STEP], shown[at : at + self.reach(STEP)])
            found += [(offset + o, at + a, length) for o, a, length in step]
            if not step or step[-1][0] + step[-1][2] < STEP // 2:
                break
            offset, at = found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]
        return found

    def _step(self, own: str, shown: str) -> list[Run]:
        runs: list[Run] = []
        matched = kept = 0
        end = (0, 0)
        for offset, at, length in self.equal(own, shown):
            distance = max(offset - end[0], at - end[1])
            # The outermost run decides where a chunk begins or ends, so a stray letter or two are left out.
            if distance > (2 * length + 2 if length >= EDGE else int(length > 1)):
                continue
            runs.append((offset, at, length))
            matched += length
            end = offset + length, at + length
            if matched >= max(ALIKE * end[0], INSERTED * end[1]):
                kept = len(runs)
        return runs[:kept]
