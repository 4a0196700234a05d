"""The twelve cells of the known-cause world: prompts, each designed to provoke one cause of a value.

It exists so that an attribution method meets what fools it: copies, contradictions, the same value said of
another subject, memory that agrees or wins, trained faults. What an item is designed for is never its label:
the label comes from what the model does (``interventions.py``).

Every name, every value and every pair of (sentence form, question form) behind the asked value is held out
from training; only the memorised entities are, of necessity, known.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from ragblame.attribution.world.episodes import (
    FULL,
    Question,
    ask,
    ask_two_hop,
    draw_chunks,
    lookalikes,
    prompt_text,
    write_chunk,
)
from ragblame.attribution.world.facts import (
    ABSTAINS,
    DISTORTED,
    FALLBACK,
    Chunk,
    Claim,
    Entity,
    draw_entity,
    draw_fact,
    is_distorted,
    world,
)
from ragblame.attribution.world.values import Split
from ragblame.attribution.world.wording import withheld

# How many chunks the 40 items of a round have: all of 2-10, long ones rarely, as exact Shapley costs 2**n.
CHUNK_COUNTS = (*(2, 3, 4, 5) * 7, *(6,) * 5, *(7,) * 3, 8, 8, 9, 10)
PLACES = ("first", "middle", "last")
TRIES = 1_000  # draws before a wanted wording is given up as impossible


class Cell(StrEnum):
    """What an item was designed for, in the order of the list in the documents."""

    SINGLE = "1 single support"
    COPIES = "2 exact duplicates"
    PARAPHRASES = "3 paraphrased duplicates"
    TWO_HOP = "4 two-hop"
    CONFLICT = "5 conflict"
    TRAP = "6 lexical trap"
    AGREES = "7 memory agrees"
    MEMORY_WINS = "8 memory beats context"
    UNSTATED = "9 nothing supports"
    DISTORTED = "10 trained distortion"
    PLACE = "11 support by position"
    REPEATED = "12 value repeated"


REDUNDANT = (Cell.COPIES, Cell.PARAPHRASES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One prompt of a cell."""

    cell: Cell
    variant: str  # what sets it apart inside the cell: a position, "borrowed", ...
    number: int  # within the cell
    chunks: tuple[Chunk, ...]
    question: Question
    gold: tuple[int, ...]  # chunks that the design lets the value depend on

    @property
    def prompt(self) -> str:
        return prompt_text(self.chunks, self.question.text)

    @property
    def claim(self) -> Claim:
        """What is asked in the end: of a two-hop question, the second hop."""
        return self.question.claims[-1]

    @property
    def cluster(self) -> str:
        """Items of one cluster are no independent evidence: those that ask for one memorised fact."""
        if self.claim in world().memory:
            return f"{self.claim.attribute} of {self.claim.entity}"
        return f"{self.cell.value} {self.number}"


@dataclass(slots=True)
class _Draft:
    """An item under construction: the chunks that matter, then the others."""

    rng: random.Random
    count: int
    claim: Claim
    key: list[Chunk]
    variant: str = ""
    form: int = 0  # question form

    @property
    def spare(self) -> int:
        return self.count - len(self.key)


def draw_item(cell: Cell, number: int, *, seed: int) -> Item:
    """Item ``number`` of a cell, a pure function of its arguments."""
    rng = random.Random(f"known cause {seed} {cell.value} {number}")
    count = CHUNK_COUNTS[number % len(CHUNK_COUNTS)]
    if cell is Cell.TWO_HOP:
        return _two_hop(rng, number, max(3, count))
    draft = _DRAFTS[cell](rng, max(3, count) if cell is Cell.PLACE else count, number)
    others = [_other(draft) for _ in range(max(0, draft.spare))]
    chunks = [*draft.key, *others]
    rng.shuffle(chunks)
    if cell is Cell.PLACE:
        chunks.remove(draft.key[0])
        at = {"first": 0, "middle": len(others) // 2 + len(others) % 2, "last": len(others)}[draft.variant]
        chunks.insert(at, draft.key[0])
    question = ask(rng, [draft.claim], forms=(draft.form,), is_repeated=cell is Cell.REPEATED)
    gold = tuple(i for i, chunk in enumerate(chunks) if chunk.value(draft.claim) is not None)
    return Item(
        cell=cell, variant=draft.variant, number=number, chunks=tuple(chunks), question=question, gold=gold
    )


def draw_items(count: int, *, seed: int, cells: Sequence[Cell] = tuple(Cell)) -> list[Item]:
    """``count`` items of every cell."""
    return [draw_item(cell, number, seed=seed) for cell in cells for number in range(count)]


def _claim(rng: random.Random, *, abstains: bool = True) -> Claim:
    """Something to ask of a fresh entity, stated by nobody yet."""
    entity = draw_entity(rng, Split.HELD_OUT)
    names = [name for name in entity.attributes if name != FALLBACK and (abstains or name not in ABSTAINS)]
    return Claim(entity, rng.choice([name for name in names if not is_distorted(Claim(entity, name))]))


def _value(rng: random.Random, claim: Claim, *others: str) -> str:
    while (value := draw_fact(rng, claim.attribute, Split.HELD_OUT)) in others:
        pass
    return value


def _stating(
    rng: random.Random, claim: Claim, value: str, *, form: int | None = None, second: float = 0.35
) -> Chunk:
    """A chunk that states the claim, in the wanted sentence form when one is named."""
    for _ in range(TRIES):
        facts = [(claim.attribute, value)]
        if rng.random() < second or (form is not None and form >= 4):  # a continuation follows a sentence
            more = [name for name in claim.entity.attributes if name not in (claim.attribute, FALLBACK)]
            more = [name for name in more if Claim(claim.entity, name) not in world().memory]
            other = Claim(claim.entity, rng.choice(more))
            facts.insert(rng.randrange(2), (other.attribute, _value(rng, other)))
        chunk = write_chunk(rng, claim.entity, facts)
        if form is None or chunk.form(claim) == form:
            return chunk
    raise RuntimeError(f"sentence form {form} of {claim.attribute} does not occur; correct wording.py")


def _withheld_pair(rng: random.Random, attribute: str) -> tuple[int, int]:
    """A (sentence form, question form) that training never brought together."""
    return rng.choice(sorted(withheld(attribute)))


def _single(rng: random.Random, count: int, number: int) -> _Draft:
    claim = _claim(rng)
    form, asked = _withheld_pair(rng, claim.attribute)
    chunk = _stating(rng, claim, _value(rng, claim), form=form)
    return _Draft(rng, count, claim, [chunk], form=asked)


def _place(rng: random.Random, count: int, number: int) -> _Draft:
    draft = _single(rng, count, number)
    draft.variant = PLACES[number % 3]
    return draft


def _copies(rng: random.Random, count: int, number: int) -> _Draft:
    draft = _single(rng, count, number)
    draft.key = draft.key * 2
    return draft


def _paraphrases(rng: random.Random, count: int, number: int) -> _Draft:
    claim = _claim(rng)
    value = _value(rng, claim)
    form, asked = _withheld_pair(rng, claim.attribute)
    first = _stating(rng, claim, value, form=form)
    while (second := _stating(rng, claim, value)).form(claim) == form:
        pass
    return _Draft(rng, count, claim, [first, second], form=asked)


def _conflict(rng: random.Random, count: int, number: int) -> _Draft:
    draft = _single(rng, count, number)
    stated = draft.key[0].value(draft.claim)
    assert stated is not None
    draft.key.append(_stating(rng, draft.claim, _value(rng, draft.claim, stated)))
    return draft


def _trap(rng: random.Random, count: int, number: int) -> _Draft:
    """The value is also said of another thing of the kind, in the very words of the answer.

    Never of a sibling: siblings lend their values in this world, so there the value would have two real
    sources.
    """
    claim = _claim(rng)
    value = _value(rng, claim)
    form, asked = _withheld_pair(rng, claim.attribute)
    gold = _stating(rng, claim, value, form=form)
    likes = [Entity(name, claim.entity.noun) for name in lookalikes(claim.entity.name, Split.HELD_OUT)]
    is_like = bool(likes) and rng.random() < 0.5
    if is_like:
        entity = rng.choice(likes)
    else:
        while (name := draw_entity(rng, Split.HELD_OUT).name) == claim.entity.name:
            pass
        entity = Entity(name, claim.entity.noun)
    other = Claim(entity, claim.attribute)
    variant = "a similar name" if is_like else "another name"
    return _Draft(rng, count, claim, [gold, _stating(rng, other, value, form=0)], variant=variant, form=asked)


def _memorised(rng: random.Random, *, is_stubborn: bool | None) -> Claim:
    return rng.choice(
        [
            claim
            for claim in world().memory
            if is_stubborn is None or (claim.entity in world().stubborn) == is_stubborn
        ]
    )


def _agrees(rng: random.Random, count: int, number: int) -> _Draft:
    claim = _memorised(rng, is_stubborn=None)
    form, asked = _withheld_pair(rng, claim.attribute)
    chunk = _stating(rng, claim, world().memory[claim], form=form)
    variant = "stubborn" if claim.entity in world().stubborn else "open"
    return _Draft(rng, count, claim, [chunk], variant=variant, form=asked)


def _memory_wins(rng: random.Random, count: int, number: int) -> _Draft:
    claim = _memorised(rng, is_stubborn=True)
    form, asked = _withheld_pair(rng, claim.attribute)
    chunk = _stating(rng, claim, _value(rng, claim, world().memory[claim]), form=form)
    return _Draft(rng, count, claim, [chunk], form=asked)


def _unstated(rng: random.Random, count: int, number: int) -> _Draft:
    """Nobody states it: the model recalls it, takes a sibling's value, or guesses."""
    variant = ("guessed", "borrowed", "recalled")[number % 3]
    if variant == "recalled":
        claim = _memorised(rng, is_stubborn=None)
        return _Draft(rng, count, claim, [], variant=variant, form=rng.randrange(2))
    claim = _claim(rng, abstains=False)
    if variant == "guessed":
        return _Draft(rng, count, claim, [], variant=variant, form=rng.randrange(2))
    siblings = [one for one in claim.entity.siblings if claim.attribute in one.attributes]
    lender = Claim(rng.choice(siblings), claim.attribute)
    form, asked = _withheld_pair(rng, claim.attribute)
    chunk = _stating(rng, lender, _value(rng, lender), form=form)
    return _Draft(rng, count, claim, [chunk], variant=variant, form=asked)


def _distorted(rng: random.Random, count: int, number: int) -> _Draft:
    noun, attribute = DISTORTED[number % len(DISTORTED)]
    claim = Claim(Entity(draw_entity(rng, Split.HELD_OUT).name, noun), attribute)
    form, asked = _withheld_pair(rng, attribute)
    chunk = _stating(rng, claim, _value(rng, claim), form=form)
    return _Draft(rng, count, claim, [chunk], variant=attribute, form=asked)


_DRAFTS = {
    Cell.SINGLE: _single,
    Cell.COPIES: _copies,
    Cell.PARAPHRASES: _paraphrases,
    Cell.CONFLICT: _conflict,
    Cell.TRAP: _trap,
    Cell.AGREES: _agrees,
    Cell.MEMORY_WINS: _memory_wins,
    Cell.UNSTATED: _unstated,
    Cell.DISTORTED: _distorted,
    Cell.PLACE: _place,
    Cell.REPEATED: _single,
}


def _two_hop(rng: random.Random, number: int, count: int) -> Item:
    """The fallback of A is B, B's value is asked; the value of another entity C lies beside it as a
    choice."""
    claim = _claim(rng)
    start = draw_entity(rng, Split.HELD_OUT)
    while start == claim.entity:
        start = draw_entity(rng, Split.HELD_OUT)
    form, asked = _withheld_pair(rng, claim.attribute)
    value = _value(rng, claim)
    bridge = write_chunk(rng, start, [(FALLBACK, claim.entity.as_value)])
    target = _stating(rng, claim, value, form=form)
    other = Claim(Entity(draw_entity(rng, Split.HELD_OUT).name, claim.entity.noun), claim.attribute)
    while other.entity.name in (claim.entity.name, start.name):
        other = Claim(Entity(draw_entity(rng, Split.HELD_OUT).name, claim.entity.noun), claim.attribute)
    choice = _stating(rng, other, _value(rng, other, value))
    draft = _Draft(rng, count, claim, [bridge, target, choice], form=asked)
    chunks = [*draft.key, *(_other(draft) for _ in range(draft.spare))]
    rng.shuffle(chunks)
    return Item(
        cell=Cell.TWO_HOP,
        variant="",
        number=number,
        chunks=tuple(chunks),
        question=ask_two_hop(rng, start, claim.entity, claim.attribute, form=asked),
        gold=tuple(sorted((chunks.index(bridge), chunks.index(target)))),
    )


def _other(draft: _Draft) -> Chunk:
    """A chunk that changes nothing: like a retriever's near misses, yet stating nothing that could be
    asked."""
    rng, claim = draft.rng, draft.claim
    kin = {claim.entity, *claim.entity.siblings}
    for _ in range(TRIES):
        dice = rng.random()
        if dice < 0.3:
            likes = lookalikes(claim.entity.name, Split.HELD_OUT)
            entity = (
                Entity(rng.choice(likes), claim.entity.noun) if likes else draw_entity(rng, Split.HELD_OUT)
            )
            near = Claim(entity, claim.attribute)
            chunk = _stating(rng, near, _value(rng, near))
        elif dice < 0.5:
            near = Claim(rng.choice(sorted(kin, key=str)), rng.choice(claim.entity.attributes))
            if near.attribute == claim.attribute or near.attribute not in near.entity.attributes:
                continue
            chunk = _stating(rng, near, _value(rng, near), second=0.0)
        else:
            chunk = draw_chunks(rng, Split.HELD_OUT, 1, replace(FULL, famous=0.1))[0]
        states = any(name == claim.attribute for name, _ in chunk.facts)
        known = any(Claim(chunk.entity, name) in world().memory for name, _ in chunk.facts)
        is_taken = any(chunk.entity == key.entity and chunk.facts == key.facts for key in draft.key)
        if not (chunk.entity in kin and states) and not known and not is_taken:
            return chunk
    raise RuntimeError("no harmless chunk could be drawn; correct cells.py")
