"""The learned support model: what it reads, what it learns from, and what it says."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ragblame.attribution.evaluation.labelled import Label, LabelledAnswer, read_labelled
from ragblame.attribution.support_model import weights
from ragblame.attribution.support_model.adapter import add
from ragblame.attribution.support_model.adapting import AdaptedEncoder, adapt
from ragblame.attribution.support_model.cutting import MAX_RUN, Cutter, Run
from ragblame.attribution.support_model.encoder import LAYERS, Encoder
from ragblame.attribution.support_model.examples import Example, Part, example, examples, exchanged, part_of
from ragblame.attribution.support_model.model import AT_ONCE, MAX_ANSWER, SupportModel
from ragblame.attribution.support_model.network import Memory
from ragblame.attribution.support_model.token_classifier import TokenClassifier
from ragblame.attribution.support_model.training import labels_of, train
from ragblame.attribution.verdicts.learned import logit, sigmoid
from ragblame.errors import ModelError
from ragblame.minilm_files import find_folder
from ragblame.records import Chunk

DATA = Path(__file__).parents[2] / "shared" / "data"
QUESTION = "How long is the warranty of the Orion pump?"
CHUNKS = (
    "The Orion pump was released in 2019. Its warranty is 36 months from the date of purchase.",
    "The Vega pump is lighter and is sold in Europe only.",
)


@pytest.fixture(scope="module")
def cutter() -> Cutter:
    return Cutter(weights.fresh().tokenizer)


@pytest.fixture(scope="module")
def model() -> SupportModel:
    return SupportModel.load()


TEXTS = st.text(st.characters(codec="utf-8"), max_size=120) | st.lists(
    st.sampled_from(["warranty", "36", "months", "Öl", "東京", "🙂", "e\u0301", ".", "\r\n", "مرحبا"]),
    max_size=900,
).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, st.lists(TEXTS, max_size=4))
def test_every_token_of_answer_and_chunks_is_read_once_and_offsets_hold(
    cutter: Cutter, question: str, answer: str, chunks: list[str]
) -> None:
    """Runs fit the encoder and tile the texts; every array has one row a token; offsets lie inside."""
    reading = cutter.cut(question, answer, chunks)
    assert all(len(run.ids) <= MAX_RUN + 2 for run in (*reading.said, *reading.evidence))
    said = [token for run in reading.said for token in run.ids[run.start : run.end]]
    assert said == cutter.tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert len(said) == reading.tokens == len(reading.ends) == len(reading.stems) == len(reading.flags)
    assert np.all((reading.starts >= 0) & (reading.ends <= len(answer)) & (reading.starts <= reading.ends))
    evidence = [token for run in reading.evidence for token in run.ids[run.start : run.end]]
    assert len(evidence) == len(reading.evidence_stems) == len(reading.evidence_flags)
    if not reading.left_out:
        told = cutter.tokenizer(chunks, add_special_tokens=False)["input_ids"] if chunks else []
        assert evidence == [token for row in told for token in row]
        places = [position for position, row in enumerate(told) for _ in row]
        assert reading.evidence_chunks.tolist() == places


def test_equal_words_have_equal_numbers(cutter: Cutter) -> None:
    """ "Pumps" of the chunk is the answer's "pump"; what the answer does not say has no number."""
    reading = cutter.cut("", "a pump", ["Pumps fail"])
    assert reading.evidence_stems[0] == reading.stems[1] >= 0
    assert reading.evidence_stems[-1] == -1


def test_with_too_many_chunks_those_with_the_answers_words_are_read(cutter: Cutter) -> None:
    """What the cap leaves out is counted, and the passage that holds the answer is not among it."""
    few = Cutter(cutter.tokenizer, max_evidence=300)
    noise = ["lorem ipsum dolor sit amet " * 20 for _ in range(8)]
    reading = few.cut(QUESTION, "The warranty is 36 months.", [*noise, CHUNKS[0]])
    assert len(reading.evidence_stems) <= 300
    assert reading.left_out > 0
    assert 8 in reading.evidence_chunks


def original_encoder() -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(find_folder(), local_files_only=True).eval()


def test_the_packed_encoder_is_the_original(cutter: Cutter) -> None:
    """Runs of any lengths, packed into one row, have the vectors that transformers gives each run alone."""
    original = original_encoder()
    readings = [
        cutter.cut(QUESTION, "It is 36 months.", CHUNKS),
        cutter.cut("Who?", "Nobody knows that. " * 60, ["x " * 700, "y"]),
        cutter.cut("q", "🙂", []),
    ]
    runs = [run for reading in readings for run in (*reading.said, *reading.evidence)]
    for run, ours in zip(runs, Encoder(original_encoder(), torch.float32)(runs), strict=True):
        with torch.inference_mode():
            states = original(torch.tensor([run.ids]), output_hidden_states=True).hidden_states
        wanted = torch.cat([states[layer][0] for layer in LAYERS], -1)[run.start : run.end]
        assert torch.allclose(ours, wanted, atol=1e-4)


def test_half_precision_moves_no_probability(cutter: Cutter) -> None:
    """Where a processor is fast in bfloat16, the shipped model says what it says elsewhere."""
    readers = weights.load_learned(weights.SHIPPED)[1]
    readings = [
        cutter.cut(QUESTION, f"The warranty of the Orion pump is {months} months.", CHUNKS)
        for months in (24, 36)
    ]
    said = []
    for dtype in (torch.float32, torch.bfloat16):
        batch = Memory(Encoder(original_encoder(), dtype)).batch(readings)
        with torch.inference_mode():
            said.append([reader(batch)[1].sigmoid() for reader in readers])
    for exact, half in zip(*said, strict=True):
        assert torch.allclose(exact, half, atol=0.02)


def test_an_encoder_learns_what_is_added_to_it_later(cutter: Cutter) -> None:
    """The encoder that is trained, with its changes, is the one that reads with these changes added."""
    torch.manual_seed(0)
    learning = AdaptedEncoder(original_encoder(), torch.float32).eval()
    for name, value in learning.named_parameters():
        if name.endswith(".up"):
            assert not bool(value.any())  # at first nothing is changed
            value.data = torch.randn(value.shape) * 0.05
    reading = cutter.cut(QUESTION, "It is 36 months.", CHUNKS)
    runs = [*reading.said, *reading.evidence]
    with torch.inference_mode():
        trained = learning(runs)
    model = original_encoder()
    published = Encoder(original_encoder(), torch.float32)(runs)
    add(model, learning.changes())
    for run, ours, plain in zip(runs, Encoder(model, torch.float32)(runs), published, strict=True):
        assert torch.allclose(ours, trained[run], atol=1e-4)
        assert not torch.allclose(ours, plain, atol=0.1)


def test_changes_of_another_encoder_are_refused() -> None:
    """A change without its half, of a layer that is not there, or of another shape is an error."""
    half = {"encoder.0.query.down": torch.zeros(8, 384)}
    for changes in (
        half,
        {"encoder.9.query.down": torch.zeros(8, 384), "encoder.9.query.up": torch.zeros(384, 8)},
    ):
        with pytest.raises(KeyError):
            add(original_encoder(), changes)
    with pytest.raises(RuntimeError):
        add(original_encoder(), {**half, "encoder.0.query.up": torch.zeros(7, 8)})


def test_reading_together_is_reading_alone(cutter: Cutter) -> None:
    """Padding and the other answers of a batch change no probability."""
    parts, (reader, *_), _ = weights.load_learned(weights.SHIPPED)
    readings = [
        cutter.cut(QUESTION, "It is 36 months.", CHUNKS),
        cutter.cut("Who?", "Nobody knows that. " * 60, ["x " * 700, "y"]),
        cutter.cut("q", "🙂", []),
    ]
    with torch.inference_mode():
        together = reader(Memory(parts.encoder).batch(readings))
        for index, reading in enumerate(readings):
            alone = reader(Memory(parts.encoder).batch([reading]))
            mine = slice(0, reading.tokens)
            assert torch.allclose(together[0][index][mine], alone[0][0][mine], atol=1e-3)
            assert torch.allclose(together[1][index], alone[1][0], atol=1e-3)


def test_what_was_read_before_is_not_encoded_again(model: SupportModel, cutter: Cutter) -> None:
    """A chunk that is retrieved again costs nothing; the memory is bounded, and the oldest goes first."""
    parts = weights.fresh()
    encoded: list[int] = []
    encoder = parts.encoder

    def counted(runs: Sequence[Run]) -> list[torch.Tensor]:
        encoded.append(len(runs))
        return type(encoder).__call__(encoder, runs)

    spy: Any = counted
    spy.width = encoder.width
    memory = Memory(spy, tokens=80)
    first, again = cutter.cut("q", "a b", CHUNKS), cutter.cut("q", "c d", CHUNKS)
    memory.batch([first, first])
    memory.batch([again])
    assert encoded == [3, 1]
    memory.batch([cutter.cut("q", "x", ["word " * 75])])
    memory.batch([again])
    assert encoded == [3, 1, 2, 3]


def test_a_wrong_value_is_more_doubtful_than_the_right_one(model: SupportModel) -> None:
    """The shipped weights tell 36 months from 24, and evidence from its absence."""
    right = "The warranty of the Orion pump is 36 months."
    wrong = "The warranty of the Orion pump is 24 months."
    at = right.index("36")

    def doubt(answer: str, chunks: tuple[str, ...]) -> float:
        return max(model.read(QUESTION, answer, chunks).logits(at, at + 2))

    assert doubt(wrong, CHUNKS) > doubt(right, CHUNKS) + 1
    assert doubt(right, CHUNKS[1:]) > doubt(right, CHUNKS) + 1


def test_a_long_answer_is_read_in_parts_and_a_very_long_one_in_part(model: SupportModel) -> None:
    """Every token read has its probability, time and memory are bounded, and what was not read is told."""
    sentence = "The warranty of the Orion pump is 36 months. "
    long = model.read(QUESTION, sentence * 100, CHUNKS)
    assert long.read_to is None
    assert len(long.probabilities) == len(long.starts) > 2 * AT_ONCE - 600
    assert long.ends[-1] == len((sentence * 100).rstrip())
    huge = model.read(QUESTION, sentence * 20_000, CHUNKS)
    assert huge.read_to == MAX_ANSWER
    assert huge.ends[-1] <= MAX_ANSWER


def test_probabilities_stand_at_the_answers_tokens(model: SupportModel) -> None:
    """One probability per token, offsets in code points whatever the script."""
    answer = "La garantie est de 36 mois 🙂, soit trois ans."
    reading = model.read(QUESTION, answer, CHUNKS)
    assert len(reading.starts) == len(reading.ends) == len(reading.probabilities)
    assert "36" in [answer[a:b] for a, b in zip(reading.starts, reading.ends, strict=True)]
    assert all(0 <= value <= 1 for value in (*reading.probabilities, reading.answer_probability))
    assert reading.model.startswith("ragblame-support@")
    assert model.read(QUESTION, "", ()).probabilities == ()


@given(st.floats(-12, 12))
def test_logit_and_sigmoid_are_inverse(value: float) -> None:
    """To rounding, within ±11.9."""
    assert abs(logit(sigmoid(value)) - max(-11.99, min(11.99, value))) < 1e-2


def _row(
    answer: str, labels: tuple[Label, ...] = (), source: str = "s", gold: int | None = 0
) -> LabelledAnswer:
    return LabelledAnswer(
        id=answer + source,
        dataset="set",
        source_id=source,
        question=QUESTION,
        chunks=tuple(Chunk(position=i, text=text) for i, text in enumerate(CHUNKS)),
        answer=answer,
        labels=labels,
        support_sets=() if gold is None else (frozenset((gold,)),),
        model="",
    )


def test_an_exchanged_value_is_labelled_where_it_stands() -> None:
    """The made answer differs from the right one in the labelled characters only."""
    right = example(_row("The warranty of the Orion pump is 36 months."))
    for seed in range(20):
        made = exchanged(right, random.Random(seed))
        assert made is not None
        ((start, end),) = made.wrong
        rest = len(right.answer) - len(made.answer) + end
        assert made.answer[:start] == right.answer[:start]
        assert made.answer[end:] == right.answer[rest:]
        assert made.answer[start:end] != right.answer[start:rest]


def test_wrong_answers_are_made_only_where_people_found_none() -> None:
    """A set with labels teaches by its labels; in one without, evidence is taken away or answers swapped."""
    rows = [_row(f"{months} months", source="one") for months in (36, 48)]
    made = [item for seed in range(10) for item in examples(rows, random.Random(seed)) if item.wrong]
    assert made
    assert all(item.wrong == ((0, len(item.answer)),) for item in made)
    assert all(item.chunks == CHUNKS[1:] or item.answer in ("36 months", "48 months") for item in made)
    labelled = [_row("Wrong.", (Label(start=0, end=5, type="x"),)), _row("Right.")]
    assert sum(bool(item.wrong) for item in examples(labelled, random.Random(1))) == 1


def test_sources_are_dealt_by_name_alone() -> None:
    """A fifth is held out and a tenth tunes, whatever the order of the rows."""
    rows = [_row("x", source=str(index)) for index in range(4000)]
    parts = [part_of(row) for row in rows]
    assert parts == [part_of(row) for row in reversed(rows)][::-1]
    assert abs(parts.count(Part.HELD_OUT) / 4000 - 0.2) < 0.02
    assert abs(parts.count(Part.TUNING) / 4000 - 0.1) < 0.015


def test_labels_cover_the_tokens_they_touch(cutter: Cutter) -> None:
    """A label that begins inside a token marks it."""
    reading = cutter.cut("", "alpha beta gamma", ())
    made = labels_of(Example("", "alpha beta gamma", (), ((7, 12),)), reading)
    marked = {
        "alpha beta gamma"[a:b] for a, b, m in zip(reading.starts, reading.ends, made, strict=True) if m
    }
    assert marked == {"beta", "gamma"}


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the labelled answers in ../shared/data")
def test_training_reads_no_held_out_source_and_writes_a_model_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps of the committed recipe, end to end."""
    seen: list[LabelledAnswer] = []
    from ragblame.attribution.support_model import training

    def spied(row: LabelledAnswer) -> Example:
        seen.append(row)
        return example(row)

    monkeypatch.setattr(training, "example", spied)
    file = DATA / "xquad_en.dev.jsonl.gz"
    train([file], tmp_path, epochs=1, seed=3, limit=14)
    assert seen
    assert {part_of(row) for row in seen} == {Part.TRAINING, Part.TUNING}
    held_out = {row.id for row in read_labelled(file, lambda *_: None) if part_of(row) is Part.HELD_OUT}
    assert not held_out & {row.id for row in seen}
    made = SupportModel.load(tmp_path / "last")
    assert made.read(QUESTION, "36 months", CHUNKS).probabilities
    seen.clear()
    adapt([file], tmp_path / "last", tmp_path / "adapted", epochs=1, seed=3, limit=14)
    assert {part_of(row) for row in seen} == {Part.TUNING}  # what is learned from goes by examples()
    changed = SupportModel.load(tmp_path / "adapted" / "last")
    assert changed.read(QUESTION, "36 months", CHUNKS) != made.read(QUESTION, "36 months", CHUNKS)
    weights.join([tmp_path / "adapted" / "last"], tmp_path / "joined")
    joined = SupportModel.load(tmp_path / "joined").read(QUESTION, "36 months", CHUNKS)
    assert joined.probabilities == changed.read(QUESTION, "36 months", CHUNKS).probabilities
    with pytest.raises(ModelError, match="one encoder only"):
        weights.join([tmp_path / "last", tmp_path / "adapted" / "last"], tmp_path / "mixed")


def test_what_ships_is_small() -> None:
    """Under 8 MB, as only what was learned ships."""
    assert sum(path.stat().st_size for path in weights.SHIPPED.iterdir()) < 8_000_000


def test_a_damaged_model_is_refused_with_the_next_step(tmp_path: Path) -> None:
    """Neither half a file is used, nor one of another shape, nor one that learned from other layers."""
    shutil.copytree(weights.SHIPPED, tmp_path / "half")
    file = tmp_path / "half" / weights.LEARNED
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="install ragblame again"):
        SupportModel.load(tmp_path / "half")
    with pytest.raises(ModelError, match="install ragblame again"):
        SupportModel.load(tmp_path / "none")
    shutil.copytree(weights.SHIPPED, tmp_path / "layers")
    card = json.loads((weights.SHIPPED / weights.CARD).read_text("utf-8"))
    (tmp_path / "layers" / weights.CARD).write_text(json.dumps({**card, "layers": [2, 6]}), "utf-8")
    with pytest.raises(ModelError, match="train it again"):
        SupportModel.load(tmp_path / "layers")
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights.SHIPPED / weights.LEARNED)
    shutil.copytree(weights.SHIPPED, tmp_path / "other")
    save_file({**tensors, "0.pool.weight": torch.zeros(1, 2)}, tmp_path / "other" / weights.LEARNED)
    with pytest.raises(ModelError, match="train it again"):
        SupportModel.load(tmp_path / "other")


def test_any_token_classifier_takes_its_place(tmp_path: Path) -> None:
    """A Hugging Face folder by name: offsets of the answer, the last class's probability, a clear refusal."""
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(0)
    tokenizer = weights.fresh().tokenizer
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=160,
    )  # fmt: skip
    config.num_labels = 2
    BertForTokenClassification(config).save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    reader = TokenClassifier(str(tmp_path / "classifier"))
    answer = "It is 36 months 🙂."
    reading = reader.read(QUESTION, answer, CHUNKS * 20)
    found = [answer[a:b] for a, b in zip(reading.starts, reading.ends, strict=True)]
    assert found[:4] == ["It", "is", "36", "months"]
    assert reading.answer_probability == max(reading.probabilities)
    with pytest.raises(ModelError, match="too few for this answer"):
        reader.read(QUESTION, "word " * 400, CHUNKS)
    with pytest.raises(ModelError, match="RAGBLAME_SUPPORT_MODEL"):
        TokenClassifier(str(tmp_path / "missing"))
