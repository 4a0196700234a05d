"""Host values made storable: the quick look at plain ones, and the bytes they become."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ragblame.json_values import MAX_DEPTH, _Cleaner, clean_json, json_bytes

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**62, max_value=2**1_100)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=8)
    | st.sampled_from([size * "a" for size in (999, 1_000, 1_001)])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=4), inner, max_size=12),
    max_leaves=25,
)
OBJECTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=12)


def told_apart(value: Any) -> str:
    """True is not 1 and 0.0 is not -0.0."""
    return repr(value)


@given(value=OBJECTS)
def test_a_quick_look_changes_nothing(value: dict[str, Any]) -> None:
    """What is passed as plain is what thorough cleaning makes of it, and a copy at every level."""
    cleaned = clean_json(value)
    assert told_apart(cleaned) == told_apart(_Cleaner().clean(value, 0))
    before = told_apart(value)
    scribble(cleaned)
    assert told_apart(value) == before


def scribble(value: Any) -> None:
    """Change a value at every level."""
    for entry in list(value.values()) if isinstance(value, dict) else list(value):
        if isinstance(entry, dict | list):
            scribble(entry)
    if isinstance(value, dict):
        value["scribbled"] = True
    else:
        value.append("scribbled")


def test_nesting_ends_where_thorough_cleaning_ends_it() -> None:
    """At every depth around the limit both agree."""
    value: Any = {"end": 1}
    for depth in range(MAX_DEPTH + 3):
        assert clean_json(value) == _Cleaner().clean(value, 0), depth
        value = {"in": value} if depth % 2 else {"in": [value]}


@given(value=OBJECTS)
def test_bytes_say_what_the_value_says(value: dict[str, Any]) -> None:
    """Integers of any size included: what is read back is what was cleaned."""
    cleaned = clean_json(value)
    assert told_apart(json.loads(json_bytes(cleaned))) == told_apart(cleaned)
