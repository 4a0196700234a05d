"""Exact Shapley beside every other method: who finds the cause, and whose numbers predict what removal does.

It exists because a method that looks good alone may be no better than a search for the value: each contender
is compared on the same items, with paired intervals, and each faithfulness figure stands beside its random
control.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ragblame.attribution.evaluation.ablation_baselines import context_cite_fit
from ragblame.attribution.evaluation.cells import REDUNDANT, Cell
from ragblame.attribution.evaluation.counting import found, labelled, mean
from ragblame.attribution.evaluation.evidence import Bar, Estimate, Table
from ragblame.attribution.evaluation.evidence import Cell as Value
from ragblame.attribution.evaluation.faithfulness import (
    comprehensiveness,
    linear_datamodeling_score,
    random_k_drop,
    sufficiency,
    top_k_drop,
)
from ragblame.attribution.evaluation.findings import Findings
from ragblame.attribution.evaluation.observations import Observation
from ragblame.attribution.evaluation.statistics import holm, paired
from ragblame.attribution.methods.coalitions import membership, sizes

OURS = "exact Shapley"
HARD = tuple(Cell)[3:8]  # cells 4-8
TOLD_APART = ("overlap", "overlap, IDF", "retrieval", "length", "mean attention", "random")  # SCIENCE 9.3
FRESH = 64  # random coalitions that a method's sums are compared on
CEILING = "any sum of chunk scores, at best"
LEAST_TEST = 6  # held-out coalitions below which a rank correlation is chance


def compare(rows: Sequence[Observation], *, seed: int) -> Findings:
    """The whole cause, and nothing before it: per method, and Shapley's lead over each on cells 4-8."""
    kept = [one for one in labelled(rows) if one.behaviour.is_used]
    hard = [one for one in kept if one.item.cell in HARD]
    names = _names(kept)
    results: dict[str, tuple[Estimate, float]] = {}
    for name in names:
        these = [one for one in hard if name in one.others]
        values = np.array([found(one.shares, one.causes) for one in these])
        others = np.array([found(one.others[name], one.causes) for one in these])
        fine = np.isfinite(values) & np.isfinite(others)
        values, others = values[fine], others[fine]
        results[name] = paired(
            _mean_of(values),
            _mean_of(others),
            [one.cluster for one, is_fine in zip(these, fine, strict=True) if is_fine],
            strata=[one.model for one, is_fine in zip(these, fine, strict=True) if is_fine],
            seed=seed,
        )
    adjusted = dict(zip(names, holm([results[name][1] for name in names]), strict=True))
    table: list[tuple[Value, ...]] = [(OURS, _found(kept, OURS, seed), _found(hard, OURS, seed), None, None)]
    table += [
        (name, _found(kept, name, seed), _found(hard, name, seed), results[name][0], adjusted[name])
        for name in names
    ]
    behind = [name for name in names if not results[name][0].low > 0]
    worst = min((results[name][0] for name in names), key=lambda one: one.low)
    trivial = min((results[name][0] for name in names if name in TOLD_APART), key=lambda one: one.low)
    return Findings(
        tables=[
            Table(
                title="Who finds the cause",
                columns=(
                    "method",
                    "cause found, all",
                    "cause found, cells 4-8",
                    "Shapley's lead there",
                    "p (Holm)",
                ),
                rows=tuple(table),
                note="The highest scores, as many as there are causes, are exactly the causes; "
                "ties broken at "
                "random. Captum's methods: one item in 25, as they cost a forward and a backward per answer "
                "token and more; the lead is on the same items.",
            )
        ],
        bars=[
            Bar(
                name="lead over the nearest trivial baseline on cells 4-8, lower end",
                value=trivial.low,
                low=trivial.low,
                high=trivial.high,
                bound=0.0,
                sense=">=",
            ),
            Bar(
                name="lead over the nearest of all methods on cells 4-8, lower end",
                value=worst.low,
                low=worst.low,
                high=worst.high,
                bound=0.0,
                sense=">=",
            ),
        ],
        notes=[f"No lead on cells 4-8 that chance could not explain over: {', '.join(behind)}."]
        if behind
        else [],
    )


def faithfulness(rows: Sequence[Observation], *, seed: int) -> Findings:
    """Do a method's numbers predict what removing chunks does to the value?"""
    kept = [one for one in labelled(rows) if one.behaviour.is_used and one.item.cell is not Cell.AGREES]
    plain = [one for one in kept if one.item.cell not in REDUNDANT]
    names = (OURS, *_names(kept))
    table = []
    for name in names:
        table.append(
            (
                name,
                mean(plain, partial(_lds, name=name, seed=seed), seed=seed),
                mean(kept, partial(_drop, name=name, k=1), seed=seed),
                mean(kept, partial(_of, name=name, figure=comprehensiveness), seed=seed),
                mean(kept, partial(_of, name=name, figure=sufficiency), seed=seed),
            )
        )
    control = mean(kept, lambda one: random_k_drop(one.values, 1), seed=seed)
    halves = {
        name: mean(plain, partial(_held_out_lds, name=name, seed=seed), seed=seed)
        for name in HELD_OUT_METHODS
    }
    by_cell = [
        (
            cell.value,
            mean(labelled(kept, cell), lambda one: _lds(one, OURS, seed), seed=seed),
            mean(labelled(kept, cell), lambda one: _held_out_lds(one, "Shapley regression", seed), seed=seed),
            mean(labelled(kept, cell), lambda one: _held_out_lds(one, CEILING, seed), seed=seed),
        )
        for cell in Cell
        if labelled(kept, cell)
    ]
    return Findings(
        tables=[
            Table(
                title="Faithfulness",
                columns=("method", "LDS", "top-1 drop, nats", "comprehensiveness, nats", "sufficiency, nats"),
                rows=tuple(table),
                note="LDS: Spearman of the sum of scores in S with v(S) over 64 random coalitions, "
                "on cells without "
                "redundancy. Exact Shapley has seen all of them, and so nearly have 64 ablations of up to 6 "
                "chunks: see the held-out table. "
                f"A random chunk drops {control.value:.2f} nats. Sufficiency: lower is better.",
            ),
            Table(
                title="Held-out LDS",
                columns=("method", "LDS on coalitions it has not seen"),
                rows=tuple(halves.items()),
                note="Fitted on a random half of the coalitions, tested on the other half less leave one "
                "out; items with at least 4 chunks, cells without redundancy. The last row is no method: it "
                "is fitted to the very ranks it is tested on, so it shows about how far any sum of chunk "
                "scores can come.",
            ),
            Table(
                title="LDS by cell",
                columns=("cell", "exact Shapley", "held out", "ceiling of any sum"),
                rows=tuple(by_cell),
            ),
        ],
        bars=[Bar.of("held-out LDS on cells without redundancy", halves["Shapley regression"], ">=", 0.95)],
    )


HELD_OUT_METHODS = (
    "Shapley regression",
    "ContextCite on the same half",
    "leave one out",
    "mean attention",
    "corrected rollout",
    "input x gradient",
    "overlap",
    "random",
    CEILING,
)


def _held_out_lds(one: Observation, name: str, seed: int) -> float:
    n = len(one.item.chunks)
    if n < 4:
        return float("nan")
    rng = np.random.default_rng([seed, one.item.number, n])
    full = (1 << n) - 1
    # Pairs of complements stay together, as a paired estimator draws them; none and all are always known.
    pairs = rng.permutation(np.arange(1, 1 << (n - 1)))
    seen = pairs[: len(pairs) // 2]
    train = np.concatenate([[0, full], seen, full ^ seen])
    alone = [full ^ (1 << player) for player in range(n)]
    test = np.setdiff1d(np.arange(1 << n), np.concatenate([train, alone]))
    if len(test) < LEAST_TEST:
        return float("nan")
    scores: NDArray[np.float64] | None
    if name == "Shapley regression":
        scores = shapley_regression(one.values, train)
    elif name == "ContextCite on the same half":
        scores = context_cite_fit(one.values, train, tokens=one.tokens)
    elif name == CEILING:
        scores = rank_fit(one.values, test)
    else:
        scores = _scores(one, name)
    if scores is None:
        return float("nan")
    return float(linear_datamodeling_score(scores[None], one.values, test)[0])


def rank_fit(values: NDArray[np.float64], masks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Chunk scores whose sums order these coalitions about as well as sums can, shape [n].

    Least squares on the ranks of v, an intercept beside: the largest linear correlation with the ranks, which
    is Spearman's correlation but for ranking the sums in turn.
    """
    n = len(values).bit_length() - 1
    design = np.vstack([membership(n)[:, masks].astype(np.float64), np.ones(len(masks))])
    solved, *_ = np.linalg.lstsq(design.T, rankdata(values[masks]), rcond=None)
    scores: NDArray[np.float64] = solved[:n]
    return scores


def shapley_regression(values: NDArray[np.float64], masks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shapley values from some coalitions: KernelSHAP's weighted least squares (Lundberg & Lee 2017), shape
    [n].

    The shares sum to ``v(all) - v(none)`` exactly (Covert & Lee 2021, eq. 6); both must be among ``masks``.
    """
    n = len(values).bit_length() - 1
    total = values[-1] - values[0]
    inner = masks[(masks != 0) & (masks != len(values) - 1)]
    size = sizes(n)[inner].astype(np.float64)
    # Every inner coalition of one size was as likely to be drawn, so the kernel's mass is spread over those
    # seen.
    counts = np.bincount(sizes(n)[inner], minlength=n + 1)[sizes(n)[inner]]
    weight = (n - 1) / (size * (n - size)) / counts
    design = membership(n)[:, inner].T.astype(np.float64)
    target = values[inner] - values[0] - design[:, -1] * total
    reduced = design[:, :-1] - design[:, -1:]
    root = np.sqrt(weight)[:, None]
    solved, *_ = np.linalg.lstsq(reduced * root, target * root[:, 0], rcond=None)
    return np.append(solved, total - solved.sum())


def _names(rows: Sequence[Observation]) -> list[str]:
    """Methods in the order in which they first appear."""
    return list(dict.fromkeys(name for one in rows for name in one.others))


def _scores(one: Observation, name: str) -> NDArray[np.float64] | None:
    return one.shares if name == OURS else one.others.get(name)


def _found(rows: Sequence[Observation], name: str, seed: int) -> Estimate:
    def figure(one: Observation) -> float:
        scores = _scores(one, name)
        return float("nan") if scores is None else found(scores, one.causes)

    return mean(rows, figure, seed=seed)


def _mean_of(values: NDArray[np.float64]) -> Callable[[NDArray[np.intp]], float]:
    return lambda at: float(values[at].mean()) if len(at) else float("nan")


def _lds(one: Observation, name: str, seed: int) -> float:
    scores = _scores(one, name)
    if scores is None:
        return float("nan")
    masks = np.random.default_rng([seed, one.item.number]).integers(0, len(one.values), FRESH)
    return float(linear_datamodeling_score(scores[None], one.values, masks)[0])


def _drop(one: Observation, name: str, k: int) -> float:
    scores = _scores(one, name)
    return float("nan") if scores is None else float(top_k_drop(scores[None], one.values, k)[0])


def _of(one: Observation, name: str, figure: Callable[..., NDArray[np.float64]]) -> float:
    scores = _scores(one, name)
    return float("nan") if scores is None else float(figure(scores[None], one.values)[0])
