"""Explanations as ``shap.Explanation`` and captum's ``LLMAttributionResult``, drawn by their own plots.

The numbers are handed over as they are: what shap calls an instance and captum an output token is a span of
the answer, what both call a feature is a chunk. Both libraries are loaded on use only; shap alone takes
seconds.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ragblame.errors import InputError, MissingExtraError
from ragblame.records import Attribution, Chunk, Explanation, Method, Span

if TYPE_CHECKING:
    from ragblame.attribution.layout import Layout
    from ragblame.attribution.scorer import Scorer

SHOWN = 40  # code points of a chunk's or span's text that a plot shows

_GRADIENTS = (Method.GRADIENT_NORM, Method.INPUT_X_GRADIENT, Method.INTEGRATED_GRADIENTS)
_ROLLOUTS = (Method.ROLLOUT, Method.ROLLOUT_CORRECTED)


def to_shap(explanation: Explanation, method: Method = Method.SHAPLEY) -> Any:
    """One method's shares as a ``shap.Explanation``: ``values`` [span, chunk] in the method's unit.

    ``base_values`` [span]: v(none) in nats where the method measures it, so that for Shapley base and shares
    add up to v(all); 0 for methods whose shares explain no total. ``data``: the chunks' texts (shortened in
    ``display_data``, which plots show); ``feature_names``: "chunk 1" and so on, with the source's identity;
    ``instance_names``: the spans' texts, numbered. (``shap.plots.heatmap`` clusters its instances and so
    needs two spans, or an ``instance_order``.)

    Raises ``InputError`` when the method was not computed or there are no chunks, ``MissingExtraError`` when
    shap is not installed.
    """
    try:
        import shap
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"shap.Explanation needs {error.name}: pip install 'ragblame[attribution]'"
        ) from error

    spans, found = _of_method(explanation, method)
    chunks = explanation.trace.chunks
    texts = np.array([chunk.text for chunk in chunks], dtype=object)
    shown = np.array([_short(chunk.text) for chunk in chunks], dtype=object)
    return shap.Explanation(
        values=np.array([a.shares for a in found], np.float64),
        base_values=np.array([0.0 if a.v_none is None else a.v_none for a in found]),
        data=np.tile(texts, (len(found), 1)),
        display_data=np.tile(shown, (len(found), 1)),
        feature_names=[_name(chunk) for chunk in chunks],
        instance_names=[
            f"{span.index + 1}: {_short(explanation.trace.answer[span.start : span.end])}" for span in spans
        ],
    )


def to_captum(explanation: Explanation, method: Method = Method.SHAPLEY) -> Any:
    """One method's shares as captum's ``LLMAttributionResult``, its spans in the place of output tokens.

    ``token_attr`` [span, chunk] in the method's unit, ``seq_attr`` [chunk] its sum over the spans,
    ``output_probs`` [span] the probability of the span's tokens with all chunks, None for methods that do not
    measure it. Names are labels for plots: a dollar sign in them is escaped, or two of them would be drawn as
    mathematics. Raises like ``to_shap``.
    """
    spans, found = _of_method(explanation, method)
    return _captum_result(explanation.trace.chunks, explanation.trace.answer, spans, found)


def attribute(
    scorer: "Scorer", layout: "Layout", spans: Sequence[Span], method: Method = Method.SHAPLEY
) -> Any:
    """Attribute in captum's style: run one method over the chunks now, as an ``LLMAttributionResult``.

    See ``to_captum`` for its fields. Gradient and attention methods need a local model. Raises ``InputError``
    for a scorer without one, for no spans or no chunks, and whatever the method raises.
    """
    return _captum_result(layout.chunks, layout.answer, spans, _run(scorer, layout, spans, method))


def _run(scorer: "Scorer", layout: "Layout", spans: Sequence[Span], method: Method) -> Sequence[Attribution]:
    if method is Method.SHAPLEY:
        from ragblame.attribution.methods.shapley import shapley

        return shapley(scorer, layout, spans).attributions
    if method is Method.LIME:
        from ragblame.attribution.methods.lime import lime

        return lime(scorer, layout, spans).attributions
    from ragblame.attribution.methods.rollout import rollout
    from ragblame.attribution.methods.saliency import saliency
    from ragblame.attribution.scorer import TransformersScorer

    if method not in (*_GRADIENTS, *_ROLLOUTS):
        raise InputError(f"{method.value} does not attribute spans to chunks; ask the method of that name")
    if not isinstance(scorer, TransformersScorer):
        raise InputError(
            f"{method.value} looks into the model, and scorer {scorer.ref.name} has no local one; "
            f"use {Method.SHAPLEY.value} or {Method.LIME.value}"
        )
    by_model = saliency if method in _GRADIENTS else rollout
    return by_model(scorer, layout, spans, method).attributions


def _of_method(explanation: Explanation, method: Method) -> tuple[list[Span], list[Attribution]]:
    """The spans that a method was computed for, in order, with its numbers."""
    by_span = {a.span: a for a in explanation.attributions if a.method is method}
    spans = [span for span in explanation.spans if span.index in by_span]
    if not spans or not explanation.trace.chunks:
        computed = sorted({a.method.value for a in explanation.attributions})
        raise InputError(
            f"{method.value} has no shares of chunks in this explanation (it has: "
            f"{', '.join(computed) or 'none'}); ask for one it has, or see its notes for why not"
        )
    return spans, [by_span[span.index] for span in spans]


def _captum_result(
    chunks: Sequence[Chunk], answer: str, spans: Sequence[Span], found: Sequence[Attribution]
) -> Any:
    try:
        import torch
        from captum.attr import LLMAttributionResult
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"captum's result needs {error.name}: pip install 'ragblame[attribution]'"
        ) from error

    if not found or not chunks:
        raise InputError("there is nothing to draw: name at least one span, and an answer with chunks")
    shares = torch.tensor([a.shares for a in found], dtype=torch.float64)
    known = [a.v_all for a in found if a.v_all is not None]
    return LLMAttributionResult(
        input_tokens=[_name(chunk) for chunk in chunks],
        output_tokens=[_undrawn(answer[span.start : span.end]) for span in spans],
        seq_attr=shares.sum(dim=0),
        token_attr=shares,
        output_probs=torch.tensor(known, dtype=torch.float64).exp() if len(known) == len(found) else None,
    )


def _name(chunk: Chunk) -> str:
    """A chunk as the screens call it, with the identity of its row."""
    return f"chunk {chunk.position + 1}" + (f" ({_short(chunk.source_id)})" if chunk.source_id else "")


def _short(text: str) -> str:
    """One line for a plot."""
    line = " ".join(text.split())
    return _undrawn(line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…")


def _undrawn(text: str) -> str:
    """What matplotlib would take for mathematics, as text."""
    return text.replace("$", r"\$")
