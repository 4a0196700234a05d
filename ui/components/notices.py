"""What the page says when there is nothing to show or something is wrong: always with the next step."""

from collections.abc import Sequence

from ragblame.ui.components.nodes import Node, el
from ragblame.ui.components.wording import plural, span_of_time
from ragblame.ui.reads_health import Backlog


def notice(title: str, text: str, commands: Sequence[str] = (), css: str = "known") -> Node:
    """A titled box; ``commands`` are shown to be copied."""
    block = el("pre", "", "\n".join(commands)) if commands else None
    return el("section", f"notice {css}", el("h3", "", title), el("p", "untrusted", text), block)


def problem(title: str, text: str, commands: Sequence[str] = ()) -> Node:
    """The same for what keeps the page from working."""
    return notice(title, text, commands, css="fabricated")


def backlog_strip(backlog: Backlog) -> Node | None:
    """One line about traces that wait for attribution; None when none does."""
    if not backlog.waiting and not backlog.running:
        return None
    number = plural(backlog.waiting + backlog.running, "trace", "traces")
    parts: list[Node | str] = [f"{number} waiting for attribution or in work"]
    if backlog.oldest_waiting_seconds is not None:
        parts.append(f"the oldest for {span_of_time(backlog.oldest_waiting_seconds)}")
    if backlog.is_stuck:
        parts += ["no worker is running: start one with", el("code", "", "ragblame worker")]
    return el("p", "strip warn" if backlog.is_stuck else "strip", *[el("span", "", part) for part in parts])
