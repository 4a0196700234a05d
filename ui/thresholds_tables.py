"""How versions of the thresholds, a fit and a preview are shown: tables for people, JSON for programs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ragblame.attribution.jobs.preview import Change, Preview
from ragblame.attribution.jobs.thresholds import Version
from ragblame.attribution.verdicts.thresholds import Thresholds
from ragblame.records import Json
from ragblame.ui.explain import plain_json
from ragblame.ui.terminal import plain
from ragblame.ui.thresholds_words import groups, remarks, words_of
from ragblame.ui.why import values_in_words

if TYPE_CHECKING:
    from ragblame.attribution.evaluation.threshold_fit import Fitted

SHOWN = 8  # examples in a terminal


def versions_table(versions: Sequence[Version]) -> Table:
    """One row a version, the active one marked."""
    table = Table(title=Text("thresholds"), title_justify="left")
    for name in ("", "version", "flags from", "promise", "stored", "note"):
        table.add_column(name, ratio=1 if name in ("promise", "note") else None)
    for version in versions:
        values = version.thresholds
        stored = "" if version.created_at is None else f"{version.created_at:%Y-%m-%d %H:%M}"
        table.add_row(
            Text("active" if version.is_active else "", style="green"),
            Text(plain(values.version)),
            Text("rules only" if values.flag_at is None else f"P ≥ {values.flag_at:.3f}"),
            Text("none" if values.promise is None else plain(values.promise.sentence())),
            Text(stored),
            Text(plain(version.note, 200)),
        )
    return table


def version_to_json(version: Version) -> Json:
    """Everything known of a version."""
    return {
        **version.thresholds.to_json(),
        "digest": version.thresholds.digest,
        "is_active": version.is_active,
        "note": version.note,
        "created_at": None if version.created_at is None else version.created_at.isoformat(),
    }


def values_table(values: Thresholds) -> Group:
    """A version's values, one a line."""
    lines = [Text(f"{plain(values.version)}, digest {values.digest}", style="bold")]
    lines += [Text(f"  {part}") for part in values_in_words(values).split(", ")]
    if values.promise is not None:
        lines.append(Text(plain(values.promise.sentence())))
    return Group(*lines)


def fit_table(fitted: "Fitted") -> Group:
    """The new threshold with what it promises, what it costs, and whether the probability is one."""
    values, alarms = fitted.thresholds, fitted.false_alarm_interval
    assert values.promise is not None
    assert values.flag_at is not None
    table = Table(title=Text("P(unsupported) of spans, on the promising half"), title_justify="left")
    for name in ("between", "spans", "mean said", "share unsupported"):
        table.add_column(name, justify="right")
    for one in fitted.bins:
        table.add_row(
            f"{one.low:.1f} and {one.high:.1f}", f"{one.count:,}", f"{one.mean:.3f}", f"{one.share:.3f}"
        )
    lines = [
        f"{values.version}: {values.promise.sentence()}",
        f"flagged from P ≥ {values.flag_at:.4f}; missed in the calibration {fitted.controlled.missed:.1%} a "
        f"source, {fitted.missed} of {fitted.wanted} {values.promise.level}; "
        f"bound {fitted.controlled.bound:.3f}",
        f"{fitted.method} curve from {fitted.fitted_on:,} spans of {values.fitted_to}; expected calibration "
        f"error {fitted.ece:.3f}, raw {fitted.raw_ece:.3f}",
    ]
    if (fresh := fitted.fresh) is not None:
        lines.append(
            f"does it hold? on {fresh.splits} draws of fresh sources {fresh.missed:.1%} were missed "
            f"({fresh.low:.1%} to {fresh.high:.1%}); {fresh.within:.0%} of the draws allow the promise"
        )
    if fitted.supported:
        lines.append(
            f"supported answers flagged: {fitted.false_alarms} of {fitted.supported} "
            f"({alarms[0]:.1%} to {alarms[1]:.1%})"
        )
    return Group(*[Text(plain(line)) for line in lines], table)


def fit_to_json(fitted: "Fitted") -> dict[str, Json]:
    """Everything of a fit."""
    record = plain_json({**asdict(fitted), "thresholds": fitted.thresholds.to_json()})
    assert isinstance(record, dict)
    record["digest"] = fitted.thresholds.digest
    record["false_alarm_interval"] = list(fitted.false_alarm_interval)
    return record


def preview_tables(found: Preview) -> Group:
    """What would come and go, by window, cause and app, with examples."""
    table = Table(title=Text(f"with {plain(found.thresholds.version)}"), title_justify="left")
    for name in ("last", "traces", "verdicts", "flagged", "would be", "come", "go", "otherwise"):
        table.add_column(name, justify="right")
    for tally in found.tallies:
        figures = (tally.traces, tally.verdicts, tally.flagged_before, tally.flagged_after)
        table.add_row(
            f"{tally.days} d",
            *[f"{figure:,}" for figure in (*figures, tally.come, tally.go, tally.otherwise)],
        )
    longest = found.tallies[-1]
    lines = [Text(plain(line), style="yellow") for line in remarks(found)]
    for title, counts in groups(longest):
        said = ", ".join(f"{plain(name, 60)} {count:,}" for name, count in counts.most_common(8))
        lines.append(Text(f"{title}: {said}"))
    return Group(table, *lines, *[_example(change) for change in found.examples[:SHOWN]])


def preview_to_json(found: Preview) -> dict[str, Json]:
    """Everything of a preview."""
    return {
        "version": found.thresholds.version,
        "digest": found.thresholds.digest,
        "windows": [plain_json(asdict(tally)) for tally in found.tallies],
        "examples": [plain_json(asdict(change)) for change in found.examples],
        "is_partial": found.is_partial,
    }


def _example(change: Change) -> Text:
    sign = "+" if change.is_flagged else "−"
    sign = sign if change.is_flagged is not change.was_flagged else "·"
    return Text(f" {sign} {change.trace_id} “{plain(change.words, 60)}” {words_of(change)}", style="dim")
