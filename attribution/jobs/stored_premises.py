"""A verdict's premises as the JSON that stands beside it, and back: the one place that knows that form."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Final

from ragblame.json_values import clean_text
from ragblame.records import Premises, PromptLine, SupportState

_NUMBERS: Final = {"v_all", "v_none", "noise", "follow"}  # nats


def premises_to_json(premises: Premises) -> str:
    """All fields but the span, which stands beside it; those that say nothing are left out."""
    record = {name: value for name, value in asdict(premises).items() if value not in (None, (), "")}
    del record["span"]
    record["conflicts"] = [[position, clean_text(other)] for position, other in premises.conflicts]
    for name in _NUMBERS & record.keys():
        if not math.isfinite(record[name]):
            record[name] = repr(record[name])  # JSON has no infinity
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def premises_from_json(span: int, record: Mapping[str, Any]) -> Premises:
    """The inverse, from the parsed object. Names that a newer program added are left out."""
    known = {field.name for field in fields(Premises)} - {"span"}
    values: dict[str, Any] = {name: value for name, value in record.items() if name in known}
    values |= {name: float(values[name]) for name in _NUMBERS & values.keys()}
    values["read_state"] = SupportState(values["read_state"])
    values["conflicts"] = tuple((position, other) for position, other in values.get("conflicts", ()))
    for name in ("borrowed_from", "dropped", "miscited", "cites_none", "used"):
        values[name] = tuple(values.get(name, ()))
    for name in ("copied_from", "told_by"):
        values[name] = tuple(PromptLine(**line) for line in values.get(name, ()))
    return Premises(span=span, **values)
