"""Checks an attribution must pass before its numbers mean anything: weights matter, and the axioms hold.

They exist because a picture of heat looks convincing whatever made it (Adebayo et al. 2018, arXiv 1810.03292:
some saliency maps do not change when the weights are shuffled).
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedModel

from ragblame.attribution.evaluation.statistics import spearman
from ragblame.errors import InputError

LARGEST_GAP = 1e-4  # of the total, that the shares may miss


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


def rank_correlation(one: ArrayLike, other: ArrayLike) -> float:
    """Spearman's rho of two share vectors [chunk]; NaN where one of them orders nothing.

    Two chunks can only agree or disagree in full, so fewer than 3 give NaN as well.
    """
    first, second = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(f"shares of one trace pair up chunk by chunk, not {first.shape} with {second.shape}")
    return spearman(first, second) if len(first) >= 3 else float("nan")


def additivity(shares: ArrayLike, values: ArrayLike) -> Additivity:
    """Shares [n] of one span sum to ``v(all) - v(none)`` of its table [2**n]."""
    table: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    total = float(table[-1] - table[0])
    gap = abs(float(np.sum(np.asarray(shares, dtype=np.float64))) - total)
    relative = gap / max(abs(total), 1.0)
    return Additivity(gap=gap, relative=relative, is_passed=relative < LARGEST_GAP)
