"""Counts beside the filters of the queue, and of what was flagged since it was drawn."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from psycopg import Connection

from ragblame.ui.reads import ITEMS, Filters, found_cte, item_conditions, joined

FACET_ROWS: Final = 20_000  # newest matching spans that the counts look at; bounds their cost
NEW_ROWS: Final = 1_000  # more new spans than this are not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Facets:
    """Counts beside the filters; each facet obeys all filters but its own."""

    states: dict[str, int]
    verdicts: dict[str, int]
    causes: dict[str, int]
    apps: dict[str, int]
    models: dict[str, int]
    is_partial: bool  # only the newest FACET_ROWS spans were counted


def read_facets(conn: Connection[Any], filters: Filters) -> Facets:
    """Counts of the values of each filter among the newest ``FACET_ROWS`` matching spans."""
    shared = replace(filters, state=None, verdict=None, cause=None, app=None, model=None)
    cte, found = found_cte(shared)
    where, params = item_conditions(shared)
    params = [*found, *params]
    columns = {
        "state": filters.state,
        "verdict": filters.verdict,
        "cause": filters.cause,
        "app": filters.app,
        "model": filters.model,
    }
    counts = []
    for column in columns:
        others = {name: value for name, value in columns.items() if name != column and value is not None}
        condition = joined([f"{name} = %s" for name in others])
        counts.append(
            f"SELECT '{column}' AS facet, {column} AS value, count(*) FROM hit WHERE {condition} GROUP BY 2"
        )
        params += [str(value) for value in others.values()]
    query = (
        f"WITH {cte} hit AS MATERIALIZED (SELECT i.state, v.verdict, v.cause, t.app, t.model FROM {ITEMS}"
        f" WHERE {joined(where)} ORDER BY i.trace_id DESC LIMIT {FACET_ROWS})"
        f" {' UNION ALL '.join(counts)} UNION ALL SELECT 'all', NULL, count(*) FROM hit"
    )
    tally: dict[str, dict[str, int]] = {name: {} for name in (*columns, "all")}
    for facet, value, count in conn.execute(query.encode(), params).fetchall():
        if value is not None or facet == "all":
            tally[facet][value or ""] = count
    return Facets(
        states=tally["state"],
        verdicts=tally["verdict"],
        causes=tally["cause"],
        apps=tally["app"],
        models=tally["model"],
        is_partial=tally["all"].get("", 0) >= FACET_ROWS,
    )


def count_new(conn: Connection[Any], since: datetime) -> int:
    """Open spans put into the queue after ``since`` (the database's clock), of answers of the last day.

    At most ``NEW_ROWS``. The day bounds the cost: items have no index by age, and older answers are rare.
    """
    row = conn.execute(
        """SELECT count(*) FROM (
               SELECT FROM triage_item
               WHERE state = 'open' AND trace_id >= ragblame.uuid_floor(now() - interval '1 day')
                 AND created_at > %s LIMIT %s) fresh""",
        (since, NEW_ROWS),
    ).fetchone()
    return 0 if row is None else int(row[0])
