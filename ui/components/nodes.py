"""The only way text of a trace reaches the page: a tree of plain nodes that the browser draws as text nodes.

Streamlit's own markdown, captions and labels fetch remote images and read directives; answers and chunks are
written by strangers, so nothing of theirs may pass through them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import streamlit as st

_FOLDER = files("ragblame.ui.components")
_JS = (_FOLDER / "nodes.js").read_text("utf-8")
_CSS = (_FOLDER / "nodes.css").read_text("utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One element. Strings among the children become text nodes, whatever they hold."""

    tag: str = "div"
    css: str = ""  # class names, written by us
    children: tuple["Node | str", ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)  # become CSS variables, e.g. bar widths
    pick: str | None = None  # value reported when the element is clicked or Enter is pressed
    href: str | None = None  # relative link of ours; opened in a new tab by the usual modifier keys


def el(
    tag: str,
    css: str = "",
    *children: "Node | str | None",
    attributes: Mapping[str, str] | None = None,
    numbers: Mapping[str, float] | None = None,
    pick: str | None = None,
    href: str | None = None,
) -> Node:
    """Shorthand for a ``Node``; ``None`` among the children is left out."""
    return Node(
        tag=tag,
        css=css,
        children=tuple(child for child in children if child is not None),
        attributes=attributes or {},
        numbers=numbers or {},
        pick=pick,
        href=href,
    )


def to_plain(node: Node | str) -> Any:
    """The JSON form that nodes.js reads."""
    if isinstance(node, str):
        return node
    plain: dict[str, Any] = {"tag": node.tag}
    if node.css:
        plain["class"] = node.css
    if node.children:
        plain["children"] = [to_plain(child) for child in node.children]
    if node.attributes:
        plain["attributes"] = dict(node.attributes)
    if node.numbers:
        plain["numbers"] = dict(node.numbers)
    if node.pick is not None:
        plain["pick"] = node.pick
    if node.href is not None:
        plain["href"] = node.href
    return plain


def text_of(node: Node | str) -> str:
    """All text of a tree, in order: what a reader without styles sees."""
    return node if isinstance(node, str) else "".join(text_of(child) for child in node.children)


def draw(nodes: Sequence[Node], *, key: str, on_pick: Callable[[str], None] | None = None) -> str | None:
    """Draw the nodes; returns the value picked in this run, after calling ``on_pick`` with it."""

    def picked() -> None:
        if on_pick is not None and (value := st.session_state[key].get("picked")) is not None:
            on_pick(str(value))

    # Registered on each run: the registry belongs to the running server, not to this module.
    component = st.components.v2.component(
        "ragblame_nodes", html='<div class="ragblame"></div>', css=_CSS, js=_JS
    )
    result = component(data={"nodes": [to_plain(node) for node in nodes]}, key=key, on_picked_change=picked)
    value = result.get("picked")
    return None if value is None else str(value)
