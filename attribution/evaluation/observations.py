"""What is observed about one item of the known-cause world: plain arrays and records, made once and counted
often.

It exists so that the measuring (``study.py``) and the counting (``world_*.py``)
share nothing but this.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ragblame.attribution.evaluation.cells import REDUNDANT, Item
from ragblame.attribution.evaluation.interventions import Behaviour
from ragblame.records import Cause, SupportState, VerdictKind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """What the product says about the span that holds the asked value."""

    verdict: VerdictKind
    cause: Cause | None
    support: SupportState
    is_flagged: bool
    is_exact: bool  # the span is the value, neither more nor less


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """Everything measured about one item under one model. Arrays by chunk position or by coalition."""

    model: str
    item: Item
    behaviour: Behaviour
    is_supported: bool  # by the world: a chunk states this value for this very entity
    values: NDArray[np.float64]  # [2**n] nats, v(S) of the claim's tokens
    repeated: NDArray[np.float64] | None  # [2**n] nats, of the value's second mention
    tokens: int  # answer tokens of the claim
    shares: NDArray[np.float64]  # [n] nats, exact Shapley
    noise: float  # nats, one sigma of v(all)
    judged: Judged
    again: VerdictKind | None = None  # the product's verdict on the value's second mention
    others: dict[str, NDArray[np.float64]] = field(default_factory=dict)  # method -> [n] score
    flips_top: bool | None = None  # editing the chunk of the largest share changed the value
    flips_other: bool | None = None  # editing another chunk did

    @property
    def reliance(self) -> float:
        """Nats that the documents add to the claim."""
        return float(self.values[-1] - self.values[0])

    @property
    def truth(self) -> VerdictKind:
        """The verdict by behaviour and by the world: used or not, times stated or not."""
        if self.behaviour.is_used:
            return VerdictKind.GROUNDED if self.is_supported else VerdictKind.DISTORTED
        return VerdictKind.KNOWN_ALREADY if self.is_supported else VerdictKind.FABRICATED

    @property
    def causes(self) -> tuple[int, ...]:
        """The chunks that a method should name: by behaviour, and of duplicates both, whichever is read
        first."""
        if self.item.cell in REDUNDANT and self.behaviour.is_used:
            return self.item.gold
        return self.behaviour.causes

    @property
    def cluster(self) -> str:
        return self.item.cluster
