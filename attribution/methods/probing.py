"""Raw attention of single layers and heads, from the rows that write a span to each chunk.

Few heads copy from the context (under one in twenty; Wu et al. 2024, arXiv 2404.15574), so their mean says
little; this view shows each by itself. It tells where a head looked, not what the model used.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ragblame.attribution.layout import Layout
from ragblame.attribution.methods.attention import capture, chosen
from ragblame.attribution.methods.heat import chunk_weights
from ragblame.attribution.methods.rollout import answer_rows
from ragblame.attribution.scorer import TransformersScorer, spent_since
from ragblame.records import Cost, Span

NAME = "attention probing"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadAttention:
    """What every head of the chosen layers looked at while one span was written."""

    span: int  # Span.index
    layers: tuple[int, ...]  # 0-based, lowest first
    shares: tuple[tuple[tuple[float, ...], ...], ...]  # [layer][head][chunk position], each in [0, 1]
    first_token: tuple[
        tuple[float, ...], ...
    ]  # [layer][head], in [0, 1]: the sink of a head that has no work
    cost: Cost  # of all spans together


@torch.inference_mode()
def probe(
    scorer: TransformersScorer, layout: Layout, spans: Sequence[Span], *, layers: Sequence[int] | None = None
) -> tuple[HeadAttention, ...]:
    """Attention per layer and head from each span to each chunk: mean over the rows that predict its tokens.

    A head's shares sum to at most 1 over the chunks; the rest lies on instructions, question, answer and the
    first token. ``layers``: 0-based, None for all. A chunk that is not in the prompt has 0. Memory beside
    queries and keys: rows of the answer x T, one head at a time.

    Raises ``UnsupportedArchitectureError`` naming the method and the model type, ``ContextLengthError``, and
    ``InputError`` for a layer that the model has not.
    """
    if not spans:
        return ()
    before, started = scorer.cost, time.perf_counter()
    tokens = layout.prompt_tokens()
    prompt = len(tokens.ids)
    scorer.check_length(prompt, len(layout.answer_ids))
    numbers = chosen(scorer, layers)
    ids = tokens.ids + layout.answer_ids
    attention = capture(scorer, ids, NAME)
    start, end = prompt - 1, len(ids) - 1  # row t predicts token t + 1
    device = scorer.model.device
    rows = answer_rows(layout, spans, prompt, len(ids))[:, start:end].to(device)
    weights = torch.from_numpy(chunk_weights(layout, tokens)).float().to(device)
    by_layer = []
    sinks = []
    for number in numbers:
        by_head, first = attention[number].by_head(start, end)
        looked = torch.stack(
            [rows @ head[:, : prompt - first] for head in by_head], dim=1
        )  # [span, head, token]
        by_layer.append((looked @ weights[:, first:].T).double().cpu().numpy())
        sinks.append(looked[:, :, 0].double().cpu().numpy() if first == 0 else np.zeros(looked.shape[:2]))
    scorer.spend(forwards=1, tokens=len(ids), seconds=time.perf_counter() - started)
    cost = spent_since(scorer, before)
    return tuple(
        HeadAttention(
            span=span.index,
            layers=numbers,
            shares=tuple(tuple(layout.by_position(head.tolist()) for head in at[row]) for at in by_layer),
            first_token=tuple(tuple(at[row].tolist()) for at in sinks),
            cost=cost,
        )
        for row, span in enumerate(spans)
    )
