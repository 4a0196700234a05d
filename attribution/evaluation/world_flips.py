"""The tests a sceptic believes: edit a chunk and see whether the answer changes; equal chunks share alike.

It exists because both need no score to be believed (SCIENCE 7): the answer itself tells.
"""

from collections.abc import Sequence

import numpy as np

from ragblame.attribution.evaluation.cells import REDUNDANT, Cell
from ragblame.attribution.evaluation.counting import labelled, mean
from ragblame.attribution.evaluation.evidence import Bar, Estimate, Table
from ragblame.attribution.evaluation.findings import Findings
from ragblame.attribution.evaluation.observations import Observation
from ragblame.attribution.evaluation.statistics import bootstrap


def flips(rows: Sequence[Observation], *, seed: int) -> Findings:
    """The test a sceptic believes: edit the top chunk's value and see whether the answer changes."""
    kept = [one for one in labelled(rows) if one.item.cell not in REDUNDANT and one.flips_top is not None]

    def flipped(these: Sequence[Observation]) -> tuple[Estimate, Estimate]:
        return (
            mean(these, lambda one: _part(one.flips_top), seed=seed),
            mean(these, lambda one: _part(one.flips_other), seed=seed),
        )

    top, other = flipped(kept)
    cells = [(cell, labelled(kept, cell)) for cell in Cell]
    return Findings(
        tables=[
            Table(
                title="Flip test: the answer changes when a chunk's value is edited",
                columns=("cell", "the chunk of the largest share", "another one, at random"),
                rows=(
                    ("all of these", top, other),
                    *((cell.value, *flipped(these)) for cell, these in cells if these),
                ),
                note="Cells without redundant evidence, values that came from the chunks. The other chunk is "
                "none of the causes by behaviour.",
            )
        ],
        bars=[
            Bar.of("editing the top chunk flips the answer", top, ">=", 0.90),
            Bar.of("editing another chunk flips the answer", other, "<=", 0.05),
        ],
    )


def _part(value: bool | None) -> float:
    return float("nan") if value is None else float(value)


def copies_share_alike(rows: Sequence[Observation], *, seed: int) -> Findings:
    """Exact duplicates must get equal shares."""

    def difference(one: Observation) -> float:
        first, second = (float(one.shares[index]) for index in one.item.gold[:2])
        largest = max(abs(first), abs(second))
        return abs(first - second) / largest if largest > 0 and len(one.item.gold) == 2 else float("nan")

    kept = [one for one in labelled(rows, Cell.COPIES) if one.behaviour.is_used]
    values = np.array([difference(one) for one in kept])
    clusters, strata = [one.cluster for one in kept], [one.model for one in kept]
    middle = bootstrap(lambda at: float(np.nanmedian(values[at])), clusters, seed=seed, strata=strata)
    within = mean(kept, lambda one: float(difference(one) <= 0.10), seed=seed)
    return Findings(
        tables=[
            Table(
                title="Exact duplicates share alike",
                columns=("figure", "value"),
                rows=(
                    ("median relative difference of the two shares", middle),
                    ("pairs within 10 %", within),
                ),
            )
        ],
        bars=[Bar.of("duplicates: median relative difference of shares", middle, "<=", 0.10)],
    )
