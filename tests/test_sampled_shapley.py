"""Sampled Shapley values converge on exact ones, know their own error, and spend only what they need."""

from collections.abc import Callable, Sequence
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ragblame.attribution.evaluation.ablation_baselines import kernel_shap
from ragblame.attribution.layout import build_layout
from ragblame.attribution.methods.coalitions import membership
from ragblame.attribution.methods.sampled_shapley import (
    SampledGames,
    draw_pairs,
    least_budget,
    pair_interactions,
    sample_games,
    sampled_shapley,
)
from ragblame.attribution.methods.shapley import exact_shapley
from ragblame.errors import InputError
from tests.tiny_models import tiny_tokenizer
from tests.tiny_traces import DictionaryScorer, tiny_spans, tiny_trace

Array = NDArray[np.float64]


def sampled(
    table: Array, budget: int, *, precision: float = 0.0, seed: int = 0, groups_tail: bool = True
) -> SampledGames:
    """The games of a table [2**n, ...] sampled; asks for no coalition twice."""
    columns = table.reshape(len(table), -1)
    asked: set[int] = set()

    def values(masks: Sequence[int]) -> Array:
        assert not asked & set(masks)
        assert len(set(masks)) == len(masks)
        asked.update(masks)
        found: Array = columns[list(masks)]
        return found

    n = len(table).bit_length() - 1
    return sample_games(values, n, budget=budget, precision=precision, seed=seed, groups_tail=groups_tail)


def attention_game(n: int, rng: np.random.Generator) -> Array:
    """What a span of three tokens does as chunks compete for attention: few state a token, all distract."""
    inside = membership(n).T.astype(np.float64)
    total = np.zeros(1 << n)
    for _ in range(3):
        states = np.exp(rng.normal(-1, 2, n)) * (rng.random(n) < 3 / n)
        distracts = np.exp(rng.normal(-2, 1.5, n))
        total += np.log((0.02 + inside @ states) / (1 + inside @ (states + distracts)))
    return total


def copies_game(n: int, rng: np.random.Generator) -> Array:
    """Three copies of one fact, two chunks that are needed together, small effects of all."""
    inside = membership(n).T.astype(np.float64)
    order = rng.permutation(n)
    either, both = inside[:, order[:3]].max(axis=1), inside[:, order[3:5]].min(axis=1)
    found: Array = 6 * either + 4 * both + inside @ rng.normal(0, 0.3, n)
    return found + rng.normal(0, 0.05, 1 << n)


def dense_game(n: int, rng: np.random.Generator) -> Array:
    """No structure at all: every coalition its own draw."""
    return rng.normal(size=1 << n)


GAMES: tuple[Callable[[int, np.random.Generator], Array], ...] = (attention_game, copies_game, dense_game)


@given(st.integers(0, 7), st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_all_coalitions_give_exact_shares(n: int, seed: int) -> None:
    """With every coalition known the shares are exact Shapley and nothing is left unknown."""
    table = np.random.default_rng(seed).normal(size=(1 << n, 2))
    found = sampled(table, 1 << n, seed=seed)
    assert len(found.masks) == 1 << n
    np.testing.assert_allclose(found.shares, exact_shapley(table), atol=1e-9)
    assert found.errors.max(initial=0.0) < 1e-6


@given(st.integers(3, 7), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=10, deadline=None)
def test_efficiency_holds_at_any_budget(n: int, seed: int, groups_tail: bool) -> None:
    """However few coalitions were scored, the shares sum to v(all) - v(none)."""
    rng = np.random.default_rng(seed)
    table = 50 * rng.normal(size=1 << n)
    found = sampled(
        table, int(rng.integers(least_budget(n), (1 << n) + 1)), seed=seed, groups_tail=groups_tail
    )
    assert found.shares.sum() == pytest.approx(table[-1] - table[0], abs=1e-7)


@given(st.integers(3, 10), st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_chunks_and_pairs_are_exact_from_the_least_budget(n: int, seed: int) -> None:
    """Effects of single chunks and of pairs need no more than the first 2n + 2 coalitions."""
    rng = np.random.default_rng(seed)
    inside = membership(n).T.astype(np.float64)
    pairs = np.triu(rng.normal(size=(n, n)), 1)
    table = rng.normal() + inside @ rng.normal(size=n) + np.einsum("mi,ij,mj->m", inside, pairs, inside)
    found = sampled(table, least_budget(n), seed=seed)
    np.testing.assert_allclose(found.shares[:, 0], exact_shapley(table), atol=1e-6)


@pytest.mark.parametrize("game", GAMES)
def test_estimates_are_not_biased(game: Callable[[int, np.random.Generator], Array]) -> None:
    """Over 40 games of 7 chunks the mean error of a chunk's share is what chance leaves of 0."""
    errors = []
    for seed in range(40):
        table = game(7, np.random.default_rng(seed))
        errors.append((sampled(table, 36, seed=seed).shares[:, 0] - exact_shapley(table))[0])
    assert abs(np.mean(errors)) < 3.5 * np.std(errors, ddof=1) / len(errors) ** 0.5


@pytest.mark.parametrize("game", GAMES)
def test_errors_shrink_with_the_budget(game: Callable[[int, np.random.Generator], Array]) -> None:
    """Root-mean-square error against exact: a fourfold budget at least halves it."""
    assert rms(game, 128) < rms(game, 32) / 2


def rms(game: Callable[[int, np.random.Generator], Array], budget: int, n: int = 10) -> float:
    """Root-mean-square error of the shares of 6 games, against exact ones."""
    squares = []
    for seed in range(6):
        table = game(n, np.random.default_rng(seed))
        squares.append((sampled(table, budget, seed=seed).shares[:, 0] - exact_shapley(table)) ** 2)
    return float(np.sqrt(np.mean(squares)))


@pytest.mark.parametrize(("game", "part"), [(attention_game, 0.5), (copies_game, 0.5), (dense_game, 1.2)])
def test_beats_the_kernel_explainer_of_shap(
    game: Callable[[int, np.random.Generator], Array], part: float
) -> None:
    """At 96 coalitions of 10 chunks: at most half of shap's error where answers have structure; about the
    same, within a fifth, where coalitions have nothing in common and there is nothing to learn."""
    theirs = []
    for seed in range(6):
        table = game(10, np.random.default_rng(seed))
        theirs.append((kernel_shap(table, 96, seed=seed) - exact_shapley(table)) ** 2)
    assert rms(game, 96) <= part * float(np.sqrt(np.mean(theirs)))


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("budget", [56, 112])
def test_standard_errors_cover_the_truth(
    game: Callable[[int, np.random.Generator], Array], budget: int
) -> None:
    """Between 85 and 100 % of exact shares lie within 1.96 standard errors, and the errors are no boast."""
    inside, sizes, errors = [], [], []
    for seed in range(16):
        table = game(9, np.random.default_rng(1000 + seed))
        found = sampled(table, budget, seed=seed)
        off = np.abs(found.shares[:, 0] - exact_shapley(table))
        inside.append(off <= 1.96 * found.errors[:, 0])
        sizes.append(found.errors[:, 0] ** 2)
        errors.append(off**2)
    assert 0.85 <= np.mean(inside) <= 1.0
    assert np.mean(sizes) < 9 * np.mean(errors)  # not covered by being vast


def test_sampling_stops_when_precise() -> None:
    """A game of two relevant chunks among twelve is known long before the budget ends."""
    inside = membership(12).T.astype(np.float64)
    table = 5 * inside[:, 3] * inside[:, 8] + 0.001 * inside.sum(axis=1)
    found = sampled(table, 512, precision=0.02)
    assert found.is_precise
    assert len(found.masks) < 128
    np.testing.assert_allclose(found.shares[:, 0], exact_shapley(table), atol=0.05)
    vague = sampled(dense_game(12, np.random.default_rng(0)), 128, precision=0.02)
    assert not vague.is_precise
    assert len(vague.masks) == 128


def test_a_tail_leaves_together_and_keeps_its_own_shares() -> None:
    """Chunks without effect are drawn as one from the second round on; their sum has its own error."""
    inside = membership(12).T.astype(np.float64)
    rng = np.random.default_rng(0)
    odd = rng.normal(size=16)[(inside[:, :4] @ (1 << np.arange(4))).astype(int)]
    table = 4 * odd + inside @ np.append(np.zeros(4), rng.normal(0, 0.002, 8))
    found = sampled(table, 256, precision=0.01)
    assert len(found.tail) >= 2
    assert set(found.tail) <= set(range(4, 12))
    expected = exact_shapley(table)
    np.testing.assert_allclose(found.shares[:, 0], expected, atol=0.05)
    together = abs(found.tail_shares[0] - expected[list(found.tail)].sum())
    assert together <= 3 * found.tail_errors[0] + 1e-6


def test_draws_are_reproducible_pairs_without_repetition() -> None:
    """The same seed draws the same; no coalition or complement twice; singles first; all when asked."""
    blocks = [1 << player for player in range(6)]
    first = draw_pairs(blocks, [], 32, np.random.default_rng(1))
    assert first == draw_pairs(blocks, [], 32, np.random.default_rng(1))
    assert first != draw_pairs(blocks, [], 32, np.random.default_rng(2))
    assert first[:7] == [63, *blocks]
    assert sorted({*first, *(63 ^ mask for mask in first)}) == list(range(64))
    assert draw_pairs(blocks, first, 5, np.random.default_rng(3)) == []
    grouped = draw_pairs([1, 2, 0b111100], first[:7], 10, np.random.default_rng(0))
    assert grouped == [0b111100]  # {1}, {2} are known; of 3 blocks no other pair is left


def test_more_chunks_than_bits_of_an_integer() -> None:
    """Seventy chunks, of which three matter: found, with errors, from 256 coalitions."""

    def values(masks: Sequence[int]) -> Array:
        return np.array(
            [
                [6.0 * bool(m >> 5 & 1 or m >> 66 & 1) + 3.0 * (m >> 69 & 1) + 0.01 * m.bit_count()]
                for m in masks
            ]
        )

    found = sample_games(values, 70, budget=256, precision=0.02, seed=0)
    expected = np.full(70, 0.01)
    expected[[5, 66, 69]] += 3.0
    np.testing.assert_allclose(found.shares[:, 0], expected, atol=0.05)


def test_interactions_tell_redundant_from_both_needed() -> None:
    """Against the index by its definition, each within its error, and the planted signs."""
    n = 9
    inside = membership(n).T.astype(np.float64)
    table = 6 * np.maximum(inside[:, 0], inside[:, 1]) + 5 * inside[:, 2] * inside[:, 3] + inside @ np.ones(n)
    found = sampled(table, 64)
    terms = {
        one.positions: one for one in pair_interactions(found.games[0], found.shares[:, 0], tuple(range(n)))
    }
    assert terms[0, 1].value == pytest.approx(interaction(table, 0, 1), abs=0.3)
    assert terms[2, 3].value == pytest.approx(interaction(table, 2, 3), abs=0.3)
    off = [abs(one.value - interaction(table, *pair)) for pair, one in terms.items()]
    within = [error <= 3 * one.error + 1e-3 for error, one in zip(off, terms.values(), strict=True)]
    assert np.mean(within) > 0.9
    whole = sampled(dense_game(6, np.random.default_rng(0)), 64)
    dense = dense_game(6, np.random.default_rng(0))
    for one in pair_interactions(whole.games[0], whole.shares[:, 0], tuple(range(6))):
        assert one.value == pytest.approx(interaction(dense, *one.positions), abs=1e-9)
        assert one.error < 1e-6


def interaction(table: Array, i: int, j: int) -> float:
    """The Shapley interaction index, summed over all coalitions as defined."""
    n, total = len(table).bit_length() - 1, 0.0
    for mask in range(1 << n):
        if not (mask >> i & 1 or mask >> j & 1):
            size = mask.bit_count()
            weight = factorial(size) * factorial(n - size - 2) / factorial(n - 1)
            one, other = mask | 1 << i, mask | 1 << j
            total += weight * float(table[one | other] - table[one] - table[other] + table[mask])
    return total


def test_bad_requests_name_the_setting() -> None:
    """A budget below 2n + 2 or a negative precision raises, and nothing is scored."""
    with pytest.raises(InputError, match="at least 26 sampled coalitions, not 25; raise RAGBLAME_SAMPLED"):
        sampled(np.zeros(1 << 12), 25)
    with pytest.raises(InputError, match="precision"):
        sampled(np.zeros(1 << 3), 8, precision=-1.0)


def test_a_constant_game_has_no_shares() -> None:
    """Nothing depends on the chunks: shares and errors are 0, and the first round says so."""
    found = sampled(np.full(1 << 11, -7.0), 1024, precision=0.01)
    np.testing.assert_allclose(found.shares, 0.0, atol=1e-9)
    assert found.errors.max() < 1e-6
    assert len(found.masks) == 44


def test_records_through_the_seam() -> None:
    """A dictionary in the scorer's place: spans share the rounds, records carry errors."""
    layout = build_layout(tiny_trace([f"chunk {i}" for i in range(12)]), [], tiny_tokenizer())
    spans = tiny_spans()
    owner = {index: number for number, span in enumerate(spans) for index in layout.span_tokens(span)}
    counts = [list(owner.values()).count(number) for number in (0, 1)]

    def values(mask: int) -> list[float]:
        gain = (6.0 if mask & 0b101 else 0.0, 9.0 if mask & 1 << 11 else 0.0)
        return [
            -10.0 + (gain[owner[t]] / counts[owner[t]] if t in owner else 0.0)
            for t in range(len(layout.answer_ids))
        ]

    scorer = DictionaryScorer(values)
    result = sampled_shapley(scorer, layout, spans, budget=128, precision_nats=0.05)
    first, second = result.attributions
    assert first.shares == pytest.approx([3.0, 0, 3.0, *[0.0] * 9], abs=0.01)
    assert second.shares == pytest.approx([*[0.0] * 11, 9.0], abs=0.01)
    assert first.reliance == pytest.approx(6.0, abs=1e-5)
    assert first.completeness_gap is not None
    assert first.completeness_gap < 1e-6
    for attribution in result.attributions:
        assert attribution.standard_errors is not None
        assert len(attribution.standard_errors) == 12
        assert max(attribution.standard_errors) <= 0.05
    assert result.is_precise
    assert result.coalitions is not None
    assert result.coalitions.masks[0] == 0
    assert result.coalitions.masks[-1] == layout.full_mask
    assert len(result.coalitions.masks) == len(result.coalitions.log_probs)
    assert any("12 chunks were sampled from 48 coalitions" in note for note in result.notes)
    redundant = next(one for one in result.interactions[0] if one.positions == (0, 2))
    assert redundant.value < -1.0
    other = sampled_shapley(scorer, layout, spans, budget=128, precision_nats=0.05, seed=1)
    assert other.attributions[0].settings_hash != first.settings_hash
