"""Evidence as one page to read and to send: self-contained, without a script, every text escaped.

Colour only repeats what a number or a word beside it says, and follows the reader's light or dark theme.
"""

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Final

from ragblame.attribution.evaluation.evidence import (
    Bar,
    Cell,
    Confusion,
    Estimate,
    Evidence,
    Reliability,
    Table,
)
from ragblame.attribution.evaluation.figures import bar_line, bars_line, shown, verdict

# Text on its ground; `heat` are the grounds of a confusion's cells from none to all of a row. Every pair that
# meets on the page has a contrast of at least 4.5 (tests/test_evidence.py computes it).
COLOURS: Final[Mapping[str, Mapping[str, str]]] = {
    "light": {
        "ground": "#ffffff",
        "raised": "#f4f6f9",
        "text": "#17202c",
        "quiet": "#4b5768",
        "line": "#c3ccd8",
        "mark": "#2550c4",
        "good": "#0a6644",
        "bad": "#a81e12",
        "heat0": "#ffffff",
        "heat1": "#e8f0fd",
        "heat2": "#d0e0fb",
        "heat3": "#b3cdf8",
        "heat4": "#95b9f4",
        "heat5": "#78a5f0",
    },
    "dark": {
        "ground": "#10151c",
        "raised": "#18202a",
        "text": "#e4e9f0",
        "quiet": "#a3afbf",
        "line": "#3b4858",
        "mark": "#8fb0ff",
        "good": "#76dcb0",
        "bad": "#ff9d92",
        "heat0": "#10151c",
        "heat1": "#152a4a",
        "heat2": "#19345f",
        "heat3": "#1e3f78",
        "heat4": "#234a91",
        "heat5": "#2855a8",
    },
}
HEAT_STEPS: Final = 5
SIDE: Final = 240  # of a reliability plot, in its own units

STYLE: Final = """
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h1, h2, p, th, td, li, dd, code { unicode-bidi: isolate; }
h1, h2, p, li, dd, code { overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 46rem; } .quiet { color: var(--quiet); font-size: .9rem; }
code { background: var(--raised); border: 1px solid var(--line); border-radius: 4px; padding: .1rem .35rem; }
.wide { overflow-x: auto; } .wide:focus-visible { outline: 2px solid var(--mark); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  min-width: 2.5rem; }
thead th { background: var(--raised); } tbody th { font-weight: 400; } 
tbody tr > :first-child { min-width: 8rem; } .once { white-space: nowrap; }
.number { text-align: right; white-space: nowrap; } .interval { display: block; }
.holds { color: var(--good); font-weight: 600; } .short { color: var(--bad); font-weight: 700; }
.hit { font-weight: 700; box-shadow: inset 0 0 0 2px var(--quiet); }
figure { margin: 0; display: flex; gap: 2rem; flex-wrap: wrap; align-items: flex-start; }
figure > div { min-width: 0; }
svg { width: 20rem; max-width: 100%; } svg text { fill: var(--text); font-size: 11px; }
.frame { fill: none; stroke: var(--line); } .ideal { stroke: var(--quiet); stroke-dasharray: 4 4; }
.curve { fill: none; stroke: var(--mark); stroke-width: 1.5; } .point { fill: var(--mark); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { color: var(--quiet); } dd { margin: 0; }
@media print { body { max-width: none; } }
"""


def to_html(evidence: Evidence) -> str:
    """The whole page. It loads nothing, and its own policy forbids it to."""
    sections = [
        *(_section("Bars", _bars(evidence.bars)) for _ in evidence.bars[:1]),
        *(_section(table.title, _table(table), table.note) for table in evidence.tables),
        *(_section(one.title, _confusion(one), one.note) for one in evidence.confusions),
        *(_section(one.title, _reliability(one), one.note) for one in evidence.reliabilities),
        *(_section("Notes", _list(evidence.notes)) for _ in evidence.notes[:1]),
        _section("Made with", _environment(evidence)),
    ]
    name = _text(evidence.name)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{name} · ragblame evaluation</title>
<style>
{_variables()}{STYLE}</style>
</head>
<body>
<main>
<h1>{name}</h1>
<p>{_text(bars_line(evidence.bars))}</p>
<p class="quiet">Intervals are 95 %. A dash means that nothing could be measured.</p>
{"".join(sections)}</main>
</body>
</html>
"""


def _variables() -> str:
    """The colours as CSS variables, the dark ones where the reader's system is dark."""
    light, dark = (
        "".join(f" --{name}: {colour};" for name, colour in COLOURS[theme].items())
        for theme in ("light", "dark")
    )
    return f":root {{{light} }}\n@media (prefers-color-scheme: dark) {{ :root {{{dark} }} }}"


def _text(value: Cell) -> str:
    """A value that cannot be anything but text."""
    return escape(shown(value), quote=True)


def _section(title: str, body: str, note: str = "") -> str:
    about = f'<p class="quiet">{_text(note)}</p>\n' if shown(note) else ""
    return f"<section>\n<h2>{_text(title)}</h2>\n{about}{body}\n</section>\n"


def _grid(label: str, head: Iterable[str], rows: Iterable[str]) -> str:
    """A table of finished cells that scrolls by itself where the page is too narrow, also by keyboard."""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{_text(label)}"><table>\n'
        f"<thead><tr>{''.join(head)}</tr></thead>\n<tbody>\n"
        + "".join(f"<tr>{row}</tr>\n" for row in rows)
        + "</tbody></table></div>"
    )


def _bars(bars: Iterable[Bar]) -> str:
    head = (f'<th scope="col">{name}</th>' for name in ("verdict", "bar", "measured"))
    rows = (
        f'<td class="once {"holds" if bar.holds else "short"}">{"✓" if bar.holds else "✗"} {verdict(bar)}'
        f'</td><th scope="row">{_text(bar.name)}</th><td>{_text(bar_line(bar))}</td>'
        for bar in bars
    )
    return _grid("Bars", head, rows)


def _table(table: Table) -> str:
    sides = ["" if is_words else ' class="number"' for is_words in table.is_words]
    head = (
        f'<th scope="col"{side}>{_text(name)}</th>' for name, side in zip(table.columns, sides, strict=True)
    )
    rows = (
        "".join(f"<td{side}>{_cell(cell)}</td>" for cell, side in zip(row, sides, strict=True))
        for row in table.rows
    )
    return _grid(table.title, head, rows)


def _cell(cell: Cell) -> str:
    """A cell's text; an interval stands under its figure, so that figures can be compared down a column."""
    if not isinstance(cell, Estimate) or math.isnan(cell.value):
        return _text(cell)
    interval = f"{_text(cell.low)} to {_text(cell.high)}"
    return f'{_text(cell.value)} <span class="quiet interval">{interval}</span>'


def _confusion(confusion: Confusion) -> str:
    head = ['<th scope="col">true, then given:</th>']
    head += [f'<th scope="col" class="number">{_text(label)}</th>' for label in confusion.labels]
    rows = []
    for true, (label, counts) in enumerate(zip(confusion.labels, confusion.counts, strict=True)):
        cells = [f'<th scope="row">{_text(label)}</th>']
        for given, count in enumerate(counts):
            share = count / sum(counts) if count else 0.0
            heat = f"background: var(--heat{round(share * HEAT_STEPS)})"
            side = "number hit" if true == given else "number"
            cells.append(f'<td class="{side}" style="{heat}">{count}</td>')
        rows.append("".join(cells))
    return _grid(confusion.title, head, rows) + (
        '\n<p class="quiet">A row is what is true, a column what was given; framed: right. '
        "The tint is the share of its row.</p>"
    )


def _reliability(one: Reliability) -> str:
    points = [(SIDE * b.mean, SIDE * (1 - b.share), b.count) for b in one.bins]
    most = max((count for *_, count in points), default=1)
    circles = "".join(
        f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="{2.5 + 4 * (count / most) ** 0.5:.1f}"/>'
        for x, y, count in points
    )
    curve = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    ticks = "".join(
        f'<text x="{SIDE * part:.0f}" y="{SIDE + 16}" text-anchor="middle">{part:g}</text>'
        f'<text x="-8" y="{SIDE * (1 - part) + 4:.0f}" text-anchor="end">{part:g}</text>'
        for part in (0, 0.5, 1)
    )
    plot = (
        f'<svg viewBox="-44 -12 {SIDE + 60} {SIDE + 52}" role="img" aria-label="{_text(one.title)}: '
        f'share that came true by mean given probability, as in the table beside it">'
        f'<rect class="frame" width="{SIDE}" height="{SIDE}"/>'
        f'<line class="ideal" x1="0" y1="{SIDE}" x2="{SIDE}" y2="0"/>'
        f'<polyline class="curve" points="{curve}"/>{circles}{ticks}'
        f'<text x="{SIDE / 2:.0f}" y="{SIDE + 32}" text-anchor="middle">mean given probability</text>'
        f'<text transform="translate(-32 {SIDE / 2:.0f}) rotate(-90)" text-anchor="middle">came true</text>'
        "</svg>"
    )
    return (
        f"<p>Expected calibration error {_text(one.ece)}. The dashed line is perfect; larger points hold "
        f"more rows.</p>\n<figure>\n{plot}\n<div>{_table(one.as_table())}</div>\n</figure>"
    )


def _list(notes: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(note)}</li>" for note in notes) + "</ul>"


def _environment(evidence: Evidence) -> str:
    facts = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in evidence.environment.items())
    seed = f"<dt>seed</dt><dd>{evidence.seed}</dd>"
    return f"<p><code>{_text(evidence.command)}</code></p>\n<dl>{seed}{facts}</dl>"
