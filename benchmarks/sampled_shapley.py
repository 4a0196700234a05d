"""How far sampled shares of 20 chunks are from the truth, ours beside the peers, on the small model.

Questions of the known-cause world with 20 chunks; the value of a coalition is the log-probability of the
answer's first span. The reference is paired KernelSHAP on thousands of coalitions of its own (``--pairs``).
Peers get as many coalitions as we did, or as many as cost the tokens that we pushed through the model: theirs
are independent forwards, as they run them, ours share prefixes. All see the same scorer's values.

With ``--chunks`` of at most 12 the reference is exact Shapley over all coalitions and has no error. One more
row lets sampling stop by itself at ``--precision`` nats.

Run: python benchmarks/sampled_shapley.py [--model FOLDER] [--items 6] [--chunks 20] [--budget 256]
[--pairs 4096] [--seeds 2] [--precision 0.05] [--json] [--write]
"""

import argparse
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from evidence import bar, report
from numpy.typing import NDArray

from ragblame.attribution.evaluation.ablation_baselines import LASSO_ALPHA
from ragblame.attribution.inputs import trace_of
from ragblame.attribution.layout import Layout, build_layout
from ragblame.attribution.methods.sampled_shapley import draw_pairs, sample_games
from ragblame.attribution.methods.shapley import exact_shapley
from ragblame.attribution.scorer import TransformersScorer
from ragblame.attribution.spans import segment
from ragblame.attribution.world.answering import generate
from ragblame.attribution.world.episodes import FULL, draw_chunks, draw_question, prompt_text
from ragblame.attribution.world.values import Split

Array = NDArray[np.float64]
EXACT = 12  # chunks up to which every coalition is scored instead of a reference sample
PART = 512  # coalitions of a reference scored in one call
MATERIAL = 1.0  # nats of reliance below which a span has nothing to share


class Values:
    """v(S) of one span, scored once and remembered; what independent scoring would cost is counted beside."""

    def __init__(self, scorer: TransformersScorer, layout: Layout, tokens: Sequence[int]) -> None:
        self.scorer, self.layout = scorer, layout
        self.tokens = list(tokens)
        self.known: dict[int, float] = {}

    def __call__(self, masks: Sequence[int]) -> Array:
        """Nats, [coalition]; new ones are scored along their prefix tree."""
        fresh = [mask for mask in dict.fromkeys(masks) if mask not in self.known]
        for start in range(0, len(fresh), PART):
            part = fresh[start : start + PART]
            rows = self.scorer.score(self.layout, part)[:, self.tokens].sum(axis=1, dtype=np.float64)
            self.known.update(zip(part, rows.tolist(), strict=True))
        return np.array([self.known[mask] for mask in masks])

    def column(self, masks: Sequence[int]) -> Array:
        """The same as one game of several, [coalition, 1]."""
        return self(masks)[:, None]

    def independent_tokens(self, masks: Sequence[int]) -> int:
        """Tokens of one whole forward a coalition."""
        return sum(len(self.layout.prompt_ids(mask)) + len(self.layout.answer_ids) for mask in masks)


def question(scorer: TransformersScorer, chunks: int, number: int) -> Values | None:
    """One question, its answer written by the model; None where the answer hardly depends on the chunks."""
    rng = random.Random(f"sampled shapley {chunks} {number}")
    drawn = draw_chunks(rng, Split.HELD_OUT, chunks, FULL)
    asked = draw_question(rng, Split.HELD_OUT, drawn, FULL)
    (answer,) = generate(scorer.model, scorer.tokenizer, [prompt_text(drawn, asked.text)])
    if not answer:
        return None
    layout = build_layout(
        trace_of(asked.text, [chunk.text for chunk in drawn], answer, None), (), scorer.tokenizer
    )
    span = segment(answer, asked.text).spans[0]
    values = Values(scorer, layout, layout.span_tokens(span))
    none, everything = values([0, layout.full_mask])
    return values if abs(everything - none) >= MATERIAL else None


def reference(values: Values, pairs: int) -> Array:
    """Exact shares of few chunks; of many, paired regression on coalitions that no contender draws."""
    n = len(values.layout.players)
    if n <= EXACT:
        return exact_shapley(values(range(1 << n)))
    rng = np.random.default_rng(10_000)
    firsts = draw_pairs([1 << player for player in range(n)], [], pairs, rng)
    full = values.layout.full_mask
    signs = np.array([[1.0 if mask >> i & 1 else -1.0 for i in range(n)] for mask in firsts])
    odd = (values(firsts) - values([full ^ mask for mask in firsts])) / 2
    size = np.minimum((signs > 0).sum(axis=1), (signs < 0).sum(axis=1))
    # Each size's kernel mass over the pairs seen of it; all and none are a constraint (Covert & Lee 2021).
    mass = {s: (0.5 if 2 * s == n else 1.0) / (s * (n - s)) for s in range(1, n // 2 + 1)}
    weight = np.array([mass[s] / (size == s).sum() if s else 0.0 for s in size.tolist()])
    inner, total = size > 0, float(odd[0])
    target = odd[inner] - signs[inner, -1] * total
    design = signs[inner, :-1] - signs[inner, -1:]
    root = np.sqrt(weight[inner])
    half = np.linalg.lstsq(design * root[:, None], target * root, rcond=None)[0]
    return 2 * np.append(half, total - half.sum())


def lasso(values: Values, ablations: int, seed: int) -> tuple[Array, list[int]]:
    """context-cite's surrogate in nats: independent coalitions, every chunk in with probability 1/2."""
    from sklearn.linear_model import Lasso
    from sklearn.preprocessing import StandardScaler

    n = len(values.layout.players)
    inside = np.random.default_rng(seed).random((ablations, n)) < 0.5
    masks = [sum(1 << i for i in np.flatnonzero(row).tolist()) for row in inside]
    scaler = StandardScaler()
    design = scaler.fit_transform(inside.astype(np.float64))
    tokens = len(values.tokens)
    surrogate = Lasso(alpha=LASSO_ALPHA, fit_intercept=True, random_state=0)
    surrogate.fit(design, values(masks) / tokens)
    weights: Array = surrogate.coef_ / scaler.scale_ * tokens
    return weights, masks


def kernel_explainer(values: Values, budget: int, seed: int) -> tuple[Array, list[int]]:
    """shap's own, all features kept."""
    from shap import KernelExplainer

    n = len(values.layout.players)
    asked: list[int] = []

    def value(rows: Array) -> Array:
        masks = [sum(1 << i for i in np.flatnonzero(row).tolist()) for row in rows]
        asked.extend(masks)
        return values(masks)

    state = np.random.get_state()
    np.random.seed(seed)  # shap's only source of chance
    try:
        explainer = KernelExplainer(value, np.zeros((1, n)))
        found = explainer.shap_values(np.ones((1, n)), nsamples=budget - 2, l1_reg=False, silent=True)
    finally:
        np.random.set_state(state)
    return np.asarray(found, dtype=np.float64)[0], asked


def permutations(values: Values, budget: int, seed: int) -> tuple[Array, list[int]]:
    """Mean marginal contribution along random orders of arrival, as many whole orders as the budget pays."""
    n = len(values.layout.players)
    rng = np.random.default_rng(seed)
    orders = max(1, (budget - 2) // (n - 1))
    shares, asked = np.zeros(n), [0, values.layout.full_mask]
    for _ in range(orders):
        order = rng.permutation(n).tolist()
        chain = [0]
        for player in order:
            chain.append(chain[-1] | 1 << player)
        shares[order] += np.diff(values(chain)) / orders
        asked += chain[1:-1]
    return shares, asked


Peer = Callable[[Values, int, int], tuple[Array, list[int]]]
PEERS: dict[str, Peer] = {
    "context-cite's LASSO": lasso,
    "shap KernelExplainer": kernel_explainer,
    "permutation sampling": permutations,
}


def main() -> None:
    """Measure, report."""
    options = arguments()
    torch.set_num_threads(1)
    scorer = TransformersScorer.from_pretrained(options.model, threads=1)
    errors: dict[str, list[Array]] = {}
    spent: dict[str, list[tuple[int, int]]] = {}  # coalitions, tokens
    covered: dict[str, list[Array]] = {}
    items, number = 0, 0
    while items < options.items:
        values = question(scorer, options.chunks, number)
        number += 1
        if values is None:
            continue
        items += 1
        truth = reference(values, options.pairs)

        def note(name: str, shares: Array, coalitions: int, tokens: int, truth: Array = truth) -> None:
            errors.setdefault(name, []).append(shares - truth)
            spent.setdefault(name, []).append((coalitions, tokens))

        for seed in range(options.seeds):
            for name, precision in (("ragblame", 0.0), (f"ragblame to {options.precision:g} nats", None)):
                afresh = Values(scorer, values.layout, values.tokens)
                before = scorer.cost.tokens
                found = sample_games(
                    afresh.column,
                    options.chunks,
                    budget=options.budget,
                    precision=options.precision if precision is None else precision,
                    seed=seed,
                )
                tokens = scorer.cost.tokens - before
                values.known.update(afresh.known)
                note(name, found.shares[:, 0], len(found.masks), tokens)
                is_inside = np.abs(found.shares[:, 0] - truth) <= 1.96 * found.errors[:, 0]
                covered.setdefault(name, []).append(is_inside.astype(np.float64))
                if precision is None:
                    continue
                for peer, method in PEERS.items():
                    shares, asked = method(values, options.budget, seed)
                    cost = values.independent_tokens(asked)
                    note(f"{peer}, equal coalitions", shares, len(asked), cost)
                    affordable = max(options.chunks + 2, round(options.budget * tokens / cost))
                    shares, asked = method(values, affordable, seed)
                    note(f"{peer}, equal tokens", shares, len(asked), values.independent_tokens(asked))
    report(
        f"sampled Shapley of {options.chunks} chunks",
        rows(errors, spent, covered),
        bars(errors, covered),
    )


def rows(
    errors: dict[str, list[Array]], spent: dict[str, list[tuple[int, int]]], covered: dict[str, list[Array]]
) -> list[dict[str, Any]]:
    """One row per method."""
    return [
        {
            "method": name,
            "RMSE, nats": rmse(errors[name]),
            "largest error, nats": float(np.abs(errors[name]).max()),
            "coalitions": float(np.mean([one for one, _ in spent[name]])),
            "tokens": float(np.mean([one for _, one in spent[name]])),
            "within 1.96 standard errors": float(np.mean(covered[name])) if name in covered else None,
        }
        for name in errors
    ]


def bars(errors: dict[str, list[Array]], covered: dict[str, list[Array]]) -> list[Any]:
    """Half of each peer's error at equal tokens; standard errors that cover 90 to 99 %."""
    ours = rmse(errors["ragblame"])
    found = [
        bar(f"RMSE / that of {peer}, equal tokens", ours / rmse(errors[f"{peer}, equal tokens"]), "<=", 0.5)
        for peer in ("context-cite's LASSO", "shap KernelExplainer")
    ]
    part = float(np.mean(covered["ragblame"]))
    name = "truth within 1.96 standard errors"
    return [*found, bar(f"{name}, least", part, ">=", 0.90), bar(f"{name}, most", part, "<=", 0.99)]


def rmse(differences: Sequence[Array]) -> float:
    """Root of the mean square over chunks, items and seeds, nats."""
    return float(np.sqrt(np.mean(np.square(differences))))


def arguments() -> argparse.Namespace:
    """The command line; ``--json`` and ``--write`` are read by the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="folder of a model; the shipped small one by default")
    parser.add_argument("--items", type=int, default=6)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--budget", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--precision", type=float, default=0.05)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
