"""What attention rollout of four answer spans costs, ours beside the textbook product of eager maps.

A random Llama in float32 on one thread, prompt and answer of T tokens. The textbook asks for all attention
maps and multiplies T x T matrices; nobody offers rollout for decoders, so it stands for what people write.
Ours keeps queries and keys and walks the answer's rows. Every run has a process of its own, in turn with the
others, and rows are checked equal before any time is printed. `--long` adds ours alone at 32,768 tokens on 4
layers; `--length T` measures at T alone.
Run: python benchmarks/rollout.py [--quick] [--length T] [--long] [--json] [--write]
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from apart import Run, apart
from evidence import bar, report, spread
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from ragblame.attribution.evaluation.evidence import Bar
from ragblame.attribution.methods.attention import capture
from ragblame.attribution.methods.rollout import PLAIN_RESIDUAL, walk
from ragblame.attribution.scorer import TransformersScorer

VOCABULARY = 6000
SEED = 0
LAYERS, HEADS, HIDDEN = 8, 8, 512
LENGTHS = (1024, 2048, 4096)
BAR_LENGTH = 4096  # where the bars are asked
QUICK_LENGTHS = (512, 1024)
LONG, LONG_LAYERS, LONG_BOUND = 32768, 4, 2048.0
SPANS, ANSWER = 4, 64  # equal spans of an answer of so many tokens
REPEATS = 3  # one with --quick
TOLERANCE = 1e-5  # of a share of mass


def scorer_of(layers: int, length: int, attention: str) -> TransformersScorer:
    """A random model on fused or eager attention; the same weights for the same number of layers."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=length,
    )
    build: Any = AutoModelForCausalLM.from_config
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrap: Any = PreTrainedTokenizerFast
    return TransformersScorer(
        build(config, dtype=torch.float32, attn_implementation=attention), wrap(tokenizer_object=words)
    )


def rows_of(length: int) -> torch.Tensor:
    """The rows that predict each span's tokens, equally weighted, shape [span, T]."""
    rows, size = torch.zeros(SPANS, length), ANSWER // SPANS
    for span in range(SPANS):
        start = length - ANSWER - 1 + span * size
        rows[span, start : start + size] = 1.0 / size
    return rows


def ours(scorer: TransformersScorer, ids: tuple[int, ...]) -> NDArray[np.float32]:
    """Mass of each span on every token, shape [span, T]."""
    return walk(capture(scorer, ids, "rollout"), rows_of(len(ids)), PLAIN_RESIDUAL).numpy()


@torch.inference_mode()
def textbook(scorer: TransformersScorer, ids: tuple[int, ...]) -> NDArray[np.float32]:
    """The same from ``R_l = (0.5 A_l + 0.5 I) R_(l-1)`` over the library's own maps."""
    model = scorer.model.base_model
    product = torch.eye(len(ids))
    for maps in model(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False).attentions:
        product = (
            PLAIN_RESIDUAL * torch.eye(len(ids)) + (1 - PLAIN_RESIDUAL) * maps[0].mean(dim=0)
        ) @ product
    return (rows_of(len(ids)) @ product).numpy()


def main() -> None:
    """Check equal, measure, report."""
    torch.set_num_threads(1)
    quick = "--quick" in sys.argv
    lengths: tuple[int, ...] = QUICK_LENGTHS if quick else LENGTHS
    if "--length" in sys.argv:
        lengths = (int(sys.argv[sys.argv.index("--length") + 1]),)
        if lengths[0] <= ANSWER:
            raise SystemExit(f"--length must exceed the {ANSWER} tokens of the answer")
    generator = np.random.default_rng(SEED)
    fused, eager = (scorer_of(LAYERS, max(LENGTHS), kind) for kind in ("sdpa", "eager"))
    rows: list[dict[str, Any]] = []
    bars: list[Bar] = []
    for length in lengths:
        ids = tuple(int(i) for i in generator.integers(1, VOCABULARY, length))
        contenders: dict[str, Callable[[], NDArray[np.float32]]] = {
            "ragblame": lambda ids=ids: ours(fused, ids),  # type: ignore[misc]
            "textbook product": lambda ids=ids: textbook(eager, ids),  # type: ignore[misc]
        }
        runs: dict[str, list[Run]] = {name: [] for name in contenders}
        for _ in range(1 if quick else REPEATS):
            for name, run in contenders.items():
                runs[name].append(apart(run))
        worst = float(np.abs(runs["ragblame"][0].result - runs["textbook product"][0].result).max())
        if worst > TOLERANCE:
            raise SystemExit(f"T = {length}: rows differ by {worst:.1e}: nothing to compare")
        for name, done in runs.items():
            rows.append(_row(name, length, LAYERS, done, worst))
        own, theirs = rows[-2], rows[-1]
        if length != BAR_LENGTH:
            continue
        bars = [
            bar(
                f"textbook / ragblame at {length} tokens, CPU seconds",
                theirs["CPU s"] / own["CPU s"],
                ">=",
                5.0,
            ),
            bar(
                f"textbook / ragblame at {length} tokens, extra MB",
                theirs["extra MB"] / own["extra MB"],
                ">=",
                10.0,
            ),
        ]
    if "--long" in sys.argv:
        far = scorer_of(LONG_LAYERS, LONG, "sdpa")
        ids = tuple(int(i) for i in generator.integers(1, VOCABULARY, LONG))
        done = [apart(lambda: ours(far, ids))]
        total = done[0].result.sum(axis=1)
        if float(np.abs(total - 1.0).max()) > TOLERANCE:
            raise SystemExit("rows no longer sum to 1: nothing to report")
        rows.append(_row("ragblame", LONG, LONG_LAYERS, done, None))
        bars.append(
            bar(f"extra MB at {LONG} tokens, {LONG_LAYERS} layers", done[0].extra_mb, "<=", LONG_BOUND)
        )
    report("attention rollout of four spans", rows, bars, seed=SEED)


def _row(name: str, length: int, layers: int, done: list[Run], worst: float | None) -> dict[str, Any]:
    middle, low, high = spread([run.seconds for run in done])
    return {
        "method": name,
        "T": length,
        "layers": layers,
        "CPU s": middle,
        "quartiles": f"{low:.2f}–{high:.2f}",
        "extra MB": max(run.extra_mb for run in done),
        "largest difference": "–" if worst is None else worst,
    }


if __name__ == "__main__":
    main()
