"""Can this scorer explain the recorded answer at all? If not, its attributions would be about nothing.

The bar is a guess that knows which tokens this prompt and this answer are made of and how often, but neither
their order nor any language: an add-one unigram over the scorer's own tokens,

    u(t) = (count(t in prompt and answer) + 1) / (N + K),

with N tokens and K distinct ones in both. It uses the scorer's tokenizer, so it is fair to large and small
vocabularies alike, and it has seen the answer, so a model that beats it has truly predicted something. A
model of another language or domain loses to it; the author of the answer beats it by several nats a token.
"""

from collections import Counter

import numpy as np
from numpy.typing import ArrayLike

from ragblame.attribution.layout import Layout
from ragblame.errors import InputError
from ragblame.records import Fitness


def unigram_nats(layout: Layout) -> float:
    """Mean log-probability in nats per answer token of the unigram guess; <= 0."""
    counts = Counter(layout.prompt_ids(layout.full_mask))
    counts.update(layout.answer_ids)
    total = counts.total() + len(counts)
    return float(np.mean([np.log((counts[token] + 1) / total) for token in layout.answer_ids]))


def check_fitness(layout: Layout, log_probs: ArrayLike) -> Fitness:
    """Judge a scorer on one answer.

    ``log_probs``: nats of each answer token with all chunks present, shape [answer token], that is
    ``scorer.score(layout, [layout.full_mask])[0]``. The gain over the guess must be above zero.
    Raises ``InputError`` when the shape does not fit the answer.
    """
    values = np.asarray(log_probs, dtype=np.float64)
    if values.shape != (len(layout.answer_ids),):
        raise InputError(
            f"{values.shape} log-probabilities for {len(layout.answer_ids)} answer tokens: pass one row"
        )
    answer = float(values.mean())
    guess = unigram_nats(layout)
    is_fit = answer > guess
    if is_fit:
        reason = (
            f"The scorer predicts the recorded answer better than a guess by word frequency "
            f"({answer:.2f} against {guess:.2f} nats per token)."
        )
    else:
        reason = (
            f"The scorer predicts the recorded answer no better than a guess by word frequency "
            f"({answer:.2f} against {guess:.2f} nats per token), so its attributions would mean nothing."
        )
    return Fitness(is_fit=is_fit, answer_nats=answer, unigram_nats=guess, reason=reason)
