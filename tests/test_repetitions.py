"""A value given twice is judged by its first mention; a clause that comes again is another claim."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragblame.attribution.repetitions import repetitions
from ragblame.attribution.spans import split_spans


def found(answer: str, question: str = "") -> list[tuple[str, str]]:
    """The repeated spans of an answer and their first mentions, as texts."""
    spans = split_spans(answer, question)
    texts = {span.index: answer[span.start : span.end] for span in spans}
    return [(texts[again], texts[first]) for again, first in repetitions(answer, spans).items()]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The port is 2959. Once more, 2959.", [("2959", "2959")]),
        ("The owner is Ada Berg. As ADA BERG says, it runs.", [("ADA BERG", "Ada Berg")]),
        (
            "The channel is crimson-beaver. Once more, crimson-beaver.",
            [("Once more, crimson-beaver", "crimson-beaver")],
        ),
        (
            "The limit is 614 requests per second. Once more, 614 requests per second.",
            [("614", "614 requests per second"), ("requests per second", "614 requests per second")],
        ),
    ],
)
def test_a_value_given_twice_is_judged_by_its_first_mention(
    answer: str, expected: list[tuple[str, str]]
) -> None:
    assert found(answer) == expected


@pytest.mark.parametrize(
    "answer",
    [
        "The port is 2959. The other port is 2960.",
        "The audit is on 5 May 2024. There are 5 gateways.",  # a small number stands in many values
        "The gateway forwards every message. The queue forwards every message.",
        "The state is active. Today it is not active.",
    ],
)
def test_other_values_and_whole_clauses_are_claims_of_their_own(answer: str) -> None:
    assert found(answer) == []


@given(st.text(max_size=200))
def test_a_first_mention_stands_before_its_repetition_and_is_none_itself(answer: str) -> None:
    pairs = repetitions(answer, split_spans(answer))
    assert all(first < again and first not in pairs for again, first in pairs.items())
