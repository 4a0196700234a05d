"""Nearest vectors, as an index tells them and as they are: the difference is a root cause.

One scan of the table answers for all query vectors at once: the index' list of each gives a distance beyond
which no row can belong to the true list, so the scan keeps the few rows within one of those distances. That
needs no sort, runs in parallel, and costs the same with one query vector as with four.
"""

import bisect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from psycopg import sql

from ragblame.corpus import ProbeText
from ragblame.errors import InputError, ModelError
from ragblame.retriever.checked_sources import CheckedSource
from ragblame.retriever.filters import Condition
from ragblame.retriever.probe_clock import Clock, late

DEPTH: Final = 50  # rows of a list
MAX_ROWS: Final = 20_000  # that one scan may return before it counts as not finished
SAMPLE: Final = 20_000  # rows that a rank or a distance to look within is estimated from

_LIST = sql.SQL(
    "SELECT {id}::text, {vector} {operator} %(vector)s::{type}, {newer} FROM {relation}{sample} "
    "WHERE {scope} AND {condition} ORDER BY ({vector} {operator} %(vector)s::{type}){exactly} LIMIT %(limit)s"
)
_SCAN = sql.SQL(
    "SELECT {id}::text, {flag}, {newer}, {distances} FROM {relation} "
    "WHERE {scope} AND ({within}) LIMIT %(limit)s"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A row's place in a list."""

    id: str
    distance: float
    rank: int  # 1-based
    rank_then: int | None = None  # among rows no newer than the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One list of nearest rows."""

    text: ProbeText
    is_filtered: bool
    rows: tuple[Ranked, ...]
    is_exact: bool  # every row of the table was compared
    is_complete: bool = True
    seconds: float = 0.0
    note: str = ""
    first: int | None = None  # of these rows the retriever itself got so many: it has no index
    within: float | None = None  # how far a scan looks to make it exact; None: as far as its farthest row

    @property
    def farthest(self) -> float:
        """How far a scan looks; there must be a row. An index may be a little out of order."""
        return max(row.distance for row in self.rows) if self.within is None else self.within


@dataclass(slots=True, kw_only=True)
class VectorProbe:
    """Asks one source with query vectors; every method keeps to the clock."""

    clock: Clock
    checked: CheckedSource
    condition: Condition  # the retriever's filter
    newer: sql.Composable  # whether a row is newer than the answer; null: not known
    parameters: Mapping[str, Any]  # of both
    vectors: Mapping[ProbeText, str]  # as pgvector reads them
    parts: dict[str, sql.Composable] = field(init=False)  # of every statement

    def __post_init__(self) -> None:
        self.parts = {
            "id": self.checked.id,
            "id_type": self.checked.id_type,
            "vector": self.checked.vector,
            "type": self.checked.vector_type,
            "operator": self.checked.operator,
            "relation": self.checked.relation,
            "scope": self.checked.scope,
            "flag": self.condition.flag,
            "newer": self.newer,
        }

    def list_rows(
        self, text: ProbeText, *, is_filtered: bool, limit: int, seconds: float, exactly: bool = False
    ) -> Listing:
        """The ``limit`` nearest rows by the plan PostgreSQL chooses, or ``exactly``: by no vector index.

        Exact also where PostgreSQL chooses to read every row, which its plan tells.
        """
        statement = _LIST.format(
            **self.parts,
            condition=self.condition.sql if is_filtered else sql.SQL("true"),
            exactly=sql.SQL(" + 0.0") if exactly else sql.SQL(""),  # no index is made on that
            sample=sql.SQL(""),
        )
        given = {**self.parameters, "vector": self.vectors[text], "limit": limit}
        is_exact = exactly or not self._uses_vector_index(statement, given)
        rows, took = self.clock.ask(statement, given, seconds=seconds)
        if rows is None:
            return Listing(
                text=text,
                is_filtered=is_filtered,
                rows=(),
                is_exact=False,
                is_complete=False,
                seconds=took,
                note=late(took),
            )
        found = [row for row in rows if row[1] is not None and math.isfinite(row[1])]
        if is_exact:
            ranked = _ranked(sorted([(row[1], row[0], row[2]) for row in found], key=lambda row: row[:2]))
        else:
            ranked = tuple(
                Ranked(id=row[0], distance=row[1], rank=place) for place, row in enumerate(found, start=1)
            )
        return Listing(text=text, is_filtered=is_filtered, rows=ranked, is_exact=is_exact, seconds=took)

    def sample_rows(self, text: ProbeText, *, is_filtered: bool, limit: int, seconds: float) -> Listing:
        """The nearest rows of a sample of the table, and how far a scan must look to find ``limit`` of all.

        ``within`` is None where the sample holds too few rows to tell.
        """
        percent = self.sampled_percent
        expected = limit * percent / 100.0
        place = math.ceil(expected + 3 * math.sqrt(expected) + 2)  # three sigma of the draw, and two rows
        statement = _LIST.format(
            **self.parts,
            condition=self.condition.sql if is_filtered else sql.SQL("true"),
            exactly=sql.SQL(" + 0.0"),
            sample=sample_of(percent),
        )
        given = {**self.parameters, "vector": self.vectors[text], "limit": max(limit, place)}
        rows, took = self.clock.ask(statement, given, seconds=seconds)
        found = [row for row in rows or () if row[1] is not None and math.isfinite(row[1])]
        return Listing(
            text=text,
            is_filtered=is_filtered,
            rows=tuple(
                Ranked(id=id, distance=distance, rank=1 + round((place - 1) * 100.0 / percent))
                for place, (id, distance, _) in enumerate(found, start=1)
            ),
            is_exact=False,
            is_complete=rows is not None,
            seconds=took,
            note=f"approximate: the nearest of a sample of {percent:.2g} % of the table"
            if rows is not None
            else late(took),
            within=found[place - 1][1] if len(found) >= place else None,
        )

    def scan(self, lists: Sequence[Listing], *, seconds: float) -> list[Listing]:
        """Exact lists in place of what an index told, by one scan for all; as they were where time ran out.

        Each list must hold at least one row: the farthest is how far the scan looks.
        """
        texts = list(dict.fromkeys(entry.text for entry in lists))
        distance = {
            text: sql.SQL("{vector} {operator} {query}::{type}").format(
                **{key: self.parts[key] for key in ("vector", "operator", "type")},
                query=sql.Placeholder(f"vector_{place}"),
            )
            for place, text in enumerate(texts)
        }
        given: dict[str, Any] = {**self.parameters, "limit": MAX_ROWS + 1}
        given |= {f"vector_{place}": self.vectors[text] for place, text in enumerate(texts)}
        within = []
        for place, text in enumerate(texts):
            # the longest distance first: it turns nearly every row away with one comparison
            entries = sorted(
                (entry for entry in lists if entry.text is text), key=lambda entry: -entry.farthest
            )
            conditions = []
            for number, entry in enumerate(entries):
                name = f"within_{place}_{number}"
                given[name] = entry.farthest
                near = sql.SQL("{} <= {}::float8").format(distance[text], sql.Placeholder(name))
                passes = self.condition.sql if entry.is_filtered else sql.SQL("true")
                conditions.append(sql.SQL("({} AND {})").format(near, passes))
            far = sql.SQL("{} <= {}::float8").format(distance[text], sql.Placeholder(f"within_{place}_0"))
            within.append(sql.SQL("({} AND ({}))").format(far, sql.SQL(" OR ").join(conditions)))
        statement = _SCAN.format(
            **self.parts,
            distances=sql.SQL(", ").join([distance[text] for text in texts]),
            within=sql.SQL(" OR ").join(within),
        )
        rows, took = self.clock.ask(statement, given, seconds=seconds)
        if rows is None or len(rows) > MAX_ROWS:
            why = (
                f"the table could not be compared whole ({late(took)})"
                if rows is None
                else f"more than {MAX_ROWS} rows are nearer than the index' farthest"
            )
            return [
                replace(entry, seconds=entry.seconds + took, note=f"approximate: {why}") for entry in lists
            ]
        exact = []
        for entry in lists:
            column = 3 + texts.index(entry.text)
            seen = [
                (row[column], row[0], row[2])
                for row in rows
                if row[column] is not None
                and row[column] <= entry.farthest
                and (row[1] or not entry.is_filtered)
            ]
            ranked = _ranked(sorted(seen, key=lambda row: row[:2]))
            exact.append(replace(entry, rows=ranked, is_exact=True, seconds=took, note=""))
        return exact

    @property
    def sampled_percent(self) -> float:
        """Share of the table's pages that make a sample, (0, 100]."""
        return min(100.0, 100.0 * SAMPLE / max(1, self.checked.rows or 1))

    def is_indexed(self, text: ProbeText, *, is_filtered: bool, limit: int) -> bool:
        """Whether PostgreSQL would answer such a list from a vector index."""
        statement = _LIST.format(
            **self.parts,
            condition=self.condition.sql if is_filtered else sql.SQL("true"),
            exactly=sql.SQL(""),
            sample=sql.SQL(""),
        )
        given = {**self.parameters, "vector": self.vectors[text], "limit": limit}
        return self._uses_vector_index(statement, given)

    def _uses_vector_index(self, statement: sql.Composed, given: Mapping[str, Any]) -> bool:
        """Whether the plan reads an index in the order of distance."""
        explain = sql.SQL("EXPLAIN (FORMAT JSON, COSTS OFF) {}").format(statement)
        rows, _ = self.clock.ask(explain, given, seconds=1.0)
        return rows is None or '"Order By"' in json.dumps(rows[0][0])


def _ranked(rows: Sequence[tuple[float, str, bool | None]]) -> tuple[Ranked, ...]:
    """Rows sorted by distance, ranked; those at the same distance share a rank."""
    distances = [row[0] for row in rows]
    older = [row[0] for row in rows if row[2] is False]
    knows = bool(older) or any(row[2] for row in rows)
    return tuple(
        Ranked(
            id=id,
            distance=distance,
            rank=bisect.bisect_left(distances, distance) + 1,
            rank_then=bisect.bisect_left(older, distance) + 1 if knows and is_newer is False else None,
        )
        for distance, id, is_newer in rows
    )


def sample_of(percent: float) -> sql.Composable:
    """Pages drawn by the same seed each time: the same table gives the same answer."""
    return sql.SQL(" TABLESAMPLE SYSTEM ({}) REPEATABLE (1)").format(sql.Literal(percent))


def vector_text(vector: Sequence[float], checked: CheckedSource) -> str:
    """``vector`` as pgvector reads it; to unit length where the distance does not see the length.

    Raises ``ModelError`` for NaN, infinity or a zero vector, ``InputError`` for other dimensions.
    """
    values = [float(value) for value in vector]
    length = math.hypot(*values)
    if not math.isfinite(length) or length == 0.0:
        raise ModelError("a query vector is NaN, infinite or zero: check the embedding model's weights")
    if checked.dimensions is not None and len(values) != checked.dimensions:
        raise InputError(
            f"the query vector has {len(values)} dimensions and {checked.source.name} {checked.dimensions}: "
            "use the embedding model that the corpus was made with"
        )
    if checked.metric.startswith("cosine"):
        values = [value / length for value in values]
    return "[" + ",".join(format(value, ".8g") for value in values) + "]"
