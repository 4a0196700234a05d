"""Which part of the shown answer is which part of the model's own text, when a step stands between them.

Attribution works on what the model wrote, the page shows what the user saw. A block is three numbers: start
in the answer, start in the model's text, length, in code points; over a block both texts are equal, always.
What no block covers was added or changed on the way.
"""

import json
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Final, TypeAlias

Block: TypeAlias = tuple[int, int, int]

MAX_BLOCKS: Final = 100  # the longest are kept
_MAX_WORDS: Final = 4_000  # of either text for a comparison word by word; its cost grows with the square
_MAX_JSON: Final = 1_000_000  # code points looked through for a JSON string
_MIN_COMMON: Final = 3  # code points of a common start or end
_LITERAL: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE: Final = re.compile(r"\\(?:u[0-9a-fA-F]{4}|.)", re.DOTALL)
_WORD: Final = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")


def map_answer(answer: str, generated: str) -> tuple[Block, ...]:
    """The blocks that both texts share, in order of the answer; none when nothing can be said."""
    if not answer or not generated:
        return ()
    if found := _in_json(answer, generated):
        return found
    at = generated.rfind(answer)  # the last: reasoning comes before the answer
    if at >= 0:
        return ((0, at, len(answer)),)
    at = answer.find(generated)
    if at >= 0:
        return ((at, 0, len(generated)),)
    return _word_by_word(answer, generated)


def _in_json(answer: str, generated: str) -> tuple[Block, ...]:
    """Blocks of an answer that stands in the model's text as a JSON string, in pieces between escapes."""
    place = find_literal(answer, generated)
    return tuple(_kept(_between_escapes(answer, generated, *place))) if place else ()


def find_literal(answer: str, generated: str) -> tuple[int, int] | None:
    """Where a JSON string that spells the answer stands in the model's text, between its quotes."""
    for literal in _LITERAL.finditer(generated[:_MAX_JSON]):
        try:
            if json.loads(literal[0], strict=False) == answer:
                return literal.span(1)
        except ValueError:  # quotes that are no JSON
            continue
    return None


def _between_escapes(answer: str, generated: str, start: int, end: int) -> Iterator[Block]:
    shown = 0
    while start < end:
        escape = _ESCAPE.search(generated, start, end)
        stop = escape.start() if escape else end
        if stop > start:
            yield shown, start, stop - start
            shown += stop - start
        if escape is None:
            return
        start = escape.end()
        # two escapes may spell one character (a surrogate pair): then one escape yields none of its own
        is_first_half = re.match(r"\\u[dD][89abAB]", escape[0]) and _ESCAPE.match(generated, start, end)
        shown += 0 if is_first_half and ord(answer[shown]) > 0xFFFF else 1


def _word_by_word(answer: str, generated: str) -> tuple[Block, ...]:
    shown, said = _words(answer), _words(generated)
    if len(shown) > _MAX_WORDS or len(said) > _MAX_WORDS:
        return _ends(answer, generated)
    matcher = SequenceMatcher(None, [answer[a:b] for a, b in shown], [generated[a:b] for a, b in said])
    blocks = []
    for i, j, count in matcher.get_matching_blocks():
        if count:
            start = shown[i][0]
            blocks.append((start, said[j][0], shown[i + count - 1][1] - start))
    return tuple(_kept(block for block in blocks if answer[block[0] : block[0] + block[2]].strip()))


def _words(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in _WORD.finditer(text)]


def _ends(answer: str, generated: str) -> tuple[Block, ...]:
    """Common start and end: all that is said of texts too long to compare word by word."""
    limit = min(len(answer), len(generated))
    start = next((i for i in range(limit) if answer[i] != generated[i]), limit)
    end = next((i for i in range(limit - start) if answer[-1 - i] != generated[-1 - i]), limit - start)
    blocks = [(0, 0, start), (len(answer) - end, len(generated) - end, end)]
    return tuple(block for block in blocks if block[2] >= _MIN_COMMON)


def _kept(blocks: Iterator[Block] | list[Block]) -> list[Block]:
    found = list(blocks)
    longest = sorted(found, key=lambda block: -block[2])[:MAX_BLOCKS]
    return sorted(longest)
