"""Finds where each chunk's text stands in the prompt that was sent: removal and blame need exact regions.

All searching happens in white-space-normalised text with a map back to code points, so one search answers
"exact" and "normalised"; what is left is looked for edited or in parts (fuzzy_alignment.py).
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import attrgetter

from ragblame.attribution.blocks import MIN_PARTIAL
from ragblame.attribution.fuzzy_alignment import Part, find_parts
from ragblame.attribution.places import Claims, Normalised, Place
from ragblame.records import MASK, Alignment, AlignmentState, Chunk, Message

MAX_PLACES = 256  # occurrences of one text that are looked at
MAX_CHOICES = 24  # of them, those that compete for the best reading order
_NO_TEXT = f"{MASK} "
_JOINER = "\u200d"  # makes one emoji of several
LONG_ENOUGH = 200  # code points from which a chance match inside a longer word is ruled out


def align_chunks(chunks: Sequence[Chunk], prompt: Sequence[Message]) -> tuple[Alignment, ...]:
    """Place every chunk in the prompt.

    Returns one ``Alignment`` per chunk, in the order given; offsets are code points of the message's text.
    Two chunks with the same text take two occurrences, in order; they share a place only where the prompt
    does not hold enough of them. A chunk whose text was cut at capture can at best be ``partial``. Where a
    text occurs several times (chat history, a quote in the question), the occurrence that fits the order and
    neighbourhood of the other chunks is taken, and the alignment is called ambiguous when another one is left
    over. An edited chunk is ``partial``, with the parts that do not stand in the prompt; one that is merely
    alike, shorter than ``MIN_PARTIAL`` or masked whole by redaction is ``missing``. Never raises.
    """
    messages = [Normalised.of(message.text) for message in prompt]
    needles = [Normalised.of(chunk.text) for chunk in chunks]
    places = {
        needle.text: _occurrences(needle.text, messages)
        for needle in {needle.text: needle for needle in needles if needle.text.strip(_NO_TEXT)}.values()
    }
    claims = Claims()
    chosen = _choose([needle.text for needle in needles], places, len(messages), claims)
    whole = {
        index: _whole(
            chunk, place, needles[index], messages, prompt, _has_rival(places[needles[index].text], claims)
        )
        for index, chunk in enumerate(chunks)
        if (place := chosen.get(index)) is not None
    }
    rest = {
        index: needle
        for index, needle in enumerate(needles)
        if index not in whole and len(needle.text) >= MIN_PARTIAL
    }
    parts = find_parts(rest, messages, claims) if rest and messages else {}
    return tuple(
        whole.get(index) or _part(chunk, parts.get(index), needles[index], messages)
        for index, chunk in enumerate(chunks)
    )


def _occurrences(needle: str, messages: Sequence[Normalised]) -> list[Place]:
    """Where a normalised text stands in the messages, in reading order."""
    found: list[Place] = []
    for index, message in enumerate(messages):
        at = message.text.find(needle)
        while at >= 0 and len(found) < MAX_PLACES:
            end = at + len(needle)
            if len(needle) >= LONG_ENOUGH or not _cuts_a_word(message.text, at, end):
                found.append(Place(index, at, end))
                at = message.text.find(needle, end)
            else:
                at = message.text.find(needle, at + 1)
    return found


def _cuts_a_word(text: str, start: int, end: int) -> bool:
    """Whether a match begins or ends inside a word: "port 29" must not be found in "port 2959"."""
    return (start > 0 and (text[start - 1] == _JOINER or _joins(text[start - 1], text[start]))) or (
        end < len(text) and (_continues(text[end]) or _joins(text[end - 1], text[end]))
    )


def _joins(left: str, right: str) -> bool:
    # Scripts written without spaces begin around U+2E80; there every character may end a word.
    return left.isalnum() and right.isalnum() and ord(left) < 0x2E80 and ord(right) < 0x2E80


def _continues(char: str) -> bool:
    """Whether a code point belongs to the letter or emoji before it, in whatever script."""
    return char == _JOINER or unicodedata.category(char)[0] == "M" or "\U0001f3fb" <= char <= "\U0001f3ff"


def _has_rival(places: Sequence[Place], claims: Claims) -> bool:
    """Whether the text also stands at a place that no chunk took."""
    return any(claims.is_free(place) for place in places)


def _choose(
    texts: Sequence[str], places: dict[str, list[Place]], message_count: int, claims: Claims
) -> dict[int, Place]:
    """One occurrence per chunk (by index), disjoint as far as possible; fills ``claims``."""
    wanted = _best_reading(texts, places, message_count)
    chosen: dict[int, Place] = {}
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
    texts: Sequence[str], places: dict[str, list[Place]], message_count: int
) -> dict[int, Place]:
    """The most plausible occurrence of each chunk: a shortest path through the chunks in retrieval order."""
    covered = [0] * message_count
    for text, found in places.items():
        for message in {place.message for place in found}:
            covered[message] += len(text)
    # The message that holds most of the chunks is the context; of equals the latest: the current turn.
    home = max(range(message_count), key=lambda m: (covered[m], m), default=0)
    indices = [i for i, text in enumerate(texts) if places.get(text)]
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


def _step(before: Place, after: Place) -> float:
    """How unlikely it is that ``after`` follows ``before`` in retrieval order."""
    if before.message != after.message:
        return 2.0 if before.message < after.message else 3.0
    if after.start >= before.end:
        gap = after.start - before.end
        return gap / (gap + 500.0)
    return 50.0 if after.end > before.start else 1.5 + (before.start - after.end) / 1e7


def _whole(
    chunk: Chunk,
    place: Place,
    needle: Normalised,
    messages: Sequence[Normalised],
    prompt: Sequence[Message],
    is_ambiguous: bool,
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
        position=chunk.position,
        state=state,
        message=place.message,
        start=start,
        end=end,
        found=inner,
        is_ambiguous=is_ambiguous,
    )


def _part(chunk: Chunk, part: Part | None, needle: Normalised, messages: Sequence[Normalised]) -> Alignment:
    """The alignment of a chunk that was found edited or in part, or not at all."""
    if part is None:
        return Alignment(position=chunk.position, state=AlignmentState.MISSING)
    present = [needle.original(offset, offset + length) for offset, _, length in part.runs]
    start, end = messages[part.message].original(part.place.start, part.place.end)
    return Alignment(
        position=chunk.position,
        state=AlignmentState.PARTIAL,
        message=part.message,
        start=start,
        end=end,
        found=(present[0][0], present[-1][1]),
        absent=tuple(_absent(chunk.text, present)),
        is_ambiguous=part.is_ambiguous,
    )


def _absent(text: str, present: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What lies between the present parts; white space alone is not missed."""
    edges = [0, *(edge for run in present for edge in run), len(text)]
    for low, high in zip(edges[::2], edges[1::2], strict=True):
        gap = text[low:high]
        if gap.strip():
            yield low + len(gap) - len(gap.lstrip()), low + len(gap.rstrip())
