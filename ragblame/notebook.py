"""Shows an explanation in a notebook: one self-contained piece of HTML, no script, nothing loaded.

Answers, chunks and names are untrusted; every text passes through ``_text``, the only place where text
becomes markup. Pure string work on the standard library, so a notebook without our other parts shows it too.
"""

import html
from collections.abc import Iterator, Sequence

from ragblame.json_values import clean_text
from ragblame.records import (
    Attribution,
    Basis,
    Cause,
    Explanation,
    Method,
    Span,
    Support,
    Verdict,
    VerdictKind,
)

MAX_ROWS = 60  # spans in the table, the flagged ones first
MAX_COLUMNS = 20  # chunks in the table
MAX_ANSWER = 20_000  # code points of the answer shown
MAX_CHUNK = 600  # code points of a chunk shown
MAX_SPAN = 120  # code points of a span in the table

# verdict -> letter, class: never colour alone, a letter and the kind of underline say the same
_MARKS = {
    VerdictKind.GROUNDED: ("G", "g"),
    VerdictKind.DISTORTED: ("D", "d"),
    VerdictKind.KNOWN_ALREADY: ("K", "k"),
    VerdictKind.FABRICATED: ("F", "f"),
    VerdictKind.UNDETERMINED: ("U", "u"),
}
# Contrast of every pair is at least 4.5 : 1; own background, so that dark notebooks change nothing.
_STYLE = """
.ragblame{font:14px/1.55 system-ui,sans-serif;color:#1b1f24;background:#fff;padding:14px 16px;border:1px solid
#d0d7de;border-radius:8px;max-width:72em}
.ragblame h4{margin:14px 0 4px;font-size:14px;color:#1b1f24}
.ragblame p{margin:4px 0}
.ragblame .pre{white-space:pre-wrap;overflow-wrap:anywhere}
.ragblame .quiet{color:#57606a}
.ragblame .warn{background:#fff3d6;color:#5c3d00;padding:4px 8px;border-radius:4px}
.ragblame mark{color:inherit;padding:1px 1px;text-underline-offset:3px;text-decoration-thickness:2px}
.ragblame .g{background:#dcf3e1;text-decoration:underline solid #1a7f37}
.ragblame .k{background:#e2ecfb;text-decoration:underline dotted #0a55b8}
.ragblame .d{background:#ffe3c7;text-decoration:underline wavy #a33d00}
.ragblame .f{background:#fddcdf;text-decoration:underline double #a40e26}
.ragblame .u{background:#eceff2;text-decoration:underline dashed #57606a}
.ragblame sup{font-weight:700;font-size:10px;margin-left:1px;color:#1b1f24}
.ragblame table{border-collapse:collapse;font-size:13px;color:#1b1f24}
.ragblame th,.ragblame td{border:1px solid #d0d7de;padding:3px 7px;text-align:left;vertical-align:top;
background:#fff;color:#1b1f24}
.ragblame td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.ragblame details{margin:3px 0}
"""


def render(explanation: Explanation) -> str:
    """The explanation as HTML for ``_repr_html_``, for any text: no script, no outside references."""
    parts = [
        f"<style>{_STYLE}</style>",
        '<div class="ragblame">',
        f"<p><strong>Question</strong> {_text(explanation.trace.question)}</p>",
        *(f'<p class="warn">{_text(warning)}</p>' for warning in _warnings(explanation)),
        "<h4>Answer</h4>",
        f'<p class="pre">{_answer(explanation)}</p>',
        f'<p class="quiet">{_legend()}</p>',
        *_findings(explanation),
        *_shares(explanation),
        *_chunks(explanation),
        *_notes(explanation),
        "</div>",
    ]
    return "".join(parts)


def _text(text: str, limit: int | None = None) -> str:
    """Untrusted text as markup-free HTML: the only way a text gets onto the page."""
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return html.escape(clean_text(text), quote=True)


def _warnings(explanation: Explanation) -> Iterator[str]:
    """What keeps the numbers from meaning what they seem to mean."""
    scorer, fitness = explanation.scorer, explanation.fitness
    if scorer is None:
        yield "No scorer was used: only the text was checked, so influence is not known."
    elif not scorer.is_own_model:
        yield (
            f"Stand-in scorer: {scorer.name} did not write this answer; the numbers tell how much it would "
            "have relied on the documents."
        )
    if fitness is not None and not fitness.is_fit:
        yield f"The scorer cannot explain this answer, so only its text was checked. {fitness.reason}"


def _answer(explanation: Explanation) -> str:
    """The answer with a mark per span; spans are disjoint, what lies between them is plain."""
    answer = explanation.trace.answer[:MAX_ANSWER]
    verdicts = {verdict.span: verdict for verdict in explanation.verdicts}
    pieces = []
    at = 0
    for span in sorted(explanation.spans, key=lambda span: (span.start, span.end)):
        start, end = max(at, span.start), min(span.end, len(answer))
        if start >= end:
            continue  # beyond what is shown, or overlapping: a text is never shown twice
        pieces.append(_text(answer[at:start]))
        pieces.append(_marked(answer[start:end], span, verdicts.get(span.index)))
        at = end
    pieces.append(_text(answer[at:]))
    if len(explanation.trace.answer) > MAX_ANSWER:
        pieces.append(_text(f"… ({len(explanation.trace.answer) - MAX_ANSWER} more characters)"))
    return "".join(pieces)


def _marked(text: str, span: Span, verdict: Verdict | None) -> str:
    if verdict is None:
        return f'<mark class="u">{_text(text)}</mark>'
    letter, style = _MARKS[verdict.verdict]
    title = _text(f"{verdict.verdict.value}: {verdict.explanation}")
    return f'<mark class="{style}" title="{title}">{_text(text)}</mark><sup>{letter}{span.index + 1}</sup>'


def _legend() -> str:
    return " ".join(
        f'<mark class="{style}">{letter}</mark> {_text(kind.value)}'
        for kind, (letter, style) in _MARKS.items()
    )


def _flagged_first(explanation: Explanation) -> list[Verdict]:
    ordered = sorted(explanation.verdicts, key=lambda verdict: (-verdict.severity, verdict.span))
    return sorted(ordered[:MAX_ROWS], key=lambda verdict: verdict.span)


def _findings(explanation: Explanation) -> Iterator[str]:
    """One line per span that a person should look at: cause, sentence, evidence, usual fix."""
    supports = {support.span: support for support in explanation.supports}
    flagged = [verdict for verdict in _flagged_first(explanation) if verdict.is_flagged]
    yield "<h4>Findings</h4>"
    if not flagged:
        yield '<p class="quiet">No span is flagged.</p>'
        return
    yield "<ul>"
    for verdict in flagged:
        yield f"<li>{_finding(explanation, verdict, supports.get(verdict.span))}</li>"
    yield "</ul>"


def _finding(explanation: Explanation, verdict: Verdict, support: Support | None) -> str:
    letter, style = _MARKS[verdict.verdict]
    cause = verdict.cause.value if isinstance(verdict.cause, Cause) else ""
    basis = "; only the text was checked" if verdict.basis is Basis.SUPPORT_ONLY else ""
    pieces = [
        f'<mark class="{style}">{letter}{verdict.span + 1}</mark> <strong>{_text(cause)}</strong> ',
        _text(verdict.explanation),
        f' <span class="quiet">(severity {verdict.severity:.2f}{basis})</span>',
    ]
    quote = _evidence(explanation, support)
    if quote:
        pieces.append(f'<br><span class="quiet">Evidence: {quote}</span>')
    if verdict.fix:
        pieces.append(f"<br>{_text(verdict.fix)}")
    return "".join(pieces)


def _evidence(explanation: Explanation, support: Support | None) -> str:
    """The quoted sentence and the rule that fired."""
    if support is None or support.position is None or support.evidence_start is None:
        return ""
    chunks = {chunk.position: chunk for chunk in explanation.trace.chunks}
    chunk = chunks.get(support.position)
    if chunk is None:
        return ""
    quote = chunk.text[support.evidence_start : support.evidence_end]
    return f"“{_text(quote, MAX_CHUNK)}” (chunk {support.position + 1}, rule: {_text(support.rule)})"


def _shares(explanation: Explanation) -> Iterator[str]:
    """Shapley shares of the chunks for each span, in nats."""
    shapley = {a.span: a for a in explanation.attributions if a.method is Method.SHAPLEY}
    chunks = explanation.trace.chunks[:MAX_COLUMNS]
    if not shapley or not chunks:
        return
    spans = {span.index: span for span in explanation.spans}
    yield "<h4>What each chunk contributes, in nats</h4><table><tr><th>span</th>"
    yield "".join(f"<th>chunk {chunk.position + 1}</th>" for chunk in chunks)
    yield "<th>without any</th><th>with all</th></tr>"
    for verdict in _flagged_first(explanation):
        attribution, span = shapley.get(verdict.span), spans.get(verdict.span)
        if attribution is None or span is None:
            continue
        letter, style = _MARKS[verdict.verdict]
        said = _text(explanation.trace.answer[span.start : span.end], MAX_SPAN)
        yield f'<tr><td><mark class="{style}">{letter}{span.index + 1}</mark> {said}</td>'
        yield _share_cells(attribution, len(chunks))
        yield "</tr>"
    yield "</table>"
    hidden = len(explanation.trace.chunks) - len(chunks)
    if hidden:
        yield f'<p class="quiet">{hidden} more chunks are not shown.</p>'


def _share_cells(attribution: Attribution, count: int) -> str:
    cells: Sequence[float | None] = (*attribution.shares[:count], attribution.v_none, attribution.v_all)
    return "".join(f'<td class="n">{"" if value is None else f"{value:+.2f}"}</td>' for value in cells)


def _chunks(explanation: Explanation) -> Iterator[str]:
    chunks = explanation.trace.chunks
    if not chunks:
        return
    yield "<h4>Chunks</h4>"
    states = {alignment.position: alignment.state.value for alignment in explanation.alignments}
    for chunk in chunks[:MAX_COLUMNS]:
        name = chunk.source_id or ""
        state = states.get(chunk.position)
        place = f" · {state} in the prompt" if state else ""
        label = _text(f"chunk {chunk.position + 1} {name}{place}", MAX_SPAN)
        body = _text(chunk.text, MAX_CHUNK)
        yield f'<details><summary>{label}</summary><p class="pre">{body}</p></details>'


def _notes(explanation: Explanation) -> Iterator[str]:
    cost = explanation.cost
    for note in explanation.notes:
        yield f'<p class="quiet">{_text(note)}</p>'
    yield (
        f'<p class="quiet">{cost.scored_coalitions} coalitions, {cost.forwards} forwards, {cost.backwards} '
        f"backwards, {cost.seconds:.2f} s</p>"
    )
