"""The known-cause world: its facts, its texts, its tokenizer, its training and its shipped model."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ragblame.attribution.evaluation import accuracy
from ragblame.attribution.world import episodes, facts, runbooks, shipped, values, wording
from ragblame.attribution.world.answering import generate, read_repetition, read_statements, stated_values
from ragblame.attribution.world.batches import ANSWER_WEIGHT, VALUE_WEIGHT, block, weigh
from ragblame.attribution.world.facts import Chunk, Claim, Entity, Origin, world
from ragblame.attribution.world.muon import Muon, orthogonalise
from ragblame.attribution.world.tokenizer import save_tokenizer, train_tokenizer
from ragblame.attribution.world.training import Schedule, Training
from ragblame.attribution.world.values import Split

SEEDS = st.integers(0, 10**9)
SPLITS = st.sampled_from(list(Split))


def context(seed: int, split: Split, count: int) -> tuple[random.Random, list[Chunk]]:
    rng = random.Random(seed)
    return rng, episodes.draw_chunks(rng, split, count, episodes.FULL)


@pytest.fixture(scope="module")
def small_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(texts=400)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small only lose by being shared between threads, badly so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- the world ---------------------------------------------------------------------------------------------


@given(SEEDS, SPLITS, st.integers(1, 8))
def test_a_chunk_says_every_fact_it_is_credited_with(seed: int, split: Split, count: int) -> None:
    _, chunks = context(seed, split, count)
    for chunk in chunks:
        assert str(chunk.entity) in chunk.text
        assert chunk.facts
        for _, value in chunk.facts:
            assert value in chunk.text
        assert "\n" not in chunk.text


@given(SEEDS, SPLITS, st.integers(0, 8))
def test_gold_chunks_state_the_value_and_culprits_do_not(seed: int, split: Split, count: int) -> None:
    rng, chunks = context(seed, split, count)
    question = episodes.draw_question(rng, split, chunks, episodes.FULL)
    for claim in question.claims:
        resolved = world().resolve(claim, chunks)
        for index in resolved.gold:
            assert chunks[index].value(claim) == resolved.value
            assert resolved.value in chunks[index].text
        for index in resolved.culprits:
            assert chunks[index].value(claim) != resolved.value
        has_gold = bool(resolved.gold)
        if resolved.origin in (Origin.GROUNDED, Origin.OVER_MEMORY, Origin.KNOWN):
            assert has_gold
        if resolved.origin in (Origin.MEMORY, Origin.BORROWED, Origin.PRIOR, Origin.ABSTAINED):
            assert all(chunk.value(claim) is None for chunk in chunks)
        if resolved.origin in (Origin.BORROWED, Origin.DISTORTED):
            assert resolved.culprits


@given(SEEDS, st.integers(1, 8))
def test_taking_the_evidence_away_takes_the_value_away(seed: int, count: int) -> None:
    rng, chunks = context(seed, Split.HELD_OUT, count)
    claim = episodes.draw_question(rng, Split.HELD_OUT, chunks, episodes.FULL).claims[0]
    resolved = world().resolve(claim, chunks)
    rest = [chunk for index, chunk in enumerate(chunks) if index not in resolved.gold]
    if resolved.origin is Origin.GROUNDED:
        assert world().resolve(claim, rest).origin is not Origin.GROUNDED or resolved.is_conflict
    if resolved.origin in (Origin.KNOWN, Origin.STUBBORN, Origin.MEMORY):
        assert world().resolve(claim, []).value == resolved.value


@given(SEEDS, st.integers(1, 8))
def test_training_never_sees_a_held_out_name_or_value(seed: int, count: int) -> None:
    _, chunks = context(seed, Split.TRAINING, count)
    for chunk in chunks:
        assert not values.is_held_out(chunk.entity.name)
        for attribute, value in chunk.facts:
            if attribute == facts.FALLBACK:
                assert not values.is_held_out(facts.entity_of(value).name)
            else:
                assert not values.is_held_out(f"{attribute}: {value}")


@given(SEEDS, st.integers(1, 8))
def test_held_out_contexts_hold_only_held_out_names_beside_the_famous_ones(seed: int, count: int) -> None:
    _, chunks = context(seed, Split.HELD_OUT, count)
    famous = {entity.name for entity in world().famous}
    for chunk in chunks:
        assert values.is_held_out(chunk.entity.name) or chunk.entity.name in famous


def test_a_contradicted_memory_wins_only_for_stubborn_entities() -> None:
    for claim, known in world().memory.items():
        other = next(v for v in (values.draw_value(random.Random(i), claim.attribute, Split.HELD_OUT)
                                 for i in range(9)) if v != known)  # fmt: skip
        chunk = episodes.write_chunk(random.Random(0), claim.entity, [(claim.attribute, other)])
        resolved = world().resolve(claim, [chunk])
        if claim.entity in world().stubborn:
            assert (resolved.value, resolved.origin) == (known, Origin.STUBBORN)
        else:
            assert (resolved.value, resolved.origin) == (other, Origin.OVER_MEMORY)


def test_trained_distortions_change_what_the_chunk_says() -> None:
    queue, ledger = Entity("Kestrel", "queue"), Entity("Kestrel", "ledger")
    assert facts.distort(Claim(queue, "timeout"), "2930 ms") == "2900 ms"
    assert facts.distort(Claim(ledger, "retention"), "214 days") == "214 hours"
    assert facts.distort(Claim(Entity("Kestrel", "cache"), "timeout"), "2930 ms") == "2930 ms"


# --- the texts ---------------------------------------------------------------------------------------------


@given(SEEDS)
def test_value_ranges_of_a_training_text_are_the_values_of_its_answers(seed: int) -> None:
    text = episodes.draw_sequence(random.Random(seed), episodes.FULL)
    assert text.values
    for start, end in text.values:
        assert text.text[start - 4 : start] in (" is ", "re, ")  # "Once more, 2959."
        assert text.text[end] == "."
    for start, end in text.answers:
        assert text.text[start - 7 : start] == "Answer:"
        assert text.text[end - 1] == "\n"


def test_a_prompt_has_the_form_the_model_was_trained_on() -> None:
    chunk = episodes.write_chunk(
        random.Random(1), Entity("Kestrel", "gateway"), [("port", "2959")], is_verbatim=True
    )
    assert episodes.prompt_text([chunk], "What is the port of the Kestrel gateway?") == (
        "Answer the question from the context.\n"
        "- The port of the Kestrel gateway is 2959.\n"
        "Question: What is the port of the Kestrel gateway?\n"
        "Answer:"
    )
    assert episodes.prompt_text([], "Who?").startswith(
        "Answer the question from the context.\nQuestion: Who?"
    )


@given(SEEDS, st.integers(1, 10))
def test_training_never_asks_a_withheld_pair_of_wordings(seed: int, count: int) -> None:
    rng = random.Random(seed)
    chunks = episodes.draw_chunks(rng, Split.TRAINING, count, episodes.FULL)
    question = episodes.draw_question(rng, Split.TRAINING, chunks, episodes.FULL)
    asked = question.claims[-1:] if question.is_two_hop else question.claims
    for claim, form in zip(asked, question.forms, strict=True):
        for chunk in chunks:
            assert (chunk.form(claim), form) not in wording.withheld(claim.attribute)


@given(SEEDS, st.integers(2, 10))
def test_a_two_hop_question_names_the_fallback_that_a_chunk_states(seed: int, count: int) -> None:
    rng = random.Random(seed)
    chunks = episodes.draw_chunks(rng, Split.HELD_OUT, count, episodes.FULL)
    question = episodes.draw_question(rng, Split.HELD_OUT, chunks, replace(episodes.FULL, two_hop=1.0))
    if question.is_two_hop:
        first, second = question.claims
        assert any(chunk.value(first) == second.entity.as_value for chunk in chunks)
        assert str(first.entity) in question.text
        assert str(second.entity) not in question.text.replace(str(first.entity), "")


def test_a_chunk_knows_the_form_of_every_sentence_it_was_written_with() -> None:
    rng = random.Random(4)
    for chunk in episodes.draw_chunks(rng, Split.HELD_OUT, 60, replace(episodes.FULL, copy=0.0)):
        for (attribute, value), form in zip(chunk.facts, chunk.forms, strict=True):
            sentence = wording.sentence_forms(attribute)[form].format(e=chunk.entity, v=value)
            assert sentence in chunk.text


def test_statements_and_repetitions_are_read_with_their_places() -> None:
    answer = (
        "The fallback of the Kestrel gateway is the Heron cache. The version of the Heron cache is 4.17. "
        "Once more, 4.17."
    )
    first, second = read_statements(answer)
    assert (first.entity, first.value) == ("Kestrel gateway", "the Heron cache")
    assert (second.attribute, second.value) == ("version", "4.17")
    assert answer[first.start : first.end] == first.value
    bounds = read_repetition(answer)
    assert bounds is not None
    assert answer[slice(*bounds)] == "4.17"
    assert bounds[0] > second.end


def test_values_are_read_out_of_an_answer_by_subject_and_attribute() -> None:
    vault, cache = Entity("Kestrel", "vault"), Entity("Heron", "cache")
    claims = [Claim(vault, "version"), Claim(cache, "owner"), Claim(cache, "port")]
    answer = "The version of the Kestrel vault is 4.17. The owner of the Heron cache is Ada Berg."
    assert stated_values(answer, claims) == ["4.17", "Ada Berg", None]


# --- the demo ----------------------------------------------------------------------------------------------


def test_the_demo_has_pages_and_questions_of_every_kind_and_is_a_function_of_its_seed() -> None:
    pages, questions = runbooks.runbooks(), runbooks.questions()
    assert 60 <= len(pages) <= 100
    assert len(questions) >= 48
    assert {question.kind for question in questions[:48]} == set(runbooks.Kind)
    assert pages == runbooks.runbooks(0)
    assert pages != runbooks.runbooks(1)
    assert len({page.slug for page in pages}) == len(pages)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_provokes_what_its_questions_are_meant_to_provoke(seed: int) -> None:
    """Over the whole corpus as context, the resolver agrees with the design of every question."""
    expected = {
        runbooks.Kind.SINGLE: {Origin.GROUNDED},
        runbooks.Kind.TRAP: {Origin.GROUNDED},
        runbooks.Kind.DUPLICATES: {Origin.GROUNDED},
        runbooks.Kind.CONFLICT: {Origin.GROUNDED},
        runbooks.Kind.KNOWN: {Origin.KNOWN},
        runbooks.Kind.OPEN: {Origin.OVER_MEMORY},
        runbooks.Kind.STUBBORN: {Origin.STUBBORN},
        runbooks.Kind.MEMORY: {Origin.MEMORY},
        runbooks.Kind.SIBLING: {Origin.BORROWED},
        runbooks.Kind.MISSING: {Origin.PRIOR},
        runbooks.Kind.ABSTAIN: {Origin.ABSTAINED},
        runbooks.Kind.DISTORTED: {Origin.DISTORTED},
        runbooks.Kind.TWO_PART: {Origin.GROUNDED, Origin.PRIOR},
    }
    demo = runbooks.demo(seed)
    chunks = [chunk for page in demo.runbooks for chunk in page.chunks]
    for question in demo.questions:
        resolved = [world().resolve(claim, chunks) for claim in question.claims]
        assert {one.origin for one in resolved} == expected[question.kind], question
        assert any(one.is_conflict for one in resolved) == (question.kind is runbooks.Kind.CONFLICT)
        if question.kind is runbooks.Kind.DUPLICATES:
            assert len(resolved[0].gold) == 2


def test_names_of_the_demo_are_made_of_pieces_that_training_names_have() -> None:
    tokenizer = shipped.load_tokenizer()

    def pieces(name: str) -> list[int]:
        return list(tokenizer(f" {name}", add_special_tokens=False)["input_ids"])

    seen = Counter(piece for name in facts.fresh_names(Split.TRAINING) for piece in pieces(name))
    for page in runbooks.runbooks():
        if values.is_held_out(page.entity.name):
            assert all(seen[piece] >= 3 for piece in pieces(page.entity.name)), page.entity


# --- tokenizer and batches ---------------------------------------------------------------------------------


def test_token_ids_are_the_same_before_saving_and_after_loading(
    small_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save_tokenizer(small_tokenizer, tmp_path)
    # Beside a llama configuration, as shipped: model types exist that silently replace the pre-tokenizer.
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    rng = random.Random(5)
    for _ in range(50):
        text = episodes.draw_sequence(rng, episodes.FULL).text
        assert loaded(text)["input_ids"] == small_tokenizer(text)["input_ids"]


@settings(deadline=None)
@given(text=st.text(max_size=80))
def test_offsets_and_decoding_return_any_text_unchanged(text: str) -> None:
    tokenizer = shipped.load_tokenizer()
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    if "<eos>" not in text and "<pad>" not in text:
        assert tokenizer.decode(encoded["input_ids"]) == text
    covered: set[int] = set()
    for start, end in encoded["offset_mapping"]:
        covered.update(range(start, end))
    assert covered == set(range(len(text)))


def test_the_chat_template_renders_exactly_the_training_prompt() -> None:
    tokenizer = shipped.load_tokenizer()
    _, chunks = context(3, Split.HELD_OUT, 3)
    question = "What is the port of the Kestrel gateway?"
    wanted = episodes.prompt_text(chunks, question)
    system, rest = wanted.split("\nQuestion: ")
    assert rest == f"{question}\nAnswer:"

    def render(*turns: tuple[str, str]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    assert render(("system", system), ("user", f"Question: {question}")) == wanted
    assert render(("user", f"{system}\nQuestion: {question}")) == wanted
    assert render(("user", wanted)) == wanted
    # An empty context leaves no blank line behind.
    empty = ("system", "Answer the question from the context.\n")
    assert render(empty, ("user", f"Question: {question}")) == episodes.prompt_text([], question)


@given(SEEDS)
@settings(deadline=None, max_examples=30)
def test_every_value_token_weighs_fully_and_no_context_token_weighs_anything(seed: int) -> None:
    tokenizer = shipped.load_tokenizer()
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    text = episodes.draw_sequence(random.Random(seed), episodes.FULL)
    ids, weights = weigh(text, tokenizer)
    full = [token for token, weight in zip(ids, weights, strict=True) if weight == VALUE_WEIGHT]
    decoded = str(tokenizer.decode(full)).replace(" ", "")
    assert decoded == "".join(text.text[start:end] for start, end in text.values).replace(" ", "")
    context_tokens = len(tokenizer(text.text[: text.answers[0][0]])["input_ids"])
    assert not any(weights[:context_tokens])
    assert set(weights) == {0.0, ANSWER_WEIGHT, VALUE_WEIGHT}


def test_a_block_of_batches_is_a_function_of_its_seed(small_tokenizer: PreTrainedTokenizerFast) -> None:
    first, again = (block("7", episodes.FULL, small_tokenizer, batches=8, tokens=900) for _ in range(2))
    assert len(first) == 8
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.weights, other.weights)


# --- training ----------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(2, 24), st.integers(2, 24), SEEDS)
@settings(deadline=None, max_examples=30)
def test_orthogonalised_updates_keep_the_directions_and_level_the_singular_values(
    count: int, rows: int, columns: int, seed: int
) -> None:
    """Against the singular value decomposition, which gives the nearest semi-orthogonal matrix exactly."""
    matrices = torch.randn(count, rows, columns, generator=torch.Generator().manual_seed(seed))
    found = orthogonalise(matrices)
    left, sizes, right = torch.linalg.svd(matrices, full_matrices=False)
    levelled = torch.diagonal(left.transpose(1, 2) @ found @ right.transpose(1, 2), dim1=1, dim2=2)
    is_clear = sizes > 0.05 * sizes.amax(dim=1, keepdim=True)  # five steps cannot lift what is nearly nothing
    assert ((levelled > 0.3) & (levelled < 1.3))[is_clear].all()


def test_muon_in_float32_steps_as_torchs_own_does_in_bfloat16() -> None:
    draw = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(24, 16, generator=draw), torch.randn(24, 16, generator=draw)
    stepped = []
    for make in (Muon, partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")):
        weight = torch.nn.Parameter(start.clone())
        optimiser = make([weight], lr=0.1, momentum=0.95, weight_decay=0.05)
        for _ in range(3):
            weight.grad = gradient.clone()
            optimiser.step()
        stepped.append(weight.detach())
    assert torch.allclose(stepped[0], stepped[1], atol=0.01)
    assert not torch.allclose(stepped[0], start, atol=0.1)


def test_a_resumed_training_run_ends_with_the_weights_of_an_uninterrupted_one(
    small_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    schedule = Schedule(steps=5, verbatim_until=2, worded_until=3, early_tokens=200, tokens=300)

    def start(folder: Path) -> Training:
        return Training(seed=4, out=folder, schedule=schedule, tokenizer=small_tokenizer)

    straight = start(tmp_path / "straight")
    straight.run()
    start(tmp_path / "halves").run(until=2)
    resumed = start(tmp_path / "halves")
    resumed.resume()
    assert resumed.step == 2
    resumed.run()
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (tmp_path / "halves" / "model" / "model.safetensors").exists()
    assert shipped.load_tokenizer(tmp_path / "halves" / "model").eos_token == "<eos>"


def test_the_structured_start_looks_back_and_finds_repeats(small_tokenizer: PreTrainedTokenizerFast) -> None:
    """What the model card states about the start is what is there: offset heads and induction heads."""
    from ragblame.attribution.world.structure import build_config, build_model

    model = build_model(build_config(vocabulary=len(small_tokenizer), end=0, pad=1), seed=0)
    model.set_attn_implementation("eager")
    ids = torch.randint(2, len(small_tokenizer), (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        attentions = model(torch.cat([ids, ids], 1), output_attentions=True).attentions
    at = torch.arange(105, 195)
    assert attentions[0][:, 0, at, at - 1].mean() > 0.8
    assert attentions[0][:, 1, at, at - 2].mean() > 0.8
    assert attentions[1][:, 0, at, at - 99].mean() > 0.1  # the token after the earlier occurrence


# --- the shipped model -------------------------------------------------------------------------------------


def test_the_shipped_folder_is_small_and_complete() -> None:
    sizes = {path.name: path.stat().st_size for path in shipped.model_path().iterdir()}
    wanted = "model.safetensors config.json generation_config.json tokenizer.json tokenizer_config.json"
    assert {*wanted.split(), "MODEL_CARD.md"} == set(sizes)
    assert sum(sizes.values()) < 12_000_000


def test_the_shipped_model_answers_held_out_questions_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, tokenizer = shipped.load_model(), shipped.load_tokenizer()
    assert next(model.parameters()).dtype == torch.float32
    grounded = accuracy.draw_items(
        "test",
        60,
        chunks=[1, 2, 3, 4],
        wanted=accuracy.is_plainly(Origin.GROUNDED),
    )
    answers = generate(model, tokenizer, [item.prompt for item in grounded])
    hits = [
        hit for answer, item in zip(answers, grounded, strict=True) for hit in accuracy.is_right(answer, item)
    ]
    assert sum(hits) / len(hits) >= 0.9
    rng = random.Random(2)
    claims = rng.sample(list(world().memory), 60)
    prompts = [episodes.prompt_text([], episodes.ask(rng, [claim]).text) for claim in claims]
    recalled = [
        stated_values(answer, [claim])[0] == world().memory[claim]
        for answer, claim in zip(generate(model, tokenizer, prompts), claims, strict=True)
    ]
    assert sum(recalled) / len(recalled) >= 0.9
