"""Attention rollout of the answer's rows: where a span's attention, followed down all layers, ends.

Plain rollout (Abnar & Zuidema 2020, arXiv 2005.00928): ``R_l = (0.5 A_l + 0.5 I) R_(l-1)``, heads averaged.
In a causal decoder its product drifts to the first tokens whatever the content, so it is a second opinion
only. The corrected form keeps 0.85 of the residual and divides each chunk's mass by what the same product
gives when every token looks at all it may see alike (content-free, same windows), then rescales to 1.

Only rows of the answer are walked, from the top layer down: ``v <- v ((1 - r) A_l + r I)``. Where position
moves attention by itself (ALiBi, a window, sinks), the content-free product holds exactly that.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ragblame.attribution.layout import Layout
from ragblame.attribution.methods.attention import capture, chosen
from ragblame.attribution.methods.fingerprint import settings_hash
from ragblame.attribution.methods.heat import HeatResult, chunk_weights, heat_result, joined
from ragblame.attribution.methods.layer_attention import BLOCK, LayerAttention
from ragblame.attribution.scorer import TransformersScorer, spent_since
from ragblame.errors import InputError
from ragblame.records import Method, Span

PLAIN_RESIDUAL = 0.5  # as published
CORRECTED_RESIDUAL = 0.85  # below 0.8 nothing recovers a planted signal in a 24-layer decoder


def rollout(
    scorer: TransformersScorer,
    layout: Layout,
    spans: Sequence[Span],
    *methods: Method,
    residual: float = CORRECTED_RESIDUAL,
    layers: Sequence[int] | None = None,
) -> HeatResult:
    """Plain and corrected rollout (both when no method is named) from one forward.

    Shares of ``Method.ROLLOUT`` are the mass in each chunk, in [0, 1], summing to at most 1 (the rest lies on
    instructions, question, answer and the first token). Shares of ``Method.ROLLOUT_CORRECTED`` sum to 1 over
    the chunks. Not in nats, and no sign: where the model looked, not what it used. ``layers``: the product
    runs over these alone (0-based, any order), None for all.

    Raises ``UnsupportedArchitectureError`` naming method and model type, ``InputError`` for another method or
    a layer that the model has not.
    """
    wanted = methods or (Method.ROLLOUT, Method.ROLLOUT_CORRECTED)
    if unknown := [method for method in wanted if method not in (Method.ROLLOUT, Method.ROLLOUT_CORRECTED)]:
        raise InputError(f"{unknown[0].value} is not a kind of rollout; ask the method of that name")
    if not spans:
        return HeatResult(attributions=(), heats=())
    before, started = scorer.cost, time.perf_counter()
    tokens = layout.prompt_tokens()
    ids = tokens.ids + layout.answer_ids
    scorer.check_length(len(tokens.ids), len(layout.answer_ids))
    numbers = chosen(scorer, layers)
    attention = capture(scorer, ids, wanted[0].value)
    walked = [attention[number] for number in numbers]
    weights = chunk_weights(layout, tokens)
    kept = [PLAIN_RESIDUAL if method is Method.ROLLOUT else residual for method in wanted]
    rows = answer_rows(layout, spans, len(tokens.ids), len(ids)).to(scorer.model.device)
    stacked = rows.repeat(len(wanted), 1)  # attention is made once for all methods
    by_row = torch.tensor(kept, device=rows.device).repeat_interleave(len(spans))[:, None]
    reference = np.zeros((len(spans), len(tokens.ids)))
    mass = _prompt_mass(walk(walked, stacked, by_row), tokens.ids).reshape(len(wanted), *reference.shape)
    if Method.ROLLOUT_CORRECTED in wanted:
        reference = _prompt_mass(walk(walked, rows, residual, is_content_free=True), tokens.ids)
    scorer.spend(forwards=1, tokens=len(ids), seconds=time.perf_counter() - started)
    cost = spent_since(scorer, before)

    results = []
    for number, method in enumerate(wanted):
        by_span = [weights * row for row in mass[number]]
        if method is Method.ROLLOUT_CORRECTED:
            by_span = [
                _divided(heat, (weights * free).sum(axis=1))
                for heat, free in zip(by_span, reference, strict=True)
            ]
        settings: dict[str, str] = {} if layers is None else {"layers": str(numbers)}
        fingerprint = settings_hash(
            method, residual=kept[number], heads="mean", rows="predicting", **settings
        )
        results.append(heat_result(layout, tokens, spans, method, by_span, fingerprint, cost))
    return joined(results)


@torch.inference_mode()
def walk(
    layers: Sequence[LayerAttention], rows: Tensor, residual: float | Tensor, *, is_content_free: bool = False
) -> Tensor:
    """``rows`` times the product of all layers' ``residual I + (1 - residual) A``, top layer first.

    ``rows``: shape [row, T], float32; returns the same shape. Rows that sum to 1 stay so. ``residual``:
    one for all or, shape [row, 1], one for each.
    """
    mass = rows
    for layer in reversed(layers):
        below = residual * mass
        if is_content_free and layer.is_plainly_causal:
            below += (1.0 - residual) * _spread_evenly(mass)
            mass = below
            continue
        for start in range(0, mass.shape[1], BLOCK):
            end = min(start + BLOCK, mass.shape[1])
            block = mass[:, start:end]
            if not block.any():  # in the top layers only the answer's rows carry mass
                continue
            weights, first = (
                layer.content_free_rows(start, end) if is_content_free else layer.rows(start, end)
            )
            below[:, first:end] += (1.0 - residual) * (block @ weights)
        mass = below
    return mass


def _spread_evenly(mass: Tensor) -> Tensor:
    """Mass of each row spread over itself and all before it, in O(T): column j gets sum_(i>=j) m_i/(i+1)."""
    lengths = torch.arange(1, mass.shape[1] + 1, device=mass.device, dtype=torch.float64)
    return (mass.double() / lengths).flip(1).cumsum(dim=1).flip(1).to(mass.dtype)


def answer_rows(layout: Layout, spans: Sequence[Span], prompt_length: int, length: int) -> Tensor:
    """Start of the walk: the rows that predict a span's tokens, equally weighted, shape [span, T]."""
    rows = torch.zeros(len(spans), length)
    for number, span in enumerate(spans):
        indices = layout.span_tokens(span)
        for index in indices:
            rows[number, prompt_length + index - 1] = 1.0 / len(indices)
    return rows


def _prompt_mass(rows: Tensor, prompt: Sequence[int]) -> NDArray[np.float64]:
    return rows[:, : len(prompt)].double().cpu().numpy()


def _divided(heat: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each player's heat over its content-free mass, rescaled so that everything sums to 1."""
    visible = np.where(reference > 0, reference, np.inf)  # what cannot be seen has no mass to divide either
    ratio: NDArray[np.float64] = heat / visible[:, None]
    total = ratio.sum()
    return ratio / total if total > 0 else ratio
