"""Health: can the triage be trusted right now, and what is the next step when it cannot."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import streamlit as st

from ragblame.errors import InputError
from ragblame.ui import store
from ragblame.ui.components.nodes import Node, draw, el
from ragblame.ui.components.notices import backlog_strip, problem
from ragblame.ui.components.rows import link_to_trace
from ragblame.ui.components.versions import preview_block, versions_list
from ragblame.ui.components.wording import ago, cut, plural, span_of_time
from ragblame.ui.reads_health import Backlog, CaptureHost, Health

DAYS = {"24 hours": 1, "7 days": 7, "30 days": 30}


def show() -> None:
    """Draw the page."""
    period = st.segmented_control("Period", list(DAYS), default="7 days", required=True, key="period")
    midnight = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    health = store.health(midnight - timedelta(days=DAYS[period or "7 days"]))
    backlog = store.backlog()
    nodes = [_worker_problem(backlog) or backlog_strip(backlog), _tiles(health, backlog)]
    draw([node for node in nodes if node is not None], key="health")
    scorers, failures = st.columns(2, gap="medium")
    with scorers:
        draw([el("h3", "", "Scorers"), _scorers(health)], key="scorers")
    with failures:
        picked = draw([el("h3", "", "Failed attributions"), _failures(health)], key="failures")
        if picked is not None:
            st.switch_page("screens/trace.py", query_params={"id": picked})
    draw([el("h3", "", "Capture"), _capture(store.capture_hosts())], key="capture")
    _show_thresholds()


def _show_thresholds() -> None:
    """The versions, and what another one would have decided; activating is for the command line."""
    title = el("h3", "", "Thresholds")
    try:
        versions = store.versions()
    except InputError as error:  # a damaged version must not hide the rest of the page
        draw([title, problem("The thresholds cannot be read", str(error))], key="thresholds")
        return
    draw([title, versions_list(versions)], key="thresholds")
    others = [version.thresholds.version for version in versions if not version.is_active]
    if not others:
        return
    choice, button, _ = st.columns([2, 1, 4], vertical_alignment="bottom")
    chosen = choice.selectbox("Preview on history", others, key="preview version")
    if button.button("Preview", key="preview", width="stretch"):
        draw([preview_block(store.previewed(chosen))], key="previewed")


def _worker_problem(backlog: Backlog) -> Node | None:
    if not backlog.is_stuck:
        return None
    last = "never" if backlog.last_heartbeat is None else f"{ago(backlog.last_heartbeat)} ago"
    wait = plural(backlog.waiting, "trace waits", "traces wait")
    text = f"{wait} for attribution; the last sign of a worker: {last}. Start one:"
    return problem("No worker is running", text, ["ragblame worker"])


def _tiles(health: Health, backlog: Backlog) -> Node:
    precision = f"{health.agreed / health.reviews:.0%}" if health.reviews else "–"
    pace = "–" if health.median_seconds is None else f"{health.median_seconds:.1f} s"
    seconds = backlog.oldest_waiting_seconds
    oldest = "none" if seconds is None else f"the oldest for {span_of_time(seconds)}"
    done = f"{health.snoozed_items:,} snoozed, {health.reviewed_items:,} reviewed"
    tiles = [
        ("Traces", f"{health.traces:,}", f"{health.attributed:,} attributed"),
        (
            "Waiting",
            f"{backlog.waiting:,}",
            oldest,
        ),
        ("Workers", str(backlog.workers), f"{backlog.running} running jobs"),
        ("Failed", f"{health.failed:,}", "attributions"),
        ("One attribution", pace, "median"),
        (
            "Open",
            f"{health.open_items:,}",
            done,
        ),
        ("Flags confirmed", precision, f"of {health.reviews:,} reviews of flagged spans"),
        ("Capture", f"{health.partial_trees + health.truncated:,}", "traces partly seen or cut"),
    ]
    return el(
        "div",
        "tiles",
        *[
            el(
                "div",
                "tile",
                el("span", "label", name),
                el("div", "figure", figure),
                el("div", "quiet", more),
            )
            for name, figure, more in tiles
        ],
    )


def _scorers(health: Health) -> Node:
    if not health.scorers:
        return el("p", "quiet", "Nothing was attributed in this period.")
    rows = [
        el(
            "tr",
            "",
            el("td", "untrusted", cut(use.scorer or "none: text only", 80)),
            el("td", "", "wrote the answers" if use.is_own_model else "stand-in"),
            el("td", "number", f"{use.runs:,}"),
            el("td", "number", f"{use.fit:,}"),
        )
        for use in health.scorers
    ]
    names = [("scorer", ""), ("role", ""), ("runs", "number"), ("could explain", "number")]
    head = el("tr", "", *[el("th", css, name) for name, css in names])
    return el("table", "", el("thead", "", head), el("tbody", "", *rows))


def _capture(hosts: Sequence[CaptureHost]) -> Node:
    if not hosts:
        return el("p", "quiet", "No machine has captured yet; it tells of itself with its first trace.")
    rows = [
        el(
            "tr",
            "",
            el("td", "untrusted", cut(host.host, 80)),
            el("td", "", f"{ago(host.seen_at)} ago"),
            el("td", "number", f"{host.counts.get('spooled', 0):,}"),
            el("td", "number", f"{host.waiting_bytes / 1e6:.1f} MB" if host.waiting_files else "none"),
            el(
                "td", "untrusted", ", ".join(f"{why} {count:,}" for why, count in host.lost.items()) or "none"
            ),
        )
        for host in hosts
    ]
    names = [
        ("machine", ""),
        ("last heard", ""),
        ("went by its disk", "number"),
        ("waits there", "number"),
        ("lost", ""),
    ]
    head = el("tr", "", *[el("th", css, name) for name, css in names])
    return el("table", "", el("thead", "", head), el("tbody", "", *rows))


def _failures(health: Health) -> Node:
    if not health.failures:
        return el("p", "quiet", "None in this period.")
    rows = [
        el(
            "li",
            "block",
            el(
                "a",
                "mono",
                str(failure.trace_id),
                pick=str(failure.trace_id),
                href=link_to_trace(failure.trace_id),
            ),
            el("span", "quiet", f"  {ago(failure.finished_at)} ago"),
            el("p", "untrusted", cut(failure.error, 400)),
        )
        for failure in health.failures
    ]
    return el("ul", "", *rows)


if __name__ == "__main__":  # Streamlit runs a page under this name
    show()
