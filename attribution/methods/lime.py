"""LIME (Ribeiro et al. 2016, arXiv 1602.04938): a linear model of v(S) that is good close to the full prompt.

It costs as many coalitions as one is willing to score, whatever the number of players, and says by its R²
how far the effects of single chunks explain v at all: redundant chunks and chunks that need each other bend
v, and no weight per chunk can follow. Its shares are slopes near the full prompt and sum to no total.

Deviations from the paper and its ``lime_text``:

* what is explained is the span's log-probability in nats, not a class probability;
* coalitions are drawn without replacement, because there are only 2**n and the value of one never changes;
* the prompts with all and with no chunks are always among them, so the reliance is known;
* no feature selection and no ridge penalty by default (``lime_text``: 10 features, penalty 1, which would
  shrink nats towards 0); with too few samples the least-squares solution of smallest norm is taken;
* R² is also measured on coalitions that the fit has not seen.

Players may be chunks or, with ``sentence_layout``, sentences: only the layout knows.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragblame.attribution.layout import Layout
from ragblame.attribution.methods.fingerprint import settings_hash
from ragblame.attribution.methods.span_values import span_values
from ragblame.attribution.methods.what_if import span_value
from ragblame.attribution.scorer import Scorer, spent_since
from ragblame.errors import InputError
from ragblame.records import Attribution, CoalitionValues, Cost, Method, Span

SAMPLES = 64  # coalitions that are fitted, those with all and no players among them
HELD_OUT = 16  # more coalitions, to measure R² on
WIDTH = 0.25  # of the kernel, in cosine distance: lime_text's default (25, its distances are times 100)
LEAST_HELD_OUT = 3  # fewer values have no variance worth explaining


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Surrogate:
    """A fitted linear model ``v(S) ~ intercept + sum of the weights in S`` for each of several games."""

    weights: NDArray[np.float64]  # [player, game], unit of the values
    intercept: NDArray[np.float64]  # [game]
    r_squared: NDArray[np.float64]  # [game], <= 1, weighted by the kernel; NaN where v is constant

    def predict(self, inside: ArrayLike) -> NDArray[np.float64]:
        """Values of coalitions given as membership [coalition, player], shape [coalition, game]."""
        predicted: NDArray[np.float64] = np.asarray(inside, np.float64) @ self.weights + self.intercept
        return predicted


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LimeFit:
    """A surrogate with the coalitions it was fitted to and those it was checked on."""

    surrogate: Surrogate
    held_out_r_squared: NDArray[np.float64]  # [game], on ``held_out``; NaN: too few, or v is constant there
    masks: tuple[int, ...]  # fitted; the first is all players, the second none
    held_out: tuple[int, ...]
    values: NDArray[np.float64]  # [coalition, game], of ``masks``


@dataclass(frozen=True, slots=True, kw_only=True)
class LimeResult:
    """Shares of every span and how far to trust a linear model of it."""

    attributions: tuple[Attribution, ...]  # one per span, method LIME; shares in nats
    r_squared: tuple[float | None, ...]  # one per span, on the samples it was fitted to; None: v is constant
    held_out_r_squared: tuple[float | None, ...]  # on fresh coalitions; None: too few are left, or constant
    masks: tuple[int, ...]  # the coalitions that were fitted
    weights: tuple[tuple[float, ...], ...]  # [span][player], nats; differs from shares where players are
    # sentences


def kernel(sizes: ArrayLike, n: int, *, width: float = WIDTH) -> NDArray[np.float64]:
    """Weight of coalitions of these sizes among n players, (0, 1], shape of ``sizes``.

    ``sqrt(exp(-D² / width²))`` with the cosine distance ``D = 1 - sqrt(size / n)`` between the coalition's
    membership and all ones (as ``lime_text`` computes the paper's kernel; the root is in its code only).
    """
    distance = 1.0 - np.sqrt(np.asarray(sizes, np.float64) / max(n, 1))
    weights: NDArray[np.float64] = np.sqrt(np.exp(-((distance / width) ** 2)))
    return weights


def draw_coalitions(n: int, count: int, *, seed: int, known: Collection[int] = ()) -> tuple[int, ...]:
    """Coalitions drawn as LIME draws them, none twice and none of ``known``; at most ``count``.

    The number of players removed is uniform over 1 to n, then which ones. Fewer come back only when there
    are no others. Seeded; time grows when nearly all 2**n are asked for.
    """
    full = (1 << n) - 1
    taken = {*known, full}
    wanted = min(count, (1 << n) - len(taken))
    rng = np.random.default_rng(seed)
    drawn: list[int] = []
    while len(drawn) < wanted:
        removed = rng.permutation(n)[: rng.integers(1, n + 1)]
        mask = full
        for player in removed.tolist():
            mask &= ~(1 << player)
        if mask not in taken:
            taken.add(mask)
            drawn.append(mask)
    return tuple(drawn)


def fit_surrogate(
    inside: ArrayLike, values: ArrayLike, *, width: float = WIDTH, ridge: float = 0.0
) -> Surrogate:
    """Weighted ridge regression of values on membership, the intercept not penalised.

    ``inside``: [coalition, player], 1 where the player is in. ``values``: [coalition, game]. ``ridge``: added
    to the squared norm of the weights, 0 for plain least squares (of smallest norm where it is not unique).
    Raises ``InputError`` when there is no coalition, the shapes disagree or a setting is out of range.
    """
    design, table = np.asarray(inside, np.float64), np.asarray(values, np.float64)
    if design.ndim != 2 or table.ndim != 2 or len(design) != len(table) or not len(design):
        raise InputError(
            f"a surrogate needs membership [coalition, player] and values [coalition, game] of at least one "
            f"coalition, not shapes {design.shape} and {table.shape}"
        )
    if width <= 0 or ridge < 0:
        raise InputError(f"a kernel of width {width} with ridge {ridge}: take a width > 0 and a ridge >= 0")
    weight = kernel(design.sum(axis=1), design.shape[1], width=width)[:, None]
    middle = (weight * design).sum(axis=0) / weight.sum()
    level = (weight * table).sum(axis=0) / weight.sum()
    root = np.sqrt(weight)
    rows, targets = root * (design - middle), root * (table - level)
    if ridge:  # the penalty as more rows: sqrt(ridge) * weights should be 0
        players = design.shape[1]
        rows = np.concatenate([rows, np.sqrt(ridge) * np.eye(players)])
        targets = np.concatenate([targets, np.zeros((players, table.shape[1]))])
    weights = np.linalg.lstsq(rows, targets, rcond=None)[0]
    intercept = level - middle @ weights
    explained = r_squared(table, design @ weights + intercept, weight[:, 0])
    return Surrogate(weights=weights, intercept=intercept, r_squared=explained)


def r_squared(values: ArrayLike, predicted: ArrayLike, weight: ArrayLike) -> NDArray[np.float64]:
    """``1 - sum w (v - predicted)² / sum w (v - mean)²`` for each game, NaN where v is constant up to 1e-9.

    Both tables are [coalition, game], ``weight`` [coalition]; the mean is the weighted one of these values.
    """
    table, share = np.asarray(values, np.float64), np.asarray(weight, np.float64)[:, None]
    spread = (share * (table - (share * table).sum(axis=0) / share.sum()) ** 2).sum(axis=0)
    missed = (share * (table - np.asarray(predicted, np.float64)) ** 2).sum(axis=0)
    is_constant = np.ptp(table, axis=0) < 1e-9
    return np.where(is_constant, np.nan, 1.0 - missed / np.where(is_constant, 1.0, spread))


def fit_lime(
    score: Callable[[Sequence[int]], ArrayLike],
    n: int,
    *,
    samples: int = SAMPLES,
    held_out: int = HELD_OUT,
    width: float = WIDTH,
    ridge: float = 0.0,
    seed: int = 0,
) -> LimeFit:
    """Fit a linear model to ``samples`` coalitions of n players and check it on ``held_out`` fresh ones.

    ``score``: values [coalition, game] of the coalitions it is given, called once. Where there are not so
    many, a quarter of the 2**n is held out, and none if that is fewer than ``LEAST_HELD_OUT``. Raises
    ``InputError`` for fewer than 2 samples or settings out of range.
    """
    if samples < 2 or held_out < 0:
        raise InputError(f"LIME needs samples >= 2 and held_out >= 0, not {samples} and {held_out}")
    full = (1 << n) - 1
    spare = min(held_out, (1 << n) // 4)
    if spare < LEAST_HELD_OUT:
        spare = 0
    wanted = min(samples, (1 << n) - spare)
    masks = tuple(dict.fromkeys((full, 0)))
    drawn = draw_coalitions(n, wanted - len(masks) + spare, seed=seed, known=masks)
    fresh = drawn[len(drawn) - spare :]
    masks += drawn[: len(drawn) - spare]
    table = np.asarray(score((*masks, *fresh)), np.float64)
    surrogate = fit_surrogate(_membership(masks, n), table[: len(masks)], width=width, ridge=ridge)
    unseen = np.full(table.shape[1], np.nan)
    if fresh:
        inside = _membership(fresh, n)
        weight = kernel(inside.sum(axis=1), n, width=width)
        unseen = r_squared(table[len(masks) :], surrogate.predict(inside), weight)
    return LimeFit(
        surrogate=surrogate,
        held_out_r_squared=unseen,
        masks=masks,
        held_out=fresh,
        values=table[: len(masks)],
    )


def lime(
    scorer: Scorer,
    layout: Layout,
    spans: Sequence[Span],
    *,
    samples: int = SAMPLES,
    held_out: int = HELD_OUT,
    width: float = WIDTH,
    ridge: float = 0.0,
    seed: int = 0,
) -> LimeResult:
    """LIME over the players of a layout, all spans from one sweep of ``samples + held_out`` coalitions.

    Chunks that are not in the prompt get exactly 0; a chunk cut into sentences gets the sum of theirs.
    Raises like ``fit_lime``.
    """
    before = scorer.cost

    def score(masks: Sequence[int]) -> NDArray[np.float64]:
        return span_values(layout, scorer.score(layout, masks), spans)

    settings = {"samples": samples, "held_out": held_out, "seed": seed}
    found = fit_lime(score, len(layout.players), width=width, ridge=ridge, **settings)
    return _result(
        found,
        [layout.by_position(row) for row in found.surrogate.weights.T.tolist()],
        spans,
        settings_hash(Method.LIME, removal="delete", width=width, ridge=ridge, **settings),
        spent_since(scorer, before),
    )


def lime_from_table(
    values: CoalitionValues, spans: Sequence[Span], chunks: int, *, seed: int = 0
) -> LimeResult:
    """LIME with its default settings on coalitions that are stored already: exact values, no model.

    ``chunks``: how many the trace has; those outside the prompt get exactly 0. Raises ``InputError`` when
    the table lacks a coalition that LIME draws (it was sampled) or belongs to another answer.
    """

    def score(masks: Sequence[int]) -> NDArray[np.float64]:
        table = [[span_value(values, span, mask) for span in spans] for mask in masks]
        return np.array(table, np.float64).reshape(len(masks), len(spans))

    found = fit_lime(score, len(values.positions), seed=seed)
    shares = np.zeros((len(spans), chunks))
    shares[:, list(values.positions)] = found.surrogate.weights.T
    fingerprint = settings_hash(
        Method.LIME,
        removal="delete",
        width=WIDTH,
        ridge=0.0,
        samples=SAMPLES,
        held_out=HELD_OUT,
        seed=seed,
    )
    return _result(found, shares.tolist(), spans, fingerprint, Cost())


def _result(
    found: LimeFit,
    shares: Sequence[Sequence[float]],
    spans: Sequence[Span],
    fingerprint: str,
    cost: Cost,
) -> LimeResult:
    v_all, v_none = found.values[0], found.values[found.masks.index(0)]
    return LimeResult(
        attributions=tuple(
            Attribution(
                span=span.index,
                method=Method.LIME,
                shares=tuple(shares[number]),
                v_all=float(v_all[number]),
                v_none=float(v_none[number]),
                reliance=float(v_all[number] - v_none[number]),
                settings_hash=fingerprint,
                cost=cost,
            )
            for number, span in enumerate(spans)
        ),
        r_squared=_numbers(found.surrogate.r_squared),
        held_out_r_squared=_numbers(found.held_out_r_squared),
        masks=found.masks,
        weights=tuple(tuple(row) for row in found.surrogate.weights.T.tolist()),
    )


def _membership(masks: Sequence[int], n: int) -> NDArray[np.float64]:
    """1.0 where a player is in, shape [coalition, player]; masks may be wider than a machine word."""
    return np.array([[mask >> player & 1 for player in range(n)] for mask in masks], np.float64).reshape(
        len(masks), n
    )


def _numbers(values: NDArray[np.float64]) -> tuple[float | None, ...]:
    """Plain numbers; None for NaN."""
    return tuple(None if np.isnan(value) else float(value) for value in values)
