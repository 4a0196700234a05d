"""Evidence as Markdown, for documents in the repository: the same figures as the report page, and as safe.

Text of strangers (labels, names of files) may hold anything; what Markdown or HTML would act on is escaped.
"""

import re
from typing import Final

from ragblame.attribution.evaluation.evidence import Cell, Evidence, Table
from ragblame.attribution.evaluation.figures import bar_line, bars_line, shown, verdict

_ACTIVE: Final = re.compile(r"[\\`*\[\]|~!$]|(?<![^\W_])_|_(?![^\W_])|<(?![= ])|(?<=[a-z])://|(?<=www)\.")
_LEADING: Final = re.compile(
    r"^(?:[#=>]|[+-](?!\d)|\d+[.)](?!\d))"
)  # a heading, a list, a quotation inside a list's entry


def to_markdown(evidence: Evidence) -> str:
    """One section under a second-level heading; ends with a line break."""
    blocks = [f"## {_text(evidence.name)}", _code(evidence.command)]
    for table in (*evidence.tables, *(one.as_table() for one in evidence.confusions)):
        blocks += _titled(table, evidence.name)
    for one in evidence.reliabilities:
        blocks += [*_titled(one.as_table(), evidence.name), f"Expected calibration error: {shown(one.ece)}"]
    blocks.append(bars_line(evidence.bars))
    blocks.append(
        "\n".join(
            f"- {_text(bar.name)}: {bar_line(bar)}: {verdict(bar) if bar.holds else f'**{verdict(bar)}**'}"
            for bar in evidence.bars
        )
    )
    if evidence.notes:
        blocks += ["Notes:", "\n".join(f"- {_text(note)}" for note in evidence.notes)]
    facts = {"seed": str(evidence.seed)} | dict(evidence.environment)
    blocks.append(_text(", ".join(f"{key} {value}" for key, value in facts.items())))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _text(value: Cell) -> str:
    """A value in which nothing acts as Markdown or HTML."""
    text = shown(value).replace("&", "&amp;")
    text = _ACTIVE.sub(lambda match: "&lt;" if match[0] == "<" else f"\\{match[0]}", text)
    return _LEADING.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", text)


def _code(text: str) -> str:
    """One line of code, whatever backticks it holds."""
    line = shown(text)
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    room = " " if longest else ""
    return f"{fence}{room}{line}{room}{fence}"


def _titled(table: Table, name: str) -> list[str]:
    """The blocks of one table; a title that only repeats the section's is left out."""
    title = [] if table.title in ("", name) else [f"### {_text(table.title)}"]
    rules = " | ".join("---" if is_words else "---:" for is_words in table.is_words)
    lines = [f"| {' | '.join(map(_text, table.columns))} |", f"| {rules} |"]
    lines += [f"| {' | '.join(map(_text, row))} |" for row in table.rows]
    return [*title, _text(table.note), "\n".join(lines)]
