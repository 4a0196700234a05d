"""Finds chunks that stand in a prompt edited or in part: escaped, cited, cut, their middle left out.

Common blocks are the anchors. Blocks that follow each other in chunk and message make a chain; the small gaps
between them and the text just outside are compared by edit distance. A chunk without a block is looked for by
the votes of its short grams, and taken only when most of both texts agree: a weak likeness is no place.
Every limit here can only lose text that does stand there, never claim text that does not.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from ragblame.attribution.blocks import MAX_HITS, MIN_PARTIAL, SEED, Block, common_blocks
from ragblame.attribution.edit_runs import ALIKE, SOLID, EditRuns, Run
from ragblame.attribution.places import Claims, Normalised, Place
from ragblame.records import MASK

MAX_CHAINED: Final = 48  # longest blocks of one chunk in one message that are chained
MAX_INSERTED: Final = 200  # foreign code points inside a chunk: a citation, a mark of omission, a page's head
END_REACH: Final = 20_000  # code points outside the first and last block that are compared
GRAM: Final = 8
STRIDE: Final = GRAM // 2
BAND: Final = 64  # code points by which a chunk may drift before its votes fall into another band
MAX_VOTING: Final = 20_000  # code points of a chunk that is looked for by votes
LEAST_VOTES: Final = 0.1  # of a chunk's grams


@dataclass(frozen=True, slots=True)
class Part:
    """What of a chunk stands in one message: runs of equal text in the order of both, all normalised."""

    message: int
    runs: tuple[Run, ...]
    is_ambiguous: bool = False  # another free place would have done as well

    @property
    def place(self) -> Place:
        """From the first to the last run."""
        return Place(self.message, self.runs[0][1], self.runs[-1][1] + self.runs[-1][2])

    @property
    def length(self) -> int:
        """Code points that agree."""
        return _total(self.runs)


def find_parts(
    needles: Mapping[int, Normalised], messages: Sequence[Normalised], claims: Claims
) -> dict[int, Part]:
    """The best free place of each chunk, by the chunk's key; claims it.

    Chunks without one are left out; chunks with the same text share one where there are not enough. A part
    has at least ``MIN_PARTIAL`` code points (masked ones do not count) and a twentieth of its chunk.
    """
    finder = _Finder(needles, messages, claims)
    finder.chain()
    finder.vote()
    found = finder.found
    by_text = {needles[key].text: part for key, part in sorted(found.items(), reverse=True)}
    return {
        key: found.get(key) or by_text[needle.text]
        for key, needle in needles.items()
        if key in found or needle.text in by_text
    }


class _Finder:
    """One search, with its budget."""

    def __init__(
        self, needles: Mapping[int, Normalised], messages: Sequence[Normalised], claims: Claims
    ) -> None:
        self.needles, self.messages, self.claims = needles, messages, claims
        self.edits = EditRuns()
        self.found: dict[int, Part] = {}

    def chain(self) -> None:
        """Place chunks by their common blocks, those with the most agreeing text first."""
        blocks = common_blocks(self.needles, self.messages, self.claims)
        queue = sorted(
            ((part, key) for key, own in blocks.items() for part in self._candidates(own)),
            key=lambda pair: (-pair[0].length, pair[1], pair[0].message, pair[0].runs[0][1]),
        )
        for part, key in queue:
            if key in self.found or not self._is_enough(part, key) or not self.claims.is_free(part.place):
                continue
            refined = self._refined(part, self.needles[key].text)
            # Two short turns of phrase in the same order are no chunk, unless what is between agrees too.
            if max(run[2] for run in refined.runs) >= MIN_PARTIAL or self._is_alike(refined, key):
                self._take(key, refined)
        rivals: dict[int, list[Part]] = defaultdict(list)
        for part, key in queue:
            rivals[key].append(part)
        for key, part in self.found.items():
            rival = any(
                other.length >= 0.95 * part.length and self.claims.is_free(other.place)
                for other in rivals[key]
            )
            if rival:
                self.found[key] = replace(part, is_ambiguous=True)

    def vote(self) -> None:
        """Place what is left by grams: text with an edit every few words has no long block."""
        wanted = {
            key: needle.text
            for key, needle in self.needles.items()
            if key not in self.found and len(needle.text) <= MAX_VOTING
        }
        if not wanted:
            return
        grams: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for key, text in wanted.items():
            for offset in range(0, len(text) - GRAM + 1, STRIDE):
                if MASK not in (gram := text[offset : offset + GRAM]):
                    grams[gram].append((key, offset))
        for key, tally in self._tallies(grams).items():
            best = tally.most_common(1)[0]
            if best[1] < max(3, LEAST_VOTES * len(wanted[key]) / STRIDE):
                continue
            number, band = best[0]
            # The neighbouring bands are in reach: votes near an edge may fall into either.
            part = self._aligned(wanted[key], number, (band - 1) * BAND, (band + 2) * BAND)
            if part is not None and self._is_enough(part, key) and self._is_alike(part, key):
                rivals = [votes for (n, b), votes in tally.items() if n != number or abs(b - band) > 1]
                is_ambiguous = max(rivals, default=0) >= 0.9 * best[1]
                self._take(key, replace(part, is_ambiguous=is_ambiguous))

    def _take(self, key: int, part: Part) -> None:
        """Give the chunk its place, unless too little is left without white space."""
        runs = tuple(_trimmed(run, self.needles[key].text) for run in part.runs)
        part = replace(part, runs=tuple(run for run in runs if run[2]))
        if self._is_enough(part, key):
            self.claims.take(part.place)
            self.found[key] = part

    def _is_enough(self, part: Part, key: int) -> bool:
        text = self.needles[key].text
        seen = sum(length - text.count(MASK, at, at + length) for at, _, length in part.runs)
        return seen >= max(MIN_PARTIAL, len(text) // 20)

    def _is_alike(self, part: Part, key: int) -> bool:
        """Whether most of both texts agrees between the outer runs, and half of the chunk stands there."""
        own = part.runs[-1][0] + part.runs[-1][2] - part.runs[0][0]
        shown = part.place.end - part.place.start
        return part.length >= ALIKE * max(own, shown) and part.length * 2 >= len(self.needles[key].text)

    # Chains of blocks ------------------------------------------------------------

    def _candidates(self, blocks: Sequence[Block]) -> Iterator[Part]:
        """Two chains a message, and every block alone for when a chain's place is taken."""
        by_message: dict[int, list[Block]] = defaultdict(list)
        for block in blocks:
            by_message[block.place.message].append(block)
        for number, own in by_message.items():
            own.sort(key=lambda block: (-block.length, block.place.start))
            rest = own[:MAX_CHAINED]
            for _ in range(2):
                if len(rest) > 1:
                    runs, used = self._best_chain(rest, number)
                    if len(runs) > 1:
                        yield Part(number, runs)
                    rest = [block for block in rest if block not in used]
            yield from (Part(number, ((block.offset, block.place.start, block.length),)) for block in own)

    def _best_chain(self, blocks: Sequence[Block], number: int) -> tuple[tuple[Run, ...], list[Block]]:
        """The blocks that follow each other in both texts and hold the most text; overlaps are trimmed."""
        ordered = sorted(blocks, key=lambda block: (block.offset, block.place.start))
        score = [float(block.length) for block in ordered]
        before = [-1] * len(ordered)
        for j, after in enumerate(ordered):
            for i in range(j):
                gain = self._gain(ordered[i], after, number)
                if gain is not None and score[i] + gain > score[j]:
                    score[j], before[j] = score[i] + gain, i
        at = max(range(len(ordered)), key=lambda k: score[k])
        used = [ordered[at]]
        while before[at] >= 0:
            at = before[at]
            used.append(ordered[at])
        used.reverse()
        runs = [(used[0].offset, used[0].place.start, used[0].length)]
        for previous, block in pairwise(used):
            shift = _overlap(previous, block)
            runs.append((block.offset + shift, block.place.start + shift, block.length - shift))
        return tuple(runs), used

    def _gain(self, before: Block, after: Block, number: int) -> float | None:
        """Text that ``after`` adds to a chain that ends in ``before``; None: it cannot follow."""
        if after.offset <= before.offset or after.place.start <= before.place.start:
            return None
        shift = _overlap(before, after)
        if after.length - shift < SEED:
            return None
        low, high = before.place.end, after.place.start + shift
        left_out = after.offset + shift - before.offset - before.length
        if high - low > left_out + MAX_INSERTED or not self.claims.is_free(Place(number, low, high)):
            return None
        return after.length - shift - 0.01 * (high - low)

    # Edit distance in small places ------------------------------------------------------------

    def _refined(self, part: Part, needle: str) -> Part:
        """The part with what agrees in its gaps and just outside."""
        text = self.messages[part.message].text
        runs = self._bridged(part, needle)
        low, high = self._free_around(part.place, len(text))
        first = runs[0]
        head = needle[max(0, first[0] - END_REACH) : first[0]][::-1]
        before = text[max(low, first[1] - self.edits.reach(len(head))) : first[1]][::-1]
        outside = reversed(self.edits.outward(head, before))
        runs = [(first[0] - o - length, first[1] - a - length, length) for o, a, length in outside] + runs
        offset, at = _end(runs[-1])
        tail = needle[offset : offset + END_REACH]
        after = text[at : min(high, at + self.edits.reach(len(tail)))]
        runs += [(offset + o, at + a, length) for o, a, length in self.edits.outward(tail, after)]
        return Part(part.message, tuple(runs))

    def _bridged(self, part: Part, needle: str) -> list[Run]:
        """The runs with what agrees between them.

        Runs on both sides of foreign text belong together only when each could stand for the chunk alone and
        the text between is short; else the larger side is the chunk's place.
        """
        text = self.messages[part.message].text
        groups: list[list[Run]] = [[part.runs[0]]]
        for previous, run in pairwise(part.runs):
            offset, at = _end(previous)
            inner, is_similar = self.edits.between(needle[offset : run[0]], text[at : run[1]])
            if is_similar or run[1] - at <= SOLID:
                groups[-1] += [(offset + o, at + a, length) for o, a, length in inner]
                groups[-1].append(run)
            else:
                groups.append([run])
        first = last = max(range(len(groups)), key=lambda index: _total(groups[index]))
        while first > 0 and _belong(groups[first - 1], groups[first], groups[first - 1]):
            first -= 1
        while last + 1 < len(groups) and _belong(groups[last], groups[last + 1], groups[last + 1]):
            last += 1
        return [run for group in groups[first : last + 1] for run in group]

    def _free_around(self, place: Place, length: int) -> tuple[int, int]:
        for low, high in self.claims.gaps(place.message, length):
            if low <= place.start and place.end <= high:
                return low, high
        return place.start, place.end

    def _aligned(self, needle: str, number: int, shift: int, shift_end: int) -> Part | None:
        """The part of a chunk somewhere between two diagonals of a message."""
        text = self.messages[number].text
        low, high = max(0, shift), min(len(text), shift_end + len(needle))
        gaps = [(max(low, a), min(high, b)) for a, b in self.claims.gaps(number, len(text))]
        low, high = max(gaps, key=lambda gap: gap[1] - gap[0], default=(0, 0))
        if high - low < MIN_PARTIAL:
            return None
        found = self.edits.equal(needle, text[low:high], MAX_VOTING * (MAX_VOTING + 4 * BAND))
        runs = [(offset, low + at, length) for offset, at, length in found if length >= 3]
        while len(runs) > 1 and _is_stray(runs[0], runs[1]):
            del runs[0]
        while len(runs) > 1 and _is_stray(runs[-1], runs[-2]):
            del runs[-1]
        return Part(number, tuple(runs)) if runs else None

    # Votes ------------------------------------------------------------

    def _tallies(
        self, grams: Mapping[str, Sequence[tuple[int, int]]]
    ) -> dict[int, "Counter[tuple[int, int]]"]:
        """How often grams of each chunk stand in each message and band of diagonals."""
        tallies: dict[int, Counter[tuple[int, int]]] = defaultdict(Counter)
        budget = MAX_HITS
        for number, message in enumerate(self.messages):
            text = message.text
            for low, high in list(self.claims.gaps(number, len(text))):
                for at in range(low, high - GRAM + 1):
                    hits = grams.get(text[at : at + GRAM])
                    if hits is None:
                        continue
                    budget -= len(hits)
                    if budget < 0:
                        return tallies
                    for key, offset in hits:
                        tallies[key][number, (at - offset) // BAND] += 1
        return tallies


def _overlap(before: Block, after: Block) -> int:
    return max(0, before.offset + before.length - after.offset, before.place.end - after.place.start)


def _total(runs: Sequence[Run]) -> int:
    return sum(length for _, _, length in runs)


def _belong(before: Sequence[Run], after: Sequence[Run], smaller: Sequence[Run]) -> bool:
    return after[0][1] - _end(before[-1])[1] <= MAX_INSERTED and _total(smaller) >= MIN_PARTIAL


def _end(run: Run) -> tuple[int, int]:
    return run[0] + run[2], run[1] + run[2]


def _is_stray(outer: Run, inner: Run) -> bool:
    """Whether a run at the edge is chance: short, and far from the next."""
    offsets = sorted((outer, inner))
    distance = max(offsets[1][i] - offsets[0][i] - offsets[0][2] for i in (0, 1))
    return outer[2] < SOLID and distance > outer[2]


def _trimmed(run: Run, needle: str) -> Run:
    """The run without outer white space: places begin and end on text."""
    text = needle[run[0] : run[0] + run[2]]
    lead = len(text) - len(text.lstrip(" "))
    return run[0] + lead, run[1] + lead, len(text.strip(" "))
