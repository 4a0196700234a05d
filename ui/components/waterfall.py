"""From v(none) over the chunks to v(all): how the documents made one span as likely as it became, in nats."""

from typing import Any

import altair as alt

from ragblame.records import Method
from ragblame.ui.components.chunks import prompt_order
from ragblame.ui.components.heatmap import distinct
from ragblame.ui.components.palette import theme_colours
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


def waterfall(steps: list[dict[str, Any]]) -> alt.LayerChart | alt.FacetChart:
    """The chart of ``waterfall_steps``."""
    colours = theme_colours()
    ends = [value for step in steps for value in (step["start"], step["end"])]
    quiet = colours["grayTextColor"]
    margin = 0.12 * ((max(ends) - min(ends)) or 1.0)
    base = alt.Chart(alt.InlineData(values=steps)).encode(
        y=alt.Y(
            "label:N",
            sort=alt.EncodingSortField("order"),
            title=None,
            axis=alt.Axis(
                labelLimit=230, labelOverlap=False, labelColor=colours["textColor"], domain=False, ticks=False
            ),
        )
    )
    scale = alt.Scale(domain=[min(ends) - margin, max(ends) + margin], nice=False, zero=False)
    x = alt.X(
        "start:Q",
        scale=scale,
        title="log-probability of the span (nats)",
        axis=alt.Axis(tickCount=6, grid=False, labelColor=quiet, titleColor=quiet),
    )
    bars = (
        base.transform_filter(alt.datum.kind != "end")
        .mark_bar(height=14, cornerRadius=2)
        .encode(
            x=x,
            x2="end:Q",
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(
                    domain=["for", "against"], range=[colours["blueColor"], colours["orangeColor"]]
                ),
                legend=None,
            ),
        )
    )
    ticks = (
        base.transform_filter(alt.datum.kind == "end")
        .mark_tick(thickness=3, size=20, color=colours["textColor"])
        .encode(x=x)
    )
    numbers = base.mark_text(align="left", dx=6, fontSize=12, color=colours["textColor"]).encode(
        x=alt.X("right:Q", scale=scale), text="shown:N"
    )
    return alt.layer(bars, ticks, numbers).properties(height=alt.Step(28))


def _step(label: str, start: float, end: float, kind: str, shown: str) -> dict[str, Any]:
    return {
        "label": label,
        "start": start,
        "end": end,
        "right": max(start, end),
        "kind": kind,
        "shown": shown,
    }
