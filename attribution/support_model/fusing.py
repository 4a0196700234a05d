"""Fits the fusion of rules and reader, and the thresholds that ship with it, on the tuning sources.

Run: python -m ragblame.attribution.support_model.fusing FILE.jsonl.gz … [--run FOLDER …] [--alpha 0.3]
where folders are training runs, which are joined into the model that ships.
The reader was not trained on these sources and nothing here sees those that are held out. What is fitted are
answers to questions of a set in which people found some wrong: claims, and sets where nothing is wrong, say
little about how often an answer is.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from ragblame.attribution.evaluation.detection import ScoredSpan
from ragblame.attribution.evaluation.labelled import LabelledAnswer, read_labelled
from ragblame.attribution.evaluation.threshold_fit import fit, read_all
from ragblame.attribution.spans import split_spans
from ragblame.attribution.support_model.examples import SPLIT, Part, part_of
from ragblame.attribution.support_model.model import SupportModel
from ragblame.attribution.support_model.weights import SHIPPED, join
from ragblame.attribution.verdicts import fusion
from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.fusion import Features, Weights
from ragblame.attribution.verdicts.learned import SupportReading
from ragblame.attribution.verdicts.support import examine
from ragblame.attribution.verdicts.thresholds import DEFAULT_FILE, Thresholds
from ragblame.records import Span

STRENGTH: Final = 1.0  # C of the regressions


class _Read:
    """One answer with everything the fusion looks at."""

    def __init__(self, row: LabelledAnswer, model: SupportModel) -> None:
        self.row = row
        self.spans: tuple[Span, ...] = split_spans(row.answer, row.question)
        self.findings: tuple[Finding, ...] = examine(row.question, row.answer, self.spans, row.chunks)
        self.reading: SupportReading = model.read(row.question, row.answer, [c.text for c in row.chunks])

    @property
    def is_wrong(self) -> list[bool]:
        """Of every span, whether a label touches it."""
        return [
            any(label.start < span.end and span.start < label.end for label in self.row.labels)
            for span in self.spans
        ]


def fuse_on(rows: Sequence[LabelledAnswer], model: SupportModel) -> Weights:
    """The regressions of spans and of answers, fitted to labelled answers."""
    spans, wrong, weight = [], [], []
    answers, is_bad = [], []
    for row in rows:
        one = _Read(row, model)
        for span, finding, is_wrong in zip(one.spans, one.findings, one.is_wrong, strict=True):
            spans.append(fusion.span_features(one.reading, span, finding))
            wrong.append(is_wrong)
            weight.append(float(span.end - span.start))  # what is marked are characters
        answers.append(fusion.answer_features(one.reading, one.findings))
        is_bad.append(bool(row.labels))
    return Weights(
        span=_regression(spans, wrong, weight),
        answer=_regression(answers, is_bad, [1.0] * len(answers)),
        model=model.name,
    )


def _regression(features: Sequence[Features], truth: Sequence[bool], weight: Sequence[float]) -> Features:
    """A logistic regression in the features' own units."""
    names = [name for name in features[0] if name]
    table: NDArray[np.float64] = np.array([[row[name] for name in names] for row in features])
    mean, scale = table.mean(0), table.std(0) + 1e-9
    fitted: Any = LogisticRegression(C=STRENGTH, max_iter=5000)
    fitted.fit((table - mean) / scale, truth, sample_weight=np.array(weight) / np.mean(weight))
    slopes = fitted.coef_[0] / scale
    constant = float(fitted.intercept_[0] - slopes @ mean)
    return {"": round(constant, 5), **{n: round(float(s), 5) for n, s in zip(names, slopes, strict=True)}}


class _Fused:
    """The fused probability as something that scores spans."""

    def __init__(self, model: SupportModel, weights: Weights) -> None:
        self.model = model.name
        self._model, self._weights = model, weights

    def __call__(self, row: LabelledAnswer) -> Sequence[ScoredSpan]:
        one = _Read(row, self._model)
        values = fusion.fuse(one.reading, one.spans, one.findings, self._weights)
        return [
            ScoredSpan(start=span.start, end=span.end, score=value or 0.0)
            for span, value in zip(one.spans, values, strict=True)
        ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--alpha", type=float, default=0.3, help="share of unsupported answers missed")
    parser.add_argument("--clear", type=float, default=0.5, help="clear_at as a part of flag_at")
    parser.add_argument("--run", type=Path, action="append", default=[], help="a training run to join")
    args = parser.parse_args()
    if args.run:
        join(args.run, SHIPPED)
    model = SupportModel.load()
    rows = [row for path in args.files for row in read_labelled(path, lambda line, message: None)]
    has_wrong = {row.dataset for row in rows if row.labels and row.question}
    tuning = [row for row in rows if part_of(row) is Part.TUNING and row.dataset in has_wrong]
    weights = fuse_on(tuning, model)
    fitted = fit(
        read_all(tuning, _Fused(model, weights)),
        model=model.name,
        base=Thresholds(),
        version="default-2",
        alpha=args.alpha,
        level="answers",
        labels=f"tuning sources of {', '.join(sorted(has_wrong))}, split {SPLIT}",
    )
    record = {"span": weights.span, "answer": weights.answer, "model": weights.model}
    fusion.WEIGHTS.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    thresholds = fitted.thresholds.to_json()
    flag_at = fitted.thresholds.flag_at
    assert flag_at is not None
    thresholds["clear_at"] = round(flag_at * args.clear, 4)
    DEFAULT_FILE.write_text(json.dumps(thresholds, indent=1) + "\n", "utf-8")
    print(json.dumps({"flag_at": flag_at, "missed": fitted.missed, "wanted": fitted.wanted,
                      "false_alarms": fitted.false_alarms, "supported": fitted.supported,
                      "ece": fitted.ece, "weights": record}, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
