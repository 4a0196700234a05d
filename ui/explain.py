"""`ragblame explain`: a trace looked up by the beginning of its id, its explanation as a table or JSON."""

import math
from dataclasses import asdict
from enum import Enum
from typing import Any
from uuid import UUID

import psycopg
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ragblame.errors import InputError
from ragblame.records import Attribution, Explanation, Json, Method, Support, SupportState, VerdictKind
from ragblame.trace_json import trace_to_json
from ragblame.ui.terminal import plain

_STYLES = {
    VerdictKind.GROUNDED: "green",
    VerdictKind.KNOWN_ALREADY: "cyan",
    VerdictKind.UNDETERMINED: "yellow",
    VerdictKind.DISTORTED: "bold red",
    VerdictKind.FABRICATED: "bold red",
}
_CANDIDATES = 5  # shown when a prefix fits several traces


def find_trace(conn: psycopg.Connection[Any], text: str) -> UUID:
    """The id of the one trace that begins with ``text`` (hexadecimal, dashes allowed).

    Raises ``InputError`` when it is no id, fits no trace or several.
    """
    digits = text.strip().replace("-", "").lower()
    if not digits or len(digits) > 32 or any(sign not in "0123456789abcdef" for sign in digits):
        raise InputError(
            f"{plain(text, 60)!r} is no trace id: copy it, or its beginning, from the triage page"
        )
    low, high = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    rows = conn.execute(
        "SELECT id FROM ragblame.trace WHERE id BETWEEN %s AND %s ORDER BY id LIMIT %s",
        (low, high, _CANDIDATES + 1),
    ).fetchall()
    if not rows:
        raise InputError(f"no trace begins with {text.strip()}: copy its id from the triage page")
    if len(rows) > 1:
        shown = ", ".join(str(row[0]) for row in rows[:_CANDIDATES])
        more = ", …" if len(rows) > _CANDIDATES else ""
        raise InputError(f"several traces begin with {text.strip()}: give more of the id ({shown}{more})")
    found: UUID = rows[0][0]
    return found


def explanation_to_json(explanation: Explanation) -> dict[str, Json]:
    """Everything as plain JSON values; numbers that JSON lacks become null, and token heats stay out."""
    record = asdict(explanation)
    record["trace"] = trace_to_json(explanation.trace)
    del record["heats"]  # by far the largest part, and only a picture reads it
    value = _plain_json(record)
    assert isinstance(value, dict)
    return value


def explanation_table(explanation: Explanation) -> Group:
    """What a person reads in a terminal: one row per span, then what could not be computed."""
    trace = explanation.trace
    shapley = {a.span: a for a in explanation.attributions if a.method is Method.SHAPLEY}
    verdicts = {verdict.span: verdict for verdict in explanation.verdicts}
    supports = {support.span: support for support in explanation.supports}
    table = Table(title=Text(plain(trace.question, 100) or "(no question)"), title_justify="left")
    table.add_column("span")
    table.add_column("verdict")
    table.add_column("reliance", justify="right")  # nats
    table.add_column("chunk")
    table.add_column("why", ratio=1)
    for span in explanation.spans:
        verdict, support, shares = verdicts.get(span.index), supports.get(span.index), shapley.get(span.index)
        reliance = "" if shares is None or shares.reliance is None else f"{shares.reliance:+.2f}"
        why = Text("")
        if verdict is not None:
            why = Text(plain(verdict.explanation))
            if verdict.cause is not None:
                why = Text(f"{verdict.cause.value}: ", style="bold") + why
            if verdict.fix is not None:
                why += Text(f" → {plain(verdict.fix)}", style="dim")
        table.add_row(
            Text(plain(trace.answer[span.start : span.end], 80)),
            Text(verdict.verdict.value, style=_STYLES[verdict.verdict]) if verdict else Text("-"),
            Text(reliance),
            Text(_chunk_name(explanation, shares, support)),
            why,
        )
    lines = [Text(f"trace {trace.id}, {_scorer(explanation)}", style="dim")]
    lines += [Text(plain(note), style="yellow") for note in explanation.notes]
    if supports and all(support.state is SupportState.ABSENT for support in supports.values()):
        lines.append(Text("no chunk says anything of this answer", style="yellow"))
    return Group(table, *lines)


def _chunk_name(explanation: Explanation, attribution: Attribution | None, support: Support | None) -> str:
    """The chunk with the largest share, else the one with the quoted evidence."""
    chunks = explanation.trace.chunks
    shares = () if attribution is None else attribution.shares
    fallback = None if support is None else support.position
    if shares and max(shares) > 0:
        chunk = chunks[shares.index(max(shares))]
    elif fallback is not None:
        chunk = next(chunk for chunk in chunks if chunk.position == fallback)
    else:
        return "-"
    name = chunk.source_id or ""
    return f"#{chunk.position + 1} {plain(name, 14)}".strip()


def _scorer(explanation: Explanation) -> str:
    scorer, fitness = explanation.scorer, explanation.fitness
    if scorer is None:
        return "no scorer: verdicts rest on the text alone"
    kind = "the chain's own model" if scorer.is_own_model else "a stand-in for the chain's model"
    fit = "" if fitness is None or fitness.is_fit else f"; not fit: {plain(fitness.reason)}"
    return f"scorer {plain(scorer.name)} ({kind}){fit}"


def _plain_json(value: Any) -> Json:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {str(key): _plain_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(entry) for entry in value]
    return str(value)
