"""The prompt exactly as it was sent, with the place of every chunk marked in it."""

from ragblame.records import Message
from ragblame.ui.components.answer import elision, window
from ragblame.ui.components.nodes import Node, el
from ragblame.ui.components.segments import cut_segments
from ragblame.ui.components.wording import cut
from ragblame.ui.reads_trace import TracePage

MESSAGE_WINDOW = 40_000  # code points of one message drawn at once


def prompt_messages(page: TracePage) -> list[Node]:
    """One block per message; a chunk's region carries its number."""
    if not page.trace.prompt:
        text = (
            "The prompt was not seen: the answer was imported, or the model ran outside the captured chain."
        )
        return [el("p", "notice", text)]
    return [_message(page, index, message) for index, message in enumerate(page.trace.prompt)]


def _message(page: TracePage, index: int, message: Message) -> Node:
    start, end = window(message.text, 0, MESSAGE_WINDOW)
    regions = [
        (found.position, found.start, found.end)
        for found in page.alignments.values()
        if found.message == index and found.start is not None and found.end is not None
    ]
    marks = [(left - start, right - start) for _, left, right in regions]
    pieces = cut_segments(message.text[start:end], marks)
    opened: set[int] = set()
    drawn: list[Node | str] = []
    for piece in pieces:
        if not piece.marks:
            drawn.append(piece.text)
            continue
        positions = [regions[mark][0] for mark in piece.marks]
        fresh = [position for position in positions if position not in opened]
        opened.update(fresh)
        tags = [el("span", "chip", f"chunk {position + 1}") for position in fresh]
        drawn.append(el("mark", "region", *tags, piece.text))
    size = f"{len(message.text):,} characters"
    header = el("header", "row-line", el("span", "label", cut(message.role, 40)), el("span", "quiet", size))
    body = el(
        "div",
        "body untrusted",
        *drawn,
        elision(len(message.text) - end),
        attributes={"dir": "auto", "tabindex": "0", "role": "region", "aria-label": "prompt message"},
    )
    return el("article", "message", header, body)
