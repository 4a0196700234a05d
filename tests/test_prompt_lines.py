"""The prompt at fault: values that stand outside the chunks, and sentences that ask for memory."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragblame.attribution.debugger import Debugger
from ragblame.attribution.verdicts.causes import judge
from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.table import Influence, decide
from ragblame.attribution.verdicts.thresholds import DEFAULT
from ragblame.records import (
    Cause,
    Chunk,
    Message,
    PromptLine,
    Span,
    SpanKind,
    Support,
    SupportState,
    Trace,
    Verdict,
)
from ragblame.traces import new_trace_id

QUESTION = "What port does the Kestrel gateway listen on?"
ANSWER = "The Kestrel gateway listens on port 9999."
OTHER = "The Osprey cache keeps its entries in memory."
GOLD = "The Kestrel gateway listens on port 8443."


def asked(system: str, *chunks: str, history: tuple[Message, ...] = ()) -> tuple[Trace, Verdict | None]:
    """The answer under these instructions and chunks, and the verdict on it where it is flagged."""
    told = "\n".join(chunks)
    trace = Trace(
        id=new_trace_id(),
        app="t",
        question=QUESTION,
        answer=ANSWER,
        chunks=tuple(Chunk(position=place, text=text) for place, text in enumerate(chunks)),
        prompt=(
            Message(role="system", text=system),
            *history,
            Message(role="human", text=f"{told}\n\n{QUESTION}"),
        ),
        started_at=datetime.now(UTC),
    )
    flagged = [v for v in Debugger.text_only().explain_trace(trace).verdicts if v.is_flagged]
    return trace, flagged[0] if flagged else None


def lines(trace: Trace, verdict: Verdict) -> list[str]:
    """The guilty lines, as they stand in the prompt."""
    return [trace.prompt[line.message].text[line.start : line.end] for line in verdict.prompt_evidence]


def test_a_value_in_the_instructions_is_the_prompts_fault() -> None:
    """An example in the system message says it, no chunk does: the line is quoted."""
    example = "Example: The Kestrel gateway listens on port 9999."
    trace, verdict = asked(f"Answer briefly. {example}", OTHER)
    assert verdict is not None
    assert verdict.cause is Cause.PROMPT
    assert lines(trace, verdict) == [example]
    assert "message 1 (system)" in verdict.explanation


def test_a_value_in_the_history_is_the_prompts_fault() -> None:
    """What an earlier turn of the conversation says is prompt, too."""
    earlier = (
        Message(role="human", text="Tell me about the Kestrel gateway."),
        Message(role="ai", text="The Kestrel gateway listens on port 9999. It is a proxy."),
    )
    trace, verdict = asked("Answer briefly.", GOLD, history=earlier)
    assert verdict is not None
    assert verdict.cause is Cause.PROMPT
    assert "8443" in verdict.explanation
    assert lines(trace, verdict) == ["The Kestrel gateway listens on port 9999."]


@pytest.mark.parametrize(
    "system",
    [
        "Answer briefly.",
        "Example: The Osprey cache listens on port 9999.",  # another subject
        "Example: The Kestrel scheduler listens on port 9999.",  # a sibling
        "Example: The Kestrel gateway listens on port 7070.",  # another value
    ],
)
def test_a_prompt_that_does_not_say_it_is_not_at_fault(system: str) -> None:
    """Neither other subjects nor other values in the instructions explain the answer."""
    _, verdict = asked(system, OTHER)
    assert verdict is not None
    assert Cause.PROMPT not in (verdict.cause, *verdict.other_causes)


def test_the_question_and_the_chunks_are_not_lines_of_the_prompt() -> None:
    """What chunks say stands in the prompt as well, and is support, not a fault of the prompt."""
    _, verdict = asked("Answer briefly.", ANSWER)
    assert verdict is None


@pytest.mark.parametrize(
    "told",
    [
        "Answer from memory.",
        "Answer from your own knowledge, quickly.",
        "Use only your general knowledge.",
        "Ignore the documents below.",
        "Do not use the provided context.",
        "Answer with what you already know.",
        "Answer without looking at the passages.",
        "Rely on your training data.",
    ],
)
def test_an_order_to_answer_from_memory_is_the_prompts_fault(told: str) -> None:
    """The chunk says otherwise, and the prompt asked for memory: the order is quoted."""
    trace, verdict = asked(f"You are helpful. {told}", GOLD)
    assert verdict is not None
    assert verdict.cause is Cause.PROMPT
    assert lines(trace, verdict) == [told]


@pytest.mark.parametrize(
    "told",
    [
        "Do not answer from memory.",
        "Never use your own knowledge.",
        "Answer only from the context, not from memory.",
        "Rely on the passages instead of your own knowledge.",
        "Do not ignore the documents.",
        "Use the context below.",
        "If the context does not tell, use your own knowledge.",
        "Answer without using more than one sentence.",
    ],
)
def test_an_order_to_read_is_not_at_fault(told: str) -> None:
    """A chunk says otherwise and the prompt did not ask for memory, or only where no chunk tells."""
    _, verdict = asked(f"You are helpful. {told}", GOLD)
    assert verdict is not None
    assert Cause.PROMPT not in (verdict.cause, *verdict.other_causes)


def test_leave_to_use_memory_explains_what_no_chunk_tells() -> None:
    """ "If the context does not tell, use your own knowledge", and it does not tell."""
    _, verdict = asked("If the context does not tell, use your own knowledge.", OTHER)
    assert verdict is not None
    assert verdict.cause is Cause.PROMPT
    assert "from memory" in verdict.explanation


@pytest.mark.parametrize(
    ("state", "reliance", "cause", "others"),
    [
        (SupportState.CONTRADICTED, 0.1, Cause.PROMPT, Cause.MEMORY_OVERRIDE),
        (SupportState.CONTRADICTED, 8.0, Cause.DISTORTION, Cause.PROMPT),  # a chunk was read, and misread
        (SupportState.ABSENT, 0.1, Cause.PROMPT, Cause.NO_EVIDENCE_IN_PROMPT),
    ],
)
def test_where_it_stands_among_the_causes(
    state: SupportState, reliance: float, cause: Cause, others: Cause
) -> None:
    """An order to answer from memory explains why memory won, never why a chunk was misread."""
    line = PromptLine(message=0, start=0, end=6)
    support = Support(span=0, state=state, rule="a rule", position=0, stated="8443")
    trace = Trace(
        id=new_trace_id(),
        app="t",
        question=QUESTION,
        answer=ANSWER,
        chunks=(Chunk(position=0, text=GOLD),),
        prompt=(Message(role="system", text="Forget"),),
        started_at=datetime.now(UTC),
    )
    span = Span(index=0, start=31, end=40, kind=SpanKind.NUMBER, sentence_start=0, sentence_end=41)
    influence = Influence(v_all=-8 + reliance, v_none=-8.0, tokens=4, noise=0.0, shares=(reliance,))
    finding = Finding(support=support, told_by=(line,))
    verdict = judge(trace, span, finding, decide(support, influence, DEFAULT), influence, DEFAULT)
    assert verdict.cause is cause
    assert others in verdict.other_causes
    assert verdict.prompt_evidence == (line,)
    plain = replace(finding, told_by=())
    before = judge(trace, span, plain, decide(support, influence, DEFAULT), influence, DEFAULT)
    assert Cause.PROMPT not in (before.cause, *before.other_causes)


@given(system=st.text(max_size=80), told=st.text(max_size=40))
def test_any_prompt_is_data(system: str, told: str) -> None:
    """Whatever the prompt holds, nothing is raised and every guilty line lies within its message."""
    trace, verdict = asked(f"{system} Answer from memory. {told}", OTHER)
    assert verdict is not None
    for line in verdict.prompt_evidence:
        text = trace.prompt[line.message].text
        assert 0 <= line.start < line.end <= len(text)
        assert text[line.start : line.end].strip() == text[line.start : line.end]
