"""A stored prompt repeats no chunk, and is read as it was sent."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragblame.errors import DatabaseError
from ragblame.prompt_parts import prompt_to_parts
from ragblame.records import Chunk, Message, Trace
from ragblame.traces import clean_trace, new_trace_id, read_trace, write_traces

TEXTS = [f"{number} the port of the Kestrel gateway is 2959, and it runs in Oslo" * 3 for number in range(3)]
PROMPT = (
    Message(role="system", text=f"Answer from:\n{TEXTS[2]}\n\n{TEXTS[0]}\nor say 2"),
    Message(role="human", text="Which port? 0"),
    Message(role="ai", text=TEXTS[1]),
)


def make_trace() -> Trace:
    """Three chunks, and a prompt with them in another order."""
    return Trace(
        id=new_trace_id(),
        app="test",
        question="Which port?",
        chunks=tuple(Chunk(position=at, text=text) for at, text in enumerate(TEXTS)),
        prompt=PROMPT,
        answer="2959",
        started_at=datetime.now(UTC),
    )


@given(
    texts=st.lists(st.text("ab \0é", min_size=60, max_size=90), min_size=1, max_size=4),
    glue=st.lists(st.text("ab 1", max_size=5), min_size=6, max_size=6),
    order=st.lists(st.integers(0, 3), max_size=5),
)
def test_a_prompt_is_its_parts(texts: list[str], glue: list[str], order: list[int]) -> None:
    """Parts, with the chunks' texts in their places, are the message; repeated and nested chunks too."""
    chunks = [Chunk(position=7 + at, text=text) for at, text in enumerate(texts)]
    said = "".join(between + texts[at % len(texts)] for between, at in zip(glue, order, strict=False))
    message = Message(role="system", text=said + glue[-1])
    (stored,) = prompt_to_parts([message], chunks)
    assert isinstance(stored, dict)
    assert stored["role"] == "system"
    parts = stored.get("parts", [stored.get("text")])
    assert isinstance(parts, list)
    joined = [part if isinstance(part, str) else texts[int(str(part)) - 7] for part in parts]
    assert "".join(joined) == message.text
    if order and all(len(text) >= 64 for text in texts):
        assert len(joined) > 1 or said in texts


def test_a_stored_prompt_repeats_no_chunk(connection: psycopg.Connection[Any]) -> None:
    """A chunk's text stands in the database once; the prompt is read as it was sent, and so in plain SQL."""
    trace = make_trace()
    assert write_traces(connection, [trace]) == 1
    assert read_trace(connection, trace.id).prompt == PROMPT
    row = connection.execute(
        "SELECT prompt::text, whole_prompt(id, prompt) #>> '{0,text}' FROM trace"
    ).fetchone()
    assert row is not None
    assert "Kestrel" not in row[0]
    assert row[1] == PROMPT[0].text


def test_a_chunk_that_stands_twice_is_read_twice(connection: psycopg.Connection[Any]) -> None:
    """Repeated, side by side and inside another chunk: the prompt comes back to the letter."""
    chunks = tuple(
        Chunk(position=at, text=text) for at, text in enumerate((TEXTS[0], TEXTS[0][3:], TEXTS[1]))
    )
    prompt = (
        Message(role="system", text=TEXTS[0] * 2 + TEXTS[1] * 2 + "\0"),
        Message(role="human", text=f"é{TEXTS[0][3:]}"),
    )
    trace = clean_trace(replace(make_trace(), chunks=chunks, prompt=prompt))
    assert write_traces(connection, [trace]) == 1
    assert read_trace(connection, trace.id).prompt == trace.prompt


def test_a_database_that_cannot_join_parts_is_not_written_to(connection: psycopg.Connection[Any]) -> None:
    """Before its migration nothing is stored that its readers would not understand."""
    connection.execute("DROP FUNCTION whole_prompt(uuid, jsonb)")
    connection.commit()
    with pytest.raises(DatabaseError, match="ragblame migrate"):
        write_traces(connection, [make_trace()])
    assert connection.execute("SELECT count(*) FROM trace").fetchone() == (0,)
