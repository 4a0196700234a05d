"""Queries and keys of every layer, taken while the forward runs on fused attention; maps come in row blocks.

A full set of maps is L x H x T x T floats (17 GB for an 8-layer model at 8k tokens); queries and keys are
L x T x d. They are taken by a registered attention function, after rotary embedding and q/k norms, so nothing
is re-implemented per model family.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import UnsupportedArchitectureError

IMPLEMENTATION = "ragblame_capture"
_REFUSED = ("softcap", "s_aux", "position_bias")  # change the weights in ways a row of q and k does not show
_lock = threading.Lock()  # the attention implementation is a property of the model, not of one call
_store = threading.local()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerAttention:
    """What attention weights of one layer are made of, for one sequence of T tokens."""

    query: Tensor  # [head, T, dim], after position encoding
    key: Tensor  # [key/value head, T, dim]
    mask: Tensor | None  # [T, T], True where a row may look; None: causal
    scaling: float

    def rows(self, start: int, end: int) -> tuple[Tensor, int]:
        """Attention weights of rows ``[start, end)``, mean over heads, float32.

        Returns shape [end - start, columns] and the first column; columns outside are exactly zero.
        """
        allowed, first = self.allowed(start, end)
        key = self.key[:, first:end].float()
        groups = self.query.shape[0] // key.shape[0]
        total = torch.zeros_like(allowed, dtype=torch.float32)
        for head in range(self.query.shape[0]):  # one head at a time: a block is rows x T, whatever the heads
            scores = (self.query[head, start:end].float() @ key[head // groups].T) * self.scaling
            total += scores.masked_fill_(~allowed, -torch.inf).softmax(dim=-1)
        return total / self.query.shape[0], first

    def content_free_rows(self, start: int, end: int) -> tuple[Tensor, int]:
        """The same rows if every token looked at all it may see alike: what position alone would give."""
        allowed, first = self.allowed(start, end)
        weights = allowed.float()
        return weights / weights.sum(dim=-1, keepdim=True), first

    def allowed(self, start: int, end: int) -> tuple[Tensor, int]:
        """Where rows ``[start, end)`` may look, from the first column any of them may see up to ``end``."""
        if self.mask is None:
            device = self.query.device
            return torch.arange(start, end, device=device)[:, None] >= torch.arange(end, device=device), 0
        block = self.mask[start:end, :end]
        first = int(block.any(dim=0).int().argmax())
        return block[:, first:], first


@torch.inference_mode()
def capture(scorer: TransformersScorer, ids: tuple[int, ...], method: str) -> list[LayerAttention]:
    """Run one forward over ``ids`` and return the attention of all layers, first layer first.

    Raises ``UnsupportedArchitectureError`` naming ``method`` and the model type when a layer's attention does
    not go through the library's attention interface or is not a plain softmax of q and k.
    """
    with _lock, _capturing(scorer.model, scorer.family, method) as layers:
        body = scorer.model.base_model
        body(input_ids=torch.tensor([ids], device=scorer.model.device), use_cache=False)
    expected = int(scorer.model.config.get_text_config().num_hidden_layers)
    if len(layers) != expected:
        raise UnsupportedArchitectureError(
            f"{method} cannot serve model type {scorer.family!r}: {len(layers)} of its {expected} layers "
            "have attention that can be read; use shapley or a gradient method"
        )
    return layers


@contextmanager
def _capturing(model: PreTrainedModel, family: str, method: str) -> Iterator[list[LayerAttention]]:
    previous = str(model.config._attn_implementation)
    layers: list[LayerAttention] = []
    model.set_attn_implementation(IMPLEMENTATION)
    if model.config._attn_implementation != IMPLEMENTATION:
        raise UnsupportedArchitectureError(
            f"{method} cannot serve model type {family!r}: its attention does not go through the "
            "library's attention interface; use shapley or a gradient method"
        )
    _store.layers, _store.family, _store.method = layers, family, method
    try:
        yield layers
    finally:
        _store.layers = None
        model.set_attn_implementation(previous)


def _take(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The registered attention function: keep what weights are made of, let the fused kernel do the work."""
    layers: list[LayerAttention] | None = getattr(_store, "layers", None)
    if layers is None:  # another thread scores with this model meanwhile
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    refused = [name for name in _REFUSED if options.get(name) is not None]
    if refused:
        raise UnsupportedArchitectureError(
            f"{_store.method} cannot serve model type {_store.family!r}: its attention uses "
            f"{refused[0]}; use shapley or a gradient method"
        )
    mask = None
    if attention_mask is not None:
        mask = attention_mask[0, 0]
        if mask.dtype != torch.bool:
            raise UnsupportedArchitectureError(
                f"{_store.method} cannot serve model type {_store.family!r}: its attention "
                "adds a bias by position; use shapley or a gradient method"
            )
    layers.append(
        LayerAttention(
            query=query[0],
            key=key[0],
            mask=mask,
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        )
    )
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    return output, None


AttentionInterface.register(IMPLEMENTATION, _take)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
