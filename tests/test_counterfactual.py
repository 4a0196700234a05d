"""The counterfactual: does a model that is sure of a value anyway follow the chunk that states it?"""

import pytest

from ragblame.attribution.alignment import align_chunks
from ragblame.attribution.debugger import Debugger
from ragblame.attribution.inputs import trace_of
from ragblame.attribution.layout import build_layout
from ragblame.attribution.methods.counterfactual import FOILS, Probe, follow, is_alike
from ragblame.attribution.spans import split_spans
from ragblame.attribution.verdicts.table import Influence, asks_counterfactual, decide
from ragblame.attribution.verdicts.thresholds import DEFAULT
from ragblame.records import Support, SupportState, VerdictKind

ENTAILED = Support(span=0, state=SupportState.ENTAILED, rule="number with subject", position=1)
SURE = Influence(v_all=-0.01, v_none=-0.02, tokens=2, noise=0.0, shares=(0.0, 0.01))


@pytest.mark.parametrize(
    ("piece", "other", "is_one"),
    [
        ("29", "31", True),
        ("29", "310", False),  # as many digits, or the number changes its size
        ("29", "Ada", False),
        ("Ada", "Berg", True),
        ("Ada", "berg", False),
        ("crimson", "jade", True),
        ("crimson", "42", False),
        ("crimson", "", False),
    ],
)
def test_a_foil_has_the_shape_of_what_it_replaces(piece: str, other: str, is_one: bool) -> None:
    assert is_alike(piece, other) is is_one


def claim_of(value: str) -> tuple[str, str, str]:
    """A question, a chunk that states the value, and the answer that gives it."""
    return (
        "What is the port of the Kestrel gateway?",
        f"The port of the Kestrel gateway is {value}.",
        f"The port of the Kestrel gateway is {value}.",
    )


def test_a_model_that_reads_the_chunk_would_write_the_foil_once_the_chunk_says_it() -> None:
    """The shipped model has no memory of this entity: it can only read."""
    question, chunk, answer = claim_of("2959")
    debugger = Debugger.from_pretrained(threads=1)
    scorer = debugger.scorer
    assert scorer is not None
    trace = trace_of(question, [chunk, "The Heron cache is hosted in north Selby."], answer, None)
    layout = build_layout(trace, align_chunks(trace.chunks, trace.prompt), scorer.tokenizer)
    span = next(span for span in split_spans(answer, question) if answer[span.start : span.end] == "2959")
    before = scorer.cost.scored_coalitions
    here, elsewhere = follow(
        scorer,
        layout,
        [Probe(span=span, positions=(0,)), Probe(span=span, positions=(1,))],
    )
    assert here is not None
    assert here > 5
    assert elsewhere is None  # that chunk does not hold the value, so there is nothing to replace
    assert scorer.cost.scored_coalitions == before + len(FOILS)


def test_it_is_asked_only_where_deletion_cannot_tell_reading_from_knowing() -> None:
    assert asks_counterfactual(ENTAILED, SURE, DEFAULT)
    absent = Support(span=0, state=SupportState.ABSENT, rule="no sentence")
    assert not asks_counterfactual(absent, SURE, DEFAULT)
    measurable = Influence(v_all=-0.1, v_none=-9.0, tokens=2, noise=0.0, shares=(0.0, 8.9))
    assert not asks_counterfactual(ENTAILED, measurable, DEFAULT)


@pytest.mark.parametrize(
    ("follow", "verdict", "used"),
    [
        (9.0, VerdictKind.GROUNDED, (1,)),
        (-2.0, VerdictKind.KNOWN_ALREADY, ()),
        (0.01, VerdictKind.UNDETERMINED, ()),
        (None, VerdictKind.KNOWN_ALREADY, ()),
    ],
)
def test_following_the_chunk_makes_a_known_value_grounded_in_it(
    follow: float | None, verdict: VerdictKind, used: tuple[int, ...]
) -> None:
    influence = Influence(v_all=-0.01, v_none=-0.02, tokens=2, noise=0.0, shares=(0.0, 0.01), follow=follow)
    decision = decide(ENTAILED, influence, DEFAULT)
    assert (decision.verdict, decision.used) == (verdict, used)
    assert decision.is_measurable == (follow is not None)
