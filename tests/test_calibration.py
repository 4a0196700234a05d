"""Thresholds keep what they promise: conformal risk control against brute force and against fresh data."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from ragblame.attribution.evaluation.statistics import reliability
from ragblame.attribution.verdicts.calibration import (
    MAX_KNOTS,
    apply,
    control_misses,
    half_of,
    isotonic,
    needed_units,
    platt,
)
from ragblame.errors import InputError

ROWS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]) | st.floats(0, 1),
        st.booleans(),
        st.integers(0, 30),
    ),
    max_size=120,
)


def brute_force(rows: list[tuple[float, bool, int]], alpha: float) -> float | None:
    """The largest threshold that keeps the bound, by trying each score, and what lies just above it."""
    sources = sorted({source for _, wrong, source in rows if wrong})
    n = len(sources)
    best = None
    for threshold in sorted({score for score, _, _ in rows}):
        losses = []
        for source in sources:
            mine = [score for score, wrong, its in rows if wrong and its == source]
            losses.append(sum(score < threshold for score in mine) / len(mine))
        if n and n / (n + 1) * (sum(losses) / n) + 1 / (n + 1) <= alpha + 1e-12:
            best = threshold
    return best


@settings(max_examples=300, deadline=None)
@given(rows=ROWS, alpha=st.sampled_from([0.05, 0.1, 0.2, 0.5]))
def test_the_threshold_is_the_one_that_brute_force_finds(
    rows: list[tuple[float, bool, int]], alpha: float
) -> None:
    """At the threshold the bound holds, at every higher score it does not; none can hold: an error."""
    expected = brute_force([row for row in rows if row[1]], alpha)
    scores, wrong, sources = [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]
    if expected is None:
        with pytest.raises(InputError, match=r"label \d+ more|promise more misses"):
            control_misses(scores, wrong, sources, alpha)
        return
    found = control_misses(scores, wrong, sources, alpha)
    assert found.flag_at == expected
    assert found.bound <= alpha + 1e-9
    assert found.units == len({source for _, is_wrong, source in rows if is_wrong})


@pytest.mark.parametrize(("alpha", "needed"), [(0.1, 9), (0.05, 19), (0.2, 4), (0.01, 99)])
def test_too_few_sources_name_the_number_needed(alpha: float, needed: int) -> None:
    """With fewer than 1/alpha - 1 units nothing can be promised, and the error says how many are missing."""
    assert needed_units(alpha) == needed
    few = needed - 1
    with pytest.raises(InputError, match=rf"needs {needed} sources .* there are {few}: label 1 more"):
        control_misses([0.9] * few, [True] * few, list(range(few)), alpha)
    assert control_misses([0.9] * needed, [True] * needed, list(range(needed)), alpha).flag_at == 0.9


def test_many_rows_of_one_source_are_one_unit() -> None:
    """A hundred spans of one source promise nothing: they share their luck."""
    with pytest.raises(InputError, match=r"needs 9 sources .* there are 1"):
        control_misses([0.9] * 100, [True] * 100, ["one"] * 100, 0.1)


def test_what_no_span_covers_is_missed_at_any_threshold() -> None:
    """-inf scores count as misses, and where they alone break the promise no threshold is made up."""
    scores = [-np.inf] * 5 + [0.8] * 15
    with pytest.raises(InputError, match="25% of what is unsupported is in no span"):
        control_misses(scores, [True] * 20, list(range(20)), 0.1)
    assert control_misses(scores, [True] * 20, list(range(20)), 0.3).flag_at == 0.8


def draw(rng: np.random.Generator, sources: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spans of exchangeable sources whose luck is shared: an effect per source moves all its scores."""
    effect = rng.normal(0, 1, sources)
    sizes = rng.integers(1, 6, sources)
    unit = np.repeat(np.arange(sources), sizes)
    wrong = rng.random(len(unit)) < 0.4
    logits = effect[unit] + 1.5 * wrong + rng.normal(0, 1, len(unit))
    return 1 / (1 + np.exp(-logits)), wrong, unit


@pytest.mark.parametrize(("alpha", "sources"), [(0.1, 60), (0.2, 40)])
def test_the_promise_holds_on_fresh_sources(alpha: float, sources: int) -> None:
    """Over many calibrations, a fresh source's expected misses stay within alpha; without the correction for
    the unit to come, they would not fall below it by as much."""
    rng = np.random.default_rng(7)
    misses = []
    for _ in range(400):
        score, wrong, unit = draw(rng, sources)
        found = control_misses(score, wrong, unit.tolist(), alpha)
        fresh, is_wrong, of = draw(rng, 40)
        losses = [np.mean(fresh[(of == each) & is_wrong] < found.flag_at) for each in np.unique(of[is_wrong])]
        misses.append(float(np.mean(losses)))
    error = float(np.std(misses) / np.sqrt(len(misses)))
    assert np.mean(misses) <= alpha + 2 * error
    assert np.mean(misses) >= alpha - 2 / sources - 3 * error  # and it is not vacuous


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_misses_of_single_rows_stay_in_their_binomial_interval(seed: int) -> None:
    """With one unsupported row a source, misses on fresh rows are no more than a binomial of alpha allows."""
    rng = np.random.default_rng(seed)
    alpha, n, repeats = 0.1, 99, 40
    missed = 0
    for _ in range(repeats):
        score = rng.beta(4, 2, n + 25)
        found = control_misses(score[:n], np.ones(n, bool), list(range(n)), alpha)
        missed += int((score[n:] < found.flag_at).sum())
    # rows of one repeat share a threshold, so their number is discounted by the threshold's own spread
    effective = 25 * repeats / (1 + 25 / n)
    low = binomtest(round(missed / (25 * repeats) * effective), round(effective)).proportion_ci(0.9999).low
    assert low <= alpha


def test_shuffled_labels_leave_nothing_to_flag_by() -> None:
    """With labels drawn anew the probability is the base rate everywhere, so a promise costs flagging nearly
    everything: the method finds no signal where there is none."""
    rng = np.random.default_rng(3)
    score, wrong, unit = draw(rng, 400)
    shuffled = rng.permutation(wrong)
    p = apply(platt(score, shuffled), score)
    assert np.ptp(p[(score > 0.05) & (score < 0.95)]) < 0.12
    assert abs(float(p.mean()) - float(wrong.mean())) < 0.02
    flag_at = control_misses(p, shuffled, unit.tolist(), 0.1).flag_at
    real = apply(platt(score, wrong), score)
    flag_real = control_misses(real, wrong, unit.tolist(), 0.1).flag_at
    assert np.mean(p >= flag_at) > 0.85 > np.mean(real >= flag_real) + 0.1


def test_isotonic_is_scikit_learns_up_to_its_shrinkage() -> None:
    """Where blocks are large, the knots lie on scikit-learn's staircase."""
    rng = np.random.default_rng(5)
    score = np.repeat(np.linspace(0.05, 0.95, 10), 500)
    wrong = rng.random(len(score)) < score
    ours = apply(isotonic(score, wrong), np.unique(score))
    theirs = IsotonicRegression(out_of_bounds="clip").fit(score, wrong).predict(np.unique(score))
    assert np.abs(ours - theirs).max() < 0.005


def test_platt_is_a_logistic_regression_on_the_logits() -> None:
    """With many rows Platt's targets hardly matter: the curve is scikit-learn's."""
    rng = np.random.default_rng(6)
    score, wrong, _ = draw(rng, 2_000)
    logits = np.log(score / (1 - score))[:, None]
    theirs = LogisticRegression(C=np.inf).fit(logits, wrong).predict_proba(logits)[:, 1]
    assert np.abs(apply(platt(score, wrong), score) - theirs).max() < 0.01


@pytest.mark.parametrize("method", [isotonic, platt])
def test_calibration_mends_a_probability_that_boasts(method: object) -> None:
    """Scores pushed to the ends come back to what really happens, on rows that were not used."""
    rng = np.random.default_rng(8)
    truth = rng.random(6_000)
    wrong = rng.random(6_000) < truth
    boast = truth**3 / (truth**3 + (1 - truth) ** 3)
    curve = method(boast[:3_000], wrong[:3_000])  # type: ignore[operator]
    _, before = reliability(boast[3_000:], wrong[3_000:])
    _, after = reliability(apply(curve, boast[3_000:]), wrong[3_000:])
    assert before > 0.1
    assert after < 0.035


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=200),
    method=st.sampled_from([isotonic, platt]),
)
def test_every_curve_rises_and_stays_a_probability(rows: list[tuple[float, bool]], method: object) -> None:
    """Knots rise strictly in the score and never fall in the probability, or the labels cannot tell."""
    scores, wrong = [row[0] for row in rows], [row[1] for row in rows]
    try:
        curve = method(scores, wrong)  # type: ignore[operator]
    except InputError as error:
        assert "both kinds" in str(error) or "no score" in str(error)  # noqa: PT017
        return
    assert 1 <= len(curve) <= MAX_KNOTS
    assert all(0 <= number <= 1 for knot in curve for number in knot)
    assert all(one[0] < other[0] and one[1] <= other[1] for one, other in pairwise(curve))


def test_a_score_turned_around_is_refused() -> None:
    """Platt scaling never turns a score that falls where people find more into one that rises."""
    score = np.linspace(0.01, 0.99, 200)
    with pytest.raises(InputError, match="no score of what is unsupported"):
        platt(score, score < 0.5)


def test_sources_are_halved_by_name_alone() -> None:
    """A source stays in its half whatever the others are, about half go to each, and a seed draws anew."""
    names = [f"source {number}" for number in range(2_000)]
    halves = [half_of(name) for name in names]
    assert halves == [half_of(name) for name in names]
    assert 900 < sum(halves) < 1_100
    assert halves != [half_of(name, seed=1) for name in names]
