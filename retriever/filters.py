"""A retriever's filter as a condition: a small structured form becomes SQL, and text never does.

The form is LangChain's: ``{"tenant": "a"}``, ``{"year": {"$gte": 2020}}``, ``{"$or": [{…}, {…}]}``. A name is
a column that the catalogue has, or a key of the metadata; every value travels as a parameter.
"""

from collections.abc import Mapping
from typing import Any, Final

from psycopg import sql
from psycopg.types.json import Jsonb

from ragblame.errors import InputError
from ragblame.json_values import clean_json, clean_text
from ragblame.retriever.checked_sources import CheckedSource
from ragblame.retriever.sql_names import identifier

MAX_TERMS: Final = 64  # of one filter
MAX_DEPTH: Final = 6
MAX_VALUES: Final = 500  # of one list

_COMPARED: Final = {"$eq": "=", "$ne": "<>", "$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}
_TEXTUAL: Final = {"$like": "LIKE", "$ilike": "ILIKE"}
_JOINED: Final = {"$and": " AND ", "$or": " OR "}
_OTHERS: Final = ("$in", "$nin", "$between", "$exists", "$not")
OPERATORS: Final = (*_COMPARED, *_TEXTUAL, *_JOINED, *_OTHERS)


class Condition:
    """A condition over a source's rows, with its parameters."""

    def __init__(self, filter: Mapping[str, Any] | None, source: CheckedSource) -> None:
        """Raises ``InputError`` for an operator, a name or a value that the form does not have."""
        self.parameters: dict[str, Any] = {}
        self._source = source
        self._terms = 0
        self.sql: sql.Composable = sql.SQL("true")  # for WHERE: an index can answer it
        if filter is not None:
            self.sql = self._all(filter, 0)
        self.flag = sql.SQL("coalesce({}, false)").format(self.sql)  # for SELECT: never null

    def _all(self, filter: Any, depth: int) -> sql.Composable:
        if not isinstance(filter, Mapping):
            raise InputError(f"a filter is a mapping such as {{'tenant': 'a'}}, not {type(filter).__name__}")
        if depth > MAX_DEPTH:
            raise InputError(f"the filter is nested deeper than {MAX_DEPTH}: flatten it")
        terms = [self._term(name, value, depth) for name, value in filter.items()]
        return sql.SQL("({})").format(sql.SQL(" AND ").join(terms)) if terms else sql.SQL("true")

    def _term(self, name: Any, value: Any, depth: int) -> sql.Composable:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise InputError(f"the filter has more than {MAX_TERMS} terms: shorten it")
        if not isinstance(name, str):
            raise InputError("a filter's names are text")
        if name in _JOINED or name == "$not":
            parts = value if isinstance(value, list) else [value]
            if not parts:
                raise InputError(f"the filter's {name} is empty")
            joined = sql.SQL(_JOINED.get(name, " OR ")).join([self._all(part, depth + 1) for part in parts])
            whole = sql.SQL("({})").format(joined)
            return sql.SQL("NOT coalesce({}, false)").format(whole) if name == "$not" else whole
        if name.startswith("$"):
            raise InputError(f"the filter's {name[:50]} is no operator here: {', '.join(OPERATORS)}")
        if isinstance(value, Mapping) and any(str(key).startswith("$") for key in value):
            terms = [self._compare(name, str(operator), given) for operator, given in value.items()]
            return sql.SQL("({})").format(sql.SQL(" AND ").join(terms))
        return self._compare(name, "$eq", value)

    def _compare(self, name: str, operator: str, value: Any) -> sql.Composable:
        self._terms += 1
        if operator not in OPERATORS or operator in _JOINED or operator == "$not":
            raise InputError(f"the filter's {operator[:50]} is no comparison: {', '.join(OPERATORS)}")
        is_list = operator in ("$in", "$nin", "$between")
        if is_list and (not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_VALUES):
            raise InputError(f"the filter's {operator} takes a list of 1 to {MAX_VALUES} values")
        if operator == "$between" and len(value) != 2:
            raise InputError("the filter's $between takes two values")
        if operator == "$between":
            both = [self._compare(name, "$gte", value[0]), self._compare(name, "$lte", value[1])]
            return sql.SQL("({})").format(sql.SQL(" AND ").join(both))
        if operator in ("$in", "$nin"):
            some = sql.SQL(" OR ").join([self._compare(name, "$eq", each) for each in value])
            return sql.SQL("NOT ({})" if operator == "$nin" else "({})").format(some)
        if operator in _TEXTUAL and not isinstance(value, str):
            raise InputError(f"the filter's {operator} takes a text")
        if name in self._source.columns:
            return self._column(name, operator, value)
        if self._source.metadata is None:
            raise InputError(
                f"{self._source.source.name} has no column {name[:200]!r} and no metadata to filter by"
            )
        return self._key(name, operator, value)

    def _column(self, name: str, operator: str, value: Any) -> sql.Composable:
        column = identifier(name)
        if operator == "$exists":
            return sql.SQL("({} IS NOT NULL)" if value else "({} IS NULL)").format(column)
        if value is None or isinstance(value, Mapping | list | tuple):
            raise InputError(f"the filter compares column {name[:200]} with no plain value")
        if self._source.columns[name] in ("json", "jsonb"):
            raise InputError(f"column {name[:200]} is JSON: name it as the corpus' metadata to filter by it")
        sign = _COMPARED.get(operator) or _TEXTUAL[operator]
        return sql.SQL("({} {} {})").format(column, sql.SQL(sign), self._value(value))

    def _key(self, name: str, operator: str, value: Any) -> sql.Composable:
        metadata = self._source.metadata
        assert metadata is not None  # asked before
        parts: dict[str, sql.Composable] = {"json": metadata, "key": self._value(name, "text")}
        if operator == "$exists":
            return sql.SQL("({json} ? {key})" if value else "(NOT {json} ? {key})").format(**parts)
        if operator in ("$eq", "$ne"):
            parts["entry"] = self._value(Jsonb(clean_json({name: value})), "jsonb")
            if operator == "$eq":
                return sql.SQL("({json} @> {entry})").format(**parts)  # what a GIN index answers
            return sql.SQL("({json} ? {key} AND NOT {json} @> {entry})").format(**parts)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise InputError(f"the filter's {operator} takes a number or a text")
        sign = _COMPARED.get(operator) or _TEXTUAL[operator]
        parts |= {"sign": sql.SQL(sign), "value": self._value(value, "text")}
        if isinstance(value, str):
            return sql.SQL(
                "coalesce(CASE jsonb_typeof({json} -> {key}) WHEN 'string' "
                'THEN ({json} ->> {key}) COLLATE "C" {sign} {value} END, false)'
            ).format(**parts)
        return sql.SQL(
            "coalesce(CASE jsonb_typeof({json} -> {key}) WHEN 'number' "
            "THEN ({json} ->> {key})::numeric {sign} {value}::numeric END, false)"
        ).format(**parts)

    def _value(self, value: Any, kind: str | None = None) -> sql.Composable:
        """A new parameter, cast by the server where the comparison does not say its type."""
        name = f"filter_{len(self.parameters)}"
        if kind == "text":
            value = clean_text(str(value))
        elif isinstance(value, str):
            value = clean_text(value)
        self.parameters[name] = value
        placeholder = sql.Placeholder(name)
        if kind is None:
            return placeholder
        return sql.SQL("{}::" + kind).format(placeholder)  # text or jsonb
