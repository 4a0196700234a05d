"""Retrieved documents as they are when their event passes, and the chunks that are made of them later.

Reading is done in the host's thread and keeps to the least: a string is immutable, so keeping it is the
snapshot, and flat metadata is copied. Everything that takes time (cleaning, cutting, records) is done in the
writer's thread, from the copy: a later step that edits a document does not change the record.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from ragblame.json_values import clean_json
from ragblame.plugin.counters import counters
from ragblame.trace_records import Chunk, Json

MAX_DOCUMENTS: Final = 1_000  # read of one list; the recorder's own limit is lower
_MAX_SCANNED: Final = 50  # values looked at in one dictionary
_MAX_PROBED: Final = 4  # entries of a list that must hold a document, or it is taken for something else

SCORE_KEYS: Final = ("score", "relevance_score", "similarity", "distance", "_score")
ID_KEYS: Final = ("source_id", "chunk_id", "langchain_id", "row_id", "id", "_id")
TABLE_KEY: Final = "source_table"  # in a document's or a retriever's metadata: where the row lives

# Tuples, because a union in a test is made anew at every event.
_LISTS: Final = (list, tuple)
_MAPPINGS: Final = (dict, Mapping)  # the first is quickly told
_NUMBERS: Final = (int, float)
_NO_NUMBERS: Final = (bool, str)
_FLAT: Final = frozenset({str, int, float, bool, type(None)})  # immutable: a copy of the dictionary is enough


class Passage(NamedTuple):
    """One document as it was: text and scalars by reference, metadata copied."""

    text: str
    identity: str | None  # Document.id
    paired: float | None  # score of a (document, score) pair
    metadata: Mapping[Any, Any]
    is_flat: bool = True  # the metadata's values are plain


def documents_in(value: Any) -> Sequence[Any]:
    """The list of documents that a value is or, as a dictionary, holds first; empty when there is none.

    Pairs of document and score count as documents.
    """
    if isinstance(value, _LISTS):
        return value if any(_document_of(entry) for entry in value[:_MAX_PROBED]) else ()
    if isinstance(value, _MAPPINGS):
        for entry in islice(value.values(), _MAX_SCANNED):
            if isinstance(entry, list) and documents_in(entry):
                return entry
    return ()


def read_passages(documents: Sequence[Any]) -> tuple[tuple[Passage, ...], int]:
    """One passage per document, and how many there were in truth: only ``MAX_DOCUMENTS`` are read.

    A document that cannot be read costs itself only, and is counted.
    """
    passages = []
    for entry in documents[:MAX_DOCUMENTS]:
        try:
            found = _document_of(entry)
            if found is not None:
                passages.append(_read(*found))
        except Exception as error:
            counters.note_fault(error)
    return tuple(passages), len(documents) if len(documents) > MAX_DOCUMENTS else len(passages)


def _read(document: Any, paired: Any) -> Passage:
    metadata: Any = getattr(document, "metadata", None)
    kept: Mapping[Any, Any] = {}
    is_flat = True
    if metadata and isinstance(metadata, _MAPPINGS):
        is_flat = type(metadata) is dict and _FLAT.issuperset(map(type, metadata.values()))
        kept = dict(metadata) if is_flat else _copy(metadata)
    identity = getattr(document, "id", None)
    if not (identity is None or isinstance(identity, str)):
        identity = str(identity)
    return Passage(
        document.page_content,
        identity,
        float(paired) if paired is not None and _is_number(paired) else None,
        kept,
        is_flat,
    )


def _copy(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    cleaned = clean_json(metadata)
    kept: dict[str, Any] = cleaned if isinstance(cleaned, dict) else {}
    for key in SCORE_KEYS:  # a tensor is no JSON, but its score is a number
        if key in kept and not isinstance(kept[key], int | float) and _is_number(metadata.get(key)):
            kept[key] = float(metadata[key])
    return kept


def _document_of(entry: Any) -> tuple[Any, Any] | None:
    score = None
    if isinstance(entry, tuple) and len(entry) == 2:
        entry, score = entry
    return (entry, score) if isinstance(getattr(entry, "page_content", None), str) else None


def make_chunk(passage: Passage, limit: int) -> Chunk:
    """The record of a passage, at no position of any search yet; text is cut at ``limit``."""
    metadata: dict[str, Json] = {}
    identity, table, score_name, score = passage.identity, None, None, None
    if passage.metadata:
        cleaned = clean_json(passage.metadata)
        metadata = cleaned if isinstance(cleaned, dict) else {}
        table = text_of(metadata, (TABLE_KEY,))
        identity = identity or _identity_in(metadata)
        score_name, score = _score_of(passage.metadata)
    if passage.paired is not None:
        score_name, score = "score", passage.paired
    text = str.__str__(passage.text)  # a subclass may carry behaviour; its characters are all we want
    return Chunk(
        position=0,
        text=text[:limit],
        source_id=str.__str__(identity) if identity else None,
        source_table=table,
        score=score,
        score_name=score_name,
        metadata=metadata,
        truncated_from=len(text) if len(text) > limit else None,
    )


def text_of(mapping: Any, keys: Iterable[str]) -> str | None:
    """The first of these entries that is a text with something in it."""
    if not isinstance(mapping, _MAPPINGS):
        return None
    for key in keys:
        entry = mapping.get(key)
        if entry and isinstance(entry, str):
            return entry
    return None


def _identity_in(metadata: Mapping[str, Json]) -> str | None:
    for key in ID_KEYS:
        candidate = metadata.get(key)
        if isinstance(candidate, str | int) and not isinstance(candidate, bool) and candidate != "":
            return str(candidate)
    return None


def _score_of(metadata: Mapping[Any, Any]) -> tuple[str | None, float | None]:
    for key in SCORE_KEYS:
        value = metadata.get(key)
        if value is not None and _is_number(value):
            named = metadata.get("score_name")  # a retriever that says what its score is
            return named if key == "score" and isinstance(named, str) else key, float(value)
    return None, None


def _is_number(value: Any) -> bool:
    if value is None or isinstance(value, _NO_NUMBERS):
        return False
    try:  # numpy scalars are numbers too
        return isinstance(value, _NUMBERS) or (hasattr(value, "dtype") and float(value) is not None)
    except (TypeError, ValueError):
        return False
