"""What the product says of each value, against behaviour and the world: used or not, verdicts, flags.

It exists because verdicts, not shares, are what people act on (SCIENCE 9.3).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ragblame.attribution.evaluation.cells import Cell
from ragblame.attribution.evaluation.counting import labelled, mean
from ragblame.attribution.evaluation.evidence import Bar, Confusion, Estimate, Table
from ragblame.attribution.evaluation.findings import Findings
from ragblame.attribution.evaluation.observations import Observation
from ragblame.attribution.evaluation.statistics import (
    average_precision,
    bootstrap,
    confusion,
    macro_f1,
    precision_at,
)
from ragblame.attribution.evaluation.world_chunks import VERDICTS
from ragblame.records import SupportState, VerdictKind

CAUSE_CELLS = tuple(Cell)[:10]  # 1-10: where "context or memory" is asked
USED = {
    VerdictKind.GROUNDED: "used",
    VerdictKind.DISTORTED: "used",
    VerdictKind.KNOWN_ALREADY: "not used",
    VerdictKind.FABRICATED: "not used",
    VerdictKind.UNDETERMINED: "undetermined",
}
SUSPICION = {  # how the product ranks a span, from what the text says
    SupportState.CONTRADICTED: 1.0,
    SupportState.ABSENT: 0.9,
    SupportState.UNCLEAR: 0.5,
    SupportState.ENTAILED: 0.0,
}


def context_or_memory(rows: Sequence[Observation], *, seed: int) -> Findings:
    """Used or not, by the verdicts the product gives; undetermined counts as wrong."""
    kept = labelled(rows, *CAUSE_CELLS)
    truth = ["used" if one.behaviour.is_used else "not used" for one in kept]
    given = [USED[one.judged.verdict] for one in kept]
    labels = ("used", "not used")
    score = _macro(kept, truth, given, labels, seed=seed)
    everything = (*labels, "undetermined")
    by_cell = []
    for cell in CAUSE_CELLS:
        these = [index for index, one in enumerate(kept) if one.item.cell is cell]
        if these:
            right = mean(
                [kept[index] for index in these],
                lambda one: float(
                    USED[one.judged.verdict] == ("used" if one.behaviour.is_used else "not used")
                ),
                seed=seed,
            )
            by_cell.append((cell.value, sum(truth[index] == "used" for index in these), right))
    open_share = float(np.mean([one == "undetermined" for one in given])) if given else float("nan")
    return Findings(
        tables=[
            Table(
                title="Context or memory, by cell",
                columns=("cell", "used by behaviour", "said right"),
                rows=tuple(by_cell),
                note=f"Undetermined: {open_share:.3f} of the items, counted as wrong.",
            )
        ],
        confusions=[_confusion("Context or memory, cells 1-10", truth, given, everything)],
        bars=[Bar.of("context or memory: macro-F1, cells 1-10", score, ">=", 0.95)],
    )


def verdicts(rows: Sequence[Observation], *, seed: int) -> Findings:
    """The four verdicts against behaviour and the world, and the flags as a ranking."""
    kept = labelled(rows)
    truth = [one.truth.value for one in kept]
    given = [one.judged.verdict.value for one in kept]
    labels = [verdict.value for verdict in VERDICTS]
    score = _macro(kept, truth, given, labels, seed=seed)
    by_cell = [
        (
            cell.value,
            mean(labelled(kept, cell), lambda one: float(one.judged.verdict is one.truth), seed=seed),
            mean(labelled(kept, cell), lambda one: float(one.judged.is_exact), seed=seed),
        )
        for cell in Cell
    ]
    return Findings(
        tables=[
            Table(
                title="Verdicts by cell",
                columns=("cell", "right verdict", "span is exactly the value"),
                rows=tuple(by_cell),
            )
        ],
        confusions=[_confusion("Verdicts", truth, given, [*labels, VerdictKind.UNDETERMINED.value])],
        bars=[Bar.of("verdicts: 4-way macro-F1", score, ">=", 0.90)],
    )


def flags(rows: Sequence[Observation], *, seed: int) -> Findings:
    """Unsupported values as a ranking, beside what a ranking without us would be."""
    kept = labelled(rows)
    truth = np.array([not one.is_supported for one in kept])
    scores: dict[str, NDArray[np.float64]] = {
        "ragblame": np.array([SUSPICION[one.judged.support] + 0.05 * one.judged.is_flagged for one in kept]),
        "value in no chunk (search)": np.array(
            [1.0 - one.others["holds the value"].max() if len(one.shares) else 1.0 for one in kept]
        ),
        "token likelihood": np.array([-one.values[-1] / one.tokens for one in kept]),
        "reliance": np.array([-one.reliance for one in kept]),
        "answer length": np.array([float(len(one.behaviour.answer)) for one in kept]),
    }
    clusters, strata = [one.cluster for one in kept], [one.model for one in kept]
    table, estimates = [], {}
    for name, values in scores.items():
        estimates[name] = _ranked(average_precision, values, truth, clusters, strata, seed)
        early = _ranked(lambda s, t: precision_at(s, t, 0.1), values, truth, clusters, strata, seed)
        table.append((name, estimates[name], early))
    flagged = np.array([one.judged.is_flagged for one in kept])
    missed = float((~flagged & truth).sum() / max(1, truth.sum()))
    alarms = float((flagged & ~truth).sum() / max(1, (~truth).sum()))
    return Findings(
        tables=[
            Table(
                title="Unsupported values, ranked",
                columns=("ranking", "average precision", "precision at 10 %"),
                rows=tuple(table),
                note=f"{int(truth.sum())} of {len(truth)} values are unsupported. As flagged: "
                f"{missed:.3f} of "
                f"them missed, {alarms:.3f} of the supported ones flagged (a conflict of chunks is flagged "
                "by design).",
            )
        ],
        bars=[Bar.of("unsupported spans: average precision", estimates["ragblame"], ">=", 0.97)],
    )


def repetitions(rows: Sequence[Observation], *, seed: int) -> Findings:
    """Prefix leakage: how much of its reliance a value loses when the answer gives it a second time."""
    kept = [one for one in labelled(rows, Cell.REPEATED) if one.repeated is not None]

    def second(one: Observation) -> float:
        return float(one.repeated[-1] - one.repeated[0]) if one.repeated is not None else float("nan")

    return Findings(
        tables=[
            Table(
                title="A value given twice",
                columns=("mention", "reliance, nats", "right verdict"),
                rows=(
                    (
                        "first",
                        mean(kept, lambda one: one.reliance, seed=seed),
                        mean(kept, lambda one: float(one.judged.verdict is one.truth), seed=seed),
                    ),
                    (
                        "second",
                        mean(kept, second, seed=seed),
                        mean(kept, lambda one: float(one.again is one.truth), seed=seed),
                    ),
                ),
                note="The second mention is read off the first (prefix leakage), so its own reliance says "
                "little: its verdict carries the influence measured at the first mention.",
            )
        ]
    )


def _macro(
    rows: Sequence[Observation],
    truth: Sequence[str],
    given: Sequence[str],
    labels: Sequence[str],
    *,
    seed: int,
) -> Estimate:
    return bootstrap(
        lambda at: macro_f1([truth[i] for i in at], [given[i] for i in at], labels),
        [one.cluster for one in rows],
        seed=seed,
        strata=[one.model for one in rows],
        draws=400,
    )


def _ranked(
    score: Callable[[NDArray[np.float64], NDArray[np.bool_]], float],
    values: NDArray[np.float64],
    truth: NDArray[np.bool_],
    clusters: Sequence[str],
    strata: Sequence[str],
    seed: int,
) -> Estimate:
    return bootstrap(lambda at: score(values[at], truth[at]), clusters, seed=seed, strata=strata, draws=400)


def _confusion(title: str, truth: Sequence[str], given: Sequence[str], labels: Sequence[str]) -> Confusion:
    counts = confusion(truth, given, labels)
    return Confusion(
        title=title, labels=tuple(labels), counts=tuple(tuple(int(n) for n in row) for row in counts)
    )
