"""The network of the reader: answer tokens attend to the tokens of the chunks, and each gets a logit.

It stands on frozen vectors of a sentence encoder (two of its layers side by side) and on what equality of
words tells for free: in every attention a learned bias favours the same word, and more so the same pair of
words, so that what is learned is whether the words around agree. The logit of the whole answer comes from its
most doubtful tokens and from counts of missing words.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ragblame.attribution.support_model.cutting import Reading, Run
from ragblame.attribution.support_model.encoder import Encoder
from ragblame.attribution.support_model.lexical import ANSWER_FLAGS, COUNTS, EVIDENCE_FLAGS

WIDTH: Final = 128
HEADS: Final = 4
BLOCKS: Final = 2
REACH: Final = 16  # tokens: distances in the answer beyond it count as equal
_TOP: Final = 8  # most doubtful tokens that the answer's logit sees
_DROP: Final = 0.2

Vectors = Callable[[Run], Tensor]  # [used token, input width] of one run


class Attention(nn.Module):
    """Multi-head attention with an added bias; queries and keys begin equal, so that like meets like."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key.load_state_dict(self.query.state_dict())

    def forward(self, x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
        """``x`` [answer, i, width] looks at ``y`` [answer, j, width]; ``bias`` [answer, head, i, j]."""
        count, width = x.shape[0], WIDTH // HEADS

        def heads(z: Tensor) -> Tensor:
            return z.view(count, -1, HEADS, width).transpose(1, 2)

        read = nn.functional.scaled_dot_product_attention(
            heads(self.query(x)), heads(self.key(y)), heads(self.value(y)), attn_mask=bias
        )
        return self.out(read.transpose(1, 2).reshape(count, -1, WIDTH))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Answer to answer, answer to chunks, each token by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.own, self.across = Attention(), Attention()
        self.feed = nn.Sequential(nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(), nn.Linear(3 * WIDTH, WIDTH))
        self.distance = nn.Parameter(torch.zeros(HEADS, 2 * REACH + 1))
        # Strengths of "same word", "same pair"; heads differ from the start.
        self.same = nn.Parameter(torch.linspace(0, 4, HEADS)[:, None].repeat(1, 2))
        self.drop = nn.Dropout(_DROP)

    def forward(self, x: Tensor, y: Tensor, own_mask: Tensor, mask: Tensor, same: Tensor) -> Tensor:
        """``same`` [answer, 2, i, j]; masks are 0 or very negative, [answer, 1, 1, j]."""
        place = torch.arange(x.shape[1])
        apart = (place[None, :] - place[:, None]).clamp(-REACH, REACH) + REACH
        own = self.distance[:, apart][None] + own_mask
        z = self.norms[0](x)
        x = x + self.drop(self.own(z, z, own))
        word, pair = self.same[:, :, None, None].unbind(1)  # [head, 1, 1]
        bias = same[:, :1] * word + same[:, 1:] * pair + mask
        x = x + self.drop(self.across(self.norms[1](x), y, bias))
        return x + self.drop(self.feed(self.norms[2](x)))  # type: ignore[no-any-return]


class Reader(nn.Module):
    """``forward`` takes a ``Batch`` and gives logits of being unsupported."""

    def __init__(self, input_width: int) -> None:
        """``input_width``: of the encoder's vectors, all its ``LAYERS`` side by side."""
        super().__init__()
        self.inputs = nn.Sequential(
            nn.LayerNorm(input_width), nn.Dropout(_DROP), nn.Linear(input_width, WIDTH)
        )
        self.said_flags = nn.Linear(len(ANSWER_FLAGS), WIDTH, bias=False)
        self.evidence_flags = nn.Linear(len(EVIDENCE_FLAGS), WIDTH, bias=False)
        self.local = nn.Conv1d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH)
        self.none = nn.Parameter(torch.zeros(WIDTH))  # what a token with no evidence looks at
        self.evidence_norm = nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.last = nn.LayerNorm(WIDTH)
        self.token = nn.Sequential(nn.Dropout(_DROP), nn.Linear(WIDTH + len(ANSWER_FLAGS), 1))
        self.pool = nn.Linear(WIDTH, 1)
        self.counted = nn.Sequential(nn.Linear(len(COUNTS), 32), nn.GELU(), nn.Dropout(0.2))
        self.answer = nn.Sequential(
            nn.Linear(WIDTH + _TOP + 32, 64), nn.GELU(), nn.Dropout(0.3), nn.Linear(64, 1)
        )
        self.count_mean: Tensor
        self.count_scale: Tensor
        self.register_buffer("count_mean", torch.zeros(len(COUNTS)))
        self.register_buffer("count_scale", torch.ones(len(COUNTS)))

    def forward(self, batch: "Batch") -> tuple[Tensor, Tensor]:
        """Logits [answer, token] (those of padding mean nothing) and [answer]."""
        x = self._local(self.inputs(batch.said) + self.said_flags(batch.flags), batch.inside)
        y = self._local(self.inputs(batch.evidence) + self.evidence_flags(batch.evidence_flags), batch.there)
        y = self.evidence_norm(torch.cat([self.none.expand(len(y), 1, WIDTH), y], 1))
        low = torch.finfo(torch.float32).min / 4
        own_mask = torch.zeros(batch.inside.shape).masked_fill(~batch.inside, low)[:, None, None, :]
        there = nn.functional.pad(batch.there, (1, 0), value=True)
        mask = torch.zeros(there.shape).masked_fill(~there, low)[:, None, None, :]
        same = nn.functional.pad(batch.same, (1, 0))
        for block in self.blocks:
            x = block(x, y, own_mask, mask, same)
        x = self.last(x)
        token = self.token(torch.cat([x, batch.flags], -1)).squeeze(-1)
        weight = self.pool(x).squeeze(-1).masked_fill(~batch.inside, low).softmax(-1)
        pooled = (weight.unsqueeze(-1) * x).sum(1)
        worst = token.masked_fill(~batch.inside, -12.0)
        if worst.shape[1] < _TOP:
            worst = nn.functional.pad(worst, (0, _TOP - worst.shape[1]), value=-12.0)
        top = worst.topk(_TOP, dim=1).values.clamp(-12, 12) / 4
        told = self.counted((batch.counts - self.count_mean) / self.count_scale)
        return token, self.answer(torch.cat([pooled, top, told], -1)).squeeze(-1)

    def _local(self, x: Tensor, inside: Tensor) -> Tensor:
        """Each token with its neighbours mixed in; padding stays out of it."""
        x = x * inside.unsqueeze(-1)
        return x + gelu(self.local(x.transpose(1, 2)).transpose(1, 2))


class Batch:
    """Readings of several answers, with their vectors, as padded tensors."""

    def __init__(self, readings: Sequence[Reading], vectors: Vectors, width: int) -> None:
        count = len(readings)
        tokens = max(1, *(reading.tokens for reading in readings))
        most = max(1, *(len(reading.evidence_stems) for reading in readings))
        self.said = _stacked([reading.said for reading in readings], vectors, tokens, width)
        self.evidence = _stacked([reading.evidence for reading in readings], vectors, most, width)
        self.flags = torch.zeros(count, tokens, len(ANSWER_FLAGS))
        self.evidence_flags = torch.zeros(count, most, len(EVIDENCE_FLAGS))
        self.inside = torch.zeros(count, tokens, dtype=torch.bool)
        self.there = torch.zeros(count, most, dtype=torch.bool)
        self.same = torch.zeros(count, 2, tokens, most)  # same word, same pair
        self.counts = torch.stack([torch.from_numpy(reading.counts) for reading in readings])
        for row, reading in enumerate(readings):
            here, there = reading.tokens, len(reading.evidence_stems)
            self.inside[row, : max(1, here)] = True
            self.there[row, :there] = True
            self.flags[row, :here] = torch.from_numpy(reading.flags)
            self.evidence_flags[row, :there] = torch.from_numpy(reading.evidence_flags)
            stems = np.where(reading.stems < 0, -2, reading.stems)  # outside of words nothing is equal
            equal = stems[:, None] == reading.evidence_stems[None, :]
            pair = np.zeros_like(equal)
            pair[1:, 1:] = equal[1:, 1:] & equal[:-1, :-1]
            pair[:-1, :-1] |= equal[1:, 1:] & equal[:-1, :-1]
            self.same[row, 0, :here, :there] = torch.from_numpy(equal & (reading.flags[:, :1] > 0))  # content
            self.same[row, 1, :here, :there] = torch.from_numpy(pair)


def _stacked(rows: Sequence[Sequence[Run]], vectors: Vectors, length: int, width: int) -> Tensor:
    """Vectors of each row's runs one after another, zeros behind them, float32 [row, length, width]."""
    found = [torch.cat([torch.zeros(0, width), *(vectors(run).float() for run in runs)]) for runs in rows]
    return torch.stack([nn.functional.pad(row, (0, 0, 0, length - len(row))) for row in found])


class Memory:
    """Vectors of the runs that were read last: popular chunks are retrieved again and again."""

    def __init__(self, encoder: Encoder, tokens: int = 32_768) -> None:
        """``tokens``: kept at most, 1.5 kB each in bfloat16, else 3."""
        self._encoder = encoder
        self._tokens = tokens
        self._kept: dict[Run, Tensor] = {}  # least recently used first

    def batch(self, readings: Sequence[Reading]) -> Batch:
        """A batch of readings; equal runs are encoded once."""
        runs = list(dict.fromkeys(run for reading in readings for run in (*reading.said, *reading.evidence)))
        missing = [run for run in runs if run not in self._kept]
        vectors = dict(zip(missing, self._encoder(missing), strict=True))
        vectors.update((run, self._kept.pop(run)) for run in runs if run in self._kept)
        self._kept.update(vectors)
        size = sum(len(kept) for kept in self._kept.values())
        while size > self._tokens:
            size -= len(self._kept.pop(next(iter(self._kept))))
        return Batch(readings, vectors.__getitem__, self._encoder.width)
