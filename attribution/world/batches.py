"""Turns drawn training texts into padded batches of ids and loss weights.

It exists so that every batch is a pure function of (seed, step): a resumed run needs no state of a data
loader.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ragblame.attribution.world.episodes import Mixture, TrainingText, draw_sequence

ANSWER_WEIGHT = 0.25  # words of an answer around its values: easy, and learned quickly
VALUE_WEIGHT = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Token ids and how much the prediction of each counts, both [sequence, token]; padding counts 0."""

    ids: Tensor
    weights: Tensor


def block(
    seed: str, mixture: Mixture, tokenizer: PreTrainedTokenizerFast, *, batches: int, tokens: int
) -> list[Batch]:
    """`batches` batches of about `tokens` tokens each, sequences of similar length together, shuffled."""
    rng = random.Random(seed)
    rows: list[tuple[list[int], list[float]]] = []
    total = 0
    while total < batches * tokens:
        row = weigh(draw_sequence(rng, mixture), tokenizer)
        rows.append(row)
        total += len(row[0])
    rows.sort(key=lambda row: len(row[0]))
    groups: list[list[tuple[list[int], list[float]]]] = [[] for _ in range(batches)]
    seen = 0
    for row in rows:
        groups[min(batches - 1, seen * batches // total)].append(row)
        seen += len(row[0])
    drawn = [_pad(group, tokenizer) for group in groups if group]
    rng.shuffle(drawn)
    return drawn


def weigh(text: TrainingText, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[float]]:
    """Ids of one text and the loss weight of each: values fully, the rest of an answer a little."""
    encoding = tokenizer.backend_tokenizer.encode(text.text)
    weights = [0.0] * len(encoding.ids)
    kind = bytearray(len(text.text) + 1)
    for start, end in text.answers:
        kind[start:end] = b"\x01" * (end - start)
    for start, end in text.values:
        kind[start:end] = b"\x02" * (end - start)
    for index, (_, end) in enumerate(encoding.offsets):
        # A token counts as what its last character is: " 29" begins with a space that is no part of it.
        weights[index] = (0.0, ANSWER_WEIGHT, VALUE_WEIGHT)[kind[end - 1]]
    return list(encoding.ids), weights


def _pad(rows: list[tuple[list[int], list[float]]], tokenizer: PreTrainedTokenizerFast) -> Batch:
    longest = max(len(ids) for ids, _ in rows)
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    # Padding stands at the end only, so causal attention needs no mask for it.
    ids = [row + [pad] * (longest - len(row)) for row, _ in rows]
    weights = [row + [0.0] * (longest - len(row)) for _, row in rows]
    return Batch(ids=torch.tensor(ids), weights=torch.tensor(weights))
