"""Explanations as a worker would write them, one per verdict and cause: what the triage page is tested with.

Texts are of the demo's kind (runbooks of invented services); numbers fit together: Shapley shares sum to the
reliance, offsets point at the words they claim, chunks stand in the prompt where the alignments say.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from ragblame.attribution.verdicts.thresholds import DEFAULT
from ragblame.records import (
    Alignment,
    AlignmentState,
    Attribution,
    Basis,
    Cause,
    Chunk,
    CoalitionValues,
    Cost,
    Explanation,
    Fitness,
    Message,
    Method,
    ScorerRef,
    Span,
    SpanKind,
    Support,
    SupportState,
    TokenHeat,
    Trace,
    Verdict,
    VerdictKind,
)
from ragblame.traces import new_trace_id

OWN = ScorerRef(name="ragblame-small", revision="3f1c0a9d", is_own_model=True)
STAND_IN = ScorerRef(name="ragblame-small", revision="3f1c0a9d", is_own_model=False)
FIT = Fitness(is_fit=True, answer_nats=-0.21, unigram_nats=-6.4, reason="The answer is likely to the scorer.")
UNFIT = Fitness(
    is_fit=False,
    answer_nats=-9.1,
    unigram_nats=-7.9,
    reason="Its log-probability (−9.10 nats a token) is no better than a unigram guess (−7.90).",
)


@dataclass(frozen=True, kw_only=True)
class Said:
    """A span to be: its words, what was found about it, and how much each chunk contributed."""

    words: str
    verdict: VerdictKind
    why: str
    cause: Cause | None = None
    kind: SpanKind = SpanKind.NUMBER
    shares: tuple[float, ...] = ()
    v_none: float = -8.0
    severity: float = 0.0
    support: SupportState = SupportState.ENTAILED
    rule: str = "number with subject"
    chunk: int | None = None
    evidence: str = ""  # words of that chunk
    stated: str | None = None
    fix: str | None = None
    others: tuple[Cause, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One trace to be, in a form that is easy to read."""

    question: str
    chunks: tuple[tuple[str, str], ...]  # (source, text)
    answer: tuple[str | Said, ...]
    app: str = "runbook-assistant"
    model: str = "ragblame-small"
    scorer: ScorerRef | None = OWN
    fitness: Fitness | None = FIT
    missing: frozenset[int] = frozenset()  # chunks that do not stand in the prompt
    query: str | None = None
    minutes_ago: float = 5.0
    notes: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)


def explain(case: Case) -> Explanation:
    """The explanation that ``case`` describes."""
    trace, alignments = _trace(case)
    spans: list[Span] = []
    said: list[Said] = []
    at = 0
    for part in case.answer:
        words = part if isinstance(part, str) else part.words
        if isinstance(part, Said):
            start, end = _sentence(trace.answer, at)
            spans.append(
                Span(
                    index=len(spans),
                    start=at,
                    end=at + len(words),
                    kind=part.kind,
                    sentence_start=start,
                    sentence_end=max(end, at + len(words)),
                )
            )
            said.append(part)
        at += len(words)
    is_scored = case.scorer is not None and (case.fitness is None or case.fitness.is_fit)
    return Explanation(
        trace=trace,
        scorer=case.scorer,
        fitness=case.fitness,
        alignments=alignments,
        spans=tuple(spans),
        attributions=_attributions(case, said) if is_scored else (),
        heats=_heats(trace, spans, said) if is_scored else (),
        supports=tuple(_support(trace, index, part) for index, part in enumerate(said)),
        verdicts=tuple(_verdict(case, index, part) for index, part in enumerate(said)),
        coalitions=_coalitions(case, spans, said) if is_scored and spans and case.chunks else None,
        notes=case.notes,
        cost=Cost(
            scored_coalitions=2 ** min(len(case.chunks), 10),
            forwards=4,
            backwards=3,
            tokens=9_216,
            seconds=0.84,
        ),
    )


def _trace(case: Case) -> tuple[Trace, tuple[Alignment, ...]]:
    asked = datetime.now(UTC) - timedelta(minutes=case.minutes_ago)
    body = "Context:\n"
    alignments: list[Alignment] = []
    for position, (_, text) in enumerate(case.chunks):
        if position in case.missing:
            alignments.append(Alignment(position=position, state=AlignmentState.MISSING))
            continue
        start = len(body)
        body += f"{text}\n\n"
        alignments.append(
            Alignment(
                position=position,
                state=AlignmentState.EXACT,
                message=1,
                start=start,
                end=start + len(text),
                found=(0, len(text)),
            )
        )
    body += f"Question: {case.question}"
    trace = Trace(
        id=new_trace_id(asked),
        app=case.app,
        question=case.question,
        query=case.query,
        chunks=tuple(
            Chunk(
                position=position,
                text=text,
                source_id=f"0193-{position:04d}",
                source_table="ragblame.chunk",
                rank=position + 1,
                score=round(0.92 - 0.11 * position, 3),
                score_name="relevance",
                metadata={"source": source} if source else {},
            )
            for position, (source, text) in enumerate(case.chunks)
        ),
        prompt=(
            Message(role="system", text="Answer from the context only. If it does not say, say so."),
            Message(role="human", text=body),
        ),
        answer="".join(part if isinstance(part, str) else part.words for part in case.answer),
        model=case.model,
        provider="ragblame",
        started_at=asked,
        duration_ms=1_240.0,
        metadata=case.metadata,
    )
    return trace, tuple(alignments)


def _sentence(answer: str, at: int) -> tuple[int, int]:
    start = max(answer.rfind(". ", 0, at) + 2, 0) if ". " in answer[:at] else 0
    end = answer.find(". ", at)
    return start, len(answer) if end < 0 else end + 1


def _attributions(case: Case, said: Sequence[Said]) -> tuple[Attribution, ...]:
    found = []
    for span, part in enumerate(said):
        shares = tuple(
            0.0 if position in case.missing else part.shares[position] if part.shares else 0.0
            for position in range(len(case.chunks))
        )
        total = sum(shares)
        cost = Cost(scored_coalitions=2 ** len(shares), forwards=2, tokens=4_096, seconds=0.31)
        found.append(
            Attribution(
                span=span,
                method=Method.SHAPLEY,
                shares=shares,
                v_all=part.v_none + total,
                v_none=part.v_none,
                reliance=total,
                noise_floor=1e-5,
                completeness_gap=0.0,
                settings_hash="9b1f22c47d",
                cost=cost,
            )
        )
        weight = sum(abs(share) for share in shares) or 1.0
        for method in (Method.INPUT_X_GRADIENT, Method.ROLLOUT_CORRECTED):
            found.append(
                Attribution(
                    span=span,
                    method=method,
                    shares=tuple(round(share / weight, 4) for share in shares),
                    settings_hash="51de0c93aa",
                    cost=Cost(forwards=1, backwards=1, tokens=1_024, seconds=0.05),
                )
            )
    return tuple(found)


def _heats(trace: Trace, spans: Sequence[Span], said: Sequence[Said]) -> tuple[TokenHeat, ...]:
    """Words of the evidence are hot, the others nearly cold."""
    found = []
    for span, part in zip(spans, said, strict=True):
        for chunk in trace.chunks:
            starts, ends, values, at = [], [], [], 0
            hot = chunk.text.find(part.evidence) if part.evidence and part.chunk == chunk.position else -1
            for word in chunk.text.split(" "):
                is_hot = hot <= at < hot + len(part.evidence) if hot >= 0 else False
                starts.append(at)
                ends.append(at + len(word))
                values.append(1.0 if is_hot and any(c.isdigit() for c in word) else 0.45 if is_hot else 0.04)
                at += len(word) + 1
            found.append(
                TokenHeat(
                    span=span.index,
                    position=chunk.position,
                    method=Method.INPUT_X_GRADIENT,
                    starts=tuple(starts),
                    ends=tuple(ends),
                    values=tuple(values),
                )
            )
    return tuple(found)


def _support(trace: Trace, span: int, part: Said) -> Support:
    start = end = None
    if part.chunk is not None and part.evidence:
        start = trace.chunks[part.chunk].text.index(part.evidence)
        end = start + len(part.evidence)
    return Support(
        span=span,
        state=part.support,
        rule=part.rule,
        position=part.chunk,
        evidence_start=start,
        evidence_end=end,
        stated=part.stated,
    )


def _verdict(case: Case, span: int, part: Said) -> Verdict:
    is_scored = case.scorer is not None and (case.fitness is None or case.fitness.is_fit)
    return Verdict(
        span=span,
        verdict=part.verdict,
        cause=part.cause,
        basis=Basis.ATTRIBUTION_AND_SUPPORT if is_scored else Basis.SUPPORT_ONLY,
        confidence=None,
        severity=part.severity,
        explanation=part.why,
        fix=part.fix,
        evidence=() if part.chunk is None else (part.chunk,),
        other_causes=part.others,
        thresholds_version=DEFAULT.version,
    )


def _coalitions(case: Case, spans: Sequence[Span], said: Sequence[Said]) -> CoalitionValues:
    """The additive game with the given shares: one token per span."""
    players = [position for position in range(len(case.chunks)) if position not in case.missing]
    masks = range(2 ** len(players))

    def value(part: Said, mask: int) -> float:
        inside = [position for bit, position in enumerate(players) if mask >> bit & 1]
        return part.v_none + sum(part.shares[position] for position in inside if part.shares)

    return CoalitionValues(
        positions=tuple(players),
        masks=tuple(masks),
        token_starts=tuple(span.start for span in spans),
        token_ends=tuple(span.end for span in spans),
        log_probs=tuple(tuple(value(part, mask) for part in said) for mask in masks),
    )
