"""The evaluation against known causes: its counting by hand-made cases, its quick variant on the model."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ragblame.attribution.evaluation.cells import Cell
from ragblame.attribution.evaluation.counting import found, top_one
from ragblame.attribution.evaluation.evidence import Evidence, from_json
from ragblame.attribution.evaluation.known_cause import QUICK_BOUNDS, evaluate
from ragblame.attribution.evaluation.world_methods import shapley_regression
from ragblame.attribution.methods.coalitions import membership
from ragblame.attribution.methods.shapley import exact_shapley

TABLES = st.integers(2, 5).flatmap(
    lambda n: arrays(np.float64, 1 << n, elements=st.floats(-20, 0, allow_subnormal=False))
)


def test_a_cause_is_found_when_the_highest_scores_are_exactly_it() -> None:
    scores = np.array([0.1, 3.0, 2.0, -5.0])
    assert found(scores, (1,)) == 1.0
    assert found(scores, (1, 2)) == 1.0
    assert found(scores, (2,)) == 0.0
    assert found(scores, (1, 3)) == 0.0
    assert np.isnan(found(scores, ()))
    assert np.isnan(found(np.array([np.nan, 1.0]), (1,)))


def test_ties_are_worth_what_a_random_pick_among_them_is_worth() -> None:
    level = np.zeros(4)
    assert top_one(level, (2,)) == pytest.approx(1 / 4)
    assert top_one(level, (0, 2)) == pytest.approx(2 / 4)
    assert found(level, (2,)) == pytest.approx(1 / 4)
    assert found(level, (0, 2)) == pytest.approx(1 / 6)  # of the six pairs
    assert found(np.array([1.0, 0.0, 0.0]), (0, 1)) == pytest.approx(1 / 2)


@given(TABLES)
def test_regression_on_every_coalition_is_exact_shapley(values: np.ndarray) -> None:
    masks = np.arange(len(values))
    assert np.allclose(shapley_regression(values, masks), exact_shapley(values), atol=1e-8)


@given(st.integers(3, 5), st.integers(0, 10**6))
def test_regression_on_half_the_coalitions_is_exact_for_additive_games_and_keeps_the_total(
    n: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=n)
    full = (1 << n) - 1
    seen = rng.permutation(np.arange(1, 1 << (n - 1)))[: max(n, (1 << (n - 1)) // 2)]
    masks = np.concatenate([[0, full], seen, full ^ seen])
    additive = membership(n).T.astype(np.float64) @ effects
    bent = additive + rng.normal(size=1 << n)
    if np.linalg.matrix_rank(membership(n).T[masks].astype(float)) == n:
        assert np.allclose(shapley_regression(additive, masks), effects, atol=1e-6)
    assert shapley_regression(bent, masks).sum() == pytest.approx(bent[-1] - bent[0], abs=1e-6)


@pytest.fixture(scope="module")
def quick() -> Evidence:
    """The quick variant, as continuous integration runs it: every cell, few items, the shipped model."""
    return evaluate([None], seed=0, is_quick=True)


@pytest.mark.timeout(600)
def test_the_quick_variant_holds_its_own_looser_bars(quick: Evidence) -> None:
    assert {bar.name for bar in quick.bars} == set(QUICK_BOUNDS)
    assert [f"{bar.name}: {bar.value:.3f}" for bar in quick.bars if not bar.holds] == []


def test_every_cell_is_counted_and_every_figure_has_an_interval(quick: Evidence) -> None:
    cells = next(table for table in quick.tables if table.title == "The cells, by behaviour")
    assert [row[0] for row in cells.rows] == [cell.value for cell in Cell]
    for bar in quick.bars:
        assert bar.low is None or bar.high is None or bar.low <= bar.value <= bar.high


def test_the_evidence_survives_json(quick: Evidence) -> None:
    again = from_json(json.loads(json.dumps(quick.to_json())))
    assert [bar.name for bar in again.bars] == [bar.name for bar in quick.bars]
    assert quick.to_json()["command"] == "ragblame eval world --quick --seed 0"
