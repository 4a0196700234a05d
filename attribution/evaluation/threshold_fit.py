"""From labelled answers to a new version of the thresholds: one half of the sources fits, the other promises.

A threshold chosen on the rows that the probability was fitted to would promise more than it keeps, so sources
are halved by a hash of their names: the calibration curve is learned on one half, the threshold with its miss
rate, and every figure shown, on the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ragblame.attribution.evaluation.detection import (
    ScoredAnswer,
    ScoredSpan,
    answers,
    spans,
    with_worst_span,
)
from ragblame.attribution.evaluation.evidence import Bin
from ragblame.attribution.evaluation.labelled import Label, LabelledAnswer
from ragblame.attribution.evaluation.statistics import clopper_pearson, reliability
from ragblame.attribution.verdicts.calibration import (
    Controlled,
    Curve,
    apply,
    control_misses,
    half_of,
    isotonic,
    platt,
)
from ragblame.attribution.verdicts.thresholds import Promise, Thresholds
from ragblame.errors import InputError

Floats: TypeAlias = NDArray[np.float64]
SPLITS: Final = 40  # of the sources into thirds, to see whether a promise holds
FEW: Final = 100  # unsupported spans below which two numbers are learned instead of a staircase


class Reader(Protocol):
    """What reads an answer and says how doubtful each span is: the support model behind the debugger."""

    model: str  # name@revision

    def __call__(self, row: LabelledAnswer) -> Sequence[ScoredSpan]:
        """Disjoint spans in order, ``score`` the model's raw probability of being unsupported."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """Does the promise hold? Of thirds of the sources one fits, one promises, one is fresh, many times."""

    splits: int
    missed: float  # mean over splits of the mean loss of a fresh source, [0, 1]
    low: float  # 2.5 % and 97.5 % of the splits
    high: float
    within: float  # share of splits whose own 95 % interval (Clopper-Pearson) allows alpha


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """New thresholds, and how they do on the half of the sources that chose ``flag_at``."""

    thresholds: Thresholds
    controlled: Controlled
    method: str  # of the curve: "isotonic" or "Platt"
    fitted_on: int  # spans behind the curve
    bins: tuple[Bin, ...]  # reliability of the calibrated probability, spans
    ece: float  # expected calibration error of it, [0, 1]
    raw_ece: float  # the same of the raw probability
    false_alarms: int  # supported answers with a flagged span
    supported: int  # of so many
    missed: int  # unsupported answers or spans below flag_at
    wanted: int  # of so many
    fresh: Fresh | None  # None: too few sources to put a third aside

    @property
    def false_alarm_interval(self) -> tuple[float, float]:
        """95 % of the share of supported answers that would be flagged (Clopper-Pearson)."""
        return clopper_pearson(self.false_alarms, self.supported)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One labelled answer with what the model said of its spans."""

    source: str
    scored: ScoredAnswer


def read_all(
    rows: Sequence[LabelledAnswer], reader: Reader, progress: Callable[[float], None] | None = None
) -> list[Judged]:
    """Let the model read every answer. ``progress``: hears the part done, [0, 1]."""
    judged = []
    for index, row in enumerate(rows):
        judged.append(Judged(source=row.source_id, scored=with_worst_span(row, reader(row))))
        if progress is not None:
            progress((index + 1) / len(rows))
    return judged


def fit(
    judged: Sequence[Judged],
    *,
    model: str,
    base: Thresholds,
    version: str,
    alpha: float,
    level: str,
    labels: str,
    seed: int = 0,
    splits: int = SPLITS,
) -> Fitted:
    """``base`` with a calibration curve for ``model``, and the threshold that misses at most ``alpha``.

    ``level``: "answers" or "spans", what must not be missed. ``labels``: where they came from, to be kept.
    ``splits``: draws of thirds that try the promise; 0: none.
    Raises ``InputError`` when there are too few sources, naming the number needed, or only one kind of label.
    """
    halves: tuple[list[Judged], list[Judged]] = ([], [])
    for one in judged:
        halves[half_of(one.source, seed)].append(one)
    fitting, promising = halves
    if not fitting or not promising:
        raise InputError(f"{len(judged)} answers cannot be halved by source: label more sources")
    curve, method, fitted_on = _curve(fitting)
    calibrated = [_calibrated(one, curve) for one in promising]
    scores, units = _wanted(calibrated, level)
    controlled = control_misses(scores, np.ones(len(scores), dtype=np.bool_), units, alpha)
    promise = Promise(
        alpha=alpha, level=level, answers=len(promising), sources=controlled.units, labels=labels
    )
    thresholds = replace(
        base,
        version=version,
        flag_at=controlled.flag_at,
        clear_at=None,
        fitted_to=model,
        curve=curve,
        promise=promise,
    )
    p, truth, _ = _spans(calibrated)
    before, _, _ = _spans(promising)
    bins, ece = reliability(p, truth)
    _, raw_ece = reliability(before, truth)
    clean = [one.scored for one in calibrated if not one.scored.row.labels]
    return Fitted(
        thresholds=thresholds,
        controlled=controlled,
        method=method,
        fitted_on=fitted_on,
        bins=bins,
        ece=ece,
        raw_ece=raw_ece,
        false_alarms=sum(bool(one.spans) and one.score >= controlled.flag_at for one in clean),
        supported=len(clean),
        missed=int((scores < controlled.flag_at).sum()),
        wanted=len(scores),
        fresh=fresh_misses(judged, alpha=alpha, level=level, seed=seed, splits=splits) if splits else None,
    )


def fresh_misses(
    judged: Sequence[Judged], *, alpha: float, level: str, seed: int, splits: int
) -> Fresh | None:
    """What a promise made on a third of the sources misses on another third; None with too few sources."""
    sources = sorted({one.source for one in judged})
    rng = np.random.default_rng(seed)
    losses, within = [], []
    for _ in range(splits):
        third = {name: place % 3 for place, name in enumerate(rng.permutation(sources).tolist())}
        fitting, promising, fresh = (
            [one for one in judged if third[one.source] == which] for which in range(3)
        )
        try:
            curve = _curve(fitting)[0]
            scores, units = _wanted([_calibrated(one, curve) for one in promising], level)
            flag_at = control_misses(scores, np.ones(len(scores), dtype=np.bool_), units, alpha).flag_at
        except InputError:  # a third is too few: nothing is promised, so nothing is checked
            return None
        scores, units = _wanted([_calibrated(one, curve) for one in fresh], level)
        is_missed = scores < flag_at
        places = np.unique(np.array(units), return_inverse=True)[1]
        losses.append(float((np.bincount(places, is_missed) / np.bincount(places)).mean()))
        within.append(clopper_pearson(int(is_missed.sum()), len(scores))[0] <= alpha)
    low, high = np.quantile(losses, [0.025, 0.975])
    return Fresh(
        splits=splits,
        missed=float(np.mean(losses)),
        low=float(low),
        high=float(high),
        within=float(np.mean(within)),
    )


def _curve(judged: Sequence[Judged]) -> tuple[Curve, str, int]:
    """The calibration curve of these answers' spans, how it was fitted, and to how many spans."""
    raw, truth, _ = _spans(judged)
    if int(truth.sum()) < FEW:
        return platt(raw, truth), "Platt", len(raw)
    return isotonic(raw, truth), "isotonic", len(raw)


def _all(label: Label) -> bool:
    return True


def _spans(judged: Sequence[Judged]) -> tuple[Floats, NDArray[np.bool_], list[str]]:
    """Of every span: score, whether it overlaps a label, and its source."""
    items = spans([one.scored for one in judged], _all)
    return items.judged.score, items.is_right, [judged[row].source for row in items.judged.row.tolist()]


def _wanted(judged: Sequence[Judged], level: str) -> tuple[Floats, list[str]]:
    """Scores of what must not be missed, and the source of each; -inf where no span stands there."""
    make = answers if level == "answers" else spans
    wanted = make([one.scored for one in judged], _all).wanted
    return wanted.score, [judged[row].source for row in wanted.row.tolist()]


def _calibrated(one: Judged, curve: Sequence[tuple[float, float]]) -> Judged:
    found = one.scored.spans
    values = apply(tuple(curve), [span.score for span in found]).tolist()
    scored = with_worst_span(
        one.scored.row, [replace(span, score=p) for span, p in zip(found, values, strict=True)]
    )
    return replace(one, scored=scored)
