"""Checks that an attribution method can fail even when it looks right (SCIENCE 7), on the model itself.

It exists because shares that survive shuffled weights, or that an irrelevant chunk collects, say nothing
about the model: these need other scorings than the table of an item, so they ask the model again, on a part
of the items.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from ragblame.attribution.alignment import align_chunks
from ragblame.attribution.evaluation.cells import Cell
from ragblame.attribution.evaluation.counting import labelled
from ragblame.attribution.evaluation.evidence import Bar, Table
from ragblame.attribution.evaluation.findings import Findings
from ragblame.attribution.evaluation.observations import Observation
from ragblame.attribution.evaluation.sanity import additivity, rank_correlation, shuffled
from ragblame.attribution.evaluation.statistics import bootstrap
from ragblame.attribution.evaluation.study import claim_tokens
from ragblame.attribution.inputs import trace_of
from ragblame.attribution.layout import build_layout
from ragblame.attribution.methods.coalitions import all_masks
from ragblame.attribution.methods.shapley import exact_shapley
from ragblame.attribution.scorer import TransformersScorer

CELLS = (Cell.SINGLE, Cell.PLACE, Cell.TRAP, Cell.CONFLICT)
MOST_CHUNKS = 6  # of an item that gets a further chunk: its table doubles
WITHIN = 0.95  # of irrelevant texts must zero be unremarkable among
# Sentences of no runbook, built from words the tokenizer knows as well as any.
IRRELEVANT = (
    "A snow fell on the north field last spring.",
    "No rose was taken to the market at the moor.",
    "The swift and the heron were watched at the lake.",
    "An otter and a badger may listen at the gate.",
    "Red and green stone was moved to the old wall.",
    "The orchard keeps its water for the summer.",
)


def sanity(rows: Sequence[Observation], folder: Path | None, *, seed: int, most: int) -> Findings:
    """Shuffled weights, an irrelevant chunk, and sums, on up to ``most`` items of one model."""
    scorer = TransformersScorer.from_pretrained(None if folder is None else str(folder), threads=1)
    # The same machinery on a model that learned nothing; its shares must not look like the real ones.
    scrambled = TransformersScorer(shuffled(scorer.model, seed), scorer.tokenizer, name="shuffled")
    kept = [one for one in labelled(rows, *CELLS) if one.behaviour.is_used]
    kept = [one for one in kept if 3 <= len(one.item.chunks) <= MOST_CHUNKS]
    rng = random.Random(f"sanity {seed}")
    kept = rng.sample(kept, min(most, len(kept)))
    correlations, dummies, gaps = [], [], []
    for one in kept:
        texts = [chunk.text for chunk in one.item.chunks]
        correlations.append(rank_correlation(one.shares, exact_shapley(_values(scrambled, one, texts))))
        gaps.append(additivity(one.shares, one.values).gap)
        place = rng.randrange(len(texts) + 1)
        dummies.append(
            [
                float(exact_shapley(_values(scorer, one, [*texts[:place], text, *texts[place:]]))[place])
                for text in IRRELEVANT
            ]
        )
    clusters = [one.cluster for one in kept]
    rho = np.array(correlations)
    shares = np.array(dummies)
    reliance = np.array([one.reliance for one in kept])
    within = zero_is_unremarkable(shares)
    part = np.abs(shares).mean(axis=1) / np.abs(reliance)
    shuffled_rho = bootstrap(lambda at: float(np.nanmean(rho[at])), clusters, seed=seed)
    spread = bootstrap(lambda at: float(np.abs(shares[at]).mean()), clusters, seed=seed)
    level = bootstrap(lambda at: float(within[at].mean()), clusters, seed=seed)
    fraction = bootstrap(lambda at: float(np.median(part[at])), clusters, seed=seed)
    return Findings(
        tables=[
            Table(
                title="Sanity",
                columns=("check", "value"),
                rows=(
                    ("rank correlation of shares with those of a weight-shuffled model", shuffled_rho),
                    ("an irrelevant chunk's share, nats (mean size)", spread),
                    ("as part of the reliance (median)", fraction),
                    ("items where a share of 0 is within the noise of irrelevant texts", level),
                    ("largest gap between sum of shares and reliance, nats", float(max(gaps, default=0.0))),
                ),
                note=f"{len(kept)} items of cells 1, 5, 6, 11 with 3 to {MOST_CHUNKS} chunks. "
                "Irrelevant chunks are sentences of no runbook. Any text moves a value, so the noise of "
                "an irrelevant chunk is what irrelevant texts do there, not the (far smaller) numerical "
                f"noise: 0 is within it when the {WITHIN:.0%} prediction interval of {len(IRRELEVANT)} such "
                "texts holds it.",
            )
        ],
        bars=[
            Bar(
                name="shares of a weight-shuffled model: size of the correlation",
                value=abs(shuffled_rho.value),
                bound=0.3,
                sense="<=",
            ),
            Bar.of("an irrelevant chunk's share is within its noise of 0", level, ">=", 0.90),
            Bar.of("an irrelevant chunk's share as part of the reliance (median)", fraction, "<=", 0.05),
        ],
    )


def zero_is_unremarkable(shares: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether a share of 0 lies in the prediction interval of each row's irrelevant texts, shape [item].

    ``shares``: nats, [item, text]. The interval is Student's, mean +- t s sqrt(1 + 1/k) of k texts: wide
    enough for a spread that so few texts tell badly, which "3 sigma" is not.
    """
    texts = shares.shape[1]
    reach = student.ppf((1 + WITHIN) / 2, texts - 1) * np.sqrt(1 + 1 / texts)
    inside: NDArray[np.bool_] = np.abs(shares.mean(axis=1)) <= reach * shares.std(axis=1, ddof=1)
    return inside


def _values(scorer: TransformersScorer, one: Observation, texts: Sequence[str]) -> NDArray[np.float64]:
    """v(S) of the claim, nats, for every coalition of these chunks: [2**n]."""
    trace = trace_of(one.item.question.text, list(texts), one.behaviour.answer, None)
    layout = build_layout(trace, align_chunks(trace.chunks, trace.prompt), scorer.tokenizer)
    table = scorer.score(layout, all_masks(len(texts)))
    tokens = claim_tokens(one.behaviour, layout.answer_starts, layout.answer_ends)
    values: NDArray[np.float64] = table[:, tokens].sum(axis=1, dtype=np.float64)
    return values
