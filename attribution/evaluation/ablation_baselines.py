"""Other people's ways to share a span among chunks by removing some, each read off one full coalition table.

They exist to be beaten or matched: on 12 chunks or fewer every coalition is scored once, and then each peer,
from leave-one-out to ContextCite, costs no further model call and sees the very numbers exact Shapley sees.

A table's row m is v(mask m), bit i of a mask says that player i is in the prompt, the unit is nats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragblame.attribution.methods.coalitions import membership
from ragblame.attribution.methods.shapley import value_table
from ragblame.errors import InputError

ABLATIONS = 64  # the default of ContextCite's code; its paper (arXiv 2409.00729) draws 32 to 256
LASSO_ALPHA = 0.01  # ContextCite, solver.LassoRegression
CERTAIN = 2.0**-24  # below this 1 - p is 0 in float32, and ContextCite's logit would be infinite

SpanValue = Literal["logit", "log_prob"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AblationScores:
    """What one method says about one span, and what it would have cost without the table."""

    name: str
    scores: NDArray[np.float64]  # [player]; higher: the span needs the chunk more
    masks: frozenset[int]  # the coalitions it looked at, so that others can be held out


def leave_one_out(values: ArrayLike) -> NDArray[np.float64]:
    """``v(all) - v(all without i)``, shape [n, ...] from [2**n, ...]: zero for each of two duplicates."""
    table, n = value_table(values)
    full = len(table) - 1
    scores: NDArray[np.float64] = table[full] - table[full ^ (1 << np.arange(n))]
    return scores


def only_this_chunk(values: ArrayLike) -> NDArray[np.float64]:
    """``v(i alone) - v(none)``, shape [n, ...] from [2**n, ...]: zero where two chunks are both needed."""
    table, n = value_table(values)
    scores: NDArray[np.float64] = table[1 << np.arange(n)] - table[0]
    return scores


def banzhaf(values: ArrayLike) -> NDArray[np.float64]:
    """Banzhaf values, the mean of ``v(S + i) - v(S)`` over all S without i; [n, ...] from [2**n, ...].

    Every coalition counts alike (Banzhaf 1965; Wang & Jia, arXiv 2205.15466), and they sum to no total.
    """
    table, n = value_table(values)
    if n == 0:
        return np.zeros((0, *table.shape[1:]))
    signs = np.where(membership(n), 1.0, -1.0) / (1 << (n - 1))
    scores: NDArray[np.float64] = np.tensordot(signs, table, axes=1)
    return scores


def random_scores(n: int, *, seed: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), shape [n]: what knowing nothing scores."""
    return np.random.default_rng(seed).random(n)


def context_cite_masks(n: int, *, ablations: int = ABLATIONS, seed: int) -> NDArray[np.int64]:
    """The coalitions ContextCite would score, shape [ablations]: each chunk in with probability 1/2.

    Independent draws with replacement, as in its code, so small n repeats many.
    """
    if ablations < 1:
        raise InputError(f"a surrogate needs at least 1 ablation, not {ablations}")
    return np.random.default_rng(seed).integers(0, 1 << n, size=ablations)


def context_cite(
    values: ArrayLike, *, tokens: int, ablations: int = ABLATIONS, seed: int, value: SpanValue = "logit"
) -> NDArray[np.float64]:
    """ContextCite's surrogate weights (Cohen-Wang et al. 2024, arXiv 2409.00729), shape [n].

    As in ``solver.LassoRegression`` of github.com/MadryLab/context-cite: ablation vectors standardised, the
    span's value divided by its number of ``tokens``, scikit-learn's Lasso with alpha 0.01 and an intercept,
    weights scaled back. ``value``: "logit" is ``log(p / (1 - p))`` of the span's probability, as published;
    "log_prob" fits nats. Where p rounds to 1 their logit is infinite; here it is at most 16.6.

    Raises ``InputError`` for a table that is not [2**n] or fewer than 1 token or ablation.
    """
    return context_cite_fit(
        values,
        context_cite_masks(_span_table(values)[1], ablations=ablations, seed=seed),
        tokens=tokens,
        value=value,
    )


def context_cite_fit(
    values: ArrayLike, masks: NDArray[np.int64], *, tokens: int, value: SpanValue = "logit"
) -> NDArray[np.float64]:
    """The surrogate of ``context_cite`` fitted to these coalitions, shape [n]."""
    from sklearn.linear_model import Lasso
    from sklearn.preprocessing import StandardScaler

    table, n = _span_table(values)
    if tokens < 1:
        raise InputError(f"a span has at least 1 token, not {tokens}")
    if n == 0:
        return np.zeros(0)
    outputs = span_logit(table) if value == "logit" else table
    scaler = StandardScaler()
    ablation_vectors = scaler.fit_transform(membership(n).T[masks].astype(np.float64))
    surrogate = Lasso(alpha=LASSO_ALPHA, fit_intercept=True, random_state=0)
    surrogate.fit(ablation_vectors, outputs[masks] / tokens)
    weights: NDArray[np.float64] = surrogate.coef_ / scaler.scale_ * tokens
    return weights


def span_logit(log_probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """``log(p / (1 - p))`` from log p in nats, any shape; p is kept below 1 by ``CERTAIN``."""
    kept = np.minimum(log_probs, -CERTAIN)
    logits: NDArray[np.float64] = kept - np.log(-np.expm1(kept))
    return logits


def kernel_shap(values: ArrayLike, budget: int, *, seed: int) -> NDArray[np.float64]:
    """shap's own ``KernelExplainer`` (Lundberg & Lee 2017, arXiv 1705.07874) on the table, shape [n].

    ``budget``: coalitions it may look at, v(none) and v(all) among them; from 2**n on it is exact Shapley.
    No feature is dropped (``l1_reg=False``: its default keeps 10). Raises ``InputError`` for a table that is
    not [2**n] or a budget below n + 2, with which the regression has more unknowns than rows.
    """
    return _kernel_shap(values, budget, seed)[0]


def ablation_baselines(
    values: ArrayLike, *, tokens: int, kernel_budget: int, seed: int
) -> tuple[AblationScores, ...]:
    """Every method of this file on one span's table, in the order of a report.

    ``tokens``: the span's number of tokens. ``kernel_budget``: see ``kernel_shap``.
    """
    table, n = _span_table(values)
    full = len(table) - 1
    players = [1 << player for player in range(n)]
    everything = frozenset(range(len(table)))
    drawn = frozenset(context_cite_masks(n, seed=seed).tolist())
    kernel, asked = _kernel_shap(table, kernel_budget, seed)
    found: list[tuple[str, NDArray[np.float64], frozenset[int]]] = [
        ("leave one out", leave_one_out(table), frozenset([full, *(full ^ one for one in players)])),
        ("only this chunk", only_this_chunk(table), frozenset([0, *players])),
        (f"ContextCite {ABLATIONS}", context_cite(table, tokens=tokens, seed=seed), drawn),
        (
            f"ContextCite {ABLATIONS}, log-prob",
            context_cite(table, tokens=tokens, seed=seed, value="log_prob"),
            drawn,
        ),
        (f"KernelSHAP {kernel_budget}", kernel, asked),
        ("Banzhaf", banzhaf(table), everything),
        ("random", random_scores(n, seed=seed), frozenset()),
    ]
    return tuple(AblationScores(name=name, scores=scores, masks=masks) for name, scores, masks in found)


def _kernel_shap(values: ArrayLike, budget: int, seed: int) -> tuple[NDArray[np.float64], frozenset[int]]:
    """The scores and the coalitions that were looked at."""
    from shap import KernelExplainer  # half a second of numba, which reports without this row need not pay

    table, n = _span_table(values)
    if n < 2:  # nothing to sample: what there is belongs to the one chunk
        return np.full(n, table[-1] - table[0]), frozenset(range(len(table)))
    if budget < n + 2:
        raise InputError(f"KernelSHAP of {n} chunks needs a budget of at least {n + 2}, not {budget}")
    bits = 1 << np.arange(n)
    asked: set[int] = set()

    def value(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        masks = (rows.astype(np.int64) * bits).sum(axis=1)
        asked.update(masks.tolist())
        looked_up: NDArray[np.float64] = table[masks]
        return looked_up

    explainer = KernelExplainer(value, np.zeros((1, n)))
    explain = _seeded(explainer.shap_values, seed)
    shares = explain(np.ones((1, n)), nsamples=budget - 2, l1_reg=False, silent=True)
    return np.asarray(shares, dtype=np.float64)[0], frozenset(asked)


def _seeded(call: Callable[..., object], seed: int) -> Callable[..., object]:
    """The call with numpy's global generator, shap's only source of chance, seeded and put back after."""

    def run(*arguments: object, **named: object) -> object:
        state = np.random.get_state()
        np.random.seed(seed)
        try:
            return call(*arguments, **named)
        finally:
            np.random.set_state(state)

    return run


def _span_table(values: ArrayLike) -> tuple[NDArray[np.float64], int]:
    table, n = value_table(values)
    if table.ndim != 1:
        raise InputError(
            f"a surrogate is fitted to one span: give a table of shape [2**n], not {table.shape}"
        )
    return table, n
