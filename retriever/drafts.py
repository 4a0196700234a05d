"""Documents and chunks that are to be stored: their identity, and untrusted parts made storable."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ragblame.errors import InputError
from ragblame.json_values import clean_identity, clean_json, clean_text
from ragblame.records import Json

FILE_KEY: Final = "ragblame.file"  # in a document's metadata: name of the file it was read from
MAX_TEXT: Final = 100_000  # code points of one chunk; PostgreSQL's tsvector ends at 1 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkDraft:
    """One chunk to be: its text as it will stand in a prompt, and the headings it stands under."""

    text: str  # not empty, at most MAX_TEXT code points
    heading: str = ""  # kept in metadata, and embedded with the text

    @property
    def embedded_text(self) -> str:
        """What the embedding model reads: "Run undo.sh." alone would not be found for "roll back"."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentDraft:
    """One document to be. Make it with ``draft_document``, which makes untrusted parts storable."""

    source: str  # path or URI; the identity
    title: str
    chunks: tuple[ChunkDraft, ...]
    metadata: Mapping[str, Json] = field(default_factory=dict)  # every chunk carries it too, for filters
    provenance: Mapping[str, Json] = field(default_factory=dict)  # of the document alone

    @property
    def sha256(self) -> bytes:
        """Digest of headings and texts in order, each with its length: 32 bytes."""
        digest = hashlib.sha256()
        for chunk in self.chunks:
            for part in (chunk.heading.encode(), chunk.text.encode()):
                digest.update(len(part).to_bytes(8, "big") + part)
        return digest.digest()

    def document_metadata(self) -> str:
        """JSON of the document's row."""
        return json.dumps({**self.metadata, **self.provenance})

    def chunk_metadata(self, chunk: ChunkDraft) -> str:
        """JSON of the row of one of its chunks."""
        return json.dumps({**self.metadata, "heading": chunk.heading} if chunk.heading else self.metadata)


def draft_document(
    source: str,
    chunks: Iterable[ChunkDraft],
    *,
    title: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Json] | None = None,
) -> DocumentDraft:
    """A storable draft of untrusted parts: NUL bytes, lone surrogates, long names and odd values replaced.

    Raises ``InputError`` for an empty source and for a chunk that is empty or longer than ``MAX_TEXT``.
    """
    if not source.strip():
        raise InputError("a document without a source has no identity: name its path or URI")
    clean = tuple(ChunkDraft(text=clean_text(c.text), heading=clean_text(c.heading)) for c in chunks)
    for chunk in clean:
        if not chunk.text.strip() or len(chunk.text) > MAX_TEXT:
            raise InputError(
                f"a chunk of {source!r} has {len(chunk.text)} characters: split it into 1 to {MAX_TEXT}"
            )
    values = clean_json(dict(metadata or {}))
    assert isinstance(values, dict)  # a mapping in, a mapping out
    return DocumentDraft(
        source=clean_identity(source),
        title=clean_text(title or source)[:1_000],
        chunks=clean,
        metadata=values,
        provenance=dict(provenance or {}),
    )
