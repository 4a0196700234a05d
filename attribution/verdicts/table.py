"""The verdict table: used or not, times supported or not, and an honest fifth outcome when either is unclear.

Influence says what moved the probability, support says what the text entails; neither replaces the other, so
a span can be used and wrong, or right without having been read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ragblame.attribution.verdicts.thresholds import Thresholds
from ragblame.records import Basis, Support, SupportState, VerdictKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Influence:
    """What the scorer measured about one span, on its content tokens."""

    v_all: float  # nats, all chunks in the prompt
    v_none: float  # nats, no chunk in the prompt
    tokens: int  # content tokens behind these sums
    noise: float  # one sigma of v_all, nats
    shares: tuple[float, ...]  # nats, by chunk position
    is_carried: bool = False  # measured at the value's first mention, which the answer repeats here
    # Nats by which the model would rather write a foil, once the chunks that state the value say that
    # instead: above 0 it follows the chunks. None: not asked, as deletion tells.
    follow: float | None = None

    @property
    def reliance(self) -> float:
        """How much the span depends on the documents, nats; may be negative."""
        return self.v_all - self.v_none

    @property
    def p_without(self) -> float:
        """Geometric mean probability of a content token without any chunk, [0, 1]."""
        return math.exp(min(0.0, self.v_none / self.tokens)) if self.tokens else 0.0

    def used(self, thresholds: Thresholds) -> tuple[int, ...]:
        """Chunks with a positive share above the noise and of some weight, largest first."""
        floor = thresholds.sigmas * thresholds.noise(self.noise)
        total = sum(share for share in self.shares if share > 0)
        strong = [
            position
            for position, share in enumerate(self.shares)
            if share > floor and share >= thresholds.used_part * total
        ]
        return tuple(sorted(strong, key=lambda position: -self.shares[position]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A cell of the table."""

    verdict: VerdictKind
    basis: Basis
    is_used: bool | None  # None: not measured, or too close to tau
    used: tuple[int, ...] = ()  # chunk positions, largest share first
    is_measurable: bool = True  # False: sure without any chunk, so "not used" only means "not needed"
    is_wrong_source: bool = False  # supported, yet by no chunk that was used


def decide(support: Support, influence: Influence | None, thresholds: Thresholds) -> Decision:
    """Look a span up in the table. ``influence`` is None when no scorer can explain the answer.

    Without influence the verdict rests on the text alone: entailed counts as grounded, contradicted as
    distorted, absent as fabricated, and the basis says so.
    """
    if influence is None:
        return Decision(verdict=_by_text(support.state), basis=Basis.SUPPORT_ONLY, is_used=None)
    is_used = _is_used(influence, thresholds)
    supporters = _supporters(support)
    used = influence.used(thresholds) if is_used else ()
    if is_used and not used:
        used = tuple(supporters)  # memory alone would have said it: only the counterfactual shows who is read
    is_measurable = (
        bool(is_used) or influence.follow is not None or influence.p_without <= thresholds.sure_without
    )
    return Decision(
        verdict=_cell(support.state, is_used),
        basis=Basis.ATTRIBUTION_AND_SUPPORT,
        is_used=is_used,
        used=used,
        is_measurable=is_measurable,
        is_wrong_source=bool(is_used and used and supporters and not set(supporters) & set(used)),
    )


def _supporters(support: Support) -> Sequence[int]:
    if support.state is not SupportState.ENTAILED or support.position is None:
        return ()
    return (support.position, *support.other_positions)


def asks_counterfactual(support: Support, influence: Influence, thresholds: Thresholds) -> bool:
    """Whether deletion cannot tell reading from knowing: stated by a chunk, sure without any, and no
    reliance."""
    return (
        bool(_supporters(support))
        and influence.p_without > thresholds.sure_without
        and influence.reliance <= thresholds.tau_nats
    )


def _is_used(influence: Influence, thresholds: Thresholds) -> bool | None:
    margin = thresholds.sigmas * thresholds.noise(influence.noise)
    if influence.follow is not None:
        return None if abs(influence.follow) < margin else influence.follow > 0
    if abs(influence.reliance - thresholds.tau_nats) < margin:
        return None
    return influence.reliance > thresholds.tau_nats and bool(influence.used(thresholds))


def _cell(state: SupportState, is_used: bool | None) -> VerdictKind:
    if is_used is None or state is SupportState.UNCLEAR:
        return VerdictKind.UNDETERMINED
    if state is SupportState.ENTAILED:
        return VerdictKind.GROUNDED if is_used else VerdictKind.KNOWN_ALREADY
    return VerdictKind.DISTORTED if is_used else VerdictKind.FABRICATED


def _by_text(state: SupportState) -> VerdictKind:
    return {
        SupportState.ENTAILED: VerdictKind.GROUNDED,
        SupportState.CONTRADICTED: VerdictKind.DISTORTED,
        SupportState.ABSENT: VerdictKind.FABRICATED,
        SupportState.UNCLEAR: VerdictKind.UNDETERMINED,
    }[state]
