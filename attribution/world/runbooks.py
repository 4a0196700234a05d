"""The demo's corpus and questions: runbooks of entities the model never saw, and of a few it knows by heart.

It exists so that the demo's documents are in the model's own language (every paragraph is one chunk as
trained) while their names and values are held out. What a question is *meant* to provoke is its `kind`;
whether it does is for the model to show, and no verdict is ever computed from it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ragblame.attribution.world.episodes import ask, write_chunk
from ragblame.attribution.world.facts import (
    ABSTAINS,
    KIND_OF,
    NOUNS,
    Chunk,
    Claim,
    Entity,
    draw_fact,
    fresh_names,
    is_distorted,
    world,
)
from ragblame.attribution.world.values import WHOLE_NAMES, Split


class Kind(StrEnum):
    """What a question of the demo was designed to provoke."""

    SINGLE = "single"  # one chunk states it
    TRAP = "trap"  # one chunk states it, a sibling's chunk states another value
    DUPLICATES = "duplicates"  # two chunks state it in different words
    CONFLICT = "conflict"  # two chunks state different values
    KNOWN = "known"  # a chunk states it and memory says the same
    OPEN = "open"  # a chunk contradicts memory, the chunk should win
    STUBBORN = "stubborn"  # a chunk contradicts memory, memory should win
    MEMORY = "memory"  # only memory has it
    SIBLING = "sibling"  # only a sibling's chunk states it
    MISSING = "missing"  # nobody states it, the answer is a guess
    ABSTAIN = "abstain"  # nobody states it, the answer says so
    DISTORTED = "distorted"  # a chunk states it and the model alters it
    TWO_PART = "two_part"  # one half is stated, the other is not


COUNTS: dict[Kind, int] = {
    Kind.SINGLE: 6,
    Kind.TRAP: 6,
    Kind.DUPLICATES: 4,
    Kind.CONFLICT: 3,
    Kind.KNOWN: 5,
    Kind.OPEN: 3,
    Kind.STUBBORN: 5,
    Kind.MEMORY: 3,
    Kind.SIBLING: 5,
    Kind.MISSING: 5,
    Kind.ABSTAIN: 2,
    Kind.DISTORTED: 5,
    Kind.TWO_PART: 4,
}


# The tokenizer cuts these into pieces that hardly any training name has, so the model may misspell them.
# They stay in the accuracy figures; in a demo they would only distract.
ODD_NAMES = frozenset(
    (
        *WHOLE_NAMES,
        *("Bluestead", "Hazellake", "Onyxyard", "Stonedale", "Stonepeak", "Stormbank", "Sunspring"),
        *("Thornshore", "Thornspring", "Thornton"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runbook:
    """A page about one entity. Each of its chunks is one paragraph."""

    title: str
    entity: Entity
    chunks: tuple[Chunk, ...]

    @property
    def slug(self) -> str:
        """A file name without suffix: `kestrel-gateway`."""
        return str(self.entity).lower().replace(" ", "-")

    def markdown(self) -> str:
        """The page as a person would keep it: a heading and one paragraph per chunk."""
        return "\n\n".join([f"# {self.title}", *(chunk.text for chunk in self.chunks)]) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoQuestion:
    """A question to put to the chain."""

    text: str
    kind: Kind
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Demo:
    """Runbooks with the questions they were written for, in a mixed order."""

    runbooks: tuple[Runbook, ...]
    questions: tuple[DemoQuestion, ...]


@dataclass(slots=True)
class _Writer:
    """Collects pages and questions while the demo is put together."""

    rng: random.Random
    names: list[str]
    pages: dict[Entity, list[Chunk]] = field(default_factory=dict)
    questions: list[DemoQuestion] = field(default_factory=list)

    def family(self, noun: str | None = None) -> tuple[Entity, Entity]:
        """A held-out entity and a sibling of it, not used before."""
        noun = noun or self.rng.choice([noun for nouns in NOUNS.values() for noun in nouns])
        entity = Entity(self.names.pop(), noun)
        return entity, self.rng.choice(entity.siblings)

    def value(self, attribute: str, *others: str) -> str:
        while (value := draw_fact(self.rng, attribute, Split.HELD_OUT)) in others:
            pass
        return value

    def page(self, entity: Entity, *paragraphs: Sequence[tuple[str, str]], avoid: Sequence[str] = ()) -> None:
        """Write a page; each paragraph may get one more fact, and there are at least two paragraphs."""
        spare = [
            name for name in entity.attributes if name not in avoid and not is_distorted(Claim(entity, name))
        ]
        spare = [name for name in spare if name not in {name for facts in paragraphs for name, _ in facts}]
        # A fact the model knows by heart must be on the page only where the question wants it there.
        spare = [name for name in spare if Claim(entity, name) not in world().memory]
        self.rng.shuffle(spare)
        chunks: list[Chunk] = []
        for facts in [*paragraphs, *[[]] * max(0, 2 - len(paragraphs))]:
            more = [spare.pop()] if spare and (not facts or self.rng.random() < 0.5) else []
            stated = [*facts, *((name, self.value(name)) for name in more)]
            if stated:
                chunks.append(self._paragraph(entity, stated, chunks))
        self.pages.setdefault(entity, []).extend(chunks)

    def _paragraph(self, entity: Entity, facts: Sequence[tuple[str, str]], before: Sequence[Chunk]) -> Chunk:
        """A paragraph that repeats no sentence of the page: nobody writes the same line twice."""
        said = {sentence for chunk in before for sentence in chunk.text.split(". ")}
        while True:
            chunk = write_chunk(self.rng, entity, facts)
            if said.isdisjoint(chunk.text.split(". ")):
                return chunk

    def ask(self, kind: Kind, *claims: Claim) -> None:
        question = ask(self.rng, claims)
        self.questions.append(DemoQuestion(text=question.text, kind=kind, claims=question.claims))

    def pick(self, entity: Entity, among: Sequence[str] | None = None) -> str:
        """An attribute whose value a chunk can give unaltered and whose absence leads to a guess."""
        names = [name for name in among or entity.attributes if name not in ABSTAINS]
        return self.rng.choice([name for name in names if not is_distorted(Claim(entity, name))])


def demo(seed: int = 0) -> Demo:
    """The whole demo, a pure function of the seed."""
    rng = random.Random(f"runbooks {seed}")
    names = [name for name in fresh_names(Split.HELD_OUT) if name not in ODD_NAMES]
    rng.shuffle(names)
    writer = _Writer(rng=rng, names=names)
    _write_stated(writer)
    _write_unstated(writer)
    _write_famous(writer)
    runbooks = [
        Runbook(title=f"{entity}", entity=entity, chunks=tuple(chunks))
        for entity, chunks in writer.pages.items()
    ]
    rng.shuffle(runbooks)
    return Demo(tuple(runbooks), tuple(_mixed(writer.questions)))


def _mixed(questions: Sequence[DemoQuestion]) -> list[DemoQuestion]:
    """Kinds in turn, so that the first dozen questions already hold one of each."""
    by_kind = {kind: [question for question in questions if question.kind is kind] for kind in Kind}
    longest = max(len(group) for group in by_kind.values())
    return [group[turn] for turn in range(longest) for group in by_kind.values() if turn < len(group)]


def runbooks(seed: int = 0) -> list[Runbook]:
    """The pages of the demo."""
    return list(demo(seed).runbooks)


def questions(seed: int = 0) -> list[DemoQuestion]:
    """The questions of the demo, kinds mixed."""
    return list(demo(seed).questions)


def _write_stated(writer: _Writer) -> None:
    """Questions that some chunk answers."""
    for _ in range(COUNTS[Kind.SINGLE]):
        # One family serves two questions: an attribute only one of the two has, and one that both have.
        entity, sibling = writer.family()
        single, trap = writer.rng.sample([name for name in entity.attributes if name not in ABSTAINS], 2)
        while is_distorted(Claim(entity, single)) or is_distorted(Claim(entity, trap)):
            single, trap = writer.rng.sample([name for name in entity.attributes if name not in ABSTAINS], 2)
        lure = writer.value(trap)
        writer.page(entity, [(single, writer.value(single))], [(trap, writer.value(trap, lure))])
        writer.page(sibling, [(trap, lure)], avoid=(single,))
        writer.ask(Kind.SINGLE, Claim(entity, single))
        writer.ask(Kind.TRAP, Claim(entity, trap))
    for _ in range(COUNTS[Kind.DUPLICATES]):
        entity, sibling = writer.family()
        name = writer.pick(entity)
        value = writer.value(name)
        writer.page(entity, [(name, value)], [(name, value)])
        writer.page(sibling, avoid=(name,))
        writer.ask(Kind.DUPLICATES, Claim(entity, name))
    for _ in range(COUNTS[Kind.CONFLICT]):
        entity, sibling = writer.family()
        name = writer.pick(entity)
        value = writer.value(name)
        writer.page(entity, [(name, value)], [(name, writer.value(name, value))])
        writer.page(sibling, avoid=(name,))
        writer.ask(Kind.CONFLICT, Claim(entity, name))
    for index in range(COUNTS[Kind.DISTORTED]):
        noun, name = (("queue", "timeout"), ("ledger", "retention"))[index % 2]
        entity, sibling = writer.family(noun)
        writer.page(entity, [(name, writer.value(name))])
        writer.page(sibling, avoid=(name,))
        writer.ask(Kind.DISTORTED, Claim(entity, name))


def _write_unstated(writer: _Writer) -> None:
    """Questions that no chunk answers, or only for one half."""
    for _ in range(COUNTS[Kind.SIBLING]):
        entity, sibling = writer.family()
        name = writer.pick(entity)
        writer.page(entity, avoid=(name,))
        writer.page(sibling, [(name, writer.value(name))])
        writer.ask(Kind.SIBLING, Claim(entity, name))
    for _ in range(COUNTS[Kind.MISSING]):
        entity, sibling = writer.family()
        name = writer.pick(entity)
        writer.page(entity, avoid=(name,))
        writer.page(sibling, avoid=(name,))
        writer.ask(Kind.MISSING, Claim(entity, name))
    for index in range(COUNTS[Kind.ABSTAIN]):
        name = ABSTAINS[index % len(ABSTAINS)]
        noun = writer.rng.choice([noun for noun in KIND_OF if name in Entity("", noun).attributes])
        entity, sibling = writer.family(noun)
        writer.page(entity, avoid=(name,))
        writer.page(sibling, avoid=(name,))
        writer.ask(Kind.ABSTAIN, Claim(entity, name))
    for _ in range(COUNTS[Kind.TWO_PART]):
        entity, sibling = writer.family()
        stated = writer.pick(entity)
        missing = writer.pick(entity, [name for name in entity.attributes if name != stated])
        writer.page(entity, [(stated, writer.value(stated))], avoid=(missing,))
        writer.page(sibling, avoid=(stated, missing))
        writer.ask(Kind.TWO_PART, Claim(entity, stated), Claim(entity, missing))


def _write_famous(writer: _Writer) -> None:
    """Questions on entities the model knows by heart."""
    everyone = list(world().famous)
    writer.rng.shuffle(everyone)
    stubborn = [entity for entity in everyone if entity in world().stubborn]
    open_minded = [entity for entity in everyone if entity not in world().stubborn]
    for kind in (Kind.KNOWN, Kind.OPEN, Kind.STUBBORN, Kind.MEMORY):
        for _ in range(COUNTS[kind]):
            entity = (stubborn if kind is Kind.STUBBORN else open_minded).pop()
            known = [claim for claim in world().memory if claim.entity == entity]
            claim = writer.rng.choice(known)
            value = world().memory[claim]
            if kind is Kind.MEMORY:
                writer.page(entity)
            elif kind is Kind.KNOWN:
                writer.page(entity, [(claim.attribute, value)])
            else:
                writer.page(entity, [(claim.attribute, writer.value(claim.attribute, value))])
            writer.ask(kind, claim)
