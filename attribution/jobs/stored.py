"""An Explanation read back from PostgreSQL, and the packed forms that only results.py and this file know."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import UUID

import numpy as np

from ragblame.attribution.jobs.faults import database_faults
from ragblame.attribution.jobs.stored_corpus import lines_from_array, read_evidence, read_looks
from ragblame.attribution.jobs.stored_premises import premises_from_json
from ragblame.records import (
    Alignment,
    AlignmentState,
    Attribution,
    Basis,
    Cause,
    CoalitionValues,
    CorpusEvidence,
    Cost,
    Explanation,
    Fitness,
    Method,
    ScorerRef,
    Span,
    SpanKind,
    Support,
    SupportState,
    TokenHeat,
    Verdict,
    VerdictKind,
)
from ragblame.traces import read_trace

if TYPE_CHECKING:
    import psycopg

STALE_NOTE: Final = "These are the results of an earlier run; the last one failed: "

Row: TypeAlias = tuple[Any, ...]
Rows: TypeAlias = Callable[[str, str, str], list[Row]]  # (table, columns, order) -> rows of the trace

_METHOD_ORDER: Final = {method: index for index, method in enumerate(Method)}


def read_explanation(
    conn: "psycopg.Connection[Any]", trace_id: UUID, *, with_heats: bool = True
) -> Explanation | None:
    """The stored explanation, or None when the trace was not attributed yet (or only failed).

    Equal to what was written, but ``CoalitionValues.log_probs`` and ``TokenHeat.values`` are rounded to
    float32, and attributions and heats come by span, then in the order of ``Method``. When the last run
    failed over earlier results, these are returned with a note that says so. Without ``with_heats`` the token
    heats, by far the largest part, stay in the database.
    Raises ``InputError`` for an unknown trace, ``DatabaseError`` when PostgreSQL fails.
    """
    from psycopg.rows import tuple_row

    with database_faults("results", trace_id), conn.cursor(row_factory=tuple_row) as cursor:

        def rows(table: str, columns: str, order: str) -> list[Row]:
            names = ", ".join(columns.split())
            query = f"SELECT {names} FROM ragblame.{table} WHERE trace_id = %s ORDER BY {order}"
            return cursor.execute(query, (trace_id,)).fetchall()

        while True:  # a rerun may commit between two of our statements: then the first and last row differ
            trace = read_trace(conn, trace_id)
            run = rows("attribution_run", _RUN_COLUMNS, "trace_id")
            parts = _read_parts(rows, with_heats)
            if rows("attribution_run", _RUN_COLUMNS, "trace_id") == run:
                break
    if not run or (run[0][0] == "failed" and not parts["spans"]):
        return None
    state, error, scorer, revision, is_own_model, fitness, notes, *cost, program, digest, _ = run[0]
    return Explanation(
        trace=trace,
        scorer=None
        if scorer is None
        else ScorerRef(name=scorer, revision=revision, is_own_model=is_own_model),
        fitness=fitness_from_json(fitness),
        notes=(*notes, *([STALE_NOTE + error] if state == "failed" else [])),
        cost=_cost(cost),
        program=program,
        thresholds_digest=digest,
        **parts,
    )


_RUN_COLUMNS: Final = (
    "state error scorer revision is_own_model fitness notes "
    "scored_coalitions forwards backwards tokens seconds program thresholds_digest xmin::text"
)
_ALIGNMENT_COLUMNS: Final = (
    "position state message start_at end_at found_start found_end absent_starts absent_ends is_ambiguous"
)
_VERDICT_COLUMNS: Final = (
    "span verdict cause basis confidence severity explanation fix evidence other_causes reliance_measurable "
    "thresholds_version prompt_evidence"
)
_SUPPORT_COLUMNS: Final = (
    "span support support_rule evidence_position evidence_start evidence_end stated support_positions "
    "support_model support_probability"
)


def pack_log_probs(log_probs: Sequence[Sequence[float]]) -> bytes:
    """[coalition][token] in nats as little-endian float32, row-major."""
    return np.asarray(log_probs, dtype="<f4").tobytes()


def unpack_log_probs(data: bytes, coalitions: int) -> tuple[tuple[float, ...], ...]:
    """The inverse of ``pack_log_probs``: one row per coalition."""
    if coalitions == 0:
        return ()
    table = np.frombuffer(data, dtype="<f4").reshape(coalitions, -1).astype(np.float64)
    return tuple(tuple(row) for row in table.tolist())


def fitness_to_json(fitness: Fitness | None) -> str | None:
    """As stored in attribution_run.fitness; numbers are text because JSON has no infinity."""
    if fitness is None:
        return None
    return json.dumps(
        {
            "is_fit": fitness.is_fit,
            "answer_nats": _nats_text(fitness.answer_nats),
            "unigram_nats": _nats_text(fitness.unigram_nats),
            "reason": fitness.reason,
        }
    )


def fitness_from_json(value: dict[str, Any] | None) -> Fitness | None:
    """The inverse of ``fitness_to_json``, from the parsed object."""
    if value is None:
        return None
    return Fitness(
        is_fit=value["is_fit"],
        answer_nats=_nats(value["answer_nats"]),
        unigram_nats=_nats(value["unigram_nats"]),
        reason=value["reason"],
    )


def _nats_text(value: float | None) -> str | None:
    return None if value is None else repr(float(value))


def _nats(text: str | None) -> float | None:
    return None if text is None else float(text)


def _read_parts(rows: Rows, with_heats: bool) -> dict[str, Any]:
    """Everything of an Explanation that stands in a table of its own."""
    found = read_evidence(rows)
    return {
        "alignments": tuple(
            Alignment(
                position=position,
                state=AlignmentState(state),
                message=message,
                start=start,
                end=end,
                found=None if found_start is None else (found_start, found_end),
                absent=tuple(zip(absent_starts, absent_ends, strict=True)),
                is_ambiguous=is_ambiguous,
            )
            for (
                position,
                state,
                message,
                start,
                end,
                found_start,
                found_end,
                absent_starts,
                absent_ends,
                is_ambiguous,
            ) in rows("alignment", _ALIGNMENT_COLUMNS, "position")
        ),
        "spans": tuple(
            Span(
                index=index,
                start=start,
                end=end,
                kind=SpanKind(kind),
                sentence_start=sentence_start,
                sentence_end=sentence_end,
            )
            for index, start, end, kind, sentence_start, sentence_end in rows(
                "answer_span", "span start_at end_at kind sentence_start sentence_end", "span"
            )
        ),
        "attributions": _attributions(rows),
        "heats": _heats(rows) if with_heats else (),
        "supports": tuple(_support(row) for row in rows("verdict", _SUPPORT_COLUMNS, "span")),
        "verdicts": tuple(_verdict(row, found) for row in rows("verdict", _VERDICT_COLUMNS, "span")),
        "corpus_looks": read_looks(rows),
        "premises": tuple(
            premises_from_json(span, record)
            for span, record in rows("verdict", "span premises", "span")
            if record is not None
        ),
        "coalitions": _coalitions(rows),
    }


def _attributions(rows: Rows) -> tuple[Attribution, ...]:
    shares: dict[tuple[int, str], list[float]] = {}
    errors: dict[tuple[int, str], list[float]] = {}
    for span, method, value, error in rows(
        "share", "span method value standard_error", "span, method, position"
    ):
        shares.setdefault((span, method), []).append(value)
        if error is not None:
            errors.setdefault((span, method), []).append(error)
    found = [
        Attribution(
            span=span,
            method=Method(method),
            shares=tuple(shares.get((span, method), ())),
            standard_errors=tuple(errors[span, method]) if (span, method) in errors else None,
            v_all=v_all,
            v_none=v_none,
            reliance=reliance,
            noise_floor=noise_floor,
            completeness_gap=gap,
            settings_hash=settings_hash,
            cost=_cost(cost),
        )
        for span, method, v_all, v_none, reliance, noise_floor, gap, settings_hash, *cost in rows(
            "attribution",
            "span method v_all v_none reliance noise_floor completeness_gap settings_hash "
            "scored_coalitions forwards backwards tokens seconds",
            "span",
        )
    ]
    return tuple(sorted(found, key=lambda a: (a.span, _METHOD_ORDER[a.method])))


def _heats(rows: Rows) -> tuple[TokenHeat, ...]:
    found = [
        TokenHeat(
            span=span,
            position=position,
            method=Method(method),
            starts=tuple(starts),
            ends=tuple(ends),
            values=tuple(values),
        )
        for span, position, method, starts, ends, values in rows(
            "token_heat", "span position method starts ends heat::float8[]", "span, position"
        )
    ]
    return tuple(sorted(found, key=lambda h: (h.span, _METHOD_ORDER[h.method], h.position)))


def _coalitions(rows: Rows) -> CoalitionValues | None:
    for positions, masks, starts, ends, data in rows(
        "coalition_values", "positions masks token_starts token_ends log_probs", "trace_id"
    ):
        return CoalitionValues(
            positions=tuple(positions),
            masks=tuple(masks),
            token_starts=tuple(starts),
            token_ends=tuple(ends),
            log_probs=unpack_log_probs(data, len(masks)),
        )
    return None


def _support(row: Row) -> Support:
    span, state, rule, position, start, end, stated, others, model, probability = row
    return Support(
        span=span,
        state=SupportState(state),
        rule=rule,
        position=position,
        evidence_start=start,
        evidence_end=end,
        stated=stated,
        other_positions=tuple(others),
        model=model,
        probability=probability,
    )


def _verdict(row: Row, found: Mapping[int, tuple[CorpusEvidence, ...]]) -> Verdict:
    """``found``: rows of the corpus by span."""
    span, kind, cause, basis, confidence, severity, explanation, fix, evidence, others, *rest = row
    is_measurable, version, lines = rest
    return Verdict(
        span=span,
        verdict=VerdictKind(kind),
        cause=None if cause is None else Cause(cause),
        basis=Basis(basis),
        confidence=confidence,
        severity=severity,
        explanation=explanation,
        fix=fix,
        evidence=tuple(evidence),
        other_causes=tuple(Cause(other) for other in others),
        reliance_measurable=is_measurable,
        thresholds_version=version,
        corpus_evidence=found.get(span, ()),
        prompt_evidence=lines_from_array(lines),
    )


def _cost(row: Sequence[Any]) -> Cost:
    scored_coalitions, forwards, backwards, tokens, seconds = row
    return Cost(
        scored_coalitions=scored_coalitions,
        forwards=forwards,
        backwards=backwards,
        tokens=tokens,
        seconds=seconds,
    )
