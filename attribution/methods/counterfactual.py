"""What if the chunk said something else? The question deletion cannot answer when memory agrees with it.

A model that is sure of a value without any chunk loses nothing when the chunk goes, whether it reads it or
not. So the value is replaced, in every chunk that states it, by a foil, and the model is asked which of the
two it would write now: one that reads the chunk writes the foil, one that recalls stays with its value. It is
an intervention on the input like deletion (Pearl 2009, ch. 7), two scored prompts a span.

The foil is what the model itself holds for second best: word by word, or digit group by digit group, its
runner-up of the same shape. A word that no such value ever is would be ignored, and prove nothing.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ragblame.attribution.layout import Layout
from ragblame.attribution.scorer import TransformersScorer
from ragblame.records import Span

RUNNERS = 400  # likeliest tokens among which a runner-up of the same shape is looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One span to ask about, and the chunks that state it."""

    span: Span
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Foil:
    """The span with another value."""

    text: str
    token: int  # index of the first answer token that differs
    id: int  # and what stands there instead


def follow(scorer: TransformersScorer, layout: Layout, probes: Sequence[Probe]) -> list[float | None]:
    """Nats by which the model would rather write the foil, once the chunks say it, than what it wrote.

    Taken at the first token in which the two differ, where a greedy reader would decide: above 0 it follows
    the chunks, below 0 it keeps to its value. None: the span's words do not stand in those chunks as they
    are, or nothing of their shape comes second. Raises ``ModelError`` as ``scorer.score`` does.
    """
    started = time.perf_counter()
    found: list[float | None] = []
    tokens = forwards = 0
    foils = _foils(scorer, layout, probes)
    for probe, foil in zip(probes, foils, strict=True):
        prompt = None if foil is None else _edited(layout, probe, foil.text)
        if foil is None or prompt is None:
            found.append(None)
            continue
        scorer.check_length(len(prompt), len(layout.answer_ids))
        other = (*layout.answer_ids[: foil.token], foil.id)
        with torch.inference_mode():
            kept, taken = (
                float(
                    scorer.answer_log_probs(
                        torch.tensor([[*prompt, *answer]], device=scorer.model.device), [len(prompt)], answer
                    )[0, -1]
                )
                for answer in (layout.answer_ids[: foil.token + 1], other)
            )
        found.append(taken - kept)
        tokens += 2 * (len(prompt) + len(other))
        forwards += 2
    scorer.spend(
        scored_coalitions=forwards,
        forwards=forwards + 1,
        tokens=tokens + len(layout.prompt_ids(layout.full_mask)) + len(layout.answer_ids),
        seconds=time.perf_counter() - started,
    )
    return found


@torch.inference_mode()
def _foils(scorer: TransformersScorer, layout: Layout, probes: Sequence[Probe]) -> list[_Foil | None]:
    """The same span with the model's runner-up in the place of each digit group, or else of each word."""
    prompt = layout.prompt_ids(layout.full_mask)
    ids = torch.tensor([[*prompt, *layout.answer_ids]], device=scorer.model.device)
    hidden = scorer.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    ranked = hidden.float().topk(min(RUNNERS, hidden.shape[-1]), dim=-1).indices
    return [_foil(scorer, layout, probe, ranked) for probe in probes]


def _foil(scorer: TransformersScorer, layout: Layout, probe: Probe, ranked: Tensor) -> _Foil | None:
    text, start = layout.answer[probe.span.start : probe.span.end], probe.span.start
    has_digits = any(char.isdecimal() for char in text)
    edits: list[tuple[int, int, str]] = []
    first: tuple[int, int] | None = None
    for token in layout.span_tokens(probe.span):
        low = max(layout.answer_starts[token], probe.span.start)
        high = min(layout.answer_ends[token], probe.span.end)
        piece = layout.answer[low:high]
        if not piece.isalnum() or (has_digits and not piece.isdecimal()):
            continue  # a unit stays a unit, and punctuation what it is
        other = _runner_up(scorer, piece, ranked[token].tolist())
        if other is None:
            return None
        edits.append((low - start, high - start, other[1]))
        first = first or (token, other[0])
    if first is None:
        return None
    for low, high, new in reversed(edits):
        text = text[:low] + new + text[high:]
    return _Foil(text, *first)


def _runner_up(scorer: TransformersScorer, piece: str, ranked: Sequence[int]) -> tuple[int, str] | None:
    """The likeliest other token of this shape: as many digits, or letters that begin alike in case."""
    for token in ranked:
        other = str(scorer.tokenizer.decode([token])).strip()
        if other.casefold() != piece.casefold() and is_alike(piece, other):
            return token, other
    return None


def is_alike(piece: str, other: str) -> bool:
    """Whether one text could stand for the other: digits of one number for another, a name for a name."""
    if piece.isdecimal():
        return other.isdecimal() and len(other) == len(piece)
    return other.isalpha() and piece.isalpha() and other[0].isupper() == piece[0].isupper()


def _edited(layout: Layout, probe: Probe, foil: str) -> tuple[int, ...] | None:
    """The prompt with the span's words replaced in every chunk that states it."""
    said = layout.answer[probe.span.start : probe.span.end]
    pattern = re.compile(rf"(?<!\w){re.escape(said)}(?!\w)", re.IGNORECASE)
    edits: dict[int, tuple[int, int, str]] = {}
    for region in layout.regions:
        if region.position in probe.positions:
            for match in pattern.finditer(layout.prompt, region.start, region.end):
                edits[match.start()] = (match.start(), match.end(), foil)
    return layout.edited_ids(tuple(edits.values())) if edits else None
