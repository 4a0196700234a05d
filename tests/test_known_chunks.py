"""A chunk that came before is the same chunk, and secrets stay masked however chunks are remembered."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document

from ragblame.plugin import known_chunks
from ragblame.plugin.known_chunks import KnownChunks
from ragblame.plugin.passages import make_chunk, read_passages
from ragblame.plugin.redaction import FARTHEST, Redactor, is_quiet
from ragblame.records import MASK, Chunk, Message, Trace
from ragblame.trace_json import clean_chunk, clean_trace
from tests.test_traces import make_trace

VALUES = (
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(["", "1", "a\0", "\ud800"])
)
DOCUMENTS = st.builds(
    Document,
    page_content=st.sampled_from(["port 2959", "port 2959\0", "Straße", ""]),
    id=st.sampled_from([None, "1", "2\ud800"]),
    metadata=st.dictionaries(st.sampled_from(["score", "source_table", "id", "a"]), VALUES, max_size=2),
)
SECRETS = (
    "password=hunter2secret", "https://bob:hunter2secret@example.org", "AKIAABCDEFGHIJKLMNOP",
    "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----", "the password is hunter2secret",
)  # fmt: skip
PLAIN = "the port of the Kestrel gateway is two and it runs in Oslo " * 6


@given(documents=st.lists(DOCUMENTS, min_size=1, max_size=30), limit=st.integers(0, 12))
def test_a_remembered_chunk_is_the_one_made_afresh(documents: list[Document], limit: int) -> None:
    """Whatever came before: 1 is not True, 0.0 not -0.0, and a cut text not the whole one."""
    known = KnownChunks(max_chunks=3, max_characters=40)
    for passage in read_passages(documents)[0]:
        fresh = clean_chunk(make_chunk(passage, limit))
        found = known.look_up(passage, limit)
        assert repr(found.chunk) == repr(fresh)
        assert found.is_quiet in (is_quiet(fresh), False)
        assert len(known) <= 6


class Odd(str):
    """A text that calls itself equal to any other."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash("port 2959")


def test_behaviour_is_not_remembered() -> None:
    """Texts, identities and keys that decide themselves what they equal are read each time."""
    known = KnownChunks()
    (plain,) = read_passages([Document("port 2959", id="1", metadata={"a": 1})])[0]
    assert known.look_up(plain, 100).chunk.text == "port 2959"
    for odd in (
        plain._replace(text=Odd("other")),
        plain._replace(identity=Odd("other")),
        plain._replace(metadata={Odd("other"): 1}),
    ):
        chunk = known.look_up(odd, 100).chunk
        assert "other" in (chunk.text, chunk.source_id, *chunk.metadata)
    assert len(known) == 1


@pytest.fixture
def trace() -> Trace:
    """Two chunks with nothing to hide, both in the prompt."""
    chunks = tuple(Chunk(position=at, text=f"{at} {PLAIN}") for at in range(2))
    assert all(is_quiet(chunk) for chunk in chunks)
    prompt = (Message(role="system", text="\n\n".join(chunk.text for chunk in chunks)),)
    return clean_trace(make_trace(chunks=chunks, prompt=prompt, answer="2", question="?", metadata={}))


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("place", range(6))
def test_quiet_chunks_hide_no_secret(trace: Trace, secret: str, place: int) -> None:
    """With quiet chunks told, what is masked is what would be without: beside, between and around them."""
    text = trace.prompt[0].text
    middle = text.index("\n\n")
    at = (0, middle, middle + 1, middle + 2, len(text), middle + 2 + FARTHEST + 3)[place]
    told: dict[str, Any] = {"prompt": (Message(role="system", text=f"{text[:at]} {secret} {text[at:]}"),)}
    given_trace = clean_trace(make_trace(chunks=trace.chunks, answer="2", question="?", metadata={}, **told))
    quick = Redactor().redact(given_trace, quiet={0, 1})
    assert quick == Redactor().redact(given_trace)
    assert MASK in quick.prompt[0].text
    assert Redactor().redact(trace, quiet={0, 1}) is trace


@given(
    split=st.integers(1, 20),
    glue=st.sampled_from(["", " ", "\n", "x"]),
    secret=st.sampled_from([secret for secret in SECRETS if " " not in secret]),
)
def test_a_secret_over_a_chunks_border_is_found(split: int, glue: str, secret: str) -> None:
    """A name at a chunk's end and its value behind it: neither alone tells, the prompt does."""
    head, tail = PLAIN + secret[:split], secret[split:] + PLAIN
    chunks = (Chunk(position=0, text=head), Chunk(position=1, text=tail))
    quiet = {chunk.position for chunk in chunks if is_quiet(chunk)}
    told = clean_trace(
        make_trace(chunks=chunks, prompt=(Message(role="system", text=head + glue + tail),), metadata={})
    )
    assert Redactor().redact(told, quiet=quiet) == Redactor().redact(told)


def test_the_memory_is_bounded() -> None:
    """A host that never retrieves a row twice holds two generations of them, no more."""
    known = KnownChunks()
    for number in range(5_000):
        (passage,) = read_passages([Document(f"{number} " + "x" * 500)])[0]
        known.look_up(passage, 10_000)
    assert len(known) <= 2 * known_chunks.MAX_CHUNKS
    (long,) = read_passages([Document("x" * 30_000)])[0]
    before = len(known)
    assert known.look_up(long, 10_000).chunk.truncated_from == 30_000
    assert len(known) == before


def test_long_texts_are_not_looked_at_together(trace: Trace) -> None:
    """A megabyte beside quiet chunks is looked at text by text: the host's threads run between two."""
    breaths: list[None] = []
    long = clean_trace(replace(trace, answer="plain words " * 100_000))
    assert Redactor().redact(long, quiet={0, 1}, between=lambda: breaths.append(None)) is long
    assert len(breaths) > 3
