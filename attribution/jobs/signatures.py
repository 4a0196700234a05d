"""Names for failures that are the same: equal text for spans that failed the same way, in any trace.

By them the queue says how often a failure was seen, severity grows with traffic, and the trace page tells how
far it reaches. One name points at the chunk, a wider one at its document.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ragblame.attribution.verdicts.severity import (
    MOST_SEEN,
    MOST_TRAFFIC,
    TRAFFIC_DAYS,
    Factors,
    raised,
    weigh,
)
from ragblame.json_values import clean_identity
from ragblame.records import Chunk, Explanation, Support, Verdict

if TYPE_CHECKING:
    import psycopg

# Metadata keys by which retrievers name a document, the surest first.
DOCUMENT_KEYS: Final = ("document_id", "doc_id", "source", "path", "url", "title")
_MAX_BYTES: Final = 400

# Rows are bounded before they are counted: a failure seen a million times costs no more than a frequent one.
_SEEN = f"""
SELECT w.signature, (
    SELECT count(DISTINCT s.trace_id) FROM (
        SELECT i.trace_id FROM ragblame.triage_item i
        WHERE i.signature = w.signature AND i.trace_id <> %(id)s
          AND i.trace_id >= ragblame.uuid_floor(now() - interval '{TRAFFIC_DAYS} days')
        LIMIT {2 * MOST_SEEN}) s)
FROM unnest(%(signatures)s::text[]) AS w (signature)
"""

# Only what moved by a quarter is written anew, so that a failure that occurs all day is not written all day.
_RECOUNT = f"""
WITH counted AS (
    SELECT signature, least(count(DISTINCT trace_id), {2 * MOST_SEEN})::integer AS seen
    FROM ragblame.triage_item
    WHERE trace_id >= ragblame.uuid_floor(now() - interval '{TRAFFIC_DAYS} days') GROUP BY signature
), moved AS (
    SELECT i.trace_id, i.span, c.seen,
           1 + {MOST_TRAFFIC - 1} * least(1, ln(c.seen) / ln({MOST_SEEN})) AS traffic,
           1 + {MOST_TRAFFIC - 1} * least(1, ln(v.seen) / ln({MOST_SEEN})) AS traffic_then
    FROM counted c
    JOIN ragblame.triage_item i USING (signature)
    JOIN ragblame.verdict v ON v.trace_id = i.trace_id AND v.span = i.span
    WHERE i.state = 'open' AND i.trace_id >= ragblame.uuid_floor(now() - interval '{TRAFFIC_DAYS} days')
      AND (c.seen >= 1.25 * v.seen OR c.seen <= 0.75 * v.seen)
), weighed AS (
    UPDATE ragblame.verdict v SET seen = m.seen, severity = CASE WHEN v.premises IS NULL
        THEN v.severity * m.traffic / m.traffic_then
             / (1 - v.severity + v.severity * m.traffic / m.traffic_then)
        ELSE round((v.probability * v.harm * m.traffic
                    / (1 - v.probability * v.harm + v.probability * v.harm * m.traffic))::numeric, 3) END
    FROM moved m WHERE v.trace_id = m.trace_id AND v.span = m.span
    RETURNING v.trace_id, v.span, v.severity
)
UPDATE ragblame.triage_item i SET severity = w.severity FROM weighed w
WHERE i.trace_id = w.trace_id AND i.span = w.span
"""


def signature(explanation: Explanation, verdict: Verdict, support: Support) -> str:
    """Text equal for spans that failed the same way: the cause and the chunk it points at, else the question.

    A chunk counts as the same by table and row where both are known, else by its text: imported chunks carry
    names such as ``p1`` that repeat in every trace.
    """
    chunk = _main_chunk(explanation, verdict, support)
    where = (
        "question " + " ".join(explanation.trace.question.casefold().split())
        if chunk is None
        else _identity(chunk)
    )
    return clean_identity(f"{_what(verdict)}: {where}", _MAX_BYTES)


def document_signature(explanation: Explanation, verdict: Verdict, support: Support) -> str:
    """The same for the chunk's document, as its metadata names it; "" where it does not."""
    chunk = _main_chunk(explanation, verdict, support)
    name = None if chunk is None else document_of(chunk)
    return "" if name is None else clean_identity(f"{_what(verdict)}: document {name}", _MAX_BYTES)


def document_of(chunk: Chunk) -> str | None:
    """The document that the chunk's metadata names, with its table; None when it names none."""
    for key in DOCUMENT_KEYS:
        value = chunk.metadata.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return f"{chunk.source_table or ''} {key} {value}".strip()
    return None


def weigh_spans(cursor: "psycopg.Cursor[Any]", explanation: Explanation) -> dict[int, Factors]:
    """What the severity of each flagged span is made of, with how often the same was seen this week."""
    supports = {support.span: support for support in explanation.supports}
    kinds = {span.index: span.kind for span in explanation.spans}
    flagged = [verdict for verdict in explanation.verdicts if verdict.is_flagged]
    names = {verdict.span: signature(explanation, verdict, supports[verdict.span]) for verdict in flagged}
    seen: dict[str, int] = {}
    if names:
        cursor.execute(_SEEN, {"id": explanation.trace.id, "signatures": sorted(set(names.values()))})
        seen = dict(cursor.fetchall())
    return {
        verdict.span: weigh(
            kinds[verdict.span], verdict, supports[verdict.span], seen=1 + seen[names[verdict.span]]
        )
        for verdict in flagged
    }


def with_traffic(explanation: Explanation, factors: Mapping[int, Factors]) -> Explanation:
    """The explanation with severities as they are stored. ``factors``: of ``weigh_spans``.

    A verdict that came without premises was not decided here, so its own severity is what traffic raises.
    """
    decided = {premises.span for premises in explanation.premises}
    verdicts = tuple(
        verdict
        if verdict.span not in factors
        else replace(
            verdict,
            severity=factors[verdict.span].severity
            if verdict.span in decided
            else raised(verdict.severity, factors[verdict.span].traffic),
        )
        for verdict in explanation.verdicts
    )
    return replace(explanation, verdicts=verdicts)


def recount_traffic(conn: "psycopg.Connection[Any]") -> int:
    """Renew the severity of open spans by how often their failure is seen by now; returns how many changed.

    Traces that came later raise those that came first. Runs in the caller's transaction.
    """
    return conn.execute(_RECOUNT.encode()).rowcount


def _what(verdict: Verdict) -> str:
    return (verdict.cause or verdict.verdict).value


def _main_chunk(explanation: Explanation, verdict: Verdict, support: Support) -> Chunk | None:
    chunks = {chunk.position: chunk for chunk in explanation.trace.chunks}
    positions = (*verdict.evidence, support.position)
    return next((chunks[position] for position in positions if position in chunks), None)


def _identity(chunk: Chunk) -> str:
    if chunk.source_table is not None and chunk.source_id is not None:
        return f"{chunk.source_table} {chunk.source_id}"
    return "chunk " + hashlib.sha256(chunk.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
