"""The counterfactual: does a model that is sure of a value anyway follow the chunk that states it?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragblame.attribution.debugger import repetitions
from ragblame.attribution.methods.counterfactual import FOILS, foil
from ragblame.attribution.spans import split_spans
from ragblame.attribution.verdicts.table import Influence, asks_counterfactual, decide
from ragblame.attribution.verdicts.thresholds import DEFAULT
from ragblame.records import Support, SupportState, VerdictKind

ENTAILED = Support(span=0, state=SupportState.ENTAILED, rule="number with subject", position=1)
SURE = Influence(v_all=-0.01, v_none=-0.02, tokens=2, noise=0.0, shares=(0.0, 0.01))


@given(st.text(alphabet="0123456789.,:- ", min_size=1).filter(lambda text: any(c.isdigit() for c in text)))
def test_a_foil_of_a_number_keeps_its_shape_and_none_of_its_digits(text: str) -> None:
    other = foil(text)
    assert other is not None
    assert len(other) == len(text)
    for old, new in zip(text, other, strict=True):
        assert (old != new) == old.isdigit()
        assert old.isdigit() == new.isdigit()


@given(st.lists(st.sampled_from([*FOILS, "Ada", "Berg", "crimson", "XML"]), min_size=1, max_size=6))
def test_a_foil_of_words_shares_no_word_with_them_and_keeps_their_case(words: list[str]) -> None:
    other = foil(" ".join(words))
    assert other is not None
    for old, new in zip(words, other.split(), strict=True):
        assert old.casefold() != new.casefold()
        assert old[0].isupper() == new[0].isupper()
        assert new.casefold() not in {word.casefold() for word in words}


@pytest.mark.parametrize("text", ["", "—", "one two three four five six seven"])
def test_a_text_without_a_value_has_no_foil(text: str) -> None:
    assert foil(text) is None


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
        (0.0, VerdictKind.KNOWN_ALREADY, ()),
        (1.0, VerdictKind.UNDETERMINED, ()),
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


def test_a_value_given_twice_is_judged_by_its_first_mention() -> None:
    """Values only, and only equal ones: a clause that comes again is another claim."""
    answer = "The port is 2959. The owner is Ada Berg. Once more, 2959. As ada berg says, the port is 2960."
    spans = split_spans(answer)
    texts = {span.index: answer[span.start : span.end] for span in spans}
    found = {texts[again].casefold(): texts[first] for again, first in repetitions(answer, spans).items()}
    assert found["2959"] == "2959"
    assert "2960" not in found
    assert all(again > first for again, first in repetitions(answer, spans).items())
