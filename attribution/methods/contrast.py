"""Foils for contrastive gradients: what the model would have said at each answer token without any chunk.

"Why this value and not what memory would have said" is asked of ``log p(y_t) - log p(foil_t)`` (Yin & Neubig
2022, arXiv 2202.10419), with the foil from the pass without chunks: no human has to name one. Normalisation
cancels, so the contrast is a difference of two logits and does not saturate where the model is sure.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ragblame.attribution.layout import Layout
from ragblame.attribution.scorer import TransformersScorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Foils:
    """Top tokens of the pass without chunks, the recorded answer teacher-forced."""

    ids: tuple[int, ...]  # one per answer token
    agrees: tuple[bool, ...]  # memory alone says the recorded token: nothing to contrast with


@torch.no_grad()
def foils(scorer: TransformersScorer, layout: Layout) -> Foils:
    """One forward over question and answer without any chunk. Raises ``ContextLengthError``.

    The scorer is not charged: the caller counts this forward with its own.
    """
    prompt = layout.prompt_ids(0)
    scorer.check_length(len(prompt), len(layout.answer_ids))
    ids = torch.tensor([prompt + layout.answer_ids], device=scorer.model.device)
    with logits_of(scorer) as given:
        scorer.answer_log_probs(ids, [len(prompt)], layout.answer_ids)
    top = tuple(int(token) for token in given[0][0, -len(layout.answer_ids) - 1 : -1].argmax(dim=-1))
    return Foils(ids=top, agrees=tuple(a == b for a, b in zip(top, layout.answer_ids, strict=True)))


def contrasts(
    scorer: TransformersScorer, layout: Layout, input_ids: Tensor, against: Sequence[int]
) -> Tensor:
    """``log p(answer token) - log p(foil)`` in nats, float32, shape [answer token]; keeps the autograd graph.

    ``input_ids``: prompt and answer, shape [1, T]. Exactly 0 where the foil is the answer token.
    """
    answer = layout.answer_ids
    with logits_of(scorer) as given:
        scorer.answer_log_probs(input_ids, [input_ids.shape[1] - len(answer)], answer)
    rows = given[0][0, -len(answer) - 1 : -1].float()
    at = torch.arange(len(answer), device=rows.device)
    said = torch.tensor(answer, device=rows.device)
    foil = torch.tensor(list(against), device=rows.device)
    return rows[at, said] - rows[at, foil]


@contextmanager
def logits_of(scorer: TransformersScorer) -> Iterator[list[Tensor]]:
    """Logits of the scorer's forwards, those of its float32 head, each [row, kept token, vocabulary]."""
    given: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        given.append(output.logits)

    handle = scorer.model.register_forward_hook(keep)
    try:
        yield given
    finally:
        handle.remove()
