"""What input x gradient of four answer spans costs, ours beside captum's and inseq's, on W.

W (see workload.py): 8 chunks of 120 tokens, an answer of 64 tokens, here in 4 spans, a random Llama of 33
million parameters in float32 on one thread. The peers run a forward and a backward for every answer token and
know no spans; ours runs one forward, and a backward a span. Every run has a process of its own, in turn with
the others, and shares are checked equal before any time is printed. With `--quick` the peers explain the
first span only and their seconds are scaled up by tokens, as the table says. inseq, where it is not
installed, has a row that says so.
Run: make bench-methods, which brings inseq, or python benchmarks/saliency.py [--quick] [--json] [--write]
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from apart import Run, apart
from evidence import bar, report, spread
from numpy.typing import NDArray
from workload import SEED, spans_of, work

from ragblame.attribution.evaluation.model_baselines import captum_input_x_gradient
from ragblame.attribution.layout import Layout
from ragblame.attribution.methods.heat import chunk_weights
from ragblame.attribution.methods.saliency import saliency
from ragblame.attribution.scorer import TransformersScorer
from ragblame.records import Method, Span

SPANS = 4
REPEATS = 3  # one with --quick
TOLERANCE = 1e-4  # of the largest share
METHODS = (Method.INPUT_X_GRADIENT,)


def cut(layout: Layout, tokens: int) -> Layout:
    """The same with the first tokens of the answer only: in a causal model they do not see the rest."""
    return replace(
        layout,
        answer=layout.answer[: layout.answer_ends[tokens - 1]],
        answer_ids=layout.answer_ids[:tokens],
        answer_starts=layout.answer_starts[:tokens],
        answer_ends=layout.answer_ends[:tokens],
    )


def ours(scorer: TransformersScorer, layout: Layout, spans: Sequence[Span]) -> NDArray[np.float64]:
    """Shares, shape [span, chunk]."""
    return np.array([a.shares for a in saliency(scorer, layout, spans, *METHODS).attributions])


def captum(scorer: TransformersScorer, layout: Layout, spans: Sequence[Span]) -> NDArray[np.float64]:
    """The same by LLMGradientAttribution over LayerGradientXActivation."""
    return captum_input_x_gradient(scorer, layout, spans).scores


def inseq(scorer: TransformersScorer, layout: Layout, spans: Sequence[Span]) -> NDArray[np.float64]:
    """The same by inseq's input_x_gradient of each token's log-probability."""
    library: Any = importlib.import_module("inseq")
    scorer.model.requires_grad_(True)  # inseq takes the model as it is loaded
    model = library.load_model(scorer.model, "input_x_gradient", tokenizer=scorer.tokenizer)
    prompt = layout.prompt
    found = model.attribute(
        prompt,
        f"{prompt} {layout.answer}",
        attributed_fn="probability",
        attributed_fn_args={"logprob": True},
        show_progress=False,
    ).sequence_attributions[0]
    length = len(layout.prompt_ids(layout.full_mask))
    values = found.target_attributions[:length].sum(dim=-1).double().numpy()  # [prompt token, answer token]
    by_token = chunk_weights(layout, layout.prompt_tokens()) @ values
    return np.array([by_token[:, list(layout.span_tokens(span))].sum(axis=1) for span in spans])


def main() -> None:
    """Check equal, measure, report."""
    torch.set_num_threads(1)
    quick = "--quick" in sys.argv
    given = work()
    scorer, layout = given.scorer, given.layout
    spans = spans_of(layout, SPANS)
    size = len(layout.answer_ids)
    part = size // SPANS if quick else size
    scale = size / part
    short, few = (cut(layout, part), spans[:1]) if quick else (layout, spans)
    contenders: dict[str, Callable[[], NDArray[np.float64]]] = {
        "ragblame": lambda: ours(scorer, layout, spans),
        "captum LLMGradientAttribution": lambda: captum(scorer, short, few),
    }
    if importlib.util.find_spec("inseq") is not None:
        contenders["inseq input_x_gradient"] = lambda: inseq(scorer, short, few)
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for _ in range(1 if quick else REPEATS):
        for name, run in contenders.items():
            runs[name].append(apart(run))
    shares = runs["ragblame"][0].result
    rows: list[dict[str, Any]] = []
    bars = []
    own = spread([run.seconds for run in runs["ragblame"]])[0]
    memory = max(run.extra_mb for run in runs["ragblame"])
    for name, done in runs.items():
        is_peer = name != "ragblame"
        worst = max(float(np.abs(run.result - shares[: len(run.result)]).max()) for run in done)
        gap = worst / float(np.abs(shares).max())
        if gap > TOLERANCE:
            raise SystemExit(f"{name}: shares differ by {gap:.1e} of the largest: nothing to compare")
        middle, low, high = spread([run.seconds * (scale if is_peer else 1.0) for run in done])
        peak = max(run.extra_mb for run in done)
        rows.append(
            {
                "method": name,
                "forwards + backwards": f"{part} + {part}" if is_peer else f"1 + {SPANS}",
                "CPU s": middle,
                "quartiles": f"{low:.2f}–{high:.2f}",
                "scaled by": scale if is_peer else 1.0,
                "extra MB": peak,
                "difference of the largest share": gap,
            }
        )
        if is_peer:
            bars.append(bar(f"{name} / ragblame, CPU seconds", middle / own, ">=", 20.0))
            bars.append(bar(f"ragblame / {name}, extra memory", memory / peak, "<=", 1.0))
    if "inseq input_x_gradient" not in runs:
        rows.append(dict.fromkeys(rows[0], "–") | {"method": "inseq: not installed"})
    report("saliency of four spans on W", rows, bars, seed=SEED)


if __name__ == "__main__":
    main()
