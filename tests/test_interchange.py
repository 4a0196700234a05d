"""shap's and captum's own objects hold our numbers, their own plots draw them, captum's own method agrees."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import captum.attr
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import shap
import torch
from torch import Tensor

from ragblame.attribution.interchange import attribute, to_captum, to_shap
from ragblame.attribution.layout import build_layout
from ragblame.attribution.methods.shapley import shapley
from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import InputError
from ragblame.records import Attribution, Explanation, Method
from tests.example_cases import CASES, hostile_explanation
from tests.example_explanations import Case, Said, explain
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.tiny_traces import DictionaryScorer, tiny_spans, tiny_trace

GROUNDED = next(part.verdict for case in CASES for part in case.answer if isinstance(part, Said))


def said(words: str, shares: tuple[float, ...]) -> Said:
    """A span with these shares."""
    return Said(words=words, verdict=GROUNDED, why="", shares=shares)


DOLLARS = Case(
    question="What does it cost?",
    chunks=(("a.md", "It costs $5 and $10."), ("", "Alice is on call. " * 20), ("c.md", "")),
    answer=("Port ", said("8443", (5.0, -1.0, 0.0)), " costs ", said("$10 or $5", (1.0, 3.0, 0.5)), "."),
)


@pytest.fixture(autouse=True)
def drawn_in_memory() -> Iterator[None]:
    """Plots without a window; every figure is really drawn, because labels are parsed only then."""
    matplotlib.use("Agg")
    yield
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    plt.close("all")


def test_shap_holds_base_and_shares_that_add_up() -> None:
    """Values [span, chunk] and base v(none): together v(all), as shap's waterfall claims."""
    explanation = explain(DOLLARS)
    found = explanation.to_shap()
    assert isinstance(found, shap.Explanation)
    np.testing.assert_allclose(found.values, [[5.0, -1.0, 0.0], [1.0, 3.0, 0.5]])
    v_all = [a.v_all for a in explanation.attributions if a.method is Method.SHAPLEY]
    np.testing.assert_allclose(found.base_values + found.values.sum(axis=1), np.array(v_all, float))
    assert found.feature_names == ["chunk 1 (0193-0000)", "chunk 2 (0193-0001)", "chunk 3 (0193-0002)"]
    assert found[1].data.tolist() == [chunk.text for chunk in explanation.trace.chunks]
    assert found[1].values.tolist() == [1.0, 3.0, 0.5]
    assert all(len(text) <= 42 for text in found[0].display_data)


def test_other_methods_have_no_base() -> None:
    """Their shares explain no total, so plots begin at 0."""
    found = explain(DOLLARS).to_shap(Method.INPUT_X_GRADIENT)
    assert found.base_values.tolist() == [0.0, 0.0]
    assert found.values[0].tolist() == [0.8333, -0.1667, 0.0]


EXPLANATIONS: dict[str, Callable[[], Explanation]] = {
    "one span": lambda: explain(replace(DOLLARS, answer=DOLLARS.answer[:2])),
    "dollars": lambda: explain(DOLLARS),
    "hostile": hostile_explanation,
}
DRAWINGS: dict[str, Callable[[shap.Explanation], object]] = {
    "bar": lambda found: shap.plots.bar(found, show=False),
    "bar of one span": lambda found: shap.plots.bar(found[0], show=False),
    "waterfall": lambda found: shap.plots.waterfall(found[0], show=False),
    "heatmap": lambda found: shap.plots.heatmap(
        found, instance_order=np.arange(len(found)), show=False
    ),  # its default clusters the instances, which takes two
    "beeswarm": lambda found: shap.plots.beeswarm(found, show=False),
}


@pytest.mark.parametrize("drawing", DRAWINGS)
@pytest.mark.parametrize("name", EXPLANATIONS)
def test_shap_draws_it(name: str, drawing: str) -> None:
    """Each plot of shap draws it and shows what it must: the names of the chunks, no text as mathematics."""
    found = EXPLANATIONS[name]().to_shap()
    DRAWINGS[drawing](found)
    figure = plt.gcf()
    figure.canvas.draw()
    labels = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert any("chunk 1" in label for label in labels)


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_captum_draws_it(name: str) -> None:
    """Both plots of captum draw it: one row per span, one column per chunk."""
    explanation = EXPLANATIONS[name]()
    found = to_captum(explanation)
    _, axes = found.plot_token_attr()
    rows, columns = len(explanation.spans), len(explanation.trace.chunks)
    assert axes.images[0].get_array().shape == (rows, columns)
    _, axes = found.plot_seq_attr()
    assert len(axes.get_xticks()) == columns


def test_dollars_are_no_mathematics() -> None:
    """Neither library's plot swallows the signs of "$10 or $5"."""
    found = to_captum(explain(DOLLARS))
    _, axes = found.plot_token_attr()
    label = axes.get_yticklabels()[1]
    assert label.get_text().count("$") == 2
    assert label._preprocess_math(label.get_text())[1] is False
    shown = to_shap(explain(DOLLARS)).display_data[0][0]
    assert label._preprocess_math(shown) == ("It costs $5 and $10.", False)


def test_captum_holds_shares_by_span_and_chunk() -> None:
    """Its sums are over spans, its probabilities those with all chunks; None where nobody measured them."""
    explanation = explain(DOLLARS)
    found = to_captum(explanation)
    assert isinstance(found, captum.attr.LLMAttributionResult)
    assert found.token_attr.tolist() == [[5.0, -1.0, 0.0], [1.0, 3.0, 0.5]]
    assert found.seq_attr.tolist() == [6.0, 2.0, 0.5]
    np.testing.assert_allclose(found.output_probs, np.exp([-4.0, -3.5]))
    assert found.output_tokens[0] == "8443"
    assert to_captum(explanation, Method.ROLLOUT_CORRECTED).output_probs is None


def test_a_method_that_was_not_computed_is_named() -> None:
    """No empty plot: the error says which methods there are."""
    explanation = explain(DOLLARS)
    with pytest.raises(
        InputError, match=r"LIME has no shares .* corrected rollout, input x gradient, shapley"
    ):
        explanation.to_shap(Method.LIME)
    with pytest.raises(InputError, match="it has: none"):
        to_captum(replace(explanation, attributions=()))
    empty = replace(explanation.trace, chunks=())
    bare = (Attribution(span=0, method=Method.SHAPLEY, shares=()),)
    without_chunks = replace(explanation, trace=empty, attributions=bare)
    with pytest.raises(InputError, match="shapley has no shares of chunks"):
        to_shap(without_chunks)


def test_only_some_spans_of_a_method_are_drawn() -> None:
    """A method that was computed for the second span alone gives one row, with that span's name."""
    explanation = explain(DOLLARS)
    found = to_shap(
        replace(explanation, attributions=tuple(a for a in explanation.attributions if a.span == 1))
    )
    assert found.values.tolist() == [[1.0, 3.0, 0.5]]
    assert to_captum(
        replace(explanation, attributions=tuple(a for a in explanation.attributions if a.span == 1))
    ).output_tokens == [r"\$10 or \$5"]


def test_attribute_agrees_with_captum_on_a_real_model() -> None:
    """captum's own Shapley values, over a function that asks the scorer, are the rows of ``attribute``."""
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())
    layout = build_layout(tiny_trace(), [], scorer.tokenizer)
    spans = tiny_spans()
    found = attribute(scorer, layout, spans)

    def value(present: Tensor) -> Tensor:
        mask = sum(1 << bit for bit, there in enumerate(present[0].tolist()) if there)
        row = scorer.score(layout, [mask])[0]
        return torch.tensor([[row[list(layout.span_tokens(span))].sum() for span in spans]])

    for number in range(len(spans)):
        oracle = captum.attr.ShapleyValues(value).attribute(torch.ones(1, 3), target=number)
        np.testing.assert_allclose(found.token_attr[number], oracle[0], atol=1e-4)
    shares = [a.shares for a in shapley(scorer, layout, spans).attributions]
    np.testing.assert_allclose(found.token_attr, shares, atol=1e-4)
    np.testing.assert_allclose(found.seq_attr, np.sum(shares, axis=0), atol=1e-4)


CHUNK_METHODS = (
    *(Method.SHAPLEY, Method.LIME, Method.GRADIENT_NORM, Method.INPUT_X_GRADIENT),
    *(Method.INTEGRATED_GRADIENTS, Method.ROLLOUT, Method.ROLLOUT_CORRECTED),
)


@pytest.mark.parametrize("method", CHUNK_METHODS)
def test_attribute_takes_every_method_that_shares_among_chunks(method: Method) -> None:
    """Each gives a row per span that is not all 0, and probabilities if it measures them."""
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())
    layout = build_layout(tiny_trace(), [], scorer.tokenizer)
    found = attribute(scorer, layout, tiny_spans(), method)
    assert found.token_attr.shape == (2, 3)
    assert found.token_attr.abs().max() > 1e-4
    assert (found.output_probs is not None) == (method in (Method.SHAPLEY, Method.LIME))


def test_attribute_says_what_it_needs() -> None:
    """A scorer without a local model cannot give gradients, and no span gives no plot."""
    layout = build_layout(tiny_trace(), [], tiny_tokenizer())
    scorer = DictionaryScorer(lambda mask: [-1.0] * len(layout.answer_ids))
    with pytest.raises(InputError, match="rollout looks into the model, and scorer dictionary has no local"):
        attribute(scorer, layout, tiny_spans(), Method.ROLLOUT)
    with pytest.raises(InputError, match="at least one span"):
        attribute(scorer, layout, [])


def test_records_stay_light() -> None:
    """Importing the records loads neither shap nor captum nor numpy; only ``to_shap`` does."""
    code = "import sys, ragblame.records; print([m for m in ('shap', 'captum', 'numpy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
