"""Checks an attribution must pass before its numbers mean anything: weights matter, and the axioms hold.

They exist because a picture of heat looks convincing whatever made it (Adebayo et al. 2018, arXiv 1810.03292:
some saliency maps do not change when the weights are shuffled).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedModel

from ragblame.attribution.evaluation.statistics import spearman
from ragblame.attribution.methods.shapley import exact_shapley
from ragblame.errors import InputError

LARGEST_RANDOM_RHO = 0.3  # mean rank correlation that a weight-shuffled model may keep
FEWEST_TRACES = 30  # a mean over fewer says little about the bar above
SIGMAS = 3.0  # of the noise, that an irrelevant chunk may get
DUPLICATE_RATIO = (0.8, 1.25)  # of the shares of two equal chunks
LARGEST_GAP = 1e-4  # of the total, that the shares may miss


@dataclass(frozen=True, slots=True, kw_only=True)
class Randomisation:
    """Do shares change with the weights? They pass when a shuffled model orders chunks otherwise."""

    correlations: tuple[float, ...]  # Spearman per trace, [-1, 1]; traces that order nothing are left out
    mean: float  # of them; NaN without any
    is_passed: bool  # |mean| < 0.3 over at least 30 traces


@dataclass(frozen=True, slots=True, kw_only=True)
class Dummy:
    """What an irrelevant chunk got, and how much it moved the others."""

    share: float  # nats, of the added chunk
    largest_move: float  # nats, among the shares of the others
    bound: float  # nats, 3 sigma
    is_passed: bool  # both within the bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """How two equal chunks share."""

    ratio: float  # of their shares, first over second; NaN when both are within the noise of nothing
    asymmetry: float  # nats, largest |v(S + i) - v(S + j)|: 0 if nothing but their position differed
    is_passed: bool  # ratio in [0.8, 1.25], or both shares within the noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Additivity:
    """Whether shares sum to the reliance."""

    gap: float  # |sum of shares - (v(all) - v(none))|, nats
    relative: float  # the gap over |v(all) - v(none)|, or over 1 nat where that is less
    is_passed: bool  # relative < 1e-4


@torch.no_grad()
def shuffled(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A copy of the model with the entries of every weight matrix permuted; the model itself stays as it is.

    Norm weights and biases stay, and tied matrices stay tied, so the copy has the scale of the trained model
    and nothing of what it learned. The same seed gives the same copy.
    """
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for weight in other.parameters():  # a tied matrix comes once
        if weight.ndim >= 2:
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].reshape(weight.shape))
    return other


def randomisation(trained: Sequence[ArrayLike], random: Sequence[ArrayLike]) -> Randomisation:
    """Compare shares of the trained and of the shuffled model, trace by trace, each of shape [chunk].

    A trace with fewer than 3 chunks, or whose shares are all alike on one side, orders nothing and is left
    out. Raises ``InputError`` when the two do not pair up.
    """
    if len(trained) != len(random):
        raise InputError(f"{len(trained)} traces of the trained model and {len(random)} of the shuffled one")
    found = [rank_correlation(one, other) for one, other in zip(trained, random, strict=True)]
    kept = tuple(value for value in found if np.isfinite(value))
    mean = float(np.mean(kept)) if kept else float("nan")
    is_passed = len(kept) >= FEWEST_TRACES and abs(mean) < LARGEST_RANDOM_RHO
    return Randomisation(correlations=kept, mean=mean, is_passed=is_passed)


def rank_correlation(one: ArrayLike, other: ArrayLike) -> float:
    """Spearman's rho of two share vectors [chunk]; NaN where one of them orders nothing.

    Two chunks can only agree or disagree in full, so fewer than 3 give NaN as well.
    """
    first, second = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(f"shares of one trace pair up chunk by chunk, not {first.shape} with {second.shape}")
    return spearman(first, second) if len(first) >= 3 else float("nan")


def dummy(without: ArrayLike, with_dummy: ArrayLike, *, player: int, sigma: float) -> Dummy:
    """An irrelevant chunk gets nothing and takes nothing, up to ``SIGMAS`` x ``sigma``.

    ``without``: the span's table [2**n]; ``with_dummy``: the table [2**(n + 1)] in which ``player`` is the
    added chunk, the others in the same order. ``sigma``: one standard deviation, nats, of what neutral texts
    of that length do at that place; repeated scorings of one prompt differ far less, and no model passes with
    their noise floor, since any text shifts positions. Raises ``InputError`` when the tables do not fit.
    """
    before, after = exact_shapley(without), exact_shapley(with_dummy)
    if before.ndim != 1 or after.shape != (len(before) + 1,) or not 0 <= player < len(after):
        raise InputError(f"a dummy adds one player to a span's {len(before)}, not {len(after) - len(before)}")
    moves = np.abs(np.delete(after, player) - before)
    share, move, bound = float(after[player]), float(moves.max(initial=0.0)), SIGMAS * sigma
    return Dummy(share=share, largest_move=move, bound=bound, is_passed=max(abs(share), move) <= bound)


def duplicate(values: ArrayLike, i: int, j: int, *, sigma: float = 0.0) -> Duplicate:
    """Two equal chunks ``i`` and ``j`` of one span's table [2**n] get equal Shapley shares, up to position.

    ``sigma``: nats; below ``SIGMAS`` times it both shares count as nothing and their ratio means nothing.
    """
    table = np.asarray(values, dtype=np.float64)
    shares = exact_shapley(table)
    if shares.ndim != 1 or i == j or not all(0 <= player < len(shares) for player in (i, j)):
        raise InputError(f"chunks {i} and {j} are no two players of a table of shape {table.shape}")
    masks = np.arange(len(table))
    neither = masks[(masks & (1 << i | 1 << j)) == 0]
    asymmetry = float(np.abs(table[neither | 1 << i] - table[neither | 1 << j]).max())
    first, second = float(shares[i]), float(shares[j])
    is_nothing = max(abs(first), abs(second)) <= SIGMAS * sigma
    if is_nothing:
        ratio = float("nan")
    else:
        ratio = first / second if second else float("inf")
    low, high = DUPLICATE_RATIO
    return Duplicate(ratio=ratio, asymmetry=asymmetry, is_passed=is_nothing or low <= ratio <= high)


def additivity(shares: ArrayLike, values: ArrayLike) -> Additivity:
    """Shares [n] of one span sum to ``v(all) - v(none)`` of its table [2**n]."""
    table: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    total = float(table[-1] - table[0])
    gap = abs(float(np.sum(np.asarray(shares, dtype=np.float64))) - total)
    relative = gap / max(abs(total), 1.0)
    return Additivity(gap=gap, relative=relative, is_passed=relative < LARGEST_GAP)
