"""Shapley values where 2**n coalitions are too many: as many as the wanted precision needs, with errors.

Coalitions come in complementary pairs: none and all, each chunk alone with all the others, then pairs drawn
without replacement, their sizes by KernelSHAP's weights (Covert & Lee 2021, arXiv 2012.01536). After each
round every span is fitted (``share_regression``); sampling stops when all shares of all spans are known well
enough or the budget is spent. Chunks without measurable effect on any span then leave and come together, as
one player of the draw: the budget goes to the others. That bends the draw, never the estimate, so their
shares stay their own.

The estimator sees a function from coalitions to values, so games with known answers test it without a model.
A round is one call: whoever scores it orders it for prefix reuse, as the prefix tree does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from ragblame.attribution.layout import Layout
from ragblame.attribution.methods.coalitions import mask_of
from ragblame.attribution.methods.fingerprint import settings_hash
from ragblame.attribution.methods.shapley import engine_notes, full_noise, span_values
from ragblame.attribution.methods.share_regression import Array, FittedGame, fit
from ragblame.attribution.scorer import Scorer, spent_since
from ragblame.errors import InputError
from ragblame.records import Attribution, CoalitionValues, Method, Span

FIRST_ROUND = 4  # coalitions per chunk; twice as many as the regression has unknowns
GROWTH = 1.5  # of the number of coalitions from round to round: the fits cost less than what is scored
MEASURABLE = 2.0  # standard errors that a share must exceed to be more than nothing
TOP_PLAYERS = 8  # pair interactions are estimated among these, by size of their shares
STORED_PLAYERS = 63  # bits of a coalition that a table of coalition values can hold

Values = Callable[[Sequence[int]], Array]  # coalitions -> nats, [coalition, span]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledGames:
    """What some coalitions tell about several games over the same players. Games are columns; unit: nats."""

    masks: tuple[int, ...]  # as scored: none, all, then complements side by side
    values: Array  # [coalition, game]
    shares: Array  # [player, game]
    errors: Array  # [player, game], one standard error each
    tail: tuple[int, ...]  # players that shared one place in the last draws
    tail_shares: Array  # [game], theirs together
    tail_errors: Array  # [game], of that sum; smaller than the parts' where these only trade places
    games: tuple[FittedGame, ...]
    is_precise: bool  # every error reached the wanted precision before the budget ended


@dataclass(frozen=True, slots=True, kw_only=True)
class PairInteraction:
    """The Shapley interaction index of two chunks: negative is redundant evidence, positive both needed."""

    positions: tuple[int, int]
    value: float  # nats
    error: float  # nats, one standard error


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledShapley:
    """Shares of every span with their errors, and the part of the table that was scored."""

    attributions: tuple[Attribution, ...]  # one per span; their cost is that of the one sweep they share
    coalitions: CoalitionValues | None  # None beyond 63 chunks in the prompt
    interactions: tuple[tuple[PairInteraction, ...], ...]  # per span, largest first
    tail: tuple[int, ...]  # positions of the chunks that were drawn as one
    is_precise: bool
    notes: tuple[str, ...]


def least_budget(players: int) -> int:
    """Coalitions without which there is no estimate: those of n + 1 pairs, or all there are."""
    return min(2 * players + 2, 1 << players)


def sampled_shapley(
    scorer: Scorer,
    layout: Layout,
    spans: Sequence[Span],
    *,
    budget: int = 256,
    precision_nats: float = 0.05,
    seed: int = 0,
) -> SampledShapley:
    """Score at most ``budget`` coalitions and share each span's reliance among the chunks.

    ``precision_nats``: standard error at which sampling stops. The same seed gives the same coalitions.
    Chunks that are not in the prompt get exactly 0, with an error of 0. A budget of 2**n coalitions and a
    precision of 0 give exact shares. Raises ``InputError`` for a budget below ``least_budget``.
    """
    players = len(layout.players)
    before = scorer.cost
    rows: dict[int, NDArray[np.float32]] = {}
    notes: tuple[str, ...] = ()

    def values(masks: Sequence[int]) -> Array:
        nonlocal notes
        log_probs = scorer.score(layout, masks)
        expected = (len(masks), len(layout.answer_ids))
        if log_probs.shape != expected:
            raise InputError(
                f"the scorer gave a table of shape {log_probs.shape} instead of {expected}: correct it"
            )
        notes = notes or engine_notes(scorer, len(masks))
        rows.update(zip(masks, log_probs, strict=True))
        return span_values(layout, log_probs, spans)

    found = sample_games(values, players, budget=budget, precision=precision_nats, seed=seed)
    noise = full_noise(scorer, layout, spans, found.values[found.masks.index(layout.full_mask)])
    cost = spent_since(scorer, before)
    fingerprint = settings_hash(
        Method.SHAPLEY,
        removal="delete",
        value="sum of log-probabilities",
        estimator="sampled",
        budget=budget,
        precision=precision_nats,
        seed=seed,
    )
    attributions = []
    for number, span in enumerate(spans):
        v_none, v_all = found.values[0, number], found.values[1 if players else 0, number]
        shares = found.shares[:, number]
        attributions.append(
            Attribution(
                span=span.index,
                method=Method.SHAPLEY,
                shares=layout.by_position(shares.tolist()),
                standard_errors=layout.by_position(found.errors[:, number].tolist()),
                v_all=float(v_all),
                v_none=float(v_none),
                reliance=float(v_all - v_none),
                noise_floor=float(noise[number]),
                completeness_gap=abs(float(shares.sum() - (v_all - v_none))),
                settings_hash=fingerprint,
                cost=cost,
            )
        )
    tail = tuple(layout.players[player] for player in found.tail)
    return SampledShapley(
        attributions=tuple(attributions),
        coalitions=_stored(layout, rows),
        interactions=tuple(
            pair_interactions(game, found.shares[:, number], layout.players)
            for number, game in enumerate(found.games)
        ),
        tail=tail,
        is_precise=found.is_precise,
        notes=(_sampling_note(found, players, precision_nats), *_tail_notes(found, tail), *notes),
    )


def sample_games(
    values: Values, players: int, *, budget: int, precision: float, seed: int, groups_tail: bool = True
) -> SampledGames:
    """Draw coalitions until every share of every game is known to ``precision``, or ``budget`` are scored.

    ``values``: nats of coalitions, [coalition, game]; asked once per round, never twice for a coalition.
    Raises ``InputError`` for a budget below ``least_budget`` or a negative precision.
    """
    least = least_budget(players)
    if budget < least:
        raise InputError(
            f"{players} chunks need at least {least} sampled coalitions, not {budget}; "
            "raise RAGBLAME_SAMPLED_COALITIONS or retrieve fewer"
        )
    if not precision >= 0:
        raise InputError(f"a precision is a standard error of at least 0 nats, not {precision}")
    if players == 0:
        table = values([0])
        empty = np.zeros((0, table.shape[1]))
        nothing = np.zeros(table.shape[1])
        return SampledGames(
            masks=(0,), values=table, shares=empty, errors=empty, tail=(), tail_shares=nothing,
            tail_errors=nothing, games=(), is_precise=True,
        )  # fmt: skip
    rng = np.random.default_rng(seed)
    full, most = (1 << players) - 1, min(budget, 1 << players) // 2
    singles = [1 << player for player in range(players)]
    firsts: list[int] = []  # one coalition of each pair; that of all players is the first
    tables: list[Array] = []
    tail: tuple[int, ...] = ()
    wanted = min(max(least, FIRST_ROUND * players) // 2, most)
    while True:
        blocks = [*(one for player, one in enumerate(singles) if player not in tail)]
        blocks += [mask_of(tail)] if tail else []
        fresh = draw_pairs(blocks, firsts, wanted - len(firsts), rng)
        fresh += draw_pairs(singles, [*firsts, *fresh], wanted - len(firsts) - len(fresh), rng)
        asked = [mask for first in fresh for mask in (full ^ first, first)]
        tables.append(values(asked))
        firsts += fresh
        table = np.concatenate(tables)
        games = tuple(_fitted(firsts, players, table[:, game]) for game in range(table.shape[1]))
        estimates = [game.shares() for game in games]
        shares = np.stack([one.values for one in estimates], axis=1) if games else np.zeros((players, 0))
        errors = np.stack([one.errors for one in estimates], axis=1) if games else np.zeros((players, 0))
        is_precise = bool((errors <= precision).all())
        if is_precise or len(firsts) >= most:
            break
        if groups_tail:
            tail = _tail(shares, errors, precision)
        wanted = min(most, int(np.ceil(GROWTH * len(firsts))))
    together = np.isin(np.arange(players), tail).astype(np.float64)
    return SampledGames(
        masks=tuple(mask for first in firsts for mask in (full ^ first, first)),
        values=table,
        shares=shares,
        errors=errors,
        tail=tail,
        tail_shares=together @ shares,
        tail_errors=np.array([one.error_of(together) for one in estimates]),
        games=games,
        is_precise=is_precise,
    )


def draw_pairs(
    blocks: Sequence[int], known: Sequence[int], count: int, rng: np.random.Generator
) -> list[int]:
    """Up to ``count`` coalitions, none of them or of their complements among ``known`` or drawn twice.

    ``blocks``: masks of players that come together; a coalition is a union of them. First all, then each
    block alone, then a size s of 2 to b/2 blocks with KernelSHAP's weight ``(b-1) / (s (b-s))``, and any
    coalition of that size; fewer when no others are left.
    """
    whole, total = sum(blocks), len(blocks)
    seen = {*known, *(whole ^ mask for mask in known)}
    left = {size: comb(total, size) for size in range(1, total // 2 + 1)}  # not yet known, by size
    if total % 2 == 0 and total:
        left[total // 2] //= 2
    for mask in known:
        inside = [block & mask for block in blocks]
        if all(part in (0, block) for part, block in zip(inside, blocks, strict=True)) and 0 < mask < whole:
            size = sum(map(bool, inside))
            left[min(size, total - size)] -= 1
    drawn: list[int] = []
    for mask in (whole, *blocks):
        if len(drawn) < count and mask not in seen and whole ^ mask not in seen:
            drawn.append(mask)
            seen |= {mask, whole ^ mask}
            if mask != whole:
                left[1] -= 1
    while len(drawn) < count and any(left.values()):
        sizes = [size for size, rest in left.items() if rest > 0]
        weights = np.array([(0.5 if 2 * size == total else 1.0) / (size * (total - size)) for size in sizes])
        size = int(rng.choice(sizes, p=weights / weights.sum()))
        mask = sum(blocks[block] for block in rng.choice(total, size, replace=False))
        if mask not in seen:
            drawn.append(mask)
            seen |= {mask, whole ^ mask}
            left[size] -= 1
    return drawn


def pair_interactions(
    game: FittedGame, shares: Array, positions: Sequence[int]
) -> tuple[PairInteraction, ...]:
    """Interactions among the players of the largest shares, largest first; ``positions``: of the players."""
    top = sorted(np.argsort(-np.abs(shares), kind="stable")[:TOP_PLAYERS].tolist())
    pairs = list(combinations(top, 2))
    if not pairs:
        return ()
    estimate = game.interactions(pairs)
    found = [
        PairInteraction(positions=(positions[i], positions[j]), value=float(value), error=float(error))
        for (i, j), value, error in zip(pairs, estimate.values, estimate.errors, strict=True)
    ]
    return tuple(sorted(found, key=lambda one: -abs(one.value)))


def _fitted(firsts: Sequence[int], players: int, values: Array) -> FittedGame:
    """``values``: of each complement and its first, as they were asked."""
    signs = np.array([[1.0 if mask >> player & 1 else -1.0 for player in range(players)] for mask in firsts])
    others, ones = values[0::2], values[1::2]
    return fit(signs, (ones - others) / 2, (ones + others) / 2)


def _tail(shares: Array, errors: Array, precision: float) -> tuple[int, ...]:
    """Players known well enough to say that they have no effect worth measuring on any game; two or more."""
    is_nothing = (np.abs(shares) <= np.maximum(MEASURABLE * errors, precision)) & (errors <= precision)
    tail = np.flatnonzero(is_nothing.all(axis=1)).tolist()
    return tuple(tail) if len(tail) > 1 else ()


def _stored(layout: Layout, rows: dict[int, NDArray[np.float32]]) -> CoalitionValues | None:
    if len(layout.players) > STORED_PLAYERS:
        return None
    masks = tuple(sorted(rows))
    return CoalitionValues(
        positions=layout.players,
        masks=masks,
        token_starts=layout.answer_starts,
        token_ends=layout.answer_ends,
        log_probs=tuple(tuple(rows[mask].tolist()) for mask in masks),
    )


def _sampling_note(found: SampledGames, players: int, precision: float) -> str:
    largest = float(found.errors.max(initial=0.0))
    reached = "as wanted" if found.is_precise else f"not the {precision:g} wanted: the budget ended"
    return (
        f"Shares of {players} chunks were sampled from {len(found.masks)} coalitions; "
        f"the largest standard error is {largest:.2g} nats ({reached})."
    )


def _tail_notes(found: SampledGames, tail: Sequence[int]) -> tuple[str, ...]:
    if not tail:
        return ()
    worst = int(np.abs(found.tail_shares).argmax())
    named = ", ".join(str(position + 1) for position in tail)
    return (
        f"Chunks {named} have no measurable effect and were removed together in part of the coalitions; "
        f"their shares together are at most {found.tail_shares[worst]:+.2g} nats "
        f"(standard error {found.tail_errors[worst]:.2g}) in any span.",
    )
