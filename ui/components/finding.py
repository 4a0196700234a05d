"""The likely cause of a span in one plain sentence, with what it rests on: the heart of the trace page."""

from collections.abc import Sequence

from ragblame.records import Basis, Explanation, Method, Review, Span, Support, Verdict
from ragblame.ui.components.corpus import corpus_section
from ragblame.ui.components.nodes import Node, el
from ragblame.ui.components.radius import blast_radius
from ragblame.ui.components.why import why_verdict
from ragblame.ui.components.wording import (
    VERDICT_CSS,
    ago,
    cut,
    likelier,
    nats,
    source_of,
    verdict_badge,
)
from ragblame.ui.reads import RELIED
from ragblame.ui.reads_radius import Reach
from ragblame.ui.reads_trace import TracePage

SENTENCES = {
    "entailed": "a chunk says it",
    "contradicted": "a chunk says otherwise",
    "absent": "no chunk speaks of it",
    "unclear": "the chunks do not decide",
}


def finding(page: TracePage, span: Span, reaches: Sequence[Reach] = ()) -> Node:
    """Verdict, cause, evidence, numbers, scorer, usual fix and reach of one span, and why it is so."""
    verdict = page.verdicts.get(span.index)
    text = cut(page.span_text(span), 160)
    if verdict is None:
        return el(
            "section",
            "finding undetermined",
            el("p", "untrusted", f"“{text}”"),
            el("p", "quiet", "This span has no verdict."),
        )
    support = page.supports[span.index]
    head = el(
        "header",
        "row-line",
        verdict_badge(verdict.verdict),
        el("span", "chip", verdict.cause.value) if verdict.cause else None,
        el("span", "quiet", f"severity {verdict.severity:.2f}") if verdict.is_flagged else None,
        el("span", "untrusted strong", f"“{text}”"),
    )
    return el(
        "section",
        f"finding {VERDICT_CSS[verdict.verdict]}",
        head,
        el("p", "cause untrusted", verdict.explanation),
        _versus(page, span, support),
        *_guilty_lines(page, verdict),
        el("dl", "facts", *_facts(page, span, verdict, support)),
        corpus_section(page, span.index),
        *cautions(page.explanation, verdict.basis),
        *_reviews(page.reviews.get(span.index, ())),
        blast_radius(reaches),
        why_verdict(page.provenance[span.index]) if span.index in page.provenance else None,
    )


def cautions(explanation: Explanation, basis: Basis | None) -> list[Node]:
    """What keeps the numbers from meaning what they seem to mean; empty when nothing does."""
    scorer, fitness = explanation.scorer, explanation.fitness
    found = []
    if fitness is not None and not fitness.is_fit:
        found.append(f"The scorer cannot explain this answer, so only its text was checked. {fitness.reason}")
    elif basis is Basis.SUPPORT_ONLY:
        found.append("No scorer was used: only the text was checked, so influence is not known.")
    elif scorer is not None and not scorer.is_own_model:
        found.append(
            f"Stand-in scorer: {scorer.name} did not write this answer; "
            "the numbers tell how much it would have relied on the documents."
        )
    return [el("p", "caution untrusted", text) for text in found]


def _versus(page: TracePage, span: Span, support: Support) -> Node | None:
    """What the answer says beside what the chunk says, when they differ."""
    if support.stated is None:
        return None
    said = cut(page.span_text(span), 300)
    where = "The documents say" if support.position is None else f"Chunk {support.position + 1} says"
    return el(
        "div",
        "versus",
        el("div", "", el("span", "label", "The answer says"), el("p", "untrusted", said)),
        el("div", "", el("span", "label", where), el("p", "untrusted strong", cut(support.stated, 300))),
    )


def _guilty_lines(page: TracePage, verdict: Verdict) -> list[Node]:
    """Lines of the prompt outside the chunks that made the span what it is, as they stand there."""
    found = []
    for line in verdict.prompt_evidence:
        if line.message >= len(page.trace.prompt):
            continue
        message = page.trace.prompt[line.message]
        where = f"Prompt, message {line.message + 1} ({cut(message.role, 20)}), outside the chunks"
        quote = el("p", "untrusted strong", cut(message.text[line.start : line.end], 300))
        found.append(el("div", "guilty", el("span", "label", where), quote))
    return found


def _facts(page: TracePage, span: Span, verdict: Verdict, support: Support) -> list[Node]:
    scorer = page.explanation.scorer
    rows: list[tuple[str, str]] = [("Basis", verdict.basis.value)]
    shapley = page.attributions.get((span.index, Method.SHAPLEY))
    if not verdict.reliance_measurable:
        rows.append(("Reliance", "not measurable: the model was already sure without any document"))
    elif shapley is not None and shapley.reliance is not None:
        rows.append(("Reliance", f"{nats(shapley.reliance)} nats: {likelier(shapley.reliance)}"))
    if (main := _main_chunk(page, span)) is not None:
        rows.append(("Main chunk", main))
    evidence = "" if support.position is None else f" (chunk {support.position + 1})"
    rows.append(("Support", f"{SENTENCES[support.state.value]}{evidence}; rule: {support.rule}"))
    sure = "uncalibrated" if verdict.confidence is None else f"{verdict.confidence:.0%} likely unsupported"
    rows.append(("Confidence", sure))
    if scorer is not None:
        owner = "the model that wrote the answer" if scorer.is_own_model else "a stand-in"
        rows.append(("Scorer", f"{scorer.name}, {owner}"))
    if verdict.other_causes:
        rows.append(("Also possible", ", ".join(cause.value for cause in verdict.other_causes)))
    if verdict.fix:
        rows.append(("Usual fix", verdict.fix))
    return [node for name, text in rows for node in (el("dt", "", name), el("dd", "untrusted", text))]


def _main_chunk(page: TracePage, span: Span) -> str | None:
    shares = page.shares(span.index, Method.SHAPLEY)
    positive = sum(share for share in shares.values() if share > 0)
    if positive < RELIED:
        return None
    best = max(page.trace.chunks, key=lambda chunk: shares.get(chunk.position, 0.0))
    part = shares[best.position] / positive
    return f"{best.position + 1} ({cut(source_of(best), 60)}), {part:.0%} of the positive share"


def _reviews(reviews: Sequence[Review]) -> list[Node]:
    """What people decided about the span before, newest first."""
    return [
        el(
            "p",
            "row-line past",
            el("span", "label", "Reviewed"),
            verdict_badge(review.verdict),
            el("span", "chip", review.cause.value) if review.cause else None,
            el("span", "quiet untrusted", f"by {cut(review.reviewer, 60)}, {ago(review.created_at)} ago"),
            el("span", "untrusted", cut(review.note, 400)) if review.note else None,
        )
        for review in reviews[:5]
    ]
