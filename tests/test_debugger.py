"""One call explains an answer, and says what it could not do instead of doing something else."""

import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from ragblame.attribution.debugger import Debugger
from ragblame.attribution.inputs import ChunkInput
from ragblame.attribution.jobs.attribute import load_debugger
from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import InputError, RagblameError
from ragblame.records import (
    AlignmentState,
    Basis,
    Cause,
    Chunk,
    Explanation,
    Message,
    Method,
    Trace,
    VerdictKind,
)
from ragblame.settings import Settings
from tests.tiny_models import tiny_model, tiny_tokenizer

QUESTION = "What is the port of the Frostridge gateway?"
CHUNKS = (
    "The Frostridge gateway runs in north Arden.",
    "The port of the Frostridge gateway is 2959. Its timeout is 4412 ms.",
    "The port of the Thornfield queue is 7310.",
)
ANSWER = "The port of the Frostridge gateway is 2959."
PROMPT = (
    "Answer the question from the context.\n"
    + "".join(f"- {text}\n" for text in CHUNKS)
    + f"Question: {QUESTION}\nAnswer:"
)


@cache
def small_model() -> Debugger:
    """The shipped small model, as the model that wrote the answers."""
    return Debugger.from_pretrained(is_own_model=True, threads=1)


@cache
def random_model() -> Debugger:
    """A tiny random model: it can explain nothing."""
    return Debugger(TransformersScorer(tiny_model("llama"), tiny_tokenizer(), name="tiny"))


@cache
def explained() -> Explanation:
    """The plain case, with everything recorded."""
    return small_model().explain(question=QUESTION, chunks=CHUNKS, answer=ANSWER, prompt=PROMPT)


def trace_of(answer: str = ANSWER, **changes: Any) -> Trace:
    """A trace of the plain case."""
    trace = Trace(
        id=UUID(int=5),
        app="tests",
        question=QUESTION,
        chunks=tuple(Chunk(position=i, text=text) for i, text in enumerate(CHUNKS)),
        answer=answer,
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return replace(trace, **changes)


@pytest.mark.parametrize(
    ("wrote", "model", "is_own"),
    [
        (["a-model"], "a-model", True),
        (["a-model"], "its-fallback", False),
        (["a-model"], None, False),
        ([], None, False),
        (["*"], None, True),
    ],
)
def test_the_scorer_is_a_stand_in_unless_it_wrote_this_answer(
    wrote: list[str], model: str | None, is_own: bool
) -> None:
    """Of two models of one chain the setting names one: only its answers are said to be the scorer's own."""
    debugger = load_debugger(Settings(scorer_wrote=tuple(wrote), support_model="none", threads=1))
    scorer = debugger.explain_trace(trace_of(model=model)).scorer
    assert scorer is not None
    assert scorer.is_own_model is is_own


def test_a_grounded_value_is_blamed_on_its_chunk() -> None:
    """The chunk that states the port gets the largest share, and the verdict quotes it."""
    explanation = explained()
    [span] = explanation.spans
    [verdict] = explanation.verdicts
    assert ANSWER[span.start : span.end] == "2959"
    assert (verdict.verdict, verdict.cause) == (VerdictKind.GROUNDED, None)
    assert verdict.basis is Basis.ATTRIBUTION_AND_SUPPORT
    [shapley] = [a for a in explanation.attributions if a.method is Method.SHAPLEY]
    assert int(np.argmax(shapley.shares)) == 1
    assert explanation.supports[0].position == 1
    assert {a.state for a in explanation.alignments} == {AlignmentState.EXACT}
    assert explanation.notes == ()
    assert explanation.fitness is not None
    assert explanation.fitness.is_fit


def test_numbers_add_up() -> None:
    """Shares sum to v(all) - v(none) within 1e-4 nats, and both are read off the table of coalitions."""
    explanation = explained()
    [shapley] = [a for a in explanation.attributions if a.method is Method.SHAPLEY]
    assert shapley.reliance is not None
    assert sum(shapley.shares) == pytest.approx(shapley.reliance, abs=1e-4)
    table = explanation.coalitions
    assert table is not None
    assert len(table.masks) == 2 ** len(CHUNKS)
    span = explanation.spans[0]
    tokens = [
        i
        for i, (start, end) in enumerate(zip(table.token_starts, table.token_ends, strict=True))
        if start < span.end and end > span.start
    ]
    rows = {mask: sum(row[i] for i in tokens) for mask, row in zip(table.masks, table.log_probs, strict=True)}
    assert rows[7] - rows[0] == pytest.approx(shapley.reliance, abs=1e-4)
    methods = {a.method for a in explanation.attributions}
    assert methods == {
        *(Method.SHAPLEY, Method.INPUT_X_GRADIENT, Method.ROLLOUT, Method.ROLLOUT_CORRECTED),
    }
    assert {heat.method for heat in explanation.heats} == {Method.INPUT_X_GRADIENT}
    assert explanation.cost.scored_coalitions >= 8
    assert explanation.cost.backwards == 1


def test_a_chunk_that_did_not_reach_the_prompt_gets_nothing() -> None:
    """Evidence that was retrieved and dropped is the cause, and its share is exactly zero."""
    prompt = PROMPT.replace(f"- {CHUNKS[1]}\n", "")
    explanation = small_model().explain(question=QUESTION, chunks=CHUNKS, answer=ANSWER, prompt=prompt)
    assert explanation.alignments[1].state is AlignmentState.MISSING
    [shapley] = [a for a in explanation.attributions if a.method is Method.SHAPLEY]
    assert shapley.shares[1] == 0.0
    [verdict] = explanation.verdicts
    assert verdict.cause is Cause.DROPPED_AFTER_RETRIEVAL
    assert verdict.evidence == (1,)


def test_messages_without_a_prompt_are_assumed_and_said() -> None:
    """No recorded prompt: a default one is assumed, a note says so, and no alignment is claimed."""
    explanation = small_model().explain(question=QUESTION, chunks=CHUNKS, answer=ANSWER)
    assert explanation.alignments == ()
    assert any("default prompt" in note for note in explanation.notes)
    assert explanation.verdicts[0].verdict is VerdictKind.GROUNDED


def test_many_chunks_are_sampled_and_said() -> None:
    """Beyond the limit of exact shares they are sampled: a note says so, and shares come with errors."""
    debugger = Debugger(small_model().scorer, max_exact_chunks=2)
    explanation = debugger.explain(question=QUESTION, chunks=CHUNKS, answer=ANSWER, prompt=PROMPT)
    exact = small_model().explain(question=QUESTION, chunks=CHUNKS, answer=ANSWER, prompt=PROMPT)
    assert any("were sampled from" in note for note in explanation.notes)
    for sampled, whole in zip(explanation.attributions, exact.attributions, strict=True):
        if sampled.method is not Method.SHAPLEY:
            continue
        assert sampled.standard_errors is not None
        assert whole.standard_errors is None
        assert sampled.settings_hash != whole.settings_hash
        assert sampled.shares == pytest.approx(whole.shares, abs=1e-3)  # 3 chunks: all 8 are scored
    assert explanation.verdicts[0].basis is not Basis.SUPPORT_ONLY


def test_too_small_a_budget_leaves_the_text() -> None:
    """Fewer coalitions than any estimate needs: a note names the setting, the text decides."""
    debugger = Debugger(small_model().scorer, max_exact_chunks=2, sampled_coalitions=6)
    explanation = debugger.explain(question=QUESTION, chunks=CHUNKS, answer=ANSWER, prompt=PROMPT)
    assert explanation.coalitions is None
    assert not [a for a in explanation.attributions if a.method is Method.SHAPLEY]
    assert any("RAGBLAME_SAMPLED_COALITIONS" in note for note in explanation.notes)
    assert explanation.verdicts[0].basis is Basis.SUPPORT_ONLY
    assert explanation.heats


def test_work_stops_when_asked() -> None:
    """``should_abort`` is looked at between steps; progress names them in order."""
    steps: list[str] = []
    with pytest.raises(RagblameError, match="stopped on request"):
        small_model().explain_trace(
            trace_of(), should_abort=lambda: "shares" in steps, progress=_noting(steps)
        )
    assert steps[0] == "align"
    assert "verdict" not in steps
    steps.clear()
    small_model().explain_trace(trace_of(), progress=_noting(steps))
    assert list(dict.fromkeys(steps)) == [
        *("align", "support", "fitness", "shares", "saliency", "rollout", "verdict"),
    ]


def _noting(steps: list[str]) -> Any:
    return lambda step, part: steps.append(step)


def test_a_method_that_cannot_serve_becomes_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of one method costs that method alone."""
    from ragblame.attribution.methods import rollout
    from ragblame.errors import UnsupportedArchitectureError

    def refuse(*_: object) -> None:
        raise UnsupportedArchitectureError("rollout cannot serve model type 'odd'")

    monkeypatch.setattr(rollout, "rollout", refuse)
    explanation = small_model().explain(question=QUESTION, chunks=CHUNKS, answer=ANSWER, prompt=PROMPT)
    assert "No rollout: rollout cannot serve model type 'odd'" in explanation.notes
    assert explanation.heats
    assert explanation.verdicts[0].verdict is VerdictKind.GROUNDED


def test_an_unfit_scorer_says_so() -> None:
    """A random model explains nothing: no shares, the text decides, and the reason is there."""
    explanation = random_model().explain(question=QUESTION, chunks=CHUNKS, answer=ANSWER)
    assert explanation.fitness is not None
    assert not explanation.fitness.is_fit
    assert explanation.attributions == ()
    assert {verdict.basis for verdict in explanation.verdicts} == {Basis.SUPPORT_ONLY}
    assert any("cannot explain this answer" in note for note in explanation.notes)


@pytest.mark.parametrize(
    ("answer", "explanation"),
    [
        (
            "Items go back to any store free of charge.",
            "Chunk 1 supports “Items go back to any store free of charge”.",
        ),
        (
            "any store takes items back free of charge.",
            "Chunk 1 says “any store takes items back free of charge”.",
        ),
    ],
)
def test_a_chunk_says_only_what_it_says(answer: str, explanation: str) -> None:
    """Where a chunk puts a clause in other words, the sentence does not have it say the answer's."""
    chunk = "In the north any store takes items back free of charge."
    explained = Debugger.text_only().explain(question="Can I return it?", chunks=[chunk], answer=answer)
    assert [verdict.explanation for verdict in explained.verdicts] == [
        f"{explanation} Only the text was checked."
    ]


def test_text_only_needs_no_model() -> None:
    """Without a scorer the verdict rests on the text and says so."""
    explanation = Debugger.text_only().explain(question=QUESTION, chunks=CHUNKS, answer=ANSWER)
    assert (explanation.scorer, explanation.fitness, explanation.coalitions) == (None, None, None)
    assert explanation.verdicts[0].explanation == "Chunk 2 says “2959”. Only the text was checked."
    wrong = Debugger.text_only().explain(
        question=QUESTION, chunks=CHUNKS, answer="The port of the Frostridge gateway is 2999."
    )
    assert (wrong.verdicts[0].cause, wrong.supports[0].stated) == (Cause.DISTORTION, "2959")


@dataclass(frozen=True)
class Document:
    """What LangChain hands over."""

    page_content: str
    id: str | None = None
    metadata: dict[str, object] = field(default_factory=dict)


def test_chunks_come_as_text_records_or_documents() -> None:
    """Strings, Chunk records and documents mix; identity and plain metadata are kept, order is position."""
    given: list[ChunkInput] = [
        CHUNKS[0],
        Chunk(position=9, text=CHUNKS[1], source_id="row 7"),
        Document(CHUNKS[2], id="abc", metadata={"source": "a.md", "live": object()}),
    ]
    explanation = Debugger.text_only().explain(question=QUESTION, chunks=given, answer=ANSWER)
    chunks = explanation.trace.chunks
    assert [chunk.text for chunk in chunks] == list(CHUNKS)
    assert [chunk.position for chunk in chunks] == [0, 1, 2]
    assert [chunk.source_id for chunk in chunks] == [None, "row 7", "abc"]
    assert chunks[2].metadata == {"source": "a.md"}
    assert explanation.trace.origin == "explain"


@pytest.mark.parametrize("answer", ["", " \n\t"])
def test_an_empty_answer_is_an_error(answer: str) -> None:
    """There is nothing to explain, and the message says what to check."""
    with pytest.raises(InputError, match="empty"):
        Debugger.text_only().explain(question=QUESTION, chunks=CHUNKS, answer=answer)


@pytest.mark.parametrize("chunks", ["one string", [3], [None]])
def test_wrong_chunks_are_an_error(chunks: Any) -> None:
    """What is no chunk is named before anything is computed."""
    with pytest.raises(InputError, match="chunk"):
        Debugger.text_only().explain(question=QUESTION, chunks=chunks, answer=ANSWER)


def test_misnumbered_chunks_are_an_error() -> None:
    """Positions must be places in the trace, or shares would go to the wrong chunk."""
    with pytest.raises(InputError, match="positions"):
        Debugger.text_only().explain_trace(trace_of(chunks=(Chunk(position=1, text="x"),)))


def test_no_chunks_cannot_be_judged() -> None:
    """Nothing was recorded: undetermined, not fabricated."""
    [verdict] = Debugger.text_only().explain(question=QUESTION, chunks=[], answer=ANSWER).verdicts
    assert (verdict.verdict, verdict.cause) == (VerdictKind.UNDETERMINED, Cause.CAPTURE_INCOMPLETE)


@pytest.mark.parametrize("text", ["\x00 5\x00", "\ud800 is 5 \udfff", "\u202e5 שלום", "👩‍👩‍👧 5", "5"])
def test_hostile_text_is_explained(text: str) -> None:
    """NUL bytes, lone surrogates, right-to-left marks and emoji pass through every step with a scorer."""
    explanation = random_model().explain(question=text, chunks=[text, ANSWER], answer=text)
    assert len(explanation.verdicts) == len(explanation.spans) > 0


def test_a_long_answer_takes_seconds_and_is_judged_by_its_text() -> None:
    """An answer beyond the scorer's context is checked by its text, with a note."""
    answer = "The port of the Frostridge gateway is 2959 in Oslo. " * 10_000
    started = time.process_time()
    explanation = small_model().explain(question=QUESTION, chunks=CHUNKS, answer=answer)
    assert time.process_time() - started < 30  # measured 6 s
    assert len(explanation.spans) <= 400
    assert any("rest on the text alone" in note for note in explanation.notes)
    assert any("merged" in note for note in explanation.notes)
    assert {verdict.basis for verdict in explanation.verdicts} == {Basis.SUPPORT_ONLY}


def test_chat_messages_are_aligned() -> None:
    """Chunks in a system message and the question from the user: aligned where they stand."""
    messages = [
        Message(role="system", text="Answer the question from the context.\n" + "\n".join(CHUNKS)),
        Message(role="human", text=QUESTION),
    ]
    explanation = small_model().explain(question=QUESTION, chunks=CHUNKS, answer=ANSWER, prompt=messages)
    assert [alignment.message for alignment in explanation.alignments] == [0, 0, 0]
    for alignment, text in zip(explanation.alignments, CHUNKS, strict=True):
        assert messages[0].text[alignment.start : alignment.end] == text


def test_memory_for_shared_beginnings_is_bounded_by_a_setting_and_shares_stay_the_same() -> None:
    """With room for nothing each coalition is scored by itself: the same shares, and a note says so."""
    roomy, tight = (Debugger.from_pretrained(threads=1, cache_bytes=room) for room in (1 << 29, 0))
    asked = {
        "question": "What is the port of the Kestrel gateway?",
        "chunks": [
            "The port of the Kestrel gateway is 2959.",
            "The Heron cache is hosted in north Selby.",
            "The Onyx index is owned by Ada Berg.",
        ],
        "answer": "The port of the Kestrel gateway is 2959.",
    }
    shared, alone = (debugger.explain(**asked) for debugger in (roomy, tight))  # type: ignore[arg-type]
    assert any("cache_bytes" in note for note in alone.notes)
    assert not any("cache_bytes" in note for note in shared.notes)
    assert alone.cost.tokens > shared.cost.tokens
    for one, other in zip(shared.attributions, alone.attributions, strict=True):
        assert one.shares == pytest.approx(other.shares, abs=1e-4)
