"""Full-text search for a claim, its value and the slot the value fills: what an embedding blurs, words find.

Without a full-text index a large table cannot be searched by words in time; then only rows that the vectors
found are searched, and the result says so.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import sql

from ragblame.corpus import ProbeText, ProbeWay
from ragblame.json_values import clean_text
from ragblame.retriever.checked_sources import CheckedSource
from ragblame.retriever.probe_clock import Clock, late

COMMON: Final = 2_000  # rows: of so many matches the first are ranked, and a word in so many tells little
SMALL: Final = 20_000  # rows that are read quickly without an index
MAX_TEXT: Final = 4_000  # code points of a text whose words are searched
MAX_LEXEMES: Final = 48
MAX_WORDS: Final = 10  # of these the rarest

_MATCHES = sql.SQL(
    "WITH first AS MATERIALIZED (SELECT {id} AS id, {words} AS words FROM {relation} "
    "WHERE {scope} AND {words} @@ {query} AND {pool} LIMIT {common}) "
    "SELECT id::text, ts_rank(words, {query}, 1), (SELECT count(*) FROM first) FROM first "
    "ORDER BY 2 DESC, 1 LIMIT %(limit)s"
)
# A lexeme becomes a query by quoting it, as tsquery's own output does. Information is Robertson & Zaragoza's
# inverse document frequency with one added inside the logarithm, as in search.py.
_SOME = sql.SQL(r"""
WITH lexemes AS (
    SELECT ('''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''')::tsquery AS query
    FROM (SELECT DISTINCT lexeme FROM unnest(to_tsvector({language}, %(words)s))
        WHERE lexeme <> ALL (%(common)s::text[]) ORDER BY lexeme LIMIT {lexemes}) AS l
), counted AS MATERIALIZED (
    SELECT query, (SELECT count(*) FROM (SELECT FROM {relation}
        WHERE {scope} AND {words} @@ query AND {pool} LIMIT {common}) AS seen) AS found
    FROM lexemes
), rare AS MATERIALIZED (
    SELECT query, ln(1 + (greatest({size} - found, 0) + 0.5::float8) / (found + 0.5::float8)) AS information
    FROM counted WHERE found BETWEEN 1 AND {common} - 1 ORDER BY found, query::text LIMIT {most}
), matching AS (
    SELECT {id}::text AS id, (SELECT sum(r.information) FROM rare r WHERE {words} @@ r.query)
        / (SELECT sum(information) FROM rare) AS share
    FROM {relation} WHERE {scope} AND {pool}
    AND {words} @@ (SELECT string_agg(query::text, ' | ')::tsquery FROM rare)
)
SELECT id, share, (SELECT count(*) FROM rare) FROM matching ORDER BY share DESC, id LIMIT %(limit)s
""")
# The planner keeps the frequent lexemes of a tsvector column: asking the index for one of them is dear.
_FREQUENT = """
SELECT e.lexeme FROM pg_catalog.pg_stats AS s,
    unnest(s.most_common_elems::text::text[], s.most_common_elem_freqs) AS e (lexeme, frequency)
WHERE s.schemaname = %(schema)s AND s.tablename = %(table)s AND s.attname = %(column)s
AND e.lexeme IS NOT NULL AND e.frequency > %(least)s
"""
_QUERIES: Final[Mapping[ProbeWay, sql.SQL]] = {
    ProbeWay.PHRASE: sql.SQL("phraseto_tsquery({}, %(words)s)"),
    ProbeWay.ALL_WORDS: sql.SQL("plainto_tsquery({}, %(words)s)"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WordListing:
    """Rows that one search by words found, best first."""

    text: ProbeText
    way: ProbeWay
    rows: tuple[tuple[str, float], ...]  # row id, measure
    is_exact: bool  # every row was searched, and every match ranked
    is_complete: bool = True
    seconds: float = 0.0
    note: str = ""


class WordProbe:
    """Asks one source with words; keeps to the clock."""

    def __init__(self, clock: Clock, checked: CheckedSource) -> None:
        self._clock = clock
        self._checked = checked
        self._parts: dict[str, sql.Composable] = {
            "id": checked.id,
            "words": checked.words,
            "relation": checked.relation,
            "scope": checked.scope,
            "language": checked.language,
            "common": sql.Literal(COMMON),
            "lexemes": sql.Literal(MAX_LEXEMES),
            "most": sql.Literal(MAX_WORDS),
            "size": sql.Literal(min(checked.rows or COMMON, COMMON)),
            "id_type": checked.id_type,
        }

    def search(
        self, texts: Mapping[ProbeText, str], pool: Sequence[str], *, limit: int, seconds: float
    ) -> Iterator[WordListing]:
        """Phrases and all words of value, claim and query, some words of the masked text, within ``seconds``.

        ``pool``: row ids that are searched where all rows cannot be.
        """
        is_small = self._checked.rows is not None and self._checked.rows <= SMALL
        is_pooled = not (is_small or self._has_index())
        ends = self._clock.left - seconds
        wanted = [
            (ProbeText.VALUE, ProbeWay.PHRASE),
            (ProbeText.CLAIM, ProbeWay.PHRASE),
            (ProbeText.CLAIM, ProbeWay.ALL_WORDS),
            (ProbeText.QUERY, ProbeWay.ALL_WORDS),
            (ProbeText.MASKED if ProbeText.MASKED in texts else ProbeText.CLAIM, ProbeWay.SOME_WORDS),
        ]
        for text, way in wanted:
            if texts.get(text, "").strip():
                yield self._search(
                    text,
                    way,
                    texts[text],
                    pool if is_pooled else None,
                    limit=limit,
                    seconds=max(0.0, self._clock.left - ends) / 2,  # a slow one leaves some to the others
                )

    def _search(
        self,
        text: ProbeText,
        way: ProbeWay,
        words: str,
        pool: Sequence[str] | None,
        *,
        limit: int,
        seconds: float,
    ) -> WordListing:
        parts = dict(self._parts)
        given: dict[str, Any] = {"words": clean_text(words)[:MAX_TEXT], "limit": limit}
        parts["pool"] = sql.SQL("true")
        if pool is not None:
            given["pool"] = list(pool)
            parts["pool"] = sql.SQL("{id} = ANY (%(pool)s::text[]::{id_type}[])").format(**self._parts)
        if way is ProbeWay.SOME_WORDS:
            given["common"] = self._frequent()
            statement = _SOME.format(**parts)
        else:
            statement = _MATCHES.format(**parts, query=_QUERIES[way].format(self._checked.language))
        rows, took = self._clock.ask(statement, given, seconds=seconds)
        if rows is None:
            return WordListing(
                text=text,
                way=way,
                rows=(),
                is_exact=False,
                is_complete=False,
                seconds=took,
                note=late(took),
            )
        note = ""
        if pool is not None:
            note = (
                f"approximate: without a full-text index only the {len(pool)} rows that the vectors found "
                "were searched; see docs/probe.md for the index"
            )
        elif rows and way is not ProbeWay.SOME_WORDS and rows[0][2] >= COMMON:
            note = f"approximate: of more than {COMMON} matches the first were ranked"
        return WordListing(
            text=text,
            way=way,
            rows=tuple((row[0], float(row[1])) for row in rows),
            is_exact=not note,
            seconds=took,
            note=note,
        )

    def _frequent(self) -> list[str]:
        """Lexemes that stand in ``COMMON`` rows or more, where the planner knows them."""
        source, rows = self._checked.source, self._checked.rows
        if source.search is None or not rows or rows <= COMMON:
            return []
        given = {
            "schema": source.schema,
            "table": source.table,
            "column": source.search,
            "least": COMMON / rows,
        }
        found, _ = self._clock.ask(sql.SQL(_FREQUENT), given, seconds=0.5)
        return [row[0] for row in found or ()]

    def _has_index(self) -> bool:
        """Whether the planner can answer a search by words from an index, when it must not read the table."""
        explain = sql.SQL(
            "EXPLAIN (FORMAT JSON, COSTS OFF) SELECT FROM {relation} WHERE {words} @@ 'a'::tsquery"
        ).format(**self._parts)
        with self._clock.settings({"enable_seqscan": "off"}):
            rows, _ = self._clock.ask(explain, {}, seconds=1.0)
        return rows is not None and "Index Cond" in json.dumps(rows[0][0])
