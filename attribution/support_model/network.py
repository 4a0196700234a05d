"""The network of the reader: a small encoder with low-rank adapters, and a head that joins what it read.

Every window gives, for each token of the answer, a vector and a support logit s. Windows are joined by a
softmax over s (what supports best is heard most) and by its logarithm of the sum of exponentials; a small
bidirectional GRU then reads the whole answer once more, so that neighbours of an unsupported word lean to the
same side. The logit of the whole answer comes from its most doubtful tokens and from counts of missing words.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from ragblame.attribution.support_model.lexical import ANSWER_FLAGS, COUNTS
from ragblame.attribution.support_model.windows import FLAGS, Reading

RANK: Final = 32  # of the adapters; Hu et al. 2021
SCALE: Final = 2.0  # alpha / rank, their eq. 3
_JOINED: Final = 128
_GRU: Final = 96
_TOP: Final = 8  # most doubtful tokens that the answer's logit sees


class LowRank(nn.Module):
    """A frozen linear layer with a low-rank addition, W x + b + (alpha / r) B A x (Hu et al. 2021, eq. 3)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.empty(RANK, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, RANK))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] to […, out]."""
        added = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        return self.base(x) + SCALE * added  # type: ignore[no-any-return]

    def merged(self) -> nn.Linear:
        """One plain layer that computes the same."""
        with torch.no_grad():
            self.base.weight += SCALE * self.up @ self.down
        return self.base


class Reader(nn.Module):
    """Encoder, adapters and head; ``forward`` takes what ``collate`` makes."""

    def __init__(self, encoder: Any) -> None:
        """``encoder``: a BERT model; its own weights stay frozen."""
        super().__init__()
        self.encoder = encoder
        for parameter in encoder.parameters():
            parameter.requires_grad_(False)
        for layer in encoder.encoder.layer:
            own = layer.attention.self
            own.query, own.key, own.value = LowRank(own.query), LowRank(own.key), LowRank(own.value)
            layer.attention.output.dense = LowRank(layer.attention.output.dense)
            layer.intermediate.dense = LowRank(layer.intermediate.dense)
            layer.output.dense = LowRank(layer.output.dense)
        width = encoder.config.hidden_size
        self.flags = nn.Linear(FLAGS, width, bias=False)
        nn.init.zeros_(self.flags.weight)  # begins as the encoder it was
        self.support = nn.Linear(width, 1)
        self.join = nn.Linear(width + 1 + len(ANSWER_FLAGS), _JOINED)
        self.drop = nn.Dropout(0.2)
        self.smooth = nn.GRU(_JOINED, _GRU, batch_first=True, bidirectional=True)
        self.token = nn.Linear(2 * _GRU + _JOINED, 1)
        self.pool = nn.Linear(2 * _GRU, 1)
        self.counted = nn.Sequential(nn.Linear(len(COUNTS), 32), nn.GELU(), nn.Dropout(0.2))
        self.answer = nn.Sequential(
            nn.Linear(2 * _GRU + _TOP + 32, 64), nn.GELU(), nn.Dropout(0.2), nn.Linear(64, 1)
        )
        self.register_buffer("count_mean", torch.zeros(len(COUNTS)))
        self.register_buffer("count_scale", torch.ones(len(COUNTS)))

    def merge(self) -> None:
        """Fold the adapters into the encoder: no cost at inference. Cannot be undone or trained further."""
        for parent in self.encoder.modules():
            for name, child in list(parent.named_children()):
                if isinstance(child, LowRank):
                    setattr(parent, name, child.merged())

    def learned(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of what was learned: everything but the encoder's own weights."""
        for name, value in self.state_dict().items():
            if not name.startswith("encoder.") or name.endswith((".down", ".up")):
                yield name, value

    def forward(self, batch: "Batch") -> tuple[Tensor, Tensor]:
        """Logits of being unsupported: [answer, token] (padded ones mean nothing) and [answer]."""
        words = self.encoder.embeddings.word_embeddings(batch.ids) + self.flags(batch.flags)
        hidden = self.encoder(
            inputs_embeds=words, token_type_ids=batch.types, attention_mask=batch.mask
        ).last_hidden_state.float()  # [window, token, width]
        width = hidden.shape[-1]
        logits = self.support(hidden).squeeze(-1)
        tokens = batch.places.shape[1]
        there = batch.places >= 0
        flat = batch.places.clamp(min=0)
        s = logits.reshape(-1)[flat].masked_fill(~there, -1e4)
        vectors = hidden.reshape(-1, width)[flat]  # [answer, token, window, width]
        joined = (s.softmax(-1).unsqueeze(-1) * vectors).sum(2)
        evidence = s.logsumexp(-1, keepdim=True).clamp(-30, 30)
        x = nn.functional.gelu(self.join(self.drop(torch.cat([joined, evidence, batch.said], -1))))
        packed = nn.utils.rnn.pack_padded_sequence(x, batch.lengths, batch_first=True, enforce_sorted=False)
        read, _ = nn.utils.rnn.pad_packed_sequence(
            self.smooth(packed)[0], batch_first=True, total_length=tokens
        )
        token = self.token(self.drop(torch.cat([read, x], -1))).squeeze(-1)
        inside = torch.arange(tokens)[None, :] < batch.lengths[:, None]
        weight = self.pool(read).squeeze(-1).masked_fill(~inside, -1e4).softmax(-1)
        pooled = (weight.unsqueeze(-1) * read).sum(1)
        worst = token.masked_fill(~inside, -12.0)
        if tokens < _TOP:
            worst = nn.functional.pad(worst, (0, _TOP - tokens), value=-12.0)
        top = worst.topk(_TOP, dim=1).values.clamp(-12, 12) / 4
        told = self.counted((batch.counts - self.count_mean) / self.count_scale)
        answer = self.answer(torch.cat([pooled, top, told], -1)).squeeze(-1)
        return token, answer


class Batch:
    """Readings of several answers as tensors."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        windows = [window for reading in readings for window in reading.windows]
        longest = max(len(window.ids) for window in windows)
        self.ids = torch.zeros((len(windows), longest), dtype=torch.long)
        self.types = torch.zeros_like(self.ids)
        self.mask = torch.zeros_like(self.ids)
        self.flags = torch.zeros((len(windows), longest, FLAGS))
        for row, window in enumerate(windows):
            size = len(window.ids)
            self.ids[row, :size] = torch.from_numpy(window.ids)
            self.types[row, :size] = torch.from_numpy(window.types)
            self.mask[row, :size] = 1
            self.flags[row, :size] = torch.from_numpy(window.flags)
        self.lengths = torch.tensor([max(1, reading.tokens) for reading in readings])
        tokens = int(self.lengths.max())
        most = max(_windows_per_part(reading) for reading in readings)
        places = np.full((len(readings), tokens, most), -1, np.int64)
        self.said = torch.zeros((len(readings), tokens, len(ANSWER_FLAGS)))
        self.counts = torch.stack([torch.from_numpy(reading.counts) for reading in readings])
        row = 0
        for index, reading in enumerate(readings):
            self.said[index, : reading.tokens] = torch.from_numpy(reading.flags)
            taken: dict[tuple[int, int], int] = {}
            for window in reading.windows:
                start, end = window.part
                slot = taken.get(window.part, 0)
                taken[window.part] = slot + 1
                first = row * longest + window.answer_at
                places[index, start:end, slot] = np.arange(first, first + end - start)
                row += 1
        self.places = torch.from_numpy(places)  # [answer, token, window] into flat tokens, -1: none


def _windows_per_part(reading: Reading) -> int:
    sizes: dict[tuple[int, int], int] = {}
    for window in reading.windows:
        sizes[window.part] = sizes.get(window.part, 0) + 1
    return max(sizes.values())
