"""Attention weights of one layer in blocks of rows, made from its queries and keys whenever they are needed.

A full set of maps is L x H x T x T floats (17 GB for an 8-layer model at 8k tokens); queries and keys are
L x T x d.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256  # attention rows made at a time


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
