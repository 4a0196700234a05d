"""Evidence in a terminal: what the person who ran the measurement sees first."""

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from ragblame.attribution.evaluation.evidence import Cell, Evidence, Table
from ragblame.attribution.evaluation.figures import bar_line, bars_line, shown, verdict


def show(evidence: Evidence, console: Console | None = None) -> None:
    """Print everything the evidence holds, the bars last, where the eye is when it ends."""
    console = console or Console(highlight=False)
    console.print(_text(evidence.name, "bold"), _text(evidence.command, "dim"), soft_wrap=True)
    for table in (*evidence.tables, *(one.as_table() for one in evidence.confusions)):
        console.print(_table(table))
    for one in evidence.reliabilities:
        console.print(_table(one.as_table()))
        console.print(_text(f"expected calibration error {shown(one.ece)}"))
    for note in evidence.notes:
        console.print(_text(note))
    facts = {"seed": str(evidence.seed)} | dict(evidence.environment)
    console.print(_text("  ".join(f"{key} {value}" for key, value in facts.items()), "dim"))
    if evidence.bars:
        console.print(_text(bars_line(evidence.bars), "bold"))
    for bar in evidence.bars:
        mark = _text(
            verdict(bar) if bar.holds else verdict(bar).upper(), "green" if bar.holds else "bold red"
        )
        console.print(Text.assemble(_text(bar.name), ": ", bar_line(bar), ": ", mark), soft_wrap=True)


def _text(value: Cell, style: str = "") -> Text:
    """Text without power: rich's own markup is not read in it, control characters are signs."""
    return Text(shown(value), style=style)


def _table(table: Table) -> Grid:
    grid = Grid(
        title=_text(table.title, "bold") if table.title else None,
        caption=_text(table.note) if table.note else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column, is_words in zip(table.columns, table.is_words, strict=True):
        grid.add_column(_text(column), justify="left" if is_words else "right")
    for row in table.rows:
        grid.add_row(*map(_text, row))
    return grid
