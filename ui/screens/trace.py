"""One trace on one screen: what was asked and said, which words are wrong, the likely cause, the chunks."""

import json
from typing import Literal

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from ragblame.records import Method, Span
from ragblame.trace_json import trace_to_json
from ragblame.ui import store
from ragblame.ui.components.answer import answer_block, crumbs, legend, question_block
from ragblame.ui.components.chunks import chunk_cards
from ragblame.ui.components.filters import kept, to_filters
from ragblame.ui.components.finding import cautions, finding
from ragblame.ui.components.heatmap import heat_cells, heat_map, heat_table
from ragblame.ui.components.nodes import Node, draw, el
from ragblame.ui.components.notices import notice, problem
from ragblame.ui.components.numbers import costs_table, methods_table
from ragblame.ui.components.prompt import prompt_messages
from ragblame.ui.components.reviewing import review_panel, was_just_reviewed
from ragblame.ui.components.waterfall import waterfall, waterfall_steps, waterfall_sum
from ragblame.ui.components.wording import plural, span_of_time
from ragblame.ui.reads import Cursor, Progress, QueueRow, as_uuid
from ragblame.ui.reads_trace import TracePage

RAW_SIZE = 200_000  # characters of JSON shown; the download has all of it
POLL_SECONDS = 3


def show() -> None:
    """Draw the page for the address ``/trace?id=…&span=…``."""
    trace_id = as_uuid(st.query_params.get("id", ""))
    if trace_id is None:
        _ask_for_id()
        return
    page = store.trace_page(trace_id)
    span = _selected(page)
    _show_head(page, span)
    case, chunks = st.columns([1.32, 1], gap="medium")
    with case:
        _show_case(page, span)
    with chunks:
        _show_chunks(page, span)
    why, prompt, numbers, raw = st.tabs(["Why", "Prompt", "Numbers", "Raw"])
    with why:
        _show_why(page, span)
    with prompt:
        draw(prompt_messages(page), key="prompt")
    with numbers:
        _show_numbers(page, span)
    with raw:
        _show_raw(page)


def _ask_for_id() -> None:
    text = "Open one from the queue, or paste the id that your service logged."
    draw([notice("No trace chosen", text)], key="no trace")
    entered = st.text_input("Trace id", key="trace id entered")
    if entered and as_uuid(entered) is not None:
        st.query_params["id"] = entered.strip()
        st.rerun()
    if entered:
        draw(
            [problem("This is not an id", "A trace id looks like 01890a5d-ac96-774b-bcce-b302099a8057.")],
            key="bad",
        )
    st.page_link("screens/queue.py", label="Queue", icon=":material/arrow_back:")


def _selected(page: TracePage) -> Span | None:
    """The span named in the address, else the worst one."""
    wanted = st.query_params.get("span", "")
    by_number = {str(span.index): span for span in page.spans}
    return by_number.get(wanted) or page.worst_span()


def _select(pick: str) -> None:
    st.query_params["span"] = pick


def _show_head(page: TracePage, span: Span | None) -> None:
    """Where we are, and the ways to the queue and to its neighbours."""
    item = page.items.get(span.index) if span is not None else None
    at = None
    if item is not None:
        at = Cursor(severity=item.severity, trace_id=page.trace.id, span=item.span)
    before, behind = store.neighbours(to_filters(kept()), at)
    widths = [7, 1, 1.25, 1.25]
    place, back, previous, following = st.columns(widths, vertical_alignment="center", gap="small")
    with place:
        draw([crumbs(page.trace)], key="crumbs")
    if back.button("Queue", key="back", icon=":material/arrow_back:", shortcut="q", width="stretch"):
        st.switch_page("screens/queue.py")
    is_done = span is not None and was_just_reviewed(page.trace.id, span.index)
    _go(previous, "Previous", "k", before, is_primary=False)
    _go(following, "Next", "j", behind, is_primary=is_done)


def _go(column: DeltaGenerator, label: str, key: str, row: QueueRow | None, *, is_primary: bool) -> None:
    kind: Literal["primary", "secondary"] = "primary" if is_primary else "secondary"
    if column.button(label, shortcut=key, disabled=row is None, type=kind, width="stretch") and row:
        query = {"id": str(row.trace_id), "span": str(row.span)}
        st.switch_page("screens/trace.py", query_params=query)


def _show_case(page: TracePage, span: Span | None) -> None:
    """Question, answer, finding and review."""
    trace = page.trace
    selected = span.index if span is not None else None
    nodes: list[Node | None] = [
        question_block(trace),
        answer_block(trace.answer, page.spans, page.verdicts, selected),
        legend(page.verdicts),
    ]
    draw([node for node in nodes if node is not None], key="answer", on_pick=_select)
    _show_progress(page)
    if span is not None:
        reaches = store.radius(page.trace.id, span.index) if span.index in page.items else ()
        draw([finding(page, span, reaches)], key="finding")
        review_panel(page, span)


def _show_progress(page: TracePage) -> None:
    """Why there are no results, or why those shown may be old; waits for them where a worker is at it."""
    if page.progress is Progress.FAILED:
        draw([problem("Attribution failed", page.error or "No reason was recorded.")], key="failed")
    elif page.progress in (Progress.QUEUED, Progress.RUNNING):
        _wait(page)
    elif page.progress is Progress.NOT_QUEUED:
        draw([notice("Not attributed", "This trace was stored without a job.")], key="not queued")
    elif not page.spans:
        text = "The answer holds nothing that could be checked."
        draw([notice("No spans", text), *cautions(page.explanation, None)], key="no spans")
    if page.is_rerun_waiting:
        draw([el("p", "strip", "A new attribution of this trace is waiting.")], key="rerun")
    elif page.progress in (Progress.FAILED, Progress.NOT_QUEUED):
        again = " again" if page.progress is Progress.FAILED else ""
        st.button(f"Attribute it{again}", on_click=store.attribute_again, args=(page.trace.id,))


@st.fragment(run_every=POLL_SECONDS)
def _wait(page: TracePage) -> None:
    """Look again every few seconds until the worker is done."""
    backlog = store.backlog()
    if store.trace_page(page.trace.id).progress is not page.progress:
        st.rerun()
    if backlog.is_stuck:
        wait = plural(backlog.waiting, "trace waits", "traces wait")
        text = f"{wait} and no worker is running. Start one:"
        draw([problem("Waiting for a worker", text, ["ragblame worker"])], key="wait")
        return
    state = "A worker is attributing this answer." if page.progress is Progress.RUNNING else "In the queue."
    oldest = backlog.oldest_waiting_seconds
    more = (
        "" if oldest is None else f" {backlog.waiting:,} traces wait, the oldest for {span_of_time(oldest)}."
    )
    draw([notice("Being attributed", f"{state}{more} This page updates by itself.")], key="wait")


def _show_chunks(page: TracePage, span: Span | None) -> None:
    """The chunk cards, with token heat when it is asked for."""
    heats = {}
    label, choice = st.columns([1, 1], vertical_alignment="bottom")
    with label:
        draw([el("span", "label", "Chunks in the order of the prompt")], key="chunks label")
    if page.heat_methods and span is not None:
        names = ["off", *[method.value for method in page.heat_methods]]
        name = choice.selectbox(
            "Token heat",
            names,
            key="heat",
            label_visibility="collapsed",
            format_func=lambda entry: f"token heat: {entry}",
        )
        if name != "off":
            heats = store.heats(page.trace.id, page.finished_at, span.index, Method(name))
    draw([chunk_cards(page, None if span is None else span.index, heats)], key="chunks")


def _show_why(page: TracePage, span: Span | None) -> None:
    """The waterfall of the span on screen beside the heat map of all spans."""
    if span is None or not any(method is Method.SHAPLEY for _, method in page.attributions):
        notes = [el("p", "untrusted", note) for note in page.explanation.notes]
        text = el("p", "quiet", "No Shapley shares were computed for this trace.")
        draw([text, *notes], key="no shares")
        return
    fall, heat = st.columns([1, 1.25], gap="medium")
    with fall:
        steps = waterfall_steps(page, span.index)
        draw([el("span", "label", "From no documents to all of them")], key="fall label")
        if steps:
            st.vega_lite_chart(spec=waterfall(steps), key="waterfall", alt=waterfall_sum(page, span.index))
            draw([el("p", "quiet", waterfall_sum(page, span.index))], key="fall sum")
    with heat:
        cells = heat_cells(page, span.index)
        draw([el("span", "label", "Which chunk made which words likelier (nats)")], key="heat label")
        st.vega_lite_chart(
            spec=heat_map(cells), key="heat map", alt="Shares of spans and chunks; see the table in Numbers"
        )
    if page.explanation.notes:
        draw([el("p", "quiet untrusted", note) for note in page.explanation.notes], key="notes")


def _show_numbers(page: TracePage, span: Span | None) -> None:
    """Tables: methods and costs of this span, Shapley shares of all spans."""
    if span is None:
        draw([el("p", "quiet", "No numbers: the trace has no spans.")], key="no numbers")
        return
    title = el("p", "strong untrusted", f"“{page.span_text(span)[:160]}”")
    parts = [
        title,
        methods_table(page, span),
        el("h4", "label spaced", "Cost and exactness"),
        costs_table(page, span),
        el("h4", "label spaced", "Shapley shares of all spans (nats)"),
        heat_table(heat_cells(page, span.index)),
    ]
    draw([part for part in parts if part is not None], key="numbers")


def _show_raw(page: TracePage) -> None:
    """The stored trace as JSON: everything of it, as text."""
    text = json.dumps(trace_to_json(page.trace), ensure_ascii=False, indent=2)
    st.download_button(
        "Download trace as JSON", text, file_name=f"trace-{page.trace.id}.json", mime="application/json"
    )
    if len(text) > RAW_SIZE:
        draw([el("p", "quiet", f"The first {RAW_SIZE:,} of {len(text):,} characters:")], key="raw cut")
    st.code(text[:RAW_SIZE], language=None, wrap_lines=True, height=480)


if __name__ == "__main__":  # Streamlit runs a page under this name
    show()
