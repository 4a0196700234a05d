"""The nine faults that are put into a working chain, the cause each must be given, and how cases are counted.

It exists apart from the injecting because what counts as a case, and as right, is decided before any is seen:
by the value the answer gives and by what stood in its prompt, never by a score or verdict of ours.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ragblame.attribution.evaluation.evidence import Bar, Cell, Confusion, Estimate, Table
from ragblame.attribution.evaluation.findings import Findings
from ragblame.attribution.evaluation.statistics import Statistic, bootstrap, confusion, macro_f1, wilson
from ragblame.records import Cause

LEAST_CASES: Final = 40  # of each fault
LEAST_F1: Final = 0.90
MOST_OPEN: Final = 0.10
MOST_SHOWN: Final = 40  # mistakes written out
DRAWS: Final = 1_000


class Fault(StrEnum):
    """What is put into a chain that answered right."""

    DELETED = "gold chunk deleted"
    LOWER_K = "k lowered"
    INDEX = "index crippled"
    FILTER = "filter added"
    FORMAT = "dropped in formatting"
    COPY = "contradicting copy"
    MEMORY = "told to answer from memory"
    QUERY = "query mangled"
    LATE = "inserted after the answer"


NOT_FLAGGED: Final = "nothing flagged"
UNDETERMINED: Final = "undetermined"
MEMORY_OR_PROMPT: Final = f"{Cause.MEMORY_OVERRIDE.value} / {Cause.PROMPT.value}"

# The class each fault belongs to; TRIAGE's codes A, B1, B2, B3, C, F, I or P, Q, B5.
EXPECTED: Final[Mapping[Fault, str]] = {
    Fault.DELETED: Cause.NO_EVIDENCE_IN_CORPUS.value,
    Fault.LOWER_K: Cause.RANKED_TOO_LOW.value,
    Fault.INDEX: Cause.INDEX_MISS.value,
    Fault.FILTER: Cause.FILTERED_OUT.value,
    Fault.FORMAT: Cause.DROPPED_AFTER_RETRIEVAL.value,
    Fault.COPY: Cause.CONFLICTING_CHUNKS.value,
    Fault.MEMORY: MEMORY_OR_PROMPT,
    Fault.QUERY: Cause.QUERY_REWRITING.value,
    Fault.LATE: Cause.NOT_THERE_YET.value,
}


class Outcome(StrEnum):
    """What became of one draw."""

    CASE = "case"  # the fault took hold: the answer is wrong, or right without its evidence
    NO_EFFECT = "still right and grounded"
    MISREAD = "wrong, though the fault left its evidence in the prompt"
    ABSTAINED = "says that it is not stated"
    UNREADABLE = "no value to be read"
    IMPOSSIBLE = "fault not possible here"  # e.g. k below 1
    NOT_RIGHT_BEFORE = "not right without the fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One source with one fault, or (fault None) without any."""

    fault: Fault | None
    way: str  # how exactly it was put in
    cluster: str  # what draws share their luck by: the name asked about
    outcome: Outcome
    question: str = ""
    answer: str = ""
    gold: str = ""
    given: str = NOT_FLAGGED  # class of the cause of the span that holds the asked value
    others: tuple[str, ...] = ()  # the further causes listed there
    is_flagged: bool = False  # any span of the answer is
    seconds: float = 0.0  # attribution and probe


def class_of(cause: Cause | None) -> str:
    """The class a cause belongs to."""
    if cause is None:
        return NOT_FLAGGED
    if cause in (Cause.MEMORY_OVERRIDE, Cause.PROMPT):
        return MEMORY_OR_PROMPT
    if cause in (Cause.UNDETERMINED, Cause.CAPTURE_INCOMPLETE):
        return UNDETERMINED
    return cause.value


def count_draws(draws: Sequence[Draw], *, seed: int) -> Findings:
    """All tables, the confusion matrix and the bars."""
    cases = [draw for draw in draws if draw.fault is not None and draw.outcome is Outcome.CASE]
    truth = [EXPECTED[draw.fault] for draw in cases if draw.fault is not None]
    given = [draw.given for draw in cases]
    classes = list(EXPECTED.values())
    score = _over(cases, lambda at: macro_f1([truth[i] for i in at], [given[i] for i in at], classes), seed)
    is_open = [float(one == UNDETERMINED) for one in given]
    open_share = _over(cases, lambda at: sum(is_open[i] for i in at) / max(1, len(at)), seed)
    fewest = min(sum(draw.fault is fault for draw in cases) for fault in Fault)
    controls = [draw for draw in draws if draw.fault is None and draw.outcome is Outcome.CASE]
    return Findings(
        tables=[_faults(draws), _ways(cases), _drawn(draws), _controls(controls), _mistakes(cases)],
        confusions=[_confusion(truth, given, controls)],
        bars=[
            Bar(name="cases of the rarest fault", value=float(fewest), bound=LEAST_CASES, sense=">="),
            Bar.of("primary cause: macro-F1 over the nine faults", score, ">=", LEAST_F1),
            Bar.of("undetermined", open_share, "<=", MOST_OPEN),
        ],
    )


def _over(cases: Sequence[Draw], figure: Statistic, seed: int) -> Estimate:
    if not cases:
        return Estimate(value=float("nan"), low=float("nan"), high=float("nan"), n=0)
    return bootstrap(figure, [draw.cluster for draw in cases], seed=seed, draws=DRAWS)


def _faults(draws: Sequence[Draw]) -> Table:
    """Per fault: named right, and F1 of its class."""
    rows: list[tuple[Cell, ...]] = []
    cases = [draw for draw in draws if draw.fault is not None and draw.outcome is Outcome.CASE]
    for fault in Fault:
        own = [draw for draw in cases if draw.fault is fault]
        wanted = EXPECTED[fault]
        hits = sum(draw.given == wanted for draw in own)
        listed = sum(draw.given == wanted or wanted in draw.others for draw in own)
        named = sum(draw.given == wanted for draw in cases)
        rows.append(
            (
                fault.value,
                wanted,
                len(own),
                _share(hits, len(own)),
                _share(listed, len(own)),
                _share(hits, named),
            )
        )
    return Table(
        title="Faults and the causes given",
        columns=("fault put in", "cause to be given", "cases", "given first", "given at all", "precision"),
        rows=tuple(rows),
        note="Given first: the primary cause of the span that holds the asked value. Precision: of all cases "
        "given this cause, how many had this fault. Wilson intervals.",
    )


def _ways(cases: Sequence[Draw]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for fault in Fault:
        own = [draw for draw in cases if draw.fault is fault]
        for way in sorted({draw.way for draw in own}):
            these = [draw for draw in own if draw.way == way]
            hits = sum(draw.given == EXPECTED[fault] for draw in these)
            rows.append((fault.value, way, len(these), _share(hits, len(these))))
    return Table(
        title="By the way a fault was put in",
        columns=("fault put in", "way", "cases", "given first"),
        rows=tuple(rows),
    )


def _drawn(draws: Sequence[Draw]) -> Table:
    outcomes = list(Outcome)
    rows: list[tuple[Cell, ...]] = []
    for fault in (*Fault, None):
        own = [draw for draw in draws if draw.fault is fault]
        counts = Counter(draw.outcome for draw in own)
        name = "none (control)" if fault is None else fault.value
        rows.append((name, len(own), *(counts[outcome] for outcome in outcomes)))
    return Table(
        title="What was drawn",
        columns=("fault put in", "drawn", *(outcome.value for outcome in outcomes)),
        rows=tuple(rows),
        note="Sources are drawn in a random order until enough cases are found. A draw is a case when the "
        "answer gives a value for what was asked and no chunk of its prompt states that value of it; with a "
        "contradicting copy, when both stand in the prompt and the answer gives the value of either. Nothing "
        "that a draw was counted as depends on a verdict.",
    )


def _controls(controls: Sequence[Draw]) -> Table:
    alarms = sum(draw.is_flagged for draw in controls)
    return Table(
        title="Right answers without a fault",
        columns=("answers", "any span flagged"),
        rows=((len(controls), _share(alarms, len(controls))),),
        note="False alarms: nothing was put in, the answer is right and its chunk stood in the prompt.",
    )


def _mistakes(cases: Sequence[Draw]) -> Table:
    wrong = [draw for draw in cases if draw.fault is not None and draw.given != EXPECTED[draw.fault]]
    rest = f", the first {MOST_SHOWN}" if len(wrong) > MOST_SHOWN else ""
    return Table(
        title="Cases given another cause",
        columns=("fault put in", "way", "cause given", "question", "answer", "right"),
        rows=tuple(
            (
                "" if draw.fault is None else draw.fault.value,
                draw.way,
                draw.given,
                draw.question,
                draw.answer,
                draw.gold,
            )
            for draw in wrong[:MOST_SHOWN]
        ),
        note=f"{len(wrong)} of {len(cases)}{rest}.",
    )


def _confusion(truth: Sequence[str], given: Sequence[str], controls: Sequence[Draw]) -> Confusion:
    """Fault cases and controls together, so that a false alarm stands where it strikes."""
    true = [*truth, *(NOT_FLAGGED for _ in controls)]
    said = [*given, *(draw.given for draw in controls)]
    known = [*EXPECTED.values(), NOT_FLAGGED, UNDETERMINED]
    labels = [*known, *sorted(set(said) - set(known))]
    counts = confusion(true, said, labels)
    return Confusion(
        title="Fault put in, and cause given",
        labels=tuple(labels),
        counts=tuple(tuple(int(n) for n in row) for row in counts),
        note=f"The rows of “{NOT_FLAGGED}” are the controls.",
    )


def _share(hits: int, n: int) -> Estimate:
    low, high = wilson(hits, n)
    return Estimate(value=hits / n if n else float("nan"), low=low, high=high, n=n)
