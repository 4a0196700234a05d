"""Rules and the learned reader in one number a span: how likely people would call it unsupported.

Two logistic regressions, fitted on answers that neither the reader nor anything else was trained on
(``attribution/support_model/fusing.py``): one tells spans apart by what the reader says of their tokens and
by whether the rules can quote a contradiction, the other tells answers apart. The worst span of an answer
gets the answer's probability, so that a queue ordered by spans is one ordered by answers. Further findings of
the rules were tried and left out: on labelled answers they add nothing to the reader, which sees the same
words.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.learned import SupportReader, SupportReading, in_prompt, logit, sigmoid
from ragblame.errors import ModelError
from ragblame.records import Alignment, Span, SupportState, Trace

WEIGHTS: Final = Path(__file__).with_name("fusion.json")
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
    return {
        "": 1.0,
        # The worst token would favour long spans; that of the answer below has to.
        "mean of tokens": sum(inside) / len(inside) if inside else _NOBODY,
        "contradicted": float(finding.support.state is SupportState.CONTRADICTED),
    }


def answer_features(reading: SupportReading, findings: Sequence[Finding]) -> Features:
    """What tells one answer from another."""
    worst = max(reading.logits(0, 1 << 62), default=_NOBODY)
    states = [finding.support.state for finding in findings]
    return {
        "": 1.0,
        "answer and worst token": (logit(reading.answer_probability) + worst) / 2,
        "some contradicted": float(SupportState.CONTRADICTED in states),
    }


def log_odds(features: Features, weights: Features) -> float:
    """By a regression."""
    return sum(weights[name] * value for name, value in features.items())


def fuse(
    reading: SupportReading,
    spans: Sequence[Span],
    findings: Sequence[Finding],
    weights: Weights | None = None,
) -> tuple[float | None, ...]:
    """P(unsupported) of every span, [0, 1]; uncalibrated; None for one that was not read. ``weights``: None
    for those that ship.

    The worst span is as doubtful as the answer, and no other is more so. A reader other than the one that the
    weights were fitted to is taken at its word: a span is as doubtful as its most doubtful token.
    """
    chosen = weights or shipped()
    end = reading.read_to
    read = [end is None or span.end <= end for span in spans]
    if reading.model != chosen.model:
        return tuple(
            sigmoid(max(reading.logits(span.start, span.end), default=_NOBODY)) if is_read else None
            for span, is_read in zip(spans, read, strict=True)
        )
    found = [
        sigmoid(log_odds(span_features(reading, span, finding), chosen.span))
        for span, finding in zip(spans, findings, strict=True)
    ]
    whole = sigmoid(log_odds(answer_features(reading, findings), chosen.answer))
    worst = max((at for at in range(len(found)) if read[at]), key=found.__getitem__, default=-1)
    return tuple(
        None if not read[at] else whole if at == worst else min(whole, value)
        for at, value in enumerate(found)
    )


def with_probabilities(
    trace: Trace,
    spans: Sequence[Span],
    findings: tuple[Finding, ...],
    alignments: Sequence[Alignment] | None,
    reader: SupportReader | None,
) -> tuple[tuple[Finding, ...], list[str]]:
    """The findings with what the reader says of each, and notes; what it cannot do is a note, too.

    ``alignments``: None where the prompt is not known. ``reader``: None for rules alone.
    """
    if reader is None:
        return findings, []
    try:
        reading = reader.read(trace.question, trace.answer, in_prompt(trace.chunks, alignments))
    except ModelError as error:
        return findings, [f"The support model did not read this answer, so rules alone did: {error}"]
    notes = []
    if reading.left_out:
        notes.append(
            f"The support model left {reading.left_out} passages unread, those with fewest of the "
            "answer's words: there were too many."
        )
    if reading.read_to is not None:
        notes.append(
            f"The support model read the first {reading.read_to:,} characters of the answer; rules alone "
            "read the rest."
        )
    return tuple(
        finding
        if probability is None
        else replace(finding, support=replace(finding.support, model=reading.model, probability=probability))
        for finding, probability in zip(findings, fuse(reading, spans, findings), strict=True)
    ), notes
