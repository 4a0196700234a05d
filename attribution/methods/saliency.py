"""Gradient saliency of every span over the prompt's tokens: one forward for all spans, one backward for each.

With f the span's log-probability and e_i the embedding of prompt token i:

* gradient norm: ``|df/dh_i|`` at the tensor that really enters layer 0 (after scaling and position
  embedding): sensitivity, unsigned; its sums grow with a chunk's length;
* input x gradient: ``e_i . df/de_i``, signed, the first-order effect of zeroing a token's embedding. Scaling
  between embedding and layer 0 cancels in it, and position embeddings stay out of it. Where a layer norm
  stands between them (Bloom), zeroing means nothing and the product is 0 but for rounding: there it is taken
  behind the norm, and the settings and a note say so;
* integrated gradients over the chunk tokens only (Sundararajan et al. 2017, arXiv 1703.01365): embeddings of
  chunk tokens move from that of a line break to their own, everything else stays. Shares then sum to
  ``f(prompt) - f(prompt with line breaks for chunks)``; the gap is reported. (From the mean embedding, which
  is short, a normalising first layer turns sharply: on a tiny random Llama 24 nodes missed the total by
  1.5 nats, against 0.03 from a line break.)
* contrastive gradient: input x gradient of ``log p(token) - log p(foil)``, the foil being the top token of
  the pass without chunks (``contrast.py``): why the model said this and not what memory would have said.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ragblame.attribution.layout import Layout, Tokens
from ragblame.attribution.methods.contrast import contrasts, foils
from ragblame.attribution.methods.fingerprint import settings_hash
from ragblame.attribution.methods.heat import HeatResult, chunk_weights, heat_result, joined
from ragblame.attribution.methods.leaves import embeddings, reading_of
from ragblame.attribution.scorer import TransformersScorer, spent_since
from ragblame.errors import InputError
from ragblame.records import Method, Span

STEPS = 24  # Gauss-Legendre nodes of integrated gradients
CONVERGED = 0.05  # a completeness gap above this part of the total is said
SMALLEST_TOTAL = 0.1  # nats: below it the relative gap means nothing

_PLAIN = (Method.GRADIENT_NORM, Method.INPUT_X_GRADIENT)
_OTHER = (Method.INTEGRATED_GRADIENTS, Method.CONTRASTIVE)


def saliency(
    scorer: TransformersScorer,
    layout: Layout,
    spans: Sequence[Span],
    *methods: Method,
    steps: int = STEPS,
    neutral_token: int | None = None,
) -> HeatResult:
    """Gradient norm, input x gradient, integrated and contrastive gradients: those named, or the first two.

    Shares: sum of norms (gradient norm, >= 0) or signed sum (the others, nats) over the chunk's tokens; the
    heat of a chunk sums to its share. ``steps``: nodes of integrated gradients, each one forward and a
    backward per span. ``neutral_token``: integrate from its embedding, None for the line break's.

    Raises ``InputError`` for another method, ``UnsupportedArchitectureError`` naming method and model type,
    ``ModelError`` when prompt and answer do not fit.
    """
    wanted = methods or _PLAIN
    if unknown := [method for method in wanted if method not in (*_PLAIN, *_OTHER)]:
        raise InputError(f"{unknown[0].value} is not a gradient method; ask the method of that name")
    if steps < 1:
        raise InputError(f"integrated gradients need at least 1 step, not {steps}")
    if not spans:
        return HeatResult(attributions=(), heats=())
    tokens = layout.prompt_tokens()
    scorer.check_length(len(tokens.ids), len(layout.answer_ids))
    weights = chunk_weights(layout, tokens)
    results = []
    plain = [method for method in wanted if method in _PLAIN]
    if plain:
        results.append(_plain(scorer, layout, tokens, weights, spans, plain))
    if Method.INTEGRATED_GRADIENTS in wanted:
        results.append(_integrated(scorer, layout, tokens, weights, spans, steps, neutral_token))
    if Method.CONTRASTIVE in wanted:
        results.append(_contrastive(scorer, layout, tokens, weights, spans))
    return joined(results)


def _plain(
    scorer: TransformersScorer,
    layout: Layout,
    tokens: Tokens,
    weights: NDArray[np.float64],
    spans: Sequence[Span],
    methods: Sequence[Method],
) -> HeatResult:
    before, started = scorer.cost, time.perf_counter()
    values = {m: np.zeros((len(spans), len(tokens.ids))) for m in methods}
    with torch.enable_grad(), reading_of(scorer, methods[0]) as reading:
        scores = _span_scores(scorer, layout, tokens, spans, rows=1)[:, 0]
        for number in range(len(spans)):
            if not layout.span_tokens(spans[number]):
                continue
            product, norm = reading.of(scores[number], is_last=number + 1 == len(spans))
            if Method.GRADIENT_NORM in values:
                values[Method.GRADIENT_NORM][number] = _prompt_part(norm, tokens)
            if Method.INPUT_X_GRADIENT in values:
                values[Method.INPUT_X_GRADIENT][number] = _prompt_part(product, tokens)
    length = len(tokens.ids) + len(layout.answer_ids)
    scorer.spend(forwards=1, backwards=len(spans), tokens=length, seconds=time.perf_counter() - started)
    cost = spent_since(scorer, before)
    return joined(
        [
            heat_result(
                layout,
                tokens,
                spans,
                method,
                [weights * row for row in values[method]],
                settings_hash(method, target="sum of log-probabilities", **reading.settings(method)),
                cost,
                notes=reading.notes(method),
            )
            for method in methods
        ]
    )


def _contrastive(
    scorer: TransformersScorer,
    layout: Layout,
    tokens: Tokens,
    weights: NDArray[np.float64],
    spans: Sequence[Span],
) -> HeatResult:
    """Two forwards, without and with chunks, and a backward for each span that differs from its foils."""
    before, started = scorer.cost, time.perf_counter()
    method = Method.CONTRASTIVE
    against = foils(scorer, layout)
    values = np.zeros((len(spans), len(tokens.ids)))
    notes = []
    differing = []
    for number, span in enumerate(spans):
        indices = list(layout.span_tokens(span))
        if indices and not all(against.agrees[index] for index in indices):
            differing.append((number, indices))
        elif indices:
            notes.append(
                f"Without any chunk the model says span {span.index + 1} all the same: there is nothing to "
                f"contrast it with, and its {method.value} is 0."
            )
    ids = torch.tensor([tokens.ids + layout.answer_ids], device=scorer.model.device)
    settings = {"foil": "top token without chunks"}
    if differing:
        with torch.enable_grad(), reading_of(scorer, method) as reading:
            contrast = contrasts(scorer, layout, ids, against.ids)
            for number, indices in differing:
                product, _ = reading.of(contrast[indices].sum(), is_last=number == differing[-1][0])
                values[number] = _prompt_part(product, tokens)
        settings |= reading.settings(method)
        notes.extend(reading.notes(method))
    without = len(layout.prompt_ids(0)) + len(layout.answer_ids)
    scorer.spend(
        forwards=2 if differing else 1,
        backwards=len(differing),
        tokens=without + (ids.shape[1] if differing else 0),
        seconds=time.perf_counter() - started,
    )
    fingerprint = settings_hash(method, **settings)
    by_span = [weights * row for row in values]
    cost = spent_since(scorer, before)
    return heat_result(layout, tokens, spans, method, by_span, fingerprint, cost, notes=tuple(notes))


def _integrated(
    scorer: TransformersScorer,
    layout: Layout,
    tokens: Tokens,
    weights: NDArray[np.float64],
    spans: Sequence[Span],
    steps: int,
    neutral_token: int | None,
) -> HeatResult:
    before, started = scorer.cost, time.perf_counter()
    method = Method.INTEGRATED_GRADIENTS
    device = scorer.model.device
    length = len(tokens.ids) + len(layout.answer_ids)
    moving = torch.zeros(1, length, 1, dtype=torch.bool, device=device)
    moving[0, : len(tokens.ids), 0] = torch.from_numpy(weights.sum(axis=0) > 0)
    start_token = _line_break(scorer) if neutral_token is None else neutral_token
    neutral = _embedding_of(scorer, start_token)

    def between(own: Tensor, at: float) -> Tensor:
        return torch.where(moving, neutral + at * (own - neutral), own)

    with torch.no_grad(), embeddings(scorer, lambda own: torch.cat([own[:1], between(own[:1], 0.0)])):
        ends = _span_scores(scorer, layout, tokens, spans, rows=2).double().cpu().numpy()
    totals = ends[:, 0] - ends[:, 1]
    values = np.zeros((len(spans), len(tokens.ids)))
    nodes, node_weights = np.polynomial.legendre.leggauss(steps)
    for node, weight in zip((nodes + 1) / 2, node_weights / 2, strict=True):
        own: list[Tensor] = []

        def move(embedded: Tensor, at: float = float(node), own: list[Tensor] = own) -> Tensor:
            own.append(embedded.detach())
            return between(embedded.detach(), at).requires_grad_()

        with torch.enable_grad(), embeddings(scorer, move) as leaves:
            scores = _span_scores(scorer, layout, tokens, spans, rows=1)[:, 0]
            path = own[0] - between(own[0], 0.0)
            for number in range(len(spans)):
                if not layout.span_tokens(spans[number]):
                    continue
                (slope,) = torch.autograd.grad(
                    scores[number], [leaves[0]], retain_graph=number + 1 < len(spans)
                )
                values[number] += weight * _prompt_part((path.float() * slope.float()).sum(dim=-1), tokens)
    scorer.spend(
        forwards=steps + 1,
        backwards=steps * len(spans),
        tokens=(steps + 2) * length,
        seconds=time.perf_counter() - started,
    )
    cost = spent_since(scorer, before)
    fingerprint = settings_hash(method, steps=steps, rule="gauss-legendre", neutral=start_token)
    by_span = [weights * row for row in values]
    gaps = [abs(float(heat.sum() - total)) for heat, total in zip(by_span, totals, strict=True)]
    notes = tuple(
        f"Integrated gradients of span {span.index + 1} have not converged: the shares miss the total by "
        f"{gap:.2f} nats; raise the number of steps above {steps}."
        for span, gap, total in zip(spans, gaps, totals, strict=True)
        if gap > CONVERGED * max(abs(float(total)), SMALLEST_TOTAL)
    )
    return heat_result(layout, tokens, spans, method, by_span, fingerprint, cost, gaps=gaps, notes=notes)


def _span_scores(
    scorer: TransformersScorer, layout: Layout, tokens: Tokens, spans: Sequence[Span], *, rows: int
) -> Tensor:
    """Log-probability of each span in ``rows`` copies of the full sequence, nats, shape [span, row]."""
    ids = torch.tensor([tokens.ids + layout.answer_ids] * rows, device=scorer.model.device)
    log_probs = scorer.answer_log_probs(ids, [len(tokens.ids)] * rows, layout.answer_ids)
    return torch.stack([log_probs[:, list(layout.span_tokens(span))].sum(dim=1) for span in spans])


@torch.no_grad()
def _embedding_of(scorer: TransformersScorer, token: int) -> Tensor:
    """One token's embedding as it leaves the embedding module, shape [dim]."""
    embedded: Tensor = scorer.model.get_input_embeddings()(torch.tensor([token], device=scorer.model.device))
    return embedded[0]


def _line_break(scorer: TransformersScorer) -> int:
    """The token of a line break: it stands between chunks and says nothing."""
    ids: list[int] = list(scorer.tokenizer("\n", add_special_tokens=False)["input_ids"])
    if not ids:
        raise InputError("the tokenizer has no line break; name a neutral_token for integrated gradients")
    return ids[-1]


def _prompt_part(values: Tensor, tokens: Tokens) -> NDArray[np.float64]:
    """The prompt's part of one row of token values, shape [prompt token]."""
    return values[0, : len(tokens.ids)].detach().double().cpu().numpy()
