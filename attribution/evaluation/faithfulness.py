"""Do the shares tell what removing chunks does? Faithfulness of any method, read off the coalition table.

Each metric takes all methods at once, ``shares`` of shape [method, n] in any unit, and one span's ``values``
of shape [2**n] in nats (row m is v(mask m), bit i says that player i is in the prompt), and returns one
number per method. It asks what the model does without chunks, so it favours methods that were made by
removal: known causes, found by changing values, are the judge that none of them was fitted to.

Methods that rank by share meet ties (a sparse surrogate gives many zeros); those are broken at random by
``seed``, the same for all methods, so that no method gains by the order of the chunks.
"""

from collections.abc import Collection

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from ragblame.attribution.methods.coalitions import membership, sizes
from ragblame.errors import InputError

HELD_OUT = 64  # coalitions of a linear datamodeling score where more are left


def held_out(
    n: int, used: Collection[int] = (), *, count: int | None = HELD_OUT, seed: int
) -> NDArray[np.int64]:
    """Coalitions that the estimator has not looked at, drawn without replacement, shape [<= count].

    Each of the others is equally likely; ``count`` None takes them all. Exact Shapley looks at every
    coalition, so for it nothing can be held out: leave ``used`` empty and say so beside the number. Empty
    when all were used.
    """
    free = np.setdiff1d(np.arange(1 << n), np.fromiter(used, dtype=np.int64, count=len(used)))
    if count is None or len(free) <= count:
        return free
    return np.random.default_rng(seed).choice(free, size=count, replace=False)


def linear_datamodeling_score(shares: ArrayLike, values: ArrayLike, masks: ArrayLike) -> NDArray[np.float64]:
    """Spearman correlation, over ``masks``, between the sum of shares in S and v(S): [-1, 1], shape [method].

    LDS of Park et al. (arXiv 2303.14186), as ContextCite measures attribution (arXiv 2409.00729). A method
    whose sums are all alike orders nothing and gets 0; where v itself is the same in all masks, or fewer than
    3 are given, there is nothing to order and every method gets NaN. Sums that differ by rounding alone are
    alike.
    """
    table, by_method, n = _checked(shares, values)
    chosen = np.asarray(masks, dtype=np.int64)
    if len(chosen) < 3:
        return np.full(len(by_method), np.nan)
    predicted = by_method @ membership(n)[:, chosen].astype(np.float64)
    scale = np.abs(by_method).sum(axis=1, keepdims=True)
    step = np.where(scale > 0, scale, 1.0) * 1e-12
    expected = _centred_ranks(table[chosen][None])
    found = _centred_ranks(np.round(predicted / step))
    norm = np.sqrt((expected**2).sum())
    if norm == 0.0:
        return np.full(len(by_method), np.nan)
    lengths = np.sqrt((found**2).sum(axis=1)) * norm
    covariance = (found * expected).sum(axis=1)
    rho: NDArray[np.float64] = np.divide(covariance, lengths, out=np.zeros(len(by_method)), where=lengths > 0)
    return rho


def top_k_drop(shares: ArrayLike, values: ArrayLike, k: int, *, seed: int = 0) -> NDArray[np.float64]:
    """``v(all) - v(all without the k highest shares)`` in nats, shape [method]; the higher, the better."""
    table, order, n = _ordered(shares, values, seed)
    removed = _masks_of_top(order, _k_of(k, n))
    drop: NDArray[np.float64] = table[-1] - table[(len(table) - 1) ^ removed]
    return drop


def random_k_drop(values: ArrayLike, k: int) -> float:
    """The control of ``top_k_drop``: its mean over every choice of k chunks, in nats."""
    table, _, n = _checked(np.zeros((1, _players(values))), values)
    return float(table[-1] - table[sizes(n) == n - _k_of(k, n)].mean())


def deletion_curve(shares: ArrayLike, values: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """v after the 0 to n highest shares are removed, in nats, shape [method, n + 1]."""
    table, order, n = _ordered(shares, values, seed)
    removed = np.stack([_masks_of_top(order, k) for k in range(n + 1)], axis=1)
    curve: NDArray[np.float64] = table[(len(table) - 1) ^ removed]
    return curve


def insertion_curve(shares: ArrayLike, values: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """v with only the 0 to n highest shares in the prompt, in nats, shape [method, n + 1]."""
    table, order, n = _ordered(shares, values, seed)
    kept = np.stack([_masks_of_top(order, k) for k in range(n + 1)], axis=1)
    curve: NDArray[np.float64] = table[kept]
    return curve


def random_curve(values: ArrayLike) -> NDArray[np.float64]:
    """Mean v over all coalitions of each size 0 to n, in nats, shape [n + 1].

    The mean insertion curve of all orders; read backwards, their mean deletion curve.
    """
    table, _, n = _checked(np.zeros((1, _players(values))), values)
    size = sizes(n)
    return np.array([table[size == k].mean() for k in range(n + 1)])


def deletion_area(curve: ArrayLike) -> NDArray[np.float64]:
    """Mean height of ``v(all) - v`` under a deletion curve [..., n + 1], nats; the higher, the better.

    Area by the trapezoid rule over the part of chunks removed, 0 to 1 (Petsiuk et al. 2018, arXiv 1806.07421;
    there under the probability, the smaller the better).
    """
    heights = np.asarray(curve, dtype=np.float64)
    return _area(heights[..., :1] - heights)


def insertion_area(curve: ArrayLike) -> NDArray[np.float64]:
    """Mean height of ``v - v(none)`` under an insertion curve [..., n + 1], nats; the higher, the better."""
    heights = np.asarray(curve, dtype=np.float64)
    return _area(heights - heights[..., :1])


def comprehensiveness(shares: ArrayLike, values: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Mean of ``v(all) - v(all without the top k)`` over k = 1 .. ceil(n / 2), nats, [method]; high is good.

    ERASER's comprehensiveness (DeYoung et al. 2020, arXiv 1911.03429) averaged over sizes of the rationale
    (its area over the perturbation curve), in log-probability and chunks instead of probability and tokens.
    """
    curve = deletion_curve(shares, values, seed=seed)
    half = curve[:, 1 : curve.shape[1] // 2 + 1]
    scores: NDArray[np.float64] = (curve[:, :1] - half).mean(axis=1) if half.size else np.zeros(len(curve))
    return scores


def sufficiency(shares: ArrayLike, values: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Mean of ``v(all) - v(only the top k)`` over k = 1 .. ceil(n / 2), nats, shape [method]; low is good.

    ERASER's sufficiency, averaged as in ``comprehensiveness``. Negative: the other chunks spoke against it.
    """
    curve = insertion_curve(shares, values, seed=seed)
    half = curve[:, 1 : curve.shape[1] // 2 + 1]
    scores: NDArray[np.float64] = (curve[:, -1:] - half).mean(axis=1) if half.size else np.zeros(len(curve))
    return scores


def _area(heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Trapezoid rule over [0, 1]; a curve of one point has no area."""
    steps = heights.shape[-1] - 1
    if steps == 0:
        return np.zeros(heights.shape[:-1])
    area: NDArray[np.float64] = (heights[..., 1:] + heights[..., :-1]).sum(axis=-1) / (2 * steps)
    return area


def _centred_ranks(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks along the last axis, ties sharing their mean, minus their mean."""
    ranks: NDArray[np.float64] = rankdata(rows, axis=-1)
    centred: NDArray[np.float64] = ranks - ranks.mean(axis=-1, keepdims=True)
    return centred


def _masks_of_top(order: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """The coalition of the first k players of each order, shape [method]."""
    masks: NDArray[np.int64] = (1 << order[:, :k]).sum(axis=1, dtype=np.int64)
    return masks


def _ordered(
    shares: ArrayLike, values: ArrayLike, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    """The table, and each method's players by falling share, shape [method, n]."""
    table, by_method, n = _checked(shares, values)
    chance = np.broadcast_to(np.random.default_rng(seed).permutation(n), by_method.shape)
    return table, np.lexsort((chance, -by_method), axis=-1), n


def _k_of(k: int, n: int) -> int:
    if not 0 <= k <= n:
        raise InputError(f"the top {k} of {n} chunks: take between 0 and {n}")
    return k


def _players(values: ArrayLike) -> int:
    rows = np.shape(values)[0] if np.ndim(values) == 1 else 0
    if rows == 0 or rows & (rows - 1):
        raise InputError(f"a span's value table has shape [2**n], not {np.shape(values)}")
    return rows.bit_length() - 1


def _checked(shares: ArrayLike, values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    n = _players(values)
    by_method = np.asarray(shares, dtype=np.float64)
    if by_method.ndim != 2 or by_method.shape[1] != n:
        raise InputError(f"shares of {n} players have shape [method, {n}], not {by_method.shape}")
    if not np.isfinite(by_method).all():
        raise InputError("a share is not finite, so it cannot be ranked: leave that method out")
    return np.asarray(values, dtype=np.float64), by_method, n
