"""The verdict table, cell by cell, and the causes that follow from it."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragblame.attribution.verdicts.causes import FIX, judge
from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.severity import HARM, MEASURED
from ragblame.attribution.verdicts.table import Influence, decide
from ragblame.attribution.verdicts.thresholds import DEFAULT, Thresholds
from ragblame.records import (
    Basis,
    Cause,
    Chunk,
    Span,
    SpanKind,
    Support,
    SupportState,
    Trace,
    Verdict,
    VerdictKind,
)

ENTAILED, CONTRADICTED, ABSENT, UNCLEAR = (
    SupportState.ENTAILED,
    SupportState.CONTRADICTED,
    SupportState.ABSENT,
    SupportState.UNCLEAR,
)
ANSWER = "The port is 2959."


def support_of(
    state: SupportState, position: int | None = 0, *, stated: str | None = None, rule: str = "a rule"
) -> Support:
    """A support record."""
    return Support(span=0, state=state, rule=rule, position=position, stated=stated)


def influence_of(
    reliance: float, *shares: float, v_none: float = -8.0, tokens: int = 4, noise: float = 0.0
) -> Influence:
    """What a scorer measured; shares default to all of the reliance on the first chunk."""
    return Influence(
        v_all=v_none + reliance,
        v_none=v_none,
        tokens=tokens,
        noise=noise,
        shares=shares or (reliance, 0.0),
    )


def verdict_of(
    finding: Finding, influence: Influence | None, kind: SpanKind = SpanKind.NUMBER, chunks: int = 2
) -> Verdict:
    """The whole way from finding and influence to the verdict."""
    trace = Trace(
        id=UUID(int=1),
        app="t",
        question="?",
        answer=ANSWER,
        chunks=tuple(Chunk(position=i, text=f"chunk {i}") for i in range(chunks)),
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    span = Span(index=0, start=12, end=16, kind=kind, sentence_start=0, sentence_end=17)
    decision = decide(finding.support, influence, DEFAULT)
    return judge(trace, span, finding, decision, influence, DEFAULT)


@pytest.mark.parametrize(
    ("state", "reliance", "verdict", "cause"),
    [
        (ENTAILED, 8.0, VerdictKind.GROUNDED, None),
        (ENTAILED, 0.2, VerdictKind.KNOWN_ALREADY, None),
        (ENTAILED, -3.0, VerdictKind.KNOWN_ALREADY, None),
        (CONTRADICTED, 8.0, VerdictKind.DISTORTED, Cause.DISTORTION),
        (CONTRADICTED, 0.2, VerdictKind.FABRICATED, Cause.MEMORY_OVERRIDE),
        (ABSENT, 8.0, VerdictKind.DISTORTED, Cause.DISTORTION),
        (ABSENT, 0.2, VerdictKind.FABRICATED, Cause.NO_EVIDENCE_IN_PROMPT),
        (UNCLEAR, 8.0, VerdictKind.UNDETERMINED, Cause.UNDETERMINED),
        (UNCLEAR, 0.2, VerdictKind.UNDETERMINED, Cause.UNDETERMINED),
        (ENTAILED, 1.01, VerdictKind.UNDETERMINED, Cause.UNDETERMINED),
        (ABSENT, 0.99, VerdictKind.UNDETERMINED, Cause.UNDETERMINED),
    ],
)
def test_the_table(state: SupportState, reliance: float, verdict: VerdictKind, cause: Cause | None) -> None:
    """Used or not times supported or not, undetermined near tau or when support is unclear."""
    found = verdict_of(Finding(support=support_of(state, stated="4000")), influence_of(reliance))
    assert (found.verdict, found.cause) == (verdict, cause)
    assert found.basis is Basis.ATTRIBUTION_AND_SUPPORT
    assert found.thresholds_version == DEFAULT.version


@pytest.mark.parametrize(
    ("state", "verdict", "cause"),
    [
        (ENTAILED, VerdictKind.GROUNDED, None),
        (CONTRADICTED, VerdictKind.DISTORTED, Cause.DISTORTION),
        (ABSENT, VerdictKind.FABRICATED, Cause.NO_EVIDENCE_IN_PROMPT),
        (UNCLEAR, VerdictKind.UNDETERMINED, Cause.UNDETERMINED),
    ],
)
def test_without_a_scorer_the_text_decides_and_says_so(
    state: SupportState, verdict: VerdictKind, cause: Cause | None
) -> None:
    """No influence: the basis is the text alone, in the record and in the sentence."""
    found = verdict_of(Finding(support=support_of(state, stated="4000")), None)
    assert (found.verdict, found.cause, found.basis) == (verdict, cause, Basis.SUPPORT_ONLY)
    assert found.explanation.endswith("Only the text was checked.")


def test_a_supporting_chunk_that_was_not_used_is_a_wrong_source() -> None:
    """Right, yet leaning on a chunk that does not say it; one supporting chunk that was used is enough."""
    support = support_of(ENTAILED, 1)
    wrong = verdict_of(Finding(support=support), influence_of(8.0, 8.0, 0.0))
    assert (wrong.verdict, wrong.cause) == (VerdictKind.GROUNDED, Cause.WRONG_SOURCE)
    assert wrong.evidence == (1, 0)
    right = verdict_of(Finding(support=support), influence_of(8.0, 4.0, 4.0))
    assert right.cause is None


def test_sure_without_any_chunk_means_not_measurable() -> None:
    """Above 0.9 per token without chunks, “not used” can only mean “not needed”."""
    sure = verdict_of(Finding(support=support_of(ENTAILED)), influence_of(0.1, v_none=-0.2))
    assert (sure.verdict, sure.reliance_measurable) == (VerdictKind.KNOWN_ALREADY, False)
    unsure = verdict_of(Finding(support=support_of(ENTAILED)), influence_of(0.1, v_none=-8.0))
    assert unsure.reliance_measurable


@pytest.mark.parametrize(
    ("finding", "influence", "cause", "words"),
    [
        (
            Finding(support=support_of(ABSENT, None), dropped=(1,)),
            influence_of(0.1),
            Cause.DROPPED_AFTER_RETRIEVAL,
            "chunk 2",
        ),
        (
            Finding(support=support_of(ENTAILED), conflicts=((1, "4000"),)),
            influence_of(8.0),
            Cause.CONFLICTING_CHUNKS,
            "“4000”",
        ),
        (
            Finding(support=support_of(ABSENT, 1), borrowed_from=(1,)),
            influence_of(8.0, 0.0, 8.0),
            Cause.BORROWED,
            "chunk 2",
        ),
        (
            Finding(support=support_of(CONTRADICTED, 0, stated="4000"), borrowed_from=(1,)),
            influence_of(0.5, -9.0, 9.5),
            Cause.BORROWED,
            "“4000”",
        ),
        (
            Finding(support=support_of(CONTRADICTED, 0, stated="4000"), borrowed_from=(1,)),
            influence_of(8.0, 8.0, 0.0),
            Cause.DISTORTION,
            "“4000”",
        ),
    ],
)
def test_causes_name_their_evidence(finding: Finding, influence: Influence, cause: Cause, words: str) -> None:
    """Each cause fires on its own test, names the chunk or value, and brings its usual fix."""
    found = verdict_of(finding, influence)
    assert found.cause is cause
    assert words in found.explanation
    assert found.fix == FIX[cause]
    assert found.evidence
    assert found.is_flagged


def test_no_chunk_recorded_is_incomplete_capture() -> None:
    """Without any chunk nothing can be said, so nothing is put before a reviewer."""
    found = verdict_of(Finding(support=support_of(ABSENT, None)), None, chunks=0)
    assert (found.verdict, found.cause) == (VerdictKind.UNDETERMINED, Cause.CAPTURE_INCOMPLETE)
    assert not found.is_flagged
    assert found.severity == 0


def test_severity_orders_by_harm() -> None:
    """Contradicted numbers come first, clauses later, right answers with a doubtful source last."""

    def severity(finding: Finding, kind: SpanKind, reliance: float = 8.0) -> float:
        return verdict_of(finding, influence_of(reliance), kind).severity

    wrong = Finding(support=support_of(CONTRADICTED, stated="4000"))
    invented = Finding(support=support_of(ABSENT, None))
    doubtful = Finding(support=support_of(ENTAILED), conflicts=((1, "4000"),))
    assert severity(wrong, SpanKind.NUMBER) == MEASURED
    assert severity(invented, SpanKind.NUMBER, 0.1) > severity(invented, SpanKind.CLAUSE, 0.1)
    assert severity(wrong, SpanKind.CLAUSE) > severity(invented, SpanKind.CLAUSE)
    assert severity(invented, SpanKind.CLAUSE) > severity(doubtful, SpanKind.NUMBER) > 0


numbers = st.floats(-20, 20)


@given(
    st.sampled_from(SupportState),
    st.one_of(st.none(), st.tuples(numbers, numbers, st.floats(-40, 0), st.integers(0, 9), st.floats(0, 1))),
    st.sampled_from(SpanKind),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_every_verdict_is_complete(
    state: SupportState,
    measured: tuple[float, float, float, int, float] | None,
    kind: SpanKind,
    borrowed: bool,
    dropped: bool,
    conflict: bool,
) -> None:
    """Severity in range and only for flagged spans, a sentence always, a fix with every cause."""
    finding = Finding(
        support=support_of(state, stated="4000" if state is CONTRADICTED else None),
        borrowed_from=(1,) if borrowed else (),
        dropped=(1,) if dropped else (),
        conflicts=((1, "4000"),) if conflict else (),
    )
    influence = None
    if measured is not None:
        one, other, v_none, tokens, noise = measured
        influence = influence_of(one + other, one, other, v_none=v_none, tokens=tokens, noise=noise)
    found = verdict_of(finding, influence, kind)
    assert 0 <= found.severity <= 1
    assert (found.severity > 0) == found.is_flagged
    assert found.explanation.endswith(".")
    assert (found.fix is None) == (found.cause is None)
    assert found.cause not in found.other_causes
    assert found.confidence is None
    if found.verdict is VerdictKind.UNDETERMINED:
        assert found.cause in (Cause.UNDETERMINED, Cause.CAPTURE_INCOMPLETE)


def test_tables_cover_every_member() -> None:
    """Each kind has its harm and each cause its usual fix."""
    assert set(HARM) == set(SpanKind)
    assert set(FIX) == set(Cause)


def test_thresholds_are_data() -> None:
    """Another tau gives another verdict, and the verdict names the version."""
    support, influence = support_of(ENTAILED), influence_of(2.0)
    strict = Thresholds(version="strict-1", tau_nats=3.0)
    assert decide(support, influence, DEFAULT).verdict is VerdictKind.GROUNDED
    assert decide(support, influence, strict).verdict is VerdictKind.KNOWN_ALREADY
