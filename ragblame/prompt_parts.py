"""A prompt without the chunks it repeats: what PostgreSQL keeps of it, since it keeps the chunks anyway.

Retrieved chunks are most of a prompt. Each place where one stands word for word becomes its position; the
SQL function ``ragblame.whole_prompt`` puts the texts back.
"""

from collections.abc import Sequence
from typing import Final

from ragblame.records import Chunk, Json, Message

_SHORTEST: Final = 64  # code points of a chunk worth a reference
_MOST_LOOKED_AT: Final = 50_000_000  # code points, all chunks together: a few milliseconds of searching


def prompt_to_parts(prompt: Sequence[Message], chunks: Sequence[Chunk]) -> list[Json]:
    """Each message as ``{"role", "text"}`` or, where chunks stand in it, ``{"role", "parts"}``.

    A part is a text, or the position of the chunk whose whole text stands there.
    """
    wanted = {chunk.text: chunk.position for chunk in reversed(chunks) if len(chunk.text) >= _SHORTEST}
    if len(wanted) * sum(len(message.text) for message in prompt) > _MOST_LOOKED_AT:
        wanted = {}
    longest_first = sorted(wanted.items(), key=lambda item: -len(item[0]))  # a chunk may hold another
    return [_to_parts(message, longest_first) for message in prompt]


def _to_parts(message: Message, chunks: Sequence[tuple[str, int]]) -> Json:
    parts: list[Json] = [message.text]
    for text, position in chunks:
        if text not in message.text:
            continue
        split: list[Json] = []
        for part in parts:
            if not isinstance(part, str) or len(part) < len(text):
                split.append(part)
                continue
            for piece in part.split(text):
                split += (piece, position)
            split.pop()
        parts = split
    if len(parts) == 1:
        return {"role": message.role, "text": message.text}
    return {"role": message.role, "parts": [part for part in parts if part != ""]}
