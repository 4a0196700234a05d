"""The panel where a person decides about a span: five verdicts on keys 1 to 5, a cause, a note, a name."""

import getpass
from typing import Final
from uuid import UUID

import streamlit as st

from ragblame.errors import RagblameError
from ragblame.records import Cause, Span, Verdict, VerdictKind
from ragblame.settings import load_settings
from ragblame.ui import store
from ragblame.ui.components.nodes import draw, el
from ragblame.ui.components.notices import problem
from ragblame.ui.components.wording import cut, verdict_badge
from ragblame.ui.reads_trace import Item, TracePage
from ragblame.ui.reviews import MAX_NOTE, save_review

AS_FOUND: Final = "as found"  # the machine's cause when the verdict agrees with it, else none
NO_CAUSE: Final = "none"
_REVIEWER: Final = "reviewer kept"
_OUTCOME: Final = "outcome of the last review"
_LOOPBACK: Final = {"127.0.0.1", "localhost", "::1"}


def review_panel(page: TracePage, span: Span) -> None:
    """Draw the panel; a verdict is saved by one key or click, with the cause and note as they stand."""
    item = page.items.get(span.index)
    key = f"{page.trace.id} {span.index}"
    draw([el("span", "label", "Your verdict")], key="review label")
    for number, (column, kind) in enumerate(
        zip(st.columns(len(VerdictKind), gap="xsmall"), VerdictKind, strict=True), 1
    ):
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


def just_saved(trace_id: UUID, span: int) -> bool:
    """Whether this browser session's last action was a review of this span that went through."""
    outcome = st.session_state.get(_OUTCOME)
    return outcome is not None and outcome[0] == f"{trace_id} {span}" and outcome[2]


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
    store.forget()
    try:
        with store.transaction() as conn:
            review = save_review(
                conn,
                trace_id=trace_id,
                span=span.index,
                version=None if item is None else item.version,
                reviewer=state["reviewer"],
                verdict=verdict,
                cause=cause,
                note=state[f"note {key}"] or "",
            )
    except RagblameError as error:
        state[_OUTCOME] = key, problem("Not saved", str(error)), False
        return
    state[f"note {key}"] = ""
    saved = el(
        "p",
        "strip good",
        el("span", "strong", "Saved"),
        verdict_badge(review.verdict),
        el("span", "chip", review.cause.value) if review.cause else None,
        el("span", "untrusted", f"as {cut(review.reviewer, 60)}"),
        attributes={"role": "status"},
    )
    state[_OUTCOME] = key, saved, True


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
