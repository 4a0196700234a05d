"""Spans against chunks: which chunk spoke for (blue) or against (orange) which words, in nats.

The scale is symmetric about zero, so the colour of a cell never depends on the extremes of the other side;
every computed cell shows its number, and cells that were not computed are grey and say so.
"""

from typing import Any

from ragblame.records import Method, VerdictKind
from ragblame.ui.components.chunks import prompt_order
from ragblame.ui.components.nodes import Node, el
from ragblame.ui.components.palette import (
    HEAT_ENDS,
    distinct,
    quiet_axis,
    theme_colours,
    theme_name,
)
from ragblame.ui.components.wording import VERDICT_LETTER, cut, nats, source_of
from ragblame.ui.reads import RELIED
from ragblame.ui.reads_trace import TracePage

MAX_SPANS = 20
MAX_CHUNKS = 30


def heat_cells(
    page: TracePage, selected: int | None, method: Method = Method.SHAPLEY
) -> list[dict[str, Any]]:
    """One row per span and chunk, spans in order of the answer, chunks in order of the prompt.

    More than ``MAX_SPANS`` spans keep the most severe, more than ``MAX_CHUNKS`` chunks those with the largest
    absolute share; the selected span always stays.
    """
    spans = list(page.spans)
    if len(spans) > MAX_SPANS:
        severity = {span: verdict.severity for span, verdict in page.verdicts.items()}
        ranked = sorted(spans, key=lambda s: (s.index != selected, -severity.get(s.index, 0.0), s.index))
        spans = sorted(ranked[:MAX_SPANS], key=lambda s: s.index)
    chunks = prompt_order(page)
    shares = {span.index: page.shares(span.index, Method.SHAPLEY) for span in spans}
    if len(chunks) > MAX_CHUNKS:
        sizes = [{position: abs(share) for position, share in known.items()} for known in shares.values()]
        weight = {c.position: max(known.get(c.position, 0.0) for known in sizes) for c in chunks}
        kept = set(sorted(weight, key=lambda position: -weight[position])[:MAX_CHUNKS])
        chunks = [chunk for chunk in chunks if chunk.position in kept]
    cells = []
    for span in spans:
        kind = page.verdicts[span.index].verdict if span.index in page.verdicts else VerdictKind.UNDETERMINED
        pointer = "▸ " if span.index == selected else ""
        label = f"{pointer}{cut(page.span_text(span), 28)}  {VERDICT_LETTER[kind]}"
        for place, chunk in enumerate(chunks):
            share = shares[span.index].get(chunk.position)
            cells.append(
                {
                    "row": span.index,
                    "span": distinct(label, span.index),
                    "place": place,
                    "chunk": distinct(f"{chunk.position + 1}  {cut(source_of(chunk), 18)}", chunk.position),
                    "share": share,
                    "shown": "–" if share is None else nats(share),
                }
            )
    return cells


def heat_map(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The chart of ``heat_cells`` as a Vega-Lite specification."""
    colours = theme_colours()
    bound = max((abs(cell["share"]) for cell in cells if cell["share"] is not None), default=0.0)
    bound = max(bound, RELIED)  # shares far below a nat stay pale
    against, spoke_for = HEAT_ENDS[theme_name()]
    cell = {"type": "rect", "cornerRadius": 3, "stroke": colours["backgroundColor"], "strokeWidth": 2}
    scale = {
        "domain": [-bound, 0, bound],
        "range": [against, colours["secondaryBackgroundColor"], spoke_for],
        "clamp": True,
        "interpolate": "rgb",
    }
    return {
        "data": {"values": cells},
        "height": {"step": 30},
        "encoding": {
            "x": {
                "field": "chunk",
                "type": "nominal",
                "sort": {"field": "place"},
                "title": None,
                "axis": quiet_axis(orient="top", labelAngle=0, labelLimit=150, labelFlush=False),
            },
            "y": {
                "field": "span",
                "type": "nominal",
                "sort": {"field": "row"},
                "title": None,
                "axis": quiet_axis(labelLimit=230),
            },
        },
        "layer": [
            {
                "mark": cell,
                "transform": [{"filter": "datum.share === null"}],
                "encoding": {"color": {"value": colours["grayBackgroundColor"]}},
            },
            {
                "mark": cell,
                "transform": [{"filter": "datum.share !== null"}],
                "encoding": {
                    "color": {"field": "share", "type": "quantitative", "scale": scale, "legend": None},
                    "tooltip": [
                        {"field": "span", "type": "nominal", "title": "span"},
                        {"field": "chunk", "type": "nominal", "title": "chunk"},
                        {"field": "share", "type": "quantitative", "title": "nats", "format": "+.3f"},
                    ],
                },
            },
            {
                "mark": {"type": "text", "fontSize": 12, "color": colours["textColor"]},
                "encoding": {"text": {"field": "shown", "type": "nominal"}},
            },
        ],
    }


def heat_table(cells: list[dict[str, Any]]) -> Node:
    """The same numbers as a table, for screen readers and for copying."""
    columns = list(dict.fromkeys((cell["place"], _plain(cell["chunk"])) for cell in cells))
    rows: dict[int, list[dict[str, Any]]] = {}
    for cell in cells:
        rows.setdefault(cell["row"], []).append(cell)
    head = el("tr", "", el("th", "", "span"), *[el("th", "number untrusted", name) for _, name in columns])
    body = [
        el(
            "tr",
            "",
            el("th", "untrusted", _plain(entries[0]["span"]), attributes={"scope": "row"}),
            *[el("td", "number", entry["shown"]) for entry in entries],
        )
        for entries in rows.values()
    ]
    return el("table", "", el("thead", "", head), el("tbody", "", *body))


def _plain(label: str) -> str:
    return label.rstrip("\u200b")
