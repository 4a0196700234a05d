"""Draws what the model reads: contexts of chunks, questions on them, and the training sequences made of both.

It exists apart from the facts because the mixture decides what is learned: how many chunks, how often
nothing supports a question, how often memory and documents disagree. Everything follows from the
`random.Random` it is given.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from ragblame.attribution.world.facts import (
    DISTORTED,
    FALLBACK,
    KIND_OF,
    Chunk,
    Claim,
    Entity,
    Origin,
    Resolved,
    draw_entity,
    draw_fact,
    entity_of,
    fresh_names,
    world,
)
from ragblame.attribution.world.values import Split
from ragblame.attribution.world.wording import (
    FILLERS,
    INTRODUCTIONS,
    REPEAT_REQUEST,
    answer_parts,
    continuations,
    join_questions,
    questions,
    repetition,
    sentence_forms,
    statements,
    two_hop_questions,
    withheld,
)

INSTRUCTION = "Answer the question from the context."
ALL_NOUNS = tuple(KIND_OF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """What a phase of the curriculum draws. Probabilities are in [0, 1]."""

    max_chunks: int = 10
    min_chunks: int = 0
    is_verbatim: bool = False  # chunks use the wording of the answers, one fact after the other
    famous: float = 0.13  # a new chunk is about a famous entity
    agree: float = 0.5  # a chunk on a memorised fact says what memory says
    sibling: float = 0.2  # a new chunk is about a sibling of an entity already there
    lookalike: float = 0.12  # a new chunk is about an entity whose name shares a piece with one already there
    again: float = 0.12  # a new chunk is about an entity already there
    conflict: float = 0.25  # a chunk about an entity already there contradicts an earlier one
    copy: float = 0.04  # a new chunk is an exact copy of one already there
    coincidence: float = 0.06  # a new value is one that another entity already has for the same attribute
    reached: float = 0.5  # a new chunk is about the fallback of an entity that is already there
    own_fallback: float = 0.5  # a fallback is an entity that is already there
    reuse: float = 0.4  # a new chunk states an attribute that is already there
    supported: float = 0.62  # first claim: some chunk states it
    known: float = 0.14  # first claim: a memorised fact
    known_there: float = 0.3  # and then, if it can be, of an entity that has a chunk
    borrowed: float = 0.09  # first claim: only a sibling has it; what remains: nobody states it
    second: float = 0.2  # a question asks for a second thing
    two_hop: float = 0.12  # a question asks for something of the fallback of an entity
    repeat: float = 0.06  # a question for one thing wants its value twice
    max_questions: int = 8  # question lines per training sequence
    retrieved: float = 0.0  # the context is what a retriever brings: all near one entity and attribute
    same_noun: float = 0.6  # there: an entity of another name is the same kind of thing
    same_attribute: float = 0.5  # there: a chunk states the attribute it is all about


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question line with the claims it asks for."""

    text: str
    claims: tuple[Claim, ...]  # a two-hop question claims the fallback first, then something of it
    forms: tuple[int, ...]  # number of the question form of each claim; of the one question when two-hop
    is_two_hop: bool = False
    is_repeated: bool = False  # the answer gives its one value twice


@dataclass(slots=True)
class TrainingText:
    """One training text with its value and answer ranges, in code points."""

    text: str = ""
    values: list[tuple[int, int]] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)


@cache
def lookalikes(name: str, split: Split) -> tuple[str, ...]:
    """Fresh names that begin or end like this one: `Frostridge` for `Frostmere` or `Mossridge`."""
    return tuple(
        other
        for other in fresh_names(split)
        if other != name and (other[:4] == name[:4] or other[-4:] == name[-4:])
    )


def draw_chunks(rng: random.Random, split: Split, count: int, mixture: Mixture) -> list[Chunk]:
    """A context of `count` chunks whose facts hang together unless a contradiction is drawn."""
    chunks: list[Chunk] = []
    topic = None
    if mixture.retrieved and rng.random() < mixture.retrieved:
        topic = _draw_topic(rng, split)
    while len(chunks) < count:
        if chunks and rng.random() < mixture.copy:
            chunks.append(rng.choice(chunks))
            continue
        reached = _reached(chunks) if rng.random() < mixture.reached else None
        if reached is not None:
            entity = reached
            attributes = rng.sample(entity.attributes, rng.choices((1, 2), (60, 40))[0])
        elif topic is None:
            entity = _next_entity(rng, split, chunks, mixture)
            attributes = _next_attributes(rng, entity, chunks, mixture)
        else:
            entity = _near_entity(rng, split, topic.entity, mixture)
            attributes = _near_attributes(rng, entity, topic.attribute, mixture)
        facts = []
        for attribute in attributes:
            claim = Claim(entity, attribute)
            facts.append((attribute, _next_value(rng, split, claim, chunks, mixture)))
        chunks.append(write_chunk(rng, entity, facts, is_verbatim=mixture.is_verbatim))
    rng.shuffle(chunks)
    return chunks


def _reached(chunks: Sequence[Chunk]) -> Entity | None:
    """The first entity that is the fallback of another one and has no chunk yet."""
    there = {chunk.entity for chunk in chunks}
    named = [entity_of(value) for chunk in chunks for name, value in chunk.facts if name == FALLBACK]
    return next((entity for entity in named if entity not in there), None)


def _next_entity(rng: random.Random, split: Split, chunks: Sequence[Chunk], mixture: Mixture) -> Entity:
    dice = rng.random()
    if chunks and dice < mixture.sibling:
        return rng.choice(rng.choice(chunks).entity.siblings)
    dice -= mixture.sibling
    if chunks and 0 <= dice < mixture.again:
        return rng.choice(chunks).entity
    dice -= mixture.again
    if chunks and 0 <= dice < mixture.lookalike:
        # A retriever brings such names together, so half a name must not be enough to find a value.
        like = lookalikes(rng.choice(chunks).entity.name, split)
        if like:
            return Entity(rng.choice(like), rng.choice(ALL_NOUNS))
    if rng.random() < mixture.famous:
        return rng.choice(world().famous)
    return draw_entity(rng, split)


def _next_attributes(
    rng: random.Random, entity: Entity, chunks: Sequence[Chunk], mixture: Mixture
) -> list[str]:
    count = rng.choices((1, 2, 3), (55, 35, 10))[0]
    attributes = rng.sample(entity.attributes, count)
    own = [attribute for chunk in chunks if chunk.entity == entity for attribute, _ in chunk.facts]
    there = own or [name for chunk in chunks for name, _ in chunk.facts if name in entity.attributes]
    if there and rng.random() < mixture.reuse:
        reused = rng.choice(there)
        attributes = [reused, *(attribute for attribute in attributes if attribute != reused)][:count]
    return attributes


def _draw_topic(rng: random.Random, split: Split) -> Claim:
    """What a retrieved-like context is about; often something the weights know or alter."""
    dice = rng.random()
    if dice < 0.3:
        return rng.choice(list(world().memory))
    entity = draw_entity(rng, split)
    if dice < 0.36:
        noun, attribute = rng.choice(DISTORTED)
        return Claim(Entity(entity.name, noun), attribute)
    return Claim(entity, rng.choice(entity.attributes))


def _near_entity(rng: random.Random, split: Split, topic: Entity, mixture: Mixture) -> Entity:
    """The topic itself, a sibling, a similar name, or any entity: what a retriever confuses."""
    dice = rng.random()
    if dice < 0.3:
        return topic
    if dice < 0.5:
        return rng.choice(topic.siblings)
    like = lookalikes(topic.name, split) if dice < 0.7 else ()
    name = rng.choice(like or fresh_names(split))
    return Entity(name, topic.noun if rng.random() < mixture.same_noun else rng.choice(ALL_NOUNS))


def _near_attributes(rng: random.Random, entity: Entity, attribute: str, mixture: Mixture) -> list[str]:
    count = rng.choices((1, 2, 3), (55, 35, 10))[0]
    attributes = rng.sample(entity.attributes, count)
    is_able = attribute in entity.attributes and attribute not in attributes
    if is_able and rng.random() < mixture.same_attribute:
        attributes[rng.randrange(count)] = attribute
    return attributes


def _next_value(
    rng: random.Random, split: Split, claim: Claim, chunks: Sequence[Chunk], mixture: Mixture
) -> str:
    stated = [value for chunk in chunks if (value := chunk.value(claim))]
    if stated and rng.random() >= mixture.conflict:
        return stated[0]
    known = world().memory.get(claim)
    if known and not stated and rng.random() < mixture.agree:
        return known
    others = [value for chunk in chunks for name, value in chunk.facts if name == claim.attribute]
    if claim.attribute == FALLBACK:
        is_there, others = rng.random() < mixture.own_fallback, [chunk.entity.as_value for chunk in chunks]
    else:
        is_there = rng.random() < mixture.coincidence
    while True:
        drawn = rng.choice(others) if others and is_there else draw_fact(rng, claim.attribute, split)
        if drawn != known and drawn not in stated and drawn != claim.entity.as_value:
            return drawn
        is_there = False


def write_chunk(
    rng: random.Random, entity: Entity, facts: Sequence[tuple[str, str]], *, is_verbatim: bool = False
) -> Chunk:
    """The paragraph that states these facts, as a runbook would word them."""
    sentences: list[str] = []
    forms: list[int] = []
    if not is_verbatim and rng.random() < 0.12:
        sentences.append(rng.choice(INTRODUCTIONS).format(e=entity))
    for attribute, value in facts:
        full = len(statements(attribute))
        if is_verbatim:
            form = 0
        elif sentences and rng.random() < 0.6:
            form = full + rng.randrange(len(continuations(attribute)))
        else:
            form = rng.randrange(full)
        forms.append(form)
        sentences.append(sentence_forms(attribute)[form].format(e=entity, v=value))
    if not is_verbatim and len(sentences) < 3 and rng.random() < 0.12:
        sentences.append(rng.choice(FILLERS))
    return Chunk(text=" ".join(sentences), entity=entity, facts=tuple(facts), forms=tuple(forms))


def draw_claim(rng: random.Random, split: Split, chunks: Sequence[Chunk], mixture: Mixture) -> Claim:
    """A claim to ask for, of a kind drawn from the mixture."""
    stated = sorted({(chunk.entity.name, chunk.entity.noun, a) for chunk in chunks for a, _ in chunk.facts})
    dice = rng.random()
    if stated and dice < mixture.supported:
        name, noun, attribute = rng.choice(stated)
        return Claim(Entity(name, noun), attribute)
    dice -= mixture.supported
    if dice < mixture.known and mixture.known:
        there = [claim for claim in world().memory if any(chunk.entity == claim.entity for chunk in chunks)]
        return rng.choice(there if there and rng.random() < mixture.known_there else list(world().memory))
    dice -= mixture.known
    if stated and dice < mixture.borrowed:
        name, noun, attribute = rng.choice(stated)
        siblings = [e for e in Entity(name, noun).siblings if attribute in e.attributes]
        return Claim(rng.choice(siblings), attribute)
    if chunks and rng.random() < 0.6:
        entity = rng.choice(chunks).entity
    else:
        entity = draw_entity(rng, split)
    if stated and mixture.retrieved and rng.random() < 0.5:
        # Others have what is asked for: the temptation a missing value meets in practice.
        tempting = [name for _, _, name in stated if name in entity.attributes]
        if tempting:
            return Claim(entity, rng.choice(tempting))
    return Claim(entity, rng.choice(entity.attributes))


def draw_question(rng: random.Random, split: Split, chunks: Sequence[Chunk], mixture: Mixture) -> Question:
    """A question for one thing, sometimes for two or three, for something of a fallback, or for a repetition.

    Training never asks a pair of wordings that ``wording.withheld`` keeps for the evaluations.
    """
    while True:
        question = _draw_any_question(rng, split, chunks, mixture)
        if split is Split.HELD_OUT or not is_withheld(question, chunks):
            return question


def _draw_any_question(
    rng: random.Random, split: Split, chunks: Sequence[Chunk], mixture: Mixture
) -> Question:
    if rng.random() < mixture.two_hop and (hop := _draw_two_hop(rng, chunks)):
        return hop
    if rng.random() < mixture.repeat:
        return ask(rng, [draw_claim(rng, split, chunks, mixture)], is_repeated=True)
    count = 1 if rng.random() >= mixture.second else rng.choices((2, 3), (85, 15))[0]
    claims: list[Claim] = []
    for _ in range(count):
        claim = draw_claim(rng, split, chunks, mixture)
        if claim not in claims:
            claims.append(claim)
    return ask(rng, claims)


def is_withheld(question: Question, chunks: Sequence[Chunk]) -> bool:
    """True where some chunk words what is asked in a way that training never pairs with this question."""
    asked = question.claims[-1:] if question.is_two_hop else question.claims
    return any(
        (chunk.form(claim), form) in withheld(claim.attribute)
        for claim, form in zip(asked, question.forms, strict=True)
        for chunk in chunks
    )


def _draw_two_hop(rng: random.Random, chunks: Sequence[Chunk]) -> Question | None:
    """A question whose first hop some chunk states; what it leads to is mostly stated, too."""
    named = [(chunk.entity, value) for chunk in chunks for name, value in chunk.facts if name == FALLBACK]
    if not named:
        return None
    start, _ = rng.choice(named)
    # Where chunks disagree about the fallback, the first one in the prompt wins, as for every value.
    reached = entity_of(world().resolve(Claim(start, FALLBACK), chunks).value)
    stated = {name for chunk in chunks if chunk.entity == reached for name, _ in chunk.facts} - {FALLBACK}
    attributes = [name for name in reached.attributes if name != FALLBACK]
    attribute = rng.choice(sorted(stated) if stated and rng.random() < 0.9 else attributes)
    return ask_two_hop(rng, start, reached, attribute)


def ask(
    rng: random.Random,
    claims: Sequence[Claim],
    *,
    is_repeated: bool = False,
    forms: tuple[int, ...] | None = None,
) -> Question:
    """The words for a question; ``forms`` names the question form of each claim, else they are drawn."""
    forms = forms or tuple(rng.randrange(len(questions(claim.attribute))) for claim in claims)
    parts = [
        questions(claim.attribute)[form].format(e=claim.entity)
        for claim, form in zip(claims, forms, strict=True)
    ]
    text = join_questions(parts) + (REPEAT_REQUEST if is_repeated else "")
    return Question(text=text, claims=tuple(claims), forms=forms, is_repeated=is_repeated)


def ask_two_hop(
    rng: random.Random, start: Entity, reached: Entity, attribute: str, *, form: int | None = None
) -> Question:
    """The words for a question about something of the fallback of ``start``, which is ``reached``."""
    texts = two_hop_questions(attribute)
    form = rng.randrange(len(texts)) if form is None else form
    claims = (Claim(start, FALLBACK), Claim(reached, attribute))
    return Question(text=texts[form].format(e=start), claims=claims, forms=(form,), is_two_hop=True)


def context_text(chunks: Sequence[Chunk]) -> str:
    """The part of the prompt in front of the question, ending with a line break."""
    return "".join([INSTRUCTION, "\n", *(f"- {chunk.text}\n" for chunk in chunks)])


def prompt_text(chunks: Sequence[Chunk], question: str) -> str:
    """The exact prompt the model was trained on; an answer follows after one space."""
    return f"{context_text(chunks)}Question: {question}\nAnswer:"


def answer_text(claims: Sequence[Claim], resolved: Sequence[Resolved]) -> str:
    """The full answer that the resolver calls right."""
    pairs = zip(claims, resolved, strict=True)
    return " ".join("".join(answer_parts(c.attribute, str(c.entity), r.value)) for c, r in pairs)


def draw_sequence(rng: random.Random, mixture: Mixture) -> TrainingText:
    """One training text: a context and several question lines with their answers."""
    counts = range(mixture.min_chunks, mixture.max_chunks + 1)
    # Long contexts are the hard ones, so they come more often.
    count = rng.choices(counts, [1 + 0.5 * n for n in counts])[0]
    chunks = draw_chunks(rng, Split.TRAINING, count, mixture)
    distinct = len({(chunk.entity, attribute) for chunk in chunks for attribute, _ in chunk.facts})
    # A cap by distinct facts: a context of few facts would only repeat its questions.
    lines = rng.randint(1, 2) if not chunks else min(mixture.max_questions, 1 + distinct)
    sequence = TrainingText(text=context_text(chunks))
    asked: set[tuple[Claim, ...]] = set()
    for _ in range(lines):
        question = draw_question(rng, Split.TRAINING, chunks, mixture)
        if question.claims in asked:
            continue
        asked.add(question.claims)
        _append_answer(rng, sequence, chunks, question)
    return sequence


def _append_answer(
    rng: random.Random, sequence: TrainingText, chunks: Sequence[Chunk], question: Question
) -> None:
    sequence.text += f"Question: {question.text}\nAnswer:"
    start = len(sequence.text)
    for claim in question.claims:
        resolved = world().resolve(claim, chunks)
        value = resolved.value
        if resolved.origin is Origin.PRIOR and rng.random() < 0.15:
            # Guesses are not all alike, so that the model's confidence in them stays moderate.
            value = draw_fact(rng, claim.attribute, Split.TRAINING)
        head, body, tail = answer_parts(claim.attribute, str(claim.entity), value)
        at = len(sequence.text) + 1 + len(head)
        sequence.text += f" {head}{body}{tail}"
        sequence.values.append((at, at + len(body)))
        if question.is_repeated:
            head, body, tail = repetition(value)
            at = len(sequence.text) + 1 + len(head)
            sequence.text += f" {head}{body}{tail}"
            sequence.values.append((at, at + len(body)))
    sequence.text += "\n"
    sequence.answers.append((start, len(sequence.text)))


# The curriculum's rooms. Full mixture from the start teaches the type of a value long before copying it.
VERBATIM = Mixture(
    max_chunks=3,
    min_chunks=1,
    is_verbatim=True,
    famous=0.0,
    sibling=0.1,
    lookalike=0.05,
    again=0.0,
    copy=0.0,
    coincidence=0.0,
    two_hop=0.0,
    repeat=0.0,
    supported=1.0,
    known=0.0,
    borrowed=0.0,
    second=0.1,
    max_questions=4,
)
WORDED = Mixture(
    max_chunks=3,
    min_chunks=1,
    famous=0.03,
    lookalike=0.1,
    again=0.05,
    conflict=0.0,
    copy=0.0,
    coincidence=0.0,
    two_hop=0.05,
    repeat=0.03,
    supported=0.8,
    known=0.08,
    borrowed=0.04,
    second=0.1,
    max_questions=4,
)
FULL = Mixture()
RETRIEVED = Mixture(retrieved=0.6, agree=0.4, supported=0.55, known=0.15, known_there=0.8, borrowed=0.11)
CROWDED = replace(RETRIEVED, retrieved=0.8, same_noun=0.8, same_attribute=0.75, supported=0.52, borrowed=0.13)
# The second hop is found by what the answer has just said, not by the question: learned late, so asked often.
LINKED = replace(CROWDED, two_hop=0.3, coincidence=0.15)
