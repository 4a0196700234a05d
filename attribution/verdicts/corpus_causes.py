"""Why the right text was not in the prompt, decided from what a probe of the corpus found. No SQL here.

A row is evidence when our own support check says so: it entails the span, or states another value for the
same subject and slot, which is what the answer should have said. Why such a row was not used follows from its
ranks: the walk of causes.py goes on behind the prompt. A rank that was not counted over the whole table is
said to be approximate, and a probe that did not finish never proves that the corpus has nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from ragblame.attribution.verdicts.causes import FIX, quoted
from ragblame.attribution.verdicts.other_words import Reader, evidence_in
from ragblame.attribution.verdicts.support import Finding, examine_apart
from ragblame.corpus import (
    FoundChunk,
    Neighbour,
    ProbeReport,
    ProbeRequest,
    ProbeText,
    ProbeWay,
    Retrieval,
    retrieval_of,
)
from ragblame.json_values import clean_text
from ragblame.records import (
    Cause,
    Chunk,
    CorpusEvidence,
    CorpusLook,
    CorpusSearch,
    Span,
    SpanKind,
    SupportState,
    Trace,
    Verdict,
)

DEEP: Final = 50  # ranks up to here are a matter of ranking, beyond it the vector does not see the row
LEAST_K: Final = 4  # where nothing was retrieved and k is not known: LangChain's own default
MAX_EVIDENCE: Final = 5  # rows kept of one span
MAX_READ: Final = 6  # rows that the model reads for one span
MAX_QUOTE: Final = 400  # code points kept of a sentence
MAX_NOTE: Final = 500
SEARCHES: Final = 4  # named of those that found a row
STALE_HARM: Final = 0.7  # severity of a supported span whose source is outdated

_VALUES = (SpanKind.NUMBER, SpanKind.DATE, SpanKind.NAME)
_SUFFIX = " Only the text was checked."
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
    case = _Case(trace, span, finding, request, report, retrieval_of(trace), read)
    if finding.support.state is SupportState.ENTAILED:
        return _stale(case, verdict), case.look()
    return _missing(case, verdict), case.look()


@dataclass(frozen=True, slots=True)
class _Case:
    """Everything known of one span and of the corpus."""

    trace: Trace
    span: Span
    finding: Finding
    request: ProbeRequest
    report: ProbeReport
    retrieval: Retrieval
    read: Reader | None

    @property
    def k(self) -> int:
        """Rows the retriever asked for; where nobody knows, as many as it returned."""
        return self.request.k or len(self.request.retrieved) or len(self.trace.chunks) or LEAST_K

    @property
    def is_filtered(self) -> bool:
        return self.request.filter is not None

    @property
    def is_untold(self) -> bool:
        """Whether nothing is known of how the retriever searched."""
        return self.request.k is None and not self.is_filtered and self.retrieval.search_type is None

    @property
    def is_hybrid(self) -> bool:
        """Whether the retriever's order is our own fused one."""
        if self.retrieval.search_type is not None:
            return self.retrieval.search_type == "hybrid"
        return any(chunk.score_name == "rrf" for chunk in self.trace.chunks)

    @property
    def is_rewritten(self) -> bool:
        return self.request.query is not None and self.request.query != self.request.question

    @property
    def knows_fused_order(self) -> bool:
        """Whether our own retriever searched, and its order was asked for."""
        return self.is_hybrid and any(
            self.ran(ProbeText.QUERY, ProbeWay.HYBRID, is_filtered=is_filtered)
            for is_filtered in (False, True)
        )

    def ran(self, text: ProbeText, way: ProbeWay, *, is_filtered: bool) -> bool:
        """Whether the corpus was asked that, to the end."""
        return any(
            search.is_complete
            for search in self.report.searches
            if (search.text, search.way, search.is_filtered) == (text, way, is_filtered)
        )

    def rank(self, row: FoundChunk, text: ProbeText) -> tuple[int, bool] | None:
        """Where the row stood among the rows of that time, and whether that was counted; None: not known."""
        # a row that does not pass the filter has a rank without it only
        is_filtered = self.is_filtered and row.passes_filter is not False
        seen = row.sighting(text, is_filtered=is_filtered)
        if seen is None:
            return None
        return seen.rank if seen.rank_then is None or row.is_newer else seen.rank_then, seen.is_exact

    def look(self) -> CorpusLook:
        notes = list(self.report.notes)
        if self.retrieval.is_filter_lost:
            notes.append("The retriever's filter could not be captured: the corpus was asked without it.")
        elif self.is_untold:
            notes.append("Neither k nor a filter was captured: a filter may be why a row was not retrieved.")
        return CorpusLook(
            span=self.span.index,
            table=self.report.source,
            rows=self.report.rows,
            k=self.k,
            is_k_known=self.request.k is not None,
            is_filtered=self.is_filtered,
            seconds=self.report.seconds,
            searches=tuple(
                CorpusSearch(
                    text=search.text.value,
                    way=search.way.value,
                    is_filtered=search.is_filtered,
                    is_exact=search.is_exact,
                    is_complete=search.is_complete,
                    found=search.found,
                    seconds=search.seconds,
                    note=search.note[:MAX_NOTE],
                )
                for search in self.report.searches
            ),
            notes=tuple(note[:MAX_NOTE] for note in notes),
        )


@dataclass(frozen=True, slots=True)
class _Row:
    """A row that is evidence."""

    row: FoundChunk
    finding: Finding
    text: str  # the finding's offsets are in it
    joined_with: str | None = None


# The evidence -----------------------------------------------------------------------------------------------


def _evidence(case: _Case, rows: Sequence[FoundChunk]) -> list[_Row]:
    """The rows that say what the span should be, each alone."""
    findings = examine_apart(
        case.trace.question,
        case.trace.answer,
        case.span,
        [_as_chunk(place, row.text) for place, row in enumerate(rows)],
        case.trace.chunks,
    )
    return [
        _Row(row, finding, row.text) for row, finding in zip(rows, findings, strict=True) if _tells(finding)
    ]


def _in_other_words(case: _Case, rows: Sequence[FoundChunk]) -> list[_Row]:
    """The rows about the span's subject from which the model would have written another value."""
    if case.read is None:
        return []
    findings = examine_apart(
        case.trace.question,
        case.trace.answer,
        case.span,
        [_as_chunk(place, row.text) for place, row in enumerate(rows)],
        case.trace.chunks,
    )
    doubtful = [
        (row, finding)
        for row, finding in zip(rows, findings, strict=True)
        if finding.is_about or (finding.support.state is SupportState.CONTRADICTED and not finding.is_sure)
    ][:MAX_READ]
    said = case.trace.answer[case.span.start : case.span.end]
    written = case.read([row.text for row, _ in doubtful])
    return [
        _Row(row, evidence, row.text)
        for (row, finding), words in zip(doubtful, written, strict=True)
        if (evidence := evidence_in(row.text, words, said, finding)) is not None
    ]


def _tells(finding: Finding) -> bool:
    support = finding.support
    is_said = support.state in (SupportState.ENTAILED, SupportState.CONTRADICTED)
    return is_said and finding.is_sure and support.evidence_start is not None


def _together(case: _Case, rows: Sequence[FoundChunk]) -> list[_Row]:
    """Rows that say it only when joined with a neighbour: neither half is evidence, both are."""
    pairs: dict[tuple[str, str], tuple[FoundChunk, Neighbour, str]] = {}
    for row in rows:
        for neighbour, is_before in ((row.previous, True), (row.next, False)):
            if neighbour is None:
                continue
            first, second = (neighbour, row) if is_before else (row, neighbour)
            pairs.setdefault((first.id, second.id), (row, neighbour, _joined(first.text, second.text)))
    if not pairs:
        return []
    known = list(pairs.values())
    halves = list(dict.fromkeys(neighbour.text for _, neighbour, _ in known))
    texts = [*(text for _, _, text in known), *halves]
    findings = examine_apart(
        case.trace.question,
        case.trace.answer,
        case.span,
        [_as_chunk(place, text) for place, text in enumerate(texts)],
        case.trace.chunks,
    )
    alone = {text for text, finding in zip(halves, findings[len(known) :], strict=True) if _tells(finding)}
    return [
        _Row(row, finding, text, neighbour.id)
        for (row, neighbour, text), finding in zip(known, findings, strict=False)
        if _tells(finding) and neighbour.text not in alone
    ]


def _joined(first: str, second: str) -> str:
    """Two chunks as they stood in their document: a sentence cut in two is one again."""
    return f"{first.rstrip()} {second.lstrip()}"


def _as_chunk(place: int, text: str) -> Chunk:
    return Chunk(position=place, text=text)


# Why a row was not used -------------------------------------------------------------------------------------


def _cause_of(case: _Case, row: FoundChunk) -> Cause | None:
    """The test of the taxonomy that the row meets; None where no rank is known that would tell."""
    if row.is_newer:
        return Cause.NOT_THERE_YET
    if row.passes_filter is False:
        return Cause.FILTERED_OUT
    by_query = case.rank(row, ProbeText.QUERY)
    by_question = case.rank(row, ProbeText.QUESTION) if case.is_rewritten else None
    if by_question is not None and by_question[0] <= case.k and (by_query is None or by_query[0] > case.k):
        return Cause.QUERY_REWRITING
    if by_query is None:
        is_asked = case.ran(ProbeText.QUERY, ProbeWay.NEAREST, is_filtered=case.is_filtered)
        return Cause.SEMANTIC_GAP if is_asked else None
    fused = _fused_rank(case, row)
    # where our own retriever's order is known, words too decide who is among its first k
    if (fused is not None and fused <= case.k) if case.knows_fused_order else by_query[0] <= case.k:
        if case.retrieval.is_filter_lost:
            return None  # the index or the filter: nobody can tell any more
        return Cause.INDEX_MISS if case.retrieval.is_plain or case.is_hybrid else Cause.RANKED_TOO_LOW
    return Cause.RANKED_TOO_LOW if min(by_query[0], fused or by_query[0]) <= DEEP else Cause.SEMANTIC_GAP


def _fused_rank(case: _Case, row: FoundChunk) -> int | None:
    """Its place in our own retriever's order, where that is what retrieved; None beyond the first 50."""
    if not case.is_hybrid:
        return None
    places = [seen.rank for seen in row.sightings if seen.way is ProbeWay.HYBRID]
    return min(places, default=None)


def _record(case: _Case, found: _Row, cause: Cause | None) -> CorpusEvidence:
    row, support = found.row, found.finding.support
    assert support.evidence_start is not None  # else it were no evidence
    assert support.evidence_end is not None
    by_query = case.rank(row, ProbeText.QUERY)
    by_question = case.rank(row, ProbeText.QUESTION) if case.is_rewritten else None
    is_hidden = _is_hidden(case, found)
    quote = "" if is_hidden else found.text[support.evidence_start : support.evidence_end][:MAX_QUOTE]
    stated = None if is_hidden or support.stated is None else support.stated[:MAX_QUOTE]
    ways = (f"{seen.text.value}, {seen.way.value}" for seen in row.sightings)
    return CorpusEvidence(
        table=case.report.source,
        row_id=row.id,
        state=support.state,
        rule=support.rule,
        cause=cause,
        start=support.evidence_start,
        end=support.evidence_end,
        quote=clean_text(quote),
        stated=stated and clean_text(stated),
        rank=None if by_query is None else by_query[0],
        is_exact=by_query is not None and by_query[1],
        question_rank=None if by_question is None else by_question[0],
        found_by=tuple(dict.fromkeys(ways))[:SEARCHES],
        passes_filter=row.passes_filter,
        is_newer=row.is_newer,
        created_at=row.created_at,
        joined_with=found.joined_with,
    )


def _is_hidden(case: _Case, found: _Row) -> bool:
    """Whether the retriever's filter keeps the text from whoever asked, so that it must not be stored."""
    if case.retrieval.is_filter_lost or found.row.passes_filter is False:
        return True
    if not case.is_filtered:
        return False
    passes: list[bool | None] = [found.row.passes_filter]
    if found.joined_with is not None:
        neighbour = case.report.chunk(found.joined_with)
        passes.append(None if neighbour is None else neighbour.passes_filter)
    return not all(passes)


# The verdict ------------------------------------------------------------------------------------------------


def _missing(case: _Case, verdict: Verdict) -> Verdict:
    """Nothing in the prompt says what the span should be: what about the corpus?"""
    captured = {chunk.source_id: chunk.text for chunk in case.trace.chunks if chunk.source_id}
    others = [row for row in case.report.chunks if not row.is_retrieved]
    # a retrieved row was read in the prompt already, unless somebody has rewritten it since
    passing = [row for row in case.report.chunks if row.passes_filter is not False]
    changed = [
        row for row in case.report.chunks if row.is_retrieved and captured.get(row.id, row.text) != row.text
    ]
    evidence = _evidence(case, others) or _in_other_words(case, others)
    found = [(each, _cause_of(case, each.row)) for each in evidence]
    if not found:
        found = [(each, Cause.NOT_THERE_YET) for each in _evidence(case, changed)]
    if not found:
        found = [(each, Cause.CUT_APART) for each in _together(case, passing)]
    found.sort(key=lambda pair: _strength(case, *pair))
    records = tuple(_record(case, each, cause) for each, cause in found[:MAX_EVIDENCE])
    causes = list(dict.fromkeys(cause for _, cause in found if cause is not None))
    if not records:
        return _nothing(case, verdict)
    known = replace(verdict, corpus_evidence=records)
    first = records[0].cause
    if first is None:
        return replace(
            known, explanation=_continued(verdict, _unranked(records[0])), other_causes=_listed(known, causes)
        )
    if case.finding.copied_from and verdict.cause is Cause.PROMPT:
        return replace(known, other_causes=_listed(verdict, causes))  # the guilty line is there to be read
    return replace(
        known,
        cause=first,
        fix=FIX[first],
        explanation=_continued(verdict, _why(case, records[0])),
        other_causes=_listed(replace(verdict, cause=first), [*causes, *_kept(verdict)]),
    )


def _strength(case: _Case, found: _Row, cause: Cause | None) -> tuple[int, int]:
    """Orders evidence: the rows closest to being retrieved first."""
    if cause is Cause.CUT_APART:
        return len(_ORDER), 0
    by_query = case.rank(found.row, ProbeText.QUERY)
    place = 0 if cause in _RANKED else _ORDER.index(cause)
    return place, by_query[0] if by_query is not None else 1 << 30


def _nothing(case: _Case, verdict: Verdict) -> Verdict:
    """No row is evidence; which proves something only if the corpus was asked to the end."""
    if case.finding.support.state is not SupportState.ABSENT:
        return verdict  # a chunk of the prompt speaks of the subject, though of something else
    if not case.report.is_complete:
        return replace(
            verdict,
            explanation=_continued(
                verdict, "the corpus could not be searched to the end, so it may hold the evidence or not"
            ),
        )
    if case.finding.copied_from and verdict.cause is Cause.PROMPT:
        return replace(verdict, other_causes=_listed(verdict, [Cause.NO_EVIDENCE_IN_CORPUS]))
    rows = case.report.rows
    size = "" if rows is None else f" ({rows:,} rows)"
    about = "" if case.report.is_exact else " (approximate)"
    cause = Cause.NO_EVIDENCE_IN_CORPUS
    return replace(
        verdict,
        cause=cause,
        fix=FIX[cause],
        explanation=_continued(
            verdict,
            f"nothing in {case.report.source}{size} does: {_asked(case.report)} found no evidence{about}",
        ),
        other_causes=_listed(replace(verdict, cause=cause), _kept(verdict)),
    )


def _stale(case: _Case, verdict: Verdict) -> Verdict:
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
        for each in _evidence(case, newer)
        if each.finding.support.state is SupportState.CONTRADICTED and each.row.passes_filter is not False
    ]
    if not found:
        return verdict
    found.sort(key=lambda each: _strength(case, each, _cause_of(case, each.row)))
    records = tuple(_record(case, each, _cause_of(case, each.row)) for each in found[:MAX_EVIDENCE])
    cause, first = Cause.STALE_SOURCE, records[0]
    since = " since the answer" if first.is_newer else ""
    return replace(
        verdict,
        cause=cause,
        fix=FIX[cause],
        severity=STALE_HARM,
        explanation=_continued(
            verdict, f"but a newer row of the corpus says {quoted(first.stated or first.quote)}{since}"
        ),
        corpus_evidence=records,
        other_causes=_listed(replace(verdict, cause=cause), [r.cause for r in records if r.cause]),
    )


def _kept(verdict: Verdict) -> list[Cause]:
    """What was found without the corpus stays listed, but for the cause that stood for not asking it."""
    return [] if verdict.cause in (None, Cause.NO_EVIDENCE_IN_PROMPT) else [verdict.cause]


def _listed(verdict: Verdict, more: Sequence[Cause]) -> tuple[Cause, ...]:
    """Other causes, without the first and without the one that asking the corpus has answered."""
    settled = (verdict.cause, Cause.NO_EVIDENCE_IN_PROMPT)
    return tuple(cause for cause in dict.fromkeys([*more, *verdict.other_causes]) if cause not in settled)


# Sentences --------------------------------------------------------------------------------------------------


def _continued(verdict: Verdict, more: str) -> str:
    """The one sentence of the verdict, gone on with."""
    said, suffix = verdict.explanation, ""
    if said.endswith(_SUFFIX):
        said, suffix = said.removesuffix(_SUFFIX), _SUFFIX
    return f"{said.removesuffix('.')}; {more}.{suffix}"


def _why(case: _Case, record: CorpusEvidence) -> str:
    rank = _about(record.rank, record.is_exact)
    k = f"k = {case.k}" if case.request.k is not None else f"{case.k} were retrieved"
    match record.cause:
        case Cause.QUERY_REWRITING:
            worse = f"{rank} for the rewritten query" if record.rank else "not found by the rewritten query"
            return f"the right chunk is #{record.question_rank} for the question but {worse}, and {k}"
        case Cause.RANKED_TOO_LOW if record.rank is not None and record.rank <= case.k:
            kind = case.retrieval.search_type
            return f"the right chunk is {rank} for the query, and {k}, but the {kind} search passed over it"
        case Cause.RANKED_TOO_LOW:
            row = case.report.chunk(record.row_id)
            fused = None if row is None else _fused_rank(case, row)
            beside = "" if fused is None else f" and #{fused} in the hybrid order"
            return f"the right chunk is {rank} for the query{beside}, and {k}"
        case Cause.INDEX_MISS if case.is_untold:
            return (
                f"the right chunk is {rank} for the query, and {k}, but not this one: by the index, or by a "
                "filter that was not captured"
            )
        case Cause.INDEX_MISS:
            return f"the right chunk is {rank} for the query, and {k}, but the index did not return it"
        case Cause.FILTERED_OUT:
            return f"the right chunk is {rank} for the query, but the retriever's filter leaves it out"
        case Cause.SEMANTIC_GAP:
            far = f"{rank} for the query" if record.rank else f"beyond the first {DEEP} for the query"
            return f"the right chunk was found by {record.found_by[0]}, but is {far}, and {k}"
        case Cause.NOT_THERE_YET if record.is_newer:
            return f"the corpus says it only since {_when(record)}, after the answer"
        case Cause.NOT_THERE_YET:
            return "a retrieved row says it by now, but said something else when it was retrieved"
        case _:
            return "the corpus says it only where two neighbouring chunks are read together"


def _unranked(record: CorpusEvidence) -> str:
    found = record.found_by[0] if record.found_by else "the probe"
    return f"the corpus says it (found by {found}), but its rank for the query is not known"


def _about(rank: int | None, is_exact: bool) -> str:
    """ "#14", "about #14 (approximate)"."""
    if rank is None:
        return "without a rank"
    return f"#{rank}" if is_exact else f"about #{rank} (approximate)"


def _when(record: CorpusEvidence) -> str:
    return "later" if record.created_at is None else f"{record.created_at:%Y-%m-%d %H:%M %Z}".strip()


def _asked(report: ProbeReport) -> str:
    """ "12 searches"."""
    count = len(report.searches)
    return f"{count} search{'' if count == 1 else 'es'}"
