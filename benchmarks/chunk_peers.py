"""captum, shap and context-cite on the work of chunk_shap.py, each as its own documentation has it used.

Every function times its peer, counts what it pushed through the model, and checks that it scored the very
values we did: seconds of unlike work are not compared.
"""

import importlib
import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import shap
import torch
from captum.attr import LLMAttribution, ShapleyValueSampling, TextTemplateInput
from numpy.typing import NDArray
from workload import Work, spans_of

ORDERS = 25  # captum's default of sampled orders
ABLATIONS = 64  # context-cite's default
TOLERANCE = 1e-4  # nats, of a token's log-probability


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRun:
    """What a peer cost for the whole of its work, and what was really run of it."""

    evaluations: int  # really run
    tokens: int  # pushed through the model in them
    seconds: float  # CPU, scaled to the whole work
    scale: float  # 1: everything was run


def captum_sampling(work: Work, orders: int, table: NDArray[np.float32]) -> PeerRun:
    """captum's sampled Shapley values at its default of 25 orders, timed on ``orders`` of them.

    ``forward_in_tokens`` is off: its default is silently wrong under transformers 5.
    """
    model, chunks = work.scorer.model, work.chunks
    template = work.head + "\n" + "\n".join("{}" for _ in chunks) + "\n" + work.tail + " "
    with _lengths(model) as lengths:
        attribution = LLMAttribution(ShapleyValueSampling(model), work.scorer.tokenizer)
        inputs = TextTemplateInput(template=template, values=list(chunks), baselines=[""] * len(chunks))
        started = time.process_time()
        result = attribution.attribute(
            inputs, target=work.answer + " ", n_samples=orders, forward_in_tokens=False
        )
        seconds = time.process_time() - started
    gap = abs(float(result.seq_attr.sum()) - float((table[-1] - table[0]).sum(dtype=np.float64)))
    if gap > TOLERANCE * work.shape.answer_tokens:
        raise SystemExit(f"captum's v(all) - v(none) differs from ours by {gap:.1e}: nothing to compare")
    scale = (1 + ORDERS * len(chunks)) / len(lengths)
    return PeerRun(evaluations=len(lengths), tokens=sum(lengths), seconds=seconds * scale, scale=scale)


def shap_exact(work: Work, table: NDArray[np.float32], shares: NDArray[np.float64], every: int) -> PeerRun:
    """shap's exact explainer over a hand-written chunk function, the only way it takes chunks.

    ``every``: one full forward is run and timed for so many coalitions, the rest are looked up.
    """
    layout, answer = work.layout, work.shape.answer_tokens
    timed: list[int] = []
    spent = 0.0

    def value(present: NDArray[np.bool_]) -> NDArray[np.float64]:
        nonlocal spent
        out = []
        for line in present:
            mask = sum(1 << i for i, here in enumerate(line) if here)
            if mask % every:
                out.append(float(table[mask].sum(dtype=np.float64)))
                continue
            ids = torch.tensor([layout.prompt_ids(mask) + layout.answer_ids])
            started = time.process_time()
            with torch.inference_mode():
                logits = work.scorer.model(input_ids=ids, use_cache=False).logits[0, -answer - 1 : -1]
            chosen = torch.log_softmax(logits.double(), dim=-1)[
                torch.arange(answer), torch.tensor(layout.answer_ids)
            ]
            spent += time.process_time() - started
            timed.append(ids.numel())
            out.append(float(chosen.sum()))
        return np.array(out)

    players = len(work.chunks)
    explainer = shap.explainers.Exact(value, np.zeros((1, players), dtype=bool))
    theirs = explainer(np.ones((1, players), dtype=bool)).values[0]
    worst = float(np.abs(theirs - shares).max())
    if worst > TOLERANCE * answer:
        raise SystemExit(f"shap's shares differ from ours by {worst:.1e} nats: nothing to compare")
    scale = (1 << players) * _mean_tokens(work) / sum(timed)
    return PeerRun(evaluations=len(timed), tokens=sum(timed), seconds=spent * scale, scale=scale)


def has_context_cite() -> bool:
    """Whether context-cite is installed here; ``make bench-methods`` brings it."""
    return importlib.util.find_spec("context_cite") is not None


def context_cite(work: Work, table: NDArray[np.float32], spans: int) -> tuple[PeerRun, NDArray[np.float64]]:
    """context-cite's 64 ablations with chunks as sources, and its weights of so many spans, [span, chunk].

    It takes no answer from outside, so ours is put where it keeps the one it would generate; its corpus for
    splitting sentences, which it fetches when imported, is not needed for chunks.
    """
    nltk: Any = importlib.import_module("nltk")
    nltk.download = lambda *_, **__: False
    citing: Any = importlib.import_module("context_cite.context_citer")
    parts: Any = importlib.import_module("context_cite.context_partitioner")

    class Chunks(parts.BaseContextPartitioner):  # type: ignore[misc]
        """The chunks as sources, one a line, as they stand in the prompt."""

        @property
        def num_sources(self) -> int:
            return len(work.chunks)

        def split_context(self) -> None:
            """There is nothing to split."""

        def get_source(self, index: int) -> str:
            return work.chunks[index]

        def get_context(self, mask: NDArray[np.bool_] | None = None) -> str:
            kept = [True] * len(work.chunks) if mask is None else mask.tolist()
            return "".join("\n" + chunk for chunk, keep in zip(work.chunks, kept, strict=True) if keep)

    tokenizer: Any = work.scorer.tokenizer
    old, tokenizer.chat_template = tokenizer.chat_template, "{{ messages[0]['content'] }}"
    tokenizer.pad_token = tokenizer.pad_token or "w0"
    try:
        chunks = Chunks("")
        chunks.context = ""
        citer = citing.ContextCiter(
            work.scorer.model,
            tokenizer,
            "",
            "",
            partitioner=chunks,
            num_ablations=ABLATIONS,
            prompt_template=work.head + "{context}\n" + work.tail,
        )
        citer._cache["output"] = work.head + chunks.get_context() + "\n" + work.tail + " " + work.answer
        with _lengths(work.scorer.model) as lengths:
            started = time.process_time()
            ranges = [(span.start, span.end) for span in spans_of(work.layout, spans)]
            weights = np.array(
                [citer.get_attributions(start, end, verbose=False) for start, end in ranges], dtype=np.float64
            )
            seconds = time.process_time() - started
        masks = [sum(1 << i for i in np.flatnonzero(row).tolist()) for row in citer._masks]
        theirs = torch.nn.functional.logsigmoid(torch.tensor(citer._logit_probs)).numpy()
    finally:
        tokenizer.chat_template = old
    worst = float(np.abs(theirs - table[masks]).max())
    if worst > TOLERANCE:
        raise SystemExit(f"context-cite's values differ from ours by {worst:.1e} nats: nothing to compare")
    return PeerRun(evaluations=len(lengths), tokens=sum(lengths), seconds=seconds, scale=1.0), weights


def _mean_tokens(work: Work) -> float:
    """Tokens of one independent scoring, over all coalitions."""
    full = len(work.layout.prompt_ids(work.layout.full_mask))
    empty = len(work.layout.prompt_ids(0))
    return (full + empty) / 2 + len(work.layout.answer_ids)


@contextmanager
def _lengths(model: Any) -> Iterator[list[int]]:
    """Tokens of every forward while it is open; captum calls model.forward, which runs no hook of its own."""
    lengths: list[int] = []
    handle = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, inputs: lengths.append(inputs[0].numel())
    )
    try:
        yield lengths
    finally:
        handle.remove()
