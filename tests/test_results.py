"""Explanations in PostgreSQL: read back equal, replaced, never doubled, with people's work carried over."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragblame import database
from ragblame.attribution.jobs.results import read_explanation, write_explanation, write_failure
from ragblame.errors import DatabaseError, InputError
from ragblame.records import (
    Alignment,
    AlignmentState,
    Attribution,
    Basis,
    Cause,
    Chunk,
    CoalitionValues,
    CorpusEvidence,
    CorpusLook,
    CorpusSearch,
    Cost,
    Explanation,
    Fitness,
    Message,
    Method,
    PromptLine,
    ScorerRef,
    Span,
    SpanKind,
    Support,
    SupportState,
    TokenHeat,
    Trace,
    Verdict,
    VerdictKind,
)
from ragblame.traces import new_trace_id, write_traces

Connection = psycopg.Connection[Any]

ATTRIBUTION_TABLES = (
    "attribution_run", "alignment", "answer_span", "attribution", "share", "coalition_values", "token_heat",
    "verdict", "triage_item", "corpus_look", "corpus_evidence",
)  # fmt: skip
ANSWER = "Restart the relay. It takes 40 seconds. Then call Ann."
SENTENCES = ((0, 18), (19, 39), (40, 54))


def f32(value: float) -> float:
    """The nearest float32, as a Python float."""
    return float(np.float32(value))


def make_trace(**changes: Any) -> Trace:
    """A stored-looking trace with two chunks, one of a known row and one anonymous."""
    given_fields: dict[str, Any] = {
        "id": new_trace_id(),
        "app": "support",
        "question": "How do I restart the relay?",
        "chunks": (
            Chunk(position=0, text="Restart takes 30 seconds.", source_table="ragblame.chunk", source_id="7"),
            Chunk(position=1, text="Call Ann.", source_id="p2"),
        ),
        "prompt": (Message(role="human", text="Restart takes 30 seconds. Call Ann. How?"),),
        "answer": ANSWER,
        "started_at": datetime.now(UTC),
    }
    return Trace(**{**given_fields, **changes})


CORPUS_EVIDENCE = CorpusEvidence(
    table="public.runbooks",
    row_id="r-17",
    state=SupportState.CONTRADICTED,
    rule="another value for the subject",
    cause=Cause.RANKED_TOO_LOW,
    start=3,
    end=40,
    quote="Restart takes 30 seconds.",
    stated="30 seconds",
    rank=14,
    is_exact=True,
    question_rank=2,
    found_by=("query, nearest vectors", "claim, all words"),
    passes_filter=True,
    is_newer=False,
    created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    joined_with="r-18",
)


def make_look(span: int) -> CorpusLook:
    """What the corpus was asked about a span."""
    return CorpusLook(
        span=span,
        table="public.runbooks",
        rows=1_000,
        k=4,
        is_k_known=False,
        is_filtered=True,
        seconds=0.25,
        searches=(
            CorpusSearch(
                text="claim",
                way="all words",
                is_filtered=False,
                is_exact=False,
                is_complete=True,
                found=3,
                seconds=0.125,
                note="approximate",
            ),
        ),
        notes=("Neighbours are not known.",),
    )


def make_verdict(span: int, *, is_flagged: bool, severity: float = 0.5, **changes: Any) -> Verdict:
    """A distorted or a grounded span."""
    given_fields: dict[str, Any] = {
        "span": span,
        "verdict": VerdictKind.DISTORTED if is_flagged else VerdictKind.GROUNDED,
        "cause": Cause.DISTORTION if is_flagged else None,
        "basis": Basis.ATTRIBUTION_AND_SUPPORT,
        "confidence": None,
        "severity": severity if is_flagged else 0.0,
        "explanation": "The answer says 40, the chunk says 30.",
        "fix": "Check the prompt." if is_flagged else None,
        "evidence": (0,) if is_flagged else (),
        "corpus_evidence": (CORPUS_EVIDENCE,) if is_flagged else (),
        "prompt_evidence": (PromptLine(message=0, start=3, end=9),) if is_flagged else (),
    }
    return Verdict(**{**given_fields, **changes})


def make_explanation(
    trace: Trace,
    flagged: Sequence[int] = (1,),
    offsets: Sequence[tuple[int, int]] = SENTENCES,
    **changes: Any,
) -> Explanation:
    """An explanation that uses every field at least once; ``flagged`` are positions in ``offsets``."""
    spans = tuple(
        Span(index=i, start=start, end=end, kind=SpanKind.CLAUSE, sentence_start=start, sentence_end=end)
        for i, (start, end) in enumerate(offsets)
    )
    given_fields: dict[str, Any] = {
        "trace": trace,
        "scorer": ScorerRef(name="small", revision="sha256:ab", is_own_model=False),
        "fitness": Fitness(is_fit=True, answer_nats=-0.25, unigram_nats=float("-inf"), reason="Fits."),
        "alignments": (
            Alignment(
                position=0,
                state=AlignmentState.PARTIAL,
                message=0,
                start=0,
                end=25,
                found=(0, 25),
                absent=((7, 9), (25, 31)),
                is_ambiguous=True,
            ),
            Alignment(position=1, state=AlignmentState.MISSING),
        ),
        "spans": spans,
        "attributions": tuple(
            Attribution(
                span=span.index,
                method=method,
                shares=(1 / 3 + span.index, -0.125),
                v_all=-0.5,
                v_none=-2.0,
                reliance=1.5,
                noise_floor=1e-7,
                completeness_gap=1e-9 if method is Method.SHAPLEY else None,
                settings_hash="abc",
                cost=Cost(scored_coalitions=4, forwards=2, backwards=1, tokens=99, seconds=0.25),
            )
            for span in spans
            for method in (Method.SHAPLEY, Method.ROLLOUT)
        ),
        "heats": (
            TokenHeat(
                span=0, position=0, method=Method.INPUT_X_GRADIENT, starts=(0, 8), ends=(7, 13),
                values=(f32(0.1), -2.5),
            ),
        ),
        "supports": tuple(
            Support(
                span=span.index,
                state=SupportState.CONTRADICTED,
                rule="number with subject",
                position=0,
                evidence_start=0,
                evidence_end=25,
                stated="30 seconds",
                other_positions=(1,),
                model="reader@ab12",
                probability=1 / 3,
            )
            for span in spans
        ),
        "verdicts": tuple(
            make_verdict(
                span.index,
                is_flagged=span.index in flagged,
                confidence=0.75,
                other_causes=(Cause.BORROWED,),
                reliance_measurable=False,
                thresholds_version="v1",
            )
            for span in spans
        ),
        "corpus_looks": tuple(make_look(number) for number in flagged),
        "coalitions": CoalitionValues(
            positions=(0, 1),
            masks=(0, 1, 2, 3),
            token_starts=(0, 8),
            token_ends=(7, 11),
            log_probs=tuple((f32(-0.1 * mask), f32(-3.3)) for mask in range(4)),
        ),
        "notes": ("Rollout needs local weights.",),
        "program": "0.1.0",
        "thresholds_digest": "59e609c2c3e4c778",
        "cost": Cost(scored_coalitions=4, forwards=3, backwards=2, tokens=12345678901, seconds=1.5),
    }  # fmt: skip
    return Explanation(**{**given_fields, **changes})


def store(conn: Connection, trace: Trace) -> Trace:
    """Write a trace without a job."""
    assert write_traces(conn, [trace], enqueue=False) == 1
    return trace


def items(conn: Connection, trace_id: UUID) -> dict[int, tuple[Any, ...]]:
    """Span -> (state, assignee, version, severity) of the trace's queue items."""
    rows = conn.execute(
        "SELECT span, state, assignee, version, severity FROM triage_item WHERE trace_id = %s", (trace_id,)
    )
    return {row[0]: row[1:] for row in rows}


def review(conn: Connection, trace_id: UUID, span: int, offsets: tuple[int, int]) -> UUID:
    """What the triage page writes when a person decides."""
    review_id = new_trace_id()
    conn.execute(
        "INSERT INTO review (trace_id, id, span, start_at, end_at, reviewer, verdict) "
        "VALUES (%s, %s, %s, %s, %s, 'ann', 'fabricated')",
        (trace_id, review_id, span, *offsets),
    )
    conn.execute(
        "UPDATE triage_item SET state = 'reviewed', assignee = 'ann', version = version + 1, "
        "updated_at = now() + interval '1 ms' WHERE trace_id = %s AND span = %s",
        (trace_id, span),
    )
    return review_id


def test_reads_back_equal(connection: Connection) -> None:
    """Every field of an explanation comes back as it was written."""
    explanation = make_explanation(store(connection, make_trace()))
    write_explanation(connection, explanation)
    assert read_explanation(connection, explanation.trace.id) == explanation


def test_reads_back_the_least_there_can_be(connection: Connection) -> None:
    """No chunks, no answer, no scorer: still an explanation, and None only where nothing was attributed."""
    trace = store(connection, make_trace(chunks=(), answer="", prompt=()))
    assert read_explanation(connection, trace.id) is None
    empty = Explanation(
        trace=trace, scorer=None, fitness=None, alignments=(), spans=(), attributions=(), heats=(),
        supports=(), verdicts=(), coalitions=None,
    )  # fmt: skip
    write_explanation(connection, empty)
    assert read_explanation(connection, trace.id) == empty


finite = st.floats(allow_nan=False, allow_infinity=False)
single = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shares=st.lists(st.tuples(finite, finite), min_size=3, max_size=3),
    log_probs=st.lists(st.tuples(single, single, single), min_size=4, max_size=4),
    text=st.text(max_size=40).filter(lambda t: "\0" not in t),
    evidence=st.lists(st.integers(0, 1), max_size=3),
)
def test_any_numbers_and_texts_read_back(
    connection: Connection,
    shares: list[tuple[float, float]],
    log_probs: list[tuple[float, float, float]],
    text: str,
    evidence: list[int],
) -> None:
    """Doubles survive to the last bit, log-probabilities to float32, and texts whatever they hold."""
    plain = make_explanation(store(connection, make_trace()))
    explanation = replace(
        plain,
        attributions=tuple(
            replace(plain.attributions[2 * span], shares=shares[span], method=Method.SHAPLEY)
            for span in range(3)
        ),
        coalitions=CoalitionValues(
            positions=(0, 1),
            masks=(0, 1, 2, 3),
            token_starts=(0, 1, 2),
            token_ends=(1, 2, 3),
            log_probs=tuple(log_probs),
        ),
        verdicts=tuple(
            replace(verdict, explanation=text, evidence=tuple(evidence)) for verdict in plain.verdicts
        ),
        notes=(text,),
    )
    written = write_explanation(connection, explanation)  # severities rise: each draw fails the same way
    assert read_explanation(connection, explanation.trace.id) == written
    assert replace(written, verdicts=explanation.verdicts) == explanation


def test_unstorable_text_is_replaced(connection: Connection) -> None:
    """NUL bytes and lone surrogates in texts of ours become visible signs instead of an error."""
    plain = make_explanation(store(connection, make_trace()))
    hostile = replace(
        plain,
        notes=("a\0b\ud800",),
        supports=tuple(replace(support, stated="\0") for support in plain.supports),
    )
    write_explanation(connection, hostile)
    stored = read_explanation(connection, plain.trace.id)
    assert stored is not None
    assert stored.notes == ("a\u2400b\ufffd",)
    assert stored.supports[0].stated == "\u2400"


def test_a_rerun_replaces_and_never_doubles(connection: Connection) -> None:
    """After a second, smaller run only its rows are there, in every table."""
    trace = store(connection, make_trace())
    write_explanation(connection, make_explanation(trace, flagged=(0, 1, 2)))
    second = make_explanation(trace, flagged=(0,), offsets=[(0, 18)])
    write_explanation(connection, second)
    write_explanation(connection, second)
    assert read_explanation(connection, trace.id) == second
    counts = {
        table: connection.execute(f"SELECT count(*) FROM {table} WHERE trace_id = %s", (trace.id,)).fetchone()
        for table in ATTRIBUTION_TABLES
    }
    assert counts == {
        "attribution_run": (1,), "alignment": (2,), "answer_span": (1,), "attribution": (2,), "share": (4,),
        "coalition_values": (1,), "token_heat": (1,), "verdict": (1,), "triage_item": (1,),
        "corpus_look": (1,), "corpus_evidence": (1,),
    }  # fmt: skip


def test_flagged_spans_stand_in_the_queue(connection: Connection) -> None:
    """Exactly the flagged spans get an open item with their severity and a signature."""
    trace = store(connection, make_trace())
    write_explanation(connection, make_explanation(trace, flagged=(0, 2)))
    assert items(connection, trace.id) == {0: ("open", None, 1, 0.5), 2: ("open", None, 1, 0.5)}


def test_state_survives_a_rerun_that_cuts_alike(connection: Connection) -> None:
    """Same offsets: state, assignee, lease and version stay; severity and signature are the new ones."""
    trace = store(connection, make_trace())
    write_explanation(connection, make_explanation(trace, flagged=(0, 1)))
    connection.execute(
        "UPDATE triage_item SET state = 'snoozed', assignee = 'bo', version = 4, "
        "leased_until = '2100-01-01', updated_at = now() + interval '1 ms' WHERE trace_id = %s AND span = 1",
        (trace.id,),
    )
    again = make_explanation(trace, flagged=(0, 1))
    again = replace(again, verdicts=tuple(replace(v, severity=0.9) for v in again.verdicts))
    write_explanation(connection, again)
    assert items(connection, trace.id) == {0: ("open", None, 1, 0.9), 1: ("snoozed", "bo", 4, 0.9)}
    lease = connection.execute("SELECT leased_until FROM triage_item WHERE span = 1").fetchone()
    assert lease is not None
    assert lease[0].year == 2100


def test_state_follows_the_offsets_to_a_new_number(connection: Connection) -> None:
    """Another span in front renumbers item and reviews; saving on the old number is a conflict, because no
    version is shown twice."""
    trace = store(connection, make_trace())
    write_explanation(connection, make_explanation(trace, flagged=(1,)))
    review_id = review(connection, trace.id, 1, SENTENCES[1])
    finer = [(0, 7), (8, 18), *SENTENCES[1:]]
    write_explanation(connection, make_explanation(trace, flagged=(1, 2), offsets=finer))
    assert items(connection, trace.id) == {1: ("open", None, 3, 0.5), 2: ("reviewed", "ann", 3, 0.5)}
    assert connection.execute("SELECT id, span FROM review").fetchall() == [(review_id, 2)]


def test_reviewed_spans_outlive_their_span(connection: Connection) -> None:
    """When the span is cut no more its review and item wait under a negative number and come back with it;
    items nobody reviewed go away."""
    trace = store(connection, make_trace())
    write_explanation(connection, make_explanation(trace, flagged=(0, 1, 2)))
    review_id = review(connection, trace.id, 1, SENTENCES[1])
    other = make_explanation(trace, flagged=(0,), offsets=[(0, 54)])
    for _ in range(2):
        write_explanation(connection, other)
        assert items(connection, trace.id) == {
            -1: ("reviewed", "ann", 3, 0.5),
            0: ("open", None, 3, 0.5),
        } or (items(connection, trace.id) == {-1: ("reviewed", "ann", 3, 0.5), 0: ("open", None, 3, 0.5)})
        assert connection.execute("SELECT id, span FROM review").fetchall() == [(review_id, -1)]
    write_explanation(connection, make_explanation(trace, flagged=(1,)))
    assert {span: row[:2] for span, row in items(connection, trace.id).items()} == {1: ("reviewed", "ann")}
    assert connection.execute("SELECT id, span FROM review").fetchall() == [(review_id, 1)]


def test_items_that_are_flagged_no_more(connection: Connection) -> None:
    """An untouched item leaves the queue with its flag; one that a person assigned stays until closed."""
    trace = store(connection, make_trace())
    write_explanation(connection, make_explanation(trace, flagged=(0, 1)))
    connection.execute("UPDATE triage_item SET assignee = 'bo' WHERE span = 1")
    write_explanation(connection, make_explanation(trace, flagged=()))
    assert items(connection, trace.id) == {1: ("open", "bo", 1, 0.0)}


def test_reviewed_before_it_was_flagged(connection: Connection) -> None:
    """A person found it first: when the machine flags it later, it does not come up for review again."""
    trace = store(connection, make_trace())
    write_explanation(connection, make_explanation(trace, flagged=()))
    review(connection, trace.id, 0, SENTENCES[0])
    write_explanation(connection, make_explanation(trace, flagged=(0,)))
    assert items(connection, trace.id)[0][0] == "reviewed"


def test_signature_groups_the_same_failure(connection: Connection) -> None:
    """Same cause at the same row is one group over traces; another cause, row or anonymous text is not."""

    def signature_of(trace: Trace, **changes: Any) -> str:
        explanation = make_explanation(store(connection, trace), flagged=(0,))
        first = replace(explanation.verdicts[0], **changes)
        supports = tuple(replace(support, position=None) for support in explanation.supports)
        write_explanation(
            connection,
            replace(explanation, verdicts=(first, *explanation.verdicts[1:]), supports=supports),
        )
        row = connection.execute(
            "SELECT signature FROM triage_item WHERE trace_id = %s", (trace.id,)
        ).fetchone()
        assert row is not None
        return str(row[0])

    known = signature_of(make_trace())
    assert signature_of(make_trace(question="Other?")) == known
    assert signature_of(make_trace(), cause=Cause.BORROWED) != known
    anonymous = signature_of(make_trace(), evidence=(1,))
    assert anonymous != known
    other_text = (make_trace().chunks[0], Chunk(position=1, text="Call Bo.", source_id="p2"))
    assert signature_of(make_trace(chunks=other_text), evidence=(1,)) != anonymous
    missing = signature_of(make_trace(), evidence=(), cause=Cause.NO_EVIDENCE_IN_PROMPT)
    again = make_trace(question="how do I  restart the RELAY?")
    assert signature_of(again, evidence=(), cause=Cause.NO_EVIDENCE_IN_PROMPT) == missing
    assert signature_of(make_trace(question="?" * 100_000), evidence=())  # fits an index entry


def test_failure_is_one_line_and_keeps_earlier_results(connection: Connection) -> None:
    """A failure alone reads as None; after results it labels them; a later success clears it."""
    trace = store(connection, make_trace())
    write_failure(connection, trace.id, "no model\0:\n  run x")
    row = connection.execute("SELECT state, error FROM attribution_run").fetchone()
    assert row == ("failed", "no model\u2400: run x")
    assert read_explanation(connection, trace.id) is None
    explanation = make_explanation(trace)
    write_explanation(connection, explanation)
    assert read_explanation(connection, trace.id) == explanation
    write_failure(connection, trace.id, "disk full; free some")
    stored = read_explanation(connection, trace.id)
    assert stored is not None
    assert stored.spans == explanation.spans
    assert "earlier run" in stored.notes[-1]
    assert "disk full; free some" in stored.notes[-1]
    assert len(items(connection, trace.id)) == 1


def test_refuses_an_explanation_that_does_not_fit_together(connection: Connection) -> None:
    """A contradiction inside is refused, what is stored stays, and the transaction remains usable."""
    good = make_explanation(store(connection, make_trace()))
    write_explanation(connection, good)
    for bad in (
        replace(good, supports=good.supports[1:]),
        replace(good, verdicts=(*good.verdicts, good.verdicts[0])),
        replace(good, spans=(*good.spans, good.spans[0])),
        replace(good, attributions=(replace(good.attributions[0], shares=(1.0,)),)),
        replace(good, verdicts=tuple(replace(verdict, severity=2.0) for verdict in good.verdicts)),
    ):
        with pytest.raises(InputError):
            write_explanation(connection, bad)
    assert read_explanation(connection, good.trace.id) == good


def test_refuses_a_trace_that_is_not_stored(connection: Connection) -> None:
    """Results without their trace would never be found again."""
    with pytest.raises(InputError, match="store it first"):
        write_explanation(connection, make_explanation(make_trace()))


def test_names_a_missing_schema(empty_database_url: str) -> None:
    """Without migrations the next step is in the message."""
    with database.connect(empty_database_url) as conn, pytest.raises(DatabaseError, match="ragblame migrate"):
        write_explanation(conn, make_explanation(make_trace()))


def test_concurrent_writers_take_turns(database_url: str) -> None:
    """Several workers on one trace: each run is whole, none fails, none doubles."""
    trace = make_trace()
    with database.connect(database_url) as conn:
        store(conn, trace)
    failures: list[BaseException] = []

    def write(flagged: tuple[int, ...]) -> None:
        try:
            for _ in range(5):
                with database.connect(database_url) as conn:
                    write_explanation(conn, make_explanation(trace, flagged=flagged))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(flagged,)) for flagged in ((0,), (1,), (0, 1, 2))]
    for thread in threads:
        thread.start()
    with database.connect(database_url, autocommit=True) as reader:
        while any(thread.is_alive() for thread in threads):
            seen = read_explanation(reader, trace.id)
            if seen is not None:
                flags = tuple(verdict.span for verdict in seen.verdicts if verdict.is_flagged)
                assert flags in ((0,), (1,), (0, 1, 2))
    for thread in threads:
        thread.join()
    assert failures == []
    with database.connect(database_url) as conn:
        assert len(items(conn, trace.id)) in (1, 3)
