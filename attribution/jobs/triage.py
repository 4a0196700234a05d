"""Which spans of a trace stand in the triage queue, and how people's work on them survives a rerun.

A rerun may cut and number the spans anew, so items and reviews follow the offsets of their span: the same
piece of the answer keeps its state and assignee whatever its number. Reviews are never deleted;
where their span is cut no more they, and its item, move to a negative number and return when it returns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from ragblame.attribution.jobs.signatures import document_signature, signature
from ragblame.records import Explanation

if TYPE_CHECKING:
    import psycopg

Offsets: TypeAlias = tuple[int, int]

_LOCK_ITEMS = """
SELECT span, state, severity, signature, document, assignee, leased_until, version, created_at, updated_at
FROM ragblame.triage_item WHERE trace_id = %s ORDER BY span FOR UPDATE
"""
_OFFSETS = """
SELECT span, start_at, end_at FROM ragblame.answer_span WHERE trace_id = %(id)s
UNION SELECT span, start_at, end_at FROM ragblame.review WHERE trace_id = %(id)s AND span < 0
"""
_UPDATE_ITEM = (
    "UPDATE ragblame.triage_item SET severity = %s, signature = %s, document = %s "
    "WHERE trace_id = %s AND span = %s"
)
_INSERT_ITEM = """
INSERT INTO ragblame.triage_item (trace_id, span, state, severity, signature, document, assignee,
    leased_until, version, created_at, updated_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, coalesce(%s, now()), coalesce(%s, now()))
"""


@dataclass(frozen=True, slots=True)
class Item:
    """A row of triage_item as it stands before the rerun."""

    span: int
    state: str
    severity: float
    signature: str
    document: str
    assignee: str | None
    leased_until: datetime | None
    version: int
    created_at: datetime
    updated_at: datetime

    @property
    def is_touched(self) -> bool:
        """Whether a person did something with it."""
        return self.state != "open" or self.assignee is not None or self.updated_at > self.created_at


def lock_items(cursor: "psycopg.Cursor[Any]", trace_id: UUID) -> dict[Offsets, Item]:
    """The trace's items by the offsets of their spans, locked: call before its spans are rewritten."""
    cursor.execute(_LOCK_ITEMS, (trace_id,))
    items = [Item(*row) for row in cursor.fetchall()]
    cursor.execute(_OFFSETS, {"id": trace_id})
    offsets = {span: (start, end) for span, start, end in cursor.fetchall()}
    return {offsets[item.span]: item for item in items if item.span in offsets}


def renew_items(
    cursor: "psycopg.Cursor[Any]", explanation: Explanation, before: Mapping[Offsets, Item]
) -> None:
    """Bring queue and reviews of the trace in line with ``explanation``; ``before`` is from ``lock_items``.

    Flagged spans have an item. An item whose span is flagged no more stays if a person touched it. Items of
    spans that are cut no more stay if reviewed, under a negative number. Runs in the caller's transaction.
    """
    trace_id = explanation.trace.id
    supports = {support.span: support for support in explanation.supports}
    verdicts = {verdict.span: verdict for verdict in explanation.verdicts}
    flagged = {verdict.span for verdict in explanation.verdicts if verdict.is_flagged}
    numbers: dict[Offsets, int] = {(span.start, span.end): span.index for span in explanation.spans}
    reviewed = _renumber_reviews(cursor, trace_id, numbers)
    numbers.update(reviewed)
    reviewed_numbers = set(reviewed.values())
    kept = {
        numbers[offsets]: item
        for offsets, item in before.items()
        if offsets in numbers
        and (item.is_touched or numbers[offsets] in flagged or numbers[offsets] in reviewed_numbers)
    }
    names = {
        number: (
            signature(explanation, verdict, supports[number]),
            document_signature(explanation, verdict, supports[number]),
        )
        for number, verdict in verdicts.items()
    }

    # In place where the number stays, so that a reviewer who saves at this moment meets his own row. A number
    # that means another span now gets a version nobody has on the screen: saving there is a conflict.
    fresh = 1 + max((item.version for item in before.values()), default=0)
    staying = [number for number, item in kept.items() if number == item.span]
    cursor.execute(
        "DELETE FROM ragblame.triage_item WHERE trace_id = %s AND span <> ALL (%s)", (trace_id, staying)
    )
    updates: list[tuple[Any, ...]] = []
    inserts: list[tuple[Any, ...]] = []
    for number in sorted({*kept, *flagged}):
        old = kept.get(number)
        severity = verdicts[number].severity if number in verdicts else old.severity if old else 0.0
        sign = names.get(number) or ((old.signature, old.document) if old else ("", ""))
        if old is None:
            state = "reviewed" if number in reviewed_numbers else "open"
            inserts.append((trace_id, number, state, severity, *sign, None, None, fresh, None, None))
        elif number == old.span:
            updates.append((severity, *sign, trace_id, number))
        else:
            inserts.append(
                (trace_id, number, old.state, severity, *sign, old.assignee, old.leased_until, fresh,
                 old.created_at, old.updated_at)
            )  # fmt: skip
    if updates:
        cursor.executemany(_UPDATE_ITEM, updates)
    if inserts:
        cursor.executemany(_INSERT_ITEM, inserts)


def _renumber_reviews(
    cursor: "psycopg.Cursor[Any]", trace_id: UUID, after: Mapping[Offsets, int]
) -> dict[Offsets, int]:
    """Give every review the number its offsets have now; returns the numbers of all reviewed offsets."""
    rows = cursor.execute(
        "SELECT DISTINCT start_at, end_at FROM ragblame.review WHERE trace_id = %s ORDER BY 1, 2", (trace_id,)
    ).fetchall()
    numbers: dict[Offsets, int] = {}
    vanished = 0
    for start, end in rows:
        number = after.get((start, end))
        if number is None:
            vanished += 1
            number = -vanished
        numbers[start, end] = number
    if numbers:
        cursor.executemany(
            "UPDATE ragblame.review SET span = %s "
            "WHERE trace_id = %s AND start_at = %s AND end_at = %s AND span <> %s",
            [(number, trace_id, start, end, number) for (start, end), number in numbers.items()],
        )
    return numbers
