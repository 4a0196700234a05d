"""The rows that were found, as they are now: text, metadata, age, and their neighbours in the document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg import sql

from ragblame.corpus import Neighbour
from ragblame.records import Json
from ragblame.retriever.checked_sources import CheckedSource
from ragblame.retriever.filters import Condition
from ragblame.retriever.probe_clock import Clock

MAX_TEXT: Final = 100_000  # code points read of one row's text

_KNOWN = sql.SQL(
    "SELECT wanted, wanted::{id_type}::text FROM unnest(%(ids)s::text[]) AS wanted "
    "WHERE pg_input_is_valid(wanted, %(type)s)"
)
_ROWS = sql.SQL(
    "SELECT {id}::text, left({text}, {most}), {metadata}, {created}, {newer}, {flag} FROM {relation} "
    "WHERE {scope} AND {id} = ANY (%(ids)s::text[]::{id_type}[])"
)
# In order within each document that holds a wanted row; over ids only, the texts are read afterwards.
_NEIGHBOURS = sql.SQL(
    "SELECT id, before, after FROM (SELECT {id}::text AS id, lag({id}::text) OVER line AS before, "
    "lead({id}::text) OVER line AS after FROM {relation} WHERE {scope} AND {position} IS NOT NULL "
    "AND {document} IN (SELECT {document} FROM {relation} WHERE {scope} "
    "AND {id} = ANY (%(ids)s::text[]::{id_type}[])) "
    "WINDOW line AS (PARTITION BY {document} ORDER BY {position}, {id})) AS placed WHERE id = ANY (%(ids)s)"
)
_TEXTS = sql.SQL(
    "SELECT {id}::text, left({text}, {most}) FROM {relation} "
    "WHERE {scope} AND {id} = ANY (%(ids)s::text[]::{id_type}[])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the source."""

    id: str
    text: str
    metadata: Mapping[str, Json]
    created_at: datetime | None
    is_newer: bool | None
    passes: bool


class RowProbe:
    """Reads rows of one source; keeps to the clock."""

    def __init__(
        self,
        clock: Clock,
        checked: CheckedSource,
        condition: Condition,
        newer: sql.Composable,
        parameters: Mapping[str, Any],
    ) -> None:
        self._clock = clock
        self._checked = checked
        self._given = parameters
        self._parts: dict[str, sql.Composable] = {
            "id": checked.id,
            "id_type": checked.id_type,
            "text": checked.text,
            "metadata": checked.metadata or sql.SQL("NULL"),
            "created": checked.created or sql.SQL("NULL"),
            "relation": checked.relation,
            "scope": checked.scope,
            "newer": newer,
            "flag": condition.flag,
            "most": sql.Literal(MAX_TEXT),
        }

    def known(self, ids: Sequence[str]) -> dict[str, str]:
        """Recorded ids that can be ids of this table -> as PostgreSQL writes them."""
        clean = [id for id in ids if "\0" not in id and id.isprintable()]
        given = {"ids": clean, "type": self._checked.id_type_name}
        rows, _ = self._clock.ask(_KNOWN.format(**self._parts), given, seconds=1.0)
        return dict(rows or ())

    def read(self, ids: Sequence[str], *, seconds: float) -> dict[str, Row] | None:
        """The rows with these ids that exist; None when the time is over."""
        given = {**self._given, "ids": list(ids)}
        rows, _ = self._clock.ask(_ROWS.format(**self._parts), given, seconds=seconds)
        if rows is None:
            return None
        return {
            row[0]: Row(
                id=row[0],
                text=row[1] or "",
                metadata=row[2] if isinstance(row[2], dict) else {},
                created_at=row[3],
                is_newer=row[4],
                passes=row[5],
            )
            for row in rows
        }

    def neighbours(
        self, ids: Sequence[str], *, seconds: float
    ) -> dict[str, tuple[Neighbour | None, Neighbour | None]] | None:
        """The chunk before and the one after each of these rows; None when the time is over."""
        document, position = self._checked.document, self._checked.position
        if document is None or position is None or not ids:
            return {}
        statement = _NEIGHBOURS.format(**self._parts, document=document, position=position)
        placed, took = self._clock.ask(statement, {"ids": list(ids)}, seconds=seconds)
        if placed is None:
            return None
        wanted = sorted({id for row in placed for id in row[1:] if id is not None})
        texts, _ = self._clock.ask(_TEXTS.format(**self._parts), {"ids": wanted}, seconds=seconds - took)
        if texts is None:
            return None
        by_id = {id: Neighbour(id=id, text=text or "") for id, text in texts}
        return {id: (by_id.get(before), by_id.get(after)) for id, before, after in placed}
