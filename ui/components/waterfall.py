"""From v(none) over the chunks to v(all): how the documents made one span as likely as it became, in nats."""

from typing import Any

from ragblame.records import Method
from ragblame.ui.components.chunks import prompt_order
from ragblame.ui.components.palette import distinct, quiet_axis, theme_colours
from ragblame.ui.components.wording import cut, nats, source_of
from ragblame.ui.reads_trace import TracePage

MAX_STEPS = 14  # more chunks are summed into one step


def waterfall_steps(page: TracePage, span: int) -> list[dict[str, Any]]:
    """Rows {order, label, start, end, shown, kind}: v(none), each chunk's Shapley share, v(all).

    Empty when the span has no Shapley values. The steps end at v(all) up to the completeness gap.
    """
    attribution = page.attributions.get((span, Method.SHAPLEY))
    if attribution is None or attribution.v_none is None or attribution.v_all is None:
        return []
    shares = page.shares(span, Method.SHAPLEY)
    chunks = [chunk for chunk in prompt_order(page) if chunk.position in shares]
    shown = {chunk.position for chunk in chunks}
    if len(chunks) > MAX_STEPS:
        shown = set(sorted(shown, key=lambda position: -abs(shares[position]))[:MAX_STEPS])
    level = attribution.v_none
    steps = [_step("no documents", level, level, "end", f"{nats(level)}")]
    for chunk in chunks:
        if chunk.position in shown:
            label = distinct(f"{chunk.position + 1}  {cut(source_of(chunk), 26)}", chunk.position)
            share = shares[chunk.position]
            steps.append(_step(label, level, level + share, "for" if share >= 0 else "against", nats(share)))
            level += share
    if rest := [position for position in shares if position not in shown]:
        share = sum(shares[position] for position in rest)
        kind = "for" if share >= 0 else "against"
        steps.append(_step(f"{len(rest)} further chunks", level, level + share, kind, nats(share)))
    total = attribution.v_all
    steps.append(_step("all documents", total, total, "end", nats(total)))
    return [step | {"order": order} for order, step in enumerate(steps)]


def waterfall_sum(page: TracePage, span: int) -> str:
    """The sum in words and numbers; empty when there are no Shapley values."""
    attribution = page.attributions.get((span, Method.SHAPLEY))
    if attribution is None or attribution.v_none is None or attribution.v_all is None:
        return ""
    total = sum(page.shares(span, Method.SHAPLEY).values())
    gap = abs(attribution.v_none + total - attribution.v_all)
    exact = "the parts sum to the total" if gap < 1e-4 else f"the parts miss the total by {gap:.1g}"
    return (
        f"{nats(attribution.v_none)} without documents, {nats(total)} from the chunks, "
        f"{nats(attribution.v_all)} with all of them: {exact}."
    )


def waterfall(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """The chart of ``waterfall_steps`` as a Vega-Lite specification."""
    colours = theme_colours()
    ends = [value for step in steps for value in (step["start"], step["end"])]
    margin = 0.12 * ((max(ends) - min(ends)) or 1.0)
    quiet = colours["grayTextColor"]
    x = {
        "type": "quantitative",
        "scale": {"domain": [min(ends) - margin, max(ends) + margin], "nice": False, "zero": False},
        "title": "log-probability of the span (nats)",
        "axis": {"tickCount": 6, "grid": False, "labelColor": quiet, "titleColor": quiet},
    }
    kinds = {"domain": ["for", "against"], "range": [colours["blueColor"], colours["orangeColor"]]}
    text = {"type": "text", "align": "left", "dx": 6, "fontSize": 12, "color": colours["textColor"]}
    return {
        "data": {"values": steps},
        "height": {"step": 28},
        "encoding": {
            "y": {
                "field": "label",
                "type": "nominal",
                "sort": {"field": "order"},
                "title": None,
                "axis": quiet_axis(labelLimit=230),
            }
        },
        "layer": [
            {
                "mark": {"type": "bar", "height": 14, "cornerRadius": 2},
                "transform": [{"filter": "datum.kind !== 'end'"}],
                "encoding": {
                    "x": {"field": "start", **x},
                    "x2": {"field": "end"},
                    "color": {"field": "kind", "type": "nominal", "scale": kinds, "legend": None},
                },
            },
            {
                "mark": {"type": "tick", "thickness": 3, "size": 20, "color": colours["textColor"]},
                "transform": [{"filter": "datum.kind === 'end'"}],
                "encoding": {"x": {"field": "start", **x}},
            },
            {
                "mark": text,
                "encoding": {"x": {"field": "right", **x}, "text": {"field": "shown", "type": "nominal"}},
            },
        ],
    }


def _step(label: str, start: float, end: float, kind: str, shown: str) -> dict[str, Any]:
    return {
        "label": label,
        "start": start,
        "end": end,
        "right": max(start, end),
        "kind": kind,
        "shown": shown,
    }
