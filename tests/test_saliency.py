"""Gradient saliency equals captum's for every span, adds up where promised, and lands on the right text."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradientXActivation, LayerIntegratedGradients, Saliency
from torch import Tensor
from transformers import Gemma2Config, GraniteConfig

from ragblame.attribution.layout import Layout, build_layout
from ragblame.attribution.methods.heat import chunk_weights
from ragblame.attribution.methods.rollout import rollout
from ragblame.attribution.methods.saliency import saliency
from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import ContextLengthError, InputError
from ragblame.records import Alignment, AlignmentState, Message, Method, Span
from tests.tiny_models import FAMILIES, built, tiny_model, tiny_tokenizer
from tests.tiny_traces import CHUNKS, span_at, tiny_spans, tiny_trace

CASES = [*((family, None) for family in FAMILIES), ("mistral", 16)]


def laid_out(
    family: str, window: int | None = None, spread: float = 0.25
) -> tuple[TransformersScorer, Layout]:
    """A scorer and the standard layout."""
    scorer = TransformersScorer(
        tiny_model(family, window=window, spread=spread, attention=None), tiny_tokenizer()
    )
    return scorer, build_layout(tiny_trace(), [], scorer.tokenizer)


class Target:
    """A span's log-probability as captum wants it: a function of ids or of embeddings, one value a row."""

    def __init__(self, scorer: TransformersScorer, layout: Layout, span: Span) -> None:
        self.model = scorer.model
        self.prompt = layout.prompt_ids(layout.full_mask)
        self.answer = layout.answer_ids
        self.tokens = list(layout.span_tokens(span))
        self.ids = torch.tensor([self.prompt + self.answer])

    def of_ids(self, ids: Tensor) -> Tensor:
        """From token ids [row, T]."""
        return self._of(self.model(input_ids=ids, use_cache=False).logits)

    def of_embeddings(self, embedded: Tensor) -> Tensor:
        """From embeddings [row, T, dim]."""
        return self._of(self.model(inputs_embeds=embedded, use_cache=False).logits)

    def _of(self, logits: Tensor) -> Tensor:
        rows = torch.log_softmax(logits[:, len(self.prompt) - 1 : -1], dim=-1)
        return rows[:, torch.arange(len(self.answer)), list(self.answer)][:, self.tokens].sum(dim=1)


def close(ours: object, theirs: Tensor) -> None:
    """Agreement within 1e-4 of the largest value."""
    expected = theirs.detach().numpy()
    np.testing.assert_allclose(np.asarray(ours), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def shares_and_heat(layout: Layout, values: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Per-token values of the full sequence as chunk sums and per-chunk rows."""
    weights = torch.from_numpy(chunk_weights(layout, layout.prompt_tokens())).to(values.dtype)
    prompt = values[: weights.shape[1]]
    return weights @ prompt, [prompt[row > 0] for row in weights]


@pytest.mark.parametrize(("family", "window"), CASES)
def test_input_x_gradient_equals_captum(family: str, window: int | None) -> None:
    """LayerGradientXActivation at the embedding layer, summed over dimensions."""
    scorer, layout = laid_out(family, window)
    result = saliency(scorer, layout, tiny_spans(), Method.INPUT_X_GRADIENT)
    for number, span in enumerate(tiny_spans()):
        target = Target(scorer, layout, span)
        oracle = LayerGradientXActivation(target.of_ids, scorer.model.get_input_embeddings())
        with torch.enable_grad():
            scorer.model.get_input_embeddings().weight.requires_grad_(True)
            values = oracle.attribute(target.ids).sum(dim=-1)[0]
            scorer.model.get_input_embeddings().weight.requires_grad_(False)
        sums, rows = shares_and_heat(layout, values)
        close(result.attributions[number].shares, sums)
        heats = [heat.values for heat in result.heats[3 * number : 3 * number + 3]]
        assert [len(heat) for heat in heats] == [len(row) for row in rows]
        close(np.concatenate(heats), torch.cat(rows))


@pytest.mark.parametrize(("family", "window"), CASES)
def test_gradient_norm_equals_captum(family: str, window: int | None) -> None:
    """Norm of captum's Saliency at the embeddings, which these families pass on unscaled."""
    scorer, layout = laid_out(family, window)
    result = saliency(scorer, layout, tiny_spans(), Method.GRADIENT_NORM)
    for number, span in enumerate(tiny_spans()):
        target = Target(scorer, layout, span)
        embedded = scorer.model.get_input_embeddings()(target.ids).detach().requires_grad_()
        values = Saliency(target.of_embeddings).attribute(embedded, abs=False).norm(dim=-1)[0]
        sums, _ = shares_and_heat(layout, values)
        close(result.attributions[number].shares, sums)


@pytest.mark.parametrize(("family", "window"), CASES)
def test_integrated_gradients_equal_captum(family: str, window: int | None) -> None:
    """LayerIntegratedGradients with the chunk tokens' ids replaced by the same neutral token as baseline."""
    scorer, layout = laid_out(family, window)
    neutral, steps = 9, 12
    result = saliency(
        scorer, layout, tiny_spans(), Method.INTEGRATED_GRADIENTS, steps=steps, neutral_token=neutral
    )
    is_chunk = chunk_weights(layout, layout.prompt_tokens()).sum(axis=0) > 0
    for number, span in enumerate(tiny_spans()):
        target = Target(scorer, layout, span)
        baseline = target.ids.clone()
        baseline[0, : len(is_chunk)][torch.from_numpy(is_chunk)] = neutral
        oracle = LayerIntegratedGradients(target.of_ids, scorer.model.get_input_embeddings())
        scorer.model.get_input_embeddings().weight.requires_grad_(True)
        values, delta = oracle.attribute(
            target.ids, baselines=baseline, n_steps=steps, return_convergence_delta=True
        )
        scorer.model.get_input_embeddings().weight.requires_grad_(False)
        sums, _ = shares_and_heat(layout, values.sum(dim=-1)[0])
        close(result.attributions[number].shares, sums)
        gap = result.attributions[number].completeness_gap
        assert gap == pytest.approx(abs(float(delta)), abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_integrated_gradients_add_up_when_converged(family: str) -> None:
    """With enough nodes the shares sum to the effect of the chunk texts, and no note is needed."""
    scorer, layout = laid_out(family, spread=0.05)
    result = saliency(scorer, layout, tiny_spans(), Method.INTEGRATED_GRADIENTS)
    ids = torch.tensor([layout.prompt_ids(layout.full_mask) + layout.answer_ids])
    neutral = ids.clone()
    is_chunk = torch.from_numpy(chunk_weights(layout, layout.prompt_tokens()).sum(axis=0) > 0)
    neutral[0, : len(is_chunk)][is_chunk] = scorer.tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    for number, span in enumerate(tiny_spans()):
        target = Target(scorer, layout, span)
        with torch.no_grad():
            total = float(target.of_ids(ids) - target.of_ids(neutral))
        assert sum(result.attributions[number].shares) == pytest.approx(total, abs=1e-4)
    assert result.notes == ()


def test_too_few_steps_are_said() -> None:
    """When the shares miss the total by more than a twentieth, a note says so."""
    scorer, layout = laid_out("llama")
    result = saliency(scorer, layout, tiny_spans(), Method.INTEGRATED_GRADIENTS, steps=1)
    assert any("not converged" in note for note in result.notes)
    with pytest.raises(InputError, match="at least 1 step"):
        saliency(scorer, layout, tiny_spans(), Method.INTEGRATED_GRADIENTS, steps=0)


def memory_tokens(scorer: TransformersScorer, layout: Layout) -> Tensor:
    """What the model says at each answer token without chunks, shape [answer token]."""
    prompt = layout.prompt_ids(0)
    with torch.no_grad():
        logits = scorer.model(input_ids=torch.tensor([prompt + layout.answer_ids])).logits
    top: Tensor = logits[0, len(prompt) - 1 : -1].argmax(dim=-1)
    return top


@pytest.mark.parametrize("family", FAMILIES)
def test_contrastive_gradient_equals_captum(family: str) -> None:
    """LayerGradientXActivation of log p(token) - log p(top token of the no-context pass), per span."""
    scorer, layout = laid_out(family)
    foils = memory_tokens(scorer, layout)
    assert (foils != torch.tensor(layout.answer_ids)).any()
    result = saliency(scorer, layout, tiny_spans(), Method.CONTRASTIVE)
    for number, span in enumerate(tiny_spans()):
        target = Target(scorer, layout, span)

        def contrast(ids: Tensor, target: Target = target) -> Tensor:
            rows = target.model(input_ids=ids).logits.log_softmax(dim=-1)[:, len(target.prompt) - 1 : -1]
            at = torch.tensor(target.tokens)
            said = torch.tensor(target.answer)[at]
            found: Tensor = (rows[:, at, said] - rows[:, at, foils[at]]).sum(dim=1)
            return found

        oracle = LayerGradientXActivation(contrast, scorer.model.get_input_embeddings())
        scorer.model.get_input_embeddings().weight.requires_grad_(True)
        values = oracle.attribute(target.ids).sum(dim=-1)[0]
        scorer.model.get_input_embeddings().weight.requires_grad_(False)
        sums, rows = shares_and_heat(layout, values)
        close(result.attributions[number].shares, sums)
        heats = [heat.values for heat in result.heats[3 * number : 3 * number + 3]]
        close(np.concatenate(heats), torch.cat(rows))
        cost = result.attributions[number].cost
        assert (cost.forwards, cost.backwards) == (2, 2)


def test_what_memory_says_too_has_no_contrast() -> None:
    """An answer that the model gives without any chunk: shares are 0, no backward runs, a note says why."""
    scorer, layout = laid_out("llama")
    prompt, said = layout.prompt_ids(0), list[int]()
    for _ in layout.answer_ids:
        with torch.no_grad():
            said.append(int(scorer.model(input_ids=torch.tensor([[*prompt, *said]])).logits[0, -1].argmax()))
    own = replace(layout, answer_ids=tuple(said))
    result = saliency(scorer, own, tiny_spans(), Method.CONTRASTIVE)
    assert all(attribution.shares == (0.0, 0.0, 0.0) for attribution in result.attributions)
    assert [attribution.cost.backwards for attribution in result.attributions] == [0, 0]
    assert len(result.notes) == 2
    assert "Without any chunk the model says span 1 all the same" in result.notes[0]


def test_normalised_embeddings_are_read_behind_the_norm_and_said() -> None:
    """Bloom's first layer norm makes input x gradient 0 at the embedding: it is taken behind, with a note."""
    scorer, layout = laid_out("bloom")
    other, same = laid_out("llama")
    for method in (Method.INPUT_X_GRADIENT, Method.CONTRASTIVE):
        moved = saliency(scorer, layout, tiny_spans(), method)
        usual = saliency(other, same, tiny_spans(), method)
        assert moved.attributions[0].settings_hash != usual.attributions[0].settings_hash
        assert any("'bloom' normalises its embeddings" in note for note in moved.notes)
        assert not any("normalises" in note for note in usual.notes)
    assert saliency(scorer, layout, tiny_spans(), Method.GRADIENT_NORM).notes == ()


@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_scaled_embeddings_do_not_shift_the_numbers(family: str) -> None:
    """Where embeddings are multiplied, input x gradient stays first order and the norm is taken after."""
    shared: dict[str, Any] = {
        "vocab_size": 1024,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config = (
        Gemma2Config(**shared, head_dim=16, initializer_range=0.1)
        if family == "gemma2"
        else GraniteConfig(**shared, embedding_multiplier=12.0, initializer_range=0.1)
    )
    scorer = TransformersScorer(built(config), tiny_tokenizer())
    layout = build_layout(tiny_trace(), [], scorer.tokenizer)
    (span, _) = tiny_spans()
    both = saliency(scorer, layout, [span], Method.GRADIENT_NORM, Method.INPUT_X_GRADIENT)
    target = Target(scorer, layout, span)
    module = scorer.model.get_input_embeddings()
    embedded = module(target.ids).detach().requires_grad_()
    handle = module.register_forward_hook(lambda *_: embedded)
    (slope,) = torch.autograd.grad(target.of_ids(target.ids).sum(), embedded)
    handle.remove()
    by_method = {a.method: a.shares for a in both.attributions}
    sums, _ = shares_and_heat(layout, (embedded * slope).sum(dim=-1)[0])
    close(by_method[Method.INPUT_X_GRADIENT], sums)
    scale = 12.0 if family == "granite" else 1.0  # gemma scales inside its embedding module
    norms, _ = shares_and_heat(layout, slope.norm(dim=-1)[0] / scale)
    close(by_method[Method.GRADIENT_NORM], norms)


def test_one_forward_and_one_backward_a_span() -> None:
    """The cost is what was promised, and both methods come from the same pass."""
    scorer, layout = laid_out("llama")
    calls = []
    scorer.model.register_forward_pre_hook(lambda *_: calls.append(1))
    result = saliency(scorer, layout, tiny_spans())
    assert len(calls) == 1
    assert {a.method for a in result.attributions} == {Method.GRADIENT_NORM, Method.INPUT_X_GRADIENT}
    for attribution in result.attributions:
        assert (attribution.cost.forwards, attribution.cost.backwards) == (1, 2)
        assert (
            all(share >= 0 for share in attribution.shares) or attribution.method is not Method.GRADIENT_NORM
        )


def test_heat_lies_on_the_chunks_own_text_and_sums_to_its_share() -> None:
    """White space that differs between chunk and prompt shifts no heat; a partial chunk keeps its offsets."""
    prompt_text = f"Context:\n{' '.join(CHUNKS[0].split())}\n\n{CHUNKS[2][8:]}\n\nQ"
    own = (CHUNKS[0].replace(" ", "  \n"), CHUNKS[1], CHUNKS[2])
    first = prompt_text.index(CHUNKS[0])
    second = prompt_text.index(CHUNKS[2][8:])
    alignments = [
        Alignment(
            position=0,
            state=AlignmentState.NORMALISED,
            message=0,
            start=first,
            end=first + len(CHUNKS[0]),
            found=(0, len(own[0])),
        ),
        Alignment(position=1, state=AlignmentState.MISSING),
        Alignment(
            position=2,
            state=AlignmentState.PARTIAL,
            message=0,
            start=second,
            end=second + len(CHUNKS[2]) - 8,
            found=(8, len(CHUNKS[2])),
        ),
    ]
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())
    trace = tiny_trace(own, prompt=[Message(role="prompt", text=prompt_text)])
    layout = build_layout(trace, alignments, scorer.tokenizer)
    result = saliency(scorer, layout, tiny_spans(), Method.INPUT_X_GRADIENT)
    shares = {a.span: a.shares for a in result.attributions}
    assert {heat.position for heat in result.heats} == {0, 2}
    for heat in result.heats:
        assert sum(heat.values) == pytest.approx(shares[heat.span][heat.position], abs=1e-6)
        text = own[heat.position]
        shown = "".join(text[s:e] for s, e in zip(heat.starts, heat.ends, strict=True))
        expected = text[8:] if heat.position == 2 else text
        assert "".join(shown.split()) == "".join(expected.split())
    assert all(share[1] == 0.0 for share in shares.values())


def test_shared_text_is_credited_once() -> None:
    """Two chunks at one place halve the heat, so that totals stay totals."""
    place = {"state": AlignmentState.EXACT, "message": 0, "start": 9, "end": 9 + len(CHUNKS[0])}
    alignments = [
        Alignment(position=i, **place, found=(0, len(CHUNKS[0])))  # type: ignore[arg-type]
        for i in (0, 1)
    ]
    prompt = [Message(role="prompt", text=f"Context:\n{CHUNKS[0]}\n\nQ")]
    scorer = TransformersScorer(tiny_model("gpt2"), tiny_tokenizer())
    twice = build_layout(tiny_trace([CHUNKS[0]] * 2, prompt=prompt), alignments, scorer.tokenizer)
    once = build_layout(tiny_trace([CHUNKS[0]], prompt=prompt), alignments[:1], scorer.tokenizer)
    spans = tiny_spans()[:1]
    halves = saliency(scorer, twice, spans, Method.INPUT_X_GRADIENT).attributions[0].shares
    whole = saliency(scorer, once, spans, Method.INPUT_X_GRADIENT).attributions[0].shares
    assert halves == pytest.approx((whole[0] / 2, whole[0] / 2))


def test_refusals() -> None:
    """Another method, or a prompt beyond the context, is refused before any forward."""
    scorer, layout = laid_out("llama")
    with pytest.raises(InputError, match="rollout is not a gradient method"):
        saliency(scorer, layout, tiny_spans(), Method.ROLLOUT)
    scorer.model.config.max_position_embeddings = 10
    with pytest.raises(ContextLengthError):
        saliency(scorer, layout, [span_at(layout.answer, "8443")])


def test_no_spans_and_no_chunks_give_nothing_and_no_error() -> None:
    """An answer without checkable spans, or a prompt without chunks, is not a fault."""
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())
    methods = (Method.GRADIENT_NORM, Method.INTEGRATED_GRADIENTS)
    bare = build_layout(tiny_trace(chunks=()), [], scorer.tokenizer)
    for ask in (saliency, rollout):
        wanted = methods if ask is saliency else ()
        full = build_layout(tiny_trace(), [], scorer.tokenizer)
        assert ask(scorer, full, [], *wanted).attributions == ()
        nothing = ask(scorer, bare, tiny_spans(), *wanted)
        assert nothing.heats == ()
        assert all(attribution.shares == () for attribution in nothing.attributions)
