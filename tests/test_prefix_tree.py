"""Scoring along the prefix tree gives what independent scoring gives, for any prompts, family or memory."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ragblame.attribution import prefix_tree
from ragblame.attribution.kv_pool import PooledLayer
from ragblame.attribution.layout import Layout
from ragblame.attribution.methods.shapley import shapley
from ragblame.attribution.prefix_tree import Row, Walk, longest_chain, plan
from ragblame.attribution.scorer import TransformersScorer, spent_since
from ragblame.attribution.sweep import Sweep
from ragblame.errors import ModelError
from tests.tiny_models import FAMILIES, MORE_FAMILIES, STATEFUL, WINDOWED, halved, tiny_model, tiny_tokenizer
from tests.tiny_traces import ANSWER, plain_layout, span_at

CHUNKS = (
    "The port of the checkout service is 8443.",
    "Alice Smith is on call for the gateway.",
    "Alice Smith is on call for the gateway.",  # the same again: prompts of two coalitions alike
    "Backups run at 02:30 every night and take an hour.",
    "8443",
)
PIECES = (
    "Answer from the context.\n1. ",
    0,
    "\n2. ",
    1,
    "\n3. ",
    2,
    "\n4. ",
    3,
    "\n5. ",
    4,
    "\nQuestion: port?\n",
)
ALL = range(1 << len(CHUNKS))
NATS = 1e-4

prompts_of_few_tokens = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=30, unique=True
)


def numbered() -> Layout:
    """Five chunks in a numbered list: labels merge with what follows, rows begin alike in many ways."""
    return plain_layout(PIECES, CHUNKS, tiny_tokenizer(), ANSWER)


def both_ways(scorer: TransformersScorer, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """All coalitions along the tree, then independently."""
    tree = scorer.score(layout, ALL)
    assert scorer.engine is not None
    assert scorer.engine.name == "prefix tree", scorer.engine.reason
    scorer.shares_prefixes = False
    alone = scorer.score(layout, ALL)
    scorer.shares_prefixes = True
    return tree, alone


def trie_size(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that have to be computed when every shared beginning is computed once, by brute force.

    The last token of each prompt is always computed: its prediction is the answer's first.
    """
    return len({p[:end] for p in prompts for end in range(1, len(p))}) + len(prompts)


@given(prompts_of_few_tokens)
@settings(deadline=None)
def test_a_plan_computes_the_tokens_of_the_trie(prompts: list[tuple[int, ...]]) -> None:
    """With no run too short to share, the rows' own tokens are exactly those of the trie over the prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_tree, "MIN_SHARED", 1)
        rows = plan(prompts)
    assert sorted(row.prompt for row in rows) == sorted(prompts)
    assert sum(len(row.prompt) - row.start for row in rows) == trie_size(prompts)
    for row in rows:
        assert 0 <= row.start < len(row.prompt)
        if row.parent is not None:
            assert row.prompt[: row.start] == row.parent.prompt[: row.start]


@given(
    prompts_of_few_tokens,
    st.integers(0, 40),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sets(st.integers(0, 20)),
)
@settings(deadline=None)
def test_a_walk_keeps_what_is_needed_and_no_more(
    prompts: list[tuple[int, ...]], spare: int, limit: int, shared: int, failing: set[int]
) -> None:
    """Any memory that holds a chain, any batch size, any failed batch: each row once, on its beginning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_tree, "MIN_SHARED", shared)
        rows = plan(prompts)
    slots = longest_chain(rows) + spare
    walk = Walk(rows, slots)
    memory: dict[int, int] = {}
    done: list[tuple[int, ...]] = []
    taken = 0
    while batch := walk.take(lambda batch, row: len(batch) < limit):
        assert len(batch) <= limit
        taken += 1
        if taken in failing:
            walk.postpone(batch)
            continue
        for row in batch:
            assert tuple(memory[slot] for slot in row.chain.tolist()) == row.prompt[: row.start]
        for row in batch:
            new = row.prompt[row.start : row.start + row.kept]
            memory.update(zip(row.own.tolist(), new, strict=True))
        assert all(1 <= slot <= slots for slot in memory)
        walk.finish(batch)
        done.extend(row.prompt for row in batch)
    assert sorted(done) == sorted(prompts)


def all_coalitions(chunks: int) -> list[tuple[int, ...]]:
    """Prompts of chunks of ten tokens, with a question behind."""
    texts = [(10 + number,) * 10 for number in range(chunks)]
    return [
        (1, *sum((text for i, text in enumerate(texts) if mask >> i & 1), ()), 2, 2)
        for mask in range(1 << chunks)
    ]


@pytest.mark.parametrize("part", [1, 8])
def test_a_walk_uses_memory_again(part: int) -> None:
    """All coalitions of ten chunks in full batches, whether memory holds all that is shared or an eighth."""
    rows = plan(all_coalitions(10))
    whole = sum(row.kept for row in rows)
    slots = whole // part
    walk = Walk(rows, slots)
    sizes, least = [], slots
    while batch := walk.take(lambda batch, row: len(batch) < 4):
        sizes.append(len(batch))
        least = min(least, len(walk._free))
        walk.finish(batch)
    assert len(sizes) <= 1.02 * len(rows) / 4
    assert slots - least <= whole / 3


def test_a_walk_without_room_for_one_chain_is_refused() -> None:
    """Fewer slots than the longest chain could never finish."""
    rows = plan([(1,) * 20 + (2,), (1,) * 20 + (3,) * 20 + (2,), (1,) * 20 + (3,) * 20 + (4,) * 3])
    assert longest_chain(rows) > 20
    with pytest.raises(ValueError, match="slots"):
        Walk(rows, longest_chain(rows) - 1)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_tree_is_independent_scoring(family: str) -> None:
    """Every family in its own attention, ALiBi and experts included: the same values within 1e-4 nats."""
    scorer = TransformersScorer(tiny_model(family, attention=None), tiny_tokenizer())
    tree, alone = both_ways(scorer, numbered())
    np.testing.assert_allclose(tree, alone, atol=NATS)
    assert np.ptp(alone, axis=0).max() > 0.1  # coalitions do differ


@pytest.mark.parametrize("family", WINDOWED)
def test_a_window_shorter_than_the_prompt_is_exact(family: str) -> None:
    """Keys are kept whole and masks know the window, so nothing another coalition needs is dropped."""
    layout = numbered()
    assert len(layout.prompt_ids(layout.full_mask)) > 3 * 16
    scorer = TransformersScorer(tiny_model(family, attention=None, window=16), tiny_tokenizer())
    tree, alone = both_ways(scorer, layout)
    np.testing.assert_allclose(tree, alone, atol=NATS)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_batches_of_any_size(batch_size: int, attention: str) -> None:
    """One row at a time or a few, in either attention: the same values."""
    scorer = TransformersScorer(
        tiny_model("llama", attention=attention), tiny_tokenizer(), batch_size=batch_size
    )
    tree, alone = both_ways(scorer, numbered())
    np.testing.assert_allclose(tree, alone, atol=NATS)


@pytest.mark.parametrize("family", STATEFUL)
def test_a_running_state_is_scored_independently_and_said(family: str) -> None:
    """Mamba and hybrid linear attention have no keys to share: right values, the reason, and a note."""
    scorer = TransformersScorer(tiny_model(family, attention=None, layers=2), tiny_tokenizer())
    layout = numbered()
    table = scorer.score(layout, range(8))
    assert scorer.engine is not None
    assert scorer.engine.name == "independent"
    assert repr(scorer.family) in scorer.engine.reason
    one_by_one = [scorer.score(layout, [mask])[0] for mask in range(8)]
    np.testing.assert_allclose(table, one_by_one, atol=NATS)
    result = shapley(scorer, layout, [span_at(ANSWER, "8443")])
    assert "one by one" in result.notes[0]


def test_half_precision_is_as_near_to_float32_as_independent_scoring() -> None:
    """In bfloat16 both ways round differently; the tree's error is no larger than the other's."""
    model = tiny_model("qwen2")
    layout = numbered()
    exact = TransformersScorer(model, tiny_tokenizer()).score(layout, ALL)
    tree, alone = both_ways(TransformersScorer(halved(tiny_model("qwen2")), tiny_tokenizer()), layout)
    assert np.sqrt(np.mean((tree - exact) ** 2)) < 1.2 * np.sqrt(np.mean((alone - exact) ** 2))


def test_memory_is_bounded_by_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any ``cache_bytes`` down to one prompt's keys gives the same values; with less it says independent."""
    layout = numbered()
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())
    token = 3 * 2 * 2 * 8 * 4  # layers, keys and values, heads, size, bytes
    rows = plan(list({layout.prompt_ids(mask) for mask in ALL}))
    least, most = longest_chain(rows), sum(row.kept for row in rows)
    assert least < most // 3
    pools = []
    original = Sweep._run

    def noting(self: Sweep, walk: Walk, pool: object) -> object:
        pools.append(0 if pool is None else pool.slots)  # type: ignore[attr-defined]
        return original(self, walk, pool)  # type: ignore[arg-type]

    monkeypatch.setattr(Sweep, "_run", noting)
    expected = scorer.score(layout, ALL)
    assert pools.pop() == most
    for slots in (least, least + 7, (least + most) // 2):
        scorer.cache_bytes = slots * token
        np.testing.assert_allclose(scorer.score(layout, ALL), expected, atol=NATS)
        assert pools.pop() == slots
    scorer.cache_bytes = least * token - 1
    np.testing.assert_allclose(scorer.score(layout, ALL), expected, atol=NATS)
    assert scorer.engine is not None
    assert scorer.engine.name == "independent"
    assert "cache_bytes" in scorer.engine.reason


@pytest.mark.parametrize("shares_prefixes", [True, False])
def test_batches_shrink_when_memory_ends(shares_prefixes: bool) -> None:
    """A failed allocation halves the batch, the values stay, and the engine says so."""
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())
    layout = numbered()
    expected = scorer.score(layout, ALL)
    scorer.shares_prefixes = shares_prefixes

    def small_memory(_: object, __: object, named: dict[str, Tensor]) -> None:
        if len(named["input_ids"]) > 3:
            raise torch.OutOfMemoryError("injected")

    handle = scorer.model.register_forward_pre_hook(small_memory, with_kwargs=True)
    np.testing.assert_allclose(scorer.score(layout, ALL), expected, atol=NATS)
    handle.remove()
    assert scorer.engine is not None
    assert scorer.engine.name == ("prefix tree" if shares_prefixes else "independent")
    assert "memory ended" in scorer.engine.reason


def test_no_memory_for_one_coalition_is_an_error() -> None:
    """With nothing left to halve, the message names the next step."""
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())

    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("injected")

    scorer.model.register_forward_pre_hook(no_memory)
    with pytest.raises(ModelError, match="lower cache_bytes"):
        scorer.score(numbered(), ALL)


def test_other_faults_are_not_taken_for_memory() -> None:
    """A fault of the model comes through as it is."""
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())

    def broken(*_: object) -> None:
        raise RuntimeError("broken kernel")

    scorer.model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="broken kernel"):
        scorer.score(numbered(), ALL)


def test_a_cache_that_changes_values_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the library to mishandle a cache, scoring would be independent, and say how far it is off."""
    original = PooledLayer._whole

    def shifted(self: PooledLayer, pool: Tensor, states: Tensor) -> Tensor:
        whole = original(self, pool, states)
        return whole.roll(1, dims=2) if whole.shape[2] > states.shape[2] else whole

    monkeypatch.setattr(PooledLayer, "_whole", shifted)
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())
    scorer.score(numbered(), ALL)
    assert scorer.engine is not None
    assert scorer.engine.name == "independent"
    assert "off by" in scorer.engine.reason


def test_an_abort_stops_within_one_batch() -> None:
    """``watched`` is asked before every batch; once it raises, no forward runs, and later calls are whole."""
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer(), batch_size=4)
    layout = numbered()
    forwards: list[int] = []
    scorer.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    parts: list[float] = []

    def look(part: float) -> None:
        parts.append(part)
        if len(parts) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), scorer.watched(look):
        scorer.score(layout, ALL)
    assert len(forwards) == 3
    assert parts == sorted(parts)
    assert 0 == parts[0] < parts[-1] < 1
    assert scorer.score(layout, ALL).shape == (32, len(layout.answer_ids))
    assert len(parts) == 4


def test_the_tree_pushes_fewer_tokens_and_counts_them() -> None:
    """Cost says what ran: far fewer tokens than independent scoring, padding included."""
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())
    layout = numbered()
    pushed: list[int] = []
    scorer.model.register_forward_pre_hook(
        lambda _, __, named: pushed.append(named["input_ids"].numel()), with_kwargs=True
    )
    before = scorer.cost
    scorer.score(layout, ALL)
    cost = spent_since(scorer, before)
    assert (cost.tokens, cost.forwards, cost.scored_coalitions) == (sum(pushed), len(pushed), 32)
    alone = sum(len(layout.prompt_ids(mask)) + len(layout.answer_ids) for mask in ALL)
    assert cost.tokens < 0.7 * alone


def test_few_coalitions_are_scored_independently() -> None:
    """Seven coalitions share too little to wait for each other, and that is worth no note."""
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())
    layout = numbered()
    scorer.score(layout, range(7))
    assert scorer.engine is not None
    assert (scorer.engine.name, "fewer" in scorer.engine.reason) == ("independent", True)


def test_rows_of_a_coalition_tree_are_one_chunk_each() -> None:
    """Every coalition goes on from itself without its last chunk: 2**n rows of one chunk and the tail."""
    head, tail = tuple(range(10)), (90, 91, 92)
    chunks = [tuple(range(100 * i, 100 * i + 20)) for i in range(1, 6)]

    def prompt(mask: int) -> tuple[int, ...]:
        return head + sum((chunk for i, chunk in enumerate(chunks) if mask >> i & 1), ()) + tail

    rows: list[Row] = plan([prompt(mask) for mask in ALL])
    assert [len(row.prompt) - row.start for row in rows if row.parent] == [20 + 3] * 31
    assert longest_chain(rows) == 10 + 4 * 20
