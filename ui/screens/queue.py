"""The queue: which flagged span needs a person most, and a search that finds a trace from a pasted quote."""

from datetime import datetime
from enum import StrEnum
from typing import Final, TypeVar
from uuid import UUID

import streamlit as st

from ragblame.ui import store
from ragblame.ui.components import filters as chosen_filters
from ragblame.ui.components.filters import (
    AGES,
    SEVERITIES,
    choose,
    facet_bar,
    progress_bar,
    select,
    to_filters,
)
from ragblame.ui.components.nodes import draw
from ragblame.ui.components.notices import backlog_strip, notice
from ragblame.ui.components.rows import flagged_list, trace_list
from ragblame.ui.components.wording import plural
from ragblame.ui.reads import Cursor, Filters, as_uuid

C = TypeVar("C", Cursor, UUID)
POLL_SECONDS: Final = 5
SAME: Final = "same="  # what a row's button reports before the failure's signature
_PAGES: Final = "pages behind"  # cursors of the pages before the one on screen


class View(StrEnum):
    """The two lists of the page."""

    FLAGGED = "Flagged spans"
    TRACES = "All traces"


def show() -> None:
    """Draw the page."""
    store.wake_sleepers()
    names = chosen_filters.chosen()
    view = View.TRACES if names.get("view") == View.TRACES else View.FLAGGED
    filters = to_filters(names)
    facets = store.facets(filters)
    _watch(store.queue(filters, None).read_at if view is View.FLAGGED else None)
    _show_controls(names, view, list(facets.apps), list(facets.models))
    if (identity := as_uuid(filters.text)) is not None and store.is_trace(identity):
        st.switch_page("screens/trace.py", query_params={"id": str(identity)})
    bar = facet_bar(facets, filters) if view is View.FLAGGED else progress_bar(filters)
    draw([bar], key=f"facets {view}", on_pick=_toggle)
    if view is View.FLAGGED:
        _show_flagged(filters)
    else:
        _show_traces(filters)


@st.fragment(run_every=POLL_SECONDS)
def _watch(read_at: datetime | None) -> None:
    """Keep the backlog up to date, and announce newly flagged spans without moving the rows under a hand."""
    if (strip := backlog_strip(store.backlog())) is not None:
        draw([strip], key="backlog")
    more = 0 if read_at is None else store.new_spans(read_at)
    if more and st.button(f"Show {plural(more, 'new span', 'new spans')}", shortcut="u", type="primary"):
        store.forget()
        st.rerun()


def _show_controls(names: dict[str, str], view: View, apps: list[str], models: list[str]) -> None:
    """Search, list, and the filters with many values in one row."""
    widths = [3.2, 2.2, 1.3, 1.3, 1.3, 1.3]
    search, which, app, model, severity, age = st.columns(widths, vertical_alignment="bottom")
    with search:
        st.text_input(
            "Search",
            value=names.get("q", ""),
            key="filter q",
            placeholder='words of the answer, "a quote", or an id',
            icon=":material/search:",
            on_change=lambda: choose("q", st.session_state["filter q"].strip()),
        )
    with which:
        st.segmented_control(
            "List",
            [entry.value for entry in View],
            default=view.value,
            required=True,
            key="filter view",
            label_visibility="collapsed",
            on_change=lambda: choose("view", st.session_state["filter view"]),
        )
    with app:
        select("App", "app", sorted(apps), names)
    with model:
        select("Model", "model", sorted(models), names)
    with severity:
        select("Severity from", "severity", SEVERITIES, names)
    with age:
        select("Within", "age", list(AGES), names)


def _toggle(pick: str) -> None:
    name, _, value = pick.partition("=")
    is_on = chosen_filters.chosen().get(name, "open" if name == "state" else None) == value
    choose(name, None if is_on else value)


def _show_flagged(filters: Filters) -> None:
    behind: list[Cursor] = _pages_behind(filters)
    page = store.queue(filters, behind[-1] if behind else None)
    if not page.rows:
        _explain_empty(filters)
        return
    picked = draw([flagged_list(page.rows)], key="flagged", on_pick=_show_same)
    if picked is not None and not picked.startswith(SAME):
        trace_id, _, span = picked.partition("/")
        st.switch_page("screens/trace.py", query_params={"id": trace_id, "span": span})
    _show_pager(behind, page.after, len(page.rows))


def _show_same(pick: str) -> None:
    """Of a row only the button "×N of the same" changes the list; the row itself opens its trace."""
    if pick.startswith(SAME):
        choose("same", pick.removeprefix(SAME))


def _show_traces(filters: Filters) -> None:
    behind: list[UUID] = _pages_behind(filters)
    page = store.traces(filters, behind[-1] if behind else None)
    if not page.rows:
        _explain_empty(filters)
        return
    picked = draw([trace_list(page.rows)], key="traces")
    if picked is not None:
        st.switch_page("screens/trace.py", query_params={"id": picked})
    _show_pager(behind, page.before, len(page.rows))


def _pages_behind(filters: Filters) -> list[C]:
    """The cursors behind us; other filters start at the first page again."""
    kept: tuple[Filters, list[C]] | None = st.session_state.get(_PAGES)
    if kept is None or kept[0] != filters:
        kept = (filters, [])
        st.session_state[_PAGES] = kept
    return kept[1]


def _show_pager(behind: list[C], after: C | None, shown: int) -> None:
    if not behind and after is None:
        return
    first, following, place = st.columns([1, 1, 6], vertical_alignment="center")
    first.button(
        "Previous page", key="previous", disabled=not behind, on_click=lambda: _back(behind), width="stretch"
    )
    if after is not None:
        following.button("Next page", on_click=lambda: behind.append(after), width="stretch")
    place.text(f"page {len(behind) + 1}, {shown} rows")


def _back(behind: list[C]) -> None:
    behind.pop()


def _explain_empty(filters: Filters) -> None:
    """Nothing to show: why, and what to do."""
    if not store.has_traces():
        text = "Attach the callback to a chain, or let the demo answer some questions over real PostgreSQL."
        code = [
            "from ragblame import attach; attach()        # in the process of your chain",
            "ragblame demo",
        ]
        draw([notice("No traces yet", text, code)], key="empty")
        return
    if filters == Filters():
        text = "No flagged span waits for a person. “All traces” lists every answer, flagged or not."
        draw([notice("Nothing to review", text, css="grounded")], key="empty")
        return
    text = "No row matches these filters. A span that was not flagged is found under “All traces”."
    draw([notice("Nothing matches", text, css="undetermined")], key="empty")
    st.button("Clear filters", on_click=lambda: chosen_filters.keep({}))


if __name__ == "__main__":  # Streamlit runs a page under this name
    show()
