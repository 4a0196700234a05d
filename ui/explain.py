"""`ragblame explain`: a trace looked up by the beginning of its id, its explanation as a table or JSON.

With chunks left out (``--without 2,3``) also what the spans would be worth without them, read off the table
of coalitions: exact, and no model is asked again.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ragblame.errors import InputError
from ragblame.records import Attribution, Explanation, Json, Method, Support, SupportState, VerdictKind
from ragblame.trace_json import trace_to_json
from ragblame.ui.terminal import plain

if TYPE_CHECKING:
    from ragblame.attribution.methods.lime import LimeResult
    from ragblame.attribution.methods.what_if import WhatIf

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
    """Everything as plain JSON values; numbers that JSON lacks become null, and token heats stay out.

    ``lime`` beside the record's own fields: the surrogate read off the coalitions, null without them.
    """
    record = asdict(explanation)
    record["trace"] = trace_to_json(explanation.trace)
    del record["heats"]  # by far the largest part, and only a picture reads it
    lime = _lime(explanation)
    record["lime"] = None if lime is None else _lime_to_json(lime)
    value = plain_json(record)
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
    surrogates = _surrogates(explanation)
    if surrogates:
        table.add_column("LIME")  # its chunk, and how far a weight per chunk explains v at all
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
            for row in verdict.corpus_evidence[:1]:
                why += Text(f" (in the corpus: {plain(row.table, 60)} {plain(row.row_id, 60)})", style="dim")
        table.add_row(
            Text(plain(trace.answer[span.start : span.end], 80)),
            Text(verdict.verdict.value, style=_STYLES[verdict.verdict]) if verdict else Text("-"),
            Text(reliance),
            Text(_chunk_name(explanation, shares, support)),
            *([Text(surrogates.get(span.index, "-"))] if surrogates else []),
            why,
        )
    lines = [Text(f"trace {trace.id}, {_scorer(explanation)}", style="dim")]
    lines += [Text(plain(note), style="yellow") for note in explanation.notes]
    if supports and all(support.state is SupportState.ABSENT for support in supports.values()):
        lines.append(Text("no chunk says anything of this answer", style="yellow"))
    return Group(table, *lines)


def chunk_positions(text: str, explanation: Explanation) -> tuple[int, ...]:
    """Chunk positions from numbers as the screens show them, counted from 1 and parted by commas: "2,3".

    Raises ``InputError`` naming what is no number of a chunk of this answer.
    """
    count = len(explanation.trace.chunks)
    numbers = [part.strip().removeprefix("#") for part in text.split(",")]
    for number in numbers:
        if not (number.isascii() and number.isdigit() and 1 <= int(number) <= count):
            raise InputError(
                f"{plain(number, 20)!r} is no chunk of this answer: give numbers from 1 to {count} parted by "
                "commas, such as 2,3"
            )
    return tuple(sorted({int(number) - 1 for number in numbers}))


def what_if_table(explanation: Explanation, without: Sequence[int]) -> Table:
    """Each span's log-probability and probability with all chunks and without these, exactly.

    ``without``: chunk positions. Raises ``InputError`` when no coalitions were scored for the answer or one
    of the chunks does not stand in the prompt.
    """
    named = ", ".join(f"#{position + 1}" for position in without)
    table = Table(title=Text(f"without {named}"), title_justify="left")
    table.add_column("span")
    for name in ("nats with all", f"without {named}", "change", "probability", f"without {named}"):
        table.add_column(name, justify="right")
    for span, found in zip(explanation.spans, _what_ifs(explanation, without), strict=True):
        table.add_row(
            Text(plain(explanation.trace.answer[span.start : span.end], 60)),
            f"{found.v_all:.2f}",
            f"{found.v_without:.2f}",
            f"{found.change:+.2f}",
            f"{found.probability_all:.1%}",
            f"{found.probability_without:.1%}",
        )
    return table


def what_if_to_json(explanation: Explanation, without: Sequence[int]) -> dict[str, Json]:
    """The same as plain JSON values: chunk positions counted from 0, nats and probabilities by span.

    Raises like ``what_if_table``.
    """
    spans: list[Json] = [
        {
            "span": found.span,
            "v_all": found.v_all,
            "v_without": found.v_without,
            "change": found.change,
            "probability_all": found.probability_all,
            "probability_without": found.probability_without,
            "probability_change": found.probability_change,
        }
        for found in _what_ifs(explanation, without)
    ]
    return {"without": list(without), "spans": spans}


def _what_ifs(explanation: Explanation, without: Sequence[int]) -> "list[WhatIf]":
    from ragblame.attribution.methods.what_if import what_if

    values = explanation.coalitions
    if values is None:
        raise InputError(
            "no coalitions were scored for this answer, so nothing can be left out; the notes of "
            "`ragblame explain` say why"
        )
    return [what_if(values, span, without) for span in explanation.spans]


def _lime(explanation: Explanation) -> "LimeResult | None":
    """LIME read off the stored coalitions; None without them, or where they were sampled and lack some."""
    from ragblame.attribution.methods.lime import lime_from_table

    values = explanation.coalitions
    if values is None or not values.positions or len(values.masks) < 1 << len(values.positions):
        return None
    return lime_from_table(values, explanation.spans, len(explanation.trace.chunks))


def _lime_to_json(result: "LimeResult") -> list[Json]:
    """One object a span: nats by chunk position, R² on what was fitted and on fresh coalitions, or null."""
    return [
        {
            "span": attribution.span,
            "shares": list(attribution.shares),
            "r_squared": fitted,
            "held_out_r_squared": unseen,
        }
        for attribution, fitted, unseen in zip(
            result.attributions, result.r_squared, result.held_out_r_squared, strict=True
        )
    ]


def _surrogates(explanation: Explanation) -> dict[int, str]:
    """What LIME says of each span: its first chunk and its R², on fresh coalitions where there are any."""
    result = _lime(explanation)
    if result is None:
        return {}
    said = {}
    for attribution, own, unseen in zip(
        result.attributions, result.r_squared, result.held_out_r_squared, strict=True
    ):
        best = max(range(len(attribution.shares)), key=lambda i: attribution.shares[i])
        fit = unseen if unseen is not None else own
        if fit is not None and attribution.shares[best] > 0:
            said[attribution.span] = f"#{best + 1} R² {fit:.2f}" + ("" if unseen is not None else " (fitted)")
    return said


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


def plain_json(value: Any) -> Json:
    """A record's values as JSON has them: enums by value, what is not finite as null, the rest as text."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {str(key): plain_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(entry) for entry in value]
    return str(value)
