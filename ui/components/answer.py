"""The question, and the answer with its spans marked: click or press Enter on a span to ask why it is there.

Always whole sentences of strangers: every piece ends as a text node.
"""

from collections.abc import Mapping, Sequence

from ragblame.records import Span, Trace, Verdict, VerdictKind
from ragblame.ui.components.nodes import Node, el
from ragblame.ui.components.segments import Segment, cut_segments
from ragblame.ui.components.wording import (
    VERDICT_CSS,
    VERDICT_LETTER,
    VERDICT_MEANING,
    ago,
    clock,
    cut,
    verdict_badge,
)

WINDOW = 16_000  # code points of a text drawn at once; more would make the browser slow, not the reader wise


def window(text: str, focus: int, size: int = WINDOW) -> tuple[int, int]:
    """The part [start, end) of ``text`` to draw: ``size`` code points around ``focus``, or all of it."""
    start = max(0, min(focus - size // 2, len(text) - size))
    return start, min(len(text), start + size)


def elision(count: int) -> Node | None:
    """A note in place of text that is not drawn."""
    return el("span", "chip", f"… {count:,} more characters") if count else None


def crumbs(trace: Trace) -> Node:
    """One quiet line: which app and model, when, how long, which trace."""
    parts = [
        el("span", "strong untrusted", cut(trace.app, 60)),
        el("span", "untrusted", cut(trace.model, 60)) if trace.model else None,
        el("span", "", f"{clock(trace.started_at)} · {ago(trace.started_at)} ago"),
        el("span", "", f"took {trace.duration_ms / 1000:.1f} s") if trace.duration_ms else None,
        el("span", "mono", str(trace.id)),
        None if trace.status == "ok" else el("span", "chip bad", f"host run: {trace.status.value}"),
        el("span", "chip warn", "partly captured: the root run was not seen") if trace.partial_tree else None,
    ]
    cuts = [
        el("span", "chip warn untrusted", f"{cut(name, 40)} cut at capture, {size:,} characters in truth")
        for name, size in trace.truncated.items()
    ]
    return el("div", "crumbs", *parts, *cuts)


def question_block(trace: Trace) -> Node:
    """The question, the retriever's query where it differs, and the host's error if it failed."""
    query = None
    if trace.query and trace.query != trace.question:
        label = el("span", "label", "The retriever was asked ")
        query = el("p", "", label, el("span", "untrusted", cut(trace.query, 2_000)))
    error = el("p", "caution untrusted", cut(trace.error, 1_000)) if trace.error else None
    start, end = window(trace.question, 0, 4_000)
    shown = el("p", "question untrusted scroll", trace.question[start:end], attributes={"dir": "auto"})
    rest = elision(len(trace.question) - end)
    return el("section", "block", el("span", "label", "Question"), shown, rest, query, error)


def answer_block(
    answer: str, spans: Sequence[Span], verdicts: Mapping[int, Verdict], selected: int | None
) -> Node:
    """The answer as text with one mark per span; a mark reports its span's index when picked."""
    focus = next((span.start for span in spans if span.index == selected), 0)
    start, end = window(answer, focus)
    pieces = cut_segments(answer[start:end], [(span.start - start, span.end - start) for span in spans])
    tops = [_topmost(piece, spans, verdicts) if piece.marks else None for piece in pieces]
    last = {top: i for i, top in enumerate(tops)}
    first = {top: i for i, top in reversed(list(enumerate(tops)))}
    drawn: list[Node | str] = []
    for i, (piece, top) in enumerate(zip(pieces, tops, strict=True)):
        if top is None:
            drawn.append(piece.text)
            continue
        span = spans[top]
        drawn.append(
            _mark(
                piece.text,
                answer[span.start : span.end],
                span,
                verdicts.get(span.index),
                is_selected=any(spans[mark].index == selected for mark in piece.marks),
                is_first=first[top] == i,
                is_last=last[top] == i,
            )
        )
    if not answer:
        drawn.append(el("span", "quiet", "The answer is empty."))
    text = el("div", "answer untrusted scroll", *drawn, attributes={"dir": "auto"})
    label = el("span", "label", "Answer")
    return el("section", "block", label, elision(start), text, elision(len(answer) - end))


def legend(verdicts: Mapping[int, Verdict]) -> Node | None:
    """How many spans got which verdict, the alarming ones first."""
    order = [VerdictKind.FABRICATED, VerdictKind.DISTORTED, VerdictKind.UNDETERMINED]
    order += [VerdictKind.KNOWN_ALREADY, VerdictKind.GROUNDED]
    counts = {kind: sum(v.verdict == kind for v in verdicts.values()) for kind in order}
    entries = [
        el("span", "row-line", verdict_badge(kind), el("span", "quiet", str(counts[kind])))
        for kind in order
        if counts[kind]
    ]
    return el("div", "row-line", *entries) if entries else None


def _topmost(piece: Segment, spans: Sequence[Span], verdicts: Mapping[int, Verdict]) -> int:
    """Of overlapping spans, the one a reader cares about: the most severe, then the shortest."""

    def rank(mark: int) -> tuple[float, int]:
        span = spans[mark]
        verdict = verdicts.get(span.index)
        return verdict.severity if verdict else 0.0, span.start - span.end

    return max(piece.marks, key=rank)


def _mark(
    text: str,
    whole: str,
    span: Span,
    verdict: Verdict | None,
    *,
    is_selected: bool,
    is_first: bool,
    is_last: bool,
) -> Node:
    kind = verdict.verdict if verdict else VerdictKind.UNDETERMINED
    is_calm = verdict is None or not verdict.is_flagged
    css = f"span {VERDICT_CSS[kind]}{' calm' if is_calm else ''}{' selected reveal' if is_selected else ''}"
    attributes = {"role": "button", "tabindex": "-1", "aria-hidden": "true"}
    if is_first:  # one stop for the keyboard and one voice for the screen reader per span
        cause = f", cause: {verdict.cause.value}" if verdict and verdict.cause else ""
        said = kind.value if verdict else "not judged yet"
        attributes = {
            "role": "button",
            "tabindex": "0",
            "aria-pressed": "true" if is_selected else "false",
            "aria-label": f"{cut(whole, 200)}: {said}{cause}",
            "title": f"{said}{cause}" + (f" — {VERDICT_MEANING[kind]}" if verdict else ""),
        }
    tag = None
    if is_last and verdict is not None and not is_calm:
        tag = el("span", "tag", VERDICT_LETTER[kind], attributes={"aria-hidden": "true"})
    return el("mark", css, text, tag, attributes=attributes, pick=str(span.index))
