"""Every other method on one observation: what exact Shapley has to beat, each on the same claim of the same
answer.

It exists so that no baseline is left out by accident: ablation surrogates from the same table, gradients,
attention, captum's own code, and the trivial ones that need no model.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ragblame.attribution.alignment import align_chunks
from ragblame.attribution.evaluation.ablation_baselines import ablation_baselines
from ragblame.attribution.evaluation.model_baselines import (
    ModelScores,
    attention_baselines,
    captum_feature_ablation,
    captum_input_x_gradient,
    captum_integrated_gradients,
    gradient_baselines,
)
from ragblame.attribution.evaluation.observations import Observation
from ragblame.attribution.evaluation.text_baselines import text_baselines
from ragblame.attribution.layout import Layout, build_layout
from ragblame.attribution.scorer import TransformersScorer
from ragblame.records import Explanation, Span

CAPTUM_STEPS = 20  # of its integrated gradients; its default of 50 takes 17 s an item
KERNEL_BUDGET = 64  # coalitions, as many as ContextCite's ablations


def contenders(
    scorer: TransformersScorer,
    explanation: Explanation,
    observation: Observation,
    spans: Sequence[Span],
    *,
    seed: int,
    with_models: bool,
    is_slow: bool,
) -> dict[str, NDArray[np.float64]]:
    """Scores of every method by chunk position, higher: the claim needs the chunk more; by the method's name.

    ``with_models``: gradients and attention too, which ask the model again. ``is_slow``: captum's own methods
    beside them, which run a forward per answer token and more.
    """
    number = seed + observation.item.number
    found = {
        one.name: one.scores
        for one in ablation_baselines(
            observation.values, tokens=observation.tokens, kernel_budget=KERNEL_BUDGET, seed=number
        )
    }
    if with_models:
        found |= {one.name: one.scores.sum(axis=0) for one in _measured(scorer, explanation, spans, is_slow)}
    item, behaviour = observation.item, observation.behaviour
    found |= text_baselines(
        question=item.question.text,
        chunks=[chunk.text for chunk in item.chunks],
        answer=behaviour.answer,
        value=behaviour.value,
        seed=number,
    )
    return found


def _measured(
    scorer: TransformersScorer, explanation: Explanation, spans: Sequence[Span], is_slow: bool
) -> list[ModelScores]:
    trace = explanation.trace
    layout = build_layout(trace, align_chunks(trace.chunks, trace.prompt), scorer.tokenizer)
    measured = [*gradient_baselines(scorer, layout, spans), *attention_baselines(scorer, layout, spans)]
    return [*measured, *_captum(scorer, layout, spans)] if is_slow else measured


def _captum(scorer: TransformersScorer, layout: Layout, spans: Sequence[Span]) -> list[ModelScores]:
    return [
        captum_input_x_gradient(scorer, layout, spans),
        captum_integrated_gradients(scorer, layout, spans, steps=CAPTUM_STEPS),
        captum_feature_ablation(scorer, layout, spans),
    ]
