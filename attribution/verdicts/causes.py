"""Why a span went wrong, by tests that need no look into the corpus: the first that applies is the cause.

The order walks back from the answer: was everything captured, was the evidence cut away, do the chunks
disagree, is the prompt itself at fault, was a chunk misread, did memory win, was there any evidence at all.
What only the corpus can tell is decided in corpus_causes.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.severity import weigh
from ragblame.attribution.verdicts.table import Decision, Influence
from ragblame.attribution.verdicts.thresholds import Thresholds
from ragblame.records import Basis, Cause, Span, SpanKind, SupportState, Trace, Verdict, VerdictKind

QUOTED = 90  # code points of a quotation in a sentence for the screen

FIX = {
    Cause.CAPTURE_INCOMPLETE: "Complete the capture: attach the retriever, raise RAGBLAME_CAPTURE_MAX_FIELD.",
    Cause.STALE_SOURCE: "Correct or remove the outdated document, and ingest the corpus again.",
    Cause.DROPPED_AFTER_RETRIEVAL: "Raise the context budget, or correct the reranker or prompt template.",
    Cause.CONFLICTING_CHUNKS: "Remove or date the outdated chunk, or have the model point out disagreement.",
    Cause.DISTORTION: "Ask for values word for word, or change the model or the format of the chunk.",
    Cause.BORROWED: "Name the subject in every chunk, and let the model say when the asked one is missing.",
    Cause.MEMORY_OVERRIDE: "Tell the model to prefer the documents, or move the chunk near the question.",
    Cause.PROMPT: "Correct the quoted lines of the prompt: its instructions, examples or history.",
    Cause.WRONG_SOURCE: "Check citations: the answer is right, but the cited or used chunk does not say it.",
    Cause.QUERY_REWRITING: "Correct the step that rewrites the question, or search with the question too.",
    Cause.RANKED_TOO_LOW: "Raise k, rerank, or search words beside vectors.",
    Cause.INDEX_MISS: "Raise ef_search or probes, switch iterative scan on, or rebuild the index.",
    Cause.FILTERED_OUT: "Check the filter and the row's metadata; it may be hidden on purpose.",
    Cause.SEMANTIC_GAP: "Search words beside vectors, or use an embedding model that knows these terms.",
    Cause.NOT_THERE_YET: "Nothing, if the answer may be as old; else shorten the way from source to corpus.",
    Cause.CUT_APART: "Cut the documents into larger or overlapping chunks, and ingest them again.",
    Cause.NO_EVIDENCE_IN_CORPUS: "Add the fact to the corpus, and let the model say when it is missing.",
    Cause.NO_EVIDENCE_IN_PROMPT: "Look for the fact in the corpus: add it, retrieve more, allow abstaining.",
    Cause.UNDETERMINED: "Read the evidence yourself, or use the model that wrote the answer as the scorer.",
}


@dataclass(frozen=True, slots=True)
class _Case:
    """Everything the tests may look at."""

    trace: Trace
    span: Span
    finding: Finding
    decision: Decision
    influence: Influence | None
    tau: float  # nats

    @property
    def state(self) -> SupportState:
        return self.finding.support.state

    @property
    def is_unsupported(self) -> bool:
        return self.state in (SupportState.ABSENT, SupportState.CONTRADICTED)

    @property
    def says(self) -> str:
        """What a chunk does that entails the span: it says a value or the very words, or supports them."""
        support = self.finding.support
        if support.position is None or self.span.kind not in (SpanKind.CLAUSE, SpanKind.NEGATION):
            return "says"
        evidence = self.trace.chunks[support.position].text[support.evidence_start : support.evidence_end]
        words = _flat(self.trace.answer[self.span.start : self.span.end])
        return "says" if words in _flat(evidence) else "supports"

    @property
    def is_miscited(self) -> bool:
        """Said by a chunk, and not by any that the answer names as its source."""
        cites_others = self.finding.miscited or self.finding.cites_none
        return self.state is SupportState.ENTAILED and bool(cites_others)

    @property
    def may_be_used(self) -> bool:
        """Used, or nobody measured it."""
        return self.decision.is_used is not False


def judge(
    trace: Trace,
    span: Span,
    finding: Finding,
    decision: Decision,
    influence: Influence | None,
    thresholds: Thresholds,
) -> Verdict:
    """The verdict on one span with its cause, the sentence for the screen, the usual fix and the severity."""
    case = _Case(trace, span, finding, decision, influence, thresholds.tau_nats)
    found = list(dict.fromkeys(_causes(case)))
    cause = found[0] if found else None
    is_open = cause in (Cause.CAPTURE_INCOMPLETE, Cause.UNDETERMINED)
    support = finding.support
    # Calibrated on answers that no scorer had read: where one measured the span, its numbers decide.
    is_calibrated = decision.basis is Basis.SUPPORT_ONLY
    confidence = thresholds.confidence(support.probability, support.model) if is_calibrated else None
    verdict = Verdict(
        span=span.index,
        verdict=VerdictKind.UNDETERMINED if is_open else decision.verdict,
        cause=cause,
        basis=decision.basis,
        confidence=confidence,
        severity=0.0,
        explanation=_explain(case, cause),
        fix=FIX[cause] if cause is not None else None,
        evidence=_evidence(case, cause),
        prompt_evidence=tuple(dict.fromkeys((*finding.copied_from, *finding.told_by))),
        other_causes=tuple(found[1:]),
        reliance_measurable=decision.is_measurable,
        thresholds_version=thresholds.version,
    )
    return replace(verdict, severity=weigh(span.kind, verdict, support).severity)


def _causes(case: _Case) -> Iterator[Cause]:
    """Every cause whose test holds, most telling first."""
    finding, state = case.finding, case.state
    chunks = case.trace.chunks
    is_cut = any(chunk.truncated_from is not None for chunk in chunks)
    has_claim = not (state is SupportState.ENTAILED and finding.support.position is None)
    if has_claim and (not chunks or (is_cut and state is SupportState.ABSENT)):
        yield Cause.CAPTURE_INCOMPLETE
    if case.decision.verdict is VerdictKind.UNDETERMINED:
        yield Cause.UNDETERMINED
    if finding.dropped:
        yield Cause.DROPPED_AFTER_RETRIEVAL
    if finding.conflicts:
        yield Cause.CONFLICTING_CHUNKS
    if case.is_unsupported and _is_told(case):
        yield Cause.PROMPT
    if case.is_unsupported and case.may_be_used:
        if finding.borrowed_from:
            used = case.decision.used
            if not used or set(used) & set(finding.borrowed_from):
                yield Cause.BORROWED
        if state is SupportState.CONTRADICTED or case.decision.is_used:
            yield Cause.DISTORTION
    if case.is_unsupported and _is_pulled(case):
        yield Cause.BORROWED
    if state is SupportState.CONTRADICTED and case.decision.is_used is False:
        yield Cause.MEMORY_OVERRIDE
    if case.is_unsupported and (finding.copied_from or finding.told_by):
        yield Cause.PROMPT
    if case.decision.is_wrong_source or case.is_miscited:
        yield Cause.WRONG_SOURCE
    if state is SupportState.ABSENT and not case.decision.is_used:
        yield Cause.NO_EVIDENCE_IN_PROMPT
        if finding.borrowed_from and case.decision.is_used is False:
            yield Cause.BORROWED


def _is_told(case: _Case) -> bool:
    """Whether the prompt's own lines explain the span better than its chunks do.

    Copied words explain it wherever no chunk was read for it. That memory was asked for explains only that
    memory was used: a value read from a chunk was not.
    """
    is_read = case.decision.is_used is True
    if case.finding.copied_from:
        return case.state is SupportState.ABSENT or not is_read
    is_borrowed = case.finding.borrowed_from and case.decision.is_used is None
    return bool(case.finding.told_by) and not is_read and not is_borrowed


def _is_pulled(case: _Case) -> bool:
    """Whether a chunk about another subject argues for the span, even where others outweigh it."""
    if case.influence is None:
        return False
    shares = case.influence.shares
    return any(shares[position] > case.tau for position in case.finding.borrowed_from)


def _evidence(case: _Case, cause: Cause | None) -> tuple[int, ...]:
    """The chunks that show the cause, most telling first."""
    finding = case.finding
    support = finding.support
    first: tuple[int, ...] = () if support.position is None else (support.position, *support.other_positions)
    if cause is Cause.DROPPED_AFTER_RETRIEVAL:
        first = finding.dropped
    elif cause is Cause.CONFLICTING_CHUNKS:
        first = (*first, *(position for position, _ in finding.conflicts))
    elif cause is Cause.BORROWED:
        first = (*finding.borrowed_from, *first)
    elif cause in (Cause.WRONG_SOURCE, Cause.DISTORTION):
        first = (*first, *case.decision.used, *finding.miscited)
    return tuple(dict.fromkeys(first))


def _explain(case: _Case, cause: Cause | None) -> str:
    """One plain sentence; what it rests on is added where that is the text alone."""
    sentence = _sentence(case, cause)
    is_checked = case.decision.basis is Basis.SUPPORT_ONLY and cause is not Cause.CAPTURE_INCOMPLETE
    return f"{sentence} Only the text was checked." if is_checked else sentence


def _sentence(case: _Case, cause: Cause | None) -> str:
    support = case.finding.support
    said = quoted(case.trace.answer[case.span.start : case.span.end])
    where = "" if support.position is None else f"chunk {support.position + 1}"
    match cause:
        case None:
            return _right(case, said, where)
        case Cause.CAPTURE_INCOMPLETE if not case.trace.chunks:
            return f"Cannot say: no retrieved chunk was recorded, so {said} cannot be checked."
        case Cause.CAPTURE_INCOMPLETE:
            return f"Cannot say: no recorded text says {said}, but a chunk was cut when it was recorded."
        case Cause.UNDETERMINED:
            return _open(case, said, where)
        case Cause.DROPPED_AFTER_RETRIEVAL:
            dropped = _chunks(case.finding.dropped)
            return f"The evidence for {said} was retrieved ({dropped}) but did not reach the prompt."
        case Cause.CONFLICTING_CHUNKS:
            position, other = case.finding.conflicts[0]
            return f"The chunks disagree: {where} says {said}, chunk {position + 1} says {quoted(other)}."
        case Cause.BORROWED:
            source = _chunks(case.finding.borrowed_from)
            stated = f", of which {where} says {quoted(support.stated)}" if support.stated else ""
            return f"The answer's {said} stands in {source} with another subject than the asked one{stated}."
        case Cause.DISTORTION if support.stated is not None:
            return f"The answer says {said}, but {where} says {quoted(support.stated)}."
        case Cause.DISTORTION:
            return f"The model relied on {_chunks(case.decision.used)} for {said}, but no chunk says it."
        case Cause.PROMPT:
            return _prompted(case, said, where)
        case Cause.MEMORY_OVERRIDE:
            stated = quoted(support.stated or "")
            return (
                f"The model says {said} without relying on the documents{_sure(case)}; {where} says {stated}."
            )
        case Cause.WRONG_SOURCE if case.is_miscited and case.finding.cites_none:
            numbers = " and ".join(map(str, case.finding.cites_none))
            none = "no chunk has that number"
            return f"{where.capitalize()} {case.says} {said}, but the answer cites {numbers}: {none}."
        case Cause.WRONG_SOURCE if case.is_miscited:
            cited = case.finding.miscited
            does = "does" if len(cited) == 1 else "do"
            told = f"{where.capitalize()} {case.says} {said}"
            return f"{told}, but the answer cites {_chunks(cited)}, which {does} not."
        case Cause.WRONG_SOURCE:
            used = _chunks(case.decision.used)
            return f"{said} is right ({where} says it), but the model relied on {used}, which does not."
        case Cause.NO_EVIDENCE_IN_PROMPT:
            foreign = case.finding.borrowed_from
            aside = f"; {_chunks(foreign)} has it for another subject" if foreign else ""
            return f"No chunk in the prompt says {said}{aside}{_unread(case)}."
        case _:
            raise AssertionError(f"{cause} needs a look into the corpus")


def _prompted(case: _Case, said: str, where: str) -> str:
    """The guilty line, quoted, and what the chunks say instead."""
    finding = case.finding
    line = (finding.copied_from or finding.told_by)[0]
    message = case.trace.prompt[line.message]
    guilty = quoted(message.text[line.start : line.end])
    stated = finding.support.stated
    against = f"; {where} says {quoted(stated)}" if stated else "; no chunk in the prompt says it"
    place = f"the prompt's message {line.message + 1} ({message.role})"
    if finding.copied_from:
        return f"{said} stands outside the chunks, in {place}: {guilty}{against}."
    return f"The model says {said} from memory, as {place} asks it to: {guilty}{against}."


def _right(case: _Case, said: str, where: str) -> str:
    if not where:
        return f"Nothing to check in {said}: {case.finding.support.rule}."
    told = f"{where.capitalize()} {case.says} {said}"
    if case.decision.verdict is VerdictKind.KNOWN_ALREADY:
        kept = ", and it keeps to it when the chunk says otherwise" if _was_asked(case) else ""
        return f"{told}, but the model did not need it{_sure(case)}{kept}."
    if case.influence is None:
        return f"{told}."
    if case.influence.follow is not None:
        return (
            f"{told}, and the model follows it: were another value there, it would rather write that one "
            f"(by {case.influence.follow:.1f} nats), though it knows this one by heart."
        )
    carried = ", measured at its first mention" if case.influence.is_carried else ""
    nats = f"{case.influence.reliance:+.1f} nats{carried}"
    return f"{told}, and the model relied on it ({nats})."


def _was_asked(case: _Case) -> bool:
    return case.influence is not None and case.influence.follow is not None


def _open(case: _Case, said: str, where: str) -> str:
    if case.state is SupportState.UNCLEAR:
        place = f", nearest is {where}" if where else ""
        return f"Cannot say whether the chunks support {said}: {case.finding.support.rule}{place}."
    return f"Cannot say whether the model used the documents for {said}: its reliance lies at the threshold."


def _sure(case: _Case) -> str:
    """How likely the words were without any chunk."""
    if case.influence is None:
        return ""
    return f" (probability without any chunk {case.influence.p_without:.2f} per token)"


def _unread(case: _Case) -> str:
    if case.influence is None:
        return ""
    if not case.decision.is_measurable:
        return ", and the model was sure of it without any chunk"
    return ", and the model did not rely on the documents for it"


def _chunks(positions: tuple[int, ...]) -> str:
    """ "chunk 2", "chunks 2 and 3": numbered from 1 as on the screen."""
    numbers = [str(position + 1) for position in positions]
    if len(numbers) < 2:
        return f"chunk {numbers[0]}" if numbers else "no chunk"
    return f"chunks {', '.join(numbers[:-1])} and {numbers[-1]}"


def _flat(text: str) -> str:
    return " ".join(text.casefold().split())


def quoted(text: str) -> str:
    """A text as the sentences of the screen quote it: one line, cut."""
    flat = " ".join(text.split())
    return f"“{flat if len(flat) <= QUOTED else flat[: QUOTED - 1] + '…'}”"
