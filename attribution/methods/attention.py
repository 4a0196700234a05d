"""Queries and keys of every layer, taken while the forward runs on fused attention.

They are taken where attention happens, after rotary embedding and q/k norms, so that no family is
re-implemented: in a registered attention function or, for families that never ask for one (Falcon, Bloom), at
the operation in which queries meet keys.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ragblame.attribution.methods.layer_attention import LayerAttention
from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import InputError, UnsupportedArchitectureError

IMPLEMENTATION = "ragblame_capture"
_EAGER_ONLY = ("bloom",)  # read at baddbmm; its mask, added later, is known to be the causal one
_lock = threading.Lock()  # the attention implementation is a property of the model, not of one call
_store = threading.local()
_closed: set[type] = set()  # model classes that do not take an attention function; asking again would warn


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

    The forward ends where the last layer has its queries and keys: nothing behind them is needed.

    Memory: queries and keys, linear in T, and what the family's own forward takes: Bloom has no fused
    attention and makes one layer's maps at a time, Falcon with ALiBi and windowed families one T x T mask.

    Raises ``UnsupportedArchitectureError`` naming ``method`` and the model type when a layer has no softmax
    of queries and keys, or one that cannot be read.
    """
    expected = int(scorer.model.config.get_text_config().num_hidden_layers)
    ids_here = torch.tensor([ids], device=scorer.model.device)
    with _lock, suppress(_Enough), _capturing(scorer.model, scorer.family, method, expected) as layers:
        scorer.model.base_model(input_ids=ids_here, use_cache=False)
    if len(layers) != expected:
        raise UnsupportedArchitectureError(
            f"{method} cannot serve model type {scorer.family!r}: {len(layers)} of its {expected} layers "
            "have attention that can be read; use shapley or a gradient method"
        )
    return layers


@contextmanager
def _capturing(
    model: PreTrainedModel, family: str, method: str, expected: int
) -> Iterator[list[LayerAttention]]:
    previous = str(model.config._attn_implementation)
    layers: list[LayerAttention] = []
    if type(model) not in _closed:
        model.set_attn_implementation(IMPLEMENTATION)
    if model.config._attn_implementation != IMPLEMENTATION:
        _closed.add(type(model))
        with _AtTheOperation(layers, expected, reads_baddbmm=family in _EAGER_ONLY):
            yield layers
        return
    _store.layers, _store.family, _store.method, _store.expected = layers, family, method, expected
    try:
        yield layers
    finally:
        _store.layers = None
        model.set_attn_implementation(previous)


class _Enough(Exception):  # noqa: N818 - it says that all is well
    """Every layer has been seen."""


class _AtTheOperation(TorchFunctionMode):
    """Reads queries and keys from this thread's calls of torch's attention, for families of the old style."""

    def __init__(self, layers: list[LayerAttention], expected: int, *, reads_baddbmm: bool) -> None:
        super().__init__()
        self.layers = layers
        self.expected = expected
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
        if len(self.layers) == self.expected:
            raise _Enough
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
        if getattr(module, "layer_idx", len(layers)) != len(layers):
            raise UnsupportedArchitectureError(
                f"{_store.method} cannot serve model type {_store.family!r}: its layers do not all attend, "
                "once and in order; use shapley or a gradient method"
            )
        layers.append(_layer(query, key, attention_mask, scaling, softcap=softcap, sinks=s_aux))
        if len(layers) == _store.expected:
            raise _Enough
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
