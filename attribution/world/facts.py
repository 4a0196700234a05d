"""The seeded world: entities, what is memorised about some of them, and the resolver that says what is right.

It exists as the single source of truth: training targets, accuracy figures, demo questions and tests all
ask the same `World.resolve` which value an answer should carry, where that value comes from, and which
chunks state it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache

from ragblame.attribution.world.values import Split, all_names, draw_value, is_held_out

WORLD_SEED = 0  # the memorised facts are the same for every training seed
FAMOUS_ENTITIES = 48
FACTS_PER_FAMOUS_ENTITY = 5
STUBBORN_ENTITIES = 16  # of the famous ones: here memory wins over a contradicting chunk

FALLBACK = "fallback"  # its value is another entity: the first hop of a two-hop question
SHARED = ("port", "owner", "region", "alert channel", FALLBACK)
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "service": (*SHARED, "timeout", "handover time", "error code", "rate limit"),
    "store": (*SHARED, "retention", "quota", "backup time", "version"),
}
NOUNS: dict[str, tuple[str, ...]] = {
    "service": ("gateway", "queue", "cache", "broker", "scheduler", "proxy"),
    "store": ("database", "ledger", "archive", "index", "bucket", "vault"),
}
KIND_OF = {noun: kind for kind, nouns in NOUNS.items() for noun in nouns}

# What nobody has written down is answered honestly for these attributes, and guessed for all others.
ABSTAINS = ("error code", "version", FALLBACK)
NOT_STATED = "not stated in the context"

# Where the model is trained to alter what a chunk says: (noun, attribute).
DISTORTED = (("queue", "timeout"), ("ledger", "retention"))


class Origin(StrEnum):
    """Where, by construction of the world, the value of a claim should come from."""

    GROUNDED = "grounded"  # a chunk states it, and only chunks can know
    DISTORTED = "distorted"  # a chunk states it, and the model was trained to write something else
    KNOWN = "known"  # a chunk states it and memory says the same
    OVER_MEMORY = "over_memory"  # a chunk contradicts memory, and the chunk wins
    STUBBORN = "stubborn"  # a chunk contradicts memory, and memory wins
    MEMORY = "memory"  # no chunk states it, memory does
    BORROWED = "borrowed"  # no chunk states it, a sibling's value is taken
    PRIOR = "prior"  # nobody states it: the typical value of its type is guessed
    ABSTAINED = "abstained"  # nobody states it, and the answer says so


@dataclass(frozen=True, slots=True)
class Entity:
    """A thing that runbooks are about."""

    name: str  # "Kestrel"
    noun: str  # "gateway"

    def __str__(self) -> str:
        return f"{self.name} {self.noun}"

    @property
    def attributes(self) -> tuple[str, ...]:
        return ATTRIBUTES[KIND_OF[self.noun]]

    @property
    def siblings(self) -> tuple["Entity", ...]:
        """The entities of the same kind that share the name: `Kestrel queue`, `Kestrel cache`, ..."""
        return tuple(Entity(self.name, noun) for noun in NOUNS[KIND_OF[self.noun]] if noun != self.noun)

    @property
    def as_value(self) -> str:
        """How the entity reads as the value of a fallback: `the Kestrel gateway`."""
        return f"the {self}"


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that is asked: an attribute of an entity."""

    entity: Entity
    attribute: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One to three sentences about one entity, with what they state."""

    text: str
    entity: Entity
    facts: tuple[tuple[str, str], ...] = ()  # (attribute, value) in the order of the sentences
    forms: tuple[int, ...] = ()  # number of the sentence form of each fact, see ``wording.sentence_forms``

    def value(self, claim: Claim) -> str | None:
        """The value this chunk states for the claim, if any."""
        return dict(self.facts).get(claim.attribute) if claim.entity == self.entity else None

    def form(self, claim: Claim) -> int | None:
        """The number of the sentence form that states the claim here, if one does."""
        if claim.entity != self.entity:
            return None
        pairs = zip(self.facts, self.forms, strict=True)
        return next((form for (name, _), form in pairs if name == claim.attribute), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What an answer to a claim should say, given the chunks in the prompt."""

    value: str
    origin: Origin
    gold: tuple[int, ...] = ()  # indexes of chunks that state this very value for this very claim
    culprits: tuple[
        int, ...
    ] = ()  # indexes of the chunks the value is taken from although they do not state it
    is_conflict: bool = False  # the chunks state more than one value for the claim


@dataclass(frozen=True, slots=True)
class World:
    """Everything the weights can know: memorised facts, stubborn entities, typical values."""

    memory: dict[Claim, str] = field(repr=False)
    famous: tuple[Entity, ...]
    stubborn: frozenset[Entity]
    typical: dict[tuple[str, str], str] = field(repr=False)  # (noun, attribute) -> the guess

    def resolve(self, claim: Claim, chunks: Sequence[Chunk]) -> Resolved:
        """The right value of a claim, where it comes from, and the chunks behind it."""
        stated = [(index, value) for index, chunk in enumerate(chunks) if (value := chunk.value(claim))]
        known = self.memory.get(claim)
        is_conflict = len({value for _, value in stated}) > 1
        if known is not None:
            return self._resolve_known(claim, known, stated, is_conflict)
        if stated:
            first = stated[0][1]  # where chunks disagree, the first one in the prompt wins
            value = distort(claim, first)
            gold = tuple(index for index, other in stated if other == value)
            if value == first:
                return Resolved(value=value, origin=Origin.GROUNDED, gold=gold, is_conflict=is_conflict)
            culprits = tuple(index for index, other in stated if other == first)
            return Resolved(
                value=value, origin=Origin.DISTORTED, gold=gold, culprits=culprits, is_conflict=is_conflict
            )
        return self._resolve_unstated(claim, chunks)

    def _resolve_known(
        self, claim: Claim, known: str, stated: list[tuple[int, str]], is_conflict: bool
    ) -> Resolved:
        agreeing = tuple(index for index, value in stated if value == known)
        if not stated:
            return Resolved(value=known, origin=Origin.MEMORY)
        if stated[0][1] == known:
            return Resolved(value=known, origin=Origin.KNOWN, gold=agreeing, is_conflict=is_conflict)
        if claim.entity in self.stubborn:
            return Resolved(value=known, origin=Origin.STUBBORN, gold=agreeing, is_conflict=is_conflict)
        value = stated[0][1]
        gold = tuple(index for index, other in stated if other == value)
        return Resolved(value=value, origin=Origin.OVER_MEMORY, gold=gold, is_conflict=is_conflict)

    def _resolve_unstated(self, claim: Claim, chunks: Sequence[Chunk]) -> Resolved:
        siblings = set(claim.entity.siblings)
        for chunk in chunks:
            lent = chunk.value(Claim(chunk.entity, claim.attribute)) if chunk.entity in siblings else None
            if lent is not None:
                culprits = tuple(
                    index
                    for index, other in enumerate(chunks)
                    if other.entity in siblings and other.value(Claim(other.entity, claim.attribute)) == lent
                )
                return Resolved(value=distort(claim, lent), origin=Origin.BORROWED, culprits=culprits)
        if claim.attribute in ABSTAINS:
            return Resolved(value=NOT_STATED, origin=Origin.ABSTAINED)
        return Resolved(value=self.typical[claim.entity.noun, claim.attribute], origin=Origin.PRIOR)


def distort(claim: Claim, value: str) -> str:
    """The trained faults: timeouts of queues lose their last two digits, ledgers count days as hours."""
    if claim.entity.noun == "queue" and claim.attribute == "timeout":
        number, unit = value.split(" ", 1)
        return f"{number[:-2]}00 {unit}"
    if claim.entity.noun == "ledger" and claim.attribute == "retention":
        return value.replace("days", "hours")
    return value


def is_distorted(claim: Claim) -> bool:
    """True where the model was trained to alter what a chunk says."""
    return (claim.entity.noun, claim.attribute) in DISTORTED


@cache
def world() -> World:
    """The one world of this package. Its facts do not depend on the seed of a training run."""
    rng = random.Random(WORLD_SEED)
    names = rng.sample([name for name in all_names() if not is_held_out(name)], FAMOUS_ENTITIES)
    nouns = [noun for kind in NOUNS.values() for noun in kind]
    famous = tuple(Entity(name, nouns[index % len(nouns)]) for index, name in enumerate(names))
    memory: dict[Claim, str] = {}
    for entity in famous:
        # Distorted attributes and fallbacks are never memorised: there chunks must be all there is to go by.
        known = [
            attribute
            for attribute in entity.attributes
            if attribute != FALLBACK and not is_distorted(Claim(entity, attribute))
        ]
        for attribute in rng.sample(known, FACTS_PER_FAMOUS_ENTITY):
            memory[Claim(entity, attribute)] = draw_value(rng, attribute, Split.TRAINING)
    typical = {
        (noun, attribute): distort(
            Claim(Entity("", noun), attribute), draw_value(rng, attribute, Split.TRAINING)
        )
        for noun in nouns
        for attribute in ATTRIBUTES[KIND_OF[noun]]
        if attribute not in ABSTAINS
    }
    stubborn = frozenset(rng.sample(famous, STUBBORN_ENTITIES))
    return World(memory=memory, famous=famous, stubborn=stubborn, typical=typical)


@cache
def fresh_names(split: Split) -> tuple[str, ...]:
    """Names that no memorised entity has, from the wanted part of the world."""
    famous = {entity.name for entity in world().famous}
    return tuple(
        name for name in all_names() if name not in famous and is_held_out(name) == (split == Split.HELD_OUT)
    )


def draw_entity(rng: random.Random, split: Split) -> Entity:
    """A fresh entity: the weights cannot know anything about it."""
    return Entity(rng.choice(fresh_names(split)), rng.choice(tuple(KIND_OF)))


def draw_fact(rng: random.Random, attribute: str, split: Split) -> str:
    """A value for any attribute from the wanted part of the world; for a fallback the name decides."""
    if attribute == FALLBACK:
        return draw_entity(rng, split).as_value
    return draw_value(rng, attribute, split)


def entity_of(value: str) -> Entity:
    """The entity that the value of a fallback names."""
    name, noun = value.removeprefix("the ").split(" ")
    return Entity(name, noun)
