"""Exact Shapley values over chunks: the reference method, and the only one whose shares are nats that add up.

All spans of an answer share one sweep of coalitions, because a sweep scores every answer token. The estimator
sees arrays only; how the coalitions were scored is the scorer's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragblame.attribution.layout import Layout
from ragblame.attribution.methods.coalitions import all_masks, membership, shapley_weights, sizes
from ragblame.attribution.methods.fingerprint import settings_hash
from ragblame.attribution.scorer import TREE_FROM, Scorer, TransformersScorer, spent_since
from ragblame.errors import InputError
from ragblame.records import Attribution, CoalitionValues, Method, Span

NOISE_SCORINGS = 3  # extra scorings of the full coalition, each in a batch of another make-up


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapleyResult:
    """Shares of every span, and the table they come from."""

    attributions: tuple[Attribution, ...]  # one per span; their cost is that of the one sweep they share
    coalitions: CoalitionValues  # every v(S) per answer token
    interactions: tuple[
        tuple[tuple[float, ...], ...], ...
    ]  # [span][player][player], nats; see ``pair_terms``
    notes: tuple[str, ...] = ()  # how the sweep was scored, where a reader could wonder at its cost


def exact_shapley(values: ArrayLike) -> NDArray[np.float64]:
    """Shapley values from the full table of coalition values.

    ``values``: shape [2**n, ...], row m is v(mask m); trailing axes (tokens, spans) are independent games.
    Returns shape [n, ...] in the unit of the values, computed in float64:
    ``phi_i = sum over S without i of |S|! (n-|S|-1)! / n! * (v(S + i) - v(S))`` (Shapley 1953), so that
    ``sum of phi = v(all) - v(none)`` up to rounding. Raises ``InputError`` when there are not 2**n rows.
    """
    table, n = value_table(values)
    if n == 0:
        return np.zeros((0, *table.shape[1:]))
    size = sizes(n)
    inside = membership(n)
    weights = shapley_weights(n)
    signed = np.where(inside, weights[np.maximum(size - 1, 0)], -weights[np.minimum(size, n - 1)])
    shares: NDArray[np.float64] = np.tensordot(signed, table, axes=1)
    return shares


def pair_terms(values: ArrayLike) -> NDArray[np.float64]:
    """``v(ij) - v(i) - v(j) + v(none)`` for each pair, shape [n, n, ...], zero on the diagonal.

    Negative: the two chunks are redundant evidence. Positive: the span needs both.
    """
    table, n = value_table(values)
    terms = np.zeros((n, n, *table.shape[1:]))
    for i in range(n):
        for j in range(n):
            if i != j:
                terms[i, j] = table[1 << i | 1 << j] - table[1 << i] - table[1 << j] + table[0]
    return terms


def shapley(scorer: Scorer, layout: Layout, spans: Sequence[Span], *, max_chunks: int = 10) -> ShapleyResult:
    """Score every coalition once and share each span's reliance among the chunks.

    The value of a span is the sum of the log-probabilities of its tokens, in nats. Chunks that are not in the
    prompt get exactly 0. ``noise_floor``: one sigma of v(all) over scorings in batches of different make-up.
    Raises ``InputError`` when more than ``max_chunks`` chunks stand in the prompt.
    """
    n = len(layout.players)
    if n > max_chunks:
        raise InputError(
            f"{n} chunks stand in the prompt and exact Shapley takes at most {max_chunks}; "
            "raise RAGBLAME_MAX_EXACT_CHUNKS (at most 12) or retrieve fewer"
        )
    before = scorer.cost
    masks = all_masks(n)
    log_probs = scorer.score(layout, masks)
    notes = engine_notes(scorer, len(masks))
    expected = (len(masks), len(layout.answer_ids))
    if log_probs.shape != expected:
        raise InputError(
            f"the scorer gave a table of shape {log_probs.shape} instead of {expected}: correct it"
        )
    table = span_values(layout, log_probs, spans)  # [coalition, span]
    noise = full_noise(scorer, layout, spans, table[-1])
    cost = spent_since(scorer, before)
    shares = exact_shapley(table)
    pairs = pair_terms(table)
    fingerprint = settings_hash(Method.SHAPLEY, removal="delete", value="sum of log-probabilities")
    attributions = []
    for number, span in enumerate(spans):
        v_all, v_none = float(table[-1, number]), float(table[0, number])
        attributions.append(
            Attribution(
                span=span.index,
                method=Method.SHAPLEY,
                shares=layout.by_position(shares[:, number].tolist()),
                v_all=v_all,
                v_none=v_none,
                reliance=v_all - v_none,
                noise_floor=float(noise[number]),
                completeness_gap=abs(float(shares[:, number].sum()) - (v_all - v_none)),
                settings_hash=fingerprint,
                cost=cost,
            )
        )
    return ShapleyResult(
        attributions=tuple(attributions),
        coalitions=CoalitionValues(
            positions=layout.players,
            masks=masks,
            token_starts=layout.answer_starts,
            token_ends=layout.answer_ends,
            log_probs=tuple(tuple(row) for row in log_probs.tolist()),
        ),
        interactions=tuple(
            tuple(tuple(row) for row in pairs[:, :, number].tolist()) for number in range(len(spans))
        ),
        notes=notes,
    )


def engine_notes(scorer: Scorer, coalitions: int) -> tuple[str, ...]:
    """What a local model's last sweep says of itself; a sweep too small to share anything says nothing."""
    engine = scorer.engine if isinstance(scorer, TransformersScorer) else None
    if engine is None or not engine.reason or coalitions < TREE_FROM:
        return ()
    way = {
        "prefix tree": "along their prefix tree",
        "independent": "one by one, with the same result at a higher cost",
    }[engine.name]
    return (f"The {coalitions} coalitions were scored {way}: {engine.reason}.",)


def span_values(layout: Layout, log_probs: NDArray[np.float32], spans: Sequence[Span]) -> NDArray[np.float64]:
    """Value of each span in each coalition, nats, shape [coalition, span]."""
    values = np.zeros((len(log_probs), len(spans)))
    for number, span in enumerate(spans):
        values[:, number] = log_probs[:, list(layout.span_tokens(span))].sum(axis=1, dtype=np.float64)
    return values


def full_noise(
    scorer: Scorer, layout: Layout, spans: Sequence[Span], in_sweep: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Standard deviation of v(all) per span over batches of different make-up, nats, shape [span]."""
    full = layout.full_mask
    samples = [in_sweep]
    for companions in range(NOISE_SCORINGS):
        masks = list(dict.fromkeys([full, *range(min(companions, full))]))
        samples.append(span_values(layout, scorer.score(layout, masks)[:1], spans)[0])
    deviation: NDArray[np.float64] = np.std(samples, axis=0, ddof=1)
    return deviation


def value_table(values: ArrayLike) -> tuple[NDArray[np.float64], int]:
    """The values as float64, and the number of players. Raises ``InputError`` unless there are 2**n rows."""
    table = np.asarray(values, dtype=np.float64)
    rows = table.shape[0] if table.ndim else 0
    if rows == 0 or rows & (rows - 1):
        raise InputError(f"a value table has 2**n rows, one per coalition, not {rows}")
    return table, rows.bit_length() - 1
