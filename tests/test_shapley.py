"""Exact Shapley values obey their axioms, equal brute force and shap, and add up on real models."""

from itertools import permutations

import numpy as np
import pytest
import shap
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from ragblame.attribution.layout import build_layout
from ragblame.attribution.methods.coalitions import all_masks, mask_of, members, shapley_weights, sizes
from ragblame.attribution.methods.shapley import exact_shapley, pair_terms, shapley
from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import InputError
from tests.tiny_models import FAMILIES, tiny_model, tiny_tokenizer
from tests.tiny_traces import CHUNKS, DictionaryScorer, tiny_spans, tiny_trace

floats = st.floats(-100, 100, allow_nan=False, width=32)


@st.composite
def games(draw: st.DrawFn, max_players: int = 5) -> NDArray[np.float64]:
    """A table [2**n, 2]: two independent games of 0 to 5 players."""
    n = draw(st.integers(0, max_players))
    return draw(arrays.arrays(np.float64, (1 << n, 2), elements=floats))


def players_of(table: NDArray[np.float64]) -> int:
    """Number of players of a value table."""
    return len(table).bit_length() - 1


@given(games())
def test_efficiency(table: NDArray[np.float64]) -> None:
    """Shares sum to v(all) - v(none)."""
    np.testing.assert_allclose(exact_shapley(table).sum(axis=0), table[-1] - table[0], atol=1e-9)


@given(games(), games(), st.floats(-3, 3))
def test_linearity(one: NDArray[np.float64], other: NDArray[np.float64], factor: float) -> None:
    """Shares of a weighted sum of games are the weighted sum of their shares."""
    rows = min(len(one), len(other))
    one, other = one[:rows], other[:rows]
    np.testing.assert_allclose(
        exact_shapley(one + factor * other),
        exact_shapley(one) + factor * exact_shapley(other),
        atol=1e-8,
    )


@given(games(), st.data())
def test_dummy(table: NDArray[np.float64], data: st.DataObject) -> None:
    """A player who changes nothing gets exactly what it adds alone: nothing."""
    n = players_of(table)
    if n == 0:
        return
    idle = data.draw(st.integers(0, n - 1))
    table = np.stack([table[mask & ~(1 << idle)] for mask in all_masks(n)])
    np.testing.assert_allclose(exact_shapley(table)[idle], 0.0, atol=1e-12)


@given(games(), st.data())
def test_symmetry(table: NDArray[np.float64], data: st.DataObject) -> None:
    """Two players who are interchangeable in every coalition share alike."""
    n = players_of(table)
    if n < 2:
        return
    i, j = data.draw(st.lists(st.integers(0, n - 1), min_size=2, max_size=2, unique=True))

    def swapped(mask: int) -> int:
        kept = mask & ~(1 << i | 1 << j)
        return kept | (mask >> i & 1) << j | (mask >> j & 1) << i

    even = np.stack([(table[mask] + table[swapped(mask)]) / 2 for mask in all_masks(n)])
    shares = exact_shapley(even)
    np.testing.assert_allclose(shares[i], shares[j], atol=1e-9)


@given(games(4))
@settings(max_examples=50)
def test_equals_average_over_all_orders(table: NDArray[np.float64]) -> None:
    """The definition itself: the mean marginal contribution over every order of arrival."""
    n = players_of(table)
    expected = np.zeros((n, 2))
    orders = list(permutations(range(n)))
    for order in orders:
        present = 0
        for player in order:
            expected[player] += (table[present | 1 << player] - table[present]) / len(orders)
            present |= 1 << player
    np.testing.assert_allclose(exact_shapley(table), expected, atol=1e-9)


def test_equals_the_exact_explainer_of_shap() -> None:
    """shap's own exact enumeration gives the same values for 7 players."""
    n = 7
    table = np.random.default_rng(0).normal(size=1 << n)
    bits = 1 << np.arange(n)

    def value(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = table[(rows.astype(int) * bits).sum(axis=1)]
        return found

    explanation = shap.explainers.ExactExplainer(value, np.zeros((1, n)))(np.ones((1, n)))
    np.testing.assert_allclose(exact_shapley(table), explanation.values[0], atol=1e-9)


def test_pair_terms_tell_redundant_from_both_needed() -> None:
    """Duplicates give a negative term, two hops a positive one, independent chunks none."""
    either = np.array([0.0, 8.0, 8.0, 8.0])
    both = np.array([0.0, 0.0, 0.0, 8.0])
    apart = np.array([0.0, 3.0, 5.0, 8.0])
    terms = pair_terms(np.stack([either, both, apart], axis=1))
    np.testing.assert_allclose(terms[0, 1], [-8.0, 8.0, 0.0])
    np.testing.assert_allclose(terms, terms.transpose(1, 0, 2))
    np.testing.assert_allclose(np.diagonal(terms), 0.0)


@given(st.sets(st.integers(0, 19)))
def test_masks_and_members_are_inverse(players: set[int]) -> None:
    """A coalition survives the way to an integer and back."""
    assert set(members(mask_of(players))) == players


@pytest.mark.parametrize("n", range(13))
def test_weights_of_all_coalitions_without_a_player_sum_to_one(n: int) -> None:
    """Shapley weights are a probability over the coalitions a player can join."""
    if n == 0:
        assert all_masks(0) == (0,)
        return
    joinable = [size for mask, size in zip(all_masks(n), sizes(n), strict=True) if not mask & 1]
    assert sum(shapley_weights(n)[size] for size in joinable) == pytest.approx(1.0)


def test_bad_tables_and_too_many_players_are_refused() -> None:
    """A table that is no power of two, or 21 players, raises with the figure."""
    with pytest.raises(InputError, match="not 3"):
        exact_shapley(np.zeros(3))
    with pytest.raises(InputError, match="not 0"):
        exact_shapley(np.zeros(0))
    with pytest.raises(InputError, match="21 chunks"):
        all_masks(21)


def test_known_game_through_the_seam() -> None:
    """A dictionary in the scorer's place: one sweep serves both spans, missing chunks get exactly 0."""
    layout = build_layout(tiny_trace(), [], tiny_tokenizer())
    spans = tiny_spans()
    owner = {index: number for number, span in enumerate(spans) for index in layout.span_tokens(span)}

    def values(mask: int) -> list[float]:
        # span 0 needs chunk 0 or 2 (duplicates); span 1 needs chunk 1 alone
        gain = (6.0 if mask & 0b101 else 0.0, 9.0 if mask & 0b010 else 0.0)
        counts = [list(owner.values()).count(number) for number in (0, 1)]
        return [
            -10.0 + (gain[owner[t]] / counts[owner[t]] if t in owner else 0.0)
            for t in range(len(layout.answer_ids))
        ]

    scorer = DictionaryScorer(values)
    result = shapley(scorer, layout, spans)
    np.testing.assert_allclose(result.attributions[0].shares, [3.0, 0.0, 3.0], atol=1e-5)
    np.testing.assert_allclose(result.attributions[1].shares, [0.0, 9.0, 0.0], atol=1e-5)
    assert result.attributions[0].reliance == pytest.approx(6.0, abs=1e-5)
    assert result.interactions[0][0][2] == pytest.approx(-6.0, abs=1e-5)
    assert [len(masks) for masks in scorer.asked].count(8) == 1
    assert result.coalitions.positions == (0, 1, 2)
    assert result.coalitions.masks == tuple(range(8))
    assert result.attributions[0].noise_floor == pytest.approx(0.0, abs=1e-9)


def test_noise_floor_is_the_spread_of_repeated_scorings() -> None:
    """A scorer that trembles between calls gets a noise floor of that size."""
    layout = build_layout(tiny_trace(CHUNKS[:1]), [], tiny_tokenizer())
    rng = np.random.default_rng(0)
    scorer = DictionaryScorer(lambda mask: list(rng.normal(-5.0, 0.1, len(layout.answer_ids))))
    (span, _) = tiny_spans()
    floors = [shapley(scorer, layout, [span]).attributions[0].noise_floor for _ in range(50)]
    sigma = 0.1 * len(layout.span_tokens(span)) ** 0.5
    assert 0.6 * sigma < float(np.mean(floors)) < 1.4 * sigma


def test_too_many_chunks_names_the_setting() -> None:
    """More chunks than exact enumeration takes: one line that names the setting, nothing is scored."""
    layout = build_layout(tiny_trace([f"chunk {i}" for i in range(11)]), [], tiny_tokenizer())
    scorer = DictionaryScorer({})
    with pytest.raises(InputError, match="RAGBLAME_MAX_EXACT_CHUNKS"):
        shapley(scorer, layout, tiny_spans())
    assert scorer.asked == []


def test_no_chunks_give_no_shares_and_no_reliance() -> None:
    """Nothing retrieved: v(all) is v(none), there is nobody to share with."""
    layout = build_layout(tiny_trace(chunks=()), [], tiny_tokenizer())
    result = shapley(DictionaryScorer({0: [-1.0] * len(layout.answer_ids)}), layout, tiny_spans())
    assert result.attributions[0].shares == ()
    assert result.attributions[0].reliance == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_add_up_on_real_models(family: str) -> None:
    """On tiny models of each family the shares sum to v(all) - v(none), scored apart, within 1e-4 nats."""
    scorer = TransformersScorer(tiny_model(family), tiny_tokenizer())
    layout = build_layout(tiny_trace(), [], scorer.tokenizer)
    spans = tiny_spans()
    result = shapley(scorer, layout, spans)
    ends = scorer.score(layout, [0, layout.full_mask])
    for span, attribution in zip(spans, result.attributions, strict=True):
        tokens = list(layout.span_tokens(span))
        expected = float(ends[1, tokens].sum() - ends[0, tokens].sum())
        assert abs(sum(attribution.shares) - expected) < 1e-4
        assert attribution.completeness_gap is not None
        assert attribution.completeness_gap < 1e-9
        assert attribution.noise_floor < 1e-4
        assert attribution.cost.scored_coalitions >= 8
        assert max(map(abs, attribution.shares)) > 0.01
