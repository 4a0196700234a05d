"""The numbers that turn measurements into verdicts: versioned data, so that a verdict traces to them.

A version never changes: its digest is kept with every verdict, and another set of values is another version.
"""

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from ragblame.errors import InputError
from ragblame.records import Json

LEVELS: Final = ("answers", "spans")
DEFAULT_FILE: Final = Path(__file__).with_name("default_thresholds.json")  # fitted by support_model/fusing.py


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What was promised about misses when ``flag_at`` was chosen, and on how much it rests.

    The promise holds on average over fresh sources that could have stood among those of the calibration
    (Angelopoulos et al. 2022), so not after the model, the task or the corpus has changed.
    """

    alpha: float  # (0, 1): at most this share of what is unsupported is missed, expected
    level: str  # what is missed or found: "answers" or "spans"
    answers: int  # labelled answers in the calibration
    sources: int  # units: sources with something unsupported in them
    labels: str  # where the labels came from

    def sentence(self) -> str:
        """For people: "misses at most 10 % of unsupported answers (120 sources, …)"."""
        return (
            f"misses at most {self.alpha:.0%} of unsupported {self.level}, on average over sources like "
            f"those of its calibration ({self.sources:,} of {self.labels})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Uncalibrated defaults until labels say better; ``Verdict.confidence`` stays None with these."""

    version: str = "default-1"
    tau_nats: float = 1.0  # a span is used from this reliance on: the documents make it e times likelier
    sigmas: float = 3.0  # nearer to tau than so many noise sigmas nothing is decided
    least_noise_nats: float = 0.01  # one sigma is never taken to be smaller
    sure_without: float = 0.9  # mean probability without chunks above which reliance cannot be measured
    used_part: float = 0.15  # a chunk was used from this part of the positive shares on
    flag_at: float | None = None  # P(unsupported) from which a span is flagged; None: only rules flag
    clear_at: float | None = None  # P(unsupported) up to which an open span counts as said; None: none does
    fitted_to: str | None = None  # name@revision of the model whose probability the next is about
    curve: tuple[tuple[float, float], ...] = ()  # its raw probability -> P(unsupported); empty: uncalibrated
    promise: Promise | None = None

    def noise(self, measured_nats: float) -> float:
        """One sigma, nats."""
        return max(measured_nats, self.least_noise_nats)

    def confidence(self, raw: float | None, model: str | None) -> float | None:
        """Calibrated P(unsupported) of a model's raw probability, [0, 1]: linear between the curve's knots.

        None where the model said nothing, nothing was calibrated, or it was calibrated for another model:
        the number of one model means nothing on the scale of another.
        """
        if raw is None or not self.curve or model != self.fitted_to:
            return None
        at = bisect_right(self.curve, (raw, math.inf))
        if at == 0:
            return self.curve[0][1]
        if at == len(self.curve):
            return self.curve[-1][1]
        (low, first), (high, second) = self.curve[at - 1], self.curve[at]
        return first + (second - first) * (raw - low) / (high - low)

    def to_json(self) -> dict[str, Json]:
        """As stored in ``calibration.thresholds``."""
        record: dict[str, Json] = json.loads(json.dumps(asdict(self)))
        return record

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 over all values that are set, the version's name included."""
        said = {name: value for name, value in self.to_json().items() if value is not None and value != []}
        canonical = json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def from_json(record: Mapping[str, Any]) -> Thresholds:
    """The inverse of ``Thresholds.to_json``; values that an older version did not have take their defaults.

    Raises ``InputError`` for what is no set of thresholds: a name nobody knows, a number out of its range.
    """
    known = {field.name for field in fields(Thresholds)}
    version = record.get("version")
    if strangers := sorted(record.keys() - known):
        raise InputError(f"thresholds {version!r} hold {strangers[0]!r}, unknown here: upgrade ragblame")
    try:
        values = dict(record)
        promise = values.pop("promise", None)
        curve = tuple((float(raw), float(p)) for raw, p in values.pop("curve", ()))
        found = Thresholds(**values, curve=curve, promise=None if promise is None else Promise(**promise))
        _check(found)
    except (TypeError, ValueError) as error:
        raise InputError(f"thresholds {version!r} cannot be used ({error}): fit them again") from error
    return found


def _check(values: Thresholds) -> None:
    """Raise ``ValueError`` or ``TypeError`` naming what is out of range."""
    if not isinstance(values.version, str) or not values.version:
        raise ValueError("no version")
    for name in ("tau_nats", "sigmas", "least_noise_nats"):
        if not (math.isfinite(getattr(values, name)) and getattr(values, name) >= 0):
            raise ValueError(f"{name} is negative or infinite")
    for name in ("sure_without", "used_part", "flag_at", "clear_at"):
        number = getattr(values, name)
        if number is not None and not 0 <= number <= 1:
            raise ValueError(f"{name} outside [0, 1]")
    if values.flag_at is not None and values.clear_at is not None and values.clear_at >= values.flag_at:
        raise ValueError("clear_at is not below flag_at")
    knots = values.curve
    if any(not 0 <= number <= 1 for knot in knots for number in knot):
        raise ValueError("the curve leaves [0, 1]")
    if any(one[0] >= other[0] or one[1] > other[1] for one, other in pairwise(knots)):
        raise ValueError("the curve does not rise")
    if values.promise is not None and (
        not 0 < values.promise.alpha < 1 or values.promise.level not in LEVELS or values.flag_at is None
    ):
        raise ValueError("a promise needs alpha in (0, 1), a known level and flag_at")


DEFAULT: Final = from_json(json.loads(DEFAULT_FILE.read_text("utf-8")))  # as the program ships
# Versions that the program shipped before: verdicts made with them can still be decided again.
OWN: Final = {values.version: values for values in (Thresholds(), DEFAULT)}
