"""The provenance of one verdict on the trace page: the facts of `ragblame explain --why`, folded away."""

from ragblame.attribution.verdicts.provenance import Provenance
from ragblame.ui.components.nodes import Node, el
from ragblame.ui.why import sections, verdict_of_check


def why_verdict(found: Provenance) -> Node:
    """Closed until it is asked for; open where what was kept does not hold together."""
    parts: list[Node] = []
    for section in sections(found):
        facts = [
            node
            for name, value in section.facts
            if name != "Check"
            for node in (el("dt", "", name), el("dd", "untrusted", value))
        ]
        parts.append(el("h4", "label spaced", section.title))
        parts.append(el("dl", "facts", *facts))
    check = el("p", "quiet" if found.is_whole else "caution", verdict_of_check(found))
    return el(
        "details",
        "why",
        el("summary", "", "Why this verdict"),
        *([] if found.is_whole else [check]),
        *parts,
        *([check] if found.is_whole else []),
        attributes={"open": "open"} if found.problems else {},  # what was never kept is no alarm
    )
