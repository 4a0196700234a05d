"""Which passages an answer says it is from."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragblame.attribution.citations import bare_citations, cited_sentences, find_citations, only_cites

PIECES = st.sampled_from(
    [
        "Passage 1:",
        "(passages 2-4)",
        "[1]",
        "[2, 3]",
        "the first and second document",
        ". ",
        "\n\n",
        "1. ",
        "it",
    ]
) | st.text(max_size=8)
ANSWERS = st.lists(PIECES, max_size=30).map(" ".join)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("It is 36 months (Passage 2).", [{2}]),
        ("As passages 1 and 3 say, …", [{1, 3}]),
        ("See passages 1, 2, and passage 4.", [{1, 2, 4}]),
        ("Follow Passages 1-4.", [{1, 2, 3, 4}]),
        ("documents 2 to 4 agree", [{2, 3, 4}]),
        ("so it is [3][1, 2].", [{3}, {1, 2}]),
        ("Source #2 and doc no. 5", [{2}, {5}]),
        ("the first and third passages", [{1, 3}]),
        ("Passage 2:2-3 says so", [{2}]),
        ("per Passage [7]", [{7}]),
        ("source 2.5 mm, chunk of 4", []),
        ("the passage of 1900 voters, [sic], [2019]", []),
    ],
)
def test_passages_are_cited_by_number(text: str, numbers: list[set[int]]) -> None:
    """Names, brackets, lists, ranges and ordinals are citations; measures and years are none."""
    assert [set(citation.numbers) for citation in find_citations(text)] == numbers


def test_a_sentence_is_from_what_it_cites() -> None:
    """Also where the citation stands behind the full stop; a heading is of no sentence."""
    text = (
        "Here is how.\n\nPassage 1:\n\n1. Chock your tires.\n2. Use the wrench.\n\n"
        "Passage 2: Pull over. Get out.\n\n"
        "So it is done. It was made in 2019. (As per passage 3) Passage 4 says more."
    )
    assert [(text[one.start : one.end].strip(), set(one.numbers)) for one in cited_sentences(text)] == [
        ("Passage 2: Pull over.", {2}),
        ("It was made in 2019. (As per passage 3)", {3}),
        ("Passage 4 says more.", {4}),
    ]


@pytest.mark.parametrize("text", ["passage 2", "as per passages 1 and 3", "[1]", "Passage 2 says"])
def test_words_that_only_cite_say_nothing(text: str) -> None:
    """There is nothing in them to look for in a chunk."""
    assert only_cites(text)


@pytest.mark.parametrize("text", ["", "Norway, passage 2", "passages", "36 months (passage 2)"])
def test_words_that_say_more_are_claims(text: str) -> None:
    """Also beside a citation."""
    assert not only_cites(text)


@settings(max_examples=200, deadline=None)
@given(ANSWERS)
def test_citations_of_any_text_lie_in_it_and_do_not_overlap(text: str) -> None:
    """Offsets are true of the text, in order, for sentences as for citations; every citation has a number."""
    assert set(bare_citations(text, 0, len(text))) <= {(one.start, one.end) for one in find_citations(text)}
    for found in (find_citations(text), cited_sentences(text)):
        last = 0
        for one in found:
            assert last <= one.start < one.end <= len(text)
            assert one.numbers
            last = one.end


@pytest.mark.parametrize(
    "unit", ["[1] ", "first passage. ", "Passage 1:\n\n", "passage 1, 2 and ", "(passage "]
)
def test_many_citations_take_seconds(unit: str) -> None:
    """No text makes it slow."""
    text = unit * (200_000 // len(unit))
    started = time.process_time()
    find_citations(text)
    cited_sentences(text)
    assert time.process_time() - started < 8  # 0.2 MB; measured 0.1 to 1.2 s
