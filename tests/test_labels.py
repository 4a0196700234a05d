"""The harness on human labels: its figures against brute force, its files against carelessness.

Brute force expands every item to single ones and asks scikit-learn or counts by hand; the made-up file has
answers that a reader can work out on paper.
"""

import gzip
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragblame.attribution.evaluation import detection, statistics
from ragblame.attribution.evaluation.detection import ScoredAnswer, ScoredSpan, with_worst_span
from ragblame.attribution.evaluation.evidence import Estimate, Evidence, Table, from_json
from ragblame.attribution.evaluation.gold_chunks import gold_chunks, most_named
from ragblame.attribution.evaluation.labelled import Label, LabelledAnswer, read_labelled, sample_sources
from ragblame.attribution.evaluation.labels import evaluate
from ragblame.attribution.evaluation.lexical_baselines import LexicalView, score_trivially
from ragblame.attribution.evaluation.span_scorers import TextOnly
from ragblame.attribution.evaluation.sweep import Sweep, estimate, p_value, resamples, share
from ragblame.errors import InputError
from ragblame.records import Chunk

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(os.environ.get("RAGBLAME_SHARED_DATA", BESIDE))
FILES = [DATA / f"{name}.dev.jsonl.gz" for name in ("ragtruth_qa", "wice", "clapnq", "xquad_en")]


def make_row(answer: str = "x" * 20, labels: Sequence[Label] = (), **fields: Any) -> LabelledAnswer:
    given_fields: dict[str, Any] = {
        "id": "1",
        "dataset": "made-up",
        "source_id": "s",
        "question": "",
        "chunks": (),
        "answer": answer,
        "labels": tuple(labels),
        "support_sets": (),
        "model": "",
    }
    return LabelledAnswer(**(given_fields | fields))


def every(label: Label) -> bool:
    return True


def sweep(items: detection.Items, clusters: Sequence[int], draws: Any = None) -> Sweep:
    width = max(clusters, default=0) + 1
    return Sweep(items, clusters, np.ones((1, width)) if draws is None else draws)


def first(values: Any) -> float:
    return float(values[0])


@st.composite
def scored_answers(draw: st.DrawFn) -> list[ScoredAnswer]:
    """A few short answers with disjoint spans of few distinct scores, and labels that may overlap."""
    found = []
    for _ in range(draw(st.integers(1, 5))):
        length = draw(st.integers(1, 12))
        borders = sorted(draw(st.sets(st.integers(0, length), max_size=8)))
        spans = []
        for start, end in zip(borders[::2], borders[1::2], strict=False):
            score = draw(st.integers(0, 4)) / 4
            spans.append(ScoredSpan(start=start, end=end, score=score, is_flagged=draw(st.booleans())))
        labels = []
        for _ in range(draw(st.integers(0, 3))):
            start = draw(st.integers(0, length - 1))
            label_type = draw(st.sampled_from(("conflict", "baseless")))
            labels.append(Label(start=start, end=draw(st.integers(start + 1, length)), type=label_type))
        found.append(with_worst_span(make_row("x" * length, labels), spans))
    return found


def overlaps(one: Any, other: Any) -> bool:
    return bool(set(range(one.start, one.end)) & set(range(other.start, other.end)))


def same(one: float, other: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, abs_tol=1e-9)


@given(scored_answers(), st.sampled_from((every, lambda label: label.type == "conflict")))
@settings(deadline=None, max_examples=150)
def test_characters_are_judged_one_by_one(scored: list[ScoredAnswer], counted: Any) -> None:
    """Weighted segments give what listing every single character gives, at every figure."""
    scores, right, flags = [], [], []
    for answer in scored:
        for at in range(len(answer.row.answer)):
            labels = [label for label in answer.row.labels if label.start <= at < label.end]
            if labels and not any(counted(label) for label in labels):
                continue
            over = [span for span in answer.spans if span.start <= at < span.end]
            scores.append(over[0].score if over else 0.0)
            flags.append(bool(over and over[0].is_flagged))
            right.append(any(counted(label) for label in labels))
    result = sweep(detection.characters(scored, counted), range(len(scored)))
    assert same(first(result.average_precision), statistics.average_precision(scores, right))
    assert same(first(result.auroc), statistics.auroc(scores, right))
    assert same(first(result.best_f1), statistics.best_f1(scores, right)[0])
    if scores:
        assert same(first(result.precision_at_top), statistics.precision_at(scores, right, 0.1))
    both = sum(flag and is_right for flag, is_right in zip(flags, right, strict=True))
    wrong = sum(flag and not is_right for flag, is_right in zip(flags, right, strict=True))
    assert same(first(result.precision), both / sum(flags) if any(flags) else math.nan)
    assert same(first(result.recall), both / sum(right) if any(right) else math.nan)
    assert same(first(result.false_alarms), wrong / right.count(False) if False in right else math.nan)


@given(scored_answers())
@settings(deadline=None, max_examples=150)
def test_answers_are_ranked_by_their_worst_span(scored: list[ScoredAnswer]) -> None:
    """Answer level equals scikit-learn on (highest span score, has a label)."""
    scores = [max((span.score for span in answer.spans), default=0.0) for answer in scored]
    right = [bool(answer.row.labels) for answer in scored]
    result = sweep(detection.answers(scored, every), range(len(scored)))
    assert same(first(result.average_precision), statistics.average_precision(scores, right))
    assert same(first(result.auroc), statistics.auroc(scores, right))
    flags = [any(span.is_flagged for span in answer.spans) for answer in scored]
    total = sum(flags) + sum(right)
    both = sum(flag and is_right for flag, is_right in zip(flags, right, strict=True))
    if any(right):
        assert same(first(result.f1), 2 * both / total)


@given(scored_answers(), st.sampled_from((every, lambda label: label.type == "baseless")))
@settings(deadline=None, max_examples=150)
def test_span_precision_counts_spans_and_recall_counts_labels(
    scored: list[ScoredAnswer], counted: Any
) -> None:
    """Both by comparing all pairs character by character; the best F1 by trying every threshold."""

    def at(is_taken: Any) -> tuple[float, float]:
        taken = hits = labels = found = 0
        for answer in scored:
            for span in answer.spans:
                met = [label for label in answer.row.labels if overlaps(span, label)]
                is_right = any(counted(label) for label in met)
                if is_taken(span) and (is_right or not met):
                    taken, hits = taken + 1, hits + is_right
            for label in answer.row.labels:
                if counted(label):
                    labels += 1
                    found += any(is_taken(span) and overlaps(span, label) for span in answer.spans)
        return hits / taken if taken else math.nan, found / labels if labels else math.nan

    result = sweep(detection.spans(scored, counted), range(len(scored)))
    precision, recall = at(lambda span: span.is_flagged)
    assert same(first(result.precision), precision)
    assert same(first(result.recall), recall)
    best, average, before = 0.0, 0.0, 0.0
    for threshold in (1.0, 0.75, 0.5, 0.25, 0.0):
        precision, recall = at(lambda span, least=threshold: span.score >= least)
        if not math.isnan(precision) and not math.isnan(recall):
            best = max(best, 2 * precision * recall / (precision + recall) if precision + recall else 0.0)
            average += precision * (recall - before)
            before = recall
    if not math.isnan(recall):
        assert same(first(result.best_f1), best)
        assert same(first(result.average_precision), average)


@given(scored_answers(), st.lists(st.integers(0, 3), min_size=5, max_size=5))
@settings(deadline=None, max_examples=60)
def test_a_draw_is_the_answers_repeated(scored: list[ScoredAnswer], times: list[int]) -> None:
    """Counting an answer k times in a draw equals measuring on k copies of it."""
    draws = np.array([times[: len(scored)]], dtype=np.float64)
    copies = [answer for answer, count in zip(scored, times, strict=False) for _ in range(count)]
    drawn = sweep(detection.characters(scored, every), range(len(scored)), draws)
    copied = sweep(detection.characters(copies, every), range(max(len(copies), 1)))
    if copies:
        for figure in ("average_precision", "auroc", "precision_at_top", "f1", "best_f1", "false_alarms"):
            assert same(first(getattr(drawn, figure)), first(getattr(copied, figure))), figure


def test_intervals_agree_with_the_cluster_bootstrap_of_statistics() -> None:
    """Same figure, and the same 95 % interval up to the noise of the draws, from row indices one by one."""
    rng = np.random.default_rng(3)
    sources = np.repeat(np.arange(40), 5)
    hits = (rng.random(200) < np.repeat(rng.random(40), 5)).astype(np.float64)
    clusters, draws = resamples(sources.tolist(), seed=1, draws=4000)
    fast = estimate(share(hits, np.ones(200), clusters, draws), 200)
    slow = statistics.bootstrap(lambda rows: float(hits[rows].mean()), sources.tolist(), seed=2, draws=4000)
    assert fast.value == pytest.approx(slow.value)
    assert fast.low == pytest.approx(slow.low, abs=0.01)
    assert fast.high == pytest.approx(slow.high, abs=0.01)
    other = (rng.random(200) < 0.45).astype(np.float64)
    gain = share(hits, np.ones(200), clusters, draws) - share(other, np.ones(200), clusters, draws)
    paired, p = statistics.paired(
        lambda rows: float(hits[rows].mean()),
        lambda rows: float(other[rows].mean()),
        sources.tolist(),
        seed=2,
        draws=4000,
    )
    assert estimate(gain, 200).low == pytest.approx(paired.low, abs=0.015)
    assert p_value(gain) == pytest.approx(p, abs=0.05)


def test_many_distinct_scores_cost_almost_no_precision() -> None:
    """Above the number of levels scores are compared in steps; the figures stay within a thousandth."""
    rng = np.random.default_rng(0)
    right = rng.random(20_000) < 0.1
    scores = np.clip(rng.normal(0.4 + 0.2 * right, 0.1), 0, 1)
    scored = [
        with_worst_span(
            make_row("x", [Label(start=0, end=1, type="")] if is_right else []),
            [ScoredSpan(start=0, end=1, score=float(score))],
        )
        for score, is_right in zip(scores, right, strict=True)
    ]
    result = sweep(detection.answers(scored, every), [0] * len(scored))
    assert first(result.average_precision) == pytest.approx(
        statistics.average_precision(scores, right), abs=2e-3
    )
    assert first(result.auroc) == pytest.approx(statistics.auroc(scores, right), abs=1e-3)


@pytest.mark.parametrize(
    "span",
    [
        ScoredSpan(start=2, end=2, score=0.5),
        ScoredSpan(start=0, end=99, score=0.5),
        ScoredSpan(start=0, end=3, score=1.5),
        ScoredSpan(start=0, end=3, score=math.nan),
    ],
)
def test_a_scorer_at_fault_is_refused(span: ScoredSpan) -> None:
    with pytest.raises(ValueError, match="no span of its answer"):
        with_worst_span(make_row(), [span])


def test_lexical_scores_by_hand() -> None:
    """Words by stem, pairs by neighbours, numbers without thousands separators."""
    chunk = Chunk(position=0, text="The Osprey gateway listens on port 2959 and holds 1,200 sessions.")
    answer = "Osprey gateways listen on port 2960 with 1200 sessions."
    view = LexicalView(make_row(answer, chunks=(chunk,)))
    # Content words: Osprey gateways listen port 2960 1200 sessions; 2960 and 1200 stand in no chunk as words.
    assert view.word_misses(0, len(answer)) == pytest.approx(2 / 7)
    assert view.missing_words(0, len(answer)) == pytest.approx(2 / 1000)
    assert view.number_misses(0, len(answer)) == pytest.approx(1 / 2)
    assert view.pair_misses(0, len("Osprey gateways")) == 1.0
    assert view.pair_misses(answer.index("on port"), answer.index(" 2960")) == 0.0
    assert view.word_misses(0, 0) == 0.0
    assert view.overlap(0, 0, len("Osprey gateways")) == 1.0
    scored = score_trivially(view, [ScoredSpan(start=0, end=6, score=1.0)], np.random.default_rng(0))
    assert scored["flag everything"].is_flagged
    assert scored["length"].score > scored["length"].spans[0].score
    assert not scored["numbers in no chunk, share"].is_flagged  # "Osprey" holds none


def test_the_chunk_that_most_text_rests_on_is_chosen() -> None:
    spans = [
        ScoredSpan(start=0, end=4, score=0.0, position=2),
        ScoredSpan(start=5, end=8, score=0.0, position=1),
        ScoredSpan(start=9, end=10, score=0.0, position=1),
        ScoredSpan(start=11, end=20, score=0.0),
    ]
    assert most_named(spans) == 1  # four characters each: the earlier of equals
    assert most_named(spans[:2]) == 2
    assert most_named(spans[3:]) is None


def test_gold_chunks_by_hand() -> None:
    """Two answers: we name the gold chunk of one and none for the other; overlap finds both."""
    chunks = tuple(
        Chunk(position=at, text=text) for at, text in enumerate(("Red kites soar.", "Blue owls hoot."))
    )
    rows = [
        make_row("Owls hoot.", chunks=chunks, support_sets=(frozenset({1}),)),
        make_row("Kites soar.", chunks=chunks, support_sets=(frozenset({0}),)),
    ]
    spans = [[ScoredSpan(start=0, end=10, score=0.0, position=1)], [ScoredSpan(start=0, end=11, score=0.0)]]
    scored = [with_worst_span(row, each) for row, each in zip(rows, spans, strict=True)]
    table, gain = gold_chunks("made-up", "ours", scored, [0, 1], np.ones((2, 2)))
    top = {row[0]: row[1] for row in table.rows}
    values = {name: cell.value for name, cell in top.items() if isinstance(cell, Estimate)}
    assert values == {"ours": 0.5, "word overlap": 1.0, "first chunk": 0.5, "random (expected)": 0.5}
    assert gain.tolist() == [-0.5, -0.5]
    with pytest.raises(ValueError, match="no answer of made-up"):
        gold_chunks("made-up", "ours", [with_worst_span(make_row(), [])], [0], np.ones((2, 1)))


def line(**fields: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": "a",
        "dataset": "made-up",
        "source_id": "s1",
        "question": "What is the port of the Osprey gateway?",
        "chunks": [{"chunk_id": "c1", "text": "The port of the Osprey gateway is 2959."}],
        "answer": "The port of the Osprey gateway is 2959.",
        "labels": [],
        "model": "m",
    }
    return row | fields


def write(path: Path, rows: Sequence[Any]) -> Path:
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(texts) + "\n", "utf-8")
    return path


LABEL = {"start": 34, "end": 38, "type": "conflict"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"id": NaN}', "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        (line(id=None), 'no "id"'),
        (line(id="a "), None),
        (line(answer=" "), "the answer is empty"),
        (line(answer="\ud800"), "half a surrogate pair"),
        (line(chunks=None), 'no "chunks"'),
        (line(chunks=[{"chunk_id": "c1"}]), 'no text "text"'),
        (line(labels=None), 'no list "labels"'),
        (line(labels=[LABEL | {"end": 99}]), "is no part of the answer"),
        (line(labels=[LABEL | {"end": 34}]), "is no part of the answer"),
        (line(labels=[LABEL | {"start": True}]), "is no part of the answer"),
        (line(labels=[LABEL | {"text": "2960"}]), "is not the text it quotes"),
        (line(support_sets=[["c9"]]), "not among the chunks"),
        (line(support_sets="c1"), "no list of lists"),
        (line(id="ok"), "stands in line 1 already"),
    ],
)
def test_a_malformed_line_is_named_and_left_out(tmp_path: Path, bad: Any, reason: str | None) -> None:
    """A bad second line costs itself only, and is named by number and reason."""
    problems: list[tuple[int, str]] = []
    path = write(tmp_path / "x.jsonl", [line(id="ok"), bad, line(id="also")])
    rows = read_labelled(path, lambda number, message: problems.append((number, message)))
    if reason is None:
        assert len(rows) == 3
        assert not problems
        return
    assert [row.id for row in rows] == ["ok", "also"]
    assert [number for number, _ in problems] == [2]
    assert reason in problems[0][1]


def test_a_useless_file_is_an_error(tmp_path: Path) -> None:
    """Missing, empty, damaged: an error with the path, never an evaluation of nothing."""
    with pytest.raises(InputError, match="cannot be read"):
        read_labelled(tmp_path / "missing.jsonl", lambda *_: None)
    with pytest.raises(InputError, match="no usable"):
        read_labelled(write(tmp_path / "empty.jsonl", ["{}"]), lambda *_: None)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress((json.dumps(line()) + "\n").encode() * 50)[:-20])
    with pytest.raises(InputError, match="damaged"):
        read_labelled(cut, lambda *_: None)
    with pytest.raises(InputError, match="no file"):
        evaluate([], seed=0)


def test_whole_sources_are_sampled() -> None:
    """No source is split, the limit is reached, equal seeds draw equal sources whatever the lines' order."""
    rows = [make_row(id=str(at), source_id=str(at // 3)) for at in range(60)]
    kept = sample_sources(rows, 10, seed=4)
    assert len(kept) == 12
    sources = {row.source_id for row in kept}
    assert kept == [row for row in rows if row.source_id in sources]
    assert {row.source_id for row in sample_sources(rows[::-1], 10, seed=4)} == sources
    assert any({r.source_id for r in sample_sources(rows, 10, seed=seed)} != sources for seed in range(5, 9))
    assert sample_sources(rows, None, seed=4) == rows
    with pytest.raises(InputError, match="limit of 0"):
        sample_sources(rows, 0, seed=4)


def table(evidence: Evidence, title: str) -> Table:
    return next(each for each in evidence.tables if each.title == title)


def figure(evidence: Evidence, title: str, method: str, column: str) -> float:
    each = table(evidence, title)
    row = next(row for row in each.rows if row[0] == method)
    cell = row[each.columns.index(column)]
    assert isinstance(cell, Estimate)
    return cell.value


def test_a_made_up_file_end_to_end(tmp_path: Path) -> None:
    """Four answers of which our rules get three right: every figure follows on paper."""
    wrong = "The port of the Osprey gateway is 2960."
    hidden = "The port of the Osprey gateway is 2959."
    rows = [
        line(id="right"),
        line(id="flagged", source_id="s2", answer=wrong, labels=[LABEL | {"text": "2960"}]),
        # People object to a value that the chunk does say: no rule over the text can find this one.
        line(id="missed", source_id="s3", answer=hidden, labels=[LABEL]),
        line(id="right too", source_id="s4", model="other"),
    ]
    evidence = evaluate([write(tmp_path / "made.jsonl", rows)], seed=1)
    ours = "ragblame, rules alone"
    for title in ("made-up: answers", "made-up: spans", "made-up: characters"):
        assert figure(evidence, title, ours, "precision") == 1.0
        assert figure(evidence, title, ours, "recall") == 0.5
        assert figure(evidence, title, ours, "F1") == pytest.approx(2 / 3)
        assert figure(evidence, title, ours, "false alarms") == 0.0
    assert figure(evidence, "made-up: answers", "flag everything", "average precision") == 0.5
    # Flagged first, then three equal answers of which one is labelled.
    assert figure(evidence, "made-up: answers", ours, "average precision") == pytest.approx(0.5 + 0.5 * 0.5)
    assert evidence.confusions[0].counts == ((2, 0), (1, 1))
    causes = table(evidence, "made-up: flagged spans by cause")
    assert [(row[0], row[1]) for row in causes.rows] == [("distortion", 1)]
    assert "made-up: by generator" in [each.title for each in evidence.tables]
    assert from_json(json.loads(json.dumps(evidence.to_json()))).command == evidence.command
    again = evaluate([tmp_path / "made.jsonl"], seed=1)
    assert again.to_json()["rows"] == evidence.to_json()["rows"]


def test_what_is_true_anyway_counts_neither_way(tmp_path: Path) -> None:
    """Without implicit_true the label is neither found nor missed, and flagging it no false alarm."""
    wrong = "The port of the Osprey gateway is 2960."
    anyway = LABEL | {"implicit_true": True}
    rows = [
        line(id="right"),
        line(id="flagged", source_id="s2", answer=wrong, labels=[LABEL]),
        line(id="true anyway", source_id="s3", answer=wrong, labels=[anyway]),
    ]
    evidence = evaluate([write(tmp_path / "made.jsonl", rows)], seed=0)
    ours = "ragblame, rules alone"
    assert "3 answers, 66.7%" in table(evidence, "made-up: answers").note
    strict = "made-up: answers, without what is true anyway"
    assert "2 answers, 50.0%" in table(evidence, strict).note
    assert figure(evidence, strict, ours, "precision") == 1.0
    assert figure(evidence, strict, ours, "false alarms") == 0.0


def test_the_scorer_can_be_replaced(tmp_path: Path) -> None:
    """Any callable row -> spans is measured, also one that knows the labels: then every figure is 1."""

    def oracle(row: LabelledAnswer) -> list[ScoredSpan]:
        return [
            ScoredSpan(start=label.start, end=label.end, score=1.0, is_flagged=True, cause="known")
            for label in row.labels
        ]

    wrong = "The port of the Osprey gateway is 2960."
    rows = [line(id="right"), line(id="wrong", source_id="s2", answer=wrong, labels=[LABEL])]
    seen: list[float] = []
    evidence = evaluate(
        [write(tmp_path / "made.jsonl", rows)],
        seed=0,
        scorer=oracle,
        name="oracle",
        progress=lambda what, part: seen.append(part),
    )
    for level in ("answers", "spans", "characters"):
        for column in ("average precision", "precision", "recall", "F1", "best F1, in-sample"):
            assert figure(evidence, f"made-up: {level}", "oracle", column) == 1.0
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_lines_left_out_are_counted_in_the_evidence(tmp_path: Path) -> None:
    evidence = evaluate([write(tmp_path / "made.jsonl", [line(), *["{"] * 7])], seed=0)
    note = next(note for note in evidence.notes if "left out" in note)
    assert "7 lines were left out: line 2: not JSON" in note
    assert note.endswith("and 2 more.")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.split(".")[0])
def test_the_human_labelled_sets(path: Path) -> None:
    """On a sample of each set the rules are better than random, and every figure lies in its range."""
    if not path.exists():
        pytest.skip(f"{path} is not here; set RAGBLAME_SHARED_DATA to the folder of the labelled sets")
    evidence = evaluate([path], seed=0, limit=60)
    for each in evidence.tables:
        assert each.rows
        for cell in (cell for row in each.rows for cell in row if isinstance(cell, Estimate)):
            is_margin = "difference" in each.columns
            assert math.isnan(cell.value) or (-1.0 if is_margin else 0.0) <= cell.value <= 1.0
    dataset = path.name.split(".")[0]
    ours = "ragblame, rules alone"
    if dataset in ("ragtruth_qa", "wice"):
        for level in ("answers", "spans", "characters"):
            title = f"{dataset}: {level}"
            mine, chance = (
                figure(evidence, title, who, "average precision") for who in (ours, "flag everything")
            )
            assert mine > chance
    else:
        assert figure(evidence, f"{dataset}: false alarms", ours, "answers") < 0.5
    if dataset != "ragtruth_qa":
        title = f"{dataset}: gold chunks"
        mine = figure(evidence, title, ours, "answers, top-1")
        assert mine > figure(evidence, title, "random (expected)", "answers, top-1")


def test_the_end_of_a_very_long_answer_is_ranked_by_the_rules() -> None:
    """What the support model does not read is no fault of the answer: it is measured all the same."""
    from ragblame.attribution.support_model.model import MAX_ANSWER, SupportModel

    answer = "The warranty of the Orion pump is 36 months. " * (MAX_ANSWER // 40)
    row = LabelledAnswer(
        id="long",
        dataset="set",
        source_id="s",
        question="How long is the warranty of the Orion pump?",
        chunks=(Chunk(position=0, text="The warranty of the Orion pump is 36 months."),),
        answer=answer,
        labels=(),
        support_sets=(),
        model="",
    )
    found = TextOnly(SupportModel.load())(row)
    assert found[0].start < MAX_ANSWER < found[-1].end
    assert all(0 <= span.score <= 1 for span in found)
