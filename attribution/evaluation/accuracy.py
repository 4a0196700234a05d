"""How often the small model answers as the world says it should, on names and values it never saw.

It exists so that the figures on the model card can be measured again by anybody (``make accuracy``, and as a
part of ``ragblame eval world``). All answers are generated freely and greedily; held-out names and values
only.
"""

import argparse
import json
import random
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ragblame.attribution.evaluation.evidence import Bar, Estimate, Evidence, Table
from ragblame.attribution.evaluation.findings import Findings
from ragblame.attribution.evaluation.statistics import wilson
from ragblame.attribution.world.answering import generate, read_repetition, stated_values
from ragblame.attribution.world.episodes import (
    FULL,
    RETRIEVED,
    Mixture,
    Question,
    ask,
    draw_chunks,
    draw_question,
    prompt_text,
)
from ragblame.attribution.world.facts import Chunk, Origin, Resolved, world
from ragblame.attribution.world.shipped import load_model, load_tokenizer
from ragblame.attribution.world.values import Split

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_CHUNKS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One held-out prompt and what the world says about each of its claims."""

    chunks: tuple[Chunk, ...]
    question: Question
    resolved: tuple[Resolved, ...]

    @property
    def prompt(self) -> str:
        return prompt_text(self.chunks, self.question.text)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the share of claims with the value the world says."""

    cell: str
    accuracy: Estimate  # [0, 1], with its Wilson interval, 95 %; n counts claims


def row(cell: str, hits: Sequence[bool]) -> Row:
    low, high = wilson(sum(hits), len(hits))
    share = sum(hits) / max(1, len(hits))
    return Row(cell, Estimate(value=share, low=low, high=high, n=len(hits)))


def is_plainly(origin: Origin) -> Callable[[Resolved], bool]:
    """A test for claims of this origin on which the chunks do not contradict one another."""
    return lambda one: one.origin is origin and not one.is_conflict


def draw_items(
    seed: str,
    count: int,
    *,
    chunks: Sequence[int],
    wanted: Callable[[Resolved], bool],
    claims: int = 1,
    split: Split = Split.HELD_OUT,
    mixture: Mixture = FULL,
) -> list[Item]:
    """Prompts with the given numbers of chunks whose every claim is of the wanted kind."""
    rng = random.Random(seed)
    mixture = replace(mixture, second=0.0 if claims == 1 else 1.0, two_hop=0.0, repeat=0.0)
    items: list[Item] = []
    while len(items) < count:
        context = draw_chunks(rng, split, chunks[len(items) % len(chunks)], mixture)
        question = draw_question(rng, split, context, mixture)
        resolved = tuple(world().resolve(claim, context) for claim in question.claims)
        if len(resolved) == claims and all(wanted(one) for one in resolved):
            items.append(Item(chunks=tuple(context), question=question, resolved=resolved))
    return items


def is_right(answer: str, item: Item) -> list[bool]:
    """Per claim: did the answer give the value the world says?"""
    values = stated_values(answer, item.question.claims)
    return [value == resolved.value for value, resolved in zip(values, item.resolved, strict=True)]


class Measurement:
    """A model under measurement; every method returns finished rows."""

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, seed: int, n: int
    ) -> None:
        self.model, self.tokenizer, self.seed, self.n = model, tokenizer, seed, n

    def answers(self, prompts: Sequence[str]) -> list[str]:
        return generate(self.model, self.tokenizer, prompts)

    def hits(self, items: Sequence[Item]) -> list[bool]:
        answers = self.answers([item.prompt for item in items])
        return [hit for answer, item in zip(answers, items, strict=True) for hit in is_right(answer, item)]

    def grounded(self) -> list[Row]:
        """Fresh entities with evidence, by number of chunks, and the same prompts without their evidence."""
        by_count: dict[int, list[bool]] = {}
        kept: list[Item] = []
        for count in range(1, MOST_CHUNKS + 1):
            items = draw_items(
                f"{self.seed} grounded {count}",
                self.n,
                chunks=[count],
                wanted=is_plainly(Origin.GROUNDED),
            )
            by_count[count] = self.hits(items)
            kept += items
        rows = [row(f"grounded, {count} chunk" + "s" * (count > 1), hits) for count, hits in by_count.items()]
        for label, most in (("1-4", 4), ("1-8", 8), ("1-10", 10)):
            rows.append(
                row(f"grounded, {label} chunks", [h for c, hs in by_count.items() if c <= most for h in hs])
            )
        return [*rows, self._evidence_removed(kept)]

    def _evidence_removed(self, items: Sequence[Item]) -> Row:
        """How often the value is still given once every chunk that states it is gone: about never."""
        prompts = []
        for item in items:
            rest = [chunk for index, chunk in enumerate(item.chunks) if index not in item.resolved[0].gold]
            prompts.append(prompt_text(rest, item.question.text))
        hits = [is_right(answer, item)[0] for answer, item in zip(self.answers(prompts), items, strict=True)]
        return row("grounded, its evidence removed: same value", hits)

    def memory(self) -> list[Row]:
        """Every memorised fact with no context at all, and beside chunks that do not state it."""
        rng = random.Random(f"{self.seed} memory")
        rows = []
        for count in (0, 3):
            items = []
            for claim, value in world().memory.items():
                chunks: list[Chunk] = []
                while len(chunks) < count:
                    drawn = draw_chunks(rng, Split.HELD_OUT, 1, FULL)
                    chunks += [chunk for chunk in drawn if chunk.value(claim) is None]
                resolved = Resolved(value=value, origin=Origin.MEMORY)
                items.append(Item(chunks=tuple(chunks), question=ask(rng, [claim]), resolved=(resolved,)))
            rows.append(row(f"memory, {count} chunks", self.hits(items)))
        return rows

    def origins(self, mixture: Mixture, label: str) -> list[Row]:
        """One row for every origin but plain grounding and memory, with 2-6 chunks."""
        plain = {Origin.GROUNDED, Origin.MEMORY} if mixture is FULL else {Origin.MEMORY}
        wanted: dict[str, Callable[[Resolved], bool]] = {
            origin.value: is_plainly(origin) for origin in Origin if origin not in plain
        }
        wanted["grounded, stated twice or more"] = lambda one: (
            one.origin is Origin.GROUNDED and len(one.gold) > 1
        )
        wanted["grounded, chunks in conflict: the first"] = lambda one: (
            one.origin is Origin.GROUNDED and one.is_conflict
        )
        rows = []
        for name, test in wanted.items():
            seed = f"{self.seed} {name} {label}"
            items = draw_items(seed, self.n, chunks=[2, 3, 4, 5, 6], wanted=test, mixture=mixture)
            rows.append(row(name + label, self.hits(items)))
        return rows

    def two_part(self) -> list[Row]:
        """Questions for two things of any kind, 1-6 chunks: per claim."""
        items = draw_items(
            f"{self.seed} two", self.n, chunks=[1, 2, 3, 4, 5, 6], wanted=lambda one: True, claims=2
        )
        return [row("two-part questions, any origin", self.hits(items))]

    def two_hop(self) -> list[Row]:
        """Questions about the fallback of an entity whose both hops are stated, 2-10 chunks: the value in the
        end."""
        rng = random.Random(f"{self.seed} two hops")
        mixture = replace(FULL, two_hop=1.0)
        items: list[Item] = []
        while len(items) < self.n:
            context = draw_chunks(rng, Split.HELD_OUT, 2 + len(items) % 9, mixture)
            question = draw_question(rng, Split.HELD_OUT, context, mixture)
            resolved = tuple(world().resolve(claim, context) for claim in question.claims)
            if question.is_two_hop and all(is_plainly(Origin.GROUNDED)(one) for one in resolved):
                items.append(Item(chunks=tuple(context), question=question, resolved=resolved))
        answers = self.answers([item.prompt for item in items])
        hits = [all(is_right(answer, item)) for answer, item in zip(answers, items, strict=True)]
        return [row("two hops, 2-10 chunks", hits)]

    def repeated(self) -> list[Row]:
        """A value asked for twice: both mentions right."""
        items = [
            replace(item, question=ask(random.Random(index), item.question.claims, is_repeated=True))
            for index, item in enumerate(
                draw_items(
                    f"{self.seed} repeated", self.n, chunks=range(1, 9), wanted=is_plainly(Origin.GROUNDED)
                )
            )
        ]
        hits = []
        for answer, item in zip(self.answers([item.prompt for item in items]), items, strict=True):
            bounds = read_repetition(answer)
            again = None if bounds is None else answer[bounds[0] : bounds[1]]
            hits.append(is_right(answer, item)[0] and again == item.resolved[0].value)
        return [row("value given twice, 1-8 chunks", hits)]

    def training_names(self) -> list[Row]:
        """Names and values as in training: the gap to the held-out rows is what did not generalise."""
        items = draw_items(
            f"{self.seed} training names",
            self.n,
            chunks=[1, 2, 3, 4, 5, 6],
            wanted=is_plainly(Origin.GROUNDED),
            split=Split.TRAINING,
        )
        return [row("grounded, 1-6 chunks, names and values as in training", self.hits(items))]


BOUNDS = {"grounded, 1-8 chunks": 0.95, "memory, 0 chunks": 0.90, "memory, 3 chunks": 0.90}


def evidence_of_model(folder: Path | None, *, seed: int, n: int) -> Findings:
    """What the model can do, by free generation: a table, and the bars on it. ``n``: prompts per row."""
    measurement = Measurement(load_model(folder), load_tokenizer(folder), seed=seed, n=n)
    rows = [
        *measurement.grounded(),
        *measurement.memory(),
        *measurement.origins(FULL, ""),
        *measurement.origins(RETRIEVED, ", retrieval-like context"),
        *measurement.two_hop(),
        *measurement.repeated(),
        *measurement.two_part(),
        *measurement.training_names(),
    ]
    return Findings(
        tables=[
            Table(
                title="The model itself",
                columns=("held-out cell", "exact match", "claims"),
                rows=tuple((one.cell, one.accuracy, one.accuracy.n) for one in rows),
                note="Free greedy generation, whole value equal, 95 % Wilson intervals. Values that nobody "
                "states (prior) are a matter of chance by design: 15 % of the guesses were drawn "
                "at random in "
                "training.",
            )
        ],
        bars=[
            Bar.of(f"exact match: {one.cell}", one.accuracy, ">=", BOUNDS[one.cell])
            for one in rows
            if one.cell in BOUNDS
        ],
    )


def main() -> None:
    from rich.console import Console

    from ragblame.attribution.evaluation.terminal import show

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="a folder of a training run; default: the shipped model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--n", type=int, default=200, help="prompts per cell")
    parser.add_argument("--quick", action="store_true", help="40 prompts per cell")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    findings = evidence_of_model(
        arguments.model, seed=arguments.seed, n=40 if arguments.quick else arguments.n
    )
    evidence = Evidence(
        name="small-model-accuracy",
        command=shlex.join(["python", "-m", "ragblame.attribution.evaluation.accuracy", *sys.argv[1:]]),
        seed=arguments.seed,
        tables=tuple(findings.tables),
        bars=tuple(findings.bars),
    )
    if arguments.json:
        print(json.dumps(evidence.to_json(), indent=1))
    else:
        show(evidence, Console())


if __name__ == "__main__":
    main()
