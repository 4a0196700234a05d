"""Rollout of the answer's rows equals the textbook product of eager attention maps; of single layers too."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ragblame.attribution.layout import Layout, build_layout
from ragblame.attribution.methods import rollout as rollout_module
from ragblame.attribution.methods.attention import IMPLEMENTATION, capture
from ragblame.attribution.methods.heat import chunk_weights
from ragblame.attribution.methods.probing import probe
from ragblame.attribution.methods.rollout import rollout, walk
from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import InputError, UnsupportedArchitectureError
from ragblame.records import Method
from tests.tiny_models import FAMILIES, tiny_model, tiny_tokenizer
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


def test_refused_models_are_left_as_they_were() -> None:
    """A refusal names method and model type, and the model runs on its own attention again."""
    model = tiny_model("mamba", attention=None)
    scorer = TransformersScorer(model, tiny_tokenizer())
    layout = build_layout(tiny_trace(), [], scorer.tokenizer)
    previous = model.config._attn_implementation
    with pytest.raises(UnsupportedArchitectureError, match="rollout cannot serve model type 'mamba'"):
        rollout(scorer, layout, tiny_spans())
    assert model.config._attn_implementation == previous != IMPLEMENTATION


@pytest.mark.parametrize("window", [None, 16])
def test_content_free_rows_equal_their_closed_form(window: int | None) -> None:
    """The O(T) form of a causal layer gives what its uniform rows give, and windows keep their own."""
    scorer, layout = laid_out("mistral", window)
    ids = layout.prompt_ids(layout.full_mask) + layout.answer_ids
    layers = capture(scorer, ids, "rollout")
    assert layers[0].is_plainly_causal == (window is None)
    product = torch.eye(len(ids))
    for layer in layers:
        rows, first = layer.content_free_rows(0, len(ids))
        assert first == 0
        product = (0.85 * torch.eye(len(ids)) + 0.15 * rows) @ product
    found = walk(layers, torch.eye(len(ids)), 0.85, is_content_free=True)
    torch.testing.assert_close(found, product, atol=1e-6, rtol=0)


def test_chosen_layers_alone_are_walked() -> None:
    """The product runs over the layers asked for, whatever their order, under other settings."""
    scorer, layout = laid_out("llama")
    prompt = layout.prompt_tokens()
    ids = prompt.ids + layout.answer_ids
    product = torch.eye(len(ids))
    for number in (0, 2):
        rows, _ = capture(scorer, ids, "rollout")[number].rows(0, len(ids))
        product = (0.5 * torch.eye(len(ids)) + 0.5 * rows) @ product
    weights = torch.from_numpy(chunk_weights(layout, prompt)).float()
    (span, _) = tiny_spans()
    at = [len(prompt.ids) + index - 1 for index in layout.span_tokens(span)]
    expected = weights @ product[at].mean(dim=0)[: len(prompt.ids)]
    some = rollout(scorer, layout, [span], Method.ROLLOUT, layers=[2, 0]).attributions[0]
    every = rollout(scorer, layout, [span], Method.ROLLOUT).attributions[0]
    np.testing.assert_allclose(some.shares, expected, atol=1e-6)
    assert some.settings_hash != every.settings_hash
    assert (
        rollout(scorer, layout, [span], Method.ROLLOUT, layers=range(3)).attributions[0].shares
        == every.shares
    )


@pytest.mark.parametrize("layers", [[], [3], [-1]])
def test_layers_that_are_not_there_are_refused(layers: list[int]) -> None:
    """The message says which layers there are, for rollout and probing alike."""
    scorer, layout = laid_out("llama")
    for ask in (rollout, probe):
        with pytest.raises(InputError, match="the model has layers 0 to 2"):
            ask(scorer, layout, tiny_spans(), layers=layers)


def test_probe_without_spans_or_in_place_of_chunks() -> None:
    """No spans give nothing; without chunks every head has no share, and still a first token."""
    scorer, layout = laid_out("llama")
    assert probe(scorer, layout, []) == ()
    bare = build_layout(tiny_trace(chunks=()), [], scorer.tokenizer)
    seen = probe(scorer, bare, tiny_spans())[0]
    assert seen.layers == (0, 1, 2)
    assert seen.shares == (((),) * 4,) * 3
    assert all(0 < share < 1 for layer in seen.first_token for share in layer)


def test_other_methods_are_refused() -> None:
    """Asking rollout for Shapley values is the caller's mistake, said so."""
    scorer, layout = laid_out("gpt2")
    with pytest.raises(InputError, match="shapley is not a kind of rollout"):
        rollout(scorer, layout, tiny_spans(), Method.SHAPLEY)
