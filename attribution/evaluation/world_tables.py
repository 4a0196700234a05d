"""What the observations of the known-cause world say: one function a question, each giving tables and bars.

It exists to keep counting in one place: the questions are those of SCIENCE 9.3, every figure has a 95 %
interval from resampling clusters, and a figure that was promised is a bar whether it holds or not.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ragblame.attribution.evaluation.cells import REDUNDANT, Cell
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
from ragblame.records import SupportState, VerdictKind

SINGLE_SUPPORT = (Cell.SINGLE, Cell.DISTORTED, Cell.PLACE, Cell.REPEATED)
TRAP_AND_CONFLICT = (Cell.TRAP, Cell.CONFLICT)
PAIRED = (Cell.COPIES, Cell.PARAPHRASES, Cell.TWO_HOP)
CAUSE_CELLS = tuple(Cell)[:10]  # 1-10: where "context or memory" is asked
VERDICTS = (
    VerdictKind.GROUNDED,
    VerdictKind.DISTORTED,
    VerdictKind.KNOWN_ALREADY,
    VerdictKind.FABRICATED,
)
USED = {
    VerdictKind.GROUNDED: "used",
    VerdictKind.DISTORTED: "used",
    VerdictKind.KNOWN_ALREADY: "not used",
    VerdictKind.FABRICATED: "not used",
    VerdictKind.UNDETERMINED: "undetermined",
}

Figure = Callable[[Observation], float]  # NaN: the question does not arise


def labelled(rows: Sequence[Observation], *cells: Cell) -> list[Observation]:
    """The observations that behaviour could label, of these cells or of all."""
    return [one for one in rows if one.behaviour.is_labelled and (not cells or one.item.cell in cells)]


def mean(rows: Sequence[Observation], figure: Figure, *, seed: int) -> Estimate:
    """Mean of a figure over the rows where it exists, with its interval."""
    values = np.array([figure(one) for one in rows])
    kept = np.isfinite(values)
    values, clusters = values[kept], [one.cluster for one, keep in zip(rows, kept, strict=True) if keep]
    strata = [one.model for one, keep in zip(rows, kept, strict=True) if keep]
    if not len(values):
        return Estimate(value=float("nan"), low=float("nan"), high=float("nan"), n=0)
    return bootstrap(lambda index: float(values[index].mean()), clusters, seed=seed, strata=strata)


def found(scores: NDArray[np.float64], causes: Sequence[int]) -> float:
    """How likely the ``len(causes)`` highest scores are exactly the causes, ties broken at random: [0, 1]."""
    k = len(causes)
    if not k or not np.isfinite(scores).all():
        return float("nan")
    border = np.sort(scores)[-k]
    above = set(np.flatnonzero(scores > border).tolist())
    level = set(np.flatnonzero(scores == border).tolist())
    if not above <= set(causes) or not set(causes) <= above | level:
        return 0.0
    ways = 1.0
    for index in range(k - len(above)):  # all of the k - len(above) draws from the tie must be causes
        ways *= (k - len(above) - index) / (len(level) - index)
    return ways


def top_one(scores: NDArray[np.float64], causes: Sequence[int]) -> float:
    """Whether the highest score is a cause, ties broken at random: [0, 1]; NaN without a cause."""
    if not causes or not np.isfinite(scores).all():
        return float("nan")
    best = np.flatnonzero(scores == scores.max())
    return float(np.isin(best, list(causes)).mean())


def is_as_designed(one: Observation) -> bool:
    """Whether behaviour bears the cell's design out; items that do not are labelled by behaviour all the
    same."""
    causes, gold = one.behaviour.causes, one.item.gold
    match one.item.cell:
        case Cell.MEMORY_WINS:
            return not causes and not one.is_supported
        case Cell.UNSTATED:
            return not one.is_supported
        case Cell.AGREES:
            return one.is_supported
        case Cell.DISTORTED:
            return causes == gold and not one.is_supported
        case Cell.CONFLICT:
            return len(causes) == 1 and set(causes) <= set(gold)
        case Cell.COPIES | Cell.PARAPHRASES:
            return bool(causes) and set(causes) <= set(gold)
        case _:
            return causes == gold


def describe_cells(rows: Sequence[Observation], *, count: int) -> Findings:
    """How many items each cell holds, and what the model did with them."""
    table = []
    least = len(rows)
    for cell in Cell:
        drawn = [one for one in rows if one.item.cell is cell]
        kept = labelled(drawn)
        designed = sum(is_as_designed(one) for one in kept)
        least = min(least, designed)
        unread = sum(one.behaviour.value is None for one in drawn)
        unclear = sum(not one.behaviour.is_clear for one in drawn)
        truths = [sum(one.truth is verdict for one in kept) for verdict in VERDICTS]
        table.append((cell.value, len(drawn), len(kept), designed, unread, unclear, *truths))
    return Findings(
        tables=[
            Table(
                title="The cells, by behaviour",
                columns=(
                    "cell",
                    "drawn",
                    "labelled",
                    "as designed",
                    "unreadable",
                    "unclear",
                    *(verdict.value for verdict in VERDICTS),
                ),
                rows=tuple(table),
                note="Labels come from what the answer does when values in chunks are swapped. "
                "Unclear: no swap was followed, yet one changed the value to something else. Unreadable, "
                "unclear and abstaining items are counted here and used nowhere.",
            )
        ],
        bars=[
            Bar(
                name="items as designed in the smallest cell",
                value=least,
                bound=min(100, count / 2),
                sense=">=",
            )
        ],
    )


def right_chunk(rows: Sequence[Observation], *, seed: int) -> Findings:
    """Which chunk? By cell, by number of chunks and by place of the support."""
    kept = labelled(rows)

    def top(one: Observation) -> float:
        return top_one(one.shares, one.causes)

    def both(one: Observation) -> float:
        return found(one.shares, one.causes) if len(one.causes) == 2 else float("nan")

    by_cell = []
    for cell in Cell:
        these = labelled(kept, cell)
        pair = mean(these, both, seed=seed) if cell in PAIRED else None
        designed = [one for one in these if is_as_designed(one)]
        by_cell.append((cell.value, mean(these, top, seed=seed), mean(designed, top, seed=seed), pair))
    single = mean(labelled(kept, *SINGLE_SUPPORT), top, seed=seed)
    trap = mean(labelled(kept, *TRAP_AND_CONFLICT), top, seed=seed)
    pairs = mean(labelled(kept, *PAIRED), both, seed=seed)
    plain = [one for one in kept if one.item.cell not in REDUNDANT and one.item.cell is not Cell.AGREES]
    counts = sorted({len(one.item.chunks) for one in plain})
    by_count = [
        (count, mean([one for one in plain if len(one.item.chunks) == count], top, seed=seed))
        for count in counts
    ]
    by_place = [
        (
            place,
            mean([one for one in labelled(kept, Cell.PLACE) if one.item.variant == place], top, seed=seed),
        )
        for place in ("first", "middle", "last")
    ]
    return Findings(
        tables=[
            Table(
                title="Right chunk: exact Shapley's top chunk is a cause",
                columns=("cell", "top-1", "top-1, items as designed", "both found"),
                rows=tuple(by_cell),
                note="Only items whose value came from the chunks. In cell 7 memory would have "
                "said it too, so "
                "deletion has next to nothing to share out there: it is in no bar of this table.",
            ),
            Table(title="Right chunk by number of chunks", columns=("chunks", "top-1"), rows=tuple(by_count)),
            Table(
                title="Right chunk by place of the support", columns=("place", "top-1"), rows=tuple(by_place)
            ),
        ],
        bars=[
            Bar.of("top-1 on single-support cells (1, 10, 11, 12)", single, ">=", 0.99),
            Bar.of("top-1 on trap and conflict cells (5, 6)", trap, ">=", 0.95),
            Bar.of("both chunks found on duplicates and two-hop (2, 3, 4)", pairs, ">=", 0.95),
        ],
    )


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


SUSPICION = {  # how the product ranks a span, from what the text says
    SupportState.CONTRADICTED: 1.0,
    SupportState.ABSENT: 0.9,
    SupportState.UNCLEAR: 0.5,
    SupportState.ENTAILED: 0.0,
}


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
