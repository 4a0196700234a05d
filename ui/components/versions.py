"""Versions of the thresholds on the health page, and what one of them would have decided otherwise."""

from collections.abc import Sequence

from ragblame.attribution.jobs.preview import Change, Preview
from ragblame.attribution.jobs.thresholds import Version
from ragblame.ui.components.nodes import Node, el
from ragblame.ui.components.rows import link_to_trace
from ragblame.ui.components.wording import cut
from ragblame.ui.thresholds_words import groups, remarks, words_of

SHOWN = 10  # examples


def versions_list(versions: Sequence[Version]) -> Node:
    """One row a version; the active one is named first by its chip."""
    rows = []
    for version in versions:
        values = version.thresholds
        chip = el("span", "chip good", "active") if version.is_active else None
        flags = "rules only" if values.flag_at is None else f"P ≥ {values.flag_at:.3f}"
        promise = "none" if values.promise is None else values.promise.sentence()
        rows.append(
            el(
                "tr",
                "",
                el("td", "", chip),
                el("td", "untrusted", cut(values.version, 80)),
                el("td", "", flags),
                el("td", "untrusted", cut(promise, 200)),
                el("td", "untrusted", cut(version.note, 120)),
            )
        )
    head = el("tr", "", *[el("th", "", name) for name in ("", "version", "flags from", "promise", "note")])
    return el("table", "", el("thead", "", head), el("tbody", "", *rows))


def preview_block(found: Preview) -> Node:
    """What would come into the queue and go out of it; nothing has changed."""
    names = ("last", "traces", "verdicts", "flagged", "would be", "come", "go", "otherwise")
    head = el("tr", "", *[el("th", "number", name) for name in names])
    rows = []
    for tally in found.tallies:
        figures = (tally.traces, tally.verdicts, tally.flagged_before, tally.flagged_after)
        moves = (tally.come, tally.go, tally.otherwise)
        cells = [f"{tally.days} d", *[f"{figure:,}" for figure in (*figures, *moves)]]
        rows.append(el("tr", "", *[el("td", "number", cell) for cell in cells]))
    lines = [el("p", "caution untrusted", line) for line in remarks(found)]
    for title, counts in groups(found.tallies[-1]):
        said = ", ".join(f"{cut(name, 60)} {count:,}" for name, count in counts.most_common(8))
        lines.append(el("p", "quiet untrusted", f"{title}: {said}"))
    return el(
        "div",
        "",
        el("table", "", el("thead", "", head), el("tbody", "", *rows)),
        *lines,
        el("ul", "", *[_example(change) for change in found.examples[:SHOWN]]),
    )


def _example(change: Change) -> Node:
    link = link_to_trace(change.trace_id, change.span)
    return el(
        "li",
        "block",
        el("a", "mono", str(change.trace_id), href=link),
        el("span", "untrusted", f"  “{cut(change.words, 80)}” {words_of(change)}"),
    )
