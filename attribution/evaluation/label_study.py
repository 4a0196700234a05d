"""One labelled file, measured: how well what people found unsupported is found, level by level and by cause.

Every table has the trivial scores beside ours, and every figure resamples sources. Tables of one file never
pool types or generators only: a detector can look good by telling those apart.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ragblame.attribution.evaluation.detection import (
    Counted,
    Floats,
    Items,
    ScoredAnswer,
    SpanScorer,
    answers,
    characters,
    spans,
    with_worst_span,
)
from ragblame.attribution.evaluation.evidence import Bar, Cell, Confusion, Estimate, Table
from ragblame.attribution.evaluation.gold_chunks import OVERLAP, gold_chunks
from ragblame.attribution.evaluation.labelled import Label, LabelledAnswer
from ragblame.attribution.evaluation.lexical_baselines import (
    BASELINES,
    NAMES,
    RANDOM,
    LexicalView,
    score_trivially,
)
from ragblame.attribution.evaluation.statistics import holm
from ragblame.attribution.evaluation.sweep import Sweep, estimate, p_value, resamples, share

DRAWS: Final = 1000
MOST: Final = 12  # types and generators that get a row, the most frequent first
_EVERY: Final = 16  # answers between two reports of progress

_LEVELS: Final[tuple[tuple[str, Callable[[Sequence[ScoredAnswer], Counted], Items]], ...]] = (
    ("answers", answers),
    ("spans", spans),
    ("characters", characters),
)
_RULED: Final = frozenset(baseline.name for baseline in BASELINES if baseline.has_rule)
# What issue 6 asks of a detector: (dataset, level, measure) -> bound, reached from above.
WANTED: Final = {
    ("ragtruth_qa", "answers", "AUROC"): 0.82,
    ("ragtruth_qa", "answers", "average precision"): 0.78,
    ("ragtruth_qa", "answers", "F1"): 0.73,
    ("ragtruth_qa", "characters", "F1"): 0.48,
}
MOST_FALSE_ALARMS: Final = 0.05  # of answers in which people found nothing
_WORDS: Final = "words in no chunk, share"


def _all(label: Label) -> bool:
    return True


def _untrue(label: Label) -> bool:
    return not label.is_implicit_true


def _of_type(name: str) -> Counted:
    return lambda label: label.type == name


@dataclass(frozen=True, slots=True)
class _Variant:
    """Which labels count."""

    suffix: str
    counted: Counted


class LabelStudy:
    """One file: its answers as every method sees them, and the tables that follow."""

    def __init__(self, dataset: str, name: str, rows: Sequence[LabelledAnswer], seed: int) -> None:
        self.dataset = dataset
        self.name = name
        self.rows = rows
        self._figures: dict[tuple[str, str], Estimate] = {}  # ours: (level, measure)
        self._margins: list[tuple[str, str, Floats]] = []  # measure, rival, ours minus the rival's
        self._seed = seed
        self._by_method: dict[str, list[ScoredAnswer]] = {method: [] for method in (name, *NAMES)}
        self._clusters, self._draws = resamples([row.source_id for row in rows], seed=seed, draws=DRAWS)

    @property
    def _ours(self) -> list[ScoredAnswer]:
        return self._by_method[self.name]

    def score(self, scorer: SpanScorer) -> Iterator[float]:
        """Let every method look at every answer; yields the part done."""
        rng = np.random.default_rng(self._seed)
        for index, row in enumerate(self.rows):
            ours = with_worst_span(row, scorer(row))
            self._ours.append(ours)
            for method, scored in score_trivially(LexicalView(row), ours.spans, rng).items():
                self._by_method[method].append(scored)
            if index % _EVERY == 0:
                yield index / len(self.rows)

    def tables(self) -> Iterator[Table]:
        """All tables; the margins over trivial scores come last, since the others fill them."""
        labels = [label for row in self.rows for label in row.labels]
        if labels:
            variants = [_Variant("", _all)]
            if any(label.is_implicit_true for label in labels):
                variants.append(_Variant(", without what is true anyway", _untrue))
            for variant in variants:
                for level, items in _LEVELS:
                    yield self._detection(level, items, variant)
            yield self._by_type()
            yield self._by_cause()
            if len({row.model for row in self.rows}) > 1:
                yield self._by_generator()
        else:
            yield self._false_alarms()
        if any(row.gold for row in self.rows):
            table, gain = gold_chunks(self.dataset, self.name, self._ours, self._clusters, self._draws)
            self._margins.append(("gold chunk of answers, top-1", OVERLAP, gain))
            yield table
        if self._margins:
            yield Table(
                title=f"{self.dataset}: ours minus the best trivial score",
                columns=("measure", "best trivial score", "difference", "p, Holm"),
                rows=tuple(
                    (measure, rival, estimate(gain, len(self.rows)), p)
                    for (measure, rival, gain), p in zip(self._margins, self._p_values(), strict=True)
                ),
                note=(
                    "On the same draws; p of no difference, corrected for all rows of this table. The "
                    "trivial score is the best on these very rows, which favours it."
                ),
            )

    def _p_values(self) -> list[float]:
        """One per margin; what is undefined stays so and takes no part in the correction."""
        raw = [p_value(gain) for _, _, gain in self._margins]
        corrected = iter(holm([p for p in raw if not math.isnan(p)]))
        return [p if math.isnan(p) else next(corrected) for p in raw]

    def bars(self) -> Iterator[Bar]:
        """What is asked of a detector, and whether it beats the trivial scores beyond chance; after
        ``tables``."""
        for (dataset, level, measure), bound in WANTED.items():
            if self.dataset == dataset and (figure := self._figures.get((level, measure))) is not None:
                yield Bar.of(f"{dataset}: {measure} of {level}", figure, ">=", bound)
        if (alarms := self._figures.get(("answers", "false alarms"))) is not None:
            yield Bar.of(f"{self.dataset}: false alarms, answers", alarms, "<=", MOST_FALSE_ALARMS)
        for measure, rival, gain in self._margins:
            yield Bar(
                name=f"{self.dataset}: {measure}, ours minus {rival}, lower 95 % bound",
                value=estimate(gain, len(self.rows)).low,
                bound=0.0,
                sense=">=",
            )

    def confusions(self) -> Iterator[Confusion]:
        """Answers by what people say and by what our rule says."""
        counts = Counter((bool(answer.row.labels), answer.is_flagged) for answer in self._ours)
        yield Confusion(
            title=f"{self.dataset}: answers, labelled and flagged",
            labels=("supported", "unsupported"),
            counts=tuple(tuple(counts[truth, flag] for flag in (False, True)) for truth in (False, True)),
            note="First index: at least one label. Second: at least one flagged span.",
        )

    def _sweep(self, items: Items) -> Sweep:
        return Sweep(items, self._clusters, self._draws)

    def _detection(
        self, level: str, make: Callable[[Sequence[ScoredAnswer], Counted], Items], variant: _Variant
    ) -> Table:
        rows: list[tuple[Cell, ...]] = []
        precisions: dict[str, Floats] = {}
        for method, scored in self._by_method.items():
            items = make(scored, variant.counted)
            sweep, n = self._sweep(items), round(float(items.judged.weight.sum()))
            precisions[method] = sweep.average_precision
            has_rule = method == self.name or method in _RULED
            ranked = (sweep.average_precision, sweep.auroc, sweep.precision_at_top)
            ruled = (sweep.precision, sweep.recall, sweep.f1, sweep.false_alarms)
            rows.append(
                (
                    method,
                    *(estimate(values, n) for values in ranked),
                    *(estimate(values, n) if has_rule else None for values in ruled),
                    estimate(sweep.best_f1, n),
                )
            )
            if method == self.name:
                if not variant.suffix:
                    for measure, values in (
                        ("average precision", sweep.average_precision),
                        ("AUROC", sweep.auroc),
                        ("F1", sweep.f1),
                    ):
                        self._figures[level, measure] = estimate(values, n)
                base = estimate(sweep.base_rate, n)
                wanted = round(float(items.wanted.weight.sum()))
        rival = max(
            (method for method in NAMES if method != RANDOM), key=lambda method: precisions[method][0]
        )
        gain = precisions[self.name] - precisions[rival]
        self._margins.append((f"average precision of {level}{variant.suffix}", rival, gain))
        return Table(
            title=f"{self.dataset}: {level}{variant.suffix}",
            columns=(
                *("method", "average precision", "AUROC", "precision at 10 %", "precision", "recall", "F1"),
                *("false alarms", "best F1, in-sample"),
            ),
            rows=tuple(rows),
            note=(
                f"{n:,} {level}, {base.value:.1%} of them unsupported by label ({wanted:,} "
                f"{'labels' if level == 'spans' else level} to find). Precision, recall, F1 and false alarms "
                "are of the method's own rule as it ships; the best F1 has its threshold from the same rows."
            ),
        )

    def _by_type(self) -> Table:
        """Each type of label alone, the others counting neither way."""
        rows: list[tuple[Cell, ...]] = []
        counts = Counter(label.type for row in self.rows for label in row.labels)
        kinds = [(kind, _of_type(kind)) for kind, _ in counts.most_common(MOST)]
        if any(label.is_implicit_true for row in self.rows for label in row.labels):
            kinds.append(("any type, true anyway", lambda label: label.is_implicit_true))
        for kind, counted in kinds:
            count = sum(counted(label) for row in self.rows for label in row.labels)
            ours = [self._sweep(make(self._ours, counted)) for make in (spans, characters)]
            trivial = self._sweep(spans(self._by_method[_WORDS], counted))
            rows.append(
                (
                    kind,
                    count,
                    *(estimate(sweep.recall, count) for sweep in ours),
                    *(estimate(sweep.average_precision, count) for sweep in (*ours, trivial)),
                    estimate(ours[0].base_rate, count),
                )
            )
        return Table(
            title=f"{self.dataset}: by type of label",
            columns=(
                *("type", "labels", "spans, recall", "characters, recall", "spans, average precision"),
                *("characters, average precision", f"spans, {_WORDS}", "spans, base rate"),
            ),
            rows=tuple(rows),
            note="Spans and characters that only other types touch count neither way.",
        )

    def _by_cause(self) -> Table:
        """What people say about the spans we flag, by the cause we give."""
        counts = Counter(x.type for row in self.rows for x in row.labels)
        types = [kind for kind, _ in counts.most_common(MOST)]
        flagged = [
            (span, answer.row, cluster)
            for answer, cluster in zip(self._ours, self._clusters, strict=True)
            for span in answer.spans
            if span.is_flagged
        ]
        rows: list[tuple[Cell, ...]] = []
        for cause, count in Counter(span.cause for span, _, _ in flagged).most_common():
            met = [
                ({x.type for x in row.labels if x.start < span.end and span.start < x.end}, cluster)
                for span, row, cluster in flagged
                if span.cause == cause
            ]
            hits = np.array([float(bool(kinds)) for kinds, _ in met])
            values = share(hits, np.ones(count), [cluster for _, cluster in met], self._draws)
            parts = [sum(kind in kinds for kinds, _ in met) / count for kind in types]
            rows.append((cause or "(none given)", count, estimate(values, count), *parts))
        return Table(
            title=f"{self.dataset}: flagged spans by cause",
            columns=(
                "cause",
                "flagged",
                "labelled (precision)",
                *(f"as {kind}" for kind in types),
            ),
            rows=tuple(rows),
            note="Shares of the flagged spans that overlap a label, of any type and of each.",
        )

    def _by_generator(self) -> Table:
        """Pooled figures can come from telling generators apart; here each stands alone."""
        rows: list[tuple[Cell, ...]] = []
        for model, count in sorted(Counter(row.model for row in self.rows).most_common(MOST)):
            chosen = [index for index, row in enumerate(self.rows) if row.model == model]
            scored = [self._ours[index] for index in chosen]
            clusters = [self._clusters[index] for index in chosen]
            whole, fine = (Sweep(make(scored, _all), clusters, self._draws) for make in (answers, characters))
            rows.append(
                (
                    model or "(unknown)",
                    count,
                    *(estimate(x, count) for x in (whole.base_rate, whole.average_precision, whole.auroc)),
                    *(estimate(x, count) for x in (whole.f1, fine.average_precision, fine.f1)),
                )
            )
        return Table(
            title=f"{self.dataset}: by generator",
            columns=(
                *("generator", "answers", "base rate", "answers, average precision", "answers, AUROC"),
                *("answers, F1", "characters, average precision", "characters, F1"),
            ),
            rows=tuple(rows),
        )

    def _false_alarms(self) -> Table:
        """Nothing is wrong in these answers: whatever is flagged is a false alarm."""
        rows: list[tuple[Cell, ...]] = []
        for method, scored in self._by_method.items():
            if method != self.name and method not in _RULED:
                continue
            cells: list[Cell] = []
            for level, make in _LEVELS:
                items = make(scored, _all)
                n = round(float(items.judged.weight.sum()))
                share_flagged = estimate(self._sweep(items).false_alarms, n)
                cells.append(share_flagged)
                if method == self.name:
                    self._figures[level, "false alarms"] = share_flagged
            rows.append((method, *cells))
        return Table(
            title=f"{self.dataset}: false alarms",
            columns=("method", *(level for level, _ in _LEVELS)),
            rows=tuple(rows),
            note=f"Shares flagged of {len(self.rows):,} answers in which people found nothing unsupported.",
        )
