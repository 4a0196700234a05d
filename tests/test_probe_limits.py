"""Out of time is no error and never silent: what was not finished is labelled, and the probe ends in time.

Slow tables are made slow: a row policy sleeps for each row that is read, so an index stays quick and a scan
takes minutes.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import psycopg
import pytest

from ragblame.corpus import ProbeReport, ProbeRequest, ProbeText, ProbeWay
from ragblame.errors import DatabaseError
from ragblame.retriever import probe_asking
from ragblame.retriever.embedding_models import register_model
from ragblame.retriever.probe import TableProbe
from ragblame.retriever.sources import our_corpus
from tests.probe_corpus import (
    SIZE,
    Conn,
    PlantedEmbeddings,
    fill,
    near,
    random_vector,
    reader,
    set_for_database,
    store,
)

QUESTION = "Which port does the Kestrel gateway listen on?"
GOLD = "The Kestrel gateway listens on port 2959 since March."
FAR = "The Merlin queue is far away from every question about gateways."
ASKED = random_vector("asked")
REQUEST = ProbeRequest(question=QUESTION, claim="It listens on port 4000.", value="4000", k=4)
ROWS = 4_000
SECONDS = 3.0


@pytest.fixture
def ids(connection: Conn) -> dict[str, str]:
    """Text -> row id of the gold row and of a far one, among many."""
    embeddings = PlantedEmbeddings({GOLD: near(ASKED, 0.05, "gold"), FAR: [-value for value in ASKED]})
    found = store(connection, embeddings, {"gateway.md": [GOLD], "queue.md": [FAR]})
    fill(connection, register_model(connection, "planted", SIZE), ROWS)
    return found


@pytest.fixture
def slow_url(database_url: str, connection: Conn, ids: dict[str, str]) -> Iterator[str]:
    """A role for whom each row of the corpus takes a millisecond to read: four seconds and more for all."""
    url = reader(database_url, "slow_reader")
    with connection.transaction():
        connection.execute("GRANT USAGE ON SCHEMA ragblame TO slow_reader")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA ragblame TO slow_reader")
        connection.execute(
            "CREATE FUNCTION public.slow() RETURNS boolean LANGUAGE plpgsql COST 1 AS "
            "$$ BEGIN PERFORM pg_sleep(0.001); RETURN true; END $$"
        )
        connection.execute("ALTER TABLE ragblame.chunk ENABLE ROW LEVEL SECURITY")
        connection.execute("CREATE POLICY slow ON ragblame.chunk FOR SELECT USING (public.slow())")
    set_for_database(database_url, "enable_seqscan", "off")  # the index, wherever one serves
    yield url
    with connection.transaction():
        connection.execute("DROP OWNED BY slow_reader CASCADE")


def ask(url: str, request: ProbeRequest = REQUEST, seconds: float = SECONDS) -> ProbeReport:
    """One probe of our corpus."""
    embeddings = PlantedEmbeddings({QUESTION: ASKED})
    with TableProbe(url, our_corpus(), embeddings, seconds=seconds) as probe:
        return probe.probe(request)


def unlabelled(report: ProbeReport) -> list[object]:
    """Searches that are neither exact and complete nor say why; an index' own list says it by its name."""
    own = (ProbeWay.RETRIEVER, ProbeWay.HYBRID)
    return [
        search
        for search in report.searches
        if not (search.is_exact and search.is_complete)
        and not search.note
        and not (search.way in own and search.is_complete)
    ]


def test_a_scan_that_takes_too_long_leaves_the_index_and_says_so(slow_url: str, ids: dict[str, str]) -> None:
    """Within the limit: the nearest rows of the index, called approximate, with their texts."""
    began = time.monotonic()
    report = ask(slow_url)
    assert time.monotonic() - began < SECONDS + 2.0  # connections and a busy machine
    assert report.seconds < SECONDS + 0.5
    assert not report.is_exact
    gold = report.chunk(ids[GOLD])
    assert gold is not None
    assert gold.text == GOLD
    seen = gold.sighting(ProbeText.QUERY)
    assert seen is not None
    assert not seen.is_exact
    [nearest] = [
        search
        for search in report.searches
        if search.way is ProbeWay.NEAREST and search.text is ProbeText.QUERY
    ]
    assert nearest.note.startswith("approximate: the table could not be compared whole (not finished in ")
    assert unlabelled(report) == []
    assert any("row security" in note for note in report.notes)


def test_a_rank_that_cannot_be_counted_is_estimated(
    slow_url: str, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The far row's rank comes from a sample, is called approximate, and is of the right size."""
    monkeypatch.setattr("ragblame.retriever.probe_vectors.SAMPLE", 200)
    report = ask(slow_url, replace(REQUEST, retrieved=(ids[FAR],)), seconds=12.0)
    far = report.chunk(ids[FAR])
    assert far is not None
    assert far.is_retrieved
    [note] = [note for note in report.notes if note.startswith("Ranks of")]
    assert "approximate: the table could not be counted in" in note
    seen = far.sighting(ProbeText.QUERY)
    assert seen is not None
    assert not seen.is_exact
    assert ROWS / 4 < seen.rank < ROWS * 4


@pytest.mark.parametrize("seconds", [0.001, 0.05, 0.3])
def test_hardly_any_time_is_still_an_answer(slow_url: str, ids: dict[str, str], seconds: float) -> None:
    """However little there is, the report comes, late by little, and labels what it lacks."""
    began = time.monotonic()
    report = ask(slow_url, replace(REQUEST, answered_at=datetime.now(UTC)), seconds=seconds)
    assert time.monotonic() - began < seconds + 3.0
    assert not report.is_exact
    assert unlabelled(report) == []


def test_a_table_beyond_the_limit_is_not_scanned(
    database_url: str, connection: Conn, ids: dict[str, str]
) -> None:
    """Above ``max_exact_rows`` the lists stay those of the index, with the reason."""
    set_for_database(database_url, "enable_seqscan", "off")
    embeddings = PlantedEmbeddings({QUESTION: ASKED})
    with TableProbe(database_url, our_corpus(), embeddings, seconds=20.0, max_exact_rows=1_000) as probe:
        report = probe.probe(replace(REQUEST, retrieved=(ids[FAR],)))
    assert not report.is_exact
    nearest = [search for search in report.searches if search.way is ProbeWay.NEAREST]
    assert all("rows are more than are compared (1000)" in search.note for search in nearest)
    assert any("were not counted" in note for note in report.notes)
    assert unlabelled(report) == []


def test_a_lock_is_not_waited_for(database_url: str, connection: Conn, ids: dict[str, str]) -> None:
    """While somebody rebuilds the table, the probe gives up at once with the reason."""
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE ragblame.chunk IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        with pytest.raises(DatabaseError, match="lock"):
            ask(database_url)
        assert time.monotonic() - began < 8.0
        other.rollback()


def test_the_pool_is_small(slow_url: str, database_url: str, connection: Conn, ids: dict[str, str]) -> None:
    """Six callers at once use two connections, and all get their answer."""
    reports: list[ProbeReport] = []
    embeddings = PlantedEmbeddings({QUESTION: ASKED})
    most = 0
    with TableProbe(slow_url, our_corpus(), embeddings, seconds=0.5) as probe:
        threads = [threading.Thread(target=lambda: reports.append(probe.probe(REQUEST))) for _ in range(6)]
        for thread in threads:
            thread.start()
        with psycopg.connect(database_url, autocommit=True) as conn:
            while any(thread.is_alive() for thread in threads):
                row = conn.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ragblame probe'"
                ).fetchone()
                assert row is not None
                most = max(most, row[0])
                time.sleep(0.02)
    assert len(reports) == 6
    assert 1 <= most <= 2


def test_a_crippled_index_with_thousands_nearer_does_not_flood_the_report(
    database_url: str, connection: Conn, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the index' farthest is so far that half of the table is nearer, the list says it is not exact."""
    monkeypatch.setattr("ragblame.retriever.probe_vectors.MAX_ROWS", 30)
    set_for_database(database_url, "enable_seqscan", "off")
    report = ask(database_url, seconds=20.0)
    assert not report.is_exact
    assert any("more than 30 rows are nearer" in search.note for search in report.searches)
    assert unlabelled(report) == []
    assert len(report.chunks) <= probe_asking.MAX_CHUNKS + 1
