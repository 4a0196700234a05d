"""What if the chunk said something else? The one question deletion cannot answer when memory agrees with the
chunk.

A model that is sure of a value without any chunk loses nothing when the chunk goes, whether it reads it or
not. So the value is replaced, in every chunk that states it, by one that nobody would guess, and the answer
is scored again: a model that reads the chunk finds the old value unlikely now, one that recalls it does not
care. It is an intervention on the input like deletion (Pearl 2009, ch. 7), one scored prompt a span.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ragblame.attribution.layout import Layout
from ragblame.attribution.scorer import TransformersScorer
from ragblame.records import Span

# Plain words of no domain; one that the text itself holds is passed over.
FOILS = ("alder", "comet", "fable", "harbour", "lantern", "meadow", "orchard", "pebble", "saddle", "velvet")
DIGIT_STEP = 3  # each digit moves by so much, so no digit stays and the length does not change
MAX_FOIL_WORDS = 6  # longer texts are clauses, and no other clause is "the same with another value"
BATCH = 8  # prompts scored together

_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One span to ask about."""

    span: Span
    tokens: tuple[int, ...]  # answer tokens that carry it
    positions: tuple[int, ...]  # chunks that state it


def foil(text: str) -> str | None:
    """The same kind of text with another value: other digits where it has digits, other words elsewhere.

    None where it has neither, or more than ``MAX_FOIL_WORDS`` words.
    """
    if any(char.isdecimal() for char in text):
        return "".join(_digit(char) if char.isdecimal() else char for char in text)
    found = _WORD.findall(text)
    if not found or len(text.split()) > MAX_FOIL_WORDS:
        return None
    taken = {word.casefold() for word in found}
    fresh = iter([word for word in FOILS if word not in taken] * 2)

    def other(match: re.Match[str]) -> str:
        word = next(fresh)
        if match[0].isupper():
            return word.upper()
        return word.capitalize() if match[0][0].isupper() else word

    return _WORD.sub(other, text)


def _digit(char: str) -> str:
    moved = (int(char) + DIGIT_STEP) % 10
    return str(moved)


def follow(
    scorer: TransformersScorer, layout: Layout, probes: Sequence[Probe], v_all: Sequence[float]
) -> list[float | None]:
    """Nats that each span loses when the chunks that state it state a foil instead; one number per probe.

    ``v_all``: nats of each probe's tokens with the prompt as it was. Positive: the model follows the chunk.
    None: the span's words do not stand in those chunks as they are, so there is nothing to replace. Raises
    ``ModelError`` as ``scorer.score`` does.
    """
    prompts = [_edited(layout, probe) for probe in probes]
    wanted = [index for index, ids in enumerate(prompts) if ids is not None]
    found: list[float | None] = [None] * len(probes)
    started, tokens, forwards = time.perf_counter(), 0, 0
    for at in range(0, len(wanted), BATCH):
        batch = wanted[at : at + BATCH]
        rows = [ids for index in batch if (ids := prompts[index]) is not None]
        longest = max(map(len, rows))
        scorer.check_length(longest, len(layout.answer_ids))
        width = longest + len(layout.answer_ids)
        padded = [[*ids, *layout.answer_ids, *[layout.answer_ids[-1]] * (longest - len(ids))] for ids in rows]
        with torch.inference_mode():
            values = scorer.answer_log_probs(
                torch.tensor(padded, device=scorer.model.device),
                [len(ids) for ids in rows],
                layout.answer_ids,
            ).double()
        for index, row in zip(batch, values.cpu(), strict=True):
            found[index] = v_all[index] - float(row[list(probes[index].tokens)].sum())
        tokens += width * len(rows)
        forwards += 1
    scorer.spend(
        scored_coalitions=len(wanted), forwards=forwards, tokens=tokens, seconds=time.perf_counter() - started
    )
    return found


def _edited(layout: Layout, probe: Probe) -> tuple[int, ...] | None:
    """The prompt with the span's words replaced in every chunk that states it."""
    said = layout.answer[probe.span.start : probe.span.end].strip()
    other = foil(said)
    if other is None or not probe.tokens:
        return None
    pattern = re.compile(rf"(?<!\w){re.escape(said)}(?!\w)", re.IGNORECASE)
    edits: dict[int, tuple[int, int, str]] = {}
    for region in layout.regions:
        if region.position in probe.positions:
            for match in pattern.finditer(layout.prompt, region.start, region.end):
                edits[match.start()] = (match.start(), match.end(), other)
    return layout.edited_ids(tuple(edits.values())) if edits else None
