"""The one place that writes an Explanation to PostgreSQL: whole, replacing the earlier one whole.

Everything happens in the caller's transaction, so a reader sees the results of one run or of the next, never
a mixture, and a worker that dies in the middle leaves the earlier results as they were. stored.py reads them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from ragblame.attribution.jobs.faults import database_faults
from ragblame.attribution.jobs.signatures import weigh_spans, with_traffic
from ragblame.attribution.jobs.stored import fitness_to_json, pack_log_probs, read_explanation
from ragblame.attribution.jobs.stored_corpus import (
    EVIDENCE_COLUMNS,
    LOOK_COLUMNS,
    evidence_rows,
    lines_to_array,
    look_rows,
)
from ragblame.attribution.jobs.stored_premises import premises_to_json
from ragblame.attribution.jobs.triage import lock_items, renew_items
from ragblame.attribution.verdicts.severity import Factors
from ragblame.errors import InputError
from ragblame.json_values import clean_text
from ragblame.records import Alignment, Attribution, Explanation, Premises, Support, Verdict

if TYPE_CHECKING:
    import psycopg

__all__ = ["read_explanation", "write_explanation", "write_failure"]

MAX_MESSAGE: Final = 2_000  # code points kept of a failure's message

# A rerun replaces these; triage_item and review hold people's work and are carried over (triage.py).
_REWRITTEN: Final = (
    "alignment", "answer_span", "attribution", "share", "coalition_values", "token_heat", "verdict",
    "attribution_run", "corpus_look", "corpus_evidence",
)  # fmt: skip


def write_explanation(conn: "psycopg.Connection[Any]", explanation: Explanation) -> Explanation:
    """Replace everything stored about the trace's attribution by ``explanation`` and renew its queue items.

    Returns it as stored: severities are raised by how often the same failure was seen.
    The trace itself must be stored already and is not written. Two writers of one trace take turns.
    Raises ``InputError`` when the trace is not stored or the explanation does not fit together, and
    ``DatabaseError`` when PostgreSQL fails; the caller's transaction is then as it was before the call.
    """
    from psycopg.rows import tuple_row

    _check(explanation)
    trace_id = explanation.trace.id
    with (
        database_faults("results", trace_id),
        conn.transaction(),
        conn.cursor(row_factory=tuple_row) as cursor,
    ):
        cursor.execute("SELECT 1 FROM ragblame.trace WHERE id = %s FOR NO KEY UPDATE", (trace_id,))
        if cursor.fetchone() is None:
            raise InputError(f"no trace {trace_id}: store it first with ragblame.traces.write_traces")
        before = lock_items(cursor, trace_id)
        factors = weigh_spans(cursor, explanation)
        explanation = with_traffic(explanation, factors)
        for table in _REWRITTEN:
            cursor.execute(f"DELETE FROM ragblame.{table} WHERE trace_id = %s", (trace_id,))
        for table, columns, rows in _tables(explanation, factors):
            _copy(cursor, table, columns, rows)
        renew_items(cursor, explanation, before)
    return explanation


def write_failure(conn: "psycopg.Connection[Any]", trace_id: UUID, message: str) -> None:
    """Record that the trace could not be attributed, in one line that ends with the next step.

    Results of an earlier run stay (``read_explanation`` labels them). Runs in the caller's transaction.
    Raises ``DatabaseError`` when PostgreSQL fails.
    """
    line = clean_text(" ".join(message.split()))[:MAX_MESSAGE]
    with database_faults("failure", trace_id), conn.transaction():
        conn.execute(
            "INSERT INTO ragblame.attribution_run (trace_id, state, error) VALUES (%s, 'failed', %s) "
            "ON CONFLICT (trace_id) DO UPDATE "
            "SET state = 'failed', error = excluded.error, finished_at = now()",
            (trace_id, line or "attribution failed without a message; run the worker with --debug"),
        )


def _tables(
    e: Explanation, factors: Mapping[int, Factors]
) -> Iterator[tuple[str, str, list[tuple[Any, ...]]]]:
    """(table, columns, rows) of everything but the queue."""
    trace_id = e.trace.id
    supports = {support.span: support for support in e.supports}
    premises = {each.span: each for each in e.premises}
    yield (
        "attribution_run",
        "trace_id state scorer revision is_own_model is_fit fitness notes "
        "scored_coalitions forwards backwards tokens seconds program thresholds_digest",
        [_run_row(e)],
    )
    yield (
        "alignment",
        "trace_id position state message start_at end_at found_start found_end absent_starts absent_ends "
        "is_ambiguous",
        [_alignment_row(trace_id, a) for a in e.alignments],
    )
    yield (
        "answer_span",
        "trace_id span start_at end_at kind sentence_start sentence_end",
        [
            (trace_id, s.index, s.start, s.end, s.kind.value, s.sentence_start, s.sentence_end)
            for s in e.spans
        ],
    )
    yield (
        "attribution",
        "trace_id span method v_all v_none reliance noise_floor completeness_gap settings_hash "
        "scored_coalitions forwards backwards tokens seconds",
        [_attribution_row(trace_id, a) for a in e.attributions],
    )
    positions = sorted(chunk.position for chunk in e.trace.chunks)
    yield (
        "share",
        "trace_id span method position value standard_error",
        [
            (trace_id, a.span, a.method.value, position, value, error)
            for a in e.attributions
            for position, value, error in zip(
                positions, a.shares, a.standard_errors or [None] * len(positions), strict=True
            )
        ],
    )
    if (c := e.coalitions) is not None:
        table = pack_log_probs(c.log_probs)
        yield (
            "coalition_values",
            "trace_id positions masks token_starts token_ends log_probs",
            [(trace_id, *map(_array, (c.positions, c.masks, c.token_starts, c.token_ends)), table)],
        )
    yield (
        "token_heat",
        "trace_id span position method starts ends heat",
        [
            (trace_id, h.span, h.position, h.method.value, *map(_array, (h.starts, h.ends, h.values)))
            for h in e.heats
        ],
    )
    yield (
        "verdict",
        "trace_id span verdict cause basis support support_rule evidence_position evidence_start "
        "evidence_end stated support_positions evidence confidence severity explanation fix other_causes "
        "reliance_measurable thresholds_version support_model support_probability premises "
        "probability is_calibrated harm seen prompt_evidence",
        [
            (
                *_verdict_row(trace_id, verdict, supports[verdict.span], premises.get(verdict.span)),
                *_factors_row(factors.get(verdict.span)),
                lines_to_array(verdict.prompt_evidence),
            )
            for verdict in e.verdicts
        ],
    )
    yield "corpus_look", f"trace_id {LOOK_COLUMNS}", look_rows(e)
    yield "corpus_evidence", f"trace_id place {EVIDENCE_COLUMNS}", evidence_rows(e)


def _run_row(e: Explanation) -> tuple[Any, ...]:
    scorer, fitness, cost = e.scorer, e.fitness, e.cost
    return (
        e.trace.id, "done", scorer and clean_text(scorer.name), scorer and clean_text(scorer.revision),
        scorer and scorer.is_own_model, fitness and fitness.is_fit, fitness_to_json(fitness),
        [clean_text(note) for note in e.notes],
        cost.scored_coalitions, cost.forwards, cost.backwards, cost.tokens, cost.seconds,
        e.program, e.thresholds_digest,
    )  # fmt: skip


def _alignment_row(trace_id: UUID, a: Alignment) -> tuple[Any, ...]:
    return (
        trace_id, a.position, a.state.value, a.message, a.start, a.end, *(a.found or (None, None)),
        _array([start for start, _ in a.absent]), _array([end for _, end in a.absent]), a.is_ambiguous,
    )  # fmt: skip


def _attribution_row(trace_id: UUID, a: Attribution) -> tuple[Any, ...]:
    return (
        trace_id, a.span, a.method.value, a.v_all, a.v_none, a.reliance, a.noise_floor, a.completeness_gap,
        a.settings_hash,
        a.cost.scored_coalitions, a.cost.forwards, a.cost.backwards, a.cost.tokens, a.cost.seconds,
    )  # fmt: skip


def _verdict_row(trace_id: UUID, v: Verdict, s: Support, premises: Premises | None) -> tuple[Any, ...]:
    return (
        trace_id, v.span, v.verdict.value, v.cause and v.cause.value, v.basis.value, s.state.value, s.rule,
        s.position, s.evidence_start, s.evidence_end, s.stated and clean_text(s.stated),
        list(s.other_positions), list(v.evidence), v.confidence, v.severity, clean_text(v.explanation),
        v.fix and clean_text(v.fix), [cause.value for cause in v.other_causes], v.reliance_measurable,
        v.thresholds_version, s.model and clean_text(s.model), s.probability,
        None if premises is None else premises_to_json(premises),
    )  # fmt: skip


def _factors_row(factors: Factors | None) -> tuple[Any, ...]:
    if factors is None:
        return (None, None, None, None)
    return (factors.probability, factors.is_calibrated, factors.harm, factors.seen)


def _array(numbers: Sequence[float]) -> str:
    """Numbers as PostgreSQL writes an array: ten times faster than the driver's list adapter."""
    return "{" + ",".join(map(str, numbers)) + "}"


def _copy(cursor: "psycopg.Cursor[Any]", table: str, columns: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        names = columns.replace(" ", ", ")
        with cursor.copy(f"COPY ragblame.{table} ({names}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)


def _check(e: Explanation) -> None:
    """An explanation that contradicts itself is refused before anything stored is touched."""
    numbers = {span.index for span in e.spans}
    judged = {verdict.span for verdict in e.verdicts}
    problem = ""
    if len(numbers) != len(e.spans) or len({(span.start, span.end) for span in e.spans}) != len(e.spans):
        problem = "two spans share a number or their offsets"
    elif len(judged) != len(e.verdicts) or not judged <= numbers:
        problem = "verdicts and spans do not match"
    elif sorted(support.span for support in e.supports) != sorted(judged):
        problem = "every verdict needs exactly one support"
    elif any(len(a.shares) != len(e.trace.chunks) or a.span not in numbers for a in e.attributions):
        problem = "an attribution needs a known span and one share per chunk"
    elif any(
        a.standard_errors is not None and len(a.standard_errors) != len(a.shares) for a in e.attributions
    ):
        problem = "standard errors are one per share, or none at all"
    if problem:
        raise InputError(f"explanation of trace {e.trace.id} does not fit together: {problem}; report this")
