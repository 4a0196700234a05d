"""Untrusted text and values made storable: what PostgreSQL's text and jsonb refuse is replaced.

Host metadata may hold anything (NUL bytes, lone surrogates, NaN, cycles, live objects, megabytes); one bad
value must cost itself, never the trace it came with.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

import orjson

from ragblame.trace_records import Json

MAX_DEPTH: Final = 8  # nesting kept of a metadata value
MAX_VALUES: Final = 2_000  # values kept of one metadata object, all levels together
MAX_CHARACTERS: Final = 64_000  # code points kept of one metadata object, all levels together
MAX_IDENTITY_BYTES: Final = 2_000  # a B-tree entry may not exceed about 2 700 bytes
MAX_INTEGER_BITS: Final = 1_024
_CONTAINERS: Final = (dict, list, tuple, set, frozenset, Mapping)
_FEW: Final = 32  # entries, all levels together, of a value that is looked at before it is cleaned
_SHORT: Final = 1_000  # code points of a text there: all together stay below MAX_CHARACTERS
_SMALL: Final = 1 << 63
_NESTING: Final = (dict, list)

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_NOTE = re.compile(r"… \d+ more")
_AS_TEXT = (UUID, date, datetime, clock_time, timedelta, Decimal, PurePath)


def clean_text(text: str) -> str:
    """Text PostgreSQL can store: NUL becomes U+2400, a lone surrogate U+FFFD. The length never changes."""
    text = str.__str__(text)  # a subclass may carry behaviour; its characters are all we want
    if text.isascii() and "\0" not in text:
        return text
    return _UNSTORABLE.sub(lambda match: "\u2400" if match[0] == "\0" else "\ufffd", text)


def clean_identity(text: str, max_bytes: int = MAX_IDENTITY_BYTES) -> str:
    """Clean text that fits an index entry: a longer one keeps its head and gains a digest."""
    text = clean_text(text)
    if len(text) <= max_bytes and text.isascii():
        return text
    data = text.encode()
    if len(data) <= max_bytes:
        return text
    mark = f"…sha256:{hashlib.sha256(data).hexdigest()[:32]}"
    return data[: max_bytes - len(mark.encode())].decode(errors="ignore") + mark


def clean_json(value: Any) -> Json:
    """``value`` as JSON that jsonb accepts, bounded in depth, count and characters.

    NaN and infinities become null, keys text, bytes and unknown objects a placeholder naming their type; what
    was cut says so. Nothing of the value's own code runs but ``str`` on standard-library types.
    """
    return _copied(value) if is_clean(value) else _Cleaner().clean(value, 0)


def json_bytes(value: Any) -> bytes:
    """A cleaned value as JSON in UTF-8."""
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer beyond 64 bits
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def is_clean(value: Any) -> bool:
    """Whether a value is what cleaning would make of it, as most metadata is: small and plain.

    Exact types only: a subclass may carry behaviour.
    """
    return type(value) is dict and _room_left(value, _FEW, 1) >= 0


def _room_left(value: Any, room: int, depth: int) -> int:
    """What is left of ``room`` after the entries of a dictionary or list; negative when it is not clean."""
    room -= len(value)
    if room < 0 or depth > MAX_DEPTH:
        return -1
    is_list = type(value) is list
    for key in value:
        if is_list:
            entry = key
        elif type(key) is str and _is_plain(key):
            entry = value[key]
        else:
            return -1
        kind = type(entry)
        if kind is str:
            if not _is_plain(entry):
                return -1
        elif kind is float:
            if not (math.isfinite(entry) and entry):
                return -1  # there are two zeros
        elif kind is int:
            if not -_SMALL < entry < _SMALL:
                return -1
        elif kind is dict or kind is list:
            room = _room_left(entry, room, depth + 1)
            if room < 0:
                return -1
        elif entry is not None and kind is not bool:
            return -1
    return room


def _copied(value: Any) -> Any:
    """A clean value's own dictionaries and lists."""
    if type(value) is dict:
        return {key: _copied(entry) if type(entry) in _NESTING else entry for key, entry in value.items()}
    return [_copied(entry) if type(entry) in _NESTING else entry for entry in value]


def _is_plain(text: str) -> bool:
    return len(text) <= _SHORT and text.isascii() and "\0" not in text


class _Cleaner:
    """Walks one value with a budget, so that cycles and giants end."""

    def __init__(self) -> None:
        self.values = MAX_VALUES
        self.characters = MAX_CHARACTERS

    def clean(self, value: Any, depth: int) -> Json:
        self.values -= 1
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value.value if isinstance(value, Enum) else value)
        if isinstance(value, Enum):
            return self.clean(value.value, depth)
        if isinstance(value, int):
            # Beyond a double's range most readers of JSON fail, and Python refuses to print very long ones.
            return (
                int(value)
                if value.bit_length() <= MAX_INTEGER_BITS
                else f"<integer of {value.bit_length()} bits>"
            )
        if isinstance(value, float):
            return value + 0.0 if math.isfinite(value) else None  # jsonb knows one zero only
        if isinstance(value, _CONTAINERS):
            if depth >= MAX_DEPTH:
                return f"<{type(value).__name__} too deep>"
            return self._mapping(value, depth) if isinstance(value, Mapping) else self._list(value, depth)
        if isinstance(value, _AS_TEXT):
            return self._text(str(value))
        if isinstance(value, bytes | bytearray | memoryview):
            return f"<{len(value)} bytes>"
        if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
            return self.clean(value.item(), depth)  # a score is often a numpy scalar
        return self._text(f"<{type(value).__name__}>")

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Json]:
        kept: dict[str, Json] = {}
        for count, (key, entry) in enumerate(value.items()):
            if self._is_spent():
                kept["…"] = _rest(entry, len(value) - count)
                break
            kept[self._key(key)] = self.clean(entry, depth + 1)
        return kept

    def _list(self, value: Any, depth: int) -> list[Json]:
        kept: list[Json] = []
        for count, entry in enumerate(value):
            if self._is_spent():
                kept.append(_rest(entry, len(value) - count))
                break
            kept.append(self.clean(entry, depth + 1))
        return kept

    def _is_spent(self) -> bool:
        return self.values <= 0 or self.characters <= 0

    def _key(self, key: Any) -> str:
        is_plain = key is None or isinstance(key, bool | int | float | UUID)
        return self._text(
            key if isinstance(key, str) else str(key) if is_plain else f"<{type(key).__name__}>"
        )

    def _text(self, text: str) -> str:
        text = str.__str__(text)
        room = max(self.characters, 0)
        self.characters -= len(text)
        kept = clean_text(text[:room])  # cut first: cleaning megabytes that are thrown away costs the host
        return kept if len(text) <= room else f"{kept}…"


def _rest(entry: object, count: int) -> str:
    """The note about what was cut; an earlier note is kept, so that cleaning twice changes nothing."""
    if count == 1 and isinstance(entry, str) and _NOTE.fullmatch(entry):
        return entry
    return f"… {count} more"
