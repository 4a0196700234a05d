"""Which rows of the corpus are evidence: by our own support check of each, never by how a search ranked it.

A row that entails the span is one, and a row that states another value for the same subject and attribute:
that value is what the answer should have said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ragblame.attribution.verdicts.corpus_case import CorpusCase
from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.other_words import evidence_in
from ragblame.attribution.verdicts.support import examine_apart
from ragblame.corpus import FoundChunk, Neighbour, ProbeText
from ragblame.json_values import clean_text
from ragblame.records import Cause, Chunk, CorpusEvidence, SupportState

MAX_READ: Final = 6  # rows that the model reads for one span
MAX_QUOTE: Final = 400  # code points kept of a sentence
SEARCHES: Final = 4  # named of those that found a row


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """A row that is evidence."""

    row: FoundChunk
    finding: Finding
    text: str  # the finding's offsets are in it
    joined_with: str | None = None


def evidence_among(case: CorpusCase, rows: Sequence[FoundChunk]) -> list[EvidenceRow]:
    """The rows that say what the span should be, each alone."""
    findings = examine_apart(
        case.trace.question,
        case.trace.answer,
        case.span,
        [_as_chunk(place, row.text) for place, row in enumerate(rows)],
        case.trace.chunks,
    )
    return [
        EvidenceRow(row, finding, row.text)
        for row, finding in zip(rows, findings, strict=True)
        if _tells(finding)
    ]


def evidence_in_other_words(case: CorpusCase, rows: Sequence[FoundChunk]) -> list[EvidenceRow]:
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
        EvidenceRow(row, evidence, row.text)
        for (row, finding), words in zip(doubtful, written, strict=True)
        if (evidence := evidence_in(row.text, words, said, finding)) is not None
    ]


def _tells(finding: Finding) -> bool:
    support = finding.support
    is_said = support.state in (SupportState.ENTAILED, SupportState.CONTRADICTED)
    return is_said and finding.is_sure and support.evidence_start is not None


def evidence_together(case: CorpusCase, rows: Sequence[FoundChunk]) -> list[EvidenceRow]:
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
        EvidenceRow(row, finding, text, neighbour.id)
        for (row, neighbour, text), finding in zip(known, findings, strict=False)
        if _tells(finding) and neighbour.text not in alone
    ]


def _joined(first: str, second: str) -> str:
    """Two chunks as they stood in their document: a sentence cut in two is one again."""
    return f"{first.rstrip()} {second.lstrip()}"


def _as_chunk(place: int, text: str) -> Chunk:
    return Chunk(position=place, text=text)


def to_record(case: CorpusCase, found: EvidenceRow, cause: Cause | None) -> CorpusEvidence:
    """What is kept of it: where it is, what it says unless the filter hides that, and how it ranked."""
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


def _is_hidden(case: CorpusCase, found: EvidenceRow) -> bool:
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
