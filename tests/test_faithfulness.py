"""Faithfulness equals brute force and scipy, rewards the right order, and sanity checks can fail."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy.stats import spearmanr
from transformers import PreTrainedModel

from ragblame.attribution.evaluation.faithfulness import (
    comprehensiveness,
    deletion_area,
    deletion_curve,
    held_out,
    insertion_area,
    insertion_curve,
    linear_datamodeling_score,
    random_curve,
    random_k_drop,
    sufficiency,
    top_k_drop,
)
from ragblame.attribution.evaluation.sanity import (
    additivity,
    rank_correlation,
    shuffled,
)
from ragblame.attribution.methods.coalitions import all_masks, mask_of, members
from ragblame.attribution.methods.shapley import exact_shapley
from ragblame.errors import InputError
from tests.tiny_models import head_weight, tiny_config, tiny_model

floats = st.floats(-30, 30, allow_nan=False, width=32)


@st.composite
def judged(draw: st.DrawFn, least: int = 1, most: int = 5) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of three methods and a span's table of some players."""
    n = draw(st.integers(least, most))
    shares = draw(arrays.arrays(np.float64, (3, n), elements=floats))
    return shares, draw(arrays.arrays(np.float64, 1 << n, elements=floats))


def additive(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The table of the game in which each player adds its weight."""
    return np.array([sum(weights[i] for i in members(mask)) for mask in all_masks(len(weights))])


WEIGHTS = np.array([0.5, 7.0, -2.0, 3.0])


@given(judged(least=3), st.integers(0, 99))
def test_datamodeling_score_is_scipys_spearman(
    case: tuple[NDArray[np.float64], NDArray[np.float64]], seed: int
) -> None:
    """Method by method, on whole numbers, where sums that should be equal are."""
    shares, values = np.round(case[0]), case[1]
    n = shares.shape[1]
    masks = held_out(n, count=12, seed=seed)
    found = linear_datamodeling_score(shares, values, masks)
    for method, rho in zip(shares, found, strict=True):
        sums = [sum(method[i] for i in members(int(mask))) for mask in masks]
        if np.ptp(values[masks]) == 0:
            assert np.isnan(rho)
        elif np.ptp(sums) == 0:
            assert rho == 0.0
        else:
            assert rho == pytest.approx(spearmanr(sums, values[masks]).statistic, abs=1e-9)


def test_datamodeling_score_of_the_truth_its_opposite_and_silence() -> None:
    """An additive game's own weights order it fully, their negatives in reverse, zeros not at all."""
    masks = held_out(4, count=None, seed=0)
    shares = np.stack([WEIGHTS, 5 * WEIGHTS, -WEIGHTS, np.zeros(4)])
    found = linear_datamodeling_score(shares, additive(WEIGHTS), masks)
    np.testing.assert_allclose(found, [1.0, 1.0, -1.0, 0.0])
    assert np.isnan(linear_datamodeling_score(shares, np.zeros(16), masks)).all()
    assert np.isnan(linear_datamodeling_score(shares, additive(WEIGHTS), masks[:2])).all()


def test_rounding_does_not_order_equal_sums() -> None:
    """0.1 + 0.2 and 0.3 are one sum: the score is that of the same shares times ten."""
    values = np.random.default_rng(0).normal(size=8)
    shares = np.array([[0.1, 0.2, 0.3]])
    masks = np.arange(8)
    np.testing.assert_allclose(
        linear_datamodeling_score(shares, values, masks),
        linear_datamodeling_score(np.array([[1.0, 2.0, 3.0]]), values, masks),
    )


@given(st.integers(0, 6), st.data())
def test_held_out_coalitions_are_new_and_distinct(n: int, data: st.DataObject) -> None:
    """None was used, none comes twice, and as many come as asked for or as are left."""
    used = data.draw(st.sets(st.integers(0, (1 << n) - 1)))
    count = data.draw(st.one_of(st.none(), st.integers(0, 80)))
    masks = held_out(n, frozenset(used), count=count, seed=0).tolist()
    left = (1 << n) - len(used)
    assert not used & set(masks)
    assert len(set(masks)) == len(masks) == (left if count is None else min(count, left))
    assert all(0 <= mask < 1 << n for mask in masks)


def test_held_out_coalitions_are_drawn_evenly() -> None:
    """Every coalition that is left comes as often as every other."""
    counts = np.zeros(16)
    for seed in range(2000):
        counts[held_out(4, {0, 15}, count=4, seed=seed)] += 1
    assert counts[0] == counts[15] == 0
    expected = 2000 * 4 / 14
    assert np.abs(counts[1:15] - expected).max() < 5 * expected**0.5


@given(judged(), st.data())
def test_curves_and_drops_are_look_ups_along_the_order(
    case: tuple[NDArray[np.float64], NDArray[np.float64]], data: st.DataObject
) -> None:
    """Brute force with distinct shares: remove or insert the highest one by one."""
    _, values = case
    n = case[0].shape[1]
    orders = [data.draw(st.permutations(range(n))) for _ in range(3)]
    shares = np.zeros((3, n))
    for row, order in zip(shares, orders, strict=True):
        for rank, player in enumerate(order):
            row[player] = -rank
    full = (1 << n) - 1
    removed = [[values[full & ~mask_of(order[:k])] for k in range(n + 1)] for order in orders]
    inserted = [[values[mask_of(order[:k])] for k in range(n + 1)] for order in orders]
    np.testing.assert_array_equal(deletion_curve(shares, values), removed)
    np.testing.assert_array_equal(insertion_curve(shares, values), inserted)
    k = data.draw(st.integers(0, n))
    np.testing.assert_allclose(top_k_drop(shares, values, k), values[-1] - np.array(removed)[:, k])
    half = range(1, (n + 1) // 2 + 1)
    np.testing.assert_allclose(
        comprehensiveness(shares, values), [np.mean([row[0] - row[j] for j in half]) for row in removed]
    )
    np.testing.assert_allclose(
        sufficiency(shares, values), [np.mean([row[-1] - row[j] for j in half]) for row in inserted]
    )


@given(judged(least=1, most=4))
@settings(max_examples=40)
def test_controls_are_the_mean_over_every_order(
    case: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    """Random-k drop and the random curve equal the mean over all n! rankings."""
    _, values = case
    n = case[0].shape[1]
    rankings = np.array(list(permutations(range(n))), dtype=np.float64)
    for k in range(n + 1):
        assert random_k_drop(values, k) == pytest.approx(top_k_drop(rankings, values, k).mean(), abs=1e-6)
        chosen = [values[-1] - values[((1 << n) - 1) & ~mask_of(c)] for c in combinations(range(n), k)]
        assert random_k_drop(values, k) == pytest.approx(np.mean(chosen), abs=1e-6)
    curve = random_curve(values)
    np.testing.assert_allclose(insertion_curve(rankings, values).mean(axis=0), curve, atol=1e-6)
    np.testing.assert_allclose(deletion_curve(rankings, values).mean(axis=0), curve[::-1], atol=1e-6)


def test_ties_gain_nothing_by_the_order_of_chunks() -> None:
    """A method that says nothing does, over seeds, as the random control does, wherever the cause stands."""
    for cause in range(4):
        values = np.array([9.0 * (mask >> cause & 1) for mask in all_masks(4)])
        drops = [top_k_drop(np.zeros((1, 4)), values, 1, seed=seed)[0] for seed in range(2000)]
        assert np.mean(drops) == pytest.approx(random_k_drop(values, 1), abs=0.5)


def test_the_true_order_has_the_largest_areas() -> None:
    """In an additive game no ranking beats the weights, and the opposite one is worst."""
    values = additive(WEIGHTS)
    rankings = np.array(list(permutations(range(4))), dtype=np.float64)
    shares = np.concatenate([WEIGHTS[None], -WEIGHTS[None], rankings])
    for area in (
        deletion_area(deletion_curve(shares, values)),
        insertion_area(insertion_curve(shares, values)),
        comprehensiveness(shares, values),
        -sufficiency(shares, values),
    ):
        assert area[0] == pytest.approx(area.max())
        assert area[1] == pytest.approx(area.min())
        assert area.max() > area.min()


def test_areas_of_known_curves() -> None:
    """The trapezoid rule over [0, 1], in nats."""
    assert deletion_area([10.0, 4.0, 4.0]) == pytest.approx((3.0 + 6.0) / 2)
    assert insertion_area([0.0, 6.0, 10.0]) == pytest.approx((3.0 + 8.0) / 2)
    assert deletion_area([3.0]) == 0.0


def test_known_games() -> None:
    """A dictator's removal costs all; one of two duplicates costs nothing, both cost all; so do two hops."""
    dictator = np.array([8.0 * (mask & 1) for mask in all_masks(3)])
    either = np.array([8.0 * bool(mask & 3) for mask in all_masks(3)])
    both = np.array([8.0 * (mask & 3 == 3) for mask in all_masks(3)])
    shares = np.array([[2.0, 1.0, 0.0]])
    assert top_k_drop(shares, dictator, 1) == 8.0
    assert top_k_drop(shares, either, 1) == 0.0
    assert top_k_drop(shares, either, 2) == 8.0
    assert top_k_drop(shares, both, 1) == 8.0
    assert sufficiency(shares, dictator) == 0.0
    assert sufficiency(shares, both) == 4.0  # 8 with one chunk, 0 with two
    assert random_k_drop(dictator, 1) == pytest.approx(8 / 3)


@given(judged(), st.data())
def test_names_of_chunks_do_not_matter(
    case: tuple[NDArray[np.float64], NDArray[np.float64]], data: st.DataObject
) -> None:
    """Renumber the players in shares and table: without ties every metric stays."""
    shares, values = case
    n = shares.shape[1]
    shares = shares + np.arange(n) * 1e-3  # draws of width 32 tie often
    if any(len(set(row.tolist())) < n for row in shares):
        return
    order = data.draw(st.permutations(range(n)))
    renamed = np.array([values[mask_of(order[i] for i in members(mask))] for mask in all_masks(n)])
    for metric in (comprehensiveness, sufficiency):
        np.testing.assert_allclose(metric(shares, values), metric(shares[:, order], renamed))
    everything = np.arange(1 << n)
    np.testing.assert_allclose(
        linear_datamodeling_score(shares, values, everything),
        linear_datamodeling_score(shares[:, order], renamed, everything),
        atol=1e-9,
    )


def test_bad_input_is_refused() -> None:
    """Errors name the shapes and figures given."""
    with pytest.raises(InputError, match=r"\[method, 3\], not \(1, 2\)"):
        top_k_drop(np.zeros((1, 2)), np.zeros(8), 1)
    with pytest.raises(InputError, match=r"not \(6,\)"):
        random_curve(np.zeros(6))
    with pytest.raises(InputError, match="top 4 of 3"):
        top_k_drop(np.zeros((1, 3)), np.zeros(8), 4)
    with pytest.raises(InputError, match="not finite"):
        deletion_curve(np.array([[np.nan, 0.0]]), np.zeros(4))


def logits(model: PreTrainedModel) -> torch.Tensor:
    """What the model says of a fixed text."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(20)[None]).logits
    return found


def test_shuffling_permutes_every_matrix_and_leaves_the_model_alone() -> None:
    """The same numbers in other places, vectors untouched, other outputs, one copy per seed."""
    model = tiny_model("llama")
    before = logits(model)
    other = shuffled(model, 1)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    pairs = list(zip(model.named_parameters(), other.parameters(), strict=True))
    for (name, own), changed in pairs:
        torch.testing.assert_close(own.flatten().sort()[0], changed.flatten().sort()[0], rtol=0, atol=0)
        assert torch.equal(own, changed) == (own.ndim < 2), name
    assert (logits(other) - before).abs().max() > 0.1
    torch.testing.assert_close(logits(shuffled(model, 1)), logits(other), rtol=0, atol=0)
    assert (logits(shuffled(model, 2)) - logits(other)).abs().max() > 0.1


def test_shuffling_keeps_tied_weights_tied() -> None:
    """Embedding and head are one matrix before and after."""
    model = tiny_model("gpt2")
    assert tiny_config("gpt2").tie_word_embeddings
    other = shuffled(model, 0)
    assert other.get_input_embeddings().weight is head_weight(other)
    assert not torch.equal(head_weight(other), head_weight(model))


def test_rank_correlation_of_what_orders_nothing_is_undefined() -> None:
    """Two chunks, or equal shares, say nothing; otherwise it is scipy's."""
    assert np.isnan(rank_correlation([1.0, 2.0], [1.0, 2.0]))
    assert np.isnan(rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
    one, other = [1.0, 4.0, 4.0, 2.0], [0.0, 3.0, 1.0, 1.0]
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    with pytest.raises(InputError, match="chunk by chunk"):
        rank_correlation([1.0, 2.0, 3.0], [1.0, 2.0])


def test_additivity_holds_for_shapley_and_is_lost_by_others() -> None:
    """Exact shares leave no gap; a part of a thousandth of the total is too much; small totals count as 1."""
    values = np.random.default_rng(0).normal(-20.0, 5.0, 32)
    shares = exact_shapley(values)
    assert additivity(shares, values).is_passed
    lost = additivity(shares * 1.001, values)
    assert lost.relative == pytest.approx(
        0.001 if abs(values[-1] - values[0]) >= 1 else 0.001 * abs(shares.sum())
    )
    assert not lost.is_passed
    assert additivity([0.00005, 0.0], np.zeros(4)).is_passed
    assert not additivity([0.0002, 0.0], np.zeros(4)).is_passed
