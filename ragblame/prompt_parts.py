"""A prompt without the chunks it repeats: what PostgreSQL keeps of it, since it keeps the chunks anyway.

Retrieved chunks are most of a prompt. A place where one stands word for word becomes its position; the SQL
function ``ragblame.whole_prompt`` puts the texts back.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

from ragblame.trace_records import Chunk, Json, Message

Place: TypeAlias = tuple[int, int, int]  # [start, end) in code points, position of the chunk

_SHORTEST: Final = 64  # code points of a chunk worth a reference
_HEAD: Final = 24  # of a chunk, looked for first: long texts are prepared for a search, which costs more
_HEADS_TRIED: Final = 50
_MOST_LOOKED_AT: Final = 20_000_000  # code points, for all chunks together: a few milliseconds


def prompt_to_parts(prompt: Sequence[Message], chunks: Sequence[Chunk]) -> list[Json]:
    """Each message as ``{"role", "text"}`` or, where chunks stand in it, ``{"role", "parts"}``.

    A part is a text, or the position of the chunk whose whole text stands there.
    """
    return [_to_parts(message, chunk_places(message.text, chunks)) for message in prompt]


def chunk_places(text: str, chunks: Sequence[Chunk]) -> list[Place]:
    """Where whole chunks stand in a text: at most one place for each text, in order, not overlapping.

    Short chunks are left out, and all of them where looking would take long.
    """
    if len(text) < _SHORTEST or len(text) * len(chunks) > _MOST_LOOKED_AT:
        return []
    places: list[Place] = []
    end = 0
    for chunk in chunks:
        wanted = chunk.text
        if not _SHORTEST <= len(wanted) <= len(text):
            continue
        start = _find(text, wanted, end)  # prompts show chunks in the order they were found
        if start < 0 and end:
            start = _find(text, wanted, 0)
        if start >= 0:
            end = start + len(wanted)
            places.append((start, end, chunk.position))
    places.sort()
    return [
        place for before, place in zip([(0, 0, 0), *places], places, strict=False) if place[0] >= before[1]
    ]


def _find(text: str, wanted: str, start: int) -> int:
    head = wanted[:_HEAD]
    for _ in range(_HEADS_TRIED):
        at = text.find(head, start)
        if at < 0 or text.startswith(wanted, at):
            return at
        start = at + 1
    return text.find(wanted, start)


def _to_parts(message: Message, places: Sequence[Place]) -> Json:
    if not places:
        return {"role": message.role, "text": message.text}
    parts: list[Json] = []
    at = 0
    for start, end, position in places:
        if start > at:
            parts.append(message.text[at:start])
        parts.append(position)
        at = end
    if at < len(message.text):
        parts.append(message.text[at:])
    return {"role": message.role, "parts": parts}
