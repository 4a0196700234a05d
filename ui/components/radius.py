"""How far a failure reaches, on the trace page: counts of a day and a week, each a link into the queue."""

from collections.abc import Sequence
from urllib.parse import quote

from ragblame.ui.components.nodes import Node, el
from ragblame.ui.reads_radius import Reach


def blast_radius(reaches: Sequence[Reach]) -> Node | None:
    """Its narrowest count, with the table of all folded below: the verdict keys must stay on the screen.

    None where nothing is known.
    """
    if not reaches:
        return None
    first = reaches[0]
    more = "+" if first.is_partial else ""
    counts = f"{first.day:,}{more} in 24 h, {first.week:,}{more} in 7 d"
    head = el("tr", "", el("th", "", "Traces with"), el("th", "number", "24 h"), el("th", "number", "7 d"))
    return el(
        "details",
        "radius",
        el("summary", "", f"Blast radius: {first.what}, {counts}"),
        el("table", "", el("thead", "", head), el("tbody", "", *[_row(reach) for reach in reaches])),
    )


def _row(reach: Reach) -> Node:
    more = "+" if reach.is_partial else ""
    link = _link(reach)
    name: Node | str = reach.what if link is None else el("a", "", reach.what, href=link)
    return el(
        "tr",
        "",
        el("th", "", name, attributes={"scope": "row"}),
        el("td", "number", f"{reach.day:,}{more}"),
        el("td", "number", f"{reach.week:,}{more}"),
    )


def _link(reach: Reach) -> str | None:
    """Into the queue, in every state; nodes.js lets only such relative links pass."""
    if reach.same is not None:
        return f"./?state=any&same={quote(reach.same, safe='')}"
    return None if reach.cause is None else f"./?state=any&cause={quote(reach.cause, safe='')}"
