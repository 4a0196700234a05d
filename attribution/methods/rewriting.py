"""What would the model have written in a span's place, had the prompt held another chunk?

It exists because words cannot always tell what a sentence answers: "gives up after 4877 ms" is the timeout,
and no dictionary says so, but the model that writes answers knows. So it is asked: a candidate is put into
the prompt in place of all chunks, or the chunks that support the span are taken out, and the model goes on
greedily from where the span began. An intervention on the input, as in ``counterfactual.py``; what counts is
only whether the words it then writes stand in the candidate.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from ragblame.attribution.layout import Layout
from ragblame.attribution.scorer import TransformersScorer
from ragblame.records import Span

MORE: int = 6  # tokens beyond those of the span: another value may be longer
_EDGES = " \t\n.,;:!?\"'()[]“”"


def with_text(
    scorer: TransformersScorer, layout: Layout, span: Span, texts: Sequence[str]
) -> list[str | None]:
    """For each text: the words in the span's place, were it all that was retrieved.

    None where no chunk stands in the prompt, so that there is no place for one, or where text or span have no
    words. Raises ``ModelError`` as ``scorer.score`` does.
    """
    if not layout.regions:
        return [None] * len(texts)
    return [
        _written(scorer, layout, span, layout.with_text(0, text).prompt_ids(1)) if text.strip() else None
        for text in texts
    ]


def without(scorer: TransformersScorer, layout: Layout, span: Span, positions: Sequence[int]) -> str | None:
    """The words in the span's place, had these chunks not been retrieved. Raises like ``with_text``."""
    mask = layout.full_mask & ~layout.mask_of(positions)
    return _written(scorer, layout, span, layout.prompt_ids(mask))


@torch.inference_mode()
def _written(scorer: TransformersScorer, layout: Layout, span: Span, prompt: Sequence[int]) -> str | None:
    """As many words as the span has, decoded greedily behind what the answer says before it."""
    started = time.perf_counter()
    said = layout.answer[span.start : span.end].split()
    tokens = layout.span_tokens(span)
    if not said or not tokens:
        return None
    ids = [*prompt, *layout.answer_ids[: tokens[0]]]
    most = len(tokens) + MORE
    scorer.check_length(len(ids), most)
    batch = torch.tensor([ids], device=scorer.model.device)
    end = scorer.model.generation_config.eos_token_id
    untyped: Any = GenerationConfig
    greedy = untyped(
        do_sample=False,
        max_new_tokens=most,
        use_cache=True,
        eos_token_id=end,
        pad_token_id=end[0] if isinstance(end, list) else end,
    )
    with scorer.float32_head():
        model: Any = scorer.model
        out = model.generate(batch, attention_mask=torch.ones_like(batch), generation_config=greedy)
    new = out[0, len(ids) :]
    scorer.spend(forwards=len(new), tokens=len(ids) + len(new), seconds=time.perf_counter() - started)
    first = str(scorer.tokenizer.decode(new, skip_special_tokens=True)).split("\n", 1)[0].split()
    return " ".join(first[: len(said)]).strip(_EDGES) or None
