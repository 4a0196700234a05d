"""What all coalitions of a RAG prompt cost along their prefix tree, beside independent scoring and the peers.

The work, W: 8 chunks of 120 tokens, a question, an answer of 64 tokens, 1,055 in all; a random Llama of
33 million parameters in float32 on one thread, on which speed alone means anything. Everybody scores the same
answer with the same chunks deleted from the same prompt, and values are checked equal before any time is
printed. With `--quick` independent scoring and the peers run on a part of their evaluations and the seconds
are scaled up by tokens or evaluations, as the table says. captum's exact ShapleyValues needs 8! x 8 = 322,560
evaluations and is not run; its sampling stands for it. context-cite gives no Shapley values and is left out.
Run: python benchmarks/chunk_shap.py [--quick] [--json] [--write]
"""

import resource
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import shap
import torch
from captum.attr import LLMAttribution, ShapleyValueSampling, TextTemplateInput
from evidence import bar, report
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from ragblame.attribution.layout import Layout, build_layout
from ragblame.attribution.methods.coalitions import all_masks
from ragblame.attribution.methods.shapley import exact_shapley
from ragblame.attribution.scorer import TransformersScorer, spent_since
from ragblame.records import Alignment, AlignmentState, Chunk, Message, Trace
from ragblame.traces import new_trace_id

CHUNKS, CHUNK_TOKENS, HEAD_TOKENS, TAIL_TOKENS, ANSWER_TOKENS = 8, 120, 3, 28, 64
VOCABULARY = 6000
SEED = 0
SAMPLE = 32  # coalitions of independent scoring with --quick
ORDERS = 25  # captum's default of sampled orders; one with --quick
TOLERANCE = 1e-4  # nats, of a token's log-probability


def work() -> tuple[TransformersScorer, Layout, list[str], str]:
    """Scorer and layout of W, the texts of its chunks and of its answer."""
    generator = np.random.default_rng(SEED)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=words)

    def text(count: int) -> str:
        return " ".join(f"w{i}" for i in generator.integers(1, VOCABULARY, count))

    prompt, alignments, chunks = text(HEAD_TOKENS), [], [text(CHUNK_TOKENS) for _ in range(CHUNKS)]
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
        prompt=(Message(role="prompt", text=prompt + "\n" + text(TAIL_TOKENS)),),
        answer=text(ANSWER_TOKENS),
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
        max_position_embeddings=2048,
    )
    build: Any = AutoModelForCausalLM.from_config
    scorer = TransformersScorer(build(config, dtype=torch.float32), tokenizer)
    return scorer, build_layout(trace, alignments, tokenizer), chunks, trace.answer


def main() -> None:
    """Check equal, measure, report."""
    torch.set_num_threads(1)
    quick = "--quick" in sys.argv
    scorer, layout, chunks, answer = work()
    masks = all_masks(CHUNKS)
    sizes = {mask: len(layout.prompt_ids(mask)) + len(layout.answer_ids) for mask in masks}
    every = sum(sizes.values())
    part = np.random.default_rng(SEED).permutation(len(masks))[:SAMPLE].tolist() if quick else list(masks)
    scale = every / sum(sizes[mask] for mask in part)
    scorer.score(layout, masks[:8])  # warm

    rows: list[dict[str, Any]] = []
    tree, tree_seconds = ours(scorer, layout, masks, rows, "prefix tree", 1.0)
    scorer.shares_prefixes = False
    independent = []
    for batch_size in (1, 16):
        scorer.batch_size = batch_size
        name = f"independent, batch {batch_size}"
        values, seconds = ours(scorer, layout, part, rows, name, scale)
        independent.append(seconds)
        worst = float(np.abs(values - tree[part]).max())
        if worst > TOLERANCE:
            raise SystemExit(f"tree and independent scoring differ by {worst:.1e} nats: nothing to compare")
    shares = exact_shapley(tree.sum(axis=1, dtype=np.float64))
    captum_seconds = captum_sampling(scorer, layout, chunks, answer, 1 if quick else ORDERS, rows, tree)
    shap_exact(scorer, layout, tree, rows, shares, sizes, quick)
    best = min(independent)
    report(
        "chunk Shapley on W",
        rows,
        [
            bar("tree / cheaper independent scoring, CPU seconds", tree_seconds / best, "<=", 0.42),
            bar("captum's default sampling / tree, CPU seconds", captum_seconds / tree_seconds, ">=", 1.0),
        ],
        seed=SEED,
    )


def ours(
    scorer: TransformersScorer,
    layout: Layout,
    masks: Sequence[int],
    rows: list[dict[str, Any]],
    name: str,
    scale: float,
) -> tuple[NDArray[np.float32], float]:
    """Score, note a row, return values and the seconds of all coalitions."""
    before, started = scorer.cost, time.process_time()
    values = scorer.score(layout, masks)
    seconds = (time.process_time() - started) * scale
    cost = spent_since(scorer, before)
    rows.append(_row(name, len(masks), cost.forwards, cost.tokens, seconds, scale, "exact"))
    return values, seconds


def _row(
    name: str, evaluations: int, forwards: int, tokens: int, seconds: float, scale: float, result: str
) -> dict[str, Any]:
    return {
        "method": name,
        "evaluations run": evaluations,
        "forwards": forwards,
        "tokens": tokens,
        "CPU s": seconds,
        "scaled by": scale,
        "result": result,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def captum_sampling(
    scorer: TransformersScorer,
    layout: Layout,
    chunks: Sequence[str],
    answer: str,
    orders: int,
    rows: list[dict[str, Any]],
    tree: NDArray[np.float32],
) -> float:
    """Seconds of captum's sampled Shapley values at its default of 25 orders, timed on ``orders``."""
    full = layout.prompt_text(layout.full_mask)
    template, at = "", 0
    for chunk in chunks:
        start = full.index(chunk, at)
        template += full[at:start] + "{}"
        at = start + len(chunk)
    template += full[at:]
    lengths: list[int] = []
    embeddings = scorer.model.get_input_embeddings()  # captum calls model.forward, which runs no hook
    handle = embeddings.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].numel()))
    attribution = LLMAttribution(ShapleyValueSampling(scorer.model), scorer.tokenizer)
    inputs = TextTemplateInput(template=template, values=list(chunks), baselines=[""] * len(chunks))
    started = time.process_time()
    result = attribution.attribute(inputs, target=answer + " ", n_samples=orders, forward_in_tokens=False)
    seconds = time.process_time() - started
    handle.remove()
    gap = abs(float(result.seq_attr.sum()) - float((tree[-1] - tree[0]).sum(dtype=np.float64)))
    if gap > TOLERANCE * ANSWER_TOKENS:
        raise SystemExit(f"captum's v(all) - v(none) differs from ours by {gap:.1e}: nothing to compare")
    scale = (1 + ORDERS * CHUNKS) / len(lengths)
    rows.append(
        _row(
            f"captum sampling, {ORDERS} orders",
            len(lengths),
            len(lengths),
            sum(lengths),
            seconds * scale,
            scale,
            "sampled",
        )
    )
    return seconds * scale


def shap_exact(
    scorer: TransformersScorer,
    layout: Layout,
    tree: NDArray[np.float32],
    rows: list[dict[str, Any]],
    shares: NDArray[np.float64],
    sizes: dict[int, int],
    quick: bool,
) -> None:
    """shap's exact explainer over a hand-written chunk function, the only way it takes chunks.

    With ``quick`` the function looks its values up and one full forward is timed for each 16th coalition.
    """
    timed: list[int] = []
    spent = 0.0

    def value(present: NDArray[np.bool_]) -> NDArray[np.float64]:
        nonlocal spent
        out = []
        for line in present:
            mask = sum(1 << i for i, here in enumerate(line) if here)
            if quick and mask % 16 != 5:
                out.append(float(tree[mask].sum(dtype=np.float64)))
                continue
            ids = torch.tensor([layout.prompt_ids(mask) + layout.answer_ids])
            started = time.process_time()
            with torch.inference_mode():
                logits = scorer.model(input_ids=ids, use_cache=False).logits[0, -ANSWER_TOKENS - 1 : -1]
            chosen = torch.log_softmax(logits.double(), dim=-1)[
                torch.arange(ANSWER_TOKENS), torch.tensor(layout.answer_ids)
            ]
            spent += time.process_time() - started
            timed.append(sizes[mask])
            out.append(float(chosen.sum()))
        return np.array(out)

    explainer = shap.explainers.Exact(value, np.zeros((1, CHUNKS), dtype=bool))
    theirs = explainer(np.ones((1, CHUNKS), dtype=bool)).values[0]
    worst = float(np.abs(theirs - shares).max())
    if worst > TOLERANCE * ANSWER_TOKENS:
        raise SystemExit(f"shap's shares differ from ours by {worst:.1e} nats: nothing to compare")
    scale = sum(sizes.values()) / sum(timed)
    rows.append(
        _row(
            "shap Exact",
            len(timed),
            len(timed),
            sum(timed),
            spent * scale,
            scale,
            "exact",
        )
    )


if __name__ == "__main__":
    main()
