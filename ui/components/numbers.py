"""All methods side by side for one span, and what each cost: for those who doubt a single number."""

from ragblame.records import CoalitionValues, Method, Span
from ragblame.ui.components.chunks import prompt_order
from ragblame.ui.components.nodes import Node, el
from ragblame.ui.components.wording import cut, source_of
from ragblame.ui.reads_trace import TracePage


def without_one(table: CoalitionValues, span: Span) -> dict[int, float]:
    """``v(all) - v(all but the chunk)`` in nats by chunk position: what removing just that chunk costs."""
    tokens = [
        index
        for index, (start, end) in enumerate(zip(table.token_starts, table.token_ends, strict=True))
        if start < span.end and end > span.start
    ]
    rows = dict(zip(table.masks, table.log_probs, strict=True))
    full = (1 << len(table.positions)) - 1
    if full not in rows or not tokens:
        return {}
    total = sum(rows[full][token] for token in tokens)
    return {
        position: total - sum(rows[full & ~(1 << bit)][token] for token in tokens)
        for bit, position in enumerate(table.positions)
        if full & ~(1 << bit) in rows
    }


def methods_table(page: TracePage, span: Span) -> Node:
    """One row per chunk in prompt order, one column per method."""
    methods = [method for method in Method if (span.index, method) in page.attributions]
    if not methods:
        return el("p", "quiet", "No method was computed for this span.")
    table = page.explanation.coalitions
    alone = without_one(table, span) if table is not None else {}
    shares = {method: page.shares(span.index, method) for method in methods}
    names = [("chunk", ""), *[(_unit(method), "number") for method in methods]]
    if alone:
        names.append(("leave one out (nats)", "number"))
    head = el("tr", "", *[el("th", css, name) for name, css in names])
    body = []
    for chunk in prompt_order(page):
        label = f"{chunk.position + 1}  {cut(source_of(chunk), 60)}"
        cells = [shares[method].get(chunk.position) for method in methods]
        if alone:
            cells.append(alone.get(chunk.position))
        body.append(
            el(
                "tr",
                "",
                el("th", "untrusted", label, attributes={"scope": "row"}),
                *[el("td", "number", _number(value)) for value in cells],
            )
        )
    return el("table", "", el("thead", "", head), el("tbody", "", *body))


def costs_table(page: TracePage, span: Span) -> Node | None:
    """What each method cost and how exact it is."""
    rows = []
    for method in Method:
        found = page.attributions.get((span.index, method))
        if found is None:
            continue
        cost = found.cost
        gap = "–" if found.completeness_gap is None else f"{found.completeness_gap:.1e}"
        cells = [
            f"{cost.scored_coalitions:,}", f"{cost.forwards:,}", f"{cost.backwards:,}", f"{cost.tokens:,}",
            f"{cost.seconds:.2f}", f"{found.noise_floor:.1e}", gap,
        ]  # fmt: skip
        rows.append(
            el(
                "tr",
                "",
                el("th", "", method.value, attributes={"scope": "row"}),
                *[el("td", "number", cell) for cell in cells],
                el("td", "mono", cut(found.settings_hash, 16)),
            )
        )
    if not rows:
        return None
    names = ["coalitions", "forwards", "backwards", "tokens", "seconds", "noise floor", "completeness gap"]
    head = [el("th", "", "method"), *[el("th", "number", name) for name in names], el("th", "", "settings")]
    return el("table", "", el("thead", "", el("tr", "", *head)), el("tbody", "", *rows))


def _unit(method: Method) -> str:
    return f"{method.value} (nats)" if method is Method.SHAPLEY else method.value


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")
