"""How observations are counted: which of them a question is about, and a figure's mean with its interval.

Shared by all tables of the known-cause world, so that "labelled", "found" and "first" mean the same in each.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ragblame.attribution.evaluation.cells import Cell
from ragblame.attribution.evaluation.evidence import Estimate
from ragblame.attribution.evaluation.observations import Observation
from ragblame.attribution.evaluation.statistics import bootstrap

Figure = Callable[[Observation], float]  # NaN: the question does not arise


def labelled(rows: Sequence[Observation], *cells: Cell) -> list[Observation]:
    """The observations that behaviour could label, of these cells or of all."""
    return [one for one in rows if one.behaviour.is_labelled and (not cells or one.item.cell in cells)]


def mean(rows: Sequence[Observation], figure: Figure, *, seed: int) -> Estimate:
    """Mean of a figure over the rows where it exists, with its interval."""
    values = np.array([figure(one) for one in rows])
    kept = np.isfinite(values)
    values, clusters = values[kept], [one.cluster for one, keep in zip(rows, kept, strict=True) if keep]
    strata = [one.model for one, keep in zip(rows, kept, strict=True) if keep]
    if not len(values):
        return Estimate(value=float("nan"), low=float("nan"), high=float("nan"), n=0)
    return bootstrap(lambda index: float(values[index].mean()), clusters, seed=seed, strata=strata)


def found(scores: NDArray[np.float64], causes: Sequence[int]) -> float:
    """How likely the ``len(causes)`` highest scores are exactly the causes, ties broken at random: [0, 1]."""
    k = len(causes)
    if not k or not np.isfinite(scores).all():
        return float("nan")
    border = np.sort(scores)[-k]
    above = set(np.flatnonzero(scores > border).tolist())
    level = set(np.flatnonzero(scores == border).tolist())
    if not above <= set(causes) or not set(causes) <= above | level:
        return 0.0
    ways = 1.0
    for index in range(k - len(above)):  # all of the k - len(above) draws from the tie must be causes
        ways *= (k - len(above) - index) / (len(level) - index)
    return ways


def top_one(scores: NDArray[np.float64], causes: Sequence[int]) -> float:
    """Whether the highest score is a cause, ties broken at random: [0, 1]; NaN without a cause."""
    if not causes or not np.isfinite(scores).all():
        return float("nan")
    best = np.flatnonzero(scores == scores.max())
    return float(np.isin(best, list(causes)).mean())
