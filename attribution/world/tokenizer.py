"""Trains the byte-level BPE tokenizer of the small model and dresses it for `AutoTokenizer`.

It exists because the split of numbers and names decides whether copying can be learned: digits come in
pairs, so that a four-digit port is two distinctive tokens, and a name is two or three pieces that other
names share.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ragblame.attribution.world.episodes import FULL, draw_sequence

VOCABULARY = 1536
END = "<eos>"
PAD = "<pad>"
SPLIT = r" ?\d{1,2}| ?[A-Za-z]+|\n| ?[^\sA-Za-z\d]+|\s+"

# Renders [system: instruction and bullets, user: "Question: ..."], and one user message with all of it.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{- ' ' + (message['content'] | trim) + '\n' -}}"
    "{%- else -%}{{- message['content'] | trim -}}"
    "{%- if message['role'] == 'user' and not (message['content'] | trim).endswith('Answer:') -%}"
    "{{- '\nAnswer:' -}}"
    "{%- elif message['role'] != 'user' -%}{{- '\n' -}}{%- endif -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
)


def train_tokenizer(*, seed: int = 0, texts: int = 8000) -> PreTrainedTokenizerFast:
    """A tokenizer trained on generated sequences of the full mixture."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # any text can be read, not only this world's
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, texts), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def _texts(seed: int, count: int) -> Iterator[str]:
    rng = random.Random(f"tokenizer {seed}")
    for _ in range(count):
        yield draw_sequence(rng, FULL).text


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, the template inside the latter."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)
