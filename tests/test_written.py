"""Where the shown answer is not what the model wrote, its own tokens are scored at the shown places."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragblame.attribution.debugger import Debugger
from ragblame.attribution.layout import Layout, build_layout
from ragblame.attribution.written import written
from ragblame.plugin.answer_map import map_answer
from ragblame.records import Basis, Chunk, Method, Trace
from tests.tiny_models import tiny_tokenizer
from tests.tiny_traces import ANSWER, span_at, tiny_trace


def shown_as(answer: str, generated: str, blocks: Any = None) -> Trace:
    """A trace of this answer, with the map that capture makes of it or the one given."""
    found = map_answer(answer, generated) if blocks is None else blocks
    notes: Any = {"answer_map": [list(block) for block in found] if blocks is None else blocks}
    return replace(tiny_trace(answer=answer), generated=generated, metadata={"ragblame": notes})


def laid_out(trace: Trace) -> Layout:
    """With a byte-level tokenizer and the default prompt."""
    return build_layout(trace, [], tiny_tokenizer())


def said(layout: Layout) -> str:
    """What the scored tokens spell."""
    text = layout.tokenizer.decode(list(layout.answer_ids))
    assert isinstance(text, str)
    return text.lstrip()


@pytest.mark.parametrize(
    "generated",
    [
        json.dumps({"answer": ANSWER, "confidence": 0.93}),
        f"Let me see. Final answer: {ANSWER}",
        ANSWER.replace("8443", "8443 (TLS)"),
    ],
    ids=["structured", "prefixed", "edited"],
)
def test_the_models_own_tokens_are_scored_at_the_shown_places(generated: str) -> None:
    """A value's tokens are those the model wrote, in its own surroundings; the rest is in no span."""
    layout = laid_out(shown_as(ANSWER, generated))
    assert said(layout) == generated
    assert layout.answer == ANSWER
    for value in ("8443", "Alice Smith"):
        tokens = layout.span_tokens(span_at(ANSWER, value))
        spelled = layout.tokenizer.decode([layout.answer_ids[token] for token in tokens])
        assert isinstance(spelled, str)
        assert spelled.strip(' "') == value
    assert any("own text was scored" in note for note in layout.notes)
    everything = span_at(ANSWER, ANSWER)
    unshown = layout.tokenizer.decode(
        [layout.answer_ids[t] for t in set(range(len(layout.answer_ids))) - {*layout.span_tokens(everything)}]
    )
    assert isinstance(unshown, str)
    assert "Alice" not in unshown


def test_an_escape_is_the_character_that_it_spells() -> None:
    """A quoted value in JSON keeps the tokens of its escaped quotes."""
    answer = 'It is called "gate\tway" here.'
    layout = laid_out(shown_as(answer, json.dumps({"answer": answer})))
    tokens = layout.span_tokens(span_at(answer, '"gate\tway"'))
    spelled = layout.tokenizer.decode([layout.answer_ids[token] for token in tokens])
    assert isinstance(spelled, str)
    assert json.loads(f'"{spelled.strip()}"') == '"gate\tway"'


def test_words_a_later_step_added_have_no_tokens_and_that_is_said() -> None:
    """A greeting put before the answer was no prediction of the model."""
    answer = f"Thanks for asking! {ANSWER}"
    layout = laid_out(shown_as(answer, ANSWER))
    assert said(layout) == ANSWER
    assert layout.span_tokens(span_at(answer, "Thanks for asking")) == ()
    assert layout.span_tokens(span_at(answer, "8443"))
    assert any("not the model's have no shares" in note for note in layout.notes)


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [[0, 0, 400]],
        [[0, 0]],
        [["0", 0, 5]],
        [[-1, -1, 5]],
        [[0, 3, 10]],
        [[True, 0, 5]],
        [None],
        "x",
        {"a": 1},
        [[0, 0, 3]],
    ],
)
def test_a_map_that_is_not_true_is_not_believed(blocks: Any) -> None:
    """Then the shown answer is scored as before, and the result says so."""
    layout = laid_out(shown_as(ANSWER, "Der Port ist 8443.", blocks))
    assert said(layout) == ANSWER
    assert any("as if the model had written it" in note for note in layout.notes)


def test_an_answer_as_the_model_wrote_it_has_no_note() -> None:
    """The usual case is what it was."""
    layout = laid_out(tiny_trace())
    assert said(layout) == ANSWER
    assert not any("own text" in note for note in layout.notes)


texts = st.text(st.sampled_from('ab 1."\\\n\té😀日\u0301'), max_size=24)


@given(texts, texts, texts, st.booleans())
@settings(max_examples=200, deadline=None)
def test_places_are_true_of_any_texts(answer: str, before: str, after: str, is_json: bool) -> None:
    """A place is inside the shown answer; without escapes it holds only what the model wrote there."""
    generated = json.dumps({"a": answer}) if is_json else before + answer + after
    source = written(shown_as(answer, generated))
    if source.blocks is None:
        return
    for start in range(len(generated)):
        low, high = source.place(start, start + 1)
        assert 0 <= low <= high <= len(answer)
        if high > low and not is_json:
            assert answer[low:high] == generated[start]
    assert source.place(0, len(generated))[1] <= len(answer)


def test_words_that_are_not_the_models_are_judged_by_the_text_alone() -> None:
    """What a later step added is not called known to the model: nothing was measured of it."""
    said = "The port of the Frostridge gateway is 2959."
    answer = f"{said} Maya Lind keeps it."
    chunks = (
        "The port of the Frostridge gateway is 2959. Its timeout is 4412 ms.",
        "The owner of the Thornfield queue is Maya Lind.",
    )
    trace = replace(
        shown_as(answer, said),
        question="What is the port of the Frostridge gateway?",
        chunks=tuple(Chunk(position=index, text=text) for index, text in enumerate(chunks)),
    )
    explanation = Debugger.from_pretrained(is_own_model=True, threads=1).explain_trace(trace)
    basis = {answer[s.start : s.end]: explanation.verdicts[s.index].basis for s in explanation.spans}
    assert basis["2959"] is Basis.ATTRIBUTION_AND_SUPPORT
    assert basis["Maya Lind"] is Basis.SUPPORT_ONLY
    measured = {a.span for a in explanation.attributions if a.method is Method.SHAPLEY}
    assert measured == {s.index for s in explanation.spans if answer[s.start : s.end] == "2959"}
