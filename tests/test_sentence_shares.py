"""Sentences go as if nobody had written them, and their Owen values share out exactly the chunk's share."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
import shap
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from ragblame.attribution.alignment import align_chunks
from ragblame.attribution.layout import Layout, build_layout
from ragblame.attribution.methods.coalitions import mask_of
from ragblame.attribution.methods.lime import lime
from ragblame.attribution.methods.sentence_shares import owen_values, sentence_shares
from ragblame.attribution.methods.shapley import exact_shapley, shapley
from ragblame.attribution.scorer import TransformersScorer
from ragblame.attribution.sentence_regions import SentenceLayout, sentence_layout
from ragblame.errors import InputError
from ragblame.records import Attribution, Message, Method
from tests.tiny_models import CHATML, tiny_model, tiny_tokenizer
from tests.tiny_traces import ANSWER, DictionaryScorer, plain_layout, tiny_spans, tiny_trace

SENTENCES = ("The port is 8443.", "It is open.", "Ask the harbour team.")
LONG = f"{SENTENCES[0]} {SENTENCES[1]}\n{SENTENCES[2]}"
CHUNKS = ("Alice Smith is on call.", LONG, "Backups run at 02:30.")

SHAPES: tuple[tuple[str | int, ...], ...] = (
    ("Answer.\n- ", 0, "\n- ", 1, "\n- ", 2, "\nQuestion: x\nAnswer:"),
    ("passage 1: ", 0, "\n\npassage 2: ", 1, "\n\npassage 3: ", 2, "\n\nq"),
    ('<doc id="1">\n', 0, '\n</doc>\n<doc id="2">\n', 1, '\n</doc>\n<doc id="3">\n', 2, "\n</doc>\nq"),
    (0, "\n\n", 1, "\n\n", 2),
    ("[1] ", 1, "\nThen: ", 0, "\n", 2),
)


def layout_of(pieces: Sequence[str | int] = SHAPES[0], chunks: Sequence[str] = CHUNKS) -> Layout:
    """A plain prompt of these pieces, laid out by chunks."""
    return plain_layout(pieces, chunks, tiny_tokenizer())


@pytest.mark.parametrize("pieces", SHAPES)
def test_whole_chunks_leave_the_same_prompts(pieces: Sequence[str | int]) -> None:
    """With all or no sentences of each chunk the prompt and its tokens are those of the uncut layout."""
    layout = layout_of(pieces)
    cut = sentence_layout(layout, [1, 2])
    assert sorted(cut.players) == [0, 1, 1, 1, 2]
    for mask in range(8):
        kept = [layout.players[bit] for bit in range(3) if mask >> bit & 1]
        assert cut.prompt_text(cut.mask_of(kept)) == layout.prompt_text(mask)
        assert cut.prompt_ids(cut.mask_of(kept)) == layout.prompt_ids(mask)


@pytest.mark.parametrize("pieces", SHAPES)
@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ((0,), SENTENCES[0]),
        ((1,), SENTENCES[1]),
        ((2,), SENTENCES[2]),
        ((0, 1), f"{SENTENCES[0]} {SENTENCES[1]}"),
        ((0, 2), f"{SENTENCES[0]}\n{SENTENCES[2]}"),
        ((1, 2), f"{SENTENCES[1]}\n{SENTENCES[2]}"),
    ],
)
def test_a_removed_sentence_was_never_written(
    pieces: Sequence[str | int], kept: Sequence[int], text: str
) -> None:
    """Each subset of sentences gives the prompt of a chunk that holds only those, with and without others."""
    cut = sentence_layout(layout_of(pieces), [1])
    own = cut.players_of(1)
    assert [cut.prompt[cut.regions[player].start : cut.regions[player].end] for player in own] == list(
        SENTENCES
    )
    written = layout_of(pieces, (CHUNKS[0], text, CHUNKS[2]))
    for others in ([], [0], [2], [0, 2]):
        mask = cut.mask_of(others) | mask_of(own[number] for number in kept)
        assert cut.prompt_text(mask) == written.prompt_text(written.mask_of([1, *others]))


@given(
    st.lists(st.sampled_from(["A b.", "C d!", " ", "\n", "\n\n", "E", "1. F.", "\t", "“G.”"]), max_size=8),
    st.sampled_from(SHAPES),
    st.data(),
)
@settings(max_examples=80, deadline=None)
def test_any_text_keeps_its_ends_and_loses_only_its_own(
    parts: list[str], pieces: tuple[str | int, ...], data: st.DataObject
) -> None:
    """Whatever the chunk: what stays is in order, whole sentences, white space at the ends untouched."""
    text = "".join(parts) + data.draw(st.sampled_from(["z", "z.", "z. \n"]))
    layout = layout_of(pieces, ("alpha", text, "omega"))
    cut = sentence_layout(layout, [1])
    own = cut.players_of(1)
    kept = data.draw(st.lists(st.sampled_from(own), min_size=1, unique=True).map(sorted))
    shown = cut.prompt_text(cut.mask_of([0, 2]) | mask_of(kept))
    region = next(region for region in layout.regions if region.position == 1)
    assert shown.startswith(layout.prompt[: region.start])
    assert shown.endswith(layout.prompt[region.end :])
    middle = shown[region.start : len(shown) - len(layout.prompt) + region.end]
    words = [cut.prompt[cut.regions[player].start : cut.regions[player].end] for player in kept]
    assert "".join(middle.split()) == "".join("".join(words).split())
    lead, tail = len(text) - len(text.lstrip()), len(text) - len(text.rstrip())
    assert middle[:lead] == text[:lead]
    assert not middle[lead : lead + 1].isspace()
    assert middle[len(middle) - tail :] == text[len(text) - tail :]
    for player, word in zip(kept, words, strict=True):
        start, end = cut.regions[player].found
        assert text[start:end] == word


def test_text_shared_by_two_chunks_stays_until_both_lose_it() -> None:
    """Identical chunks stand in the prompt once: a sentence of one goes only when the other goes too."""
    prompt = (Message(role="prompt", text=f"Context:\n- {LONG}\nq"),)
    trace = tiny_trace((LONG, LONG), ANSWER, prompt=prompt)
    layout = build_layout(trace, align_chunks(trace.chunks, prompt), tiny_tokenizer())
    assert layout.players == (0, 1)
    cut = sentence_layout(layout, [1])
    first = cut.players_of(1)[0]
    assert cut.prompt_text(cut.full_mask & ~(1 << first)) == layout.prompt
    alone = cut.full_mask & ~cut.mask_of([0]) & ~(1 << first)
    assert cut.prompt_text(alone) == f"Context:\n- {SENTENCES[1]}\n{SENTENCES[2]}\nq"
    assert cut.prompt_text(0) == layout.prompt_text(0)


def test_offsets_survive_other_white_space() -> None:
    """A prompt that re-wrapped the chunk: places still point at the sentences of the chunk's own text."""
    stored = "The port  is\n8443.   It is open."
    prompt = (Message(role="human", text="Context: The port is 8443. It is open.\nq"),)
    trace = tiny_trace((stored,), ANSWER, prompt=prompt)
    layout = build_layout(trace, align_chunks(trace.chunks, prompt), tiny_tokenizer(CHATML))
    cut = sentence_layout(layout, [0])
    assert [stored[start:end] for start, end in (region.found for region in cut.regions)] == [
        "The port  is\n8443.",
        "It is open.",
    ]
    assert "Context: It is open.\nq" in cut.prompt_text(0b10)


def test_what_cannot_be_cut_is_refused() -> None:
    """A chunk outside the prompt, and a layout that is cut already."""
    layout = layout_of()
    with pytest.raises(InputError, match="chunk 8 does not stand in the prompt"):
        sentence_layout(layout, [7])
    with pytest.raises(InputError, match="cut into sentences already"):
        sentence_layout(sentence_layout(layout, [1]), [1])
    with pytest.raises(InputError, match="beyond the 5"):
        sentence_layout(layout, [1]).prompt_text(1 << 5)


def brute_owen(table: NDArray[np.float64], others: int, own: int) -> NDArray[np.float64]:
    """Mean gain of each member over all orders of unions and, inside the union, of members."""
    total = np.zeros((own, *table.shape[2:]))
    count = 0
    for unions in permutations(range(others + 1)):
        earlier = mask_of(unions[: unions.index(others)])
        for order in permutations(range(own)):
            count += 1
            present = 0
            for member in order:
                total[member] += table[earlier, present | 1 << member] - table[earlier, present]
                present |= 1 << member
    return total / count


@given(st.integers(0, 3), st.integers(1, 3), st.data())
@settings(max_examples=60, deadline=None)
def test_equals_the_average_over_all_orders_that_keep_unions_together(
    others: int, own: int, data: st.DataObject
) -> None:
    """Owen's definition itself, and the members sum to the Shapley value of their union."""
    floats = st.floats(-100, 100, allow_nan=False, width=32)
    table = data.draw(arrays.arrays(np.float64, (1 << others, 1 << own, 2), elements=floats))
    found = owen_values(table)
    np.testing.assert_allclose(found, brute_owen(table, others, own), atol=1e-9)
    unions = np.concatenate([table[:, 0], table[:, -1]])  # the judged union is the last player
    np.testing.assert_allclose(found.sum(axis=0), exact_shapley(unions)[others], atol=1e-9)


def test_equals_the_partition_explainer_of_shap() -> None:
    """shap's Owen values over a tree ((a, b), c): two sentences in one chunk beside another chunk."""
    table = np.random.default_rng(2).normal(size=(2, 4))  # [other chunk, sentences]

    def value(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        bits = rows.astype(int)
        found: NDArray[np.float64] = table[bits[:, 2], bits[:, 0] + 2 * bits[:, 1]]
        return found

    tree = np.array([[0.0, 1.0, 0.1, 2.0], [3.0, 2.0, 1.0, 3.0]])
    masker = shap.maskers.Independent(np.zeros((1, 3)))
    masker.clustering = tree
    explanation = shap.explainers.PartitionExplainer(value, masker)(np.ones((1, 3)))
    np.testing.assert_allclose(owen_values(table), explanation.values[0, :2], atol=1e-9)


def test_tables_of_other_shapes_are_refused() -> None:
    """Neither three rows nor a single axis make a union."""
    with pytest.raises(InputError, match=r"not shape \(3, 4\)"):
        owen_values(np.zeros((3, 4)))
    with pytest.raises(InputError, match=r"not shape \(4,\)"):
        owen_values(np.zeros(4))


def game(cut: SentenceLayout, seed: int) -> DictionaryScorer:
    """Any game over the players of a cut layout, the same for each prompt text."""

    def values(mask: int) -> list[float]:
        rng = np.random.default_rng([seed, mask])
        return [-float(nats) for nats in rng.exponential(5.0, len(cut.answer_ids))]

    return DictionaryScorer(values)


def chunk_shares(cut: SentenceLayout, layout: Layout, scorer: DictionaryScorer) -> tuple[Attribution, ...]:
    """Shapley shares over whole chunks in the game of the cut layout's players."""
    whole = DictionaryScorer(
        lambda mask: scorer.score(cut, [cut.mask_of([layout.players[b] for b in range(3) if mask >> b & 1])])[
            0
        ]
    )
    return shapley(whole, layout, tiny_spans()).attributions


def test_exact_shares_sum_to_the_chunk_s_share() -> None:
    """For any game through the seam: the chunk's Shapley share, shared out, with nothing to correct."""
    layout, spans = layout_of(), tiny_spans()
    cut = sentence_layout(layout, [1])
    scorer = game(cut, 1)
    attributions = chunk_shares(cut, layout, scorer)
    results = sentence_shares(scorer, layout, spans, attributions, 1)
    for result, attribution in zip(results, attributions, strict=True):
        assert result.is_exact
        assert sum(result.shares) == pytest.approx(attribution.shares[1], abs=1e-9)
        assert abs(result.correction) < 1e-4  # float32 log-probabilities
        assert result.standard_errors == (0.0, 0.0, 0.0)
        assert [LONG[s:e] for s, e in zip(result.starts, result.ends, strict=True)] == list(SENTENCES)
        assert result.cost.scored_coalitions == 2**5
        assert np.ptp(result.shares) > 0.1


def test_sampled_shares_approach_the_exact_ones() -> None:
    """Too dear to enumerate: shares still sum up, errors shrink, and 800 pairs lie within four of them."""
    layout, spans = layout_of(), tiny_spans()
    scorer = game(sentence_layout(layout, [1]), 3)
    attributions = chunk_shares(sentence_layout(layout, [1]), layout, scorer)
    exact = sentence_shares(scorer, layout, spans, attributions, 1)
    few, many = (
        sentence_shares(scorer, layout, spans, attributions, 1, max_coalitions=31, pairs=pairs, seed=5)
        for pairs in (8, 800)
    )
    for one, rough, fine in zip(exact, few, many, strict=True):
        assert not rough.is_exact
        assert sum(rough.shares) == pytest.approx(one.chunk_share, abs=1e-9)
        assert rough.correction != 0.0
        distance = np.abs(np.subtract(fine.shares, one.shares))
        assert (distance < 4 * np.array(fine.standard_errors)).all()
        assert max(fine.standard_errors) < max(rough.standard_errors) / 4
    again = sentence_shares(scorer, layout, spans, attributions, 1, max_coalitions=31, pairs=8, seed=5)
    assert [result.shares for result in again] == [result.shares for result in few]
    assert few[0].cost.scored_coalitions <= 2 * 8 * 4


def test_standard_errors_are_honest() -> None:
    """Over 200 seeds the spread of an estimate is what its standard errors say, within a third."""
    layout, spans = layout_of(), tiny_spans()[:1]
    cut = sentence_layout(layout, [1])
    table = {mask: game(cut, 9).score(cut, [mask])[0].tolist() for mask in range(32)}
    scorer = DictionaryScorer(table)
    attributions = chunk_shares(cut, layout, scorer)
    found = [
        sentence_shares(scorer, layout, spans, attributions, 1, max_coalitions=0, pairs=12, seed=seed)[0]
        for seed in range(200)
    ]
    spread = np.std([result.shares for result in found], axis=0, ddof=1)
    claimed = np.sqrt(np.mean(np.square([result.standard_errors for result in found]), axis=0))
    np.testing.assert_allclose(claimed, spread, rtol=1 / 3)


def test_a_single_sentence_takes_the_share_for_nothing() -> None:
    """Nothing to share out, nothing to score."""
    layout, spans = layout_of(), tiny_spans()
    scorer = game(sentence_layout(layout, [0]), 4)
    attributions = chunk_shares(sentence_layout(layout, []), layout, scorer)
    asked = len(scorer.asked)
    for result, attribution in zip(
        sentence_shares(scorer, layout, spans, attributions, 0), attributions, strict=True
    ):
        assert result.shares == (attribution.shares[0],)
        assert result.is_exact
    assert len(scorer.asked) == asked


def test_missing_shares_and_too_few_pairs_are_refused() -> None:
    """Shares of another method are not shared out, and one pair has no standard error."""
    layout, spans = layout_of(), tiny_spans()
    other = Attribution(span=0, method=Method.LIME, shares=(1.0, 2.0, 3.0))
    with pytest.raises(InputError, match="span 1 has no Shapley shares"):
        sentence_shares(DictionaryScorer({}), layout, spans, [other], 1)
    good = [Attribution(span=n, method=Method.SHAPLEY, shares=(1.0, 2.0, 3.0)) for n in (0, 1)]
    with pytest.raises(InputError, match="1 pair of orders"):
        sentence_shares(DictionaryScorer({}), layout, spans, good, 1, pairs=1)


def test_a_real_model_agrees_with_chunks_written_without_the_sentence() -> None:
    """Sentence coalitions on a model equal scoring the shortened chunk; shares sum up; LIME takes it too."""
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())
    layout, spans = layout_of(), tiny_spans()
    result = shapley(scorer, layout, spans)
    shared = sentence_shares(scorer, layout, spans, result.attributions, 1)
    for found, attribution in zip(shared, result.attributions, strict=True):
        assert sum(found.shares) == pytest.approx(attribution.shares[1], abs=1e-9)
        assert abs(found.correction) < 1e-4
        assert max(map(abs, found.shares)) > 0.01
    cut = sentence_layout(layout, [1])
    first = cut.full_mask & ~(1 << cut.players_of(1)[0])
    written = layout_of(chunks=(CHUNKS[0], f"{SENTENCES[1]}\n{SENTENCES[2]}", CHUNKS[2]))
    np.testing.assert_allclose(
        scorer.score(cut, [first]), scorer.score(written, [written.full_mask]), atol=1e-4
    )
    surrogate = lime(scorer, cut, spans)
    assert len(surrogate.weights[0]) == 5
    shares = surrogate.attributions[0].shares
    assert shares[1] == pytest.approx(sum(surrogate.weights[0][player] for player in cut.players_of(1)))
