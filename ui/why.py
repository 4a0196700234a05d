"""The provenance of a verdict in words: the same sections and facts on the command line and on the page.

Values may hold a stranger's text; whoever draws them shows them as text and nothing else.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from ragblame.attribution.verdicts.provenance import Numbers, Provenance
from ragblame.attribution.verdicts.severity import TRAFFIC_DAYS
from ragblame.attribution.verdicts.thresholds import Thresholds
from ragblame.records import CorpusEvidence

MAX_KNOTS: Final = 4  # of a calibration curve that are spelled out


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One link of the chain."""

    title: str
    facts: tuple[tuple[str, str], ...]  # name, value


def sections(found: Provenance) -> tuple[Section, ...]:
    """The chain from the rule that fired to the versions, one section a link."""
    return (
        Section(title="Rule and evidence", facts=tuple(_rule(found))),
        Section(title="Numbers", facts=tuple(_numbers(found))),
        Section(title="Decision", facts=tuple(_decision(found))),
        Section(title="Severity", facts=tuple(_severity(found))),
        Section(title="Versions", facts=tuple(_versions(found))),
    )


def verdict_of_check(found: Provenance) -> str:
    """One sentence: does all of it hold?"""
    if found.is_whole:
        return "Every fact is known, and deciding again from them gives the same verdict."
    missing = f"Not kept: {', '.join(found.missing)}; attribute the trace again." if found.missing else ""
    return " ".join(part for part in (missing, *found.problems) if part)


def _rule(found: Provenance) -> list[tuple[str, str]]:
    facts = []
    if found.read_rule is not None and (found.read_state, found.read_rule) != (found.state, found.rule):
        assert found.read_state is not None
        facts.append(("The text says", f"{found.read_state.value}, by the rule “{found.read_rule}”"))
        facts.append(("Settled", f"{found.state.value}, by the rule “{found.rule}”"))
    else:
        facts.append(("Support", f"{found.state.value}, by the rule “{found.rule}”"))
    if found.stated is not None:
        facts.append(("Stated instead", found.stated))
    if (quote := found.quote) is not None:
        row = f"{quote.table or 'a table unknown'}, row {quote.row}" if quote.row else "no row is known"
        facts.append(("Evidence", f"“{' '.join(quote.text.split())}”"))
        facts.append(
            ("Stands in", f"chunk {quote.position + 1} ({row}), characters {quote.start} to {quote.end}")
        )
    else:
        facts.append(("Evidence", "none: no chunk sentence came near"))
    if found.also_said_by:
        facts.append(("Also said by", ", ".join(f"chunk {at + 1}" for at in found.also_said_by)))
    if found.miscited:
        facts.append(("Cited instead", ", ".join(f"chunk {at + 1}" for at in found.miscited)))
    if found.cites_none:
        numbers = ", ".join(map(str, found.cites_none))
        facts.append(("Cited instead", f"{numbers}: a number that no chunk has in the prompt"))
    facts.extend(("Corpus", _corpus(row)) for row in found.corpus)
    if found.support_model is None:
        facts.append(("Support model", "none: only rules read it"))
    else:
        raw = "unknown" if found.support_probability is None else f"{found.support_probability:.3f}"
        facts.append(("Support model", f"{found.support_model}, raw probability of unsupported {raw}"))
    calibrated = "uncalibrated" if found.confidence is None else f"{found.confidence:.3f}"
    facts.append(("P(unsupported)", calibrated))
    return facts


def _corpus(row: CorpusEvidence) -> str:
    rank = "rank not known"
    if row.rank is not None:
        rank = f"{'exact' if row.is_exact else 'approximate'} rank {row.rank}"
    cause = "" if row.cause is None else f"{row.cause.value}: "
    return f"{cause}{row.table}, row {row.row_id}, {row.state.value} by “{row.rule}”, {rank}"


def _numbers(found: Provenance) -> list[tuple[str, str]]:
    facts = []
    scorer = found.scorer
    if scorer is not None:
        kind = "the model that wrote the answer" if scorer.is_own_model else "a stand-in"
        facts.append(("Scorer", f"{scorer.name}, revision {scorer.revision}, {kind}"))
    numbers = found.numbers
    if numbers is None:
        facts.append(("Measured", f"nothing: {found.why_no_numbers}" if found.why_no_numbers else "not kept"))
        return facts
    facts += [
        ("v(all), v(none)", f"{numbers.v_all:+.4f}, {numbers.v_none:+.4f} nats on {numbers.tokens} tokens"),
        ("Reliance", f"{numbers.reliance:+.4f} nats, {_against_tau(numbers)}"),
        ("Noise", f"one sigma {numbers.noise:.4f} nats, margin {numbers.margin:.4f}"),
        ("Without any chunk", f"probability {numbers.p_without:.3f} a token"),
        (
            "Counterfactual",
            "not asked" if numbers.follow is None else f"follows by {numbers.follow:+.4f} nats",
        ),
        (
            "Chunks used",
            ", ".join(f"chunk {at + 1} ({share:+.3f} nats)" for at, share in numbers.used) or "none",
        ),
    ]
    if numbers.measured_at is not None:
        facts.append(("Measured at", f"span {numbers.measured_at}: the first mention of the same value"))
    if found.settings_hash is not None:
        facts.append(("Settings", found.settings_hash))
    return facts


def _against_tau(numbers: Numbers) -> str:
    if abs(numbers.reliance - numbers.tau) < numbers.margin:
        return f"too close to tau ({numbers.tau:g})"
    return f"{'above' if numbers.reliance > numbers.tau else 'below'} tau ({numbers.tau:g})"


def _decision(found: Provenance) -> list[tuple[str, str]]:
    facts = [
        ("Basis", found.basis.value),
        ("Cell of the table", f"{found.cell or 'not kept'} → {found.verdict.value}"),
    ]
    if not found.fired:
        facts.append(("Cause", "none: no test of a cause held"))
    else:
        facts.append(("Cause", f"{found.fired[0].value}: the first test that held"))
        others = ", ".join(cause.value for cause in found.fired[1:])
        facts.append(("Held as well", f"{others}, in this order" if others else "no other"))
    return facts


def _severity(found: Provenance) -> list[tuple[str, str]]:
    factors = found.factors
    if factors is None:
        return [
            ("Severity", f"{found.severity:.3f}" + ("" if found.severity else ": the span is not flagged"))
        ]
    how = "calibrated" if factors.is_calibrated else "by the rule, uncalibrated"
    times = "once" if factors.seen == 1 else f"in {factors.seen:,} traces"
    return [
        ("Severity", f"{found.severity:.3f}"),
        ("Probability", f"{factors.probability:.3f} ({how})"),
        ("Harm", f"{factors.harm:.3f}"),
        ("Traffic", f"× {factors.traffic:.2f} on the odds: seen {times} in {TRAFFIC_DAYS} days"),
    ]


def _versions(found: Provenance) -> list[tuple[str, str]]:
    facts = [
        ("Thresholds", f"{found.thresholds_version or 'unknown'}, digest {found.thresholds_digest or '?'}")
    ]
    if found.thresholds is not None:
        facts.append(("Values", values_in_words(found.thresholds)))
        if found.thresholds.promise is not None:
            facts.append(("Promise", found.thresholds.promise.sentence()))
    facts.append(("Program", f"ragblame {found.program}" if found.program else "not kept"))
    facts.append(("Check", verdict_of_check(found)))
    return facts


def values_in_words(thresholds: Thresholds) -> str:
    """The values of a version on one line; a long curve is told by its ends."""
    parts = []
    for name, value in asdict(thresholds).items():
        if name in ("version", "promise") or value is None or value == ():
            continue
        if name == "curve":
            value = _curve(thresholds.curve)
        parts.append(f"{name} {value}")
    return ", ".join(parts)


def _curve(knots: Sequence[tuple[float, float]]) -> str:
    shown = [f"{raw:.3g}→{p:.3g}" for raw, p in knots]
    if len(shown) > MAX_KNOTS:
        shown = [*shown[:2], f"… {len(shown) - MAX_KNOTS} more …", *shown[-2:]]
    return " ".join(shown)
