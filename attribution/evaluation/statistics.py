"""The statistics of every evaluation: scores of rankings and labels, and how uncertain they are.

A figure without an interval is an anecdote, and rows of one question (or of one trained model) are not
independent: intervals here resample whole clusters. What cannot be measured on the rows given (no positive
row, a constant vector) is NaN, never a guess; malformed input is a ``ValueError``.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, rankdata, spearmanr
from sklearn.metrics import average_precision_score, precision_recall_curve

from ragblame.attribution.evaluation.evidence import Bin, Estimate

__all__ = [
    "Bin",
    "Estimate",
    "Statistic",
    "auroc",
    "average_precision",
    "best_f1",
    "bootstrap",
    "clopper_pearson",
    "confusion",
    "f1_at",
    "holm",
    "macro_f1",
    "paired",
    "precision_at",
    "reliability",
    "spearman",
    "wilson",
]

Statistic = Callable[[NDArray[np.intp]], float]  # row indices, with repetition -> figure; NaN: undefined
LEVEL: Final = 0.95  # of every interval here


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The Wilson score interval of a share of independent rows (Wilson 1927), 95 %; (0, 1) when n is 0."""
    return _share_interval(hits, n, "wilson")


def clopper_pearson(hits: int, n: int) -> tuple[float, float]:
    """The exact interval of a share of independent rows (Clopper & Pearson 1934), 95 %; (0, 1) when n is 0.

    It covers at least 95 % for every true share, so a promise about an error rate is checked with this one.
    """
    return _share_interval(hits, n, "exact")


def _share_interval(hits: int, n: int, method: str) -> tuple[float, float]:
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n} rows")
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(int(hits), int(n)).proportion_ci(LEVEL, method=method)
    return float(interval.low), float(interval.high)


class _Resampler:
    """Draws row indices: strata with replacement, in each as many of its clusters, with replacement."""

    def __init__(self, clusters: Sequence[Hashable], strata: Sequence[Hashable] | None) -> None:
        if len(clusters) == 0:
            raise ValueError("no rows to resample")
        if strata is not None and len(strata) != len(clusters):
            raise ValueError(f"{len(strata)} strata for {len(clusters)} rows")
        members: dict[Hashable, dict[Hashable, list[int]]] = {}
        for row, cluster in enumerate(clusters):
            stratum = None if strata is None else strata[row]
            members.setdefault(stratum, {}).setdefault(cluster, []).append(row)
        # Rows sorted by stratum and cluster, so that a cluster is a slice: a draw is then array arithmetic.
        groups = [rows for stratum in members.values() for rows in stratum.values()]
        self.rows: Final = np.array([row for rows in groups for row in rows], dtype=np.intp)
        self._sizes = np.array([len(rows) for rows in groups], dtype=np.intp)
        self._starts = np.cumsum(self._sizes) - self._sizes
        ends = np.cumsum([len(stratum) for stratum in members.values()])
        self._strata = [(end - len(s), end, len(s)) for end, s in zip(ends, members.values(), strict=True)]

    def draw(self, rng: np.random.Generator) -> NDArray[np.intp]:
        """One resample of the rows; its length varies when clusters differ in size."""
        picked = rng.integers(len(self._strata), size=len(self._strata))
        clusters = np.concatenate([rng.integers(*self._strata[s]) for s in picked])
        sizes = self._sizes[clusters]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        resampled: NDArray[np.intp] = self.rows[np.repeat(self._starts[clusters], sizes) + within]
        return resampled


def bootstrap(
    statistic: Statistic,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    draws: int = 1000,
    strata: Sequence[Hashable] | None = None,
) -> Estimate:
    """A figure with its 95 % percentile interval under the cluster bootstrap (Efron; Cameron et al. 2008).

    ``clusters``: per row, what it shares its luck with (the question). ``strata``: per row, an outer level
    resampled first (the trained model); equal cluster names in two strata are two clusters. With fewer than
    about ten strata the outer level's own spread is understated. Draws on which the statistic is NaN are
    dropped and counted in ``Estimate.dropped``.
    """
    return _estimate(*_resampled([statistic], clusters, seed, draws, strata)[0], len(clusters))


def paired(
    first: Statistic,
    second: Statistic,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    draws: int = 1000,
    strata: Sequence[Hashable] | None = None,
) -> tuple[Estimate, float]:
    """``first - second`` on the same resamples, and the two-sided bootstrap p value of "no difference".

    p = 2 (1 + min(draws <= 0, draws >= 0)) / (1 + draws), at most 1 (Davison & Hinkley 1997, §4.2): the
    level at which the percentile interval would touch 0. NaN when no draw is defined.
    """
    (one, ones), (other, others) = _resampled([first, second], clusters, seed, draws, strata)
    differences = ones - others
    kept = differences[np.isfinite(differences)]
    p_value = math.nan
    if len(kept):
        p_value = min(1.0, 2 * (1 + min((kept <= 0).sum(), (kept >= 0).sum())) / (1 + len(kept)))
    return _estimate(one - other, differences, len(clusters)), float(p_value)


def _resampled(
    statistics: Sequence[Statistic],
    clusters: Sequence[Hashable],
    seed: int,
    draws: int,
    strata: Sequence[Hashable] | None,
) -> list[tuple[float, NDArray[np.float64]]]:
    """Per statistic: its value on all rows, and on each of the same resamples, shape [draws]."""
    resampler = _Resampler(clusters, strata)
    rng = np.random.default_rng(seed)
    everything = np.arange(len(clusters), dtype=np.intp)
    values = np.empty((len(statistics), draws))
    for draw in range(draws):
        rows = resampler.draw(rng)
        values[:, draw] = [statistic(rows) for statistic in statistics]
    return [(float(s(everything)), row) for s, row in zip(statistics, values, strict=True)]


def _estimate(value: float, draws: NDArray[np.float64], n: int) -> Estimate:
    kept = draws[np.isfinite(draws)]
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(kept) else (math.nan, math.nan)
    return Estimate(value=value, low=float(low), high=float(high), n=n, dropped=len(draws) - len(kept))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for having tried them all, in the given order (Holm 1979)."""
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values outside [0, 1]: {[p for p in p_values if not 0 <= p <= 1]}")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def _ranking(scores: ArrayLike, positives: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Both as vectors of one length; a score that is not a number cannot be ranked."""
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(positives, dtype=np.bool_)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"scores of shape {values.shape} for labels of shape {truth.shape}")
    if np.isnan(values).any():
        raise ValueError("a score is NaN")
    return values, truth


def auroc(scores: ArrayLike, positives: ArrayLike) -> float:
    """Probability that a positive row scores above a negative one, ties half: Mann-Whitney's U.

    NaN with one class only; 0.5 for constant scores. By ranks: a bootstrap calls it a thousand times, and
    scikit-learn's (the oracle in tests) takes ten times as long.
    """
    values, truth = _ranking(scores, positives)
    hits, misses = int(truth.sum()), int((~truth).sum())
    if not hits or not misses:
        return math.nan
    return float((rankdata(values)[truth].sum() - hits * (hits + 1) / 2) / (hits * misses))


def average_precision(scores: ArrayLike, positives: ArrayLike) -> float:
    """Precision averaged over recall; NaN without positives, the share of positives for constant scores."""
    values, truth = _ranking(scores, positives)
    return float(average_precision_score(truth, values)) if truth.any() else math.nan


def precision_at(scores: ArrayLike, positives: ArrayLike, share: float) -> float:
    """Share of positives among the ``ceil(share * n)`` highest scores; share in (0, 1]. NaN without rows.

    Ties across the border count by their mean: the expectation under random order, whatever the rows' order.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share} outside (0, 1]")
    values, truth = _ranking(scores, positives)
    if not len(values):
        return math.nan
    taken = math.ceil(round(share * len(values), 9))  # 0.07 * 100 is 7.000000000000001
    border = np.sort(values)[-taken]
    above, at = values > border, values == border
    return float((truth[above].sum() + truth[at].mean() * (taken - above.sum())) / taken)


def best_f1(scores: ArrayLike, positives: ArrayLike) -> tuple[float, float]:
    """The highest F1 any threshold reaches on these very rows, and that threshold (flagged: score >= it).

    Chosen on the rows it is measured on, so optimistic: use it as a ceiling, or take the threshold to fresh
    rows with ``f1_at``. (NaN, NaN) without positives.
    """
    values, truth = _ranking(scores, positives)
    if not truth.any():
        return math.nan, math.nan
    precision, recall, thresholds = precision_recall_curve(truth, values)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)[:-1]
    best = int(f1.argmax())
    return float(f1[best]), float(thresholds[best])


def f1_at(scores: ArrayLike, positives: ArrayLike, threshold: float) -> float:
    """F1 of flagging ``score >= threshold``: 2 TP / (2 TP + FP + FN). NaN with nothing to find or flagged."""
    values, truth = _ranking(scores, positives)
    flagged = values >= threshold
    total = int(flagged.sum() + truth.sum())
    return 2 * int((flagged & truth).sum()) / total if total else math.nan


def confusion(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> NDArray[np.intp]:
    """Counts [true label, predicted label] in the order of ``labels``, which must name every label met."""
    if len(truth) != len(predicted):
        raise ValueError(f"{len(predicted)} predictions for {len(truth)} rows")
    place = {label: index for index, label in enumerate(labels)}
    if strangers := sorted({*truth, *predicted} - place.keys()):
        raise ValueError(f"labels not named: {', '.join(strangers)}")
    counts = np.zeros((len(labels), len(labels)), dtype=np.intp)
    np.add.at(counts, ([place[one] for one in truth], [place[one] for one in predicted]), 1)
    return counts


def macro_f1(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> float:
    """Mean F1 of the ``labels`` that occur among the rows; NaN when none does.

    A prediction outside ``labels`` (an honest "undetermined") is wrong for its true label and otherwise
    costs nothing. As scikit-learn's ``f1_score(..., average="macro", zero_division=nan)``, without its
    milliseconds of checks.
    """
    everything = [*labels, *sorted({*truth, *predicted} - set(labels))]
    counts = confusion(truth, predicted, everything)
    total = (counts.sum(axis=0) + counts.sum(axis=1))[: len(labels)]
    occurs = total > 0
    return (
        float((2 * counts.diagonal()[: len(labels)][occurs] / total[occurs]).mean())
        if any(occurs)
        else math.nan
    )


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Rank correlation in [-1, 1], ties averaged; NaN for a constant vector or fewer than two rows."""
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 1 or one.shape != other.shape:
        raise ValueError(f"vectors of shapes {one.shape} and {other.shape}")
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    result: Any = spearmanr(one, other)
    return float(result.statistic)


def reliability(
    probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10
) -> tuple[tuple[Bin, ...], float]:
    """Do events given probability p happen p of the time? Equal-width bins of [0, 1], and the ECE.

    The expected calibration error is ``sum_b (n_b / n) |mean probability_b - share positive_b|`` (Naeini et
    al. 2015). Empty bins are left out; no rows give no bins and NaN.
    """
    values, truth = _ranking(probabilities, outcomes)
    if ((values < 0) | (values > 1)).any():
        raise ValueError("a probability lies outside [0, 1]")
    place = np.minimum((values * bins).astype(np.intp), bins - 1)  # 1.0 belongs to the last bin
    found = tuple(
        Bin(
            low=index / bins,
            high=(index + 1) / bins,
            count=int((place == index).sum()),
            mean=float(values[place == index].mean()),
            share=float(truth[place == index].mean()),
        )
        for index in np.unique(place).tolist()
    )
    error = sum(one.count * abs(one.mean - one.share) for one in found) / len(values) if found else math.nan
    return found, float(error)
