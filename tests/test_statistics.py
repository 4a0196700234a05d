"""The statistics of evaluations agree with scipy, scikit-learn and brute force, and their intervals cover."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
import sklearn.metrics as oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, false_discovery_control, norm

from ragblame.attribution.evaluation import statistics as ours

LABELS = ("grounded", "distorted", "known already", "fabricated")
Rows = list[tuple[float, bool]]
ranked = st.lists(st.tuples(st.integers(-4, 4).map(float), st.booleans()), min_size=1, max_size=30)
labelled = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), max_size=40)


def apart(rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores and labels of drawn rows."""
    scores, positives = zip(*rows, strict=True)
    return np.array(scores), np.array(positives)


@settings(deadline=None)
@given(ranked)
def test_auroc_is_the_share_of_pairs_in_order(rows: Rows) -> None:
    """It equals counting pairs by hand, ties half, and scikit-learn's; with one class it is NaN."""
    scores, positives = apart(rows)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positives] for b in scores[~positives]]
    found = ours.auroc(scores, positives)
    if not pairs:
        assert math.isnan(found)
        return
    assert found == pytest.approx(np.mean(pairs))
    assert found == pytest.approx(oracle.roc_auc_score(positives, scores))
    assert ours.auroc(-scores, positives) == pytest.approx(1 - found)


@settings(deadline=None)
@given(ranked)
def test_best_f1_is_the_best_of_all_thresholds(rows: Rows) -> None:
    """No threshold does better than the one returned, and that one does as well as promised."""
    scores, positives = apart(rows)
    best, threshold = ours.best_f1(scores, positives)
    if not positives.any():
        assert math.isnan(best)
        return
    assert best == pytest.approx(max(oracle.f1_score(positives, scores >= one) for one in scores))
    assert ours.f1_at(scores, positives, threshold) == pytest.approx(best)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3).map(float), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 20),
)
def test_precision_at_is_the_mean_over_all_orders_of_ties(rows: Rows, twentieths: int) -> None:
    """It is the expectation over every order that sorts by score, so the order of rows cannot matter."""
    taken = -(-twentieths * len(rows) // 20)
    hits = [
        sum(positive for _, positive in order[:taken]) / taken
        for order in permutations(rows)
        if all(a[0] >= b[0] for a, b in pairwise(order))
    ]
    assert ours.precision_at(*apart(rows), twentieths / 20) == pytest.approx(np.mean(hits))


def test_precision_at_takes_an_exact_share_exactly() -> None:
    """7 % of 100 rows are 7, although 0.07 * 100 is a little more in floating point."""
    scores = np.arange(100.0)
    assert ours.precision_at(scores, scores >= 93, 0.07) == 1.0
    assert ours.precision_at(scores, scores >= 94, 0.07) == pytest.approx(6 / 7)


@settings(deadline=None)
@given(labelled)
def test_confusion_and_macro_f1_equal_scikit_learns(rows: list[tuple[str, str]]) -> None:
    """Also with a label left out of the mean, as an honest `undetermined` is."""
    truth, predicted = [one for one, _ in rows], [other for _, other in rows]
    assert ours.confusion(truth, predicted, LABELS).sum() == len(rows)
    for labels in (LABELS, LABELS[:3]):
        found = ours.macro_f1(truth, predicted, labels)
        if not {*truth, *predicted} & set(labels):
            assert math.isnan(found)
            continue
        expected = oracle.f1_score(truth, predicted, labels=labels, average="macro", zero_division=math.nan)
        assert found == pytest.approx(expected)
    if rows:
        expected = oracle.confusion_matrix(truth, predicted, labels=LABELS)
        assert ours.confusion(truth, predicted, LABELS).tolist() == expected.tolist()


def test_degenerate_rows_are_nan_and_malformed_ones_an_error() -> None:
    """What cannot be measured is NaN, never 0 or 1; what is no input at all raises."""
    assert math.isnan(ours.average_precision([1.0, 2.0], [False, False]))
    assert ours.average_precision([1.0, 1.0, 1.0, 1.0], [True, False, False, False]) == 0.25
    assert ours.auroc([1.0, 1.0], [True, False]) == 0.5
    assert math.isnan(ours.spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(ours.spearman([1], [2]))
    assert ours.spearman([1, 2, 9], [10, 20, 21]) == pytest.approx(1)
    assert math.isnan(ours.f1_at([0.1], [False], 0.5))
    assert ours.reliability([], [])[0] == ()
    assert math.isnan(ours.reliability([], [])[1])
    with pytest.raises(ValueError, match="NaN"):
        ours.auroc([math.nan, 1.0], [True, False])
    with pytest.raises(ValueError, match="shape"):
        ours.auroc([1.0], [True, False])
    with pytest.raises(ValueError, match="labels not named: maybe"):
        ours.confusion(["maybe"], ["grounded"], LABELS)
    with pytest.raises(ValueError, match="no rows"):
        ours.bootstrap(lambda rows: 0.0, [], seed=0)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (50, 50), (160, 200), (1, 3)])
def test_intervals_of_a_share_follow_their_formulas(hits: int, n: int) -> None:
    """Wilson's closed form and the beta quantiles of Clopper and Pearson."""
    z, share = norm.ppf(0.975), hits / n
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert ours.wilson(hits, n) == pytest.approx(
        ((centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)), abs=1e-12
    )
    low = beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1.0
    assert ours.clopper_pearson(hits, n) == pytest.approx((low, high), abs=1e-9)


def test_a_share_of_no_rows_could_be_anything() -> None:
    """Nothing seen bounds nothing; more hits than rows is an error."""
    assert ours.wilson(0, 0) == ours.clopper_pearson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 hits of 2"):
        ours.wilson(3, 2)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 12))
def test_reliability_loses_no_row(rows: Rows, bins: int) -> None:
    """Counts add up, every mean lies in its bin, and with one bin the error is the gap of the two means."""
    probabilities, outcomes = apart(rows)
    found, error = ours.reliability(probabilities, outcomes, bins)
    assert sum(one.count for one in found) == len(rows)
    assert all(one.low - 1e-9 <= one.mean <= one.high + 1e-9 for one in found)
    assert sum(one.count * one.share for one in found) == pytest.approx(outcomes.sum())
    assert 0 <= error <= 1
    _, gap = ours.reliability(probabilities, outcomes, 1)
    assert gap == pytest.approx(abs(probabilities.mean() - outcomes.mean()))


def test_reliability_sees_overconfidence() -> None:
    """Events given 0.95 that happen half of the time: the error is 0.45."""
    (only,), error = ours.reliability([0.95] * 10, [True, False] * 5)
    assert (only.count, only.share) == (10, 0.5)
    assert error == pytest.approx(0.45)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    """It keeps the order, never lowers a p value, and is never harsher than Bonferroni."""
    corrected = ours.holm(p_values)
    for p, c in zip(p_values, corrected, strict=True):
        assert p <= c <= min(1.0, p * len(p_values)) + 1e-12
    assert [corrected[i] for i in np.argsort(p_values)] == sorted(corrected)
    if p_values:  # controlling the family is harder than controlling the share of false discoveries
        assert np.all(np.array(corrected) >= false_discovery_control(p_values) - 1e-12)


def test_holm_by_hand() -> None:
    """The step-down of Holm's paper: 4 x .01, 3 x .02, then never less than the one before."""
    assert ours.holm([0.01, 0.04, 0.02, 0.03]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    with pytest.raises(ValueError, match="nan"):
        ours.holm([math.nan])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(0, 99))
def test_a_resample_takes_whole_clusters(clusters: list[int], seed: int) -> None:
    """In every draw the rows of one cluster come equally often, and as many clusters as there are."""
    names = np.array(clusters)

    def check(rows: NDArray[np.intp]) -> float:
        times = np.bincount(rows, minlength=len(clusters))
        per_cluster = [set(times[names == name].tolist()) for name in set(clusters)]
        assert all(len(one) == 1 for one in per_cluster)
        assert sum(next(iter(one)) for one in per_cluster) == len(per_cluster)
        return float(len(rows))

    estimate = ours.bootstrap(check, clusters, seed=seed, draws=20)
    assert (estimate.value, estimate.n, estimate.dropped) == (len(clusters), len(clusters), 0)


def test_strata_are_resampled_whole() -> None:
    """Two models that differ: some draws see only one of them, which clusters alone never do."""
    models = np.repeat([0.0, 1.0], 50)
    mean = mean_of(models)
    inside = ours.bootstrap(mean, range(100), strata=models.tolist(), seed=0)
    assert (inside.low, inside.value, inside.high) == (0.0, 0.5, 1.0)
    alone = ours.bootstrap(mean, range(100), seed=0)
    assert 0.35 < alone.low < alone.high < 0.65


def mean_of(values: NDArray[np.float64]) -> ours.Statistic:
    """The mean of the resampled rows."""
    return lambda rows: float(values[rows].mean())


def coverage(*, is_clustered: bool, worlds: int = 100) -> float:
    """How often the interval holds the true mean 0: 25 questions of 8 rows that share half their variance."""
    rng = np.random.default_rng(7)
    questions = np.repeat(np.arange(25), 8)
    clusters = questions.tolist() if is_clustered else list(range(200))
    hits = 0
    for world in range(worlds):
        values = rng.normal(size=25)[questions] + rng.normal(size=200)
        found = ours.bootstrap(mean_of(values), clusters, seed=world, draws=200)
        hits += found.low <= 0 <= found.high
    return hits / worlds


def test_cluster_intervals_cover_and_row_intervals_do_not() -> None:
    """The 95 % interval over questions holds the truth so often; one over rows pretends to know more."""
    assert 0.88 <= coverage(is_clustered=True) <= 0.99
    assert coverage(is_clustered=False) < 0.75


def test_undefined_draws_are_dropped_and_counted() -> None:
    """One positive among eight rows: a third of the draws has none, and the estimate says how many."""
    scores, positives = np.arange(8.0), np.arange(8) == 5
    found = ours.bootstrap(lambda rows: ours.auroc(scores[rows], positives[rows]), range(8), seed=1)
    assert 250 < found.dropped < 450  # (7/8)^8 = 0.34 have no positive
    assert 0 <= found.low <= found.value <= found.high <= 1
    never = ours.bootstrap(lambda rows: math.nan, range(8), seed=1, draws=9)
    assert math.isnan(never.value)
    assert math.isnan(never.low)
    assert never.dropped == 9


def test_the_same_seed_gives_the_same_interval() -> None:
    """Figures in a document can be made again to the last digit."""
    mean = mean_of(np.random.default_rng(0).normal(size=40))
    assert ours.bootstrap(mean, range(40), seed=3) == ours.bootstrap(mean, range(40), seed=3)
    assert ours.bootstrap(mean, range(40), seed=3) != ours.bootstrap(mean, range(40), seed=4)


def test_a_paired_difference_is_sharper_than_two_intervals() -> None:
    """Two methods on the same hard questions: their difference is seen though their intervals overlap."""
    rng = np.random.default_rng(0)
    hardness = rng.normal(size=60)
    better = mean_of(hardness + 0.2 + rng.normal(size=60) / 5)
    worse = mean_of(hardness + rng.normal(size=60) / 5)
    difference, p = ours.paired(better, worse, range(60), seed=0)
    assert difference.low > 0
    assert p < 0.01
    one, other = (ours.bootstrap(statistic, range(60), seed=0) for statistic in (better, worse))
    assert one.low < other.high
    backwards, same = ours.paired(worse, better, range(60), seed=0)
    assert backwards.value == pytest.approx(-difference.value)
    assert same == p
    assert ours.paired(better, better, range(60), seed=0)[1] == 1.0


def test_p_values_are_honest_without_a_difference() -> None:
    """Of 200 comparisons of nothing with nothing about 5 % come out below 0.05, not many more."""
    rng = np.random.default_rng(5)
    nothing = mean_of(np.zeros(60))
    gaps = [mean_of(rng.normal(size=60)) for _ in range(200)]
    p_values = [
        ours.paired(gap, nothing, range(60), seed=world, draws=200)[1] for world, gap in enumerate(gaps)
    ]
    assert 2 <= sum(p < 0.05 for p in p_values) <= 24
