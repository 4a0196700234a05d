"""Coalitions as integers: bit i of a mask says that player i's chunk is in the prompt."""

from collections.abc import Iterable
from math import comb

import numpy as np
from numpy.typing import NDArray

from ragblame.errors import InputError

MAX_PLAYERS = 20  # a table of 2**n rows; beyond this nobody can score it anyway


def all_masks(n: int) -> tuple[int, ...]:
    """All 2**n coalitions of ``n`` players in counting order: row m of a value table is mask m.

    Raises ``InputError`` for n outside [0, 20].
    """
    if not 0 <= n <= MAX_PLAYERS:
        raise InputError(f"{n} chunks make 2**{n} coalitions; enumerate at most {MAX_PLAYERS}")
    return tuple(range(1 << n))


def members(mask: int) -> tuple[int, ...]:
    """The players of a coalition, ascending."""
    return tuple(player for player in range(mask.bit_length()) if mask >> player & 1)


def mask_of(players: Iterable[int]) -> int:
    """The coalition of these players."""
    mask = 0
    for player in players:
        mask |= 1 << player
    return mask


def sizes(n: int) -> NDArray[np.int64]:
    """Number of players in each of the 2**n coalitions, shape [2**n]."""
    return np.array([mask.bit_count() for mask in all_masks(n)], dtype=np.int64)


def membership(n: int) -> NDArray[np.bool_]:
    """Whether player i is in mask m, shape [player, 2**n]."""
    masks = np.arange(1 << n)
    return ((masks[None, :] >> np.arange(n)[:, None]) & 1).astype(bool)


def shapley_weights(n: int) -> NDArray[np.float64]:
    """Weight of the marginal contribution to a coalition of size s, ``s! (n-s-1)! / n!``, shape [n].

    Written as ``1 / (n C(n-1, s))`` (Shapley 1953), which neither overflows nor loses digits.
    """
    return np.array([1.0 / (n * comb(n - 1, size)) for size in range(n)], dtype=np.float64)
