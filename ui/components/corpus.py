"""What the corpus holds for a span: the rows that say it, why each was not used, and what was searched.

It exists because "retrieval missed it" convinces nobody: the row, its rank and the searches do.
"""

import json

from ragblame.corpus import retrieval_of
from ragblame.records import CorpusEvidence, CorpusLook, CorpusSearch, SupportState
from ragblame.ui.components.nodes import Node, el
from ragblame.ui.components.wording import NOT_USED, clock, cut, exactness, plural, rank_of
from ragblame.ui.reads_trace import TracePage

QUOTED = 400  # code points of a sentence
HIDDEN = "The retriever's filter keeps this row from who asked, so its text was not stored."


def corpus_section(page: TracePage, span: int) -> Node | None:
    """The rows and the searches of one span; None where the corpus was not asked about it."""
    looks = {look.span: look for look in page.explanation.corpus_looks}
    verdict = page.verdicts.get(span)
    if span not in looks or verdict is None:
        return None
    look = looks[span]
    rows = [_row(evidence, look) for evidence in verdict.corpus_evidence]
    if not rows:
        rows = [el("p", "quiet", "No row beyond those retrieved says it, or states another value.")]
    return el(
        "section",
        "corpus",
        el("h4", "label spaced", "In the corpus"),
        *rows,
        el("p", "meta quiet untrusted", _asked(page, look)),
        _searches(look),
        *[el("p", "quiet untrusted", note) for note in look.notes],
        attributes={"aria-label": "in the corpus"},
    )


def _asked(page: TracePage, look: CorpusLook) -> str:
    """How the retriever searched, as far as it was captured."""
    known = retrieval_of(page.trace)
    k = f"k = {look.k}" if look.is_k_known else f"k not captured, {look.k} rows came back"
    if known.is_filter_lost:
        filter = "a filter that could not be captured"
    elif known.filter is None:
        filter = "no filter" if look.is_k_known else "filter not captured"
    else:
        filter = f"filter {cut(json.dumps(dict(known.filter), ensure_ascii=False), 300)}"
    kind = f", {cut(known.search_type, 40)}" if known.search_type else ""
    return f"The retriever's search: {k}, {filter}{kind}."


def _row(evidence: CorpusEvidence, look: CorpusLook) -> Node:
    """One row of the corpus, as a card."""
    says = "says it" if evidence.state is SupportState.ENTAILED else "says otherwise"
    k = f"k = {look.k}" if look.is_k_known else f"{look.k} were retrieved"
    facts = [
        rank_of(evidence.rank, is_exact=evidence.is_exact),
        f"rank {evidence.question_rank} for the question" if evidence.question_rank else None,
        k,
        f"found by {evidence.found_by[0]}" if evidence.found_by else None,
        f"made {clock(evidence.created_at)}" if evidence.created_at else None,
        f"read together with row {cut(evidence.joined_with, 48)}" if evidence.joined_with else None,
    ]
    css = "evidence" if evidence.state is SupportState.ENTAILED else "evidence against"
    return el(
        "article",
        "card",
        el(
            "header",
            "",
            el("span", "source untrusted clip", f"{cut(evidence.table, 64)}  {cut(evidence.row_id, 64)}"),
            el("span", "chip", says),
        ),
        el("p", "lacks", NOT_USED[evidence.cause]) if evidence.cause else None,
        el("p", "meta untrusted", " · ".join(fact for fact in facts if fact)),
        el(
            "div",
            "text untrusted",
            el("mark", css, cut(evidence.quote, QUOTED)),
            attributes={"dir": "auto"},
        )
        if evidence.quote
        else el("p", "quiet", HIDDEN),
        attributes={"aria-label": f"row {cut(evidence.row_id, 64)} of the corpus"},
    )


def _searches(look: CorpusLook) -> Node:
    """Everything that was asked, folded away."""
    size = "" if look.rows is None else f" of about {plural(look.rows, 'row', 'rows')}"
    count = plural(len(look.searches), "search", "searches")
    names = ("asked with", "how", "filter", "rows", "exactness", "seconds")
    head = el("tr", "", *[el("th", "number" if name in ("rows", "seconds") else "", name) for name in names])
    return el(
        "details",
        "searches",
        el("summary", "quiet untrusted", f"{count} in {cut(look.table, 64)}{size}, {look.seconds:.2f} s"),
        el(
            "table",
            "",
            el("thead", "", head),
            el("tbody", "", *[_search(search) for search in look.searches]),
        ),
    )


def _search(search: CorpusSearch) -> Node:
    note = f" ({cut(search.note, 160)})" if search.note else ""
    return el(
        "tr",
        "",
        el("td", "", search.text),
        el("td", "", search.way),
        el("td", "", "on" if search.is_filtered else "off"),
        el("td", "number", f"{search.found:,}"),
        el("td", "untrusted", exactness(search) + note),
        el("td", "number", f"{search.seconds:.3f}"),
    )
