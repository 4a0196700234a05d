"""Rules and the learned reader in one number a span: how likely people would call it unsupported.

Two logistic regressions, fitted on answers that neither the reader nor anything else was trained on
(``attribution/support_model/fusing.py``): one tells spans apart by what the reader says of their tokens and
what the rules found, the other tells answers apart. The worst span of an answer gets the answer's
probability and the others their part of it, so that a queue ordered by spans is one ordered by answers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from ragblame.attribution.verdicts.learned import SupportReading, logit, sigmoid
from ragblame.attribution.verdicts.support import Finding
from ragblame.records import Span, SpanKind, SupportState

WEIGHTS: Final = Path(__file__).with_name("fusion.json")
_VALUES: Final = (SpanKind.NUMBER, SpanKind.DATE, SpanKind.NAME)
_NOBODY: Final = -8.0  # log-odds of a span without a token

Features = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the two regressions, by name of the feature; "" is the constant."""

    span: Features
    answer: Features
    model: str  # name@revision of the reader that they were fitted to


@cache
def shipped() -> Weights:
    """Those that were fitted to the shipped reader."""
    record = json.loads(WEIGHTS.read_text("utf-8"))
    return Weights(span=record["span"], answer=record["answer"], model=record["model"])


def span_features(reading: SupportReading, span: Span, finding: Finding) -> Features:
    """What tells one span from another."""
    inside = reading.logits(span.start, span.end)
    state = finding.support.state
    claims = not (state is SupportState.ENTAILED and finding.support.position is None)
    return {
        "": 1.0,
        "answer": logit(reading.answer_probability),
        "worst token": max(inside, default=_NOBODY),
        "mean of tokens": sum(inside) / len(inside) if inside else _NOBODY,
        "claims nothing": float(not claims),
        "contradicted": float(state is SupportState.CONTRADICTED),
        "absent": float(state is SupportState.ABSENT),
        "unclear": float(state is SupportState.UNCLEAR),
        "value": float(span.kind in _VALUES),
        "value not said": float(span.kind in _VALUES and state is not SupportState.ENTAILED),
    }


def answer_features(reading: SupportReading, spans: Sequence[float], findings: Sequence[Finding]) -> Features:
    """What tells one answer from another; ``spans``: log-odds of its spans by the first regression."""
    states = [finding.support.state for finding in findings]
    doubtful = sum(state in (SupportState.CONTRADICTED, SupportState.ABSENT) for state in states)
    ranked = sorted(spans, reverse=True)
    return {
        "": 1.0,
        "answer": logit(reading.answer_probability),
        "worst token": max(reading.logits(0, 1 << 62), default=_NOBODY),
        "worst span": ranked[0] if ranked else _NOBODY,
        "second span": ranked[1] if len(ranked) > 1 else _NOBODY,
        "share doubtful": doubtful / len(states) if states else 0.0,
        "some contradicted": float(SupportState.CONTRADICTED in states),
    }


def weigh(features: Features, weights: Features) -> float:
    """The log-odds."""
    return sum(weights[name] * value for name, value in features.items())


def fuse(
    reading: SupportReading,
    spans: Sequence[Span],
    findings: Sequence[Finding],
    weights: Weights | None = None,
) -> tuple[float, ...]:
    """P(unsupported) of every span, [0, 1]; uncalibrated. ``weights``: None for those that ship.

    A reader other than the one that the weights were fitted to is taken at its word: a span is as doubtful as
    its most doubtful token.
    """
    chosen = weights or shipped()
    if reading.model != chosen.model:
        return tuple(sigmoid(max(reading.logits(span.start, span.end), default=_NOBODY)) for span in spans)
    odds = [
        weigh(span_features(reading, span, finding), chosen.span)
        for span, finding in zip(spans, findings, strict=True)
    ]
    whole = sigmoid(weigh(answer_features(reading, odds, findings), chosen.answer))
    most = max((sigmoid(value) for value in odds), default=1.0)
    return tuple(whole * sigmoid(value) / most for value in odds)
