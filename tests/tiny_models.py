"""Tiny random models and byte-level tokenizers, built in memory: real families, real kernels, no download."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Starcoder2Config,
)

WORDS = (
    "Answer the question from the context. Question: Answer: The port of the checkout service is 8443. "
    "Who owns the gateway? The gateway is owned by the harbour team. Backups run at 02:30 every night. "
    "passage 1: passage 2: passage 3: The limit is 250 requests per second. Alice Smith is on call. "
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRIPPING = (
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content | trim }}</s>"
    "{% else %}[INST] {{ m.content | trim }} [/INST]{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)
FAMILIES = ("llama", "qwen2", "gpt2", "mistral")
MORE_FAMILIES = (
    *("qwen3", "gemma2", "gemma3", "phi3", "gpt_neox", "opt", "bloom", "falcon", "falcon alibi"),
    *("starcoder2", "olmo2", "mixtral", "qwen3_moe"),
)
WINDOWED = ("mistral", "gemma2", "gemma3", "phi3", "starcoder2")
STATEFUL = ("mamba", "qwen3_5")  # a running state instead of keys and values, in all layers or in most


@cache
def tiny_tokenizer(
    chat_template: str | None = None, *, adds_bos: bool = False, style: str = "byte level"
) -> PreTrainedTokenizerFast:
    """A tokenizer of some 400 entries, "byte level" (like GPT-2) or "metaspace" (like SentencePiece)."""
    specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    bytewise = [] if style == "byte level" else ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    if style == "byte level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*specials, *bytewise],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if style == "byte level" else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    if bytewise:  # the trainer makes them special; in real vocabularies they are ordinary entries
        state = json.loads(tokenizer.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in specials]
        tokenizer = Tokenizer.from_str(json.dumps(state))
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    fast = wrapped(tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = chat_template
    return fast


def wrapped(tokenizer: Tokenizer, **options: str) -> PreTrainedTokenizerFast:
    """A bare tokenizer as the library's fast tokenizer."""
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, **options)


def tiny_config(family: str, *, window: int | None = None, layers: int = 3) -> PreTrainedConfig:
    """A configuration of a family with grouped key/value heads, experts or a window where it has them."""
    ends: dict[str, Any] = {"vocab_size": 1024, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    plain = ends | {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
    }
    shared = plain | {"num_key_value_heads": 2}
    headed = shared | {"head_dim": 8}
    experts: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
    small = ends | {"hidden_size": 32, "num_hidden_layers": layers}
    heads: dict[str, Any] = {"num_attention_heads": 4}
    makers: dict[str, Callable[[], PreTrainedConfig]] = {
        "llama": lambda: LlamaConfig(**shared),
        "qwen2": lambda: Qwen2Config(**shared),
        "gpt2": lambda: GPT2Config(**ends, n_positions=2048, n_embd=32, n_layer=layers, n_head=4),
        "mistral": lambda: MistralConfig(**shared, sliding_window=window),
        "qwen3": lambda: Qwen3Config(**headed),
        "gemma2": lambda: Gemma2Config(**headed, sliding_window=window or 4096, query_pre_attn_scalar=8),
        "gemma3": lambda: Gemma3TextConfig(
            **headed,
            sliding_window=window or 4096,
            query_pre_attn_scalar=8,
            layer_types=["sliding_attention"] * (layers - 1) + ["full_attention"],
        ),
        "phi3": lambda: Phi3Config(**shared, sliding_window=window),
        "gpt_neox": lambda: GPTNeoXConfig(**plain),
        "opt": lambda: OPTConfig(
            **small, **heads, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=2048
        ),
        "bloom": lambda: BloomConfig(**ends, hidden_size=32, n_layer=layers, n_head=4),
        "falcon": lambda: FalconConfig(**small, **heads, alibi=False),
        "falcon alibi": lambda: FalconConfig(**small, **heads, alibi=True),
        "starcoder2": lambda: Starcoder2Config(**shared, sliding_window=window),
        "olmo2": lambda: Olmo2Config(**shared),
        "mixtral": lambda: MixtralConfig(**shared, num_local_experts=4, num_experts_per_tok=2),
        "qwen3_moe": lambda: Qwen3MoeConfig(**headed, **experts, num_experts=4),
        "mamba": lambda: MambaConfig(**small, state_size=4),
        "qwen3_5": lambda: Qwen3_5TextConfig(
            **headed,
            layer_types=["linear_attention"] * (layers - 1) + ["full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
    }
    return makers[family]()


def tiny_model(
    family: str,
    *,
    window: int | None = None,
    attention: str | None = "sdpa",
    seed: int = 0,
    layers: int = 3,
    spread: float = 0.25,
) -> PreTrainedModel:
    """A random model whose weights are spread enough for attention and outputs to depend on every token."""
    config = tiny_config(family, window=window, layers=layers)
    config.initializer_range = spread
    return built(config, attention=attention, seed=seed)


def built(config: PreTrainedConfig, *, attention: str | None = None, seed: int = 0) -> PreTrainedModel:
    """A random float32 model of a configuration, in evaluation mode."""
    torch.set_num_threads(1)  # matrices this small only lose by being split, most of all on a busy machine
    torch.manual_seed(seed)
    make: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
    model = make(config, attn_implementation=attention, dtype=torch.float32)
    model.train(False)
    return model


def halved(model: PreTrainedModel) -> PreTrainedModel:
    """The model in bfloat16."""
    torch.nn.Module.to(model, torch.bfloat16)
    return model


def head_weight(model: PreTrainedModel) -> Tensor:
    """Weight of the output head, shape [vocabulary, hidden]."""
    get: Callable[[], torch.nn.Module] = model.get_output_embeddings
    weight = get().weight
    assert isinstance(weight, Tensor)
    return weight
