"""Chunks are found in the prompt where they stand, and nowhere else."""

import random
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragblame.attribution.alignment import align_chunks
from ragblame.attribution.blocks import MIN_PARTIAL
from ragblame.records import Alignment, AlignmentState, Chunk, Message

LONG = "The intake valve of the north basin is opened by hand twice a week, " * 3


def chunks_of(*texts: str, truncated_from: int | None = None) -> list[Chunk]:
    """Chunks with these texts, in order."""
    return [Chunk(position=i, text=t, truncated_from=truncated_from) for i, t in enumerate(texts)]


def prompt_of(*texts: str) -> list[Message]:
    """One message per text."""
    return [Message(role="human", text=text) for text in texts]


def aligned(chunk_texts: list[str], *prompt_texts: str) -> list[tuple[str, int | None, int | None]]:
    """State, message and start of each chunk."""
    found = align_chunks(chunks_of(*chunk_texts), prompt_of(*prompt_texts))
    return [(a.state.value, a.message, a.start) for a in found]


def assert_true_of_text(alignment: Alignment, chunk: Chunk, prompt: list[Message]) -> None:
    """Whatever an alignment claims can be read off the two texts."""
    if alignment.state is AlignmentState.MISSING:
        assert (alignment.message, alignment.start, alignment.end, alignment.found) == (None,) * 4
        return
    assert alignment.message is not None
    assert alignment.start is not None
    assert alignment.end is not None
    assert alignment.found is not None
    there = prompt[alignment.message].text[alignment.start : alignment.end]
    part = chunk.text[alignment.found[0] : alignment.found[1]]
    assert there
    if alignment.state is AlignmentState.EXACT:
        assert there == chunk.text
    elif alignment.state is AlignmentState.NORMALISED:
        assert there.split() == part.split()
        assert part.strip() == chunk.text.strip()
    else:
        present = present_text(alignment, chunk)
        shown = iter("".join(there.split()))
        assert all(char in shown for char in present), "what is called present stands there, in order"
        assert (present[0], present[-1]) == (there[0], there[-1])
        assert len(part) >= MIN_PARTIAL
        # Parts that are not there are told one after the other, none of them empty or of white space alone.
        flat = [edge for pair in alignment.absent for edge in pair]
        assert flat == sorted(flat)
        assert all(chunk.text[start:end].strip() for start, end in alignment.absent)


def present_text(alignment: Alignment, chunk: Chunk) -> str:
    """The visible characters of a chunk that an alignment says stand in the prompt."""
    absent = [range(start, end) for start, end in alignment.absent]
    kept = [c for i, c in enumerate(chunk.text) if not c.isspace() and not any(i in gap for gap in absent)]
    return "".join(kept)


words = st.sampled_from(
    ["port", "2959", "the gateway", "é", "日本", "😀", "\u202e", "x", "port 29", "\x00", "\ud800"]
)
blanks = st.sampled_from([" ", "\n", "  ", "\r\n", "\t"])
texts = st.lists(st.tuples(words, blanks), max_size=40).map(lambda p: "".join(w + b for w, b in p))


@given(st.lists(texts, max_size=5), st.lists(texts, max_size=3), st.data())
@settings(max_examples=150, deadline=None)
def test_claims_are_true_of_the_text(chunk_texts: list[str], extra: list[str], data: st.DataObject) -> None:
    """For any chunks and any prompt made of parts of them, every claimed region holds what is claimed."""
    pieces = list(extra)
    for text in chunk_texts:
        low = data.draw(st.integers(0, len(text)))
        pieces.append(text[low:] if data.draw(st.booleans()) else text)
    prompt = prompt_of("\n- ".join(pieces), *extra)
    chunks = chunks_of(*chunk_texts)
    found = align_chunks(chunks, prompt)
    assert [a.position for a in found] == [c.position for c in chunks]
    for alignment, chunk in zip(found, chunks, strict=True):
        assert_true_of_text(alignment, chunk, prompt)


@given(st.lists(texts.filter(str.strip), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_a_chunk_that_stands_there_is_found(chunk_texts: list[str]) -> None:
    """A chunk written into the prompt behind a bullet is exact or normalised, never missing or partial."""
    found = align_chunks(chunks_of(*chunk_texts), prompt_of("".join(f"\n- {t} |" for t in chunk_texts)))
    assert {a.state for a in found} <= {AlignmentState.EXACT, AlignmentState.NORMALISED}


def test_white_space_is_all_that_may_differ() -> None:
    """Equal up to white space is normalised; outer white space that a template stripped is too."""
    assert aligned(["a  b\n c"], "x a b c y") == [("normalised", 0, 2)]
    assert aligned([" a b "], "x-a b-y") == [("normalised", 0, 2)]
    assert aligned([" a b "], "x a b y") == [("exact", 0, 1)]
    assert aligned(["A b"], "a b") == [("missing", None, None)]


def test_a_short_text_inside_a_longer_word_is_not_found() -> None:
    """“port 29” does not stand in “port 2959”, but “29” behind it is found."""
    assert aligned(["The port is 29"], "The port is 2959.") == [("missing", None, None)]
    assert aligned(["is 29"], "The port is 2959. It is 29.") == [("exact", 0, 21)]


def test_equal_chunks_take_distinct_places_in_order() -> None:
    """Two chunks with one text map to two occurrences, and share the place where there is only one."""
    assert aligned(["Same.", "Other.", "Same."], "- Same.\n- Other.\n- Same.") == [
        ("exact", 0, 2),
        ("exact", 0, 10),
        ("exact", 0, 19),
    ]
    assert aligned(["Same.", "Same."], "only Same. here") == [("exact", 0, 5), ("exact", 0, 5)]


def test_a_quote_in_history_or_question_is_not_the_context() -> None:
    """Where a chunk is also quoted elsewhere, the occurrence beside the other chunks is taken."""
    history, context = "You said: Kestrel is up.", "- Osprey is down.\n- Kestrel is up.\n- Heron is up."
    chunk_texts = ["Osprey is down.", "Kestrel is up.", "Heron is up."]
    expected = [("exact", 1, 2), ("exact", 1, 20), ("exact", 1, 37)]
    assert aligned(chunk_texts, history, context) == expected
    assert aligned(chunk_texts, history, context + "\nIs it true that Kestrel is up.") == expected


def test_the_whole_context_repeated_in_history_means_the_last_turn() -> None:
    """When an earlier turn showed all the chunks, the latest occurrence is the current turn."""
    context = "- Osprey is down.\n- Kestrel is up."
    assert aligned(["Osprey is down.", "Kestrel is up."], context, "ok", context) == [
        ("exact", 2, 2),
        ("exact", 2, 20),
    ]


def test_a_short_chunk_inside_a_long_one_keeps_its_own_place() -> None:
    """A chunk that also stands inside another one maps to its own occurrence, or shares."""
    long = "It runs. Its timeout is 90 s. Ask first."
    assert aligned([long, "Its timeout is 90 s."], f"- {long}\n- Its timeout is 90 s.")[1] == ("exact", 0, 45)
    assert aligned([long, "Its timeout is 90 s."], f"- {long}")[1] == ("exact", 0, 11)


def test_a_chunk_cut_by_the_template_is_partial() -> None:
    """Truncation mid-chunk is partial, and the part that stands there is named."""
    chunk = LONG + "The last words are unique."
    [found] = align_chunks(chunks_of(chunk), prompt_of(f"Context:\n{chunk[:150]}\nQuestion: ?"))
    assert found.state is AlignmentState.PARTIAL
    assert found.found is not None
    assert found.found[0] == 0
    assert 149 <= found.found[1] <= 150


def test_a_text_cut_at_capture_is_partial_at_best() -> None:
    """Nobody knows whether the part that was not captured stands in the prompt."""
    [found] = align_chunks(chunks_of("Kestrel is up.", truncated_from=99), prompt_of("- Kestrel is up."))
    assert (found.state, found.found) == (AlignmentState.PARTIAL, (0, 14))


def test_too_short_a_common_part_is_missing() -> None:
    """A common turn of phrase is not the chunk."""
    assert aligned([LONG], "The intake valve of the north") == [("missing", None, None)]
    assert aligned([""], "anything") == [("missing", None, None)]
    assert aligned(["anything"]) == [("missing", None, None)]


@pytest.mark.parametrize("edit", [False, True])
def test_a_prompt_of_a_megabyte_is_fast(edit: bool) -> None:
    """200 chunks in 1 MB: found whole or in part in well under a second of CPU on a quiet machine."""
    rng = random.Random(0)
    pool = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(3_000)]
    prompt = " ".join(rng.choices(pool, k=155_000))
    parts = [prompt[i * 4_000 + 11 : i * 4_000 + 3_800] for i in range(200)]
    if edit:
        parts = [f"{part[:1_800]}ZZ{part[1_850:]}" for part in parts]
    started = time.process_time()
    found = align_chunks(chunks_of(*parts), prompt_of(prompt))
    assert time.process_time() - started < 3  # measured 0.14 s and 0.5 s
    assert {a.state.value for a in found} == ({"partial"} if edit else {"exact"})


def test_periodic_text_does_not_hang() -> None:
    """Text that repeats itself costs bounded work."""
    started = time.process_time()
    align_chunks(chunks_of(*["a" * 5_000 + "b"] * 50), prompt_of("ab" * 200_000, "a" * 400_000))
    assert time.process_time() - started < 15  # measured 1.2 s
