"""The cells of the known-cause world and their labels: from interventions, never from a design or a score."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragblame.attribution.evaluation.cells import CHUNK_COUNTS, Cell, Item, draw_item
from ragblame.attribution.evaluation.interventions import edited, observe, swapped, swaps
from ragblame.attribution.world.episodes import is_withheld, prompt_text
from ragblame.attribution.world.facts import FALLBACK, Origin, entity_of, world
from ragblame.attribution.world.values import is_held_out
from ragblame.attribution.world.wording import answer_parts, repetition, withheld

NUMBERS = st.integers(0, 400)
CELLS = st.sampled_from(list(Cell))
RECALLED = "recalled"


class Reader:
    """A model that answers by rule, so that the right label of every item is known."""

    def __init__(self, value_of: Callable[[Item], str | None]) -> None:
        self.value_of = value_of

    def __call__(self, item: Item) -> str:
        value = self.value_of(item)
        if value is None:
            return "I do not know."
        claim = item.claim
        text = "".join(answer_parts(claim.attribute, str(claim.entity), value))
        return f"{text} {''.join(repetition(value))}" if item.question.is_repeated else text


def first_stated(item: Item) -> str | None:
    """A reader that copies the first chunk stating the claim, and otherwise always says the same."""
    stated = (value for chunk in item.chunks if (value := chunk.value(item.claim)))
    return next(stated, RECALLED)


def majority(item: Item) -> str | None:
    """A reader that needs two chunks to agree before it believes either."""
    stated = [value for chunk in item.chunks if (value := chunk.value(item.claim))]
    return next((value for value in stated if stated.count(value) > 1), RECALLED)


def label(item: Item, reader: Callable[[Item], str]) -> tuple[int, ...]:
    """Run ``observe`` on one item with a rule-driven reader in the place of the model."""
    without = replace(item, chunks=())
    by_prompt = {item.prompt: item, without.prompt: without}
    for swap in swaps(item, seed=3):
        changed = Item(
            cell=item.cell,
            variant=item.variant,
            number=item.number,
            chunks=swap.chunks,
            question=item.question,
            gold=item.gold,
        )
        by_prompt[changed.prompt] = changed

    def generate(prompts: Sequence[str]) -> list[str]:
        return [reader(by_prompt[prompt]) for prompt in prompts]

    behaviour = observe([item], generate, seed=3)[0]
    assert behaviour.is_labelled
    return behaviour.causes


@given(CELLS, NUMBERS, st.integers(0, 5))
@settings(deadline=None)
def test_an_item_is_a_function_of_its_cell_number_and_seed(cell: Cell, number: int, seed: int) -> None:
    item = draw_item(cell, number, seed=seed)
    assert item == draw_item(cell, number, seed=seed)
    least = 3 if cell in (Cell.TWO_HOP, Cell.PLACE) else 2
    assert len(item.chunks) == max(least, CHUNK_COUNTS[number % 40])
    assert 2 <= len(item.chunks) <= 10


@given(CELLS, NUMBERS)
@settings(deadline=None)
def test_names_values_and_wordings_of_every_item_are_held_out_from_training(cell: Cell, number: int) -> None:
    item = draw_item(cell, number, seed=0)
    famous = {entity.name for entity in world().famous}
    for chunk in item.chunks:
        assert is_held_out(chunk.entity.name) or chunk.entity.name in famous
        for name, value in chunk.facts:
            is_memorised = value in world().memory.values()
            assert name == FALLBACK or is_memorised or is_held_out(f"{name}: {value}")
    if item.gold:
        assert is_withheld(item.question, item.chunks)
        assert any(
            (item.chunks[index].form(item.claim), item.question.forms[-1]) in withheld(item.claim.attribute)
            for index in item.gold
        )


@given(CELLS, NUMBERS)
@settings(deadline=None)
def test_every_cell_is_what_its_name_says_by_the_rules_of_the_world(cell: Cell, number: int) -> None:
    item = draw_item(cell, number, seed=1)
    stated = [index for index, chunk in enumerate(item.chunks) if chunk.value(item.claim) is not None]
    values = {item.chunks[index].value(item.claim) for index in stated}
    resolved = world().resolve(item.claim, item.chunks)
    match cell:
        case Cell.COPIES:
            assert len({item.chunks[index].text for index in stated}) == 1
            assert len(stated) == 2
        case Cell.PARAPHRASES:
            assert len({item.chunks[index].form(item.claim) for index in stated}) == len(stated) == 2
            assert len(values) == 1
        case Cell.CONFLICT:
            assert len(stated) == len(values) == 2
        case Cell.TRAP:
            value = values.pop()
            others = [chunk for chunk in item.chunks if chunk.entity != item.claim.entity]
            assert any(value in dict(chunk.facts).values() for chunk in others)
        case Cell.AGREES:
            assert resolved.origin is Origin.KNOWN
        case Cell.MEMORY_WINS:
            assert resolved.origin is Origin.STUBBORN
        case Cell.UNSTATED:
            assert not stated
            wanted = {"guessed": Origin.PRIOR, "borrowed": Origin.BORROWED, "recalled": Origin.MEMORY}
            assert resolved.origin is wanted[item.variant]
        case Cell.DISTORTED:
            assert resolved.origin is Origin.DISTORTED
        case Cell.TWO_HOP:
            bridge = item.chunks[min(set(item.gold) - set(stated))]
            assert entity_of(dict(bridge.facts)[FALLBACK]) == item.claim.entity
            assert len(stated) == 1
        case _:
            assert len(stated) == 1
            assert resolved.origin is Origin.GROUNDED
    if cell is Cell.PLACE:
        place = {"first": 0, "last": len(item.chunks) - 1}.get(item.variant)
        assert stated[0] == place if place is not None else 0 < stated[0] < len(item.chunks) - 1


@given(CELLS, NUMBERS)
@settings(deadline=None)
def test_a_swap_changes_the_value_in_the_named_chunks_and_not_one_letter_elsewhere(
    cell: Cell, number: int
) -> None:
    item = draw_item(cell, number, seed=2)
    for swap in swaps(item, seed=0):
        for index, (before, after) in enumerate(zip(item.chunks, swap.chunks, strict=True)):
            if index not in swap.positions:
                assert before == after
                continue
            changed = [
                (old, new)
                for (name, old), (_, new) in zip(before.facts, after.facts, strict=True)
                if old != new
            ]
            assert len(changed) == 1
            old, new = changed[0]
            # Put the old value back: the text must be the old one.
            assert any(
                after.text[: match.start()] + old + after.text[match.end() :] == before.text
                for match in re.finditer(re.escape(new), after.text)
            )


def test_swapping_a_value_that_stands_twice_changes_only_the_sentence_of_the_attribute() -> None:
    item = next(
        item
        for number in range(400)
        if (item := draw_item(Cell.SINGLE, number, seed=0)).chunks[item.gold[0]].facts[1:]
    )
    chunk = item.chunks[item.gold[0]]
    (name, value), (other, _) = chunk.facts[:2]
    again = swapped(chunk, name, "4711")
    assert dict(again.facts) == dict(chunk.facts) | {name: "4711"}
    assert dict(again.facts)[other] == dict(chunk.facts)[other]
    assert value not in again.text or value in dict(chunk.facts).values()


@pytest.mark.parametrize("number", range(12))
def test_a_reader_of_one_chunk_is_labelled_with_that_chunk(number: int) -> None:
    reader = Reader(first_stated)
    item = draw_item(Cell.SINGLE, number, seed=5)
    assert label(item, reader) == item.gold
    item = draw_item(Cell.CONFLICT, number, seed=5)
    assert label(item, reader) == item.gold[:1]  # the first chunk, as this reader reads
    item = draw_item(Cell.TRAP, number, seed=5)
    assert label(item, reader) == item.gold


@pytest.mark.parametrize("number", range(12))
def test_a_reader_who_needs_both_copies_is_labelled_with_both(number: int) -> None:
    """Single swaps alone would call doubly stated evidence memory."""
    for cell in (Cell.COPIES, Cell.PARAPHRASES):
        item = draw_item(cell, number, seed=5)
        assert label(item, Reader(majority)) == item.gold


@pytest.mark.parametrize("cell", [Cell.SINGLE, Cell.AGREES, Cell.MEMORY_WINS, Cell.COPIES])
def test_a_model_that_never_follows_is_labelled_memory_whatever_the_design_says(cell: Cell) -> None:
    item = draw_item(cell, 3, seed=5)
    assert label(item, Reader(lambda _: RECALLED)) == ()


@pytest.mark.parametrize("number", range(12))
def test_a_value_that_no_chunk_states_and_memory_gives_is_memorys(number: int) -> None:
    """A stubborn reader says what it knows against this chunk, and would have believed another one."""
    item = draw_item(Cell.MEMORY_WINS, number, seed=5)
    stated = item.chunks[item.gold[0]].value(item.claim)

    def stubborn(changed: Item) -> str | None:
        values = [value for chunk in changed.chunks if (value := chunk.value(changed.claim))]
        return RECALLED if not values or values == [stated] else values[0]

    assert label(item, Reader(stubborn)) == ()
    assert label(item, Reader(lambda changed: "garbled" if not changed.chunks else stubborn(changed))) == (
        item.gold
    )


def test_behaviour_that_follows_nothing_yet_moves_gives_no_label() -> None:
    """An answer that changes to a third value says only that something happened."""
    item = draw_item(Cell.SINGLE, 1, seed=5)
    rng = random.Random(0)
    behaviour = observe(
        [item], lambda prompts: [Reader(lambda _: str(rng.random()))(item) for _ in prompts], seed=0
    )[0]
    assert not behaviour.is_clear
    assert not behaviour.is_labelled
    unread = observe([item], lambda prompts: ["No idea."] * len(prompts), seed=0)[0]
    assert unread.value is None
    assert not unread.is_labelled


def test_an_edit_for_the_flip_test_changes_one_chunk_and_keeps_the_question() -> None:
    item = draw_item(Cell.SINGLE, 4, seed=0)
    for position in range(len(item.chunks)):
        changed = edited(item, position, seed=0)
        assert [i for i, (a, b) in enumerate(zip(item.chunks, changed.chunks, strict=True)) if a != b] == [
            position
        ]
        assert changed.prompt == prompt_text(changed.chunks, item.question.text)


@pytest.mark.parametrize("number", range(12))
def test_only_chunks_that_say_the_given_value_can_be_its_cause(number: int) -> None:
    """That the answer would also follow the other chunk, had it said something new, is no origin."""
    item = draw_item(Cell.CONFLICT, number, seed=5)
    values = [item.chunks[index].value(item.claim) for index in item.gold]

    def fickle(changed: Item) -> str | None:
        if not changed.chunks:
            return RECALLED
        """Says the first chunk's value, yet follows the second one as soon as that says something new."""
        first, second = (changed.chunks[index].value(changed.claim) for index in item.gold)
        return second if second != values[1] else first

    assert label(item, Reader(fickle)) == item.gold[:1]


def test_an_answer_that_goes_over_to_the_rival_shows_who_was_read() -> None:
    """When the read chunk changes and the answer then gives the other one's value, the read one was the
    cause."""
    item = draw_item(Cell.CONFLICT, 2, seed=5)
    first, second = (item.chunks[index].value(item.claim) for index in item.gold)

    def wavering(changed: Item) -> str | None:
        if not changed.chunks:
            return RECALLED
        return first if changed.chunks[item.gold[0]].value(changed.claim) == first else second

    assert label(item, Reader(wavering)) == item.gold[:1]
