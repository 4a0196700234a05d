"""Queries and keys of every layer, taken while the forward runs on fused attention; maps come in row blocks.

A full set of maps is L x H x T x T floats (17 GB for an 8-layer model at 8k tokens); queries and keys are
L x T x d. They are taken where attention happens, after rotary embedding and q/k norms, so that no family is
re-implemented: in a registered attention function or, for families that never ask for one (Falcon, Bloom), at
the operation in which queries meet keys.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import InputError, UnsupportedArchitectureError

IMPLEMENTATION = "ragblame_capture"
BLOCK = 256  # attention rows made at a time
_EAGER_ONLY = ("bloom",)  # read at baddbmm; its mask, added later, is known to be the causal one
_lock = threading.Lock()  # the attention implementation is a property of the model, not of one call
_store = threading.local()
_closed: set[type] = set()  # model classes that do not take an attention function; asking again would warn


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerAttention:
    """What attention weights of one layer are made of, for one sequence of T tokens.

    ``softmax(cap(scaling q k^T) + bias)`` over what the mask shows, with ``cap(x) = c tanh(x / c)`` where the
    family has it (Gemma 2). Sinks (gpt-oss) take part in the softmax and are then dropped: rows sum below 1.
    """

    query: Tensor  # [head, T, dim], after position encoding
    key: Tensor  # [key/value head, T, dim]
    scaling: float
    mask: Tensor | None = None  # [T, T], True where a row may look; None: causal
    bias: Tensor | None = None  # [head or 1, T or 1, T], hugely negative where a row may not look
    softcap: float | None = None
    sinks: Tensor | None = None  # [head], logits

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return int(self.query.shape[0])

    def rows(self, start: int, end: int) -> tuple[Tensor, int]:
        """Attention weights of rows ``[start, end)``, mean over heads, float32.

        Returns shape [end - start, columns] and the first column; columns outside are exactly zero.
        """
        return self._mean(*self.by_head(start, end))

    def content_free_rows(self, start: int, end: int) -> tuple[Tensor, int]:
        """The same rows if all queries were zero: what mask and position bias alone would give."""
        return self._mean(*self.by_head(start, end, is_content_free=True))

    @property
    def is_plainly_causal(self) -> bool:
        """Without content, every row looks at all before it alike."""
        return self.mask is None and self.bias is None and self.sinks is None

    def by_head(self, start: int, end: int, *, is_content_free: bool = False) -> tuple[Iterator[Tensor], int]:
        """Weights of rows ``[start, end)`` one head after the other, float32, shape [end - start, columns].

        The second value is the first column. One head at a time: a block is rows x T, whatever the heads.
        """
        hidden, first, hides_from = self._hidden(start, end)
        key = self.key[:, first:end].float()
        groups = self.heads // key.shape[0]
        bias = None
        if self.bias is not None:
            rows = slice(start, end) if self.bias.shape[1] > 1 else slice(0, 1)
            bias = self.bias[:, rows, first:end]

        def weights(head: int) -> Tensor:
            if is_content_free:
                scores = key.new_zeros(end - start, end - first)
            else:
                scores = (self.query[head, start:end].float() * self.scaling) @ key[head // groups].T
                if self.softcap is not None:
                    scores.div_(self.softcap).tanh_().mul_(self.softcap)
            if bias is not None:
                scores += bias[head if bias.shape[0] > 1 else 0]
            scores[:, hides_from:].masked_fill_(hidden, -torch.inf)
            if self.sinks is None:
                return scores.softmax(dim=-1)
            sink = self.sinks[head].float().expand(end - start, 1)
            return torch.cat([scores, sink], dim=-1).softmax(dim=-1)[:, :-1]

        return (weights(head) for head in range(self.heads)), first

    def attend(self, value: Tensor) -> Tensor:
        """What the layer gives for values [key/value head, T, dim], block by block, shape [T, head, dim]."""
        length, groups = value.shape[1], self.heads // value.shape[0]
        given = value.new_empty(length, self.heads, value.shape[2])
        for start in range(0, length, BLOCK):
            end = min(start + BLOCK, length)
            by_head, first = self.by_head(start, end)
            for head, weights in enumerate(by_head):
                given[start:end, head] = weights.to(value.dtype) @ value[head // groups, first:end]
        return given

    def _mean(self, by_head: Iterator[Tensor], first: int) -> tuple[Tensor, int]:
        total = next(by_head)
        for weights in by_head:
            total += weights
        return total.div_(self.heads), first

    def _hidden(self, start: int, end: int) -> tuple[Tensor, int, int]:
        """What rows ``[start, end)`` may not see; the first column any of them sees; where hiding begins.

        The last is counted from the first column: in a causal layer only the square on the diagonal hides
        anything, and masking no more than that is a tenth of the time of a block.
        """
        if self.mask is None:
            size = end - start
            square = torch.ones(size, size, dtype=torch.bool, device=self.query.device)
            return square.triu_(1), 0, start
        block = self.mask[start:end, :end]
        first = int(block.any(dim=0).int().argmax())
        return ~block[:, first:], first, 0


def chosen(scorer: TransformersScorer, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers asked for, lowest first, each once; all when None.

    Raises ``InputError`` for none at all or one that the model has not.
    """
    depth = int(scorer.model.config.get_text_config().num_hidden_layers)
    numbers = tuple(range(depth)) if layers is None else tuple(sorted(set(layers)))
    if not numbers or numbers[0] < 0 or numbers[-1] >= depth:
        raise InputError(f"layers {list(layers or ())} were asked for; the model has layers 0 to {depth - 1}")
    return numbers


@torch.inference_mode()
def capture(scorer: TransformersScorer, ids: tuple[int, ...], method: str) -> list[LayerAttention]:
    """Run one forward over ``ids`` and return the attention of all layers, first layer first.

    Memory: queries and keys, linear in T, and what the family's own forward takes: Bloom has no fused
    attention and makes one layer's maps at a time, Falcon with ALiBi and windowed families one T x T mask.

    Raises ``UnsupportedArchitectureError`` naming ``method`` and the model type when a layer has no softmax
    of queries and keys, or one that cannot be read.
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
    if type(model) not in _closed:
        model.set_attn_implementation(IMPLEMENTATION)
    if model.config._attn_implementation != IMPLEMENTATION:
        _closed.add(type(model))
        with _AtTheOperation(layers, reads_baddbmm=family in _EAGER_ONLY):
            yield layers
        return
    _store.layers, _store.family, _store.method = layers, family, method
    try:
        yield layers
    finally:
        _store.layers = None
        model.set_attn_implementation(previous)


class _AtTheOperation(TorchFunctionMode):
    """Reads queries and keys from this thread's calls of torch's attention, for families of the old style."""

    def __init__(self, layers: list[LayerAttention], *, reads_baddbmm: bool) -> None:
        super().__init__()
        self.layers = layers
        self.reads_baddbmm = reads_baddbmm

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            self._fused(*args, **named)
        elif func is Tensor.baddbmm and self.reads_baddbmm:
            self._eager(*args, **named)
        return func(*args, **named)

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: bool,
    ) -> None:
        self.layers.append(_layer(query, key, attn_mask, scale))

    def _eager(
        self, bias: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1.0, alpha: float = 1.0
    ) -> None:
        """``beta bias + alpha q k^T`` with one batch row a head: bias [head, 1, T], keys transposed."""
        self.layers.append(
            LayerAttention(query=batch1, key=batch2.transpose(1, 2), scaling=alpha, bias=beta * bias)
        )


def _layer(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    *,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> LayerAttention:
    """From tensors with a batch of one; a mask of numbers is a bias, forbidden places included."""
    is_boolean = mask is not None and mask.dtype == torch.bool
    return LayerAttention(
        query=query[0],
        key=key[0],
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        mask=mask[0, 0] if mask is not None and is_boolean else None,
        bias=mask[0] if mask is not None and not is_boolean else None,
        softcap=softcap,
        sinks=sinks,
    )


def _take(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The registered attention function: keep what weights are made of, let the fused kernel do the work.

    What that kernel cannot do (caps, sinks) is done in blocks.
    """
    layers: list[LayerAttention] | None = getattr(_store, "layers", None)
    is_fused = softcap is None and s_aux is None
    if layers is None and not is_fused:  # another thread scores with this model meanwhile
        eager = sys.modules[type(module).__module__].eager_attention_forward
        special = options | {"softcap": softcap} if softcap is not None else options
        bias = _as_bias(attention_mask, query)
        output, _ = eager(module, query, key, value, bias, scaling=scaling, **special)
        return output, None
    if layers is not None:
        if options.get("position_bias") is not None:
            raise UnsupportedArchitectureError(
                f"{_store.method} cannot serve model type {_store.family!r}: its attention adds a "
                "position_bias of its own in every layer; use shapley or a gradient method"
            )
        layers.append(_layer(query, key, attention_mask, scaling, softcap=softcap, sinks=s_aux))
        if not is_fused:
            return layers[-1].attend(value[0])[None], None
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    return output, None


def _as_bias(mask: Tensor | None, query: Tensor) -> Tensor:
    """The mask as eager attention adds it: 0 where a row may look, hugely negative elsewhere."""
    length = query.shape[2]
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril_()[None, None]
    if mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.finfo(query.dtype).min).to(query.dtype)


AttentionInterface.register(IMPLEMENTATION, _take)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
