"""From scores and labels to thresholds with a stated error rate: calibrated probability, bounded misses.

A probability is worth its name when events given 0.8 happen four times in five; a threshold is worth a
promise when it was chosen on sources that the model was not fitted to. Both are learned here from labelled
answers, in numpy alone, and kept as ``Thresholds``.
"""

import hashlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragblame.errors import InputError

Floats: TypeAlias = NDArray[np.float64]
Curve: TypeAlias = tuple[tuple[float, float], ...]  # raw score -> probability, both in [0, 1], rising

MAX_KNOTS: Final = 64  # of a stored curve; more would only tell the labels' noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Controlled:
    """A threshold that keeps its promise, and what it costs on the calibration itself."""

    flag_at: float  # flagged from this score on
    missed: float  # mean share of misses over the units there, [0, 1]
    bound: float  # what the promise is about: n/(n+1) missed + 1/(n+1), at most alpha
    units: int


def needed_units(alpha: float) -> int:
    """The least number of units with which a miss rate of ``alpha`` can be promised at all: 1/alpha - 1."""
    return math.ceil(round(1 / alpha - 1, 9))


def control_misses(
    scores: ArrayLike, is_unsupported: ArrayLike, units: Sequence[Hashable], alpha: float
) -> Controlled:
    """The highest threshold whose expected share of misses is at most ``alpha``.

    Conformal risk control (Angelopoulos, Bates, Fisch, Lei & Schuster 2022, eq. 4): with n exchangeable
    units and a loss in [0, 1] that falls as the threshold falls, the largest threshold with
    ``n/(n+1) mean loss + 1/(n+1) <= alpha`` has an expected loss of at most alpha on a fresh unit. A unit is
    a source (rows of one share their context and their luck), and its loss the part of its unsupported rows
    with a score below the threshold; units with nothing unsupported have nothing to miss and do not count.

    ``scores``: [rows], higher is more doubtful; -inf: not found at any threshold. ``units``: [rows]. The
    guarantee needs scores that were not fitted to these rows. Raises ``InputError`` where too few units have
    something unsupported to promise ``alpha``, with the number needed, and where no threshold keeps it.
    """
    if not 0 < alpha < 1:
        raise InputError(f"a miss rate of {alpha} cannot be promised: give one between 0 and 1, such as 0.1")
    values, truth = _rows(scores, is_unsupported)
    if len(units) != len(values):
        raise ValueError(f"{len(units)} units for {len(values)} rows")
    names: dict[Hashable, int] = {}
    place = np.array([names.setdefault(unit, len(names)) for unit in units], dtype=np.intp)[truth]
    wanted = values[truth]
    kept, place = np.unique(place, return_inverse=True)
    n = len(kept)
    if n < (needed := needed_units(alpha)):
        raise InputError(
            f"a miss rate of {alpha:g} needs {needed} sources with something unsupported in them, and there "
            f"are {n}: label {needed - n} more, or promise {1 / (n + 1):.2g}"
        )
    weight = (1 / np.bincount(place))[place] / n  # each unit counts once, however many rows it has
    order = np.argsort(wanted, kind="stable")
    ranked = wanted[order]
    below = np.concatenate(([0.0], np.cumsum(weight[order])))[np.searchsorted(ranked, ranked)]
    bounds = n / (n + 1) * below + 1 / (n + 1)
    good = np.flatnonzero((bounds <= alpha + 1e-12) & np.isfinite(ranked))
    if not len(good):
        lost = float(weight[np.isneginf(wanted)].sum())
        raise InputError(
            f"no threshold misses at most {alpha:g}: {lost:.0%} of what is unsupported is in no span, "
            "whatever the threshold; promise more misses or another level"
        )
    best = int(good[-1])
    return Controlled(
        flag_at=float(ranked[best]), missed=float(below[best]), bound=float(bounds[best]), units=n
    )


def isotonic(scores: ArrayLike, is_unsupported: ArrayLike) -> Curve:
    """The rising step function nearest to the labels (Zadrozny & Elkan 2002), by pooling adjacent violators.

    Knots stand at the mean score of each pooled block, so that scores between two blocks get a probability
    between theirs. Blocks are shrunk towards the base rate by one observation each: a block of three
    positives is no proof of certainty. Raises ``InputError`` when all labels are alike.
    """
    values, truth = _rows(scores, is_unsupported)
    _check_both(truth)
    order = np.argsort(values, kind="stable")
    base = float(truth.mean())
    blocks: list[tuple[float, float, float]] = []  # sum of scores, positives, count
    at = 0
    ranked, hits = values[order], truth[order].astype(np.float64)
    while at < len(ranked):
        end = int(np.searchsorted(ranked, ranked[at], side="right"))  # equal scores are one point
        blocks.append((float(ranked[at:end].sum()), float(hits[at:end].sum()), float(end - at)))
        while len(blocks) > 1 and blocks[-2][1] / blocks[-2][2] >= blocks[-1][1] / blocks[-1][2]:
            last = blocks.pop()
            blocks[-1] = tuple(map(sum, zip(blocks[-1], last, strict=True)))  # type: ignore[assignment]
        at = end
    return _knots([(total / count, (hit + base) / (count + 1)) for total, hit, count in blocks])


def platt(scores: ArrayLike, is_unsupported: ArrayLike) -> Curve:
    """A logistic curve over the score's log-odds: beta calibration with one slope, a Platt scaling of logits.

    Platt (1999) with his corrected targets (n+ + 1)/(n+ + 2) and 1/(n- + 2), by Newton's method with
    halved steps (Lin et al. 2007). A slope below zero would turn the score around and is refused with
    ``InputError``, as are labels that are all alike. Two numbers are learned, so it is the one to take with
    few labels.
    """
    values, truth = _rows(scores, is_unsupported)
    _check_both(truth)
    logits = _logit(values)
    hits, count = int(truth.sum()), len(truth)
    target = np.where(truth, (hits + 1) / (hits + 2), 1 / (count - hits + 2))
    design = np.stack([logits, np.ones(count)], axis=1)

    def loss(at: Floats) -> float:
        z = design @ at
        return float((np.logaddexp(0.0, z) - target * z).sum() + 5e-7 * (at @ at))

    weights = np.array([0.0, float(np.log(target.mean() / (1 - target.mean())))])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -40, 40)))
        gradient = design.T @ (p - target) + 1e-6 * weights
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        part = 1.0
        while part > 1e-6 and loss(weights - part * step) > loss(weights):
            part /= 2  # a full Newton step may leap over the valley and never come back
        weights = weights - part * step
        if float(np.abs(step).max()) < 1e-9:
            break
    slope, offset = (float(weight) for weight in weights)
    if slope <= 0:
        raise InputError("the score falls where people find more: it is no score of what is unsupported")
    grid = np.linspace(-6, 6, MAX_KNOTS - 2)
    raw = np.concatenate(([0.0], 1 / (1 + np.exp(-grid)), [1.0]))
    p = 1 / (1 + np.exp(-np.clip(slope * _logit(raw) + offset, -40, 40)))
    return _knots(list(zip(raw.tolist(), p.tolist(), strict=True)))


def apply(curve: Curve, scores: ArrayLike) -> Floats:
    """Probabilities of scores, [rows]: linear between the knots, level beyond them."""
    raw, p = np.array(curve, dtype=np.float64).T
    found: Floats = np.interp(np.asarray(scores, dtype=np.float64), raw, p)
    return found


def half_of(source: str, seed: int = 0) -> int:
    """0 or 1: to which half a source belongs, the one that fits the curve or the one that makes the promise.

    By a hash of its name: whatever the order or the company of the rows, a source stays in its half.
    """
    return hashlib.sha256(f"{seed}\0{source}".encode("utf-8", "surrogatepass")).digest()[0] & 1


def _rows(scores: ArrayLike, is_unsupported: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(is_unsupported, dtype=np.bool_)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"scores of shape {values.shape} for labels of shape {truth.shape}")
    if np.isnan(values).any():
        raise ValueError("a score is NaN")
    return values, truth


def _check_both(truth: NDArray[np.bool_]) -> None:
    if not truth.any() or truth.all():
        what = "unsupported" if truth.any() else "supported"
        raise InputError(f"all {len(truth)} labelled rows are {what}: a probability needs both kinds")


def _logit(values: Floats) -> Floats:
    clipped = np.clip(values, 1e-6, 1 - 1e-6)
    logits: Floats = np.log(clipped / (1 - clipped))
    return logits


def _knots(points: Sequence[tuple[float, float]]) -> Curve:
    """At most ``MAX_KNOTS`` of them, strictly rising in the score, never falling in the probability."""
    rising: list[tuple[float, float]] = []
    for raw, p in sorted(points):
        raw, p = min(max(raw, 0.0), 1.0), min(max(p, 0.0), 1.0)
        if rising and raw <= rising[-1][0]:
            rising[-1] = (rising[-1][0], max(rising[-1][1], p))
        else:
            rising.append((raw, max(p, rising[-1][1]) if rising else p))
    if len(rising) > MAX_KNOTS:
        chosen = np.unique(np.linspace(0, len(rising) - 1, MAX_KNOTS).round().astype(int))
        rising = [rising[index] for index in chosen.tolist()]
    return tuple(rising)
