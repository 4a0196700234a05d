"""Finds where each chunk's text stands in the prompt that was sent: removal and blame need exact regions.

All searching happens in white-space-normalised text with a map back to code points, so one search answers
"exact" and "normalised"; what is left is looked for in parts, by shared seeds grown to the longest common
block.
"""

import re
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter

from ragblame.records import Alignment, AlignmentState, Chunk, Message

MIN_PARTIAL = 40  # code points: a shorter common block is as likely a turn of phrase as the chunk itself
SEED = MIN_PARTIAL // 2  # any common block of MIN_PARTIAL holds one whole seed on this stride
MAX_SEEDS = 5_000  # per chunk; a longer chunk is sampled more coarsely
MAX_PLACES = 256  # occurrences of one text that are looked at
MAX_CHOICES = 24  # of them, those that compete for the best reading order
MAX_SAME_SEED = 2  # equal seeds of one chunk that are looked up
MAX_GROWTHS = 500  # seeds of one chunk that are grown
MAX_HITS = 1_000_000  # seeds met in one prompt; these three bound the work on periodic text
LONG_ENOUGH = 200  # code points from which a chance match inside a longer word is ruled out


@dataclass(frozen=True, slots=True)
class _Normalised:
    """Text with every white-space run made one space, and the way back."""

    text: str
    starts: list[int]  # of each word in ``text``
    origins: list[int]  # of each word in the original

    @classmethod
    def of(cls, original: str) -> "_Normalised":
        starts: list[int] = []
        origins: list[int] = []
        at = 0
        words = []
        for match in re.finditer(r"\S+", original):
            starts.append(at)
            origins.append(match.start())
            words.append(match[0])
            at += len(match[0]) + 1
        return cls(" ".join(words), starts, origins)

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Original code points of a part that begins and ends on non-space characters."""
        first = bisect_right(self.starts, start) - 1
        last = bisect_right(self.starts, end - 1) - 1
        return (
            self.origins[first] + start - self.starts[first],
            self.origins[last] + end - self.starts[last],
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """A part of one normalised message."""

    message: int
    start: int
    end: int


class _Claims:
    """Regions already given to a chunk: another occurrence is preferred as long as there is one."""

    def __init__(self) -> None:
        self._taken: dict[int, list[tuple[int, int]]] = defaultdict(list)

    def is_free(self, place: _Place) -> bool:
        taken = self._taken[place.message]
        at = bisect_right(taken, (place.start, place.start))
        before_ok = at == 0 or taken[at - 1][1] <= place.start
        return before_ok and (at == len(taken) or taken[at][0] >= place.end)

    def take(self, place: _Place) -> None:
        insort(self._taken[place.message], (place.start, place.end))

    def gaps(self, message: int, length: int) -> Iterator[tuple[int, int]]:
        """The free parts of a message."""
        at = 0
        for start, end in self._taken[message]:
            if start > at:
                yield at, start
            at = end
        if at < length:
            yield at, length


def align_chunks(chunks: Sequence[Chunk], prompt: Sequence[Message]) -> tuple[Alignment, ...]:
    """Place every chunk in the prompt.

    Returns one ``Alignment`` per chunk, in the order given; offsets are code points of the message's text.
    Two chunks with the same text take two occurrences, in order; they share a place only where the prompt
    does not hold enough of them. A chunk whose text was cut at capture can at best be ``partial``. Where a
    text occurs several times (chat history, a quote in the question), the occurrence that fits the order and
    neighbourhood of the other chunks is taken. Never raises.
    """
    messages = [_Normalised.of(message.text) for message in prompt]
    needles = [_Normalised.of(chunk.text) for chunk in chunks]
    places = {
        needle.text: _occurrences(needle.text, messages)
        for needle in {needle.text: needle for needle in needles if needle.text}.values()
    }
    claims = _Claims()
    chosen = _choose([needle.text for needle in needles], places, len(messages), claims)
    whole = {
        index: _whole(chunk, place, needles[index], messages, prompt)
        for index, chunk in enumerate(chunks)
        if (place := chosen.get(index)) is not None
    }
    rest = {
        index: needle
        for index, needle in enumerate(needles)
        if index not in whole and len(needle.text) >= MIN_PARTIAL
    }
    parts = _parts(chunks, rest, messages, claims) if rest and messages else {}
    return tuple(
        whole.get(index)
        or parts.get(index)
        or Alignment(position=chunk.position, state=AlignmentState.MISSING)
        for index, chunk in enumerate(chunks)
    )


def _occurrences(needle: str, messages: Sequence[_Normalised]) -> list[_Place]:
    """Where a normalised text stands in the messages, in reading order."""
    found: list[_Place] = []
    for index, message in enumerate(messages):
        at = message.text.find(needle)
        while at >= 0 and len(found) < MAX_PLACES:
            end = at + len(needle)
            if len(needle) >= LONG_ENOUGH or not _cuts_a_word(message.text, at, end):
                found.append(_Place(index, at, end))
                at = message.text.find(needle, end)
            else:
                at = message.text.find(needle, at + 1)
    return found


def _cuts_a_word(text: str, start: int, end: int) -> bool:
    """Whether a match begins or ends inside a word: "port 29" must not be found in "port 2959"."""
    return (start > 0 and _joins(text[start - 1], text[start])) or (
        end < len(text) and _joins(text[end - 1], text[end])
    )


def _joins(left: str, right: str) -> bool:
    # Scripts written without spaces begin around U+2E80; there every character may end a word.
    return left.isalnum() and right.isalnum() and ord(left) < 0x2E80 and ord(right) < 0x2E80


def _choose(
    texts: Sequence[str], places: dict[str, list[_Place]], message_count: int, claims: _Claims
) -> dict[int, _Place]:
    """One occurrence per chunk (by index), disjoint as far as possible; fills ``claims``."""
    wanted = _best_reading(texts, places, message_count)
    chosen: dict[int, _Place] = {}
    # Long texts first: a short text that also stands inside a long one must take its own occurrence.
    for index in sorted(wanted, key=lambda i: (-len(texts[i]), i)):
        wish = wanted[index]
        free = [place for place in places[texts[index]] if claims.is_free(place)]
        # Shared places are real: chains drop duplicates, merge overlapping windows, quote one in another.
        place = min(free or [wish], key=lambda p: (p.message != wish.message, abs(p.start - wish.start)))
        if free:
            claims.take(place)
        chosen[index] = place
    same: dict[str, list[int]] = defaultdict(list)
    for index in sorted(chosen):
        same[texts[index]].append(index)
    for indices in same.values():
        in_order = sorted((chosen[i] for i in indices), key=attrgetter("message", "start"))
        chosen.update(zip(indices, in_order, strict=True))
    return chosen


def _best_reading(
    texts: Sequence[str], places: dict[str, list[_Place]], message_count: int
) -> dict[int, _Place]:
    """The most plausible occurrence of each chunk: a shortest path through the chunks in retrieval order."""
    covered = [0] * message_count
    for text, found in places.items():
        for message in {place.message for place in found}:
            covered[message] += len(text)
    # The message that holds most of the chunks is the context; of equals the latest: the current turn.
    home = max(range(message_count), key=lambda m: (covered[m], m), default=0)
    indices = [i for i, text in enumerate(texts) if text and places[text]]
    if all(len(places[texts[i]]) == 1 for i in indices):
        return {i: places[texts[i]][0] for i in indices}
    layers = [
        sorted(places[texts[i]], key=lambda p: (p.message != home, p.message, p.start))[:MAX_CHOICES]
        for i in indices
    ]
    cost = [0.0 if place.message == home else 4.0 for place in layers[0]]
    back: list[list[int]] = []
    for previous, layer in pairwise(layers):
        pointers, costs = [], []
        for place in layer:
            best = min(range(len(previous)), key=lambda k: cost[k] + _step(previous[k], place))
            pointers.append(best)
            own = 0.0 if place.message == home else 4.0
            costs.append(cost[best] + _step(previous[best], place) + own)
        back.append(pointers)
        cost = costs
    at = min(range(len(cost)), key=lambda k: cost[k])
    path = [at]
    for pointers in reversed(back):
        at = pointers[at]
        path.append(at)
    path.reverse()
    return {i: layer[k] for i, layer, k in zip(indices, layers, path, strict=True)}


def _step(before: _Place, after: _Place) -> float:
    """How unlikely it is that ``after`` follows ``before`` in retrieval order."""
    if before.message != after.message:
        return 2.0 if before.message < after.message else 3.0
    if after.start >= before.end:
        gap = after.start - before.end
        return gap / (gap + 500.0)
    return 50.0 if after.end > before.start else 1.5 + (before.start - after.end) / 1e7


def _whole(
    chunk: Chunk,
    place: _Place,
    needle: _Normalised,
    messages: Sequence[_Normalised],
    prompt: Sequence[Message],
) -> Alignment:
    """The alignment of a chunk whose whole normalised text was found."""
    start, end = messages[place.message].original(place.start, place.end)
    inner = needle.original(0, len(needle.text))
    text = prompt[place.message].text
    wide = (start - inner[0], end + len(chunk.text) - inner[1])  # with the chunk's own outer white space
    if wide[0] >= 0 and text[wide[0] : wide[1]] == chunk.text:
        state, (start, end), inner = AlignmentState.EXACT, wide, (0, len(chunk.text))
    else:
        state = AlignmentState.NORMALISED
    if chunk.truncated_from is not None and chunk.truncated_from > len(chunk.text):
        state = AlignmentState.PARTIAL  # the rest was never captured, so nobody knows whether it stands there
    return Alignment(
        position=chunk.position, state=state, message=place.message, start=start, end=end, found=inner
    )


@dataclass(frozen=True, slots=True)
class _Block:
    """A common block of a chunk and a message, both normalised."""

    place: _Place
    offset: int  # in the chunk


def _parts(
    chunks: Sequence[Chunk], rest: dict[int, _Normalised], messages: Sequence[_Normalised], claims: _Claims
) -> dict[int, Alignment]:
    """The longest free common block of each chunk that does not stand in the prompt as a whole."""
    seeds: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, needle in rest.items():
        stride = max(SEED, len(needle.text) // MAX_SEEDS)
        seen: dict[str, int] = defaultdict(int)
        for offset in range(0, len(needle.text) - SEED + 1, stride):
            seed = needle.text[offset : offset + SEED]
            seen[seed] += 1
            if seen[seed] <= MAX_SAME_SEED:
                seeds[seed].append((index, offset))
    blocks: dict[int, list[_Block]] = defaultdict(list)
    done: dict[tuple[int, int, int], int] = {}  # message, chunk, diagonal -> end of its last block
    for number, at, low, high, hits in _hits(seeds, messages, claims):
        text = messages[number].text
        for index, offset in hits:
            diagonal = (number, index, at - offset)
            if at < done.get(diagonal, -1) or len(blocks[index]) >= MAX_GROWTHS:
                continue
            block = _grow(rest[index].text, text, offset, at, low, high, number)
            done[diagonal] = block.place.end
            blocks[index].append(block)
    return dict(_claim_blocks(chunks, rest, blocks, messages, claims))


def _hits(
    seeds: dict[str, list[tuple[int, int]]], messages: Sequence[_Normalised], claims: _Claims
) -> Iterator[tuple[int, int, int, int, list[tuple[int, int]]]]:
    """Every seed met in a free part of a message: message, place, the part, (chunk, offset) pairs."""
    budget = MAX_HITS
    for number, message in enumerate(messages):
        text = message.text
        for low, high in list(claims.gaps(number, len(text))):
            for at in range(low, high - SEED + 1):
                found = seeds.get(text[at : at + SEED])
                if found is None:
                    continue
                yield number, at, low, high, found
                budget -= len(found)
                if budget < 0:
                    return


def _grow(needle: str, text: str, offset: int, at: int, low: int, high: int, message: int) -> _Block:
    """Extend a shared seed as far as both texts agree, inside [low, high)."""
    left = _common(
        lambda n, m: needle[offset - m : offset - n] == text[at - m : at - n], 0, min(offset, at - low)
    )
    right = _common(
        lambda n, m: needle[offset + n : offset + m] == text[at + n : at + m],
        SEED,
        min(len(needle) - offset, high - at),
    )
    start, end, shift = at - left, at + right, offset - left
    while end > start and text[end - 1] == " ":
        end -= 1
    while start < end and text[start] == " ":
        start, shift = start + 1, shift + 1
    return _Block(_Place(message, start, end), shift)


def _common(agree: Callable[[int, int], bool], known: int, most: int) -> int:
    """How far two texts agree, at most ``most``: strides double while they do and halve when they do not."""
    step = SEED
    while known < most and step:
        step = min(step, most - known)
        if agree(known, known + step):
            known += step
            step *= 2
        else:
            step //= 2
    return known


def _claim_blocks(
    chunks: Sequence[Chunk],
    rest: dict[int, _Normalised],
    blocks: dict[int, list[_Block]],
    messages: Sequence[_Normalised],
    claims: _Claims,
) -> Iterator[tuple[int, Alignment]]:
    """Give blocks away longest first, one to a chunk, none overlapping."""
    queue = sorted(
        ((block, index) for index, found in blocks.items() for block in found),
        key=lambda pair: (-(pair[0].place.end - pair[0].place.start), pair[1], pair[0].place.start),
    )
    placed: set[int] = set()
    for block, index in queue:
        place = block.place
        if place.end - place.start < MIN_PARTIAL:
            break
        if index in placed or not claims.is_free(place):
            continue
        claims.take(place)
        placed.add(index)
        start, end = messages[place.message].original(place.start, place.end)
        found = rest[index].original(block.offset, block.offset + place.end - place.start)
        yield (
            index,
            Alignment(
                position=chunks[index].position,
                state=AlignmentState.PARTIAL,
                message=place.message,
                start=start,
                end=end,
                found=found,
            ),
        )
