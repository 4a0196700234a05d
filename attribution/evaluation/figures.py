"""How a figure is written, in every face alike: the terminal, the page and the document must not differ."""

import math
from collections.abc import Sequence

from ragblame.attribution.evaluation.evidence import Bar, Cell, Estimate


def shown(value: Cell) -> str:
    """A cell on one line without control characters: three digits, an interval behind its figure, a dash
    for what could not be measured."""
    if isinstance(value, Estimate):
        return shown(value.value) + (_interval(value.low, value.high) if math.isfinite(value.value) else "")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:.0f}"
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(str(value).split()))


def bar_line(bar: Bar) -> str:
    """A bar without its name: figure, interval, bound."""
    interval = "" if bar.low is None or bar.high is None else _interval(bar.low, bar.high)
    return f"{shown(bar.value)}{interval} {bar.sense} {bar.bound:g}"


def verdict(bar: Bar) -> str:
    """Whether a bar holds, in words."""
    return "holds" if bar.holds else "falls short"


def bars_line(bars: Sequence[Bar]) -> str:
    """How many bars hold."""
    if not bars:
        return "No bar was set."
    return f"{sum(bar.holds for bar in bars)} of {len(bars)} bars hold."


def _interval(low: float, high: float) -> str:
    return f" ({shown(low)} to {shown(high)})"
