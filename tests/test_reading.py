"""Where the text leaves it open whose value it is, what the model read decides."""

import pytest

from ragblame.attribution.debugger import Debugger
from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.reading import RULE, settle
from ragblame.attribution.verdicts.table import Influence
from ragblame.attribution.verdicts.thresholds import DEFAULT
from ragblame.records import Cause, Support, SupportState, VerdictKind

UNCLEAR = Finding(
    support=Support(span=0, state=SupportState.UNCLEAR, rule="name stands without its subject", position=1),
    borrowed_from=(1,),
)


def influence(*shares: float, reliance: float = 9.0) -> Influence:
    return Influence(v_all=-0.1, v_none=-0.1 - reliance, tokens=2, noise=0.01, shares=shares)


def test_a_value_read_from_the_sentence_about_another_subject_is_supported_by_none() -> None:
    settled = settle(UNCLEAR, influence(0.1, 8.9), DEFAULT).support
    assert (settled.state, settled.rule, settled.position) == (SupportState.ABSENT, RULE, 1)


@pytest.mark.parametrize(
    "measured",
    [None, influence(8.9, 0.1), influence(0.0, 0.0, reliance=0.0), influence(0.1, -8.9, reliance=-8.8)],
    ids=["not measured", "another chunk was read", "nothing was read", "it argues against"],
)
def test_without_that_the_doubt_stays(measured: Influence | None) -> None:
    assert settle(UNCLEAR, measured, DEFAULT) is UNCLEAR


def test_a_doubt_about_a_sentence_of_the_subject_itself_stays() -> None:
    own = Finding(support=UNCLEAR.support)
    assert settle(own, influence(0.1, 8.9), DEFAULT) is own


def test_the_shipped_model_is_caught_borrowing_from_a_sibling() -> None:
    """Nobody states the channel of the Onyxspring index; the model takes its sibling's, and says so here."""
    answer = "The alert channel of the Onyxspring index is jade-beaver."
    explanation = Debugger.from_pretrained(threads=1).explain(
        question="Where do alerts of the Onyxspring index go?",
        chunks=[
            "The Heron cache is hosted in north Selby.",
            "Incidents on the Snowspring index are posted in jade-beaver. Read the post-mortem before "
            "changing it.",
        ],
        answer=answer,
    )
    span = next(one for one in explanation.spans if answer[one.start : one.end] == "jade-beaver")
    verdict = explanation.verdicts[span.index]
    assert explanation.supports[span.index].rule == RULE
    assert (verdict.verdict, verdict.cause) == (VerdictKind.DISTORTED, Cause.BORROWED)
    assert verdict.evidence[0] == 1
