"""The stored table answers "without these chunks" exactly as a model would on the prompt without them."""

import io
import json
from dataclasses import replace
from math import exp

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ragblame.attribution.layout import build_layout
from ragblame.attribution.methods.coalitions import all_masks
from ragblame.attribution.methods.shapley import shapley
from ragblame.attribution.methods.what_if import span_value, what_if
from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import InputError
from ragblame.records import CoalitionValues, Method
from ragblame.ui.explain import (
    chunk_positions,
    explanation_table,
    explanation_to_json,
    what_if_table,
    what_if_to_json,
)
from tests.example_cases import CASES, hostile_explanation
from tests.example_explanations import explain
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.tiny_traces import ANSWER, CHUNKS, span_at, tiny_spans, tiny_trace

POSITIONS = (2, 0, 3)  # prompt order differs from retrieval order, chunk 1 is not in the prompt


def table(masks: tuple[int, ...] = all_masks(3)) -> CoalitionValues:
    """Two tokens, "8443" and " is"; v(S) spells S: bit i costs the second token 10**-i when it is missing."""
    return CoalitionValues(
        positions=POSITIONS,
        masks=masks,
        token_starts=(12, 9),
        token_ends=(16, 11),
        log_probs=tuple(
            (-0.5 - sum(10.0**-bit for bit in range(3) if not mask >> bit & 1), -7.0) for mask in masks
        ),
    )


PORT = span_at(ANSWER, "8443", 4)


def test_bits_are_chunks_of_the_prompt() -> None:
    """Positions name chunks, not bits: leaving out 0 and 3 costs what bits 1 and 2 cost."""
    found = what_if(table(), PORT, [3, 0, 3])
    assert found.span == 4
    assert found.without == (0, 3)
    assert found.v_all == pytest.approx(-0.5)
    assert found.v_without == pytest.approx(-0.61)
    assert found.change == pytest.approx(-0.11)
    assert found.probability_all == pytest.approx(exp(-0.5))
    assert found.probability_without == pytest.approx(exp(-0.61))
    assert found.probability_change == pytest.approx(exp(-0.61) - exp(-0.5))


def test_nothing_left_out_changes_nothing() -> None:
    """The empty question has the answer 0, exactly."""
    assert what_if(table(), PORT, []).change == 0.0


@given(st.permutations(range(8)), st.sets(st.sampled_from(POSITIONS)))
def test_the_order_of_rows_does_not_matter(order: list[int], without: set[int]) -> None:
    """A table whose coalitions come in any order gives the same answers."""
    assert what_if(table(tuple(order)), PORT, list(without)) == what_if(table(), PORT, list(without))


def test_a_coalition_that_was_not_scored_is_named() -> None:
    """A sampled table answers what it holds and names the chunks of what it lacks."""
    sampled = table((7, 0, 5))
    assert what_if(sampled, PORT, [0]).change == pytest.approx(-0.1)
    with pytest.raises(InputError, match=r"without chunk 3, 4 \(with chunk 1\) is not among the 3"):
        what_if(sampled, PORT, [2, 3])


def test_a_chunk_outside_the_prompt_is_named() -> None:
    """Chunk 2 was dropped before the prompt, chunk 9 does not exist: neither is silently passed over."""
    with pytest.raises(InputError, match=r"chunk 2, 9 does not stand in the prompt"):
        what_if(table(), PORT, [1, 0, 8])


def test_a_span_of_another_answer_is_refused() -> None:
    """A span that no token touches has no value, which is not the same as 0 nats."""
    with pytest.raises(InputError, match="no token of the answer lies in span 1"):
        what_if(table(), span_at(ANSWER, "on call", 0), [0])


def test_equals_the_model_on_a_prompt_written_without_the_chunks() -> None:
    """The table of real sweeps agrees with scoring a trace that never had those chunks, within 1e-4 nats."""
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())
    layout = build_layout(tiny_trace(), [], scorer.tokenizer)
    spans = tiny_spans()
    values = shapley(scorer, layout, spans).coalitions
    moved = []
    for without in ([0], [1, 2], [0, 1, 2]):
        rest = [text for position, text in enumerate(CHUNKS) if position not in without]
        other = build_layout(tiny_trace(rest), [], scorer.tokenizer)
        row = scorer.score(other, [other.full_mask])[0].astype(np.float64)
        for span in spans:
            found = what_if(values, span, without)
            assert found.v_without == pytest.approx(row[list(other.span_tokens(span))].sum(), abs=1e-4)
            moved.append(abs(found.change))
    assert max(moved) > 0.01
    assert span_value(values, spans[0], 0) == pytest.approx(what_if(values, spans[0], [0, 1, 2]).v_without)


def printed(*parts: object) -> str:
    """What a terminal of 160 columns shows."""
    console = Console(file=io.StringIO(), width=160)
    console.print(*parts)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_the_command_line_counts_chunks_as_the_screens_do() -> None:
    """Numbers 2 and 3 are positions 1 and 2; anything else is named, with the numbers there are."""
    explanation = explain(next(case for case in CASES if len(case.chunks) >= 3))
    count = len(explanation.trace.chunks)
    assert chunk_positions("3,#2, 2", explanation) == (1, 2)
    for wrong in ("0", str(count + 1), "", "1,", "a", "²", "-1", "1 2"):
        with pytest.raises(InputError, match=f"from 1 to {count}"):
            chunk_positions(wrong, explanation)


def test_the_terminal_shows_the_exact_change() -> None:
    """In an additive example the change is minus the share, in nats, and probabilities stand beside it."""
    explanation = explain(next(case for case in CASES if len(case.chunks) >= 2 and not case.missing))
    said = what_if_to_json(explanation, [0])
    json.dumps(said, allow_nan=False)
    shares = {a.span: a.shares for a in explanation.attributions if a.method is Method.SHAPLEY}
    rows = said["spans"]
    assert isinstance(rows, list)
    assert len(rows) == len(explanation.spans) > 0
    shown = printed(what_if_table(explanation, [0]))
    for row in rows:
        assert isinstance(row, dict)
        assert isinstance(row["change"], float)
        assert isinstance(row["span"], int)
        assert row["change"] == pytest.approx(-shares[row["span"]][0])
        assert f"{row['change']:+.2f}" in shown
    assert "without #1" in shown


def test_without_coalitions_the_command_line_says_so() -> None:
    """Text-only explanations answer no what-if and show no surrogate; nothing is made up."""
    explanation = replace(explain(CASES[0]), coalitions=None)
    with pytest.raises(InputError, match="no coalitions were scored"):
        what_if_table(explanation, [0])
    assert explanation_to_json(explanation)["lime"] is None
    assert "LIME" not in printed(explanation_table(explanation))


def test_the_terminal_shows_the_surrogate_with_its_fit() -> None:
    """Additive examples: LIME names the chunk with the largest share, and its R² is 1."""
    explanation = explain(next(case for case in CASES if len(case.chunks) >= 2 and not case.missing))
    said = explanation_to_json(explanation)["lime"]
    json.dumps(said, allow_nan=False)
    assert isinstance(said, list)
    shares = {a.span: a.shares for a in explanation.attributions if a.method is Method.SHAPLEY}
    for row in said:
        assert isinstance(row, dict)
        assert isinstance(row["span"], int)
        np.testing.assert_allclose(np.array(row["shares"], float), shares[row["span"]], atol=1e-6)
        assert row["r_squared"] is None or row["r_squared"] == pytest.approx(1.0)
    assert "R² 1.00" in printed(explanation_table(explanation))


def test_hostile_text_has_no_power_over_the_terminal() -> None:
    """Control characters of the answer come out as signs."""
    shown = printed(what_if_table(hostile_explanation(), [0, 1]))
    assert all(sign.isprintable() or sign == "\n" for sign in shown)
