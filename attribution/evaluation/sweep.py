"""Precision, recall and rankings at every threshold and on every draw of the bootstrap at once.

A thousand draws over millions of characters would take minutes one by one. Here counts per cluster and level
of the score are multiplied with how often each draw holds each cluster: one matrix product, then sums.
"""

import math
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ragblame.attribution.evaluation.detection import Floats, Items, Points
from ragblame.attribution.evaluation.evidence import Estimate

LEVELS: Final = 1000  # scores with more distinct values are compared by so many equally filled steps
TOP: Final = 0.10  # share of the items that "precision at 10 %" looks at


class Sweep:
    """Every threshold of one method on every draw: all results are arrays [draws], nan where undefined.

    Precision and recall of an empty set are undefined, never 0 or 1. Highest score first throughout.
    """

    def __init__(self, items: Items, clusters: Sequence[int], draws: Floats) -> None:
        """``clusters``: of each answer, from 0. ``draws``: how often each is drawn, [draws, clusters]."""
        place = np.asarray(clusters, dtype=np.intp)
        judged, wanted = items.judged, items.wanted
        self._draws = draws
        self._level, self._wanted_level, self.levels = _levels(judged, wanted)
        self._place, self._wanted_place = place[judged.row], place[wanted.row]
        self._items = items

    def _count(self, place: NDArray[np.intp], level: NDArray[np.intp], weight: Floats) -> Floats:
        """Weight at or above each level, [draws, levels]."""
        kept = level < self.levels
        width = self._draws.shape[1]
        table = np.bincount(
            place[kept] * self.levels + level[kept], weights=weight[kept], minlength=width * self.levels
        )
        counted: Floats = np.cumsum(self._draws @ table.reshape(width, self.levels), axis=1)
        return counted

    def _sum(self, place: NDArray[np.intp], weight: Floats) -> Floats:
        counted: Floats = self._draws @ np.bincount(place, weights=weight, minlength=self._draws.shape[1])
        return counted

    @cached_property
    def above(self) -> Floats:
        """Weight of the items at or above each level, [draws, levels]."""
        return self._count(self._place, self._level, self._items.judged.weight)

    @cached_property
    def right(self) -> Floats:
        """Of these, the weight that is rightly there."""
        return self._count(self._place, self._level, self._items.judged.weight * self._items.is_right)

    @cached_property
    def found(self) -> Floats:
        """Wanted weight found at each level."""
        return self._count(self._wanted_place, self._wanted_level, self._items.wanted.weight)

    @cached_property
    def wanted(self) -> Floats:
        """All there is to be found, [draws]."""
        return self._sum(self._wanted_place, self._items.wanted.weight)

    @property
    def base_rate(self) -> Floats:
        """Share of the items that are right: the precision of flagging everything."""
        return _ratio(self.right[:, -1], self.above[:, -1])

    @property
    def average_precision(self) -> Floats:
        """Sum over levels of precision times gained recall; equal scores count as one step."""
        gained = np.diff(self.found, axis=1, prepend=0.0)
        precision = np.where(self.above > 0, self.right / np.maximum(self.above, 1e-300), 0.0)
        return _ratio((precision * gained).sum(axis=1), self.wanted)

    @property
    def auroc(self) -> Floats:
        """Probability that a right item is scored above a wrong one, ties half (Mann-Whitney)."""
        right, wrong = self.right, self.above - self.right
        gained = np.diff(wrong, axis=1, prepend=0.0)
        before = np.concatenate((np.zeros((len(right), 1)), right[:, :-1]), axis=1)
        return _ratio((gained * (before + right) / 2).sum(axis=1), right[:, -1] * wrong[:, -1])

    @property
    def precision_at_top(self) -> Floats:
        """Precision among the top tenth of the items; of a tie across the border its expected part."""
        size = np.ceil(np.round(TOP * self.above[:, -1:], 9))
        at = np.argmax(self.above >= size * (1 - 1e-12), axis=1)[:, None]
        before = np.maximum(at - 1, 0)
        is_first = at == 0
        low = np.where(is_first, 0.0, np.take_along_axis(self.above, before, axis=1))
        low_right = np.where(is_first, 0.0, np.take_along_axis(self.right, before, axis=1))
        high = np.take_along_axis(self.above, at, axis=1)
        part = (size - low) / np.maximum(high - low, 1e-300)
        hits = low_right + part * (np.take_along_axis(self.right, at, axis=1) - low_right)
        return _ratio(hits[:, 0], size[:, 0])

    @property
    def best_f1(self) -> Floats:
        """F1 at the best threshold of each draw: chosen on the data it is measured on, so an upper bound."""
        precision = self.right / np.maximum(self.above, 1e-300)
        recall = self.found / np.maximum(self.wanted, 1e-300)[:, None]
        best: Floats = (2 * precision * recall / np.maximum(precision + recall, 1e-300)).max(axis=1)
        return np.where(self.wanted > 0, best, np.nan)

    @cached_property
    def precision(self) -> Floats:
        """Of the method's own rule."""
        flag = self._items.judged.weight * self._items.judged.is_flagged
        return _ratio(self._sum(self._place, flag * self._items.is_right), self._sum(self._place, flag))

    @cached_property
    def recall(self) -> Floats:
        """Of the method's own rule."""
        found = self._items.wanted.weight * self._items.wanted.is_flagged
        return _ratio(self._sum(self._wanted_place, found), self.wanted)

    @property
    def f1(self) -> Floats:
        """Of the method's own rule; 0 where nothing flagged is right."""
        precision, recall = np.nan_to_num(self.precision), self.recall
        both = precision + recall
        return np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1.0), both)

    @cached_property
    def false_alarms(self) -> Floats:
        """Share of the items that are not right and flagged all the same."""
        wrong = self._items.judged.weight * ~self._items.is_right
        return _ratio(
            self._sum(self._place, wrong * self._items.judged.is_flagged), self._sum(self._place, wrong)
        )


def resamples(sources: Sequence[Hashable], *, seed: int, draws: int) -> tuple[list[int], Floats]:
    """The cluster bootstrap (as ``statistics.bootstrap``), as counts that a matrix product can use.

    Returns the cluster of each answer, from 0, and how often each cluster is drawn, [1 + draws, clusters];
    row 0 draws every cluster once and so gives the figure itself.
    """
    numbers = {source: index for index, source in enumerate(dict.fromkeys(sources))}
    count = len(numbers)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=draws).astype(np.float64)
    return [numbers[source] for source in sources], np.concatenate((np.ones((1, count)), drawn))


def share(hits: Floats, weights: Floats, clusters: Sequence[int], draws: Floats) -> Floats:
    """Weighted share of hits, [draws]. ``hits`` in [0, 1], ``weights`` and ``clusters``: one per thing."""
    place = np.asarray(clusters, dtype=np.intp)
    width = draws.shape[1]
    part = draws @ np.bincount(place, weights=hits * weights, minlength=width)
    return _ratio(part, draws @ np.bincount(place, weights=weights, minlength=width))


def estimate(values: Floats, n: int) -> Estimate:
    """A figure from its values [1 + draws]: the first on the rows as they are, the others give 95 %."""
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    return Estimate(
        value=float(values[0]), low=float(low), high=float(high), n=n, dropped=len(values) - 1 - len(drawn)
    )


def p_value(differences: Floats) -> float:
    """Two-sided bootstrap p of "no difference" from its values [1 + draws], as in ``statistics.paired``."""
    drawn = differences[1:][np.isfinite(differences[1:])]
    if not len(drawn):
        return math.nan
    return float(min(1.0, 2 * (1 + min((drawn <= 0).sum(), (drawn >= 0).sum())) / (1 + len(drawn))))


def _levels(judged: Points, wanted: Points) -> tuple[NDArray[np.intp], NDArray[np.intp], int]:
    """Level of every thing, 0 for the highest score; ``levels`` itself for what is never found."""
    distinct = np.unique(judged.score)[::-1]
    if len(distinct) > LEVELS:
        order = np.sort(judged.score)[::-1]
        distinct = np.unique(order[np.linspace(0, len(order) - 1, LEVELS).astype(np.intp)])[::-1]
    levels = max(len(distinct), 1)
    # A level reaches down to its own value: what lies between two values belongs to the lower one.
    mine = np.searchsorted(-distinct, -judged.score, side="left")
    theirs = np.searchsorted(-distinct, -wanted.score, side="left")
    theirs = np.where(np.isneginf(wanted.score), levels, np.minimum(theirs, levels))
    return np.minimum(mine, levels - 1), theirs, levels


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)
