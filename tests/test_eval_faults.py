"""`ragblame eval faults`: faults are put in for real, taken out again, and counted by what was put in."""

import json
from collections import Counter

import psycopg
import pytest

from ragblame.attribution.evaluation.evidence import from_json
from ragblame.attribution.evaluation.faults import (
    EXPECTED,
    MEMORY_OR_PROMPT,
    NOT_FLAGGED,
    UNDETERMINED,
    Draw,
    Fault,
    Outcome,
    class_of,
    count_draws,
)
from ragblame.records import Cause
from ragblame.ui.faults import corpus, run


def draws(given: str | None = None, outcome: Outcome = Outcome.CASE) -> list[Draw]:
    """Ten draws of each fault, given their own cause or another one."""
    return [
        Draw(
            fault=fault,
            way="way",
            cluster=f"{fault} {number}",
            outcome=outcome,
            given=given or EXPECTED[fault],
        )
        for fault in Fault
        for number in range(10)
    ]


def bars(found: list[Draw]) -> dict[str, float]:
    """Figures of the bars by the first words of their names."""
    return {bar.name.split(":")[0]: bar.value for bar in count_draws(found, seed=0).bars}


def test_the_score_is_that_of_the_causes_given() -> None:
    """All right is 1, all one wrong cause is nearly 0, and what had no effect counts nowhere."""
    ignored = draws(given=NOT_FLAGGED, outcome=Outcome.NO_EFFECT)
    assert bars([*draws(), *ignored])["primary cause"] == 1.0
    wrong = bars(draws(given=EXPECTED[Fault.DELETED]))["primary cause"]
    assert wrong == pytest.approx(
        (2 * 10 / (90 + 10)) / len(Fault)
    )  # the one class has recall 1 and precision 1/9
    assert bars([*draws(), *ignored])["cases of the rarest fault"] == 10


def test_an_open_verdict_is_wrong_and_counted_as_open() -> None:
    """“Undetermined” is no way to a good score, and its share is a bar of its own."""
    found = [*draws(), *draws(given=UNDETERMINED)]
    assert bars(found)["undetermined"] == 0.5
    assert bars(found)["primary cause"] == pytest.approx(2 / 3)  # precision 1, recall 1/2


def test_a_false_alarm_stands_in_the_matrix() -> None:
    """A flagged control is a row of the confusion matrix and of the controls' table."""
    control = Draw(
        fault=None, way="", cluster="a", outcome=Outcome.CASE, given=Cause.DISTORTION.value, is_flagged=True
    )
    found = count_draws([*draws(), control], seed=0)
    (matrix,) = found.confusions
    row, column = matrix.labels.index(NOT_FLAGGED), matrix.labels.index(Cause.DISTORTION.value)
    assert matrix.counts[row][column] == 1
    assert sum(map(sum, matrix.counts)) == 10 * len(Fault) + 1


def test_every_cause_has_a_class() -> None:
    """Memory and prompt are one class, the two honest “cannot say” another, nothing is lost."""
    assert {class_of(Cause.MEMORY_OVERRIDE), class_of(Cause.PROMPT)} == {MEMORY_OR_PROMPT}
    assert {class_of(Cause.UNDETERMINED), class_of(Cause.CAPTURE_INCOMPLETE)} == {UNDETERMINED}
    assert class_of(None) == NOT_FLAGGED
    assert set(EXPECTED) == set(Fault)
    assert len(set(EXPECTED.values())) == len(Fault)


def test_a_source_is_stated_in_one_way_only() -> None:
    """No question is asked that two pages answer differently, and every row named states the value."""
    pages = corpus.pages(3, 2)
    rows = {
        (page.slug, place): corpus.Row(id=f"{page.slug} {place}", text=chunk.text, slug=page.slug)
        for page in pages
        for place, chunk in enumerate(page.chunks)
    }
    sources = corpus.sources(pages, rows)
    assert len(sources) > 200
    assert len({source.claim for source in sources}) == len(sources)
    for source in sources:
        assert all(source.value in row.text for row in source.rows)
        others = [
            row for row in rows.values() if row not in source.rows and str(source.claim.entity) in row.text
        ]
        assert all(source.value not in row.text for row in others if row.slug == source.rows[0].slug)


def test_quick_variant_names_what_was_put_in(database_url: str) -> None:
    """Two cases of each fault on a real corpus: most are named right, and the corpus is left as it was."""
    seen: list[str] = []
    evidence = run.evaluate(
        seed=2, is_quick=True, url=database_url, progress=lambda what, part: seen.append(f"{what} {part:.3f}")
    )
    assert from_json(json.loads(json.dumps(evidence.to_json()))).bars == evidence.bars
    values = {bar.name.split(":")[0]: bar.value for bar in evidence.bars}
    assert values["cases of the rarest fault"] == run.QUICK_CASES
    assert values["primary cause"] >= 0.8  # of 18: what cannot be luck, not what is aimed at
    parts = [float(line.rsplit(" ", 1)[1]) for line in seen]
    assert parts == sorted(parts)
    assert {fault.value for fault in Fault} <= {line.rsplit(" ", 1)[0] for line in seen}
    table = next(table for table in evidence.tables if table.title == "What was drawn")
    drawn = {row[0]: row[1:] for row in table.rows}
    # nothing is dropped silently
    assert all(sum(int(str(part)) for part in row[1:]) == row[0] for row in drawn.values())
    _assert_untouched(database_url)


def _assert_untouched(url: str) -> None:
    """The corpus is what was ingested: ids, texts, ages, metadata and index."""
    wanted = Counter(chunk.text for page in corpus.pages(2, run.QUICK_DEMOS) for chunk in page.chunks)
    with psycopg.connect(url) as conn:
        rows = conn.execute("SELECT text, created_at FROM ragblame.chunk").fetchall()
        oldest = conn.execute("SELECT max(created_at) FROM ragblame.document").fetchone()
        indexes = conn.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'chunk'").fetchall()
    assert Counter(text for text, _ in rows) == wanted
    assert oldest is not None
    assert max(age for _, age in rows) <= oldest[0]
    assert [" USING hnsw " in definition for (definition,) in indexes].count(True) == 1
    assert not any("ivfflat" in definition for (definition,) in indexes)
