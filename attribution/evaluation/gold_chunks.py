"""Does the chunk we name support the answer, by the judgement of people? Top-1 against trivial choices.

Gold chunks are given for whole answers. An answer's choice is the chunk that most of its text rests on; a
span's choice counts when it is any gold chunk of the answer, since nobody labelled spans one by one. Where
several chunks are gold a random choice is often right, so its exact expectation stands in the table too.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ragblame.attribution.evaluation.detection import Floats, ScoredAnswer, ScoredSpan
from ragblame.attribution.evaluation.evidence import Table
from ragblame.attribution.evaluation.lexical_baselines import LexicalView
from ragblame.attribution.evaluation.sweep import estimate, share

OVERLAP: Final = "word overlap"
FIRST: Final = "first chunk"
RANDOM: Final = "random (expected)"


@dataclass(slots=True)
class _Choices:
    """Hits in [0, 1] of each method on one kind of unit, one entry per unit."""

    clusters: list[int] = field(default_factory=list)
    hits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    is_named: list[float] = field(default_factory=list)  # our method named a chunk at all

    def add(
        self, cluster: int, gold: frozenset[int], chunks: int, ours: tuple[str, int | None], other: int
    ) -> None:
        name, chosen = ours
        self.clusters.append(cluster)
        self.is_named.append(float(chosen is not None))
        self.hits[name].append(float(chosen in gold))
        self.hits[OVERLAP].append(float(other in gold))
        self.hits[FIRST].append(float(0 in gold))
        self.hits[RANDOM].append(len(gold) / chunks)


def gold_chunks(
    dataset: str, name: str, scored: Sequence[ScoredAnswer], clusters: Sequence[int], draws: Floats
) -> tuple[Table, Floats]:
    """Top-1 on the answers that have gold chunks, and ours minus that of word overlap, on answers, [draws].

    ``name``: of the method that made ``scored``. ``clusters``: of each answer. ``draws``: as ``resamples``
    gives them. Naming no chunk is a miss. Raises ``ValueError`` when no answer has a gold chunk.
    """
    answers, spans = _Choices(), _Choices()
    for answer, cluster in zip(scored, clusters, strict=True):
        row = answer.row
        if not row.gold:
            continue
        view = LexicalView(row)
        choice = (name, most_named(answer.spans))
        answers.add(cluster, row.gold, len(row.chunks), choice, nearest(view, 0, len(row.answer)))
        for span in answer.spans:
            if any(label.start < span.end and span.start < label.end for label in row.labels):
                continue  # unsupported by judgement: no chunk is right
            other = nearest(view, span.start, span.end)
            spans.add(cluster, row.gold, len(row.chunks), (name, span.position), other)
    if not answers.clusters:
        raise ValueError(f"no answer of {dataset} has gold chunks")
    rows = []
    for method in (name, OVERLAP, FIRST, RANDOM):
        cells = []
        for unit in (answers, spans):
            hits = np.array(unit.hits[method])
            cells.append(estimate(share(hits, np.ones(len(hits)), unit.clusters, draws), len(hits)))
        is_ours = method == name
        named = [float(np.mean(unit.is_named)) if is_ours else 1.0 for unit in (answers, spans)]
        rows.append((method, cells[0], named[0], cells[1], named[1]))
    table = Table(
        title=f"{dataset}: gold chunks",
        columns=("method", "answers, top-1", "answers named", "spans, top-1", "spans named"),
        rows=tuple(rows),
        note=(
            f"{len(answers.clusters):,} answers with gold chunks, {len(spans.clusters):,} spans that no "
            "label touches. Named: share for which the method chose a chunk; choosing none counts as a miss."
        ),
    )
    ours, overlap = (np.array(answers.hits[method]) for method in (name, OVERLAP))
    weights = np.ones(len(ours))
    gain = share(ours, weights, answers.clusters, draws) - share(overlap, weights, answers.clusters, draws)
    return table, gain


def most_named(spans: Sequence[ScoredSpan]) -> int | None:
    """The chunk that most characters of the spans rest on, the earlier of equals; None when none is named."""
    votes: dict[int, int] = defaultdict(int)
    for span in spans:
        if span.position is not None:
            votes[span.position] += span.end - span.start
    return min(votes, key=lambda position: (-votes[position], position), default=None)


def nearest(view: LexicalView, start: int, end: int) -> int:
    """The chunk with most of the words in [start, end); of equals the one with most of the question's."""
    whole = len(view.row.answer)
    return min(
        range(len(view.row.chunks)),
        key=lambda position: (
            -view.overlap(position, start, end),
            -view.echo(position),
            -view.overlap(position, 0, whole),
            position,
        ),
    )
