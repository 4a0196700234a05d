"""Every verdict traces to the rule, numbers, versions and evidence that made it, and tampering shows."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest

from ragblame import __version__, database
from ragblame.attribution.debugger import Debugger
from ragblame.attribution.jobs.attribute import attribute_trace
from ragblame.attribution.jobs.preview import preview
from ragblame.attribution.jobs.provenance import read_factors, read_provenance
from ragblame.attribution.jobs.signatures import recount_traffic
from ragblame.attribution.jobs.stored import read_explanation
from ragblame.attribution.jobs.thresholds import (
    activate_thresholds,
    read_active,
    read_thresholds,
    read_versions,
    store_thresholds,
)
from ragblame.attribution.verdicts.premises import by_probability, decide_again, finding_of, influence_of
from ragblame.attribution.verdicts.provenance import Provenance
from ragblame.attribution.verdicts.severity import MOST_SEEN, MOST_TRAFFIC, Factors, traffic, weigh
from ragblame.attribution.verdicts.thresholds import DEFAULT, Promise, Thresholds, from_json
from ragblame.errors import InputError
from ragblame.records import (
    Cause,
    Explanation,
    Message,
    SupportState,
    VerdictKind,
)
from ragblame.traces import new_trace_id, write_traces
from ragblame.ui.why import sections, verdict_of_check
from tests.conftest import _temporary_database
from tests.test_debugger import ANSWER, CHUNKS, PROMPT, small_model, trace_of

Connection = psycopg.Connection[Any]
# One of every kind: read and right, contradicted, borrowed, twice the same value, nowhere.
ANSWERS = (
    ANSWER,
    "The port of the Frostridge gateway is 4555.",
    "The port of the Frostridge gateway is 7310.",
    "The port of the Frostridge gateway is 2959. The port is 2959.",
    "The Frostridge gateway was built by Ann Osgood in 1812.",
)
READER = "reader@ab12"


@pytest.fixture(scope="module")
def history(postgres_url: str, migrated_template: str) -> Iterator[str]:
    """A database with the answers attributed by the shipped small model, one of them by text alone."""
    for url in _temporary_database(postgres_url, migrated_template):
        with database.connect(url) as conn:
            prompt = (Message(role="prompt", text=PROMPT),)
            traces = [
                trace_of(answer, id=new_trace_id(), prompt=prompt, started_at=datetime.now(UTC))
                for answer in (*ANSWERS, ANSWERS[1])
            ]
            write_traces(conn, traces, enqueue=False)
        for trace in traces[:-1]:
            attribute_trace(url, small_model(), trace.id)
        attribute_trace(url, Debugger.text_only(), traces[-1].id)
        yield url


@pytest.fixture
def conn(history: str) -> Iterator[Connection]:
    """A connection whose changes are rolled back."""
    with database.connect(history) as connection:
        yield connection
        connection.rollback()


def stored(conn: Connection) -> list[Explanation]:
    """All explanations, oldest first."""
    ids = [row[0] for row in conn.execute("SELECT trace_id FROM attribution_run ORDER BY 1").fetchall()]
    found = [read_explanation(conn, trace_id, with_heats=False) for trace_id in ids]
    return [explanation for explanation in found if explanation is not None]


def chains(conn: Connection) -> list[Provenance]:
    """The provenance of every stored verdict."""
    return [one for explanation in stored(conn) for one in read_provenance(conn, explanation)]


def test_every_stored_verdict_has_its_whole_chain(conn: Connection) -> None:
    """Rule, quoted evidence with its row, scorer, numbers, cell, cause, factors and versions: nothing is
    unknown, and deciding again from what was kept gives the same verdict."""
    found = chains(conn)
    assert {one.verdict for one in found} >= {
        VerdictKind.GROUNDED,
        VerdictKind.DISTORTED,
        VerdictKind.FABRICATED,
    }
    for one in found:
        assert (one.missing, one.problems) == ((), ())
        assert one.read_rule
        assert one.cell
        assert one.thresholds == DEFAULT
        assert one.thresholds_digest == DEFAULT.digest
        assert one.program == __version__
        assert (one.numbers is None) == (one.why_no_numbers is not None)
        assert (one.cause is None) == (one.fired == ())
        if one.numbers is not None:
            assert one.scorer is not None
            assert one.settings_hash
            assert one.numbers.reliance == pytest.approx(one.numbers.v_all - one.numbers.v_none)
        if one.quote is not None:
            assert one.quote.text == CHUNKS[one.quote.position][one.quote.start : one.quote.end]
    assert any(one.numbers is not None and one.numbers.measured_at is not None for one in found)
    assert any(one.basis.value == "support only" for one in found)


def test_every_fact_is_said_on_both_faces(conn: Connection) -> None:
    """The sections that page and command line draw hold no empty value, and end with the check."""
    for one in chains(conn):
        facts = [fact for section in sections(one) for fact in section.facts]
        assert all(name and value for name, value in facts)
        assert facts[-1] == ("Check", verdict_of_check(one))
        assert "same verdict" in facts[-1][1]


def test_an_edited_version_is_refused_and_where_it_was_forced_it_shows(conn: Connection) -> None:
    """A stored version cannot be changed; with the guard taken away, each verdict made with it says so."""
    strict = replace(DEFAULT, version="strict-1", sigmas=4.0)
    store_thresholds(conn, strict, note="a test")
    conn.execute("UPDATE verdict SET thresholds_version = 'strict-1'")
    conn.execute("UPDATE attribution_run SET thresholds_digest = %s", (strict.digest,))
    assert all(one.is_whole for one in chains(conn))
    edit = "UPDATE calibration SET thresholds = jsonb_set(thresholds, '{tau_nats}', '2.5')"
    with (
        pytest.raises(psycopg.errors.RaiseException, match="strict-1 were stored and never change"),
        conn.transaction(),
    ):
        conn.execute(edit)
    conn.execute("ALTER TABLE calibration DISABLE TRIGGER keep_thresholds")
    conn.execute(edit)
    found = chains(conn)
    assert all("were edited after this verdict was made" in one.problems[0] for one in found)
    assert all(strict.digest in verdict_of_check(one) for one in found)
    conn.execute("DELETE FROM calibration")
    assert all("stored no more" in one.problems[0] for one in chains(conn))


@pytest.mark.parametrize(
    "edit",
    [
        """UPDATE verdict SET verdict = 'grounded', cause = NULL, other_causes = '{}'
           WHERE verdict = 'distorted'""",
        "UPDATE verdict SET support = 'entailed' WHERE support = 'contradicted'",
        """UPDATE verdict SET premises = jsonb_set(premises, '{v_none}', '-900') WHERE verdict = 'fabricated'
           AND premises ? 'v_none'""",
        "UPDATE verdict SET severity = 0.123 WHERE severity > 0",
    ],
)
def test_an_edited_verdict_does_not_follow_from_its_premises(conn: Connection, edit: str) -> None:
    """Whoever changes a verdict, its support, its numbers or its severity in the table leaves a trace."""
    assert conn.execute(edit.encode()).rowcount > 0
    assert any(one.problems for one in chains(conn))


def test_what_an_older_version_did_not_keep_is_named(conn: Connection) -> None:
    """A verdict without premises is not passed off as traced: what is missing is listed."""
    conn.execute("UPDATE verdict SET premises = NULL, seen = NULL")
    conn.execute("UPDATE attribution_run SET program = '', thresholds_digest = ''")
    for one in chains(conn):
        assert {"premises of the decision", "version of ragblame", "digest of the thresholds"} <= set(
            one.missing
        )
        assert verdict_of_check(one).startswith("Not kept: ")
        assert all(value for section in sections(one) for _, value in section.facts)


def test_deciding_again_needs_no_model_and_agrees(conn: Connection) -> None:
    """From the stored record alone, the thresholds of its version give each verdict anew, field by field."""
    for explanation in stored(conn):
        spans, supports = explanation.spans, explanation.supports
        for verdict, support, span, premises in zip(
            explanation.verdicts, supports, spans, explanation.premises, strict=True
        ):
            again = decide_again(explanation, premises, support, span, DEFAULT)
            assert replace(again.verdict, severity=verdict.severity) == verdict
            assert again.support == support


# --- thresholds ---------------------------------------------------------------------------------------------


def calibrated(**changes: Any) -> Thresholds:
    """A version that flags by probability."""
    promise = Promise(alpha=0.1, level="answers", answers=40, sources=20, labels="a test")
    values: dict[str, Any] = {
        "version": "calibrated-1",
        "flag_at": 0.6,
        "clear_at": 0.2,
        "fitted_to": READER,
        "curve": ((0.0, 0.0), (0.5, 0.25), (1.0, 1.0)),
        "promise": promise,
    }
    return replace(DEFAULT, **{**values, **changes})


def test_thresholds_survive_the_database_and_their_digest_tells_them_apart(conn: Connection) -> None:
    """What is stored is read back equal; any other value gives another digest."""
    version = calibrated()
    store_thresholds(conn, version, note="first")
    assert read_thresholds(conn, version.version) == version
    assert read_versions(conn)[1].thresholds.promise == version.promise
    digests = {DEFAULT.digest, version.digest, *[replace(version, flag_at=x).digest for x in (0.61, 0.7)]}
    assert len(digests) == 4
    with pytest.raises(InputError, match="stored already and never change"):
        store_thresholds(conn, version, note="again")
    with pytest.raises(InputError, match="stored already"):
        store_thresholds(conn, DEFAULT, note="the program's own")
    with pytest.raises(InputError, match=r"choose one of default-2, calibrated-1"):
        read_thresholds(conn, "nobody")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flag_at": 1.5}, r"flag_at outside \[0, 1\]"),
        ({"flag_at": 0.2, "clear_at": 0.3}, "clear_at is not below flag_at"),
        ({"tau_nats": "much"}, "must be real number|fit them again"),
        ({"curve": [[0.5, 0.1], [0.4, 0.9]]}, "the curve does not rise"),
        ({"curve": [[0.1, 0.5], [0.9, 0.4]]}, "the curve does not rise"),
        ({"promise": {"alpha": 0.1}}, "cannot be used"),
        ({"version": ""}, "no version"),
        ({"moon": 1}, "upgrade ragblame"),
    ],
)
def test_damaged_thresholds_are_refused(change: dict[str, Any], words: str) -> None:
    """A value out of its range, or one of a newer program, is an error that names it."""
    with pytest.raises(InputError, match=words):
        from_json({**calibrated().to_json(), **change})


def test_the_active_version_decides_the_next_trace_and_stored_verdicts_keep_theirs(history: str) -> None:
    """Activation is followed without a restart; the shipped version can be returned to."""
    strict = replace(DEFAULT, version="strict-2", tau_nats=1e6)
    debugger = Debugger.text_only()
    trace = trace_of(ANSWERS[1], id=new_trace_id())
    with database.connect(history) as conn:
        write_traces(conn, [trace], enqueue=False)
        store_thresholds(conn, strict, note="")
        assert read_active(conn) == DEFAULT
    try:
        with database.connect(history) as conn:
            activate_thresholds(conn, "strict-2")
            assert read_active(conn) == strict
        explanation = attribute_trace(history, debugger, trace.id)
        assert {verdict.thresholds_version for verdict in explanation.verdicts} == {"strict-2"}
        with database.connect(history) as conn:
            activate_thresholds(conn, DEFAULT.version)
            assert [version.thresholds.version for version in read_versions(conn) if version.is_active] == [
                "default-2"
            ]
            kept = conn.execute("SELECT DISTINCT thresholds_version FROM verdict ORDER BY 1").fetchall()
            assert kept == [("default-2",), ("strict-2",)]
    finally:
        with database.connect(history) as conn:
            for table in ("verdict", "attribution_run", "answer_span", "triage_item"):
                conn.execute(f"DELETE FROM {table} WHERE trace_id = %s".encode(), (trace.id,))
            conn.execute("DELETE FROM trace WHERE id = %s", (trace.id,))
            conn.execute("DELETE FROM calibration")


def test_a_probability_counts_only_for_the_model_it_was_fitted_to() -> None:
    """Linear between the knots, level beyond; another model's number has no meaning on this scale."""
    version = calibrated()
    assert version.confidence(0.75, READER) == pytest.approx(0.625)
    assert version.confidence(0.25, READER) == pytest.approx(0.125)
    assert [version.confidence(raw, READER) for raw in (0.0, 0.5, 1.0)] == [0.0, 0.25, 1.0]
    assert version.confidence(0.9, "reader@other") is None
    assert version.confidence(None, READER) is None
    assert DEFAULT.confidence(0.9, READER) is None


@pytest.mark.parametrize(
    ("state", "raw", "expected"),
    [
        (SupportState.ENTAILED, 0.95, SupportState.ABSENT),
        (SupportState.UNCLEAR, 0.95, SupportState.ABSENT),
        (SupportState.CONTRADICTED, 0.95, SupportState.CONTRADICTED),
        (SupportState.CONTRADICTED, 0.01, SupportState.UNCLEAR),
        (SupportState.UNCLEAR, 0.1, SupportState.ENTAILED),
        (SupportState.UNCLEAR, 0.6, SupportState.UNCLEAR),
        (SupportState.ABSENT, 0.6, SupportState.UNCLEAR),
        (SupportState.ENTAILED, 0.1, SupportState.ENTAILED),
    ],
)
def test_what_a_probability_settles(
    conn: Connection, state: SupportState, raw: float, expected: SupportState
) -> None:
    """From flag_at on a span is absent, below it nothing is flagged, up to clear_at what was missed is said;
    where a scorer measured the span, its numbers decide instead."""
    explanation = stored(conn)[0]
    support = replace(explanation.supports[0], model=READER, probability=raw, state=state)
    premises = replace(explanation.premises[0], read_state=state)
    finding = finding_of(premises, support)
    assert by_probability(finding, None, calibrated()).support.state is expected
    assert by_probability(finding, influence_of(premises, explanation), calibrated()) == finding


# --- preview ------------------------------------------------------------------------------------------------


def test_the_version_in_force_would_change_nothing(conn: Connection) -> None:
    """Previewing the version that made history changes no verdict: deciding again is exact in bulk too."""
    found = preview(conn, DEFAULT)
    count = conn.execute("SELECT count(*) FROM verdict").fetchone()
    flagged = conn.execute("SELECT count(*) FROM triage_item WHERE state = 'open'").fetchone()
    for tally in found.tallies:
        assert (tally.come, tally.go, tally.otherwise, tally.undecidable) == (0, 0, 0, 0)
        assert (tally.verdicts, tally.traces) == (count and count[0], len(ANSWERS) + 1)
        assert tally.flagged_before == tally.flagged_after == (flagged and flagged[0])
    assert found.examples == ()


def test_preview_is_what_attributing_again_gives(conn: Connection, history: str) -> None:
    """With another tau and probabilities, what the preview says comes and goes is what the debugger decides
    when it runs with those thresholds; nothing stored has changed."""
    other = replace(DEFAULT, version="other", tau_nats=1e6)
    before = conn.execute("SELECT * FROM verdict ORDER BY trace_id, span").fetchall()
    found = preview(conn, other)
    assert conn.execute("SELECT * FROM verdict ORDER BY trace_id, span").fetchall() == before
    changes = {(change.trace_id, change.span): change for change in found.examples}
    truth: dict[tuple[UUID, int], tuple[VerdictKind, Cause | None]] = {}
    debugger = replace_thresholds(other)
    for explanation in stored(conn):
        if explanation.scorer is None:
            continue
        for old, new in zip(
            explanation.verdicts, debugger.explain_trace(explanation.trace).verdicts, strict=True
        ):
            if (old.verdict, old.cause) != (new.verdict, new.cause):
                truth[explanation.trace.id, old.span] = (new.verdict, new.cause)
    assert truth
    assert {key: (change.after, change.after_cause) for key, change in changes.items()} == truth
    longest = found.tallies[-1]
    assert longest.come + longest.go + longest.otherwise == len(truth)


def replace_thresholds(thresholds: Thresholds) -> Debugger:
    """The small model deciding by other thresholds."""
    return Debugger(small_model().scorer, thresholds=thresholds)


def test_preview_counts_what_comes_by_probability(conn: Connection) -> None:
    """A model that doubts everything brings each span into the queue that no scorer measured, by cause and
    app; verdicts it has not read are counted apart."""
    conn.execute("UPDATE verdict SET support_model = %s, support_probability = 0.99", (READER,))
    open_spans = conn.execute(
        """SELECT trace_id, span FROM verdict v LEFT JOIN triage_item i USING (trace_id, span)
           WHERE v.basis = 'support only' AND i.trace_id IS NULL"""
    ).fetchall()
    found = preview(conn, calibrated(clear_at=None))
    longest = found.tallies[-1]
    assert longest.come == len(open_spans) > 0
    assert {(c.trace_id, c.span) for c in found.examples if c.is_flagged and not c.was_flagged} == {
        *open_spans
    }
    assert sum(longest.come_by_cause.values()) == sum(longest.come_by_app.values()) == longest.come
    assert set(longest.come_by_app) == {"tests"}
    assert longest.flagged_after == longest.flagged_before + longest.come - longest.go
    assert longest.unread == 0
    assert all(change.confidence == pytest.approx(0.985) for change in found.examples)
    conn.execute("UPDATE verdict SET support_model = 'reader@other'")
    assert preview(conn, calibrated()).tallies[-1].unread == longest.verdicts
    conn.execute("UPDATE verdict SET premises = NULL")
    assert preview(conn, calibrated()).tallies[-1].undecidable == longest.verdicts


# --- severity -----------------------------------------------------------------------------------------------


def test_severity_rises_with_each_factor_and_stays_below_one() -> None:
    """More probable, harmful or frequent is never less severe; a failure seen once keeps its product."""
    parts = [0.0, 0.1, 0.4, 0.85, 0.99]
    seen = [1, 2, 10, 100, MOST_SEEN, 10 * MOST_SEEN]
    for p in parts:
        for harm in parts:
            found = [Factors(probability=p, is_calibrated=True, harm=harm, seen=n).severity for n in seen]
            assert found[0] == pytest.approx(p * harm, abs=5e-4)
            assert found == sorted(found)
            assert 0 <= found[0] <= found[-1] < 1
    rarer = Factors(probability=0.95, is_calibrated=True, harm=0.9, seen=1)
    often = Factors(probability=0.95, is_calibrated=True, harm=0.9, seen=100)
    assert often.severity > rarer.severity
    assert (traffic(1), traffic(MOST_SEEN), traffic(10**9)) == (1.0, MOST_TRAFFIC, MOST_TRAFFIC)


def test_factors_give_the_severity_that_was_judged(conn: Connection) -> None:
    """Seen once, probability times harm is what the debugger itself says, for every flagged verdict."""
    for explanation in stored(conn):
        kinds = {span.index: span.kind for span in explanation.spans}
        for verdict, support, premises, span in zip(
            explanation.verdicts, explanation.supports, explanation.premises, explanation.spans, strict=True
        ):
            if verdict.is_flagged:
                judged = decide_again(explanation, premises, support, span, DEFAULT).verdict
                assert weigh(kinds[verdict.span], verdict, support).severity == judged.severity


def test_the_same_failure_again_is_more_severe(conn: Connection, history: str) -> None:
    """The contradicted number occurs in two traces: the second one says so, and its factors are kept."""
    explanation = next(e for e in stored(conn) if e.scorer is None)
    factors = read_factors(conn, explanation.trace.id)
    assert {one.seen for one in factors.values()} == {2}
    for verdict in explanation.verdicts:
        if verdict.is_flagged:
            assert verdict.severity == factors[verdict.span].severity
            assert verdict.severity > factors[verdict.span].probability * factors[verdict.span].harm


def test_what_came_first_is_raised_by_what_came_later(conn: Connection) -> None:
    """The first trace of a failure was weighed as seen once; upkeep counts again, and its factors fit."""
    shared = """SELECT i.trace_id, v.seen, i.severity, span
        FROM triage_item i JOIN verdict v USING (trace_id, span)
        WHERE signature = (SELECT signature FROM triage_item JOIN verdict USING (trace_id, span)
                           WHERE seen = 2 ORDER BY 1 LIMIT 1) ORDER BY i.trace_id"""
    assert [row[1] for row in conn.execute(shared).fetchall()] == [1, 2]
    conn.execute(
        "UPDATE verdict SET harm = 0.8, severity = round((0.8 * probability)::numeric, 3) WHERE seen = 1"
    )
    assert recount_traffic(conn) >= 1
    first, second = conn.execute(shared).fetchall()
    assert (first[1], second[1]) == (2, 2)
    after = next(one for one in chains(conn) if (one.trace_id, one.span) == (first[0], first[3]))
    assert after.is_whole
    assert after.factors is not None
    assert first[2] == after.severity > after.factors.probability * after.factors.harm
    assert recount_traffic(conn) == 0


def test_a_record_is_json(conn: Connection) -> None:
    """Everything a chain holds can be handed to a program."""
    from ragblame.ui.explain_why import why_to_json

    found = chains(conn)
    said = json.loads(json.dumps(why_to_json(found), allow_nan=False))
    assert [one["words"] for one in said] == [one.words for one in found]
    assert said[0].keys() >= asdict(found[0]).keys()
    assert all(one["is_whole"] for one in said)
