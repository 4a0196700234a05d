"""Rollout of the answer's rows equals the textbook product of eager attention maps, and refuses by name."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BloomConfig, Gemma2Config, PreTrainedModel

from ragblame.attribution.layout import Layout, build_layout
from ragblame.attribution.methods import rollout as rollout_module
from ragblame.attribution.methods.attention import IMPLEMENTATION, capture
from ragblame.attribution.methods.heat import chunk_weights
from ragblame.attribution.methods.rollout import rollout, walk
from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import InputError, UnsupportedArchitectureError
from ragblame.records import Method
from tests.tiny_models import FAMILIES, built, tiny_model, tiny_tokenizer
from tests.tiny_traces import tiny_spans, tiny_trace

CASES = [*((family, None) for family in FAMILIES), ("mistral", 16)]


def textbook(family: str, window: int | None, ids: tuple[int, ...], residual: float) -> Tensor:
    """Product of ``r I + (1 - r) A`` over all layers from eager attention maps, shape [T, T]."""
    model = tiny_model(family, window=window, attention="eager")
    with torch.no_grad():
        maps = model(input_ids=torch.tensor([ids]), output_attentions=True).attentions
    assert len(maps) == model.config.num_hidden_layers
    product = torch.eye(len(ids))
    for attention in maps:
        product = (residual * torch.eye(len(ids)) + (1 - residual) * attention[0].mean(dim=0)) @ product
    return product


def laid_out(family: str, window: int | None = None) -> tuple[TransformersScorer, Layout]:
    """A scorer on fused attention and the standard layout."""
    scorer = TransformersScorer(tiny_model(family, window=window), tiny_tokenizer())
    return scorer, build_layout(tiny_trace(), [], scorer.tokenizer)


@pytest.mark.parametrize(("family", "window"), CASES)
@pytest.mark.parametrize("residual", [0.5, 0.85])
@pytest.mark.parametrize("block", [7, 256])
def test_equals_the_product_of_eager_maps(
    family: str, window: int | None, residual: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows, walked block by block from q and k, within 1e-5 of output_attentions; rows sum to 1."""
    monkeypatch.setattr(rollout_module, "BLOCK", block)
    scorer, layout = laid_out(family, window)
    ids = layout.prompt_ids(layout.full_mask) + layout.answer_ids
    rows = walk(capture(scorer, ids, "rollout"), torch.eye(len(ids)), residual)
    expected = textbook(family, window, ids, residual)
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(len(ids)), atol=1e-5, rtol=0)
    if window is not None:
        assert len(ids) > 2 * window  # the window really cuts


@pytest.mark.parametrize(("family", "window"), CASES)
def test_plain_shares_are_the_mass_in_each_chunk(family: str, window: int | None) -> None:
    """A span's shares are the mean of its predicting rows of the textbook product, summed over a chunk."""
    scorer, layout = laid_out(family, window)
    prompt = layout.prompt_tokens()
    product = textbook(family, window, prompt.ids + layout.answer_ids, 0.5)
    weights = torch.from_numpy(chunk_weights(layout, prompt)).float()
    result = rollout(scorer, layout, tiny_spans(), Method.ROLLOUT)
    for span, attribution in zip(tiny_spans(), result.attributions, strict=True):
        rows = [len(prompt.ids) + index - 1 for index in layout.span_tokens(span)]
        expected = weights @ product[rows].mean(dim=0)[: len(prompt.ids)]
        np.testing.assert_allclose(attribution.shares, expected, atol=1e-5)
        assert attribution.cost.forwards == 1


@pytest.mark.parametrize(("family", "window"), CASES)
def test_corrected_shares_divide_by_the_content_free_product(family: str, window: int | None) -> None:
    """Corrected shares are mass over content-free mass, rescaled to sum to 1."""
    scorer, layout = laid_out(family, window)
    prompt = layout.prompt_tokens()
    ids = prompt.ids + layout.answer_ids
    content = textbook(family, window, ids, 0.85)
    allowed = torch.ones(len(ids), len(ids)).tril()
    if window is not None:
        allowed = allowed.triu(-(window - 1))
    uniform = 0.85 * torch.eye(len(ids)) + 0.15 * allowed / allowed.sum(dim=1, keepdim=True)
    reference = torch.matrix_power(uniform, scorer.model.config.num_hidden_layers)
    weights = torch.from_numpy(chunk_weights(layout, prompt)).float()
    result = rollout(scorer, layout, tiny_spans(), Method.ROLLOUT_CORRECTED)
    for span, attribution in zip(tiny_spans(), result.attributions, strict=True):
        rows = [len(prompt.ids) + index - 1 for index in layout.span_tokens(span)]
        mass = weights @ content[rows].mean(dim=0)[: len(prompt.ids)]
        free = weights @ reference[rows].mean(dim=0)[: len(prompt.ids)]
        ratio = torch.where(free > 0, mass / free, torch.zeros(()))
        np.testing.assert_allclose(attribution.shares, ratio / ratio.sum(), atol=1e-4)
        assert sum(attribution.shares) == pytest.approx(1.0)


def test_heat_sums_to_the_share_and_lies_on_the_chunk() -> None:
    """Each chunk's token heat adds up to its share, at offsets inside its own text."""
    scorer, layout = laid_out("llama")
    result = rollout(scorer, layout, tiny_spans())
    by_key = {(a.span, a.method): a for a in result.attributions}
    assert len(result.heats) == 2 * 2 * 3
    for heat in result.heats:
        assert sum(heat.values) == pytest.approx(by_key[heat.span, heat.method].shares[heat.position])
        text = layout.chunks[heat.position].text
        shown = "".join(text[s:e] for s, e in zip(heat.starts, heat.ends, strict=True))
        assert shown.replace(" ", "") == text.replace(" ", "")


def test_model_is_left_as_it_was() -> None:
    """After a rollout, also a refused one, the model runs on its own attention again."""
    scorer, layout = laid_out("llama")
    before = scorer.score(layout, [7])
    rollout(scorer, layout, tiny_spans())
    assert scorer.model.config._attn_implementation == "sdpa"
    np.testing.assert_array_equal(scorer.score(layout, [7]), before)


def refused(model: PreTrainedModel) -> UnsupportedArchitectureError:
    """The error that rollout raises for a model."""
    scorer = TransformersScorer(model, tiny_tokenizer())
    layout = build_layout(tiny_trace(), [], scorer.tokenizer)
    previous = model.config._attn_implementation
    with pytest.raises(UnsupportedArchitectureError) as caught:
        rollout(scorer, layout, tiny_spans())
    assert model.config._attn_implementation == previous != IMPLEMENTATION
    return caught.value


def test_soft_capped_attention_is_refused_by_name() -> None:
    """Gemma 2 caps its scores: method and model type stand in the message."""
    config = Gemma2Config(
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    error = refused(built(config))
    assert "rollout cannot serve model type 'gemma2'" in str(error)


def test_position_biased_attention_is_refused_by_name() -> None:
    """Bloom adds ALiBi: refused rather than computed without it."""
    config = BloomConfig(vocab_size=1024, hidden_size=32, n_layer=2, n_head=2)
    error = refused(built(config))
    assert "rollout cannot serve model type 'bloom'" in str(error)


def test_other_methods_are_refused() -> None:
    """Asking rollout for Shapley values is the caller's mistake, said so."""
    scorer, layout = laid_out("gpt2")
    with pytest.raises(InputError, match="shapley is not a kind of rollout"):
        rollout(scorer, layout, tiny_spans(), Method.SHAPLEY)
