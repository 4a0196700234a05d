"""Every decoder family: attention equals its eager maps, gradients equal captum's, refusals name both sides.

Random weights, float32. Eager maps are the library's, so a family that caps, biases, normalises or windows
its attention is compared with what it really does.
"""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradientXActivation, LayerIntegratedGradients
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    GptOssConfig,
    MptConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from ragblame.attribution.layout import Layout, build_layout
from ragblame.attribution.methods import attention as attention_module
from ragblame.attribution.methods.attention import IMPLEMENTATION, capture
from ragblame.attribution.methods.heat import chunk_weights
from ragblame.attribution.methods.layer_attention import LayerAttention
from ragblame.attribution.methods.probing import probe
from ragblame.attribution.methods.rollout import rollout, walk
from ragblame.attribution.methods.saliency import saliency
from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import ModelError, UnsupportedArchitectureError
from ragblame.records import Method
from tests.tiny_models import (
    FAMILIES,
    MORE_FAMILIES,
    STATEFUL,
    WINDOWED,
    built,
    halved,
    tiny_model,
    tiny_tokenizer,
)
from tests.tiny_traces import tiny_spans, tiny_trace

WINDOW = 16
DECODERS = [*((family, None) for family in (*FAMILIES, *MORE_FAMILIES)), *((f, WINDOW) for f in WINDOWED)]
CAPPED: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.4,
}


def scored(model: PreTrainedModel) -> tuple[TransformersScorer, Layout]:
    """A scorer on the model and the standard layout."""
    scorer = TransformersScorer(model, tiny_tokenizer())
    return scorer, build_layout(tiny_trace(), [], scorer.tokenizer)


def eager_maps(model: PreTrainedModel, ids: tuple[int, ...]) -> list[Tensor]:
    """The library's own maps, one [head, T, T] a layer, from a model loaded with eager attention."""
    assert model.config._attn_implementation == "eager"
    with torch.no_grad():
        maps = model(input_ids=torch.tensor([ids]), output_attentions=True).attentions
    assert len(maps) == model.config.num_hidden_layers
    return [layer[0] for layer in maps]


def with_alibi_once(model: PreTrainedModel, ids: tuple[int, ...]) -> PreTrainedModel:
    """Falcon with ALiBi, eager: transformers 5.23 adds the bias twice there, in the mask and in the layer.

    The mask is replaced by the bare causal one, and the logits then have to be those of fused attention.
    """
    size = len(ids)
    causal = torch.full((size, size), torch.finfo(torch.float32).min).triu(1)[None, None]

    def replaced(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, named | {"attention_mask": causal}

    for module in model.modules():
        if type(module).__name__ == "FalconAttention":
            module.register_forward_pre_hook(replaced, with_kwargs=True)
    given = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=given).logits,
            tiny_model("falcon alibi")(input_ids=given).logits,
            atol=1e-4,
            rtol=0,
        )
    return model


def maps_of(family: str, window: int | None, ids: tuple[int, ...]) -> list[Tensor]:
    """Eager maps of a tiny family."""
    model = tiny_model(family, window=window, attention="eager")
    return eager_maps(with_alibi_once(model, ids) if family == "falcon alibi" else model, ids)


def dense(layer: LayerAttention, length: int) -> Tensor:
    """All weights of a layer, [head, T, T]."""
    by_head, first = layer.by_head(0, length)
    assert first == 0
    return torch.stack(list(by_head))


@pytest.mark.parametrize(("family", "window"), DECODERS)
def test_rollout_is_the_product_of_eager_attentions(family: str, window: int | None) -> None:
    """All rows and both residuals within 1e-5; every head's own map too; windows really cut."""
    scorer, layout = scored(tiny_model(family, window=window, attention=None))
    ids = layout.prompt_ids(layout.full_mask) + layout.answer_ids
    maps = maps_of(family, window, ids)
    if window is not None:
        assert any(not layer[:, -1, : -2 * window].any() for layer in maps)
    layers = capture(scorer, ids, "rollout")
    for layer, expected in zip(layers, maps, strict=True):
        torch.testing.assert_close(dense(layer, len(ids)), expected, atol=1e-5, rtol=0)
    for residual in (0.5, 0.85):
        product = torch.eye(len(ids))
        for layer_map in maps:
            product = (residual * torch.eye(len(ids)) + (1 - residual) * layer_map.mean(dim=0)) @ product
        found = walk(layers, torch.eye(len(ids)), residual)
        torch.testing.assert_close(found, product, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "window"), DECODERS)
def test_probe_reads_each_head_of_each_layer(family: str, window: int | None) -> None:
    """Shares are the mean of the predicting rows of that head's eager map, summed over each chunk."""
    scorer, layout = scored(tiny_model(family, window=window, attention=None))
    prompt = layout.prompt_tokens()
    maps = maps_of(family, window, prompt.ids + layout.answer_ids)
    weights = torch.from_numpy(chunk_weights(layout, prompt)).float()
    found = probe(scorer, layout, tiny_spans(), layers=[2, 0])
    for span, seen in zip(tiny_spans(), found, strict=True):
        assert (seen.span, seen.layers, seen.cost.forwards) == (span.index, (0, 2), 1)
        rows = [len(prompt.ids) + index - 1 for index in layout.span_tokens(span)]
        for at, number in enumerate(seen.layers):
            looked = maps[number][:, rows].mean(dim=1)
            expected = looked[:, : len(prompt.ids)] @ weights.T
            np.testing.assert_allclose(seen.shares[at], expected, atol=1e-5)
            np.testing.assert_allclose(seen.first_token[at], looked[:, 0], atol=1e-5)


def test_soft_caps_that_bite_are_kept() -> None:
    """A cap of 1 on scores that reach beyond it: maps equal Gemma 2's eager ones and no others."""
    config = Gemma2Config(**CAPPED, attn_logit_softcapping=1.0, sliding_window=WINDOW)
    scorer, layout = scored(built(config))
    ids = layout.prompt_ids(layout.full_mask) + layout.answer_ids
    maps = eager_maps(built(config, attention="eager"), ids)
    layers = capture(scorer, ids, "rollout")
    uncapped = LayerAttention(query=layers[1].query, key=layers[1].key, scaling=layers[1].scaling)
    for layer, expected in zip(layers, maps, strict=True):
        torch.testing.assert_close(dense(layer, len(ids)), expected, atol=1e-5, rtol=0)
    assert float((dense(uncapped, len(ids)) - maps[1]).abs().max()) > 0.05


def test_attention_sinks_are_kept() -> None:
    """gpt-oss: the sink takes part in every softmax, so rows sum to less than 1, as in its eager maps."""
    config = GptOssConfig(
        **CAPPED | {"initializer_range": 0.25},
        num_local_experts=2,
        num_experts_per_tok=1,
        sliding_window=WINDOW,
    )
    models = [built(config, attention="eager") for _ in range(2)]
    for model in models:
        for name, sinks in model.named_parameters():
            if name.endswith("sinks"):
                sinks.data.copy_(torch.linspace(-1, 2, 4) + int(name.split(".")[2]))
    scorer, layout = scored(models[0])
    ids = layout.prompt_ids(layout.full_mask) + layout.answer_ids
    maps = eager_maps(models[1], ids)
    assert float(maps[0].sum(dim=-1).min()) < 0.9
    for layer, expected in zip(capture(scorer, ids, "rollout"), maps, strict=True):
        torch.testing.assert_close(dense(layer, len(ids)), expected, atol=1e-5, rtol=0)
    shares = rollout(scorer, layout, tiny_spans(), Method.ROLLOUT_CORRECTED).attributions[0].shares
    assert sum(shares) == pytest.approx(1.0)


@pytest.mark.parametrize("family", ["bloom", "falcon alibi"])
def test_content_free_reference_keeps_the_position_bias(family: str) -> None:
    """With queries at zero, ALiBi alone decides: the reference is the softmax of the slopes."""
    scorer, layout = scored(tiny_model(family, attention=None))
    ids = layout.prompt_ids(layout.full_mask) + layout.answer_ids
    size = len(ids)
    slopes = 2.0 ** (-8.0 / 4 * torch.arange(1, 5))
    if family == "falcon alibi":
        slopes = slopes / 8**0.5
    scores = slopes[:, None, None] * torch.arange(size).float()
    scores = scores.expand(4, size, size).masked_fill(torch.ones(size, size).triu(1).bool(), -torch.inf)
    layer = capture(scorer, ids, "rollout")[0]
    rows, first = layer.content_free_rows(0, size)
    assert first == 0
    torch.testing.assert_close(
        rows, scores.softmax(dim=-1).mean(dim=0), atol=2e-3, rtol=0
    )  # slopes in bfloat16


@pytest.mark.parametrize("family", ["gemma2", "falcon alibi", "bloom"])
def test_reading_attention_leaves_no_trace(family: str) -> None:
    """The pass is cut short in its last layer; afterwards the model computes what it did before."""
    model = tiny_model(family, attention=None)
    scorer, layout = scored(model)
    ids = torch.tensor([layout.prompt_ids(layout.full_mask) + layout.answer_ids])
    implementation = model.config._attn_implementation
    kept: list[Tensor] = []
    handle = model.base_model.register_forward_hook(lambda *args: kept.append(args[-1][0]))
    with torch.no_grad():
        model(input_ids=ids)
    capture(scorer, tuple(ids[0].tolist()), "rollout")
    with torch.no_grad():
        model(input_ids=ids)
    handle.remove()
    assert len(kept) == 2  # no hidden states of the last layer were computed
    assert torch.equal(kept[1], kept[0])
    assert model.config._attn_implementation == implementation != IMPLEMENTATION


def test_another_thread_still_gets_capped_attention() -> None:
    """Attention is swapped for the whole model; a thread that scores meanwhile gets the family's numbers."""
    model = tiny_model("gemma2", attention=None, window=WINDOW)
    scorer, _ = scored(model)
    ids = torch.arange(10, 60).repeat(2, 1)
    before = model(input_ids=ids).logits
    after: list[Tensor] = []
    with attention_module._capturing(model, scorer.family, "rollout", 3) as layers:
        thread = threading.Thread(target=lambda: after.append(model(input_ids=ids).logits))
        thread.start()
        thread.join()
    assert layers == []
    torch.testing.assert_close(after[0], before, atol=1e-5, rtol=1e-5)


def refusal(ask: Any, scorer: TransformersScorer, layout: Layout) -> str:
    """The message of the refusal."""
    with pytest.raises(UnsupportedArchitectureError) as caught:
        ask(scorer, layout, tiny_spans())
    assert scorer.model.config._attn_implementation != IMPLEMENTATION
    return str(caught.value)


@pytest.mark.parametrize("family", STATEFUL)
def test_state_space_models_are_refused_where_there_is_no_attention(family: str) -> None:
    """Rollout and probing name themselves and the model type; gradients serve the same model."""
    scorer, layout = scored(tiny_model(family, attention=None))
    for ask, name in ((rollout, "rollout"), (probe, "attention probing")):
        message = refusal(ask, scorer, layout)
        assert f"{name} cannot serve model type {scorer.family!r}" in message
        assert "use shapley or a gradient method" in message
    for attribution in saliency(scorer, layout, tiny_spans()).attributions:
        assert all(share != 0.0 for share in attribution.shares)


def test_attention_written_out_by_hand_is_refused() -> None:
    """MPT multiplies queries and keys itself: nothing to read, said so, with both names."""
    config = MptConfig(vocab_size=1024, d_model=32, n_layers=2, n_heads=4, max_seq_len=2048)
    scorer, layout = scored(built(config))
    assert "rollout cannot serve model type 'mpt'" in refusal(rollout, scorer, layout)


def test_encoder_decoders_are_refused_by_the_scorer() -> None:
    """No method can be asked of one: a scorer must be a causal LM."""
    config = T5Config(vocab_size=1024, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ModelError, match="'t5' is an encoder-decoder"):
        TransformersScorer(T5ForConditionalGeneration(config), tiny_tokenizer())


class Oracle:
    """captum's layer methods on a span's log-probability, with the embeddings' gradients switched on."""

    def __init__(self, scorer: TransformersScorer, layout: Layout, number: int) -> None:
        self.model = scorer.model
        self.layout = layout
        self.prompt = layout.prompt_ids(layout.full_mask)
        self.ids = torch.tensor([self.prompt + layout.answer_ids])
        self.tokens = list(layout.span_tokens(tiny_spans()[number]))

    def target(self, ids: Tensor) -> Tensor:
        """The span's log-probability in each row of ids."""
        logits = self.model(input_ids=ids, use_cache=False).logits[:, len(self.prompt) - 1 : -1]
        answer = torch.tensor(self.layout.answer_ids).expand(len(ids), -1)
        chosen: Tensor = logits.log_softmax(dim=-1).gather(2, answer[:, :, None])[:, self.tokens, 0]
        return chosen.sum(dim=1)

    def sums(self, attribute: Any, *, is_norm: bool = False) -> Tensor:
        """Captum's values, reduced over dimensions and summed over each chunk."""
        weight = self.model.get_input_embeddings().weight
        weight.requires_grad_(True)
        values = attribute()
        weight.requires_grad_(False)
        values = values[0] if isinstance(values, tuple) else values
        reduced = (values.norm(dim=-1) if is_norm else values.sum(dim=-1))[0].detach()
        weights = torch.from_numpy(chunk_weights(self.layout, self.layout.prompt_tokens())).to(reduced.dtype)
        sums: Tensor = weights @ reduced[: len(self.prompt)]
        return sums


def first_block(model: PreTrainedModel) -> nn.Module:
    """The block that reads the embedded tokens first."""
    depth = model.config.num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)[0]


@pytest.mark.parametrize(("family", "window"), [*DECODERS, *((family, None) for family in STATEFUL)])
def test_saliency_equals_captum(family: str, window: int | None) -> None:
    """Three gradient methods within 1e-4 of captum's largest value, on decoders and state-space models."""
    scorer, layout = scored(tiny_model(family, window=window, attention=None))
    methods = (Method.GRADIENT_NORM, Method.INPUT_X_GRADIENT, Method.INTEGRATED_GRADIENTS)
    neutral, steps = 9, 3
    result = saliency(scorer, layout, tiny_spans(), *methods, steps=steps, neutral_token=neutral)
    by_key = {(a.span, a.method): a.shares for a in result.attributions}
    oracle = Oracle(scorer, layout, 0)
    embedding = scorer.model.get_input_embeddings()
    behind = scorer.model.base_model.word_embeddings_layernorm if family == "bloom" else embedding
    multiplied = LayerGradientXActivation(oracle.target, behind)
    is_gpt2 = (
        family == "gpt2"
    )  # its blocks take arguments that captum does not: look at what comes before them
    entrance = scorer.model.base_model.drop if is_gpt2 else first_block(scorer.model)
    bare = LayerGradientXActivation(oracle.target, entrance, multiply_by_inputs=False)
    path = LayerIntegratedGradients(oracle.target, embedding)
    baseline = oracle.ids.clone()
    is_chunk = torch.from_numpy(chunk_weights(layout, layout.prompt_tokens()).sum(axis=0) > 0)
    baseline[0, : len(is_chunk)][is_chunk] = neutral
    expected = {
        Method.GRADIENT_NORM: oracle.sums(
            lambda: bare.attribute(oracle.ids, attribute_to_layer_input=not is_gpt2), is_norm=True
        ),
        Method.INPUT_X_GRADIENT: oracle.sums(lambda: multiplied.attribute(oracle.ids)),
        Method.INTEGRATED_GRADIENTS: oracle.sums(
            lambda: path.attribute(oracle.ids, baselines=baseline, n_steps=steps)
        ),
    }
    for method, values in expected.items():
        largest = float(values.abs().max())
        assert largest > 0
        np.testing.assert_allclose(by_key[0, method], values, rtol=1e-4, atol=1e-4 * largest, err_msg=method)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "mixtral"])
def test_bfloat16_models_keep_their_direction(family: str) -> None:
    """A bfloat16 model with its float32 head points where the same rounded weights point in float32."""
    coarse = halved(tiny_model(family, attention=None, spread=0.1))
    exact = tiny_model(family, attention=None, spread=0.1)
    exact.load_state_dict(coarse.state_dict())
    found = []
    for model in (coarse, exact):
        scorer, layout = scored(model)
        methods = (Method.INPUT_X_GRADIENT, Method.GRADIENT_NORM)
        result = saliency(scorer, layout, tiny_spans(), *methods)
        found.append([np.concatenate([h.values for h in result.heats if h.method is m]) for m in methods])
    for half, full in zip(*found, strict=True):
        cosine = float(half @ full / np.linalg.norm(half) / np.linalg.norm(full))
        assert cosine > 0.98
