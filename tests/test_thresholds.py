"""`ragblame thresholds` and `explain --why` from labels to activation, and the same facts on the page."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import streamlit as st

from ragblame import database
from ragblame.attribution.evaluation.detection import ScoredSpan, with_worst_span
from ragblame.attribution.evaluation.labelled import Label, LabelledAnswer
from ragblame.attribution.evaluation.threshold_fit import Judged, fit
from ragblame.attribution.jobs.signatures import document_of, document_signature, signature
from ragblame.attribution.jobs.thresholds import store_thresholds
from ragblame.attribution.verdicts.thresholds import DEFAULT
from ragblame.errors import InputError, ModelError
from ragblame.records import Cause, Explanation, VerdictKind
from ragblame.settings import load_settings
from ragblame.traces import new_trace_id
from ragblame.ui import cli, reads, reads_radius, thresholds_reader
from ragblame.ui.components.nodes import text_of
from ragblame.ui.components.radius import blast_radius
from ragblame.ui.components.rows import flagged_list
from ragblame.ui.components.why import why_verdict
from ragblame.ui.reads import Filters
from ragblame.ui.reads_trace import read_trace_page
from ragblame.ui.thresholds_reader import SpanReader
from tests.example_cases import example_explanations, hostile_explanation
from tests.triage_seed import seed, store_explanation

READER = "reader@ab12"
Connection = psycopg.Connection[Any]


@pytest.fixture
def on_database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The command line's database is the test's own."""
    monkeypatch.setenv("RAGBLAME_DATABASE_URL", database_url)
    load_settings.cache_clear()
    st.cache_data.clear()
    yield database_url
    load_settings.cache_clear()


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command prints with --json."""
    capsys.readouterr()
    code = cli.run([*arguments, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that fails for what it was given."""
    capsys.readouterr()
    assert cli.run(list(arguments)) == InputError.exit_code
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def judged(sources: int, *, seed: int = 1, rate: float = 0.4) -> list[Judged]:
    """Answers of three spans each, two a source, with scores that tell something and boast."""
    rng = np.random.default_rng(seed)
    found = []
    for source in range(sources):
        for copy in range(2):
            wrong = rng.random(3) < rate
            logits = 2.0 * (2 * wrong - 1) + rng.normal(0, 1.5, 3)
            raw = 1 / (1 + np.exp(-5 * logits))
            row = LabelledAnswer(
                id=f"{source}-{copy}",
                dataset="made",
                source_id=f"source {source}",
                question="?",
                chunks=(),
                answer="abcdefghi",
                labels=tuple(Label(start=3 * i, end=3 * i + 3, type="x") for i in range(3) if wrong[i]),
                support_sets=(),
                model="",
            )
            spans = [ScoredSpan(start=3 * i, end=3 * i + 3, score=float(raw[i])) for i in range(3)]
            found.append(Judged(source=row.source_id, scored=with_worst_span(row, spans)))
    return found


def fitted(
    rows: Sequence[Judged], alpha: float = 0.1, level: str = "answers", seed: int = 0, splits: int = 0
) -> Any:
    """A fit with what does not matter filled in."""
    return fit(
        rows,
        model=READER,
        base=DEFAULT,
        version="v",
        alpha=alpha,
        level=level,
        labels="made answers",
        seed=seed,
        splits=splits,
    )


@pytest.mark.parametrize("level", ["answers", "spans"])
def test_a_fit_keeps_its_promise_on_other_sources(level: str) -> None:
    """Over many fits, misses on sources that took no part average to at most alpha, and the curve mends the
    probability on the half that did not fit it."""
    fresh = judged(600, seed=99)
    missed = []
    for seed_ in range(12):
        found = fitted(judged(160, seed=seed_), level=level, seed=seed_)
        values = found.thresholds
        scores = []
        for one in fresh:
            spans = [(values.confidence(span.score, READER), span) for span in one.scored.spans]
            if level == "answers" and one.scored.row.labels:
                scores.append(max(p for p, _ in spans))
            elif level == "spans":
                starts = {label.start for label in one.scored.row.labels}
                scores.extend(p for p, span in spans if span.start in starts)
        missed.append(float(np.mean(np.array(scores) < values.flag_at)))
        assert found.ece < found.raw_ece
        assert values.promise.sources == found.controlled.units
    assert np.mean(missed) <= 0.1 + 2 * np.std(missed) / np.sqrt(len(missed))
    assert np.mean(missed) > 0.03
    tried = fitted(judged(160), level=level, splits=10).fresh
    assert tried.low <= tried.missed <= min(tried.high, 0.12)
    assert tried.within >= 0.9


def test_a_fit_uses_each_half_once() -> None:
    """Changing the labels of the promising half leaves the curve as it is; few labels give Platt's curve."""
    rows = judged(60)
    found = fitted(rows)
    half = {one.source for one in rows} - {one.source for one in rows if one.source in _promising(rows)}
    flipped = [
        one
        if one.source in half
        else replace(one, scored=replace(one.scored, row=replace(one.scored.row, labels=())))
        for one in rows
    ]
    with pytest.raises(
        InputError, match="needs 9 sources with something unsupported in them, and there are 0"
    ):
        fitted(flipped)
    assert found.method == "Platt"
    assert fitted(judged(24), splits=5).fresh is None  # eight sources, a third, cannot promise 0.1
    assert fitted(judged(400)).method == "isotonic"


def _promising(rows: Sequence[Judged]) -> set[str]:
    from ragblame.attribution.verdicts.calibration import half_of

    return {one.source for one in rows if half_of(one.source) == 1}


def test_a_reader_without_a_number_is_refused() -> None:
    """Where no support model gives a probability, nothing is calibrated in its place."""

    class Silent:
        def explain(self, **_: Any) -> Explanation:
            return example_explanations()[0]

    with pytest.raises(ModelError, match="no probability to calibrate"):
        SpanReader(Silent())(judged(1)[0].scored.row)  # type: ignore[arg-type]


def review_everything(conn: Connection, copies: int) -> None:
    """Examples read by a model and reviewed by people: each of ``copies`` questions, right about half."""
    rng = np.random.default_rng(0)
    explanation = example_explanations()[0]
    for copy in range(copies):
        wrong = copy % 2 == 0
        raw = float(np.clip(rng.normal(0.8 if wrong else 0.2, 0.15), 0.01, 0.99))
        trace = replace(explanation.trace, id=new_trace_id(), question=f"question {copy}")
        store_explanation(
            conn,
            replace(
                explanation,
                trace=trace,
                supports=tuple(
                    replace(support, model=READER, probability=raw) for support in explanation.supports
                ),
            ),
        )
        verdict = VerdictKind.FABRICATED if wrong else VerdictKind.GROUNDED
        conn.execute(
            "INSERT INTO review (trace_id, id, span, start_at, end_at, reviewer, verdict, flagged_as) "
            "SELECT trace_id, %s, span, start_at, end_at, 'ann', %s, 'distorted' FROM answer_span "
            "WHERE trace_id = %s AND span = 0",
            (new_trace_id(), verdict.value, trace.id),
        )


def test_from_reviews_to_an_active_version(on_database: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fit from reviews, list, preview, activate, and back: nothing decides before it is activated."""
    with database.connect(on_database) as conn:
        review_everything(conn, 60)
    found = said(capsys, "thresholds", "fit", "--reviews", "--alpha", "0.1", "--name", "first", "--note", "n")
    promise = found["thresholds"]["promise"]
    assert promise["labels"].startswith("reviews of 60 spans, 0 of them not flagged")
    assert found["thresholds"]["fitted_to"] == READER
    assert found["controlled"]["bound"] <= 0.1
    versions = said(capsys, "thresholds", "list")["versions"]
    assert [(v["version"], v["is_active"]) for v in versions] == [("default-2", True), ("first", False)]
    shown = said(capsys, "thresholds", "show", "first")
    assert (shown["digest"], shown["flag_at"]) == (versions[1]["digest"], found["controlled"]["flag_at"])
    preview = said(capsys, "thresholds", "preview", "first")
    assert [window["days"] for window in preview["windows"]] == [7, 30]
    assert preview["windows"][0]["undecidable"] == preview["windows"][0]["verdicts"] > 0
    assert cli.run(["thresholds", "activate", "first"]) == 0
    assert said(capsys, "thresholds", "list")["versions"][1]["is_active"]
    assert cli.run(["thresholds", "activate", "default-2"]) == 0
    assert said(capsys, "thresholds", "list")["versions"][0]["is_active"]
    for arguments in (["list"], ["show", "first"], ["preview", "first"]):
        assert cli.run(["thresholds", *arguments]) == 0
    assert re.search(r"misses at most\s+10%", capsys.readouterr().out)


def test_what_cannot_be_fitted_is_one_line(on_database: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Too few reviews name the number needed; a name that is taken, or no labels at all, is told."""
    assert "review spans on the triage page" in refused(capsys, "thresholds", "fit", "--reviews")
    with database.connect(on_database) as conn:
        review_everything(conn, 24)
    line = refused(capsys, "thresholds", "fit", "--reviews", "--alpha", "0.01", "--level", "spans")
    assert re.search(
        r"needs 99 sources with something unsupported in them, and there are \d+: label \d+ more", line
    )
    assert "one source of labels" in refused(capsys, "thresholds", "fit")
    assert "give answers or spans" in refused(capsys, "thresholds", "fit", "--reviews", "--level", "words")
    assert "choose one of default-2" in refused(capsys, "thresholds", "activate", "nobody")
    assert said(capsys, "thresholds", "list")["versions"][0]["is_active"]


def test_labels_that_the_model_was_trained_on_promise_nothing(
    on_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On sources it knows by heart the shipped model misses less than it will: they are refused by digest,
    unless a part of the split is named; a part that is not there is told."""
    chunks = [{"chunk_id": "p1", "text": "x"}]
    row = {"id": "a", "source_id": "s", "question": "?", "chunks": chunks, "answer": "x.", "labels": []}
    file = tmp_path / "labelled.jsonl"
    file.write_text(json.dumps(row) + "\n")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(thresholds_reader, "trained_on", lambda: frozenset({digest}))
    monkeypatch.setenv("RAGBLAME_SUPPORT_MODEL", "shipped")
    load_settings.cache_clear()
    arguments = ("thresholds", "fit", "--labels", str(file))
    assert "was trained on a part of" in refused(capsys, *arguments)
    assert "choose one of training" in refused(capsys, *arguments, "--part", "moon")
    parts = {part: thresholds_reader_rows(file, part) for part in ("training", "tuning", "held-out")}
    assert sorted(parts.values()) == [0, 0, 1]
    monkeypatch.setenv("RAGBLAME_SUPPORT_MODEL", "none")
    load_settings.cache_clear()
    assert thresholds_reader_rows(file, None) == 1


def thresholds_reader_rows(file: Path, part: str | None) -> int:
    """How many answers of a file stand in a part of the split."""
    try:
        return len(thresholds_reader.read_labels([file], part=part, limit=None, seed=0)[0])
    except InputError:
        return 0


# --- the faces ----------------------------------------------------------------------------------------------


def test_why_is_said_for_a_stored_trace_alone(on_database: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`explain --why` reads what is stored, loads no model, and names what an old trace lacks."""
    ids = seed(on_database)
    key = str(ids["Which port does the harr"])
    found = said(capsys, "explain", key, "--why")
    assert found["trace"] == key
    assert {"premises of the decision", "version of ragblame"} <= set(found["verdicts"][0]["missing"])
    assert cli.run(["explain", key, "--why"]) == 0
    assert "Not kept: premises of the decision" in " ".join(capsys.readouterr().out.split())
    waiting = refused(capsys, "explain", str(ids["waiting"]), "--why")
    assert "has no verdicts yet: run `ragblame worker`" in waiting


def test_a_strangers_text_stays_text_in_the_chain(connection: Connection) -> None:
    """Payloads in spans, chunks and metadata come out of the expander as the same text."""
    explanation = hostile_explanation()
    store_explanation(connection, explanation)
    page = read_trace_page(connection, explanation.trace.id)
    for number, one in page.provenance.items():
        text = text_of(why_verdict(one))
        if one.quote is not None:
            assert " ".join(one.quote.text.split()) in text
        assert one.words == page.span_text(page.spans[number])


def test_the_queue_counts_and_filters_the_same_failure(connection: Connection) -> None:
    """Three traces that failed alike show ×3, and picking that lists just them, as a document's name does."""
    first = example_explanations()[0]
    ids = {store_explanation(connection, first)}
    for _ in range(2):
        ids.add(store_explanation(connection, replace(first, trace=replace(first.trace, id=new_trace_id()))))
    store_explanation(connection, example_explanations()[1])
    rows = reads.read_queue(connection, Filters()).rows
    alike = [row for row in rows if row.trace_id in ids]
    assert {row.same for row in alike} == {3}
    assert {row.same for row in rows} == {1, 3}
    assert text_of(flagged_list(rows)).count("×3 of the same") == 3
    named = reads.read_queue(connection, Filters(same=alike[0].signature)).rows
    assert {row.trace_id for row in named} == ids
    assert named[0].severity >= named[-1].severity
    verdict = next(verdict for verdict in first.verdicts if verdict.is_flagged)
    document = document_signature(first, verdict, first.supports[verdict.span])
    assert {row.trace_id for row in reads.read_queue(connection, Filters(same=document)).rows} == ids
    assert reads.read_queue(connection, Filters(same="distortion: nobody")).rows == ()


def test_the_blast_radius_counts_what_shares_the_failure(connection: Connection) -> None:
    """Traces of a day and a week by failure, document, cause and chunk; an unflagged span has none."""
    first = example_explanations()[0]
    old = new_trace_id(first.trace.started_at.replace(year=first.trace.started_at.year - 1))
    store_explanation(connection, replace(first, trace=replace(first.trace, id=old)))
    store_explanation(connection, replace(first, trace=replace(first.trace, id=new_trace_id())))
    trace_id = store_explanation(connection, first)
    span = next(verdict.span for verdict in first.verdicts if verdict.is_flagged)
    found = {
        reach.what: (reach.day, reach.week) for reach in reads_radius.read_radius(connection, trace_id, span)
    }
    assert found == {
        "this cause at this chunk": (2, 2),
        "this cause at this document": (2, 2),
        "this cause": (2, 2),
        "retrieved this chunk": (2, 2),
    }
    reaches = reads_radius.read_radius(connection, trace_id, span)
    assert text_of(blast_radius(reaches) or "").startswith("Blast radius: ")
    unflagged = next(verdict.span for verdict in first.verdicts if not verdict.is_flagged)
    assert reads_radius.read_radius(connection, trace_id, unflagged) == ()


def test_signatures_group_by_cause_and_chunk_and_widen_to_the_document() -> None:
    """The same chunk with another cause is another failure; chunks of one document share its name only."""
    explanation = example_explanations()[0]
    trace = explanation.trace
    verdict = next(verdict for verdict in explanation.verdicts if verdict.is_flagged)
    support = explanation.supports[verdict.span]
    other_cause = replace(verdict, cause=Cause.DISTORTION)
    other_chunk = replace(verdict, evidence=(1 - support.position,) if support.position in (0, 1) else (0,))
    names = {signature(explanation, each, support) for each in (verdict, other_cause, other_chunk)}
    assert len(names) == 3
    one_document = replace(
        explanation,
        trace=replace(
            trace, chunks=tuple(replace(chunk, metadata={"document_id": "d1"}) for chunk in trace.chunks)
        ),
    )
    wide = {document_signature(one_document, each, support) for each in (verdict, other_chunk)}
    assert len(wide) == 1
    assert document_signature(one_document, other_cause, support) not in wide
    bare = replace(trace, chunks=tuple(replace(chunk, metadata={"source": True}) for chunk in trace.chunks))
    assert document_of(bare.chunks[0]) is None
    assert document_signature(replace(explanation, trace=bare), verdict, support) == ""


def test_an_active_version_that_is_damaged_is_told(
    on_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers that a newer program wrote are not guessed at."""
    with database.connect(on_database) as conn:
        store_thresholds(conn, replace(DEFAULT, version="newer"), note="")
        conn.execute("ALTER TABLE calibration DISABLE TRIGGER keep_thresholds")
        conn.execute("""UPDATE calibration SET thresholds = thresholds || '{"moon": 1}', is_active = true""")
    assert "upgrade ragblame" in refused(capsys, "thresholds", "list")
