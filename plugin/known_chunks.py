"""Chunks that came before: a popular row comes again and again, but is cleaned and looked through once.

Known is what a document with the very same text, identity, score and metadata became. Two generations bound
it: what was not met while the younger one filled is forgotten.
"""

from collections.abc import Hashable
from typing import Final, NamedTuple

from ragblame.plugin.passages import Passage, make_chunk
from ragblame.plugin.redaction import is_quiet
from ragblame.trace_json import clean_chunk
from ragblame.trace_records import Chunk

MAX_CHUNKS: Final = 1_000  # of one generation
MAX_CHARACTERS: Final = 1_000_000  # code points of their texts
_LONGEST: Final = 20_000  # code points of a text worth remembering
_TEXT: Final = frozenset({str})


class KnownChunk(NamedTuple):
    """What a document becomes, whoever retrieves it."""

    chunk: Chunk  # clean, at no position of any search
    is_quiet: bool  # redaction's rules for credentials cannot find anything in it


class KnownChunks:
    """From documents to chunks, by what the last few hundred different ones became.

    Only the recorder's thread asks; at exit another one may, which costs at most a chunk made twice.
    """

    def __init__(self, max_chunks: int = MAX_CHUNKS, max_characters: int = MAX_CHARACTERS) -> None:
        self._max_chunks, self._max_characters = max_chunks, max_characters
        self._recent: dict[Hashable, KnownChunk] = {}
        self._older: dict[Hashable, KnownChunk] = {}
        self._characters = 0  # of the recent ones' texts

    def __len__(self) -> int:
        return len(self._recent) + len(self._older)

    def look_up(self, passage: Passage, limit: int) -> KnownChunk:
        """The chunk that the passage becomes, remembered or made now; its text is cut at ``limit``."""
        size = len(passage.text)
        key = _key_of(passage) if size <= limit and size <= _LONGEST else None
        if key is None:
            chunk = clean_chunk(make_chunk(passage, limit))
            return KnownChunk(chunk, is_quiet=size <= limit and size <= _LONGEST and is_quiet(chunk))
        known = self._recent.get(key)
        if known is None:
            known = self._older.get(key)
            if known is None:
                chunk = clean_chunk(make_chunk(passage, limit))
                known = KnownChunk(chunk, is_quiet(chunk))
            self._remember(key, known)
        return known

    def _remember(self, key: Hashable, known: KnownChunk) -> None:
        size = len(known.chunk.text)
        if len(self._recent) >= self._max_chunks or self._characters + size > self._max_characters:
            self._older, self._recent, self._characters = self._recent, {}, 0
        self._recent[key] = known
        self._characters += size


def _key_of(passage: Passage) -> Hashable | None:
    """What tells two documents apart; None for one that is not remembered.

    Types are part of it, for 1 equals True and 1.0; what carries behaviour of its own is left out.
    """
    metadata = passage.metadata
    if not (
        passage.is_flat
        and type(passage.text) is str
        and _TEXT.issuperset(map(type, metadata))
        and (passage.identity is None or type(passage.identity) is str)
    ):
        return None
    return (
        passage.text,
        passage.identity,
        passage.paired,
        tuple(metadata.items()),
        tuple(map(type, metadata.values())),
    )


known_chunks: Final = KnownChunks()  # of this process
