"""From numbers on prompt tokens to chunks and back to the reader: shares, and heat on each chunk's own text.

One law holds for every token-level method: the heat of a chunk's tokens sums to the chunk's share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragblame.attribution.layout import Layout, Tokens, encodable
from ragblame.attribution.pairing import paired
from ragblame.attribution.regions import Region
from ragblame.records import Attribution, Cost, Method, Span, TokenHeat


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatResult:
    """What a token-level method says about an answer's spans."""

    attributions: tuple[Attribution, ...]  # one per method and span
    heats: tuple[TokenHeat, ...]  # one per method, span and chunk in the prompt
    notes: tuple[str, ...] = ()


def chunk_weights(layout: Layout, tokens: Tokens) -> NDArray[np.float64]:
    """How much of each prompt token belongs to each player, shape [player, token]; columns sum to 0 or 1.

    A token belongs to the chunk that covers most of it (labels and separators belong to none); where several
    chunks share their place in the prompt, they share the token equally.
    """
    starts, ends = np.array(tokens.starts), np.array(tokens.ends)
    covered = np.zeros((len(layout.regions), len(tokens.ids)))
    for player, region in enumerate(layout.regions):
        covered[player] = np.clip(np.minimum(ends, region.end) - np.maximum(starts, region.start), 0, None)
    if not len(covered):
        return covered
    most = covered.max(axis=0)
    owners = (covered == most) & (most > 0)
    for at in np.flatnonzero(
        owners.sum(axis=0) > 1
    ):  # owners that merely touch in this token do not share it
        players = np.flatnonzero(owners[:, at])
        first = layout.regions[players[0]]
        for player in players[1:]:
            if layout.regions[player].start >= first.end:
                owners[player, at] = False
    weights: NDArray[np.float64] = owners / np.maximum(owners.sum(axis=0), 1)
    return weights


def token_heats(
    layout: Layout, tokens: Tokens, heat: NDArray[np.float64], span: int, method: Method
) -> tuple[TokenHeat, ...]:
    """Heat per chunk in code points of the chunk's own text, from ``heat`` of shape [player, prompt token].

    Tokens that do not belong to a chunk are left out of it, so ``heat`` must already be weighted.
    """
    heats = []
    owned = chunk_weights(layout, tokens) > 0
    for player, region in enumerate(layout.regions):
        places = _places(layout, region)
        indices = [int(index) for index in np.flatnonzero(owned[player])]
        inside = [(max(tokens.starts[i], region.start), min(tokens.ends[i], region.end)) for i in indices]
        heats.append(
            TokenHeat(
                span=span,
                position=region.position,
                method=method,
                starts=tuple(places[start - region.start] for start, _ in inside),
                ends=tuple(places[end - 1 - region.start] + 1 for _, end in inside),
                values=tuple(float(heat[player, index]) for index in indices),
            )
        )
    return tuple(heats)


def heat_result(
    layout: Layout,
    tokens: Tokens,
    spans: Sequence[Span],
    method: Method,
    heat: Sequence[NDArray[np.float64]],
    fingerprint: str,
    cost: Cost,
    *,
    gaps: Sequence[float] | None = None,
    notes: tuple[str, ...] = (),
) -> HeatResult:
    """Records of one method from each span's weighted heat of shape [player, prompt token]."""
    attributions = tuple(
        Attribution(
            span=span.index,
            method=method,
            shares=layout.by_position(heat[number].sum(axis=1).tolist()),
            completeness_gap=None if gaps is None else gaps[number],
            settings_hash=fingerprint,
            cost=cost,
        )
        for number, span in enumerate(spans)
    )
    heats = tuple(
        token_heat
        for number, span in enumerate(spans)
        for token_heat in token_heats(layout, tokens, heat[number], span.index, method)
    )
    return HeatResult(attributions=attributions, heats=heats, notes=notes)


def joined(results: Sequence[HeatResult]) -> HeatResult:
    """Several methods' results as one."""
    return HeatResult(
        attributions=tuple(a for result in results for a in result.attributions),
        heats=tuple(h for result in results for h in result.heats),
        notes=tuple(note for result in results for note in result.notes),
    )


def _places(layout: Layout, region: Region) -> list[int]:
    """Code point of the chunk's own text for each code point of its region in the prompt."""
    first, last = region.found
    own = encodable(layout.chunks[region.position].text)[first:last]
    return [first + place for place in paired(own, layout.prompt[region.start : region.end])]
