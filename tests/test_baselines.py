"""Baselines equal their authors' code or brute force, look at no more than they say, and know toy games."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from captum.attr import LayerIntegratedGradients
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from torch import Tensor

from ragblame.attribution.evaluation.ablation_baselines import (
    LASSO_ALPHA,
    ablation_baselines,
    banzhaf,
    context_cite,
    context_cite_masks,
    kernel_shap,
    leave_one_out,
    only_this_chunk,
    random_scores,
    span_logit,
)
from ragblame.attribution.evaluation.model_baselines import (
    ModelScores,
    attention_baselines,
    captum_feature_ablation,
    captum_input_x_gradient,
    captum_integrated_gradients,
    captum_shapley_sampling,
    deletion_template,
    gradient_baselines,
    mean_attention,
)
from ragblame.attribution.evaluation.text_baselines import (
    holds_value,
    inverse_document_frequency,
    overlap,
    retrieval,
    text_baselines,
)
from ragblame.attribution.layout import Layout, build_layout
from ragblame.attribution.methods.coalitions import all_masks, members
from ragblame.attribution.methods.heat import chunk_weights
from ragblame.attribution.methods.saliency import saliency
from ragblame.attribution.methods.shapley import exact_shapley
from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import InputError
from ragblame.records import Alignment, AlignmentState, Message, Method
from tests.tiny_models import CHATML, tiny_model, tiny_tokenizer
from tests.tiny_traces import CHUNKS, composed, plain_layout, tiny_spans, tiny_trace

Game = Callable[[int], float]

N = 4
# player 0 decides / 0 or 1 suffices / 0 and 1 are both needed, of 4 players
DICTATOR: Game = lambda mask: 8.0 if mask & 1 else 0.0  # noqa: E731
EITHER: Game = lambda mask: 8.0 if mask & 3 else 0.0  # noqa: E731
BOTH: Game = lambda mask: 8.0 if mask & 3 == 3 else 0.0  # noqa: E731

floats = st.floats(-30, 0, allow_nan=False, width=32)


def table_of(game: Game, n: int = N) -> NDArray[np.float64]:
    """The value table of a game, shifted to be a log-probability."""
    return np.array([game(mask) - 10.0 for mask in all_masks(n)])


@st.composite
def tables(draw: st.DrawFn, least: int = 0, most: int = 5) -> NDArray[np.float64]:
    """A span's table of ``least`` to ``most`` players."""
    n = draw(st.integers(least, most))
    return draw(arrays.arrays(np.float64, 1 << n, elements=floats))


def additive(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The table of the game in which each player adds its weight."""
    return np.array([sum(weights[i] for i in members(mask)) - 50.0 for mask in all_masks(len(weights))])


@pytest.mark.parametrize(
    ("game", "left_out", "alone", "mean"),
    [
        (DICTATOR, 8.0, 8.0, 8.0),
        (EITHER, 0.0, 8.0, 4.0),  # each is dispensable, each suffices
        (BOTH, 8.0, 0.0, 4.0),  # each is indispensable, none suffices
    ],
)
def test_known_games(game: Game, left_out: float, alone: float, mean: float) -> None:
    """What each method says of a dictator, of duplicates and of two hops; the last two players do nothing."""
    table = table_of(game)
    others = 0.0 if game is DICTATOR else 1.0
    for scores, value in ((leave_one_out, left_out), (only_this_chunk, alone), (banzhaf, mean)):
        np.testing.assert_allclose(scores(table), [value, value * others, 0.0, 0.0], atol=1e-12)


@given(tables())
def test_banzhaf_is_the_mean_marginal_contribution(table: NDArray[np.float64]) -> None:
    """Brute force over every coalition without the player."""
    n = len(table).bit_length() - 1
    expected = [
        np.mean([table[mask | 1 << i] - table[mask] for mask in all_masks(n) if not mask >> i & 1])
        for i in range(n)
    ]
    np.testing.assert_allclose(banzhaf(table), expected, atol=1e-9)


@given(arrays.arrays(np.float64, st.integers(2, 5), elements=st.floats(-9, 9, width=32)))
@settings(max_examples=30, deadline=None)
def test_additive_games_are_read_exactly(weights: NDArray[np.float64]) -> None:
    """Where chunks do not interact, all unregularised methods agree with the weights."""
    table = additive(weights)
    for scores in (
        leave_one_out(table),
        only_this_chunk(table),
        banzhaf(table),
        kernel_shap(table, len(weights) * 2 + 2, seed=0),
    ):
        np.testing.assert_allclose(scores, weights, atol=1e-6)


@given(tables(least=2))
@settings(max_examples=30, deadline=None)
def test_kernel_shap_with_every_coalition_is_exact(table: NDArray[np.float64]) -> None:
    """shap's explainer given 2**n evaluations equals exact enumeration."""
    np.testing.assert_allclose(kernel_shap(table, len(table), seed=0), exact_shapley(table), atol=1e-6)


def test_kernel_shap_is_seeded_and_leaves_the_global_generator_alone() -> None:
    """Same seed, same scores; another seed, other scores; numpy's own stream goes on where it was."""
    table = np.random.default_rng(0).normal(-5.0, 2.0, 1 << 8)
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    first = kernel_shap(table, 40, seed=1)
    assert np.random.random() == expected
    np.testing.assert_array_equal(first, kernel_shap(table, 40, seed=1))
    assert np.abs(first - kernel_shap(table, 40, seed=2)).max() > 0.01


def test_kernel_shap_of_none_and_one_and_too_small_a_budget() -> None:
    """No chunk, no score; one chunk gets everything; an underdetermined regression is refused."""
    assert kernel_shap([-3.0], 8, seed=0).shape == (0,)
    np.testing.assert_allclose(kernel_shap([-3.0, -1.0], 8, seed=0), [2.0])
    with pytest.raises(InputError, match="at least 10, not 9"):
        kernel_shap(np.zeros(256), 9, seed=0)


@pytest.mark.parametrize("value", ["logit", "log_prob"])
@pytest.mark.parametrize("seed", range(5))
def test_context_cite_solves_its_lasso(value: str, seed: int) -> None:
    """Optimality of ``mean squared error / 2 + 0.01 |w|_1`` on standardised ablations, checked by hand."""
    tokens = 3
    table = -np.random.default_rng(seed).gamma(2.0, 2.0, 1 << 6) - 0.5
    masks = context_cite_masks(6, seed=seed)
    weights = context_cite(table, tokens=tokens, seed=seed, value=value)  # type: ignore[arg-type]
    inside = np.array([[mask >> i & 1 for i in range(6)] for mask in masks], dtype=float)
    scale = inside.std(axis=0)
    design = (inside - inside.mean(axis=0)) / scale
    outputs = table if value == "log_prob" else np.log(np.exp(table) / (1 - np.exp(table)))
    target = outputs[masks] / tokens
    coefficients = weights * scale / tokens
    slope = design.T @ (target - target.mean() - design @ coefficients) / len(masks)
    at_zero = coefficients == 0
    assert (np.abs(slope[at_zero]) <= LASSO_ALPHA + 2e-3).all()
    np.testing.assert_allclose(slope[~at_zero], LASSO_ALPHA * np.sign(coefficients[~at_zero]), atol=2e-3)
    assert not at_zero.all()


def test_context_cite_tends_to_shrunken_banzhaf_values() -> None:
    """With very many ablations: Banzhaf values pulled towards 0 by 0.02 per token, small ones to 0."""
    tokens = 5
    table = additive(np.array([3.0, -1.0, 0.05]))
    table[0b011] += 0.5
    expected = banzhaf(table)
    expected = np.sign(expected) * np.maximum(np.abs(expected) - 2 * LASSO_ALPHA * tokens, 0.0)
    found = context_cite(table, tokens=tokens, ablations=200_000, seed=0, value="log_prob")
    assert expected[2] == found[2] == 0.0
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_context_cite_draws_each_chunk_with_probability_one_half() -> None:
    """Over many draws every chunk is in half of them, and any two are independent."""
    masks = context_cite_masks(5, ablations=100_000, seed=3)
    inside = ((masks[:, None] >> np.arange(5)) & 1).astype(float)
    np.testing.assert_allclose(inside.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(inside.T), np.eye(5), atol=0.02)
    assert len(context_cite_masks(5, seed=3)) == 64


def test_span_logit_is_finite_where_a_probability_rounds_to_one() -> None:
    """Equal to log(p / (1 - p)) in between, bounded above, and falling without end below."""
    p = np.array([0.2, 0.5, 0.999])
    np.testing.assert_allclose(span_logit(np.log(p)), np.log(p / (1 - p)))
    np.testing.assert_allclose(span_logit(np.array([0.0, -1000.0])), [24 * np.log(2), -1000.0], atol=1e-6)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_no_method_looks_beyond_the_coalitions_it_names(n: int) -> None:
    """Scores stay when everything else in the table is replaced: what is held out is really held out."""
    rng = np.random.default_rng(n)
    table = -rng.gamma(2.0, 2.0, 1 << n)
    before = ablation_baselines(table, tokens=2, kernel_budget=40, seed=5)
    assert len({one.name for one in before}) == len(before) == 7
    for number, one in enumerate(before):
        other = -rng.gamma(2.0, 2.0, 1 << n)
        kept = sorted(one.masks)
        other[kept] = table[kept]
        after = ablation_baselines(other, tokens=2, kernel_budget=40, seed=5)[number]
        np.testing.assert_allclose(after.scores, one.scores, err_msg=one.name)
        assert one.scores.shape == (n,)
    by_name = {one.name: one.masks for one in before}
    assert len(by_name["leave one out"]) == len(by_name["only this chunk"]) == n + 1
    assert len(by_name["KernelSHAP 40"]) == min(40, 1 << n)
    assert by_name["random"] == frozenset()


def test_bad_tables_and_settings_are_refused() -> None:
    """Errors name what was given."""
    with pytest.raises(InputError, match="not 3"):
        banzhaf(np.zeros(3))
    with pytest.raises(InputError, match=r"\(4, 2\)"):
        context_cite(np.zeros((4, 2)), tokens=1, seed=0)
    with pytest.raises(InputError, match="1 token, not 0"):
        context_cite(np.zeros(4), tokens=0, seed=0)
    with pytest.raises(InputError, match="1 ablation, not 0"):
        context_cite_masks(4, ablations=0, seed=0)
    np.testing.assert_array_equal(random_scores(6, seed=1), random_scores(6, seed=1))


@cache
def laid_out() -> tuple[TransformersScorer, Layout]:
    """A tiny Llama and a prompt of bulleted chunks, in which removal is deletion of one line."""
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())
    pieces: list[str | int] = ["Context with {braces}:\n"]
    for number in range(len(CHUNKS)):
        pieces += ["- ", number, "\n"]
    return scorer, plain_layout([*pieces, "Question: What is the port?\nAnswer:"], CHUNKS, scorer.tokenizer)


def span_table(scorer: TransformersScorer, layout: Layout) -> NDArray[np.float64]:
    """Values of both spans in every coalition, nats, shape [2**n, span]."""
    log_probs = scorer.score(layout, all_masks(len(layout.players))).astype(np.float64)
    return np.stack(
        [log_probs[:, list(layout.span_tokens(span))].sum(axis=1) for span in tiny_spans()], axis=1
    )


def close(found: ModelScores, expected: object, tolerance: float = 1e-4) -> None:
    """Agreement within a part of the largest value."""
    wanted = np.asarray(expected, dtype=np.float64)
    np.testing.assert_allclose(found.scores, wanted, atol=tolerance * np.abs(wanted).max(), rtol=tolerance)


def test_captum_ablation_is_leave_one_out_of_the_table() -> None:
    """Captum's own model calls and our table see the same deletions: a check of both."""
    scorer, layout = laid_out()
    found = captum_feature_ablation(scorer, layout, tiny_spans())
    close(found, leave_one_out(span_table(scorer, layout)).T)
    assert found.cost.forwards == found.cost.scored_coalitions == len(CHUNKS) + 1
    assert found.cost.tokens > 0


def test_captum_shapley_sampling_adds_up_and_comes_near_exact() -> None:
    """Every sampled order adds up to the reliance; orders enough come near exact Shapley, seed by seed."""
    scorer, layout = laid_out()
    table = span_table(scorer, layout)
    found = captum_shapley_sampling(scorer, layout, tiny_spans(), samples=40, seed=0)
    np.testing.assert_allclose(found.scores.sum(axis=1), table[-1] - table[0], atol=1e-3)
    exact = exact_shapley(table).T
    assert np.abs(found.scores - exact).max() < 0.2 * np.abs(exact).max()
    few = [captum_shapley_sampling(scorer, layout, tiny_spans(), samples=2, seed=s).scores for s in (1, 1, 2)]
    np.testing.assert_array_equal(few[0], few[1])
    assert np.abs(few[0] - few[2]).max() > 1e-3


def test_captum_gradients_equal_ours_and_cost_a_pass_per_token() -> None:
    """Input x gradient agrees span by span; captum needs a forward and a backward for each answer token."""
    scorer, layout = laid_out()
    ours = gradient_baselines(scorer, layout, tiny_spans())[2]
    found = captum_input_x_gradient(scorer, layout, tiny_spans())
    close(found, ours.scores)
    assert ours.name == Method.INPUT_X_GRADIENT.value
    assert found.cost.forwards == found.cost.backwards == len(layout.answer_ids)
    assert (ours.cost.forwards, ours.cost.backwards) == (1, 2)
    assert not any(weight.requires_grad for weight in scorer.model.parameters())


def test_captum_integrated_gradients_from_line_breaks_equal_ours() -> None:
    """The same path and the same nodes give the same shares."""
    scorer, layout = laid_out()
    steps = 12
    found = captum_integrated_gradients(
        scorer, layout, tiny_spans(), steps=steps, integrated_from="line breaks"
    )
    ours = saliency(scorer, layout, tiny_spans(), Method.INTEGRATED_GRADIENTS, steps=steps)
    close(found, [attribution.shares for attribution in ours.attributions], 1e-3)


def test_captum_integrated_gradients_from_token_0_equal_its_layer_method() -> None:
    """The default of ``LLMGradientAttribution`` is the path from a prompt of tokens 0, the answer kept."""
    scorer, layout = laid_out()
    steps = 8
    found = captum_integrated_gradients(scorer, layout, tiny_spans(), steps=steps)
    prompt, answer = layout.prompt_ids(layout.full_mask), layout.answer_ids
    ids = torch.tensor([prompt + answer])
    start = ids.clone()
    start[0, : len(prompt)] = 0
    weights = chunk_weights(layout, layout.prompt_tokens())
    embedding = scorer.model.get_input_embeddings()
    expected = []
    for span in tiny_spans():
        chosen = list(layout.span_tokens(span))

        def value(ids: Tensor, chosen: list[int] = chosen) -> Tensor:
            logits = scorer.model(input_ids=ids, use_cache=False).logits[:, len(prompt) - 1 : -1]
            log_probs = torch.log_softmax(logits, dim=-1)[:, torch.arange(len(answer)), list(answer)]
            return log_probs[:, chosen].sum(dim=1)

        embedding.weight.requires_grad_(True)
        parts = LayerIntegratedGradients(value, embedding).attribute(ids, baselines=start, n_steps=steps)
        embedding.weight.requires_grad_(False)
        expected.append(weights @ parts.sum(dim=-1)[0, : len(prompt)].detach().double().numpy())
    close(found, expected, 1e-3)


def test_mean_attention_equals_eager_maps() -> None:
    """The mean over layers, heads and predicting rows of what the library itself returns."""
    scorer, layout = laid_out()
    found = mean_attention(scorer, layout, tiny_spans())
    prompt = layout.prompt_ids(layout.full_mask)
    eager = tiny_model("llama", attention="eager")
    with torch.no_grad():
        maps = eager(input_ids=torch.tensor([prompt + layout.answer_ids]), output_attentions=True).attentions
    looked = torch.stack([one[0].mean(dim=0) for one in maps]).mean(dim=0).double().numpy()
    weights = chunk_weights(layout, layout.prompt_tokens())
    expected = []
    for span in tiny_spans():
        rows = [len(prompt) - 1 + index for index in layout.span_tokens(span)]
        expected.append(weights @ looked[rows].mean(axis=0)[: len(prompt)])
    close(found, expected)
    assert (found.scores.sum(axis=1) <= 1.0).all()
    names = [one.name for one in attention_baselines(scorer, layout, tiny_spans())]
    assert names == ["mean attention", "rollout", "corrected rollout"]


def test_gradient_norm_per_token_undoes_length() -> None:
    """The mean is the sum over the number of the chunk's tokens."""
    scorer, layout = laid_out()
    total, mean, _ = gradient_baselines(scorer, layout, tiny_spans())
    tokens = chunk_weights(layout, layout.prompt_tokens()).sum(axis=1)
    np.testing.assert_allclose(mean.scores * tokens, total.scores)
    assert len(set(tokens.tolist())) > 1


def test_a_chunk_that_is_not_in_the_prompt_scores_0_everywhere() -> None:
    """Scores go by chunk position, not by place in the prompt."""
    scorer, _ = laid_out()
    text, alignments = composed(["Context:\n- ", 2, "\n- ", 0, "\nQ:"], CHUNKS)
    alignments.append(Alignment(position=1, state=AlignmentState.MISSING))
    prompt = (Message(role="prompt", text=text),)
    layout = build_layout(tiny_trace(CHUNKS, prompt=prompt), alignments, scorer.tokenizer)
    assert layout.players == (2, 0)
    found = [
        *gradient_baselines(scorer, layout, tiny_spans()),
        *attention_baselines(scorer, layout, tiny_spans()),
        captum_input_x_gradient(scorer, layout, tiny_spans()),
        captum_feature_ablation(scorer, layout, tiny_spans()),
    ]
    for one in found:
        assert one.scores.shape == (2, 3)
        assert (one.scores[:, 1] == 0).all()
        assert (one.scores[:, [0, 2]] != 0).all(), one.name
    leaving = leave_one_out(span_table(scorer, layout)).T
    np.testing.assert_allclose(found[-1].scores[:, [2, 0]], leaving, atol=1e-4)


def test_captum_is_refused_where_it_would_delete_something_else() -> None:
    """Two chunks that share their text cannot be deleted one by one; a chat prompt would get a second <s>."""
    scorer, layout = laid_out()
    template, values = deletion_template(layout)
    assert template.format(*values) == layout.prompt
    prompt = [Message(role="prompt", text=f"Context:\n{CHUNKS[0]}\n\nQ")]
    place = {"state": AlignmentState.EXACT, "message": 0, "start": 9, "end": 9 + len(CHUNKS[0])}
    alignments = [
        Alignment(position=i, **place, found=(0, len(CHUNKS[0])))  # type: ignore[arg-type]
        for i in (0, 1)
    ]
    shared = build_layout(tiny_trace([CHUNKS[0]] * 2, prompt=prompt), alignments, scorer.tokenizer)
    with pytest.raises(InputError, match="more than deleting"):
        captum_feature_ablation(scorer, shared, tiny_spans())
    tokenizer = tiny_tokenizer(CHATML, adds_bos=True)
    chat = build_layout(tiny_trace(), [], tokenizer)
    with pytest.raises(InputError, match="other tokens"):
        captum_input_x_gradient(TransformersScorer(scorer.model, tokenizer), chat, tiny_spans())


def test_no_chunks_give_no_scores() -> None:
    """A prompt without chunks is not a fault."""
    scorer, _ = laid_out()
    bare = build_layout(tiny_trace(chunks=()), [], scorer.tokenizer)
    for one in (
        *gradient_baselines(scorer, bare, tiny_spans()),
        *attention_baselines(scorer, bare, tiny_spans()),
        captum_feature_ablation(scorer, bare, tiny_spans()),
        captum_input_x_gradient(scorer, bare, tiny_spans()),
    ):
        assert one.scores.shape == (2, 0)


def test_overlap_counts_distinct_words_and_weighs_rare_ones() -> None:
    """A quarter of the words without weights; with weights, the rare word decides."""
    chunks = ["The port is open.", "the 8443 PORT", "nothing here"]
    np.testing.assert_allclose(overlap("The port is 8443.", chunks), [0.75, 0.75, 0.0])
    weighted = overlap("The port is 8443.", chunks, {"the": 0.1, "port": 0.1, "is": 0.1, "8443": 0.7})
    np.testing.assert_allclose(weighted, [0.3, 0.9, 0.0])
    np.testing.assert_array_equal(overlap("...", chunks), np.zeros(3))


def test_rarer_words_weigh_more_and_none_less_than_nothing() -> None:
    """Weights fall with the number of documents and stay positive."""
    weights = inverse_document_frequency(["a b c", "a b", "a", "a"])
    assert weights["c"] > weights["b"] > weights["a"] > 0
    assert weights["c"] == pytest.approx(np.log(1 + 3.5 / 1.5))


def test_a_value_is_held_in_whole_words() -> None:
    """443 is not in 8443, and words must stand in a row."""
    chunks = ["port 8443 of north Oslo", "port 443", "Oslo, far north"]
    np.testing.assert_array_equal(holds_value("443", chunks), [0, 1, 0])
    np.testing.assert_array_equal(holds_value("North Oslo.", chunks), [1, 0, 0])
    np.testing.assert_array_equal(holds_value("!", chunks), [0, 0, 0])


def test_retrieval_is_the_cosine_of_word_counts() -> None:
    """Equal texts 1, no common word 0, else the textbook value."""
    found = retrieval("a a b", ["b a a", "c", "a b", ""])
    np.testing.assert_allclose(found, [1.0, 0.0, 3 / np.sqrt(5 * 2), 0.0])


def test_text_baselines_share_one_shape() -> None:
    """Each names a score for each chunk; positions favour opposite ends; the value's row needs a value."""
    found = text_baselines(
        question="What is the port?", answer="It is 8443.", chunks=CHUNKS, seed=0, value="8443"
    )
    assert all(scores.shape == (3,) for scores in found.values())
    assert found["holds the value"].tolist() == [1, 0, 0]
    assert int(found["first position"].argmax()) == 0
    assert int(found["last position"].argmax()) == 2
    assert int(found["length"].argmax()) == 2
    assert "holds the value" not in text_baselines(question="", answer="", chunks=CHUNKS, seed=0)
