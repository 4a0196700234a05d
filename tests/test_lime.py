"""LIME equals scikit-learn's weighted ridge, finds additive games exactly and admits what it cannot fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score

from ragblame.attribution.layout import build_layout
from ragblame.attribution.methods.coalitions import all_masks, membership
from ragblame.attribution.methods.lime import (
    draw_coalitions,
    fit_lime,
    fit_surrogate,
    kernel,
    lime,
    lime_from_table,
    r_squared,
)
from ragblame.attribution.methods.shapley import shapley
from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import InputError
from ragblame.records import CoalitionValues, Method
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.tiny_traces import ANSWER, CHUNKS, DictionaryScorer, span_at, tiny_spans, tiny_trace

RNG = np.random.default_rng(7)


def samples(n: int = 6, count: int = 30) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coalitions as LIME draws them, with two games of noise."""
    masks = list(draw_coalitions(n, count, seed=3))
    return membership(n).T[masks].astype(np.float64), np.random.default_rng(5).normal(size=(count, 2))


@pytest.mark.parametrize("ridge", [0.0, 0.3, 1.0])
def test_equals_weighted_ridge_of_scikit_learn(ridge: float) -> None:
    """Weights, intercept and R² are those of the regression that the lime package hands to scikit-learn."""
    inside, values = samples()
    weight = kernel(inside.sum(axis=1), inside.shape[1])
    oracle = Ridge(alpha=ridge, solver="svd") if ridge else LinearRegression()
    oracle.fit(inside, values, sample_weight=weight)
    found = fit_surrogate(inside, values, ridge=ridge)
    np.testing.assert_allclose(found.weights, oracle.coef_.T, atol=1e-9)
    np.testing.assert_allclose(found.intercept, oracle.intercept_, atol=1e-9)
    np.testing.assert_allclose(found.predict(inside), oracle.predict(inside), atol=1e-9)
    for game in range(2):
        expected = r2_score(values[:, game], oracle.predict(inside)[:, game], sample_weight=weight)
        assert found.r_squared[game] == pytest.approx(expected)


def test_the_kernel_is_that_of_the_lime_package() -> None:
    """Cosine distance of the 0/1 vectors times 100, width 25, root of the exponential: as it is coded."""
    n = 5
    for size in range(n + 1):
        inside, ones = np.array([1.0] * size + [0.0] * (n - size)), np.ones(n)
        cosine = inside @ ones / np.sqrt(max(inside.sum(), 1e-300) * n)
        distance = 100 * (1 - cosine)
        assert kernel(size, n) == pytest.approx(np.sqrt(np.exp(-(distance**2) / 25**2)))
    assert kernel(n, n) == 1.0


def test_coalitions_are_drawn_by_how_many_go_and_then_which() -> None:
    """First draws over many seeds: each number removed equally often, each subset of a size equally often."""
    n, draws = 4, 4000
    masks = [draw_coalitions(n, 1, seed=seed)[0] for seed in range(draws)]
    removed = np.bincount([n - mask.bit_count() for mask in masks], minlength=n + 1)
    assert removed[0] == 0
    assert np.abs(removed[1:] / draws - 1 / n).max() < 4 * np.sqrt(0.25 * 0.75 / draws)
    pairs = [masks.count(mask) for mask in range(16) if mask.bit_count() == 2]
    assert np.ptp(pairs) < 8 * np.sqrt(draws / 24)


@given(st.integers(0, 6), st.integers(0, 70), st.sets(st.integers(0, 63)), st.integers(0, 9))
@settings(max_examples=60)
def test_no_coalition_comes_twice(n: int, count: int, known: set[int], seed: int) -> None:
    """Distinct, none that is known, as many as asked for or as there are, the same for the same seed."""
    known = {mask for mask in known if mask < 1 << n}
    drawn = draw_coalitions(n, count, seed=seed, known=known)
    assert len(set(drawn)) == len(drawn) == min(count, (1 << n) - len(known | {(1 << n) - 1}))
    assert not set(drawn) & (known | {(1 << n) - 1})
    assert all(0 <= mask < 1 << n for mask in drawn)
    assert drawn == draw_coalitions(n, count, seed=seed, known=known)


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=14),
    st.floats(-50, 0),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_an_additive_game_is_found_exactly(weights: list[float], base: float, seed: int) -> None:
    """Where every player adds its weight, LIME gives the weights, and R² 1 unless v hardly moves."""
    n = len(weights)

    def score(masks: object) -> NDArray[np.float64]:
        assert isinstance(masks, tuple)
        return np.array([[base + sum(w for i, w in enumerate(weights) if m >> i & 1)] for m in masks])

    found = fit_lime(score, n, seed=seed)
    np.testing.assert_allclose(found.surrogate.weights[:, 0], weights, atol=1e-8)
    if max(map(abs, weights)) > 0.1:
        assert found.surrogate.r_squared[0] == pytest.approx(1.0)
        if n >= 5:
            assert found.held_out_r_squared[0] == pytest.approx(1.0, abs=1e-6)


def test_r_squared_falls_where_chunks_need_each_other() -> None:
    """Parity of six players: no weight per player follows it, and R² says so, on fresh coalitions most."""
    found = fit_lime(lambda masks: np.array([[8.0 * (m.bit_count() % 2)] for m in masks]), 6, samples=32)
    assert found.surrogate.r_squared[0] < 0.6
    assert found.held_out_r_squared[0] < 0.2
    either = fit_lime(lambda masks: np.array([[8.0 * bool(m & 3)] for m in masks]), 6, samples=32)
    assert found.surrogate.r_squared[0] < either.surrogate.r_squared[0] < 0.99


def test_held_out_coalitions_are_not_fitted() -> None:
    """Two changes: of the held-out values moves no weight, of the fitted ones does."""
    table = RNG.normal(size=(1 << 6, 1))
    first = fit_lime(lambda masks: table[list(masks)], 6, samples=20, held_out=10)
    assert not set(first.masks) & set(first.held_out)
    assert (len(first.masks), len(first.held_out)) == (20, 10)
    moved = table.copy()
    moved[list(first.held_out)] += RNG.normal(size=(10, 1))
    second = fit_lime(lambda masks: moved[list(masks)], 6, samples=20, held_out=10)
    np.testing.assert_array_equal(first.surrogate.weights, second.surrogate.weights)
    assert first.held_out_r_squared[0] != second.held_out_r_squared[0]
    inside = membership(6).T[list(first.held_out)].astype(float)
    expected = r2_score(
        table[list(first.held_out)],
        first.surrogate.predict(inside),
        sample_weight=kernel(inside.sum(axis=1), 6),
    )
    assert first.held_out_r_squared[0] == pytest.approx(expected)


def test_a_constant_game_has_no_r_squared() -> None:
    """Nothing varies, nothing can be explained: NaN, neither 0 nor 1."""
    assert np.isnan(r_squared(np.full((5, 1), -3.0), np.full((5, 1), -3.0), np.ones(5))[0])


def test_settings_out_of_range_are_refused() -> None:
    """Each message names the figures."""
    inside, values = samples()
    with pytest.raises(InputError, match="width 0"):
        fit_surrogate(inside, values, width=0)
    with pytest.raises(InputError, match=r"shapes \(30, 6\) and \(29, 2\)"):
        fit_surrogate(inside, values[1:])
    with pytest.raises(InputError, match="samples >= 2"):
        fit_lime(lambda masks: np.zeros((len(masks), 1)), 4, samples=1)


def test_known_game_through_the_seam() -> None:
    """Weights land on the chunks of the prompt, the others get exactly 0, one sweep serves all spans."""
    layout = build_layout(tiny_trace(("a b c.", "", *CHUNKS)), [], tiny_tokenizer())
    assert layout.players == (0, 2, 3, 4)
    spans = tiny_spans()
    port = layout.span_tokens(spans[0])
    gains = (0.0, 6.0, -1.0, 0.0)

    def values(mask: int) -> list[float]:
        gain = sum(g for i, g in enumerate(gains) if mask >> i & 1) / len(port)
        return [-10.0 + (gain if token in port else 0.0) for token in range(len(layout.answer_ids))]

    scorer = DictionaryScorer(values)
    result = lime(scorer, layout, spans)
    found = result.attributions[0]
    assert found.method is Method.LIME
    np.testing.assert_allclose(found.shares, [0.0, 0.0, 6.0, -1.0, 0.0], atol=1e-4)
    assert found.reliance == pytest.approx(5.0, abs=1e-4)
    assert found.completeness_gap is None
    assert found.cost.scored_coalitions == len(scorer.asked[0]) == 16
    assert result.r_squared[0] == pytest.approx(1.0)
    assert result.held_out_r_squared[0] == pytest.approx(1.0)
    assert result.r_squared[1] is None
    assert lime(scorer, layout, spans, seed=1).attributions[0].settings_hash != found.settings_hash
    assert lime(scorer, layout, []).attributions == ()


def test_no_chunk_and_one_chunk() -> None:
    """Nothing retrieved: no shares. One chunk: its share is the whole reliance."""
    layout = build_layout(tiny_trace(chunks=()), [], tiny_tokenizer())
    result = lime(DictionaryScorer({0: [-1.0] * len(layout.answer_ids)}), layout, tiny_spans())
    assert [a.shares for a in result.attributions] == [(), ()]
    layout = build_layout(tiny_trace(CHUNKS[:1]), [], tiny_tokenizer())
    tokens = len(layout.answer_ids)
    result = lime(DictionaryScorer({0: [-2.0] * tokens, 1: [-1.0] * tokens}), layout, tiny_spans())
    for attribution in result.attributions:
        assert attribution.shares[0] == pytest.approx(attribution.reliance)
    assert result.held_out_r_squared == (None, None)


def test_the_stored_table_gives_what_the_model_gave() -> None:
    """LIME on the stored coalitions of a real sweep equals LIME through the scorer, shares and R² alike."""
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())
    layout = build_layout(
        tiny_trace([*CHUNKS, "", "Limits are 250.", "Ask the harbour team."]), [], scorer.tokenizer
    )
    spans = tiny_spans()
    scored = lime(scorer, layout, spans)
    stored = lime_from_table(shapley(scorer, layout, spans).coalitions, spans, 6)
    for one, other in zip(scored.attributions, stored.attributions, strict=True):
        np.testing.assert_allclose(one.shares, other.shares, atol=1e-3)
        assert one.settings_hash == other.settings_hash
        assert one.shares[3] == 0.0
        assert max(map(abs, one.shares)) > 0.01
    assert stored.attributions[0].cost.scored_coalitions == 0
    np.testing.assert_allclose(
        np.array(scored.held_out_r_squared, float), np.array(stored.held_out_r_squared, float), atol=1e-3
    )


def test_a_sampled_table_names_the_coalition_it_lacks() -> None:
    """LIME does not pass over coalitions that were not stored."""
    values = CoalitionValues(
        positions=tuple(range(3)),
        masks=all_masks(3)[:-2],
        token_starts=(0,),
        token_ends=(3,),
        log_probs=((-1.0,),) * 6,
    )
    with pytest.raises(InputError, match="is not among the 6 coalitions"):
        lime_from_table(values, [span_at(ANSWER, "The")], 3)
