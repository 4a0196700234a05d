"""Ground truth by intervention only: change what a chunk says, let the model write again, see whether it
follows.

It exists because an attribution score must not be judged by another score. For every item the model answers
greedily; then the asked value is swapped in one chunk at a time, and jointly in every group of chunks that
state the same value (SCIENCE 9.1). The cause is the smallest set whose swap makes the answer follow; memory
is the cause when none does. Where chunks state the very value that was given, only they can be its cause:
that the answer would also follow another chunk, had that one said something else, is no origin of this value.
For the same reason a value that no chunk states, and that the answer without any chunk gives too, is
memory's.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ragblame.attribution.evaluation.cells import Cell, Item
from ragblame.attribution.world.answering import Statement, read_repetition, read_statements
from ragblame.attribution.world.facts import (
    FALLBACK,
    NOT_STATED,
    Chunk,
    Claim,
    Entity,
    distort,
    draw_fact,
    entity_of,
)
from ragblame.attribution.world.values import Split
from ragblame.attribution.world.wording import sentence_forms

Generate = Callable[[Sequence[str]], list[str]]  # prompts -> greedy answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """One intervention: these chunks now say this instead."""

    positions: tuple[int, ...]
    chunks: tuple[Chunk, ...]  # the whole context after the change
    follows: frozenset[str]  # values that an answer following the change gives
    before: frozenset[str]  # what an answer read from these chunks gave before the change


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What the model did with one item."""

    answer: str
    value: str | None  # what it gave for the asked value; None when the answer cannot be read
    ranges: tuple[tuple[int, int], ...]  # code points in the answer that carry the claim
    repeated: tuple[int, int] | None  # where the value stands once more
    entity: Entity | None  # whom the value was given for; of a two-hop answer the entity it went on to
    causes: tuple[int, ...]  # chunks, by position; empty: memory
    sufficient: tuple[tuple[int, ...], ...]  # every swapped set that the answer followed
    is_clear: bool  # False when no swap was followed, yet some swap changed the value to something else

    @property
    def is_labelled(self) -> bool:
        """Whether the item can be used: read, answered with a value, and of clear behaviour."""
        return self.value is not None and self.value != NOT_STATED and self.is_clear

    @property
    def is_used(self) -> bool:
        """Whether the value came from the chunks."""
        return bool(self.causes)


def swapped(chunk: Chunk, attribute: str, value: str) -> Chunk:
    """The chunk as if it had always said ``value``: the one sentence changes and nothing else."""
    facts, text = list(chunk.facts), chunk.text
    for index, ((name, old), form) in enumerate(zip(chunk.facts, chunk.forms, strict=True)):
        if name == attribute:
            sentence = sentence_forms(name)[form]
            before = sentence.format(e=chunk.entity, v=old)
            assert before in text, f"{before!r} does not stand in {text!r}"
            text = text.replace(before, sentence.format(e=chunk.entity, v=value), 1)
            facts[index] = (name, value)
    return replace(chunk, text=text, facts=tuple(facts))


def swaps(item: Item, *, seed: int) -> list[Swap]:
    """Every intervention on an item, single chunks first."""
    rng = random.Random(f"swap {seed} {item.cell.value} {item.number}")
    claim = item.claim
    stated = {
        index: dict(chunk.facts)[claim.attribute]
        for index, chunk in enumerate(item.chunks)
        if claim.attribute in dict(chunk.facts)
    }
    groups: dict[str, list[int]] = {}
    for index, value in stated.items():
        groups.setdefault(value, []).append(index)
    wanted: list[tuple[int, ...]] = [(index,) for index in stated]
    wanted += [tuple(group) for group in groups.values() if len(group) > 1]
    found = []
    for positions in wanted:
        new = _other_value(rng, claim.attribute, set(stated.values()))
        chunks = list(item.chunks)
        for index in positions:
            chunks[index] = swapped(chunks[index], claim.attribute, new)
        rivals = [chunk.value(claim) for index, chunk in enumerate(item.chunks) if index not in positions]
        said = [new, *(value for value in rivals if value is not None and value != stated[positions[0]])]
        found.append(
            Swap(
                positions=positions,
                chunks=tuple(chunks),
                follows=frozenset(value for one in said for value in (one, distort(claim, one))),
                before=frozenset((stated[positions[0]], distort(claim, stated[positions[0]]))),
            )
        )
    return [*found, *_bridge_swaps(item, stated)]


def _bridge_swaps(item: Item, stated: dict[int, str]) -> list[Swap]:
    """For two hops: the fallback becomes another entity whose value is there; following means giving that
    one."""
    if item.cell is not Cell.TWO_HOP:
        return []
    start = item.question.claims[0]
    bridges = [index for index, chunk in enumerate(item.chunks) if chunk.value(start) is not None]
    others = [index for index in stated if item.chunks[index].entity != item.claim.entity]
    found = []
    for bridge in bridges:
        choice = item.chunks[others[0]]
        chunks = list(item.chunks)
        chunks[bridge] = swapped(chunks[bridge], FALLBACK, choice.entity.as_value)
        value = stated[others[0]]
        follows = frozenset((value, distort(Claim(choice.entity, item.claim.attribute), value)))
        # A bridge leads to the value whichever it is, so it is a candidate for any.
        found.append(
            Swap(
                positions=(bridge,), chunks=tuple(chunks), follows=follows, before=frozenset(stated.values())
            )
        )
    return found


def observe(items: Sequence[Item], generate: Generate, *, seed: int) -> list[Behaviour]:
    """Answer every item, intervene, answer again; one behaviour per item, in order."""
    answers = generate([item.prompt for item in items])
    planned = [swaps(item, seed=seed) for item in items]
    prompts = [
        replace(item, chunks=swap.chunks).prompt
        for item, done in zip(items, planned, strict=True)
        for swap in done
    ]
    again = iter(generate(prompts))
    alone = generate([replace(item, chunks=()).prompt for item in items])
    return [
        _label(item, answer, [(swap, next(again)) for swap in done], by_heart)
        for item, answer, done, by_heart in zip(items, answers, planned, alone, strict=True)
    ]


def _label(item: Item, answer: str, outcomes: Sequence[tuple[Swap, str]], by_heart: str) -> Behaviour:
    """``outcomes``: what was answered after each swap; ``by_heart``: what is answered without any chunk."""
    last = _final(item, answer)
    value = last.value if last else None
    sufficient, is_moved = [], False
    candidates = [one for one in outcomes if value in one[0].before]
    if not candidates and final_value(item, by_heart) != value:
        candidates = list(
            outcomes
        )  # a slip of the pen: nobody says just this, yet some chunk may be its source
    for swap, other in candidates:
        final = _final(item, other)
        if final is not None and final.value == value:
            continue
        if final is not None and final.value in swap.follows:
            sufficient.append(swap.positions)
        else:
            is_moved = True
    smallest = min((len(positions) for positions in sufficient), default=0)
    causes = sorted({at for positions in sufficient if len(positions) == smallest for at in positions})
    ranges = []
    if last is not None:
        if item.cell is Cell.TWO_HOP:
            ranges = [(one.start, one.end) for one in read_statements(answer) if one.attribute == FALLBACK]
        ranges.append((last.start, last.end))
    return Behaviour(
        answer=answer,
        value=value,
        ranges=tuple(ranges),
        repeated=read_repetition(answer),
        entity=None if last is None else entity_of(last.entity),
        causes=tuple(causes),
        sufficient=tuple(sufficient),
        is_clear=bool(sufficient) or not is_moved,
    )


def final_value(item: Item, answer: str) -> str | None:
    """The value an answer gives for what was asked in the end; None when it cannot be read."""
    final = _final(item, answer)
    return None if final is None else final.value


def _final(item: Item, answer: str) -> Statement | None:
    """The statement that answers what was asked in the end."""
    said = [one for one in read_statements(answer) if one.attribute == item.claim.attribute]
    if item.cell is not Cell.TWO_HOP:
        said = [one for one in said if one.entity == str(item.claim.entity)]
    return said[-1] if said else None


def edited(item: Item, position: int, *, seed: int) -> Item:
    """The item with what chunk ``position`` says changed, the asked attribute if it is there: for the flip
    test."""
    rng = random.Random(f"edit {seed} {item.cell.value} {item.number} {position}")
    chunk = item.chunks[position]
    names = [name for name, _ in chunk.facts]
    attribute = item.claim.attribute if item.claim.attribute in names else rng.choice(names)
    if FALLBACK in names and item.cell is Cell.TWO_HOP and chunk.entity == item.question.claims[0].entity:
        attribute = FALLBACK
    taken = {value for one in item.chunks for name, value in one.facts if name == attribute}
    new = _other_value(rng, attribute, taken)
    chunks = list(item.chunks)
    chunks[position] = swapped(chunk, attribute, new)
    return replace(item, chunks=tuple(chunks))


def _other_value(rng: random.Random, attribute: str, taken: set[str]) -> str:
    while (new := draw_fact(rng, attribute, Split.HELD_OUT)) in taken:
        pass
    return new
