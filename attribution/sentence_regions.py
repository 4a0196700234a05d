"""A layout whose players are the sentences of some chunks beside the other chunks whole.

Which sentence of a chunk was read is asked like which chunk was: what would the model have said without it?
So a removed sentence leaves the text that somebody would have written without it. The white space before a
sentence goes with it, that at the ends of the chunk stays while any sentence of it stays, and a chunk that
loses its last sentence goes with label and separator. With all or no sentences of a chunk the prompt is,
letter by letter, that of ``Layout`` with or without the chunk.

It is a ``Layout``, so every scorer and estimator takes it; ``players`` names a chunk once per sentence.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace

from ragblame.attribution.layout import Layout, encodable
from ragblame.attribution.methods.coalitions import members
from ragblame.attribution.pairing import paired
from ragblame.attribution.regions import Region, Unit, remove
from ragblame.attribution.sentences import split_sentences
from ragblame.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SentenceLayout(Layout):
    """``regions[i]`` is player i: a sentence, white space trimmed, or a chunk whole. Build with
    ``sentence_layout``."""

    chunk_regions: tuple[Region, ...]  # the players of the layout it was made from
    owners: tuple[int, ...]  # for each player the index of its chunk in ``chunk_regions``

    def prompt_text(self, mask: int) -> str:
        """The prompt as if the chunks had held only the sentences of ``mask``."""
        self._check(mask)
        kept: dict[int, list[int]] = {}
        for player in members(mask):
            kept.setdefault(self.owners[player], []).append(player)
        stretches = {chunk: self._stretches(chunk, players) for chunk, players in kept.items()}
        everybody = sum(1 << chunk for chunk in kept)
        runs = [
            replace(run, units=tuple(_reduced(unit, stretches, everybody) for unit in run.units))
            for run in self.runs
        ]
        return remove(self.prompt, runs, everybody)

    def players_of(self, position: int) -> tuple[int, ...]:
        """The players that belong to a chunk, in the order of its text."""
        return tuple(player for player, region in enumerate(self.regions) if region.position == position)

    def by_position(self, values: Sequence[float]) -> tuple[float, ...]:
        """One value per chunk of the trace: the sum over its players, exactly 0 without any."""
        spread = [0.0] * len(self.chunks)
        for region, value in zip(self.regions, values, strict=True):
            spread[region.position] += float(value)
        return tuple(spread)

    def _stretches(self, chunk: int, players: Sequence[int]) -> list[tuple[int, int]]:
        """What stays of a chunk's text when these of its players stay: ``[start, end)`` in the prompt."""
        region = self.chunk_regions[chunk]
        own = [player for player, owner in enumerate(self.owners) if owner == chunk]
        stretches = []
        for place, player in enumerate(players):
            sentence = self.regions[player]
            start = region.start if player == own[0] else sentence.start
            if place and player != own[0]:
                start = self.regions[player - 1].end  # the white space before it
            elif not place and player != own[0]:
                stretches.append((region.start, self.regions[own[0]].start))  # as the chunk began
            stretches.append((start, sentence.end))
        stretches.append((self.regions[own[-1]].end, region.end))  # and as it ended
        return stretches


def sentence_layout(layout: Layout, positions: Collection[int]) -> SentenceLayout:
    """Cut these chunks into sentences; all others stay whole players.

    Sentences are those of the text in the prompt, which may be a part of the chunk. Raises ``InputError``
    when a chunk is not in the prompt or the layout is cut already.
    """
    if isinstance(layout, SentenceLayout):
        raise InputError("this layout is cut into sentences already: cut the one it was made from")
    if absent := [position for position in positions if position not in layout.players]:
        named = ", ".join(str(position + 1) for position in absent)
        raise InputError(f"chunk {named} does not stand in the prompt, so it has no sentences to share")
    regions: list[Region] = []
    owners: list[int] = []
    for chunk, region in enumerate(layout.regions):
        parts = _sentences(layout, region) if region.position in positions else [region]
        regions += parts
        owners += [chunk] * len(parts)
    kept = {field.name: getattr(layout, field.name) for field in fields(layout) if field.name != "regions"}
    return SentenceLayout(**kept, regions=tuple(regions), chunk_regions=layout.regions, owners=tuple(owners))


def _sentences(layout: Layout, region: Region) -> list[Region]:
    """One region per sentence of a chunk's text in the prompt, white space trimmed."""
    text = layout.prompt[region.start : region.end]
    parts = []
    for start, end in split_sentences(text):
        shown = text[start:end]
        if not shown.strip():
            continue
        start += len(shown) - len(shown.lstrip())
        end = start + len(shown.strip())
        parts.append(
            replace(
                region,
                start=region.start + start,
                end=region.start + end,
                found=_in_chunk(layout, region, start, end),
            )
        )
    return parts or [region]


def _in_chunk(layout: Layout, region: Region, start: int, end: int) -> tuple[int, int]:
    """Code points of the chunk's own text for ``[start, end)`` of its text in the prompt.

    The part begins and ends with a visible character, which stands in both texts.
    """
    shown = layout.prompt[region.start : region.end]
    first, last = region.found
    places = paired(encodable(layout.chunks[region.position].text)[first:last], shown)
    return first + places[start], first + places[end - 1] + 1


def _reduced(unit: Unit, stretches: dict[int, list[tuple[int, int]]], everybody: int) -> Unit:
    """The unit with only the text that some chunk still holds; shared text stays while one of them has it."""
    pieces: list[tuple[int, int, int]] = []
    at = unit.start
    for start, end in sorted(part for owner in unit.owners for part in stretches.get(owner, ())):
        start = max(start, at)
        if end > start:
            pieces.append((start, end, everybody))
            at = end
    return replace(unit, pieces=tuple(pieces))
