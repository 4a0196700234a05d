"""Keys and values of tokens that several prompts share, kept once, and handed to a model as its cache.

A pool of token slots as in paged attention (Kwon et al. 2023): a row of a batch names the slots its prompt
begins with, so rows with different beginnings stand in one forward and nothing is kept twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """What one layer keeps of a token."""

    heads: int  # key/value heads
    key: int  # numbers per head
    value: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes a token takes."""
        return self.heads * (self.key + self.value) * self.dtype.itemsize


class KvPool:
    """Keys and values of up to ``slots`` tokens in all layers. Slot 0 is padding: finite, and never seen."""

    def __init__(self, shapes: Sequence[LayerShape], slots: int, device: torch.device) -> None:
        self.shapes = tuple(shapes)
        self.slots = slots
        self.keys = [_rows(slots + 1, s.heads, s.key, s.dtype, device) for s in shapes]
        self.values = [_rows(slots + 1, s.heads, s.value, s.dtype, device) for s in shapes]

    def cache(
        self, chains: Sequence[NDArray[np.int64]], kept: Sequence[NDArray[np.int64]], length: int
    ) -> Cache:
        """The cache of one batch: row r goes on from the tokens in slots ``chains[r]``.

        ``length``: tokens that each row computes, padding included; the first ``len(kept[r])`` of them are
        put into the slots ``kept[r]``. Beginnings end where the new tokens start and are padded on the left.
        """
        past = max((len(chain) for chain in chains), default=0)
        index = np.zeros((len(chains), past + length), np.int64)
        for row, chain in zip(index, chains, strict=True):
            row[past - len(chain) : past] = chain
        sources = [row * length + np.arange(len(slots)) for row, slots in enumerate(kept)]
        device = self.keys[0].device
        gather = torch.from_numpy(index.reshape(-1)).to(device)
        source = torch.from_numpy(np.concatenate(sources).astype(np.int64)).to(device)
        target = torch.from_numpy(np.concatenate(list(kept)).astype(np.int64)).to(device)
        return Cache(
            layers=[
                PooledLayer(keys, values, past, gather, source, target)
                for keys, values in zip(self.keys, self.values, strict=True)
            ]
        )


def _rows(count: int, heads: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that is touched when it is used: most of a pool never is. Row 0 is padding."""
    rows = torch.empty(count, heads, size, dtype=dtype, device=device)
    rows[0] = 0
    return rows


class PooledLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's part of a batch's cache: gathers what stands before, puts away what is new."""

    def __init__(
        self, keys: Tensor, values: Tensor, past: int, gather: Tensor, source: Tensor, target: Tensor
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pools = (keys, values)
        self._past = past
        self._gather, self._source, self._target = gather, source, target
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens before those of this forward, left padding included."""
        return self._past

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the whole rows, shape [row, head, past + length, size]."""
        return self._whole(self._pools[0], key_states), self._whole(self._pools[1], value_states)

    def _whole(self, pool: Tensor, states: Tensor) -> Tensor:
        rows, heads, length, size = states.shape
        by_token = states.transpose(1, 2)  # [row, token, head, size], as the pool
        if len(self._target):
            pool.index_copy_(0, self._target, by_token.reshape(-1, heads, size)[self._source])
        if not self._past:
            return states
        whole = pool.index_select(0, self._gather).view(rows, self._past + length, heads, size)
        whole[:, self._past :] = by_token
        return whole.transpose(1, 2)


def plain_shapes(model: PreTrainedModel, ids: Tensor) -> tuple[LayerShape, ...] | None:
    """Shapes of a model's keys and values by layer; None when its state is something else.

    ``ids``: token ids to try it on, shape [1, length]. The library's plain cache is forced on the model:
    window layers would drop keys that another coalition still needs, while masks know the window anyway.
    Raises what the model raises when it needs another cache.
    """
    cache = DynamicCache()
    model(input_ids=ids, past_key_values=cache, use_cache=True)
    shapes = []
    for layer in cache.layers:
        if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
            return None
        keys, values = layer.keys, layer.values
        if keys.ndim != 4 or values.ndim != 4 or keys.shape[:3] != values.shape[:3]:
            return None
        if keys.shape[0] != 1 or keys.shape[2] != ids.shape[1]:
            return None
        shapes.append(
            LayerShape(heads=keys.shape[1], key=keys.shape[3], value=values.shape[3], dtype=keys.dtype)
        )
    return tuple(shapes) or None
