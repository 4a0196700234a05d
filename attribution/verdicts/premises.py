"""What a verdict follows from, kept with it, and the same decision taken again from what was kept.

Thresholds are previewed on history, and every verdict is traced, without asking any model a second time: the
text was read and the numbers were measured once; what follows from them is arithmetic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ragblame.attribution.repetitions import repetitions
from ragblame.attribution.verdicts.causes import judge
from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.reading import settle
from ragblame.attribution.verdicts.table import Decision, Influence, decide
from ragblame.attribution.verdicts.thresholds import Thresholds
from ragblame.records import (
    Explanation,
    Method,
    Premises,
    Span,
    Support,
    SupportState,
    Trace,
    Verdict,
)

LIKELY = "the support model finds it unsupported"
UNLIKELY = "the support model finds it supported"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A verdict with the steps that led to it."""

    verdict: Verdict  # as from the text and the numbers alone: what the corpus told is not in it
    support: Support  # as settled
    decision: Decision
    influence: Influence | None


def premises_of(
    trace: Trace,
    spans: Sequence[Span],
    read: Sequence[Finding],
    settled: Sequence[Finding],
    decided: Sequence[Decision],
    influences: Mapping[int, Influence],
) -> tuple[Premises, ...]:
    """One record per span. ``read``: what the text said, before numbers or a model settled it; ``settled``:
    what was judged; ``decided``: cells of the table; ``influences``: by ``Span.index``."""
    first = repetitions(trace.answer, spans)
    return tuple(
        _premises(span, one, finding, decision, influences.get(span.index), first.get(span.index))
        for span, one, finding, decision in zip(spans, read, settled, decided, strict=True)
    )


def _premises(
    span: Span,
    read: Finding,
    settled: Finding,
    decision: Decision,
    influence: Influence | None,
    first: int | None,
) -> Premises:
    found = Premises(
        span=span.index,
        read_state=read.support.state,
        read_rule=read.support.rule,
        conflicts=settled.conflicts,
        borrowed_from=settled.borrowed_from,
        dropped=settled.dropped,
        is_sure=settled.is_sure,
        copied_from=settled.copied_from,
        told_by=settled.told_by,
        miscited=settled.miscited,
        cites_none=settled.cites_none,
        is_used=decision.is_used,
        used=decision.used,
    )
    if influence is None:
        return found
    return replace(
        found,
        v_all=influence.v_all,
        v_none=influence.v_none,
        tokens=influence.tokens,
        noise=influence.noise,
        measured_at=first if influence.is_carried else None,
        follow=influence.follow,
    )


def influence_of(premises: Premises, explanation: Explanation) -> Influence | None:
    """What the scorer measured about the span, with the shares from its Shapley values; None: nothing."""
    if premises.v_all is None or premises.v_none is None:
        return None
    at = premises.span if premises.measured_at is None else premises.measured_at
    shares = next(
        (a.shares for a in explanation.attributions if a.span == at and a.method is Method.SHAPLEY), ()
    )
    return Influence(
        v_all=premises.v_all,
        v_none=premises.v_none,
        tokens=premises.tokens,
        noise=premises.noise,
        shares=shares,
        is_carried=premises.measured_at is not None,
        follow=premises.follow,
    )


def finding_of(premises: Premises, support: Support) -> Finding:
    """What the text said of the span, before attribution or a model settled it."""
    return Finding(
        support=replace(support, state=premises.read_state, rule=premises.read_rule),
        conflicts=premises.conflicts,
        borrowed_from=premises.borrowed_from,
        dropped=premises.dropped,
        is_sure=premises.is_sure,
        copied_from=premises.copied_from,
        told_by=premises.told_by,
        miscited=premises.miscited,
        cites_none=premises.cites_none,
    )


def by_probability(finding: Finding, influence: Influence | None, thresholds: Thresholds) -> Finding:
    """The finding with what the calibrated probability settles, where the text alone decides.

    It holds what the rules found already (``fusion.py``), so from ``flag_at`` on what they took for said or
    left open is absent, and below it nothing is: what they missed is said up to ``clear_at``, if a sentence
    can be quoted, and else open. Where a scorer measured the span (``influence``), nothing changes: the
    probability was calibrated on answers that no scorer had read.
    """
    support = finding.support
    p = thresholds.confidence(support.probability, support.model)
    if p is None or influence is not None:
        return finding
    state = support.state
    if thresholds.flag_at is not None and p >= thresholds.flag_at:
        cites_others = finding.miscited or finding.cites_none
        if cites_others or state in (SupportState.ABSENT, SupportState.CONTRADICTED):
            return finding  # a wrong citation is what people mark, and what can be shown
        return _settled(finding, SupportState.ABSENT, LIKELY)
    if state is SupportState.ENTAILED:
        return finding
    is_clear = thresholds.clear_at is not None and p <= thresholds.clear_at
    if is_clear and support.position is not None and state is not SupportState.CONTRADICTED:
        return _settled(finding, SupportState.ENTAILED, UNLIKELY)
    if thresholds.flag_at is None or state is SupportState.UNCLEAR:
        return finding
    return _settled(finding, SupportState.UNCLEAR, f"{UNLIKELY}, against the rules: {support.rule}")


def _settled(finding: Finding, state: SupportState, rule: str) -> Finding:
    return replace(finding, support=replace(finding.support, state=state, rule=rule))


def decide_again(
    explanation: Explanation, premises: Premises, support: Support, span: Span, thresholds: Thresholds
) -> Decided:
    """The verdict that these thresholds give, from what was kept; no model and no corpus is asked."""
    influence = influence_of(premises, explanation)
    finding = settle(
        by_probability(finding_of(premises, support), influence, thresholds), influence, thresholds
    )
    decision = decide(finding.support, influence, thresholds)
    verdict = judge(explanation.trace, span, finding, decision, influence, thresholds)
    return Decided(verdict=verdict, support=finding.support, decision=decision, influence=influence)


def carry_corpus(was: Verdict, before: Verdict, after: Verdict) -> Verdict:
    """``after`` with what the corpus told about ``was``, where the text still finds the same as ``before``.

    ``was``: as stored. ``before`` and ``after``: decided from the text, with the old and the new thresholds.
    Where it finds something else, the corpus was not asked about that, and the cause is the text's.
    """
    if (before.verdict, before.cause) != (after.verdict, after.cause):
        return after
    return replace(
        after,
        verdict=was.verdict,
        cause=was.cause,
        other_causes=was.other_causes,
        explanation=was.explanation,
        fix=was.fix,
        corpus_evidence=was.corpus_evidence,
    )


def cell_name(decision: Decision, state: SupportState) -> str:
    """The cell of the verdict table in words: "used x absent"."""
    row = {True: "used", False: "not used", None: "not measured"}[decision.is_used]
    return f"{row} × {state.value}"
