"""Labelled answers as training examples, and which sources may be learned from.

Sources are dealt by the digest of their name, so that the same sources are held out whatever file, order or
machine: a fifth is never looked at before the last measurement, a tenth tunes thresholds and fusion, the rest
is learned from. Extractive sets hold no wrong answer; wrong ones are made from them by taking the evidence
away or by answering with what another question asks for, and values are exchanged in right answers.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from ragblame.attribution.evaluation.labelled import LabelledAnswer
from ragblame.attribution.verdicts.normalise import Word, words

HELD_OUT: Final = 0.20  # of the sources
TUNING: Final = 0.10
SPLIT: Final = "support-1"  # names the deal: another name deals anew


class Part(StrEnum):
    """What a source may be used for."""

    TRAINING = "training"
    TUNING = "tuning"
    HELD_OUT = "held-out"


@dataclass(frozen=True, slots=True)
class Example:
    """An answer to learn from."""

    question: str
    answer: str
    chunks: tuple[str, ...]
    wrong: tuple[tuple[int, int], ...]  # code points [start, end) that people call unsupported


def part_of(row: LabelledAnswer) -> Part:
    """What the answer's source may be used for."""
    digest = hashlib.sha256(f"{SPLIT}/{row.dataset}/{row.source_id}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < HELD_OUT:
        return Part.HELD_OUT
    return Part.TUNING if place < HELD_OUT + TUNING else Part.TRAINING


def example(row: LabelledAnswer) -> Example:
    """The answer as labelled."""
    return Example(
        question=row.question,
        answer=row.answer,
        chunks=tuple(chunk.text for chunk in row.chunks),
        wrong=tuple((label.start, label.end) for label in row.labels),
    )


def examples(rows: Sequence[LabelledAnswer], draw: random.Random) -> list[Example]:
    """One epoch's examples of these answers: the labelled ones, and wrong ones made anew."""
    has_labels = {row.dataset for row in rows if row.labels}
    by_source: dict[tuple[str, str], list[LabelledAnswer]] = defaultdict(list)
    for row in rows:
        by_source[row.dataset, row.source_id].append(row)
    found: list[Example] = []
    for row in rows:
        right = example(row)
        if row.dataset in has_labels:
            swapped = exchanged(right, draw) if not row.labels and draw.random() < 0.15 else None
            found.append(swapped or right)
            continue
        found.append(right)
        if draw.random() < 0.6:
            others = [other for other in by_source[row.dataset, row.source_id] if other.answer != row.answer]
            wrong = _answering_another(row, others, draw) if draw.random() < 0.5 else _without_evidence(row)
            if wrong is not None:
                found.append(wrong)
    return found


def exchanged(right: Example, draw: random.Random) -> Example | None:
    """A right answer with a value exchanged for another of its kind from the chunks; None without one."""
    said = words(right.answer)
    held = {word.folded: word for chunk in right.chunks for word in words(chunk)}
    for want in (_is_number, _is_name) if draw.random() < 0.5 else (_is_name, _is_number):
        mine = [word for index, word in enumerate(said) if index and want(word) and word.folded in held]
        rest = [word for word in held.values() if want(word) and word.folded not in {w.folded for w in said}]
        if mine and rest:
            old, new = draw.choice(mine), draw.choice(rest)
            answer = right.answer[: old.start] + new.surface + right.answer[old.end :]
            return replace(right, answer=answer, wrong=((old.start, old.start + len(new.surface)),))
    return None


def _is_number(word: Word) -> bool:
    return word.surface[0].isdigit()


def _is_name(word: Word) -> bool:
    return word.is_capital and word.is_content and len(word.surface) > 2


def _answering_another(
    row: LabelledAnswer, others: Sequence[LabelledAnswer], draw: random.Random
) -> Example | None:
    """The question answered with what another question about the same document asks for."""
    if not others:
        return None
    answer = draw.choice(list(others)).answer
    return replace(example(row), answer=answer, wrong=((0, len(answer)),))


def _without_evidence(row: LabelledAnswer) -> Example | None:
    """The right answer, whose evidence was not retrieved: no chunk left holds its words."""
    wanted = row.answer.casefold()
    kept = tuple(
        chunk.text
        for chunk in row.chunks
        if chunk.position not in row.gold and wanted not in chunk.text.casefold()
    )
    if not row.gold or not kept or len(row.answer) > 80:  # what is left of a long answer nobody has judged
        return None
    return replace(example(row), chunks=kept, wrong=((0, len(row.answer)),))
