"""The model's shape and its structured start: attention heads that begin as an induction circuit.

It exists because copying is the one skill that does not appear by itself in an hour on two cores. Nothing
about the data is put in: layer 0 starts by looking one and two tokens back, layer 1 by looking for places
whose previous token was the current one, layer 2 by looking at equal tokens. Every weight is trained from
there. The model card says so.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

HEADS = 6
HEAD = 32  # width of one head
WIDTH = HEADS * HEAD
LAYERS = 4
INNER = 448  # width of the feed-forward layers
ROPE_THETA = 5e5
SCRATCH = 96  # residual dimensions that embeddings leave empty at the start, for layer 0 to write into
EMBEDDING_STD = 0.07
FAST_PAIRS = 7  # rotary pairs quick enough to tell neighbouring positions apart
OFFSET_STRENGTH = 6.0  # bias length per rotary pair; larger looks at the offset more exclusively
MATCH_STRENGTH = 2.2  # scale of content queries and keys
NOTE_STRENGTH = 0.6  # scale of what layer 0 notes down in the scratch dimensions
COPY_STRENGTH = 2.0  # scale of what the matching heads carry over


def build_config(*, vocabulary: int, end: int, pad: int) -> LlamaConfig:
    """A Llama configuration: loads with AutoModelForCausalLM, no custom code."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        rms_norm_eps=1e-5,
        attention_bias=True,  # the offset heads live in constant query and key biases
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
        use_cache=False,
    )


def build_model(config: LlamaConfig, *, seed: int) -> LlamaForCausalLM:
    """A model with the structured start, all of it drawn from `seed`."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0.0, EMBEDDING_STD, generator=draw)
        model.model.embed_tokens.weight[:, WIDTH - SCRATCH :] *= 0.05
        for name, weight in model.named_parameters():
            if name.endswith("proj.weight"):
                shrink = (
                    math.sqrt(2 * LAYERS) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                )
                weight.normal_(0.0, 0.02 / shrink, generator=draw)
            elif name.endswith("proj.bias"):
                weight.zero_()
        _start_circuit(model, draw)
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class Projections:
    """The weights of one attention layer that the start writes into; all [out, in] or [out]."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    query_bias: Tensor
    key_bias: Tensor

    @classmethod
    def of(cls, layer: nn.Module) -> "Projections":
        parameters = dict(layer.named_parameters())
        return cls(
            query=parameters["self_attn.q_proj.weight"],
            key=parameters["self_attn.k_proj.weight"],
            value=parameters["self_attn.v_proj.weight"],
            output=parameters["self_attn.o_proj.weight"],
            query_bias=parameters["self_attn.q_proj.bias"],
            key_bias=parameters["self_attn.k_proj.bias"],
        )


def _start_circuit(model: LlamaForCausalLM, draw: torch.Generator) -> None:
    """Lay out the offset, induction and same-token heads."""
    attention = [Projections.of(layer) for layer in model.model.layers]
    written = {head: _scratch(head) for head in range(3)}
    read = {head: _directions(draw) for head in range(3)}
    for head, offset in ((0, -1), (1, -2), (2, -1)):
        _look_back(attention[0], head, -offset)
        _copy(attention[0], head, read[head], written[head], NOTE_STRENGTH)
    for head in range(3):
        # Query: the current token; key: the token that stood before (written there by layer 0).
        _match(attention[1], head, read[head], written[head])
        content = _directions(draw)
        _copy(attention[1], head, content, content, COPY_STRENGTH)
    for layer, heads in ((1, (3, 4, 5)), (2, (0, 1, 2))):
        for head in heads:
            content = _directions(draw)
            _match(attention[layer], head, content, content)
            content = _directions(draw)
            _copy(attention[layer], head, content, _directions(draw), COPY_STRENGTH)


def _directions(draw: torch.Generator) -> Tensor:
    """Random orthonormal rows inside the dimensions of the embeddings, shape [HEAD, WIDTH]."""
    rows = torch.zeros(HEAD, WIDTH)
    used = WIDTH - SCRATCH
    rows[:, :used] = torch.linalg.qr(torch.randn(used, HEAD, generator=draw))[0].T
    return rows


def _scratch(head: int) -> Tensor:
    """The scratch dimensions of one offset head as rows, shape [HEAD, WIDTH]."""
    rows = torch.zeros(HEAD, WIDTH)
    start = WIDTH - SCRATCH + head * HEAD
    rows[:, start : start + HEAD] = torch.eye(HEAD)
    return rows


def _look_back(attention: Projections, head: int, distance: int) -> None:
    """Constant query and key biases whose rotary score peaks `distance` tokens back."""
    half = HEAD // 2
    frequencies = ROPE_THETA ** (-torch.arange(half) / half)
    rows = slice(head * HEAD, (head + 1) * HEAD)
    key = torch.zeros(HEAD)
    query = torch.zeros(HEAD)
    fast = slice(0, FAST_PAIRS)
    key[:FAST_PAIRS] = OFFSET_STRENGTH
    # A pair (x, x + half) rotates by position; turning the query back by `distance` moves the peak there.
    query[:half][fast] = OFFSET_STRENGTH * torch.cos(frequencies[fast] * distance)
    query[half:][fast] = -OFFSET_STRENGTH * torch.sin(frequencies[fast] * distance)
    attention.query_bias[rows] = query
    attention.key_bias[rows] = key
    attention.query[rows] *= 0.3
    attention.key[rows] *= 0.3


def _match(attention: Projections, head: int, query: Tensor, key: Tensor) -> None:
    """Score high where `key` directions at a position equal `query` directions here."""
    half = HEAD // 2
    slow = torch.ones(half)
    slow[:FAST_PAIRS] = 0.0  # the fast pairs would scramble content over distance
    slow = torch.cat([slow, slow])[:, None]
    rows = slice(head * HEAD, (head + 1) * HEAD)
    attention.query[rows] += MATCH_STRENGTH * slow * query
    attention.key[rows] += MATCH_STRENGTH * slow * key


def _copy(attention: Projections, head: int, read: Tensor, write: Tensor, strength: float) -> None:
    """Carry what stands in the `read` directions over into the `write` directions."""
    rows = slice(head * HEAD, (head + 1) * HEAD)
    scale = math.sqrt(strength)
    attention.value[rows] += scale * read
    # The residual stream starts at the embedding's size, so what a head writes is scaled to it.
    attention.output[:, rows] += scale * 2 * EMBEDDING_STD * write.T
