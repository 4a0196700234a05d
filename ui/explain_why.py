"""`ragblame explain --why`: the chain behind every verdict of a stored trace, as text or JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

import psycopg
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ragblame.attribution.verdicts.provenance import Provenance
from ragblame.errors import InputError
from ragblame.records import Json
from ragblame.ui.explain import plain_json
from ragblame.ui.terminal import data, plain, write_json
from ragblame.ui.why import sections


def show_why(conn: psycopg.Connection[Any], trace_id: UUID, *, json_output: bool) -> None:
    """Print it for a stored trace. Raises ``InputError`` when the trace was not attributed yet."""
    from ragblame.attribution.jobs.provenance import read_provenance
    from ragblame.attribution.jobs.stored import read_explanation

    explanation = read_explanation(conn, trace_id, with_heats=False)
    if explanation is None:
        raise InputError(
            f"trace {trace_id} has no verdicts yet: run `ragblame worker`, or `ragblame explain {trace_id}`"
        )
    found = read_provenance(conn, explanation)
    if json_output:
        write_json({"trace": str(trace_id), "verdicts": why_to_json(found)})
    else:
        data().print(why_table(found))


def why_table(found: Sequence[Provenance]) -> Group:
    """One table a verdict: link, fact, value."""
    tables = []
    for one in found:
        cause = "" if one.cause is None else f": {one.cause.value}"
        title = Text(f"span {one.span}  “{plain(one.words, 80)}”  {one.verdict.value}{cause}", style="bold")
        table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        for section in sections(one):
            for number, (name, value) in enumerate(section.facts):
                is_bad = name == "Check" and not one.is_whole
                table.add_row(
                    Text("" if number else section.title),
                    Text(name),
                    Text(plain(value), style="bold red" if is_bad else ""),
                )
        tables.append(table)
    if not tables:
        return Group(Text("no verdict: the answer holds nothing that could be checked", style="yellow"))
    return Group(*[part for table in tables for part in (table, Text(""))])


def why_to_json(found: Sequence[Provenance]) -> list[Json]:
    """The same as plain JSON values, with everything the record holds."""
    said: list[Json] = []
    for one in found:
        record = plain_json(asdict(one))
        assert isinstance(record, dict)
        if one.factors is not None:
            factors = record["factors"]
            assert isinstance(factors, dict)
            factors["traffic"] = one.factors.traffic
        record["is_whole"] = one.is_whole
        said.append(record)
    return said
