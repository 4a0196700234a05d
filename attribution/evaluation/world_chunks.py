"""Which chunk? What the cells hold by behaviour, and whether exact Shapley names the chunk that did it.

It exists because this is the first question of SCIENCE 9.3: everything else rests on naming the right chunk.
"""

from collections.abc import Sequence

from ragblame.attribution.evaluation.cells import REDUNDANT, Cell
from ragblame.attribution.evaluation.counting import found, labelled, mean, top_one
from ragblame.attribution.evaluation.evidence import Bar, Table
from ragblame.attribution.evaluation.findings import Findings
from ragblame.attribution.evaluation.observations import Observation
from ragblame.records import VerdictKind

SINGLE_SUPPORT = (Cell.SINGLE, Cell.DISTORTED, Cell.PLACE, Cell.REPEATED)
TRAP_AND_CONFLICT = (Cell.TRAP, Cell.CONFLICT)
PAIRED = (Cell.COPIES, Cell.PARAPHRASES, Cell.TWO_HOP)
VERDICTS = (
    VerdictKind.GROUNDED,
    VerdictKind.DISTORTED,
    VerdictKind.KNOWN_ALREADY,
    VerdictKind.FABRICATED,
)


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
