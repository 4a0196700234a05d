"""Cutting a text at the borders of marks loses nothing, whatever the marks."""

from hypothesis import given
from hypothesis import strategies as st

from ragblame.ui.components.segments import cut_segments

TEXTS = st.text(alphabet=st.sampled_from("ab é👩‍🚀\u0301\u202e\r\n\u200b<&"), max_size=60)
MARKS = st.lists(st.tuples(st.integers(-5, 70), st.integers(-5, 70)), max_size=12)


@given(TEXTS, MARKS)
def test_pieces_join_to_the_text(text: str, marks: list[tuple[int, int]]) -> None:
    """The pieces in order are the text, however marks overlap, nest, repeat or lie outside."""
    pieces = cut_segments(text, marks)
    assert "".join(piece.text for piece in pieces) == text
    assert all(piece.text for piece in pieces)
    at = 0
    for piece in pieces:
        assert piece.start == at
        at += len(piece.text)


@given(TEXTS, MARKS)
def test_each_code_point_lies_in_exactly_its_marks(text: str, marks: list[tuple[int, int]]) -> None:
    """A piece names a mark if and only if the mark covers all of it (brute force over code points)."""
    for piece in cut_segments(text, marks):
        for at in range(piece.start, piece.start + len(piece.text)):
            covering = tuple(i for i, (start, end) in enumerate(marks) if start <= at < end)
            assert piece.marks == covering


@given(TEXTS, MARKS)
def test_pieces_are_as_few_as_possible(text: str, marks: list[tuple[int, int]]) -> None:
    """There are no more pieces than borders inside the text make necessary."""
    borders = {at for start, end in marks if start < end for at in (start, end) if 0 < at < len(text)}
    assert len(cut_segments(text, marks)) == (len(borders) + 1 if text else 0)


def test_a_megabyte_with_many_marks_is_cut_quickly() -> None:
    """A long answer with ten thousand spans is cut without a loop over all pairs."""
    text = "word " * 200_000
    marks = [(at * 100, at * 100 + 40) for at in range(10_000)]
    pieces = cut_segments(text, marks)
    assert len(pieces) == 20_000
