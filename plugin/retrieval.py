"""How a retriever searched: k, filter and search type, which LangChain keeps from callbacks.

They are needed to say why a row was not retrieved. A retriever tells them in its own metadata, where
``tell_search`` puts them; older LangChain sends them along as ``serialized``. A filter is kept whole or not
at all: half a filter would blame the index for what the filter left out.
"""

import math
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Any, Final, TypeVar
from uuid import UUID

from ragblame.json_values import clean_text
from ragblame.trace_records import Json

KEY: Final = "ragblame_retrieval"  # in a retriever's metadata
UNREADABLE: Final = "unreadable"  # in place of a filter that is no plain data, or too large
_MAX_VALUES: Final = 500
_MAX_DEPTH: Final = 6
_MAX_TEXT: Final = 1_000  # code points of one value
_MAX_TYPE: Final = 60  # code points of a search type

R = TypeVar("R")


def tell_search(retriever: R, **known: Any) -> R:
    """A copy of a LangChain retriever whose searches tell the capture how they search.

    Read are ``k``, ``filter`` and ``search_type`` of the retriever and of its ``search_kwargs``; ``known``
    overrides them: ``tell_search(store.as_retriever(search_kwargs={"k": 4}))``. What a later call passes on
    its own is not seen. The retriever itself stays as it is.
    """
    said: dict[str, Any] = {}
    for name in ("k", "filter", "search_type"):
        if (value := getattr(retriever, name, None)) is not None:
            said[name] = value
    kwargs = getattr(retriever, "search_kwargs", None)
    if isinstance(kwargs, Mapping):
        said |= {name: kwargs[name] for name in ("k", "filter") if kwargs.get(name) is not None}
        said.setdefault("k", 4)  # LangChain's own default of a vector store
    metadata = getattr(retriever, "metadata", None)
    update = {"metadata": {**(metadata or {}), KEY: {**said, **known}}}
    copied: R = retriever.model_copy(update=update)  # type: ignore[attr-defined]
    return copied


def read_retrieval(metadata: Any, serialized: Any = None) -> dict[str, Json] | None:
    """What an event tells of a search; None: nothing."""
    said = metadata.get(KEY) if isinstance(metadata, Mapping) else None
    if not isinstance(said, Mapping):
        kwargs = serialized.get("kwargs") if isinstance(serialized, Mapping) else None
        search = kwargs.get("search_kwargs") if isinstance(kwargs, Mapping) else None
        if not isinstance(kwargs, Mapping) or not isinstance(search, Mapping):
            return None
        said = {**search, "search_type": kwargs.get("search_type")}
    return note_of(said.get("k"), said.get("filter"), said.get("search_type"))


def note_of(k: Any, filter: Any, search_type: Any) -> dict[str, Json] | None:
    """As it is kept in a trace's notes; what is not known is left out."""
    noted: dict[str, Json] = {}
    if isinstance(k, int) and not isinstance(k, bool) and 0 < k < 1 << 31:
        noted["k"] = int(k)
    if filter is not None and filter != {}:
        try:
            noted["filter"] = _Reader().read(filter, 0) if isinstance(filter, Mapping) else UNREADABLE
        except ValueError:
            noted["filter"] = UNREADABLE
    if isinstance(search_type, str) and search_type:
        noted["search_type"] = clean_text(search_type[:_MAX_TYPE])
    return noted or None


class _Reader:
    """Walks a filter that must be kept whole. Raises ``ValueError`` for anything else than plain data."""

    def __init__(self) -> None:
        self.values = 0

    def read(self, value: Any, depth: int) -> Json:
        self.values += 1
        if self.values > _MAX_VALUES or depth > _MAX_DEPTH:
            raise ValueError
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int) and abs(value) < 1 << 63:
            return int(value)
        if isinstance(value, float) and math.isfinite(value):
            return float(value)
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise ValueError
            return {self._text(key): self.read(entry, depth + 1) for key, entry in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.read(entry, depth + 1) for entry in value]
        if isinstance(value, UUID | date | Decimal):
            return str(value)
        raise ValueError

    @staticmethod
    def _text(text: str) -> str:
        if len(text) > _MAX_TEXT:
            raise ValueError
        return clean_text(text)
