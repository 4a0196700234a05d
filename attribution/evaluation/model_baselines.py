"""What a look inside the model says about chunks: gradients and attention of ours, and captum's own classes.

They exist as the cheap methods that a chain might use instead of removing chunks, and as the peer as its
users call it. Captum's perturbations delete exactly what ours delete, or refuse; they cost a forward for each
evaluation, and its gradients a forward and a backward for each answer token, so give them a subset.

Every function returns scores of shape [span, chunk position]; chunks that are not in the prompt get 0.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ragblame.attribution.layout import Layout, Tokens
from ragblame.attribution.methods.attention import capture
from ragblame.attribution.methods.coalitions import all_masks
from ragblame.attribution.methods.heat import HeatResult, chunk_weights
from ragblame.attribution.methods.rollout import rollout
from ragblame.attribution.methods.saliency import saliency
from ragblame.attribution.scorer import TransformersScorer, spent_since
from ragblame.errors import InputError
from ragblame.records import Cost, Method, Span

if TYPE_CHECKING:
    from captum.attr import TextTemplateInput

CAPTUM_STEPS = 50  # captum's own default of integrated gradients
CAPTUM_BATCH = 10  # steps of one forward; its default puts all of them into one
CAPTUM_SAMPLES = 25  # captum's own default of sampled Shapley values: so many permutations
CHECKED_PLAYERS = 12  # every coalition's prompt is compared with captum's up to here

IntegratedFrom = Literal["token 0", "line breaks"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelScores:
    """One method's scores of all spans of one answer."""

    name: str
    scores: NDArray[np.float64]  # [span, chunk position]; higher: the span needs the chunk more
    cost: Cost  # of all spans together


def gradient_baselines(
    scorer: TransformersScorer, layout: Layout, spans: Sequence[Span]
) -> tuple[ModelScores, ...]:
    """Gradient norm (sum and mean per token) and input x gradient from one forward, a backward per span.

    Sums of norms grow with a chunk's length, so the mean per token stands beside them. Raises what
    ``saliency`` raises.
    """
    result = saliency(scorer, layout, spans, Method.GRADIENT_NORM, Method.INPUT_X_GRADIENT)
    by_method = _by_method(result, layout, (Method.GRADIENT_NORM, Method.INPUT_X_GRADIENT))
    tokens = chunk_weights(layout, layout.prompt_tokens()).sum(axis=1)
    lengths = np.array(layout.by_position(np.maximum(tokens, 1.0).tolist()))
    norm = by_method[0]
    per_token = ModelScores(
        name="gradient norm per token",
        scores=np.divide(norm.scores, lengths, out=np.zeros_like(norm.scores), where=lengths > 0),
        cost=norm.cost,
    )
    return norm, per_token, by_method[1]


def attention_baselines(
    scorer: TransformersScorer, layout: Layout, spans: Sequence[Span]
) -> tuple[ModelScores, ...]:
    """Mean attention, rollout and corrected rollout. Raises ``UnsupportedArchitectureError`` as they do."""
    methods = (Method.ROLLOUT, Method.ROLLOUT_CORRECTED)
    rolled = _by_method(rollout(scorer, layout, spans, *methods), layout, methods)
    return mean_attention(scorer, layout, spans), *rolled


@torch.inference_mode()
def mean_attention(scorer: TransformersScorer, layout: Layout, spans: Sequence[Span]) -> ModelScores:
    """Attention from the rows that predict a span to each chunk's tokens, mean over rows, layers and heads.

    Scores are in [0, 1] and sum to at most 1 over the chunks: the average-attention baseline of ContextCite
    (arXiv 2409.00729). Raises ``UnsupportedArchitectureError``, ``ContextLengthError``.
    """
    before, started = scorer.cost, time.perf_counter()
    tokens = layout.prompt_tokens()
    scorer.check_length(len(tokens.ids), len(layout.answer_ids))
    ids = tokens.ids + layout.answer_ids
    start, end = len(tokens.ids) - 1, len(ids) - 1  # row t predicts token t + 1
    looked = torch.zeros(end - start, len(ids))
    layers = capture(scorer, ids, "mean attention")
    for layer in layers:
        rows, first = layer.rows(start, end)
        looked[:, first : first + rows.shape[1]] += rows.cpu() / len(layers)
    scorer.spend(forwards=1, tokens=len(ids), seconds=time.perf_counter() - started)
    by_chunk = looked[:, : len(tokens.ids)].double().numpy() @ chunk_weights(layout, tokens).T
    return ModelScores(
        name="mean attention",
        scores=_over_spans(layout, by_chunk, spans, is_mean=True),
        cost=spent_since(scorer, before),
    )


def captum_input_x_gradient(scorer: TransformersScorer, layout: Layout, spans: Sequence[Span]) -> ModelScores:
    """``LLMGradientAttribution`` over ``LayerGradientXActivation`` at the token embedding, summed by chunk.

    A forward and a backward per answer token. Raises ``InputError`` when captum would tokenise the prompt
    differently, ``ContextLengthError``.
    """
    from captum.attr import LayerGradientXActivation

    return _captum_gradients(scorer, layout, spans, LayerGradientXActivation, "captum input x gradient")


def captum_integrated_gradients(
    scorer: TransformersScorer,
    layout: Layout,
    spans: Sequence[Span],
    *,
    steps: int = CAPTUM_STEPS,
    integrated_from: IntegratedFrom = "token 0",
) -> ModelScores:
    """``LLMGradientAttribution`` over ``LayerIntegratedGradients`` at the token embedding, summed by chunk.

    "token 0": the whole prompt starts as token 0, captum's default. "line breaks": only the chunks' tokens
    start elsewhere, at the last token of a line break, which is the path of our integrated gradients.
    ``steps`` forwards and backwards per answer token, some at a time. Raises as ``captum_input_x_gradient``.
    """
    from captum.attr import LayerIntegratedGradients

    options: dict[str, Any] = {"n_steps": steps, "internal_batch_size": CAPTUM_BATCH}
    neutral = 0
    if integrated_from == "line breaks":
        neutral = list(scorer.tokenizer("\n", add_special_tokens=False)["input_ids"])[-1]
        is_chunk = chunk_weights(layout, layout.prompt_tokens()).sum(axis=0) > 0
        # Captum's input is a row of ones, one for each token that is itself; 0 stands for the neutral token.
        options["baselines"] = torch.from_numpy(~is_chunk).long()[None].to(scorer.model.device)
    name = f"captum integrated gradients from {integrated_from}"
    return _captum_gradients(
        scorer, layout, spans, LayerIntegratedGradients, name, neutral=neutral, **options
    )


def captum_feature_ablation(scorer: TransformersScorer, layout: Layout, spans: Sequence[Span]) -> ModelScores:
    """``LLMAttribution`` over ``FeatureAblation``, a feature a chunk, deleted: leave one out, n + 1 forwards.

    Raises ``InputError`` where captum's template cannot delete what ours deletes, ``ContextLengthError``.
    """
    from captum.attr import FeatureAblation

    return _captum_perturbation(scorer, layout, spans, FeatureAblation, "captum FeatureAblation")


def captum_shapley_sampling(
    scorer: TransformersScorer,
    layout: Layout,
    spans: Sequence[Span],
    *,
    samples: int = CAPTUM_SAMPLES,
    seed: int,
) -> ModelScores:
    """``LLMAttribution`` over ``ShapleyValueSampling``, a feature a chunk: ``samples`` orders of n forwards.

    Raises as ``captum_feature_ablation``.
    """
    from captum.attr import ShapleyValueSampling

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the orders are torch.randperm's
        name = f"captum ShapleyValueSampling {samples}"
        return _captum_perturbation(scorer, layout, spans, ShapleyValueSampling, name, n_samples=samples)


def deletion_template(layout: Layout) -> tuple[str, list[str]]:
    """The prompt as a format string with one value per player, so that an empty value deletes the chunk.

    Raises ``InputError`` when no such template gives the prompt of every coalition: removal that also mends
    separators or shared text is not deletion of one piece per chunk.
    """
    full = layout.prompt_text(layout.full_mask)
    template, values, end = "", [], 0
    for player, region in enumerate(layout.regions):
        without = layout.prompt_text(layout.full_mask & ~(1 << player))
        length = len(full) - len(without)
        starts = range(
            max(end, region.start - length), region.start + 1
        )  # separators go along on either side
        found = [at for at in starts if full[:at] + full[at + length :] == without]
        if not found or not length:
            raise _not_a_deletion(region.position)
        template += _literal(full[end : found[0]]) + "{}"
        values.append(full[found[0] : found[0] + length])
        end = found[0] + length
    template += _literal(full[end:])
    n = len(values)
    for mask in all_masks(n) if n <= CHECKED_PLAYERS else (0, *(1 << player for player in range(n))):
        kept = [value if mask >> player & 1 else "" for player, value in enumerate(values)]
        if template.format(*kept) != layout.prompt_text(mask):
            raise _not_a_deletion(*(region.position for region in layout.regions))
    return template, values


def _captum_gradients(
    scorer: TransformersScorer,
    layout: Layout,
    spans: Sequence[Span],
    kind: Any,
    name: str,
    *,
    neutral: int = 0,
    **options: Any,
) -> ModelScores:
    from captum.attr import LLMGradientAttribution, TextTokenInput

    tokens = _same_tokens(scorer, layout)
    embedding = scorer.model.get_input_embeddings()
    with _counted(scorer, is_scoring=False) as cost:
        inputs = TextTokenInput(layout.prompt, scorer.tokenizer, baselines=neutral)
        attribution = LLMGradientAttribution(kind(scorer.model, embedding), scorer.tokenizer)
        embedding.weight.requires_grad_(True)  # the scorer froze it; without a graph captum has no gradient
        try:
            with torch.enable_grad():
                result = attribution.attribute(
                    inputs, target=torch.tensor(layout.answer_ids, device=scorer.model.device), **options
                )
        finally:
            embedding.weight.requires_grad_(False)
    by_chunk = _rows(result.token_attr) @ chunk_weights(layout, tokens).T
    return ModelScores(name=name, scores=_over_spans(layout, by_chunk, spans), cost=cost[0])


def _captum_perturbation(
    scorer: TransformersScorer, layout: Layout, spans: Sequence[Span], kind: Any, name: str, **options: Any
) -> ModelScores:
    from captum.attr import LLMAttribution

    _same_tokens(scorer, layout)
    inputs = _template_input(layout)
    if inputs is None:
        return ModelScores(name=name, scores=np.zeros((len(spans), len(layout.chunks))), cost=Cost())
    with _counted(scorer, is_scoring=True) as cost, torch.no_grad():
        attribution = LLMAttribution(kind(scorer.model), scorer.tokenizer)
        # Token by token, captum's default, feeds the whole prompt on top of its cache under transformers 5
        # and gives other numbers than teacher forcing.
        result = attribution.attribute(
            inputs,
            target=torch.tensor(layout.answer_ids, device=scorer.model.device),
            forward_in_tokens=False,
            use_cached_outputs=False,
            **options,
        )
    return ModelScores(name=name, scores=_over_spans(layout, _rows(result.token_attr), spans), cost=cost[0])


def _template_input(layout: Layout) -> "TextTemplateInput | None":
    """Captum's input with a chunk for each feature; None without chunks, where captum has nothing to ask."""
    from captum.attr import TextTemplateInput

    if not layout.players:
        return None
    template, values = deletion_template(layout)
    return TextTemplateInput(template=template, values=values, baselines=[""] * len(values))


def _same_tokens(scorer: TransformersScorer, layout: Layout) -> Tokens:
    """The prompt's tokens, checked to be those captum's own encoding of the prompt gives."""
    tokens = layout.prompt_tokens()
    scorer.check_length(len(tokens.ids), len(layout.answer_ids))
    theirs = scorer.tokenizer.encode(layout.prompt)
    if tuple(theirs) != tokens.ids:
        raise InputError(
            "captum encodes this prompt into other tokens (special tokens at its ends?), so its scores would "
            "be about another prompt; leave captum's methods out for this tokenizer"
        )
    return tokens


def _over_spans(
    layout: Layout, by_token: NDArray[np.float64], spans: Sequence[Span], *, is_mean: bool = False
) -> NDArray[np.float64]:
    """Sums (or means) over each span's answer tokens: [answer token, player] to [span, chunk position]."""
    scores = np.zeros((len(spans), len(layout.chunks)))
    for number, span in enumerate(spans):
        rows = by_token[list(layout.span_tokens(span))]
        total = rows.sum(axis=0) / (max(len(rows), 1) if is_mean else 1)
        scores[number] = layout.by_position(total.tolist())
    return scores


def _by_method(result: HeatResult, layout: Layout, methods: Sequence[Method]) -> tuple[ModelScores, ...]:
    """Our own attributions, which come span by span, as one array per method."""
    found = []
    for method in methods:
        own = [attribution for attribution in result.attributions if attribution.method is method]
        shares = np.array([attribution.shares for attribution in own], dtype=np.float64)
        scores = shares.reshape(len(own), len(layout.chunks))
        found.append(ModelScores(name=method.value, scores=scores, cost=own[0].cost if own else Cost()))
    return tuple(found)


def _rows(values: Tensor) -> NDArray[np.float64]:
    """Captum's scores per answer token as an array, shape [answer token, feature]."""
    rows: NDArray[np.float64] = values.detach().double().cpu().numpy()
    return rows


@contextmanager
def _counted(scorer: TransformersScorer, *, is_scoring: bool) -> Iterator[list[Cost]]:
    """Count what foreign code runs; the one cost is there, and spent by the scorer, after the block.

    Embedding and head are watched, because captum calls ``model.forward`` itself, past the model's own hooks.
    ``is_scoring``: each forward scores a coalition.
    """
    forwards = tokens = backwards = 0

    def entered(_: nn.Module, arguments: tuple[Tensor, ...], __: Tensor) -> None:
        nonlocal forwards, tokens
        forwards += 1
        tokens += arguments[0].numel()

    def left(_: nn.Module, __: tuple[Tensor, ...], logits: Tensor) -> None:
        if logits.requires_grad:
            register: Callable[..., object] = logits.register_hook
            register(passed_back)

    def passed_back(_: Tensor) -> None:
        nonlocal backwards
        backwards += 1

    cost: list[Cost] = []
    started = time.perf_counter()
    get_head: Callable[[], nn.Module] = scorer.model.get_output_embeddings
    handles = [
        scorer.model.get_input_embeddings().register_forward_hook(entered),
        get_head().register_forward_hook(left),
    ]
    try:
        yield cost
    finally:
        for handle in handles:
            handle.remove()
    spent = Cost(
        scored_coalitions=forwards if is_scoring else 0,
        forwards=forwards,
        backwards=backwards,
        tokens=tokens,
        seconds=time.perf_counter() - started,
    )
    cost.append(spent)
    scorer.spend(
        scored_coalitions=spent.scored_coalitions,
        forwards=forwards,
        backwards=backwards,
        tokens=tokens,
        seconds=spent.seconds,
    )


def _literal(text: str) -> str:
    """The text inside a format string."""
    return text.replace("{", "{{").replace("}", "}}")


def _not_a_deletion(*positions: int) -> InputError:
    named = ", ".join(str(position + 1) for position in positions)
    return InputError(
        f"removing chunk {named} from this prompt is more than deleting one piece of text, which is all "
        "captum's template can do; leave captum's ablations out for this prompt"
    )
