"""The panel where a person decides about a span: five verdicts on keys 1 to 5, a cause, a note, a name.

A queue item can also be taken (so that two people do not do the same work), snoozed, and reopened.
"""

import getpass
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import psycopg
import streamlit as st

from ragblame.errors import RagblameError
from ragblame.records import Cause, Span, Verdict, VerdictKind
from ragblame.settings import load_settings
from ragblame.ui import store
from ragblame.ui.components.nodes import Node, draw, el
from ragblame.ui.components.notices import problem
from ragblame.ui.components.wording import cut, verdict_badge
from ragblame.ui.reads import ItemState
from ragblame.ui.reads_trace import Item, TracePage
from ragblame.ui.reviews import MAX_NOTE, claim_item, reopen_item, save_review, snooze_item

AS_FOUND: Final = "as found"  # the machine's cause when the verdict agrees with it, else none
NO_CAUSE: Final = "none"
SNOOZE: Final = timedelta(days=1)
_REVIEWER: Final = "reviewer kept"
_OUTCOME: Final = "outcome of the last review"  # (span's key, what to show, whether it went through)
_LOOPBACK: Final = {"127.0.0.1", "localhost", "::1"}


def review_panel(page: TracePage, span: Span) -> None:
    """Draw the panel; a verdict is saved by one key or click, with the cause and note as they stand."""
    item = page.items.get(span.index)
    key = f"{page.trace.id} {span.index}"
    _item_line(page.trace.id, item, key)
    columns = st.columns(len(VerdictKind), gap="xsmall")
    for number, (column, kind) in enumerate(zip(columns, VerdictKind, strict=True), 1):
        column.button(
            kind.value.capitalize(),
            key=f"verdict {number}",
            shortcut=str(number),
            width="stretch",
            on_click=_save,
            args=(page.trace.id, span, item, page.verdicts.get(span.index), kind, key),
        )
    cause, note, reviewer = st.columns([1.3, 2, 1], gap="small")
    options = [AS_FOUND, NO_CAUSE, *[cause.value for cause in Cause]]
    cause.selectbox("Cause", options, key=f"cause {key}")
    note.text_input("Note", key=f"note {key}", max_chars=MAX_NOTE, placeholder="saved with the verdict")
    reviewer.text_input("Reviewer", value=_reviewer(), key="reviewer", on_change=_keep_reviewer)
    outcome = st.session_state.get(_OUTCOME)
    if outcome is not None and outcome[0] == key:
        draw([outcome[1]], key="review outcome")


def was_just_reviewed(trace_id: UUID, span: int) -> bool:
    """Whether this browser session's last action was about this span and went through."""
    outcome = st.session_state.get(_OUTCOME)
    return outcome is not None and outcome[0] == f"{trace_id} {span}" and bool(outcome[2])


def _item_line(trace_id: UUID, item: Item | None, key: str) -> None:
    """Who has the span, and the buttons that move it in the queue."""
    words, first, second = st.columns([3, 1, 1], vertical_alignment="center", gap="xsmall")
    with words:
        draw([el("div", "row-line", el("span", "label", "Your verdict"), _holder(item))], key="review label")
    if item is None:
        return
    if item.state is ItemState.OPEN:

        def claim(conn: psycopg.Connection[Any]) -> None:
            who = st.session_state["reviewer"]
            claim_item(conn, trace_id=trace_id, span=item.span, version=item.version, reviewer=who)

        def snooze(conn: psycopg.Connection[Any]) -> None:
            until = datetime.now(UTC) + SNOOZE
            snooze_item(conn, trace_id=trace_id, span=item.span, version=item.version, until=until)

        first.button("Take", shortcut="a", width="stretch", on_click=_move, args=(claim, "Taken", key))
        second.button("Snooze", shortcut="s", width="stretch", on_click=_move, args=(snooze, "Snoozed", key))
        return

    def reopen(conn: psycopg.Connection[Any]) -> None:
        reopen_item(conn, trace_id=trace_id, span=item.span, version=item.version)

    second.button("Reopen", shortcut="o", width="stretch", on_click=_move, args=(reopen, "Reopened", key))


def _holder(item: Item | None) -> Node | None:
    """What the queue says about the span."""
    if item is None:
        return el("span", "quiet", "not in the queue: it was not flagged")
    if item.state is ItemState.SNOOZED and item.leased_until is not None:
        return el("span", "chip", f"snoozed until {item.leased_until.astimezone(UTC):%Y-%m-%d %H:%M} UTC")
    if item.state is ItemState.REVIEWED:
        return el("span", "chip good", "reviewed")
    if item.assignee is not None and item.leased_until is not None and item.leased_until > datetime.now(UTC):
        until = f"{item.leased_until.astimezone(UTC):%H:%M} UTC"
        return el("span", "chip warn untrusted", f"taken by {cut(item.assignee, 40)} until {until}")
    return None


def _save(
    trace_id: UUID, span: Span, item: Item | None, found: Verdict | None, verdict: VerdictKind, key: str
) -> None:
    """Callback of the verdict buttons. On failure everything typed stays where it is."""
    state = st.session_state
    choice = state[f"cause {key}"]
    cause = None
    if choice == AS_FOUND:
        cause = found.cause if found is not None and found.verdict is verdict else None
    elif choice != NO_CAUSE:
        cause = Cause(choice)

    def save(conn: psycopg.Connection[Any]) -> None:
        save_review(
            conn,
            trace_id=trace_id,
            span=span.index,
            version=None if item is None else item.version,
            reviewer=state["reviewer"],
            verdict=verdict,
            cause=cause,
            note=state[f"note {key}"] or "",
        )

    if _act(save, "Saved", key, verdict_badge(verdict), el("span", "chip", cause.value) if cause else None):
        state[f"note {key}"] = ""


def _move(change: Callable[[psycopg.Connection[Any]], None], done: str, key: str) -> None:
    """Callback of the buttons that move an item."""
    _act(change, done, key)


def _act(change: Callable[[psycopg.Connection[Any]], None], done: str, key: str, *more: Node | None) -> bool:
    """Make one change in a transaction and keep what to say about it; whether it went through."""
    try:
        with store.transaction() as conn:
            change(conn)
    except RagblameError as error:
        st.session_state[_OUTCOME] = key, problem("Not saved", str(error)), False
        return False
    finally:
        store.forget()
    by = el("span", "untrusted", f"as {cut(st.session_state['reviewer'], 60)}")
    said = el("p", "strip good", el("span", "strong", done), *more, by, attributes={"role": "status"})
    st.session_state[_OUTCOME] = key, said, True
    return True


def _reviewer() -> str:
    """The name kept in this session; on loopback the account that runs the page, elsewhere nobody."""
    if _REVIEWER in st.session_state:
        return str(st.session_state[_REVIEWER])
    if load_settings().ui_address not in _LOOPBACK:
        return ""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        return ""


def _keep_reviewer() -> None:
    st.session_state[_REVIEWER] = st.session_state["reviewer"].strip()
