"""Exact ranks of rows beyond the lists, by counting the nearer rows; or an estimate that says it is one."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import sql

from ragblame.corpus import ProbeText
from ragblame.retriever.probe_clock import late
from ragblame.retriever.probe_vectors import Listing, Ranked, VectorProbe, sample_of

_DISTANCES = sql.SQL(
    "SELECT {id}::text, {vector} {operator} %(vector)s::{type}, {flag}, {newer} FROM {relation} "
    "WHERE {scope} AND {id} = ANY (%(ids)s::text[]::{id_type}[]) AND {vector} IS NOT NULL"
)
# A row is counted in the bucket between the two wanted distances that it lies between.
_COUNT = sql.SQL(
    "SELECT width_bucket({vector} {operator} %(vector)s::{type}, %(distances)s::float8[]), {flag}, {newer}, "
    "count(*) FROM {relation}{sample} "
    "WHERE {scope} AND {vector} {operator} %(vector)s::{type} <= %(farthest)s::float8{all} GROUP BY 1, 2, 3"
)


def rank_rows(
    probe: VectorProbe, text: ProbeText, ids: Sequence[str], *, with_filter: bool, seconds: float
) -> list[Listing]:
    """Ranks of these rows among all, and in a second listing among those that pass the filter.

    When the table cannot be counted in ``seconds``, they are estimated from a sample of it, and are not
    exact; when there is no time for that either, the listings are empty.
    """
    given: dict[str, Any] = {**probe.parameters, "vector": probe.vectors[text], "ids": list(ids)}
    measured, took = probe.clock.ask(_DISTANCES.format(**probe.parts), given, seconds=seconds)
    own = [row for row in measured or () if math.isfinite(row[1])]
    counts: list[tuple[Any, ...]] | None = None
    factor, note = 1.0, f"their distances: {late(took)}" if measured is None else ""
    if own:
        distances = sorted({row[1] for row in own})
        given |= {"distances": distances, "farthest": distances[-1]}
        whole = _COUNT.format(**probe.parts, sample=sql.SQL(""), all=sql.SQL(""))
        counts, counting = probe.clock.ask(whole, given, seconds=seconds)
        if counts is None:
            counts, factor, note = _sampled(probe, given, counting)
        took += counting
    listings = []
    for is_filtered in (False, True) if with_filter else (False,):
        rows = []
        for id, distance, passes, is_newer in own if counts is not None else ():
            below = distances.index(distance)
            nearer = [row for row in counts or () if row[0] <= below and (row[1] or not is_filtered)]
            older = [row for row in nearer if row[2] is False]
            knows = is_newer is False and not note
            if passes or not is_filtered:
                rows.append(
                    Ranked(
                        id=id,
                        distance=distance,
                        rank=_rank(nearer, factor),
                        rank_then=_rank(older, factor) if knows else None,
                    )
                )
        listings.append(
            Listing(
                text=text,
                is_filtered=is_filtered,
                rows=tuple(rows),
                is_exact=not note,
                is_complete=counts is not None or not own,
                seconds=took,
                note=note,
            )
        )
    return listings


def _sampled(
    probe: VectorProbe, given: Mapping[str, Any], spent: float
) -> tuple[list[tuple[Any, ...]] | None, float, str]:
    """Counts in a sample of the table's pages, what to multiply them by, and the note."""
    why = f"the table could not be counted in {spent:.1f} s"
    rows = probe.checked.rows
    if not rows:
        return None, 1.0, f"{why}, and it was never analysed: run ANALYZE on it"
    percent = probe.sampled_percent
    # every row of the sample is wanted, those farther than all wanted ones too: they tell its size
    statement = _COUNT.format(
        **probe.parts,
        sample=sample_of(percent),
        all=sql.SQL(" IS NOT NULL"),
    )
    counts, _ = probe.clock.ask(statement, given, seconds=0.9 * probe.clock.left)
    seen = sum(row[3] for row in counts or ())
    if not counts or not seen:
        return None, 1.0, f"{why}, nor sampled"
    return counts, 100.0 / percent, f"approximate: {why}; estimated from {seen} of about {rows} rows"


def _rank(nearer: Sequence[tuple[Any, ...]], factor: float) -> int:
    """1 + number of nearer rows, of counts that stand for ``factor`` times as many."""
    return 1 + round(factor * sum(int(row[3]) for row in nearer))
