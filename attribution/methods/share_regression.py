"""Shapley values from some coalitions, with errors: KernelSHAP's regression, what it misses modelled.

Coalitions come in complementary pairs. Only the odd part ``(v(S) - v(not S)) / 2`` of a game reaches its
Shapley values; what two chunks do together is even and cancels (Covert & Lee 2021, arXiv 2012.01536). Paired
KernelSHAP fits that odd part by a sum over chunks and calls the rest noise. But v is no noise, and an answer
depends on few chunks, so the rest is a Gaussian process over coalitions here (universal kriging): one length
per chunk, found by restricted maximum likelihood from both parts, beside a white part without any structure.
Its Shapley values have a closed form. Known values are met exactly: shares sum to ``v(all) - v(none)``, games
of single chunks and pairs are exact from n + 1 pairs, and once all coalitions are known the shares are exact
and their errors 0.

With ``s`` in {-1, 1}^n for a coalition, a ``theta_j >= 0`` for each chunk and ``rho_j = tanh(theta_j / 2)``:

    k(s, t) = prod_j exp(-theta_j [s_j != t_j]) = prod_j (1 + rho_j s_j t_j) / (1 + rho_j)
    odd part  exp(-sum theta / 2) sinh(sum_j theta_j s_j t_j / 2); even part: the same with cosh
    phi_i k(., t) = rho_i t_i / (1 + rho_i) * integral over u in [-1, 1] of
                    prod_(j != i) (1 + rho_j t_j u) / (1 + rho_j)

because ``|S|! (n-|S|-1)! / n!`` is the integral of ``p^|S| (1-p)^(n-1-|S|)`` over p in [0, 1] (Owen 1972),
and u = 2p - 1. The integrand is a polynomial of degree n - 1: Gauss-Legendre quadrature is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from ragblame.errors import InputError

Array = NDArray[np.float64]

# Priors, log-normal and wide: a chunk may change everything or nothing, the white part may be most or none.
TYPICAL_THETA, TYPICAL_WHITE, SPREAD = 0.3, 0.05, 2.0
THETA_BOUNDS = (1e-4, 8.0)  # at 8 the two sides of a chunk have nothing in common: tanh(4) = 0.9993
WHITE_BOUNDS = (1e-6, 1e3)
ROUNDING = 1e-10  # part of the largest value that float64 cannot tell from 0 after the algebra below
ITERATIONS = 60


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimate:
    """Estimated quantities of one game, and what is not known about them; unit of the values."""

    values: Array  # [quantity]
    covariance: Array  # [quantity, quantity]

    @property
    def errors(self) -> Array:
        """One standard error of each quantity, shape [quantity]."""
        found: Array = np.sqrt(np.maximum(np.diagonal(self.covariance), 0.0))
        return found

    def error_of(self, weights: Array) -> float:
        """Standard error of a weighted sum of the quantities; of several together, with ones."""
        return float(np.sqrt(max(float(weights @ self.covariance @ weights), 0.0)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Half:
    """What the values of one parity say once the process is known; covariances are relative to its scale."""

    factor: tuple[Array, bool]  # Cholesky factor of the covariance of the pairs
    design: (
        Array  # [pair, column] of the part that is not shrunk: signs in the odd half, ones in the even one
    )
    precision: Array  # [column, column], inverse of design' covariance^-1 design
    coefficients: Array  # [column]
    residual: Array  # [pair], covariance^-1 (values - design @ coefficients)
    unexplained: float  # the residual's sum of squares in units of the relative covariance
    surprise: float  # mean square of leave-one-out errors over their relative variance


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittedGame:
    """One game as far as some pairs of its coalitions tell. Made by ``fit``."""

    signs: Array  # [pair, player]
    theta: Array  # [player], how much a chunk matters to what others add
    white: float  # variance of the white part of a pair, relative to the process
    scale: float  # variance of the process, square of the values' unit
    odd: _Half
    even: _Half

    def shares(self) -> Estimate:
        """Shapley values, [player]."""
        rho, signs = np.tanh(self.theta / 2), self.signs
        n = len(rho)
        nodes, weights = np.polynomial.legendre.leggauss(n // 2 + 1)
        factors = (1 + signs[:, :, None] * rho[:, None] * nodes) / (1 + rho[:, None])  # [pair, player, node]
        others = factors.prod(axis=1)[:, None, :] / factors
        cross = (rho / (1 + rho) * signs * (others @ weights)).T
        product, both = _square(nodes, weights)
        ratio = (1 + rho[:, None] * product) / (1 + rho[:, None])  # [player, pair of nodes]
        part = (rho / (1 + rho))[:, None] / ratio
        measure = both * ratio.prod(axis=0)
        prior = (part * product * measure) @ part.T
        np.fill_diagonal(prior, part @ measure)
        inside, outside = _share_weights(n)
        size = _size(signs)
        cross += self.white * np.where(signs.T > 0, inside[size], outside[size])
        prior += self.white * _white_share_covariance(n)
        return self._predict(self.odd, cross, prior, 2 * np.eye(n))

    def interactions(self, pairs: Sequence[tuple[int, int]]) -> Estimate:
        """Shapley interaction indices (Grabisch & Roubens 1999), one per pair of different players.

        ``sum over S without i, j of |S|! (n-|S|-2)! / (n-1)! (v(S+ij) - v(S+i) - v(S+j) + v(S))``. Negative:
        the two are redundant evidence. Positive: the span needs both. Only errors are right in the result's
        covariance, not what pairs have in common.
        """
        rho, signs = np.tanh(self.theta / 2), self.signs
        n, count = len(rho), len(pairs)
        nodes, weights = np.polynomial.legendre.leggauss(n // 2 + 1)
        factors = (1 + signs[:, :, None] * rho[:, None] * nodes) / (1 + rho[:, None])
        whole = factors.prod(axis=1)
        product, both = _square(nodes, weights)
        ratio = (1 + rho[:, None] * product) / (1 + rho[:, None])
        measure = both * ratio.prod(axis=0)
        neither, white = _interaction_weights(n)
        size = _size(signs)
        cross, prior = np.zeros((count, len(signs))), np.zeros(count)
        for number, (i, j) in enumerate(pairs):
            strength = rho[i] * rho[j] / ((1 + rho[i]) * (1 + rho[j]))
            rest = whole / (factors[:, i] * factors[:, j])
            sides = signs[:, i] * signs[:, j]
            cross[number] = 2 * strength * sides * (rest @ weights)
            prior[number] = 4 * strength * float((measure / (ratio[i] * ratio[j])).sum())
            inside = (signs[:, i] > 0).astype(int) + (signs[:, j] > 0)
            # S - {i, j} has size - inside players; the sign is that of the pair's corner
            cross[number] += self.white * 2 * sides * neither[size - inside]
            prior[number] += self.white * white
        return self._predict(self.even, cross, np.diag(prior), np.zeros((count, 1)))

    def _predict(self, half: _Half, cross: Array, prior: Array, direct: Array) -> Estimate:
        """Best linear unbiased prediction of quantities from their covariance with what was observed."""
        solved = cho_solve(half.factor, cross.T)  # [pair, quantity]
        left = direct - solved.T @ half.design
        covariance = prior - cross @ solved + left @ half.precision @ left.T
        # Where leaving a pair out surprises more than the process expects, the errors grow by as much.
        scale = max(self.scale, half.surprise)
        return Estimate(
            values=direct @ half.coefficients + cross @ half.residual, covariance=scale * covariance
        )


def fit(signs: Array, odd: Array, even: Array) -> FittedGame:
    """The process of largest posterior density, given some pairs of coalitions.

    ``signs``: [pair, player], 1 where a player is in the pair's first coalition and -1 where not; no pair
    twice; the pair of all and none is among them. ``odd`` and ``even``: [pair], half of the difference and of
    the sum of the values of the first coalition and its complement. Raises ``InputError`` with fewer than
    n + 1 pairs, unless these are all there are.
    """
    pairs, n = signs.shape
    if n < 1 or pairs < min(n + 1, 1 << (n - 1)):
        raise InputError(f"{n} chunks need at least {n + 1} pairs of coalitions, not {pairs}")
    unit = max(float(np.abs(odd).max()), float(np.ptp(even)), 1e-300)
    parts = ((odd / unit, signs), ((even - even.mean()) / unit, np.ones((pairs, 1))))
    free = max(2 * pairs - n - 1, 1)

    def loss(point: Array) -> tuple[float, Array]:
        """-2 log posterior with the scale profiled out, and its slopes in log theta and log white."""
        theta, white = np.exp(point[:-1]), float(np.exp(point[-1]))
        kernels = _kernels(signs, theta)
        value, rest, solved = 0.0, 0.0, []
        for (values, design), kernel in zip(parts, kernels, strict=True):
            factor = cho_factor(kernel + white * np.eye(pairs), lower=True)
            inverse = cho_solve(factor, np.eye(pairs))
            weighted = inverse @ design
            normal = cho_factor(design.T @ weighted, lower=True)
            projection = inverse - weighted @ cho_solve(normal, weighted.T)
            residual = projection @ values
            rest += float(values @ residual)
            value += 2 * float(np.log(np.diagonal(factor[0])).sum() + np.log(np.diagonal(normal[0])).sum())
            solved.append((projection, residual))
        rest = max(rest, ROUNDING**2)
        odd_slope, even_slope = (p - free / rest * np.outer(r, r) for p, r in solved)  # by the covariances
        odd_kernel, even_kernel = kernels
        # d odd / d theta_j = (s_j t_j even - odd) / 2, and the other way round
        mixed = odd_slope * even_kernel + even_slope * odd_kernel
        own = float((odd_slope * odd_kernel + even_slope * even_kernel).sum())
        by_theta = theta * (((mixed @ signs) * signs).sum(axis=0) - own) / 2
        by_white = white * float(np.trace(odd_slope) + np.trace(even_slope))
        away = (point - start) / SPREAD
        return (
            value + free * float(np.log(rest)) + float(away @ away),
            np.append(by_theta, by_white) + 2 * away / SPREAD,
        )

    start = np.log(np.append(np.full(n, TYPICAL_THETA), TYPICAL_WHITE))
    limits = [*[tuple(np.log(THETA_BOUNDS))] * n, tuple(np.log(WHITE_BOUNDS))]
    options = {"maxiter": ITERATIONS}
    point = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=limits, options=options).x
    theta, white = np.exp(point[:-1]), float(np.exp(point[-1]))
    odd_half, even_half = (
        _half(values * unit, design, kernel + white * np.eye(pairs))
        for (values, design), kernel in zip(parts, _kernels(signs, theta), strict=True)
    )
    return FittedGame(
        signs=signs,
        theta=theta,
        white=white,
        scale=max((odd_half.unexplained + even_half.unexplained) / free, (ROUNDING * unit) ** 2),
        odd=odd_half,
        even=even_half,
    )


def _half(values: Array, design: Array, covariance: Array) -> _Half:
    factor = cho_factor(covariance, lower=True)
    weighted = cho_solve(factor, design)
    precision = np.linalg.inv(design.T @ weighted)
    coefficients = precision @ (weighted.T @ values)
    remaining = values - design @ coefficients
    residual = cho_solve(factor, remaining)
    # Leaving pair p out: error residual_p / projection_pp, variance 1 / projection_pp (Dubrule 1983). A pair
    # that alone settles a column of the design is never wrong and says nothing.
    spare = np.diagonal(cho_solve(factor, np.eye(len(values))) - weighted @ precision @ weighted.T)
    telling = spare > 1e-9 * spare.max(initial=0.0)
    surprise = float((residual[telling] ** 2 / spare[telling]).mean()) if telling.any() else 0.0
    return _Half(
        factor=factor,
        design=design,
        precision=precision,
        coefficients=coefficients,
        residual=residual,
        unexplained=float(remaining @ residual),
        surprise=surprise,
    )


def _kernels(signs: Array, theta: Array) -> tuple[Array, Array]:
    """Odd and even part of the kernel between all pairs, [pair, pair]."""
    agreement, half = (signs * theta) @ signs.T / 2, theta.sum() / 2
    near, far = np.exp(agreement - half), np.exp(-agreement - half)
    return (near - far) / 2, (near + far) / 2


def _square(nodes: Array, weights: Array) -> tuple[Array, Array]:
    """Products of two nodes and of their weights, for integrals over [-1, 1] twice, flat."""
    return (nodes[:, None] * nodes).ravel(), (weights[:, None] * weights).ravel()


def _size(signs: Array) -> NDArray[np.int64]:
    """Players in each pair's first coalition."""
    found: NDArray[np.int64] = np.sum(signs > 0, axis=1, dtype=np.int64)
    return found


def _share_weights(n: int) -> tuple[Array, Array]:
    """What a pair's odd part adds to the Shapley value of a player inside and outside, by size 0 to n."""
    inside, outside = np.zeros(n + 1), np.zeros(n + 1)
    for size in range(n):
        inside[size + 1] = 2 / (n * comb(n - 1, size))
        outside[size] = -2 / (n * comb(n - 1, size))
    return inside, outside


def _white_share_covariance(n: int) -> Array:
    """Covariance of the Shapley values of a game whose odd parts are independent with variance 1."""
    inside, outside = _share_weights(n)
    own = shared = 0.0
    for size in range(n):
        own += comb(n - 1, size) * (inside[size + 1] ** 2 + outside[size] ** 2)
    for size in range(n - 1):  # players beside the two
        shared += comb(n - 2, size) * (inside[size + 2] ** 2 + outside[size] ** 2)
        shared += 2 * comb(n - 2, size) * inside[size + 1] * outside[size + 1]
    # every pair was counted from both of its ends
    return np.full((n, n), shared / 2) + np.eye(n) * (own - shared) / 2


def _interaction_weights(n: int) -> tuple[Array, float]:
    """Weight of ``|S|`` players beside the two, by size, and an index's variance from white even parts."""
    weights = np.zeros(max(n - 1, 1))
    for size in range(n - 1):
        weights[size] = 1 / ((n - 1) * comb(n - 2, size))
    variance = sum(8 * comb(n - 2, size) * float(weights[size]) ** 2 for size in range(n - 1))
    return weights, variance
