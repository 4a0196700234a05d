"""What all coalitions of a RAG prompt cost along their prefix tree, beside independent scoring and the peers.

The work is W of workload.py (`--long`: W-long), on one thread. Everybody scores the same answer with the same
chunks deleted from the same prompt, and values are checked equal before any time is printed. captum's exact
ShapleyValues needs 8! x 8 = 322,560 evaluations and is not run; its sampling stands for it. context-cite
gives weights of its own, not Shapley values: what its 64 ablations cost is compared with all 256, and its
error against exact shares with that of sampling which stops as soon as it is no worse. With `--quick`
independent scoring, captum and shap run on a part of their evaluations, and their seconds are scaled up by
tokens or evaluations, as the table says. `--growth` shows the cost for 4 to 12 chunks instead.
Run: make bench-methods, which brings context-cite, or
python benchmarks/chunk_shap.py [--quick] [--long] [--growth] [--json] [--write]
"""

import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from chunk_peers import (
    ABLATIONS,
    ORDERS,
    TOLERANCE,
    PeerRun,
    captum_sampling,
    context_cite,
    has_context_cite,
    shap_exact,
)
from evidence import bar, report, spread
from numpy.typing import NDArray
from workload import SEED, W_LONG, Shape, W, Work, spans_of, work

from ragblame.attribution.evaluation.evidence import Bar
from ragblame.attribution.methods.coalitions import all_masks
from ragblame.attribution.methods.sampled_shapley import least_budget, sample_games
from ragblame.attribution.methods.shapley import exact_shapley
from ragblame.attribution.methods.span_values import span_values
from ragblame.attribution.scorer import spent_since

SPANS = 4
SAMPLE = 32  # coalitions of independent scoring with --quick
REPEATS = 5  # of ours and of context-cite, in turn, at least as many as ALONE has; one with --quick
# Independent scoring: batch size, and whether by our forward (last layer spared, linear layers by oneDNN).
ALONE = ((1, False), (16, False), (16, True))
SEEDS = 8  # of the sampling whose error is compared
COUNTS = (4, 6, 8, 10, 12)  # chunks with --growth


def main() -> None:
    """Check equal, measure, report."""
    torch.set_num_threads(1)
    if "--growth" in sys.argv:
        grow()
    else:
        compare(W_LONG if "--long" in sys.argv else W, is_quick="--quick" in sys.argv)


def compare(shape: Shape, *, is_quick: bool) -> None:
    """Ours and the peers on one shape of work."""
    rows: list[dict[str, Any]] = []
    bars: list[Bar] = []
    done = work(shape)
    masks = all_masks(shape.chunks)
    done.scorer.score(done.layout, masks[:8])  # warm
    repeats = 1 if is_quick else REPEATS
    own: list[float] = []
    peer: list[tuple[PeerRun, NDArray[np.float64]]] = []
    parts: dict[bool, list[float]] = {False: [], True: []}  # tree / independent; key: by our forward
    table, cost = np.zeros(0, dtype=np.float32), (0, 0)
    for turn in range(repeats):  # a machine's speed drifts: what is compared is timed one after the other
        table, seconds, cost = score(done, masks)
        own.append(seconds)
        if has_context_cite():
            peer.append(context_cite(done, table, SPANS))
        for batch_size, is_ours in ALONE if is_quick else ALONE[turn : turn + 1]:
            row = alone(done, masks, table, batch_size, is_ours=is_ours, is_quick=is_quick)
            parts[is_ours].append(seconds / row["CPU s"])
            rows.append(row)
    tree = spread(own)[0]
    rows.insert(0, _row("prefix tree", len(masks), *cost, own, 1.0, "exact"))
    bars.append(bar("tree / cheaper independent scoring, CPU seconds", max(parts[False]), "<=", 0.42))
    bars.append(bar("the same with independent scoring by our forward, too", max(parts[True]), "<=", 0.42))
    captum = captum_sampling(done, 1 if is_quick else ORDERS, table)
    rows.append(_peer_row(f"captum sampling, {ORDERS} orders", [captum], "sampled"))
    bars.append(bar("captum's default sampling / tree, CPU seconds", captum.seconds / tree, ">=", 2.0))
    shares = exact_shapley(table.sum(axis=1, dtype=np.float64))
    shap = shap_exact(done, table, shares, 16 if is_quick else 1)
    rows.append(_peer_row("shap Exact", [shap], "exact"))
    if peer:
        adaptive(done, table, peer, own, rows, bars, repeats)
    else:
        rows.append(dict.fromkeys(rows[0], "–") | {"method": "context-cite: not installed"})
    report(f"chunk Shapley on {shape.name}", rows, bars, seed=SEED)


def score(done: Work, masks: Sequence[int]) -> tuple[NDArray[np.float32], float, tuple[int, int]]:
    """Values [coalition, token], CPU seconds, (forwards, tokens)."""
    before, started = done.scorer.cost, time.process_time()
    values = done.scorer.score(done.layout, masks)
    seconds = time.process_time() - started
    cost = spent_since(done.scorer, before)
    return values, seconds, (cost.forwards, cost.tokens)


def alone(
    done: Work,
    masks: Sequence[int],
    table: NDArray[np.float32],
    batch_size: int,
    *,
    is_ours: bool,
    is_quick: bool,
) -> dict[str, Any]:
    """Independent scoring, as the library runs a model or by our forward, checked equal to the tree."""
    layout, scorer = done.layout, done.scorer
    sizes = [len(layout.prompt_ids(mask)) + len(layout.answer_ids) for mask in masks]
    part = np.random.default_rng(SEED).permutation(len(masks))[:SAMPLE].tolist() if is_quick else list(masks)
    usual, scorer.shares_prefixes, scorer.batch_size = scorer.batch_size, False, batch_size
    scorer.spares_last_layer = scorer.multiplies_by_onednn = is_ours
    values, seconds, cost = score(done, part)
    scorer.shares_prefixes, scorer.batch_size = True, usual
    scorer.spares_last_layer = scorer.multiplies_by_onednn = True
    worst = float(np.abs(values - table[part]).max())
    if worst > TOLERANCE:
        raise SystemExit(f"tree and independent scoring differ by {worst:.1e} nats: nothing to compare")
    name = f"independent, batch {batch_size}{', by our forward' if is_ours else ''}"
    scale = sum(sizes) / sum(sizes[mask] for mask in part)
    return _row(name, len(part), *cost, [seconds * scale], scale, "exact")


def adaptive(
    done: Work,
    table: NDArray[np.float32],
    peer: Sequence[tuple[PeerRun, NDArray[np.float64]]],
    own: Sequence[float],
    rows: list[dict[str, Any]],
    bars: list[Bar],
    repeats: int,
) -> None:
    """context-cite's cost and error, and sampling that is let run until its error is no larger."""
    spans = spans_of(done.layout, SPANS)
    values = span_values(done.layout, table, spans)  # [coalition, span]
    truth = exact_shapley(values)  # [chunk, span]
    runs, weights = [run for run, _ in peer], peer[0][1]
    theirs = float(np.sqrt(np.mean((weights.T - truth) ** 2)))
    seconds = spread([run.seconds for run in runs])[0]
    rows.append(_peer_row(f"context-cite, {ABLATIONS} ablations", runs, f"RMSE {theirs:.3g} nats"))
    budget, errors = least_budget(done.shape.chunks), [float("inf")]
    while spread(errors)[0] > theirs and budget < len(table):
        errors = [_error(values, truth, budget, seed) for seed in range(SEEDS)]
        budget += 2
    budget -= 2
    times: list[float] = []
    cost = (0, 0)
    for seed in range(repeats):
        before, started = done.scorer.cost, time.process_time()
        found = sample_games(
            lambda asked: span_values(done.layout, done.scorer.score(done.layout, asked), spans),
            done.shape.chunks,
            budget=budget,
            precision=0.0,
            seed=seed,
        )
        times.append(time.process_time() - started)
        spent = spent_since(done.scorer, before)
        cost = (spent.forwards, spent.tokens)
        assert len(found.masks) <= budget
    rows.append(
        _row(
            "sampled, no worse than context-cite",
            budget,
            *cost,
            times,
            1.0,
            f"RMSE {spread(errors)[0]:.3g} nats",
        )
    )
    part = spread([tree / run.seconds for tree, run in zip(own, runs, strict=True)])[0]
    bars.append(bar("tree / context-cite, CPU seconds", part, "<=", 1.4))
    bars.append(
        bar(
            "sampled to context-cite's error / context-cite, CPU seconds",
            spread(times)[0] / seconds,
            "<=",
            0.5,
        )
    )


def _error(values: NDArray[np.float64], truth: NDArray[np.float64], budget: int, seed: int) -> float:
    """Root-mean-square error of sampling so many coalitions, over chunks and spans, nats."""
    players = len(truth)
    found = sample_games(lambda asked: values[list(asked)], players, budget=budget, precision=0.0, seed=seed)
    return float(np.sqrt(np.mean((found.shares - truth) ** 2)))


def grow() -> None:
    """Tokens and seconds of exact Shapley as chunks are added; independent scoring is scaled from a part."""
    rows: list[dict[str, Any]] = []
    for count in COUNTS:
        done = work(Shape(name=f"{count} chunks", chunks=count))
        masks = all_masks(count)
        done.scorer.score(done.layout, masks[:8])  # warm
        _, seconds, (forwards, tokens) = score(done, masks)
        sizes = [len(done.layout.prompt_ids(mask)) + len(done.layout.answer_ids) for mask in masks]
        part = np.random.default_rng(SEED).permutation(len(masks))[: min(8, len(masks))].tolist()
        done.scorer.shares_prefixes, done.scorer.batch_size = False, 1
        _, alone_seconds, _ = score(done, part)
        scale = sum(sizes) / sum(sizes[mask] for mask in part)
        rows.append(
            {
                "chunks": count,
                "coalitions": len(masks),
                "tokens": tokens,
                "part of independent tokens": tokens / sum(sizes),
                "forwards": forwards,
                "CPU s": seconds,
                "part of independent CPU s": seconds / (alone_seconds * scale),
            }
        )
    report("growth of exact Shapley", rows, [], seed=SEED)


def _row(
    name: str,
    evaluations: int,
    forwards: int,
    tokens: int,
    seconds: Sequence[float],
    scale: float,
    result: str,
) -> dict[str, Any]:
    middle, low, high = spread(seconds)
    return {
        "method": name,
        "evaluations run": evaluations,
        "forwards": forwards,
        "tokens": tokens,
        "CPU s": middle,
        "quartiles": f"{low:.1f}–{high:.1f}",
        "scaled by": scale,
        "result": result,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _peer_row(name: str, runs: Sequence[PeerRun], result: str) -> dict[str, Any]:
    one = runs[0]
    return _row(
        name, one.evaluations, one.evaluations, one.tokens, [run.seconds for run in runs], one.scale, result
    )


if __name__ == "__main__":
    main()
