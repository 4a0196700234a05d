"""A right value under a wrong number: found where the prompt numbers its chunks, and only there."""

import json
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from ragblame.attribution.alignment import align_chunks
from ragblame.attribution.debugger import Debugger
from ragblame.attribution.jobs.stored_premises import premises_from_json, premises_to_json
from ragblame.attribution.verdicts.miscited import numbered_chunks
from ragblame.attribution.verdicts.provenance import trace_verdicts
from ragblame.attribution.verdicts.thresholds import DEFAULT
from ragblame.records import Cause, Chunk, Explanation, Message, Trace, Verdict, VerdictKind
from ragblame.ui.why import sections

CHUNKS = (
    "The Orion pump was released in March 2019 by a company in Norway, and it weighs 12 kg.",
    "The warranty of the Orion pump is 36 months from the date of purchase.",
    "The Orion pump needs 230 volts. It is repaired in Bergen.",
)
QUESTION = "How long is the warranty of the Orion pump?"
NUMBERED = "".join(f"passage {number}:{text}\n\n" for number, text in enumerate(CHUNKS, 1))


def explain(answer: str, prompt: str = NUMBERED) -> Explanation:
    return Debugger.text_only().explain(
        question=QUESTION, chunks=CHUNKS, answer=answer, prompt=f"{prompt}\n\nAnswer: {QUESTION}"
    )


def verdict_on(explanation: Explanation, words: str) -> Verdict:
    answer = explanation.trace.answer
    [span] = [span for span in explanation.spans if answer[span.start : span.end] == words]
    return explanation.verdicts[span.index]


def test_a_right_value_under_a_wrong_number_is_a_wrong_source() -> None:
    """The verdict says which chunk has it and which was named; both are evidence."""
    verdict = verdict_on(explain("The warranty of the Orion pump is 36 months (passage 1)."), "36 months")
    assert (verdict.verdict, verdict.cause) == (VerdictKind.GROUNDED, Cause.WRONG_SOURCE)
    assert verdict.explanation == (
        "Chunk 2 says “36 months”, but the answer cites chunk 1, which does not. Only the text was checked."
    )
    assert set(verdict.evidence) == {0, 1}
    assert verdict.is_flagged
    assert 0 < verdict.severity < 0.5  # below a wrong value


@pytest.mark.parametrize(
    "answer",
    [
        "The warranty of the Orion pump is 36 months (passage 2).",
        "The warranty of the Orion pump is 36 months (passages 1 and 2).",
        "The warranty of the Orion pump is 36 months.",
        "The warranty of the Orion pump is 36 months. Passage 1 names Norway.",
        "Passage 1:\n\n- The warranty of the Orion pump is 36 months.",  # below a heading much is added
    ],
)
def test_what_is_cited_rightly_or_not_at_all_is_no_wrong_source(answer: str) -> None:
    """One of several cited chunks is enough, and a citation goes with its own sentence only."""
    assert verdict_on(explain(answer), "36 months").cause is None


def test_a_passage_that_there_is_not_is_a_wrong_source() -> None:
    """Three passages, and the answer cites the seventh; kept in the premises, traced and shown."""
    explanation = explain("The warranty of the Orion pump is 36 months (passage 7).")
    verdict = verdict_on(explanation, "36 months")
    assert (verdict.verdict, verdict.cause) == (VerdictKind.GROUNDED, Cause.WRONG_SOURCE)
    assert verdict.explanation == (
        "Chunk 2 says “36 months”, but the answer cites 7: no chunk has that number. "
        "Only the text was checked."
    )
    for premises in explanation.premises:
        assert premises_from_json(premises.span, json.loads(premises_to_json(premises))) == premises
    traced = trace_verdicts(explanation, {DEFAULT.version: DEFAULT}, {})
    assert not any(one.problems for one in traced)
    [wrong] = [one for one in traced if one.words == "36 months"]
    assert wrong.cites_none == (7,)
    facts = [fact for section in sections(wrong) for fact in section.facts]
    assert ("Cited instead", "7: a number that no chunk has in the prompt") in facts


def test_a_number_that_a_chunk_names_is_only_repeated() -> None:
    """A footnote of the document itself, "[12]", is copied along: no citation of ours."""
    chunks = (CHUNKS[0], "The warranty of the Orion pump is 36 months.[12]", CHUNKS[2])
    prompt = "".join(f"[{number}] {text}\n" for number, text in enumerate(chunks, 1))
    answer = "The warranty of the Orion pump is 36 months [12]."
    explanation = Debugger.text_only().explain(question=QUESTION, chunks=chunks, answer=answer, prompt=prompt)
    assert verdict_on(explanation, "36 months").cause is None


def test_the_citation_itself_is_looked_for_in_no_chunk() -> None:
    """Chunk 2 does not "say" the words "passage 1"."""
    verdict = verdict_on(explain("The warranty of the Orion pump is 36 months (passage 1)."), "passage 1")
    assert verdict.explanation.startswith("Nothing to check in “passage 1”: it only names passages.")
    assert not verdict.is_flagged


def test_a_wrong_value_stays_a_wrong_value() -> None:
    """Under whatever number."""
    verdict = verdict_on(explain("The warranty of the Orion pump is 24 months (passage 1)."), "24 months")
    assert verdict.cause is not Cause.WRONG_SOURCE
    assert verdict.is_flagged


@pytest.mark.parametrize(
    ("prompt", "is_numbered"),
    [
        ("".join(f"[{n}] {text}\n" for n, text in enumerate(CHUNKS, 1)), True),
        ("".join(f'<document index="{n}">\n{text}\n</document>\n' for n, text in enumerate(CHUNKS, 1)), True),
        ("".join(f"Source {n} (notes/{n}.md)\n{text}\n\n" for n, text in enumerate(CHUNKS, 1)), True),
        ("\n\n".join(CHUNKS), False),
        ("".join(f"passage 1:{text}\n\n" for text in CHUNKS), False),
        (f"passage 1:{CHUNKS[0]}\n\n{CHUNKS[1]}\n\n{CHUNKS[2]}", False),
    ],
)
def test_numbers_mean_what_the_prompt_says(prompt: str, is_numbered: bool) -> None:
    """Without a number of its own for every chunk, no citation is checked."""
    verdict = verdict_on(explain("The warranty of the Orion pump is 36 months [1].", prompt), "36 months")
    assert (verdict.cause is Cause.WRONG_SOURCE) is is_numbered


def test_chunks_in_another_order_keep_the_prompts_numbers() -> None:
    """A reranker put the second chunk first, and the prompt counts from 0."""
    chunks = tuple(Chunk(position=position, text=text) for position, text in enumerate(CHUNKS))
    text = f"Document 0: {CHUNKS[1]}\nDocument 1: {CHUNKS[0]}\nDocument 2: {CHUNKS[2]}\n"
    trace = Trace(
        id=uuid4(),
        app="test",
        started_at=datetime.now(UTC),
        question=QUESTION,
        chunks=chunks,
        prompt=(Message(role="human", text=text),),
    )
    assert numbered_chunks(trace, align_chunks(trace.chunks, trace.prompt)) == {0: 1, 1: 0, 2: 2}


def test_the_verdict_is_decided_again_from_what_was_kept() -> None:
    """The premises hold the wrong citation, through JSON too, so that nothing has to be read again."""
    explanation = explain("The warranty of the Orion pump is 36 months (passage 1).")
    for premises in explanation.premises:
        assert premises_from_json(premises.span, json.loads(premises_to_json(premises))) == premises
    assert any(premises.miscited == (0,) for premises in explanation.premises)
    traced = trace_verdicts(explanation, {DEFAULT.version: DEFAULT}, {})
    assert not any(one.problems for one in traced)
    [wrong] = [one for one in traced if one.miscited]
    assert ("Cited instead", "chunk 1") in [fact for section in sections(wrong) for fact in section.facts]
