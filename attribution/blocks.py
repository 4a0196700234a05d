"""Common blocks of chunks and messages, for chunks that stand in a prompt only in part or edited.

Seeds of the chunks on a stride are looked up at every place of the messages and grown both ways, so the cost
is linear in the prompt; periodic text is bounded by budgets, which can only lose a block, never invent one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ragblame.attribution.places import Claims, Normalised, Place
from ragblame.records import MASK

MIN_PARTIAL = 40  # code points: less common text is as likely a turn of phrase as the chunk itself
SEED = MIN_PARTIAL // 2  # any common block of MIN_PARTIAL holds one whole seed on this stride
MAX_SEEDS = 5_000  # per chunk; a longer chunk is sampled more coarsely
MAX_SAME_SEED = 2  # equal seeds of one chunk that are looked up
MAX_GROWTHS = 500  # seeds of one chunk that are grown
MAX_HITS = 1_000_000  # seeds met in one prompt


@dataclass(frozen=True, slots=True)
class Block:
    """A common block of a chunk and a message, both normalised."""

    place: Place
    offset: int  # in the chunk

    @property
    def length(self) -> int:
        """Code points."""
        return self.place.end - self.place.start


def common_blocks(
    needles: Mapping[int, Normalised], messages: Sequence[Normalised], claims: Claims
) -> dict[int, list[Block]]:
    """Common blocks of every chunk, by its key, with the free parts of the messages."""
    seeds: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for key, needle in needles.items():
        stride = max(SEED, len(needle.text) // MAX_SEEDS)
        seen: dict[str, int] = defaultdict(int)
        for offset in range(0, len(needle.text) - SEED + 1, stride):
            seed = needle.text[offset : offset + SEED]
            seen[seed] += 1
            if seen[seed] <= MAX_SAME_SEED and seed.count(MASK) < SEED // 2:
                seeds[seed].append((key, offset))
    blocks: dict[int, list[Block]] = defaultdict(list)
    done: dict[tuple[int, int, int], int] = {}  # message, chunk, diagonal -> end of its last block
    for number, at, low, high, hits in _hits(seeds, messages, claims):
        text = messages[number].text
        for key, offset in hits:
            diagonal = (number, key, at - offset)
            if at < done.get(diagonal, -1) or len(blocks[key]) >= MAX_GROWTHS:
                continue
            block = _grow(needles[key].text, text, offset, at, low, high, number)
            done[diagonal] = block.place.end
            blocks[key].append(block)
    return blocks


def _hits(
    seeds: dict[str, list[tuple[int, int]]], messages: Sequence[Normalised], claims: Claims
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


def _grow(needle: str, text: str, offset: int, at: int, low: int, high: int, message: int) -> Block:
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
    return Block(Place(message, start, end), shift)


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
