"""What exact Shapley values of one answer cost, ours beside captum's, on the shipped small model.

Both explain the log-probability of the same answer, with the same chunks deleted from the same prompt, on
one thread. Ours scores each coalition once and serves every span; captum's ShapleyValues walks all n! orders.
Results are checked equal before any time is printed.
Run: python benchmarks/attribution_cost.py [--json]
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import torch
from captum.attr import LLMAttribution, ShapleyValues, TextTemplateInput
from evidence import bar, interleaved, report, spread
from numpy.typing import NDArray

from ragblame.attribution.layout import Layout, build_layout
from ragblame.attribution.methods.coalitions import all_masks
from ragblame.attribution.methods.shapley import exact_shapley
from ragblame.attribution.scorer import TransformersScorer
from ragblame.records import Chunk, Trace
from ragblame.traces import new_trace_id

CHUNKS = (3, 4)  # captum needs n! * n evaluations: 18 and 96; five chunks would be 600
REPEATS = 5
TOLERANCE = 1e-3  # nats
SENTENCES = (
    "The port of the Kestrel gateway is 2959.",
    "The owner of the Kestrel queue is Ada Holm.",
    "The region of the Marlin cache is north Oslo.",
    "The timeout of the Kestrel gateway is 930 ms.",
)
ANSWER = "The port of the Kestrel gateway is 2959."


def work(scorer: TransformersScorer, n: int) -> Layout:
    """The layout of one question over n chunks, in the scorer's default prompt."""
    trace = Trace(
        id=new_trace_id(),
        app="benchmark",
        question="What is the port of the Kestrel gateway?",
        chunks=tuple(Chunk(position=index, text=text) for index, text in enumerate(SENTENCES[:n])),
        answer=ANSWER,
        started_at=datetime.now(UTC),
    )
    return build_layout(trace, (), scorer.tokenizer)


def main() -> None:
    """Check equal, measure, report."""
    torch.set_num_threads(1)
    scorer = TransformersScorer.from_pretrained()
    rows = []
    ratios = []
    for n in CHUNKS:
        layout = work(scorer, n)
        results: dict[str, NDArray[np.float64]] = {}

        def ours(
            layout: Layout = layout, n: int = n, results: dict[str, NDArray[np.float64]] = results
        ) -> float:
            before = time.process_time()
            table = scorer.score(layout, all_masks(n)).sum(axis=1, dtype=np.float64)
            results["ours"] = exact_shapley(table)
            return time.process_time() - before

        peer = captum_shapley(scorer, layout, results)
        costs = interleaved({"ragblame": ours, "captum ShapleyValues": peer}, REPEATS)
        difference = float(np.abs(results["ours"] - results["captum"]).max())
        if difference > TOLERANCE:
            raise SystemExit(f"n={n}: shares differ by {difference:.2e} nats: nothing to compare")
        ratios.append(spread(costs["captum ShapleyValues"])[0] / spread(costs["ragblame"])[0])
        for name, values in costs.items():
            middle, low, high = spread(values)
            rows.append(
                {
                    "method": name,
                    "chunks": n,
                    "evaluations": 2**n if name == "ragblame" else int(np.prod(range(1, n + 1))) * n + 1,
                    "CPU s": middle,
                    "quartiles": f"{low:.3f}–{high:.3f}",
                    "largest difference, nats": difference,
                }
            )
    report("exact Shapley of one answer", rows, [bar("captum / ragblame at 4 chunks", ratios[-1], ">=", 2.0)])


def captum_shapley(
    scorer: TransformersScorer, layout: Layout, results: dict[str, NDArray[np.float64]]
) -> Callable[[], float]:
    """Captum's exact Shapley on the same deletions; a chunk's template value is what its removal deletes."""
    template, values, end = "", [], 0
    full = layout.prompt_text(layout.full_mask)
    for player in range(len(layout.players)):
        without = layout.prompt_text(layout.full_mask & ~(1 << player))
        length = len(full) - len(without)
        start = next(at for at in range(end, len(full)) if full[:at] + full[at + length :] == without)
        template += full[end:start].replace("{", "{{") + "{}"
        values.append(full[start : start + length])
        end = start + length
    template += full[end:]
    attribution = LLMAttribution(ShapleyValues(scorer.model), scorer.tokenizer)
    inputs = TextTemplateInput(template=template, values=values, baselines=[""] * len(values))
    answer = scorer.tokenizer.decode(list(layout.answer_ids))

    def run() -> float:
        before = time.process_time()
        result = attribution.attribute(inputs, target=answer, forward_in_tokens=False)
        results["captum"] = result.seq_attr.double().numpy().reshape(-1)
        return time.process_time() - before

    return run


if __name__ == "__main__":
    main()
