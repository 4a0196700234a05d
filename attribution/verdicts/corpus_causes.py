"""Why the right text was not in the prompt, decided from what a probe of the corpus found. No SQL here.

A row is evidence when our own support check says so: it entails the span, or states another value for the
same subject and slot, which is what the answer should have said. Why such a row was not used follows from its
ranks: the walk of causes.py goes on behind the prompt. A rank that was not counted over the whole table is
said to be approximate, and a probe that did not finish never proves that the corpus has nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ragblame.attribution.verdicts.causes import FIX, quoted
from ragblame.attribution.verdicts.corpus_case import CorpusCase
from ragblame.attribution.verdicts.corpus_rows import (
    EvidenceRow,
    evidence_among,
    evidence_in_other_words,
    evidence_together,
    to_record,
)
from ragblame.attribution.verdicts.corpus_sentences import (
    DEEP,
    continued,
    nothing_found,
    why_not_used,
    without_rank,
)
from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.other_words import Reader
from ragblame.corpus import FoundChunk, ProbeReport, ProbeRequest, ProbeText, ProbeWay, retrieval_of
from ragblame.records import Cause, CorpusLook, Span, SpanKind, SupportState, Trace, Verdict

MAX_EVIDENCE: Final = 5  # rows kept of one span
STALE_HARM: Final = 0.7  # severity of a supported span whose source is outdated

_VALUES: Final = (SpanKind.NUMBER, SpanKind.DATE, SpanKind.NAME)
# Where several rows are evidence, those that could have been retrieved tell more than those that could not.
_ORDER: Final = (
    Cause.QUERY_REWRITING,
    Cause.INDEX_MISS,
    Cause.RANKED_TOO_LOW,
    Cause.SEMANTIC_GAP,
    None,  # evidence, and no rank to say why it was not used
    Cause.FILTERED_OUT,
    Cause.NOT_THERE_YET,
)
_RANKED: Final = (Cause.QUERY_REWRITING, Cause.INDEX_MISS, Cause.RANKED_TOO_LOW)


def asks_corpus(verdict: Verdict, finding: Finding) -> bool:
    """Whether the corpus can tell more about a flagged span: nothing in the prompt says what it should be.

    A contradiction of another attribute of the subject is no evidence for this one, so it is asked about too.
    """
    if not verdict.is_flagged or finding.dropped:
        return False
    state = finding.support.state
    return state is SupportState.ABSENT or (state is SupportState.CONTRADICTED and not finding.is_sure)


def asks_freshness(verdict: Verdict, finding: Finding, span: Span) -> bool:
    """Whether a supported value is worth asking for a newer row that states another one."""
    return (
        verdict.cause is None
        and finding.support.state is SupportState.ENTAILED
        and finding.support.position is not None
        and span.kind in _VALUES
    )


def look_into(
    trace: Trace,
    span: Span,
    verdict: Verdict,
    finding: Finding,
    request: ProbeRequest,
    report: ProbeReport,
    read: Reader | None = None,
) -> tuple[Verdict, CorpusLook]:
    """The verdict with the cause that the corpus shows, and what was asked. Never raises on any text.

    ``request`` and ``report``: the probe's, about this span. ``read``: has the model read rows that may say
    it in other words; None: nobody can, and only the rules tell.
    """
    case = CorpusCase(trace, span, finding, request, report, retrieval_of(trace), read)
    if finding.support.state is SupportState.ENTAILED:
        return _stale(case, verdict), case.look()
    return _missing(case, verdict), case.look()


def _missing(case: CorpusCase, verdict: Verdict) -> Verdict:
    """Nothing in the prompt says what the span should be: what about the corpus?"""
    captured = {chunk.source_id: chunk.text for chunk in case.trace.chunks if chunk.source_id}
    others = [row for row in case.report.chunks if not row.is_retrieved]
    # a retrieved row was read in the prompt already, unless somebody has rewritten it since
    passing = [row for row in case.report.chunks if row.passes_filter is not False]
    changed = [
        row for row in case.report.chunks if row.is_retrieved and captured.get(row.id, row.text) != row.text
    ]
    evidence = evidence_among(case, others) or evidence_in_other_words(case, others)
    found = [(each, _cause_of(case, each.row)) for each in evidence]
    if not found:
        found = [(each, Cause.NOT_THERE_YET) for each in evidence_among(case, changed)]
    if not found:
        found = [(each, Cause.CUT_APART) for each in evidence_together(case, passing)]
    found.sort(key=lambda pair: _strength(case, *pair))
    records = tuple(to_record(case, each, cause) for each, cause in found[:MAX_EVIDENCE])
    causes = list(dict.fromkeys(cause for _, cause in found if cause is not None))
    if not records:
        return _nothing(case, verdict)
    known = replace(verdict, corpus_evidence=records)
    first = records[0].cause
    if first is None:
        return replace(
            known,
            explanation=continued(verdict, without_rank(records[0])),
            other_causes=_listed(known, causes),
        )
    if case.finding.copied_from and verdict.cause is Cause.PROMPT:
        return replace(known, other_causes=_listed(verdict, causes))  # the guilty line is there to be read
    return replace(
        known,
        cause=first,
        fix=FIX[first],
        explanation=continued(verdict, why_not_used(case, records[0])),
        other_causes=_listed(replace(verdict, cause=first), [*causes, *_kept(verdict)]),
    )


def _strength(case: CorpusCase, found: EvidenceRow, cause: Cause | None) -> tuple[int, int]:
    """Orders evidence: the rows closest to being retrieved first."""
    if cause is Cause.CUT_APART:
        return len(_ORDER), 0
    by_query = case.rank(found.row, ProbeText.QUERY)
    place = 0 if cause in _RANKED else _ORDER.index(cause)
    return place, by_query[0] if by_query is not None else 1 << 30


def _nothing(case: CorpusCase, verdict: Verdict) -> Verdict:
    """No row is evidence; which proves something only if the corpus was asked to the end."""
    if case.finding.support.state is not SupportState.ABSENT:
        return verdict  # a chunk of the prompt speaks of the subject, though of something else
    if not case.report.is_complete:
        return replace(
            verdict,
            explanation=continued(
                verdict, "the corpus could not be searched to the end, so it may hold the evidence or not"
            ),
        )
    if case.finding.copied_from and verdict.cause is Cause.PROMPT:
        return replace(verdict, other_causes=_listed(verdict, [Cause.NO_EVIDENCE_IN_CORPUS]))
    cause = Cause.NO_EVIDENCE_IN_CORPUS
    return replace(
        verdict,
        cause=cause,
        fix=FIX[cause],
        explanation=continued(verdict, nothing_found(case.report)),
        other_causes=_listed(replace(verdict, cause=cause), _kept(verdict)),
    )


def _stale(case: CorpusCase, verdict: Verdict) -> Verdict:
    """A chunk supports the span: does a row newer than that chunk's state another value?"""
    position = case.finding.support.position
    sources = {chunk.position: chunk.source_id for chunk in case.trace.chunks}
    source = case.report.chunk((position is not None and sources.get(position)) or "")
    if source is None or source.created_at is None:
        return verdict
    newer = [
        row
        for row in case.report.chunks
        if not row.is_retrieved and row.created_at is not None and row.created_at > source.created_at
    ]
    found = [
        each
        for each in evidence_among(case, newer)
        if each.finding.support.state is SupportState.CONTRADICTED and each.row.passes_filter is not False
    ]
    if not found:
        return verdict
    found.sort(key=lambda each: _strength(case, each, _cause_of(case, each.row)))
    records = tuple(to_record(case, each, _cause_of(case, each.row)) for each in found[:MAX_EVIDENCE])
    cause, first = Cause.STALE_SOURCE, records[0]
    since = " since the answer" if first.is_newer else ""
    return replace(
        verdict,
        cause=cause,
        fix=FIX[cause],
        severity=STALE_HARM,
        explanation=continued(
            verdict, f"but a newer row of the corpus says {quoted(first.stated or first.quote)}{since}"
        ),
        corpus_evidence=records,
        other_causes=_listed(replace(verdict, cause=cause), [r.cause for r in records if r.cause]),
    )


def _cause_of(case: CorpusCase, row: FoundChunk) -> Cause | None:
    """The test of the taxonomy that the row meets; None where no rank is known that would tell."""
    if row.is_newer:
        return Cause.NOT_THERE_YET
    if row.passes_filter is False:
        return Cause.FILTERED_OUT
    by_query = case.rank(row, ProbeText.QUERY)
    by_question = case.rank(row, ProbeText.QUESTION) if case.is_rewritten else None
    fused = case.fused_rank(row)
    # where our own retriever's order is known, words too decide who is among its first k
    place = fused if case.knows_fused_order else None if by_query is None else by_query[0]
    is_within = place is not None and place <= case.k
    if by_question is not None and by_question[0] <= case.k and not is_within:
        return Cause.QUERY_REWRITING
    if by_query is None:
        is_asked = case.ran(ProbeText.QUERY, ProbeWay.NEAREST, is_filtered=case.is_filtered)
        return Cause.SEMANTIC_GAP if is_asked else None
    if is_within:
        if case.retrieval.is_filter_lost:
            return None  # the index or the filter: nobody can tell any more
        return Cause.INDEX_MISS if case.retrieval.is_plain or case.is_hybrid else Cause.RANKED_TOO_LOW
    return Cause.RANKED_TOO_LOW if min(by_query[0], fused or by_query[0]) <= DEEP else Cause.SEMANTIC_GAP


def _kept(verdict: Verdict) -> list[Cause]:
    """What was found without the corpus stays listed, but for the cause that stood for not asking it."""
    return [] if verdict.cause in (None, Cause.NO_EVIDENCE_IN_PROMPT) else [verdict.cause]


def _listed(verdict: Verdict, more: Sequence[Cause]) -> tuple[Cause, ...]:
    """Other causes, without the first and without the one that asking the corpus has answered."""
    settled = (verdict.cause, Cause.NO_EVIDENCE_IN_PROMPT)
    return tuple(cause for cause in dict.fromkeys([*more, *verdict.other_causes]) if cause not in settled)
