"""The lists of the queue page: a row per flagged span or per trace, each a real link that can be copied."""

import re
from urllib.parse import urlencode
from uuid import UUID

from ragblame.records import TraceStatus
from ragblame.ui.components.nodes import Node, el
from ragblame.ui.components.wording import VERDICT_CSS, ago, cut, verdict_badge
from ragblame.ui.reads import MOST_SAME, Progress, QueueRow
from ragblame.ui.reads_traces import TraceRow

_FLAGGED = (
    "Severity", "Verdict", "What the answer says", "Likely cause", "Top chunk", "App · model", "Age", "State",
)  # fmt: skip
BEFORE = 44  # code points shown before the flagged words, which must not be pushed out of sight
_WIDE = {"Top chunk", "App · model", "Model"}
_TRACES = ("Attribution", "Question and answer", "Worst span", "App", "Model", "Age")

_PROGRESS_CSS = {
    Progress.QUEUED: "chip",
    Progress.RUNNING: "chip",
    Progress.DONE: "chip good",
    Progress.FAILED: "chip bad",
    Progress.NOT_QUEUED: "chip warn",
}


def link_to_trace(trace_id: UUID, span: int | None = None) -> str:
    """Relative address of a trace, and of a span in it; can be copied and sent."""
    query = {"id": str(trace_id)} | ({} if span is None else {"span": str(span)})
    return f"trace?{urlencode(query)}"


def _head(names: tuple[str, ...]) -> Node:
    cells = [el("span", f"label{' wide' if name in _WIDE else ''}", name) for name in names]
    return el("div", "head", *cells, attributes={"aria-hidden": "true"})


def flagged_list(rows: tuple[QueueRow, ...]) -> Node:
    """Flagged spans, most severe first. Picking a row reports "<trace id>/<span>"."""
    items = [el("li", "", _flagged_row(row)) for row in rows]
    return el("div", "list flagged", _head(_FLAGGED), el("ol", "", *items))


def _flagged_row(row: QueueRow) -> Node:
    cause = row.cause.value if row.cause else "–"
    source = cut(row.source or "–", 200)
    before = row.before if len(row.before) <= BEFORE else "…" + row.before[-BEFORE:]
    said = el("div", "said", _flat(before), el("mark", "", _flat(row.flagged)), _flat(row.after))
    words = f"{row.verdict.value}, severity {row.severity:.2f}, {cause}: {cut(row.flagged, 120)}"
    bar = el("div", "track", el("div", "fill", numbers={"width": row.severity}))
    made_by = el("div", "asked", cut(row.model or "", 40))
    return el(
        "a",
        f"row {VERDICT_CSS[row.verdict]}",
        el("div", "severity", el("span", "", f"{row.severity:.2f}"), bar),
        el("div", "", verdict_badge(row.verdict)),
        el("div", "clip", said, el("div", "asked", cut(row.question, 200)), attributes={"dir": "auto"}),
        el("div", "clip", cause, _same(row), attributes={"title": cause}),
        el("div", "clip wide", source, attributes={"title": source}),
        el("div", "clip wide", el("div", "clip", cut(row.app, 40)), made_by),
        el("div", "quiet", ago(row.asked_at)),
        el("div", "clip quiet", row.state.value, el("div", "asked", cut(row.assignee or "", 24))),
        attributes={"aria-label": words},
        pick=f"{row.trace_id}/{row.span}",
        href=link_to_trace(row.trace_id, row.span),
    )


def _same(row: QueueRow) -> Node | None:
    """How often the same failure was seen this week; picking it reports "same=<signature>"."""
    if row.same < 2:
        return None
    count = f"×{row.same:,}{'+' if row.same >= MOST_SAME else ''} of the same"
    label = {"aria-label": f"show all {count[1:]}", "title": row.signature}
    return el("div", "asked", el("button", "again", count, attributes=label, pick=f"same={row.signature}"))


def trace_list(rows: tuple[TraceRow, ...]) -> Node:
    """All traces, newest first. Picking a row reports its trace id."""
    items = [el("li", "", _trace_row(row)) for row in rows]
    return el("div", "list traces", _head(_TRACES), el("ol", "", *items))


def _trace_row(row: TraceRow) -> Node:
    css = VERDICT_CSS[row.worst] if row.worst else "undetermined"
    answer = cut(row.answer, 240) or f"no answer: the host run ended as “{row.status.value}”"
    question = el("div", "said untrusted", cut(row.question, 240), attributes={"dir": "auto"})
    worst: Node = el("span", "quiet", "–")
    if row.worst is not None:
        flagged = f"{row.flagged} of {row.spans} flagged"
        worst = el("div", "", verdict_badge(row.worst), el("div", "asked", flagged))
    failed = el("div", "asked untrusted", cut(row.error, 80)) if row.error else None
    ended = el("div", "asked", row.status.value) if row.status is not TraceStatus.OK else None
    return el(
        "a",
        f"row {css}",
        el("div", "clip", el("span", _PROGRESS_CSS[row.progress], row.progress.value), failed, ended),
        el("div", "clip", question, el("div", "asked untrusted", answer, attributes={"dir": "auto"})),
        worst,
        el("div", "clip untrusted", cut(row.app, 40)),
        el("div", "clip untrusted wide", cut(row.model or "–", 40)),
        el("div", "quiet", ago(row.asked_at)),
        attributes={"aria-label": f"{row.progress.value}: {cut(row.question, 160)}"},
        pick=str(row.trace_id),
        href=link_to_trace(row.trace_id),
    )


def _flat(text: str) -> str:
    """One line; blanks at either end stay, because the pieces of a sentence are joined again."""
    return re.sub(r"\s+", " ", text)
