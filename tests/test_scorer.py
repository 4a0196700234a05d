"""A scorer gives the answer's log-probabilities exactly, whatever the batch, and refuses what it cannot."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from ragblame.attribution.layout import build_layout
from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import ContextLengthError, ModelError
from tests.tiny_models import CHATML, FAMILIES, halved, head_weight, tiny_model, tiny_tokenizer
from tests.tiny_traces import ANSWER, CHUNKS, tiny_trace


def saved(folder: Path, family: str = "llama") -> Path:
    """A tiny model and tokenizer on disk."""
    tiny_model(family).save_pretrained(folder)
    tiny_tokenizer(CHATML).save_pretrained(folder)
    return folder


def by_hand(model: PreTrainedModel, prompt: tuple[int, ...], answer: tuple[int, ...]) -> np.ndarray:
    """Log-probabilities from the full logits of one unpadded sequence, float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    rows = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return rows[torch.arange(len(answer)), torch.tensor(answer)].numpy()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batched_equals_one_by_one_over_full_logits(family: str, batch_size: int) -> None:
    """Padding, batching and answer-only logits change no value beyond 1e-5 nats, windows included."""
    model = tiny_model(family, window=16 if family == "mistral" else None)
    scorer = TransformersScorer(model, tiny_tokenizer(), batch_size=batch_size)
    layout = build_layout(tiny_trace(), [], scorer.tokenizer)
    table = scorer.score(layout, range(8))
    expected = [by_hand(model, layout.prompt_ids(mask), layout.answer_ids) for mask in range(8)]
    np.testing.assert_allclose(table, expected, atol=1e-5)
    assert table.dtype == np.float32
    assert np.ptp(np.array(expected), axis=0).max() > 0.1  # coalitions do differ


def test_values_differ_in_order_and_repetition_of_masks() -> None:
    """Rows come back in the order asked, repeated masks included."""
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer())
    layout = build_layout(tiny_trace(), [], scorer.tokenizer)
    table = scorer.score(layout, [5, 0, 5, 7])
    np.testing.assert_array_equal(table[0], table[2])
    np.testing.assert_allclose(table[[1, 3]], scorer.score(layout, [0, 7]), atol=1e-5)
    assert scorer.score(layout, []).shape == (0, len(layout.answer_ids))


def test_half_precision_has_a_float32_head() -> None:
    """A bfloat16 model's answer rows equal its own last hidden states through a float32 head."""
    model = halved(tiny_model("qwen2"))
    scorer = TransformersScorer(model, tiny_tokenizer())
    layout = build_layout(tiny_trace(), [], scorer.tokenizer)
    prompt, answer = layout.prompt_ids(7), layout.answer_ids
    with torch.no_grad():
        hidden = model.base_model(input_ids=torch.tensor([prompt + answer])).last_hidden_state[0]
    head = head_weight(model).float()
    rows = torch.log_softmax((hidden[len(prompt) - 1 : -1].float() @ head.T).double(), dim=-1)
    expected = rows[torch.arange(len(answer)), torch.tensor(answer)].numpy()
    np.testing.assert_allclose(scorer.score(layout, [7])[0], expected, atol=1e-4)


def test_cost_counts_forwards_tokens_and_coalitions() -> None:
    """The counters say what was really run."""
    scorer = TransformersScorer(tiny_model("llama"), tiny_tokenizer(), batch_size=4)
    seen = []
    scorer.model.register_forward_pre_hook(
        lambda _, __, named: seen.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    layout = build_layout(tiny_trace(), [], scorer.tokenizer)
    scorer.score(layout, range(8))
    assert scorer.cost.scored_coalitions == 8
    assert scorer.cost.forwards == len(seen)
    assert scorer.cost.tokens == sum(rows * length for rows, length in seen)
    assert scorer.cost.seconds > 0


def test_no_chunks_gives_one_row() -> None:
    """With nothing retrieved all and none are the same coalition."""
    scorer = TransformersScorer(tiny_model("gpt2"), tiny_tokenizer())
    layout = build_layout(tiny_trace(chunks=()), [], scorer.tokenizer)
    assert scorer.score(layout, [0]).shape == (1, len(layout.answer_ids))


def test_too_long_names_both_lengths() -> None:
    """A context beyond the model's maximum raises with prompt, answer and limit."""
    model = tiny_model("llama")
    model.config.max_position_embeddings = 40
    scorer = TransformersScorer(model, tiny_tokenizer())
    layout = build_layout(tiny_trace(), [], scorer.tokenizer)
    lengths = rf"prompt \({len(layout.prompt_ids(7))} tokens\) and answer \({len(layout.answer_ids)} tokens\)"
    with pytest.raises(ContextLengthError, match=lengths + r".*\(40 tokens\)"):
        scorer.score(layout, [7])


def test_from_pretrained_round_trip(tmp_path: Path) -> None:
    """A saved model scores as in memory; its revision follows its weights."""
    folder = saved(tmp_path / "model")
    scorer = TransformersScorer.from_pretrained(str(folder), is_own_model=True, batch_size=2)
    layout = build_layout(tiny_trace(), [], scorer.tokenizer)
    expected = by_hand(tiny_model("llama"), layout.prompt_ids(7), layout.answer_ids)
    np.testing.assert_allclose(scorer.score(layout, [7])[0], expected, atol=1e-5)
    assert scorer.ref.is_own_model
    assert len(scorer.ref.revision) == 16
    tiny_model("llama", seed=1).save_pretrained(folder)
    assert TransformersScorer.from_pretrained(str(folder)).ref.revision != scorer.ref.revision


def test_missing_folder_and_missing_name(tmp_path: Path) -> None:
    """A folder or a name that is not here gives one line with the next step, and nothing is downloaded."""
    with pytest.raises(ModelError, match="does not exist"):
        TransformersScorer.from_pretrained(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"no config\.json"):
        TransformersScorer.from_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match="not on this machine"):
        TransformersScorer.from_pretrained("nobody/no-such-model")


def test_unknown_architecture_is_named(tmp_path: Path) -> None:
    """The model type and the library's version stand in the message."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama9"}))
    with pytest.raises(ModelError, match=r"'llama9'.*unknown to transformers \d"):
        TransformersScorer.from_pretrained(str(tmp_path))


def test_damaged_config_and_weights(tmp_path: Path) -> None:
    """Damaged files are called damaged."""
    folder = saved(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match="damaged"):
        TransformersScorer.from_pretrained(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json.*damaged"):
        TransformersScorer.from_pretrained(str(folder))


def test_missing_tensors_are_not_filled_with_noise(tmp_path: Path) -> None:
    """A checkpoint that lacks a layer is refused instead of being completed at random."""
    folder = saved(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lack \d+ tensors"):
        TransformersScorer.from_pretrained(str(folder))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    """A folder with nothing but a pickle is refused."""
    folder = saved(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        TransformersScorer.from_pretrained(str(folder))


def test_missing_tokenizer(tmp_path: Path) -> None:
    """A model without a fast tokenizer is refused by that name."""
    folder = saved(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="fast tokenizer"):
        TransformersScorer.from_pretrained(str(folder))


def test_foreign_tokenizer_is_refused() -> None:
    """Token ids beyond the model's vocabulary raise before they index out of range."""
    model = tiny_model("llama")
    model.resize_token_embeddings(64)
    scorer = TransformersScorer(model, tiny_tokenizer())
    layout = build_layout(tiny_trace(), [], scorer.tokenizer)
    with pytest.raises(ModelError, match="tokenizer is another model's"):
        scorer.score(layout, [0])


def test_encoder_decoder_is_refused_by_name(tmp_path: Path) -> None:
    """T5 cannot be a scorer, from disk or from memory."""
    config = T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    model = T5ForConditionalGeneration(config)
    with pytest.raises(ModelError, match=r"'t5'.*encoder-decoder"):
        TransformersScorer(model, tiny_tokenizer())
    model.save_pretrained(tmp_path)
    shutil.copy(saved(tmp_path / "other") / "tokenizer.json", tmp_path)
    with pytest.raises(ModelError, match=r"'t5'.*encoder-decoder"):
        TransformersScorer.from_pretrained(str(tmp_path))


def test_models_that_read_ahead_are_refused() -> None:
    """A bidirectional encoder with a language-model head is found out by its behaviour."""
    config = BertConfig(
        vocab_size=1024, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    config.initializer_range = 0.3
    with pytest.raises(ModelError, match=r"'bert'.*reads ahead"):
        TransformersScorer(BertLMHeadModel(config), tiny_tokenizer())


def test_not_finite_scores_are_refused() -> None:
    """A model that overflows says so instead of handing out NaN."""
    model = tiny_model("llama")
    scorer = TransformersScorer(model, tiny_tokenizer())
    with torch.no_grad():
        head_weight(model)[5] = torch.nan
    layout = build_layout(tiny_trace(CHUNKS, ANSWER), [], scorer.tokenizer)
    with pytest.raises(ModelError, match="not finite"):
        scorer.score(layout, [7])


def test_model_is_left_usable() -> None:
    """Scoring leaves no hook behind: the wrapped model gives the same logits before and after."""
    model = halved(tiny_model("qwen2"))
    assert isinstance(model, PreTrainedModel)
    ids = torch.arange(10)[None]
    before = model(input_ids=ids).logits
    scorer = TransformersScorer(model, tiny_tokenizer())
    scorer.score(build_layout(tiny_trace(), [], scorer.tokenizer), [0, 7])
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)
