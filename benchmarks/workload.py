"""The work that the benchmarks of attribution share: W, W-long, and W with fewer or more chunks.

W: 8 chunks of 120 tokens, 3 tokens before them, 28 behind, an answer of 64, 1,055 in all. W-long: chunks of
500 and an answer of 128, 4,159 in all. The model is a random Llama of 33 million parameters in float32: on it
speed alone means anything.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from ragblame.attribution.layout import Layout, build_layout
from ragblame.attribution.scorer import TransformersScorer
from ragblame.records import Alignment, AlignmentState, Chunk, Message, Span, SpanKind, Trace
from ragblame.traces import new_trace_id

HEAD_TOKENS, TAIL_TOKENS = 3, 28
VOCABULARY = 6000
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How much there is to attribute."""

    name: str
    chunks: int = 8
    chunk_tokens: int = 120
    answer_tokens: int = 64


W = Shape(name="W")
W_LONG = Shape(name="W-long", chunk_tokens=500, answer_tokens=128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One answered question, as ours and as the peers need it."""

    shape: Shape
    scorer: TransformersScorer
    layout: Layout
    head: str
    chunks: tuple[str, ...]
    tail: str
    answer: str


def work(shape: Shape = W) -> Work:
    """The same texts and weights whenever it is called."""
    generator = np.random.default_rng(SEED)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=words)

    def text(count: int) -> str:
        return " ".join(f"w{i}" for i in generator.integers(1, VOCABULARY, count))

    head, alignments = text(HEAD_TOKENS), []
    chunks = tuple(text(shape.chunk_tokens) for _ in range(shape.chunks))
    tail, answer = text(TAIL_TOKENS), text(shape.answer_tokens)
    prompt = head
    for position, chunk in enumerate(chunks):
        start = len(prompt) + 1
        alignments.append(
            Alignment(
                position=position,
                state=AlignmentState.EXACT,
                message=0,
                start=start,
                end=start + len(chunk),
                found=(0, len(chunk)),
            )
        )
        prompt += "\n" + chunk
    trace = Trace(
        id=new_trace_id(),
        app="benchmark",
        question="",
        chunks=tuple(Chunk(position=position, text=chunk) for position, chunk in enumerate(chunks)),
        prompt=(Message(role="prompt", text=prompt + "\n" + tail),),
        answer=answer,
        started_at=datetime.now(UTC),
    )
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    )
    build: Any = AutoModelForCausalLM.from_config
    scorer = TransformersScorer(build(config, dtype=torch.float32), tokenizer)
    layout = build_layout(trace, alignments, tokenizer)
    return Work(shape=shape, scorer=scorer, layout=layout, head=head, chunks=chunks, tail=tail, answer=answer)


def spans_of(layout: Layout, count: int) -> list[Span]:
    """So many spans of equal numbers of tokens, covering the answer."""
    size = len(layout.answer_ids) // count
    return [
        Span(
            index=number,
            start=layout.answer_starts[number * size],
            end=layout.answer_ends[(number + 1) * size - 1],
            kind=SpanKind.CLAUSE,
            sentence_start=0,
            sentence_end=len(layout.answer),
        )
        for number in range(count)
    ]
