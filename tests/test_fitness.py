"""The fitness check calls a scorer unfit exactly when a guess by word frequency does as well."""

import gzip
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from ragblame.attribution.alignment import align_chunks
from ragblame.attribution.evaluation.accuracy import draw_items
from ragblame.attribution.fitness import check_fitness, unigram_nats
from ragblame.attribution.layout import build_layout
from ragblame.attribution.scorer import TransformersScorer
from ragblame.attribution.world.answering import generate
from ragblame.errors import ContextLengthError, InputError
from ragblame.records import Message
from tests.tiny_models import tiny_tokenizer
from tests.tiny_traces import tiny_trace

RAGTRUTH = Path(__file__).resolve().parents[2] / "shared" / "data" / "ragtruth_qa.dev.jsonl.gz"


def test_unigram_is_the_stated_formula() -> None:
    """u(t) = (count + 1) / (N + K) over prompt and answer, averaged over answer tokens."""
    layout = build_layout(tiny_trace(), [], tiny_tokenizer())
    ids = [*layout.prompt_ids(layout.full_mask), *layout.answer_ids]
    by_hand = [math.log((ids.count(t) + 1) / (len(ids) + len(set(ids)))) for t in layout.answer_ids]
    assert unigram_nats(layout) == pytest.approx(np.mean(by_hand))


@pytest.mark.parametrize(("gain", "is_fit"), [(0.01, True), (0.0, False), (-0.01, False)])
def test_bar_is_the_guess_itself(gain: float, is_fit: bool) -> None:
    """Better than the guess is fit, equal or worse is not; the sentence gives both figures."""
    layout = build_layout(tiny_trace(), [], tiny_tokenizer())
    guess = unigram_nats(layout)
    fitness = check_fitness(layout, np.full(len(layout.answer_ids), guess + gain, dtype=np.float64))
    assert fitness.is_fit == is_fit or gain == 0.0
    assert fitness.unigram_nats == pytest.approx(guess)
    assert f"{guess:.2f}" in fitness.reason


def test_uniform_guess_over_the_same_tokens_is_unfit() -> None:
    """A scorer that knows only which tokens occur, not how often, is unfit for ordinary text."""
    layout = build_layout(tiny_trace(answer="the port of the gateway is the port"), [], tiny_tokenizer())
    kinds = len({*layout.prompt_ids(layout.full_mask), *layout.answer_ids})
    assert not check_fitness(layout, np.full(len(layout.answer_ids), -math.log(kinds))).is_fit


def test_wrong_shape_is_refused() -> None:
    """A table instead of a row is an error, not a mean over everything."""
    layout = build_layout(tiny_trace(), [], tiny_tokenizer())
    with pytest.raises(InputError, match="pass one row"):
        check_fitness(layout, np.zeros((2, len(layout.answer_ids))))


@pytest.fixture(scope="module")
def small_model() -> TransformersScorer:
    """The shipped small model."""
    return TransformersScorer.from_pretrained(None, threads=1)


def test_small_model_is_unfit_for_real_english(small_model: TransformersScorer) -> None:
    """Human-labelled English answers are beyond the small model, and it says so."""
    if not RAGTRUTH.is_file():
        pytest.skip("the shared developer data is not here")
    verdicts = []
    with gzip.open(RAGTRUTH, "rt", encoding="utf-8") as file:
        for row in map(json.loads, itertools.islice(file, 0, 400, 20)):
            trace = tiny_trace([c["text"] for c in row["chunks"]], row["answer"], question=row["question"])
            layout = build_layout(trace, [], small_model.tokenizer)
            try:
                values = small_model.score(layout, [layout.full_mask])[0]
            except ContextLengthError:
                continue
            verdicts.append(check_fitness(layout, values).is_fit)
    assert len(verdicts) >= 5
    assert not any(verdicts)


def test_small_model_is_fit_for_its_own_answers(small_model: TransformersScorer) -> None:
    """What the small model itself generates from chunks, it explains."""
    items = draw_items("fitness", 8, chunks=(1, 3, 5), wanted=lambda _: True)
    answers = generate(small_model.model, small_model.tokenizer, [item.prompt for item in items])
    for item, answer in zip(items, answers, strict=True):
        trace = tiny_trace(
            [chunk.text for chunk in item.chunks], answer, prompt=[Message(role="prompt", text=item.prompt)]
        )
        layout = build_layout(trace, align_chunks(trace.chunks, trace.prompt), small_model.tokenizer)
        fitness = check_fitness(layout, small_model.score(layout, [layout.full_mask])[0])
        assert fitness.is_fit, fitness.reason
