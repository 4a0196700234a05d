"""What if the chunk said something else? The question deletion cannot answer when memory agrees with it.

A model that is sure of a value without any chunk loses nothing when the chunk goes, whether it reads it or
not. So the value is replaced, in every chunk that states it, by a foil, and the model is asked which of the
two it would write now: one that reads the chunk writes the foil, one that recalls stays with its value. It is
an intervention on the input like deletion (Pearl 2009, ch. 7), three scored prompts a span.

Foils are values the model itself holds for possible: word by word, or digit group by digit group, some of its
runners-up of the same shape. A word that no such value ever is would be ignored, and prove nothing; the very
first runner-up is what the model was about to say anyway, and sways memories that no other value does. So
three are taken from behind it, and the median decides.
"""

import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ragblame.attribution.layout import Layout
from ragblame.attribution.scorer import TransformersScorer
from ragblame.records import Span

RUNNERS = 400  # likeliest tokens among which runners-up of the same shape are looked for
FOILS = (2, 4, 6)  # which of them, counted from 1; with fewer the last one stands in


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
    """Nats by which the model would rather write a foil, once the chunks say it, than what it wrote.

    Taken at the first token in which the two differ, where a greedy reader would decide, the median over the
    foils: above 0 it follows the chunks, below 0 it keeps to its value. None: the span's words do not stand
    in those chunks as they are, or nothing of their shape comes second. Raises ``ModelError`` as
    ``scorer.score`` does.
    """
    started = time.perf_counter()
    found: list[float | None] = []
    tokens = forwards = 0
    for probe, foils in zip(probes, _foils(scorer, layout, probes), strict=True):
        preferred: list[float] = []
        for foil in foils:
            prompt = _edited(layout, probe, foil.text)
            if prompt is None:
                break
            answer = layout.answer_ids[: foil.token]
            scorer.check_length(len(prompt), len(layout.answer_ids))
            row = _next_token(scorer, (*prompt, *answer))
            preferred.append(float(row[foil.id] - row[layout.answer_ids[foil.token]]))
            tokens += len(prompt) + len(answer)
            forwards += 1
        found.append(statistics.median(preferred) if preferred else None)
    scorer.spend(
        scored_coalitions=forwards,
        forwards=forwards + 1,
        tokens=tokens + len(layout.prompt_ids(layout.full_mask)) + len(layout.answer_ids),
        seconds=time.perf_counter() - started,
    )
    return found


@torch.inference_mode()
def _next_token(scorer: TransformersScorer, ids: Sequence[int]) -> Tensor:
    """Logits of the token that comes next, fp32, [vocabulary]; their differences are nats."""
    batch = torch.tensor([ids], device=scorer.model.device)
    extra = {"logits_to_keep": 1} if "logits_to_keep" in scorer.accepts else {}
    with scorer.float32_head():
        row: Tensor = scorer.model(input_ids=batch, use_cache=False, **extra).logits[0, -1].float()
    return row


@torch.inference_mode()
def _foils(scorer: TransformersScorer, layout: Layout, probes: Sequence[Probe]) -> list[list[_Foil]]:
    """The same span with one of the model's runners-up in the place of each digit group, or else of each
    word; none where nothing of a piece's shape comes second."""
    prompt = layout.prompt_ids(layout.full_mask)
    ids = torch.tensor([[*prompt, *layout.answer_ids]], device=scorer.model.device)
    hidden = scorer.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    ranked = hidden.float().topk(min(RUNNERS, hidden.shape[-1]), dim=-1).indices
    return [
        [foil for at in FOILS if (foil := _foil(scorer, layout, probe, ranked, at)) is not None]
        for probe in probes
    ]


def _foil(scorer: TransformersScorer, layout: Layout, probe: Probe, ranked: Tensor, at: int) -> _Foil | None:
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
        other = _runner_up(scorer, piece, ranked[token].tolist(), at)
        if other is None:
            return None
        edits.append((low - start, high - start, other[1]))
        first = first or (token, other[0])
    if first is None:
        return None
    for low, high, new in reversed(edits):
        text = text[:low] + new + text[high:]
    return _Foil(text, *first)


def _runner_up(
    scorer: TransformersScorer, piece: str, ranked: Sequence[int], at: int
) -> tuple[int, str] | None:
    """The ``at``-th likeliest other token of this shape, counted from 1, or the last one where there are
    fewer: as many digits, or letters that begin alike in case."""
    found: tuple[int, str] | None = None
    for token in ranked:
        other = str(scorer.tokenizer.decode([token])).strip()
        if other.casefold() != piece.casefold() and is_alike(piece, other):
            found = token, other
            at -= 1
            if not at:
                break
    return found


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
