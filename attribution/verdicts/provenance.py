"""The chain behind one verdict: rule, evidence, numbers, cell, cause, severity, and the versions of it all.

Built from what is stored, never from what the program would say today; then decided once more with the
thresholds of the verdict's version, so that an edited threshold, or a program that decides otherwise, shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from ragblame.attribution.verdicts.premises import Decided, cell_name, decide_again, influence_of
from ragblame.attribution.verdicts.severity import Factors
from ragblame.attribution.verdicts.table import Decision, Influence
from ragblame.attribution.verdicts.thresholds import Thresholds
from ragblame.records import (
    Basis,
    Cause,
    Chunk,
    CorpusEvidence,
    Explanation,
    Method,
    Premises,
    ScorerRef,
    Span,
    Support,
    SupportState,
    Verdict,
    VerdictKind,
)

MAX_QUOTE: Final = 600  # code points of the evidence sentence
ROUNDING: Final = 1.1e-3  # severities are kept to three decimals
AGAIN: Final = "attribute the trace again to keep it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A sentence of a chunk, with where it stands."""

    position: int  # the chunk
    start: int  # code points in its text
    end: int
    text: str  # cut at MAX_QUOTE
    table: str | None  # where its row lives, e.g. "ragblame.chunk"; None: the retriever did not say
    row: str | None  # the row's identity there


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What the scorer measured about the span, and what that was compared with; nats."""

    v_all: float
    v_none: float
    reliance: float
    noise: float  # one sigma, as compared
    tau: float
    margin: float  # nearer to tau nothing is decided
    tokens: int  # content tokens behind the sums
    p_without: float  # mean probability of a token without any chunk, [0, 1]
    follow: float | None  # the counterfactual; None: not asked
    measured_at: int | None  # span of the first mention; None: its own
    used: tuple[tuple[int, float], ...]  # chunk, its share; largest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Why a verdict is what it is; ``missing`` and ``problems`` are empty when all is known and holds."""

    trace_id: UUID
    span: int
    words: str  # of the answer
    verdict: VerdictKind
    cause: Cause | None
    explanation: str
    # rule and evidence
    read_state: SupportState | None
    read_rule: str | None  # what fired on the text
    state: SupportState
    rule: str  # what fired last; the same where nothing settled it otherwise
    stated: str | None  # what the chunk says instead
    quote: Quote | None
    also_said_by: tuple[int, ...]  # further chunks
    miscited: tuple[int, ...]  # chunks that the answer names as the source, and that do not say it
    cites_none: tuple[int, ...]  # numbers that the answer names as the source, and that no chunk has
    support_model: str | None  # name@revision; None: only rules read it
    support_probability: float | None  # raw, of being unsupported
    confidence: float | None  # calibrated; None: the thresholds hold no calibration for that model
    # numbers
    basis: Basis
    scorer: ScorerRef | None
    why_no_numbers: str | None  # None where there are numbers
    numbers: Numbers | None
    settings_hash: str | None  # of the Shapley values; None without
    # decision
    cell: str | None  # row x column of the verdict table
    fired: tuple[Cause, ...]  # the causes whose test held, in the order tried: the first is shown
    corpus: tuple[CorpusEvidence, ...]
    factors: Factors | None  # of the severity; None for spans that are not flagged
    severity: float
    # versions
    thresholds_version: str
    thresholds: Thresholds | None  # as they are stored now
    thresholds_digest: str  # then
    program: str
    missing: tuple[str, ...]  # facts that were not kept
    problems: tuple[str, ...]  # what does not hold, one sentence each with the next step

    @property
    def is_whole(self) -> bool:
        """Whether every fact is known and the verdict follows from them."""
        return not self.missing and not self.problems


def trace_verdicts(
    explanation: Explanation, thresholds: Mapping[str, Thresholds], factors: Mapping[int, Factors]
) -> tuple[Provenance, ...]:
    """One record per verdict. ``thresholds``: by version, as stored now; ``factors``: by span, as stored."""
    spans = {span.index: span for span in explanation.spans}
    supports = {support.span: support for support in explanation.supports}
    premises = {each.span: each for each in explanation.premises}
    return tuple(
        _trace(
            explanation,
            spans[verdict.span],
            verdict,
            supports[verdict.span],
            premises.get(verdict.span),
            thresholds.get(verdict.thresholds_version),
            factors.get(verdict.span),
        )
        for verdict in explanation.verdicts
    )


def _trace(
    explanation: Explanation,
    span: Span,
    verdict: Verdict,
    support: Support,
    premises: Premises | None,
    thresholds: Thresholds | None,
    factors: Factors | None,
) -> Provenance:
    influence = None if premises is None else influence_of(premises, explanation)
    again = None
    if premises is not None and thresholds is not None:
        again = decide_again(explanation, premises, support, span, thresholds)
    hashes = [a.settings_hash for a in explanation.attributions if a.method is Method.SHAPLEY]
    return Provenance(
        trace_id=explanation.trace.id,
        span=span.index,
        words=explanation.trace.answer[span.start : span.end],
        verdict=verdict.verdict,
        cause=verdict.cause,
        explanation=verdict.explanation,
        read_state=None if premises is None else premises.read_state,
        read_rule=None if premises is None else premises.read_rule,
        state=support.state,
        rule=support.rule,
        stated=support.stated,
        quote=_quote(explanation, support),
        also_said_by=support.other_positions,
        miscited=() if premises is None else premises.miscited,
        cites_none=() if premises is None else premises.cites_none,
        support_model=support.model,
        support_probability=support.probability,
        confidence=verdict.confidence,
        basis=verdict.basis,
        scorer=explanation.scorer,
        why_no_numbers=None if influence is not None else _why_no_numbers(explanation),
        numbers=_numbers(influence, premises, thresholds),
        settings_hash=hashes[0] if influence is not None and hashes else None,
        cell=None if premises is None else cell_name(_decision(verdict, premises), support.state),
        fired=() if verdict.cause is None else (verdict.cause, *verdict.other_causes),
        corpus=verdict.corpus_evidence,
        factors=factors,
        severity=verdict.severity,
        thresholds_version=verdict.thresholds_version,
        thresholds=thresholds,
        thresholds_digest=explanation.thresholds_digest,
        program=explanation.program,
        missing=tuple(_missing(explanation, verdict, support, premises, influence, factors)),
        problems=tuple(_problems(explanation, verdict, support, premises, thresholds, again, factors)),
    )


def _decision(verdict: Verdict, premises: Premises) -> Decision:
    return Decision(
        verdict=verdict.verdict, basis=verdict.basis, is_used=premises.is_used, used=premises.used
    )


def _quote(explanation: Explanation, support: Support) -> Quote | None:
    position, start, end = support.position, support.evidence_start, support.evidence_end
    chunk: Chunk | None = next((c for c in explanation.trace.chunks if c.position == position), None)
    if chunk is None or start is None or end is None:
        return None
    return Quote(
        position=chunk.position,
        start=start,
        end=end,
        text=chunk.text[start:end][:MAX_QUOTE],
        table=chunk.source_table,
        row=chunk.source_id,
    )


def _numbers(
    influence: Influence | None, premises: Premises | None, thresholds: Thresholds | None
) -> Numbers | None:
    if influence is None or premises is None or thresholds is None:
        return None
    noise = thresholds.noise(influence.noise)
    shares = influence.shares
    return Numbers(
        v_all=influence.v_all,
        v_none=influence.v_none,
        reliance=influence.reliance,
        noise=noise,
        tau=thresholds.tau_nats,
        margin=thresholds.sigmas * noise,
        tokens=influence.tokens,
        p_without=influence.p_without,
        follow=influence.follow,
        measured_at=premises.measured_at,
        used=tuple((at, shares[at]) for at in premises.used if at < len(shares)),
    )


def _why_no_numbers(explanation: Explanation) -> str:
    if explanation.scorer is None:
        return "no scorer was used"
    if explanation.fitness is not None and not explanation.fitness.is_fit:
        return explanation.fitness.reason
    return "no shares were computed; the explanation's notes say why"


def _missing(
    explanation: Explanation,
    verdict: Verdict,
    support: Support,
    premises: Premises | None,
    influence: Influence | None,
    factors: Factors | None,
) -> list[str]:
    known = {
        "premises of the decision": premises is not None,
        "version of ragblame": bool(explanation.program),
        "version of the thresholds": bool(verdict.thresholds_version),
        "digest of the thresholds": bool(explanation.thresholds_digest),
        "rule of the support": bool(support.rule),
        "evidence sentence": support.position is None or support.evidence_start is not None,
        "numbers of the scorer": verdict.basis is Basis.SUPPORT_ONLY or influence is not None,
        "revision of the scorer": explanation.scorer is None or bool(explanation.scorer.revision),
        "raw probability of the support model": support.model is None or support.probability is not None,
        "factors of the severity": not verdict.is_flagged or factors is not None,
    }
    return [name for name, is_known in known.items() if not is_known]


def _problems(
    explanation: Explanation,
    verdict: Verdict,
    support: Support,
    premises: Premises | None,
    thresholds: Thresholds | None,
    again: Decided | None,
    factors: Factors | None,
) -> list[str]:
    version, then = verdict.thresholds_version, explanation.thresholds_digest
    found = []
    if thresholds is None:
        found.append(f"Thresholds {version!r} are stored no more, so the verdict cannot be checked; {AGAIN}.")
    elif then and thresholds.digest != then:
        found.append(
            f"Thresholds {version!r} were edited after this verdict was made (digest {then} then, "
            f"{thresholds.digest} now): restore them, or attribute the trace again."
        )
    if again is not None and premises is not None:
        is_asked = any(look.span == verdict.span for look in explanation.corpus_looks)
        stored = (support.state, support.rule, premises.is_used, *_kind(verdict, is_asked))
        now = (
            again.support.state,
            again.support.rule,
            again.decision.is_used,
            *_kind(again.verdict, is_asked),
        )
        if stored != now:
            found.append(
                f"Decided again from what was kept, this span is {again.verdict.verdict.value}"
                f"{f' ({again.verdict.cause.value})' if again.verdict.cause else ''}: "
                "something stored was edited, or this version decides otherwise; attribute the trace again."
            )
    if factors is not None and explanation.premises and abs(factors.severity - verdict.severity) > ROUNDING:
        found.append(
            f"The factors of the severity give {factors.severity:.3f}, not {verdict.severity:.3f}: it was "
            "edited; attribute the trace again."
        )
    return found


def _kind(verdict: Verdict, is_corpus_asked: bool) -> tuple[object, ...]:
    """What deciding again must reproduce; a cause that the corpus told cannot be without asking it."""
    return () if is_corpus_asked else (verdict.verdict, verdict.cause, verdict.other_causes)
