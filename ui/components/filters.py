"""Filters that live in the address and in the session: a link shows the same list, coming back does too."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, TypeVar

import streamlit as st

from ragblame.records import Cause, VerdictKind
from ragblame.ui.components.nodes import Node, el
from ragblame.ui.components.wording import VERDICT_CSS, VERDICT_LETTER, cut
from ragblame.ui.reads import Filters, ItemState, Progress
from ragblame.ui.reads_facets import FACET_ROWS, Facets

E = TypeVar("E", bound=StrEnum)

AGES: Final = {"1 hour": 1, "24 hours": 24, "7 days": 168, "30 days": 720}
SEVERITIES: Final = ("0.25", "0.5", "0.75")
NAMES: Final = (
    "view", "state", "verdict", "cause", "app", "model", "severity", "age", "q", "progress", "same",
)  # fmt: skip
ANY: Final = "any"  # said of the state, whose default is a value
_KEPT: Final = "filters kept"


def chosen() -> dict[str, str]:
    """The filters in the address, else those last used in this session."""
    address = {name: st.query_params[name] for name in NAMES if name in st.query_params}
    return address or kept()


def kept() -> dict[str, str]:
    """The filters last used in this session: the list that a trace was opened from."""
    return dict(st.session_state.get(_KEPT, {}))


def choose(name: str, value: str | None) -> None:
    """Set one filter, or lift it with None; to be called from a widget's callback."""
    keep({key: old for key, old in chosen().items() if key != name} | ({name: value} if value else {}))


def keep(filters: Mapping[str, str]) -> None:
    """Keep the filters for this session and show them in the address."""
    st.session_state[_KEPT] = dict(filters)
    for name in NAMES:
        if name in filters:
            if st.query_params.get(name) != filters[name]:
                st.query_params[name] = filters[name]
        elif name in st.query_params:
            del st.query_params[name]


def to_filters(names: Mapping[str, str], now: datetime | None = None) -> Filters:
    """Checked filters; a value nobody knows (an old link) is left out."""
    hours = AGES.get(names.get("age", ""))
    since = None
    if hours is not None:  # to the minute, so that the reads can be cached
        since = (now or datetime.now(UTC)).replace(second=0, microsecond=0) - timedelta(hours=hours)
    state = names.get("state", "")
    return Filters(
        state=None if state == ANY else _member(ItemState, state) or ItemState.OPEN,
        verdict=_member(VerdictKind, names.get("verdict", "")),
        cause=_member(Cause, names.get("cause", "")),
        app=names.get("app") or None,
        model=names.get("model") or None,
        min_severity=float(names["severity"]) if names.get("severity") in SEVERITIES else 0.0,
        text=names.get("q", ""),
        since=since,
        progress=_member(Progress, names.get("progress", "")),
        same=names.get("same", ""),
    )


def select(label: str, name: str, options: Sequence[str], current: Mapping[str, str]) -> None:
    """A select box for one filter; "any" lifts it."""
    key = f"filter {name}"
    value = current.get(name)
    values = [None, *options] if value is None or value in options else [None, value, *options]
    st.selectbox(
        label,
        values,
        index=values.index(value),
        format_func=lambda option: "any" if option is None else option,
        key=key,
        on_change=lambda: choose(name, st.session_state[key]),
    )


def facet_bar(facets: Facets, filters: Filters) -> Node:
    """Counts by state, verdict and cause; a chip reports "name=value" when picked."""
    states = {state.value: facets.states.get(state.value, 0) for state in ItemState}
    states[ANY] = sum(facets.states.values())
    state = ANY if filters.state is None else filters.state.value
    verdicts = {kind.value: facets.verdicts.get(kind.value, 0) for kind in VerdictKind}
    verdicts = {name: count for name, count in verdicts.items() if count or name == filters.verdict}
    causes = dict(sorted(facets.causes.items(), key=lambda entry: (-entry[1], entry[0])))
    if filters.cause is not None:
        causes.setdefault(filters.cause.value, 0)
    more = el("span", "quiet", f"counts of the newest {FACET_ROWS:,}") if facets.is_partial else None
    return el(
        "div",
        "facets",
        same_chip(filters.same),
        _group("State", "state", states, state),
        _group("Verdict", "verdict", verdicts, filters.verdict),
        _group("Cause", "cause", causes, filters.cause),
        more,
    )


def same_chip(same: str) -> Node | None:
    """Says that only one failure is shown, and lifts that when picked; None when all are."""
    if not same:
        return None
    chip = el(
        "button",
        "facet on",
        el("span", "untrusted", cut(same, 120)),
        el("span", "count", "show all"),
        attributes={"aria-pressed": "true"},
        pick=f"same={same}",
    )
    return el("div", "group", el("span", "label", "Same as"), chip)


def progress_bar(filters: Filters) -> Node:
    """The same for the list of traces: how far the worker is."""
    values = {progress.value: None for progress in Progress}
    return el("div", "facets", _group("Attribution", "progress", values, filters.progress))


def _group(label: str, name: str, counts: Mapping[str, int | None], current: str | None) -> Node | None:
    if not counts:
        return None
    chips = []
    for value, count in counts.items():
        is_on = value == current
        kind = _member(VerdictKind, value) if name == "verdict" else None
        letter = None
        if kind is not None:
            letter = el("span", "letter", VERDICT_LETTER[kind], attributes={"aria-hidden": "true"})
        css = f"facet{' on' if is_on else ''}{f' {VERDICT_CSS[kind]}' if kind else ''}"
        number = None if count is None else el("span", "count", f"{count:,}")
        pressed = {"aria-pressed": "true" if is_on else "false"}
        chips.append(el("button", css, letter, value, number, attributes=pressed, pick=f"{name}={value}"))
    return el("div", "group", el("span", "label", label), *chips)


def _member(kind: type[E], value: str) -> E | None:
    return kind(value) if value in set(kind) else None
